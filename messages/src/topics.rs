//! The topics of the journal: whoever names topics in a file is told at once when nothing ever has such a topic.

use crate::{
    Event,
    audit::ControllerStarted,
    ceph::StorageFenceChanged,
    fence::{FenceIntended, SiblingFenceAudited},
    ha::{
        HostConfirmedFenced, HostDrained, HostFailed, HostQuarantineChanged, StormBrakeChanged, VmHaBlocked,
        VmHaStarted, VmMoveChanged,
    },
    host::{HostIdentified, HostStateChanged, HostStatusChanged},
    journal::{ControllerBehind, ControllerRestored},
    recovery::{BestEffortStepFailed, ProtocolRedeploy},
    storage::{ProtocolStatusChanged, StorageHostStatusChanged},
    vm::{VmIntruder, VmStateChanged},
};

/// Every topic that a record of the journal may have. `journal.recorded` and `host.suspected` are not among them: the one tells of
/// a record, the other is a hint from one actor to another.
pub const RECORDED: [&str; 24] = [
    ControllerStarted::TOPIC,
    ControllerBehind::TOPIC,
    ControllerRestored::TOPIC,
    StorageFenceChanged::TOPIC,
    FenceIntended::TOPIC,
    SiblingFenceAudited::TOPIC,
    HostFailed::TOPIC,
    HostQuarantineChanged::TOPIC,
    HostConfirmedFenced::TOPIC,
    StormBrakeChanged::TOPIC,
    VmHaStarted::TOPIC,
    VmHaBlocked::TOPIC,
    VmMoveChanged::TOPIC,
    HostDrained::TOPIC,
    HostStatusChanged::TOPIC,
    HostStateChanged::TOPIC,
    ProtocolRedeploy::TOPIC,
    BestEffortStepFailed::TOPIC,
    StorageHostStatusChanged::TOPIC,
    ProtocolStatusChanged::TOPIC,
    VmStateChanged::TOPIC,
    VmIntruder::TOPIC,
    HostIdentified::TOPIC,
    INVENTORY_CHANGED,
];

/// The inventory is another; the event belongs to who changes it.
pub const INVENTORY_CHANGED: &str = "inventory.changed";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{audit::EventRecorded, ha::HostSuspected};

    /// Every event that is declared here, and that of the inventory in `ringfence-actors`.
    #[test]
    fn every_event_that_is_recorded_is_listed() {
        let mut declared = vec![INVENTORY_CHANGED.to_owned()];
        for entry in std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/src")).unwrap() {
            let text = std::fs::read_to_string(entry.unwrap().path()).unwrap();
            for line in text.lines().filter(|line| line.starts_with("event!(")) {
                declared.push(line.split('"').nth(1).unwrap().to_owned());
            }
        }
        declared.retain(|topic| ![EventRecorded::TOPIC, HostSuspected::TOPIC].contains(&topic.as_str()));
        declared.sort();
        let mut listed = RECORDED.to_vec();
        listed.sort();
        assert_eq!(declared, listed);
    }
}
