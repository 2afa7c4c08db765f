//! An exhaustive check of the fence and permit protocol: two controllers, two hosts, one VM on one volume.
//!
//! The model runs the VM's own core with attempts and permits, and the agents' own judgement of commands. Around them
//! everything may happen in any sequence: replies are lost, commands arrive late and twice, agents and hosts freeze and
//! continue, controllers die, lose their leadership and continue, permits expire. The property is I1: two QEMUs never
//! write.
//!
//! There are two worlds. In [`Protocol::new`] the volume is on Ceph, which lists watchers and can reject hosts. In
//! [`Protocol::with_claims`] it is on vhost, where only the host and SSH give evidence: hosts are probed at any time,
//! show and stop QEMUs without a command, lose power and return, and an operator attests that one is off. Two worlds
//! are smaller than one with everything, so that both are searched deeper. Time has two moments: before and after all
//! permits of the first have expired.

mod state;

use std::{
    sync::{Arc, LazyLock},
    time::Instant,
};

use ringfence_actors::{
    fence::{Policy, attempt},
    inventory::{Inventory, InventoryIndex, Vm},
    sabotage::{self, Sabotage},
    vm::core::{Command, Core, Event, Found, ReplayedState, StartRequest, StateChange, UnreachableHost},
};
use ringfence_messages::{
    Code, ErrorCode, HostId, Result,
    ceph::{StorageFenceReply, Watcher},
    evidence::{Machine, Sight},
    fence::SiblingFenceVmOnHostReply,
    ha::TargetReply,
    vm::{DiskSource, HaMode, IntruderPhase, ListVmsReply, RunningVm, StartVmCmd, StartVmCmdReply, VmState},
};
use stateright::{Checker, Model, Property};

pub use self::state::{Action, How, State};
use self::state::{Controller, Host};
use crate::plan;

/// Starts that are asked for at most.
const MAX_ORDERS: u8 = 3;

/// Deaths of controllers and changes of leadership, at most.
const MAX_CHANGES: u8 = 2;

/// Times that a host falls silent, at most.
const MAX_SILENCES: u8 = 2;

/// Claims, looks at a host, and losses of power, at most; each.
const MAX_TROUBLES: u8 = 2;

static BEGAN: LazyLock<Instant> = LazyLock::new(Instant::now);

/// The protocol; see the module.
#[derive(Clone)]
pub struct Protocol {
    vm: Vm,
    /// Hosts show what is not the VM, lose their power, and are attested to be off; no other controller becomes the
    /// leader.
    claims: bool,
    directory: Arc<InventoryIndex>,
}

fn failed() -> ErrorCode {
    ErrorCode::new(Code::TIMEOUT, "no answer")
}

impl Protocol {
    /// The protocol with two hosts and a VM on Ceph.
    pub fn new() -> Protocol {
        Protocol::of(0, "ceph://rbd/vm-0", false)
    }

    /// The protocol with two hosts and a VM on vhost, with claims, power losses and an attestation.
    pub fn with_claims() -> Protocol {
        Protocol::of(1, "vhost://vm-0", true)
    }

    fn of(storage: usize, path: &str, claims: bool) -> Protocol {
        let cluster = ringfence_messages::ClusterId::from_name("c1");
        let hosts = vec![plan::host(0, cluster), plan::host(1, cluster)];
        let storages = plan::storages(&[cluster]);
        let vm = Vm {
            id: ringfence_messages::VmId::from_name("vm-0"),
            name: "vm-0".to_owned(),
            cluster,
            ha: HaMode::None,
            memory_mib: 1,
            qemu_args: Vec::new(),
            libvirt_xml: None,
            volumes: vec![ringfence_actors::inventory::Volume {
                storage: storages[storage].id,
                install_path: path.parse().expect("a path"),
                root: true,
            }],
        };
        let inventory = Inventory { hosts, storages, ..Inventory::default() };
        Protocol { vm, claims, directory: Arc::new(InventoryIndex::new(inventory)) }
    }

    fn id(&self, host: usize) -> HostId {
        self.directory.hosts[host].id
    }

    fn index(&self, id: HostId) -> usize {
        usize::from(id != self.id(0))
    }

    fn controller(&self, epoch: u64, journal: Option<ReplayedState>, now: Instant) -> Controller {
        let mut core = Core::new(self.vm.clone(), self.directory.clone(), epoch, Policy::default());
        let todo = core.on(Event::Replayed(journal), now);
        Controller { core, epoch, todo }
    }

    fn is_off(&self, state: &State, place: &attempt::LastHost) -> bool {
        matches!(place, attempt::LastHost::Unreachable(host) if state.hosts[self.index(*host)].off)
    }

    /// The ways in which a thing to do may end.
    fn ends(&self, state: &State, c: usize, command: &Command) -> Vec<How> {
        use How::{Badly, Unheard, Well};
        match command {
            Command::Search(host) if state.hosts[self.index(*host)].silent => vec![Badly],
            Command::Search(_) => vec![Well, Badly],
            Command::Intend(_) | Command::Fence(_, attempt::Command::Intend(_)) if state.leader != c => vec![Badly],
            Command::Launch(..) => vec![Unheard, Badly],
            Command::Halt(host) if state.hosts[self.index(*host)].silent => vec![Badly],
            Command::Halt(_) => vec![Well, Badly, Unheard],
            Command::Fence(case, attempt::Command::AskFencer) if self.is_off(state, &case.place) => vec![Badly],
            Command::Fence(_, attempt::Command::Block(_)) => vec![Well, Badly, Unheard],
            Command::Fence(_, attempt::Command::AskFencer) => vec![Well, Badly, Unheard],
            _ => vec![Well, Badly],
        }
    }

    /// Does what a controller has to do, and tells it.
    fn end(&self, state: &mut State, c: usize, index: usize, how: How) -> Option<()> {
        let command = state.controllers[c].as_mut()?.todo.remove(index);
        let epoch = state.controllers[c].as_ref()?.epoch;
        let well = how == How::Well;
        let now = state.now();
        let unit = |well| if well { Ok(()) } else { Err(failed()) };
        let event = match command {
            Command::FindTarget(..) => self.found(state, c)?,
            Command::Search(id) => self.searched(state, c, id, well)?,
            Command::Intend(change) => {
                if well {
                    state.journal = Some(memory(&change));
                }
                Event::Recorded(unit(well))
            }
            Command::Emit(change) => {
                if well && state.leader == c {
                    state.journal = Some(memory(&change));
                }
                return Some(());
            }
            Command::Intruder(_, IntruderPhase::EndIntended, _) => Event::Recorded(unit(well)),
            Command::Intruder(..) | Command::Reply(_) => return Some(()),
            Command::Export(_, n) => {
                let disk = DiskSource::File { path: "/d".to_owned() };
                Event::Exported(n, if well { Ok(disk) } else { Err(failed()) })
            }
            Command::Launch(id, permit, cmd) => {
                // Leadership was checked a while ago; the command is valid when it is sent.
                if permit.left(now).is_some() && how == How::Unheard {
                    state.orders.push((self.index(id), cmd.clone()));
                    state.controllers[c].as_mut()?.todo.push(Command::Launch(id, permit, cmd));
                    // Answered when it arrived, or given up.
                    return Some(());
                }
                Event::Launched(Err(failed()))
            }
            Command::Halt(id) => {
                let host = &mut state.hosts[self.index(id)];
                if how != How::Badly
                    && let Ok(orders) = host.orders.observe_epoch(epoch, None)
                {
                    host.orders = orders;
                    (host.qemu, host.claim) = (None, false);
                }
                Event::Halted(unit(well))
            }
            Command::Fence(case, command) => match case.place {
                attempt::LastHost::Unreachable(failed) if !matches!(command, attempt::Command::Watch(_)) => {
                    let Some(event) = self.fenced(state, &case, failed, &command, how) else { return Some(()) };
                    Event::Fence(event)
                }
                _ => return self.watch(state, c, &command, well),
            },
        };
        self.tell(state, c, event);
        Some(())
    }

    /// The target of a start, and the hosts that cannot be queried.
    fn found(&self, state: &State, c: usize) -> Option<Event> {
        // A host that is silent is known to be; that it is not may be old news.
        let speaks = |host: &usize| !state.hosts[*host].silent;
        let answering: Vec<HostId> = (0..2).filter(speaks).map(|host| self.id(host)).collect();
        let place = state.controllers[c].as_ref()?.core.place();
        let home = place.filter(|place| answering.contains(place));
        let places = state.controllers[c].as_ref()?.core.places();
        let silent: Vec<HostId> = places.into_iter().filter(|place| !answering.contains(place)).collect();
        let found = TargetReply {
            host_uuid: home.or(answering.first().copied()),
            full: 0,
            silent_host_uuids: silent.clone(),
            unheard_host_uuids: Vec::new(),
            // Where it was seen a moment ago is a courtesy: nothing may depend on it.
            seen_host_uuids: Vec::new(),
        };
        let word = |host: HostId| state.word.is_some_and(|word| host == self.id(word));
        let of = |host| UnreachableHost {
            host,
            attested_by: word(host).then(|| "the operator".to_owned()),
            machine: machine(host),
        };
        Some(Event::TargetFound(Ok(Found { target: found, places: silent.into_iter().map(of).collect() })))
    }

    /// The processes of a host, whose agent voids the commands in flight.
    fn searched(&self, state: &mut State, c: usize, id: HostId, well: bool) -> Option<Event> {
        let epoch = state.controllers[c].as_ref()?.epoch;
        let clock = state.clock();
        let host = &mut state.hosts[self.index(id)];
        let void = state.controllers[c].as_ref()?.core.incarnation();
        let void = ringfence_messages::vm::VoidOrders { vm_uuid: self.vm.id, incarnation: void };
        let heard = host.orders.observe_epoch(epoch, Some(void)).ok().filter(|_| well);
        let reply = heard.map(|orders| {
            host.orders = orders;
            let of = |incarnation| RunningVm { incarnation: Some(incarnation), ..RunningVm::qemu(self.vm.id, 1) };
            let claim = host.claim.then(|| RunningVm::qemu(self.vm.id, 2));
            let vms = host.qemu.map(of).into_iter().chain(claim).collect();
            ListVmsReply { vms, clock_ms: clock, sight: Sight::full(), ..ListVmsReply::default() }
        });
        Some(Event::Searched(id, reply.ok_or_else(failed)))
    }

    /// One step of a fence; `None` if nothing is answered.
    fn fenced(
        &self,
        state: &mut State,
        case: &attempt::FenceRequest,
        failed_host: HostId,
        command: &attempt::Command,
        how: How,
    ) -> Option<attempt::Event> {
        let (at, well) = (self.index(failed_host), how == How::Well);
        Some(match command {
            attempt::Command::Intend(_) => attempt::Event::Intended(if well { Ok(()) } else { Err(failed()) }),
            attempt::Command::AskFencer => {
                // SSH reaches a host whose agent is silent.
                let found = state.hosts[at].qemu.is_some();
                if how != How::Badly {
                    state.hosts[at].qemu = None;
                }
                let reply = SiblingFenceVmOnHostReply {
                    alive: false,
                    killed: found,
                    ssh_reachable: true,
                    qemu_found: found,
                    sight: Some(Sight::full()),
                    machine: Some(machine(failed_host)),
                    ..SiblingFenceVmOnHostReply::default()
                };
                attempt::Event::Reported(if well { Ok(reply) } else { Err(failed()) })
            }
            attempt::Command::Block(storage) => {
                state.hosts[at].refused |= how != How::Badly;
                let reply = StorageFenceReply { osd_epoch: 1, addresses: case.addresses.clone() };
                attempt::Event::Blocked(*storage, if well { Ok(reply) } else { Err(failed()) })
            }
            attempt::Command::Wait(_) => attempt::Event::Waited,
            attempt::Command::Watch(_)
            | attempt::Command::EndAttestation(_)
            | attempt::Command::Audit { .. }
            | attempt::Command::Done(_) => return None,
        })
    }

    fn watch(&self, state: &mut State, c: usize, command: &attempt::Command, well: bool) -> Option<()> {
        let attempt::Command::Watch(index) = command else { return Some(()) };
        let watches = |host: &usize| state.hosts[*host].qemu.is_some() && !state.hosts[*host].refused;
        let of = |host: usize| {
            let ip = self.directory.hosts[host].storage_ips[0];
            Watcher { address: format!("{ip}:0/1"), ip }
        };
        let watchers: Result<Vec<Watcher>> =
            if well { Ok((0..2).filter(watches).map(of).collect()) } else { Err(failed()) };
        self.tell(state, c, Event::Fence(attempt::Event::Watched(*index, watchers)));
        Some(())
    }

    fn tell(&self, state: &mut State, c: usize, event: Event) {
        let now = state.now();
        if let Some(controller) = &mut state.controllers[c] {
            let commands = controller.core.on(event, now);
            controller.todo.extend(commands);
        }
        self.settle(state, c);
    }

    /// Does at once what can only end in one way and changes nothing that anybody else sees: fewer actions, further
    /// looks.
    fn settle(&self, state: &mut State, c: usize) {
        let records = |command: &Command| {
            matches!(command, Command::Emit(_) | Command::Intend(_) | Command::Fence(_, attempt::Command::Intend(_)))
        };
        let plain = |command: &Command| {
            // Without a second leader the time of a record does not matter.
            (self.claims && records(command))
                || matches!(
                    command,
                    Command::FindTarget(..)
                        | Command::Export(..)
                        | Command::Reply(_)
                        | Command::Fence(_, attempt::Command::Audit { .. } | attempt::Command::Done(_))
                )
        };
        let next = |state: &State| state.controllers[c].as_ref().and_then(|of| of.todo.iter().position(plain));
        while let Some(index) = next(state) {
            self.end(state, c, index, How::Well);
        }
    }

    /// What goes wrong where nothing but the hosts themselves can tell.
    fn troubles(&self, state: &State, actions: &mut Vec<Action>) {
        for (n, host) in state.hosts.iter().enumerate() {
            if host.claim || (state.claims < MAX_TROUBLES && !host.off && host.qemu.is_none()) {
                actions.push(Action::Claim(n, !host.claim));
            }
            if host.off || state.losses < MAX_TROUBLES {
                actions.push(Action::Power(n, !host.off));
            }
            if host.off && state.word.is_none() {
                actions.push(Action::Attest(n));
            }
        }
    }

    /// An order arrives at a host, which takes it or refuses it.
    fn arrive(&self, state: &mut State, index: usize, again: bool) {
        let (host, cmd) = state.orders[index].clone();
        if !again {
            state.orders.remove(index);
        }
        let late = state.clock() >= cmd.not_after_ms;
        let at = &mut state.hosts[host];
        let runs_as = at.qemu.map(|_| 1).or(at.claim.then_some(2));
        let taken = at.orders.admit(&cmd, runs_as, late);
        let started = taken.is_ok();
        if let Ok(orders) = taken {
            at.orders = orders;
            // A QEMU whose storage refuses it does not come up.
            at.qemu = (!at.refused).then_some(cmd.incarnation);
        }
        // A waiting caller gets the reply; `How::Badly` covers callers that no longer wait.
        let waits = |controller: &Controller| {
            controller.todo.iter().position(|todo| matches!(todo, Command::Launch(_, _, order) if *order == cmd))
        };
        let waiting = (0..2).find_map(|c| state.controllers[c].as_ref().and_then(waits).map(|index| (c, index)));
        if let Some((c, index)) = waiting.filter(|_| started && !again)
            && let Some(controller) = &mut state.controllers[c]
        {
            controller.todo.remove(index);
            let reply = StartVmCmdReply { pid: 1, accel: "kvm".to_owned(), memory: "memfd".to_owned() };
            self.tell(state, c, Event::Launched(Ok(reply)));
        }
    }
}

impl Default for Protocol {
    fn default() -> Self {
        Protocol::new()
    }
}

fn memory(change: &StateChange) -> ReplayedState {
    ReplayedState {
        state: change.new,
        host: change.host,
        incarnation: change.incarnation,
        wanted: change.wanted,
        may_run_on: change.may_run_on.clone(),
    }
}

fn machine(host: HostId) -> Machine {
    Machine { machine_id: host.0.simple().to_string(), boot_id: String::new() }
}

impl Model for Protocol {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        // It runs on the first host, where it was started by the first controller.
        let (host, may_run_on) = (Some(self.id(0)), Vec::new());
        let journal = ReplayedState { state: VmState::Running, host, incarnation: 1, wanted: true, may_run_on };
        let mut hosts = [Host::default(), Host::default()];
        hosts[0].qemu = Some(1);
        let first = self.controller(1, Some(journal.clone()), *BEGAN);
        vec![State {
            controllers: [Some(first), None],
            leader: 0,
            epoch: 1,
            journal: Some(journal),
            hosts,
            orders: Vec::new(),
            late: false,
            asked: 0,
            changes: 0,
            silences: 0,
            claims: 0,
            looks: 0,
            losses: 0,
            word: None,
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        for (c, controller) in state.controllers.iter().enumerate() {
            let Some(controller) = controller else { continue };
            for (index, command) in controller.todo.iter().enumerate() {
                let sent =
                    |(_, order): &(usize, StartVmCmd)| matches!(command, Command::Launch(_, _, cmd) if cmd == order);
                for how in self.ends(state, c, command) {
                    // Sent once; then it times out or is answered.
                    if how != How::Unheard || !matches!(command, Command::Launch(..)) || !state.orders.iter().any(sent)
                    {
                        actions.push(Action::End(c, index, how));
                    }
                }
            }
            if state.asked < MAX_ORDERS && controller.todo.is_empty() {
                actions.push(Action::Ask(c));
            }
            if state.changes < MAX_CHANGES && !self.claims {
                actions.push(Action::Die(c));
            }
            if self.claims && controller.todo.is_empty() && state.looks < MAX_TROUBLES {
                actions.extend((0..2).map(|host| Action::Look(c, host)));
            }
        }
        if self.claims {
            self.troubles(state, actions);
        } else if state.changes < MAX_CHANGES {
            actions.push(Action::TakeOver(1 - state.leader));
        }
        for index in 0..state.orders.len() {
            actions.extend([Action::Arrive(index, false), Action::Arrive(index, true)]);
        }
        for host in 0..2 {
            let Host { silent, off, .. } = state.hosts[host];
            if !off && (silent || state.silences < MAX_SILENCES) {
                actions.push(Action::Silent(host, !silent));
            }
        }
        if !state.late {
            actions.push(Action::Later);
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        match action {
            Action::Ask(c) => {
                state.asked += 1;
                let order = StartRequest { ha: true, reason: "asked".to_owned(), ..StartRequest::default() };
                self.tell(&mut state, c, Event::Start(order));
            }
            Action::End(c, index, how) => self.end(&mut state, c, index, how)?,
            Action::Arrive(index, again) => {
                // An agent that stands still reads it later.
                if state.hosts[state.orders[index].0].silent {
                    return None;
                }
                self.arrive(&mut state, index, again);
            }
            Action::Silent(host, silent) => {
                state.hosts[host].silent = silent;
                state.silences += u8::from(silent);
            }
            Action::Die(c) => {
                state.controllers[c] = None;
                state.changes += 1;
            }
            Action::TakeOver(c) => {
                state.epoch += 1;
                state.changes += 1;
                state.leader = c;
                state.controllers[c] = Some(self.controller(state.epoch, state.journal.clone(), state.now()));
            }
            Action::Later => state.late = true,
            Action::Look(c, host) => {
                state.looks += 1;
                self.tell(&mut state, c, Event::LookFor(Some(self.id(host))));
            }
            Action::Claim(host, claim) => {
                state.hosts[host].claim = claim;
                state.claims += u8::from(claim);
            }
            Action::Power(host, off) => {
                state.losses += u8::from(off);
                let at = &mut state.hosts[host];
                (at.off, at.silent) = (off, off);
                (at.qemu, at.claim) = if off { (None, false) } else { (at.qemu, at.claim) };
                if !off && state.word == Some(host) && !sabotage::on(Sabotage::AttestationStays) {
                    state.word = None;
                }
            }
            Action::Attest(host) => state.word = Some(host),
        }
        (state != *last).then_some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("I1: never do two QEMUs write", |_, state: &State| state.writers() <= 1),
            // The model is about something: a VM does move.
            Property::sometimes("a VM is moved", |_, state: &State| state.hosts[1].qemu.is_some()),
        ]
    }
}

/// What a check found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checked {
    /// States that were looked at.
    pub states: usize,
    /// The longest way to one.
    pub depth: usize,
    /// The shortest way to a broken rule, an action a line; empty if there is none.
    pub violation: Vec<String>,
    /// Whether a VM was moved in some state.
    pub moves: bool,
}

/// Checks every state that can be reached in so many actions.
pub fn check(of: Protocol, depth: usize, threads: usize) -> Checked {
    let checker = of.checker().threads(threads).target_max_depth(depth).spawn_bfs().join();
    let path = checker.discovery("I1: never do two QEMUs write");
    let violation = path.map(|path| path.into_actions().iter().map(|action| format!("{action:?}")).collect());
    Checked {
        states: checker.unique_state_count(),
        depth: checker.max_depth(),
        violation: violation.unwrap_or_default(),
        moves: checker.discovery("a VM is moved").is_some(),
    }
}
