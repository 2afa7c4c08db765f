//! The shell of HA: queries hosts, storages and VMs for the core, and carries out its commands.

use std::{
    collections::{BTreeSet, HashMap, hash_map::Entry},
    sync::Arc,
    time::Duration,
};

use futures_util::future::{join, join_all};
use ringfence::{Accepts, Actor, Address, Bus, Ctx, EventHandler, Handler, Kind, Promise, Promised};
use ringfence_messages::{
    ClusterId, Code, ErrorCode, HostId, Result, VmId,
    agent::Done,
    ceph::{QueryWatchersMsg, StorageFenceChanged, StorageFencePhase},
    ha::{
        ConfirmHostFencedMsg, FindTargetMsg, HaReply, HaStartVmInstanceMsg, HaStartVmInstanceReply,
        HostConfirmedFenced, HostSuspected, PlanDrainMsg, QuarantineHostMsg, QueryHaMsg, ScanHostMsg, SetQuarantineMsg,
        TargetReply,
    },
    host::{
        HostFactsCmd, HostState, HostStateChanged, HostStatusChanged, QueryHostsMsg, QueryServingHostsMsg,
        ServingHostsReply,
    },
    vm::{ListVmsCmd, LookForVmMsg, VmStateChanged},
};
use tokio::time::Instant;

use super::{
    core::{Command, Core, Event, HaEvent, ObservedState, TICK},
    placement::{Candidate, choose, rank},
    reconciliation::Reconciler,
    replay,
};
use crate::{
    audit::Recorder,
    fence::{FENCER, ceph::CephActor},
    host::HostActor,
    inventory::{HaSettings, SharedInventory},
    ports::JournalPort,
    recovery::RecoveryActor,
    replay::{REPLAY_RETRY, not_ready},
    span, spans,
    vm::{SEARCH_TIMEOUT, VmActor},
};

/// Limit of one failover: three sibling hosts, two storages, a start. Too low: the failover ends before its fence.
pub const FAILOVER_TIMEOUT: Duration = Duration::from_secs(300);

/// Validity of a host's memory and processes. Too high: a VM that another program just started is missed; watchers
/// and the fence do not depend on it.
const SNAPSHOT_FRESH: Duration = Duration::from_secs(2);

/// Limit of one host's answer.
const SNAPSHOT_TIMEOUT: Duration = Duration::from_secs(2);

/// Longest wait of a start for the hosts of its cluster to list their processes. Too low: a request right after the
/// start of the controller is rejected. Too high: the answer comes after its deadline.
const CENSUS_PATIENCE: Duration = Duration::from_secs(20);

/// Between two checks during that wait.
const CENSUS_POLL: Duration = Duration::from_millis(250);

/// Validity of a reservation. After that the memory shows in the report of the host.
const RESERVED_FOR: Duration = Duration::from_secs(10);

/// The HA actor: one for all hosts and VMs.
pub struct HaActor {
    settings: HaSettings,
    census_every: Duration,
    pub(super) inventory: SharedInventory,
    journal: Arc<dyn JournalPort>,
    pub(super) recorder: Recorder,
    reconciler: Reconciler,
    born: Instant,
    /// None until the journal is replayed.
    pub(super) core: Option<Core>,
    /// Operators that wait for a failover.
    askers: HashMap<VmId, Promise<HaStartVmInstanceReply>>,
    pub(super) snapshots: HashMap<HostId, HostSnapshot>,
    /// Placement requests that wait for the hosts of a cluster.
    rounds: HashMap<ClusterId, Vec<(FindTargetMsg, Promise<TargetReply>)>>,
    reservations: Vec<Reservation>,
    /// Since when starts in a cluster wait for its hosts to list their processes.
    census_since: HashMap<ClusterId, Instant>,
}

impl HaActor {
    /// HA for the whole inventory; hosts are queried for their processes once in `census_every`.
    pub fn new(
        settings: HaSettings,
        census_every: Duration,
        inventory: SharedInventory,
        journal: Arc<dyn JournalPort>,
        recorder: Recorder,
        bus: Bus,
    ) -> HaActor {
        let reconciler = Reconciler { inventory: inventory.clone(), bus };
        HaActor {
            settings,
            census_every,
            inventory,
            journal,
            recorder,
            reconciler,
            born: Instant::now(),
            core: None,
            askers: HashMap::new(),
            snapshots: HashMap::new(),
            rounds: HashMap::new(),
            reservations: Vec::new(),
            census_since: HashMap::new(),
        }
    }

    fn replay(&mut self, ctx: &mut Ctx<'_, Self>) {
        ctx.spawn_detached(replay::read(self.journal.clone()), |ha, state, ctx| match state {
            Ok(state) => {
                ha.core = Some(Core::new(ha.settings, ha.census_every, ha.inventory.now(), state));
                ha.on(Event::Tick, ctx);
                ctx.every(TICK, |ha, ctx| ha.on(Event::Tick, ctx));
                ha.catch_up(ctx);
            }
            Err(error) => {
                tracing::error!(%error, "cannot read the HA state from the journal");
                ctx.after(REPLAY_RETRY, |ha, ctx| ha.replay(ctx));
            }
        });
    }

    /// Events published during the replay were missed.
    fn catch_up(&mut self, ctx: &mut Ctx<'_, Self>) {
        let bus = ctx.bus().clone();
        let hosts = async move { bus.ask(Address::singleton(RecoveryActor::KIND), QueryHostsMsg {}).await };
        ctx.spawn_detached(hosts, |ha, reply, ctx| match reply {
            Ok(reply) => {
                for host in reply.hosts {
                    if ha.core.as_ref().is_some_and(|core| !core.knows_status(host.uuid)) {
                        ha.on(Event::HostChanged(host.uuid, host.status), ctx);
                    }
                }
            }
            Err(_) => drop(ctx.after(REPLAY_RETRY, |ha, ctx| ha.catch_up(ctx))),
        });
    }

    pub(super) fn on(&mut self, event: Event, ctx: &mut Ctx<'_, Self>) {
        let now = self.born.elapsed();
        let Some(core) = &mut self.core else { return };
        core.set_inventory(&self.inventory.now());
        for command in core.on(event, now) {
            self.carry_out(command, ctx);
        }
    }

    fn carry_out(&mut self, command: Command, ctx: &mut Ctx<'_, Self>) {
        let bus = ctx.bus().clone();
        match command {
            Command::Scan(host) => {
                let scan = async move { bus.ask(FENCER, ScanHostMsg { host_uuid: host }).await };
                ctx.spawn_detached(scan, move |ha, result, ctx| ha.on(Event::Scanned(host, result), ctx));
            }
            Command::QueryAnswering(cluster) => {
                let ask = QueryServingHostsMsg { cluster_uuid: cluster };
                let serving = async move { bus.ask(Address::singleton(RecoveryActor::KIND), ask).await };
                ctx.spawn_detached(serving, move |ha, reply, ctx| {
                    if let Ok(reply) = reply {
                        ha.on(Event::Answering(cluster, reply.answering_host_uuids), ctx);
                    }
                });
            }
            Command::Quarantine(host, reason) => {
                let quarantined = quarantine(host, reason, bus);
                ctx.spawn_detached(quarantined, move |ha, result, ctx| ha.on(Event::Quarantined(host, result), ctx));
            }
            Command::EndAttestation(host) => {
                let (recorder, name) = (self.recorder.clone(), self.inventory.now().host_name(host));
                let by = "the host answered".to_owned();
                let over = HostConfirmedFenced { host_uuid: host, host: name, confirmed: false, by };
                ctx.spawn_detached(recorder.fact(over), |_, _, _| {});
            }
            Command::Reconcile(host) => {
                let reconciler = self.reconciler.clone();
                ctx.spawn_detached(async move { reconciler.reconcile(host).await }, move |ha, result, ctx| {
                    if let Err(error) = &result {
                        tracing::warn!(%error, host = ha.inventory.now().host_name(host), "host not reconciled yet");
                    }
                    ha.on(Event::Reconciled(host, result), ctx);
                });
            }
            Command::Watch(vm) => {
                let inventory = self.inventory.now();
                let known = inventory.vm(vm).ok();
                let queries = known.iter().flat_map(|vm| &vm.volumes).map(|volume| {
                    let ask = QueryWatchersMsg { install_path: volume.install_path.clone() };
                    bus.ask(Address::new(CephActor::KIND, volume.storage), ask)
                });
                let queries: Vec<_> = queries.collect();
                ctx.spawn_detached(join_all(queries), move |ha, answers, ctx| {
                    let unwatched = !answers.is_empty()
                        && answers.iter().all(|answer| answer.as_ref().is_ok_and(|reply| reply.watchers.is_empty()));
                    ha.on(Event::Unwatched(vm, unwatched), ctx);
                });
            }
            Command::Start { vm, cause, host, soft_avoid, reason } => {
                let ask = HaStartVmInstanceMsg {
                    vm_instance_uuid: vm,
                    judger_class_name: cause.as_str().to_owned(),
                    soft_avoid_host_uuids: soft_avoid,
                    host_uuid: host,
                    ha_reason: reason,
                };
                let span = span!(
                    "ha.start",
                    ringfence.vm = self.inventory.now().vm_name(vm),
                    ringfence.judger = cause.as_str(),
                    ringfence.reason = ask.ha_reason,
                );
                let started =
                    async move { bus.ask_within(Address::new(VmActor::KIND, vm), ask, FAILOVER_TIMEOUT).await };
                let started = spans::within(span, started);
                let began = Instant::now();
                ctx.spawn_detached(started, move |ha, result, ctx| {
                    let outcome = if result.is_ok() { "started" } else { "refused" };
                    metrics::histogram!("ringfence_ha_start_seconds", "outcome" => outcome).record(began.elapsed());
                    let asker = ha.askers.remove(&vm);
                    ha.on(Event::Started(vm, result.clone().map(|reply| reply.host_uuid)), ctx);
                    if let Some(asker) = asker {
                        asker.complete(result);
                    }
                });
            }
            Command::Refuse(vm, error) => {
                if let Some(asker) = self.askers.remove(&vm) {
                    asker.complete(Err(error));
                }
            }
            Command::List(host) => {
                let to = Address::new(HostActor::KIND, host);
                let listed = async move { bus.ask_within(to, ListVmsCmd::default(), SEARCH_TIMEOUT).await };
                ctx.spawn_detached(listed, move |ha, reply, ctx| ha.on(Event::Listed(host, reply), ctx));
            }
            Command::LookFor(vm, host_uuid) => {
                let observed =
                    async move { bus.ask(Address::new(VmActor::KIND, vm), LookForVmMsg { host_uuid }).await };
                ctx.spawn_detached(observed, |ha, observed, ctx| {
                    if let Ok(observed) = observed {
                        ha.on(Event::Vm(observed.uuid, ObservedState::from(&observed)), ctx);
                    }
                });
            }
            command @ (Command::Place(_) | Command::IntendMove(_) | Command::Evict(..)) => self.move_vm(command, ctx),
            Command::Emit(fact) => {
                let recorder = &self.recorder;
                match fact {
                    HaEvent::HostFailed(event) => drop(ctx.spawn_detached(recorder.fact(event), |_, _, _| {})),
                    HaEvent::Brake(event) => drop(ctx.spawn_detached(recorder.fact(event), |_, _, _| {})),
                    HaEvent::Started(event) => drop(ctx.spawn_detached(recorder.fact(event), |_, _, _| {})),
                    HaEvent::Blocked(event) => drop(ctx.spawn_detached(recorder.fact(event), |_, _, _| {})),
                    HaEvent::Intruder(event) => {
                        metrics::counter!("ringfence_vm_intruders_total", "phase" => event.phase.as_str()).increment(1);
                        drop(ctx.spawn_detached(recorder.fact(event), |_, _, _| {}));
                    }
                    HaEvent::Move(event) => drop(ctx.spawn_detached(recorder.fact(event), |_, _, _| {})),
                    HaEvent::Drained(event) => drop(ctx.spawn_detached(recorder.fact(event), |_, _, _| {})),
                }
            }
        }
    }

    /// Queries the hosts of a cluster for their capacity and processes.
    pub(super) fn round(&self, cluster_uuid: ClusterId, bus: Bus) -> impl Future<Output = Result<Round>> + use<> {
        let fresh: BTreeSet<HostId> = self
            .snapshots
            .iter()
            .filter(|(_, snapshot)| snapshot.at.elapsed() < SNAPSHOT_FRESH)
            .map(|(host, _)| *host)
            .collect();
        let mut asked: BTreeSet<HostId> = self.core.iter().flat_map(|core| core.maintained(cluster_uuid)).collect();
        async move {
            let ask = QueryServingHostsMsg { cluster_uuid };
            let serving = bus.ask(Address::singleton(RecoveryActor::KIND), ask).await?;
            asked.extend(serving.host_uuids.iter().chain(&serving.answering_host_uuids));
            let stale = asked.iter().filter(|host| !fresh.contains(host));
            let snapshots = join_all(stale.map(|host| snapshot(bus.clone(), *host))).await;
            Ok(Round { serving, asked, snapshots })
        }
    }

    /// Answers every request that waited for the round.
    fn place(&mut self, cluster: ClusterId, found: Result<Round>, ctx: &mut Ctx<'_, Self>) {
        let waiting = self.rounds.remove(&cluster).unwrap_or_default();
        let Round { serving, asked, snapshots } = match found {
            Ok(round) => round,
            Err(error) => return waiting.into_iter().for_each(|(_, promise)| promise.complete(Err(error.clone()))),
        };
        self.snapshots.extend(snapshots);
        let unsettled = self.core.as_ref().and_then(|core| core.unsettled(cluster).first().copied());
        let since = unsettled.map(|_| *self.census_since.entry(cluster).or_insert_with(Instant::now));
        let mut later = Vec::new();
        for (ask, promise) in waiting {
            match (unsettled.filter(|_| !ask.dry_run), since) {
                (Some(_), Some(since)) if since.elapsed() < CENSUS_PATIENCE => later.push((ask, promise)),
                (Some(host), _) => promise.complete(Err(self.not_heard(host))),
                (None, _) => {
                    let target = self.target(&ask, &serving, &asked);
                    promise.complete(Ok(target));
                }
            }
        }
        if unsettled.is_none() {
            self.census_since.remove(&cluster);
        }
        if !later.is_empty() {
            // Right after the start of the controller a request waits for the hosts to list their processes.
            self.rounds.insert(cluster, later);
            ctx.after(CENSUS_POLL, move |ha, ctx| ha.begin_round(cluster, ctx));
        }
    }

    /// Detached: the first requester may time out before the others.
    fn begin_round(&self, cluster: ClusterId, ctx: &mut Ctx<'_, Self>) {
        let round = self.round(cluster, ctx.bus().clone());
        ctx.spawn_detached(round, move |ha, found, ctx| ha.place(cluster, found, ctx));
    }

    fn not_heard(&self, host: HostId) -> ErrorCode {
        let name = self.inventory.now().host_name(host);
        let details =
            format!("{name} has not listed its processes since this controller became the leader; retry in a moment");
        ErrorCode::new(Code::NOT_READY, details)
    }

    /// The hosts that can take VMs.
    pub(super) fn candidates(&self, serving: &ServingHostsReply) -> Vec<Candidate> {
        let mut reserved: HashMap<HostId, (u64, usize)> = HashMap::new();
        for reservation in self.reservations.iter().filter(|reservation| reservation.at.elapsed() < RESERVED_FOR) {
            let sum = reserved.entry(reservation.host).or_default();
            *sum = (sum.0 + reservation.mib, sum.1 + 1);
        }
        let candidate = |host: &HostId| {
            let (reserved_mib, reserved_vms) = reserved.get(host).copied().unwrap_or_default();
            let vms = self.core.as_ref().map_or(0, |core| core.vms_on(*host)) + reserved_vms;
            let available_mib = self.snapshots.get(host).and_then(|snapshot| snapshot.available_mib);
            Candidate { host: *host, available_mib, reserved_mib, vms }
        };
        serving.host_uuids.iter().map(candidate).collect()
    }

    fn target(&mut self, ask: &FindTargetMsg, serving: &ServingHostsReply, asked: &BTreeSet<HostId>) -> TargetReply {
        // An earlier reservation of the VM is its own: a drain queries before the stop, and the start queries again.
        self.reservations
            .retain(|reservation| reservation.at.elapsed() < RESERVED_FOR && reservation.vm != ask.vm_uuid);
        let candidates = self.candidates(serving);
        let (roomy, full) = rank(&candidates, ask.memory_mib, &ask.soft_avoid_host_uuids);
        let target = choose((&roomy, &full), ask.host_uuid, ask.last_host_uuid, &ask.soft_avoid_host_uuids);
        let reservation = |host| Reservation { at: Instant::now(), host, vm: ask.vm_uuid, mib: ask.memory_mib };
        self.reservations.extend(target.filter(|_| !ask.dry_run).map(reservation));
        let seen =
            |host: &&HostId| self.snapshots.get(host).is_some_and(|snapshot| snapshot.vms.contains(&ask.vm_uuid));
        let inventory = self.inventory.now();
        let not_pinged = |last: HostId| {
            let elsewhere = inventory.host(last).is_ok_and(|host| host.cluster != ask.cluster_uuid);
            elsewhere || self.core.as_ref().is_some_and(|core| core.is_maintained(last))
        };
        let answers = |last: HostId| serving.answering_host_uuids.contains(&last) || not_pinged(last);
        let silent = ask.place_host_uuids.iter().copied().filter(|place| !answers(*place)).collect();
        let unheard = self.core.as_ref().map(|core| core.unheard(ask.cluster_uuid)).unwrap_or_default();
        let elsewhere = self.core.iter().flat_map(|core| core.claimed_elsewhere(ask.vm_uuid));
        TargetReply {
            host_uuid: target,
            full: u32::try_from(full.len()).unwrap_or(u32::MAX),
            silent_host_uuids: silent,
            unheard_host_uuids: unheard,
            seen_host_uuids: asked.iter().filter(seen).copied().chain(elsewhere).collect(),
        }
    }
}

/// Memory reserved for a VM whose start is in progress.
struct Reservation {
    at: Instant,
    host: HostId,
    vm: VmId,
    mib: u64,
}

/// Memory and QEMU processes of a host as just reported: a hint, not a proof.
pub(super) struct HostSnapshot {
    at: Instant,
    available_mib: Option<u64>,
    vms: Vec<VmId>,
}

/// The hosts of a cluster before a start.
pub(super) struct Round {
    pub(super) serving: ServingHostsReply,
    /// Hosts that have a snapshot: the serving ones, and others where the VM may run.
    asked: BTreeSet<HostId>,
    /// The new snapshots.
    pub(super) snapshots: Vec<(HostId, HostSnapshot)>,
}

async fn snapshot(bus: Bus, host: HostId) -> (HostId, HostSnapshot) {
    let to = Address::new(HostActor::KIND, host);
    let facts = bus.ask_within(to, HostFactsCmd {}, SNAPSHOT_TIMEOUT);
    let listed = bus.ask_within(to, ListVmsCmd::default(), SNAPSHOT_TIMEOUT);
    let (facts, listed) = join(facts, listed).await;
    let vms = listed.map(|listed| {
        let of_vms = listed.vms.iter().filter(|vm| vm.stranger.is_none());
        of_vms.map(|vm| vm.vm_uuid).collect()
    });
    let vms = vms.unwrap_or_default();
    (host, HostSnapshot { at: Instant::now(), available_mib: facts.ok().map(|facts| facts.available_mib), vms })
}

impl Actor for HaActor {
    const KIND: Kind = Kind::new("ha");

    fn accepts(accepts: &mut Accepts<Self>) {
        accepts
            .message::<FindTargetMsg>()
            .message::<QuarantineHostMsg>()
            .message::<ConfirmHostFencedMsg>()
            .message::<HaStartVmInstanceMsg>()
            .message::<QueryHaMsg>()
            .message::<PlanDrainMsg>()
            .event::<HostSuspected>()
            .event::<HostStatusChanged>()
            .event::<HostConfirmedFenced>()
            .event::<HostStateChanged>()
            .event::<VmStateChanged>()
            .event::<StorageFenceChanged>();
    }

    fn started(&mut self, ctx: &mut Ctx<'_, Self>) {
        ctx.subscribe::<HostSuspected>();
        ctx.subscribe::<HostStatusChanged>();
        ctx.subscribe::<HostConfirmedFenced>();
        ctx.subscribe::<HostStateChanged>();
        ctx.subscribe::<VmStateChanged>();
        ctx.subscribe::<StorageFenceChanged>();
        self.replay(ctx);
    }
}

/// An attempt found that an attestation is wrong.
impl EventHandler<HostConfirmedFenced> for HaActor {
    fn on_event(&mut self, event: &HostConfirmedFenced, ctx: &mut Ctx<'_, Self>) {
        if !event.confirmed {
            self.on(Event::AttestationEnded(event.host_uuid), ctx);
        }
    }
}

impl EventHandler<HostSuspected> for HaActor {
    fn on_event(&mut self, event: &HostSuspected, ctx: &mut Ctx<'_, Self>) {
        self.on(Event::Suspected(event.host_uuid), ctx);
    }
}

impl EventHandler<StorageFenceChanged> for HaActor {
    fn on_event(&mut self, event: &StorageFenceChanged, ctx: &mut Ctx<'_, Self>) {
        if event.phase == StorageFencePhase::Found {
            self.on(Event::Refused(event.host_uuid), ctx);
        }
    }
}

impl EventHandler<HostStatusChanged> for HaActor {
    fn on_event(&mut self, event: &HostStatusChanged, ctx: &mut Ctx<'_, Self>) {
        self.on(Event::HostChanged(event.host_uuid, event.new_status), ctx);
    }
}

impl EventHandler<HostStateChanged> for HaActor {
    fn on_event(&mut self, event: &HostStateChanged, ctx: &mut Ctx<'_, Self>) {
        self.on(Event::Maintenance(event.host_uuid, event.new_state == HostState::Maintenance), ctx);
        if event.draining {
            self.on(Event::Drain(event.host_uuid), ctx);
        }
    }
}

impl EventHandler<VmStateChanged> for HaActor {
    fn on_event(&mut self, event: &VmStateChanged, ctx: &mut Ctx<'_, Self>) {
        self.on(Event::Vm(event.vm_uuid, ObservedState::from(event)), ctx);
    }
}

impl Handler<QueryHaMsg> for HaActor {
    type Answer = Result<HaReply>;

    fn handle(&mut self, _: QueryHaMsg, _: &mut Ctx<'_, Self>) -> Self::Answer {
        let core = self.core.as_mut().ok_or_else(not_ready)?;
        core.set_inventory(&self.inventory.now());
        Ok(core.status())
    }
}

/// An operator requests a failover; the fence is not skipped. Every failover passes through this actor, so that no
/// host returns to service while one of its VMs is being fenced there.
impl Handler<HaStartVmInstanceMsg> for HaActor {
    type Answer = Promised<HaStartVmInstanceMsg>;

    fn handle(&mut self, message: HaStartVmInstanceMsg, ctx: &mut Ctx<'_, Self>) -> Self::Answer {
        let (promise, answer) = ctx.promise::<HaStartVmInstanceMsg>();
        let vm = message.vm_instance_uuid;
        if self.core.is_none() {
            promise.complete(Err(not_ready()));
            return answer;
        }
        match self.askers.entry(vm) {
            Entry::Occupied(_) => {
                promise
                    .complete(Err(ErrorCode::new(Code::CHANGE_STATE, "a failover of this VM is already in progress")));
            }
            Entry::Vacant(place) => {
                place.insert(promise);
                self.on(Event::Requested(vm, message.host_uuid), ctx);
            }
        }
        answer
    }
}

async fn quarantine(host_uuid: HostId, reason: String, bus: Bus) -> Result<()> {
    let set = SetQuarantineMsg { host_uuid, quarantined: true, reason };
    bus.ask(Address::singleton(RecoveryActor::KIND), set).await.map(|_| ())
}

impl Handler<QuarantineHostMsg> for HaActor {
    type Answer = Promised<QuarantineHostMsg>;

    fn handle(&mut self, message: QuarantineHostMsg, ctx: &mut Ctx<'_, Self>) -> Self::Answer {
        let (promise, answer) = ctx.promise::<QuarantineHostMsg>();
        let host = message.host_uuid;
        match self.core.as_ref().ok_or_else(not_ready).and_then(|core| core.may_quarantine(host)) {
            Err(error) => promise.complete(Err(error)),
            Ok(true) => promise.complete(Ok(Done {})),
            Ok(false) => {
                let quarantined = quarantine(host, message.reason, ctx.bus().clone());
                ctx.spawn_detached(quarantined, move |ha, result, ctx| {
                    ha.on(Event::Quarantined(host, result.clone()), ctx);
                    promise.complete(result.map(|()| Done {}));
                });
            }
        }
        answer
    }
}

impl Handler<ConfirmHostFencedMsg> for HaActor {
    type Answer = Promised<ConfirmHostFencedMsg>;

    fn handle(&mut self, message: ConfirmHostFencedMsg, ctx: &mut Ctx<'_, Self>) -> Self::Answer {
        let (promise, answer) = ctx.promise::<ConfirmHostFencedMsg>();
        let host = message.host_uuid;
        if let Err(error) = self.core.as_ref().ok_or_else(not_ready).and_then(|core| core.may_confirm(host)) {
            promise.complete(Err(error));
            return answer;
        }
        let (recorder, name) = (self.recorder.clone(), self.inventory.now().host_name(host));
        let event = HostConfirmedFenced { host_uuid: host, host: name, confirmed: true, by: message.by };
        ctx.spawn_detached(async move { recorder.intent(&event).await }, move |ha, result, ctx| {
            if result.is_ok() {
                ha.on(Event::Confirmed(host), ctx);
            }
            promise.complete(result.map(|_| Done {}));
        });
        answer
    }
}

/// Requests that arrive while the hosts of the cluster are queried share the answers: a hundred starts in a cluster
/// of a thousand hosts need a thousand queries, not a hundred thousand.
impl Handler<FindTargetMsg> for HaActor {
    type Answer = Promised<FindTargetMsg>;

    fn handle(&mut self, message: FindTargetMsg, ctx: &mut Ctx<'_, Self>) -> Self::Answer {
        let (promise, answer) = ctx.promise::<FindTargetMsg>();
        let cluster_uuid = message.cluster_uuid;
        let waiting = self.rounds.entry(cluster_uuid).or_default();
        waiting.push((message, promise));
        if waiting.len() > 1 {
            return answer;
        }
        self.begin_round(cluster_uuid, ctx);
        answer
    }
}
