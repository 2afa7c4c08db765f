//! Asks what the file names: do agents answer, are images there, may the controller's key do what a fence needs?
//!
//! The looks themselves are `doctor`'s too. Invariant: nothing that anybody uses is changed. The right to block clients
//! is proven on an address that nobody has (RFC 5737 keeps it for documentation), and the entry is taken away again, or
//! ends by itself.

use std::{
    net::{IpAddr, Ipv4Addr},
    time::Duration,
};

use futures_util::future::join_all;
use ringfence_actors::{
    AGENT_VERSION,
    inventory::{Host, Volume},
    ports::{Call, CephPort, HostAgentPort},
};
use ringfence_drivers::{agent_client::AgentClient, ceph::Clusters};
use ringfence_messages::{Code, ErrorCode, Result, StorageId, host::HostFactsCmd, vm::InstallPath};

use crate::{config::ControllerConfig, output::print};

/// How long an agent may take.
pub(crate) const AGENT_TIMEOUT: Duration = Duration::from_secs(5);

/// An address that is nobody's: TEST-NET-1.
const NOBODY: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));

/// How long the trial entry lasts if it cannot be taken away.
const TRIAL: Duration = Duration::from_secs(60);

/// One thing that was looked at: what, and what was found or is wrong.
type Finding = (String, Result<String>);

/// Looks at everything; the exit code: 0 if all is well, else 1.
pub(super) async fn run(config: &ControllerConfig) -> u8 {
    let mut findings = agents(config).await;
    let clusters = clusters(config);
    for (id, access) in &config.ceph {
        let (name, user) = (storage_name(config, *id), &access.cluster.user);
        let rights = rights(&clusters, *id).await;
        findings.push((name.clone(), rights.map));
        let tried = [("block clients", rights.block), ("let them in again", rights.unblock)];
        findings.extend(
            tried.into_iter().filter_map(|(what, of)| Some((format!("{name}, client.{user} may {what}"), of?))),
        );
        for vm in &config.inventory.vms {
            for volume in vm.volumes.iter().filter(|volume| volume.storage == *id) {
                let what = format!("{}, {}", vm.name, volume.install_path);
                findings.push((what, watched(&clusters, volume, &config.inventory.hosts).await));
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

/// The Ceph clusters that a file names, as the controller reaches them.
pub(crate) fn clusters(config: &ControllerConfig) -> Clusters {
    Clusters::new(config.ceph.iter().map(|(id, access)| (*id, access.cluster.clone())).collect())
}

/// What a storage is called in the file.
pub(crate) fn storage_name(config: &ControllerConfig, id: StorageId) -> String {
    let storage = config.inventory.storages.iter().find(|storage| storage.id == id);
    storage.map_or_else(|| id.to_string(), |storage| storage.name.clone())
}

async fn agents(config: &ControllerConfig) -> Vec<Finding> {
    let client = match client(config) {
        Ok(client) => client,
        Err(error) => return vec![("agents".to_owned(), Err(error))],
    };
    let asked = config.inventory.hosts.iter().map(async |host| {
        let found = agent(&client, host).await;
        (format!("agent of {}", host.name), found)
    });
    join_all(asked).await
}

/// A client of all agents, with the token that they want to see.
pub(crate) fn client(config: &ControllerConfig) -> Result<AgentClient> {
    crate::inventory::agents(config)
}

/// Whether the right agent of the right version answers in time.
pub(crate) async fn agent(client: &AgentClient, host: &Host) -> Result<String> {
    let facts = client.facts(host.id, HostFactsCmd {}, Call::within(AGENT_TIMEOUT)).await?;
    let ping = client.ping(host.id, None, Call::within(AGENT_TIMEOUT)).await;
    match ringfence_actors::host::judge_ping(host.id, ping).reason {
        None => Ok(format!(
            "version {AGENT_VERSION}, QEMU {} with {}, {} of {} MiB free, {} hugepages free",
            facts.qemu_version, facts.accel, facts.available_mib, facts.memory_mib, facts.free_hugepages
        )),
        Some(why) => Err(ErrorCode::new(Code::HOST_DISCONNECTED, why)),
    }
}

/// What the controller's key may do. Nothing is tried on a cluster that does not answer.
pub(crate) struct Rights {
    /// Read the map.
    pub(crate) map: Result<String>,
    /// Block clients.
    pub(crate) block: Option<Result<String>>,
    /// Let them in again.
    pub(crate) unblock: Option<Result<String>>,
}

/// Read the map, block, read it back, let in again: what a fence does, on an address that is nobody's.
pub(crate) async fn rights(ceph: &dyn CephPort, id: StorageId) -> Rights {
    let map = ceph.map(id).await;
    let map = map.map(|map| format!("answers, OSD map of epoch {}, {} hosts blocked", map.epoch, map.blocked.len()));
    if map.is_err() {
        return Rights { map, block: None, unblock: None };
    }
    let block = ceph.block(id, NOBODY, TRIAL).await.map(|epoch| format!("{NOBODY} was blocked in epoch {epoch}"));
    let unblock = ceph.unblock(id, NOBODY).await.map(|epoch| format!("{NOBODY} was let in again in epoch {epoch}"));
    Rights { map, block: Some(block), unblock: Some(unblock) }
}

/// Who watches an image; one from an address that is no host's would go on writing after a fence of its host.
pub(crate) async fn watched(ceph: &dyn CephPort, volume: &Volume, hosts: &[Host]) -> Result<String> {
    let InstallPath::Ceph { pool, image } = &volume.install_path else { return Ok("not on Ceph".to_owned()) };
    let watchers = ceph.watchers(volume.storage, pool, image).await?;
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
}
