//! What actors read from the journal before they may act.

use std::{
    collections::{BTreeSet, HashMap},
    time::Duration,
};

use ringfence_messages::{
    Code, ErrorCode, Event as _, HostId, Result,
    ceph::StorageFenceChanged,
    evidence::Machine,
    ha::{HostConfirmedFenced, HostQuarantineChanged},
    host::{HostIdentified, HostStatus, HostStatusChanged},
    journal::ControllerRestored,
};

use crate::{
    ports::{JournalPort, Record},
    sabotage::{self, Sabotage},
};

/// Wait between attempts to read the journal at the start. Too low: a broken disk is hammered. Too high: a controller
/// stays idle.
pub(crate) const REPLAY_RETRY: Duration = Duration::from_secs(1);

/// The error until the journal is read.
pub(crate) fn not_ready() -> ErrorCode {
    ErrorCode::new(Code::NOT_READY, "the controller is still reading the journal; retry in a moment")
}

/// The hosts in quarantine: sequence number of the record, and the reason.
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

/// Reason of a quarantine that begins because of [`rejected`].
pub(crate) const REJECTED: &str = "a storage rejects it without a record";

/// The hosts that a storage rejects, or may reject. They are quarantined before they return to service (K13).
pub(crate) async fn rejected(journal: &dyn JournalPort) -> Result<BTreeSet<HostId>> {
    let mut rejected = BTreeSet::new();
    for record in journal.latest(StorageFenceChanged::TOPIC).await? {
        let event: StorageFenceChanged = record.event()?;
        rejected.extend(event.phase.is_kept().then_some(event.host_uuid));
    }
    Ok(rejected)
}

/// The record since which the journal is complete; 0 if it always was. Before a restore from a backup later records
/// may be missing, such as one of a return to service (K7).
pub(crate) async fn whole_since(journal: &dyn JournalPort) -> Result<u64> {
    let restored = journal.latest(ControllerRestored::TOPIC).await?.pop();
    Ok(restored.filter(|_| !sabotage::on(Sabotage::BackupBelieved)).map_or(0, |record| record.seq))
}

/// The machines of all hosts at their last answers.
pub(crate) struct Machines(HashMap<HostId, Machine>);

impl Machines {
    /// Reads them once for all hosts: the journal has a record for each host of the inventory.
    pub(crate) async fn read(journal: &dyn JournalPort) -> Result<Machines> {
        let records = journal.latest(HostIdentified::TOPIC).await?;
        let events = records.iter().map(|record| record.event::<HostIdentified>());
        Ok(Machines(events.map(|event| event.map(|event| (event.host_uuid, event.machine))).collect::<Result<_>>()?))
    }

    /// The machine of a host: unknown if it never answered, or if another host answered as the same machine, so that
    /// the two cannot be told apart (K1).
    pub(crate) fn of(&self, host: HostId) -> Machine {
        let Some(machine) = self.0.get(&host) else { return Machine::default() };
        let is_shared = self.0.iter().any(|(other, of)| *other != host && of.is(machine));
        if is_shared { Machine::default() } else { machine.clone() }
    }
}

/// Name of the operator who attested that this host is off, if the attestation holds: it is valid for one outage, so
/// any answer of the host ends it (K9).
pub(crate) async fn attested_off(journal: &dyn JournalPort, host: &str) -> Result<Option<String>> {
    let Some(record) = journal.latest_of(HostConfirmedFenced::TOPIC, host).await? else { return Ok(None) };
    let event: HostConfirmedFenced = record.event()?;
    let status = journal.latest_of(HostStatusChanged::TOPIC, host).await?;
    let holds = holds(&event, record.seq, whole_since(journal).await?, status.as_ref());
    Ok(holds.then_some(event.by))
}

/// Whether an attestation holds, given the newest change of the host's status.
pub(crate) fn holds(attestation: &HostConfirmedFenced, seq: u64, whole_since: u64, status: Option<&Record>) -> bool {
    attestation.confirmed && seq > whole_since && !answered_since(seq, status)
}

/// Whether a host answered after this record: its newest change of status is younger and is not Disconnected.
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
        fake.journal.append(vec![NewRecord::of(&event).unwrap()]).await.unwrap();
    }

    /// K1: of two hosts that answered as one machine, neither is known.
    #[tokio::test]
    async fn machine_that_two_hosts_share_is_unknown() {
        let fake = FakeWorld::new([]);
        let [a, b, c] = ["a", "b", "c"].map(HostId::from_name);
        let machine = |id: &str| Machine { machine_id: id.to_owned(), boot_id: "boot".to_owned() };
        for (host_uuid, name, of) in [(a, "a", "m1"), (b, "b", "m2"), (c, "c", "m2")] {
            append(&fake, HostIdentified { host_uuid, host: name.to_owned(), machine: machine(of) }).await;
        }
        let machines = Machines::read(&*fake.journal).await.unwrap();
        assert_eq!((machines.of(a), machines.of(b)), (machine("m1"), Machine::default()));
        assert_eq!(machines.of(HostId::from_name("never answered")), Machine::default());
    }

    /// K7: after the backup the host may have returned and failed again.
    #[tokio::test]
    async fn attestation_from_before_a_restore_is_void() {
        let fake = FakeWorld::new([]);
        let attested = || HostConfirmedFenced {
            host_uuid: HostId::from_name("a"),
            host: "a".to_owned(),
            confirmed: true,
            by: "eve".to_owned(),
        };
        append(&fake, attested()).await;
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
        append(&fake, attested()).await;
        assert_eq!(attested_off(&*fake.journal, "a").await, Ok(Some("eve".to_owned())), "attested again");
    }
}
