//! One attempt to prove that a VM cannot write any more on one host, so that it may start.
//!
//! ```text
//! watchers --another client, or unknown--> rejected
//!    | no other client
//!    +-- no host unreachable --own watch--> waits for its end --it stays--> rejected
//!    |                       --none---------------------------------------> passed
//!    +-- this host is unreachable:
//!        intent -> sibling host --killed, dead---------------------+
//!                     | still alive, unreachable, no sibling host  v
//!                  intent -> storage, every cluster -----> watchers again --new client--> rejected
//!                     | not confirmed             ^                | no other client
//!                  attestation --none--> rejected |                +--> audit -> passed
//!                     +----> watchers again       +-- an own watch stays although reported dead
//! ```
//! Invariants: one audit record for every attempt that recorded an intent, and none for others. A pass follows only
//! the last check of the watchers. A watch from a host where the VM was reported dead contradicts that report (K3):
//! it ends within [`WATCH_GONE`], or the storage must reject the host, or nothing starts. An answer that no state
//! waits for changes nothing. Several unreachable hosts need several attempts: a permit needs a pass for each.

use std::{
    net::IpAddr,
    time::{Duration, Instant},
};

use ringfence_messages::{
    ClusterId, Code, ErrorCode, HostId, Result, StorageId, VmId,
    ceph::{StorageFenceReply, Watcher},
    evidence::{Evidence, Machine, Source, UnknownReason, Verdict},
    fence::{FenceLevel, FenceOutcome, SiblingFenceVmOnHostReply},
    vm::InstallPath,
};
use uuid::Uuid;

use super::{
    permit::{Cleared, Passed, Proof},
    policy::{Policy, Profile},
    tables::{self, Next, Watched},
};
use crate::sabotage::{self, Sabotage};

/// Time for which the watch of a dead client may stay: Ceph's watch timeout (30 s) and a margin. A clean quit ends it
/// in 0.2 s. Too low: a dead QEMU counts as alive. Too high: a rejection comes late.
pub const WATCH_GONE: Duration = Duration::from_secs(35);

/// Between two checks of a watch that should end.
pub const WATCH_AGAIN: Duration = Duration::from_secs(1);

/// The host that an attempt is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LastHost {
    /// Every host was queried and does not run the VM: only the watchers are checked.
    ConfirmedAbsent,
    /// This host cannot be queried.
    Unreachable(HostId),
}

/// What an attempt must prove, and for which start.
#[derive(Clone, Debug, PartialEq)]
pub struct FenceRequest {
    /// Id of the attempt.
    pub attempt: Uuid,
    /// The VM to start.
    pub vm: VmId,
    /// Cluster of the host where it ran last.
    pub cluster: ClusterId,
    /// The host to clear.
    pub place: LastHost,
    /// The machine of that host at its last answer.
    pub machine: Machine,
    /// Every storage address of that host.
    pub addresses: Vec<IpAddr>,
    /// Every storage address of all hosts where the VM may run: a watch from there is the VM's own.
    pub own: Vec<IpAddr>,
    /// Target host of the start.
    pub target: HostId,
    /// Incarnation of the start.
    pub incarnation: u64,
    /// Epoch of the controller.
    pub epoch: u64,
    /// All volumes of the VM.
    pub volumes: Vec<(StorageId, InstallPath)>,
    /// The operator who attested that the host is off, if any did.
    pub attested_by: Option<String>,
    /// A start command may still be in the socket of a frozen agent there: that nothing runs there now is no proof.
    pub ordered: bool,
    /// How doubtful cases are decided.
    pub policy: Policy,
}

/// Input of an attempt.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// The watchers of the volume of this index.
    Watched(usize, Result<Vec<Watcher>>),
    /// Whether the intent is durable and the host in quarantine.
    Intended(Result<()>),
    /// The report of a sibling host, or why there is none.
    Reported(Result<SiblingFenceVmOnHostReply>),
    /// Whether a storage is known to reject the host.
    Blocked(StorageId, Result<StorageFenceReply>),
    /// The time of [`Command::Wait`] has passed.
    Waited,
}

/// Output of an attempt.
#[derive(Clone, Debug, PartialEq)]
pub enum Command {
    /// Query the watchers of the volume of this index.
    Watch(usize),
    /// Quarantine the host and record the intent.
    Intend(FenceLevel),
    /// Send the request to the fencer.
    AskFencer,
    /// Make this storage reject the host.
    Block(StorageId),
    /// Return [`Event::Waited`] after this time.
    Wait(Duration),
    /// Record that the attestation of this host no longer counts.
    EndAttestation(HostId),
    /// Write the audit record.
    Audit {
        /// Outcome of the attempt.
        outcome: FenceOutcome,
        /// The sibling host that acted.
        executor: Option<HostId>,
        /// All evidence, in order.
        evidence: Vec<Evidence>,
    },
    /// The attempt ended.
    Done(Result<Passed>),
}

#[derive(Clone, Debug, PartialEq)]
enum State {
    /// Waits for watchers; then the fencing levels begin, or the start is permitted with this outcome.
    Watching {
        found: Vec<Option<Result<Vec<Watcher>>>>,
        fenced: Option<FenceOutcome>,
    },
    /// Waits for the VM's own watch to end.
    Lingering {
        fenced: Option<FenceOutcome>,
    },
    /// Waits for the intent of this level.
    Intending(FenceLevel),
    /// Waits for the sibling host.
    Reporting,
    /// Waits for the storages.
    Blocking {
        left: Vec<StorageId>,
        refused: bool,
    },
    Done,
}

/// See the module.
#[derive(Clone, Debug, PartialEq)]
pub struct Attempt {
    request: FenceRequest,
    state: State,
    /// An intent is durable, so an audit record must follow.
    owes_audit: bool,
    executor: Option<HostId>,
    /// Outcomes of level 2: fenced, and not fenced.
    storage: (FenceOutcome, FenceOutcome),
    /// The addresses that each storage rejects because of this attempt.
    refused: Vec<(StorageId, IpAddr)>,
    began: Instant,
    /// Since when an own watch has contradicted a report of death.
    contradicted: Option<Instant>,
    /// A sibling host reached the failed host's machine, or a QEMU of the VM, so the host is not off (K9).
    reached: bool,
    /// All evidence, in order.
    evidence: Vec<Evidence>,
}

impl Attempt {
    /// Begins an attempt.
    pub fn begin(request: FenceRequest, now: Instant) -> (Attempt, Vec<Command>) {
        let mut attempt = Attempt {
            request,
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

    /// The request of the attempt.
    pub fn request(&self) -> &FenceRequest {
        &self.request
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
                let error =
                    ErrorCode::new(Code::IO, "the fence is aborted: its intent is not durable").caused_by(error);
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
                            format!("rejects {at} since OSD map epoch {epoch}"),
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
                    (true, true) => self.check_attestation(self.storage.1, now),
                }
            }
            (_, state) => {
                self.state = state;
                Vec::new()
            }
        }
    }

    /// Queries the watchers of every Ceph volume; `fenced` is set for the check after the fence.
    fn watch(&mut self, fenced: Option<FenceOutcome>, now: Instant) -> Vec<Command> {
        let blind = fenced.is_some() && sabotage::on(Sabotage::NoSecondLook);
        let ceph = |path: &InstallPath| !blind && matches!(path, InstallPath::Ceph { .. });
        let volumes = self.request.volumes.iter().enumerate();
        let commands: Vec<_> =
            volumes.filter(|(_, (_, path))| ceph(path)).map(|(index, _)| Command::Watch(index)).collect();
        let found = self.request.volumes.iter().map(|(_, path)| (!ceph(path)).then(|| Ok(Vec::new()))).collect();
        self.state = State::Watching { found, fenced };
        if commands.is_empty() { self.watched(now) } else { commands }
    }

    fn watched(&mut self, now: Instant) -> Vec<Command> {
        let State::Watching { found, fenced } = &self.state else { return Vec::new() };
        if found.iter().any(Option::is_none) {
            return Vec::new();
        }
        let named = found.iter().flatten().zip(&self.request.volumes).map(|(w, (_, path))| (path.to_string(), w));
        let (verdict, fenced) = (tables::watched(named, &self.request.own), *fenced);
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

    /// No client has a volume open that would contradict the evidence.
    fn passes(&mut self, fenced: Option<FenceOutcome>, now: Instant) -> Vec<Command> {
        match (self.request.place, fenced) {
            (LastHost::ConfirmedAbsent, _) => vec![self.pass(None)],
            (LastHost::Unreachable(_), None) => self.intend(FenceLevel::Sibling),
            (LastHost::Unreachable(host), Some(outcome)) => {
                self.found(Source::Watchers, Verdict::Dead, "no other client has a volume open".to_owned(), now);
                let mut commands = self.audit(outcome);
                let evidence = self.evidence.clone();
                let cleared = Cleared::new(self.request.vm, host, Proof::Fenced { host, outcome }, evidence);
                commands.push(self.pass(Some(cleared)));
                commands
            }
        }
    }

    /// Clients on hosts where the VM may run have a volume open.
    fn watched_by_its_own(
        &mut self,
        by: &[(usize, Watcher)],
        fenced: Option<FenceOutcome>,
        now: Instant,
    ) -> Vec<Command> {
        if let (LastHost::Unreachable(_), None) = (self.request.place, fenced) {
            return match by.iter().try_for_each(|(_, by)| tables::own_watches(by, &self.request.policy)) {
                Ok(()) => self.intend(FenceLevel::Sibling),
                Err(why) => {
                    self.found(Source::Watchers, Verdict::Alive, why.clone(), now);
                    self.refuse(FenceOutcome::Failed, ErrorCode::new(Code::HOST_START_VM, why))
                }
            };
        }
        // A client that the storage rejects cannot write, if the fence covers its address. Other unreachable hosts
        // have their own attempts.
        let refused = |nth: usize, ip: IpAddr| {
            self.request.volumes.get(nth).is_some_and(|(storage, _)| self.refused.contains(&(*storage, ip)))
        };
        let lives = |(nth, watcher): &&(usize, Watcher)| {
            self.request.addresses.contains(&watcher.ip) && !refused(*nth, watcher.ip)
        };
        let Some((_, by)) = by.iter().find(lives) else { return self.passes(fenced, now) };
        // Reported dead, but its own client has the volume open (K3).
        if sabotage::on(Sabotage::ContradictionIsDead) {
            return self.passes(fenced, now);
        }
        let since = *self.contradicted.get_or_insert(now);
        if now.saturating_duration_since(since) < WATCH_GONE {
            self.state = State::Lingering { fenced };
            return vec![Command::Wait(WATCH_AGAIN)];
        }
        let why = format!(
            "a client at {} has a volume open although the VM was reported dead there: the evidence contradicts itself",
            by.address
        );
        self.found_unknown(Source::Watchers, UnknownReason::Contradicted, why.clone(), now);
        // A storage that was asked before could not reject the host, or does not cover that address.
        let tried = self.evidence.iter().any(|evidence| evidence.source == Source::Storage);
        if self.request.place != LastHost::ConfirmedAbsent && !tried && self.request.policy.profile == Profile::Safe {
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
        let next = tables::reported(&report, &self.request.machine, &self.request.policy);
        self.reached = report.as_ref().is_ok_and(|reply| tables::is_on(reply, &self.request.machine));
        self.note_report(&report, next, now);
        let next = match next {
            Next::Start(_) if self.request.ordered && !sabotage::on(Sabotage::OrderedIsForgotten) => {
                let finding = "an earlier start command may still be carried out there".to_owned();
                self.found_unknown(Source::Sibling, UnknownReason::Contradicted, finding, now);
                Next::Storage { fenced: FenceOutcome::SuccessStorageFenced, not: FenceOutcome::Failed }
            }
            next => next,
        };
        match next {
            Next::Start(outcome) => self.watch(Some(outcome), now),
            Next::Refuse(outcome) => self.check_attestation(outcome, now),
            Next::Storage { fenced, not } => self.ask_storage(fenced, not, now),
        }
    }

    fn ask_storage(&mut self, fenced: FenceOutcome, not: FenceOutcome, now: Instant) -> Vec<Command> {
        self.storage = (fenced, not);
        match self.request.volumes.iter().find(|(_, path)| !matches!(path, InstallPath::Ceph { .. })) {
            Some((_, path)) => {
                let finding = format!("{path} is not on Ceph: no storage fence is possible");
                self.found(Source::Storage, Verdict::Unknown, finding, now);
                self.check_attestation(not, now)
            }
            None => self.intend(FenceLevel::Storage),
        }
    }

    /// The last level. An attestation overrides a level that could not reach the host. A level that did reach it
    /// contradicts the attestation.
    fn check_attestation(&mut self, outcome: FenceOutcome, now: Instant) -> Vec<Command> {
        match self.request.attested_by.clone() {
            Some(by) if self.reached && !sabotage::on(Sabotage::AttestationStays) => {
                let finding = format!("{by} attested that the host is off, but a sibling host reached it");
                self.found_unknown(Source::Human, UnknownReason::Contradicted, finding, now);
                let mut commands = self.refuse_unproven(outcome);
                self.end_attestation(&mut commands);
                commands
            }
            Some(by) => {
                let finding = format!("{by} attested that the host is off");
                self.push(Evidence { by: Some(by), ..self.evidence_of(Source::Human, Verdict::Dead, finding, now) });
                self.watch(Some(FenceOutcome::SuccessHumanConfirmed), now)
            }
            None => self.refuse_unproven(outcome),
        }
    }

    fn refuse_unproven(&mut self, outcome: FenceOutcome) -> Vec<Command> {
        let why = format!("the VM may still write on its last host: {outcome}: {}", evidence_text(&self.evidence));
        self.refuse(outcome, ErrorCode::new(Code::HOST_START_VM, why))
    }

    /// Newer evidence contradicts the attestation, so it does not count for the next attempt either.
    fn end_attestation(&self, commands: &mut Vec<Command>) {
        if let (LastHost::Unreachable(host), Some(_)) = (self.request.place, &self.request.attested_by) {
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
        Command::Done(Ok(Passed { vm: self.request.vm, cleared }))
    }

    /// Adds the evidence of the sibling host.
    fn note_report(&mut self, report: &Result<SiblingFenceVmOnHostReply>, next: Next, now: Instant) {
        let (verdict, unknown, finding) = match report {
            Ok(reply) => {
                self.executor = reply.executor_host_uuid;
                let doubt = tables::doubted(reply, &self.request.machine);
                let found = match (doubt, reply.ssh_reachable, reply.killed, reply.alive) {
                    (Some(UnknownReason::OtherMachine), ..) => "another or an unidentified machine answered",
                    (Some(_), ..) => "not every process there is visible",
                    (None, false, _, _) => "host unreachable",
                    (None, true, true, false) => "killed the VM, verified gone",
                    (None, true, false, false) => "no QEMU of the VM there, verified",
                    (None, true, _, true) => "the VM is still alive",
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
                let finding = match error.opaque.get("reason") {
                    Some(reason) => format!("{reason}: {error}"),
                    None => error.to_string(),
                };
                (Verdict::Unknown, unknown, finding)
            }
        };
        let reply = report.as_ref().ok();
        let base = self.evidence_of(Source::Sibling, verdict, finding, now);
        self.push(Evidence {
            unknown,
            by: self.executor.map(|host| host.to_string()),
            machine: reply.and_then(|reply| reply.machine.clone()),
            sight: reply.and_then(|reply| reply.sight.clone()),
            ..base
        });
    }

    fn evidence_of(&self, source: Source, verdict: Verdict, finding: String, now: Instant) -> Evidence {
        let host_uuid = if let LastHost::Unreachable(host) = self.request.place { host } else { self.request.target };
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
            said: finding,
        }
    }

    fn found(&mut self, source: Source, verdict: Verdict, finding: String, now: Instant) {
        self.push(self.evidence_of(source, verdict, finding, now));
    }

    fn found_unknown(&mut self, source: Source, unknown: UnknownReason, finding: String, now: Instant) {
        self.push(Evidence { unknown: Some(unknown), ..self.evidence_of(source, Verdict::Unknown, finding, now) });
    }

    fn push(&mut self, evidence: Evidence) {
        self.evidence.push(evidence);
    }

    /// The storages of the VM's volumes, without duplicates.
    fn clusters(&self) -> Vec<StorageId> {
        let mut storages: Vec<_> = self.request.volumes.iter().map(|(storage, _)| *storage).collect();
        storages.sort();
        storages.dedup();
        storages
    }
}

/// All evidence as one line, for readers.
pub fn evidence_text(evidence: &[Evidence]) -> String {
    evidence.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}
