//! Checks of the controller itself: journal, disk, tokens, policy, and Ceph with the rights of a fence.

use std::{net::IpAddr, path::Path};

use ringfence_actors::{
    fence::policy::{OnNoFencer, OnSshUnreachable},
    inventory::Host,
    ports::{CephMap, CephPort},
};
use ringfence_drivers::journal::Journal;
use ringfence_messages::{Code, ErrorCode, Event as _, StorageId, ceph::StorageFenceChanged, doctor::Finding};
use ringfence_service::checks::{of, quoted, state, token_file};

use super::probes;
use crate::config::{CephAccess, ControllerConfig};

const WHY_JOURNAL: &str = "the controller does not start with a journal that fails verification";
const WHY_POLICY: &str = "the policy decides starts without proof";
const WHY_CEPH: &str = "every failover queries it for watchers and blocklist entries";
const WHY_BLOCK: &str = "only the storage can fence a host that lost its power";
const WHY_UNBLOCK: &str = "a returning host would stay blocked";
const WHY_IMAGE: &str = "a missing volume, or a watcher at an unlisted address, keeps its VM down";

const WHY_REFUSE: &str = "a storage fence that would block other clients too is rejected, and the VMs stay down";
const REMEDY_REFUSE: &str = "give the host an exclusive address for its VMs' disks, without Ceph daemons, and set it \
                             in storage_ips; until then only a sibling host or an operator can prove its VMs dead";

const WHY_LEAK: &str = "placement still chooses a blocked host, and no VM with a disk on that storage can start there";

/// The check that a storage fence of a host is possible; `levels` reads it.
pub(super) const REFUSE: &str = "ceph-fence";

/// The subject of [`REFUSE`].
pub(super) fn refusal_of(host: &str, storage: &str) -> String {
    format!("{host} on {storage}")
}

/// The check of the right to add blocklist entries; `levels` reads it.
pub(super) const BLOCK: &str = "ceph-block";

/// All checks that need no host.
pub(super) async fn look(config: &ControllerConfig, seen: &[Result<probes::Seen, ErrorCode>]) -> Vec<Finding> {
    let mut findings = state(&config.state_dir, "controller");
    findings.push(journal(&config.state_dir));
    findings.extend(config.agent_token_file.as_deref().map(token_file));
    findings.extend(policy(config));
    let clusters = probes::clusters(config);
    for (id, access) in &config.ceph {
        findings.extend(ceph(config, &clusters, *id, access, seen).await);
    }
    findings
}

/// Hosts with a blocklist entry but without a storage fence in the journal: nothing will remove that entry.
fn leaks(config: &ControllerConfig, id: StorageId, name: &str, map: &CephMap) -> Vec<Finding> {
    let check = || of("ceph-leak", WHY_LEAK).about(name);
    let read = || -> Result<Vec<StorageFenceChanged>, ErrorCode> {
        let records = Journal::latest_in(&config.state_dir, StorageFenceChanged::TOPIC)?;
        records.iter().map(|record| record.event()).collect()
    };
    let fences = match read() {
        Ok(fences) => fences,
        Err(error) => return vec![check().unknown(error.details, "fix journal first")],
    };
    leaked(&config.inventory.hosts, id, map, &fences)
        .into_iter()
        .map(|(host, ip)| {
            let found =
                format!("{ip} of {} has a blocklist entry, but the journal has no storage fence for it", host.name);
            let remedy = format!(
                "check that no VM placed elsewhere still runs on {}, then as admin: ceph osd blocklist range rm {ip}; \
                 ceph osd blocklist rm {ip}:0/0",
                host.name
            );
            check().fail(found, remedy)
        })
        .collect()
}

/// Addresses of hosts with a blocklist entry that belongs to no active fence of this storage.
fn leaked<'a>(
    hosts: &'a [Host],
    id: StorageId,
    map: &CephMap,
    fences: &[StorageFenceChanged],
) -> Vec<(&'a Host, IpAddr)> {
    let stands = |ip: &IpAddr| {
        let of = |fence: &&StorageFenceChanged| fence.primary_storage_uuid == id && fence.addresses.contains(ip);
        fences.iter().filter(of).any(|fence| fence.phase.is_kept())
    };
    let refused = map.blocked.union(&map.blocked_otherwise).filter(|ip| !stands(ip));
    refused.flat_map(|ip| hosts.iter().filter(|host| host.storage_ips.contains(ip)).map(|host| (host, *ip))).collect()
}

fn journal(dir: &Path) -> Finding {
    let check = of("journal", WHY_JOURNAL).about(dir.join("journal.db").display());
    match Journal::head(dir) {
        Ok(Some((seq, hash))) => check.ok(format!("last record {seq} verified, hash {hash:.12}...")),
        Ok(None) => check.ok("none yet; the controller creates it"),
        Err(error) if error.is(&Code::INTERNAL) => {
            let remedy = "ringfence events --verify; keep the file for inspection, restore it from a backup";
            check.fail(error.details, remedy)
        }
        Err(error) => check.fail(error.details, format!("ls -l {}", quoted(dir))),
    }
}

fn policy(config: &ControllerConfig) -> Vec<Finding> {
    let (settings, check) = (&config.settings, || of("policy", WHY_POLICY));
    let mut findings = Vec::new();
    if settings.fence.on_ssh_unreachable == OnSshUnreachable::Allow {
        let found = "on_ssh_unreachable = \"allow\": an unreachable host counts as dead, and its VMs may run twice";
        findings.push(check().warn(found, "set on_ssh_unreachable = \"storage-fence\" in [fence]"));
    }
    if settings.fence.on_no_fencer == OnNoFencer::Allow && !settings.sibling_fencer {
        let found = "no fencer, and on_no_fencer = \"allow\": VMs start elsewhere without any proof";
        findings.push(check().warn(found, "set fencer = \"sibling\" in [fence]"));
    }
    if findings.is_empty() {
        findings.push(check().ok("no start without proof"));
    }
    findings
}

async fn ceph(
    config: &ControllerConfig,
    port: &dyn CephPort,
    id: StorageId,
    access: &CephAccess,
    seen: &[Result<probes::Seen, ErrorCode>],
) -> Vec<Finding> {
    let (name, user) = (probes::storage_name(config, id), &access.cluster.user);
    let conf = quoted(&access.cluster.conf);
    let rights = probes::rights(port, id).await;
    let caps = format!(
        "as admin: ceph auth caps client.{user} mon 'allow r, allow command \"osd blocklist\"' \
         osd 'profile rbd-read-only pool={}'",
        access.pool
    );
    let of_name = |check, why| of(check, why).about(&name);
    let mut findings = Vec::new();
    let answers = match rights.map {
        Ok(map) => {
            for (host, may) in probes::refusable(&config.inventory, id, &map) {
                let check = of(REFUSE, WHY_REFUSE).about(refusal_of(&host, &name));
                findings.push(match may {
                    Ok(()) => check.ok("no other client uses its addresses"),
                    Err(error) => check.fail(error.details, REMEDY_REFUSE),
                });
            }
            findings.extend(leaks(config, id, &name, &map));
            of_name("ceph", WHY_CEPH).ok(probes::map_summary(&map))
        }
        Err(error) => {
            let remedy = format!("ceph --conf {conf} --id {user} --connect-timeout 3 osd dump");
            of_name("ceph", WHY_CEPH).fail(error.details, remedy)
        }
    };
    findings.insert(0, answers);
    for (check, why, tried) in [(BLOCK, WHY_BLOCK, rights.block), ("ceph-unblock", WHY_UNBLOCK, rights.unblock)] {
        findings.push(match tried {
            Some(Ok(found)) => of_name(check, why).ok(found),
            Some(Err(error)) => of_name(check, why).fail(error.details, caps.clone()),
            None => of_name(check, why).unknown("not tried: the cluster does not answer", "fix ceph first"),
        });
    }
    for vm in &config.inventory.vms {
        for volume in vm.volumes.iter().filter(|volume| volume.storage == id) {
            let check = of("image", WHY_IMAGE).about(format!("{}, {}", vm.name, volume.install_path));
            let remedy = match &volume.install_path {
                ringfence_messages::vm::InstallPath::Ceph { pool, image } => {
                    format!("rbd --conf {conf} --id {user} status {pool}/{image}")
                }
                _ => String::new(),
            };
            findings.push(match probes::watched(port, config, seen, vm, volume).await {
                Ok(found) => check.ok(found),
                Err(error) if error.is(&Code::TIMEOUT) => check.unknown(error.details, remedy),
                Err(error) => check.fail(error.details, remedy),
            });
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use ringfence_actors::inventory::Inventory;
    use ringfence_drivers::ceph::osd_map;
    use ringfence_messages::{ClusterId, HostId, ceph::StorageFencePhase};

    use super::*;

    fn host(name: &str, ip: &str) -> Host {
        Host {
            id: HostId::from_name(name),
            name: name.to_owned(),
            cluster: ClusterId::from_name("c1"),
            management_ip: ip.to_owned(),
            agent_port: 7070,
            ssh_port: 22,
            storage_ips: vec![ip.parse().unwrap()],
        }
    }

    #[test]
    fn osd_host_cannot_be_fenced_by_storage() {
        let map = osd_map(include_bytes!("../../tests/cases/ceph/osd.hyperconverged.json")).unwrap();
        let storage = ringfence_actors::inventory::Storage {
            id: StorageId::from_name("ceph-1"),
            name: "ceph-1".to_owned(),
            kind: ringfence_messages::storage::StorageKind::Ceph,
            clusters: vec![ClusterId::from_name("c1")],
            protocols: Vec::new(),
            volume_dir: None,
            on_target_loss: Default::default(),
            ceph: None,
            watchers_allowed: Vec::new(),
        };
        let hosts = vec![host("host-a", "10.9.0.21"), host("host-b", "10.9.0.31")];
        let inventory = Inventory { hosts, storages: vec![storage], ..Inventory::default() };
        let judged = probes::refusable(&inventory, StorageId::from_name("ceph-1"), &map);
        let [(a, hurts), (b, fine)] = &judged[..] else { panic!("{judged:?}") };
        assert_eq!((a.as_str(), b.as_str(), fine), ("host-a", "host-b", &Ok(())));
        assert!(hurts.as_ref().unwrap_err().details.contains("10.9.0.21 is also the address of osd.0"), "{hurts:?}");
    }

    #[test]
    fn unknown_blocklist_entry_is_reported_with_its_host() {
        let map = osd_map(include_bytes!("../../tests/cases/ceph/osd.host-b-blocked-by-others.json")).unwrap();
        let (hosts, id) = ([host("host-a", "10.9.0.21"), host("host-b", "10.9.0.22")], StorageId::from_name("ceph-1"));
        let fence = |storage: StorageId, phase| StorageFenceChanged {
            primary_storage_uuid: storage,
            storage: "ceph-1".to_owned(),
            host_uuid: hosts[1].id,
            host: "host-b".to_owned(),
            phase,
            addresses: hosts[1].storage_ips.clone(),
            osd_epoch: None,
            lasting_seconds: None,
            reason: "r".to_owned(),
        };
        let hit = |fences: &[StorageFenceChanged]| {
            leaked(&hosts, id, &map, fences).iter().map(|(host, ip)| format!("{} {ip}", host.name)).collect::<Vec<_>>()
        };
        assert_eq!(hit(&[]), ["host-b 10.9.0.22"]);
        assert_eq!(map.blocked, map.blocked_otherwise, "both forms of the entry exist");
        for over in [StorageFencePhase::Lifted, StorageFencePhase::Forgotten] {
            assert_eq!(hit(&[fence(id, over)]), ["host-b 10.9.0.22"]);
        }
        assert_eq!(hit(&[fence(StorageId::from_name("other"), StorageFencePhase::Fenced)]), ["host-b 10.9.0.22"]);
        assert!(hit(&[fence(id, StorageFencePhase::Intended)]).is_empty(), "this controller removes it");
    }
}
