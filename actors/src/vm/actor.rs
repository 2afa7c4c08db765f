//! The shell of a VM: asks hosts, records intents and changes, answers who asked.

use std::{sync::Arc, time::Duration};

use ringfence::{Accepts, Actor, Address, Bus, Ctx, EventHandler, Handler, Kind, Promise, Promised};
use ringfence_messages::{
    Code, ErrorCode, Event as _, HostId, Result,
    host::{HostStatusChanged, QueryServingHostsMsg},
    storage::ActivateVolumeMsg,
    vm::{
        ListVmsCmd, QueryVmMsg, StartVmMsg, StopVmCmd, StopVmMsg, VmInventory, VmState, VmStateChanged, VolumeInventory,
    },
};

use super::core::{Change, Command, Core, Event};
use crate::{
    audit::Recorder,
    host::HostActor,
    inventory::{Directory, Vm},
    ports::JournalPort,
    recovery::RecoveryActor,
    storage::StorageActor,
};

/// How long QEMU may take to start on a host, or to stop there. Too low: a loaded host cannot start anything.
pub const VM_TIMEOUT: Duration = Duration::from_secs(30);

/// One VM's actor.
pub struct VmActor {
    core: Core,
    vm: Vm,
    directory: Arc<Directory>,
    bus: Bus,
    recorder: Recorder,
    journal: Arc<dyn JournalPort>,
    /// Who waits for the operation under way: one at a time, as the core says.
    asker: Option<Promise<VmInventory>>,
}

impl VmActor {
    /// The actor of this VM under the controller of this epoch.
    pub fn new(vm: Vm, epoch: u64, directory: Arc<Directory>, journal: Arc<dyn JournalPort>, bus: Bus) -> VmActor {
        let recorder = Recorder::new(bus.clone());
        VmActor {
            core: Core::new(vm.clone(), directory.clone(), epoch),
            vm,
            directory,
            bus,
            recorder,
            journal,
            asker: None,
        }
    }
}

impl Actor for VmActor {
    const KIND: Kind = Kind::new("vm");

    fn accepts(accepts: &mut Accepts<Self>) {
        accepts.message::<StartVmMsg>().message::<StopVmMsg>().message::<QueryVmMsg>().event::<HostStatusChanged>();
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
        self.request(Event::Start(message.host_uuid), promise, ctx);
        answer
    }
}

impl Handler<StopVmMsg> for VmActor {
    type Answer = Promised<StopVmMsg>;

    fn handle(&mut self, _: StopVmMsg, ctx: &mut Ctx<'_, Self>) -> Self::Answer {
        let (promise, answer) = ctx.promise::<StopVmMsg>();
        self.request(Event::Stop, promise, ctx);
        answer
    }
}

impl Handler<QueryVmMsg> for VmActor {
    type Answer = Result<VmInventory>;

    fn handle(&mut self, _: QueryVmMsg, _: &mut Ctx<'_, Self>) -> Self::Answer {
        Ok(self.inventory())
    }
}

impl EventHandler<HostStatusChanged> for VmActor {
    fn on_event(&mut self, event: &HostStatusChanged, ctx: &mut Ctx<'_, Self>) {
        self.on(Event::HostChanged(event.host_uuid, event.new_status), ctx);
    }
}

impl VmActor {
    fn on(&mut self, event: Event, ctx: &mut Ctx<'_, Self>) {
        let commands = self.core.on(event);
        for command in commands {
            self.carry_out(command, ctx);
        }
    }

    /// The core refuses a second operation in the same turn, so the asker of the first is put back.
    fn request(&mut self, event: Event, promise: Promise<VmInventory>, ctx: &mut Ctx<'_, Self>) {
        let before = self.asker.replace(promise);
        let commands = self.core.on(event);
        for command in commands {
            self.carry_out(command, ctx);
        }
        if before.is_some() {
            self.asker = before;
        }
    }

    fn carry_out(&mut self, command: Command, ctx: &mut Ctx<'_, Self>) {
        let bus = self.bus.clone();
        match command {
            Command::FindHosts => {
                let ask = QueryServingHostsMsg { cluster_uuid: self.vm.cluster };
                let answer = async move { bus.ask(Address::singleton(RecoveryActor::KIND), ask).await };
                ctx.spawn(answer, |vm, found, ctx| vm.on(Event::HostsFound(found.map(|r| r.host_uuids)), ctx));
            }
            Command::Search(host) => {
                let answer = async move { bus.ask_within(to(host), ListVmsCmd {}, VM_TIMEOUT).await };
                ctx.spawn(answer, move |vm, found, ctx| vm.on(Event::Searched(host, found.map(|r| r.vms)), ctx));
            }
            Command::Intend(change) => {
                let (recorder, event) = (self.recorder.clone(), self.event(change));
                let answer = async move { recorder.intent(&event).await };
                ctx.spawn(answer, |vm, result, ctx| vm.on(Event::Recorded(result.map(|_| ())), ctx));
            }
            Command::Export(host, index) => {
                let volume = &self.vm.volumes[index];
                let ask = ActivateVolumeMsg {
                    host_uuid: host,
                    install_path: volume.install_path.clone(),
                    bdev_name: format!("{}-{index}", self.vm.name),
                };
                let storage = Address::new(StorageActor::KIND, volume.storage);
                let answer = async move { bus.ask_within(storage, ask, VM_TIMEOUT).await };
                ctx.spawn(answer, move |vm, result, ctx| vm.on(Event::Exported(index, result), ctx));
            }
            Command::Launch(host, mut cmd) => {
                let host_name = self.host_name(Some(host)).unwrap_or_default();
                for arg in &mut cmd.qemu_args {
                    *arg = fill_in(arg, &host_name, &self.vm);
                }
                let answer = async move { bus.ask_within(to(host), cmd, VM_TIMEOUT).await };
                ctx.spawn(answer, |vm, result, ctx| vm.on(Event::Launched(result), ctx));
            }
            Command::Halt(host) => {
                let cmd = StopVmCmd { vm_uuid: self.vm.id };
                let answer = async move { bus.ask_within(to(host), cmd, VM_TIMEOUT).await };
                ctx.spawn(answer, |vm, result, ctx| vm.on(Event::Halted(result.map(|_| ())), ctx));
            }
            Command::Tell(change) => {
                let fact = self.recorder.fact(self.event(change));
                ctx.spawn_detached(fact, |_, _, _| {});
            }
            Command::Reply(result) => {
                if let Some(asker) = self.asker.take() {
                    asker.complete(result.map(|()| self.inventory()));
                }
            }
        }
    }

    /// Reads the journal until it answers: without its memory a VM may not be touched.
    fn remember(&mut self, ctx: &mut Ctx<'_, Self>) {
        let (journal, subject) = (self.journal.clone(), self.vm.name.clone());
        let answer = async move { journal.latest_of(VmStateChanged::TOPIC, &subject).await };
        ctx.spawn_detached(answer, |vm, latest, ctx| {
            let memory = latest.and_then(|record| record.map(memory).transpose());
            match memory {
                Ok(memory) => vm.on(Event::Remembered(memory), ctx),
                Err(error) => {
                    tracing::error!(%error, vm = vm.vm.name, "the journal does not say where this VM ran");
                    ctx.after(MEMORY_RETRY, |vm, ctx| vm.remember(ctx));
                }
            }
        });
    }

    fn host_name(&self, host: Option<HostId>) -> Option<String> {
        host.and_then(|id| self.directory.host(id).ok()).map(|host| host.name.clone())
    }

    fn event(&self, change: Change) -> VmStateChanged {
        VmStateChanged {
            vm_uuid: self.vm.id,
            vm: self.vm.name.clone(),
            old_state: change.old,
            new_state: change.new,
            host_uuid: change.host,
            host: self.host_name(change.host),
            incarnation: change.incarnation,
            reason: change.reason,
        }
    }

    fn inventory(&self) -> VmInventory {
        let place = self.core.place();
        let at = place.filter(|_| self.core.state() != VmState::Stopped);
        VmInventory {
            uuid: self.vm.id,
            name: self.vm.name.clone(),
            cluster: self.directory.cluster(self.vm.cluster).map(|c| c.name.clone()).unwrap_or_default(),
            ha: self.vm.ha,
            state: self.core.state(),
            host_uuid: at,
            host: self.host_name(at),
            last_host_uuid: place,
            incarnation: self.core.incarnation(),
            volumes: self
                .vm
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

/// Between tries to read the journal at the start.
const MEMORY_RETRY: Duration = Duration::from_secs(1);

fn to(host: HostId) -> Address {
    Address::new(HostActor::KIND, host)
}

/// Fills in the placeholders that the config allows in `qemu_args`.
fn fill_in(arg: &str, host: &str, vm: &Vm) -> String {
    arg.replace("{host}", host).replace("{vm}", &vm.name).replace("{uuid}", &vm.id.to_string())
}

fn memory(record: crate::ports::Record) -> Result<super::core::Memory> {
    let event: VmStateChanged = serde_json::from_value(record.payload).map_err(|e| {
        ErrorCode::new(
            Code::IO,
            format!("record {} of the journal is not a {}: {e}", record.seq, VmStateChanged::TOPIC),
        )
    })?;
    Ok(super::core::Memory { state: event.new_state, host: event.host_uuid, incarnation: event.incarnation })
}
