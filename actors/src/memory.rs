//! What actors have in common that read the journal before they may do anything.

use std::{collections::HashMap, time::Duration};

use ringfence_messages::{
    Code, ErrorCode, Event as _, HostId, Result,
    evidence::Machine,
    ha::{HostConfirmedFenced, HostQuarantineChanged},
    host::{HostIdentified, HostStatus, HostStatusChanged},
    journal::ControllerRestored,
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

/// The hosts in quarantine: since which record, and why.
pub(crate) async fn quarantined(journal: &dyn JournalPort) -> Result<HashMap<HostId, (u64, String)>> {
    let mut quarantined = HashMap::new();
    for record in journal.latest(HostQuarantineChanged::TOPIC).await? {
        let event: HostQuarantineChanged = record.event()?;
        if event.quarantined {
            quarantined.insert(event.host_uuid, (record.seq, event.reason));
        }
    }
    Ok(quarantined)
}

/// The record since which the journal is whole; 0 if it always was. Of one that was restored from a backup the records before may
/// lack what became of them: that a host came back, for one (K7).
pub(crate) async fn whole_since(journal: &dyn JournalPort) -> Result<u64> {
    let restored = journal.latest(ControllerRestored::TOPIC).await?.pop();
    Ok(restored.filter(|_| !sabotage::on(Sabotage::BackupBelieved)).map_or(0, |record| record.seq))
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
    let status = journal.latest_of(HostStatusChanged::TOPIC, host).await?;
    let holds = holds(&event, record.seq, whole_since(journal).await?, status.as_ref());
    Ok(holds.then_some(event.by))
}

/// Whether a human's word of this record still holds, by the host's newest change of status.
pub(crate) fn holds(word: &HostConfirmedFenced, seq: u64, whole_since: u64, status: Option<&Record>) -> bool {
    word.confirmed && seq > whole_since && !answered_since(seq, status)
}

/// Whether a host answered after this record: its newest change of status is younger, and says so.
pub(crate) fn answered_since(seq: u64, status: Option<&Record>) -> bool {
    let younger = status.filter(|record| record.seq > seq && !sabotage::on(Sabotage::AttestationStays));
    younger.is_some_and(|record| {
        record.event::<HostStatusChanged>().is_ok_and(|event| event.new_status != HostStatus::Disconnected)
    })
}

#[cfg(test)]
mod tests {
    use ringfence_messages::Event;

    use super::*;
    use crate::{ports::NewRecord, testkit::FakeWorld};

    async fn append<E: Event>(fake: &FakeWorld, event: E) {
        let (topic, subject) = (E::TOPIC.to_owned(), event.subject());
        let payload = serde_json::to_value(&event).unwrap();
        let record = NewRecord { topic, subject, payload, waited: Duration::ZERO };
        fake.journal.append(vec![record]).await.unwrap();
    }

    /// K7: since the backup the host may have come back, and failed again.
    #[tokio::test]
    async fn a_word_from_before_the_journal_was_restored_is_no_word() {
        let fake = FakeWorld::new([]);
        let word = || HostConfirmedFenced {
            host_uuid: HostId::from_name("a"),
            host: "a".to_owned(),
            confirmed: true,
            by: "eve".to_owned(),
        };
        append(&fake, word()).await;
        assert_eq!(attested_off(&*fake.journal, "a").await, Ok(Some("eve".to_owned())));
        let restored = ControllerRestored {
            journal_id: "restored".to_owned(),
            generation: 1,
            epoch: 1,
            witness: None,
            heard: 0,
            silent: Vec::new(),
        };
        append(&fake, restored).await;
        assert_eq!(attested_off(&*fake.journal, "a").await, Ok(None));
        append(&fake, word()).await;
        assert_eq!(attested_off(&*fake.journal, "a").await, Ok(Some("eve".to_owned())), "said anew");
    }
}
