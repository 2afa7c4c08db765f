//! The beginning of a connection by TLS, bounded in time; who is refused is told why, and so is the log.
//!
//! Invariant: the alert that says why reaches the other end. It has sent its first request by then; closing with that unread
//! would reset the connection and take the alert along, so that what came is read for a moment and thrown away.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use ringfence_drivers::tls::refused_client;
use ringfence_messages::{Code, ErrorCode};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tokio_rustls::{TlsAcceptor, rustls::ServerConfig, server::TlsStream};

/// How long a handshake may take. Too low: a busy machine cannot come in. Too high: who says nothing holds a place.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// How long, and how many bytes, are read of who was refused. Too low: it does not hear why. Too high: it holds a place.
const LINGER: (Duration, u64) = (Duration::from_secs(1), 64 << 10);

/// The first byte of every handshake. Plain HTTP begins with a letter.
const HANDSHAKE: u8 = 0x16;

/// Does the handshake; nothing if the other end was refused or is too slow.
pub(crate) async fn accept(
    stream: TcpStream,
    address: SocketAddr,
    config: Arc<ServerConfig>,
) -> Option<TlsStream<TcpStream>> {
    let shake = async {
        let mut first = [0];
        if matches!(stream.peek(&mut first).await, Ok(1)) && first[0].is_ascii_alphabetic() && first[0] != HANDSHAKE {
            tracing::warn!(%address, "refused: it speaks plain HTTP: ask by https://");
            say_no(stream).await;
            return None;
        }
        match TlsAcceptor::from(config).accept(stream).into_fallible().await {
            Ok(stream) => Some(stream),
            Err((error, stream)) => {
                tracing::warn!(%address, "refused: {}", refused_client(&error));
                linger(stream).await;
                None
            }
        }
    };
    tokio::time::timeout(HANDSHAKE_TIMEOUT, shake).await.unwrap_or_else(|_| {
        tracing::debug!(%address, "no handshake within {HANDSHAKE_TIMEOUT:?}");
        None
    })
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
