//! An HTTP/1 server that a slow or hostile client cannot hold up.
//!
//! Invariants: connections are bounded; one that does not send its headers in time is closed; each is a task of its
//! own. Rejected: `axum::serve`, which has no such limits.

use std::{future::Future, net::SocketAddr, sync::Arc, time::Duration};

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use ringfence_messages::{Code, ErrorCode, Result};
use tokio::{net::TcpListener, sync::Semaphore, task::JoinSet};
use tokio_util::sync::CancellationToken;

/// Connections at a time. Too low: pollers are kept waiting. Too high: each costs memory and a file descriptor.
pub const MAX_CONNECTIONS: usize = 1024;

/// How long a client may take to send its headers, and may idle between two requests.
pub const HEADER_TIMEOUT: Duration = Duration::from_secs(10);

/// Bytes of headers at most.
pub const MAX_HEADER_BYTES: usize = 32 << 10;

/// How long requests under way may take when the server ends.
pub const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);

/// Binds an address.
///
/// # Errors
/// `SYS.1016` in one line, with the fix.
pub async fn bind(address: SocketAddr) -> Result<TcpListener> {
    TcpListener::bind(address).await.map_err(|error| {
        let fix = match error.kind() {
            std::io::ErrorKind::AddrInUse => "another program listens there: stop it, or change `listen`",
            std::io::ErrorKind::AddrNotAvailable => "no interface of this machine has that address: change `listen`",
            std::io::ErrorKind::PermissionDenied => "ports below 1024 need privileges: change `listen`",
            _ => "change `listen`",
        };
        ErrorCode::new(Code::IO, format!("cannot listen on {address}: {error}; {fix}"))
    })
}

/// Serves until `shutdown` resolves, then closes idle connections and gives requests under way [`DRAIN_TIMEOUT`].
pub async fn serve(listener: TcpListener, app: Router, shutdown: impl Future<Output = ()>) {
    let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut connections = JoinSet::new();
    let ending = CancellationToken::new();
    let mut shutdown = std::pin::pin!(shutdown);
    loop {
        let accept = async {
            let permit = room.clone().acquire_owned().await.expect("never closed");
            (listener.accept().await, permit)
        };
        let (accepted, permit) = tokio::select! {
            () = &mut shutdown => break,
            accepted = accept => accepted,
        };
        while connections.try_join_next().is_some() {}
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of file descriptors, most likely: it passes when connections end.
                tracing::warn!(%error, "a connection was not accepted");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let _ = stream.set_nodelay(true);
        let service = TowerToHyperService::new(app.clone());
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADER_TIMEOUT)
            .max_buf_size(MAX_HEADER_BYTES)
            .serve_connection(TokioIo::new(stream), service);
        let ending = ending.clone();
        connections.spawn(async move {
            let _permit = permit;
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
        });
    }
    drop(listener);
    ending.cancel();
    let drain = async { while connections.join_next().await.is_some() {} };
    let _ = tokio::time::timeout(DRAIN_TIMEOUT, drain).await;
}

/// Resolves when the process is asked to end: SIGTERM or SIGINT.
pub async fn asked_to_end() {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut term), Ok(mut int)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
}
