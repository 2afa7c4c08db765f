//! Virtual machines: volumes, start, stop, search, and their events.

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

/// The observed state of a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub enum VmState {
    /// Proven to run nowhere.
    Stopped,
    /// A start is in progress.
    Starting,
    /// A host listed its QEMU.
    Running,
    /// A stop is in progress.
    Stopping,
    /// Its host is unreachable: the VM may run or not.
    Unknown,
}

/// Whether the controller starts or fails over a VM automatically.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub enum HaMode {
    /// Only on an operator's request.
    #[default]
    None,
    /// Always: the VM is started until an operator stops it.
    NeverStop,
}

/// The path of a volume: `ceph://pool/image`, `zbs://pool/volume[@snap]`, `cbd:phys/logical/volume[@snap]`,
/// `vhost://name`, `dir://file`. Displayed in the same form.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum InstallPath {
    /// An RBD image.
    Ceph {
        /// Name of the pool.
        pool: String,
        /// Name of the image.
        image: String,
    },
    /// A ZBS volume.
    Zbs {
        /// Name of the logical pool.
        pool: String,
        /// Name of the volume.
        volume: String,
        /// Name of the snapshot; `None` for the volume itself.
        snapshot: Option<String>,
    },
    /// A ZBS volume by its block device path.
    Cbd {
        /// Name of the physical pool.
        physical_pool: String,
        /// Name of the logical pool.
        pool: String,
        /// Name of the volume.
        volume: String,
        /// Name of the snapshot; `None` for the volume itself.
        snapshot: Option<String>,
    },
    /// A volume behind a vhost target that the host agent runs.
    Vhost {
        /// Name of the volume.
        name: String,
    },
    /// A file in a directory storage.
    Dir {
        /// Name of the file, without a path.
        file: String,
    },
}

/// A text that is not an install path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParseInstallPathError(String);

impl fmt::Display for ParseInstallPathError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for ParseInstallPathError {}

/// Bytes of a name of a pool, image, volume or file, at most. Ceph limits names of images to 96 bytes, and the path of
/// a unix socket, which has the name of a vhost volume in it, is limited to 107 bytes.
pub const MAX_NAME_BYTES: usize = 64;

fn name(part: &str, what: &str, whole: &str) -> Result<String, ParseInstallPathError> {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if part.is_empty() || part.len() > MAX_NAME_BYTES || part.starts_with(['.', '-']) || !part.chars().all(fits) {
        return Err(ParseInstallPathError(format!(
            "{part:?} in {whole:?} is malformed as the name of its {what}: expected 1 to {MAX_NAME_BYTES} of A-Z a-z \
             0-9 . _ -, not starting with . or -"
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
    /// A vhost-user-blk socket. QEMU reconnects every second while the socket is missing.
    #[serde(rename_all = "camelCase")]
    VhostUser {
        /// Absolute path of the socket on the host.
        socket_path: String,
    },
    /// A raw file.
    #[serde(rename_all = "camelCase")]
    File {
        /// Absolute path on the host.
        path: String,
    },
    /// An RBD image.
    #[serde(rename_all = "camelCase")]
    Rbd {
        /// Name of the pool.
        pool: String,
        /// Name of the image.
        image: String,
        /// Path of `ceph.conf` on the host.
        conf: String,
        /// Ceph user, without `client.`.
        user: String,
    },
}

/// One disk of a VM that is about to start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DiskSpec {
    /// How QEMU opens the disk.
    pub source: DiskSource,
    /// Whether the VM boots from it first.
    pub root: bool,
}

/// Starts a VM's QEMU on the agent's host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StartVmCmd {
    /// Uuid of the VM.
    pub vm_uuid: VmId,
    /// Name of the VM: 1 to 64 of A-Z a-z 0-9 . _ -.
    pub name: String,
    /// Number of this start. The agent rejects a number that is not above the highest that it has seen.
    pub incarnation: u64,
    /// Epoch of the controller. The agent rejects an epoch below the highest that it has seen.
    pub epoch: u64,
    /// The command expires at this time of the agent's own clock ([`ListVmsReply::clock_ms`]); 0 for never. A command
    /// may wait in the socket of a frozen agent long after the controller's deadline.
    #[serde(default)]
    pub not_after_ms: u64,
    /// Guest memory in MiB.
    pub memory_mib: u64,
    /// All disks of the VM.
    pub disks: Vec<DiskSpec>,
    /// More arguments of QEMU, appended unchanged, one argv entry each.
    pub qemu_args: Vec<String>,
    /// XML of a libvirt domain: the agent then starts the VM through libvirt, and of the fields above only the name is
    /// used.
    pub libvirt_xml: Option<String>,
    /// Head of the controller's journal. A host with a later witness rejects the command.
    #[serde(default)]
    pub head: Option<JournalHead>,
}
agent_command!(StartVmCmd, "/vm/start" => StartVmCmdReply);

/// The started process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StartVmCmdReply {
    /// Process id of QEMU on its host.
    pub pid: u32,
    /// Accelerator: `kvm` or `tcg`.
    pub accel: String,
    /// Kind of guest memory: `hugepages`, `memfd` or `private`.
    pub memory: String,
}

/// Stops a VM's QEMU on the agent's host: by QMP `quit`, then SIGKILL. The reply is sent after the end was verified.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StopVmCmd {
    /// Uuid of the VM.
    pub vm_uuid: VmId,
    /// Epoch of the controller. The agent rejects an epoch below the highest that it has seen. 0 for an operator.
    #[serde(default)]
    pub epoch: u64,
    /// Highest stopped incarnation. The agent remembers it on disk and stops a process of the VM that appears without a
    /// newer command. 0 remembers nothing.
    #[serde(default)]
    pub incarnation: u64,
}
agent_command!(StopVmCmd, "/vm/stop" => Done);

/// Lists the QEMU processes of VMs on the agent's host, regardless of what started them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ListVmsCmd {
    /// Epoch of the controller. From now on the agent rejects commands of a lower epoch. 0 for an operator.
    #[serde(default)]
    pub epoch: u64,
    /// Start commands that are void from now on; on disk before the reply. So a VM that is not listed cannot be started
    /// there by a delayed command.
    #[serde(default)]
    pub void: Option<VoidOrders>,
}
agent_command!(ListVmsCmd, "/vm/list" => ListVmsReply);

/// Start commands that an agent must no longer carry out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VoidOrders {
    /// Uuid of the VM.
    pub vm_uuid: VmId,
    /// Highest void incarnation.
    pub incarnation: u64,
}

/// The QEMU processes of a host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ListVmsReply {
    /// Sorted by uuid.
    pub vms: Vec<RunningVm>,
    /// Time since the boot of the host, including suspend, in ms: the clock of [`StartVmCmd::not_after_ms`].
    #[serde(default)]
    pub clock_ms: u64,
    /// Sight of the agent: an unlisted VM counts as absent only with full sight.
    #[serde(default)]
    pub sight: Sight,
    /// The machine of the host.
    #[serde(default)]
    pub machine: Machine,
}

/// A kind of process that may write to a VM's volumes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WriterKind {
    /// The QEMU of the VM.
    #[default]
    Qemu,
    /// A target that exports a volume of the VM: it may write requests that it holds after the QEMU is gone.
    Export,
}

/// One process of a VM: its QEMU, or a target that may write to its volumes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RunningVm {
    /// Uuid of the VM, from QEMU's `-uuid`.
    pub vm_uuid: VmId,
    /// Process id on the host.
    pub pid: u32,
    /// Incarnation of the VM if the agent started the process; `None` otherwise.
    pub incarnation: Option<u64>,
    /// Another agent of the same machine started the process: agents on one machine see each other's processes.
    pub other_agent: bool,
    /// The process waits for an incoming migration, or may still wait. False after the migration is complete.
    #[serde(default)]
    pub incoming: bool,
    /// The kind of process.
    #[serde(default)]
    pub kind: WriterKind,
    /// Why the process does not count as the VM, such as its owner; `None` for a VM. Such a process is reported and
    /// does not change the VM's state.
    #[serde(default)]
    pub stranger: Option<String>,
}

impl RunningVm {
    /// A QEMU of a VM with no further information.
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

/// Starts a VM on the given host, or on a serving host of its cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StartVmMsg {
    /// The target host; `None` lets placement choose.
    #[serde(default)]
    pub host_uuid: Option<HostId>,
}
message!(StartVmMsg, 1 => VmInventory);

/// Stops a VM.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StopVmMsg {}
message!(StopVmMsg, 1 => VmInventory);

/// Stops a VM for a drain of its host. The desired state does not change: the controller starts the VM elsewhere.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VacateVmMsg {
    /// Uuid of the drained host; an error if the VM does not run there.
    pub host_uuid: HostId,
}
message!(VacateVmMsg, 1 => VmInventory);

/// Makes a VM actor check whether the VM runs on its recorded host or on the given one. The reply is sent at once with
/// the present state; a change is published later.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LookForVmMsg {
    /// The host to check; `None` for the recorded host.
    pub host_uuid: Option<HostId>,
}
message!(LookForVmMsg, 1 => VmInventory);

/// Queries the state of a VM.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueryVmMsg {}
message!(QueryVmMsg, 1 => VmInventory);

/// A VM as the API shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct VmInventory {
    /// Uuid of the VM.
    pub uuid: VmId,
    /// Name in the config.
    pub name: String,
    /// Name of the cluster.
    pub cluster: String,
    /// Whether the controller fails the VM over automatically.
    pub ha: HaMode,
    /// Observed state.
    pub state: VmState,
    /// Uuid of the host where the VM runs, starts or stops; `None` for a stopped VM.
    pub host_uuid: Option<HostId>,
    /// Name of that host in the inventory.
    pub host: Option<String>,
    /// Uuid of the last host.
    pub last_host_uuid: Option<HostId>,
    /// Number of the latest start.
    pub incarnation: u64,
    /// Desired state: true if the operator's last request was a start.
    pub wanted: bool,
    /// All volumes of the VM.
    pub volumes: Vec<VolumeInventory>,
}

/// A volume as the API shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct VolumeInventory {
    /// Uuid of the storage.
    pub primary_storage_uuid: StorageId,
    /// Path on the storage, as in the config.
    pub install_path: String,
    /// Whether the VM boots from it first.
    pub root: bool,
}

/// The state of a VM changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VmStateChanged {
    /// Uuid of the VM.
    pub vm_uuid: VmId,
    /// Name of the VM in the inventory.
    pub vm: String,
    /// Value before the change.
    pub old_state: VmState,
    /// Value after the change.
    pub new_state: VmState,
    /// Uuid of the host where the VM runs or is about to run.
    pub host_uuid: Option<HostId>,
    /// Name of that host in the inventory.
    pub host: Option<String>,
    /// Number of the latest start.
    pub incarnation: u64,
    /// Desired state: true if the operator's last request was a start.
    pub wanted: bool,
    /// Reason as text for operators.
    pub reason: String,
    /// Other hosts where an earlier incarnation may run: absence or a fence must be proven for each before a start
    /// (I1).
    #[serde(default)]
    pub may_run_on: Vec<HostId>,
}
event!(VmStateChanged, "vm.state-changed", 2, |e| e.vm.clone());

/// The state of an intruder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum IntruderPhase {
    /// Seen and left alone: a claim of a host of another cluster, or a process that is no VM.
    Told,
    /// It is unknown which of two processes is right: an operator must decide.
    Undecided,
    /// About to be killed; recorded before the kill.
    EndIntended,
    /// Killed, and its absence verified.
    Ended,
    /// The kill failed.
    NotEnded,
}

impl IntruderPhase {
    /// The name, as in events and metrics.
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

/// An intruder: a process with a VM's uuid on a host where the VM does not belong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VmIntruder {
    /// Uuid of the VM.
    pub vm_uuid: VmId,
    /// Name of the VM in the inventory.
    pub vm: String,
    /// Uuid of the host of the intruder.
    pub host_uuid: HostId,
    /// Name of that host in the inventory.
    pub host: String,
    /// The state after the change.
    pub phase: IntruderPhase,
    /// Reason as text for operators.
    pub reason: String,
}
event!(VmIntruder, "vm.intruder", 1, |e| e.vm.clone());
