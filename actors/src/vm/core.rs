//! Decides how a VM is started, stopped and searched.
//!
//! ```text
//!        start: target known -> hosts searched -> fence -> intent durable -> disks exported -> launched
//!  Stopped ------------------------------------------------------------------------------> Running
//!     ^                                                                                      |  |
//!     +------------------ stop: intent durable -> stopped, verified gone --------------------+  | its host
//!     |                                                                                         | Disconnected
//!     +---- searched: not there ---- Unknown <--------------------------------------------------+
//! ```
//! Invariants: I1: a VM is launched only with a permit of the fence, after its target, every host where it may run
//! and every other host that reported it listed nothing of it that could write. If such a host cannot be queried, a
//! plain start is rejected and an HA start fences the host. A claim adds a host where the VM may run, and never
//! removes one (`claims.rs`). I2: an unknown outcome is searched, never guessed. I4: no launch or stop before its
//! intent is durable. One operation at a time; a second is rejected. An operation ends only when every answer to its
//! queries has come, so that no answer counts for a later operation.
//! Alternatives considered: trust the state "stopped" without a query. The journal shows where to search.

use std::{collections::BTreeSet, sync::Arc, time::Instant};

use ringfence_messages::{
    Code, ErrorCode, HostId, Result,
    host::HostStatus,
    vm::{DiskSource, InstallPath, VmState},
};

pub use super::event::{Command, Event, Found, ReplayedState, StartRequest, StateChange, UnreachableHost};
use super::{claims::Presence, start::Fencing};
use crate::{
    fence::{PERMIT_VALIDITY, Policy, StartPermit},
    inventory::{InventoryIndex, Vm},
    sabotage::{self, Sabotage},
};

/// The observed state and hosts of a VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Location {
    pub(super) state: VmState,
    pub(super) place: Option<HostId>,
    pub(super) others: BTreeSet<HostId>,
    pub(super) halted: bool,
}

/// The operation in progress.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Operation {
    Idle,
    /// The journal is being read.
    Replaying,
    /// A start waits for its target host.
    FindingTarget(StartRequest),
    /// A start waits for the hosts in `left` to list their processes; `found` has the answers.
    Searching {
        request: StartRequest,
        target: HostId,
        /// Hosts where the VM may run.
        places: Vec<HostId>,
        silent: Vec<UnreachableHost>,
        left: Vec<HostId>,
        found: Vec<(HostId, Result<Presence>)>,
    },
    /// A start found exports of the VM without a QEMU on this host, and waits for the intent to stop them.
    IntendingClear(StartRequest, HostId),
    /// The same start waits until they have stopped.
    Clearing(StartRequest, HostId),
    /// A start waits for the fence.
    Fencing(Box<Fencing>),
    /// A start waits for its intent; with the location before.
    Intending(HostId, StartPermit, Location),
    /// A start waits for its volumes; with the location before.
    Exporting {
        target: HostId,
        permit: StartPermit,
        disks: Vec<Option<Result<DiskSource>>>,
        before: Location,
    },
    /// A start waits for QEMU.
    Launching(HostId),
    /// A stop waits for its intent; with the desired state before.
    IntendingStop(HostId, bool),
    /// A stop waits until QEMU is gone.
    Halting(HostId),
    /// A start or stop ended with this error and an unknown outcome; its host is queried.
    ResolvingUnknown(HostId, ErrorCode),
    /// The returned host is queried without a request. A request in between waits: the query is short and bounded,
    /// and an operator does not know of it.
    Reconciling(HostId, Option<Box<Event>>),
    /// The VM runs, and another host reports it too; both are queried.
    Confronting {
        other: HostId,
        at_other: Option<Result<Presence>>,
        at_place: Option<Result<Presence>>,
    },
    /// A wrong QEMU on this host waits for the intent to stop it.
    IntendingEnd(HostId),
    /// Waits until that QEMU is gone.
    Ending(HostId),
}

/// One VM's decisions; see the module.
#[derive(Clone, Debug)]
pub struct Core {
    pub(super) vm: Vm,
    pub(super) inventory: Arc<InventoryIndex>,
    pub(super) epoch: u64,
    pub(super) policy: Policy,
    pub(super) state: VmState,
    /// Host where the VM runs, may run, or ran last.
    pub(super) place: Option<HostId>,
    /// Other hosts where an earlier incarnation may run, until they are heard or fenced.
    pub(super) others: BTreeSet<HostId>,
    /// Stopped by a command of this controller, verified, or never started: no other program moved it since.
    pub(super) halted: bool,
    pub(super) incarnation: u64,
    pub(super) wanted: bool,
    /// Host that was searched last, its clock, and when: start commands to it are dated by its clock.
    pub(super) clock: Option<(HostId, u64, Instant)>,
    /// Host of a start command that may still be carried out until this time although no request waits for it.
    pub(super) ordered: Option<(HostId, Instant)>,
    pub(super) operation: Operation,
}

impl Core {
    /// A VM that waits for [`Event::Replayed`]. `epoch` is the epoch of this controller.
    pub fn new(vm: Vm, inventory: Arc<InventoryIndex>, epoch: u64, policy: Policy) -> Core {
        let (state, operation) = (VmState::Unknown, Operation::Replaying);
        Core {
            vm,
            inventory,
            epoch,
            policy,
            state,
            place: None,
            others: BTreeSet::new(),
            halted: false,
            incarnation: 0,
            wanted: false,
            clock: None,
            ordered: None,
            operation,
        }
    }

    /// Takes a new inventory, unless an operation is in progress: it ends on the inventory that it began with.
    pub fn set_inventory(&mut self, inventory: &Arc<InventoryIndex>) {
        if Arc::ptr_eq(&self.inventory, inventory) || !matches!(self.operation, Operation::Idle) {
            return;
        }
        self.inventory = inventory.clone();
        if let Ok(vm) = inventory.vm(self.vm.id) {
            self.vm = vm.clone();
        }
    }

    /// Whether the VM, or a host that it ran on, may be removed from the inventory.
    ///
    /// # Errors
    /// The VM runs or may run, has an operation in progress, or a start command may still be carried out.
    pub fn may_retire(&self, now: Instant) -> Result<()> {
        let idle = matches!(self.operation, Operation::Idle) && self.ordered.is_none_or(|(_, until)| now >= until);
        if let Some(other) = self.others.first() {
            let details = format!("{} may still run on {}", self.vm.name, self.inventory.host_name(*other));
            return Err(ErrorCode::new(Code::CHANGE_STATE, details));
        }
        match self.state {
            VmState::Stopped if idle => Ok(()),
            VmState::Stopped => {
                let details = format!("{} has an operation in progress; retry when it completes", self.vm.name);
                Err(ErrorCode::new(Code::CHANGE_STATE, details))
            }
            state => {
                let details =
                    format!("VM {} is {state:?}; run `ringfence vm stop {}` first", self.vm.name, self.vm.name);
                Err(ErrorCode::new(Code::CHANGE_STATE, details))
            }
        }
    }

    /// Whether the desired state is running.
    pub fn wanted(&self) -> bool {
        self.wanted
    }

    /// For a rehearsal: drops the operation in progress. Returns whether there was one.
    pub(super) fn sets_aside(&mut self) -> bool {
        match self.operation {
            Operation::Idle | Operation::Replaying => false,
            _ => {
                self.operation = Operation::Idle;
                true
            }
        }
    }

    /// The observed state.
    pub fn state(&self) -> VmState {
        self.state
    }

    /// The host where it runs, may run, or ran last.
    pub fn place(&self) -> Option<HostId> {
        self.place
    }

    /// Other hosts where an earlier incarnation may run.
    pub fn others(&self) -> &BTreeSet<HostId> {
        &self.others
    }

    /// Every host where it may run, the last one first.
    pub fn places(&self) -> Vec<HostId> {
        let others = self.others.iter().copied().filter(|host| Some(*host) != self.place);
        self.place.into_iter().chain(others).collect()
    }

    /// Whether another program may have moved it to a host that does not show it (K12): it was not stopped by this
    /// controller, and no watchers of its volumes would tell.
    pub fn may_have_moved(&self) -> bool {
        self.is_unwatched() && !self.halted && !sabotage::on(Sabotage::MovesUnseen)
    }

    /// Whether it has a volume without watchers. Those of a Ceph volume are visible from everywhere; for other volumes
    /// only each host can list its writers.
    pub(super) fn is_unwatched(&self) -> bool {
        self.vm.volumes.iter().any(|volume| !matches!(volume.install_path, InstallPath::Ceph { .. }))
    }

    /// The incarnation up to which none may run on a host after a stop there, for the host to remember.
    pub(super) fn stopped_incarnation(&self, host: HostId) -> u64 {
        match self.operation {
            // The other QEMU runs on: only older incarnations are wrong there.
            Operation::Ending(other) if other == host && self.place == Some(host) => self.incarnation.saturating_sub(1),
            _ => self.incarnation,
        }
    }

    /// Number of starts.
    pub fn incarnation(&self) -> u64 {
        self.incarnation
    }

    /// All mutable state: two cores of one VM, epoch and policy with equal values are equal.
    pub fn changing(&self) -> impl std::fmt::Debug + '_ {
        let location = (self.state, self.place, &self.others, self.halted);
        (location, self.incarnation, self.wanted, self.clock, self.ordered, &self.operation)
    }

    /// Handles one event.
    pub fn on(&mut self, event: Event, now: Instant) -> Vec<Command> {
        if let Event::HostChanged(host, HostStatus::Disconnected) = event {
            return self.lost_sight(host);
        }
        if let Event::Searched(host, Ok(reply)) = &event {
            // In a search for a start only the target gets a command.
            if !matches!(&self.operation, Operation::Searching { target, .. } if target != host) {
                self.clock = Some((*host, reply.clock_ms, now));
            }
            self.ordered = self.ordered.filter(|(at, _)| at != host);
        }
        match (event, std::mem::replace(&mut self.operation, Operation::Idle)) {
            (Event::Replayed(replayed), Operation::Replaying) => self.replay(replayed, now),
            (Event::Start(request), Operation::Idle) => {
                let command = Command::FindTarget(request.host, request.soft_avoid.clone());
                self.operation = Operation::FindingTarget(request);
                vec![command]
            }
            (Event::Stop, Operation::Idle) => self.stop(),
            (Event::Evict(host), Operation::Idle) => self.evict(host),
            (event @ (Event::Start(_) | Event::Stop | Event::Evict(_)), Operation::Reconciling(host, None)) => {
                self.operation = Operation::Reconciling(host, Some(Box::new(event)));
                Vec::new()
            }
            (Event::Start(_) | Event::Stop | Event::Evict(_), operation) => {
                self.operation = operation;
                vec![Command::Reply(Err(self.busy_error()))]
            }
            (Event::HostChanged(host, HostStatus::Connected), Operation::Idle) if self.others.contains(&host) => {
                self.look_at(host)
            }
            (Event::HostChanged(host, HostStatus::Connected), Operation::Idle) if self.place == Some(host) => {
                self.reconcile(host)
            }
            (Event::LookFor(host), Operation::Idle) => {
                match host.or(self.place.filter(|_| self.state != VmState::Stopped)) {
                    Some(host) => self.look_at(host),
                    None => Vec::new(),
                }
            }
            (Event::HostGone(host), Operation::Idle) => self.host_gone(host),
            (Event::TargetFound(found), Operation::FindingTarget(request)) => self.choose(request, found),
            (Event::Fence(event), Operation::Fencing(mut fencing)) => {
                let commands = fencing.attempt.on(event, now);
                self.fence(fencing, commands, now)
            }
            (
                Event::Searched(host, answer),
                Operation::Searching { request, target, places, silent, mut left, mut found },
            ) => {
                if let Some(position) = left.iter().position(|h| *h == host) {
                    left.swap_remove(position);
                    found.push((host, answer.and_then(|reply| Presence::of(self.vm.id, host, &reply))));
                }
                if left.is_empty() {
                    return self.searched(request, target, places, silent, found, now);
                }
                self.operation = Operation::Searching { request, target, places, silent, left, found };
                Vec::new()
            }
            (Event::Recorded(Ok(())), Operation::IntendingClear(request, host)) => {
                self.operation = Operation::Clearing(request, host);
                vec![Command::Halt(host)]
            }
            (Event::Recorded(Err(error)), Operation::IntendingClear(_, host)) => {
                self.operation = Operation::ResolvingUnknown(host, error);
                vec![Command::Search(host)]
            }
            (Event::Halted(Ok(())), Operation::Clearing(request, host)) => self.cleared(request, host, now),
            (Event::Halted(Err(error)), Operation::Clearing(_, host)) => {
                self.operation = Operation::ResolvingUnknown(host, error);
                vec![Command::Search(host)]
            }
            (Event::Recorded(result), Operation::Intending(target, permit, before)) => match result {
                Ok(()) => self.export(target, permit, before),
                Err(error) => {
                    self.is_back_at(before);
                    vec![Command::Reply(Err(error))]
                }
            },
            (Event::Exported(index, result), Operation::Exporting { target, permit, disks, before }) => {
                self.exported(index, result, target, permit, disks, before, now)
            }
            (Event::Launched(Ok(reply)), Operation::Launching(target)) => {
                self.ordered = None;
                // Each was clear or fenced when the permit was given.
                self.others.clear();
                let how = format!("started with {} on {} memory, pid {}", reply.accel, reply.memory, reply.pid);
                vec![self.becomes(VmState::Running, Some(target), how), Command::Reply(Ok(()))]
            }
            (Event::Launched(Err(error)), Operation::Launching(host))
            | (Event::Halted(Err(error)), Operation::Halting(host)) => {
                self.operation = Operation::ResolvingUnknown(host, error);
                vec![Command::Search(host)]
            }
            (Event::Recorded(result), Operation::IntendingStop(host, wanted)) => match result {
                Ok(()) => {
                    self.operation = Operation::Halting(host);
                    vec![Command::Halt(host)]
                }
                Err(error) => {
                    self.state = VmState::Unknown;
                    self.wanted = wanted;
                    self.operation = Operation::ResolvingUnknown(host, error);
                    vec![Command::Search(host)]
                }
            },
            (Event::Halted(Ok(())), Operation::Halting(host)) => {
                let gone = self.is_gone(host, "stopped and verified gone");
                self.halted = self.state == VmState::Stopped;
                vec![gone, Command::Reply(Ok(()))]
            }
            (Event::Searched(host, found), Operation::ResolvingUnknown(at, error)) if host == at => {
                let mut commands = self.settle(host, found, &format!("after: {error}"));
                commands.push(Command::Reply(Err(error)));
                commands
            }
            (Event::Searched(host, found), Operation::Reconciling(at, waiting)) if host == at => {
                let mut commands = self.settle(host, found, "its host was queried");
                match (waiting, &self.operation) {
                    (Some(event), Operation::Idle) => commands.extend(self.on(*event, now)),
                    // Found on two hosts: the waiting requester must retry.
                    (Some(_), _) => commands.push(Command::Reply(Err(self.busy_error()))),
                    (None, _) => {}
                }
                commands
            }
            (Event::Searched(host, found), Operation::Confronting { other, at_other, at_place }) => {
                self.confronted(host, found, other, at_other, at_place)
            }
            (Event::Recorded(Ok(())), Operation::IntendingEnd(host)) => {
                self.operation = Operation::Ending(host);
                vec![Command::Halt(host)]
            }
            (Event::Recorded(Err(_)), Operation::IntendingEnd(_)) => Vec::new(),
            (Event::Halted(result), Operation::Ending(host)) => self.ended(host, result),
            // A host changed during an operation, which ends in the observed state anyway; or an answer that no
            // operation waits for.
            (_, operation) => {
                self.operation = operation;
                Vec::new()
            }
        }
    }

    fn busy_error(&self) -> ErrorCode {
        let details = format!("{} has an operation in progress; retry when it completes", self.vm.name);
        ErrorCode::new(Code::CHANGE_STATE, details)
    }

    fn stop(&mut self) -> Vec<Command> {
        match (self.state, self.place) {
            (VmState::Stopped, _) | (_, None) => {
                let mut commands = Vec::new();
                if std::mem::replace(&mut self.wanted, false) {
                    commands.push(self.becomes(VmState::Stopped, self.place, "stop requested, the VM is not running"));
                }
                commands.push(Command::Reply(Ok(())));
                commands
            }
            (_, Some(host)) => {
                let wanted = std::mem::replace(&mut self.wanted, false);
                let change = self.change(VmState::Stopping, Some(host), "stop requested");
                self.operation = Operation::IntendingStop(host, wanted);
                vec![Command::Intend(change)]
            }
        }
    }

    fn evict(&mut self, host: HostId) -> Vec<Command> {
        if self.state != VmState::Running || self.place != Some(host) {
            let details = format!("{} does not run on {} any more", self.vm.name, self.inventory.host_name(host));
            return vec![Command::Reply(Err(ErrorCode::new(Code::CHANGE_STATE, details)))];
        }
        let change = self.change(VmState::Stopping, Some(host), "its host is being drained: it starts on another host");
        self.operation = Operation::IntendingStop(host, self.wanted);
        vec![Command::Intend(change)]
    }

    fn lost_sight(&mut self, host: HostId) -> Vec<Command> {
        if self.state != VmState::Running || self.place != Some(host) {
            return Vec::new();
        }
        vec![self.becomes(VmState::Unknown, Some(host), "its host is Disconnected")]
    }

    /// Any state but Stopped is unknown until the host was queried.
    fn replay(&mut self, replayed: Option<ReplayedState>, now: Instant) -> Vec<Command> {
        let never = ReplayedState {
            state: VmState::Stopped,
            host: None,
            incarnation: 0,
            wanted: false,
            may_run_on: Vec::new(),
        };
        let replayed = replayed.unwrap_or(never);
        self.place = replayed.host;
        self.incarnation = replayed.incarnation;
        self.wanted = replayed.wanted;
        self.others = replayed.may_run_on.into_iter().collect();
        match (replayed.state, replayed.host) {
            (VmState::Stopped, _) | (_, None) => {
                self.state = VmState::Stopped;
                self.halted = self.incarnation == 0;
                Vec::new()
            }
            (state, Some(host)) => {
                // The earlier controller may have sent a start command a moment ago.
                let in_doubt = matches!(state, VmState::Starting | VmState::Unknown);
                self.ordered = in_doubt.then_some((host, now + PERMIT_VALIDITY));
                self.reconcile(host)
            }
        }
    }

    fn reconcile(&mut self, host: HostId) -> Vec<Command> {
        if self.state == VmState::Stopped {
            return Vec::new();
        }
        self.look_at(host)
    }

    pub(super) fn becomes(&mut self, new: VmState, host: Option<HostId>, reason: impl Into<String>) -> Command {
        Command::Emit(self.change(new, host, reason))
    }

    pub(super) fn change(&mut self, new: VmState, host: Option<HostId>, reason: impl Into<String>) -> StateChange {
        let old = std::mem::replace(&mut self.state, new);
        self.halted &= new == VmState::Stopped;
        self.place = host;
        self.others.retain(|other| Some(*other) != host);
        let (incarnation, wanted) = (self.incarnation, self.wanted);
        let may_run_on = self.others.iter().copied().collect();
        StateChange { old, new, host, incarnation, wanted, reason: reason.into(), may_run_on }
    }
}
