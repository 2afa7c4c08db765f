//! One attempt to prove that a VM cannot write any more, so that it may start.
//!
//! ```text
//! watching --somebody else, not known--> refused
//!    | nobody else
//!    +-- never ran, or its last host says "not here" --------------------------------> permit
//!    +-- its last host is silent:
//!        intent -> sibling --killed, dead--------------------------+
//!                     | still alive, unreachable, no sibling       v
//!                  intent -> storage, every cluster -----> watching again --somebody new--> refused
//!                     | not confirmed                              | nobody else
//!                  human's word --none--> refused                  +--> audit -> permit
//! ```
//! Invariants: one audit for every attempt that recorded an intent, and none for others; a permit only after the second
//! look at the watchers; an answer that nobody waits for changes nothing.

use std::{net::IpAddr, time::Instant};

use ringfence_messages::{
    ClusterId, Code, ErrorCode, HostId, Result, StorageId, VmId,
    ceph::{StorageFenceReply, Watcher},
    fence::{FenceLevel, FenceOutcome, SiblingFenceVmOnHostReply},
    vm::InstallPath,
};
use uuid::Uuid;

use super::{
    permit::{Proof, StartPermit},
    policy::Policy,
    tables::{self, Next, Watched},
};
use crate::sabotage::{self, Sabotage};

/// Where the VM ran last, as far as that is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// It never ran.
    Nowhere,
    /// There, and its agent says that it does not run there now.
    Clear(HostId),
    /// There, and it cannot be asked.
    Silent(HostId),
}

/// What is to be proven, and for which start.
#[derive(Clone, Debug, PartialEq)]
pub struct Case {
    /// Names the attempt.
    pub attempt: Uuid,
    /// The VM.
    pub vm: VmId,
    /// The cluster of the host where it ran last.
    pub cluster: ClusterId,
    /// Where it ran last.
    pub place: Place,
    /// Every address from which that host reaches storage.
    pub addresses: Vec<IpAddr>,
    /// Where it is to be started.
    pub target: HostId,
    /// Which start that is.
    pub incarnation: u64,
    /// The controller's term of office.
    pub epoch: u64,
    /// All volumes of the VM.
    pub volumes: Vec<(StorageId, InstallPath)>,
    /// Who attested that the host is off, if somebody did.
    pub human: Option<String>,
    /// An order to start it there may lie in the socket of an agent that stands still, and be carried out yet: that
    /// nothing of it runs there now proves nothing.
    pub ordered: bool,
    /// How doubtful cases are decided.
    pub policy: Policy,
}

/// What happens to an attempt.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// Who watches the volume of this index.
    Watched(usize, Result<Vec<Watcher>>),
    /// The intent is durable and the host out of service, or not.
    Intended(Result<()>),
    /// A sibling's report, or why there is none.
    Reported(Result<SiblingFenceVmOnHostReply>),
    /// A storage refuses the host, or that is not known.
    Blocked(StorageId, Result<StorageFenceReply>),
}

/// What is to be done for it.
#[derive(Clone, Debug, PartialEq)]
pub enum Command {
    /// Ask who watches the volume of this index.
    Watch(usize),
    /// Take the host out of service and record the intent.
    Intend(FenceLevel),
    /// Ask the fencer.
    AskFencer,
    /// Have this storage refuse the host.
    Block(StorageId),
    /// Record how it ended.
    Audit {
        /// How.
        outcome: FenceOutcome,
        /// Who went to the failed host.
        executor: Option<HostId>,
        /// The evidence, level by level.
        reason: String,
    },
    /// It ended.
    Done(Result<StartPermit>),
}

#[derive(Clone, Debug, PartialEq)]
enum State {
    /// Waits for watchers; at the end of it comes the ladder, or the permit with this outcome.
    Watching {
        found: Vec<Option<Result<Vec<Watcher>>>>,
        fenced: Option<FenceOutcome>,
    },
    /// Waits for the intent of this level.
    Intending(FenceLevel),
    /// Waits for the sibling.
    Reporting,
    /// Waits for storages.
    Blocking {
        left: Vec<StorageId>,
        refused: Option<String>,
    },
    Done,
}

/// See the module.
#[derive(Clone, Debug, PartialEq)]
pub struct Attempt {
    case: Case,
    state: State,
    /// Whether an intent is durable, so that an audit is owed.
    owes_audit: bool,
    executor: Option<HostId>,
    /// What level 2 leads to, once level 1 said.
    storage: (FenceOutcome, FenceOutcome),
    /// What was found, level by level.
    story: Vec<String>,
}

impl Attempt {
    /// Begins.
    pub fn begin(case: Case, now: Instant) -> (Attempt, Vec<Command>) {
        let mut attempt = Attempt {
            case,
            state: State::Done,
            owes_audit: false,
            executor: None,
            storage: (FenceOutcome::SuccessStorageFenced, FenceOutcome::Failed),
            story: Vec::new(),
        };
        let commands = attempt.watch(None, now);
        (attempt, commands)
    }

    /// What it is about.
    pub fn case(&self) -> &Case {
        &self.case
    }

    /// Handles one event.
    pub fn on(&mut self, event: Event, now: Instant) -> Vec<Command> {
        match (event, std::mem::replace(&mut self.state, State::Done)) {
            (Event::Watched(index, watchers), State::Watching { mut found, fenced }) => {
                if let Some(slot) = found.get_mut(index) {
                    *slot = Some(watchers);
                }
                self.state = State::Watching { found, fenced };
                self.watched(now)
            }
            (Event::Intended(Err(error)), State::Intending(_)) => {
                let error = ErrorCode::new(Code::IO, "no fence without a durable intent").caused_by(error);
                self.refuse(FenceOutcome::Failed, error)
            }
            (Event::Intended(Ok(())), State::Intending(level)) => {
                self.owes_audit = true;
                match level {
                    FenceLevel::Sibling => {
                        self.state = State::Reporting;
                        vec![Command::AskFencer]
                    }
                    FenceLevel::Storage => {
                        let left = self.clusters();
                        let commands = left.iter().map(|storage| Command::Block(*storage)).collect();
                        self.state = State::Blocking { left, refused: None };
                        commands
                    }
                }
            }
            (Event::Reported(report), State::Reporting) => self.reported(report, now),
            (Event::Blocked(storage, result), State::Blocking { mut left, mut refused }) => {
                let Some(position) = left.iter().position(|waiting| *waiting == storage) else {
                    self.state = State::Blocking { left, refused };
                    return Vec::new();
                };
                left.swap_remove(position);
                match result {
                    Ok(reply) => {
                        let addresses: Vec<_> = reply.addresses.iter().map(ToString::to_string).collect();
                        let (at, epoch) = (addresses.join(", "), reply.osd_epoch);
                        self.story.push(format!("storage: refuses {at} since OSD map epoch {epoch}"));
                    }
                    Err(error) => {
                        self.story.push(format!("storage: not fenced: {error}"));
                        refused.get_or_insert(error.to_string());
                    }
                }
                match (left.is_empty(), refused) {
                    (false, refused) => {
                        self.state = State::Blocking { left, refused };
                        Vec::new()
                    }
                    (true, None) => self.watch(Some(self.storage.0), now),
                    (true, Some(_)) => self.ask_human(self.storage.1, now),
                }
            }
            (_, state) => {
                self.state = state;
                Vec::new()
            }
        }
    }

    /// Who watches every Ceph volume; `fenced` says that this is the second look.
    fn watch(&mut self, fenced: Option<FenceOutcome>, now: Instant) -> Vec<Command> {
        let blind = fenced.is_some() && sabotage::on(Sabotage::NoSecondLook);
        let ceph = |path: &InstallPath| !blind && matches!(path, InstallPath::Ceph { .. });
        let volumes = self.case.volumes.iter().enumerate();
        let commands: Vec<_> =
            volumes.filter(|(_, (_, path))| ceph(path)).map(|(index, _)| Command::Watch(index)).collect();
        let found = self.case.volumes.iter().map(|(_, path)| (!ceph(path)).then(|| Ok(Vec::new()))).collect();
        self.state = State::Watching { found, fenced };
        if commands.is_empty() { self.watched(now) } else { commands }
    }

    fn watched(&mut self, now: Instant) -> Vec<Command> {
        let State::Watching { found, fenced } = &self.state else { return Vec::new() };
        if found.iter().any(Option::is_none) {
            return Vec::new();
        }
        let named = found.iter().flatten().zip(&self.case.volumes).map(|(w, (_, path))| (path.to_string(), w));
        // Once fenced, the failed host's own entries are only what is left of it.
        let policy = match fenced {
            Some(_) => Policy { on_watchers: super::policy::OnWatchers::Fence, ..self.case.policy },
            None => self.case.policy,
        };
        let (verdict, fenced) = (tables::watched(named, &self.case.addresses, &policy), *fenced);
        match (verdict, fenced, self.case.place) {
            (Watched::Refuse(why), _, _) => {
                let why = if fenced.is_some() { format!("after the fence: {why}") } else { why };
                self.story.push(format!("watchers: {why}"));
                self.refuse(FenceOutcome::Failed, ErrorCode::new(Code::HOST_START_VM, why))
            }
            (Watched::Fence, Some(outcome), Place::Silent(host)) => {
                let mut commands = self.audit(outcome);
                commands.push(self.permit(Proof::Fenced { host, outcome }, now));
                commands
            }
            (Watched::Fence, _, Place::Nowhere) => vec![self.permit(Proof::NeverRan, now)],
            (Watched::Fence, _, Place::Clear(host)) => vec![self.permit(Proof::HostSaysGone(host), now)],
            (Watched::Fence, None, Place::Silent(_)) => self.intend(FenceLevel::Sibling),
        }
    }

    fn intend(&mut self, level: FenceLevel) -> Vec<Command> {
        self.state = State::Intending(level);
        vec![Command::Intend(level)]
    }

    fn reported(&mut self, report: Result<SiblingFenceVmOnHostReply>, now: Instant) -> Vec<Command> {
        self.story.push(match &report {
            Ok(reply) => {
                self.executor = reply.executor_host_uuid;
                let found = match (reply.ssh_reachable, reply.killed, reply.alive) {
                    (false, _, _) => "cannot reach it",
                    (true, true, false) => "killed it, verified gone",
                    (true, false, false) => "no such QEMU there, verified",
                    (true, _, true) => "it is still alive",
                };
                format!("sibling: {found} ({})", reply.reason)
            }
            Err(error) => match error.opaque.get("reason") {
                Some(reason) => format!("sibling: {reason}: {error}"),
                None => format!("sibling: {error}"),
            },
        });
        let next = match tables::reported(&report, &self.case.policy) {
            Next::Start(_) if self.case.ordered && !sabotage::on(Sabotage::OrderedIsForgotten) => {
                self.story.push("an order to start it there is not void yet".to_owned());
                Next::Storage { fenced: FenceOutcome::SuccessStorageFenced, not: FenceOutcome::Failed }
            }
            next => next,
        };
        match next {
            Next::Start(outcome) => self.watch(Some(outcome), now),
            Next::Refuse(outcome) => self.ask_human(outcome, now),
            Next::Storage { fenced, not } => {
                self.storage = (fenced, not);
                match self.case.volumes.iter().find(|(_, path)| !matches!(path, InstallPath::Ceph { .. })) {
                    Some((_, path)) => {
                        self.story.push(format!("storage: {path} is not on Ceph, nothing can refuse its writes"));
                        self.ask_human(not, now)
                    }
                    None => self.intend(FenceLevel::Storage),
                }
            }
        }
    }

    /// The last level. Whatever failed below, a human who stands before the host knows better.
    fn ask_human(&mut self, outcome: FenceOutcome, now: Instant) -> Vec<Command> {
        match &self.case.human {
            Some(by) => {
                self.story.push(format!("human: {by} attested that the host is off"));
                self.watch(Some(FenceOutcome::SuccessHumanConfirmed), now)
            }
            None => {
                let why = format!("it may still write where it ran last: {outcome}: {}", self.story.join("; "));
                self.refuse(outcome, ErrorCode::new(Code::HOST_START_VM, why))
            }
        }
    }

    fn refuse(&mut self, outcome: FenceOutcome, error: ErrorCode) -> Vec<Command> {
        self.state = State::Done;
        let mut commands = self.audit(outcome);
        commands.push(Command::Done(Err(error)));
        commands
    }

    fn audit(&mut self, outcome: FenceOutcome) -> Vec<Command> {
        if !std::mem::replace(&mut self.owes_audit, false) || sabotage::on(Sabotage::NoAudit) {
            return Vec::new();
        }
        vec![Command::Audit { outcome, executor: self.executor, reason: self.story.join("; ") }]
    }

    fn permit(&mut self, proof: Proof, now: Instant) -> Command {
        self.state = State::Done;
        let Case { vm, target, incarnation, epoch, .. } = self.case;
        Command::Done(Ok(StartPermit::new(vm, target, incarnation, epoch, proof, now)))
    }

    /// The storages of the VM's volumes, each once.
    fn clusters(&self) -> Vec<StorageId> {
        let mut storages: Vec<_> = self.case.volumes.iter().map(|(storage, _)| *storage).collect();
        storages.sort();
        storages.dedup();
        storages
    }
}
