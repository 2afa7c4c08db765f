//! How often and how quickly an actor is rebuilt after its handlers panic.

use std::{collections::VecDeque, time::Duration};

use tokio::time::Instant;

/// Restarts that an actor is allowed before its supervisor gives it up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RestartPolicy {
    /// Restarts within `window`; one more panic escalates. Too low: a burst of odd input ends the actor. Too
    /// high: a broken actor burns the processor.
    pub max: u32,
    /// The window that restarts are counted in.
    pub window: Duration,
    /// Wait before the second restart within the window; the first is at once. It doubles from then on.
    pub backoff: Duration,
    /// The longest wait.
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

/// The panics of one actor that still count.
#[derive(Default)]
pub(crate) struct Restarts {
    recent: VecDeque<Instant>,
}

impl Restarts {
    /// Counts one more panic: how long to wait before the rebuild, or `None` to give up.
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
        Some((policy.backoff * (1 << doublings.min(20))).min(policy.backoff_ceiling))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_wait_doubles_to_its_ceiling_and_the_last_restart_escalates() {
        let policy = RestartPolicy { max: 5, backoff_ceiling: Duration::from_millis(50), ..Default::default() };
        let mut restarts = Restarts::default();
        let waits: Vec<_> = (0..6).map(|_| restarts.after_panic(&policy, Instant::now())).collect();
        let ms = |n| Some(Duration::from_millis(n));
        assert_eq!(waits, [ms(0), ms(10), ms(20), ms(40), ms(50), None]);
    }

    #[tokio::test(start_paused = true)]
    async fn panics_outside_the_window_are_forgotten() {
        let policy = RestartPolicy { max: 1, ..Default::default() };
        let mut restarts = Restarts::default();
        for _ in 0..3 {
            assert_eq!(restarts.after_panic(&policy, Instant::now()), Some(Duration::ZERO));
            tokio::time::advance(policy.window + Duration::from_millis(1)).await;
        }
    }
}
