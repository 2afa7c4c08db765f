//! Decides how a VM is started, stopped and found again.
//!
//! ```text
//!                 start: hosts known -> places searched -> intent durable -> disks exported -> launched
//!  Stopped ------------------------------------------------------------------------------> Running
//!     ^                                                                                      |  |
//!     +------------------ stop: intent durable -> stopped, verified gone --------------------+  | its host
//!     |                                                                                         | Disconnected
//!     +---- searched: not there ---- Unknown <--------------------------------------------------+
//! ```
//! Invariants: I1: a VM is launched only after every serving host of its cluster was asked and has no QEMU of it; if
//! its target or the host where it ran last cannot be asked, the start is refused. I2: an outcome that is not known is looked up, never guessed.
//! I4: nothing is launched or stopped before the intent is durable. One operation at a time; a second is refused.
//! An operation ends only when every answer that it asked for has come, so that none is taken for a later one's.
//! Rejected: remembering "stopped" without asking. What the journal says is where to look, not what to believe.

use ringfence_messages::{
    Code, ErrorCode, HostId, Result, VmId,
    host::HostStatus,
    vm::{DiskSource, DiskSpec, RunningVm, StartVmCmd, StartVmCmdReply, VmState},
};

use std::sync::Arc;

use crate::inventory::{Directory, Vm};

/// What happens to a VM.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// Someone wants it started, there or anywhere in its cluster.
    Start(Option<HostId>),
    /// Someone wants it stopped.
    Stop,
    /// The hosts of its cluster that can take work, asked for by [`Command::FindHosts`].
    HostsFound(Result<Vec<HostId>>),
    /// The QEMU processes of a host, asked for by [`Command::Search`].
    Searched(HostId, Result<Vec<RunningVm>>),
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
}

/// What is to be done for a VM.
#[derive(Clone, Debug, PartialEq)]
pub enum Command {
    /// Ask which hosts of its cluster can take work.
    FindHosts,
    /// Ask a host for its QEMU processes.
    Search(HostId),
    /// Make the change durable before anything is done.
    Intend(Change),
    /// Make the volume of this index usable on the host.
    Export(HostId, usize),
    /// Start QEMU on the host.
    Launch(HostId, StartVmCmd),
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
    /// Why, in plain words.
    pub reason: String,
}

/// What the VM is in the middle of.
#[derive(Clone, Debug, PartialEq)]
enum Busy {
    No,
    /// The journal was not read yet.
    Remembering,
    /// A start waits for the list of hosts.
    FindingHosts(Option<HostId>),
    /// A start waits for these hosts to say whether the VM is there; those that answered found this.
    Searching {
        target: HostId,
        left: Vec<HostId>,
        found: Vec<(HostId, Result<bool>)>,
    },
    /// A start waits for its intent.
    Intending(HostId),
    /// A start waits for these many volumes.
    Exporting {
        target: HostId,
        disks: Vec<Option<Result<DiskSource>>>,
    },
    /// A start waits for QEMU.
    Launching(HostId),
    /// A stop waits for its intent.
    IntendingStop(HostId),
    /// A stop waits for QEMU to be gone.
    Halting(HostId),
    /// A start or stop ended in doubt with this error; the host is asked what is true.
    Doubting(HostId, ErrorCode),
    /// Nobody asked; the host is back and is asked what is true.
    Reconciling(HostId),
}

/// One VM's decisions; see the module.
#[derive(Clone, Debug)]
pub struct Core {
    vm: Vm,
    directory: Arc<Directory>,
    epoch: u64,
    state: VmState,
    /// Where it runs, may run, or ran last.
    place: Option<HostId>,
    incarnation: u64,
    busy: Busy,
}

impl Core {
    /// A VM that waits for [`Event::Remembered`]. `epoch` is this controller's.
    pub fn new(vm: Vm, directory: Arc<Directory>, epoch: u64) -> Core {
        Core { vm, directory, epoch, state: VmState::Unknown, place: None, incarnation: 0, busy: Busy::Remembering }
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

    /// Handles one event.
    pub fn on(&mut self, event: Event) -> Vec<Command> {
        if let Event::HostChanged(host, HostStatus::Disconnected) = event {
            return self.lost_sight(host);
        }
        match (event, std::mem::replace(&mut self.busy, Busy::No)) {
            (Event::Remembered(memory), Busy::Remembering) => self.remember(memory),
            (Event::Start(target), Busy::No) => {
                self.busy = Busy::FindingHosts(target);
                vec![Command::FindHosts]
            }
            (Event::Stop, Busy::No) => self.stop(),
            (Event::Start(_) | Event::Stop, busy) => {
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
            (Event::HostsFound(found), Busy::FindingHosts(asked)) => self.choose(asked, found),
            (Event::Searched(host, answer), Busy::Searching { target, mut left, mut found }) => {
                if let Some(position) = left.iter().position(|h| *h == host) {
                    left.swap_remove(position);
                    found.push((host, answer.map(|vms| runs(self.vm.id, &vms))));
                }
                if left.is_empty() {
                    return self.searched(target, found);
                }
                self.busy = Busy::Searching { target, left, found };
                Vec::new()
            }
            (Event::Recorded(result), Busy::Intending(target)) => match result {
                Ok(()) => self.export(target),
                Err(error) => {
                    self.state = VmState::Stopped;
                    vec![Command::Reply(Err(error))]
                }
            },
            (Event::Exported(index, result), Busy::Exporting { target, disks }) => {
                self.exported(index, result, target, disks)
            }
            (Event::Launched(Ok(reply)), Busy::Launching(target)) => {
                let how = format!("started with {} on {} memory, pid {}", reply.accel, reply.memory, reply.pid);
                vec![self.becomes(VmState::Running, Some(target), how), Command::Reply(Ok(()))]
            }
            (Event::Launched(Err(error)), Busy::Launching(host)) | (Event::Halted(Err(error)), Busy::Halting(host)) => {
                self.busy = Busy::Doubting(host, error);
                vec![Command::Search(host)]
            }
            (Event::Recorded(result), Busy::IntendingStop(host)) => match result {
                Ok(()) => {
                    self.busy = Busy::Halting(host);
                    vec![Command::Halt(host)]
                }
                Err(error) => {
                    self.state = VmState::Unknown;
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
            (Event::Searched(host, found), Busy::Reconciling(at)) if host == at => {
                self.settle(host, found, "its host was asked")
            }
            // A host changed in the middle of something: that something ends in the truth by itself. Anything
            // else is an answer that nobody waits for any more.
            (_, busy) => {
                self.busy = busy;
                Vec::new()
            }
        }
    }

    fn choose(&mut self, asked: Option<HostId>, found: Result<Vec<HostId>>) -> Vec<Command> {
        let serving = match found {
            Ok(serving) => serving,
            Err(error) => return vec![Command::Reply(Err(error))],
        };
        let chosen = match asked {
            Some(host) => serving.iter().find(|h| **h == host),
            None => serving.iter().find(|h| Some(**h) == self.place).or(serving.first()),
        };
        let Some(target) = chosen.copied() else {
            let details = match asked {
                Some(_) => format!(
                    "the host asked for cannot take {}: it is not connected, in maintenance, or of another cluster",
                    self.vm.name
                ),
                None => format!("no host of the cluster of {} is connected and in service", self.vm.name),
            };
            return vec![Command::Reply(Err(ErrorCode::new(Code::HOST_DISCONNECTED, details)))];
        };
        // Something else may have started it on any host of the cluster.
        let mut left = vec![target];
        left.extend(self.place.filter(|place| *place != target));
        left.extend(serving.iter().filter(|host| **host != target && Some(**host) != self.place));
        let commands = left.iter().map(|host| Command::Search(*host)).collect();
        self.busy = Busy::Searching { target, left, found: Vec::new() };
        commands
    }

    /// Every host on which it may run has answered, or could not be asked.
    fn searched(&mut self, target: HostId, found: Vec<(HostId, Result<bool>)>) -> Vec<Command> {
        // Where it is known to run counts before where else it is seen: agents of one machine see each other's.
        let elsewhere = |host: &HostId| Some(*host) != self.place;
        let mut there: Vec<HostId> = found.iter().filter(|(_, is)| *is == Ok(true)).map(|(host, _)| *host).collect();
        there.sort_by_key(elsewhere);
        if let Some(host) = there.first().copied() {
            let details = format!("{} already runs on {}", self.vm.name, name(&self.directory, host));
            let mut commands = Vec::new();
            if self.state != VmState::Running || self.place != Some(host) {
                commands.push(self.becomes(VmState::Running, Some(host), "found running when it was to be started"));
            }
            commands.push(Command::Reply(Err(ErrorCode::new(Code::CHANGE_STATE, details))));
            return commands;
        }
        // Where nothing says that it ever ran, silence refuses nothing.
        let counts = |host: HostId| host == target || Some(host) == self.place;
        if let Some((host, Err(error))) = found.into_iter().find(|(host, is)| is.is_err() && counts(*host)) {
            let details = format!(
                "{} may still run on {}, which cannot be asked: not started",
                self.vm.name,
                name(&self.directory, host)
            );
            return vec![Command::Reply(Err(ErrorCode::new(Code::HOST_START_VM, details).caused_by(error)))];
        }
        self.incarnation += 1;
        let change = self.change(VmState::Starting, Some(target), "asked to start");
        self.busy = Busy::Intending(target);
        vec![Command::Intend(change)]
    }

    fn export(&mut self, target: HostId) -> Vec<Command> {
        let count = self.vm.volumes.len();
        self.busy = Busy::Exporting { target, disks: vec![None; count] };
        (0..count).map(|index| Command::Export(target, index)).collect()
    }

    fn exported(
        &mut self,
        index: usize,
        result: Result<DiskSource>,
        target: HostId,
        mut disks: Vec<Option<Result<DiskSource>>>,
    ) -> Vec<Command> {
        disks[index] = Some(result);
        if disks.iter().any(Option::is_none) {
            self.busy = Busy::Exporting { target, disks };
            return Vec::new();
        }
        let mut specs = Vec::with_capacity(disks.len());
        for (result, volume) in disks.into_iter().flatten().zip(&self.vm.volumes) {
            match result {
                Ok(source) => specs.push(DiskSpec { source, root: volume.root }),
                // Nothing was launched yet: this is no doubt, but a plain failure.
                Err(error) => {
                    let at = name(&self.directory, target);
                    let why = format!("volume {} cannot be used on {at}", volume.install_path);
                    let error = ErrorCode::new(Code::HOST_START_VM, why).caused_by(error);
                    let failed = self.becomes(VmState::Stopped, Some(target), error.to_string());
                    return vec![failed, Command::Reply(Err(error))];
                }
            }
        }
        let cmd = StartVmCmd {
            vm_uuid: self.vm.id,
            name: self.vm.name.clone(),
            incarnation: self.incarnation,
            epoch: self.epoch,
            memory_mib: self.vm.memory_mib,
            disks: specs,
            qemu_args: self.vm.qemu_args.clone(),
        };
        self.busy = Busy::Launching(target);
        vec![Command::Launch(target, cmd)]
    }

    fn stop(&mut self) -> Vec<Command> {
        match (self.state, self.place) {
            (VmState::Stopped, _) | (_, None) => vec![Command::Reply(Ok(()))],
            (_, Some(host)) => {
                let change = self.change(VmState::Stopping, Some(host), "asked to stop");
                self.busy = Busy::IntendingStop(host);
                vec![Command::Intend(change)]
            }
        }
    }

    fn lost_sight(&mut self, host: HostId) -> Vec<Command> {
        if self.state != VmState::Running || self.place != Some(host) {
            return Vec::new();
        }
        vec![self.becomes(VmState::Unknown, Some(host), "its host is disconnected")]
    }

    /// Anything but Stopped is in doubt until its host was asked.
    fn remember(&mut self, memory: Option<Memory>) -> Vec<Command> {
        let memory = memory.unwrap_or(Memory { state: VmState::Stopped, host: None, incarnation: 0 });
        (self.place, self.incarnation) = (memory.host, memory.incarnation);
        match (memory.state, memory.host) {
            (VmState::Stopped, _) | (_, None) => {
                self.state = VmState::Stopped;
                Vec::new()
            }
            (_, Some(host)) => self.reconcile(host),
        }
    }

    fn reconcile(&mut self, host: HostId) -> Vec<Command> {
        if self.state == VmState::Stopped {
            return Vec::new();
        }
        self.busy = Busy::Reconciling(host);
        vec![Command::Search(host)]
    }

    /// A host said, or could not say, whether the VM runs there.
    fn settle(&mut self, host: HostId, found: Result<Vec<RunningVm>>, why: &str) -> Vec<Command> {
        let (truth, reason) = match found.map(|vms| runs(self.vm.id, &vms)) {
            Ok(true) => (VmState::Running, format!("found running ({why})")),
            Ok(false) => (VmState::Stopped, format!("not there ({why})")),
            Err(error) => (VmState::Unknown, format!("its host cannot be asked: {error} ({why})")),
        };
        if truth == self.state { Vec::new() } else { vec![self.becomes(truth, Some(host), reason)] }
    }

    fn becomes(&mut self, new: VmState, host: Option<HostId>, reason: impl Into<String>) -> Command {
        Command::Tell(self.change(new, host, reason))
    }

    fn change(&mut self, new: VmState, host: Option<HostId>, reason: impl Into<String>) -> Change {
        let old = std::mem::replace(&mut self.state, new);
        self.place = host;
        Change { old, new, host, incarnation: self.incarnation, reason: reason.into() }
    }
}

/// A host's name, for people; its uuid where the inventory does not know it any more.
fn name(directory: &Directory, host: HostId) -> String {
    directory.host(host).map_or_else(|_| host.to_string(), |host| host.name.clone())
}

fn runs(vm: VmId, processes: &[RunningVm]) -> bool {
    processes.iter().any(|process| process.vm_uuid == vm)
}
