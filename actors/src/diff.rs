//! The difference between two inventories, and which changes must wait.
//!
//! Purpose: hosts, storages and VMs are added, changed and removed without a restart; the rest keeps running.
//! Invariants: a VM is removed only when it is verified stopped (I1). A host is removed only after its agent listed
//! no VM of the inventory, or after an operator attested that it is off. An address that a storage rejects cannot
//! change while the fence that must be removed exists.
//! Alternatives considered: restart all actors on the new inventory. It is as safe as a crash, and as blind until
//! every host is pinged.

use std::{
    collections::{HashMap, HashSet},
    fmt,
};

use ringfence_messages::{
    ClusterId, HostId, StorageId, VmId,
    host::{HostInventory, HostState},
    vm::{VmInventory, VmState},
};

use crate::inventory::{Cluster, Host, Inventory, Storage, Vm};

/// Characters of a value that a change shows. Too low: values look alike. Too high: a libvirt domain has thousands.
const SHOWN_CHARS: usize = 120;

/// One item that differs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ItemDiff<Id> {
    /// Id of the item.
    pub id: Id,
    /// Name of the item; the new one if it changed.
    pub name: String,
    /// How the item differs.
    pub kind: ChangeKind,
}

/// How an item differs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ChangeKind {
    /// Only in the new inventory.
    Added,
    /// In both, with these fields changed.
    Changed(Vec<FieldChange>),
    /// Only in the old inventory.
    Removed,
}

/// A field of an item.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "each is named in the config")]
pub enum Field {
    Name,
    Cluster,
    Clusters,
    ManagementIp,
    AgentPort,
    SshPort,
    StorageIps,
    Kind,
    Protocols,
    Dir,
    OnTargetLoss,
    HostConf,
    HostUser,
    WatchersAllowed,
    Ha,
    MemoryMib,
    QemuArgs,
    LibvirtXml,
    Volumes,
}

impl Field {
    /// The key in the config.
    pub fn name(self) -> &'static str {
        match self {
            Field::Name => "name",
            Field::Cluster => "cluster",
            Field::Clusters => "clusters",
            Field::ManagementIp => "management_ip",
            Field::AgentPort => "agent_port",
            Field::SshPort => "ssh_port",
            Field::StorageIps => "storage_ips",
            Field::Kind => "kind",
            Field::Protocols => "protocols",
            Field::Dir => "dir",
            Field::OnTargetLoss => "on_target_loss",
            Field::HostConf => "host_conf",
            Field::HostUser => "host_user",
            Field::WatchersAllowed => "watchers_allowed",
            Field::Ha => "ha",
            Field::MemoryMib => "memory_mib",
            Field::QemuArgs => "qemu_args",
            Field::LibvirtXml => "libvirt.xml",
            Field::Volumes => "volumes",
        }
    }
}

/// A field that changed. `field` decides what is rejected; `was` and `is` are for readers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldChange {
    /// Which field changed.
    pub field: Field,
    /// Old value, shortened.
    pub was: String,
    /// New value, shortened.
    pub is: String,
}

impl fmt::Display for FieldChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} -> {}", self.field.name(), self.was, self.is)
    }
}

/// Every difference between two inventories.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InventoryDiff {
    /// Clusters that differ.
    pub clusters: Vec<ItemDiff<ClusterId>>,
    /// Hosts that differ.
    pub hosts: Vec<ItemDiff<HostId>>,
    /// Storages that differ.
    pub storages: Vec<ItemDiff<StorageId>>,
    /// VMs that differ.
    pub vms: Vec<ItemDiff<VmId>>,
}

/// Observed state at the time of a change.
pub struct CurrentState<'a> {
    /// All hosts.
    pub hosts: &'a [HostInventory],
    /// Hosts in quarantine: their storage may reject them.
    pub quarantined: &'a HashSet<HostId>,
    /// All VMs.
    pub vms: &'a [VmInventory],
}

impl InventoryDiff {
    /// Compares two inventories.
    pub fn between(old: &Inventory, new: &Inventory) -> InventoryDiff {
        let names = |inventory: &Inventory| {
            inventory.clusters.iter().map(|cluster| (cluster.id, cluster.name.clone())).collect::<HashMap<_, _>>()
        };
        let (before, after) = (names(old), names(new));
        let cluster = |id| after.get(&id).or(before.get(&id)).cloned().unwrap_or_default();
        let storages: HashMap<StorageId, &str> =
            old.storages.iter().chain(&new.storages).map(|s| (s.id, s.name.as_str())).collect();
        InventoryDiff {
            clusters: differences(&old.clusters, &new.clusters, |c| (c.id, &c.name), cluster_fields),
            hosts: differences(&old.hosts, &new.hosts, |h| (h.id, &h.name), |h| host_fields(h, cluster(h.cluster))),
            storages: differences(
                &old.storages,
                &new.storages,
                |s| (s.id, &s.name),
                |s| storage_fields(s, s.clusters.iter().map(|id| cluster(*id)).collect()),
            ),
            vms: differences(&old.vms, &new.vms, |v| (v.id, &v.name), |v| vm_fields(v, cluster(v.cluster), &storages)),
        }
    }

    /// Whether the inventories are equal.
    pub fn is_empty(&self) -> bool {
        *self == InventoryDiff::default()
    }

    /// One line for each item: `+ host host-d`, `~ VM vm1: memory_mib: 1024 -> 2048`, `- storage old`.
    pub fn lines(&self) -> Vec<String> {
        let (clusters, hosts) = (shown("cluster", &self.clusters), shown("host", &self.hosts));
        [clusters, hosts, shown("storage", &self.storages), shown("VM", &self.vms)].concat()
    }

    /// Reasons why the change is rejected now, each with its remedy; empty if it is allowed.
    pub fn refusals(&self, current: &CurrentState<'_>) -> Vec<String> {
        let hosts = self.hosts.iter().filter_map(|item| host_refusal(item, current));
        let storages = self.storages.iter().filter_map(|item| storage_refusal(item, current));
        let vms = self.vms.iter().filter_map(|item| vm_refusal(item, current));
        hosts.chain(storages).chain(vms).collect()
    }
}

fn host_refusal(item: &ItemDiff<HostId>, current: &CurrentState<'_>) -> Option<String> {
    let (name, host) = (&item.name, current.hosts.iter().find(|host| host.uuid == item.id)?);
    if current.quarantined.contains(&item.id) {
        return Some(format!(
            "host {name} is in quarantine: its storage may reject it; change it after the quarantine ends"
        ));
    }
    let on_host = current.vms.iter().filter(|vm| vm.last_host_uuid == Some(item.id) && vm.state != VmState::Stopped);
    let vms: Vec<&str> = on_host.map(|vm| vm.name.as_str()).collect();
    match &item.kind {
        ChangeKind::Changed(fields) if !vms.is_empty() && touches(fields, &[Field::Cluster, Field::StorageIps]) => {
            Some(format!(
                "host {name} has VMs ({}): `cluster` and `storage_ips` cannot change while it has any; drain the host \
                 or stop them first",
                vms.join(", ")
            ))
        }
        ChangeKind::Removed if !vms.is_empty() => Some(format!(
            "host {name} has VMs ({}): move them with `ringfence host drain {name}`, or stop them first",
            vms.join(", ")
        )),
        ChangeKind::Removed if host.state != HostState::Maintenance => Some(format!(
            "host {name} is in service; run `ringfence host maintain {name}` first, so that no VM starts on it"
        )),
        _ => None,
    }
}

fn touches(changed: &[FieldChange], any: &[Field]) -> bool {
    changed.iter().any(|change| any.contains(&change.field))
}

fn storage_refusal(item: &ItemDiff<StorageId>, current: &CurrentState<'_>) -> Option<String> {
    let ChangeKind::Changed(fields) = &item.kind else { return None };
    if !touches(fields, &[Field::Kind]) {
        return None;
    }
    let uses = |vm: &&VmInventory| vm.volumes.iter().any(|volume| volume.primary_storage_uuid == item.id);
    let user = current.vms.iter().filter(uses).find(|vm| vm.state != VmState::Stopped)?;
    Some(format!(
        "storage {} is used by VM {}: `kind` cannot change while a VM on it runs; stop the VM first",
        item.name, user.name
    ))
}

fn vm_refusal(item: &ItemDiff<VmId>, current: &CurrentState<'_>) -> Option<String> {
    let vm = current.vms.iter().find(|vm| vm.uuid == item.id).filter(|vm| vm.state != VmState::Stopped)?;
    let (name, state) = (&vm.name, vm.state);
    match &item.kind {
        ChangeKind::Removed => Some(format!("VM {name} is {state:?}; run `ringfence vm stop {name}` first")),
        ChangeKind::Changed(fields) if touches(fields, &[Field::Name, Field::Cluster, Field::Volumes]) => {
            Some(format!("VM {name} is {state:?}: `name`, `cluster` and `volumes` cannot change; stop the VM first"))
        }
        _ => None,
    }
}

fn shown<Id>(noun: &str, items: &[ItemDiff<Id>]) -> Vec<String> {
    let line = |item: &ItemDiff<Id>| match &item.kind {
        ChangeKind::Added => format!("+ {noun} {}", item.name),
        ChangeKind::Removed => format!("- {noun} {}", item.name),
        ChangeKind::Changed(fields) => format!("~ {noun} {}: {}", item.name, list(fields, ", ")),
    };
    items.iter().map(line).collect()
}

/// Compares items by id, and field by field as shown.
fn differences<T, Id: Copy + Eq + std::hash::Hash>(
    old: &[T],
    new: &[T],
    key: impl Fn(&T) -> (Id, &String),
    fields: impl Fn(&T) -> Vec<(Field, String)>,
) -> Vec<ItemDiff<Id>> {
    let before: HashMap<Id, &T> = old.iter().map(|item| (key(item).0, item)).collect();
    let after: HashMap<Id, &T> = new.iter().map(|item| (key(item).0, item)).collect();
    let mut all = Vec::new();
    for item in new {
        let (id, name) = key(item);
        let kind = match before.get(&id) {
            None => ChangeKind::Added,
            Some(before) => {
                let pairs = fields(before).into_iter().zip(fields(item)).filter(|(was, is)| was != is);
                let change = |((field, was), (_, is)): ((_, String), (_, String))| FieldChange {
                    field,
                    was: short(&was),
                    is: short(&is),
                };
                let changed: Vec<FieldChange> = pairs.map(change).collect();
                if changed.is_empty() {
                    continue;
                }
                ChangeKind::Changed(changed)
            }
        };
        all.push(ItemDiff { id, name: name.clone(), kind });
    }
    let removed = old.iter().map(key).filter(|(id, _)| !after.contains_key(id));
    all.extend(removed.map(|(id, name)| ItemDiff { id, name: name.clone(), kind: ChangeKind::Removed }));
    all
}

// Each of these destructures all fields: a field that is added and not compared does not compile.

fn cluster_fields(cluster: &Cluster) -> Vec<(Field, String)> {
    let Cluster { id: _, name } = cluster;
    vec![(Field::Name, name.clone())]
}

fn host_fields(host: &Host, cluster: String) -> Vec<(Field, String)> {
    let Host { id: _, name, cluster: _, management_ip, agent_port, ssh_port, storage_ips } = host;
    vec![
        (Field::Name, name.clone()),
        (Field::Cluster, cluster),
        (Field::ManagementIp, management_ip.clone()),
        (Field::AgentPort, agent_port.to_string()),
        (Field::SshPort, ssh_port.to_string()),
        (Field::StorageIps, list(storage_ips, " ")),
    ]
}

fn storage_fields(storage: &Storage, cluster_names: Vec<String>) -> Vec<(Field, String)> {
    let Storage { id: _, name, kind, clusters: _, protocols, volume_dir, on_target_loss, ceph, watchers_allowed } =
        storage;
    vec![
        (Field::Name, name.clone()),
        (Field::Kind, format!("{kind:?}").to_lowercase()),
        (Field::Clusters, list(&cluster_names, " ")),
        (Field::Protocols, list(protocols, " ")),
        (Field::Dir, volume_dir.clone().unwrap_or_default()),
        (Field::OnTargetLoss, format!("{on_target_loss:?}").to_lowercase()),
        (Field::HostConf, ceph.as_ref().map(|access| access.conf.clone()).unwrap_or_default()),
        (Field::HostUser, ceph.as_ref().map(|access| access.user.clone()).unwrap_or_default()),
        (Field::WatchersAllowed, list(watchers_allowed, " ")),
    ]
}

fn vm_fields(vm: &Vm, cluster: String, storages: &HashMap<StorageId, &str>) -> Vec<(Field, String)> {
    let Vm { id: _, name, cluster: _, ha, memory_mib, qemu_args, libvirt_xml, volumes } = vm;
    let volume = |volume: &crate::inventory::Volume| {
        let root = if volume.root { " (root)" } else { "" };
        format!("{} on {}{root}", volume.install_path, storages.get(&volume.storage).copied().unwrap_or_default())
    };
    vec![
        (Field::Name, name.clone()),
        (Field::Cluster, cluster),
        (Field::Ha, format!("{ha:?}")),
        (Field::MemoryMib, memory_mib.to_string()),
        (Field::QemuArgs, qemu_args.join(" ")),
        (Field::LibvirtXml, libvirt_xml.clone().unwrap_or_default()),
        (Field::Volumes, volumes.iter().map(volume).collect::<Vec<_>>().join("; ")),
    ]
}

/// At most [`SHOWN_CHARS`] of a value, on one line.
fn short(value: &str) -> String {
    let mut chars = value.chars().map(|c| if c.is_control() { ' ' } else { c });
    let mut shown: String = chars.by_ref().take(SHOWN_CHARS).collect();
    if chars.next().is_some() {
        shown.push_str("...");
    }
    if shown.is_empty() { "none".to_owned() } else { shown }
}

fn list<T: fmt::Display>(all: &[T], between: &str) -> String {
    all.iter().map(T::to_string).collect::<Vec<_>>().join(between)
}
