//! TLS handshakes with a time limit; a rejection is reported to the client and the log.
//!
//! Invariants: every rejection is counted; each address is logged at most a few times a minute, so that a scanner
//! cannot fill the disk; the TLS alert reaches the client. The client has sent its first request by then; closing the
//! connection with unread data would reset it and lose the alert, so that data is read for a moment and discarded.

use std::{net::SocketAddr, num::NonZeroU32, sync::Arc, time::Duration};

use governor::Quota;
use metrics::counter;
use ringfence_drivers::tls::refused_client;
use ringfence_messages::{Code, ErrorCode};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tokio_rustls::{TlsAcceptor, rustls::ServerConfig, server::TlsStream};

use crate::rate_limit::{PerAddress, network};

/// Time limit of a handshake. Too low: a busy machine is rejected. Too high: a silent client holds a place.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// Time and bytes that are read from a rejected client. Too low: it does not get the reason. Too high: it holds a
/// place.
const LINGER: (Duration, u64) = (Duration::from_secs(1), 64 << 10);

/// Log lines for one address in a minute. Too low: further reasons of one machine are missed. Too high: a scanner
/// fills the disk.
const REJECTIONS_PER_MINUTE: NonZeroU32 = NonZeroU32::new(10).unwrap();

/// The first byte of every handshake; plain HTTP starts with a letter.
const HANDSHAKE: u8 = 0x16;

/// Does the handshake. Returns nothing if the client is rejected or too slow.
pub(crate) async fn accept(
    stream: TcpStream,
    address: SocketAddr,
    config: Arc<ServerConfig>,
    rejections: &HandshakeRejections,
) -> Option<TlsStream<TcpStream>> {
    let shake = async {
        let mut first = [0];
        if matches!(stream.peek(&mut first).await, Ok(1)) && first[0].is_ascii_alphabetic() && first[0] != HANDSHAKE {
            rejections.reject(address, "plain-http", || "plain HTTP on a TLS port; use https://".to_owned());
            reject_plain_http(stream).await;
            return None;
        }
        match TlsAcceptor::from(config).accept(stream).into_fallible().await {
            Ok(stream) => Some(stream),
            Err((error, stream)) => {
                rejections.reject(address, "handshake", || refused_client(&error));
                linger(stream).await;
                None
            }
        }
    };
    tokio::time::timeout(HANDSHAKE_TIMEOUT, shake).await.unwrap_or_else(|_| {
        rejections.reject(address, "timeout", || format!("no handshake within {HANDSHAKE_TIMEOUT:?}"));
        None
    })
}

/// Rejected handshakes, logged within bounds.
pub(crate) struct HandshakeRejections(PerAddress);

impl Default for HandshakeRejections {
    fn default() -> HandshakeRejections {
        HandshakeRejections(PerAddress::new(Quota::per_minute(REJECTIONS_PER_MINUTE)))
    }
}

impl HandshakeRejections {
    /// Counts a rejection, and logs it within the limit of the address.
    fn reject(&self, address: SocketAddr, why: &'static str, reason: impl FnOnce() -> String) {
        counter!("ringfence_tls_refused_total", "why" => why).increment(1);
        if self.may_log(address) {
            tracing::warn!(%address, reason = reason(), "TLS handshake rejected");
        }
    }

    fn may_log(&self, address: SocketAddr) -> bool {
        self.0.wait(network(address)).is_none()
    }
}

/// Answers plain HTTP in plain HTTP, in a shape that the clients of the API and of the agent understand.
async fn reject_plain_http(mut stream: TcpStream) {
    let error = ErrorCode::new(Code::NOT_PERMITTED, "this port requires TLS; use https://");
    let body = json!({ "success": false, "error": error }).to_string();
    let head = format!(
        "HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        body.len()
    );
    if stream.write_all((head + &body).as_bytes()).await.is_ok() {
        linger(stream).await;
    }
}

async fn linger(mut stream: TcpStream) {
    let _ = stream.shutdown().await;
    let rest = async { tokio::io::copy(&mut stream.take(LINGER.1), &mut tokio::io::sink()).await };
    let _ = tokio::time::timeout(LINGER.0, rest).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_lines_of_one_address_are_limited() {
        let rejections = HandshakeRejections::default();
        let logged = |address: &str| {
            let address = address.parse().unwrap();
            (0..1000).filter(|_| rejections.may_log(address)).count()
        };
        let most = REJECTIONS_PER_MINUTE.get() as usize;
        assert_eq!(logged("10.0.0.1:1"), most);
        assert_eq!(logged("10.0.0.1:2"), 0, "the port does not matter");
        assert_eq!(logged("10.0.0.2:1"), most, "other addresses have their own limit");
    }
}
