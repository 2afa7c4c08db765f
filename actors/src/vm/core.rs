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
//! Invariants: I1: a VM is launched only with a permit of the fence, and after its target, the host where it ran last and
//! every other where it seemed to run were asked and have no QEMU of it. If the host where it ran last cannot be asked, a plain start is refused and an HA start
//! fences it. I2: an outcome that is not known is looked up, never guessed.
//! I4: nothing is launched or stopped before the intent is durable. One operation at a time; a second is refused.
//! An operation ends only when every answer that it asked for has come, so that none is taken for a later one's.
//! Rejected: remembering "stopped" without asking. What the journal says is where to look, not what to believe.

use ringfence_messages::{
    Code, ErrorCode, HostId, Result, VmId,
    ha::TargetReply,
    host::HostStatus,
    vm::{DiskSource, ListVmsReply, RunningVm, StartVmCmd, StartVmCmdReply, VmState},
};

use std::{sync::Arc, time::Instant};

use uuid::Uuid;

use crate::{
    fence::{
        PERMIT_VALIDITY, Policy, StartPermit,
        attempt::{self, Attempt, Case},
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
    /// Where it may be started, and who attested that its last host is off, asked for by [`Command::FindTarget`].
    TargetFound(Result<(TargetReply, Option<String>)>),
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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// What was believed.
    pub state: VmState,
    /// Where.
    pub host: Option<HostId>,
    /// Which start.
    pub incarnation: u64,
    /// Whether it is to run.
    pub wanted: bool,
}

/// What is to be done for a VM.
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
    /// Stop QEMU on the host.
    Halt(HostId),
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
        human: Option<String>,
        left: Vec<HostId>,
        found: Vec<(HostId, Result<Seen>)>,
    },
    /// A start waits for the fence.
    Fencing(Box<Attempt>, String),
    /// A start waits for its intent.
    Intending(HostId, StartPermit),
    /// A start waits for these many volumes.
    Exporting {
        target: HostId,
        permit: StartPermit,
        disks: Vec<Option<Result<DiskSource>>>,
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

    /// What is believed of it.
    pub fn state(&self) -> VmState {
        self.state
    }

    /// Where it runs, may run, or ran last.
    pub fn place(&self) -> Option<HostId> {
        self.place
    }

    /// How often it was started.
    pub fn incarnation(&self) -> u64 {
        self.incarnation
    }

    /// Everything that events change: two cores of one VM, epoch and policy with the same are the same.
    pub fn changing(&self) -> impl std::fmt::Debug + '_ {
        (self.state, self.place, self.incarnation, self.wanted, self.clock, self.ordered, &self.busy)
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
                let error = ErrorCode::new(
                    Code::CHANGE_STATE,
                    format!("{} is being started, stopped or looked for: try again when that ended", self.vm.name),
                );
                vec![Command::Reply(Err(error))]
            }
            (Event::HostChanged(host, HostStatus::Connected), Busy::No) if self.place == Some(host) => {
                self.reconcile(host)
            }
            (Event::LookFor(host), Busy::No) => match host.or(self.place.filter(|_| self.state != VmState::Stopped)) {
                Some(host) => {
                    self.busy = Busy::Reconciling(host, None);
                    vec![Command::Search(host)]
                }
                None => Vec::new(),
            },
            (Event::HostGone(host), Busy::No) if self.place == Some(host) && self.state == VmState::Stopped => {
                vec![self.becomes(
                    VmState::Stopped,
                    None,
                    "the host where it ran last was removed, with nothing left on it",
                )]
            }
            (Event::TargetFound(found), Busy::FindingTarget(order)) => self.choose(order, found),
            (Event::Fence(event), Busy::Fencing(mut attempt, reason)) => {
                let commands = attempt.on(event, now);
                self.fence(attempt, commands, reason)
            }
            (Event::Searched(host, answer), Busy::Searching { order, target, human, mut left, mut found }) => {
                if let Some(position) = left.iter().position(|h| *h == host) {
                    left.swap_remove(position);
                    found.push((host, answer.map(|reply| Seen::of(self.vm.id, &reply.vms))));
                }
                if left.is_empty() {
                    return self.searched(order, target, human, found, now);
                }
                self.busy = Busy::Searching { order, target, human, left, found };
                Vec::new()
            }
            (Event::Recorded(result), Busy::Intending(target, permit)) => match result {
                Ok(()) => self.export(target, permit),
                Err(error) => {
                    self.state = VmState::Stopped;
                    vec![Command::Reply(Err(error))]
                }
            },
            (Event::Exported(index, result), Busy::Exporting { target, permit, disks }) => {
                self.exported(index, result, target, permit, disks, now)
            }
            (Event::Launched(Ok(reply)), Busy::Launching(target)) => {
                self.ordered = None;
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
                vec![self.becomes(VmState::Stopped, Some(host), "stopped and verified gone"), Command::Reply(Ok(()))]
            }
            (Event::Searched(host, found), Busy::Doubting(at, error)) if host == at => {
                let mut commands = self.settle(host, found, &format!("after: {error}"));
                commands.push(Command::Reply(Err(error)));
                commands
            }
            (Event::Searched(host, found), Busy::Reconciling(at, waiting)) if host == at => {
                let mut commands = self.settle(host, found, "its host was asked");
                commands.extend(waiting.into_iter().flat_map(|event| self.on(*event, now)));
                commands
            }
            // A host changed in the middle of something: that something ends in the truth by itself. Anything
            // else is an answer that nobody waits for any more.
            (_, busy) => {
                self.busy = busy;
                Vec::new()
            }
        }
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
        let memory = memory.unwrap_or(Memory { state: VmState::Stopped, host: None, incarnation: 0, wanted: false });
        (self.place, self.incarnation, self.wanted) = (memory.host, memory.incarnation, memory.wanted);
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
        self.busy = Busy::Reconciling(host, None);
        vec![Command::Search(host)]
    }

    /// A host said, or could not say, whether the VM runs there. Only its own host can say that it does not run.
    fn settle(&mut self, host: HostId, found: Result<ListVmsReply>, why: &str) -> Vec<Command> {
        let here = self.place == Some(host);
        let (truth, reason) = match found.map(|reply| Seen::of(self.vm.id, &reply.vms)) {
            // Whoever waits for a migration is not the VM yet, unless that is gone from where it ran last.
            Ok(Seen::Coming) if !here && self.state != VmState::Stopped => return Vec::new(),
            Ok(Seen::Running | Seen::Coming) => (VmState::Running, format!("found running ({why})")),
            Ok(Seen::Nothing) => (VmState::Stopped, format!("not there ({why})")),
            Err(error) => (VmState::Unknown, format!("its host cannot be asked: {error} ({why})")),
        };
        match truth {
            VmState::Running if !here && self.state == VmState::Running => Vec::new(),
            VmState::Running if !here => {
                self.wanted = true;
                vec![self.becomes(truth, Some(host), format!("{reason}: something else started it"))]
            }
            // That a host cannot be asked is no doubt about one that was verified gone.
            VmState::Unknown if self.state == VmState::Stopped => Vec::new(),
            _ if truth == self.state || !here => Vec::new(),
            _ => vec![self.becomes(truth, Some(host), reason)],
        }
    }

    pub(super) fn becomes(&mut self, new: VmState, host: Option<HostId>, reason: impl Into<String>) -> Command {
        Command::Tell(self.change(new, host, reason))
    }

    pub(super) fn change(&mut self, new: VmState, host: Option<HostId>, reason: impl Into<String>) -> Change {
        let old = std::mem::replace(&mut self.state, new);
        self.place = host;
        Change { old, new, host, incarnation: self.incarnation, wanted: self.wanted, reason: reason.into() }
    }
}

/// What a host has of a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Seen {
    /// No QEMU.
    Nothing,
    /// Only one that was started to take a migration: it may wait for it yet, or be the VM since it took it.
    Coming,
    /// One that runs.
    Running,
}

impl Seen {
    pub(super) fn of(vm: VmId, processes: &[RunningVm]) -> Seen {
        let mut of_it = processes.iter().filter(|process| process.vm_uuid == vm).peekable();
        if of_it.peek().is_none() {
            return Seen::Nothing;
        }
        if of_it.all(|process| process.incoming) { Seen::Coming } else { Seen::Running }
    }
}
