//! The HTTP client that the exporter speaks through.
//!
//! Invariants: answers are bounded in size, what they may take in time is the exporter's timeout; no redirect is followed and no
//! proxy of the environment is used; an `https://` collector is believed by the system's authorities, checked by ring.

use async_trait::async_trait;
use http_body_util::{BodyExt, Full, Limited};
use hyper_rustls::HttpsConnector;
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use ringfence_messages::Result;

use crate::notify::{IDLE_TIMEOUT, connector};

/// Bytes of an answer that are read. It says at most which spans were refused.
const MAX_ANSWER_BYTES: usize = 64 << 10;

/// Connections to one collector.
#[derive(Debug)]
pub(super) struct Collector(Client<HttpsConnector<HttpConnector>, Full<Bytes>>);

impl Collector {
    /// `secure`: it is reached by `https://`.
    ///
    /// # Errors
    /// `SYS.1007` if the system has no authorities to believe it by.
    pub(super) fn new(secure: bool) -> Result<Collector> {
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE_TIMEOUT)
            .pool_max_idle_per_host(1)
            .build(connector(None, secure)?);
        Ok(Collector(client))
    }
}

#[async_trait]
impl HttpClient for Collector {
    async fn send_bytes(&self, request: Request<Bytes>) -> std::result::Result<Response<Bytes>, HttpError> {
        let (head, body) = self.0.request(request.map(Full::new)).await?.into_parts();
        let body = Limited::new(body, MAX_ANSWER_BYTES).collect().await?;
        Ok(Response::from_parts(head, body.to_bytes()))
    }
}
