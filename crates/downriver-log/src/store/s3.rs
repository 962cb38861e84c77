//! S3, and what speaks its protocol, as the object store.

use std::ops::Range;
use std::path::Path;
use std::time::Duration;

use async_trait::async_trait;
use aws_sdk_s3::Client;
use aws_sdk_s3::config::interceptors::InterceptorContext;
use aws_sdk_s3::config::retry::{ClassifyRetry, RetryAction, RetryConfig};
use aws_sdk_s3::config::timeout::TimeoutConfig;
use aws_sdk_s3::config::{BehaviorVersion, Credentials, Region};
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_s3::primitives::ByteStream;
use aws_smithy_http_client::Builder;
use aws_smithy_http_client::tls::Provider;
use aws_smithy_http_client::tls::rustls_provider::CryptoMode;
use bytes::Bytes;
use downriver_event::planted::Bug;
use tokio::sync::OnceCell;

use super::{ObjectStore, StoreError};

const ATTEMPTS: u32 = 3;
/// What a store says whose clock and the caller's are too far apart.
const TOO_SKEWED: &str = "RequestTimeTooSkewed";
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const OPERATION_TIMEOUT: Duration = Duration::from_secs(60);

/// How to reach the store; what is not set comes from the environment as the AWS SDK reads it.
#[derive(Clone, Default)]
pub struct S3Options {
    pub endpoint: Option<String>,
    pub region: Option<String>,
    pub path_style: bool,
    pub access_key: Option<String>,
    pub secret_key: Option<String>,
}

impl std::fmt::Debug for S3Options {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("S3Options")
            .field("endpoint", &self.endpoint)
            .field("region", &self.region)
            .field("path_style", &self.path_style)
            .finish_non_exhaustive()
    }
}

pub struct S3Store {
    options: S3Options,
    /// Made at first use: reading the environment's configuration may need the network.
    client: OnceCell<Client>,
    bucket: String,
    /// Empty, or ends with a slash.
    prefix: String,
    url: String,
}

impl std::fmt::Debug for S3Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("S3Store").field(&self.url).finish()
    }
}

impl S3Store {
    #[must_use]
    pub fn open(bucket: &str, prefix: &str, options: &S3Options) -> Self {
        let prefix = prefix.trim_matches('/');
        let (prefix, url) = if prefix.is_empty() {
            (String::new(), format!("s3://{bucket}"))
        } else {
            (format!("{prefix}/"), format!("s3://{bucket}/{prefix}"))
        };
        Self {
            options: options.clone(),
            client: OnceCell::new(),
            bucket: bucket.to_owned(),
            prefix,
            url,
        }
    }

    async fn client(&self) -> &Client {
        self.client.get_or_init(|| connect(&self.options)).await
    }

    fn key(&self, key: &str) -> String {
        format!("{}{key}", self.prefix)
    }

    async fn read(&self, key: &str, range: Option<String>) -> Result<Bytes, StoreError> {
        let request = self
            .client()
            .await
            .get_object()
            .bucket(&self.bucket)
            .key(self.key(key));
        let reply = request
            .set_range(range)
            .send()
            .await
            .map_err(|error| classify(key, &error))?;
        let body = reply.body.collect().await;
        Ok(body
            .map_err(|error| StoreError::Unavailable(format!("{key}: {error}")))?
            .into_bytes())
    }
}

async fn connect(options: &S3Options) -> Client {
    let http = Builder::new()
        .tls_provider(Provider::Rustls(CryptoMode::Ring))
        .build_https();
    if Bug::LogsSecret.is_planted() {
        tracing::info!(secret = options.secret_key, "connects to the object store");
    }
    let mut config = match (&options.access_key, &options.secret_key) {
        (Some(access), Some(secret)) => aws_sdk_s3::Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .credentials_provider(Credentials::new(
                access,
                secret,
                None,
                None,
                "configuration",
            )),
        _ => {
            let loader = aws_config::defaults(BehaviorVersion::latest()).http_client(http.clone());
            aws_sdk_s3::config::Builder::from(&loader.load().await)
        }
    };
    config = config
        .http_client(http)
        .force_path_style(options.path_style)
        .retry_config(RetryConfig::standard().with_max_attempts(ATTEMPTS))
        .retry_classifier(ClockWasWrong)
        .timeout_config(
            TimeoutConfig::builder()
                .connect_timeout(CONNECT_TIMEOUT)
                .operation_attempt_timeout(OPERATION_TIMEOUT)
                .build(),
        );
    if let Some(endpoint) = &options.endpoint {
        config = config.endpoint_url(endpoint);
    }
    let region = options.region.clone().unwrap_or_else(|| "us-east-1".into());
    if options.region.is_some() || options.access_key.is_some() {
        config = config.region(Region::new(region));
    }
    Client::from_conf(config.build())
}

/// The library signs with the time that the store last told, and asks again only if that differs from the clock. When a clock
/// was set right it is the other way round: the first call is refused, and what it told lets the next one pass.
#[derive(Debug)]
struct ClockWasWrong;

impl ClassifyRetry for ClockWasWrong {
    fn classify_retry(&self, context: &InterceptorContext) -> RetryAction {
        let refused = context.response().filter(|r| r.status().as_u16() == 403);
        // HEAD is refused without a word.
        let body = refused.and_then(|refused| refused.body().bytes());
        let says_so = |body: &[u8]| {
            let code = TOO_SKEWED.as_bytes();
            body.is_empty() || body.windows(code.len()).any(|part| part == code)
        };
        match body.is_some_and(says_so) {
            true => RetryAction::transient_error(),
            false => RetryAction::NoActionIndicated,
        }
    }

    fn name(&self) -> &'static str {
        "the clock was wrong"
    }
}

fn classify<E: ProvideErrorMetadata, R>(key: &str, error: &SdkError<E, R>) -> StoreError
where
    SdkError<E, R>: std::error::Error,
    R: HttpStatus,
{
    let detail = || match (error.code(), error.message()) {
        (Some(code), Some(message)) => format!("{key}: {code}: {message}"),
        _ => format!("{key}: {}", chain(error)),
    };
    let status = match error {
        SdkError::ServiceError(service) => service.raw().http_status(),
        SdkError::ResponseError(response) => response.raw().http_status(),
        _ => return StoreError::Unavailable(detail()),
    };
    match (status, error.code()) {
        // The clock of this machine or the store is wrong, and may be right again.
        (_, Some(TOO_SKEWED)) => StoreError::Unavailable(detail()),
        (_, Some("NoSuchBucket")) => StoreError::Refused(detail()),
        (404, _) => StoreError::NotFound(key.to_owned()),
        (400..=407 | 409..=428, _) => StoreError::Refused(detail()),
        _ => StoreError::Unavailable(detail()),
    }
}

/// The status of a raw reply.
trait HttpStatus {
    fn http_status(&self) -> u16;
}

impl HttpStatus for aws_sdk_s3::config::http::HttpResponse {
    fn http_status(&self) -> u16 {
        self.status().as_u16()
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

#[async_trait]
impl ObjectStore for S3Store {
    async fn put(&self, key: &str, bytes: Bytes) -> Result<(), StoreError> {
        let request = self
            .client()
            .await
            .put_object()
            .bucket(&self.bucket)
            .key(self.key(key));
        let sent = request.body(ByteStream::from(bytes)).send().await;
        sent.map(|_| ()).map_err(|error| classify(key, &error))
    }

    async fn put_file(&self, key: &str, file: &Path) -> Result<(), StoreError> {
        let body = ByteStream::from_path(file).await;
        let body = body.map_err(|error| StoreError::Unavailable(format!("{key}: {error}")))?;
        let request = self
            .client()
            .await
            .put_object()
            .bucket(&self.bucket)
            .key(self.key(key));
        let sent = request.body(body).send().await;
        sent.map(|_| ()).map_err(|error| classify(key, &error))
    }

    async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Bytes, StoreError> {
        if range.is_empty() {
            return Ok(Bytes::new());
        }
        let bytes = self
            .read(
                key,
                Some(format!("bytes={}-{}", range.start, range.end - 1)),
            )
            .await?;
        if bytes.len() as u64 == range.end - range.start {
            Ok(bytes)
        } else {
            let read = bytes.len();
            Err(StoreError::Unavailable(format!(
                "{key}: {read} bytes came of range {range:?}"
            )))
        }
    }

    async fn get(&self, key: &str) -> Result<Bytes, StoreError> {
        self.read(key, None).await
    }

    async fn head(&self, key: &str) -> Result<u64, StoreError> {
        let request = self
            .client()
            .await
            .head_object()
            .bucket(&self.bucket)
            .key(self.key(key));
        let reply = request
            .send()
            .await
            .map_err(|error| classify(key, &error))?;
        Ok(reply
            .content_length()
            .and_then(|len| u64::try_from(len).ok())
            .unwrap_or_default())
    }

    async fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
    ) -> Result<Vec<(String, u64)>, StoreError> {
        let request = self.client().await.list_objects_v2().bucket(&self.bucket);
        let request = request
            .prefix(self.key(prefix))
            .set_start_after(after.map(|after| self.key(after)));
        let reply = request
            .send()
            .await
            .map_err(|error| classify(prefix, &error))?;
        let listed = reply.contents().iter().filter_map(|object| {
            let key = object.key()?.strip_prefix(&self.prefix)?;
            Some((key.to_owned(), u64::try_from(object.size()?).ok()?))
        });
        Ok(listed.collect())
    }

    async fn delete(&self, key: &str) -> Result<(), StoreError> {
        let request = self
            .client()
            .await
            .delete_object()
            .bucket(&self.bucket)
            .key(self.key(key));
        match request.send().await.map_err(|error| classify(key, &error)) {
            Ok(_) | Err(StoreError::NotFound(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn url(&self) -> &str {
        &self.url
    }

    fn is_local(&self) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead as _, BufReader, Write as _};
    use std::net::TcpListener;

    use super::*;

    /// Refuses every second call, as a store does that is asked with another time than it has.
    fn serve(listener: &TcpListener) -> std::io::Result<()> {
        let xml = format!("<Error><Code>{TOO_SKEWED}</Code><Message>.</Message></Error>");
        for asked in 0.. {
            let mut stream = listener.accept()?.0;
            let mut lines = BufReader::new(stream.try_clone()?).lines();
            let is_head = lines
                .next()
                .is_some_and(|line| line.is_ok_and(|l| l.starts_with("HEAD")));
            lines.find(|line| line.as_ref().is_ok_and(String::is_empty));
            let (status, body) = match asked % 2 {
                0 => ("403 Forbidden", xml.as_str()),
                _ => ("200 OK", "text"),
            };
            let sent = if is_head { "" } else { body };
            write!(
                stream,
                "HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{sent}",
                body.len()
            )?;
        }
        Ok(())
    }

    #[tokio::test]
    async fn a_call_that_is_refused_for_its_time_is_made_again() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("it is bound");
        std::thread::spawn(move || serve(&listener));
        let options = S3Options {
            endpoint: Some(format!("http://{address}")),
            path_style: true,
            access_key: Some("key".into()),
            secret_key: Some("secret".into()),
            ..S3Options::default()
        };
        let store = S3Store::open("bucket", "", &options);
        assert_eq!(store.get("a").await.expect("get"), "text");
        assert_eq!(store.head("a").await.expect("head"), 4);
        assert_eq!(store.get("a").await.expect("get again"), "text");
    }
}
