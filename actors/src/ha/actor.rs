//! The shell of HA: queries hosts, storages and VMs for the core, and carries out its commands.

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::Arc,
    time::Duration,
};

use futures_util::future::join_all;
use ringfence::{Accepts, Actor, Address, Bus, Ctx, EventHandler, Handler, Kind, Promise, Promised};
use ringfence_messages::{
    Code, ErrorCode, HostId, Result, VmId,
    agent::Done,
    ceph::{QueryWatchersMsg, StorageFenceChanged, StorageFencePhase},
    ha::{
        CensusReply, ConfirmHostFencedMsg, HA, HaReply, HaStartVmInstanceMsg, HaStartVmInstanceReply,
        HostConfirmedFenced, HostSuspected, PlanDrainMsg, QuarantineHostMsg, QueryCensusMsg, QueryHaMsg, ScanHostMsg,
        SetQuarantineMsg,
    },
    host::{HostState, HostStateChanged, HostStatusChanged, QueryHostsMsg, QueryServingHostsMsg},
    recovery::RECOVERY,
    vm::{ListVmsCmd, LookForVmMsg, VmStateChanged},
};
use tokio::time::Instant;

use super::{
    core::{Command, Core, Event, HaEvent, ObservedState, TICK},
    reconciliation::Reconciler,
    replay,
};
use crate::{
    audit::Recorder,
    fencers::{FENCER, ceph::CephActor},
    host::HostActor,
    inventory::{HaSettings, SharedInventory},
    ports::JournalPort,
    replay::{REPLAY_RETRY, not_ready},
    span, spans,
    vm::{SEARCH_TIMEOUT, VmActor},
};

/// Limit of one failover: three sibling hosts, two storages, a start. Too low: the failover ends before its fence.
pub const FAILOVER_TIMEOUT: Duration = Duration::from_secs(300);

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
        let hosts = async move { bus.ask(RECOVERY, QueryHostsMsg {}).await };
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
                let serving = async move { bus.ask(RECOVERY, ask).await };
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
            Command::Watch(vm) => self.watch(vm, ctx),
            Command::Start { vm, cause, host, soft_avoid, reason } => {
                let ask = HaStartVmInstanceMsg {
                    vm_instance_uuid: vm,
                    judger_class_name: cause.as_str().to_owned(),
                    soft_avoid_host_uuids: soft_avoid,
                    host_uuid: host,
                    ha_reason: reason,
                };
                self.start(vm, ask, ctx);
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
            Command::Emit(event) => self.emit(event, ctx),
        }
    }

    /// Queries the watchers of all volumes of a VM.
    fn watch(&self, vm: VmId, ctx: &mut Ctx<'_, Self>) {
        let (bus, inventory) = (ctx.bus(), self.inventory.now());
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

    /// Starts a failover: the VM's actor fences and starts the VM.
    fn start(&self, vm: VmId, ask: HaStartVmInstanceMsg, ctx: &mut Ctx<'_, Self>) {
        let span = span!(
            "ha.start",
            ringfence.vm = self.inventory.now().vm_name(vm),
            ringfence.judger = ask.judger_class_name,
            ringfence.reason = ask.ha_reason,
        );
        let bus = ctx.bus().clone();
        // Asked by the task, not here: a failover outlives the deadline of the request that began it.
        let started = async move { bus.ask_within(Address::new(VmActor::KIND, vm), ask, FAILOVER_TIMEOUT).await };
        let began = Instant::now();
        ctx.spawn_detached(spans::within(span, started), move |ha, result, ctx| {
            let outcome = if result.is_ok() { "started" } else { "refused" };
            metrics::histogram!("ringfence_ha_start_seconds", "outcome" => outcome).record(began.elapsed());
            let asker = ha.askers.remove(&vm);
            ha.on(Event::Started(vm, result.clone().map(|reply| reply.host_uuid)), ctx);
            if let Some(asker) = asker {
                asker.complete(result);
            }
        });
    }

    /// Records and publishes an event.
    fn emit(&self, event: HaEvent, ctx: &mut Ctx<'_, Self>) {
        let recorder = &self.recorder;
        drop(match event {
            HaEvent::HostFailed(event) => ctx.spawn_detached(recorder.fact(event), |_, _, _| {}),
            HaEvent::Brake(event) => ctx.spawn_detached(recorder.fact(event), |_, _, _| {}),
            HaEvent::Started(event) => ctx.spawn_detached(recorder.fact(event), |_, _, _| {}),
            HaEvent::Blocked(event) => ctx.spawn_detached(recorder.fact(event), |_, _, _| {}),
            HaEvent::Intruder(event) => {
                metrics::counter!("ringfence_vm_intruders_total", "phase" => event.phase.as_str()).increment(1);
                ctx.spawn_detached(recorder.fact(event), |_, _, _| {})
            }
            HaEvent::Move(event) => ctx.spawn_detached(recorder.fact(event), |_, _, _| {}),
            HaEvent::Drained(event) => ctx.spawn_detached(recorder.fact(event), |_, _, _| {}),
        });
    }
}

impl Actor for HaActor {
    const KIND: Kind = HA.kind;

    fn accepts(accepts: &mut Accepts<Self>) {
        accepts
            .message::<QueryCensusMsg>()
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

impl Handler<QueryCensusMsg> for HaActor {
    type Answer = Result<CensusReply>;

    fn handle(&mut self, message: QueryCensusMsg, _: &mut Ctx<'_, Self>) -> Self::Answer {
        let core = self.core.as_mut().ok_or_else(not_ready)?;
        core.set_inventory(&self.inventory.now());
        Ok(core.census(message.cluster_uuid))
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
    bus.ask(RECOVERY, set).await.map(|_| ())
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
