//! `[[storage]]`: the storages and their access.

use std::{collections::HashMap, net::IpAddr, ops::Range, path::Path};

use ringfence_actors::inventory::{CephHostAccess, Host, Inventory, Storage};
use ringfence_drivers::ceph::Ceph;
use ringfence_messages::{ClusterId, Protocol, StorageId, storage::StorageKind};
use serde_spanned::Spanned;

use super::{
    Checker,
    controller::{Names, parse_id},
    hosts::of_one_host,
    raw::RawStorage,
    text,
};

/// The MDS agents of a ZBS storage, by URL.
pub type MdsAccess = Vec<String>;

/// The controller's own access to a Ceph storage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CephAccess {
    /// The cluster and the user.
    pub cluster: Ceph,
    /// The pool of the volumes.
    pub pool: String,
}

/// Digits of a storage's uuid that name its folder on a host.
pub(super) const FOLDER_DIGITS: usize = 8;

/// Reads one storage.
#[allow(clippy::too_many_arguments)]
pub(super) fn storage(
    c: &mut Checker,
    of: &RawStorage,
    at: Range<usize>,
    clusters: &Names<ClusterId>,
    names: &mut Names<StorageId>,
    mds: &mut HashMap<StorageId, MdsAccess>,
    inventory: &mut Inventory,
) {
    let id = names.add(c, &of.name, of.uuid.as_ref(), 64, parse_id, StorageId::from_name);
    let of_clusters: Vec<ClusterId> = of.clusters.iter().filter_map(|name| clusters.find(c, name)).collect();
    if of.clusters.is_empty() {
        c.wrong(at.clone(), "no cluster uses this storage", "add its clusters: clusters = [\"NAME\"]");
    }
    let (allowed, by_default): (&[Protocol], &[Protocol]) = match of.kind {
        StorageKind::Vhost => (&[Protocol::Vhost], &[Protocol::Vhost]),
        StorageKind::Zbs => (&[Protocol::Cbd, Protocol::Vhost], &[Protocol::Cbd, Protocol::Vhost]),
        StorageKind::Ceph | StorageKind::Dir => (&[], &[]),
    };
    let mut protocols = Vec::new();
    for protocol in of.protocols.iter().flatten() {
        let (p, kind) = (*protocol.get_ref(), of.kind);
        if !allowed.contains(&p) {
            let known: Vec<_> = allowed.iter().map(|p| format!("\"{p}\"")).collect();
            let help =
                if known.is_empty() { "omit `protocols`".into() } else { format!("write {}", known.join(" or ")) };
            c.wrong(protocol.span(), format!("a storage of kind {kind:?} has no protocol {p}"), help);
        } else if protocols.contains(&p) {
            c.wrong(protocol.span(), format!("{p} is listed twice"), "remove one of the two");
        }
        protocols.push(p);
    }
    if of.protocols.is_none() {
        protocols = by_default.to_vec();
    }
    let volume_dir = of.dir.as_ref().and_then(|dir| c.ok(dir.span(), text::absolute(dir.get_ref())));
    let mut urls = Vec::new();
    for url in &of.mds {
        urls.extend(c.ok(url.span(), text::url(url.get_ref())));
    }
    let host_conf = of.host_conf.as_ref().and_then(|conf| c.ok(conf.span(), text::absolute(conf.get_ref())));
    let mut ceph = None;
    match of.kind {
        StorageKind::Dir if of.dir.is_none() => {
            c.wrong(at, "a storage of kind \"dir\" needs a directory", "add dir = \"/PATH\", the same on every host");
        }
        StorageKind::Zbs if of.mds.is_empty() => {
            c.wrong(at, "a storage of kind \"zbs\" needs its MDS agents", "add mds = [\"http://ADDRESS:7763\"]");
        }
        StorageKind::Ceph => {
            let missing: Vec<&str> =
                [("pool", of.pool.is_none()), ("conf", of.conf.is_none()), ("user", of.user.is_none())]
                    .into_iter()
                    .filter_map(|(key, missing)| missing.then_some(key))
                    .collect();
            if !missing.is_empty() {
                let message = format!("a storage of kind \"ceph\" needs {}", missing.join(", "));
                c.wrong(at, message, "add pool, and conf and user of the controller's own access");
            }
            ceph = Some(CephHostAccess {
                conf: host_conf.unwrap_or_else(|| "/etc/ceph/ceph.conf".to_owned()),
                user: of.host_user.clone().unwrap_or_else(|| "compute".to_owned()),
            });
        }
        _ => {}
    }
    if let Some(on_loss) = of.on_target_loss.as_ref().filter(|_| of.kind != StorageKind::Vhost) {
        let message = "on_target_loss applies only to storages of kind \"vhost\", whose targets the agent deploys";
        c.wrong(on_loss.span(), message, "remove on_target_loss");
    }
    let on_target_loss = of.on_target_loss.as_ref().map(|on_loss| *on_loss.get_ref()).unwrap_or_default();
    let watchers_allowed = watchers_allowed(c, of, inventory);
    if !urls.is_empty() {
        mds.insert(id, urls);
    }
    let name = of.name.get_ref().clone();
    inventory.storages.push(Storage {
        id,
        name,
        kind: of.kind,
        clusters: of_clusters,
        protocols,
        volume_dir,
        on_target_loss,
        ceph,
        watchers_allowed,
    });
}

/// Addresses whose watchers are ignored. An address of a host would hide that a VM runs there.
fn watchers_allowed(c: &mut Checker, of: &RawStorage, inventory: &Inventory) -> Vec<IpAddr> {
    let mut allowed = Vec::with_capacity(of.watchers_allowed.len());
    for text in &of.watchers_allowed {
        if of.kind != StorageKind::Ceph {
            let message = format!("a storage of kind {:?} has no watchers", of.kind);
            c.wrong(text.span(), message, "remove watchers_allowed, which is for kind \"ceph\" only");
            return allowed;
        }
        let ip = c.ok(text.span(), text::ip(text.get_ref()));
        let Some(ip) = ip.and_then(|ip| c.ok(text.span(), of_one_host(ip))) else { continue };
        let its = |host: &&Host| host.storage_ips.contains(&ip) || host.management_ip.parse() == Ok(ip);
        if let Some(host) = inventory.hosts.iter().find(its) {
            let message = format!("{ip} is an address of {}: a VM that runs there would be invisible", host.name);
            c.wrong(text.span(), message, "list only machines that run no VMs, such as those of rbd-mirror");
        }
        allowed.push(ip);
    }
    allowed
}

/// The controller's own access to each Ceph storage.
pub(super) fn ceph_access(
    tables: &[Spanned<RawStorage>],
    names: &Names<StorageId>,
    base: &Path,
) -> HashMap<StorageId, CephAccess> {
    let access = |of: &RawStorage| {
        let (_, id) = names.ids.iter().find(|(name, _)| name == of.name.get_ref())?;
        let cluster = Ceph { conf: base.join(of.conf.as_ref()?), user: of.user.clone()? };
        Some((*id, CephAccess { cluster, pool: of.pool.clone()? }))
    };
    tables.iter().filter_map(|table| access(table.get_ref())).collect()
}
