//! `check --live`: the probes of the doctor, one line each.

use ringfence_messages::{
    Code, ErrorCode, Result,
    doctor::{Finding as Told, Verdict},
};

use crate::{
    config::ControllerConfig,
    doctor::{
        probes::{Seen, clusters, itself, map_said, refusable, rights, seen, storage_name, watched},
        twins,
    },
    output::print,
};

/// One thing that was looked at: what, and what was found or is wrong.
type Finding = (String, Result<String>);

/// Looks at everything; the exit code: 0 if all is well, else 1.
pub(super) async fn run(config: &ControllerConfig) -> u8 {
    let seen = seen(config).await;
    let mut findings = agents(config, &seen);
    let clusters = clusters(config);
    for (id, access) in &config.ceph {
        let (name, user) = (storage_name(config, *id), &access.cluster.user);
        let rights = rights(&clusters, *id).await;
        match rights.map {
            Ok(map) => {
                findings.push((name.clone(), Ok(map_said(&map))));
                findings.extend(refusable(&config.inventory, *id, &map).into_iter().map(|(host, may)| {
                    (format!("{name} may refuse {host}"), may.map(|()| "its addresses are its own alone".to_owned()))
                }));
            }
            Err(error) => findings.push((name.clone(), Err(error))),
        }
        let tried = [("block clients", rights.block), ("let them in again", rights.unblock)];
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
    let wrong = findings.iter().filter(|(_, found)| found.is_err()).count();
    print("\nlive");
    for (what, found) in &findings {
        match found {
            Ok(is) => print(format!("  ok    {what}: {is}")),
            Err(error) => print(format!("  FAIL  {what}: {}", error.details)),
        }
    }
    match wrong {
        0 => {
            print(format!("{} looked at, all well", findings.len()));
            0
        }
        wrong => {
            print(format!("{} looked at, {wrong} would fail", findings.len()));
            1
        }
    }
}

fn agents(config: &ControllerConfig, seen: &[Result<Seen>]) -> Vec<Finding> {
    let (hosts, said) = (&config.inventory.hosts, itself(seen));
    let mut findings = Vec::new();
    for (n, (host, seen)) in hosts.iter().zip(seen).enumerate() {
        let text = seen.as_ref().map(|seen| seen.text.clone()).map_err(Clone::clone);
        findings.push((format!("agent of {}", host.name), text));
        let told = [twins::machine(hosts, &said, n), twins::own_addresses(hosts, &said, n)];
        let wrong = told.into_iter().flatten().filter(|told| told.verdict == Verdict::Fail);
        findings.extend(wrong.map(|told| (format!("{} of {}", told.check, host.name), Err(mistake(told)))));
    }
    findings
}

fn mistake(told: Told) -> ErrorCode {
    let mend = told.mend.map(|mend| format!(": {mend}")).unwrap_or_default();
    ErrorCode::new(Code::INVALID_ARGUMENT, told.found + &mend)
}
