//! `[[vm]]`: the VMs and their volumes.
//!
//! Invariants: every disk that a VM may write to is declared, because an undeclared disk is neither watched nor
//! fenced. One disk belongs to one volume of one VM. A libvirt domain agrees with the table.

use std::{
    collections::HashMap,
    ops::Range,
    path::{Path, PathBuf},
};

use ringfence_actors::inventory::{Inventory, Storage, Vm, Volume};
use ringfence_drivers::{
    domain_xml::{self, Domain, Source},
    node::qemu,
    qemu_disks,
};
use ringfence_messages::{ClusterId, StorageId, VmId, storage::StorageKind, vm::InstallPath};
use serde_spanned::Spanned;

use super::{
    Checker,
    controller::{Names, parse_id},
    disks::{DiskIdentity, Reach, ceph_cluster, fits},
    raw::{RawLibvirt, RawVm, RawVolume, Text},
    storages::CephAccess,
    text,
};

/// The longest name of a VM: the names of its exports contain it and must fit into a socket's path.
const MAX_VM_NAME: usize = 48;

/// Digits of a VM's uuid that name its folder on a host.
const FOLDER_DIGITS: usize = 12;

/// The largest domain file: real ones have some KiB.
const MAX_DOMAIN_BYTES: u64 = 256 << 10;

/// Results of the earlier tables.
pub(super) struct Known<'a> {
    pub(super) clusters: &'a Names<ClusterId>,
    pub(super) storages: &'a Names<StorageId>,
    pub(super) ceph: &'a HashMap<StorageId, CephAccess>,
    pub(super) mds: &'a HashMap<StorageId, Vec<String>>,
    pub(super) base: &'a Path,
}

/// Disks in use: the VM and its place in the file.
struct Taken {
    disks: HashMap<DiskIdentity, (String, Range<usize>)>,
    /// The cluster of each Ceph storage, by its `ceph.conf`.
    clusters: HashMap<StorageId, String>,
}

/// Reads the VMs.
pub(super) fn vms(c: &mut Checker, tables: &[Spanned<RawVm>], known: &Known<'_>, inventory: &mut Inventory) {
    let mut names = Names::<VmId>::of("VM");
    let clusters = known.ceph.iter().map(|(id, access)| (*id, ceph_cluster(&access.cluster.conf))).collect();
    let mut taken = Taken { disks: HashMap::new(), clusters };
    for table in tables {
        let of = table.get_ref();
        let id = names.add(c, &of.name, of.uuid.as_ref(), MAX_VM_NAME, parse_id, VmId::from_name);
        let cluster = known.clusters.find(c, &of.cluster);
        if !qemu::MEMORY_MIB.contains(of.memory_mib.get_ref()) {
            let (least, most) = (qemu::MEMORY_MIB.start(), qemu::MEMORY_MIB.end());
            let message = format!("`memory_mib` = {} is out of range ({least} to {most})", of.memory_mib.get_ref());
            c.wrong(of.memory_mib.span(), message, "the unit is MiB: 1024 are 1 GiB");
        }
        arguments(c, &of.qemu_args);
        let mut volumes = Vec::new();
        for table in &of.volume {
            volumes.extend(volume(c, table.get_ref(), of, cluster, known, &mut taken, inventory));
        }
        roots(c, of);
        volumes.sort_by_key(|volume| !volume.root);
        let storages = &inventory.storages;
        let libvirt_xml =
            of.libvirt.as_ref().and_then(|libvirt| domain(c, libvirt, of, id, &volumes, storages, known.base));
        let Some(cluster) = cluster else { continue };
        inventory.vms.push(Vm {
            id,
            name: of.name.get_ref().clone(),
            cluster,
            ha: of.ha,
            memory_mib: *of.memory_mib.get_ref(),
            qemu_args: of.qemu_args.iter().map(|arg| arg.get_ref().clone()).collect(),
            libvirt_xml,
            volumes,
        });
    }
    names.check_folders(c, FOLDER_DIGITS, |n| {
        let of = tables[n].get_ref();
        of.uuid.as_ref().unwrap_or(&of.name).span()
    });
}

/// Rejects arguments that the agent sets, and disks.
fn arguments(c: &mut Checker, args: &[Text]) {
    for arg in args.iter().filter(|arg| qemu::reserved(arg.get_ref())) {
        c.wrong(arg.span(), format!("{} is set by the agent", arg.get_ref()), "remove it and its value");
    }
    let plain: Vec<&str> = args.iter().map(|arg| arg.get_ref().as_str()).collect();
    for found in qemu_disks::find(&plain) {
        let arg = &args[found.at];
        if !qemu::reserved(arg.get_ref()) {
            let message = format!("`{}` may open a disk that is neither watched nor fenced", found.what);
            let help = "declare it as a [[vm.volume]]; a disk that is only read may have readonly=on or media=cdrom";
            c.wrong(arg.span(), message, help);
        }
    }
}

fn volume(
    c: &mut Checker,
    volume: &RawVolume,
    of: &RawVm,
    cluster: Option<ClusterId>,
    known: &Known<'_>,
    taken: &mut Taken,
    inventory: &Inventory,
) -> Option<Volume> {
    let at = volume.install_path.span();
    let storage = known.storages.find(c, &volume.storage);
    let path = c.ok(at.clone(), text::install_path(volume.install_path.get_ref()));
    let (storage, install_path) = (storage?, path?);
    if let Some(kind) = inventory.storages.iter().find(|s| s.id == storage) {
        if !fits(kind.kind, &install_path) {
            let message = format!("{install_path} is not a volume of a storage of kind {:?}", kind.kind);
            c.wrong(at.clone(), message, format!("write {}, or set another storage", form(kind.kind)));
        }
        if let (InstallPath::Ceph { pool, .. }, Some(CephAccess { pool: of_storage, .. })) =
            (&install_path, known.ceph.get(&storage))
            && pool != of_storage
        {
            let message = format!("{install_path} is not in pool {of_storage:?} of storage {:?}", kind.name);
            c.wrong(at.clone(), message, format!("write ceph://{of_storage}/IMAGE"));
        }
        if let Some(cluster) = cluster
            && !kind.clusters.contains(&cluster)
        {
            let message = format!("storage {:?} is not attached to cluster {:?}", kind.name, of.cluster.get_ref());
            c.wrong(volume.storage.span(), message, "add the cluster to the storage's clusters");
        }
        let mds = known.mds.get(&storage).map(Vec::as_slice).unwrap_or_default();
        let reach = Reach { ceph: taken.clusters.get(&storage).map(String::as_str), mds };
        let names = DiskIdentity::all(kind, &reach, &install_path);
        if let Some((other, first)) = names.iter().find_map(|name| taken.disks.get(name)) {
            let message = format!("{install_path} is already a volume of {other} ({})", c.place(first));
            c.wrong(at.clone(), message, "a disk has one writer: use another volume");
        }
        for name in names {
            taken.disks.entry(name).or_insert_with(|| (of.name.get_ref().clone(), at.clone()));
        }
    }
    Some(Volume { storage, install_path, root: volume.root })
}

fn roots(c: &mut Checker, of: &RawVm) {
    let (message, help) = match of.volume.iter().filter(|volume| volume.get_ref().root).count() {
        _ if of.volume.is_empty() => ("the VM has no volume".to_owned(), "add a [[vm.volume]] table with root = true"),
        0 => ("none of its volumes has root = true".to_owned(), "add root = true to the boot volume"),
        1 => return,
        n => (format!("{n} of its volumes have root = true"), "keep root = true on one of them"),
    };
    c.wrong(of.name.span(), message, help);
}

/// The libvirt domain of a VM, with exactly its disks. `volumes` are in the sequence of their numbers, the root
/// volume first.
fn domain(
    c: &mut Checker,
    libvirt: &RawLibvirt,
    of: &RawVm,
    id: VmId,
    volumes: &[Volume],
    storages: &[Storage],
    base: &Path,
) -> Option<String> {
    let (path, name, at) = (base.join(libvirt.xml.get_ref()), of.name.get_ref(), libvirt.xml.span());
    let shown = path.display();
    let xml = c.ok(at.clone(), read_domain(&path))?;
    let filled = xml.replace("{vm}", name).replace("{uuid}", &id.to_string());
    let read = domain_xml::read(&filled).map_err(|why| {
        (format!("{shown}: {why}"), "use a file with a libvirt <domain> (virsh dumpxml --inactive)".to_owned())
    });
    let domain = c.ok(at.clone(), read)?;
    for (what, placeholder, actual, expected) in
        [("name", "vm", &domain.name, name.clone()), ("uuid", "uuid", &domain.uuid, id.to_string())]
    {
        if *actual != expected {
            let message =
                format!("{shown} is not the domain of {name}: its {what} is {actual:?} instead of {expected}");
            let help = format!(
                "write <{what}>{expected}</{what}> or <{what}>{{{placeholder}}}</{what}> in the domain, or give the VM \
                 the domain's own {what}"
            );
            c.wrong(at.clone(), message, help);
        }
    }
    // Undeclared disks can only be found once all volumes are valid.
    if volumes.len() == of.volume.len() {
        for (message, help) in undeclared(&domain, name, volumes, storages) {
            c.wrong(at.clone(), format!("{shown}: {message}"), help);
        }
    }
    Some(xml)
}

fn read_domain(path: &Path) -> text::Read<String> {
    let shown = path.display();
    let failed = |why: String| (format!("{shown}: {why}"), "use a file with a libvirt <domain>".to_owned());
    let found = std::fs::metadata(path).map_err(|e| failed(e.to_string()))?;
    if !found.is_file() {
        return Err(failed("it is not a file".to_owned()));
    }
    if found.len() > MAX_DOMAIN_BYTES {
        return Err(failed(format!("{} bytes are too many for a domain (at most {MAX_DOMAIN_BYTES})", found.len())));
    }
    std::fs::read_to_string(path).map_err(|e| failed(e.to_string()))
}

/// Disks of a domain that are not volumes, and volumes of a VM that are not disks.
fn undeclared(domain: &Domain, vm: &str, volumes: &[Volume], storages: &[Storage]) -> Vec<(String, String)> {
    let is = |source: &Source, n: usize, volume: &Volume| {
        let storage = storages.iter().find(|storage| storage.id == volume.storage);
        storage.is_some_and(|storage| is_volume(source, storage, &volume.install_path, &format!("{vm}-{n}")))
    };
    let matching = |source: &Source| volumes.iter().enumerate().find(|(n, volume)| is(source, *n, volume));
    let mut wrong = Vec::new();
    for disk in domain.disks.iter().filter(|disk| matching(&disk.source).is_none()) {
        wrong.push((
            format!("{disk} is writable but not a volume of {vm}, so it is neither watched nor fenced"),
            "declare it as a [[vm.volume]], make it <readonly/>, or remove it from the domain".to_owned(),
        ));
    }
    for (n, volume) in volumes.iter().enumerate() {
        if !domain.disks.iter().any(|disk| is(&disk.source, n, volume)) {
            wrong.push((
                format!("the domain has no disk for {}, a volume of {vm}", volume.install_path),
                "add the disk to the domain, or remove the [[vm.volume]]".to_owned(),
            ));
        }
    }
    wrong
}

/// Whether a domain's disk is this volume. The socket of a target has the name of the export: `VM-N`.
fn is_volume(source: &Source, storage: &Storage, path: &InstallPath, export: &str) -> bool {
    match (source, path) {
        (Source::Rbd { pool, image }, InstallPath::Ceph { pool: of, image: named }) => (pool, image) == (of, named),
        (Source::Path(disk), InstallPath::Dir { file }) => {
            let dir = storage.volume_dir.as_deref().unwrap_or_default();
            disk.split('/')
                .filter(|part| !part.is_empty())
                .eq(dir.split('/').chain([file.as_str()]).filter(|part| !part.is_empty()))
        }
        (Source::Socket(socket), InstallPath::Vhost { .. } | InstallPath::Zbs { .. } | InstallPath::Cbd { .. }) => {
            PathBuf::from(socket).file_stem().is_some_and(|stem| stem == export)
        }
        _ => false,
    }
}

fn form(kind: StorageKind) -> &'static str {
    match kind {
        StorageKind::Ceph => "ceph://POOL/IMAGE",
        StorageKind::Zbs => "zbs://POOL/VOLUME or cbd:PHYSICAL/LOGICAL/VOLUME",
        StorageKind::Vhost => "vhost://NAME",
        StorageKind::Dir => "dir://FILE",
    }
}
