//! Rate limit of requests from one address.
//!
//! Invariants: a limited client gets `Retry-After` and does not affect others; authenticated and unauthenticated
//! requests have separate limits, because behind SSH every client is 127.0.0.1; `/healthz` and `/metrics` have their
//! own limit, so that a runaway script does not make the controller look down. Alternative considered: a limit for
//! each token (scripts on one machine share a token or have many).

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
use ringfence_service::{
    listen::Peer,
    rate_limit::{PerAddress, network},
};

use super::{auth::Access, errors::Failure, origin_check};

/// Size of a burst, in seconds of the limit. Too low: the parts of the page load one by one. Too high: bursts delay
/// others.
const BURST_SECONDS: u32 = 5;

struct Limits {
    access: Access,
    /// Authenticated requests.
    known: PerAddress,
    /// Unauthenticated requests.
    strangers: PerAddress,
    /// Requests of `/healthz` and `/metrics`.
    watch: PerAddress,
}

/// The routes with a limit of requests per second from each address, separately for authenticated requests.
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
        format!("too many requests from {whom}; retry in {seconds} s, or raise `requests_per_second` in [controller]");
    let mut refused = Failure::with(StatusCode::TOO_MANY_REQUESTS, Code::NOT_READY, why).into_response();
    refused.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    origin_check::add_security_headers(&mut refused);
    refused
}
