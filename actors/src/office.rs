//! Whether this controller may act: it may not while its journal is behind what a host has heard of it (design: I4, K7).
//!
//! Purpose: a journal restored from a backup says that VMs do not run that do, and its epoch is taken for a new one. Each host is
//! told with every ping and every order how far the journal was, and says the furthest that it knows. Invariants: nothing that
//! cannot be undone follows once a host knows more; who is behind stays so until it is started with `--restored`; only durable
//! records are told of. The two gates are the audit (no intent) and the hosts' actors (no act).
//! Rejected: going on by oneself once all hosts were asked. Two controllers on copies of one journal would each do so.

use std::{sync::Arc, time::Duration};

use futures_util::{StreamExt, join, stream};
use parking_lot::Mutex;
use ringfence::Bus;
use ringfence_messages::{
    Code, ErrorCode, Event, HostId, Result,
    audit::ControllerStarted,
    host::HostPingReply,
    journal::{ControllerBehind, ControllerRestored, JournalHead},
};
use uuid::Uuid;

use crate::{
    audit::Recorder,
    fence::PERMIT_VALIDITY,
    inventory::Catalog,
    ports::{Call, JournalPort, NewRecord, Ports, Record},
    sabotage::{self, Sabotage},
};

/// How long a host may take to say what it has heard, before a restored journal is gone on from. Too low: one that is slow is
/// not heard. Too high: hosts that are off delay the start.
pub const WITNESS_TIMEOUT: Duration = Duration::from_secs(3);

/// Hosts that are asked at once. Too low: a thousand hosts take long. Too high: as many sockets.
const WITNESSES_AT_ONCE: usize = 100;

/// Where this controller stands; a handle that all who may have to refuse hold.
#[derive(Clone)]
pub struct Standing {
    journal: Arc<dyn JournalPort>,
    catalog: Catalog,
    recorder: Recorder,
    inner: Arc<Mutex<Inner>>,
}

struct Inner {
    /// `None` before the first record of a new journal.
    head: Option<JournalHead>,
    epoch: u64,
    above: u64,
    restored: bool,
    behind: Option<ControllerBehind>,
}

impl Standing {
    /// Reads how far the journal is.
    ///
    /// # Errors
    /// `SYS.1016` if it cannot be read.
    pub async fn open(bus: Bus, catalog: Catalog, journal: Arc<dyn JournalPort>) -> Result<Standing> {
        let asked = join!(journal.latest(ControllerRestored::TOPIC), journal.latest(ControllerStarted::TOPIC));
        let (restored, started) = (asked.0?.pop(), asked.1?.pop());
        let epoch = started.as_ref().map(Record::event::<ControllerStarted>).transpose()?.map_or(0, |of| of.epoch);
        let fresh = restored.as_ref().map_or(0, |of| of.seq) > started.map_or(0, |of| of.seq);
        let restored = restored.map(|of| of.event::<ControllerRestored>()).transpose()?;
        let head = journal.ends().await?.map(|(first, seq)| {
            let (journal_id, generation) = match &restored {
                Some(restored) => (restored.journal_id.clone(), restored.generation),
                None => (name(&first), 0),
            };
            JournalHead { journal_id, generation, seq, epoch }
        });
        metrics::gauge!("ringfence_controller_behind").set(0.0);
        let above = epoch.max(restored.map_or(0, |of| of.epoch));
        let inner = Inner { head, epoch, above, restored: fresh, behind: None };
        Ok(Standing { journal, catalog, recorder: Recorder::new(bus), inner: Arc::new(Mutex::new(inner)) })
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

    /// How far the journal is, to be told to hosts.
    pub fn head(&self) -> Option<JournalHead> {
        self.inner.lock().head.clone()
    }

    /// Whether this is the first start on a journal that was declared restored: nothing that it says of places is whole.
    pub fn restored(&self) -> bool {
        self.inner.lock().restored
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

    /// A host said what it has heard.
    pub async fn heard(&self, host: HostId, witness: &JournalHead) {
        if !self.misses(witness) {
            return;
        }
        // Others may have written: a controller that was deposed meanwhile, on a disk that both see. Then it is here.
        if let Ok(Some((_, seq))) = self.journal.ends().await
            && let Some(head) = &mut self.inner.lock().head
        {
            head.seq = seq.max(head.seq);
        }
        if !self.misses(witness) {
            return;
        }
        let behind = {
            let mut inner = self.inner.lock();
            let Some(head) = inner.head.clone().filter(|_| inner.behind.is_none()) else { return };
            let name = self.catalog.now().host(host).map_or_else(|_| host.to_string(), |of| of.name.clone());
            let behind = ControllerBehind { host_uuid: host, host: name, witness: witness.clone(), head };
            inner.behind = Some(behind.clone());
            behind
        };
        tracing::error!("{behind}");
        metrics::gauge!("ringfence_controller_behind").set(1.0);
        // It waits for the disk if it has to; it stands in the log in any case.
        let _ = self.recorder.fact(behind).await;
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

/// Declares that the work goes on from this journal: hosts are asked what they have heard, then what is on its way of the former
/// controller's orders may come to its end, then it is recorded. To be called before [`Assembly::start`].
///
/// [`Assembly::start`]: crate::assembly::Assembly::start
///
/// # Errors
/// `SYS.1016` if the journal cannot be read or written.
pub async fn restore(ports: &Ports, hosts: Vec<(HostId, String)>) -> Result<ControllerRestored> {
    let ask = |(host, name): (HostId, String)| async move {
        match ports.agents.ping(host, None, Call::within(WITNESS_TIMEOUT)).await {
            Ok(HostPingReply { host_uuid, witness, .. }) if host_uuid == host => Ok(witness),
            _ => Err(name),
        }
    };
    let answers: Vec<_> = stream::iter(hosts).map(ask).buffered(WITNESSES_AT_ONCE).collect().await;
    let silent: Vec<String> = answers.iter().filter_map(|answer| answer.clone().err()).collect();
    let heard = u32::try_from(answers.len() - silent.len()).unwrap_or(u32::MAX);
    let witnesses: Vec<JournalHead> = answers.into_iter().flatten().flatten().collect();
    let own = ports.journal.latest(ControllerRestored::TOPIC).await?.pop();
    let own = own.map(|of| of.event::<ControllerRestored>()).transpose()?.map_or(0, |of| of.generation);
    let restored = ControllerRestored {
        journal_id: Uuid::new_v4().to_string(),
        generation: witnesses.iter().map(|of| of.generation).fold(own, u64::max) + 1,
        epoch: witnesses.iter().map(|of| of.epoch).max().unwrap_or_default(),
        witness: witnesses.into_iter().max_by_key(|of| (of.generation, of.epoch, of.seq)),
        heard,
        silent,
    };
    // Nobody remembers the orders of the records that are missing. No host obeys one after its permit's time.
    tokio::time::sleep(PERMIT_VALIDITY).await;
    let payload = serde_json::to_value(&restored).map_err(|e| ErrorCode::new(Code::INTERNAL, e.to_string()))?;
    let (topic, subject) = (ControllerRestored::TOPIC.to_owned(), restored.subject());
    ports.journal.append(vec![NewRecord { topic, subject, payload, waited: Duration::ZERO }]).await?;
    Ok(restored)
}
