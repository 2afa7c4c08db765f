//! Delivery over HTTP: one signed POST request.
//!
//! Invariants: everything is bounded in time and size; redirects are not followed (a receiver could redirect a signed
//! event, or make the controller send requests to internal addresses); no proxy of the environment is used; path and
//! query of the URL, which may be secret, are never shown. Alternative considered: `reqwest` with TLS (a second
//! cryptography provider, and all other clients would load the system's roots).

use std::time::{Duration, SystemTime};

use axum::{
    body::Bytes,
    http::{HeaderMap, Request, StatusCode, Uri, header},
};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_rustls::HttpsConnector;
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};
use ringfence_messages::{Code, ErrorCode, Result};

use super::{notice::Notice, retry::Outcome};
use crate::{
    config::WebhookAccess,
    https::{IDLE_TIMEOUT, connector, reason},
    signer::Signer,
};

/// Largest head of a response in bytes.
const MAX_HEAD_BYTES: usize = 32 << 10;

/// Bytes of a response body that are read, for messages only. Too low: messages are cut off. Too high: memory.
const MAX_BODY_BYTES: usize = 1024;

/// Time limit of the body.
const BODY_TIMEOUT: Duration = Duration::from_secs(1);

/// A receiver.
pub(super) struct Webhook {
    uri: Uri,
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    signer: Signer,
    timeout: Duration,
}

impl Webhook {
    /// A receiver of signed messages.
    ///
    /// # Errors
    /// `SYS.1007` with the unusable file and the remedy.
    pub(super) fn open(access: &WebhookAccess, timeout: Duration) -> Result<Webhook> {
        let odd = |(why, fix)| ErrorCode::new(Code::INVALID_ARGUMENT, format!("{why}; {fix}"));
        let signer = Signer::read(&access.secret_file).map_err(odd)?;
        let uri = access.url.uri();
        let connector = connector(access.ca_file.as_deref(), uri.scheme_str() == Some("https"))?;
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE_TIMEOUT)
            .pool_max_idle_per_host(1)
            .http1_max_buf_size(MAX_HEAD_BYTES)
            .build(connector);
        Ok(Webhook { uri, client, signer, timeout })
    }

    /// One attempt.
    pub(super) async fn send(&self, notice: &Notice) -> Outcome {
        // The time of this attempt, so that a receiver can reject replayed messages.
        let timestamp = jiff::Timestamp::now().as_second();
        let request = Request::post(self.uri.clone())
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::USER_AGENT, concat!("ringfence/", env!("CARGO_PKG_VERSION")))
            .header("webhook-id", &notice.id)
            .header("webhook-timestamp", timestamp)
            .header("webhook-signature", self.signer.sign(&notice.id, timestamp, &notice.body))
            .body(Full::new(notice.body.clone()));
        let request = match request {
            Ok(request) => request,
            Err(error) => return Outcome::Refused(error.to_string()),
        };
        let response = match tokio::time::timeout(self.timeout, self.client.request(request)).await {
            Err(_) => return Outcome::Later(format!("no answer within {:?}", self.timeout), None),
            Ok(Err(error)) => return Outcome::Later(reason(&error), None),
            Ok(Ok(response)) => response,
        };
        let (head, body) = response.into_parts();
        judge(head.status, &head.headers, &beginning(body).await)
    }
}

/// The outcome of a response.
fn judge(status: StatusCode, headers: &HeaderMap, said: &str) -> Outcome {
    let says = if said.is_empty() { status.to_string() } else { format!("{status}: {said}") };
    match status {
        _ if status.is_success() => Outcome::Delivered(says),
        StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS => Outcome::Later(says, retry_after(headers)),
        _ if status.is_server_error() => Outcome::Later(says, retry_after(headers)),
        _ if status.is_redirection() => Outcome::Refused(format!("{says}; redirects are not followed")),
        _ => Outcome::Refused(says),
    }
}

/// `Retry-After`: seconds or a date.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim();
    match text.parse() {
        Ok(seconds) => Some(Duration::from_secs(seconds)),
        Err(_) => httpdate::parse_http_date(text).ok()?.duration_since(SystemTime::now()).ok(),
    }
}

/// The beginning of a response body, as one line.
async fn beginning(mut body: Incoming) -> String {
    let mut bytes = Vec::new();
    let read = async {
        while let Some(Ok(frame)) = body.frame().await {
            if let Ok(data) = frame.into_data() {
                bytes.extend_from_slice(&data[..data.len().min(MAX_BODY_BYTES - bytes.len())]);
            }
            if bytes.len() >= MAX_BODY_BYTES {
                break;
            }
        }
    };
    let _ = tokio::time::timeout(BODY_TIMEOUT, read).await;
    super::one_line(&bytes, super::MAX_SAID_CHARS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outcome_depends_on_status() {
        let judge = |status: u16, after: Option<&str>| {
            let headers = after.map(|after| (header::RETRY_AFTER, after.parse().unwrap()));
            super::judge(StatusCode::from_u16(status).unwrap(), &headers.into_iter().collect(), "x")
        };
        for (status, after, wanted) in [(503, None, None), (429, Some("7"), Some(7)), (408, Some("soon"), None)] {
            let Outcome::Later(says, asked) = judge(status, after) else { panic!("{status}") };
            assert!(says.starts_with(&status.to_string()));
            assert_eq!(asked.map(|asked| asked.as_secs()), wanted, "{status}");
        }
        for status in [301, 307, 400, 401, 404, 410] {
            assert!(matches!(judge(status, None), Outcome::Refused(_)), "{status}");
        }
        for status in [200, 202, 204] {
            assert!(matches!(judge(status, None), Outcome::Delivered(_)), "{status}");
        }
        let soon = httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(60));
        let Outcome::Later(_, Some(asked)) = judge(503, Some(&soon)) else { panic!("{soon}") };
        assert!((50..=60).contains(&asked.as_secs()), "{asked:?}");
        assert_eq!(judge(503, Some("Wed, 21 Oct 2015 07:28:00 GMT")), judge(503, None), "a time that has passed");
    }
}
