//! Retries of a delivery: done, retry later, or drop. Pure: time and randomness are inputs.
//!
//! Invariants: the wait doubles up to a ceiling, with jitter, so that hooks that failed together do not retry
//! together; `Retry-After` is honoured up to a bound; a temporary failure (no connection, 5xx, 408, 429, time-out) is
//! retried forever, because dropping loses an event; a rejected record is dropped after [`MAX_REFUSALS`] attempts,
//! because it would block all later ones.

use std::time::Duration;

/// Rejections of one record before it is dropped. Too low: a receiver with a short misconfiguration misses it. Too
/// high: it blocks later records for long.
pub const MAX_REFUSALS: u32 = 5;

/// Longest `Retry-After` that is honoured. Too low: a busy receiver gets more requests. Too high: a wrong header
/// stops a hook.
pub const MAX_RETRY_AFTER: Duration = Duration::from_secs(3600);

/// Waits between attempts.
#[derive(Clone, Copy, Debug)]
pub struct RetryPolicy {
    /// Wait before the second attempt. Too low: a restarting receiver gets many requests. Too high: a short failure
    /// delays events.
    pub first: Duration,
    /// Longest wait. Too low: a receiver that is down for long gets many requests. Too high: events arrive late after
    /// its return.
    pub ceiling: Duration,
}

impl Default for RetryPolicy {
    fn default() -> RetryPolicy {
        RetryPolicy { first: Duration::from_secs(1), ceiling: Duration::from_secs(300) }
    }
}

impl RetryPolicy {
    /// Wait after this number of consecutive failures; `dice`, 0 to 1, shortens it by up to half.
    fn wait(self, failures: u32, dice: f64) -> Duration {
        let doubled = self.first.saturating_mul(1 << failures.saturating_sub(1).min(20)).min(self.ceiling);
        doubled.mul_f64(1.0 - dice.clamp(0.0, 1.0) / 2.0)
    }
}

/// Result of an attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Accepted, with the response.
    Delivered(String),
    /// Temporary failure, with the reason and `Retry-After`.
    Later(String, Option<Duration>),
    /// Rejected, with the response.
    Refused(String),
}

impl Outcome {
    /// The response, or the reason for the failure.
    pub fn says(&self) -> &str {
        match self {
            Outcome::Delivered(says) | Outcome::Later(says, _) | Outcome::Refused(says) => says,
        }
    }
}

/// The next step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Continue with the next record.
    Done,
    /// Retry this record after a wait.
    Retry(Duration),
    /// Drop this record and continue with the next.
    Drop,
}

/// The attempts of one record.
#[derive(Debug)]
pub struct Attempts {
    policy: RetryPolicy,
    failures: u32,
    refusals: u32,
}

impl Attempts {
    /// No attempt yet.
    pub fn new(policy: RetryPolicy) -> Attempts {
        Attempts { policy, failures: 0, refusals: 0 }
    }

    /// Number of failed attempts.
    pub fn failed(&self) -> u32 {
        self.failures
    }

    /// The step after this outcome.
    pub fn after(&mut self, outcome: &Outcome, dice: f64) -> Step {
        let asked = match outcome {
            Outcome::Delivered(_) => return Step::Done,
            Outcome::Later(_, asked) => asked.unwrap_or_default().min(MAX_RETRY_AFTER),
            Outcome::Refused(_) => {
                self.refusals += 1;
                if self.refusals >= MAX_REFUSALS {
                    return Step::Drop;
                }
                Duration::ZERO
            }
        };
        self.failures += 1;
        Step::Retry(self.policy.wait(self.failures, dice).max(asked))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn later() -> Outcome {
        Outcome::Later("503".to_owned(), None)
    }

    #[test]
    fn waits_double_up_to_a_ceiling_and_have_jitter() {
        let mut tries = Attempts::new(RetryPolicy::default());
        let waits: Vec<u64> = (0..12)
            .map(|_| match tries.after(&later(), 0.0) {
                Step::Retry(wait) => wait.as_secs(),
                step => panic!("{step:?}"),
            })
            .collect();
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300, 300]);
        assert_eq!(tries.after(&later(), 1.0), Step::Retry(Duration::from_secs(150)));
        (0..100).for_each(|_| assert!(matches!(tries.after(&later(), 0.5), Step::Retry(_)), "without an end"));
        assert_eq!(tries.after(&Outcome::Delivered("200".to_owned()), 0.0), Step::Done);
    }

    #[test]
    fn retry_after_is_honoured_up_to_a_bound() {
        let asked = |seconds| Outcome::Later("429".to_owned(), Some(Duration::from_secs(seconds)));
        let mut tries = Attempts::new(RetryPolicy::default());
        assert_eq!(tries.after(&asked(30), 0.9), Step::Retry(Duration::from_secs(30)));
        assert_eq!(tries.after(&asked(1), 0.0), Step::Retry(Duration::from_secs(2)), "never sooner than the policy");
        assert_eq!(tries.after(&asked(1_000_000), 0.0), Step::Retry(MAX_RETRY_AFTER));
    }

    #[test]
    fn rejections_are_dropped_and_temporary_failures_do_not_count() {
        let refused = Outcome::Refused("400".to_owned());
        let mut tries = Attempts::new(RetryPolicy::default());
        for _ in 1..MAX_REFUSALS {
            assert!(matches!(tries.after(&refused, 0.0), Step::Retry(_)));
            assert!(matches!(tries.after(&later(), 0.0), Step::Retry(_)));
        }
        assert_eq!(tries.after(&refused, 0.0), Step::Drop);
    }
}
