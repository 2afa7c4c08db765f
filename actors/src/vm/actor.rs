//! The shell of a VM: asks hosts, records intents and changes, answers who asked.

use std::{sync::Arc, time::Duration};

use ringfence::{Accepts, Actor, Address, AsyncReply, Bus, Ctx, EventHandler, Handler, Kind, Promise, Promised};
use ringfence_messages::{
    Event as _, HostId, Result,
    agent::Done,
    fence::{FenceIntended, FenceOutcome, SiblingFenceAudited},
    ha::{FindTargetMsg, HaStartPlan, HaStartVmInstanceMsg, HaStartVmInstanceReply, PlanHaStartMsg},
    host::HostStatusChanged,
    storage::ActivateVolumeMsg,
    vm::{
        IntruderPhase, ListVmsCmd, LookForVmMsg, QueryVmMsg, StartVmMsg, StopVmCmd, StopVmMsg, VacateVmMsg, VmIntruder,
        VmInventory, VmState, VmStateChanged, VoidOrders, VolumeInventory,
    },
};
use tokio::time::Instant;
use uuid::Uuid;

use super::{
    core::{Change, Command, Core, Event, Memory, Order},
    fencing::Fencing,
};
use crate::{
    audit::Recorder,
    change::{ForgetHostMsg, RetireMsg},
    fence::Policy,
    host::{HostActor, LaunchVmMsg},
    inventory::{Catalog, Vm},
    memory::MEMORY_RETRY,
    ports::{JournalPort, Ports},
    storage::StorageActor,
};

/// How long QEMU may take to start on a host, or to stop there. Too low: a loaded host cannot start anything.
pub const VM_TIMEOUT: Duration = Duration::from_secs(30);

/// How long a host may take to list its processes. Too low: a loaded host looks silent. Too high: a start waits for one
/// that is about to be found dead.
pub const SEARCH_TIMEOUT: Duration = Duration::from_secs(5);

/// One VM's actor.
pub struct VmActor {
    pub(super) core: Core,
    pub(super) catalog: Catalog,
    pub(super) bus: Bus,
    pub(super) recorder: Recorder,
    pub(super) ports: Ports,
    /// Who waits for the operation under way: one at a time, as the core says.
    asker: Option<Asker>,
    /// The span of the attempt under way.
    pub(super) fencing: Fencing,
}

/// Who waits for an operation.
enum Asker {
    Order(Promise<VmInventory>),
    Ha(Promise<HaStartVmInstanceReply>),
}

impl VmActor {
    /// The actor of this VM under the controller of this epoch.
    pub fn new(vm: Vm, epoch: u64, policy: Policy, catalog: Catalog, ports: Ports, bus: Bus) -> VmActor {
        let recorder = Recorder::new(bus.clone());
        let core = Core::new(vm, catalog.now(), epoch, policy);
        VmActor { core, catalog, bus, recorder, ports, asker: None, fencing: Fencing::default() }
    }
}

impl Actor for VmActor {
    const KIND: Kind = Kind::new("vm");

    fn accepts(accepts: &mut Accepts<Self>) {
        accepts
            .message::<StartVmMsg>()
            .message::<StopVmMsg>()
            .message::<VacateVmMsg>()
            .message::<QueryVmMsg>()
            .message::<HaStartVmInstanceMsg>()
            .message::<PlanHaStartMsg>()
            .message::<LookForVmMsg>()
            .message::<ForgetHostMsg>()
            .message::<RetireMsg>()
            .event::<HostStatusChanged>();
    }

    fn started(&mut self, ctx: &mut Ctx<'_, Self>) {
        ctx.subscribe::<HostStatusChanged>();
        self.remember(ctx);
    }

    fn observe(&self) -> serde_json::Value {
        serde_json::json!({ "state": self.core.state(), "host": self.core.place(), "incarnation": self.core.incarnation() })
    }
}

impl Handler<StartVmMsg> for VmActor {
    type Answer = Promised<StartVmMsg>;

    fn handle(&mut self, message: StartVmMsg, ctx: &mut Ctx<'_, Self>) -> Self::Answer {
        let (promise, answer) = ctx.promise::<StartVmMsg>();
        let order = Order { host: message.host_uuid, reason: "asked to start".to_owned(), ..Order::default() };
        self.request(Event::Start(order), Asker::Order(promise), ctx);
        answer
    }
}

impl Handler<HaStartVmInstanceMsg> for VmActor {
    type Answer = Promised<HaStartVmInstanceMsg>;

    fn handle(&mut self, message: HaStartVmInstanceMsg, ctx: &mut Ctx<'_, Self>) -> Self::Answer {
        let (promise, answer) = ctx.promise::<HaStartVmInstanceMsg>();
        let order = Order {
            host: message.host_uuid,
            ha: true,
            soft_avoid: message.soft_avoid_host_uuids,
            attempt: Uuid::new_v4(),
            reason: format!("brought back ({}: {})", message.judger_class_name, message.ha_reason),
        };
        self.request(Event::Start(order), Asker::Ha(promise), ctx);
        answer
    }
}

impl Handler<LookForVmMsg> for VmActor {
    type Answer = Result<VmInventory>;

    fn handle(&mut self, message: LookForVmMsg, ctx: &mut Ctx<'_, Self>) -> Self::Answer {
        self.on(Event::LookFor(message.host_uuid), ctx);
        Ok(self.inventory())
    }
}

impl Handler<PlanHaStartMsg> for VmActor {
    type Answer = AsyncReply<HaStartPlan>;

    fn handle(&mut self, message: PlanHaStartMsg, _: &mut Ctx<'_, Self>) -> Self::Answer {
        AsyncReply::new(self.rehearse(message.host_uuid))
    }
}

impl Handler<StopVmMsg> for VmActor {
    type Answer = Promised<StopVmMsg>;

    fn handle(&mut self, _: StopVmMsg, ctx: &mut Ctx<'_, Self>) -> Self::Answer {
        let (promise, answer) = ctx.promise::<StopVmMsg>();
        self.request(Event::Stop, Asker::Order(promise), ctx);
        answer
    }
}

impl Handler<VacateVmMsg> for VmActor {
    type Answer = Promised<VacateVmMsg>;

    fn handle(&mut self, message: VacateVmMsg, ctx: &mut Ctx<'_, Self>) -> Self::Answer {
        let (promise, answer) = ctx.promise::<VacateVmMsg>();
        self.request(Event::Vacate(message.host_uuid), Asker::Order(promise), ctx);
        answer
    }
}

impl Handler<QueryVmMsg> for VmActor {
    type Answer = Result<VmInventory>;

    fn handle(&mut self, _: QueryVmMsg, _: &mut Ctx<'_, Self>) -> Self::Answer {
        self.core.look_after(&self.catalog.now());
        Ok(self.inventory())
    }
}

/// The host where it ran last leaves the inventory, with nothing of it left there.
impl Handler<ForgetHostMsg> for VmActor {
    type Answer = Result<VmInventory>;

    fn handle(&mut self, message: ForgetHostMsg, ctx: &mut Ctx<'_, Self>) -> Self::Answer {
        self.core.may_retire(Instant::now().into_std())?;
        self.on(Event::HostGone(message.host_uuid), ctx);
        Ok(self.inventory())
    }
}

impl Handler<RetireMsg> for VmActor {
    type Answer = Result<Done>;

    fn handle(&mut self, _: RetireMsg, ctx: &mut Ctx<'_, Self>) -> Self::Answer {
        self.core.may_retire(Instant::now().into_std())?;
        ctx.stop();
        Ok(Done {})
    }
}

impl EventHandler<HostStatusChanged> for VmActor {
    fn on_event(&mut self, event: &HostStatusChanged, ctx: &mut Ctx<'_, Self>) {
        self.on(Event::HostChanged(event.host_uuid, event.new_status), ctx);
    }
}

impl VmActor {
    pub(super) fn on(&mut self, event: Event, ctx: &mut Ctx<'_, Self>) {
        self.core.look_after(&self.catalog.now());
        let commands = self.core.on(event, Instant::now().into_std());
        for command in commands {
            self.carry_out(command, ctx);
        }
    }

    /// The core refuses a second operation in the same turn, so the asker of the first is put back.
    fn request(&mut self, event: Event, asker: Asker, ctx: &mut Ctx<'_, Self>) {
        let before = self.asker.replace(asker);
        self.on(event, ctx);
        if before.is_some() {
            self.asker = before;
        }
    }

    fn carry_out(&mut self, command: Command, ctx: &mut Ctx<'_, Self>) {
        let bus = self.bus.clone();
        match command {
            Command::FindTarget(host_uuid, soft_avoid_host_uuids) => {
                let ask = FindTargetMsg { host_uuid, soft_avoid_host_uuids, ..self.find_target() };
                ctx.spawn(self.target(ask), |vm, found, ctx| vm.on(Event::TargetFound(found), ctx));
            }
            Command::Search(host) => {
                let void = VoidOrders { vm_uuid: self.core.vm.id, incarnation: self.core.incarnation() };
                let ask = ListVmsCmd { epoch: 0, void: Some(void) };
                let answer = async move { bus.ask_within(to(host), ask, SEARCH_TIMEOUT).await };
                ctx.spawn(answer, move |vm, found, ctx| vm.on(Event::Searched(host, found), ctx));
            }
            Command::Fence(case, command) => self.fence(&case, command, ctx),
            Command::Intend(change) => {
                self.fencing.end(None);
                let (recorder, event) = (self.recorder.clone(), self.event(change));
                let answer = async move { recorder.intent(&event).await };
                ctx.spawn(answer, |vm, result, ctx| vm.on(Event::Recorded(result.map(|_| ())), ctx));
            }
            Command::Export(host, index) => {
                let volume = &self.core.vm.volumes[index];
                let ask = ActivateVolumeMsg {
                    host_uuid: host,
                    install_path: volume.install_path.clone(),
                    bdev_name: format!("{}-{index}", self.core.vm.name),
                    vm_uuid: self.core.vm.id,
                };
                let storage = Address::new(StorageActor::KIND, volume.storage);
                let answer = async move { bus.ask_within(storage, ask, VM_TIMEOUT).await };
                ctx.spawn(answer, move |vm, result, ctx| vm.on(Event::Exported(index, result), ctx));
            }
            Command::Launch(host, permit, mut cmd) => {
                let host_name = self.host_name(Some(host)).unwrap_or_default();
                for arg in cmd.qemu_args.iter_mut().chain(&mut cmd.libvirt_xml) {
                    *arg = fill_in(arg, &host_name, &self.core.vm);
                }
                let answer = async move { bus.ask_within(to(host), LaunchVmMsg { permit, cmd }, VM_TIMEOUT).await };
                ctx.spawn(answer, |vm, result, ctx| vm.on(Event::Launched(result), ctx));
            }
            Command::Halt(host) => {
                let cmd =
                    StopVmCmd { vm_uuid: self.core.vm.id, epoch: 0, incarnation: self.core.stopped_incarnation(host) };
                let answer = async move { bus.ask_within(to(host), cmd, VM_TIMEOUT).await };
                ctx.spawn(answer, |vm, result, ctx| vm.on(Event::Halted(result.map(|_| ())), ctx));
            }
            Command::Intruder(host, phase, reason) => {
                let intruder = VmIntruder {
                    vm_uuid: self.core.vm.id,
                    vm: self.core.vm.name.clone(),
                    host_uuid: host,
                    host: self.core.directory.host_name(host),
                    phase,
                    reason,
                };
                metrics::counter!("ringfence_vm_intruders_total", "phase" => phase.as_str()).increment(1);
                let recorder = self.recorder.clone();
                if phase == IntruderPhase::EndIntended {
                    let answer = async move { recorder.intent(&intruder).await };
                    ctx.spawn(answer, |vm, result, ctx| vm.on(Event::Recorded(result.map(|_| ())), ctx));
                } else {
                    ctx.spawn_detached(recorder.fact(intruder), |_, _, _| {});
                }
            }
            Command::Tell(change) => {
                let fact = self.recorder.fact(self.event(change));
                ctx.spawn_detached(fact, |_, _, _| {});
            }
            Command::Reply(result) => {
                self.fencing.end(result.as_ref().err());
                match self.asker.take() {
                    Some(Asker::Order(asker)) => asker.complete(result.map(|()| self.inventory())),
                    Some(Asker::Ha(asker)) => {
                        asker.complete(result.map(|()| HaStartVmInstanceReply { host_uuid: self.core.place() }));
                    }
                    None => {}
                }
            }
        }
    }

    /// Reads the journal until it answers: without its memory a VM may not be touched.
    fn remember(&mut self, ctx: &mut Ctx<'_, Self>) {
        let memory = memory(self.ports.journal.clone(), self.core.vm.name.clone());
        ctx.spawn_detached(memory, |vm, memory, ctx| match memory {
            Ok((memory, orphan)) => {
                if let Some(intent) = orphan {
                    let why = "the controller ended before the attempt did".to_owned();
                    let audit = vm.audited(&intent, FenceOutcome::Failed, None, why, Vec::new());
                    ctx.spawn_detached(vm.recorder.fact(audit), |_, _, _| {});
                }
                vm.on(Event::Remembered(memory), ctx);
            }
            Err(error) => {
                tracing::error!(%error, vm = vm.core.vm.name, "the journal does not say where this VM ran");
                ctx.after(MEMORY_RETRY, |vm, ctx| vm.remember(ctx));
            }
        });
    }

    fn host_name(&self, host: Option<HostId>) -> Option<String> {
        host.and_then(|id| self.core.directory.host(id).ok()).map(|host| host.name.clone())
    }

    fn event(&self, change: Change) -> VmStateChanged {
        VmStateChanged {
            vm_uuid: self.core.vm.id,
            vm: self.core.vm.name.clone(),
            old_state: change.old,
            new_state: change.new,
            host_uuid: change.host,
            host: self.host_name(change.host),
            incarnation: change.incarnation,
            wanted: change.wanted,
            reason: change.reason,
            may_run_on: change.may_run_on,
        }
    }

    fn inventory(&self) -> VmInventory {
        let (vm, place) = (&self.core.vm, self.core.place());
        let at = place.filter(|_| self.core.state() != VmState::Stopped);
        VmInventory {
            uuid: vm.id,
            name: vm.name.clone(),
            cluster: self.core.directory.cluster(vm.cluster).map(|c| c.name.clone()).unwrap_or_default(),
            ha: vm.ha,
            state: self.core.state(),
            host_uuid: at,
            host: self.host_name(at),
            last_host_uuid: place,
            incarnation: self.core.incarnation(),
            wanted: self.core.wanted(),
            volumes: vm
                .volumes
                .iter()
                .map(|v| VolumeInventory {
                    primary_storage_uuid: v.storage,
                    install_path: v.install_path.to_string(),
                    root: v.root,
                })
                .collect(),
        }
    }
}

pub(super) fn to(host: HostId) -> Address {
    Address::new(HostActor::KIND, host)
}

/// Fills in the placeholders that the config allows in `qemu_args`.
fn fill_in(arg: &str, host: &str, vm: &Vm) -> String {
    arg.replace("{host}", host).replace("{vm}", &vm.name).replace("{uuid}", &vm.id.to_string())
}

/// What the journal says of a VM, and the fence that a controller began and did not end.
async fn memory(journal: Arc<dyn JournalPort>, name: String) -> Result<(Option<Memory>, Option<FenceIntended>)> {
    let latest = journal.latest_of(VmStateChanged::TOPIC, &name).await?;
    let memory = latest.map(|record| record.event::<VmStateChanged>()).transpose()?.map(|event| Memory {
        state: event.new_state,
        host: event.host_uuid,
        incarnation: event.incarnation,
        wanted: event.wanted,
        may_run_on: event.may_run_on,
    });
    let intent = journal.latest_of(FenceIntended::TOPIC, &name).await?;
    let audit = journal.latest_of(SiblingFenceAudited::TOPIC, &name).await?;
    let intent = intent.map(|record| record.event::<FenceIntended>()).transpose()?;
    let audited = audit.map(|record| record.event::<SiblingFenceAudited>()).transpose()?.map(|audit| audit.attempt);
    Ok((memory, intent.filter(|intent| Some(intent.attempt) != audited)))
}
