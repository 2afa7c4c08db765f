//! Whether this controller may act: it may not while its journal is behind what a host has heard of it (design: I4, K7).
//!
//! Purpose: a journal restored from a backup says that VMs do not run that do, and its epoch is taken for a new one. Each host is
//! told with every ping and every order how far the journal was, and says the furthest that it knows. Invariants: nothing that
//! cannot be undone follows once a host knows more; who is behind stays so until it is started with `--restored`; only durable
//! records are told of. The two gates are the audit (no intent) and the hosts' actors (no act).
//! Rejected: going on by oneself once all hosts were asked. Two controllers on copies of one journal would each do so.

use std::sync::Arc;

use futures_util::join;
use parking_lot::Mutex;
use ringfence_messages::{
    Code, ErrorCode, Event, HostId, Result,
    audit::ControllerStarted,
    journal::{ControllerBehind, ControllerRestored, JournalHead},
};

use crate::{
    inventory::Catalog,
    ports::{JournalPort, Record},
    sabotage::{self, Sabotage},
};

/// Where this controller stands; a handle that all who may have to refuse hold.
#[derive(Clone)]
pub struct Standing {
    journal: Arc<dyn JournalPort>,
    catalog: Catalog,
    inner: Arc<Mutex<Inner>>,
}

struct Inner {
    /// `None` before the first record of a new journal.
    head: Option<JournalHead>,
    epoch: u64,
    above: u64,
    behind: Option<ControllerBehind>,
}

impl Standing {
    /// Reads how far the journal is.
    ///
    /// # Errors
    /// `SYS.1016` if it cannot be read.
    pub async fn open(catalog: Catalog, journal: Arc<dyn JournalPort>) -> Result<Standing> {
        let asked = join!(journal.latest(ControllerRestored::TOPIC), journal.latest(ControllerStarted::TOPIC));
        let (restored, started) = (asked.0?.pop(), asked.1?.pop());
        let epoch = started.as_ref().map(Record::event::<ControllerStarted>).transpose()?.map_or(0, |of| of.epoch);
        // Its own records have outgrown what hosts have heard since: a restart does not make it whole.
        let behind = journal.latest(ControllerBehind::TOPIC).await?.pop();
        let behind = behind.filter(|of| of.seq > restored.as_ref().map_or(0, |restored| restored.seq));
        let behind = behind.map(|of| of.event::<ControllerBehind>()).transpose()?;
        let restored = restored.map(|of| of.event::<ControllerRestored>()).transpose()?;
        let head = journal.ends().await?.map(|(first, seq)| {
            let (journal_id, generation) = match &restored {
                Some(restored) => (restored.journal_id.clone(), restored.generation),
                None => (name(&first), 0),
            };
            JournalHead { journal_id, generation, seq, epoch }
        });
        metrics::gauge!("ringfence_controller_behind").set(if behind.is_some() { 1.0 } else { 0.0 });
        let above = epoch.max(restored.map_or(0, |of| of.epoch));
        let inner = Inner { head, epoch, above, behind };
        Ok(Standing { journal, catalog, inner: Arc::new(Mutex::new(inner)) })
    }

    /// The next term of office has to be above this one.
    pub fn above(&self) -> u64 {
        self.inner.lock().above
    }

    /// The term of office that was taken.
    pub fn took_office(&self, epoch: u64) {
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

    /// How far the journal is, to be told to hosts; `None` while it is behind: what such a controller goes on to record
    /// is not what hosts are to remember.
    pub fn head(&self) -> Option<JournalHead> {
        let inner = self.inner.lock();
        inner.head.clone().filter(|_| inner.behind.is_none() || sabotage::on(Sabotage::BehindActs))
    }

    /// Why this controller does nothing that cannot be undone, if so.
    pub fn behind(&self) -> Option<ControllerBehind> {
        self.inner.lock().behind.clone()
    }

    /// Asked before everything that cannot be undone.
    ///
    /// # Errors
    /// `SYS.1005` if a host has heard of more than this journal knows, with the fix.
    pub fn may_act(&self) -> Result<()> {
        match &self.inner.lock().behind {
            Some(behind) if !sabotage::on(Sabotage::BehindActs) => {
                Err(ErrorCode::new(Code::CHANGE_STATE, behind.to_string()))
            }
            _ => Ok(()),
        }
    }

    /// A host said what it has heard. The first time that it is more than the journal knows, that has to be recorded.
    pub async fn heard(&self, host: HostId, witness: &JournalHead) -> Option<ControllerBehind> {
        if !self.misses(witness) {
            return None;
        }
        // Others may have written: a controller that was deposed meanwhile, on a disk that both see. Then it is here.
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
        let name = self.catalog.now().host(host).map_or_else(|_| host.to_string(), |of| of.name.clone());
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

/// What names a journal by the hash of its first record.
fn name(first: &str) -> String {
    // A journal of memory has no hashes.
    if first.is_empty() { "unhashed".to_owned() } else { first.to_owned() }
}
