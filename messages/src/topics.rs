//! The topics of the journal. A config with an unknown topic is rejected when it is read.

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
    inventory::InventoryChanged,
    journal::{ControllerBehind, ControllerRestored},
    recovery::{BestEffortStepFailed, ProtocolRedeploy},
    storage::{ProtocolStatusChanged, StorageHostStatusChanged},
    vm::{VmIntruder, VmStateChanged},
};

/// Every topic that a record of the journal may have. `journal.recorded` and `host.suspected` are published only: the
/// first one reports a record, the second one is a hint between actors.
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
    InventoryChanged::TOPIC,
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{audit::EventRecorded, ha::HostSuspected};

    #[test]
    fn every_recorded_event_is_listed() {
        let mut declared = Vec::new();
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
