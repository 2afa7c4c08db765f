//! The HTTP client that the exporter speaks through.
//!
//! Invariants: answers are bounded in size, what they may take in time is the exporter's timeout; no redirect is followed and no
//! proxy of the environment is used; an `https://` collector is believed by the authorities of the config's `ca_file`, by the
//! system's if it names none (a collector as a service has a public certificate), checked by ring. Rejected: `ca_file` beside
//! the system's authorities (whoever names one has a private one, and no public authority is to be its judge).

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use async_trait::async_trait;
use http_body_util::{BodyExt, Full, Limited};
use hyper_rustls::HttpsConnector;
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use parking_lot::Mutex;
use ringfence_drivers::tls::refused_server;
use ringfence_messages::Result;

use crate::https::{IDLE_TIMEOUT, connector, reason};

/// Bytes of an answer that are read. It says at most which spans were refused.
const MAX_ANSWER_BYTES: usize = 64 << 10;

/// Why the collector was not reached last: the exporter says no more than "network error".
pub(super) type Why = Arc<Mutex<Option<String>>>;

/// Connections to one collector.
#[derive(Debug)]
pub(super) struct Collector {
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    believed: PathBuf,
    why: Why,
}

impl Collector {
    /// `secure`: it is reached by `https://`, and believed by the authorities of the file, else by the system's.
    ///
    /// # Errors
    /// `SYS.1007` if there are no authorities to believe it by, naming the file and the fix.
    pub(super) fn new(ca_file: Option<&Path>, secure: bool) -> Result<Collector> {
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE_TIMEOUT)
            .pool_max_idle_per_host(1)
            .build(connector(ca_file, secure)?);
        let believed = ca_file.unwrap_or(Path::new("the system's store")).to_owned();
        Ok(Collector { client, believed, why: Why::default() })
    }

    /// Where it is told why it was not reached.
    pub(super) fn why(&self) -> Why {
        self.why.clone()
    }
}

#[async_trait]
impl HttpClient for Collector {
    async fn send_bytes(&self, request: Request<Bytes>) -> std::result::Result<Response<Bytes>, HttpError> {
        let answer = self.client.request(request.map(Full::new)).await.inspect_err(|error| {
            let refused = refused_server(error, None, Some(&self.believed));
            *self.why.lock() = Some(refused.unwrap_or_else(|| reason(error)));
        })?;
        let (head, body) = answer.into_parts();
        let body = Limited::new(body, MAX_ANSWER_BYTES).collect().await?;
        Ok(Response::from_parts(head, body.to_bytes()))
    }
}
