//! vhost-user targets on a host: preparation, deployment, health check, export of volumes.

use serde::{Deserialize, Serialize};

use crate::{StorageId, VmId, agent::Done, agent_command};

/// Default number of 2 MiB hugepages on a host: 2 GiB. Too low: guest memory does not fit. Too high: the memory is lost
/// to all other programs.
pub const DEFAULT_HUGEPAGES: u64 = 1024;

/// Prepares a host for vhost targets: docker (if the target runs in a container) and 2 MiB hugepages.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PrepareVhostTargetEnvCmd {
    /// Required number of free 2 MiB hugepages.
    pub hugepages: u64,
}
agent_command!(PrepareVhostTargetEnvCmd, "/zbs/primarystorage/vhost/target/prepareenv" => PrepareVhostTargetEnvReply);

/// The state after the preparation.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PrepareVhostTargetEnvReply {
    /// Number of free 2 MiB hugepages.
    pub free_hugepages: u64,
    /// Where hugetlbfs with 2 MiB pages is mounted.
    pub hugepage_mount: String,
    /// What was done or found, one sentence each, as text for operators.
    pub notes: Vec<String>,
}

/// What happens to a guest whose target died with requests in flight, unless it is proven that the new target knows
/// them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnTargetLoss {
    /// The guest is reset before its queue is served again; its file system replays its journal.
    #[default]
    Reset,
    /// The guest continues and may read data that was never written: only for guests with one request at a time.
    Continue,
}

/// Starts the vhost target of a storage on the host, and exports the same volumes as before. Does nothing if the target
/// is healthy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DeployVhostCmd {
    /// The storage of the target.
    pub primary_storage_uuid: StorageId,
    /// Name of the storage, for logs and the name of the container.
    pub storage: String,
    /// Directory of the storage's volumes on the host; `None` for the agent's default.
    pub volume_dir: Option<String>,
    /// What happens to guests that lost the target.
    #[serde(default)]
    pub on_target_loss: OnTargetLoss,
}
agent_command!(DeployVhostCmd, "/zbs/primarystorage/vhost/deploy" => DeployVhostReply);

/// The state after a deployment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DeployVhostReply {
    /// Process id of the target on the host; 0 for a target in a container.
    pub pid: u32,
    /// Whether this deployment started the target; false if the target was healthy.
    pub started: bool,
    /// Number of exported volumes.
    pub exports: u32,
    /// Volumes whose export failed, each with the reason.
    #[serde(default)]
    pub missing: Vec<String>,
    /// VMs whose guests were reset, because their requests were in flight when the target died.
    #[serde(default)]
    pub reset: Vec<VmId>,
    /// VMs whose guests continued instead, because of [`OnTargetLoss::Continue`].
    #[serde(default)]
    pub continued: Vec<VmId>,
}

/// Checks that the vhost target of a storage runs and that its control socket answers within 1 s.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VhostTargetHealthCmd {
    /// The storage of the target; for ZBS container and socket below identify the target.
    pub primary_storage_uuid: StorageId,
    /// ZBS: name of the container, `zbsvhost-<ip>`.
    #[serde(default)]
    pub container_name: Option<String>,
    /// ZBS: path of the control socket, `/var/zbsvhost/sockets/admin.sock`.
    #[serde(default)]
    pub control_sock: Option<String>,
}
agent_command!(VhostTargetHealthCmd, "/zbs/primarystorage/vhost/target/health" => VhostTargetHealthReply);

/// The health of a target.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VhostTargetHealthReply {
    /// The target runs and its control socket answered.
    pub target_running: bool,
    /// Reason as text while the target is down; `None` while it runs.
    #[serde(default)]
    pub reason: Option<String>,
}

/// Exports a volume as a vhost-user-blk socket. Idempotent: a repetition returns the same socket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CreateVhostBdevCmd {
    /// The storage whose target exports the volume.
    pub primary_storage_uuid: StorageId,
    /// Pool of the volume; empty for a storage without pools.
    pub logical_pool: String,
    /// Name of the volume.
    pub volume: String,
    /// Name of the export: the file name of the socket.
    pub bdev_name: String,
    /// Directory of the volume on the host; `None` for the agent's default.
    #[serde(default)]
    pub volume_dir: Option<String>,
    /// The VM that owns the export: the export is removed with the VM. `None` for an export without VM.
    #[serde(default)]
    pub vm_uuid: Option<VmId>,
}
agent_command!(CreateVhostBdevCmd, "/zbs/primarystorage/vhost/bdev/create" => CreateVhostBdevReply);

/// The socket of an export.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CreateVhostBdevReply {
    /// Path of the vhost-user socket on the host.
    pub socket_path: String,
}

/// Removes an export. Idempotent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DeleteVhostBdevCmd {
    /// The storage whose target exports the volume.
    pub primary_storage_uuid: StorageId,
    /// Name of the export.
    pub bdev_name: String,
}
agent_command!(DeleteVhostBdevCmd, "/zbs/primarystorage/vhost/bdev/delete" => Done);
