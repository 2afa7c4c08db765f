//! Requests to the agents and Ceph clusters of the file: agents, images, and the rights of the controller's key.
//!
//! `check --live` and the doctor share them. Invariant: nothing in use is changed. The right to block clients is
//! tried on an address reserved for documentation (RFC 5737); the entry is removed again, or expires.

use std::{
    net::{IpAddr, Ipv4Addr},
    time::Duration,
};

use futures_util::{StreamExt, stream};
use ringfence_actors::{
    AGENT_VERSION,
    fencers::ceph::may_block,
    inventory::{Host, Inventory, InventoryIndex, Vm, Volume},
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

/// Time limit of one request to an agent.
pub(super) const AGENT_TIMEOUT: Duration = Duration::from_secs(5);

/// Agents that are queried at the same time. Too low: a thousand hosts take long. Too high: the controller runs out
/// of sockets.
const PARALLEL: usize = 64;

/// An address reserved for documentation: TEST-NET-1.
const UNUSED_ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));

/// Expiry of the trial entry if it cannot be removed.
const TRIAL: Duration = Duration::from_secs(60);

/// The Ceph clusters of the file, as the controller reaches them.
pub(super) fn clusters(config: &ControllerConfig) -> Clusters {
    Clusters::new(config.ceph.iter().map(|(id, access)| (*id, access.cluster.clone())).collect())
}

/// The name of a storage in the file.
pub(super) fn storage_name(config: &ControllerConfig, id: StorageId) -> String {
    let storage = config.inventory.storages.iter().find(|storage| storage.id == id);
    storage.map_or_else(|| id.to_string(), |storage| storage.name.clone())
}

/// A client of all agents, with their token.
pub(super) fn client(config: &ControllerConfig) -> Result<AgentClient> {
    crate::inventory::agents(config)
}

/// The answers of one agent.
pub(super) struct Seen {
    /// Summary for the output.
    pub(super) text: String,
    /// Identity of its host.
    itself: Itself,
    /// VMs that run there.
    running: Vec<VmId>,
}

/// The answers of all agents, in the order of the file.
pub(super) async fn seen(config: &ControllerConfig) -> Vec<Result<Seen>> {
    let client = client(config);
    let asked = config.inventory.hosts.iter().map(async |host| match &client {
        Ok(client) => agent(client, host).await,
        Err(error) => Err(error.clone()),
    });
    stream::iter(asked).buffered(PARALLEL).collect().await
}

/// The identities that hosts report.
pub(super) fn itself(seen: &[Result<Seen>]) -> Vec<Option<Itself>> {
    seen.iter().map(|seen| seen.as_ref().ok().map(|seen| seen.itself.clone())).collect()
}

/// Queries one agent. A wrong host, a wrong version or a late answer is an error.
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
    // Without a list of VMs, watchers are judged without it.
    let list = client.list_vms(host.id, ListVmsCmd { epoch: 0, void: None }, Call::within(AGENT_TIMEOUT)).await;
    let vms = list.map(|list| list.vms).unwrap_or_default().into_iter();
    let vms = vms.filter(|vm| vm.kind == WriterKind::Qemu && !vm.incoming && !vm.other_agent && vm.stranger.is_none());
    Ok(Seen { text, itself, running: vms.map(|vm| vm.vm_uuid).collect() })
}

/// The rights of the controller's key. Nothing is tried on a cluster that does not answer.
pub(super) struct Rights {
    /// Read the OSD map.
    pub(super) map: Result<CephMap>,
    /// Add blocklist entries.
    pub(super) block: Option<Result<String>>,
    /// Remove blocklist entries.
    pub(super) unblock: Option<Result<String>>,
}

/// Does what a fence does, on an unused address: reads the map, adds an entry, verifies and removes it.
pub(super) async fn rights(ceph: &dyn CephPort, id: StorageId) -> Rights {
    let map = ceph.map(id).await;
    if map.is_err() {
        return Rights { map, block: None, unblock: None };
    }
    let block =
        ceph.block(id, UNUSED_ADDRESS, TRIAL).await.map(|epoch| format!("{UNUSED_ADDRESS} blocked in epoch {epoch}"));
    let unblock =
        ceph.unblock(id, UNUSED_ADDRESS).await.map(|epoch| format!("{UNUSED_ADDRESS} unblocked in epoch {epoch}"));
    Rights { map, block: Some(block), unblock: Some(unblock) }
}

/// Summary of an OSD map.
pub(super) fn map_summary(map: &CephMap) -> String {
    format!("answers, OSD map epoch {}, {} addresses blocked", map.epoch, map.blocked.len())
}

/// Whether a storage fence is possible for each host of a storage, by the check of the fence itself.
pub(super) fn refusable(inventory: &Inventory, id: StorageId, map: &CephMap) -> Vec<(String, Result<()>)> {
    let directory = InventoryIndex::new(inventory.clone());
    let of = directory.storage(id).map(|storage| storage.clusters.clone()).unwrap_or_default();
    let uses = |host: &&Host| of.contains(&host.cluster) && !host.storage_ips.is_empty();
    let judged = |host: &Host| (host.name.clone(), may_block(&directory, host.id, &host.storage_ips, map));
    directory.hosts.iter().filter(uses).map(judged).collect()
}

/// Judges the watchers of an image: a watcher at an unlisted address would keep writing after a fence of its host.
pub(super) async fn watched(
    ceph: &dyn CephPort,
    config: &ControllerConfig,
    seen: &[Result<Seen>],
    vm: &Vm,
    volume: &Volume,
) -> Result<String> {
    let InstallPath::Ceph { pool, image } = &volume.install_path else { return Ok("not on Ceph".to_owned()) };
    let watchers = ceph.watchers(volume.storage, pool, image).await?;
    let hosts = &config.inventory.hosts;
    let answers = || seen.iter().map(|seen| seen.as_ref().ok());
    let runs_on = answers().position(|seen| seen.is_some_and(|seen| seen.running.contains(&vm.id)));
    let owner = |ip: IpAddr| answers().position(|seen| seen.is_some_and(|seen| seen.itself.addresses.contains(&ip)));
    let storage = config.inventory.storages.iter().find(|storage| storage.id == volume.storage);
    let allowed = storage.map(|storage| storage.watchers_allowed.as_slice()).unwrap_or_default();
    watchers::judge(&watchers, runs_on.and_then(|n| hosts.get(n)), hosts, owner, allowed)
}
