//! A change of the inventory while everything runs: what is another, and what may not be changed now.
//!
//! Purpose: hosts, storages and VMs come and go without a restart; nothing that stays notices. Invariants: what may write
//! to a disk does not leave the inventory: a VM goes only when it is verified stopped, a host only when it was asked, or a
//! human attests that it is off, and nothing of ours is left on it (I1). An address that the storage refuses is not changed
//! under the fence that has to lift it.
//! Rejected: starting all actors anew on the new inventory. It is as safe as a crash, and as blind until every host was pinged.

use std::{
    collections::{HashMap, HashSet},
    fmt,
};

use ringfence_messages::{
    ClusterId, HostId, StorageId, VmId,
    agent::Done,
    event,
    host::{HostInventory, HostState},
    message,
    vm::{VmInventory, VmState},
};
use serde::{Deserialize, Serialize};

use crate::inventory::{Cluster, Host, Inventory, Storage, Vm};

/// Characters of a value that a change shows: a libvirt domain has thousands.
const SHOWN_CHARS: usize = 120;

/// What an actor looks after leaves the inventory: it ends. One that cannot yet refuses.
#[derive(Debug, Serialize, Deserialize)]
pub struct RetireMsg {}
message!(RetireMsg, 1 => Done);

/// A host leaves the inventory, with nothing of the VM left there: a stopped VM need not ask it any more.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ForgetHostMsg {
    /// The host.
    pub host_uuid: HostId,
}
message!(ForgetHostMsg, 1 => VmInventory);

/// The inventory is another from here on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct InventoryChanged {
    /// Who changed it: a token's name, or `a local user`.
    pub by: String,
    /// What is another, a line each, as [`Change`] shows it.
    pub changes: Vec<String>,
}
event!(InventoryChanged, "inventory.changed", 1, |_e| "inventory".to_owned());

/// One thing that is another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference<Id> {
    /// Its id.
    pub id: Id,
    /// Its name; the new one where it changed.
    pub name: String,
    /// How.
    pub how: How,
}

/// How a thing is another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum How {
    /// It was not there.
    Added,
    /// These fields of it are others.
    Changed(Vec<FieldChange>),
    /// It is not there any more.
    Removed,
}

/// A field of a thing, as the config calls it.
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
    /// What the config calls it.
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

/// A field that is another: which one decides what is refused; was and is are for readers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldChange {
    /// Which.
    pub field: Field,
    /// What it was, shortened.
    pub was: String,
    /// What it is, shortened.
    pub is: String,
}

impl fmt::Display for FieldChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} -> {}", self.field.name(), self.was, self.is)
    }
}

/// What is another between two inventories.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// Clusters.
    pub clusters: Vec<Difference<ClusterId>>,
    /// Hosts.
    pub hosts: Vec<Difference<HostId>>,
    /// Storages.
    pub storages: Vec<Difference<StorageId>>,
    /// VMs.
    pub vms: Vec<Difference<VmId>>,
}

/// What is known of everything at the time of a change.
pub struct Known<'a> {
    /// The hosts.
    pub hosts: &'a [HostInventory],
    /// Those that are in quarantine: their storage may refuse them.
    pub quarantined: &'a HashSet<HostId>,
    /// The VMs.
    pub vms: &'a [VmInventory],
}

impl Change {
    /// What has to be done to get from one to the other.
    pub fn between(old: &Inventory, new: &Inventory) -> Change {
        let names = |of: &Inventory| of.clusters.iter().map(|c| (c.id, c.name.clone())).collect::<HashMap<_, _>>();
        let (before, after) = (names(old), names(new));
        let cluster = |id| after.get(&id).or(before.get(&id)).cloned().unwrap_or_default();
        let storages: HashMap<StorageId, &str> =
            old.storages.iter().chain(&new.storages).map(|s| (s.id, s.name.as_str())).collect();
        Change {
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

    /// Whether nothing is another.
    pub fn is_empty(&self) -> bool {
        *self == Change::default()
    }

    /// A line for each thing: `+ host host-d`, `~ VM vm1: memory_mib: 1024 -> 2048`, `- storage old`.
    pub fn lines(&self) -> Vec<String> {
        let (clusters, hosts) = (shown("cluster", &self.clusters), shown("host", &self.hosts));
        [clusters, hosts, shown("storage", &self.storages), shown("VM", &self.vms)].concat()
    }

    /// Why it may not be made now, a line for each reason with what would let it; none if it may.
    pub fn refusals(&self, known: &Known<'_>) -> Vec<String> {
        let hosts = self.hosts.iter().filter_map(|of| host_refusal(of, known));
        let storages = self.storages.iter().filter_map(|of| storage_refusal(of, known));
        let vms = self.vms.iter().filter_map(|of| vm_refusal(of, known));
        hosts.chain(storages).chain(vms).collect()
    }
}

fn host_refusal(of: &Difference<HostId>, known: &Known<'_>) -> Option<String> {
    let (name, host) = (&of.name, known.hosts.iter().find(|host| host.uuid == of.id)?);
    if known.quarantined.contains(&of.id) {
        return Some(format!(
            "host {name} is in quarantine, its storage may refuse it: it stays as it is until that ends"
        ));
    }
    let there = known.vms.iter().filter(|vm| vm.last_host_uuid == Some(of.id) && vm.state != VmState::Stopped);
    let there: Vec<&str> = there.map(|vm| vm.name.as_str()).collect();
    match &of.how {
        How::Changed(fields) if !there.is_empty() && touches(fields, &[Field::Cluster, Field::StorageIps]) => Some(
            format!("host {name} has VMs ({}): its cluster and storage_ips change only without any", there.join(", ")),
        ),
        How::Removed if !there.is_empty() => Some(format!(
            "host {name} has VMs ({}): `ringfence host drain {name}` moves them, or stop them first",
            there.join(", ")
        )),
        How::Removed if host.state != HostState::Maintenance => Some(format!(
            "host {name} is in service: `ringfence host maintain {name}` first, so that nothing is started on it"
        )),
        _ => None,
    }
}

fn touches(changed: &[FieldChange], any: &[Field]) -> bool {
    changed.iter().any(|of| any.contains(&of.field))
}

fn storage_refusal(of: &Difference<StorageId>, known: &Known<'_>) -> Option<String> {
    let How::Changed(fields) = &of.how else { return None };
    let kind = touches(fields, &[Field::Kind]);
    let uses = |vm: &&VmInventory| vm.volumes.iter().any(|volume| volume.primary_storage_uuid == of.id);
    let user = known.vms.iter().filter(uses).find(|vm| vm.state != VmState::Stopped)?;
    kind.then(|| format!("storage {} is used by {}: its kind changes only while no VM on it runs", of.name, user.name))
}

fn vm_refusal(of: &Difference<VmId>, known: &Known<'_>) -> Option<String> {
    let vm = known.vms.iter().find(|vm| vm.uuid == of.id).filter(|vm| vm.state != VmState::Stopped)?;
    let (name, state) = (&vm.name, vm.state);
    let bound = [Field::Name, Field::Cluster, Field::Volumes];
    match &of.how {
        How::Removed => Some(format!("VM {name} is {state:?}: `ringfence vm stop {name}` first")),
        How::Changed(fields) if touches(fields, &bound) => {
            Some(format!("VM {name} is {state:?}: its name, cluster and volumes change only while it is stopped"))
        }
        _ => None,
    }
}

fn shown<Id>(kind: &str, all: &[Difference<Id>]) -> Vec<String> {
    let line = |of: &Difference<Id>| match &of.how {
        How::Added => format!("+ {kind} {}", of.name),
        How::Removed => format!("- {kind} {}", of.name),
        How::Changed(fields) => format!("~ {kind} {}: {}", of.name, list(fields, ", ")),
    };
    all.iter().map(line).collect()
}

/// Compares things by id, field by field as they are shown.
fn differences<T, Id: Copy + Eq + std::hash::Hash>(
    old: &[T],
    new: &[T],
    key: impl Fn(&T) -> (Id, &String),
    fields: impl Fn(&T) -> Vec<(Field, String)>,
) -> Vec<Difference<Id>> {
    let before: HashMap<Id, &T> = old.iter().map(|of| (key(of).0, of)).collect();
    let after: HashMap<Id, &T> = new.iter().map(|of| (key(of).0, of)).collect();
    let mut all = Vec::new();
    for of in new {
        let (id, name) = key(of);
        let how = match before.get(&id) {
            None => How::Added,
            Some(before) => {
                let both = fields(before).into_iter().zip(fields(of)).filter(|(a, b)| a != b);
                let change = |((field, was), (_, is)): ((_, String), (_, String))| FieldChange {
                    field,
                    was: short(&was),
                    is: short(&is),
                };
                let changed: Vec<FieldChange> = both.map(change).collect();
                if changed.is_empty() {
                    continue;
                }
                How::Changed(changed)
            }
        };
        all.push(Difference { id, name: name.clone(), how });
    }
    let gone = old.iter().map(key).filter(|(id, _)| !after.contains_key(id));
    all.extend(gone.map(|(id, name)| Difference { id, name: name.clone(), how: How::Removed }));
    all
}

// All fields by name in each of these: one that is added and not compared does not compile.

fn cluster_fields(of: &Cluster) -> Vec<(Field, String)> {
    let Cluster { id: _, name } = of;
    vec![(Field::Name, name.clone())]
}

fn host_fields(of: &Host, cluster: String) -> Vec<(Field, String)> {
    let Host { id: _, name, cluster: _, management_ip, agent_port, ssh_port, storage_ips } = of;
    vec![
        (Field::Name, name.clone()),
        (Field::Cluster, cluster),
        (Field::ManagementIp, management_ip.clone()),
        (Field::AgentPort, agent_port.to_string()),
        (Field::SshPort, ssh_port.to_string()),
        (Field::StorageIps, list(storage_ips, " ")),
    ]
}

fn storage_fields(of: &Storage, of_clusters: Vec<String>) -> Vec<(Field, String)> {
    let Storage { id: _, name, kind, clusters: _, protocols, volume_dir, on_target_loss, ceph, watchers_allowed } = of;
    vec![
        (Field::Name, name.clone()),
        (Field::Kind, format!("{kind:?}").to_lowercase()),
        (Field::Clusters, list(&of_clusters, " ")),
        (Field::Protocols, list(protocols, " ")),
        (Field::Dir, volume_dir.clone().unwrap_or_default()),
        (Field::OnTargetLoss, format!("{on_target_loss:?}").to_lowercase()),
        (Field::HostConf, ceph.as_ref().map(|of| of.conf.clone()).unwrap_or_default()),
        (Field::HostUser, ceph.as_ref().map(|of| of.user.clone()).unwrap_or_default()),
        (Field::WatchersAllowed, list(watchers_allowed, " ")),
    ]
}

fn vm_fields(of: &Vm, cluster: String, storages: &HashMap<StorageId, &str>) -> Vec<(Field, String)> {
    let Vm { id: _, name, cluster: _, ha, memory_mib, qemu_args, libvirt_xml, volumes } = of;
    let volume = |of: &crate::inventory::Volume| {
        let root = if of.root { " (root)" } else { "" };
        format!("{} on {}{root}", of.install_path, storages.get(&of.storage).copied().unwrap_or_default())
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

#[cfg(test)]
mod tests {
    use ringfence_messages::{Event, topics};

    use super::*;

    #[test]
    fn the_event_has_the_topic_that_is_listed() {
        assert_eq!(InventoryChanged::TOPIC, topics::INVENTORY_CHANGED);
    }
}
