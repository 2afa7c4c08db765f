//! An HTTP/1 server that a slow or hostile client cannot hold up.
//!
//! Invariants: connections are bounded (see `places.rs`); one that does not finish its handshake or send its
//! headers in time is closed, and so is one whose request was refused for want of a token; each is a task of its own; one that
//! was made under a certificate that has been replaced since ends with its next answer.
//! Rejected: `axum::serve`, which has no such limits.

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

/// Connections that the kernel keeps until they are accepted. Too low: in a flood it drops those of honest clients, which try
/// again a second later. Too high: memory of the kernel, which has a bound of its own (`net.core.somaxconn`).
pub const BACKLOG: u32 = 1024;

/// How long a client may take to send its headers, and may idle between two requests.
pub const HEADER_TIMEOUT: Duration = Duration::from_secs(10);

/// Bytes of headers at most.
pub const MAX_HEADER_BYTES: usize = 32 << 10;

/// Headers of a request at most. Browsers send some twenty. A request with more is answered 431.
pub const MAX_HEADERS: usize = 64;

/// How long a connection may live under TLS; then its next answer closes it. Too low: handshakes for every ping. Too high: who
/// came in with a certificate that has ended stays in.
pub const MAX_SECURE_AGE: Duration = Duration::from_secs(600);

/// Who is at the other end of a connection: an extension of each of its requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Where it comes from.
    pub address: SocketAddr,
    /// Whether it came by TLS.
    pub secure: bool,
}

/// How long requests under way may take when the server ends.
pub const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);

/// Binds an address.
///
/// # Errors
/// `SYS.1016` in one line, with the fix.
pub async fn bind(address: SocketAddr) -> Result<TcpListener> {
    let listen = || {
        let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        // A restarted server may listen while connections of the former one end.
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        socket.listen(BACKLOG)
    };
    listen().map_err(|error| {
        let fix = match error.kind() {
            std::io::ErrorKind::AddrInUse => "another program listens there: stop it, or change `listen`",
            std::io::ErrorKind::AddrNotAvailable => "no interface of this machine has that address: change `listen`",
            std::io::ErrorKind::PermissionDenied => "ports below 1024 need privileges: change `listen`",
            _ => "change `listen`",
        };
        ErrorCode::new(Code::IO, format!("cannot listen on {address}: {error}; {fix}"))
    })
}

/// Serves plain HTTP until `shutdown` resolves, then closes idle connections and gives requests under way [`DRAIN_TIMEOUT`].
pub async fn serve(listener: TcpListener, app: Router, shutdown: impl Future<Output = ()>) {
    serve_over(listener, None, app, shutdown).await;
}

/// As [`serve`], by TLS if there is any.
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
                // Out of file descriptors, most likely: it passes when connections end.
                tracing::warn!(%error, "a connection was not accepted");
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

/// Answers the requests of a connection until it ends; the one after which `is_over` is the last, and so is one that was refused
/// for want of a token: who has none would else keep its place by asking again and again.
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

/// How long a body may take to arrive. Too high: clients that send a byte now and then hold connections.
pub const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// Bytes of a body that is too long that are read and thrown away, so that its sender hears why: an answer before
/// the end of the request is lost with the connection. Too high: a hostile sender keeps the network busy.
pub const MAX_DISCARD: usize = 64 << 20;

/// Why a request's body cannot be had.
#[derive(Debug, PartialEq, Eq)]
pub enum BodyError {
    /// It has more bytes than the limit.
    TooLong(usize),
    /// It was not there after [`BODY_TIMEOUT`].
    TooSlow,
    /// The connection broke; why.
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
            BodyError::TooSlow => write!(f, "the body was not there after {BODY_TIMEOUT:?}"),
            BodyError::CutShort(why) => write!(f, "the body is cut short: {why}"),
        }
    }
}

/// Reads a request's body of at most `limit` bytes.
///
/// # Errors
/// If it is too long, too slow or cut short.
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

/// The largest form: a name or a token, and what a browser adds.
const MAX_FORM_BYTES: usize = 4096;

/// Reads a form that a browser sent.
///
/// # Errors
/// The status of the answer and why: too long, too slow, cut short, or not such a form.
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

/// Resolves when the process is asked to end: SIGTERM or SIGINT.
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
