//! The shell of HA: asks siblings, storages and VMs what the core wants to know, and carries its orders out.

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
        HostConfirmedFenced, HostQuarantineChanged, HostSuspected, PlanDrainMsg, QuarantineHostMsg, QueryHaMsg,
        ScanHostMsg, SetQuarantineMsg, TargetReply,
    },
    host::{
        HostFactsCmd, HostState, HostStateChanged, HostStatusChanged, QueryHostsMsg, QueryServingHostsMsg,
        ServingHostsReply,
    },
    vm::{ListVmsCmd, LookForVmMsg, VmStateChanged},
};
use tokio::time::Instant;

use super::{
    cleaning::Cleaner,
    core::{Belief, Command, Core, Event, Fact, TICK},
    memory,
    placement::{Candidate, choose, rank},
};
use crate::{
    audit::Recorder,
    fence::{FENCER, ceph::CephActor},
    host::HostActor,
    inventory::{Catalog, HaSettings},
    memory::{MEMORY_RETRY, not_ready},
    ports::JournalPort,
    recovery::RecoveryActor,
    span, spans,
    vm::{SEARCH_TIMEOUT, VmActor},
};

/// How long one VM may take to come back: three siblings, two storages, a start. Too low: a flow ends before its fence.
pub const FLOW_TIMEOUT: Duration = Duration::from_secs(300);

/// For so long what a host said of its memory and its processes counts. Too high: a VM that something else just started
/// is not noticed; its watchers and the fence do not depend on it.
const GLANCE_FRESH: Duration = Duration::from_secs(2);

/// How long a host may take to say it.
const GLANCE_TIMEOUT: Duration = Duration::from_secs(2);

/// For so long a start waits for the hosts of its cluster to be heard. Too low: who asks right after a start of the
/// controller is told to try again. Too high: the answer comes after its deadline.
const CENSUS_PATIENCE: Duration = Duration::from_secs(20);

/// Between looks whether they were.
const CENSUS_POLL: Duration = Duration::from_millis(250);

/// For so long memory is promised to a VM that was sent to a host; then it shows in what the host says.
const PROMISE: Duration = Duration::from_secs(10);

/// HA: one for all hosts and VMs.
pub struct HaActor {
    settings: HaSettings,
    census_every: Duration,
    pub(super) catalog: Catalog,
    journal: Arc<dyn JournalPort>,
    pub(super) recorder: Recorder,
    cleaner: Cleaner,
    born: Instant,
    /// None until the journal was read.
    pub(super) core: Option<Core>,
    /// Operators who wait for a VM.
    askers: HashMap<VmId, Promise<HaStartVmInstanceReply>>,
    pub(super) glances: HashMap<HostId, Glance>,
    /// Who waits for the hosts of a cluster to be asked.
    rounds: HashMap<ClusterId, Vec<(FindTargetMsg, Promise<TargetReply>)>>,
    promised: Vec<PutAside>,
    /// Since when starts in a cluster wait for its hosts to be heard.
    census_since: HashMap<ClusterId, Instant>,
}

impl HaActor {
    /// HA for everything in the directory; hosts are asked for their processes once in `census_every`.
    pub fn new(
        settings: HaSettings,
        census_every: Duration,
        catalog: Catalog,
        journal: Arc<dyn JournalPort>,
        recorder: Recorder,
        bus: Bus,
    ) -> HaActor {
        let cleaner = Cleaner { catalog: catalog.clone(), bus, recorder: recorder.clone() };
        HaActor {
            settings,
            census_every,
            catalog,
            journal,
            recorder,
            cleaner,
            born: Instant::now(),
            core: None,
            askers: HashMap::new(),
            glances: HashMap::new(),
            rounds: HashMap::new(),
            promised: Vec::new(),
            census_since: HashMap::new(),
        }
    }

    fn remember(&mut self, ctx: &mut Ctx<'_, Self>) {
        ctx.spawn_detached(memory::read(self.journal.clone()), |ha, memory, ctx| match memory {
            Ok(memory) => {
                ha.core = Some(Core::new(ha.settings, ha.census_every, ha.catalog.now(), memory));
                ha.on(Event::Tick, ctx);
                ctx.every(TICK, |ha, ctx| ha.on(Event::Tick, ctx));
                ha.catch_up(ctx);
            }
            Err(error) => {
                tracing::error!(%error, "the journal does not say what HA has to look after");
                ctx.after(MEMORY_RETRY, |ha, ctx| ha.remember(ctx));
            }
        });
    }

    /// What changed while the journal was read was told to nobody here.
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
            Err(_) => drop(ctx.after(MEMORY_RETRY, |ha, ctx| ha.catch_up(ctx))),
        });
    }

    pub(super) fn on(&mut self, event: Event, ctx: &mut Ctx<'_, Self>) {
        let now = self.born.elapsed();
        let Some(core) = &mut self.core else { return };
        core.look_after(&self.catalog.now());
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
            Command::AskStanding(cluster) => {
                let ask = QueryServingHostsMsg { cluster_uuid: cluster };
                let standing = async move { bus.ask(Address::singleton(RecoveryActor::KIND), ask).await };
                ctx.spawn_detached(standing, move |ha, reply, ctx| {
                    if let Ok(reply) = reply {
                        ha.on(Event::Standing(cluster, reply.answering_host_uuids), ctx);
                    }
                });
            }
            Command::Quarantine(host, reason) => {
                let quarantined = self.quarantine(host, reason, bus);
                ctx.spawn_detached(quarantined, move |ha, result, ctx| ha.on(Event::Quarantined(host, result), ctx));
            }
            Command::EndWord(host) => {
                let (recorder, name) = (self.recorder.clone(), self.catalog.now().host_name(host));
                let by = "it answered".to_owned();
                let over = HostConfirmedFenced { host_uuid: host, host: name, confirmed: false, by };
                ctx.spawn_detached(recorder.fact(over), |_, _, _| {});
            }
            Command::Clean(host) => {
                let cleaner = self.cleaner.clone();
                ctx.spawn_detached(async move { cleaner.clean(host).await }, move |ha, result, ctx| {
                    if let Err(error) = &result {
                        tracing::warn!(%error, host = ha.catalog.now().host_name(host), "not clean yet");
                    }
                    ha.on(Event::Cleaned(host, result), ctx);
                });
            }
            Command::Watch(vm) => {
                let directory = self.catalog.now();
                let of = directory.vm(vm).ok();
                let asked = of.iter().flat_map(|of| &of.volumes).map(|volume| {
                    let ask = QueryWatchersMsg { install_path: volume.install_path.clone() };
                    bus.ask(Address::new(CephActor::KIND, volume.storage), ask)
                });
                let asked: Vec<_> = asked.collect();
                ctx.spawn_detached(join_all(asked), move |ha, answers, ctx| {
                    let nobody = !answers.is_empty()
                        && answers.iter().all(|answer| answer.as_ref().is_ok_and(|reply| reply.watchers.is_empty()));
                    ha.on(Event::Unwatched(vm, nobody), ctx);
                });
            }
            Command::Start { vm, judger, host, soft_avoid, reason } => {
                let ask = HaStartVmInstanceMsg {
                    vm_instance_uuid: vm,
                    judger_class_name: judger.to_owned(),
                    soft_avoid_host_uuids: soft_avoid,
                    host_uuid: host,
                    ha_reason: reason,
                };
                let span = span!(
                    "ha.start",
                    ringfence.vm = self.catalog.now().vm_name(vm),
                    ringfence.judger = judger,
                    ringfence.reason = ask.ha_reason,
                );
                let started = async move { bus.ask_within(Address::new(VmActor::KIND, vm), ask, FLOW_TIMEOUT).await };
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
                let believed =
                    async move { bus.ask(Address::new(VmActor::KIND, vm), LookForVmMsg { host_uuid }).await };
                ctx.spawn_detached(believed, |ha, believed, ctx| {
                    if let Ok(believed) = believed {
                        ha.on(Event::Vm(believed.uuid, Belief::from(&believed)), ctx);
                    }
                });
            }
            command @ (Command::Place(_) | Command::IntendMove(_) | Command::Vacate(..)) => self.move_vm(command, ctx),
            Command::Tell(fact) => {
                let recorder = &self.recorder;
                match fact {
                    Fact::HostFailed(event) => drop(ctx.spawn_detached(recorder.fact(event), |_, _, _| {})),
                    Fact::Brake(event) => drop(ctx.spawn_detached(recorder.fact(event), |_, _, _| {})),
                    Fact::Started(event) => drop(ctx.spawn_detached(recorder.fact(event), |_, _, _| {})),
                    Fact::Blocked(event) => drop(ctx.spawn_detached(recorder.fact(event), |_, _, _| {})),
                    Fact::Intruder(event) => {
                        metrics::counter!("ringfence_vm_intruders_total", "phase" => event.phase.as_str()).increment(1);
                        drop(ctx.spawn_detached(recorder.fact(event), |_, _, _| {}));
                    }
                    Fact::Move(event) => drop(ctx.spawn_detached(recorder.fact(event), |_, _, _| {})),
                    Fact::Drained(event) => drop(ctx.spawn_detached(recorder.fact(event), |_, _, _| {})),
                }
            }
        }
    }

    /// Durable first, then in force: a restart must not let the host back in.
    fn quarantine(&self, host: HostId, reason: String, bus: Bus) -> impl Future<Output = Result<()>> + use<> {
        let (recorder, name) = (self.recorder.clone(), self.catalog.now().host_name(host));
        async move {
            let change =
                HostQuarantineChanged { host_uuid: host, host: name, quarantined: true, reason: reason.clone() };
            recorder.intent(&change).await?;
            let set = SetQuarantineMsg { host_uuid: host, reason: Some(reason) };
            bus.ask(Address::singleton(RecoveryActor::KIND), set).await.map(|_| ())
        }
    }

    /// Asks the hosts of a cluster how they stand.
    pub(super) fn round(&self, cluster_uuid: ClusterId, bus: Bus) -> impl Future<Output = Result<Round>> + use<> {
        let fresh: BTreeSet<HostId> =
            self.glances.iter().filter(|(_, of)| of.at.elapsed() < GLANCE_FRESH).map(|(host, _)| *host).collect();
        async move {
            let ask = QueryServingHostsMsg { cluster_uuid };
            let standing = bus.ask(Address::singleton(RecoveryActor::KIND), ask).await?;
            let stale = standing.host_uuids.iter().filter(|host| !fresh.contains(host));
            let glances = join_all(stale.map(|host| glance(bus.clone(), *host))).await;
            Ok((standing, glances))
        }
    }

    /// What a round found is for everyone who waited for it.
    fn place(&mut self, cluster: ClusterId, found: Result<Round>, ctx: &mut Ctx<'_, Self>) {
        let waiting = self.rounds.remove(&cluster).unwrap_or_default();
        let (standing, glances) = match found {
            Ok(found) => found,
            Err(error) => return waiting.into_iter().for_each(|(_, promise)| promise.complete(Err(error.clone()))),
        };
        self.glances.extend(glances);
        let unsettled = self.core.as_ref().and_then(|core| core.unsettled(cluster).first().copied());
        let since = unsettled.map(|_| *self.census_since.entry(cluster).or_insert_with(Instant::now));
        let mut later = Vec::new();
        for (ask, promise) in waiting {
            match (unsettled.filter(|_| !ask.dry_run), since) {
                (Some(_), Some(since)) if since.elapsed() < CENSUS_PATIENCE => later.push((ask, promise)),
                (Some(host), _) => promise.complete(Err(self.not_heard(host))),
                (None, _) => {
                    let target = self.target(&ask, &standing);
                    promise.complete(Ok(target));
                }
            }
        }
        if unsettled.is_none() {
            self.census_since.remove(&cluster);
        }
        if !later.is_empty() {
            // Who asks right after a start of the controller waits for the hosts to be heard.
            self.rounds.insert(cluster, later);
            ctx.after(CENSUS_POLL, move |ha, ctx| ha.begin_round(cluster, ctx));
        }
    }

    /// Detached: the first one who asked may give up before the others.
    fn begin_round(&self, cluster: ClusterId, ctx: &mut Ctx<'_, Self>) {
        let asked = self.round(cluster, ctx.bus().clone());
        ctx.spawn_detached(asked, move |ha, found, ctx| ha.place(cluster, found, ctx));
    }

    fn not_heard(&self, host: HostId) -> ErrorCode {
        let name = self.catalog.now().host_name(host);
        let details = format!("{name} was not heard since this controller took office: try again in a moment");
        ErrorCode::new(Code::NOT_READY, details)
    }

    /// What is known of the hosts that take work.
    pub(super) fn candidates(&self, standing: &ServingHostsReply) -> Vec<Candidate> {
        let mut promised: HashMap<HostId, (u64, usize)> = HashMap::new();
        for put_aside in self.promised.iter().filter(|of| of.at.elapsed() < PROMISE) {
            let of = promised.entry(put_aside.host).or_default();
            *of = (of.0 + put_aside.mib, of.1 + 1);
        }
        let candidate = |host: &HostId| {
            let (promised_mib, promised_vms) = promised.get(host).copied().unwrap_or_default();
            let vms = self.core.as_ref().map_or(0, |core| core.vms_on(*host)) + promised_vms;
            let available_mib = self.glances.get(host).and_then(|glance| glance.available_mib);
            Candidate { host: *host, available_mib, promised_mib, vms }
        };
        standing.host_uuids.iter().map(candidate).collect()
    }

    fn target(&mut self, ask: &FindTargetMsg, standing: &ServingHostsReply) -> TargetReply {
        // What was put aside for it before is its own: a drain asks before the stop, and the start asks again.
        self.promised.retain(|of| of.at.elapsed() < PROMISE && of.vm != ask.vm_uuid);
        let candidates = self.candidates(standing);
        let (roomy, full) = rank(&candidates, ask.memory_mib, &ask.soft_avoid_host_uuids);
        let target = choose((&roomy, &full), ask.host_uuid, ask.last_host_uuid, &ask.soft_avoid_host_uuids);
        let promise = |host| PutAside { at: Instant::now(), host, vm: ask.vm_uuid, mib: ask.memory_mib };
        self.promised.extend(target.filter(|_| !ask.dry_run).map(promise));
        let seen = |host: &&HostId| self.glances.get(host).is_some_and(|glance| glance.vms.contains(&ask.vm_uuid));
        let directory = self.catalog.now();
        let not_pinged = |last: HostId| {
            let elsewhere = directory.host(last).is_ok_and(|of| of.cluster != ask.cluster_uuid);
            elsewhere || self.core.as_ref().is_some_and(|core| core.is_maintained(last))
        };
        let answers = |last: HostId| standing.answering_host_uuids.contains(&last) || not_pinged(last);
        let silent = ask.place_host_uuids.iter().copied().filter(|place| !answers(*place)).collect();
        let unheard = self.core.as_ref().map(|core| core.unheard(ask.cluster_uuid)).unwrap_or_default();
        let elsewhere = self.core.iter().flat_map(|core| core.claimed_elsewhere(ask.vm_uuid));
        TargetReply {
            host_uuid: target,
            full: u32::try_from(full.len()).unwrap_or(u32::MAX),
            silent_host_uuids: silent,
            unheard_host_uuids: unheard,
            seen_host_uuids: standing.host_uuids.iter().filter(seen).copied().chain(elsewhere).collect(),
        }
    }
}

/// Memory that is promised to a VM.
struct PutAside {
    at: Instant,
    host: HostId,
    vm: VmId,
    mib: u64,
}

/// What a host said a moment ago of its memory and its QEMU processes: good for noticing something, no proof.
pub(super) struct Glance {
    at: Instant,
    available_mib: Option<u64>,
    vms: Vec<VmId>,
}

/// How the hosts of a cluster stand, and what those said who were asked anew.
pub(super) type Round = (ServingHostsReply, Vec<(HostId, Glance)>);

async fn glance(bus: Bus, host: HostId) -> (HostId, Glance) {
    let to = Address::new(HostActor::KIND, host);
    let facts = bus.ask_within(to, HostFactsCmd {}, GLANCE_TIMEOUT);
    let listed = bus.ask_within(to, ListVmsCmd::default(), GLANCE_TIMEOUT);
    let (facts, listed) = join(facts, listed).await;
    let vms = listed.map(|listed| {
        let of_vms = listed.vms.iter().filter(|vm| vm.stranger.is_none());
        of_vms.map(|vm| vm.vm_uuid).collect()
    });
    let vms = vms.unwrap_or_default();
    (host, Glance { at: Instant::now(), available_mib: facts.ok().map(|facts| facts.available_mib), vms })
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
        self.remember(ctx);
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
        self.on(Event::Vm(event.vm_uuid, Belief::from(event)), ctx);
    }
}

impl Handler<QueryHaMsg> for HaActor {
    type Answer = Result<HaReply>;

    fn handle(&mut self, _: QueryHaMsg, _: &mut Ctx<'_, Self>) -> Self::Answer {
        let core = self.core.as_mut().ok_or_else(not_ready)?;
        core.look_after(&self.catalog.now());
        Ok(core.thoughts())
    }
}

/// An operator wants a VM brought back: the fence is not spared. The VM's actor is asked through here alone, so that no
/// host is let in again while one of its VMs is being fenced there.
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
                promise.complete(Err(ErrorCode::new(Code::CHANGE_STATE, "it is being brought back already")));
            }
            Entry::Vacant(place) => {
                place.insert(promise);
                self.on(Event::Requested(vm, message.host_uuid), ctx);
            }
        }
        answer
    }
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
                let quarantined = self.quarantine(host, message.reason, ctx.bus().clone());
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
        let (recorder, name) = (self.recorder.clone(), self.catalog.now().host_name(host));
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

/// Who asks while the hosts of the cluster are being asked waits for the same answers: a hundred starts at once in a
/// cluster of a thousand hosts are a thousand questions, not a hundred thousand.
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
