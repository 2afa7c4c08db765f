//! One Ceph storage: who watches its images, and which hosts it refuses (level 2 of the ladder).
//!
//! Invariants: an address that a daemon of the cluster or another host has is never blocked (fault 18). A fence is in
//! force only when it was read back. Once intended it is kept, renewed before it ends and put back where it was taken
//! away, until [`LiftStorageFenceMsg`], also over a restart: an entry must not end before the old QEMU is verified gone
//! (seen on real Ceph: a survivor then writes again and never shows up as a watcher). What was blocked is what is renewed and
//! lifted, whatever the inventory calls the host's addresses by then (K13). One order per host at a time.
//! Rejected: blocking single clients (`IP:0/NONCE`): a client that restarts has another nonce.

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
    vm::InstallPath,
};
use tokio::time::Instant;

use crate::{
    audit::Recorder,
    change::RetireMsg,
    inventory::{Catalog, Directory},
    memory::{MEMORY_RETRY, not_ready},
    ports::{CephMap, CephPort, JournalPort},
    sabotage::{self, Sabotage},
};

/// How long an entry lasts unless it is renewed (domain: Ceph's own default is 1 h). Too low: a controller that is away
/// for so long lets a survivor write again. Too high: an entry that nobody lifts, because the journal was lost, keeps a
/// host out for as long.
pub const LASTING: Duration = Duration::from_secs(24 * 3600);

/// Between looks whether the entries are still there. Too high: one that somebody removed stays away for as long.
pub const CHECK_EVERY: Duration = Duration::from_secs(20);

/// For so long after it was read back a fence is not ordered again.
const FRESH: Duration = Duration::from_secs(5);

/// One Ceph storage's actor.
pub struct CephActor {
    flow: Flow,
    journal: Arc<dyn JournalPort>,
    /// None until the journal said what was fenced before.
    fences: Option<BTreeMap<HostId, Fence>>,
    /// Hosts that the last look found on the blocklist and in no record.
    unknown: BTreeSet<HostId>,
}

/// A host that is refused, or may be.
#[derive(Debug, Default)]
struct Fence {
    /// When it was ordered and read back last; `None`: it is not known to be in force.
    in_force: Option<(Instant, StorageFenceReply)>,
    /// The cluster may refuse it: it was told to, by this controller or, as the journal says, by one before.
    told: bool,
    /// What was or may have been blocked.
    addresses: BTreeSet<IpAddr>,
    busy: bool,
    waiting: Vec<Promise<StorageFenceReply>>,
}

/// What an order works with to its end.
#[derive(Clone)]
struct Flow {
    storage: StorageId,
    catalog: Catalog,
    ceph: Arc<dyn CephPort>,
    recorder: Recorder,
}

impl CephActor {
    /// The actor of this storage.
    pub fn new(
        storage: StorageId,
        catalog: Catalog,
        ceph: Arc<dyn CephPort>,
        journal: Arc<dyn JournalPort>,
        recorder: Recorder,
    ) -> CephActor {
        CephActor { flow: Flow { storage, catalog, ceph, recorder }, journal, fences: None, unknown: BTreeSet::new() }
    }

    fn remember(&mut self, ctx: &mut Ctx<'_, Self>) {
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
                    this.order(host, "the controller started: what it had fenced stays so", ctx);
                }
            }
            Err(error) => {
                tracing::error!(%error, "the journal does not say which hosts are fenced on this storage");
                ctx.after(MEMORY_RETRY, |this, ctx| this.remember(ctx));
            }
        });
    }

    /// Orders the fence of a host, unless that is under way.
    fn order(&mut self, host: HostId, reason: &str, ctx: &mut Ctx<'_, Self>) {
        let Some(fence) = self.fences.as_mut().map(|fences| fences.entry(host).or_default()) else { return };
        if std::mem::replace(&mut fence.busy, true) {
            return;
        }
        let renews = fence.in_force.is_some();
        let (flow, reason, blocked) = (self.flow.clone(), reason.to_owned(), fence.addresses.clone());
        // Detached: it is for everyone who waits, and is finished though the first one gave up.
        ctx.spawn_detached(async move { flow.fence(host, blocked, reason, renews).await }, move |this, ended, _| {
            let Some(fence) = this.fences.as_mut().and_then(|fences| fences.get_mut(&host)) else { return };
            fence.busy = false;
            let result = match ended {
                Ok(reply) => {
                    fence.addresses.extend(&reply.addresses);
                    (fence.in_force, fence.told) = (Some((Instant::now(), reply.clone())), true);
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
            // Forgotten only if the cluster was never told: another one would never be renewed and never be lifted.
            if !fence.told {
                this.fences.as_mut().map(|fences| fences.remove(&host));
            }
            waiting.into_iter().for_each(|promise| promise.complete(result.clone()));
        });
    }

    /// Looks whether the cluster still refuses whom it should, and nobody else.
    fn check(&mut self, ctx: &mut Ctx<'_, Self>) {
        if self.fences.is_none() {
            return;
        }
        let flow = self.flow.clone();
        let map = async move { flow.ceph.map(flow.storage).await };
        ctx.spawn_detached(map, |this, map, ctx| match map {
            Err(error) => tracing::warn!(%error, storage = this.flow.name(), "whether fences hold is not known"),
            Ok(map) => {
                let fences = this.fences.iter().flatten().filter(|(_, fence)| !fence.busy);
                let due: Vec<_> = fences
                    .filter_map(|(host, fence)| fence.due(&map, Instant::now()).map(|why| (*host, why)))
                    .collect();
                for (host, why) in due {
                    let name = this.flow.catalog.now().host_name(host);
                    tracing::warn!(host = name, storage = this.flow.name(), "fence ordered again: {why}");
                    metrics::counter!("ringfence_storage_fence_renewals_total", "why" => why).increment(1);
                    this.order(host, why, ctx);
                }
                this.adopt(&map);
            }
        });
    }

    /// Keeps what is on the blocklist and in no record, so that it is not chosen as a target, is cleaned, and let in again (K13).
    fn adopt(&mut self, map: &CephMap) {
        let Some(fences) = &mut self.fences else { return };
        let unknown = unknown(&self.flow, fences, map);
        // Twice in a row: this map may be older than a fence that was lifted meanwhile.
        for (host, addresses) in unknown.iter().filter(|(host, _)| self.unknown.contains(host)) {
            let reason = "it is on the blocklist, and no record says why".to_owned();
            drop(self.flow.recorder.fact(self.flow.event(*host, StorageFencePhase::Found, addresses, reason)));
            let addresses = addresses.iter().copied().collect();
            fences.insert(*host, Fence { told: true, addresses, ..Fence::default() });
        }
        self.unknown = unknown.into_keys().collect();
    }
}

/// The hosts of this storage that the map refuses without a fence of ours.
fn unknown(flow: &Flow, fences: &BTreeMap<HostId, Fence>, map: &CephMap) -> BTreeMap<HostId, Vec<IpAddr>> {
    let directory = flow.catalog.now();
    let Ok(storage) = directory.storage(flow.storage) else { return BTreeMap::new() };
    let of_it = directory.hosts.iter().filter(|of| storage.clusters.contains(&of.cluster));
    let refused =
        of_it.filter(|of| !fences.contains_key(&of.id) && !sabotage::on(Sabotage::EntriesIgnored)).map(|of| {
            let is_refused = |ip: &&IpAddr| map.blocked.contains(*ip) || map.blocked_otherwise.contains(*ip);
            let blocked: Vec<IpAddr> = of.storage_ips.iter().filter(is_refused).copied().collect();
            (of.id, blocked)
        });
    // Whose address is not one host's alone is the doctor's to tell of.
    refused.filter(|(host, blocked)| may_block(&directory, *host, blocked, map).is_ok()).collect()
}

impl Fence {
    /// Why it must be ordered again, if it must.
    fn due(&self, map: &CephMap, now: Instant) -> Option<&'static str> {
        match &self.in_force {
            None => Some("it is not known to be in force"),
            Some((_, reply))
                if reply.addresses.iter().any(|ip| !map.blocked.contains(ip))
                    && !sabotage::on(Sabotage::NotPutBack) =>
            {
                Some("somebody removed the entry")
            }
            Some((at, _)) if now.duration_since(*at) >= LASTING / 2 => Some("half of its time is over"),
            Some(_) => None,
        }
    }
}

/// A fence that is not known to hold; `touched`: what the cluster may have been told.
struct Refused {
    error: ErrorCode,
    touched: Vec<IpAddr>,
}

impl Flow {
    fn name(&self) -> String {
        self.catalog.now().storage(self.storage).map_or_else(|_| self.storage.to_string(), |of| of.name.clone())
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
            host: self.catalog.now().host_name(host),
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
        let directory = self.catalog.now();
        match directory.host(host) {
            Ok(of) => blocked.extend(&of.storage_ips),
            Err(_) if !blocked.is_empty() => {}
            Err(error) => return Err(untouched(error)),
        }
        let addresses: Vec<IpAddr> = blocked.into_iter().collect();
        let map = self.ceph.map(self.storage).await.map_err(untouched)?;
        may_block(&directory, host, &addresses, &map).map_err(untouched)?;
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
        (done.osd_epoch, done.lasting_seconds) = (Some(osd_epoch), Some(LASTING.as_secs()));
        // Told without waiting for the disk: what is in force is in force.
        drop(self.recorder.fact(done));
        Ok(StorageFenceReply { osd_epoch, addresses })
    }

    async fn lift(&self, host: HostId, addresses: Vec<IpAddr>) -> Result<Done> {
        let reason = "no QEMU of a VM that moved is left on it".to_owned();
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

/// Whether addresses are this host's alone (fault 18). The doctor asks the same.
///
/// # Errors
/// `SYS.1006`, naming the address and whose it is too.
pub fn may_block(directory: &Directory, host: HostId, addresses: &[IpAddr], map: &CephMap) -> Result<()> {
    let refused = |why: String| Err(ErrorCode::new(Code::OPERATION, format!("storage fence refused: {why}")));
    if addresses.is_empty() {
        let name = directory.host_name(host);
        return refused(format!("{name} has no storage_ips in the config: nothing is known to block"));
    }
    for ip in addresses {
        if let Some((daemon, _)) = map.daemons.iter().find(|(_, at)| at == ip) {
            return refused(format!("{ip} is the address of {daemon} too: blocking it would hurt the cluster"));
        }
        let others = directory.hosts.iter().filter(|other| other.id != host);
        if let Some(other) =
            others.into_iter().find(|o| o.storage_ips.contains(ip) || o.management_ip.parse() == Ok(*ip))
        {
            return refused(format!("{ip} is an address of {} too: blocking it would cut that one off", other.name));
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
        self.remember(ctx);
        ctx.every(CHECK_EVERY, |this, ctx| this.check(ctx));
    }

    fn observe(&self) -> serde_json::Value {
        let fences = self.fences.iter().flatten();
        let directory = self.flow.catalog.now();
        let named = fences.map(|(host, fence)| (directory.host_name(*host), fence.in_force.is_some().into()));
        serde_json::Value::Object(named.collect())
    }
}

impl Handler<QueryWatchersMsg> for CephActor {
    type Answer = AsyncReply<WatchersReply>;

    fn handle(&mut self, message: QueryWatchersMsg, _: &mut Ctx<'_, Self>) -> Self::Answer {
        let flow = self.flow.clone();
        AsyncReply::new(async move {
            let InstallPath::Ceph { pool, image } = message.install_path else {
                let details = format!("{} does not lie on Ceph", message.install_path);
                return Err(ErrorCode::new(Code::INVALID_ARGUMENT, details));
            };
            let mut watchers = flow.ceph.watchers(flow.storage, &pool, &image).await?;
            // Those of rbd-mirror and the like use no volume; the config names them.
            let directory = flow.catalog.now();
            let allowed = directory.storage(flow.storage).map(|of| of.watchers_allowed.clone()).unwrap_or_default();
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
    /// Ends a host's fence, with what was blocked, unless it is being ordered or ended right now.
    fn end<F>(&mut self, host: HostId, promise: Promise<Done>, ctx: &mut Ctx<'_, Self>, how: F)
    where
        F: AsyncFnOnce(Flow, Vec<IpAddr>) -> Result<Done> + 'static,
    {
        let fence = match self.fences.as_mut().map(|fences| fences.get_mut(&host)) {
            None => return promise.complete(Err(not_ready())),
            Some(None) => return promise.complete(Ok(Done {})),
            Some(Some(fence)) if fence.busy => {
                let details = "this host is being fenced right now: lift it when that ended";
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
            // Somebody wanted it fenced while its fence was ended.
            if !waiting.is_empty() {
                fences.entry(host).or_default().waiting = waiting;
                this.order(host, "wanted while its fence was ended", ctx);
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
            let details = format!("{} still refuses {host}: nobody would lift that", self.flow.name());
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
