//! Notifications to systemd: readiness, then the watchdog.
//!
//! Invariant: the watchdog task runs on the runtime that does the work, so a hanging runtime misses it and systemd
//! restarts the service. Without systemd nothing happens.

use std::time::Duration;

use sd_notify::NotifyState;
use tokio::time::MissedTickBehavior;

/// Watchdog notifications within `WatchdogSec=`. Too low: one late notification counts as a hang. Too high: needless
/// wake-ups.
const PER_WATCHDOG: u32 = 4;

/// Notifies readiness, then starts the watchdog task. Must run inside the runtime that does the work.
pub fn notify_ready() {
    notify(NotifyState::Ready);
    let Some(limit) = sd_notify::watchdog_enabled().filter(|limit| *limit >= Duration::from_millis(1)) else { return };
    tokio::spawn(async move {
        let mut turns = tokio::time::interval(limit / PER_WATCHDOG);
        turns.set_missed_tick_behavior(MissedTickBehavior::Skip);
        loop {
            turns.tick().await;
            notify(NotifyState::Watchdog);
        }
    });
}

fn notify(state: NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        tracing::warn!(%error, "cannot notify systemd");
    }
}
