//! How many independent ways there are to prove the VMs of a host dead.
//!
//! A sibling's kill needs the failed host to answer SSH still; the storage's refusal does not need the host at all; a human
//! is always there, and asleep. So the storage counts most, a second sibling more than a third.
//! Pure: findings come in, levels go out. Rejected: counting what was not tried as half a way (I2).

use ringfence_actors::{
    fence::policy::{OnSshUnreachable, Profile},
    inventory::{Host, Storage},
};
use ringfence_messages::{
    doctor::{Finding, Verdict},
    storage::StorageKind,
    vm::HaMode,
};
use serde::Serialize;

use super::{
    controller::{BLOCK, REFUSE, refusal_of},
    hosts::HostLook,
    probes,
};
use crate::{
    agent::diagnose::{
        of,
        siblings::{MAX_SIBLINGS, logins_that_work},
    },
    config::ControllerConfig,
};

/// What the storage's refusal adds to the score, and what it adds if it stops some of the VMs only.
const STORAGE: u32 = 50;
const STORAGE_PARTLY: u32 = 20;

/// What a sibling adds, and how many count: a third one fails by what two failed by.
const SIBLING: u32 = 20;
const SIBLINGS_THAT_COUNT: usize = 2;

/// What a human adds, who has to be woken.
const HUMAN: u32 = 10;

const WHY: &str = "when it fails tonight, its VMs start elsewhere only once one of these ways has proven them dead";

/// Whether the storage refuses a host's writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum ByStorage {
    Yes,
    /// Those of some VMs.
    Partly,
    No,
}

/// The ways to prove the VMs of a host dead.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Fenceability {
    /// 10 to 100.
    pub(super) score: u32,
    /// `full`, `good`, `no-kill`, `no-storage` or `human-only`.
    pub(super) level: &'static str,
    /// Siblings that can log in there now, and kill.
    pub(super) siblings: Vec<String>,
    /// Siblings that were to try.
    pub(super) tried: usize,
    /// Whether the storage refuses it.
    pub(super) storage: ByStorage,
    /// Why not, or not all.
    pub(super) storage_reason: String,
}

/// Of each host, in the order of the file.
pub(super) fn of_all(
    config: &ControllerConfig,
    looks: &[HostLook],
    controller_findings: &[Finding],
) -> Vec<Fenceability> {
    config.inventory.hosts.iter().map(|host| of_host(config, host, looks, controller_findings)).collect()
}

fn of_host(
    config: &ControllerConfig,
    host: &Host,
    looks: &[HostLook],
    controller_findings: &[Finding],
) -> Fenceability {
    let name = |look: &HostLook| {
        let of = config.inventory.hosts.iter().find(|of| of.id == look.host);
        of.map_or_else(String::new, |of| of.name.clone())
    };
    let others = looks.iter().filter(|look| look.host != host.id);
    let siblings: Vec<String> = match config.settings.sibling_fencer {
        true => others.filter(|look| logins_that_work(&look.findings).any(|to| to == host.name)).map(name).collect(),
        false => Vec::new(),
    };
    let across = config.settings.cross_cluster_siblings;
    let hosts = config.inventory.hosts.iter().filter(|of| across || of.cluster == host.cluster).count();
    let (storage, storage_reason) = by_storage(config, host, controller_findings);
    let (level, score) = level(siblings.len(), storage);
    let tried = hosts.saturating_sub(1).min(MAX_SIBLINGS);
    Fenceability { score, level, siblings, tried, storage, storage_reason }
}

fn by_storage(config: &ControllerConfig, host: &Host, controller_findings: &[Finding]) -> (ByStorage, String) {
    let no = |why: &str| (ByStorage::No, why.to_owned());
    let policy = &config.settings.fence;
    if policy.profile != Profile::Safe || policy.on_ssh_unreachable != OnSshUnreachable::StorageFence {
        return no("the policy does not use it");
    }
    let attached = config.inventory.storages.iter().filter(|storage| storage.clusters.contains(&host.cluster));
    let (refusing, not): (Vec<_>, Vec<_>) = attached.partition(|storage| {
        let name = probes::storage_name(config, storage.id);
        let may = |finding: &Finding| finding.check == BLOCK && finding.about == name && finding.verdict == Verdict::Ok;
        storage.kind == StorageKind::Ceph && controller_findings.iter().any(may)
    });
    if refusing.is_empty() {
        return no(match not.iter().any(|storage| storage.kind == StorageKind::Ceph) {
            true => "the controller's key is not known to be enough",
            false => "no storage of its cluster can refuse a host",
        });
    }
    if host.storage_ips.is_empty() {
        return no("its storage_ips are not known");
    }
    let hurts = |storage: &&&Storage| {
        let about = refusal_of(&host.name, &storage.name);
        controller_findings
            .iter()
            .any(|found| found.check == REFUSE && found.about == about && found.verdict != Verdict::Ok)
    };
    if let Some(storage) = refusing.iter().find(hurts) {
        return no(&format!("{} would not refuse it: see ceph-fence", storage.name));
    }
    // One volume elsewhere is enough: nothing can refuse its writes.
    let beyond = |vm: &&ringfence_actors::inventory::Vm| {
        vm.volumes.iter().any(|volume| !refusing.iter().any(|storage| storage.id == volume.storage))
    };
    let vms = config.inventory.vms.iter().filter(|vm| vm.cluster == host.cluster);
    let (beyond, within): (Vec<_>, Vec<_>) = vms.partition(beyond);
    let names = || beyond.iter().map(|vm| vm.name.as_str()).take(3).collect::<Vec<_>>().join(", ");
    match (beyond.is_empty(), within.is_empty()) {
        (true, _) => (ByStorage::Yes, String::new()),
        (false, false) => (ByStorage::Partly, format!("not of {} with volumes that no storage refuses", names())),
        (false, true) => (ByStorage::No, format!("every VM has a volume that no storage refuses ({})", names())),
    }
}

fn level(siblings: usize, storage: ByStorage) -> (&'static str, u32) {
    let by_storage = match storage {
        ByStorage::Yes => STORAGE,
        ByStorage::Partly => STORAGE_PARTLY,
        ByStorage::No => 0,
    };
    let counted = siblings.min(SIBLINGS_THAT_COUNT);
    let level = match (counted, storage) {
        (0, ByStorage::No) => "human-only",
        (0, _) => "no-kill",
        (_, ByStorage::No | ByStorage::Partly) => "no-storage",
        (1, ByStorage::Yes) => "good",
        (_, ByStorage::Yes) => "full",
    };
    (level, HUMAN + by_storage + SIBLING * counted as u32)
}

impl Fenceability {
    /// One line.
    pub(super) fn line(&self) -> String {
        let siblings = match &self.siblings[..] {
            [] => format!("none of {} siblings can kill there", self.tried),
            names => format!("{} of {} siblings can kill there ({})", names.len(), self.tried, names.join(", ")),
        };
        let storage = match (self.storage, self.storage_reason.as_str()) {
            (ByStorage::Yes, _) => "the storage refuses it".to_owned(),
            (ByStorage::Partly, why) => format!("the storage refuses some of its writes, {why}"),
            (ByStorage::No, why) => format!("the storage does not refuse it ({why})"),
        };
        format!("{}, {} of 100: {siblings}; {storage}; a human", self.level, self.score)
    }

    /// What follows for tonight.
    pub(super) fn finding(&self, config: &ControllerConfig, host: &Host) -> Finding {
        let check = of("fenceability", WHY);
        let never_stop =
            |vm: &ringfence_actors::inventory::Vm| vm.cluster == host.cluster && vm.ha == HaMode::NeverStop;
        let (why, name) = (&self.storage_reason, &host.name);
        match self.level {
            "full" | "good" => check.ok("it can be fenced by itself, also without power"),
            "no-kill" => check.warn(
                "no sibling can kill there: one VM that hangs costs all others of the host their disks too",
                format!("mend the ssh-login of its siblings to {name}"),
            ),
            "no-storage" => check.warn(
                format!("when it loses its power a human has to be woken: {why}"),
                "put the volumes on Ceph, and mend ceph-block and storage-ips",
            ),
            _ => {
                let mend = format!("mend the ssh-login of its siblings to {name}, or ceph-block and storage-ips");
                match config.inventory.vms.iter().any(never_stop) {
                    true => check.fail("no VM of it comes back by itself, and some are to never stop", mend),
                    false => check.warn("no VM of it comes back without a human", mend),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_storage_counts_most_and_a_third_sibling_nothing() {
        use ByStorage::{No, Partly, Yes};
        let table = [
            (2, Yes, ("full", 100)),
            (5, Yes, ("full", 100)),
            (1, Yes, ("good", 80)),
            (0, Yes, ("no-kill", 60)),
            (2, Partly, ("no-storage", 70)),
            (0, Partly, ("no-kill", 30)),
            (2, No, ("no-storage", 50)),
            (1, No, ("no-storage", 30)),
            (0, No, ("human-only", 10)),
        ];
        for (siblings, storage, expected) in table {
            assert_eq!(level(siblings, storage), expected, "{siblings} siblings, {storage:?}");
        }
    }
}
