//! Primary storages: health on a host, redeploy, and events.

use serde::{Deserialize, Serialize};

use crate::{
    ErrorCode, Health, HostId, Protocol, ProtocolStatus, StorageId, VmId,
    agent::Done,
    event, message,
    vm::{DiskSource, InstallPath},
};

/// The kind of a storage, as in the config.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum StorageKind {
    /// Ceph RBD.
    Ceph,
    /// ZBS behind its MDS agents.
    Zbs,
    /// A vhost-user target that the host agent runs.
    Vhost,
    /// A directory that every host of the cluster sees.
    Dir,
}

/// Checks how a host reaches a storage, by each protocol.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CheckHostHealthMsg {
    /// Uuid of the host on which the check runs.
    pub host_uuid: HostId,
}
message!(CheckHostHealthMsg, 1 => CheckHostHealthReply);

/// One result per protocol of the storage.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CheckHostHealthReply {
    /// The protocols that could be checked, in the sequence of the storage's definition.
    pub protocols: Vec<ProtocolHealth>,
    /// Errors of the other checks: the statuses of those protocols stay.
    #[serde(default)]
    pub errors: Vec<ErrorCode>,
}

impl From<Vec<ProtocolHealth>> for CheckHostHealthReply {
    fn from(protocols: Vec<ProtocolHealth>) -> Self {
        CheckHostHealthReply { protocols, errors: Vec::new() }
    }
}

/// The result of the check of one protocol.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ProtocolHealth {
    /// The protocol.
    pub protocol: Protocol,
    /// The health.
    pub health: Health,
    /// Reason as text unless `health` is `Ok`; `None` if it is.
    pub reason: Option<String>,
}

/// Redeploys a protocol on a host, after the host is prepared.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DeployClientMsg {
    /// Uuid of the host.
    pub host_uuid: HostId,
    /// The protocol that is down on the host.
    pub protocol: Protocol,
    /// Number of the redeploy in this outage, from 1.
    pub attempt: u32,
    /// Pings that the backoff skipped since the previous redeploy: 0, 2, 4, ... 64.
    pub skipped_pings: u32,
}
message!(DeployClientMsg, 1 => DeployClientReply);

/// The steps of a redeploy.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DeployClientReply {
    /// In the sequence in which they ran.
    pub steps: Vec<DeployStep>,
}

/// One step of a redeploy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DeployStep {
    /// Name of the step, such as `prepare-vhost-target-env` or `deploy-vhost-target`.
    pub name: String,
    /// The error of a failed step. After a failed best-effort step the redeploy continues.
    pub error: Option<ErrorCode>,
    /// More information as text for operators; may be empty.
    pub note: String,
}

/// Makes a volume usable on a host and returns how QEMU opens it there. Idempotent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ActivateVolumeMsg {
    /// Uuid of the host.
    pub host_uuid: HostId,
    /// The volume.
    pub install_path: InstallPath,
    /// Name of the export, unique on the host; used only by storages that export.
    pub bdev_name: String,
    /// The VM that writes to the volume: the export is removed with the VM.
    pub vm_uuid: VmId,
}
message!(ActivateVolumeMsg, 1 => DiskSource);

/// Ends the export of a volume on a host that the MDS of the storage created. Only success proves that it ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DeactivateVolumeMsg {
    /// Uuid of the host.
    pub host_uuid: HostId,
    /// Name of the export.
    pub bdev_name: String,
}
message!(DeactivateVolumeMsg, 1 => Done);

/// The status of one protocol between one host and one storage; unique per (storage, host, protocol).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct HostProtocolRef {
    /// Position in the listing, stable while the inventory does not change.
    pub id: u64,
    /// Uuid of the host.
    pub host_uuid: HostId,
    /// Name of the host in the inventory.
    pub host: String,
    /// Uuid of the storage.
    pub primary_storage_uuid: StorageId,
    /// Name of the storage in the inventory.
    pub storage: String,
    /// The protocol.
    pub protocol: Protocol,
    /// `None` before the first report.
    pub status: Option<ProtocolStatus>,
    /// Reason as text while not connected; `None` while connected.
    pub reason: Option<String>,
    /// Redeploys of the current outage; 0 when there is none.
    pub redeploys: u32,
    /// Pings that the backoff still skips before the next redeploy.
    pub skip_pings: u32,
}

/// The status of a storage on one host, over all its protocols.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct StorageHostRef {
    /// Uuid of the host.
    pub host_uuid: HostId,
    /// Name of the host in the inventory.
    pub host: String,
    /// Uuid of the storage.
    pub primary_storage_uuid: StorageId,
    /// Name of the storage in the inventory.
    pub storage: String,
    /// `None` before the first report.
    pub status: Option<ProtocolStatus>,
    /// Reason as text while not connected; `None` while connected.
    pub reason: Option<String>,
    /// Error of the last health check, if it failed; the status is then that of an earlier check.
    pub check_error: Option<ErrorCode>,
}

/// A storage as the API shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct StorageInventory {
    /// Uuid of the storage.
    pub uuid: StorageId,
    /// Name in the config.
    pub name: String,
    /// The kind.
    pub kind: StorageKind,
    /// Names of the clusters whose hosts use the storage.
    pub clusters: Vec<String>,
    /// The protocols by which hosts reach the storage.
    pub protocols: Vec<Protocol>,
    /// Status on each host, sorted by name of the host.
    pub hosts: Vec<StorageHostRef>,
}

/// The status of a storage on a host, over all protocols, changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StorageHostStatusChanged {
    /// Uuid of the host.
    pub host_uuid: HostId,
    /// Name of the host in the inventory.
    pub host: String,
    /// Uuid of the storage.
    pub primary_storage_uuid: StorageId,
    /// Name of the storage in the inventory.
    pub storage: String,
    /// Value before the change; `None` at the first report.
    pub old_status: Option<ProtocolStatus>,
    /// Value after the change.
    pub new_status: ProtocolStatus,
    /// Reason as text while not connected; `None` while connected.
    pub reason: Option<String>,
}
event!(StorageHostStatusChanged, "storage.host-status-changed", 1, |e| format!("{}@{}", e.storage, e.host));

/// The status of one protocol between a host and a storage changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ProtocolStatusChanged {
    /// Uuid of the host.
    pub host_uuid: HostId,
    /// Name of the host in the inventory.
    pub host: String,
    /// Uuid of the storage.
    pub primary_storage_uuid: StorageId,
    /// Name of the storage in the inventory.
    pub storage: String,
    /// The protocol.
    pub protocol: Protocol,
    /// Value before the change; `None` at the first report.
    pub old_status: Option<ProtocolStatus>,
    /// Value after the change.
    pub new_status: ProtocolStatus,
    /// Reason as text while not connected; `None` while connected.
    pub reason: Option<String>,
}
event!(ProtocolStatusChanged, "storage.protocol-status-changed", 1, |e| format!(
    "{}@{}/{}",
    e.storage, e.host, e.protocol
));

/// The status over several protocols: Connected if any is Connected. `None` without protocols.
pub fn aggregate(statuses: impl IntoIterator<Item = ProtocolStatus>) -> Option<ProtocolStatus> {
    statuses.into_iter().reduce(|a, b| if a == ProtocolStatus::Connected { a } else { b })
}
