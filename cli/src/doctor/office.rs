//! What the controller itself needs: journal, disk, tokens, policy, and Ceph with the rights of a fence.

use std::path::Path;

use ringfence_actors::{
    fence::policy::{OnNoFencer, OnSshUnreachable},
    ports::CephPort,
};
use ringfence_drivers::journal::Journal;
use ringfence_messages::{Code, ErrorCode, StorageId, doctor::Finding};

use super::{local, of, quoted};
use crate::{
    commands::live,
    config::{CephAccess, ControllerConfig},
};

const WHY_JOURNAL: &str = "the controller does not start, and fences nothing, on a journal that it cannot trust";
const WHY_POLICY: &str = "it decides what happens when no proof can be had";
const WHY_CEPH: &str = "who watches a volume, and whom the cluster refuses, is asked of it before every HA start";
const WHY_BLOCK: &str = "a host that lost its power can be fenced by the storage alone";
const WHY_UNBLOCK: &str = "a host that comes back would stay locked out of its storage";
const WHY_IMAGE: &str = "a volume that is not there, or is watched from an unknown address, keeps its VM down";

const WHY_REFUSE: &str =
    "a storage fence that would hurt the cluster or another host is refused, and the VMs stay down";
const MEND_REFUSE: &str = "give the host an address of its own for its VMs' disks, on which no daemon listens, and name it in storage_ips; \
                           until then a sibling or a human has to prove its VMs dead";

/// The check whether a host could be refused: a level is made of it.
pub(super) const REFUSE: &str = "ceph-fence";

/// What that is about.
pub(super) fn refusal_of(host: &str, storage: &str) -> String {
    format!("{host} on {storage}")
}

/// The check of the right to block clients: a level is made of it.
pub(super) const BLOCK: &str = "ceph-block";

/// Looks at everything that needs no host.
pub(super) async fn look(config: &ControllerConfig, seen: &[Result<live::Seen, ErrorCode>]) -> Vec<Finding> {
    let mut findings = local::state(&config.state_dir, "controller");
    findings.push(journal(&config.state_dir));
    findings.extend(config.agent_token_file.as_deref().map(local::token_file));
    findings.extend(policy(config));
    let clusters = live::clusters(config);
    for (id, access) in &config.ceph {
        findings.extend(ceph(config, &clusters, *id, access, seen).await);
    }
    findings
}

fn journal(dir: &Path) -> Finding {
    let check = of("journal", WHY_JOURNAL).about(dir.join("journal.db").display());
    match Journal::head(dir) {
        Ok(Some((seq, hash))) => check.ok(format!("its last record {seq} follows, {hash:.12}...")),
        Ok(None) => check.ok("there is none yet: the controller makes it"),
        Err(error) if error.is(&Code::INTERNAL) => {
            let mend = "ringfence events --verify; keep the file for inspection, restore it from a backup";
            check.fail(error.details, mend)
        }
        Err(error) => check.fail(error.details, format!("ls -l {}", quoted(dir))),
    }
}

fn policy(config: &ControllerConfig) -> Vec<Finding> {
    let (settings, check) = (&config.settings, || of("policy", WHY_POLICY));
    let mut findings = Vec::new();
    if settings.fence.on_ssh_unreachable == OnSshUnreachable::Allow {
        let found =
            "on_ssh_unreachable = \"allow\": a host that nobody reaches is taken for dead, and its VMs may run twice";
        findings.push(check().warn(found, "on_ssh_unreachable = \"storage-fence\" in [fence]"));
    }
    if settings.fence.on_no_fencer == OnNoFencer::Allow && !settings.sibling_fencer {
        let found = "no fencer, and on_no_fencer = \"allow\": VMs are started elsewhere without any proof";
        findings.push(check().warn(found, "fencer = \"sibling\" in [fence]"));
    }
    if findings.is_empty() {
        findings.push(check().ok("nothing starts without proof"));
    }
    findings
}

async fn ceph(
    config: &ControllerConfig,
    port: &dyn CephPort,
    id: StorageId,
    access: &CephAccess,
    seen: &[Result<live::Seen, ErrorCode>],
) -> Vec<Finding> {
    let (name, user) = (live::storage_name(config, id), &access.cluster.user);
    let conf = quoted(&access.cluster.conf);
    let rights = live::rights(port, id).await;
    let caps = format!(
        "as admin: ceph auth caps client.{user} mon 'allow r, allow command \"osd blocklist\"' \
         osd 'profile rbd-read-only pool={}'",
        access.pool
    );
    let of_name = |check, why| of(check, why).about(&name);
    let mut findings = Vec::new();
    let answers = match rights.map {
        Ok(map) => {
            for (host, may) in live::refusable(config, id, &map) {
                let check = of(REFUSE, WHY_REFUSE).about(refusal_of(&host, &name));
                findings.push(match may {
                    Ok(()) => check.ok("its addresses are its own alone"),
                    Err(error) => check.fail(error.details, MEND_REFUSE),
                });
            }
            of_name("ceph", WHY_CEPH).ok(live::map_said(&map))
        }
        Err(error) => {
            let mend = format!("ceph --conf {conf} --id {user} --connect-timeout 3 osd dump");
            of_name("ceph", WHY_CEPH).fail(error.details, mend)
        }
    };
    findings.insert(0, answers);
    for (check, why, tried) in [(BLOCK, WHY_BLOCK, rights.block), ("ceph-unblock", WHY_UNBLOCK, rights.unblock)] {
        findings.push(match tried {
            Some(Ok(found)) => of_name(check, why).ok(found),
            Some(Err(error)) => of_name(check, why).fail(error.details, caps.clone()),
            None => of_name(check, why).unknown("not tried: the cluster does not answer", "mend ceph first"),
        });
    }
    for vm in &config.inventory.vms {
        for volume in vm.volumes.iter().filter(|volume| volume.storage == id) {
            let check = of("image", WHY_IMAGE).about(format!("{}, {}", vm.name, volume.install_path));
            let mend = match &volume.install_path {
                ringfence_messages::vm::InstallPath::Ceph { pool, image } => {
                    format!("rbd --conf {conf} --id {user} status {pool}/{image}")
                }
                _ => String::new(),
            };
            findings.push(match live::watched(port, config, seen, vm, volume).await {
                Ok(found) => check.ok(found),
                Err(error) if error.is(&Code::TIMEOUT) => check.unknown(error.details, mend),
                Err(error) => check.fail(error.details, mend),
            });
        }
    }
    findings
}
