//! The faults of the simulated world, the acts of its operators, and the steps of a run.
//!
//! Invariant: every fault ends. [`World`](crate::World) undoes a fault when its duration is over.
//! A name is a name of the inventory, or one of `controller`, `ceph`, `mds`, `management` (the controller and every
//! host) and `everything`.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Something that happens at a time.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    /// Time since the beginning of the run.
    pub at: Duration,
    /// A fault or an act.
    pub kind: StepKind,
}

/// The kind of a step.
#[derive(Clone, Debug, PartialEq)]
pub enum StepKind {
    /// A fault with its duration.
    Fault(Fault, Duration),
    /// An act of an operator.
    Act(Act),
}

/// One fault.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Fault {
    /// A host loses power. It boots when the fault is over, and may start the VMs that ran on it.
    PowerLoss {
        /// The host.
        host: String,
    },
    /// All processes of a host freeze; they continue when the fault is over.
    FreezeHost {
        /// The host.
        host: String,
    },
    /// A host's agent dies; it starts again when the fault is over.
    AgentCrash {
        /// The host.
        host: String,
    },
    /// A host's agent freezes: it accepts connections and does not answer.
    FreezeAgent {
        /// The host.
        host: String,
    },
    /// The SSH server of a host fails.
    Ssh {
        /// The host.
        host: String,
        /// The failure.
        how: SshFault,
    },
    /// libvirtd on a host hangs. A fence must not depend on libvirtd.
    LibvirtHangs {
        /// The host.
        host: String,
    },
    /// A host's agent sends wrong replies.
    #[serde(rename = "agent-lies")]
    BogusReplies {
        /// The host.
        host: String,
        /// The wrong part.
        how: BogusReply,
    },
    /// A host's agent is slow.
    SlowAgent {
        /// The host.
        host: String,
        /// Additional time per call, in ms, at most.
        millis: u64,
    },
    /// A host's own disk is full.
    HostDiskFull {
        /// The host.
        host: String,
    },
    /// The QEMU of a VM dies.
    QemuCrash {
        /// The VM.
        vm: String,
    },
    /// A local user restarts a QEMU: it is a new storage client with a new nonce, unless the storage rejects the host.
    QemuRestart {
        /// The VM.
        vm: String,
        /// The host.
        host: String,
    },
    /// A client on a host that is not Ringfence's has the VM's volume open.
    #[serde(rename = "stranger")]
    ForeignWatcher {
        /// The VM.
        vm: String,
        /// The host.
        host: String,
    },
    /// A QEMU cannot be killed: it hangs in D state.
    QemuUnkillable {
        /// The VM.
        vm: String,
    },
    /// The main thread of a QEMU is a zombie; its other threads live and write.
    ZombieLeader {
        /// The VM.
        vm: String,
    },
    /// A supervisor on the host restarts a QEMU each time that the QEMU is killed.
    Respawn {
        /// The VM.
        vm: String,
        /// Delay of the restart in ms; 50 to 400 ms by default.
        #[serde(default)]
        after_millis: u64,
    },
    /// A migration is in progress: a QEMU waits on another host. When the fault is over, the migration has failed and
    /// the waiting QEMU stops, or the migration has succeeded and the QEMU on the source host stops.
    Migration {
        /// The VM.
        vm: String,
        /// The target host.
        to: String,
        /// The migration succeeds.
        #[serde(default)]
        succeeds: bool,
    },
    /// A VM stops right after each start.
    EndsAtOnce {
        /// The VM.
        vm: String,
    },
    /// A process on a host looks like the VM. It never writes, and stops when the fault is over.
    Claim {
        /// The VM.
        vm: String,
        /// The host.
        host: String,
        /// The owner of the process.
        how: Claimant,
    },
    /// Another host answers at a host's management address: a duplicate address, or a restored clone.
    AddressTaken {
        /// The host.
        host: String,
        /// The host that answers.
        by: String,
    },
    /// A search for QEMUs on a host does not see them.
    Blind {
        /// The host.
        host: String,
        /// The observer.
        how: Looker,
    },
    /// libvirtd on a host carries out each request late, also a request that timed out.
    LibvirtLate {
        /// The host.
        host: String,
        /// Delay in ms.
        millis: u64,
    },
    /// All texts from a host's agent and SSH are 100 kB long and full of control characters.
    LongWords {
        /// The host.
        host: String,
    },
    /// A host's vhost targets die.
    TargetCrash {
        /// The host.
        host: String,
    },
    /// A host's vhost targets die, and a redeploy fails while the fault lasts.
    TargetBroken {
        /// The host.
        host: String,
    },
    /// A host's vhost targets hang in D state: their exports cannot be removed.
    TargetHangs {
        /// The host.
        host: String,
    },
    /// The preparation of a host for a vhost target fails: no hugepages, no docker.
    PrepareFails {
        /// The host.
        host: String,
    },
    /// No message passes between two places, or only in one direction.
    Cut {
        /// One place.
        from: String,
        /// The other.
        to: String,
        /// Messages from `to` to `from` still arrive.
        #[serde(default)]
        one_way: bool,
    },
    /// Messages on the management network are lost.
    Loss {
        /// Percent.
        percent: u32,
    },
    /// Messages on the management network are delayed and arrive in another order.
    Delay {
        /// Delay in ms, at most.
        millis: u64,
    },
    /// Messages on the management network arrive twice.
    Duplication {
        /// Percent.
        percent: u32,
    },
    /// Ceph's monitors fail.
    Ceph {
        /// The failure.
        how: CephFault,
    },
    /// An operator removes a host's entries from Ceph's blocklist, if there are any.
    BlocklistRemoved {
        /// The host.
        host: String,
    },
    /// An operator adds a host to Ceph's blocklist for a day.
    BlocklistAdded {
        /// The host.
        host: String,
    },
    /// The controller's process dies; it starts again when the fault is over.
    ControllerCrash,
    /// The controller's process dies in one of its next calls, after the call took effect.
    ControllerCrashInCall {
        /// Number of calls before that one.
        skip: u32,
    },
    /// The controller's process freezes; it continues when the fault is over.
    ControllerFreeze,
    /// A second controller becomes the leader while the first one runs; the first one stops when the fault is over.
    SecondController,
    /// The journal cannot be written.
    JournalBroken,
    /// The controller's process dies. When the fault is over, it starts on a backup of its journal that lacks the
    /// newest records.
    JournalRestored {
        /// Number of missing records.
        records: u64,
    },
    /// The wall clocks of controller and agents jump.
    ClockJump {
        /// Distance in seconds.
        seconds: i64,
    },
}

impl Fault {
    /// Whether the fault affects more than one host or VM: the controller, Ceph, or the networks between them.
    pub fn is_everywhere(&self) -> bool {
        matches!(
            self,
            Fault::Cut { .. }
                | Fault::Loss { .. }
                | Fault::Delay { .. }
                | Fault::Duplication { .. }
                | Fault::Ceph { .. }
                | Fault::ControllerCrash
                | Fault::ControllerCrashInCall { .. }
                | Fault::ControllerFreeze
                | Fault::SecondController
                | Fault::JournalBroken
                | Fault::JournalRestored { .. }
                | Fault::ClockJump { .. }
        )
    }
}

/// A failure of an SSH server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SshFault {
    /// The port is closed.
    Refused,
    /// The server accepts connections and sends nothing.
    Hangs,
    /// The server rejects the key.
    Auth,
    /// The host key differs.
    HostKey,
    /// Commands exit with 255.
    Exit255,
    /// The output is truncated.
    Truncated,
}

/// The wrong part of an agent's reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BogusReply {
    /// Another host's uuid.
    OtherUuid,
    /// Another version.
    OtherVersion,
    /// 10 MB of random bytes.
    Junk,
}

/// The owner of a process that looks like a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Claimant {
    /// A local user who runs a program of that name: the agent reports the owner.
    LocalUser,
    /// A process that cannot be distinguished from the VM.
    Lookalike,
    /// A second QEMU of the VM that Ringfence did not start: it has the volume open and waits for its lock.
    Second,
}

/// An observer that does not see the QEMUs of a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Looker {
    /// The agent.
    Agent,
    /// The program that a sibling host runs there over SSH.
    Ssh,
    /// Both, and both report full sight.
    Unaware,
}

/// A failure of Ceph's monitors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CephFault {
    /// No quorum: the monitors neither answer nor change anything.
    NoQuorum,
    /// Queries return malformed JSON.
    OddJson,
    /// The monitors reject changes of the blocklist.
    Denied,
}

/// An act of an operator.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Act {
    /// Starts a VM.
    Start {
        /// The VM.
        vm: String,
        /// There.
        #[serde(default)]
        host: Option<String>,
    },
    /// Starts a VM, fenced first where it ran last.
    HaStart {
        /// The VM.
        vm: String,
    },
    /// Stops a VM.
    Stop {
        /// The VM.
        vm: String,
    },
    /// Takes a host out of service.
    Maintain {
        /// The host.
        host: String,
    },
    /// Takes a host out of service, and moves its VMs elsewhere.
    Drain {
        /// The host.
        host: String,
    },
    /// Puts a host into service.
    Activate {
        /// The host.
        host: String,
    },
    /// Attests that a host is off.
    ConfirmFenced {
        /// The host.
        host: String,
        /// Only if that is true; and nothing starts with the host when its power returns
        #[serde(default)]
        if_off: bool,
    },
    /// Ends the controller, and starts one with `--restored`.
    DeclareRestored,
}
