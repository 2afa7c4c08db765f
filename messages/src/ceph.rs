//! Ceph storages: the watchers of images, and the hosts that the cluster rejects.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::{HostId, Lane, StorageId, agent::Done, event, message, vm::InstallPath};

/// A client that has an image open.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Watcher {
    /// `IP:PORT/NONCE`, as Ceph reports it.
    pub address: String,
    /// The IP of `address`.
    pub ip: IpAddr,
}

/// Lists the clients that have an image open. The actor of a Ceph storage replies. An empty list is no proof: a client
/// without connection disappears from the list after 30 s and may still run. An error means unknown (I2).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct QueryWatchersMsg {
    /// The volume.
    pub install_path: InstallPath,
}
message!(QueryWatchersMsg, 1, Lane::Control => WatchersReply);

/// The clients that have the image open.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WatchersReply {
    /// In the sequence of Ceph's reply.
    pub watchers: Vec<Watcher>,
}

/// Makes a Ceph cluster reject every write of a host, from all clients on it. The reply is sent after the entry was
/// read back from the cluster. The fence holds until [`LiftStorageFenceMsg`]. Idempotent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FenceHostOnStorageMsg {
    /// Uuid of the host.
    pub host_uuid: HostId,
    /// Reason as text for operators.
    pub reason: String,
}
message!(FenceHostOnStorageMsg, 1, Lane::Control => StorageFenceReply);

/// The cluster rejects a host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StorageFenceReply {
    /// Epoch of the OSD map in which the entries were read back.
    pub osd_epoch: u64,
    /// The addresses on the blocklist.
    pub addresses: Vec<IpAddr>,
}

/// Removes the storage fence of a host. The caller has verified that no QEMU of a moved VM is left there. Idempotent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LiftStorageFenceMsg {
    /// Uuid of the host.
    pub host_uuid: HostId,
}
message!(LiftStorageFenceMsg, 1, Lane::Control => Done);

/// Stops renewing the fence of a host that left the inventory and that an operator attested to be off. The entries on
/// the blocklist expire. Idempotent.
///
/// # Errors
/// `SYS.1005` while the fence is being added or removed, `SYS.1004` before the journal was read, `SYS.1016` if it
/// cannot be recorded: the fence is then kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ForgetStorageFenceMsg {
    /// Uuid of the host.
    pub host_uuid: HostId,
    /// Reason, for the journal.
    pub reason: String,
}
message!(ForgetStorageFenceMsg, 1, Lane::Control => Done);

/// Lists the hosts that a Ceph storage has fenced or may have fenced.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueryStorageFencesMsg {}
message!(QueryStorageFencesMsg, 1, Lane::Control => StorageFencesReply);

/// The hosts that a storage rejects or may reject.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StorageFencesReply {
    /// Sorted by uuid.
    pub host_uuids: Vec<HostId>,
}

/// The state of a storage fence.
///
/// ```text
/// Intended --read back--> Fenced --half its lifetime passed, or the entry was missing--> Renewed ...
///     |                     +-- host reconciled --> LiftIntended --read back--> Lifted
///     +-- rejected, not read back --> Failed (the fence may hold: renewed and removed like one that does)
/// Found: on the blocklist, and not in the journal; renewed and removed like one that was requested
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StorageFencePhase {
    /// The fence is about to be requested; recorded before the request.
    Intended,
    /// The entries were read back from the cluster.
    Fenced,
    /// The entries were renewed and read back.
    Renewed,
    /// The fence may or may not hold.
    Failed,
    /// The fence is about to be removed; recorded before the request.
    LiftIntended,
    /// The entries were read back as absent.
    Lifted,
    /// No longer renewed: the host left the inventory, and the entries expire.
    Forgotten,
    /// The cluster rejects the host and the journal has no fence: another program, or a controller whose journal was
    /// lost, added the entries.
    Found,
}

impl StorageFencePhase {
    /// Whether the controller renews the fence.
    pub fn is_kept(self) -> bool {
        !matches!(self, StorageFencePhase::Lifted | StorageFencePhase::Forgotten)
    }
}

/// The storage fence of a host changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StorageFenceChanged {
    /// Uuid of the storage.
    pub primary_storage_uuid: StorageId,
    /// Name of the storage in the inventory.
    pub storage: String,
    /// Uuid of the host.
    pub host_uuid: HostId,
    /// Name of the host in the inventory.
    pub host: String,
    /// The state after the change.
    pub phase: StorageFencePhase,
    /// The addresses of the host on the blocklist.
    pub addresses: Vec<IpAddr>,
    /// Epoch of the OSD map in which the state was read back.
    pub osd_epoch: Option<u64>,
    /// Seconds until the entries expire unless they are renewed.
    pub lasting_seconds: Option<u64>,
    /// Reason as text for operators.
    pub reason: String,
}
event!(StorageFenceChanged, "ceph.storage-fence", 1, |e| format!("{}@{}", e.host, e.storage));
