//! What can go wrong in the simulated world, and what its operators do.
//!
//! Every fault has an end: [`World`](crate::World) undoes it when its time is over. Names are the inventory's; `controller`,
//! `ceph`, `management` (the controller and every host) and `everything` name the rest.

use serde::{Deserialize, Serialize};

/// Something goes wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Fault {
    /// A host loses its power; it boots when the fault is over, and starts again what ran on it.
    PowerLoss {
        /// The host.
        host: String,
    },
    /// Everything on a host stands still; then it goes on as if nothing had been.
    FreezeHost {
        /// The host.
        host: String,
    },
    /// A host's agent dies; it is started again when the fault is over.
    AgentCrash {
        /// The host.
        host: String,
    },
    /// A host's agent stands still: it takes connections and answers nothing.
    FreezeAgent {
        /// The host.
        host: String,
    },
    /// A host's SSH does not do what a sibling wants of it.
    Ssh {
        /// The host.
        host: String,
        /// What it does.
        how: SshTrouble,
    },
    /// libvirtd on a host hangs. Nothing in a fence may depend on it.
    LibvirtHangs {
        /// The host.
        host: String,
    },
    /// A host's agent answers nonsense.
    AgentLies {
        /// The host.
        host: String,
        /// Which.
        how: Lie,
    },
    /// A host's agent takes its time for everything.
    SlowAgent {
        /// The host.
        host: String,
        /// At most this much more per call.
        millis: u64,
    },
    /// Nothing can be written on a host's own disk.
    HostDiskFull {
        /// The host.
        host: String,
    },
    /// A QEMU dies.
    QemuCrash {
        /// The VM.
        vm: String,
    },
    /// Somebody on a host ends a QEMU and starts it again: a client with a new nonce, if the storage lets it in.
    QemuRestart {
        /// The VM.
        vm: String,
        /// The host.
        host: String,
    },
    /// Something on a host that is not ours has the VM's volume open.
    Stranger {
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
    /// A QEMU's leader is a zombie, its threads live and write.
    ZombieLeader {
        /// The VM.
        vm: String,
    },
    /// Something on its host starts a QEMU again whenever it is killed.
    Respawn {
        /// The VM.
        vm: String,
        /// So much later; 50 to 400 ms unless said.
        #[serde(default)]
        after_millis: u64,
    },
    /// A migration is under way: a QEMU waits on another host. When the fault is over it has failed, and that one ends;
    /// or it is done, and the other one ends.
    Migration {
        /// The VM.
        vm: String,
        /// Where to.
        to: String,
        /// It succeeds
        #[serde(default)]
        succeeds: bool,
    },
    /// A VM ends by itself at once, however often it is started.
    EndsAtOnce {
        /// The VM.
        vm: String,
    },
    /// A process on a host looks as if it were the VM. It never writes, and ends when the fault is over.
    Claim {
        /// The VM.
        vm: String,
        /// The host.
        host: String,
        /// Whose it is.
        how: Claimant,
    },
    /// Another host answers at a host's management address: one that was given twice, or a clone that was restored.
    AddressTaken {
        /// The host.
        host: String,
        /// Who answers.
        by: String,
    },
    /// Who looks for QEMUs on a host does not see them.
    Blind {
        /// The host.
        host: String,
        /// Who looks.
        how: Looker,
    },
    /// libvirtd on a host carries out what it is asked for so much later, also when it was given up.
    LibvirtLate {
        /// The host.
        host: String,
        /// So much later, in ms.
        millis: u64,
    },
    /// Whatever a host's agent and SSH say is 100 kB long and full of control characters.
    LongWords {
        /// The host.
        host: String,
    },
    /// A host's vhost targets die.
    TargetCrash {
        /// The host.
        host: String,
    },
    /// A host's vhost targets die, and none can be deployed while the fault lasts.
    TargetBroken {
        /// The host.
        host: String,
    },
    /// A host's vhost targets hang in D state: what they hold cannot be taken from them.
    TargetHangs {
        /// The host.
        host: String,
    },
    /// Preparing a host for a vhost target fails: no hugepages, no docker.
    PrepareFails {
        /// The host.
        host: String,
    },
    /// Nothing goes between two places, or only back.
    Cut {
        /// One place.
        from: String,
        /// The other.
        to: String,
        /// What goes from `to` to `from` still arrives.
        #[serde(default)]
        one_way: bool,
    },
    /// Messages of management are lost: this many in a hundred.
    Loss {
        /// Percent.
        percent: u32,
    },
    /// Messages of management arrive late, up to this much, and so overtake each other.
    Delay {
        /// At most.
        millis: u64,
    },
    /// Messages of management arrive twice: this many in a hundred.
    Duplication {
        /// Percent.
        percent: u32,
    },
    /// Ceph's monitors do not do what the controller wants of them.
    Ceph {
        /// What they do.
        how: CephTrouble,
    },
    /// Somebody removes a host's entries from Ceph's blocklist, if it has any.
    BlocklistRemoved {
        /// The host.
        host: String,
    },
    /// Somebody has Ceph refuse a host for a day.
    BlocklistAdded {
        /// The host.
        host: String,
    },
    /// The controller's process dies; it is started again when the fault is over.
    ControllerCrash,
    /// The controller's process dies at the next call that it makes, after that took effect.
    ControllerCrashInCall {
        /// The call after so many others.
        skip: u32,
    },
    /// The controller's process stands still; then it goes on as if nothing had been.
    ControllerFreeze,
    /// Another controller takes office while the first one runs on; the first one ends when the fault is over.
    SecondController,
    /// Nothing can be written to the journal.
    JournalBroken,
    /// The controller's process dies; when the fault is over it is started on a backup of its journal, which lacks what was
    /// recorded last.
    JournalRestored {
        /// So many records.
        records: u64,
    },
    /// The wall clocks of controller and agents jump.
    ClockJump {
        /// So far, in seconds.
        seconds: i64,
    },
}

impl Fault {
    /// Whether it is felt beyond one host or VM: by the controller, Ceph, or the networks between.
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

/// What SSH does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SshTrouble {
    /// The port is closed.
    Refused,
    /// Connections are taken, nothing is said.
    Hangs,
    /// The key is not accepted.
    Auth,
    /// The host shows another key.
    HostKey,
    /// Commands end with 255.
    Exit255,
    /// Output is cut short.
    Truncated,
}

/// What an agent says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Lie {
    /// Another host's uuid.
    OtherUuid,
    /// Another version.
    OtherVersion,
    /// Ten megabytes of junk.
    Junk,
}

/// Whose process it is that looks as if it were a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Claimant {
    /// A local user's, who runs something of that name: the agent tells whose it is.
    LocalUser,
    /// Nobody can tell it from the VM.
    Lookalike,
    /// A second QEMU of the VM, started by somebody else: it has the volume open, and waits for its lock.
    Second,
}

/// Who looks for the QEMUs of a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Looker {
    /// Its agent.
    Agent,
    /// The program that a sibling runs there.
    Ssh,
    /// Both, and neither knows that it misses something.
    Unaware,
}

/// What Ceph's monitors do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CephTrouble {
    /// They have no quorum: nothing is answered, nothing is changed.
    NoQuorum,
    /// Questions are answered with odd JSON.
    OddJson,
    /// The blocklist may not be changed.
    Denied,
}

/// What an operator does.
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
