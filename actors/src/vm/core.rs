//! Decides how a VM is started, stopped and found again.
//!
//! ```text
//!        start: targets known -> places searched -> fence -> intent durable -> disks exported -> launched
//!  Stopped ------------------------------------------------------------------------------> Running
//!     ^                                                                                      |  |
//!     +------------------ stop: intent durable -> stopped, verified gone --------------------+  | its host
//!     |                                                                                         | Disconnected
//!     +---- searched: not there ---- Unknown <--------------------------------------------------+
//! ```
//! Invariants: I1: a VM is launched only with a permit of the fence, and after its target, every host where it may run and
//! every other where it seemed to run were asked and have nothing of it that could write. If one of them cannot be asked, a plain start is
//! refused and an HA start fences it. What is claimed adds a place, and never takes one away (`claims.rs`). I2: an outcome that is not known is looked up, never guessed.
//! I4: nothing is launched or stopped before the intent is durable. One operation at a time; a second is refused.
//! An operation ends only when every answer that it asked for has come, so that none is taken for a later one's.
//! Rejected: remembering "stopped" without asking. What the journal says is where to look, not what to believe.

use ringfence_messages::{
    Code, ErrorCode, HostId, Result,
    evidence::Machine,
    ha::TargetReply,
    host::HostStatus,
    vm::{DiskSource, IntruderPhase, ListVmsReply, StartVmCmd, StartVmCmdReply, VmState},
};

use std::{collections::BTreeSet, sync::Arc, time::Instant};

use uuid::Uuid;

use super::{claims::Seen, start::Fencing};
use crate::{
    fence::{
        PERMIT_VALIDITY, Policy, StartPermit,
        attempt::{self, Case},
    },
    inventory::{Directory, Vm},
};

/// What happens to a VM.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// Someone wants it started.
    Start(Order),
    /// Someone wants it stopped.
    Stop,
    /// This host is drained: it is stopped if it runs there, and is to run as before.
    Vacate(HostId),
    /// Where it may be started, and what is known of the places where it may run, asked for by [`Command::FindTarget`].
    TargetFound(Result<Found>),
    /// Something about the fence under way.
    Fence(attempt::Event),
    /// Somebody may have seen it on this host, or misses it where it is believed to run.
    LookFor(Option<HostId>),
    /// The QEMU processes of a host, asked for by [`Command::Search`].
    Searched(HostId, Result<ListVmsReply>),
    /// The intent is durable, or cannot be made so.
    Recorded(Result<()>),
    /// A volume can be opened on the host like this, asked for by [`Command::Export`].
    Exported(usize, Result<DiskSource>),
    /// What came of [`Command::Launch`].
    Launched(Result<StartVmCmdReply>),
    /// What came of [`Command::Halt`]; success means verified gone.
    Halted(Result<()>),
    /// What the journal says of it last; `None` if it never ran. Before this nothing is done.
    Remembered(Option<Memory>),
    /// A host's status changed.
    HostChanged(HostId, HostStatus),
    /// A host leaves the inventory; it was asked, or a human attests that it is off: nothing of the VM is left there.
    HostGone(HostId),
}

/// Where a VM may be started.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Found {
    /// What HA says.
    pub target: TargetReply,
    /// Of each place that cannot be asked.
    pub places: Vec<SilentPlace>,
}

/// What the journal says of a host that cannot be asked.
#[derive(Clone, Debug, PartialEq)]
pub struct SilentPlace {
    /// The host.
    pub host: HostId,
    /// Who attested that it is off, if that still holds.
    pub human: Option<String>,
    /// The machine that it was when it last answered.
    pub machine: Machine,
}

/// How a VM is to be started.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Order {
    /// There, or anywhere in its cluster.
    pub host: Option<HostId>,
    /// Where it ran last is to be fenced if it cannot be asked.
    pub ha: bool,
    /// Hosts to avoid where others will do.
    pub soft_avoid: Vec<HostId>,
    /// Names the fence that this may need.
    pub attempt: Uuid,
    /// Why, in plain words.
    pub reason: String,
}

/// What the journal says of a VM last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Memory {
    /// What was believed.
    pub state: VmState,
    /// Where.
    pub host: Option<HostId>,
    /// Which start.
    pub incarnation: u64,
    /// Whether it is to run.
    pub wanted: bool,
    /// Where else it may run.
    pub may_run_on: Vec<HostId>,
}

/// What is to be done for a VM. A launch is rare: that it is larger than the rest costs nothing.
#[allow(clippy::large_enum_variant)]
#[derive(Clone, Debug, PartialEq)]
pub enum Command {
    /// Ask where it may be started: there, or somewhere but for these.
    FindTarget(Option<HostId>, Vec<HostId>),
    /// Ask a host for its QEMU processes, and have it refuse every order to start this VM that was given so far.
    Search(HostId),
    /// Make the change durable before anything is done.
    Intend(Change),
    /// Make the volume of this index usable on the host.
    Export(HostId, usize),
    /// Do this for the fence that is about this.
    Fence(Arc<Case>, attempt::Command),
    /// Start QEMU on the host.
    Launch(HostId, StartPermit, StartVmCmd),
    /// Stop QEMU on the host, and end what else writes for it there.
    Halt(HostId),
    /// A QEMU is where it does not belong; [`IntruderPhase::EndIntended`] is made durable before anything is done.
    Intruder(HostId, IntruderPhase, String),
    /// Record and publish a change that happened.
    Tell(Change),
    /// Answer the one who asked.
    Reply(Result<()>),
}

/// A change of state.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    /// Before.
    pub old: VmState,
    /// Now.
    pub new: VmState,
    /// Where.
    pub host: Option<HostId>,
    /// Which start.
    pub incarnation: u64,
    /// Whether it is to run.
    pub wanted: bool,
    /// Why, in plain words.
    pub reason: String,
    /// Where else it may run.
    pub may_run_on: Vec<HostId>,
}

/// Where a VM is believed to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Whereabouts {
    pub(super) state: VmState,
    pub(super) place: Option<HostId>,
    pub(super) others: BTreeSet<HostId>,
}

/// What the VM is in the middle of.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Busy {
    No,
    /// The journal was not read yet.
    Remembering,
    /// A start waits to be told where.
    FindingTarget(Order),
    /// A start waits for these hosts to say whether the VM is there; those that answered found this.
    Searching {
        order: Order,
        target: HostId,
        /// Hosts where it may run.
        places: Vec<HostId>,
        silent: Vec<SilentPlace>,
        left: Vec<HostId>,
        found: Vec<(HostId, Result<Seen>)>,
    },
    /// A start found what may write for it without a QEMU on this host, and waits for the intent to end that.
    IntendingClear(Order, HostId),
    /// The same start waits for it to be ended.
    Clearing(Order, HostId),
    /// A start waits for the fence.
    Fencing(Box<Fencing>),
    /// A start waits for its intent; where it was before.
    Intending(HostId, StartPermit, Whereabouts),
    /// A start waits for these many volumes; where it was before.
    Exporting {
        target: HostId,
        permit: StartPermit,
        disks: Vec<Option<Result<DiskSource>>>,
        before: Whereabouts,
    },
    /// A start waits for QEMU.
    Launching(HostId),
    /// A stop waits for its intent; whether it was to run before.
    IntendingStop(HostId, bool),
    /// A stop waits for QEMU to be gone.
    Halting(HostId),
    /// A start or stop ended in doubt with this error; the host is asked what is true.
    Doubting(HostId, ErrorCode),
    /// Nobody asked; the host is back and is asked what is true. Who asks meanwhile waits: a look is short and bounded,
    /// and an operator has no part in it.
    Reconciling(HostId, Option<Box<Event>>),
    /// It runs, and was seen on this host too; both are asked.
    Confronting {
        other: HostId,
        at_other: Option<Result<Seen>>,
        at_place: Option<Result<Seen>>,
    },
    /// The QEMU on this host is to be ended; waits for the intent.
    IntendingEnd(HostId),
    /// Waits for it to be gone.
    Ending(HostId),
}

/// One VM's decisions; see the module.
#[derive(Clone, Debug)]
pub struct Core {
    pub(super) vm: Vm,
    pub(super) directory: Arc<Directory>,
    pub(super) epoch: u64,
    pub(super) policy: Policy,
    pub(super) state: VmState,
    /// Where it runs, may run, or ran last.
    pub(super) place: Option<HostId>,
    /// Other hosts on which an earlier incarnation may still run, until they are heard or fenced.
    pub(super) others: BTreeSet<HostId>,
    pub(super) incarnation: u64,
    pub(super) wanted: bool,
    /// The clock of the host that was searched last and when it said so: what an order to it is dated by.
    pub(super) clock: Option<(HostId, u64, Instant)>,
    /// An order to start it there was given, and may be carried out until then though nobody waits for it any more.
    pub(super) ordered: Option<(HostId, Instant)>,
    pub(super) busy: Busy,
}

impl Core {
    /// A VM that waits for [`Event::Remembered`]. `epoch` is this controller's.
    pub fn new(vm: Vm, directory: Arc<Directory>, epoch: u64, policy: Policy) -> Core {
        let (state, busy) = (VmState::Unknown, Busy::Remembering);
        Core {
            vm,
            directory,
            epoch,
            policy,
            state,
            place: None,
            others: BTreeSet::new(),
            incarnation: 0,
            wanted: false,
            clock: None,
            ordered: None,
            busy,
        }
    }

    /// Works by this directory from now on. What is under way ends on what it began with.
    pub fn look_after(&mut self, directory: &Arc<Directory>) {
        if Arc::ptr_eq(&self.directory, directory) || !matches!(self.busy, Busy::No) {
            return;
        }
        self.directory = directory.clone();
        if let Ok(vm) = directory.vm(self.vm.id) {
            self.vm = vm.clone();
        }
    }

    /// Whether it may leave the inventory, or what it needs may.
    ///
    /// # Errors
    /// It runs or may run, is being worked on, or an order to start it may still be carried out.
    pub fn may_retire(&self, now: Instant) -> Result<()> {
        let idle = matches!(self.busy, Busy::No) && self.ordered.is_none_or(|(_, until)| now >= until);
        if let Some(other) = self.others.first() {
            let details = format!("{} may still run on {}", self.vm.name, self.directory.host_name(*other));
            return Err(ErrorCode::new(Code::CHANGE_STATE, details));
        }
        match self.state {
            VmState::Stopped if idle => Ok(()),
            VmState::Stopped => {
                let details = format!("{} is being started, stopped or looked for: try again", self.vm.name);
                Err(ErrorCode::new(Code::CHANGE_STATE, details))
            }
            state => {
                let details = format!("{} is {state:?}: `ringfence vm stop {}` first", self.vm.name, self.vm.name);
                Err(ErrorCode::new(Code::CHANGE_STATE, details))
            }
        }
    }

    /// Whether it is to run.
    pub fn wanted(&self) -> bool {
        self.wanted
    }

    /// For a rehearsal: what is under way is left out. Whether there was something.
    pub(super) fn sets_aside(&mut self) -> bool {
        match self.busy {
            Busy::No | Busy::Remembering => false,
            _ => {
                self.busy = Busy::No;
                true
            }
        }
    }

    /// What is believed of it.
    pub fn state(&self) -> VmState {
        self.state
    }

    /// Where it runs, may run, or ran last.
    pub fn place(&self) -> Option<HostId> {
        self.place
    }

    /// Other hosts on which an earlier incarnation may still run.
    pub fn others(&self) -> &BTreeSet<HostId> {
        &self.others
    }

    /// Every host on which it may run, the last one first.
    pub fn places(&self) -> Vec<HostId> {
        let others = self.others.iter().copied().filter(|host| Some(*host) != self.place);
        self.place.into_iter().chain(others).collect()
    }

    /// Up to which incarnation nothing may run on a host any more once it was stopped there, for the host to remember.
    pub(super) fn stopped_incarnation(&self, host: HostId) -> u64 {
        match self.busy {
            // The other one runs on: there only what is older is wrong.
            Busy::Ending(other) if other == host && self.place == Some(host) => self.incarnation.saturating_sub(1),
            _ => self.incarnation,
        }
    }

    /// How often it was started.
    pub fn incarnation(&self) -> u64 {
        self.incarnation
    }

    /// Everything that events change: two cores of one VM, epoch and policy with the same are the same.
    pub fn changing(&self) -> impl std::fmt::Debug + '_ {
        (self.state, self.place, &self.others, self.incarnation, self.wanted, self.clock, self.ordered, &self.busy)
    }

    /// Handles one event.
    pub fn on(&mut self, event: Event, now: Instant) -> Vec<Command> {
        if let Event::HostChanged(host, HostStatus::Disconnected) = event {
            return self.lost_sight(host);
        }
        if let Event::Searched(host, Ok(reply)) = &event {
            // Of those that are searched for a start only the target is ordered anything.
            if !matches!(&self.busy, Busy::Searching { target, .. } if target != host) {
                self.clock = Some((*host, reply.clock_ms, now));
            }
            self.ordered = self.ordered.filter(|(at, _)| at != host);
        }
        match (event, std::mem::replace(&mut self.busy, Busy::No)) {
            (Event::Remembered(memory), Busy::Remembering) => self.remember(memory, now),
            (Event::Start(order), Busy::No) => {
                let command = Command::FindTarget(order.host, order.soft_avoid.clone());
                self.busy = Busy::FindingTarget(order);
                vec![command]
            }
            (Event::Stop, Busy::No) => self.stop(),
            (Event::Vacate(host), Busy::No) => self.vacate(host),
            (event @ (Event::Start(_) | Event::Stop | Event::Vacate(_)), Busy::Reconciling(host, None)) => {
                self.busy = Busy::Reconciling(host, Some(Box::new(event)));
                Vec::new()
            }
            (Event::Start(_) | Event::Stop | Event::Vacate(_), busy) => {
                self.busy = busy;
                vec![Command::Reply(Err(self.is_busy()))]
            }
            (Event::HostChanged(host, HostStatus::Connected), Busy::No) if self.others.contains(&host) => {
                self.look_at(host)
            }
            (Event::HostChanged(host, HostStatus::Connected), Busy::No) if self.place == Some(host) => {
                self.reconcile(host)
            }
            (Event::LookFor(host), Busy::No) => match host.or(self.place.filter(|_| self.state != VmState::Stopped)) {
                Some(host) => self.look_at(host),
                None => Vec::new(),
            },
            (Event::HostGone(host), Busy::No) => self.host_gone(host),
            (Event::TargetFound(found), Busy::FindingTarget(order)) => self.choose(order, found),
            (Event::Fence(event), Busy::Fencing(mut fencing)) => {
                let commands = fencing.attempt.on(event, now);
                self.fence(fencing, commands, now)
            }
            (Event::Searched(host, answer), Busy::Searching { order, target, places, silent, mut left, mut found }) => {
                if let Some(position) = left.iter().position(|h| *h == host) {
                    left.swap_remove(position);
                    found.push((host, answer.and_then(|reply| Seen::of(self.vm.id, host, &reply))));
                }
                if left.is_empty() {
                    return self.searched(order, target, places, silent, found, now);
                }
                self.busy = Busy::Searching { order, target, places, silent, left, found };
                Vec::new()
            }
            (Event::Recorded(Ok(())), Busy::IntendingClear(order, host)) => {
                self.busy = Busy::Clearing(order, host);
                vec![Command::Halt(host)]
            }
            (Event::Recorded(Err(error)), Busy::IntendingClear(_, host)) => {
                self.busy = Busy::Doubting(host, error);
                vec![Command::Search(host)]
            }
            (Event::Halted(Ok(())), Busy::Clearing(order, host)) => self.cleared(order, host, now),
            (Event::Halted(Err(error)), Busy::Clearing(_, host)) => {
                self.busy = Busy::Doubting(host, error);
                vec![Command::Search(host)]
            }
            (Event::Recorded(result), Busy::Intending(target, permit, before)) => match result {
                Ok(()) => self.export(target, permit, before),
                Err(error) => {
                    self.is_back_at(before);
                    vec![Command::Reply(Err(error))]
                }
            },
            (Event::Exported(index, result), Busy::Exporting { target, permit, disks, before }) => {
                self.exported(index, result, target, permit, disks, before, now)
            }
            (Event::Launched(Ok(reply)), Busy::Launching(target)) => {
                self.ordered = None;
                // Each was clear or fenced when the permit was given.
                self.others.clear();
                let how = format!("started with {} on {} memory, pid {}", reply.accel, reply.memory, reply.pid);
                vec![self.becomes(VmState::Running, Some(target), how), Command::Reply(Ok(()))]
            }
            (Event::Launched(Err(error)), Busy::Launching(host)) | (Event::Halted(Err(error)), Busy::Halting(host)) => {
                self.busy = Busy::Doubting(host, error);
                vec![Command::Search(host)]
            }
            (Event::Recorded(result), Busy::IntendingStop(host, wanted)) => match result {
                Ok(()) => {
                    self.busy = Busy::Halting(host);
                    vec![Command::Halt(host)]
                }
                Err(error) => {
                    (self.state, self.wanted) = (VmState::Unknown, wanted);
                    self.busy = Busy::Doubting(host, error);
                    vec![Command::Search(host)]
                }
            },
            (Event::Halted(Ok(())), Busy::Halting(host)) => {
                vec![self.is_gone(host, "stopped and verified gone"), Command::Reply(Ok(()))]
            }
            (Event::Searched(host, found), Busy::Doubting(at, error)) if host == at => {
                let mut commands = self.settle(host, found, &format!("after: {error}"));
                commands.push(Command::Reply(Err(error)));
                commands
            }
            (Event::Searched(host, found), Busy::Reconciling(at, waiting)) if host == at => {
                let mut commands = self.settle(host, found, "its host was asked");
                match (waiting, &self.busy) {
                    (Some(event), Busy::No) => commands.extend(self.on(*event, now)),
                    // It was found twice: whoever waits has to try again.
                    (Some(event), _) if matches!(*event, Event::Start(_) | Event::Stop | Event::Vacate(_)) => {
                        commands.push(Command::Reply(Err(self.is_busy())));
                    }
                    _ => {}
                }
                commands
            }
            (Event::Searched(host, found), Busy::Confronting { other, at_other, at_place }) => {
                self.confronted(host, found, other, at_other, at_place)
            }
            (Event::Recorded(Ok(())), Busy::IntendingEnd(host)) => {
                self.busy = Busy::Ending(host);
                vec![Command::Halt(host)]
            }
            (Event::Recorded(Err(_)), Busy::IntendingEnd(_)) => Vec::new(),
            (Event::Halted(result), Busy::Ending(host)) => self.ended(host, result),
            // A host changed in the middle of something: that something ends in the truth by itself. Anything
            // else is an answer that nobody waits for any more.
            (_, busy) => {
                self.busy = busy;
                Vec::new()
            }
        }
    }

    fn is_busy(&self) -> ErrorCode {
        let details = format!("{} is being started, stopped or looked for: try again when that ended", self.vm.name);
        ErrorCode::new(Code::CHANGE_STATE, details)
    }

    fn stop(&mut self) -> Vec<Command> {
        match (self.state, self.place) {
            (VmState::Stopped, _) | (_, None) => {
                let mut commands = Vec::new();
                if std::mem::replace(&mut self.wanted, false) {
                    commands.push(self.becomes(VmState::Stopped, self.place, "asked to stop, is not running"));
                }
                commands.push(Command::Reply(Ok(())));
                commands
            }
            (_, Some(host)) => {
                let wanted = std::mem::replace(&mut self.wanted, false);
                let change = self.change(VmState::Stopping, Some(host), "asked to stop");
                self.busy = Busy::IntendingStop(host, wanted);
                vec![Command::Intend(change)]
            }
        }
    }

    fn vacate(&mut self, host: HostId) -> Vec<Command> {
        if self.state != VmState::Running || self.place != Some(host) {
            let details = format!("{} does not run on {} any more", self.vm.name, self.directory.host_name(host));
            return vec![Command::Reply(Err(ErrorCode::new(Code::CHANGE_STATE, details)))];
        }
        let change = self.change(VmState::Stopping, Some(host), "its host is drained: it is started elsewhere");
        self.busy = Busy::IntendingStop(host, self.wanted);
        vec![Command::Intend(change)]
    }

    fn lost_sight(&mut self, host: HostId) -> Vec<Command> {
        if self.state != VmState::Running || self.place != Some(host) {
            return Vec::new();
        }
        vec![self.becomes(VmState::Unknown, Some(host), "its host is disconnected")]
    }

    /// Anything but Stopped is in doubt until its host was asked.
    fn remember(&mut self, memory: Option<Memory>, now: Instant) -> Vec<Command> {
        let never =
            Memory { state: VmState::Stopped, host: None, incarnation: 0, wanted: false, may_run_on: Vec::new() };
        let memory = memory.unwrap_or(never);
        (self.place, self.incarnation, self.wanted) = (memory.host, memory.incarnation, memory.wanted);
        self.others = memory.may_run_on.into_iter().collect();
        match (memory.state, memory.host) {
            (VmState::Stopped, _) | (_, None) => {
                self.state = VmState::Stopped;
                Vec::new()
            }
            (state, Some(host)) => {
                // The controller before may have ordered it a moment ago.
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
        Command::Tell(self.change(new, host, reason))
    }

    pub(super) fn change(&mut self, new: VmState, host: Option<HostId>, reason: impl Into<String>) -> Change {
        let old = std::mem::replace(&mut self.state, new);
        self.place = host;
        self.others.retain(|other| Some(*other) != host);
        let (incarnation, wanted) = (self.incarnation, self.wanted);
        let may_run_on = self.others.iter().copied().collect();
        Change { old, new, host, incarnation, wanted, reason: reason.into(), may_run_on }
    }
}
