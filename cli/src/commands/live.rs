//! Asks what the file names: do agents answer, are images there, may the controller's key do what a fence needs?
//!
//! Invariant: nothing that anybody uses is changed. The right to block clients is proven on an address that
//! nobody has (RFC 5737 keeps it for documentation), and the entry is taken away again, or ends by itself.

use std::{
    net::{IpAddr, Ipv4Addr},
    time::Duration,
};

use futures_util::future::join_all;
use ringfence_actors::{
    AGENT_VERSION,
    inventory::{Host, Volume},
    ports::{Call, HostAgentPort},
};
use ringfence_drivers::{agent_client::AgentClient, ceph::Ceph};
use ringfence_messages::{Code, ErrorCode, Result, host::HostFactsCmd, vm::InstallPath};

use crate::{config::ControllerConfig, output::print};

/// How long an agent may take.
const AGENT_TIMEOUT: Duration = Duration::from_secs(5);

/// An address that is nobody's: TEST-NET-1.
const NOBODY: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));

/// How long the trial entry lasts if it cannot be taken away.
const TRIAL: Duration = Duration::from_secs(60);

/// One thing that was looked at: what, and what was found or is wrong.
type Finding = (String, Result<String>);

/// Looks at everything; the exit code: 0 if all is well, else 1.
pub(super) async fn run(config: &ControllerConfig) -> u8 {
    let mut findings = agents(config).await;
    for (id, access) in &config.ceph {
        let name = config.inventory.storages.iter().find(|storage| storage.id == *id);
        let name = name.map_or_else(|| id.to_string(), |storage| storage.name.clone());
        findings.extend(rights(&name, &access.cluster).await);
        for vm in &config.inventory.vms {
            for volume in vm.volumes.iter().filter(|volume| volume.storage == *id) {
                findings.push(image(&vm.name, &access.cluster, volume, &config.inventory.hosts).await);
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

async fn agents(config: &ControllerConfig) -> Vec<Finding> {
    let client = match crate::serve::agents(config) {
        Ok(client) => client,
        Err(error) => return vec![("agents".to_owned(), Err(error))],
    };
    join_all(config.inventory.hosts.iter().map(|host| agent(&client, host))).await
}

async fn agent(client: &AgentClient, host: &Host) -> Finding {
    let found = async {
        let facts = client.facts(host.id, HostFactsCmd {}, Call::within(AGENT_TIMEOUT)).await?;
        let ping = client.ping(host.id, Call::within(AGENT_TIMEOUT)).await;
        let judged = ringfence_actors::host::judge_ping(host.id, ping);
        match judged.reason {
            None => Ok(format!(
                "version {AGENT_VERSION}, QEMU {} with {}, {} of {} MiB free, {} hugepages free",
                facts.qemu_version, facts.accel, facts.available_mib, facts.memory_mib, facts.free_hugepages
            )),
            Some(why) => Err(ErrorCode::new(Code::HOST_DISCONNECTED, why)),
        }
    };
    (format!("agent of {}", host.name), found.await)
}

/// Read the map, block, read it back, let in again: what a fence does, on an address that is nobody's.
async fn rights(name: &str, ceph: &Ceph) -> Vec<Finding> {
    let read = ceph.map().await;
    let reads = read.is_ok();
    let read = read.map(|map| format!("answers, OSD map of epoch {}, {} hosts blocked", map.epoch, map.blocked.len()));
    let mut findings = vec![(name.to_owned(), read)];
    if reads {
        let blocked = ceph.block(NOBODY, TRIAL).await.map(|epoch| format!("{NOBODY} was blocked in epoch {epoch}"));
        findings.push((format!("{name}, client.{} may block clients", ceph.user), blocked));
        let lifted = ceph.unblock(NOBODY).await.map(|epoch| format!("{NOBODY} was let in again in epoch {epoch}"));
        findings.push((format!("{name}, client.{} may let them in again", ceph.user), lifted));
    }
    findings
}

/// Who watches an image; one from an address that is no host's would go on writing after a fence of its host.
async fn image(vm: &str, ceph: &Ceph, volume: &Volume, hosts: &[Host]) -> Finding {
    let what = format!("{vm}, {}", volume.install_path);
    let InstallPath::Ceph { pool, image } = &volume.install_path else {
        return (what, Ok("not on Ceph".to_owned()));
    };
    let watched = ceph.watchers(pool, image).await.and_then(|watchers| {
        let stranger = watchers.iter().find(|watcher| !hosts.iter().any(|host| host.storage_ips.contains(&watcher.ip)));
        match (&watchers[..], stranger) {
            ([], _) => Ok("nobody watches it".to_owned()),
            (_, Some(stranger)) => {
                let details = format!(
                    "watched by {}, which is in no host's storage_ips: a fence would not reach it. Add the address to its host",
                    stranger.address
                );
                Err(ErrorCode::new(Code::INVALID_ARGUMENT, details))
            }
            (all, None) => {
                Ok(format!("watched by {}", all.iter().map(|w| w.address.as_str()).collect::<Vec<_>>().join(", ")))
            }
        }
    });
    (what, watched)
}
