//! One Ceph storage: watchers of its images, and the hosts that it rejects (fencing level 2).
//!
//! Invariants: an address that a daemon of the cluster or another host has is never blocked (fault 18). A fence is in
//! force only after it was read back. Once intended it is kept, renewed before it expires and re-applied if it was
//! removed, until [`LiftStorageFenceMsg`], also after a restart: an entry must not end before the old QEMU is
//! verified gone (seen on real Ceph: a survivor then writes again and never shows up as a watcher). The blocked
//! addresses are the ones that are renewed and removed, even if the inventory has changed (K13). One operation per
//! host at a time.
//! Alternatives considered: block single clients (`IP:0/NONCE`). A client that restarts has another nonce.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use ringfence::{Accepts, Actor, AsyncReply, Ctx, Handler, Kind, Promise, Promised};
use ringfence_messages::{
    Code, ErrorCode, Event as _, HostId, Result, StorageId,
    agent::Done,
    ceph::{
        FenceHostOnStorageMsg, ForgetStorageFenceMsg, LiftStorageFenceMsg, QueryStorageFencesMsg, QueryWatchersMsg,
        StorageFenceChanged, StorageFencePhase, StorageFenceReply, StorageFencesReply, WatchersReply,
    },
    inventory::RetireMsg,
    vm::InstallPath,
};
use tokio::time::Instant;

use crate::{
    audit::Recorder,
    inventory::{InventoryIndex, SharedInventory},
    ports::{CephMap, CephPort, JournalPort},
    replay::{REPLAY_RETRY, not_ready},
    sabotage::{self, Sabotage},
};

/// Duration of an entry unless it is renewed (Ceph's own default is 1 h). Too low: a controller that is down that
/// long lets a survivor write again. Too high: an entry whose journal was lost excludes a host that long.
pub const LASTING: Duration = Duration::from_secs(24 * 3600);

/// Between two checks of the entries. Too high: a removed entry stays removed that long.
pub const CHECK_EVERY: Duration = Duration::from_secs(20);

/// A fence that was read back this recently is not applied again.
const FRESH: Duration = Duration::from_secs(5);

/// One Ceph storage's actor.
pub struct CephActor {
    flow: Flow,
    journal: Arc<dyn JournalPort>,
    /// None until the journal is replayed.
    fences: Option<BTreeMap<HostId, Fence>>,
    /// Hosts that the last check found on the blocklist without a record.
    unknown: BTreeSet<HostId>,
}

/// A host that the storage rejects, or may.
#[derive(Debug, Default)]
struct Fence {
    /// When it was applied and read back last; `None`: not confirmed.
    in_force: Option<(Instant, StorageFenceReply)>,
    /// The cluster may reject the host: this controller or an earlier one sent the entry.
    told: bool,
    /// Addresses that were or may have been blocked.
    addresses: BTreeSet<IpAddr>,
    busy: bool,
    waiting: Vec<Promise<StorageFenceReply>>,
}

/// Context of one operation.
#[derive(Clone)]
struct Flow {
    storage: StorageId,
    inventory: SharedInventory,
    ceph: Arc<dyn CephPort>,
    recorder: Recorder,
}

impl CephActor {
    /// The actor of this storage.
    pub fn new(
        storage: StorageId,
        inventory: SharedInventory,
        ceph: Arc<dyn CephPort>,
        journal: Arc<dyn JournalPort>,
        recorder: Recorder,
    ) -> CephActor {
        CephActor { flow: Flow { storage, inventory, ceph, recorder }, journal, fences: None, unknown: BTreeSet::new() }
    }

    fn replay(&mut self, ctx: &mut Ctx<'_, Self>) {
        let (journal, storage) = (self.journal.clone(), self.flow.storage);
        let fenced = async move {
            let mut fenced = Vec::new();
            for record in journal.latest(StorageFenceChanged::TOPIC).await? {
                let event: StorageFenceChanged = record.event()?;
                if event.primary_storage_uuid == storage && event.phase.is_kept() {
                    fenced.push((event.host_uuid, event.addresses));
                }
            }
            Ok(fenced)
        };
        ctx.spawn_detached(fenced, |this, fenced: Result<Vec<(HostId, Vec<IpAddr>)>>, ctx| match fenced {
            Ok(fenced) => {
                let hosts: Vec<HostId> = fenced.iter().map(|(host, _)| *host).collect();
                let told = !sabotage::on(Sabotage::ForgetFences);
                let fence = |addresses: Vec<IpAddr>| Fence {
                    told,
                    addresses: addresses.into_iter().collect(),
                    ..Fence::default()
                };
                this.fences = Some(fenced.into_iter().map(|(host, addresses)| (host, fence(addresses))).collect());
                for host in hosts {
                    this.order(host, "controller start: the existing fence is kept", ctx);
                }
            }
            Err(error) => {
                tracing::error!(%error, "cannot read the storage fences from the journal");
                ctx.after(REPLAY_RETRY, |this, ctx| this.replay(ctx));
            }
        });
    }

    /// Applies the fence of a host, unless an operation is in progress.
    fn order(&mut self, host: HostId, reason: &str, ctx: &mut Ctx<'_, Self>) {
        let Some(fence) = self.fences.as_mut().map(|fences| fences.entry(host).or_default()) else { return };
        if std::mem::replace(&mut fence.busy, true) {
            return;
        }
        let renews = fence.in_force.is_some();
        let (flow, reason, blocked) = (self.flow.clone(), reason.to_owned(), fence.addresses.clone());
        // Detached: the result is for every requester, even if the first one times out.
        ctx.spawn_detached(async move { flow.fence(host, blocked, reason, renews).await }, move |this, ended, _| {
            let Some(fence) = this.fences.as_mut().and_then(|fences| fences.get_mut(&host)) else { return };
            fence.busy = false;
            let result = match ended {
                Ok(reply) => {
                    fence.addresses.extend(&reply.addresses);
                    fence.in_force = Some((Instant::now(), reply.clone()));
                    fence.told = true;
                    Ok(reply)
                }
                Err(Refused { error, touched }) => {
                    fence.in_force = None;
                    fence.told |= !touched.is_empty();
                    fence.addresses.extend(touched);
                    Err(error)
                }
            };
            let waiting = std::mem::take(&mut fence.waiting);
            // Forgotten only if the cluster never got the entry: else it would never be renewed or removed.
            if !fence.told {
                this.fences.as_mut().map(|fences| fences.remove(&host));
            }
            waiting.into_iter().for_each(|promise| promise.complete(result.clone()));
        });
    }

    /// Checks that the cluster rejects exactly the fenced hosts.
    fn check(&mut self, ctx: &mut Ctx<'_, Self>) {
        if self.fences.is_none() {
            return;
        }
        let flow = self.flow.clone();
        let map = async move { flow.ceph.map(flow.storage).await };
        ctx.spawn_detached(map, |this, map, ctx| match map {
            Err(error) => tracing::warn!(%error, storage = this.flow.name(), "cannot check the storage fences"),
            Ok(map) => {
                let fences = this.fences.iter().flatten().filter(|(_, fence)| !fence.busy);
                let due: Vec<_> = fences
                    .filter_map(|(host, fence)| fence.due(&map, Instant::now()).map(|why| (*host, why)))
                    .collect();
                for (host, why) in due {
                    let name = this.flow.inventory.now().host_name(host);
                    tracing::warn!(host = name, storage = this.flow.name(), reason = why, "storage fence re-applied");
                    metrics::counter!("ringfence_storage_fence_renewals_total", "why" => why).increment(1);
                    this.order(host, why, ctx);
                }
                this.adopt(&map);
            }
        });
    }

    /// Adopts blocklist entries without a record, so that the host is no target, is reconciled, and returns to
    /// service (K13).
    fn adopt(&mut self, map: &CephMap) {
        let Some(fences) = &mut self.fences else { return };
        let unknown = unknown(&self.flow, fences, map);
        // Twice in a row: this map may be older than the removal of a fence.
        for (host, addresses) in unknown.iter().filter(|(host, _)| self.unknown.contains(host)) {
            let reason = "on the blocklist without a record".to_owned();
            drop(self.flow.recorder.fact(self.flow.event(*host, StorageFencePhase::Found, addresses, reason)));
            let addresses = addresses.iter().copied().collect();
            fences.insert(*host, Fence { told: true, addresses, ..Fence::default() });
        }
        self.unknown = unknown.into_keys().collect();
    }
}

/// The hosts of this storage that the map rejects without a fence.
fn unknown(flow: &Flow, fences: &BTreeMap<HostId, Fence>, map: &CephMap) -> BTreeMap<HostId, Vec<IpAddr>> {
    let inventory = flow.inventory.now();
    let Ok(storage) = inventory.storage(flow.storage) else { return BTreeMap::new() };
    let of_it = inventory.hosts.iter().filter(|host| storage.clusters.contains(&host.cluster));
    let refused =
        of_it.filter(|host| !fences.contains_key(&host.id) && !sabotage::on(Sabotage::EntriesIgnored)).map(|host| {
            let is_refused = |ip: &&IpAddr| map.blocked.contains(*ip) || map.blocked_otherwise.contains(*ip);
            let blocked: Vec<IpAddr> = host.storage_ips.iter().filter(is_refused).copied().collect();
            (host.id, blocked)
        });
    // An address shared by several hosts is reported by the doctor.
    refused.filter(|(host, blocked)| may_block(&inventory, *host, blocked, map).is_ok()).collect()
}

impl Fence {
    /// Why the fence must be applied again, if it must.
    fn due(&self, map: &CephMap, now: Instant) -> Option<&'static str> {
        match &self.in_force {
            None => Some("it is not confirmed"),
            Some((_, reply))
                if reply.addresses.iter().any(|ip| !map.blocked.contains(ip))
                    && !sabotage::on(Sabotage::NotPutBack) =>
            {
                Some("the entry was removed")
            }
            Some((at, _)) if now.duration_since(*at) >= LASTING / 2 => Some("half of its time is over"),
            Some(_) => None,
        }
    }
}

/// A fence that is not confirmed; `touched`: addresses that the cluster may have blocked.
struct Refused {
    error: ErrorCode,
    touched: Vec<IpAddr>,
}

impl Flow {
    fn name(&self) -> String {
        self.inventory
            .now()
            .storage(self.storage)
            .map_or_else(|_| self.storage.to_string(), |storage| storage.name.clone())
    }

    fn event(
        &self,
        host: HostId,
        phase: StorageFencePhase,
        addresses: &[IpAddr],
        reason: String,
    ) -> StorageFenceChanged {
        StorageFenceChanged {
            primary_storage_uuid: self.storage,
            storage: self.name(),
            host_uuid: host,
            host: self.inventory.now().host_name(host),
            phase,
            addresses: addresses.to_vec(),
            osd_epoch: None,
            lasting_seconds: None,
            reason,
        }
    }

    /// Blocks the host's addresses, and those that were `blocked` before.
    async fn fence(
        &self,
        host: HostId,
        mut blocked: BTreeSet<IpAddr>,
        reason: String,
        renews: bool,
    ) -> Result<StorageFenceReply, Refused> {
        let untouched = |error| Refused { error, touched: Vec::new() };
        let inventory = self.inventory.now();
        match inventory.host(host) {
            Ok(host) => blocked.extend(&host.storage_ips),
            Err(_) if !blocked.is_empty() => {}
            Err(error) => return Err(untouched(error)),
        }
        let addresses: Vec<IpAddr> = blocked.into_iter().collect();
        let map = self.ceph.map(self.storage).await.map_err(untouched)?;
        may_block(&inventory, host, &addresses, &map).map_err(untouched)?;
        let intent = self.event(host, StorageFencePhase::Intended, &addresses, reason.clone());
        self.recorder.intent(&intent).await.map_err(untouched)?;
        let mut osd_epoch = 0;
        for ip in &addresses {
            match self.ceph.block(self.storage, *ip, LASTING).await {
                Ok(epoch) => osd_epoch = epoch,
                Err(error) => {
                    let failed = self.event(host, StorageFencePhase::Failed, &addresses, error.to_string());
                    let _ = self.recorder.fact(failed).await;
                    return Err(Refused { error, touched: addresses });
                }
            }
        }
        let phase = if renews { StorageFencePhase::Renewed } else { StorageFencePhase::Fenced };
        let mut done = self.event(host, phase, &addresses, reason);
        done.osd_epoch = Some(osd_epoch);
        done.lasting_seconds = Some(LASTING.as_secs());
        // Does not wait for the disk: the fence is in force already.
        drop(self.recorder.fact(done));
        Ok(StorageFenceReply { osd_epoch, addresses })
    }

    async fn lift(&self, host: HostId, addresses: Vec<IpAddr>) -> Result<Done> {
        let reason = "no leftover QEMU is on the host".to_owned();
        let intent = self.event(host, StorageFencePhase::LiftIntended, &addresses, reason.clone());
        self.recorder.intent(&intent).await?;
        let mut lifted = self.event(host, StorageFencePhase::Lifted, &addresses, reason);
        for ip in &addresses {
            lifted.osd_epoch = Some(self.ceph.unblock(self.storage, *ip).await?);
        }
        let _ = self.recorder.fact(lifted).await;
        Ok(Done {})
    }
}

/// Whether addresses belong to this host alone (fault 18). The doctor uses the same check.
///
/// # Errors
/// `SYS.1006` with the address and its other owner.
pub fn may_block(inventory: &InventoryIndex, host: HostId, addresses: &[IpAddr], map: &CephMap) -> Result<()> {
    let refused = |why: String| Err(ErrorCode::new(Code::OPERATION, format!("storage fence rejected: {why}")));
    if addresses.is_empty() {
        let name = inventory.host_name(host);
        return refused(format!("{name} has no `storage_ips`: there is no address to block"));
    }
    for ip in addresses {
        if let Some((daemon, _)) = map.daemons.iter().find(|(_, at)| at == ip) {
            return refused(format!("{ip} is also the address of {daemon}: blocking it would harm the cluster"));
        }
        let others = inventory.hosts.iter().filter(|other| other.id != host);
        if let Some(other) =
            others.into_iter().find(|o| o.storage_ips.contains(ip) || o.management_ip.parse() == Ok(*ip))
        {
            return refused(format!("{ip} is also an address of {}: blocking it would cut that host off", other.name));
        }
    }
    Ok(())
}

impl Actor for CephActor {
    const KIND: Kind = Kind::new("ceph");

    fn accepts(accepts: &mut Accepts<Self>) {
        accepts
            .message::<QueryWatchersMsg>()
            .message::<FenceHostOnStorageMsg>()
            .message::<LiftStorageFenceMsg>()
            .message::<ForgetStorageFenceMsg>()
            .message::<QueryStorageFencesMsg>()
            .message::<RetireMsg>();
    }

    fn started(&mut self, ctx: &mut Ctx<'_, Self>) {
        self.replay(ctx);
        ctx.every(CHECK_EVERY, |this, ctx| this.check(ctx));
    }

    fn observe(&self) -> serde_json::Value {
        let fences = self.fences.iter().flatten();
        let inventory = self.flow.inventory.now();
        let named = fences.map(|(host, fence)| (inventory.host_name(*host), fence.in_force.is_some().into()));
        serde_json::Value::Object(named.collect())
    }
}

impl Handler<QueryWatchersMsg> for CephActor {
    type Answer = AsyncReply<WatchersReply>;

    fn handle(&mut self, message: QueryWatchersMsg, _: &mut Ctx<'_, Self>) -> Self::Answer {
        let flow = self.flow.clone();
        AsyncReply::new(async move {
            let InstallPath::Ceph { pool, image } = message.install_path else {
                let details = format!("{} is not on Ceph", message.install_path);
                return Err(ErrorCode::new(Code::INVALID_ARGUMENT, details));
            };
            let mut watchers = flow.ceph.watchers(flow.storage, &pool, &image).await?;
            // Watchers that use no volume, such as rbd-mirror's, are listed in the config.
            let inventory = flow.inventory.now();
            let allowed =
                inventory.storage(flow.storage).map(|storage| storage.watchers_allowed.clone()).unwrap_or_default();
            watchers.retain(|watcher| !allowed.contains(&watcher.ip));
            Ok(WatchersReply { watchers })
        })
    }
}

impl Handler<FenceHostOnStorageMsg> for CephActor {
    type Answer = Promised<FenceHostOnStorageMsg>;

    fn handle(&mut self, message: FenceHostOnStorageMsg, ctx: &mut Ctx<'_, Self>) -> Self::Answer {
        let (promise, answer) = ctx.promise::<FenceHostOnStorageMsg>();
        let Some(fences) = &mut self.fences else {
            promise.complete(Err(not_ready()));
            return answer;
        };
        let fence = fences.entry(message.host_uuid).or_default();
        match &fence.in_force {
            Some((at, reply)) if at.elapsed() < FRESH && !fence.busy => promise.complete(Ok(reply.clone())),
            _ => {
                fence.waiting.push(promise);
                self.order(message.host_uuid, &message.reason, ctx);
            }
        }
        answer
    }
}

impl Handler<LiftStorageFenceMsg> for CephActor {
    type Answer = Promised<LiftStorageFenceMsg>;

    fn handle(&mut self, message: LiftStorageFenceMsg, ctx: &mut Ctx<'_, Self>) -> Self::Answer {
        let (promise, answer) = ctx.promise::<LiftStorageFenceMsg>();
        let host = message.host_uuid;
        self.end(host, promise, ctx, async move |flow, blocked| flow.lift(host, blocked).await);
        answer
    }
}

impl Handler<ForgetStorageFenceMsg> for CephActor {
    type Answer = Promised<ForgetStorageFenceMsg>;

    fn handle(&mut self, message: ForgetStorageFenceMsg, ctx: &mut Ctx<'_, Self>) -> Self::Answer {
        let (promise, answer) = ctx.promise::<ForgetStorageFenceMsg>();
        let ForgetStorageFenceMsg { host_uuid: host, reason } = message;
        self.end(host, promise, ctx, async move |flow, blocked| {
            let forgotten = flow.event(host, StorageFencePhase::Forgotten, &blocked, reason);
            flow.recorder.intent(&forgotten).await.map(|_| Done {})
        });
        answer
    }
}

impl CephActor {
    /// Ends a host's fence, unless an operation is in progress.
    fn end<F>(&mut self, host: HostId, promise: Promise<Done>, ctx: &mut Ctx<'_, Self>, how: F)
    where
        F: AsyncFnOnce(Flow, Vec<IpAddr>) -> Result<Done> + 'static,
    {
        let fence = match self.fences.as_mut().map(|fences| fences.get_mut(&host)) {
            None => return promise.complete(Err(not_ready())),
            Some(None) => return promise.complete(Ok(Done {})),
            Some(Some(fence)) if fence.busy => {
                let details = "a fence of this host is in progress; retry when it completes";
                return promise.complete(Err(ErrorCode::new(Code::CHANGE_STATE, details)));
            }
            Some(Some(fence)) => fence,
        };
        fence.busy = true;
        let (flow, blocked) = (self.flow.clone(), fence.addresses.iter().copied().collect());
        ctx.spawn_detached(async move { how(flow, blocked).await }, move |this, result, ctx| {
            let Some(fences) = &mut this.fences else { return };
            let waiting = fences.get_mut(&host).map(|fence| {
                fence.busy = false;
                std::mem::take(&mut fence.waiting)
            });
            let waiting = waiting.unwrap_or_default();
            if result.is_ok() {
                fences.remove(&host);
            }
            // A fence was requested while the old one was being removed.
            if !waiting.is_empty() {
                fences.entry(host).or_default().waiting = waiting;
                this.order(host, "requested while the fence was being removed", ctx);
            }
            promise.complete(result);
        });
    }
}

impl Handler<RetireMsg> for CephActor {
    type Answer = Result<Done>;

    fn handle(&mut self, _: RetireMsg, ctx: &mut Ctx<'_, Self>) -> Self::Answer {
        let fences = self.fences.as_ref().ok_or_else(not_ready)?;
        if let Some(host) = fences.keys().next() {
            let details = format!("storage {} still rejects {host}: its fence must be removed first", self.flow.name());
            return Err(ErrorCode::new(Code::CHANGE_STATE, details));
        }
        ctx.stop();
        Ok(Done {})
    }
}

impl Handler<QueryStorageFencesMsg> for CephActor {
    type Answer = Result<StorageFencesReply>;

    fn handle(&mut self, _: QueryStorageFencesMsg, _: &mut Ctx<'_, Self>) -> Self::Answer {
        let fences = self.fences.as_ref().ok_or_else(not_ready)?;
        Ok(StorageFencesReply { host_uuids: fences.keys().copied().collect() })
    }
}
