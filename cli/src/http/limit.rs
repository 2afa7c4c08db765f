//! How many requests an address may make.
//!
//! Invariants: who asks too often is told when to ask again, and costs others nothing; who shows a token or a session that is
//! known has another measure than who shows none, for behind SSH everybody is 127.0.0.1; `/healthz` and `/metrics` have one of
//! their own, so that a script that runs wild does not make a controller look dead.
//! Rejected: a measure for each token: scripts on one machine share its token or have many, and it is the machine that asks.

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

use super::{auth::Access, errors::Failure, origin_check};
use crate::{
    listen::Peer,
    rate_limit::{PerAddress, network},
};

/// For how many seconds' worth an address may ask at once. Too low: the page's parts come one by one.
const BURST_SECONDS: u32 = 5;

struct Limits {
    access: Access,
    /// Of who is known.
    known: PerAddress,
    /// Of who is not.
    strangers: PerAddress,
    /// Of `/healthz` and `/metrics`.
    watch: PerAddress,
}

/// The routes, for so many requests a second from each address, and as many of who is known to `access`.
pub fn limited(app: Router, per_second: NonZeroU32, access: Access) -> Router {
    let quota = Quota::per_second(per_second)
        .allow_burst(per_second.saturating_mul(const { NonZeroU32::new(BURST_SECONDS).unwrap() }));
    let measure = || PerAddress::new(quota);
    let limits = Limits { access, known: measure(), strangers: measure(), watch: measure() };
    app.layer(middleware::from_fn_with_state(Arc::new(limits), check))
}

fn whom(peer: Option<&Peer>) -> IpAddr {
    peer.map_or(Ipv4Addr::UNSPECIFIED.into(), |peer| network(peer.address))
}

async fn check(State(limits): State<Arc<Limits>>, request: Request, next: Next) -> Response {
    let whom = whom(request.extensions().get());
    let of = match request.uri().path() {
        "/healthz" | "/metrics" => &limits.watch,
        _ if limits.access.bearer(request.headers()).is_some() => &limits.known,
        _ => &limits.strangers,
    };
    let Some(wait) = of.wait(whom) else { return next.run(request).await };
    let seconds = wait.as_secs() + 1;
    let why =
        format!("too many requests from {whom}: ask again in {seconds} s, or raise [controller] requests_per_second");
    let mut refused = Failure::with(StatusCode::TOO_MANY_REQUESTS, Code::NOT_READY, why).into_response();
    refused.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    origin_check::add_security_headers(&mut refused);
    refused
}
