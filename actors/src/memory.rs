//! What actors have in common that read the journal before they may do anything.

use std::{collections::HashMap, time::Duration};

use ringfence_messages::{
    Code, ErrorCode, Event as _, HostId, Result,
    evidence::Machine,
    ha::{HostConfirmedFenced, HostQuarantineChanged},
    host::{HostIdentified, HostStatus, HostStatusChanged},
};

use crate::{
    ports::{JournalPort, Record},
    sabotage::{self, Sabotage},
};

/// Between tries to read the journal at the start. Too low: a broken disk is hammered. Too high: a controller stays idle.
pub(crate) const MEMORY_RETRY: Duration = Duration::from_secs(1);

/// What such an actor answers until then.
pub(crate) fn not_ready() -> ErrorCode {
    ErrorCode::new(Code::NOT_READY, "the journal is still being read: try again in a moment")
}

/// The hosts in quarantine, and why they are.
pub(crate) async fn quarantined(journal: &dyn JournalPort) -> Result<HashMap<HostId, String>> {
    let mut quarantined = HashMap::new();
    for record in journal.latest(HostQuarantineChanged::TOPIC).await? {
        let event: HostQuarantineChanged = record.event()?;
        if event.quarantined {
            quarantined.insert(event.host_uuid, event.reason);
        }
    }
    Ok(quarantined)
}

/// The machine that a host was when it last answered: unknown if it never did, or if another host answered as the same
/// machine, so that one cannot be told from the other (K1).
pub(crate) async fn machine(journal: &dyn JournalPort, host: HostId) -> Result<Machine> {
    let (mut is, mut others) = (Machine::default(), Vec::new());
    for record in journal.latest(HostIdentified::TOPIC).await? {
        let event: HostIdentified = record.event()?;
        if event.host_uuid == host { is = event.machine } else { others.push(event.machine) }
    }
    Ok(if others.iter().any(|other| other.is(&is)) { Machine::default() } else { is })
}

/// Who attested that a host of this name is off, if that still holds: it holds for one outage, so that any answer of the
/// host ends it (K9).
pub(crate) async fn attested_off(journal: &dyn JournalPort, host: &str) -> Result<Option<String>> {
    let Some(record) = journal.latest_of(HostConfirmedFenced::TOPIC, host).await? else { return Ok(None) };
    let event: HostConfirmedFenced = record.event()?;
    if !event.confirmed {
        return Ok(None);
    }
    let status = journal.latest_of(HostStatusChanged::TOPIC, host).await?;
    Ok(Some(event.by).filter(|_| !answered_since(record.seq, status.as_ref())))
}

/// Whether a host answered after this record: its newest change of status is younger, and says so.
pub(crate) fn answered_since(seq: u64, status: Option<&Record>) -> bool {
    let younger = status.filter(|record| record.seq > seq && !sabotage::on(Sabotage::AttestationStays));
    younger.is_some_and(|record| {
        record.event::<HostStatusChanged>().is_ok_and(|event| event.new_status != HostStatus::Disconnected)
    })
}
