//! Fencing: proving that a VM cannot write on its failed host before it is started elsewhere.

use std::fmt;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{
    ClusterId, HostId, Lane, VmId, agent_command, event,
    evidence::{Evidence, Machine, Sight},
    message,
};

/// Why nobody could tell whether something is dead (I2). Each is a case of its own, so that an operator can mend it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
pub enum UnknownReason {
    /// No answer in time.
    Timeout,
    /// The connection was refused.
    Refused,
    /// The peer did not accept our key.
    AuthFailed,
    /// The peer's host key is not the known one.
    HostKeyMismatch,
    /// The command ended in a way that says nothing (ssh's 255, a signal).
    BadExit,
    /// The output ended too early.
    Truncated,
    /// The output could not be understood.
    Unparsable,
    /// Another machine answered there.
    OtherMachine,
    /// Who looked could not have seen everything.
    Blind,
    /// It contradicts other evidence, or itself.
    Contradicted,
}

/// Asks a sibling to make sure that a VM does not run on its failed host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SiblingFenceVmOnHostMsg {
    /// Where the VM ran.
    pub failed_host_uuid: HostId,
    /// The VM.
    pub vm_uuid: VmId,
    /// The cluster whose hosts may be the executor.
    pub cluster_uuid: ClusterId,
    /// Where it is to be started.
    pub ha_target_host_uuid: HostId,
    /// The machine that the failed host is, as far as that is known: what is found on another one proves nothing.
    pub machine: Machine,
}
message!(SiblingFenceVmOnHostMsg, 2, Lane::Control => SiblingFenceVmOnHostReply);

/// What a sibling found and did. The default is the careful one: alive, nothing known.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SiblingFenceVmOnHostReply {
    /// Whether the VM's QEMU is or may be alive.
    #[serde(default = "alive")]
    pub alive: bool,
    /// It was killed and verified gone.
    #[serde(default)]
    pub killed: bool,
    /// The failed host was reached by SSH.
    #[serde(default)]
    pub ssh_reachable: bool,
    /// A QEMU of this VM was found there.
    #[serde(default)]
    pub qemu_found: bool,
    /// Who did it; `None` if nobody could be asked.
    #[serde(default)]
    pub executor_host_uuid: Option<HostId>,
    /// What the executor is to the VM, such as `ha-target` or `sibling`.
    #[serde(default)]
    pub executor_role: Option<String>,
    /// What happened, in plain words.
    #[serde(default)]
    pub reason: String,
    /// The machine that was reached, as it said itself.
    #[serde(default)]
    pub machine: Option<Machine>,
    /// With what sight QEMU was looked for there.
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

/// The same question as the executor's agent is asked it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SiblingFenceVmCmd {
    /// The VM.
    pub vm_uuid: VmId,
    /// Literal address of the failed host.
    pub failed_host_ip: String,
    /// Its SSH port.
    #[serde(default = "ssh_port")]
    pub failed_host_ssh_port: u16,
    /// The failed host.
    pub failed_host_uuid: HostId,
    /// The machine that it was when it last answered. The program there compares it before it kills anything; unknown
    /// matches nothing.
    #[serde(default)]
    pub machine: Machine,
}
agent_command!(SiblingFenceVmCmd, "/ha/sibling-fence-vm" => SiblingFenceVmOnHostReply);

fn ssh_port() -> u16 {
    22
}

/// The outcome of a fence attempt, as audited. No name says success where the start was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FenceOutcome {
    /// Killed by a sibling and verified gone.
    SuccessKilled,
    /// Reached, and no such QEMU there, verified.
    SuccessAlreadyDead,
    /// Not reached by SSH, and started all the same as the policy says.
    SuccessSshUnreachable,
    /// The storage refuses the failed host's writes.
    SuccessStorageFenced,
    /// Not reached, and no higher level could fence.
    FailedUnreachable,
    /// Still alive after the kill, and no higher level could fence.
    FailedStillAlive,
    /// Failed for another reason.
    Failed,
    /// No fencer is registered.
    SkippedNoFencer,
    /// A human attested that the failed host is off.
    SuccessHumanConfirmed,
}

impl FenceOutcome {
    /// The outcome's name in the audit.
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

/// How high on the ladder of fences.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FenceLevel {
    /// A sibling kills the VM over SSH.
    Sibling,
    /// The storage refuses the failed host.
    Storage,
}

/// A fence is about to be tried: durable before anything is killed or blocked (I4).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FenceIntended {
    /// Names the attempt; its audit carries it too.
    pub attempt: Uuid,
    /// The VM.
    pub vm_uuid: VmId,
    /// Its name.
    pub vm: String,
    /// Where it ran.
    pub failed_host_uuid: HostId,
    /// The cluster.
    pub cluster_uuid: ClusterId,
    /// Where it is to be started.
    pub ha_target_host_uuid: HostId,
    /// What is about to be tried.
    pub level: FenceLevel,
}
event!(FenceIntended, "fence.intent", 1, |e| e.vm.clone());

/// A fence attempt ended (I7): exactly one per attempt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SiblingFenceAudited {
    /// Names the attempt.
    pub attempt: Uuid,
    /// The VM.
    pub vm_uuid: VmId,
    /// Its name.
    pub vm: String,
    /// Where it ran.
    pub failed_host_uuid: HostId,
    /// That host's name.
    pub failed_host: String,
    /// The cluster.
    pub cluster_uuid: ClusterId,
    /// Where it was to be started.
    pub ha_target_host_uuid: HostId,
    /// How it ended.
    pub outcome: FenceOutcome,
    /// Who went to the failed host; `None` if nobody did.
    pub executor_host_uuid: Option<HostId>,
    /// Why, in plain words: the evidence, level by level. For readers; decisions and pages take [`evidence`](Self::evidence).
    pub reason: String,
    /// What each look found, in the order in which they were taken.
    #[serde(default)]
    pub evidence: Vec<Evidence>,
}
event!(SiblingFenceAudited, "ceph.ha.sibling-fence", 2, |e| e.vm.clone());
