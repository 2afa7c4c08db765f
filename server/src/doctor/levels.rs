//! The number of independent ways to fence each host.
//!
//! A sibling host's kill needs a failed host that still answers SSH. A storage fence does not need the failed host at
//! all. An operator is always possible, and slow. So the storage counts most, and a second sibling host more than a
//! third. Pure: findings in, levels out. Alternative considered: half a point for a check that was not tried (breaks
//! I2).

use ringfence_actors::{
    fence::policy::{OnSshUnreachable, Profile},
    inventory::{Host, Storage},
};
use ringfence_messages::{
    doctor::{Finding, Verdict},
    storage::StorageKind,
    vm::HaMode,
};
use ringfence_service::checks::{MAX_SIBLINGS, of};
use serde::Serialize;

use super::{
    controller::{BLOCK, REFUSE, refusal_of},
    hosts::HostLook,
    probes,
};
use crate::config::ControllerConfig;

/// Points of a storage fence, for all VMs and for some of them.
const STORAGE: u32 = 50;
const STORAGE_PARTLY: u32 = 20;

/// Points of a sibling host, and how many count: a third one fails for the reason for which two failed.
const SIBLING: u32 = 20;
const SIBLINGS_THAT_COUNT: usize = 2;

/// Points of an operator, whom an alert must wake.
const HUMAN: u32 = 10;

const WHY: &str = "after a failure of the host, its VMs start elsewhere only after one of these ways proves them dead";

/// Whether a storage fence stops a host's writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ByStorage {
    /// All writes.
    Yes,
    /// Only the writes of some VMs.
    Partly,
    /// None.
    No,
}

/// The ways to fence a host.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Fenceability {
    /// 10 to 100.
    pub score: u32,
    /// `full`, `good`, `no-kill`, `no-storage` or `human-only`.
    pub level: &'static str,
    /// Sibling hosts that can log in and kill now.
    pub siblings: Vec<String>,
    /// Number of sibling hosts that were checked.
    pub tried: usize,
    /// Whether a storage fence is possible.
    pub storage: ByStorage,
    /// Why not, or why only partly.
    pub storage_reason: String,
}

/// The levels of all hosts, in the order of the file.
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
        return no("[fence] does not use it");
    }
    let attached = config.inventory.storages.iter().filter(|storage| storage.clusters.contains(&host.cluster));
    let (refusing, not): (Vec<_>, Vec<_>) = attached.partition(|storage| {
        let name = probes::storage_name(config, storage.id);
        let may = |finding: &Finding| finding.check == BLOCK && finding.about == name && finding.verdict == Verdict::Ok;
        storage.kind == StorageKind::Ceph && controller_findings.iter().any(may)
    });
    if refusing.is_empty() {
        return no(match not.iter().any(|storage| storage.kind == StorageKind::Ceph) {
            true => "it is unknown whether the controller's key may fence",
            false => "no storage of its cluster can fence a host",
        });
    }
    if host.storage_ips.is_empty() {
        return no("its storage_ips are not configured");
    }
    let hurts = |storage: &&&Storage| {
        let about = refusal_of(&host.name, &storage.name);
        controller_findings
            .iter()
            .any(|found| found.check == REFUSE && found.about == about && found.verdict != Verdict::Ok)
    };
    if let Some(storage) = refusing.iter().find(hurts) {
        return no(&format!("{} would not fence it: see ceph-fence", storage.name));
    }
    // One volume on another storage is enough: nothing can stop its writes.
    let beyond = |vm: &&ringfence_actors::inventory::Vm| {
        vm.volumes.iter().any(|volume| !refusing.iter().any(|storage| storage.id == volume.storage))
    };
    let vms = config.inventory.vms.iter().filter(|vm| vm.cluster == host.cluster);
    let (beyond, within): (Vec<_>, Vec<_>) = vms.partition(beyond);
    let names = || beyond.iter().map(|vm| vm.name.as_str()).take(3).collect::<Vec<_>>().join(", ");
    match (beyond.is_empty(), within.is_empty()) {
        (true, _) => (ByStorage::Yes, String::new()),
        (false, false) => {
            (ByStorage::Partly, format!("not those of {}, with volumes on a storage that cannot fence", names()))
        }
        (false, true) => (ByStorage::No, format!("every VM has a volume on a storage that cannot fence ({})", names())),
    }
}

/// The sibling hosts to which a login worked.
fn logins_that_work(findings: &[Finding]) -> impl Iterator<Item = &str> {
    // A login without root proves nothing: its kill may fail.
    let works = |finding: &&Finding| finding.check == "ssh-login" && finding.verdict == Verdict::Ok;
    findings.iter().filter(works).map(|finding| finding.about.as_str())
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
    /// One line of text.
    pub fn line(&self) -> String {
        let siblings = match &self.siblings[..] {
            [] => format!("none of {} sibling hosts can kill there", self.tried),
            names => format!("{} of {} sibling hosts can kill there ({})", names.len(), self.tried, names.join(", ")),
        };
        let storage = match (self.storage, self.storage_reason.as_str()) {
            (ByStorage::Yes, _) => "storage fence possible".to_owned(),
            (ByStorage::Partly, why) => format!("storage fence for some writes only, {why}"),
            (ByStorage::No, why) => format!("no storage fence ({why})"),
        };
        format!("{}, {} of 100: {siblings}; {storage}; operator attestation", self.level, self.score)
    }

    /// What a failure of the host would mean.
    pub fn finding(&self, config: &ControllerConfig, host: &Host) -> Finding {
        let check = of("fenceability", WHY);
        let never_stop =
            |vm: &ringfence_actors::inventory::Vm| vm.cluster == host.cluster && vm.ha == HaMode::NeverStop;
        let (why, name) = (&self.storage_reason, &host.name);
        match self.level {
            "full" | "good" => check.ok("fencing is automatic, also after a loss of power"),
            "no-kill" => check.warn(
                "no sibling host can kill there: one hung VM costs all VMs of the host their disks",
                format!("fix ssh-login of its sibling hosts to {name}"),
            ),
            "no-storage" => check.warn(
                format!("after a loss of power an operator must attest: {why}"),
                "move the volumes to Ceph; fix ceph-block and storage-ips",
            ),
            _ => {
                let remedy = format!("fix ssh-login of its sibling hosts to {name}, or ceph-block and storage-ips");
                match config.inventory.vms.iter().any(never_stop) {
                    true => check.fail("none of its VMs fails over automatically, and some are NeverStop", remedy),
                    false => check.warn("none of its VMs fails over without an operator", remedy),
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
