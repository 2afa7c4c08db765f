//! The probes of the doctor for `check --live`, one result each.

use ringfence_messages::{
    Code, ErrorCode, Result,
    doctor::{Finding, Verdict},
};

use super::{
    probes::{Seen, clusters, itself, map_summary, refusable, rights, seen, storage_name, watched},
    twins,
};
use crate::config::ControllerConfig;

/// A probe: its subject, and its result or error.
pub type Probed = (String, Result<String>);

/// Runs all probes.
pub async fn probe(config: &ControllerConfig) -> Vec<Probed> {
    let seen = seen(config).await;
    let mut findings = agents(config, &seen);
    let clusters = clusters(config);
    for (id, access) in &config.ceph {
        let (name, user) = (storage_name(config, *id), &access.cluster.user);
        let rights = rights(&clusters, *id).await;
        match rights.map {
            Ok(map) => {
                findings.push((name.clone(), Ok(map_summary(&map))));
                findings.extend(refusable(&config.inventory, *id, &map).into_iter().map(|(host, may)| {
                    (format!("{name} can fence {host}"), may.map(|()| "no other client uses its addresses".to_owned()))
                }));
            }
            Err(error) => findings.push((name.clone(), Err(error))),
        }
        let tried = [("add blocklist entries", rights.block), ("remove blocklist entries", rights.unblock)];
        findings.extend(
            tried.into_iter().filter_map(|(what, of)| Some((format!("{name}, client.{user} may {what}"), of?))),
        );
        for vm in &config.inventory.vms {
            for volume in vm.volumes.iter().filter(|volume| volume.storage == *id) {
                let what = format!("{}, {}", vm.name, volume.install_path);
                findings.push((what, watched(&clusters, config, &seen, vm, volume).await));
            }
        }
    }
    findings
}

fn agents(config: &ControllerConfig, seen: &[Result<Seen>]) -> Vec<Probed> {
    let (hosts, said) = (&config.inventory.hosts, itself(seen));
    let mut findings = Vec::new();
    for (n, (host, seen)) in hosts.iter().zip(seen).enumerate() {
        let text = seen.as_ref().map(|seen| seen.text.clone()).map_err(Clone::clone);
        findings.push((format!("agent of {}", host.name), text));
        let checks = [twins::machine(hosts, &said, n), twins::own_addresses(hosts, &said, n)];
        let wrong = checks.into_iter().flatten().filter(|check| check.verdict == Verdict::Fail);
        findings.extend(wrong.map(|check| (format!("{} of {}", check.check, host.name), Err(failure(check)))));
    }
    findings
}

fn failure(check: Finding) -> ErrorCode {
    let remedy = check.mend.map(|remedy| format!("; {remedy}")).unwrap_or_default();
    ErrorCode::new(Code::INVALID_ARGUMENT, check.found + &remedy)
}
