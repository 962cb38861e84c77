//! A source's specification as the sessions with its database take it, its secrets resolved.

use downriver_event::problem::Problem;
use downriver_service::spec::{Failover, MaskWith, Source};
use downriver_source::postgres::config::PostgresConfig;
use downriver_source::postgres::rules::{ColumnRules, HashKey, Mask};

/// Shorter keys of hashes can be found by trying.
const HASH_KEY_BYTES_MIN: usize = 16;

/// The connection that a source's specification describes, its secret resolved.
pub(super) fn postgres_config(name: &str, source: &Source) -> Result<PostgresConfig, Problem> {
    let spec = &source.postgres;
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
    let masks = spec.mask.iter();
    let masks = masks.map(|rule| Ok((rule.columns.clone(), mask(&rule.with)?)));
    config.columns = ColumnRules::new(&spec.exclude_columns, masks.collect::<Result<_, _>>()?);
    config.slot = spec.slot.clone().unwrap_or_else(|| own.clone());
    config.publication = spec.publication.clone().unwrap_or(own);
    config.failover = spec.failover != Some(Failover::Off);
    Ok(config)
}

fn mask(with: &MaskWith) -> Result<Mask, Problem> {
    Ok(match with {
        MaskWith::Null => Mask::Null,
        MaskWith::Constant(constant) => Mask::Constant(constant.clone()),
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
