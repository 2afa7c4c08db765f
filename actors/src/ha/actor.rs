//! The shell of HA: asks siblings, storages and VMs what the core wants to know, and carries its orders out.

use std::{
    collections::{BTreeSet, HashMap, hash_map::Entry},
    sync::Arc,
    time::Duration,
};

use futures_util::future::join_all;
use ringfence::{Accepts, Actor, Address, Ctx, EventHandler, Handler, Kind, Promise, Promised};
use ringfence_messages::{
    Code, ErrorCode, Event as _, HostId, Result, VmId,
    agent::Done,
    ceph::QueryWatchersMsg,
    ha::{
        ConfirmHostFencedMsg, FindTargetsMsg, HaReply, HaStartVmInstanceMsg, HaStartVmInstanceReply,
        HostConfirmedFenced, HostQuarantineChanged, HostSuspected, QuarantineHostMsg, QueryHaMsg, ScanHostMsg,
        SetQuarantineMsg, TargetsReply,
    },
    host::{HostFactsCmd, HostState, HostStateChanged, HostStatusChanged, QueryServingHostsMsg},
    vm::{ListVmsCmd, LookForVmMsg, VmStateChanged},
};
use tokio::time::Instant;

use super::{
    cleaning::Cleaner,
    core::{Belief, Command, Core, Event, Fact, TICK},
    placement::{Candidate, rank},
};
use crate::{
    audit::Recorder,
    fence::{FENCER, ceph::CephActor},
    host::HostActor,
    inventory::{Directory, HaSettings},
    memory::{MEMORY_RETRY, not_ready},
    ports::JournalPort,
    recovery::RecoveryActor,
    vm::{SEARCH_TIMEOUT, VmActor},
};

/// How long one VM may take to come back: three siblings, two storages, a start. Too low: a flow ends before its fence.
pub const FLOW_TIMEOUT: Duration = Duration::from_secs(300);

/// For so long what a host said of its memory counts.
const FACTS_FRESH: Duration = Duration::from_secs(2);

/// How long a host may take to say what it has.
const FACTS_TIMEOUT: Duration = Duration::from_secs(2);

/// For so long memory is promised to a VM that was sent to a host; then it shows in what the host says.
const PROMISE: Duration = Duration::from_secs(10);

/// HA: one for all hosts and VMs.
pub struct HaActor {
    settings: HaSettings,
    census_every: Duration,
    directory: Arc<Directory>,
    journal: Arc<dyn JournalPort>,
    recorder: Recorder,
    cleaner: Cleaner,
    born: Instant,
    /// None until the journal was read.
    core: Option<Core>,
    /// Operators who wait for a VM.
    askers: HashMap<VmId, Promise<HaStartVmInstanceReply>>,
    facts: HashMap<HostId, (Instant, Option<u64>)>,
    promised: Vec<(Instant, HostId, u64)>,
}

impl HaActor {
    /// HA for everything in the directory; hosts are asked for their processes once in `census_every`.
    pub fn new(
        settings: HaSettings,
        census_every: Duration,
        directory: Arc<Directory>,
        journal: Arc<dyn JournalPort>,
        recorder: Recorder,
        bus: ringfence::Bus,
    ) -> HaActor {
        let cleaner = Cleaner { directory: directory.clone(), bus, recorder: recorder.clone() };
        HaActor {
            settings,
            census_every,
            directory,
            journal,
            recorder,
            cleaner,
            born: Instant::now(),
            core: None,
            askers: HashMap::new(),
            facts: HashMap::new(),
            promised: Vec::new(),
        }
    }

    fn remember(&mut self, ctx: &mut Ctx<'_, Self>) {
        ctx.spawn_detached(memory(self.journal.clone()), |ha, memory, ctx| match memory {
            Ok(Memory { vms, quarantined, confirmed, maintenance }) => {
                let directory = ha.directory.clone();
                let core =
                    Core::new(ha.settings, ha.census_every, directory, vms, &quarantined, &confirmed, &maintenance);
                ha.core = Some(core);
                ha.on(Event::Tick, ctx);
                ctx.every(TICK, |ha, ctx| ha.on(Event::Tick, ctx));
            }
            Err(error) => {
                tracing::error!(%error, "the journal does not say what HA has to look after");
                ctx.after(MEMORY_RETRY, |ha, ctx| ha.remember(ctx));
            }
        });
    }

    fn on(&mut self, event: Event, ctx: &mut Ctx<'_, Self>) {
        let now = self.born.elapsed();
        let Some(core) = &mut self.core else { return };
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
            Command::Clean { host, confirmed } => {
                let cleaner = self.cleaner.clone();
                ctx.spawn_detached(async move { cleaner.clean(host, confirmed).await }, move |ha, result, ctx| {
                    if let Err(error) = &result {
                        tracing::warn!(%error, host = ha.directory.host_name(host), "not clean yet");
                    }
                    ha.on(Event::Cleaned(host, result), ctx);
                });
            }
            Command::Watch(vm) => {
                let of = self.directory.vm(vm).ok();
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
                let started = async move { bus.ask_within(Address::new(VmActor::KIND, vm), ask, FLOW_TIMEOUT).await };
                ctx.spawn_detached(started, move |ha, result, ctx| {
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
                ctx.spawn_detached(listed, move |ha, reply, ctx| {
                    if let Ok(reply) = reply {
                        ha.on(Event::Listed(host, reply.vms), ctx);
                    }
                });
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
            Command::Tell(fact) => {
                let recorder = &self.recorder;
                match fact {
                    Fact::HostFailed(event) => drop(ctx.spawn_detached(recorder.fact(event), |_, _, _| {})),
                    Fact::Brake(event) => drop(ctx.spawn_detached(recorder.fact(event), |_, _, _| {})),
                    Fact::Started(event) => drop(ctx.spawn_detached(recorder.fact(event), |_, _, _| {})),
                    Fact::Blocked(event) => drop(ctx.spawn_detached(recorder.fact(event), |_, _, _| {})),
                }
            }
        }
    }

    /// Durable first, then in force: a restart must not let the host back in.
    fn quarantine(
        &self,
        host: HostId,
        reason: String,
        bus: ringfence::Bus,
    ) -> impl Future<Output = Result<()>> + use<> {
        let (recorder, name) = (self.recorder.clone(), self.directory.host_name(host));
        async move {
            let change =
                HostQuarantineChanged { host_uuid: host, host: name, quarantined: true, reason: reason.clone() };
            recorder.intent(&change).await?;
            let set = SetQuarantineMsg { host_uuid: host, reason: Some(reason) };
            bus.ask(Address::singleton(RecoveryActor::KIND), set).await.map(|_| ())
        }
    }

    fn rank(&mut self, ask: &FindTargetsMsg, serving: &[HostId]) -> (Vec<HostId>, Vec<HostId>) {
        self.promised.retain(|(at, _, _)| at.elapsed() < PROMISE);
        let candidate = |host: &HostId| Candidate {
            host: *host,
            available_mib: self.facts.get(host).and_then(|(_, available)| *available),
            promised_mib: self.promised.iter().filter(|(_, to, _)| to == host).map(|(_, _, mib)| mib).sum(),
            vms: self.core.as_ref().map_or(0, |core| core.vms_on(*host))
                + self.promised.iter().filter(|(_, to, _)| to == host).count(),
        };
        let candidates: Vec<Candidate> = serving.iter().map(candidate).collect();
        let (roomy, full) = rank(&candidates, ask.memory_mib, &ask.soft_avoid_host_uuids);
        self.promised.extend(roomy.first().map(|host| (Instant::now(), *host, ask.memory_mib)));
        (roomy, full)
    }
}

struct Memory {
    vms: Vec<(VmId, Belief)>,
    quarantined: BTreeSet<HostId>,
    confirmed: BTreeSet<HostId>,
    maintenance: BTreeSet<HostId>,
}

async fn memory(journal: Arc<dyn JournalPort>) -> Result<Memory> {
    let mut memory = Memory {
        vms: Vec::new(),
        quarantined: BTreeSet::new(),
        confirmed: BTreeSet::new(),
        maintenance: BTreeSet::new(),
    };
    for record in journal.latest(VmStateChanged::TOPIC).await? {
        let event: VmStateChanged = record.event()?;
        memory.vms.push((event.vm_uuid, Belief::from(&event)));
    }
    for record in journal.latest(HostQuarantineChanged::TOPIC).await? {
        let event: HostQuarantineChanged = record.event()?;
        memory.quarantined.extend(event.quarantined.then_some(event.host_uuid));
    }
    for record in journal.latest(HostConfirmedFenced::TOPIC).await? {
        let event: HostConfirmedFenced = record.event()?;
        memory.confirmed.extend(event.confirmed.then_some(event.host_uuid));
    }
    for record in journal.latest(HostStateChanged::TOPIC).await? {
        let event: HostStateChanged = record.event()?;
        memory.maintenance.extend((event.new_state == HostState::Maintenance).then_some(event.host_uuid));
    }
    Ok(memory)
}

impl Actor for HaActor {
    const KIND: Kind = Kind::new("ha");

    fn accepts(accepts: &mut Accepts<Self>) {
        accepts
            .message::<FindTargetsMsg>()
            .message::<QuarantineHostMsg>()
            .message::<ConfirmHostFencedMsg>()
            .message::<HaStartVmInstanceMsg>()
            .message::<QueryHaMsg>()
            .event::<HostSuspected>()
            .event::<HostStatusChanged>()
            .event::<HostStateChanged>()
            .event::<VmStateChanged>();
    }

    fn started(&mut self, ctx: &mut Ctx<'_, Self>) {
        ctx.subscribe::<HostSuspected>();
        ctx.subscribe::<HostStatusChanged>();
        ctx.subscribe::<HostStateChanged>();
        ctx.subscribe::<VmStateChanged>();
        self.remember(ctx);
    }
}

impl EventHandler<HostSuspected> for HaActor {
    fn on_event(&mut self, event: &HostSuspected, ctx: &mut Ctx<'_, Self>) {
        self.on(Event::Suspected(event.host_uuid), ctx);
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
        self.core.as_ref().map(Core::thoughts).ok_or_else(not_ready)
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
        let (recorder, name) = (self.recorder.clone(), self.directory.host_name(host));
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

impl Handler<FindTargetsMsg> for HaActor {
    type Answer = Promised<FindTargetsMsg>;

    fn handle(&mut self, message: FindTargetsMsg, ctx: &mut Ctx<'_, Self>) -> Self::Answer {
        let (promise, answer) = ctx.promise::<FindTargetsMsg>();
        let fresh: BTreeSet<HostId> =
            self.facts.iter().filter(|(_, (at, _))| at.elapsed() < FACTS_FRESH).map(|(host, _)| *host).collect();
        let (bus, cluster_uuid) = (ctx.bus().clone(), message.cluster_uuid);
        let asked = async move {
            let ask = QueryServingHostsMsg { cluster_uuid };
            let standing = bus.ask(Address::singleton(RecoveryActor::KIND), ask).await?;
            let stale = standing.host_uuids.iter().filter(|host| !fresh.contains(host));
            let facts = join_all(stale.map(|host| async {
                let to = Address::new(HostActor::KIND, *host);
                (*host, bus.ask_within(to, HostFactsCmd {}, FACTS_TIMEOUT).await)
            }));
            let facts = facts.await;
            Ok((standing, facts))
        };
        ctx.spawn(asked, move |ha, found: Result<_>, _| {
            promise.complete(found.map(|(standing, facts)| {
                for (host, facts) in facts {
                    ha.facts.insert(host, (Instant::now(), facts.ok().map(|facts| facts.available_mib)));
                }
                let (host_uuids, full_host_uuids) = ha.rank(&message, &standing.host_uuids);
                let maintained = ha.core.iter().flat_map(|core| core.maintained(message.cluster_uuid));
                let answering_host_uuids = standing.answering_host_uuids.into_iter().chain(maintained).collect();
                TargetsReply { host_uuids, full_host_uuids, answering_host_uuids }
            }));
        });
        answer
    }
}
