//! What follows a try: nothing more, another one later, or giving up. A plain decision: time comes in, chance comes in.
//!
//! Invariants: a wait doubles up to a ceiling and has jitter, so that hooks that failed together do not come back together;
//! what a receiver says of when to come again is honoured, up to a bound; what may pass (nobody there, 5xx, 408, 429, time out) is
//! tried for as long as it takes, since skipping is losing; what was refused is given up after [`MAX_REFUSALS`] tries, or one
//! record that a receiver never takes would hold up all later ones.

use std::time::Duration;

/// Refusals of one record before it is given up. Too low: a receiver that is deployed wrongly for a moment misses it. Too
/// high: it holds up all later ones for long.
pub const MAX_REFUSALS: u32 = 5;

/// The longest wait that a receiver may ask for. Too low: it is bothered. Too high: an odd header silences a hook.
pub const MAX_RETRY_AFTER: Duration = Duration::from_secs(3600);

/// How fast it is tried again.
#[derive(Clone, Copy, Debug)]
pub struct RetryPolicy {
    /// Before the second try. Too low: a receiver that restarts is hammered. Too high: a hiccup costs time.
    pub first: Duration,
    /// Before any try. Too low: a receiver that is down all night is hammered. Too high: it is up, and nobody tells it.
    pub ceiling: Duration,
}

impl Default for RetryPolicy {
    fn default() -> RetryPolicy {
        RetryPolicy { first: Duration::from_secs(1), ceiling: Duration::from_secs(300) }
    }
}

impl RetryPolicy {
    /// The wait after so many failures in a row: `dice`, 0 to 1, takes up to half of it away.
    fn wait(self, failures: u32, dice: f64) -> Duration {
        let doubled = self.first.saturating_mul(1 << failures.saturating_sub(1).min(20)).min(self.ceiling);
        doubled.mul_f64(1.0 - dice.clamp(0.0, 1.0) / 2.0)
    }
}

/// What came of a try.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The receiver has it; what it said.
    Delivered(String),
    /// It may work later, at the earliest after what the receiver asked for.
    Later(String, Option<Duration>),
    /// The receiver does not want it.
    Refused(String),
}

impl Outcome {
    /// What the receiver said, or why it could not be told.
    pub fn says(&self) -> &str {
        match self {
            Outcome::Delivered(says) | Outcome::Later(says, _) | Outcome::Refused(says) => says,
        }
    }
}

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Go on with the next record.
    Done,
    /// Try this one again after a while.
    Retry(Duration),
    /// Go on with the next record, this one was not delivered.
    Drop,
}

/// The tries of one record.
#[derive(Debug)]
pub struct Attempts {
    policy: RetryPolicy,
    failures: u32,
    refusals: u32,
}

impl Attempts {
    /// None yet.
    pub fn new(policy: RetryPolicy) -> Attempts {
        Attempts { policy, failures: 0, refusals: 0 }
    }

    /// So many failed.
    pub fn failed(&self) -> u32 {
        self.failures
    }

    /// What follows this outcome.
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
        (0..100).for_each(|_| assert!(matches!(tries.after(&later(), 0.5), Step::Retry(_)), "for as long as it takes"));
        assert_eq!(tries.after(&Outcome::Delivered("200".to_owned()), 0.0), Step::Done);
    }

    #[test]
    fn what_a_receiver_asks_for_is_honoured_up_to_a_bound() {
        let asked = |seconds| Outcome::Later("429".to_owned(), Some(Duration::from_secs(seconds)));
        let mut tries = Attempts::new(RetryPolicy::default());
        assert_eq!(tries.after(&asked(30), 0.9), Step::Retry(Duration::from_secs(30)));
        assert_eq!(tries.after(&asked(1), 0.0), Step::Retry(Duration::from_secs(2)), "never sooner than the pace");
        assert_eq!(tries.after(&asked(1_000_000), 0.0), Step::Retry(MAX_RETRY_AFTER));
    }

    #[test]
    fn a_refusal_is_given_up_and_what_may_pass_does_not_count_towards_it() {
        let refused = Outcome::Refused("400".to_owned());
        let mut tries = Attempts::new(RetryPolicy::default());
        for _ in 1..MAX_REFUSALS {
            assert!(matches!(tries.after(&refused, 0.0), Step::Retry(_)));
            assert!(matches!(tries.after(&later(), 0.0), Step::Retry(_)));
        }
        assert_eq!(tries.after(&refused, 0.0), Step::Drop);
    }
}
