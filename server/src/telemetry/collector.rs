//! The HTTP client of the trace exporter.
//!
//! Invariants: answers are bounded in size, and in time by the exporter's timeout; redirects are not followed and no
//! proxy of the environment is used; the certificate of an `https://` collector is verified with the authorities of
//! `ca_file`, or the system's if unset (a hosted collector has a public certificate). Alternative considered:
//! `ca_file` in addition to the system's authorities (no public authority should vouch for a private collector).

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

/// Largest answer in bytes; it lists at most the rejected spans.
const MAX_ANSWER_BYTES: usize = 64 << 10;

/// The last connection error: the exporter reports only "network error".
pub(super) type Why = Arc<Mutex<Option<String>>>;

/// Connections to one collector.
#[derive(Debug)]
pub(super) struct Collector {
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    believed: PathBuf,
    why: Why,
}

impl Collector {
    /// `secure`: the URL is `https://`, verified with the authorities of the file, or the system's.
    ///
    /// # Errors
    /// `SYS.1007` without certificate authorities, with the file and the remedy.
    pub(super) fn new(ca_file: Option<&Path>, secure: bool) -> Result<Collector> {
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE_TIMEOUT)
            .pool_max_idle_per_host(1)
            .build(connector(ca_file, secure)?);
        let believed = ca_file.unwrap_or(Path::new("the system's store")).to_owned();
        Ok(Collector { client, believed, why: Why::default() })
    }

    /// The last connection error, shared.
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
