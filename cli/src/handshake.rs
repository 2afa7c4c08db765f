//! The beginning of a connection by TLS, bounded in time; who is refused is told why, and so is the log.
//!
//! Invariants: every refusal is counted; the log is told of an address a few times a minute, so that nobody who knocks fills a
//! disk; the alert that says why reaches the other end. It has sent its first request by then; closing with that unread
//! would reset the connection and take the alert along, so that what came is read for a moment and thrown away.

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

/// How long a handshake may take. Too low: a busy machine cannot come in. Too high: who says nothing holds a place.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// How long, and how many bytes, are read of who was refused. Too low: it does not hear why. Too high: it holds a place.
const LINGER: (Duration, u64) = (Duration::from_secs(1), 64 << 10);

/// How often in a minute it is told of an address that it was refused. Too low: several reasons from one machine are not all
/// seen. Too high: who knocks without end fills the disk.
const REJECTIONS_PER_MINUTE: NonZeroU32 = NonZeroU32::new(10).unwrap();

/// The first byte of every handshake. Plain HTTP begins with a letter.
const HANDSHAKE: u8 = 0x16;

/// Does the handshake; nothing if the other end was refused or is too slow.
pub(crate) async fn accept(
    stream: TcpStream,
    address: SocketAddr,
    config: Arc<ServerConfig>,
    rejections: &HandshakeRejections,
) -> Option<TlsStream<TcpStream>> {
    let shake = async {
        let mut first = [0];
        if matches!(stream.peek(&mut first).await, Ok(1)) && first[0].is_ascii_alphabetic() && first[0] != HANDSHAKE {
            rejections.refused(address, "plain-http", || "it speaks plain HTTP: ask by https://".to_owned());
            say_no(stream).await;
            return None;
        }
        match TlsAcceptor::from(config).accept(stream).into_fallible().await {
            Ok(stream) => Some(stream),
            Err((error, stream)) => {
                rejections.refused(address, "handshake", || refused_client(&error));
                linger(stream).await;
                None
            }
        }
    };
    tokio::time::timeout(HANDSHAKE_TIMEOUT, shake).await.unwrap_or_else(|_| {
        rejections.refused(address, "timeout", || format!("no handshake within {HANDSHAKE_TIMEOUT:?}"));
        None
    })
}

/// Who is refused, told to the log within bounds.
pub(crate) struct HandshakeRejections(PerAddress);

impl Default for HandshakeRejections {
    fn default() -> HandshakeRejections {
        HandshakeRejections(PerAddress::new(Quota::per_minute(REJECTIONS_PER_MINUTE)))
    }
}

impl HandshakeRejections {
    /// Counts it, and says so unless enough was said of this address.
    fn refused(&self, address: SocketAddr, why: &'static str, words: impl FnOnce() -> String) {
        counter!("ringfence_tls_refused_total", "why" => why).increment(1);
        if self.may_say(address) {
            tracing::warn!(%address, "refused: {}", words());
        }
    }

    fn may_say(&self, address: SocketAddr) -> bool {
        self.0.wait(network(address)).is_none()
    }
}

/// Answers plain HTTP in plain HTTP, in a shape that both the API's and the agent's clients know.
async fn say_no(mut stream: TcpStream) {
    let error = ErrorCode::new(Code::NOT_PERMITTED, "this port speaks TLS: ask by https://");
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
    fn nobody_who_knocks_without_end_fills_the_log() {
        let rejections = HandshakeRejections::default();
        let said = |address: &str| {
            let address = address.parse().unwrap();
            (0..1000).filter(|_| rejections.may_say(address)).count()
        };
        let most = REJECTIONS_PER_MINUTE.get() as usize;
        assert_eq!(said("10.0.0.1:1"), most);
        assert_eq!(said("10.0.0.1:2"), 0, "another port is nobody else");
        assert_eq!(said("10.0.0.2:1"), most, "others are told of");
    }
}
