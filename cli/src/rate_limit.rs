//! How often each address may do something.
//!
//! Invariant: what is remembered of addresses is bounded, and so is the work for one of them, however many knock: those of
//! whom nothing came lately are looked for now and then, not each time. Beyond the bound all share one measure.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::{Duration, Instant},
};

use governor::{
    DefaultKeyedRateLimiter, Quota, RateLimiter,
    clock::{Clock, DefaultClock},
};
use parking_lot::Mutex;

/// Addresses that are remembered. Too low: many clients share one measure. Too high: memory, and time to look through them.
const MAX_ADDRESSES: usize = 10_000;

/// How often those are forgotten of whom nothing came lately, once they are too many. Too low: each who knocks has all of
/// them looked through. Too high: others than them share one measure for so long.
const FORGET_EVERY: Duration = Duration::from_secs(10);

/// A measure for each address.
pub(crate) struct PerAddress {
    measures: DefaultKeyedRateLimiter<IpAddr>,
    clock: DefaultClock,
    /// When addresses were last forgotten.
    forgot: Mutex<Instant>,
}

impl PerAddress {
    /// So often for each.
    pub(crate) fn new(quota: Quota) -> PerAddress {
        let measures = RateLimiter::keyed(quota);
        PerAddress { measures, clock: DefaultClock::default(), forgot: Mutex::new(Instant::now()) }
    }

    /// Counts once for an address; how long it has to wait instead, if it came too often.
    pub(crate) fn wait(&self, whom: IpAddr) -> Option<Duration> {
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

/// Whom an address stands for: an IPv6 network of one customer is one.
pub(crate) fn network(address: SocketAddr) -> IpAddr {
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
    fn what_is_remembered_is_bounded_and_a_network_is_one() {
        let measures = PerAddress::new(Quota::per_hour(NonZeroU32::MIN));
        for n in 0..2 * MAX_ADDRESSES as u32 {
            measures.wait(Ipv4Addr::from_bits(n).into());
        }
        assert!(measures.measures.len() <= MAX_ADDRESSES + 1, "further ones share one measure");
        let of = |address: &str| network(address.parse().unwrap());
        assert_eq!(of("[2001:db8::1]:1"), of("[2001:db8::2:3]:4"));
        assert_ne!(of("[2001:db8::1]:1"), of("[2001:db8:0:1::1]:1"));
        assert_eq!(of("[::ffff:10.0.0.1]:1"), of("10.0.0.1:9"));
    }
}
