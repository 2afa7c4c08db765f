//! The inventory (clusters, hosts, storages, VMs) and the settings of the actors.
//!
//! Invariant: an [`Inventory`] is checked where it is read (names unique, references resolved), so that no actor has
//! to handle a dangling id.

use std::{collections::HashMap, fmt::Display, net::IpAddr, ops::Deref, sync::Arc, time::Duration};

use parking_lot::RwLock;

use ringfence_messages::{
    ClusterId, Code, ErrorCode, HostId, Protocol, Result, StorageId, VmId,
    storage::StorageKind,
    vhost::{DEFAULT_HUGEPAGES, OnTargetLoss},
    vm::{HaMode, InstallPath},
};

use crate::fence::Policy;

/// The whole inventory. Lists keep the order of the config.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inventory {
    /// All clusters.
    pub clusters: Vec<Cluster>,
    /// All hosts.
    pub hosts: Vec<Host>,
    /// All storages.
    pub storages: Vec<Storage>,
    /// All VMs.
    pub vms: Vec<Vm>,
}

/// Hosts that share storage; VMs fail over within a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cluster {
    /// Unique id.
    pub id: ClusterId,
    /// Unique name.
    pub name: String,
}

impl Cluster {
    /// The rejection while the storm brake of the cluster is engaged, with its remedy.
    pub fn braked(&self) -> String {
        format!(
            "the storm brake of {} is engaged; attest that a host is off with `ringfence host confirm-fenced`",
            self.name
        )
    }
}

/// A host that runs VMs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// Unique id.
    pub id: HostId,
    /// Unique name.
    pub name: String,
    /// The cluster of the host.
    pub cluster: ClusterId,
    /// Literal address of its management interface.
    pub management_ip: String,
    /// Port of the agent at `management_ip`.
    pub agent_port: u16,
    /// Port of the SSH server at `management_ip`.
    pub ssh_port: u16,
    /// Addresses from which the host reaches storage; a storage fence blocks them. The list must be complete: a host
    /// that writes from another address is not fenced.
    pub storage_ips: Vec<IpAddr>,
}

/// A primary storage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Storage {
    /// Unique id.
    pub id: StorageId,
    /// Unique name.
    pub name: String,
    /// Kind of storage.
    pub kind: StorageKind,
    /// The clusters whose hosts use it.
    pub clusters: Vec<ClusterId>,
    /// The protocols by which hosts use it, in the order of reports. Empty for a kind that has nothing to deploy on a
    /// host.
    pub protocols: Vec<Protocol>,
    /// Directory on every host where volumes of kind `vhost` and `dir` lie; `None` for the agent's own.
    pub volume_dir: Option<String>,
    /// `vhost`: what happens to a guest whose target was lost with requests in flight.
    pub on_target_loss: OnTargetLoss,
    /// Ceph: `ceph.conf` on the hosts, and the user there.
    pub ceph: Option<CephHostAccess>,
    /// Ceph: addresses that watch volumes without running their VMs, such as rbd-mirror's. They are not users of a
    /// volume, and a storage fence never blocks them.
    pub watchers_allowed: Vec<IpAddr>,
}

/// How QEMU on a host reaches Ceph.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CephHostAccess {
    /// Path of `ceph.conf` on the host.
    pub conf: String,
    /// Ceph user, without `client.`.
    pub user: String,
}

/// A virtual machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vm {
    /// Unique id.
    pub id: VmId,
    /// Unique name.
    pub name: String,
    /// The cluster of the VM.
    pub cluster: ClusterId,
    /// Whether the controller fails it over automatically.
    pub ha: HaMode,
    /// Guest memory in MiB.
    pub memory_mib: u64,
    /// Extra QEMU arguments; `{host}`, `{vm}` and `{uuid}` are replaced at the start.
    pub qemu_args: Vec<String>,
    /// The libvirt domain of a VM that libvirt starts; the same placeholders are replaced.
    pub libvirt_xml: Option<String>,
    /// Volumes, at least one; the root volume first.
    pub volumes: Vec<Volume>,
}

/// A volume of a VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Volume {
    /// The storage of the volume.
    pub storage: StorageId,
    /// Path on the storage.
    pub install_path: InstallPath,
    /// Whether the VM boots from it first.
    pub root: bool,
}

/// How hosts are pinged. Defaults as ZStack's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PingSettings {
    /// From the start of one ping of a host to the start of the next. Too low: agents only answer pings. Too high: an
    /// outage goes unseen for as long.
    pub interval: Duration,
    /// Limit of one ping. Must be positive; larger than `interval` is allowed (a host has at most one ping in
    /// flight).
    pub timeout: Duration,
    /// Failed pings in a row before a host is Disconnected; at least 1. Too low: one lost packet fails a host.
    pub max_failure: u32,
    /// Wait between a failed ping and the next.
    pub sleep_after_failure: Duration,
    /// Pings in flight over all hosts; at least 1. Too low: a cycle takes longer than the interval. Too high:
    /// the controller's sockets and the network see bursts.
    pub parallelism: usize,
}

impl Default for PingSettings {
    fn default() -> Self {
        PingSettings {
            interval: Duration::from_secs(60),
            timeout: Duration::from_secs(10),
            max_failure: 3,
            sleep_after_failure: Duration::from_secs(1),
            parallelism: 100,
        }
    }
}

/// How VMs are failed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HaSettings {
    /// Failovers in progress at the same time (I8); at least 1. Too low: the VMs of a host return one by one. Too
    /// high: target hosts and the storage see a burst.
    pub parallelism: usize,
    /// Percent of a cluster's hosts that may be unreachable before fencing is suspended; one host always may. Too
    /// low: the failure of a rack needs an operator. Too high: a fault of the controller's own network fences half of
    /// a cluster.
    pub storm_brake_percent: u32,
}

impl Default for HaSettings {
    fn default() -> Self {
        HaSettings { parallelism: 10, storm_brake_percent: 30 }
    }
}

/// The settings of all actors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// How hosts are pinged.
    pub ping: PingSettings,
    /// How doubtful cases of fencing are decided.
    pub fence: Policy,
    /// Whether hosts of other clusters may act as sibling hosts if none of the own cluster can.
    pub cross_cluster_siblings: bool,
    /// Whether the shipped fencer is registered.
    pub sibling_fencer: bool,
    /// How VMs are failed over.
    pub ha: HaSettings,
    /// Hugepages of 2 MiB that the agent reserves before a vhost target is deployed.
    pub hugepages: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            ping: PingSettings::default(),
            fence: Policy::default(),
            cross_cluster_siblings: false,
            sibling_fencer: true,
            ha: HaSettings::default(),
            hugepages: DEFAULT_HUGEPAGES,
        }
    }
}

/// The current inventory, shared by all actors. An actor that needs a consistent view takes one
/// [`now`](SharedInventory::now) and keeps it; an actor with state per item compares that view with the next one.
#[derive(Clone, Debug)]
pub struct SharedInventory(Arc<RwLock<Arc<InventoryIndex>>>);

impl SharedInventory {
    /// Shares this inventory.
    pub fn new(inventory: Inventory) -> SharedInventory {
        SharedInventory(Arc::new(RwLock::new(Arc::new(InventoryIndex::new(inventory)))))
    }

    /// The current inventory.
    pub fn now(&self) -> Arc<InventoryIndex> {
        self.0.read().clone()
    }

    /// Replaces the current inventory.
    pub(crate) fn set(&self, inventory: Inventory) {
        *self.0.write() = Arc::new(InventoryIndex::new(inventory));
    }
}

/// An inventory with an index by id. Immutable.
#[derive(Debug, Default)]
pub struct InventoryIndex {
    inventory: Inventory,
    clusters: HashMap<ClusterId, usize>,
    hosts: HashMap<HostId, usize>,
    storages: HashMap<StorageId, usize>,
    vms: HashMap<VmId, usize>,
}

impl InventoryIndex {
    /// Indexes an inventory.
    pub fn new(inventory: Inventory) -> InventoryIndex {
        InventoryIndex {
            clusters: inventory.clusters.iter().enumerate().map(|(i, c)| (c.id, i)).collect(),
            hosts: inventory.hosts.iter().enumerate().map(|(i, h)| (h.id, i)).collect(),
            storages: inventory.storages.iter().enumerate().map(|(i, s)| (s.id, i)).collect(),
            vms: inventory.vms.iter().enumerate().map(|(i, v)| (v.id, i)).collect(),
            inventory,
        }
    }

    /// The cluster of this id.
    ///
    /// # Errors
    /// `SYS.1003` if there is none.
    pub fn cluster(&self, id: ClusterId) -> Result<&Cluster> {
        self.clusters.get(&id).map(|i| &self.inventory.clusters[*i]).ok_or_else(|| missing("cluster", id))
    }

    /// The host of this id.
    ///
    /// # Errors
    /// `SYS.1003` if there is none.
    pub fn host(&self, id: HostId) -> Result<&Host> {
        self.hosts.get(&id).map(|i| &self.inventory.hosts[*i]).ok_or_else(|| missing("host", id))
    }

    /// The VM of this id.
    ///
    /// # Errors
    /// `SYS.1003` if there is none.
    pub fn vm(&self, id: VmId) -> Result<&Vm> {
        self.vms.get(&id).map(|i| &self.inventory.vms[*i]).ok_or_else(|| missing("VM", id))
    }

    /// The storage of this id.
    ///
    /// # Errors
    /// `SYS.1003` if there is none.
    pub fn storage(&self, id: StorageId) -> Result<&Storage> {
        self.storages.get(&id).map(|i| &self.inventory.storages[*i]).ok_or_else(|| missing("storage", id))
    }
}

impl Deref for InventoryIndex {
    type Target = Inventory;

    fn deref(&self) -> &Inventory {
        &self.inventory
    }
}

impl InventoryIndex {
    /// Name of a host for readers; its uuid if it is not in the inventory.
    pub fn host_name(&self, id: HostId) -> String {
        self.host(id).map_or_else(|_| id.to_string(), |host| host.name.clone())
    }

    /// Name of a VM for readers; its uuid if it is not in the inventory.
    pub fn vm_name(&self, id: VmId) -> String {
        self.vm(id).map_or_else(|_| id.to_string(), |vm| vm.name.clone())
    }
}

fn missing(what: &str, id: impl Display) -> ErrorCode {
    ErrorCode::new(Code::NOT_FOUND, format!("no {what} {id} in the inventory"))
}
