//! Whether this controller may act: not while its journal is behind what a host has heard of it (I4, K7).
//!
//! Purpose: a journal restored from a backup lists running VMs as stopped, and reuses an epoch. Every ping and every
//! command carries how far the journal is, and each host reports the furthest state that it has heard.
//! Invariants: nothing irreversible follows once a host knows more. A controller that is behind stays behind until it
//! is started with `--restored`. Only durable records count. The two gates are the audit (no intent) and the actors
//! of the hosts (no act).
//! Alternatives considered: continue automatically once all hosts were queried. Two controllers on copies of one
//! journal would each do that.

use std::sync::Arc;

use futures_util::join;
use parking_lot::Mutex;
use ringfence_messages::{
    Code, ErrorCode, Event, HostId, Result,
    audit::ControllerStarted,
    journal::{ControllerBehind, ControllerRestored, JournalHead},
};

use crate::{
    inventory::SharedInventory,
    ports::{JournalPort, Record},
    sabotage::{self, Sabotage},
};

/// How far the journal of this controller is, and whether it is behind. All actors that may have to reject share one.
#[derive(Clone)]
pub struct LeaderStatus {
    journal: Arc<dyn JournalPort>,
    inventory: SharedInventory,
    inner: Arc<Mutex<Inner>>,
}

struct Inner {
    /// `None` before the first record of a new journal.
    head: Option<JournalHead>,
    epoch: u64,
    above: u64,
    behind: Option<ControllerBehind>,
}

impl LeaderStatus {
    /// Reads how far the journal is.
    ///
    /// # Errors
    /// `SYS.1016` if the journal cannot be read.
    pub async fn open(inventory: SharedInventory, journal: Arc<dyn JournalPort>) -> Result<LeaderStatus> {
        let (restored, started) =
            join!(journal.latest(ControllerRestored::TOPIC), journal.latest(ControllerStarted::TOPIC));
        let (restored, started) = (restored?.pop(), started?.pop());
        let epoch =
            started.as_ref().map(Record::event::<ControllerStarted>).transpose()?.map_or(0, |event| event.epoch);
        // A restart does not help: the journal's own records have outgrown what hosts heard, but records are missing.
        let behind = journal.latest(ControllerBehind::TOPIC).await?.pop();
        let behind = behind.filter(|record| record.seq > restored.as_ref().map_or(0, |restored| restored.seq));
        let behind = behind.map(|record| record.event::<ControllerBehind>()).transpose()?;
        let restored = restored.map(|record| record.event::<ControllerRestored>()).transpose()?;
        let head = journal.ends().await?.map(|(first, seq)| {
            let (journal_id, generation) = match &restored {
                Some(restored) => (restored.journal_id.clone(), restored.generation),
                None => (name(&first), 0),
            };
            JournalHead { journal_id, generation, seq, epoch }
        });
        metrics::gauge!("ringfence_controller_behind").set(if behind.is_some() { 1.0 } else { 0.0 });
        let above = epoch.max(restored.map_or(0, |event| event.epoch));
        let inner = Inner { head, epoch, above, behind };
        Ok(LeaderStatus { journal, inventory, inner: Arc::new(Mutex::new(inner)) })
    }

    /// The next epoch must be above this one.
    pub fn above(&self) -> u64 {
        self.inner.lock().above
    }

    /// This controller is the leader with this epoch.
    pub fn took_leadership(&self, epoch: u64) {
        let mut inner = self.inner.lock();
        inner.epoch = epoch;
        if let Some(head) = &mut inner.head {
            head.epoch = epoch;
        }
    }

    /// These records are durable.
    pub fn recorded(&self, records: &[Record]) {
        let (Some(first), Some(last)) = (records.first(), records.last()) else { return };
        let mut inner = self.inner.lock();
        let epoch = inner.epoch;
        let begins = || JournalHead { journal_id: name(&first.hash), generation: 0, seq: 0, epoch };
        inner.head.get_or_insert_with(begins).seq = last.seq;
    }

    /// How far the journal is, for the hosts; `None` while it is behind: hosts must not remember what such a
    /// controller records.
    pub fn head(&self) -> Option<JournalHead> {
        let inner = self.inner.lock();
        inner.head.clone().filter(|_| inner.behind.is_none() || sabotage::on(Sabotage::BehindActs))
    }

    /// Why this controller does nothing irreversible; `None` if it may act.
    pub fn behind(&self) -> Option<ControllerBehind> {
        self.inner.lock().behind.clone()
    }

    /// Checked before every irreversible act.
    ///
    /// # Errors
    /// `SYS.1005` if a host has heard of more than this journal has, with the remedy.
    pub fn may_act(&self) -> Result<()> {
        match &self.inner.lock().behind {
            Some(behind) if !sabotage::on(Sabotage::BehindActs) => {
                Err(ErrorCode::new(Code::CHANGE_STATE, behind.to_string()))
            }
            _ => Ok(()),
        }
    }

    /// Compares what a host has heard with the journal. Returns the event to record when the journal is found behind
    /// for the first time.
    pub async fn heard(&self, host: HostId, witness: &JournalHead) -> Option<ControllerBehind> {
        if !self.misses(witness) {
            return None;
        }
        // Another controller on the same disk may have written: a stale leader. Then the records are here.
        if let Ok(Some((_, seq))) = self.journal.ends().await
            && let Some(head) = &mut self.inner.lock().head
        {
            head.seq = seq.max(head.seq);
        }
        if !self.misses(witness) {
            return None;
        }
        let mut inner = self.inner.lock();
        let head = inner.head.clone().filter(|_| inner.behind.is_none())?;
        let name = self.inventory.now().host(host).map_or_else(|_| host.to_string(), |host| host.name.clone());
        let behind = ControllerBehind { host_uuid: host, host: name, witness: witness.clone(), head };
        inner.behind = Some(behind.clone());
        tracing::error!("{behind}");
        metrics::gauge!("ringfence_controller_behind").set(1.0);
        Some(behind)
    }

    fn misses(&self, witness: &JournalHead) -> bool {
        self.inner.lock().head.as_ref().is_some_and(|head| head.is_behind(witness))
    }
}

/// Name of a journal: the hash of its first record.
fn name(first: &str) -> String {
    // A journal in memory has no hashes.
    if first.is_empty() { "unhashed".to_owned() } else { first.to_owned() }
}
