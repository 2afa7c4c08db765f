//! Rate limits by address.
//!
//! Invariant: the number of stored addresses is bounded, and so is the work for one request: idle addresses are evicted
//! periodically, not on each request. Addresses beyond the bound share one limit.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::{Duration, Instant},
};

use governor::{
    DefaultKeyedRateLimiter, Quota, RateLimiter,
    clock::{Clock, DefaultClock},
};
use parking_lot::Mutex;

/// Largest number of stored addresses. Too low: many clients share one limit. Too high: memory, and time for evictions.
const MAX_ADDRESSES: usize = 10_000;

/// Time between two evictions of idle addresses at the bound. Too low: each request scans all addresses. Too high:
/// new addresses share one limit for long.
const FORGET_EVERY: Duration = Duration::from_secs(10);

/// A rate limit for each address.
pub struct PerAddress {
    measures: DefaultKeyedRateLimiter<IpAddr>,
    clock: DefaultClock,
    /// Time of the last eviction.
    forgot: Mutex<Instant>,
}

impl PerAddress {
    /// A limiter with this quota for each address.
    pub fn new(quota: Quota) -> PerAddress {
        let measures = RateLimiter::keyed(quota);
        PerAddress { measures, clock: DefaultClock::default(), forgot: Mutex::new(Instant::now()) }
    }

    /// Counts one request of an address. Returns the time to wait if it exceeds the limit.
    pub fn wait(&self, whom: IpAddr) -> Option<Duration> {
        let whom = if self.has_room() { whom } else { Ipv4Addr::UNSPECIFIED.into() };
        self.measures.check_key(&whom).err().map(|until| until.wait_time_from(self.clock.now()))
    }

    fn has_room(&self) -> bool {
        let room = || self.measures.len() < MAX_ADDRESSES;
        let mut forgot = self.forgot.lock();
        if !room() && forgot.elapsed() >= FORGET_EVERY {
            *forgot = Instant::now();
            self.measures.retain_recent();
        }
        room()
    }
}

/// The key of an address: an IPv6 /64 network counts as one address.
pub fn network(address: SocketAddr) -> IpAddr {
    match address.ip().to_canonical() {
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX)).into(),
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use super::*;

    #[test]
    fn stored_addresses_are_bounded_and_a_network_is_one() {
        let measures = PerAddress::new(Quota::per_hour(NonZeroU32::MIN));
        for n in 0..2 * MAX_ADDRESSES as u32 {
            measures.wait(Ipv4Addr::from_bits(n).into());
        }
        assert!(measures.measures.len() <= MAX_ADDRESSES + 1, "further addresses share one limit");
        let of = |address: &str| network(address.parse().unwrap());
        assert_eq!(of("[2001:db8::1]:1"), of("[2001:db8::2:3]:4"));
        assert_ne!(of("[2001:db8::1]:1"), of("[2001:db8:0:1::1]:1"));
        assert_eq!(of("[::ffff:10.0.0.1]:1"), of("10.0.0.1:9"));
    }
}
