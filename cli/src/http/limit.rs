//! How many requests an address may make.
//!
//! Invariants: who asks too often is told when to ask again, and costs others nothing; `/healthz` and `/metrics` have a measure of
//! their own, so that a script that runs wild does not make a controller look dead; what is remembered is bounded.
//! Rejected: a measure for each token. It would have to be looked up first, which is work that can be had without one.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    num::NonZeroU32,
    sync::Arc,
    time::Duration,
};

use axum::{
    Router,
    extract::{Request, State},
    http::{HeaderValue, StatusCode, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
};
use governor::{
    DefaultKeyedRateLimiter, Quota, RateLimiter,
    clock::{Clock, DefaultClock},
};
use ringfence_messages::Code;

use super::{errors::Failure, guard};
use crate::listen::Peer;

/// Requests a second from one address, unless told. Too low: a page that shows everything, and scripts beside it, are held up.
/// Too high: one client keeps the API's thread busy.
pub const REQUESTS_PER_SECOND: u32 = 200;

/// For how many seconds' worth an address may ask at once. Too low: the page's parts come one by one.
const BURST_SECONDS: u32 = 5;

/// Addresses that are remembered; those that did not ask for some seconds are forgotten first, further ones share one measure.
pub(crate) const MAX_ADDRESSES: usize = 10_000;

struct Limits {
    requests: DefaultKeyedRateLimiter<IpAddr>,
    /// Of `/healthz` and `/metrics`.
    watch: DefaultKeyedRateLimiter<IpAddr>,
    clock: DefaultClock,
}

/// The routes, for so many requests a second from each address.
pub fn limited(app: Router, per_second: NonZeroU32) -> Router {
    let quota = Quota::per_second(per_second)
        .allow_burst(per_second.saturating_mul(const { NonZeroU32::new(BURST_SECONDS).unwrap() }));
    let limits = Limits {
        requests: RateLimiter::keyed(quota),
        watch: RateLimiter::keyed(quota),
        clock: DefaultClock::default(),
    };
    app.layer(middleware::from_fn_with_state(Arc::new(limits), check))
}

/// Whom an address stands for: an IPv6 network of one customer is one.
fn whom(peer: Option<&Peer>) -> IpAddr {
    peer.map_or(Ipv4Addr::UNSPECIFIED.into(), |peer| network(peer.address))
}

/// Who is asked about at once: an address, or the network of one customer.
pub(crate) fn network(address: SocketAddr) -> IpAddr {
    match address.ip().to_canonical() {
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX)).into(),
        v4 => v4,
    }
}

impl Limits {
    /// How long to wait, if too many came.
    fn wait(&self, path: &str, whom: IpAddr) -> Option<Duration> {
        let of = if matches!(path, "/healthz" | "/metrics") { &self.watch } else { &self.requests };
        if of.len() >= MAX_ADDRESSES {
            of.retain_recent();
        }
        let whom = if of.len() < MAX_ADDRESSES { whom } else { Ipv4Addr::UNSPECIFIED.into() };
        of.check_key(&whom).err().map(|until| until.wait_time_from(self.clock.now()))
    }
}

async fn check(State(limits): State<Arc<Limits>>, request: Request, next: Next) -> Response {
    let whom = whom(request.extensions().get());
    let Some(wait) = limits.wait(request.uri().path(), whom) else { return next.run(request).await };
    let seconds = wait.as_secs() + 1;
    let why =
        format!("too many requests from {whom}: ask again in {seconds} s, or raise [controller] requests_per_second");
    let mut refused = Failure::with(StatusCode::TOO_MANY_REQUESTS, Code::NOT_READY, why).into_response();
    refused.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    guard::dress(&mut refused);
    refused
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_remembered_is_bounded_and_a_network_is_one() {
        let quota = Quota::per_hour(NonZeroU32::MIN);
        let limits = Limits {
            requests: RateLimiter::keyed(quota),
            watch: RateLimiter::keyed(quota),
            clock: DefaultClock::default(),
        };
        for n in 0..MAX_ADDRESSES as u32 + 50 {
            limits.wait("/", Ipv4Addr::from_bits(n).into());
        }
        assert!(limits.requests.len() <= MAX_ADDRESSES + 1);
        assert_eq!(limits.watch.len(), 0);
        let peer = |address: &str| whom(Some(&Peer { address: address.parse().unwrap(), secure: false }));
        assert_eq!(peer("[2001:db8::1]:1"), peer("[2001:db8::2:3]:4"));
        assert_ne!(peer("[2001:db8::1]:1"), peer("[2001:db8:0:1::1]:1"));
        assert_eq!(peer("[::ffff:10.0.0.1]:1"), peer("10.0.0.1:9"));
    }
}
