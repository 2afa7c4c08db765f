//! The shell of placement: queries hosts, recovery and HA for the core, and answers requesters.

use std::{
    collections::{BTreeSet, HashMap},
    time::Duration,
};

use futures_util::future::{join, join_all};
use ringfence::{Accepts, Actor, Address, Bus, Ctx, Handler, Kind, Promise, Promised};
use ringfence_messages::{
    ClusterId, HostId, Result,
    ha::{CandidatesReply, FindTargetMsg, HA, PLACEMENT, QueryCandidatesMsg, QueryCensusMsg, TargetReply},
    host::{HostFactsCmd, QueryServingHostsMsg},
    recovery::RECOVERY,
    vm::ListVmsCmd,
};
use serde_json::json;
use tokio::time::Instant;

use super::core::{Command, Core, Event, HostSnapshot, Round, Token};
use crate::{host::HostActor, inventory::SharedInventory};

/// Limit of one host's answer. Too low: a loaded host looks full. Too high: a start waits long for a host that is
/// down.
const SNAPSHOT_TIMEOUT: Duration = Duration::from_secs(2);

/// The placement actor: one for all clusters.
pub struct PlacementActor {
    inventory: SharedInventory,
    bus: Bus,
    core: Core,
    targets: HashMap<Token, Promise<TargetReply>>,
    lists: HashMap<Token, Promise<CandidatesReply>>,
    next: Token,
    born: Instant,
}

impl PlacementActor {
    /// Placement over the whole inventory.
    pub fn new(inventory: SharedInventory, bus: Bus) -> PlacementActor {
        let (core, born) = (Core::default(), Instant::now());
        PlacementActor { inventory, bus, core, targets: HashMap::new(), lists: HashMap::new(), next: 0, born }
    }

    fn token(&mut self) -> Token {
        self.next += 1;
        self.next
    }

    fn on(&mut self, event: Event, ctx: &mut Ctx<'_, Self>) {
        self.core.set_inventory(&self.inventory.now());
        for command in self.core.on(event, self.born.elapsed()) {
            match command {
                // Detached: the first requester may time out before the others.
                Command::Query(cluster, fresh) => {
                    let round = round(self.bus.clone(), cluster, fresh, self.born);
                    ctx.spawn_detached(round, move |this, found, ctx| this.on(Event::Queried(cluster, found), ctx));
                }
                Command::Wait(cluster, time) => {
                    ctx.after(time, move |this, ctx| this.on(Event::Waited(cluster), ctx));
                }
                Command::Target(token, reply) => {
                    if let Some(promise) = self.targets.remove(&token) {
                        promise.complete(reply);
                    }
                }
                Command::List(token, reply) => {
                    if let Some(promise) = self.lists.remove(&token) {
                        promise.complete(reply);
                    }
                }
            }
        }
    }
}

/// Queries the hosts of a cluster for their capacity and processes.
async fn round(bus: Bus, cluster_uuid: ClusterId, fresh: BTreeSet<HostId>, born: Instant) -> Result<Round> {
    let serving = bus.ask(RECOVERY, QueryServingHostsMsg { cluster_uuid });
    let (serving, census) = join(serving, bus.ask(HA, QueryCensusMsg { cluster_uuid })).await;
    let serving = serving?;
    let mut queried: BTreeSet<HostId> =
        serving.host_uuids.iter().chain(&serving.answering_host_uuids).copied().collect();
    match &census {
        Ok(census) => queried.extend(&census.searched_host_uuids),
        // Without the hosts in maintenance the round would miss VMs.
        Err(_) => return Ok(Round { serving, queried, snapshots: Vec::new(), census }),
    }
    let stale = queried.iter().filter(|host| !fresh.contains(host));
    let snapshots = join_all(stale.map(|host| snapshot(bus.clone(), *host, born))).await;
    // Again: a host may have become unreachable while the others were queried.
    let census = bus.ask(HA, QueryCensusMsg { cluster_uuid }).await;
    Ok(Round { serving, queried, snapshots, census })
}

async fn snapshot(bus: Bus, host: HostId, born: Instant) -> (HostId, HostSnapshot) {
    let (to, asked) = (Address::new(HostActor::KIND, host), born.elapsed());
    let facts = bus.ask_within(to, HostFactsCmd {}, SNAPSHOT_TIMEOUT);
    let listed = bus.ask_within(to, ListVmsCmd::default(), SNAPSHOT_TIMEOUT);
    let (facts, listed) = join(facts, listed).await;
    let listed_all = listed.as_ref().is_ok_and(|listed| listed.sight.is_full());
    let vms = listed.map(|listed| {
        let of_vms = listed.vms.iter().filter(|vm| vm.stranger.is_none());
        of_vms.map(|vm| vm.vm_uuid).collect()
    });
    let available_mib = facts.ok().map(|facts| facts.available_mib);
    (host, HostSnapshot { asked, available_mib, listed_all, vms: vms.unwrap_or_default() })
}

impl Actor for PlacementActor {
    const KIND: Kind = PLACEMENT.kind;

    fn accepts(accepts: &mut Accepts<Self>) {
        accepts.message::<FindTargetMsg>().message::<QueryCandidatesMsg>();
    }

    fn observe(&self) -> serde_json::Value {
        let (waiting, reservations) = self.core.load();
        json!({ "waiting": waiting, "reservations": reservations })
    }
}

impl Handler<FindTargetMsg> for PlacementActor {
    type Answer = Promised<FindTargetMsg>;

    fn handle(&mut self, message: FindTargetMsg, ctx: &mut Ctx<'_, Self>) -> Self::Answer {
        let (promise, answer) = ctx.promise::<FindTargetMsg>();
        let token = self.token();
        self.targets.insert(token, promise);
        self.on(Event::Find(token, message), ctx);
        answer
    }
}

impl Handler<QueryCandidatesMsg> for PlacementActor {
    type Answer = Promised<QueryCandidatesMsg>;

    fn handle(&mut self, message: QueryCandidatesMsg, ctx: &mut Ctx<'_, Self>) -> Self::Answer {
        let (promise, answer) = ctx.promise::<QueryCandidatesMsg>();
        let token = self.token();
        self.lists.insert(token, promise);
        self.on(Event::Candidates(token, message.cluster_uuid), ctx);
        answer
    }
}
