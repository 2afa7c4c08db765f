//! One attempt to prove that a VM cannot write any more on one place, so that it may start.
//!
//! ```text
//! watching --somebody else, not known--> refused
//!    | nobody else
//!    +-- no place is silent --own watch--> waits for it to end --it stays--> refused
//!    |                      --nobody-----------------------------------------------> passed
//!    +-- this place is silent:
//!        intent -> sibling --killed, dead--------------------------+
//!                     | still alive, unreachable, no sibling       v
//!                  intent -> storage, every cluster -----> watching again --somebody new--> refused
//!                     | not confirmed             ^                | nobody else
//!                  human's word --none--> refused |                +--> audit -> passed
//!                     +----> watching again       +-- an own watch stays though it is called dead
//! ```
//! Invariants: one audit for every attempt that recorded an intent, and none for others; a pass only after the last look
//! at the watchers; a watch from where the VM is called dead contradicts that (K3): it ends within
//! [`WATCH_GONE`], or the storage has to refuse the host, or nothing starts; an answer that nobody waits for changes nothing.
//! Several silent places are several attempts: a permit needs a pass for each.

use std::{
    net::IpAddr,
    time::{Duration, Instant},
};

use ringfence_messages::{
    ClusterId, Code, ErrorCode, HostId, Result, StorageId, VmId,
    ceph::{StorageFenceReply, Watcher},
    evidence::{Evidence, Machine, Source, Verdict},
    fence::{FenceLevel, FenceOutcome, SiblingFenceVmOnHostReply, UnknownReason},
    vm::InstallPath,
};
use uuid::Uuid;

use super::{
    permit::{Cleared, Passed, Proof},
    policy::{Policy, Profile},
    tables::{self, Next, Watched},
};
use crate::sabotage::{self, Sabotage};

/// For so long a watch of a client that is dead may stay: Ceph's watch timeout (30 s) and some more. A clean quit ends it
/// in 0.2 s. Too low: a QEMU that died is called alive. Too high: a start that is refused in the end is refused late.
pub const WATCH_GONE: Duration = Duration::from_secs(35);

/// Between looks at a watch that should end.
pub const WATCH_AGAIN: Duration = Duration::from_secs(1);

/// The place that an attempt is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Every place was asked, and says that it does not run there: only the watchers are looked at.
    Clear,
    /// This one cannot be asked.
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
    /// The place that is to be cleared.
    pub place: Place,
    /// The machine that this place was when it last answered.
    pub machine: Machine,
    /// Every address from which that host reaches storage.
    pub addresses: Vec<IpAddr>,
    /// Every address from which any host where the VM may run reaches storage: watches from there are its own.
    pub own: Vec<IpAddr>,
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
    /// The time of [`Command::Wait`] is over.
    Waited,
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
    /// Say [`Event::Waited`] after this time.
    Wait(Duration),
    /// Record that the attestation of this host no longer counts.
    EndAttestation(HostId),
    /// Record how it ended.
    Audit {
        /// How.
        outcome: FenceOutcome,
        /// Who went to the failed host.
        executor: Option<HostId>,
        /// What was found, look by look.
        evidence: Vec<Evidence>,
    },
    /// It ended.
    Done(Result<Passed>),
}

#[derive(Clone, Debug, PartialEq)]
enum State {
    /// Waits for watchers; at the end of it comes the ladder, or the permit with this outcome.
    Watching {
        found: Vec<Option<Result<Vec<Watcher>>>>,
        fenced: Option<FenceOutcome>,
    },
    /// Waits for an own watch to end.
    Lingering {
        fenced: Option<FenceOutcome>,
    },
    /// Waits for the intent of this level.
    Intending(FenceLevel),
    /// Waits for the sibling.
    Reporting,
    /// Waits for storages.
    Blocking {
        left: Vec<StorageId>,
        refused: bool,
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
    /// The addresses that each storage refuses now because of it.
    refused: Vec<(StorageId, IpAddr)>,
    began: Instant,
    /// Since when an own watch has contradicted "dead".
    contradicted: Option<Instant>,
    /// A sibling reached the machine that is meant, or a QEMU of the VM: neither is off (K9).
    reached: bool,
    /// What was found, look by look.
    evidence: Vec<Evidence>,
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
            refused: Vec::new(),
            began: now,
            contradicted: None,
            reached: false,
            evidence: Vec::new(),
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
            (Event::Waited, State::Lingering { fenced }) => self.watch(fenced, now),
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
                        self.state = State::Blocking { left, refused: false };
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
                        self.found(
                            Source::Storage,
                            Verdict::Dead,
                            format!("refuses {at} since OSD map epoch {epoch}"),
                            now,
                        );
                        self.refused.extend(reply.addresses.into_iter().map(|ip| (storage, ip)));
                    }
                    Err(error) => {
                        refused = true;
                        self.found(Source::Storage, Verdict::Unknown, format!("not fenced: {error}"), now);
                    }
                }
                match (left.is_empty(), refused) {
                    (false, refused) => {
                        self.state = State::Blocking { left, refused };
                        Vec::new()
                    }
                    (true, false) => self.watch(Some(self.storage.0), now),
                    (true, true) => self.ask_human(self.storage.1, now),
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
        let (verdict, fenced) = (tables::watched(named, &self.case.own), *fenced);
        match verdict {
            Watched::Refuse(why) => {
                let why = if fenced.is_some() { format!("after the fence: {why}") } else { why };
                self.found(Source::Watchers, Verdict::Unknown, why.clone(), now);
                self.refuse(FenceOutcome::Failed, ErrorCode::new(Code::HOST_START_VM, why))
            }
            Watched::Own(by) => self.watched_by_its_own(&by, fenced, now),
            Watched::Nobody => self.passes(fenced, now),
        }
    }

    /// Nobody has a volume open who would contradict what was found.
    fn passes(&mut self, fenced: Option<FenceOutcome>, now: Instant) -> Vec<Command> {
        match (self.case.place, fenced) {
            (Place::Clear, _) => vec![self.pass(None)],
            (Place::Silent(_), None) => self.intend(FenceLevel::Sibling),
            (Place::Silent(host), Some(outcome)) => {
                self.found(Source::Watchers, Verdict::Dead, "nobody else has a volume open".to_owned(), now);
                let mut commands = self.audit(outcome);
                let evidence = self.evidence.clone();
                let cleared = Cleared::new(self.case.vm, host, Proof::Fenced { host, outcome }, evidence);
                commands.push(self.pass(Some(cleared)));
                commands
            }
        }
    }

    /// Hosts where the VM may run have a volume open.
    fn watched_by_its_own(
        &mut self,
        by: &[(usize, Watcher)],
        fenced: Option<FenceOutcome>,
        now: Instant,
    ) -> Vec<Command> {
        if let (Place::Silent(_), None) = (self.case.place, fenced) {
            return match by.iter().try_for_each(|(_, by)| tables::own_watches(by, &self.case.policy)) {
                Ok(()) => self.intend(FenceLevel::Sibling),
                Err(why) => {
                    self.found(Source::Watchers, Verdict::Alive, why.clone(), now);
                    self.refuse(FenceOutcome::Failed, ErrorCode::new(Code::HOST_START_VM, why))
                }
            };
        }
        // A client that the storage refuses cannot write, if the fence covers its address. Another silent place has an
        // attempt of its own.
        let refused = |nth: usize, ip: IpAddr| {
            self.case.volumes.get(nth).is_some_and(|(storage, _)| self.refused.contains(&(*storage, ip)))
        };
        let lives = |(nth, of): &&(usize, Watcher)| self.case.addresses.contains(&of.ip) && !refused(*nth, of.ip);
        let Some((_, by)) = by.iter().find(lives) else { return self.passes(fenced, now) };
        // It is called dead, and its own client has the volume open (K3).
        if sabotage::on(Sabotage::ContradictionIsDead) {
            return self.passes(fenced, now);
        }
        let since = *self.contradicted.get_or_insert(now);
        if now.saturating_duration_since(since) < WATCH_GONE {
            self.state = State::Lingering { fenced };
            return vec![Command::Wait(WATCH_AGAIN)];
        }
        let why = format!(
            "a client at {} has a volume open though the VM is called dead there: one of both is wrong",
            by.address
        );
        self.found_unknown(Source::Watchers, UnknownReason::Contradicted, why.clone(), now);
        // A storage that was asked already could not refuse it, or does not cover that address.
        let asked = self.evidence.iter().any(|of| of.source == Source::Storage);
        if self.case.place != Place::Clear && !asked && self.case.policy.profile == Profile::Safe {
            return self.ask_storage(FenceOutcome::SuccessStorageFenced, FenceOutcome::Failed, now);
        }
        let mut commands = self.refuse(FenceOutcome::Failed, ErrorCode::new(Code::HOST_START_VM, why));
        self.end_attestation(&mut commands);
        commands
    }

    fn intend(&mut self, level: FenceLevel) -> Vec<Command> {
        self.state = State::Intending(level);
        vec![Command::Intend(level)]
    }

    fn reported(&mut self, report: Result<SiblingFenceVmOnHostReply>, now: Instant) -> Vec<Command> {
        let next = tables::reported(&report, &self.case.machine, &self.case.policy);
        self.reached = report.as_ref().is_ok_and(|reply| tables::is_on(reply, &self.case.machine));
        self.told(&report, next, now);
        let next = match next {
            Next::Start(_) if self.case.ordered && !sabotage::on(Sabotage::OrderedIsForgotten) => {
                let said = "an order to start it there is not void yet".to_owned();
                self.found_unknown(Source::Sibling, UnknownReason::Contradicted, said, now);
                Next::Storage { fenced: FenceOutcome::SuccessStorageFenced, not: FenceOutcome::Failed }
            }
            next => next,
        };
        match next {
            Next::Start(outcome) => self.watch(Some(outcome), now),
            Next::Refuse(outcome) => self.ask_human(outcome, now),
            Next::Storage { fenced, not } => self.ask_storage(fenced, not, now),
        }
    }

    fn ask_storage(&mut self, fenced: FenceOutcome, not: FenceOutcome, now: Instant) -> Vec<Command> {
        self.storage = (fenced, not);
        match self.case.volumes.iter().find(|(_, path)| !matches!(path, InstallPath::Ceph { .. })) {
            Some((_, path)) => {
                let said = format!("{path} is not on Ceph, nothing can refuse its writes");
                self.found(Source::Storage, Verdict::Unknown, said, now);
                self.ask_human(not, now)
            }
            None => self.intend(FenceLevel::Storage),
        }
    }

    /// The last level. An operator who stands before the host knows better than a level that could not reach it; one that did
    /// reach it contradicts the attestation.
    fn ask_human(&mut self, outcome: FenceOutcome, now: Instant) -> Vec<Command> {
        match self.case.human.clone() {
            Some(by) if self.reached && !sabotage::on(Sabotage::AttestationStays) => {
                let said = format!("{by} attested that the host is off, and a sibling host reached it");
                self.found_unknown(Source::Human, UnknownReason::Contradicted, said, now);
                let why = format!("it may still write where it ran last: {outcome}: {}", story(&self.evidence));
                let mut commands = self.refuse(outcome, ErrorCode::new(Code::HOST_START_VM, why));
                self.end_attestation(&mut commands);
                commands
            }
            Some(by) => {
                let said = format!("{by} attested that the host is off");
                self.push(Evidence { by: Some(by), ..self.of(Source::Human, Verdict::Dead, said, now) });
                self.watch(Some(FenceOutcome::SuccessHumanConfirmed), now)
            }
            None => {
                let why = format!("it may still write where it ran last: {outcome}: {}", story(&self.evidence));
                self.refuse(outcome, ErrorCode::new(Code::HOST_START_VM, why))
            }
        }
    }

    /// What was found is younger than the attestation and contradicts it: it does not count for the next attempt either.
    fn end_attestation(&self, commands: &mut Vec<Command>) {
        if let (Place::Silent(host), Some(_)) = (self.case.place, &self.case.human) {
            commands.insert(0, Command::EndAttestation(host));
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
        vec![Command::Audit { outcome, executor: self.executor, evidence: self.evidence.clone() }]
    }

    fn pass(&mut self, cleared: Option<Cleared>) -> Command {
        self.state = State::Done;
        Command::Done(Ok(Passed { vm: self.case.vm, cleared }))
    }

    /// Notes what the sibling found.
    fn told(&mut self, report: &Result<SiblingFenceVmOnHostReply>, next: Next, now: Instant) {
        let (verdict, unknown, said) = match report {
            Ok(reply) => {
                self.executor = reply.executor_host_uuid;
                let doubt = tables::doubted(reply, &self.case.machine);
                let found = match (doubt, reply.ssh_reachable, reply.killed, reply.alive) {
                    (Some(UnknownReason::OtherMachine), ..) => {
                        "another machine answered there, or it is not known which"
                    }
                    (Some(_), ..) => "could not have seen everything there",
                    (None, false, _, _) => "cannot reach it",
                    (None, true, true, false) => "killed it, verified gone",
                    (None, true, false, false) => "no such QEMU there, verified",
                    (None, true, _, true) => "it is still alive",
                };
                let verdict = match (doubt, reply.ssh_reachable, reply.alive, next) {
                    (None, true, true, _) => Verdict::Alive,
                    (None, true, false, Next::Start(_)) => Verdict::Dead,
                    _ => Verdict::Unknown,
                };
                (verdict, doubt, format!("{found} ({})", reply.reason))
            }
            Err(error) => {
                let unknown = error
                    .opaque
                    .get("reason")
                    .and_then(|word| serde_json::from_value(serde_json::Value::String(word.clone())).ok());
                let said = match error.opaque.get("reason") {
                    Some(reason) => format!("{reason}: {error}"),
                    None => error.to_string(),
                };
                (Verdict::Unknown, unknown, said)
            }
        };
        let reply = report.as_ref().ok();
        let of = self.of(Source::Sibling, verdict, said, now);
        self.push(Evidence {
            unknown,
            by: self.executor.map(|host| host.to_string()),
            machine: reply.and_then(|reply| reply.machine.clone()),
            sight: reply.and_then(|reply| reply.sight.clone()),
            ..of
        });
    }

    fn of(&self, source: Source, verdict: Verdict, said: String, now: Instant) -> Evidence {
        let host_uuid = if let Place::Silent(host) = self.case.place { host } else { self.case.target };
        let after = now.saturating_duration_since(self.began).as_millis();
        Evidence {
            host_uuid,
            source,
            verdict,
            unknown: None,
            by: None,
            machine: None,
            sight: None,
            after_ms: u64::try_from(after).unwrap_or(u64::MAX),
            said,
        }
    }

    fn found(&mut self, source: Source, verdict: Verdict, said: String, now: Instant) {
        self.push(self.of(source, verdict, said, now));
    }

    fn found_unknown(&mut self, source: Source, unknown: UnknownReason, said: String, now: Instant) {
        self.push(Evidence { unknown: Some(unknown), ..self.of(source, Verdict::Unknown, said, now) });
    }

    fn push(&mut self, evidence: Evidence) {
        self.evidence.push(evidence);
    }

    /// The storages of the VM's volumes, each once.
    fn clusters(&self) -> Vec<StorageId> {
        let mut storages: Vec<_> = self.case.volumes.iter().map(|(storage, _)| *storage).collect();
        storages.sort();
        storages.dedup();
        storages
    }
}

/// What was found as one line, for readers.
pub fn story(evidence: &[Evidence]) -> String {
    evidence.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}
