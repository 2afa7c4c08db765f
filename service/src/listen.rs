//! An HTTP/1 server that slow or hostile clients cannot block.
//!
//! Invariants: the number of connections is bounded (`places.rs`); a connection is closed if its handshake or headers
//! are late, or if its request has no valid token; each connection is its own task; after a certificate is replaced,
//! an older connection ends with its next answer. Alternative considered: `axum::serve`, which has no such limits.

use std::{convert::Infallible, future::Future, net::SocketAddr, sync::Arc, time::Duration};

use axum::{
    Router,
    body::Body,
    http::{HeaderValue, Request, StatusCode, header},
    response::Response,
};
use futures_util::StreamExt;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use ringfence_drivers::tls::ServerTls;
use ringfence_messages::{Code, ErrorCode, Result};
use serde::de::DeserializeOwned;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpSocket, TcpStream},
    task::JoinSet,
    time::Instant,
};
use tokio_util::sync::CancellationToken;
use tower::Service;

use crate::{
    handshake::{self, HandshakeRejections},
    places::{Place, Places},
};

/// Connections that the kernel queues before they are accepted. Too low: in a flood it drops honest clients, which
/// retry a second later. Too high: kernel memory, which `net.core.somaxconn` bounds.
pub const BACKLOG: u32 = 1024;

/// Time limit of a request's headers, and of idling between two requests. Too low: slow clients fail. Too high: idle
/// connections hold places.
pub const HEADER_TIMEOUT: Duration = Duration::from_secs(10);

/// Largest size of all headers.
pub const MAX_HEADER_BYTES: usize = 32 << 10;

/// Largest number of headers; browsers send about twenty. More are answered with 431.
pub const MAX_HEADERS: usize = 64;

/// Longest life of a TLS connection; its next answer then closes it. Too low: a handshake for every ping. Too high: a
/// client with an expired certificate stays connected.
pub const MAX_SECURE_AGE: Duration = Duration::from_secs(600);

/// The client of a connection: an extension of each request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Address of the client.
    pub address: SocketAddr,
    /// Whether the connection uses TLS.
    pub secure: bool,
}

/// Time limit of requests in progress at shutdown. Too low: clients lose answers. Too high: a restart takes long.
pub const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);

/// Binds an address.
///
/// # Errors
/// `SYS.1016` in one line, with the remedy.
pub async fn bind(address: SocketAddr) -> Result<TcpListener> {
    let listen = || {
        let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        // A restarted server may listen while connections of the previous one end.
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        socket.listen(BACKLOG)
    };
    listen().map_err(|error| {
        let fix = match error.kind() {
            std::io::ErrorKind::AddrInUse => "stop the program that uses the port, or change `listen`",
            std::io::ErrorKind::AddrNotAvailable => "no interface of this machine has that address; change `listen`",
            std::io::ErrorKind::PermissionDenied => "ports below 1024 need privileges; change `listen`",
            _ => "change `listen`",
        };
        ErrorCode::new(Code::IO, format!("cannot listen on {address}: {error}; {fix}"))
    })
}

/// Serves plain HTTP until `shutdown` resolves, then closes idle connections and waits [`DRAIN_TIMEOUT`] for requests
/// in progress.
pub async fn serve(listener: TcpListener, app: Router, shutdown: impl Future<Output = ()>) {
    serve_over(listener, None, app, shutdown).await;
}

/// As [`serve`], with TLS if given.
pub async fn serve_over(
    listener: TcpListener,
    tls: Option<ServerTls>,
    app: Router,
    shutdown: impl Future<Output = ()>,
) {
    let places = Places::default();
    let tls = tls.map(|tls| Arc::new((tls, HandshakeRejections::default())));
    let mut connections = JoinSet::new();
    let ending = CancellationToken::new();
    let mut shutdown = std::pin::pin!(shutdown);
    loop {
        let accepted = tokio::select! {
            () = &mut shutdown => break,
            accepted = listener.accept() => accepted,
        };
        while connections.try_join_next().is_some() {}
        let (stream, address) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Probably out of file descriptors, until connections end.
                tracing::warn!(%error, "cannot accept a connection");
                places.make_room();
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let _ = stream.set_nodelay(true);
        let (app, tls, ending, place) = (app.clone(), tls.clone(), ending.clone(), places.enter(address));
        connections.spawn(async move {
            let talk = async {
                match tls {
                    None => {
                        serve_connection(stream, app, Peer { address, secure: false }, &place, || false, ending).await
                    }
                    Some(tls) => serve_tls_connection(stream, address, app, &place, &tls, ending).await,
                }
            };
            tokio::select! {
                () = talk => {}
                () = place.sent_away() => {}
            }
        });
    }
    drop(listener);
    ending.cancel();
    let drain = async { while connections.join_next().await.is_some() {} };
    let _ = tokio::time::timeout(DRAIN_TIMEOUT, drain).await;
}

async fn serve_tls_connection(
    stream: TcpStream,
    address: SocketAddr,
    app: Router,
    place: &Place,
    (tls, rejections): &(ServerTls, HandshakeRejections),
    ending: CancellationToken,
) {
    let (config, since) = (tls.current(), Instant::now());
    let Some(stream) = handshake::accept(stream, address, config.clone(), rejections).await else { return };
    if stream.get_ref().1.peer_certificates().is_some() {
        place.showing().has_shown();
    }
    let is_over = || since.elapsed() > MAX_SECURE_AGE || !Arc::ptr_eq(&config, &tls.current());
    serve_connection(stream, app, Peer { address, secure: true }, place, is_over, ending).await;
}

/// Answers the requests of a connection until it ends. A request after which `is_over` holds is the last, and so is
/// one without a valid token: such a client could otherwise keep its place with repeated requests.
async fn serve_connection(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    app: Router,
    peer: Peer,
    place: &Place,
    is_over: impl Fn() -> bool,
    ending: CancellationToken,
) {
    let is_over = &is_over;
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(peer);
        request.extensions_mut().insert(place.showing());
        let answer = app.clone().call(request);
        async move {
            let mut response: Response = answer.await?;
            if is_over() || response.status() == StatusCode::UNAUTHORIZED {
                response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            Ok::<_, Infallible>(response)
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(MAX_HEADER_BYTES)
        .max_headers(MAX_HEADERS)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = ending.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection ended early");
    }
}

/// Time limit of a body. Too low: slow clients fail. Too high: clients that trickle bytes hold connections.
pub const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// Bytes of an oversized body that are read and discarded, so that its sender gets the answer: an answer before the
/// end of a request is lost with the connection. Too low: the reason is lost. Too high: a hostile sender keeps the
/// network busy.
pub const MAX_DISCARD: usize = 64 << 20;

/// Failure of reading a body.
#[derive(Debug, PartialEq, Eq)]
pub enum BodyError {
    /// More bytes than the limit.
    TooLong(usize),
    /// Not complete after [`BODY_TIMEOUT`].
    TooSlow,
    /// The connection broke, with the reason.
    CutShort(String),
}

impl BodyError {
    /// The status of the answer.
    pub fn status(&self) -> StatusCode {
        match self {
            BodyError::TooLong(_) => StatusCode::PAYLOAD_TOO_LARGE,
            BodyError::TooSlow => StatusCode::REQUEST_TIMEOUT,
            BodyError::CutShort(_) => StatusCode::BAD_REQUEST,
        }
    }
}

impl std::fmt::Display for BodyError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            BodyError::TooLong(limit) => write!(f, "the body has more than {limit} bytes"),
            BodyError::TooSlow => write!(f, "the body was not complete after {BODY_TIMEOUT:?}"),
            BodyError::CutShort(why) => write!(f, "the body is cut short: {why}"),
        }
    }
}

/// Reads a request's body of at most `limit` bytes.
///
/// # Errors
/// The body is too long, too slow or cut short.
pub async fn read_body(body: Body, limit: usize) -> Result<Vec<u8>, BodyError> {
    let read = async {
        let (mut bytes, mut discarded) = (Vec::new(), 0);
        let mut chunks = body.into_data_stream();
        while let Some(chunk) = chunks.next().await {
            let chunk = chunk.map_err(|e| BodyError::CutShort(e.to_string()))?;
            if discarded == 0 && bytes.len() + chunk.len() <= limit {
                bytes.extend_from_slice(&chunk);
                continue;
            }
            discarded += chunk.len();
            if discarded > MAX_DISCARD {
                break;
            }
        }
        if discarded == 0 { Ok(bytes) } else { Err(BodyError::TooLong(limit)) }
    };
    tokio::time::timeout(BODY_TIMEOUT, read).await.unwrap_or(Err(BodyError::TooSlow))
}

/// The largest form: a name or a token, with the encoding of browsers.
const MAX_FORM_BYTES: usize = 4096;

/// Reads an HTML form.
///
/// # Errors
/// Status and reason: too long, too slow, cut short, or an invalid form.
pub async fn read_form<T: DeserializeOwned>(body: Body) -> Result<T, (StatusCode, String)> {
    read_long_form(body, MAX_FORM_BYTES).await
}

/// As [`read_form`], of at most `limit` bytes.
///
/// # Errors
/// As [`read_form`].
pub async fn read_long_form<T: DeserializeOwned>(body: Body, limit: usize) -> Result<T, (StatusCode, String)> {
    let form = read_body(body, limit).await.map_err(|why| (why.status(), why.to_string()))?;
    serde_urlencoded::from_bytes(&form).map_err(|why| (StatusCode::BAD_REQUEST, why.to_string()))
}

/// Resolves on SIGTERM or SIGINT.
pub async fn shutdown_signal() {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut term), Ok(mut int)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
}
