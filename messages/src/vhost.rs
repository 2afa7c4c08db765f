//! vhost-user targets on a host: prepare the host, deploy the target, look at its health, export volumes.

use serde::{Deserialize, Serialize};

use crate::{StorageId, VmId, agent::Done, agent_command};

/// Hugepages of 2 MiB that a host is prepared with unless told otherwise: 2 GiB. Too low: guest memory does
/// not fit. Too high: the memory is lost to everything else.
pub const DEFAULT_HUGEPAGES: u64 = 1024;

/// Prepares a host for vhost targets: docker (if the target runs in a container) and 2 MiB hugepages.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PrepareVhostTargetEnvCmd {
    /// Free hugepages of 2 MiB that shall be there afterwards.
    pub hugepages: u64,
}
agent_command!(PrepareVhostTargetEnvCmd, "/zbs/primarystorage/vhost/target/prepareenv" => PrepareVhostTargetEnvReply);

/// What was there or was made.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PrepareVhostTargetEnvReply {
    /// Free hugepages of 2 MiB now.
    pub free_hugepages: u64,
    /// Where hugetlbfs with 2 MiB pages is mounted.
    pub hugepage_mount: String,
    /// What was done or found, one plain sentence each.
    pub notes: Vec<String>,
}

/// What happens to a guest whose target was lost with requests in flight, unless it is proven that the new one knows them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnTargetLoss {
    /// It is reset before its queue is served again, and replays its own journal.
    #[default]
    Reset,
    /// It goes on, and may read what was never written: only for guests with one request at a time.
    Continue,
}

/// Makes the vhost target of a storage run on the host and export again what it exported before. Done on a
/// healthy target it changes nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DeployVhostCmd {
    /// The storage whose target it is.
    pub primary_storage_uuid: StorageId,
    /// Its name, for logs and the container's name.
    pub storage: String,
    /// Directory on the host where the volumes of the storage lie; `None` for the agent's own.
    pub volume_dir: Option<String>,
    /// What happens to the guests that lost it.
    #[serde(default)]
    pub on_target_loss: OnTargetLoss,
}
agent_command!(DeployVhostCmd, "/zbs/primarystorage/vhost/deploy" => DeployVhostReply);

/// What runs after a deploy.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DeployVhostReply {
    /// Process id of the target as the agent's host counts it; 0 if it runs in a container.
    pub pid: u32,
    /// Whether this deploy started it; false if it ran and was healthy.
    pub started: bool,
    /// Volumes that it exports now.
    pub exports: u32,
    /// Volumes that it should export and does not, each with the reason.
    #[serde(default)]
    pub missing: Vec<String>,
    /// VMs whose guests were reset, because the target that they lost had requests of theirs in flight.
    #[serde(default)]
    pub reset: Vec<VmId>,
    /// VMs whose guests went on instead, because the policy says so.
    #[serde(default)]
    pub continued: Vec<VmId>,
}

/// Asks whether the vhost target of a storage works: it runs and its control socket answers within 1 s.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VhostTargetHealthCmd {
    /// The storage whose target it is; for ZBS the container and socket below say which.
    pub primary_storage_uuid: StorageId,
    /// ZBS: name of the container, `zbsvhost-<ip>`.
    #[serde(default)]
    pub container_name: Option<String>,
    /// ZBS: path of the control socket, `/var/zbsvhost/sockets/admin.sock`.
    #[serde(default)]
    pub control_sock: Option<String>,
}
agent_command!(VhostTargetHealthCmd, "/zbs/primarystorage/vhost/target/health" => VhostTargetHealthReply);

/// How the target is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VhostTargetHealthReply {
    /// It runs and its control socket answered.
    pub target_running: bool,
    /// Why not, in plain words; `None` when it runs.
    #[serde(default)]
    pub reason: Option<String>,
}

/// Exports a volume as a vhost-user-blk socket. Repeated, it gives the same socket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CreateVhostBdevCmd {
    /// The storage whose target exports it.
    pub primary_storage_uuid: StorageId,
    /// Pool of the volume; empty where the storage has none.
    pub logical_pool: String,
    /// Name of the volume.
    pub volume: String,
    /// Name of the export: the socket's file name.
    pub bdev_name: String,
    /// Directory on the host where the volume lies; `None` for the agent's own.
    #[serde(default)]
    pub volume_dir: Option<String>,
    /// The VM that writes through it: the export ends with it. `None` for an export that no VM owns.
    #[serde(default)]
    pub vm_uuid: Option<VmId>,
}
agent_command!(CreateVhostBdevCmd, "/zbs/primarystorage/vhost/bdev/create" => CreateVhostBdevReply);

/// Where the export listens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CreateVhostBdevReply {
    /// Path of the vhost-user socket on the host.
    pub socket_path: String,
}

/// Ends an export. Repeated, it does nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DeleteVhostBdevCmd {
    /// The storage whose target exports it.
    pub primary_storage_uuid: StorageId,
    /// Name of the export.
    pub bdev_name: String,
}
agent_command!(DeleteVhostBdevCmd, "/zbs/primarystorage/vhost/bdev/delete" => Done);
