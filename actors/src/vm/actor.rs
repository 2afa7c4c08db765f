//! The shell of a VM: queries hosts, records intents and changes, and answers requesters.

use std::{sync::Arc, time::Duration};

use ringfence::{Accepts, Actor, Address, AsyncReply, Bus, Ctx, EventHandler, Handler, Kind, Promise, Promised};
use ringfence_messages::{
    Event as _, HostId, Result,
    agent::Done,
    fence::{FenceIntended, FenceOutcome, SiblingFenceAudited},
    ha::{FindTargetMsg, HaStartPlan, HaStartVmInstanceMsg, HaStartVmInstanceReply, PlanHaStartMsg},
    host::HostStatusChanged,
    inventory::{ForgetHostMsg, RetireMsg},
    storage::ActivateVolumeMsg,
    vm::{
        IntruderPhase, ListVmsCmd, LookForVmMsg, QueryVmMsg, StartVmMsg, StopVmCmd, StopVmMsg, VacateVmMsg, VmIntruder,
        VmInventory, VmState, VmStateChanged, VoidOrders, VolumeInventory,
    },
};
use tokio::time::Instant;
use uuid::Uuid;

use super::{
    core::{Command, Core, Event, ReplayedState, StartRequest, StateChange},
    fencing::Fencing,
};
use crate::{
    audit::Recorder,
    fence::Policy,
    host::{HostActor, LaunchVmMsg},
    inventory::{SharedInventory, Vm},
    ports::{JournalPort, Ports},
    replay::REPLAY_RETRY,
    storage::StorageActor,
};

/// Limit of the start or stop of QEMU on a host. Too low: a loaded host cannot start a VM.
pub const VM_TIMEOUT: Duration = Duration::from_secs(30);

/// Limit of a host's process list. Too low: a loaded host looks unreachable. Too high: a start waits long for a host
/// that is down.
pub const SEARCH_TIMEOUT: Duration = Duration::from_secs(5);

/// One VM's actor.
pub struct VmActor {
    pub(super) core: Core,
    pub(super) inventory: SharedInventory,
    pub(super) bus: Bus,
    pub(super) recorder: Recorder,
    pub(super) ports: Ports,
    /// The requester of the operation in progress: one at a time, as in the core.
    asker: Option<Asker>,
    /// Span of the attempt in progress.
    pub(super) fencing: Fencing,
}

/// A requester that waits for an operation.
enum Asker {
    StartRequest(Promise<VmInventory>),
    Ha(Promise<HaStartVmInstanceReply>),
}

impl VmActor {
    /// The actor of this VM; `epoch` is the epoch of this controller.
    pub fn new(vm: Vm, epoch: u64, policy: Policy, inventory: SharedInventory, ports: Ports, bus: Bus) -> VmActor {
        let recorder = Recorder::new(bus.clone());
        let core = Core::new(vm, inventory.now(), epoch, policy);
        VmActor { core, inventory, bus, recorder, ports, asker: None, fencing: Fencing::default() }
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
        self.replay(ctx);
    }

    fn observe(&self) -> serde_json::Value {
        let (state, host, incarnation) = (self.core.state(), self.core.place(), self.core.incarnation());
        serde_json::json!({ "state": state, "host": host, "incarnation": incarnation })
    }
}

impl Handler<StartVmMsg> for VmActor {
    type Answer = Promised<StartVmMsg>;

    fn handle(&mut self, message: StartVmMsg, ctx: &mut Ctx<'_, Self>) -> Self::Answer {
        let (promise, answer) = ctx.promise::<StartVmMsg>();
        let request =
            StartRequest { host: message.host_uuid, reason: "start requested".to_owned(), ..StartRequest::default() };
        self.request(Event::Start(request), Asker::StartRequest(promise), ctx);
        answer
    }
}

impl Handler<HaStartVmInstanceMsg> for VmActor {
    type Answer = Promised<HaStartVmInstanceMsg>;

    fn handle(&mut self, message: HaStartVmInstanceMsg, ctx: &mut Ctx<'_, Self>) -> Self::Answer {
        let (promise, answer) = ctx.promise::<HaStartVmInstanceMsg>();
        let request = StartRequest {
            host: message.host_uuid,
            ha: true,
            soft_avoid: message.soft_avoid_host_uuids,
            attempt: Uuid::new_v4(),
            reason: format!("failover ({}: {})", message.judger_class_name, message.ha_reason),
        };
        self.request(Event::Start(request), Asker::Ha(promise), ctx);
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
        self.request(Event::Stop, Asker::StartRequest(promise), ctx);
        answer
    }
}

impl Handler<VacateVmMsg> for VmActor {
    type Answer = Promised<VacateVmMsg>;

    fn handle(&mut self, message: VacateVmMsg, ctx: &mut Ctx<'_, Self>) -> Self::Answer {
        let (promise, answer) = ctx.promise::<VacateVmMsg>();
        self.request(Event::Evict(message.host_uuid), Asker::StartRequest(promise), ctx);
        answer
    }
}

impl Handler<QueryVmMsg> for VmActor {
    type Answer = Result<VmInventory>;

    fn handle(&mut self, _: QueryVmMsg, _: &mut Ctx<'_, Self>) -> Self::Answer {
        self.core.set_inventory(&self.inventory.now());
        Ok(self.inventory())
    }
}

/// The last host of the VM is removed from the inventory, with nothing of the VM left there.
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
        self.core.set_inventory(&self.inventory.now());
        let commands = self.core.on(event, Instant::now().into_std());
        for command in commands {
            self.carry_out(command, ctx);
        }
    }

    /// The core rejects a second operation in the same turn, so the requester of the first is put back.
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
            Command::Search(host) => self.search(host, ctx),
            Command::Fence(fence_request, command) => self.fence(&fence_request, command, ctx),
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
                    bdev_name: self.bdev_name(index),
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
                let ended = self.end_exports(host);
                let answer = async move {
                    bus.ask_within(to(host), cmd, VM_TIMEOUT).await?;
                    ended.await
                };
                ctx.spawn(answer, |vm, result, ctx| vm.on(Event::Halted(result), ctx));
            }
            Command::Intruder(host, phase, reason) => self.intruder(host, phase, reason, ctx),
            Command::Emit(change) => {
                let fact = self.recorder.fact(self.event(change));
                ctx.spawn_detached(fact, |_, _, _| {});
            }
            Command::Reply(result) => {
                self.fencing.end(result.as_ref().err());
                match self.asker.take() {
                    Some(Asker::StartRequest(asker)) => asker.complete(result.map(|()| self.inventory())),
                    Some(Asker::Ha(asker)) => {
                        asker.complete(result.map(|()| HaStartVmInstanceReply { host_uuid: self.core.place() }));
                    }
                    None => {}
                }
            }
        }
    }

    /// Queries the processes of a host. If nothing of the VM is left there, its exports by ZBS targets end first (K4).
    fn search(&self, host: HostId, ctx: &mut Ctx<'_, Self>) {
        let void = VoidOrders { vm_uuid: self.core.vm.id, incarnation: self.core.incarnation() };
        let ask = ListVmsCmd { epoch: 0, void: Some(void) };
        let bus = self.bus.clone();
        let answer = async move { bus.ask_within(to(host), ask, SEARCH_TIMEOUT).await };
        ctx.spawn(answer, move |vm, found, ctx| {
            if vm.may_export(host, &found) {
                let ended = vm.end_exports(host);
                ctx.spawn(ended, move |vm, ended, ctx| vm.on(Event::Searched(host, ended.and(found)), ctx));
            } else {
                vm.on(Event::Searched(host, found), ctx);
            }
        });
    }

    /// Records a QEMU that claims to be the VM. Its end is an act, so its intent must be durable first (I4).
    fn intruder(&self, host: HostId, phase: IntruderPhase, reason: String, ctx: &mut Ctx<'_, Self>) {
        let intruder = VmIntruder {
            vm_uuid: self.core.vm.id,
            vm: self.core.vm.name.clone(),
            host_uuid: host,
            host: self.core.inventory.host_name(host),
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

    /// Reads the journal until that succeeds: without the replayed state a VM must not be touched.
    fn replay(&mut self, ctx: &mut Ctx<'_, Self>) {
        let replayed = replayed(self.ports.journal.clone(), self.core.vm.name.clone());
        ctx.spawn_detached(replayed, |vm, replayed, ctx| match replayed {
            Ok((replayed, orphan)) => {
                if let Some(intent) = orphan {
                    let why = "the controller stopped before the attempt ended".to_owned();
                    let audit = vm.audited(&intent, FenceOutcome::Failed, None, why, Vec::new());
                    ctx.spawn_detached(vm.recorder.fact(audit), |_, _, _| {});
                }
                vm.on(Event::Replayed(replayed), ctx);
            }
            Err(error) => {
                tracing::error!(%error, vm = vm.core.vm.name, "cannot read the VM state from the journal");
                ctx.after(REPLAY_RETRY, |vm, ctx| vm.replay(ctx));
            }
        });
    }

    /// Name of the export of the volume of this index.
    pub(super) fn bdev_name(&self, index: usize) -> String {
        format!("{}-{index}", self.core.vm.name)
    }

    fn host_name(&self, host: Option<HostId>) -> Option<String> {
        host.and_then(|id| self.core.inventory.host(id).ok()).map(|host| host.name.clone())
    }

    fn event(&self, change: StateChange) -> VmStateChanged {
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
            cluster: self.core.inventory.cluster(vm.cluster).map(|c| c.name.clone()).unwrap_or_default(),
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

/// Replaces the placeholders that the config allows in `qemu_args`.
fn fill_in(arg: &str, host: &str, vm: &Vm) -> String {
    arg.replace("{host}", host).replace("{vm}", &vm.name).replace("{uuid}", &vm.id.to_string())
}

/// The newest state of a VM in the journal, and the intent of a fence that was not audited.
async fn replayed(
    journal: Arc<dyn JournalPort>,
    name: String,
) -> Result<(Option<ReplayedState>, Option<FenceIntended>)> {
    let latest = journal.latest_of(VmStateChanged::TOPIC, &name).await?;
    let replayed = latest.map(|record| record.event::<VmStateChanged>()).transpose()?.map(|event| ReplayedState {
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
    Ok((replayed, intent.filter(|intent| Some(intent.attempt) != audited)))
}
