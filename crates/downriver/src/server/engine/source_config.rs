//! A source's specification as the sessions with its database take it, its secrets resolved.

use downriver_event::problem::Problem;
use downriver_service::spec::{Failover, MaskRule, MaskWith, Mysql, Postgres, Source};
use downriver_source::mysql::config::{MysqlConfig, random_server_id};
use downriver_source::postgres::config::PostgresConfig;
use downriver_source::rules::{ColumnOrder, ColumnRules, Constant, HashKey, Mask};

/// Shorter keys of hashes can be found by trying.
const HASH_KEY_BYTES_MIN: usize = 16;

/// How the database of a source is reached.
pub(super) enum Connection {
    Postgres(PostgresConfig),
    Mysql(MysqlConfig),
}

/// The connection that a source's specification describes, its secret resolved.
pub(super) fn connection(name: &str, source: &Source) -> Result<Connection, Problem> {
    Ok(match source {
        Source::Postgres(spec) => Connection::Postgres(postgres_config(name, spec)?),
        Source::Mysql(spec) => Connection::Mysql(mysql_config(spec)?),
    })
}

pub(super) fn mysql_config(spec: &Mysql) -> Result<MysqlConfig, Problem> {
    let mut config = MysqlConfig::from_url(&spec.url)
        .map_err(|error| Problem::new("DR-2005", error.0, "correct mysql.url"))?;
    if let Some(secret) = &spec.password {
        config.password = Some(secret.resolve()?);
    }
    if let Some(tls) = &spec.tls {
        config.tls.ca_file = Some(tls.ca.file.clone());
    }
    config.tables.clone_from(&spec.tables);
    config.columns = ColumnRules::new(
        &spec.exclude_columns,
        masks(&spec.mask, Constant::of_mysql)?,
        ColumnOrder::Places,
    );
    config.server_id = spec.server_id.unwrap_or_else(random_server_id);
    Ok(config)
}

pub(super) fn postgres_config(name: &str, spec: &Postgres) -> Result<PostgresConfig, Problem> {
    let mut config = PostgresConfig::from_url(&spec.url)
        .map_err(|error| Problem::new("DR-2005", error.0, "correct postgres.url"))?;
    if let Some(secret) = &spec.password {
        config.password = Some(secret.resolve()?);
    }
    if let Some(tls) = &spec.tls {
        config.tls.ca_file = Some(tls.ca.file.clone());
    }
    let own = format!("downriver_{}", name.replace('-', "_"));
    config.tables.clone_from(&spec.tables);
    config.columns = ColumnRules::new(
        &spec.exclude_columns,
        masks(&spec.mask, Constant::of_postgres)?,
        ColumnOrder::Numbers,
    );
    config.slot = spec.slot.clone().unwrap_or_else(|| own.clone());
    config.publication = spec.publication.clone().unwrap_or(own);
    config.failover = spec.failover != Some(Failover::Off);
    Ok(config)
}

/// The masks of rules, with the patterns of their columns. `constant` makes those of the source's database.
fn masks(
    rules: &[MaskRule],
    constant: fn(String) -> Constant,
) -> Result<Vec<(Vec<String>, Mask)>, Problem> {
    let masks = rules.iter();
    let masks = masks.map(|rule| Ok((rule.columns.clone(), mask(&rule.with, constant)?)));
    masks.collect()
}

fn mask(with: &MaskWith, constant: fn(String) -> Constant) -> Result<Mask, Problem> {
    Ok(match with {
        MaskWith::Null => Mask::Null,
        MaskWith::Constant(text) => Mask::Constant(constant(text.clone())),
        MaskWith::Partial(options) => Mask::Partial {
            first: options.first,
            last: options.last,
        },
        MaskWith::Hash(options) => {
            let key = options.key.resolve()?;
            if key.len() < HASH_KEY_BYTES_MIN {
                return Err(Problem::new(
                    "DR-2029",
                    format!(
                        "the key of a mask has {} bytes: hashes made with it can be guessed",
                        key.len()
                    ),
                    format!(
                        "use a random key of at least {HASH_KEY_BYTES_MIN} bytes: openssl rand -hex 32"
                    ),
                ));
            }
            Mask::Hash(HashKey::new(key.as_bytes()))
        }
    })
}
