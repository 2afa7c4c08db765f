//! Notifications: webhooks and command hooks, fed by the journal.
//!
//! ```text
//! journal.db --read--> hook "ops"   --POST-->  https://...       state/hooks/ops.json   { "seq": 41 }
//!            --read--> hook "pager" --run-->   /usr/local/bin/.. state/hooks/pager.json { "seq": 40 }
//! ```
//! Invariants: each hook delivers at least once and in sequence: its [`Cursor`] in the journal advances only after a
//! record is delivered or dropped ([`Attempts`]), so a killed controller loses none; a hook waits only for its own
//! receiver; hooks run on the API's thread, never on the actors' thread, and only read the journal. Memory is
//! bounded, because records wait in the journal. Alternatives considered: the bus as source (events during an outage
//! of a receiver would be lost), a separate queue (the journal is one).

mod command;
mod cursor;
mod hook;
mod notice;
mod retry;
mod webhook;

use std::{path::Path, sync::Arc, time::Duration};

use futures_util::{Stream, StreamExt};
use metrics::{counter, gauge};
use ringfence_actors::ports::JournalPort;
use ringfence_messages::{Result, audit::EventRecorded};
use tokio::{sync::watch, task::JoinSet};

use crate::{config::HookConfig, errors::not_found};

pub use cursor::Cursor;
use hook::Hook;
pub use hook::{HookInventory, HookKind, HookTest};
pub use notice::{Notice, TEST_TOPIC};
pub use retry::{Attempts, MAX_REFUSALS, MAX_RETRY_AFTER, Outcome, RetryPolicy, Step};

/// Time between two reads of the journal without an announcement. Too low: needless reads. Too high: a record with a
/// missed announcement is delivered late.
const LOOK: Duration = Duration::from_secs(5);

/// Characters of a response that are kept for messages.
const MAX_SAID_CHARS: usize = 300;

/// All hooks of a controller.
pub struct Notifier {
    hooks: Vec<Arc<Hook>>,
    journal: Arc<dyn JournalPort>,
    newest: watch::Sender<u64>,
}

impl Notifier {
    /// Opens the hooks. A new hook starts with the next record.
    ///
    /// # Errors
    /// A file that cannot be read or written, with the remedy.
    pub async fn open(
        configs: &[HookConfig],
        state_dir: &Path,
        journal: Arc<dyn JournalPort>,
        policy: RetryPolicy,
    ) -> Result<Notifier> {
        let newest = journal.newest(None, 1).await?.last().map_or(0, |record| record.seq);
        let open = |config: &HookConfig| {
            let cursor = Cursor::open(state_dir, &config.name, newest)?;
            Ok(Arc::new(Hook::open(config, cursor, policy)?))
        };
        let hooks = configs.iter().map(open).collect::<Result<_>>()?;
        Ok(Notifier { hooks, journal, newest: watch::Sender::new(newest) })
    }

    /// Runs the hooks forever. `recorded` announces new records.
    pub async fn run(self: Arc<Self>, recorded: impl Stream<Item = ringfence::AnyEvent>) {
        let mut running = JoinSet::new();
        for hook in &self.hooks {
            let name = hook.name().to_owned();
            // Without an initial 0, `increase()` of Prometheus misses the first increment.
            counter!("ringfence_hook_delivered_total", "hook" => name.clone()).increment(0);
            counter!("ringfence_hook_given_up_total", "hook" => name.clone()).increment(0);
            counter!("ringfence_hook_retries_total", "hook" => name).increment(0);
            running.spawn(hook.clone().run(self.journal.clone(), self.newest.subscribe()));
        }
        if self.hooks.is_empty() {
            return;
        }
        let seq = |event: ringfence::AnyEvent| event.downcast_ref::<EventRecorded>().map_or(0, |event| event.seq);
        // After the end of the stream only the periodic reads are left.
        let recorded = recorded.map(seq).chain(futures_util::stream::pending());
        let mut recorded = std::pin::pin!(recorded);
        loop {
            let seq = match tokio::time::timeout(LOOK, recorded.next()).await {
                Ok(seq) => seq.unwrap_or_default(),
                Err(_) => match self.journal.newest(None, 1).await {
                    Ok(newest) => newest.last().map_or(0, |record| record.seq),
                    Err(error) => {
                        tracing::warn!(%error, "hooks cannot read the journal");
                        0
                    }
                },
            };
            self.newest.send_if_modified(|newest| {
                let more = seq > *newest;
                *newest = seq.max(*newest);
                more
            });
        }
    }

    /// Status of the hooks.
    pub fn list(&self) -> Vec<HookInventory> {
        let newest = *self.newest.borrow();
        self.hooks.iter().map(|hook| hook.inventory(newest)).collect()
    }

    /// Sends a signed test event through this hook, without waiting for earlier events.
    ///
    /// # Errors
    /// `SYS.1003` if the hook is unknown, `SYS.1005` while another test of it is in progress.
    pub async fn test(&self, name: &str) -> Result<HookTest> {
        let hook = self.hooks.iter().find(|hook| hook.name() == name);
        hook.ok_or_else(|| not_found("hook", name))?.test().await
    }

    /// Sets the gauges.
    pub fn measure(&self) {
        let newest = *self.newest.borrow();
        for hook in &self.hooks {
            let name = hook.name().to_owned();
            gauge!("ringfence_hook_lag_records", "hook" => name.clone()).set(hook.inventory(newest).lag as f64);
            gauge!("ringfence_hook_waiting_seconds", "hook" => name).set(hook.waited());
        }
    }
}

/// The beginning of a response, as one line of printable characters.
fn one_line(said: &[u8], longest: usize) -> String {
    let text = String::from_utf8_lossy(said);
    let words: Vec<&str> =
        text.split(|c: char| c.is_whitespace() || c.is_control()).filter(|word| !word.is_empty()).collect();
    words.join(" ").chars().take(longest).collect()
}
