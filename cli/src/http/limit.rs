//! How many requests an address may make.
//!
//! Invariants: who asks too often is told when to ask again, and costs others nothing; `/healthz` and `/metrics` have a measure of
//! their own, so that a script that runs wild does not make a controller look dead.
//! Rejected: a measure for each token. It would have to be looked up first, which is work that can be had without one.

use std::{
    net::{IpAddr, Ipv4Addr},
    num::NonZeroU32,
    sync::Arc,
};

use axum::{
    Router,
    extract::{Request, State},
    http::{HeaderValue, StatusCode, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
};
use governor::Quota;
use ringfence_messages::Code;

use super::{errors::Failure, guard};
use crate::{
    listen::Peer,
    per_address::{PerAddress, network},
};

/// Requests a second from one address, unless told. Too low: a page that shows everything, and scripts beside it, are held up.
/// Too high: one client keeps the API's thread busy.
pub const REQUESTS_PER_SECOND: u32 = 200;

/// For how many seconds' worth an address may ask at once. Too low: the page's parts come one by one.
const BURST_SECONDS: u32 = 5;

struct Limits {
    requests: PerAddress,
    /// Of `/healthz` and `/metrics`.
    watch: PerAddress,
}

/// The routes, for so many requests a second from each address.
pub fn limited(app: Router, per_second: NonZeroU32) -> Router {
    let quota = Quota::per_second(per_second)
        .allow_burst(per_second.saturating_mul(const { NonZeroU32::new(BURST_SECONDS).unwrap() }));
    let limits = Limits { requests: PerAddress::new(quota), watch: PerAddress::new(quota) };
    app.layer(middleware::from_fn_with_state(Arc::new(limits), check))
}

fn whom(peer: Option<&Peer>) -> IpAddr {
    peer.map_or(Ipv4Addr::UNSPECIFIED.into(), |peer| network(peer.address))
}

async fn check(State(limits): State<Arc<Limits>>, request: Request, next: Next) -> Response {
    let whom = whom(request.extensions().get());
    let of = if matches!(request.uri().path(), "/healthz" | "/metrics") { &limits.watch } else { &limits.requests };
    let Some(wait) = of.wait(whom) else { return next.run(request).await };
    let seconds = wait.as_secs() + 1;
    let why =
        format!("too many requests from {whom}: ask again in {seconds} s, or raise [controller] requests_per_second");
    let mut refused = Failure::with(StatusCode::TOO_MANY_REQUESTS, Code::NOT_READY, why).into_response();
    refused.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    guard::dress(&mut refused);
    refused
}
