//! The conversation with one catalog: its configuration, its addresses and the token.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use reqwest::{Client, Method, Url};
use serde::{Deserialize, Serialize};
use tokio::sync::OnceCell;

use super::RestOptions;
use super::answer::{Answer, Request};
use crate::catalog::CatalogError;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// A token is renewed this long before it ends, or at half its life if that is later.
const RENEW_BEFORE_END: Duration = Duration::from_secs(60);
/// What some servers answer for a token that has ended.
const LOGIN_TIMEOUT: u16 = 419;

/// Calls may be made at the same time and dropped half-way.
pub(super) struct Session {
    options: RestOptions,
    uri: Url,
    http: Client,
    settings: OnceCell<Settings>,
    token: Mutex<Option<Token>>,
}

/// Without the secrets.
impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session")
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

/// What the catalog wants of its clients.
struct Settings {
    /// The catalog's `/v1/{prefix}`.
    base: Url,
    oauth2_server: Option<Url>,
    token: Option<String>,
}

#[derive(Clone)]
struct Token {
    bearer: String,
    renew_at: Option<Instant>,
}

#[derive(Deserialize)]
struct ConfigBody {
    #[serde(default)]
    defaults: Option<HashMap<String, Option<String>>>,
    #[serde(default)]
    overrides: Option<HashMap<String, Option<String>>>,
}

#[derive(Deserialize)]
struct TokenBody {
    access_token: String,
    expires_in: Option<u64>,
}

impl Session {
    pub(super) fn open(options: RestOptions) -> Result<Self, CatalogError> {
        let uri = parse_url(&options.uri)?;
        if let Some(server) = &options.oauth2_server_uri {
            parse_url(server)?;
        }
        let http = Client::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(options.request_timeout)
            // A redirected POST may become a GET.
            .redirect(reqwest::redirect::Policy::none())
            .user_agent(concat!("downriver/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|error| CatalogError::Refused(error.to_string()))?;
        Ok(Self {
            uri,
            http,
            settings: OnceCell::new(),
            token: Mutex::new(None),
            options,
        })
    }

    /// Calls the endpoint at `path` under the catalog's prefix; the answer may be of any status.
    pub(super) async fn call(
        &self,
        request: Request,
        method: Method,
        path: &[&str],
        body: Option<&(impl Serialize + Sync)>,
    ) -> Result<Answer, CatalogError> {
        let settings = self.settings().await?;
        let url = extended(&settings.base, path)?;
        let body = match body {
            Some(body) => Some(serde_json::to_vec(body).map_err(|error| {
                CatalogError::Refused(format!("the request cannot be written: {error}"))
            })?),
            None => None,
        };
        self.send(Some(settings), request, method, url, body).await
    }

    async fn settings(&self) -> Result<&Settings, CatalogError> {
        self.settings
            .get_or_try_init(|| self.fetch_settings())
            .await
    }

    async fn fetch_settings(&self) -> Result<Settings, CatalogError> {
        let mut url = extended(&self.uri, &["v1", "config"])?;
        if let Some(warehouse) = &self.options.warehouse {
            url.query_pairs_mut().append_pair("warehouse", warehouse);
        }
        let answer = self
            .send(None, Request::Read, Method::GET, url, None)
            .await?;
        let config: ConfigBody = answer
            .expect_success()?
            .parse("an Iceberg REST catalog's configuration")?;
        let (defaults, overrides) = (config.defaults, config.overrides);
        // The catalog's overrides go before what was asked for, its defaults after it.
        let setting = |key: &str, own: Option<&str>| -> Option<String> {
            let theirs = |from: &Option<HashMap<String, Option<String>>>| {
                from.as_ref()
                    .and_then(|settings| settings.get(key).cloned().flatten())
            };
            theirs(&overrides)
                .or_else(|| own.map(str::to_owned))
                .or_else(|| theirs(&defaults))
        };
        let uri = match setting("uri", Some(&self.options.uri)) {
            Some(uri) => parse_url(&uri)?,
            None => self.uri.clone(),
        };
        let mut base = extended(&uri, &["v1"])?;
        if let Some(prefix) = setting("prefix", None).filter(|prefix| !prefix.is_empty()) {
            // It is part of the path as it is: a catalog that needs it encoded sends it so.
            base = parse_url(&format!("{base}/{}", prefix.trim_matches('/')))?;
        }
        let server = setting(
            "oauth2-server-uri",
            self.options.oauth2_server_uri.as_deref(),
        );
        Ok(Settings {
            base,
            oauth2_server: server.map(|server| parse_url(&server)).transpose()?,
            token: setting("token", self.options.token.as_deref()),
        })
    }

    /// Sends once, and once more if the token was not taken and another can be had.
    async fn send(
        &self,
        settings: Option<&Settings>,
        request: Request,
        method: Method,
        url: Url,
        body: Option<Vec<u8>>,
    ) -> Result<Answer, CatalogError> {
        let body = body.map(bytes::Bytes::from);
        let mut renewed = false;
        loop {
            let token = self.token(settings).await?;
            let mut sending = self.http.request(method.clone(), url.clone());
            if let Some(token) = &token {
                sending = sending.bearer_auth(token);
            }
            if let Some(body) = &body {
                sending = sending
                    .header(reqwest::header::CONTENT_TYPE, "application/json")
                    .body(body.clone());
            }
            let answer = Answer::of(request, sending.send().await).await?;
            let refused = matches!(answer.status.as_u16(), 401 | LOGIN_TIMEOUT);
            if !refused || renewed || self.options.credential.is_none() {
                return Ok(answer);
            }
            self.forget(token.as_deref());
            renewed = true;
        }
    }

    async fn token(&self, settings: Option<&Settings>) -> Result<Option<String>, CatalogError> {
        let Some((id, secret)) = &self.options.credential else {
            let configured = settings.and_then(|settings| settings.token.clone());
            return Ok(configured.or_else(|| self.options.token.clone()));
        };
        let held = self.lock().clone();
        if let Some(token) = held
            && token.renew_at.is_none_or(|at| Instant::now() < at)
        {
            return Ok(Some(token.bearer));
        }
        let token = self.fetch_token(settings, id, secret).await?;
        *self.lock() = Some(token.clone());
        Ok(Some(token.bearer))
    }

    async fn fetch_token(
        &self,
        settings: Option<&Settings>,
        id: &str,
        secret: &str,
    ) -> Result<Token, CatalogError> {
        let configured = settings.and_then(|settings| settings.oauth2_server.clone());
        let url = match (configured, &self.options.oauth2_server_uri) {
            (Some(url), _) => url,
            (None, Some(server)) => parse_url(server)?,
            (None, None) => extended(&self.uri, &["v1", "oauth", "tokens"])?,
        };
        let form = [
            ("grant_type", "client_credentials"),
            ("client_id", id),
            ("client_secret", secret),
            ("scope", &self.options.scope),
        ];
        let asked_at = Instant::now();
        let sent = self.http.post(url).form(&form).send().await;
        let answer = Answer::of(Request::Read, sent).await?.expect_success()?;
        let body: TokenBody = answer.parse("a token")?;
        let renew_at = body.expires_in.and_then(|seconds| {
            let life = Duration::from_secs(seconds);
            asked_at.checked_add(life.saturating_sub(RENEW_BEFORE_END).max(life / 2))
        });
        Ok(Token {
            bearer: body.access_token,
            renew_at,
        })
    }

    /// Another call may have put a new token in place already; that one stays.
    fn forget(&self, bearer: Option<&str>) {
        let mut held = self.lock();
        if held.as_ref().map(|token| &*token.bearer) == bearer {
            *held = None;
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Token>> {
        // A token is replaced whole, so it is good even if a holder panicked.
        self.token.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn parse_url(text: &str) -> Result<Url, CatalogError> {
    let refused = |reason: &dyn std::fmt::Display| {
        CatalogError::Refused(format!("{text:?} is not a catalog's address: {reason}"))
    };
    let url = Url::parse(text.trim_end_matches('/')).map_err(|error| refused(&error))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(refused(&"it must be http:// or https://"));
    }
    Ok(url)
}

/// The URL with more segments, each percent-encoded.
fn extended(base: &Url, segments: &[&str]) -> Result<Url, CatalogError> {
    for segment in segments {
        // A path cannot name these two.
        if matches!(*segment, "" | "." | "..") {
            return Err(CatalogError::Refused(format!(
                "{segment:?} cannot be the name of a namespace or table"
            )));
        }
    }
    let mut url = base.clone();
    url.path_segments_mut()
        .map_err(|()| CatalogError::Refused(format!("{base} is not a catalog's address")))?
        .pop_if_empty()
        .extend(segments);
    Ok(url)
}
