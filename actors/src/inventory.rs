//! What the controller is told to look after: clusters, hosts, storages and VMs, and how often it looks.
//!
//! Invariant: an [`Inventory`] is checked where it is read (names unique, references resolved), so that no
//! actor has to handle a dangling id.

use std::{collections::HashMap, fmt::Display, net::IpAddr, ops::Deref, sync::Arc, time::Duration};

use parking_lot::RwLock;

use ringfence_messages::{
    ClusterId, Code, ErrorCode, HostId, Protocol, Result, StorageId, VmId,
    storage::StorageKind,
    vhost::{DEFAULT_HUGEPAGES, OnTargetLoss},
    vm::{HaMode, InstallPath},
};

use crate::fence::Policy;

/// Everything that is looked after. Lists keep the order of the config.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inventory {
    /// The clusters.
    pub clusters: Vec<Cluster>,
    /// The hosts.
    pub hosts: Vec<Host>,
    /// The storages.
    pub storages: Vec<Storage>,
    /// The VMs.
    pub vms: Vec<Vm>,
}

/// Hosts that share storage and may stand in for each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cluster {
    /// Its id.
    pub id: ClusterId,
    /// Its name.
    pub name: String,
}

/// A host that runs VMs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// Its id.
    pub id: HostId,
    /// Its name.
    pub name: String,
    /// Its cluster.
    pub cluster: ClusterId,
    /// Literal address of its management interface.
    pub management_ip: String,
    /// Its agent's port there.
    pub agent_port: u16,
    /// Its SSH port there.
    pub ssh_port: u16,
    /// Addresses from which it reaches storage; what a storage fence blocks. All of them: a host that writes from
    /// another one goes on.
    pub storage_ips: Vec<IpAddr>,
}

/// A primary storage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Storage {
    /// Its id.
    pub id: StorageId,
    /// Its name.
    pub name: String,
    /// What it is.
    pub kind: StorageKind,
    /// The clusters whose hosts use it.
    pub clusters: Vec<ClusterId>,
    /// The protocols by which they do, in the order in which they are reported. Empty for a kind that has
    /// nothing to deploy on a host.
    pub protocols: Vec<Protocol>,
    /// Directory on every host where volumes of kind `vhost` and `dir` lie; `None` for the agent's own.
    pub volume_dir: Option<String>,
    /// `vhost`: what happens to a guest whose target was lost with requests in flight.
    pub on_target_loss: OnTargetLoss,
    /// Ceph: `ceph.conf` on the hosts, and the user there.
    pub ceph: Option<CephHostAccess>,
    /// Ceph: addresses that watch volumes without running their VMs, such as rbd-mirror's. They are no users of a volume, and
    /// no host's: a storage fence never blocks them.
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
    /// Its id.
    pub id: VmId,
    /// Its name.
    pub name: String,
    /// Its cluster.
    pub cluster: ClusterId,
    /// Whether it is brought back by itself.
    pub ha: HaMode,
    /// Guest memory in MiB.
    pub memory_mib: u64,
    /// More arguments of QEMU; `{host}`, `{vm}` and `{uuid}` are replaced when it starts.
    pub qemu_args: Vec<String>,
    /// A libvirt domain, if it is started through libvirt; the same words are replaced in it.
    pub libvirt_xml: Option<String>,
    /// Its volumes, at least one; the root volume first.
    pub volumes: Vec<Volume>,
}

/// A volume of a VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Volume {
    /// The storage it lies on.
    pub storage: StorageId,
    /// Where on it.
    pub install_path: InstallPath,
    /// Whether the VM boots from it first.
    pub root: bool,
}

/// How hosts are pinged. Defaults as ZStack's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PingSettings {
    /// From the start of one ping of a host to the start of the next. Too low: agents do nothing but answer.
    /// Too high: an outage goes unseen for as long.
    pub interval: Duration,
    /// How long one try may take. Must be positive; larger than `interval` is allowed (a ping in flight is
    /// never doubled).
    pub timeout: Duration,
    /// Tries in a row that must fail before a host is Disconnected; at least 1. Too low: one lost packet
    /// fails a host.
    pub max_failure: u32,
    /// Between a failed try and the next.
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

/// How VMs are brought back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HaSettings {
    /// VMs that are fenced and started at once (I8); at least 1. Too low: a host's VMs come back one by one. Too high:
    /// targets and the storage see a burst.
    pub parallelism: usize,
    /// Percent of a cluster's hosts that may be away at once before nothing is fenced any more; one may always. Too
    /// low: a rack's failure needs a human. Too high: a fault of the controller's own network fences half of a cluster.
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
    /// Whether siblings of other clusters may fence where none of the own can.
    pub cross_cluster_siblings: bool,
    /// Whether the shipped fencer is registered.
    pub sibling_fencer: bool,
    /// How VMs are brought back.
    pub ha: HaSettings,
    /// Hugepages of 2 MiB that a host is prepared with before a vhost target is deployed.
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

/// The directory that is in force, for all actors. Who has to hold still while he works takes one [`now`](Catalog::now) and
/// keeps it; who keeps something for each thing compares it with the next one.
#[derive(Clone, Debug)]
pub struct Catalog(Arc<RwLock<Arc<Directory>>>);

impl Catalog {
    /// With this inventory in force.
    pub fn new(inventory: Inventory) -> Catalog {
        Catalog(Arc::new(RwLock::new(Arc::new(Directory::new(inventory)))))
    }

    /// What is in force.
    pub fn now(&self) -> Arc<Directory> {
        self.0.read().clone()
    }

    /// Puts another one into force.
    pub(crate) fn set(&self, inventory: Inventory) {
        *self.0.write() = Arc::new(Directory::new(inventory));
    }
}

/// An inventory that finds a thing by its id at once. Immutable.
#[derive(Debug, Default)]
pub struct Directory {
    inventory: Inventory,
    clusters: HashMap<ClusterId, usize>,
    hosts: HashMap<HostId, usize>,
    storages: HashMap<StorageId, usize>,
    vms: HashMap<VmId, usize>,
}

impl Directory {
    /// Indexes an inventory.
    pub fn new(inventory: Inventory) -> Directory {
        Directory {
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

impl Deref for Directory {
    type Target = Inventory;

    fn deref(&self) -> &Inventory {
        &self.inventory
    }
}

impl Directory {
    /// A host's name, for people; its uuid where the inventory does not know it any more.
    pub fn host_name(&self, id: HostId) -> String {
        self.host(id).map_or_else(|_| id.to_string(), |host| host.name.clone())
    }

    /// The name of a VM; its id if it is none of ours.
    pub fn vm_name(&self, id: VmId) -> String {
        self.vm(id).map_or_else(|_| id.to_string(), |vm| vm.name.clone())
    }
}

fn missing(what: &str, id: impl Display) -> ErrorCode {
    ErrorCode::new(Code::NOT_FOUND, format!("no {what} {id} in the inventory"))
}
