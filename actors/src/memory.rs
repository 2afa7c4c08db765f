//! What actors have in common that read the journal before they may do anything.

use std::{collections::HashMap, time::Duration};

use ringfence_messages::{
    Code, ErrorCode, Event as _, HostId, Result,
    ha::{HostConfirmedFenced, HostQuarantineChanged},
};

use crate::ports::JournalPort;

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

/// Who attested that a host of this name is off, if that still holds.
pub(crate) async fn attested_off(journal: &dyn JournalPort, host: &str) -> Result<Option<String>> {
    let Some(record) = journal.latest_of(HostConfirmedFenced::TOPIC, host).await? else { return Ok(None) };
    let event: HostConfirmedFenced = record.event()?;
    Ok(event.confirmed.then_some(event.by))
}
