//! External primary storages: their health on a host, the deploy that mends it, and what is published.

use serde::{Deserialize, Serialize};

use crate::{
    ErrorCode, Health, HostId, Protocol, ProtocolStatus, StorageId, VmId, event, message,
    vm::{DiskSource, InstallPath},
};

/// What kind of storage it is, as in the config.
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

/// Asks a storage actor how a host reaches it, protocol by protocol.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CheckHostHealthMsg {
    /// The host to look from.
    pub host_uuid: HostId,
}
message!(CheckHostHealthMsg, 1 => CheckHostHealthReply);

/// One report per protocol of the storage.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CheckHostHealthReply {
    /// In the storage's own order of protocols, those that somebody could look at.
    pub protocols: Vec<ProtocolHealth>,
    /// Why nobody could look at the others: their statuses stay.
    #[serde(default)]
    pub errors: Vec<ErrorCode>,
}

impl From<Vec<ProtocolHealth>> for CheckHostHealthReply {
    fn from(protocols: Vec<ProtocolHealth>) -> Self {
        CheckHostHealthReply { protocols, errors: Vec::new() }
    }
}

/// What the probe of one protocol found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ProtocolHealth {
    /// The protocol.
    pub protocol: Protocol,
    /// How it is.
    pub health: Health,
    /// Why it is not `Ok`; `None` when it is.
    pub reason: Option<String>,
}

/// Tells a storage actor to make a protocol work on a host again, preparing the host first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DeployClientMsg {
    /// The host.
    pub host_uuid: HostId,
    /// The protocol that is down there.
    pub protocol: Protocol,
    /// Which redeploy of this outage it is, from 1.
    pub attempt: u32,
    /// Pings that were skipped since the one before: 0, 2, 4, ... 64.
    pub skipped_pings: u32,
}
message!(DeployClientMsg, 1 => DeployClientReply);

/// What each step of a deploy did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DeployClientReply {
    /// In the order in which they ran.
    pub steps: Vec<DeployStep>,
}

/// One step of a deploy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DeployStep {
    /// Such as `prepare-vhost-target-env` or `deploy-vhost-target`.
    pub name: String,
    /// Why it failed; `None` if it did not. A best-effort step may fail and the deploy go on.
    pub error: Option<ErrorCode>,
    /// What there is to know beyond that, in plain words; may be empty.
    pub note: String,
}

/// Asks a storage actor to make a volume usable on a host, and how QEMU opens it there. Repeated, it gives
/// the same answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ActivateVolumeMsg {
    /// The host.
    pub host_uuid: HostId,
    /// The volume.
    pub install_path: InstallPath,
    /// Name of the export where the storage needs one: unique on the host.
    pub bdev_name: String,
    /// The VM that writes to it: what is made for it ends with it.
    pub vm_uuid: VmId,
}
message!(ActivateVolumeMsg, 1 => DiskSource);

/// The state of one protocol between one host and one storage; unique per (storage, host, protocol).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct HostProtocolRef {
    /// Position in the listing, stable while the inventory stands.
    pub id: u64,
    /// The host.
    pub host_uuid: HostId,
    /// Its name.
    pub host: String,
    /// The storage.
    pub primary_storage_uuid: StorageId,
    /// Its name.
    pub storage: String,
    /// The protocol.
    pub protocol: Protocol,
    /// `None` before the first report.
    pub status: Option<ProtocolStatus>,
    /// Why it is not connected; `None` when it is.
    pub reason: Option<String>,
    /// Redeploys of the current outage; 0 when there is none.
    pub redeploys: u32,
    /// Pings that the backoff still skips before the next redeploy.
    pub skip_pings: u32,
}

/// The state of a storage on one host, over all its protocols.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct StorageHostRef {
    /// The host.
    pub host_uuid: HostId,
    /// Its name.
    pub host: String,
    /// The storage.
    pub primary_storage_uuid: StorageId,
    /// Its name.
    pub storage: String,
    /// `None` before the first report.
    pub status: Option<ProtocolStatus>,
    /// Why it is not connected; `None` when it is.
    pub reason: Option<String>,
    /// Why the last health check itself failed; the status is then the one before. `None` if it did not.
    pub check_error: Option<ErrorCode>,
}

/// A storage as the outside sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct StorageInventory {
    /// The storage.
    pub uuid: StorageId,
    /// Its name in the config.
    pub name: String,
    /// What it is.
    pub kind: StorageKind,
    /// The clusters whose hosts use it.
    pub clusters: Vec<String>,
    /// The protocols by which they do.
    pub protocols: Vec<Protocol>,
    /// Its state on each host, by name of the host.
    pub hosts: Vec<StorageHostRef>,
}

/// A storage's status on a host, over all protocols, changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StorageHostStatusChanged {
    /// The host.
    pub host_uuid: HostId,
    /// Its name.
    pub host: String,
    /// The storage.
    pub primary_storage_uuid: StorageId,
    /// Its name.
    pub storage: String,
    /// Before; `None` at the first report.
    pub old_status: Option<ProtocolStatus>,
    /// Now.
    pub new_status: ProtocolStatus,
    /// Why it is not connected; `None` when it is.
    pub reason: Option<String>,
}
event!(StorageHostStatusChanged, "storage.host-status-changed", 1, |e| format!("{}@{}", e.storage, e.host));

/// The status of one protocol between a host and a storage changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ProtocolStatusChanged {
    /// The host.
    pub host_uuid: HostId,
    /// Its name.
    pub host: String,
    /// The storage.
    pub primary_storage_uuid: StorageId,
    /// Its name.
    pub storage: String,
    /// The protocol.
    pub protocol: Protocol,
    /// Before; `None` at the first report.
    pub old_status: Option<ProtocolStatus>,
    /// Now.
    pub new_status: ProtocolStatus,
    /// Why it is not connected; `None` when it is.
    pub reason: Option<String>,
}
event!(ProtocolStatusChanged, "storage.protocol-status-changed", 1, |e| format!(
    "{}@{}/{}",
    e.storage, e.host, e.protocol
));

/// The aggregated status over protocols: any Connected makes it Connected. `None` over no protocol.
pub fn aggregate(statuses: impl IntoIterator<Item = ProtocolStatus>) -> Option<ProtocolStatus> {
    statuses.into_iter().reduce(|a, b| if a == ProtocolStatus::Connected { a } else { b })
}
