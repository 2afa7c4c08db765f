//! The topics of the journal: whoever names topics in a file is told at once when nothing ever has such a topic.

use crate::{
    Event,
    audit::ControllerStarted,
    ceph::StorageFenceChanged,
    fence::{FenceIntended, SiblingFenceAudited},
    ha::{
        HostConfirmedFenced, HostDrained, HostFailed, HostQuarantineChanged, HostSuspected, StormBrakeChanged,
        VmHaBlocked, VmHaStarted, VmMoveChanged,
    },
    host::{HostStateChanged, HostStatusChanged},
    journal::{ControllerBehind, ControllerRestored},
    recovery::{BestEffortStepFailed, ProtocolRedeploy},
    storage::{ProtocolStatusChanged, StorageHostStatusChanged},
    vm::VmStateChanged,
};

/// Every topic that a record of the journal may have. `journal.recorded` is not among them: it tells of a record.
pub const RECORDED: [&str; 22] = [
    ControllerStarted::TOPIC,
    ControllerBehind::TOPIC,
    ControllerRestored::TOPIC,
    StorageFenceChanged::TOPIC,
    FenceIntended::TOPIC,
    SiblingFenceAudited::TOPIC,
    HostSuspected::TOPIC,
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
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::EventRecorded;

    #[test]
    fn every_event_is_listed() {
        let mut declared = Vec::new();
        for entry in std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/src")).unwrap() {
            let text = std::fs::read_to_string(entry.unwrap().path()).unwrap();
            for line in text.lines().filter(|line| line.starts_with("event!(")) {
                declared.push(line.split('"').nth(1).unwrap().to_owned());
            }
        }
        declared.retain(|topic| topic != EventRecorded::TOPIC);
        declared.sort();
        let mut listed = RECORDED.to_vec();
        listed.sort();
        assert_eq!(declared, listed);
    }
}
