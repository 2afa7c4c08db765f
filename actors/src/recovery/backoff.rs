//! When a protocol that stays down is redeployed again, counted in pings.
//!
//! Rule: Ok resets everything. Not Ok: if pings remain to be skipped, skip one; else redeploy, and skip
//! `min(2^failures, 64)` pings before the next. So redeploys come at once, then after 2, 4, 8, 16, 32, 64, 64...
//! skipped pings.
//! Alternatives considered: wait by the clock. A host that is not pinged is not worth a redeploy.

use crate::sabotage::{self, Sabotage};

/// Exponent limit, so that the shift cannot overflow.
pub const MAX_SHIFT: u32 = 30;

/// The most pings skipped between two redeploys. Too low: a hopeless target is hammered. Too high: a target that
/// works again stays down that long (64 s at an interval of 1 s, 64 min at 60 s).
pub const MAX_SKIP: u32 = 64;

/// The backoff of one (storage, host, protocol).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Backoff {
    failures: u32,
    skip: u32,
    skipped: u32,
}

/// A redeploy that is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Due {
    /// Number of the redeploy in this outage, from 1.
    pub attempt: u32,
    /// Pings skipped since the previous one.
    pub skipped: u32,
}

impl Backoff {
    /// A ping found the protocol healthy: the next outage starts from the beginning.
    pub fn ok(&mut self) {
        *self = Backoff::default();
    }

    /// A ping found the protocol down.
    pub fn not_ok(&mut self) -> Option<Due> {
        if self.skip > 0 {
            self.skip -= 1;
            self.skipped += 1;
            return None;
        }
        self.failures = self.failures.saturating_add(1);
        let cap = if sabotage::on(Sabotage::NoCap) { u32::MAX } else { MAX_SKIP };
        self.skip = (1 << self.failures.min(MAX_SHIFT)).min(cap) - u32::from(sabotage::on(Sabotage::SkipOffByOne));
        Some(Due { attempt: self.failures, skipped: std::mem::take(&mut self.skipped) })
    }

    /// Redeploys of this outage so far.
    pub fn failures(&self) -> u32 {
        self.failures
    }

    /// Pings left to skip.
    pub fn skip(&self) -> u32 {
        self.skip
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn redeploys_follow_0_2_4_8_16_32_64_64_skipped_pings() {
        let mut backoff = Backoff::default();
        let dues: Vec<_> = (0..328).filter_map(|_| backoff.not_ok()).map(|due| due.skipped).collect();
        assert_eq!(dues, [0, 2, 4, 8, 16, 32, 64, 64, 64, 64]);
        assert_eq!(backoff.failures(), 10);
    }

    #[test]
    fn backoff_survives_a_hundred_thousand_failures() {
        let mut backoff = Backoff::default();
        let mut last = 0;
        for _ in 0..100_000 {
            last =
                (0..=MAX_SKIP).find_map(|_| backoff.not_ok()).expect("due at the latest after MAX_SKIP pings").attempt;
            assert!(backoff.skip() <= MAX_SKIP && backoff.skip() >= 2);
        }
        assert_eq!(last, 100_000);
    }

    proptest! {
        /// Against an independent formulation of the rule: position of every redeploy in an outage.
        #[test]
        fn redeploys_stand_where_the_rule_says(pings in prop::collection::vec(prop::bool::weighted(0.02), 1..3000)) {
            let mut backoff = Backoff::default();
            let mut ping_of_outage = 0u64;
            for ok in pings {
                if ok {
                    backoff.ok();
                    prop_assert_eq!(backoff, Backoff::default());
                    ping_of_outage = 0;
                    continue;
                }
                // The n-th redeploy (from 0) comes after the first, plus one ping each, plus all skips before it.
                let mut position = 0u64;
                let mut n = 0u32;
                while position < ping_of_outage {
                    n += 1;
                    position += 1 + u64::from(if n >= 6 { 64 } else { 2u32.pow(n) });
                }
                let due = backoff.not_ok();
                prop_assert_eq!(due.is_some(), position == ping_of_outage, "ping {} of the outage", ping_of_outage);
                if let Some(due) = due {
                    prop_assert_eq!(due.attempt, n + 1);
                }
                ping_of_outage += 1;
            }
        }
    }
}
