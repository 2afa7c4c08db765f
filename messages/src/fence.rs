//! Fencing: proof that a VM can no longer write on its failed host, before the VM starts elsewhere.

use std::fmt;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{
    ClusterId, HostId, Lane, VmId, agent_command, event,
    evidence::{Evidence, Machine, Sight},
    message,
};

/// Makes a sibling host verify over SSH that a VM does not run on its failed host, and kill the VM if it does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SiblingFenceVmOnHostMsg {
    /// Uuid of the host where the VM ran.
    pub failed_host_uuid: HostId,
    /// Uuid of the VM.
    pub vm_uuid: VmId,
    /// The cluster of the hosts that may be the executor.
    pub cluster_uuid: ClusterId,
    /// The target host of the start.
    pub ha_target_host_uuid: HostId,
    /// The machine of the failed host, where it is known. A result from another machine proves nothing.
    pub machine: Machine,
}
message!(SiblingFenceVmOnHostMsg, 2, Lane::Control => SiblingFenceVmOnHostReply);

/// The result of a sibling host. The default is the safe one: alive, nothing known.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SiblingFenceVmOnHostReply {
    /// Whether the VM's QEMU runs or may run.
    #[serde(default = "alive")]
    pub alive: bool,
    /// The QEMU was killed, and its absence was verified.
    #[serde(default)]
    pub killed: bool,
    /// The failed host answered by SSH.
    #[serde(default)]
    pub ssh_reachable: bool,
    /// A QEMU of this VM was found on the failed host.
    #[serde(default)]
    pub qemu_found: bool,
    /// The sibling host that executed the command; `None` if none could.
    #[serde(default)]
    pub executor_host_uuid: Option<HostId>,
    /// Role of the executor, such as `ha-target` or `sibling`.
    #[serde(default)]
    pub executor_role: Option<String>,
    /// What happened, as text for operators.
    #[serde(default)]
    pub reason: String,
    /// The machine that answered, as it identified itself.
    #[serde(default)]
    pub machine: Option<Machine>,
    /// Sight of the search for QEMU.
    #[serde(default)]
    pub sight: Option<Sight>,
}

fn alive() -> bool {
    true
}

impl Default for SiblingFenceVmOnHostReply {
    fn default() -> Self {
        SiblingFenceVmOnHostReply {
            alive: true,
            killed: false,
            ssh_reachable: false,
            qemu_found: false,
            executor_host_uuid: None,
            executor_role: None,
            reason: String::new(),
            machine: None,
            sight: None,
        }
    }
}

/// The command of [`SiblingFenceVmOnHostMsg`] to the executor's agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SiblingFenceVmCmd {
    /// Uuid of the VM.
    pub vm_uuid: VmId,
    /// Literal IP address of the failed host, no name.
    pub failed_host_ip: String,
    /// TCP port of sshd on the failed host; 22 by default.
    #[serde(default = "ssh_port")]
    pub failed_host_ssh_port: u16,
    /// Uuid of the failed host.
    pub failed_host_uuid: HostId,
    /// The machine of the failed host at its last reply. The program on the failed host compares it before it kills; an
    /// unknown machine matches none.
    #[serde(default)]
    pub machine: Machine,
}
agent_command!(SiblingFenceVmCmd, "/ha/sibling-fence-vm" => SiblingFenceVmOnHostReply);

fn ssh_port() -> u16 {
    22
}

/// The outcome of a fence attempt, as audited. A name begins with `success` only if the start was permitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FenceOutcome {
    /// A sibling host killed the VM and verified its absence.
    SuccessKilled,
    /// A sibling host reached the failed host and verified that the VM does not run there.
    SuccessAlreadyDead,
    /// The failed host was not reached by SSH, and the policy permits the start without proof.
    SuccessSshUnreachable,
    /// The storage rejects the failed host's writes.
    SuccessStorageFenced,
    /// The failed host was not reached, and no higher level could fence.
    FailedUnreachable,
    /// The VM runs after the kill, and no higher level could fence.
    FailedStillAlive,
    /// The attempt failed for another reason.
    Failed,
    /// No fencer is registered.
    SkippedNoFencer,
    /// An operator attested that the failed host is off.
    SuccessHumanConfirmed,
}

impl FenceOutcome {
    /// The outcome's name in the audit record.
    pub const fn as_str(self) -> &'static str {
        match self {
            FenceOutcome::SuccessKilled => "success-killed",
            FenceOutcome::SuccessAlreadyDead => "success-already-dead",
            FenceOutcome::SuccessSshUnreachable => "success-ssh-unreachable",
            FenceOutcome::SuccessStorageFenced => "success-storage-fenced",
            FenceOutcome::FailedUnreachable => "failed-unreachable",
            FenceOutcome::FailedStillAlive => "failed-still-alive",
            FenceOutcome::Failed => "failed",
            FenceOutcome::SkippedNoFencer => "skipped-no-fencer",
            FenceOutcome::SuccessHumanConfirmed => "success-human-confirmed",
        }
    }
}

impl fmt::Display for FenceOutcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A fencing level, in the sequence of the ladder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FenceLevel {
    /// A sibling host kills the VM over SSH.
    Sibling,
    /// The storage rejects the failed host.
    Storage,
}

/// A fence is about to be attempted. On disk before a process is killed or an address is blocked (I4).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FenceIntended {
    /// Uuid of the attempt; its audit record has it too.
    pub attempt: Uuid,
    /// Uuid of the VM.
    pub vm_uuid: VmId,
    /// Name of the VM in the inventory.
    pub vm: String,
    /// Uuid of the host where the VM ran.
    pub failed_host_uuid: HostId,
    /// Uuid of the cluster.
    pub cluster_uuid: ClusterId,
    /// The target host of the start.
    pub ha_target_host_uuid: HostId,
    /// The level that is about to be attempted.
    pub level: FenceLevel,
}
event!(FenceIntended, "fence.intent", 1, |e| e.vm.clone());

/// A fence attempt ended: exactly one audit record per attempt (I7).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SiblingFenceAudited {
    /// Uuid of the attempt.
    pub attempt: Uuid,
    /// Uuid of the VM.
    pub vm_uuid: VmId,
    /// Name of the VM in the inventory.
    pub vm: String,
    /// Uuid of the host where the VM ran.
    pub failed_host_uuid: HostId,
    /// Name of that host in the inventory.
    pub failed_host: String,
    /// Uuid of the cluster.
    pub cluster_uuid: ClusterId,
    /// The target host of the start.
    pub ha_target_host_uuid: HostId,
    /// The outcome.
    pub outcome: FenceOutcome,
    /// The sibling host that connected to the failed host; `None` if none did.
    pub executor_host_uuid: Option<HostId>,
    /// The evidence by level, as text for operators. Programs read [`evidence`](Self::evidence).
    pub reason: String,
    /// All observations, oldest first.
    #[serde(default)]
    pub evidence: Vec<Evidence>,
}
event!(SiblingFenceAudited, "ceph.ha.sibling-fence", 2, |e| e.vm.clone());
