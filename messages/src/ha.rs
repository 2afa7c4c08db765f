//! High availability: which hosts failed, where VMs go, and what is published about it.

use serde::{Deserialize, Serialize};

use crate::{ClusterId, HostId, Lane, VmId, agent::Done, agent_command, event, message};

/// Asks for a VM to be started again after its host failed. The VM's actor answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HaStartVmInstanceMsg {
    /// The VM.
    pub vm_instance_uuid: VmId,
    /// Who decided that it is needed: one of `HostSilent`, `WatchersGone`, `QemuDied`, `Drain`, `Operator`.
    pub judger_class_name: String,
    /// Hosts to avoid where others will do.
    pub soft_avoid_host_uuids: Vec<HostId>,
    /// Where it is to be started; `None` lets the VM actor choose.
    pub host_uuid: Option<HostId>,
    /// Why, in plain words.
    pub ha_reason: String,
}
message!(HaStartVmInstanceMsg, 1 => HaStartVmInstanceReply);

/// Where the VM runs now; `None` if it was not needed any more.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HaStartVmInstanceReply {
    /// The host.
    pub host_uuid: Option<HostId>,
}

/// What an HA start of a VM would do now, and on which evidence. Nothing is changed by asking.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PlanHaStartMsg {
    /// The host it is wanted on; `None` lets the VM actor choose.
    pub host_uuid: Option<HostId>,
}
message!(PlanHaStartMsg, 1 => HaStartPlan);

/// The plan of an HA start.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct HaStartPlan {
    /// The VM's name.
    pub vm: String,
    /// Whether it could be tried. False: the last step says why not.
    pub feasible: bool,
    /// What is known, in plain words, each with where it came from.
    pub evidence: Vec<String>,
    /// What would be done, in order.
    pub steps: Vec<String>,
}

/// What draining a host would do now. Nothing is changed by asking.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PlanDrainMsg {
    /// The host.
    pub host_uuid: HostId,
}
message!(PlanDrainMsg, 1 => DrainPlan);

/// The plan of a drain.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct DrainPlan {
    /// The host's name.
    pub host: String,
    /// Whether every VM that is there can be moved or stopped. False: `vms` says which cannot, and why.
    pub feasible: bool,
    /// Each VM that runs or may run there, in the order in which they are moved.
    pub vms: Vec<DrainStep>,
}

/// What a drain would do with one VM.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct DrainStep {
    /// The VM's name.
    pub vm: String,
    /// The host on which it would be started; null if on none.
    pub target: Option<String>,
    /// What would be done with it, or why nothing can be, in plain words.
    pub what: String,
}

/// Has siblings look whether they reach a host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ScanHostMsg {
    /// The host that is looked for.
    pub host_uuid: HostId,
}
message!(ScanHostMsg, 1, Lane::Control => ScanHostReply);

/// Who reaches a host and who does not.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ScanHostReply {
    /// Siblings that something answered.
    pub seen_by: Vec<HostId>,
    /// Siblings that looked, and nothing answered.
    pub unseen_by: Vec<HostId>,
    /// What they saw, in plain words.
    pub reason: String,
}

/// The same question as a sibling's agent is asked it. A host that is hung takes connections and answers nothing, so
/// that something must speak: SSH's banner, or HTTP's first line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ScanHostCmd {
    /// The host.
    pub host_uuid: HostId,
    /// Its literal address.
    pub host_ip: String,
    /// Its SSH port.
    pub ssh_port: u16,
    /// Its agent's port.
    pub agent_port: u16,
}
agent_command!(ScanHostCmd, "/ha/scanhost" => ScanHostCmdReply);

/// What answered a sibling.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ScanHostCmdReply {
    /// SSH answered.
    pub ssh: bool,
    /// The agent answered.
    pub agent: bool,
    /// What happened, in plain words.
    pub reason: String,
}

/// Asks where a VM may be started, and where else it may be found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FindTargetMsg {
    /// The VM.
    pub vm_uuid: VmId,
    /// Its cluster.
    pub cluster_uuid: ClusterId,
    /// The memory it needs, in MiB.
    pub memory_mib: u64,
    /// The host that somebody named; `None` for the best.
    pub host_uuid: Option<HostId>,
    /// Where it ran last: taken again if it has room and is not to be avoided.
    pub last_host_uuid: Option<HostId>,
    /// Every host where it may run, the last one among them.
    pub place_host_uuids: Vec<HostId>,
    /// Hosts to avoid where others will do.
    pub soft_avoid_host_uuids: Vec<HostId>,
    /// Nothing is going to be started: no memory is put aside.
    pub dry_run: bool,
}
message!(FindTargetMsg, 2 => TargetReply);

/// Where a VM may be started.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TargetReply {
    /// There; `None` if nowhere.
    pub host_uuid: Option<HostId>,
    /// Hosts that take work but have no room, or do not say.
    pub full: u32,
    /// The hosts of those where it may run that cannot be asked: their last ping was not answered. One that is not pinged,
    /// being in maintenance or of another cluster, can be.
    pub silent_host_uuids: Vec<HostId>,
    /// Hosts of its cluster that cannot be asked, and were not heard since this controller took office: nothing but the
    /// watchers of its volumes can say that something did not start it there (I1).
    pub unheard_host_uuids: Vec<HostId>,
    /// Hosts that seemed to run it a moment ago.
    pub seen_host_uuids: Vec<HostId>,
}

/// Takes a host that does not answer out of service until it is reconciled; durable when answered. Idempotent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct QuarantineHostMsg {
    /// The host.
    pub host_uuid: HostId,
    /// Why, in plain words.
    pub reason: String,
}
message!(QuarantineHostMsg, 1, Lane::Control => Done);

/// A human attests that a host is off: its VMs cannot write any more. Only for a host that does not answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ConfirmHostFencedMsg {
    /// The host.
    pub host_uuid: HostId,
    /// Who says so, for the audit.
    pub by: String,
}
message!(ConfirmHostFencedMsg, 1, Lane::Control => Done);

/// Tells the recovery supervisor that a host is quarantined, or not any more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SetQuarantineMsg {
    /// The host.
    pub host_uuid: HostId,
    /// Why; `None` ends it.
    pub reason: Option<String>,
}
message!(SetQuarantineMsg, 1, Lane::Control => Done);

/// Asks the HA supervisor what it thinks of every host and VM.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueryHaMsg {}
message!(QueryHaMsg, 1, Lane::Control => HaReply);

/// What the HA supervisor thinks.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HaReply {
    /// Hosts that are anything but in order, by id.
    pub hosts: Vec<HostHa>,
    /// VMs that are wanted and not running, by id.
    pub vms: Vec<VmHa>,
    /// Clusters whose storm brake is engaged.
    pub braked: Vec<ClusterId>,
}

/// A host in trouble, as HA sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HostHa {
    /// The host.
    pub host_uuid: HostId,
    /// What is thought of it, in plain words.
    pub standing: String,
}

/// A VM that is wanted and not running, as HA sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VmHa {
    /// The VM.
    pub vm_uuid: VmId,
    /// Why it is not running, in plain words.
    pub why: String,
}

/// A try of a host's ping failed: published, not recorded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HostSuspected {
    /// The host.
    pub host_uuid: HostId,
    /// Its name.
    pub host: String,
}
event!(HostSuspected, "host.suspected", 1, |e| e.host.clone());

/// A host is taken for failed: its VMs are brought back elsewhere.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HostFailed {
    /// The host.
    pub host_uuid: HostId,
    /// Its name.
    pub host: String,
    /// Siblings that looked for it in vain.
    pub unseen_by: Vec<String>,
    /// Why, in plain words.
    pub reason: String,
}
event!(HostFailed, "ha.host-failed", 1, |e| e.host.clone());

/// A host went into quarantine or left it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HostQuarantineChanged {
    /// The host.
    pub host_uuid: HostId,
    /// Its name.
    pub host: String,
    /// Whether it is in quarantine now.
    pub quarantined: bool,
    /// Why, in plain words.
    pub reason: String,
}
event!(HostQuarantineChanged, "ha.host-quarantine", 1, |e| e.host.clone());

/// A human attested that a host is off, or that does not hold any more because it is back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HostConfirmedFenced {
    /// The host.
    pub host_uuid: HostId,
    /// Its name.
    pub host: String,
    /// Whether it holds.
    pub confirmed: bool,
    /// Who said so.
    pub by: String,
}
event!(HostConfirmedFenced, "ha.host-confirmed-fenced", 1, |e| e.host.clone());

/// So many hosts of a cluster are away at once that it is rather us: nothing is fenced; or that is over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StormBrakeChanged {
    /// The cluster.
    pub cluster_uuid: ClusterId,
    /// Its name.
    pub cluster: String,
    /// Whether it holds now.
    pub engaged: bool,
    /// The hosts that are away.
    pub hosts: Vec<String>,
    /// Why, in plain words.
    pub reason: String,
}
event!(StormBrakeChanged, "ha.storm-brake", 1, |e| e.cluster.clone());

/// A VM was brought back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VmHaStarted {
    /// The VM.
    pub vm_uuid: VmId,
    /// Its name.
    pub vm: String,
    /// Where it ran before.
    pub from_host: Option<String>,
    /// Where it runs now.
    pub host_uuid: HostId,
    /// That host's name.
    pub host: String,
    /// Why it was brought back, in plain words.
    pub reason: String,
}
event!(VmHaStarted, "ha.vm-started", 1, |e| e.vm.clone());

/// A VM could not be brought back and is tried again; told when the reason changes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VmHaBlocked {
    /// The VM.
    pub vm_uuid: VmId,
    /// Its name.
    pub vm: String,
    /// Why, in plain words.
    pub reason: String,
}
event!(VmHaBlocked, "ha.vm-blocked", 1, |e| e.vm.clone());

/// A VM begins to be moved off a host that is drained, or that is over. The beginning is recorded before the VM is
/// stopped: a controller that starts anew knows whom it owes a start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VmMoveChanged {
    /// The VM.
    pub vm_uuid: VmId,
    /// Its name.
    pub vm: String,
    /// The host that is drained.
    pub from_host_uuid: HostId,
    /// That host's name.
    pub from_host: String,
    /// The start that is ended by it.
    pub incarnation: u64,
    /// Whether it is being moved now, or was to be stopped and runs on: if it ends after all, it is owed a start.
    pub moving: bool,
    /// The host that has room for it; of one that stays, or when it is over, where it runs.
    pub host: Option<String>,
    /// Why, in plain words.
    pub reason: String,
}
event!(VmMoveChanged, "ha.vm-move", 1, |e| e.vm.clone());

/// A host that is drained was asked, and nothing of ours runs on it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HostDrained {
    /// The host.
    pub host_uuid: HostId,
    /// Its name.
    pub host: String,
}
event!(HostDrained, "ha.host-drained", 1, |e| e.host.clone());
