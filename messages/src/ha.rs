//! High availability: failed hosts, failover, placement, drain, and their events.

use serde::{Deserialize, Serialize};

use crate::{Address, ClusterId, HostId, Kind, Lane, VmId, agent::Done, agent_command, event, message};

/// Address of the HA supervisor.
pub const HA: Address = Address::singleton(Kind::new("ha"));

/// Address of placement, which finds target hosts.
pub const PLACEMENT: Address = Address::singleton(Kind::new("placement"));

/// Starts a VM again after its host failed. The VM's actor replies.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HaStartVmInstanceMsg {
    /// Uuid of the VM.
    pub vm_instance_uuid: VmId,
    /// The reason of the start: one of `HostSilent`, `WatchersGone`, `QemuDied`, `Drain`, `Operator`.
    pub judger_class_name: String,
    /// Hosts that placement avoids if another host has room.
    pub soft_avoid_host_uuids: Vec<HostId>,
    /// The target host; `None` lets placement choose.
    pub host_uuid: Option<HostId>,
    /// Reason as text for operators.
    pub ha_reason: String,
}
message!(HaStartVmInstanceMsg, 1 => HaStartVmInstanceReply);

/// The result of an HA start.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HaStartVmInstanceReply {
    /// The host where the VM runs; `None` if the start was no longer needed.
    pub host_uuid: Option<HostId>,
}

/// Plans an HA start of a VM: steps and evidence. Changes nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PlanHaStartMsg {
    /// The target host; `None` lets placement choose.
    pub host_uuid: Option<HostId>,
}
message!(PlanHaStartMsg, 1 => HaStartPlan);

/// The plan of an HA start.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct HaStartPlan {
    /// Name of the VM.
    pub vm: String,
    /// Whether the start is possible. If not, the last step has the reason.
    pub feasible: bool,
    /// The evidence, each with its source, as text for operators.
    pub evidence: Vec<String>,
    /// The steps in sequence, as text for operators.
    pub steps: Vec<String>,
}

/// Plans a drain of a host. Changes nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PlanDrainMsg {
    /// Uuid of the host.
    pub host_uuid: HostId,
}
message!(PlanDrainMsg, 1 => DrainPlan);

/// The plan of a drain.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct DrainPlan {
    /// Name of the host.
    pub host: String,
    /// Whether every VM on the host can be moved or stopped. If not, `vms` has the reasons.
    pub feasible: bool,
    /// Each VM that runs or may run on the host, in the sequence of the moves.
    pub vms: Vec<DrainStep>,
}

/// The plan of a drain for one VM.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct DrainStep {
    /// Name of the VM.
    pub vm: String,
    /// Name of the target host; null if there is none.
    pub target: Option<String>,
    /// The planned action, or the reason why none is possible, as text for operators.
    pub what: String,
}

/// Makes sibling hosts probe a host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ScanHostMsg {
    /// Uuid of the probed host.
    pub host_uuid: HostId,
}
message!(ScanHostMsg, 1, Lane::Control => ScanHostReply);

/// The probes of sibling hosts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ScanHostReply {
    /// Sibling hosts that reached the host.
    pub seen_by: Vec<HostId>,
    /// Sibling hosts that probed the host and got no answer.
    pub unseen_by: Vec<HostId>,
    /// The results as text for operators.
    pub reason: String,
}

/// The probe of [`ScanHostMsg`], as a command to a sibling host's agent. The kernel of a hung host accepts connections,
/// so that only data counts: the SSH banner, or the first line of HTTP.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ScanHostCmd {
    /// Uuid of the host.
    pub host_uuid: HostId,
    /// Literal IP address of the host, no name.
    pub host_ip: String,
    /// TCP port of sshd on the host.
    pub ssh_port: u16,
    /// TCP port of the host's agent.
    pub agent_port: u16,
}
agent_command!(ScanHostCmd, "/ha/scanhost" => ScanHostCmdReply);

/// The result of one probe.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ScanHostCmdReply {
    /// The SSH server sent its banner.
    pub ssh: bool,
    /// The agent answered HTTP.
    pub agent: bool,
    /// What happened, as text for operators.
    pub reason: String,
}

/// Requests a target host for a VM, and the hosts where the VM may run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FindTargetMsg {
    /// Uuid of the VM.
    pub vm_uuid: VmId,
    /// Uuid of the cluster.
    pub cluster_uuid: ClusterId,
    /// Memory of the VM, in MiB.
    pub memory_mib: u64,
    /// The requested target host; `None` lets placement choose.
    pub host_uuid: Option<HostId>,
    /// The last host: chosen again if it has room and should not be avoided.
    pub last_host_uuid: Option<HostId>,
    /// Every host where the VM may run, including the last one.
    pub place_host_uuids: Vec<HostId>,
    /// Hosts that placement avoids if another host has room.
    pub soft_avoid_host_uuids: Vec<HostId>,
    /// No start follows: no memory is reserved.
    pub dry_run: bool,
    /// Another program may have moved the VM, and no watchers would show where it runs (K12). Placement then waits
    /// until every host of the cluster that should answer has listed its processes after this request, and rejects the
    /// request with `SYS.1010` if one does not.
    pub may_have_moved: bool,
}
message!(FindTargetMsg, 3 => TargetReply);

/// The result of placement.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TargetReply {
    /// The target host; `None` if there is none.
    pub host_uuid: Option<HostId>,
    /// Number of serving hosts without room, or with unknown room.
    pub full: u32,
    /// Hosts where the VM may run and whose last ping was not answered. A host without pings, in maintenance or in
    /// another cluster, is not among them: it can be queried.
    pub silent_host_uuids: Vec<HostId>,
    /// Unreachable hosts of the VM's cluster that this controller has not heard in its term, and all of them if the VM
    /// may have moved: only the watchers of the VM's volumes can prove that it does not run there (I1).
    pub unheard_host_uuids: Vec<HostId>,
    /// Hosts that listed the VM in the latest query.
    pub seen_host_uuids: Vec<HostId>,
}

/// Queries the hosts of a cluster that can take VMs, for a plan. Placement replies; nothing is reserved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct QueryCandidatesMsg {
    /// Uuid of the cluster.
    pub cluster_uuid: ClusterId,
}
message!(QueryCandidatesMsg, 1 => CandidatesReply);

/// The hosts of a cluster that can take VMs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CandidatesReply {
    /// Every serving host, in the sequence of the inventory.
    pub candidates: Vec<Candidate>,
}

/// A host that can take VMs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Candidate {
    /// Uuid of the host.
    pub host_uuid: HostId,
    /// Available memory as reported, in MiB; `None` if unknown.
    pub available_mib: Option<u64>,
    /// Memory reserved for VMs whose start is in progress, in MiB: `available_mib` does not include it yet.
    pub reserved_mib: u64,
    /// VMs that run or may run there.
    pub vms: usize,
}

/// Queries what the HA supervisor knows about the hosts of a cluster before a VM starts there. Rejected with
/// `SYS.1010` until the supervisor has read the journal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct QueryCensusMsg {
    /// Uuid of the cluster.
    pub cluster_uuid: ClusterId,
}
message!(QueryCensusMsg, 2, Lane::Control => CensusReply);

/// The census of a cluster: which hosts listed their processes, and where VMs run as observed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CensusReply {
    /// Hosts that must list their processes before a VM starts in the cluster.
    pub unsettled_host_uuids: Vec<HostId>,
    /// Hosts that cannot be queried and were never heard: VMs may run there.
    pub unheard_host_uuids: Vec<HostId>,
    /// Disconnected hosts, except those in maintenance.
    pub disconnected_host_uuids: Vec<HostId>,
    /// Those of them that no operator attested to be off.
    pub unreachable_host_uuids: Vec<HostId>,
    /// Hosts in maintenance.
    pub maintained_host_uuids: Vec<HostId>,
    /// Hosts in maintenance that answer queries: VMs stay there, and another program may move one there.
    pub searched_host_uuids: Vec<HostId>,
    /// Hosts with VMs that run or may run there, and their number.
    pub occupied: Vec<(HostId, usize)>,
    /// QEMUs like a VM's on hosts of other clusters than the VM's.
    pub claims: Vec<(VmId, HostId)>,
}

/// Puts an unreachable host into quarantine until it is reconciled. The reply is sent when that is on disk. Idempotent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct QuarantineHostMsg {
    /// Uuid of the host.
    pub host_uuid: HostId,
    /// Reason as text for operators.
    pub reason: String,
}
message!(QuarantineHostMsg, 1, Lane::Control => Done);

/// An operator attests that a host is off: its VMs can no longer write. Rejected for a host that answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ConfirmHostFencedMsg {
    /// Uuid of the host.
    pub host_uuid: HostId,
    /// Name of the operator, for the journal.
    pub by: String,
}
message!(ConfirmHostFencedMsg, 1, Lane::Control => Done);

/// Begins or ends the quarantine of a host. The recovery supervisor records the change: the host leaves service before
/// the record is durable, and returns after. Answered once the change is durable and in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SetQuarantineMsg {
    /// Uuid of the host.
    pub host_uuid: HostId,
    /// Whether the quarantine begins or ends.
    pub quarantined: bool,
    /// Reason as text.
    pub reason: String,
}
message!(SetQuarantineMsg, 2, Lane::Control => Done);

/// Queries the HA supervisor's status of hosts and VMs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueryHaMsg {}
message!(QueryHaMsg, 1, Lane::Control => HaReply);

/// The HA supervisor's status.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HaReply {
    /// Hosts that are not in normal service, sorted by uuid.
    pub hosts: Vec<HostHa>,
    /// VMs that should be running but are not, sorted by uuid.
    pub vms: Vec<VmHa>,
    /// Clusters whose storm brake is engaged.
    pub braked: Vec<ClusterId>,
}

/// The HA status of a host that is not in normal service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HostHa {
    /// Uuid of the host.
    pub host_uuid: HostId,
    /// Status as text for operators.
    pub standing: String,
}

/// A VM that should be running but is not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VmHa {
    /// Uuid of the VM.
    pub vm_uuid: VmId,
    /// Reason as text for operators.
    pub why: String,
}

/// One ping attempt of a host failed. Published, not recorded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HostSuspected {
    /// Uuid of the host.
    pub host_uuid: HostId,
    /// Name of the host in the inventory.
    pub host: String,
}
event!(HostSuspected, "host.suspected", 1, |e| e.host.clone());

/// A host failed: its VMs fail over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HostFailed {
    /// Uuid of the host.
    pub host_uuid: HostId,
    /// Name of the host in the inventory.
    pub host: String,
    /// Names of the sibling hosts that did not reach the host.
    pub unseen_by: Vec<String>,
    /// Reason as text for operators.
    pub reason: String,
}
event!(HostFailed, "ha.host-failed", 1, |e| e.host.clone());

/// A host went into quarantine or left it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HostQuarantineChanged {
    /// Uuid of the host.
    pub host_uuid: HostId,
    /// Name of the host in the inventory.
    pub host: String,
    /// Whether the host is in quarantine after the change.
    pub quarantined: bool,
    /// Reason as text for operators.
    pub reason: String,
}
event!(HostQuarantineChanged, "ha.host-quarantine", 1, |e| e.host.clone());

/// An operator attested that a host is off, or the attestation ended because the host answers again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HostConfirmedFenced {
    /// Uuid of the host.
    pub host_uuid: HostId,
    /// Name of the host in the inventory.
    pub host: String,
    /// Whether the attestation is valid after the change.
    pub confirmed: bool,
    /// Name of the operator.
    pub by: String,
}
event!(HostConfirmedFenced, "ha.host-confirmed-fenced", 1, |e| e.host.clone());

/// The storm brake of a cluster engaged or released. While engaged, too many hosts are unreachable at the same time, so
/// that the controller's own network is the likelier cause, and the controller fences nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StormBrakeChanged {
    /// Uuid of the cluster.
    pub cluster_uuid: ClusterId,
    /// Name of the cluster in the inventory.
    pub cluster: String,
    /// Whether the brake is engaged after the change.
    pub engaged: bool,
    /// Names of the unreachable hosts.
    pub hosts: Vec<String>,
    /// Reason as text for operators.
    pub reason: String,
}
event!(StormBrakeChanged, "ha.storm-brake", 1, |e| e.cluster.clone());

/// A VM failed over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VmHaStarted {
    /// Uuid of the VM.
    pub vm_uuid: VmId,
    /// Name of the VM in the inventory.
    pub vm: String,
    /// Name of the host where it ran before.
    pub from_host: Option<String>,
    /// Uuid of the host where it runs now.
    pub host_uuid: HostId,
    /// Name of that host in the inventory.
    pub host: String,
    /// Reason of the failover, as text for operators.
    pub reason: String,
}
event!(VmHaStarted, "ha.vm-started", 1, |e| e.vm.clone());

/// A failover of a VM failed and is retried. Published when the reason changes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VmHaBlocked {
    /// Uuid of the VM.
    pub vm_uuid: VmId,
    /// Name of the VM in the inventory.
    pub vm: String,
    /// Reason as text for operators.
    pub reason: String,
}
event!(VmHaBlocked, "ha.vm-blocked", 1, |e| e.vm.clone());

/// A move of a VM off a drained host began or ended. The beginning is recorded before the VM is stopped, so that the
/// next controller knows which VMs to start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VmMoveChanged {
    /// Uuid of the VM.
    pub vm_uuid: VmId,
    /// Name of the VM in the inventory.
    pub vm: String,
    /// Uuid of the drained host.
    pub from_host_uuid: HostId,
    /// Name of that host in the inventory.
    pub from_host: String,
    /// Incarnation that the move stops.
    pub incarnation: u64,
    /// Whether the move is in progress. Also true if the VM did not stop: if it stops later, the controller must start
    /// it.
    pub moving: bool,
    /// Name of the target host; for a VM that did not stop, or after the move, the host where it runs.
    pub host: Option<String>,
    /// Reason as text for operators.
    pub reason: String,
}
event!(VmMoveChanged, "ha.vm-move", 1, |e| e.vm.clone());

/// A drained host listed its processes, and no VM runs on it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HostDrained {
    /// Uuid of the host.
    pub host_uuid: HostId,
    /// Name of the host in the inventory.
    pub host: String,
}
event!(HostDrained, "ha.host-drained", 1, |e| e.host.clone());
