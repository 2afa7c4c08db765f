//! Ceph storages: who has an image open, and which hosts the cluster refuses.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::{HostId, Lane, StorageId, agent::Done, event, message, vm::InstallPath};

/// A client that has an image open.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Watcher {
    /// `IP:PORT/NONCE`, as Ceph says it.
    pub address: String,
    /// The IP of it.
    pub ip: IpAddr,
}

/// Asks the actor of a Ceph storage who has an image open. An empty list proves nothing: a client that is cut off
/// leaves it after 30 s and lives on. An error means "not known" (I2).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct QueryWatchersMsg {
    /// The volume.
    pub install_path: InstallPath,
}
message!(QueryWatchersMsg, 1, Lane::Control => WatchersReply);

/// Who has it open.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WatchersReply {
    /// In the order in which Ceph says them.
    pub watchers: Vec<Watcher>,
}

/// Has a Ceph cluster refuse every write of a host, whatever client it comes from. The answer comes when that is read
/// back from the cluster; it stays so until [`LiftStorageFenceMsg`]. Idempotent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FenceHostOnStorageMsg {
    /// The host.
    pub host_uuid: HostId,
    /// Why, in plain words.
    pub reason: String,
}
message!(FenceHostOnStorageMsg, 1, Lane::Control => StorageFenceReply);

/// A host is refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StorageFenceReply {
    /// The epoch of the OSD map in which the block was read back.
    pub osd_epoch: u64,
    /// Which addresses are refused.
    pub addresses: Vec<IpAddr>,
}

/// Lets a host write again. Only for one on which no QEMU of a VM that moved is left. Idempotent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LiftStorageFenceMsg {
    /// The host.
    pub host_uuid: HostId,
}
message!(LiftStorageFenceMsg, 1, Lane::Control => Done);

/// Keeps a host's fence no longer: it left the inventory for good, and a human attested that it is off. What is on the
/// blocklist expires. Idempotent.
///
/// # Errors
/// `SYS.1005` while it is being fenced or lifted, `SYS.1004` before the journal was read, `SYS.1016` if it cannot be recorded:
/// then it is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ForgetStorageFenceMsg {
    /// The host.
    pub host_uuid: HostId,
    /// Why, for the audit.
    pub reason: String,
}
message!(ForgetStorageFenceMsg, 1, Lane::Control => Done);

/// Asks the actor of a Ceph storage which hosts it has fenced, or may have.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueryStorageFencesMsg {}
message!(QueryStorageFencesMsg, 1, Lane::Control => StorageFencesReply);

/// The hosts that a storage refuses, or may refuse.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StorageFencesReply {
    /// Ordered by id.
    pub host_uuids: Vec<HostId>,
}

/// Where a storage fence stands.
///
/// ```text
/// Intended --read back--> Fenced --half its time is over, or the entry was gone--> Renewed ...
///     |                     +-- host clean --> LiftIntended --read back--> Lifted
///     +-- refused, not read back --> Failed (it may hold all the same: kept and lifted like one that does)
/// Found: on the blocklist, and not in the journal; kept and lifted like one that was ordered
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StorageFencePhase {
    /// About to be ordered; durable before it is.
    Intended,
    /// Read back from the cluster.
    Fenced,
    /// Ordered again and read back.
    Renewed,
    /// Not known to be in force.
    Failed,
    /// About to be lifted; durable before it is.
    LiftIntended,
    /// Read back as gone.
    Lifted,
    /// Not renewed any more: the host left for good, and its entry expires.
    Forgotten,
    /// The cluster refuses the host, and no record says why: somebody else, or a controller whose journal was lost.
    Found,
}

impl StorageFencePhase {
    /// Whether a controller still sees to it that the cluster refuses the host.
    pub fn is_kept(self) -> bool {
        !matches!(self, StorageFencePhase::Lifted | StorageFencePhase::Forgotten)
    }
}

/// A storage fence of a host changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StorageFenceChanged {
    /// The storage.
    pub primary_storage_uuid: StorageId,
    /// Its name.
    pub storage: String,
    /// The host.
    pub host_uuid: HostId,
    /// Its name.
    pub host: String,
    /// Where it stands.
    pub phase: StorageFencePhase,
    /// Which addresses it is about.
    pub addresses: Vec<IpAddr>,
    /// The OSD map's epoch in which it was read back.
    pub osd_epoch: Option<u64>,
    /// Seconds until the entry ends by itself unless it is renewed.
    pub lasting_seconds: Option<u64>,
    /// Why, in plain words.
    pub reason: String,
}
event!(StorageFenceChanged, "ceph.storage-fence", 1, |e| format!("{}@{}", e.host, e.storage));
