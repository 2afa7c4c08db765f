//! The restart policy: how often and how fast an actor is rebuilt after panics.

use std::{collections::VecDeque, time::Duration};

use tokio::time::Instant;

/// The restarts of an actor before its supervisor stops it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RestartPolicy {
    /// Restarts within `window`; one more panic stops the actor. Too low: a burst of bad input stops the actor. Too
    /// high: a broken actor wastes processor time.
    pub max: u32,
    /// The time window in which restarts count. Too low: a broken actor restarts for ever. Too high: rare panics stop
    /// an actor.
    pub window: Duration,
    /// Delay of the second restart within the window; the first restart is immediate. Doubles with each further
    /// restart.
    pub backoff: Duration,
    /// The longest delay.
    pub backoff_ceiling: Duration,
}

impl Default for RestartPolicy {
    fn default() -> Self {
        RestartPolicy {
            max: 10,
            window: Duration::from_secs(60),
            backoff: Duration::from_millis(10),
            backoff_ceiling: Duration::from_secs(1),
        }
    }
}

/// The times of an actor's restarts within the window.
#[derive(Default)]
pub(crate) struct Restarts {
    recent: VecDeque<Instant>,
}

impl Restarts {
    /// Counts one panic. Returns the delay of the restart, or `None` if no restart is left.
    pub(crate) fn after_panic(&mut self, policy: &RestartPolicy, now: Instant) -> Option<Duration> {
        while self.recent.front().is_some_and(|at| now.duration_since(*at) > policy.window) {
            self.recent.pop_front();
        }
        let before = self.recent.len() as u32;
        if before >= policy.max {
            return None;
        }
        self.recent.push_back(now);
        let Some(doublings) = before.checked_sub(1) else { return Some(Duration::ZERO) };
        Some(policy.backoff.saturating_mul(1 << doublings.min(20)).min(policy.backoff_ceiling))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn delay_doubles_up_to_its_ceiling_until_escalation() {
        let policy = RestartPolicy { max: 5, backoff_ceiling: Duration::from_millis(50), ..Default::default() };
        let mut restarts = Restarts::default();
        let waits: Vec<_> = (0..6).map(|_| restarts.after_panic(&policy, Instant::now())).collect();
        let ms = |n| Some(Duration::from_millis(n));
        assert_eq!(waits, [ms(0), ms(10), ms(20), ms(40), ms(50), None]);
    }

    #[tokio::test(start_paused = true)]
    async fn panics_outside_the_window_do_not_count() {
        let policy = RestartPolicy { max: 1, ..Default::default() };
        let mut restarts = Restarts::default();
        for _ in 0..3 {
            assert_eq!(restarts.after_panic(&policy, Instant::now()), Some(Duration::ZERO));
            tokio::time::advance(policy.window + Duration::from_millis(1)).await;
        }
    }
}
