//! Virtual machines: where they may run, starting and stopping them, and what is published.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::{
    HostId, StorageId, VmId,
    agent::Done,
    agent_command, event,
    evidence::{Machine, Sight},
    journal::JournalHead,
    message,
};

/// What the controller believes of a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub enum VmState {
    /// It runs nowhere, as far as is proven.
    Stopped,
    /// A start is under way.
    Starting,
    /// Its QEMU was seen running.
    Running,
    /// A stop is under way.
    Stopping,
    /// Its host cannot be asked: it may run or not.
    Unknown,
}

/// Whether the controller brings a VM back by itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub enum HaMode {
    /// It does not.
    #[default]
    None,
    /// It does, whatever happens.
    NeverStop,
}

/// Where a volume lies: `ceph://pool/image`, `zbs://pool/volume[@snap]`, `cbd:phys/logical/volume[@snap]`,
/// `vhost://name`, `dir://file`. Displayed as it was written.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum InstallPath {
    /// An RBD image.
    Ceph {
        /// Its pool.
        pool: String,
        /// Its name.
        image: String,
    },
    /// A ZBS volume.
    Zbs {
        /// Its logical pool.
        pool: String,
        /// Its name.
        volume: String,
        /// Its snapshot, if it is one.
        snapshot: Option<String>,
    },
    /// A ZBS volume by its block device path.
    Cbd {
        /// Its physical pool.
        physical_pool: String,
        /// Its logical pool.
        pool: String,
        /// Its name.
        volume: String,
        /// Its snapshot, if it is one.
        snapshot: Option<String>,
    },
    /// A volume behind a vhost target that the host agent runs.
    Vhost {
        /// Its name.
        name: String,
    },
    /// A file in a directory storage.
    Dir {
        /// Its name.
        file: String,
    },
}

/// A text is not an install path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParseInstallPathError(String);

impl fmt::Display for ParseInstallPathError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for ParseInstallPathError {}

/// The longest name of a pool, image, volume or file. Ceph's own limit on image names is 96 bytes; a unix
/// socket path, which carries a vhost name, holds 107.
pub const MAX_NAME_BYTES: usize = 64;

fn name(part: &str, what: &str, whole: &str) -> Result<String, ParseInstallPathError> {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if part.is_empty() || part.len() > MAX_NAME_BYTES || part.starts_with(['.', '-']) || !part.chars().all(fits) {
        return Err(ParseInstallPathError(format!(
            "{part:?} in {whole:?} cannot be the name of its {what}: 1 to {MAX_NAME_BYTES} of A-Z a-z 0-9 . _ -, not starting with . or -"
        )));
    }
    Ok(part.to_owned())
}

fn snapshot<'a>(part: &'a str, whole: &str) -> Result<(&'a str, Option<String>), ParseInstallPathError> {
    match part.split_once('@') {
        None => Ok((part, None)),
        Some((volume, snap)) => Ok((volume, Some(name(snap, "snapshot", whole)?))),
    }
}

impl FromStr for InstallPath {
    type Err = ParseInstallPathError;

    fn from_str(text: &str) -> Result<InstallPath, ParseInstallPathError> {
        let parts = |rest: &str| rest.split('/').map(str::to_owned).collect::<Vec<_>>();
        let shape = |form: &str| ParseInstallPathError(format!("{text:?} is not of the form {form}"));
        if let Some(rest) = text.strip_prefix("ceph://") {
            let [pool, image] = &parts(rest)[..] else { return Err(shape("ceph://POOL/IMAGE")) };
            Ok(InstallPath::Ceph { pool: name(pool, "pool", text)?, image: name(image, "image", text)? })
        } else if let Some(rest) = text.strip_prefix("zbs://") {
            let [pool, last] = &parts(rest)[..] else { return Err(shape("zbs://POOL/VOLUME[@SNAP]")) };
            let (volume, snapshot) = snapshot(last, text)?;
            Ok(InstallPath::Zbs { pool: name(pool, "pool", text)?, volume: name(volume, "volume", text)?, snapshot })
        } else if let Some(rest) = text.strip_prefix("cbd:") {
            let [phys, pool, last] = &parts(rest)[..] else { return Err(shape("cbd:PHYSICAL/LOGICAL/VOLUME[@SNAP]")) };
            let (volume, snapshot) = snapshot(last, text)?;
            Ok(InstallPath::Cbd {
                physical_pool: name(phys, "pool", text)?,
                pool: name(pool, "pool", text)?,
                volume: name(volume, "volume", text)?,
                snapshot,
            })
        } else if let Some(rest) = text.strip_prefix("vhost://") {
            Ok(InstallPath::Vhost { name: name(rest, "volume", text)? })
        } else if let Some(rest) = text.strip_prefix("dir://") {
            Ok(InstallPath::Dir { file: name(rest, "file", text)? })
        } else {
            Err(shape("ceph://..., zbs://..., cbd:..., vhost://... or dir://..."))
        }
    }
}

impl fmt::Display for InstallPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let snap = |s: &Option<String>| s.as_ref().map(|s| format!("@{s}")).unwrap_or_default();
        match self {
            InstallPath::Ceph { pool, image } => write!(f, "ceph://{pool}/{image}"),
            InstallPath::Zbs { pool, volume, snapshot } => write!(f, "zbs://{pool}/{volume}{}", snap(snapshot)),
            InstallPath::Cbd { physical_pool, pool, volume, snapshot } => {
                write!(f, "cbd:{physical_pool}/{pool}/{volume}{}", snap(snapshot))
            }
            InstallPath::Vhost { name } => write!(f, "vhost://{name}"),
            InstallPath::Dir { file } => write!(f, "dir://{file}"),
        }
    }
}

/// How QEMU opens a disk on the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum DiskSource {
    /// A vhost-user-blk socket; QEMU reconnects to it every second while it is gone.
    #[serde(rename_all = "camelCase")]
    VhostUser {
        /// Path of the socket on the host.
        socket_path: String,
    },
    /// A raw file.
    #[serde(rename_all = "camelCase")]
    File {
        /// Its path on the host.
        path: String,
    },
    /// An RBD image.
    #[serde(rename_all = "camelCase")]
    Rbd {
        /// Its pool.
        pool: String,
        /// Its name.
        image: String,
        /// `ceph.conf` on the host.
        conf: String,
        /// Ceph user on the host.
        user: String,
    },
}

/// One disk of a VM that is to be started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DiskSpec {
    /// How QEMU opens it.
    pub source: DiskSource,
    /// Whether the VM boots from it first.
    pub root: bool,
}

/// Starts a VM's QEMU on the agent's host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StartVmCmd {
    /// The VM.
    pub vm_uuid: VmId,
    /// Its name: 1 to 64 of A-Z a-z 0-9 . _ -.
    pub name: String,
    /// Which start of this VM it is. The agent refuses one that is not above the highest it has seen.
    pub incarnation: u64,
    /// Which controller orders it. The agent refuses one below the highest it has seen.
    pub epoch: u64,
    /// After this the order is void, by the agent's own clock as [`ListVmsReply::clock_ms`] told it; 0 for never. An order
    /// may lie in the socket of an agent that stands still, long after everybody has given it up.
    #[serde(default)]
    pub not_after_ms: u64,
    /// Guest memory in MiB.
    pub memory_mib: u64,
    /// Its disks.
    pub disks: Vec<DiskSpec>,
    /// More arguments of QEMU, appended verbatim, each one argv entry.
    pub qemu_args: Vec<String>,
    /// A libvirt domain: it is then started through libvirt, and everything above but its name only describes it.
    pub libvirt_xml: Option<String>,
    /// How far the controller's journal was when it ordered this. A host that has heard of more refuses.
    #[serde(default)]
    pub head: Option<JournalHead>,
}
agent_command!(StartVmCmd, "/vm/start" => StartVmCmdReply);

/// What runs after a start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StartVmCmdReply {
    /// QEMU's process id on its host.
    pub pid: u32,
    /// `kvm` or `tcg`.
    pub accel: String,
    /// What guest memory is made of: `hugepages` or `memfd` or `private`.
    pub memory: String,
}

/// Stops a VM's QEMU on the agent's host: by QMP `quit`, then SIGKILL, verified gone either way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StopVmCmd {
    /// The VM.
    pub vm_uuid: VmId,
    /// Which controller orders it; the agent refuses one below the highest it has seen. 0 for a human.
    #[serde(default)]
    pub epoch: u64,
    /// Nothing of the VM up to this incarnation may run here any more: the agent remembers that over restarts, and ends
    /// what appears without a newer order. 0 remembers nothing.
    #[serde(default)]
    pub incarnation: u64,
}
agent_command!(StopVmCmd, "/vm/stop" => Done);

/// Asks which VMs have a QEMU process on the agent's host, whoever started it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ListVmsCmd {
    /// Which controller asks; from now on the agent refuses orders of a lower one. 0 for a human.
    #[serde(default)]
    pub epoch: u64,
    /// Orders to start this VM that are void from now on, durably before the answer: "it does not run there" then stays
    /// true whatever is still on its way.
    #[serde(default)]
    pub void: Option<VoidOrders>,
}
agent_command!(ListVmsCmd, "/vm/list" => ListVmsReply);

/// Orders that must not be carried out any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VoidOrders {
    /// To start this VM.
    pub vm_uuid: VmId,
    /// Up to this incarnation.
    pub incarnation: u64,
}

/// The QEMU processes of a host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ListVmsReply {
    /// Ordered by uuid.
    pub vms: Vec<RunningVm>,
    /// The host's clock since it booted, suspended or not, in ms: what orders are dated by.
    #[serde(default)]
    pub clock_ms: u64,
    /// With what sight the agent looked: a VM that is not in the list is not there only if that was full.
    #[serde(default)]
    pub sight: Sight,
    /// The machine that was looked at.
    #[serde(default)]
    pub machine: Machine,
}

/// What may write for a VM on a host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WriterKind {
    /// Its QEMU.
    #[default]
    Qemu,
    /// A target that exports a volume of it: what it holds it may write though the QEMU is gone.
    Export,
}

/// One process that is, or may write for, a VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RunningVm {
    /// The VM, from QEMU's `-uuid`.
    pub vm_uuid: VmId,
    /// Its process id on its host.
    pub pid: u32,
    /// Which start it is, where the agent started it; `None` for one started by something else.
    pub incarnation: Option<u64>,
    /// Another agent of this machine started it (agents that share a machine see each other's processes).
    pub other_agent: bool,
    /// It waits for a migration, or nobody can say whether it still does. One that came by a migration and runs does not.
    #[serde(default)]
    pub incoming: bool,
    /// What it is.
    #[serde(default)]
    pub kind: WriterKind,
    /// Why it is not believed to be a VM, such as the user whose process it is; `None` for a VM. A stranger is reported,
    /// and changes nothing that is known of the VM.
    #[serde(default)]
    pub stranger: Option<String>,
}

impl RunningVm {
    /// A QEMU of a VM, of which nothing else is known.
    pub const fn qemu(vm_uuid: VmId, pid: u32) -> RunningVm {
        RunningVm {
            vm_uuid,
            pid,
            incarnation: None,
            other_agent: false,
            incoming: false,
            kind: WriterKind::Qemu,
            stranger: None,
        }
    }
}

/// Starts a VM: on the host given, or on a connected one of its cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StartVmMsg {
    /// The host; `None` lets the VM actor choose.
    #[serde(default)]
    pub host_uuid: Option<HostId>,
}
message!(StartVmMsg, 1 => VmInventory);

/// Stops a VM.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StopVmMsg {}
message!(StopVmMsg, 1 => VmInventory);

/// Stops a VM where it runs because that host is drained. Whether it is to run stays as it is: it is started elsewhere.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VacateVmMsg {
    /// The host; an error if it does not run there.
    pub host_uuid: HostId,
}
message!(VacateVmMsg, 1 => VmInventory);

/// Has a VM actor look whether the VM runs where it is believed to, or on this host. It answers at once what it believes
/// now; what it finds is published if it changes that.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LookForVmMsg {
    /// Where something saw it; `None` for where it is believed to run.
    pub host_uuid: Option<HostId>,
}
message!(LookForVmMsg, 1 => VmInventory);

/// Asks a VM actor what it knows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueryVmMsg {}
message!(QueryVmMsg, 1 => VmInventory);

/// A VM as the outside sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct VmInventory {
    /// The VM.
    pub uuid: VmId,
    /// Its name in the config.
    pub name: String,
    /// The name of its cluster.
    pub cluster: String,
    /// Whether it is brought back by itself.
    pub ha: HaMode,
    /// What is believed of it.
    pub state: VmState,
    /// Where it runs, or is being started or stopped; `None` when stopped.
    pub host_uuid: Option<HostId>,
    /// That host's name.
    pub host: Option<String>,
    /// Where it ran last.
    pub last_host_uuid: Option<HostId>,
    /// How often it was started.
    pub incarnation: u64,
    /// Whether it is to run: the last order was a start, not a stop.
    pub wanted: bool,
    /// Its volumes.
    pub volumes: Vec<VolumeInventory>,
}

/// A volume as the outside sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct VolumeInventory {
    /// The storage it lies on.
    pub primary_storage_uuid: StorageId,
    /// Where on it, as in the config.
    pub install_path: String,
    /// Whether the VM boots from it first.
    pub root: bool,
}

/// A VM's state changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VmStateChanged {
    /// The VM.
    pub vm_uuid: VmId,
    /// Its name.
    pub vm: String,
    /// Before.
    pub old_state: VmState,
    /// Now.
    pub new_state: VmState,
    /// Where it runs or is about to.
    pub host_uuid: Option<HostId>,
    /// That host's name.
    pub host: Option<String>,
    /// Which start it is.
    pub incarnation: u64,
    /// Whether it is to run: the last order was a start, not a stop.
    pub wanted: bool,
    /// Why, in plain words.
    pub reason: String,
    /// Other hosts on which an earlier incarnation may still run: each has to be clear or fenced before a start (I1).
    #[serde(default)]
    pub may_run_on: Vec<HostId>,
}
event!(VmStateChanged, "vm.state-changed", 2, |e| e.vm.clone());

/// What is known of a QEMU where it does not belong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum IntruderPhase {
    /// It was seen, and is left alone: a claim of a host of another cluster, or of somebody who is no VM.
    Told,
    /// Which of two is right cannot be told: a human has to look.
    Undecided,
    /// It is about to be ended.
    EndIntended,
    /// It was ended, and verified gone.
    Ended,
    /// It could not be ended.
    NotEnded,
}

impl IntruderPhase {
    /// The phase's name in events and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            IntruderPhase::Told => "told",
            IntruderPhase::Undecided => "undecided",
            IntruderPhase::EndIntended => "end-intended",
            IntruderPhase::Ended => "ended",
            IntruderPhase::NotEnded => "not-ended",
        }
    }
}

/// A QEMU of a VM was seen where it does not belong: a second one, or one that is only claimed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VmIntruder {
    /// The VM.
    pub vm_uuid: VmId,
    /// Its name.
    pub vm: String,
    /// Where it was seen.
    pub host_uuid: HostId,
    /// That host's name.
    pub host: String,
    /// What is done about it.
    pub phase: IntruderPhase,
    /// Why, in plain words.
    pub reason: String,
}
event!(VmIntruder, "vm.intruder", 1, |e| e.vm.clone());
