//! What systemd is told, where it started this program: that it serves, and again and again that it is alive.
//!
//! Invariant: "alive" is said by a task of the runtime that does the work, so that one that hangs says nothing and is
//! started anew. Without systemd nothing happens.

use std::time::Duration;

use sd_notify::NotifyState;
use tokio::time::MissedTickBehavior;

/// Times that "alive" is said within what systemd waits for (`WatchdogSec=`). Too few: one turn that comes late is taken
/// for a hang. Too many: wakes for nothing.
const PER_WATCHDOG: u32 = 4;

/// Says that it serves; from now on, that it is alive. Must run inside the runtime that does the work.
pub fn notify_ready() {
    tell(NotifyState::Ready);
    let Some(limit) = sd_notify::watchdog_enabled().filter(|limit| *limit >= Duration::from_millis(1)) else { return };
    tokio::spawn(async move {
        let mut turns = tokio::time::interval(limit / PER_WATCHDOG);
        turns.set_missed_tick_behavior(MissedTickBehavior::Skip);
        loop {
            turns.tick().await;
            tell(NotifyState::Watchdog);
        }
    });
}

fn tell(state: NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        tracing::warn!(%error, "systemd is not told");
    }
}
