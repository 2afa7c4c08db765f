//! Asks what the file names: do agents answer, are images there, may the controller's key do what a fence needs?
//!
//! `check --live` and the doctor share these. Invariant: nothing that anybody uses is changed. The right to block clients
//! is proven on an address that nobody has (RFC 5737 keeps it for documentation), and the entry is taken away again, or
//! ends by itself.

use std::{
    net::{IpAddr, Ipv4Addr},
    time::Duration,
};

use futures_util::{StreamExt, stream};
use ringfence_actors::{
    AGENT_VERSION,
    fence::ceph::may_block,
    inventory::{Directory, Host, Inventory, Vm, Volume},
    ports::{Call, CephMap, CephPort, HostAgentPort},
};
use ringfence_drivers::{agent_client::AgentClient, ceph::Clusters};
use ringfence_messages::{
    Code, ErrorCode, Result, StorageId, VmId,
    host::HostFactsCmd,
    vm::{InstallPath, ListVmsCmd, WriterKind},
};

use super::{twins::Itself, watchers};
use crate::config::ControllerConfig;

/// How long an agent may take.
pub(crate) const AGENT_TIMEOUT: Duration = Duration::from_secs(5);

/// Agents that are asked at once. Too low: a thousand hosts take long. Too high: the controller's own sockets run out.
const PARALLEL: usize = 64;

/// An address that is nobody's: TEST-NET-1.
const NOBODY: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));

/// How long the trial entry lasts if it cannot be taken away.
const TRIAL: Duration = Duration::from_secs(60);

/// The Ceph clusters that a file names, as the controller reaches them.
pub(crate) fn clusters(config: &ControllerConfig) -> Clusters {
    Clusters::new(config.ceph.iter().map(|(id, access)| (*id, access.cluster.clone())).collect())
}

/// What a storage is called in the file.
pub(crate) fn storage_name(config: &ControllerConfig, id: StorageId) -> String {
    let storage = config.inventory.storages.iter().find(|storage| storage.id == id);
    storage.map_or_else(|| id.to_string(), |storage| storage.name.clone())
}

/// A client of all agents, with the token that they want to see.
pub(crate) fn client(config: &ControllerConfig) -> Result<AgentClient> {
    crate::inventory::agents(config)
}

/// What an agent said.
pub(crate) struct Seen {
    /// In words.
    pub(crate) text: String,
    /// Of its host.
    itself: Itself,
    /// Which VMs run there.
    running: Vec<VmId>,
}

/// What the agents of all hosts say, in the order of the file.
pub(crate) async fn seen(config: &ControllerConfig) -> Vec<Result<Seen>> {
    let client = client(config);
    let asked = config.inventory.hosts.iter().map(async |host| match &client {
        Ok(client) => agent(client, host).await,
        Err(error) => Err(error.clone()),
    });
    stream::iter(asked).buffered(PARALLEL).collect().await
}

/// What the hosts say of themselves.
pub(crate) fn itself(seen: &[Result<Seen>]) -> Vec<Option<Itself>> {
    seen.iter().map(|seen| seen.as_ref().ok().map(|seen| seen.itself.clone())).collect()
}

/// Whether the right agent of the right version answers in time, and what it says.
async fn agent(client: &AgentClient, host: &Host) -> Result<Seen> {
    let facts = client.facts(host.id, HostFactsCmd {}, Call::within(AGENT_TIMEOUT)).await?;
    let ping = client.ping(host.id, None, Call::within(AGENT_TIMEOUT)).await;
    let judged = ringfence_actors::host::judge_ping(host.id, ping);
    if let Some(why) = judged.reason {
        return Err(ErrorCode::new(Code::HOST_DISCONNECTED, why));
    }
    let text = format!(
        "version {AGENT_VERSION}, QEMU {} with {}, {} of {} MiB free, {} hugepages free",
        facts.qemu_version, facts.accel, facts.available_mib, facts.memory_mib, facts.free_hugepages
    );
    let itself = Itself { machine: judged.machine, addresses: facts.addresses };
    // Where it does not say what runs, a watch is judged without.
    let list = client.list_vms(host.id, ListVmsCmd { epoch: 0, void: None }, Call::within(AGENT_TIMEOUT)).await;
    let vms = list.map(|list| list.vms).unwrap_or_default().into_iter();
    let vms = vms.filter(|vm| vm.kind == WriterKind::Qemu && !vm.incoming && !vm.other_agent && vm.stranger.is_none());
    Ok(Seen { text, itself, running: vms.map(|vm| vm.vm_uuid).collect() })
}

/// What the controller's key may do. Nothing is tried on a cluster that does not answer.
pub(crate) struct Rights {
    /// Read the map.
    pub(crate) map: Result<CephMap>,
    /// Block clients.
    pub(crate) block: Option<Result<String>>,
    /// Let them in again.
    pub(crate) unblock: Option<Result<String>>,
}

/// Read the map, block, read it back, let in again: what a fence does, on an address that is nobody's.
pub(crate) async fn rights(ceph: &dyn CephPort, id: StorageId) -> Rights {
    let map = ceph.map(id).await;
    if map.is_err() {
        return Rights { map, block: None, unblock: None };
    }
    let block = ceph.block(id, NOBODY, TRIAL).await.map(|epoch| format!("{NOBODY} was blocked in epoch {epoch}"));
    let unblock = ceph.unblock(id, NOBODY).await.map(|epoch| format!("{NOBODY} was let in again in epoch {epoch}"));
    Rights { map, block: Some(block), unblock: Some(unblock) }
}

/// A map in words.
pub(crate) fn map_said(map: &CephMap) -> String {
    format!("answers, OSD map of epoch {}, {} hosts blocked", map.epoch, map.blocked.len())
}

/// Whether a fence of each host that uses a storage would be carried out: the fence asks the same.
pub(crate) fn refusable(inventory: &Inventory, id: StorageId, map: &CephMap) -> Vec<(String, Result<()>)> {
    let directory = Directory::new(inventory.clone());
    let of = directory.storage(id).map(|storage| storage.clusters.clone()).unwrap_or_default();
    let uses = |host: &&Host| of.contains(&host.cluster) && !host.storage_ips.is_empty();
    let judged = |host: &Host| (host.name.clone(), may_block(&directory, host.id, &host.storage_ips, map));
    directory.hosts.iter().filter(uses).map(judged).collect()
}

/// Who watches an image; one from an address that is not its host's would go on writing after a fence of its host.
pub(crate) async fn watched(
    ceph: &dyn CephPort,
    config: &ControllerConfig,
    seen: &[Result<Seen>],
    vm: &Vm,
    volume: &Volume,
) -> Result<String> {
    let InstallPath::Ceph { pool, image } = &volume.install_path else { return Ok("not on Ceph".to_owned()) };
    let watchers = ceph.watchers(volume.storage, pool, image).await?;
    let hosts = &config.inventory.hosts;
    let said = || seen.iter().map(|seen| seen.as_ref().ok());
    let runs_on = said().position(|seen| seen.is_some_and(|seen| seen.running.contains(&vm.id)));
    let owner = |ip: IpAddr| said().position(|seen| seen.is_some_and(|seen| seen.itself.addresses.contains(&ip)));
    let storage = config.inventory.storages.iter().find(|storage| storage.id == volume.storage);
    let allowed = storage.map(|storage| storage.watchers_allowed.as_slice()).unwrap_or_default();
    watchers::judge(&watchers, runs_on.and_then(|n| hosts.get(n)), hosts, owner, allowed)
}
