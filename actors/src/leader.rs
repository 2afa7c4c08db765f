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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{inventory::Inventory, ports::NewRecord, testkit::FakeWorld};

    async fn append<E: Event>(fake: &FakeWorld, event: E) -> Vec<Record> {
        fake.journal.append(vec![NewRecord::of(&event).unwrap()]).await.unwrap()
    }

    async fn open(fake: &FakeWorld) -> LeaderStatus {
        LeaderStatus::open(SharedInventory::new(Inventory::default()), fake.journal.clone()).await.unwrap()
    }

    fn started(epoch: u64) -> ControllerStarted {
        ControllerStarted { epoch, version: "1".to_owned() }
    }

    fn restored(generation: u64, epoch: u64) -> ControllerRestored {
        let (journal_id, witness, silent) = ("restored".to_owned(), None, Vec::new());
        ControllerRestored { journal_id, generation, epoch, witness, heard: 0, silent }
    }

    fn head(journal_id: &str, generation: u64, seq: u64, epoch: u64) -> JournalHead {
        JournalHead { journal_id: journal_id.to_owned(), generation, seq, epoch }
    }

    fn host() -> HostId {
        HostId::from_name("a")
    }

    #[tokio::test]
    async fn witness_of_a_missing_record_forbids_every_act() {
        let fake = FakeWorld::new([]);
        append(&fake, started(3)).await;
        let status = open(&fake).await;
        status.took_leadership(4);
        let known = head("unhashed", 0, 1, 4);
        assert_eq!((status.head(), status.behind(), status.may_act()), (Some(known.clone()), None, Ok(())));
        assert_eq!(status.heard(host(), &known).await, None, "the host knows no more than the journal");
        assert!(status.may_act().is_ok());

        let further = head("unhashed", 0, 9, 4);
        let behind = status.heard(host(), &further).await.unwrap();
        assert_eq!((behind.host_uuid, &behind.witness, &behind.head), (host(), &further, &known));
        assert_eq!((status.head(), status.behind()), (None, Some(behind)), "hosts must not remember its head");
        assert!(status.may_act().unwrap_err().is(&Code::CHANGE_STATE));
        assert_eq!(status.heard(host(), &further).await, None, "recorded once");
        assert!(status.may_act().is_err());
    }

    /// Another controller wrote to the same journal before it lost its leadership.
    #[tokio::test]
    async fn record_of_another_controller_on_this_disk_is_not_missing() {
        let fake = FakeWorld::new([]);
        append(&fake, started(3)).await;
        let status = open(&fake).await;
        append(&fake, started(3)).await;
        assert_eq!(status.heard(host(), &head("unhashed", 0, 2, 3)).await, None);
        assert_eq!((status.head(), status.may_act()), (Some(head("unhashed", 0, 2, 3)), Ok(())));
    }

    #[tokio::test]
    async fn journal_stays_behind_until_it_is_declared_restored() {
        let fake = FakeWorld::new([]);
        append(&fake, started(3)).await;
        let behind = || ControllerBehind {
            host_uuid: host(),
            host: "a".to_owned(),
            witness: head("unhashed", 0, 9, 3),
            head: head("unhashed", 0, 1, 3),
        };
        append(&fake, behind()).await;
        let status = open(&fake).await;
        assert_eq!((status.may_act().is_err(), status.head()), (true, None));
        append(&fake, restored(1, 17)).await;
        let status = open(&fake).await;
        assert_eq!((status.may_act(), status.head()), (Ok(()), Some(head("restored", 1, 3, 3))));
        append(&fake, behind()).await;
        assert!(open(&fake).await.may_act().is_err(), "behind again");
    }

    #[tokio::test]
    async fn next_epoch_is_above_those_of_the_journal_and_of_all_witnesses() {
        let fake = FakeWorld::new([]);
        assert_eq!(open(&fake).await.above(), 0);
        append(&fake, started(5)).await;
        assert_eq!(open(&fake).await.above(), 5);
        append(&fake, restored(1, 17)).await;
        assert_eq!(open(&fake).await.above(), 17);
        append(&fake, started(18)).await;
        assert_eq!(open(&fake).await.above(), 18);
    }

    #[tokio::test]
    async fn first_record_identifies_a_new_journal() {
        let fake = FakeWorld::new([]);
        let status = open(&fake).await;
        status.took_leadership(4);
        assert_eq!((status.head(), status.heard(host(), &head("former", 0, 9, 9)).await), (None, None));
        let mut records = append(&fake, started(4)).await;
        records[0].hash = "5f1b".to_owned();
        status.recorded(&records);
        assert_eq!(status.head(), Some(head("5f1b", 0, 1, 4)));
        let [next, last] = [append(&fake, started(4)).await, append(&fake, started(4)).await];
        status.recorded(&[next, last].concat());
        assert_eq!(status.head(), Some(head("5f1b", 0, 3, 4)));
    }
}
