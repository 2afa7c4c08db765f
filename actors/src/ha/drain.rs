//! How a host is emptied: each VM that runs there is stopped in order, verified gone, and started where there is room.
//!
//! ```text
//! runs there --room elsewhere--> intent durable --> stopped, verified gone --> started elsewhere, by the flows of HA --> over
//!     ^            |                                        |
//!     +-- none: it runs on --+------ it does not stop ------+
//! ```
//! Invariants: no VM is stopped that has nowhere to go. The intent is durable before the stop (I4), and ends only when the
//! VM runs, or is not to run: a controller that is killed in between still owes the start, whatever its `ha` is. It is
//! started by the way of every start, which asks the drained host once more (I1), when it was stopped for long enough that
//! what restarts it there would have done so. So many at once (I8), counting those that are stopped and did not start:
//! whatever goes wrong, no more users than that are without their VM.
//! Derived anew on every event, as all of HA. Rejected: to stop with "not to run" and start as if an operator had. What an
//! operator stops meanwhile would be started; and a crash between would leave a NeverStop VM down.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use ringfence_messages::{
    ClusterId, Code, ErrorCode, HostId, Result, VmId,
    ha::{DrainPlan, DrainStep, HostDrained, TargetReply, VmMoveChanged},
    vm::{RunningVm, VmState},
};

use super::{
    cleaning::{WATCH_EVERY, WATCH_LOOKS},
    core::{Belief, Command, Core, Fact, RETRY_CEILING},
    placement::{Candidate, nowhere, spread},
};
use crate::sabotage::{self, Sabotage};

/// VMs that are moved at once, over all hosts. Too low: a large host is empty late. Too high: so many users are without
/// their VM at once, longer when hosts that start them get slow.
pub const MOVES_AT_ONCE: usize = 2;

/// For so long a VM that was to be stopped has to be seen running where it was until it is believed to have stayed. Too
/// low: an old word is taken for a new one. Too high: it is tried again late.
pub const STAYS_AFTER: Duration = Duration::from_secs(2);

/// For so long a VM has to be stopped until it is started elsewhere: a unit or a watchdog of its host may start it again,
/// which the start then finds when it asks that host. Too low: it comes after that, and two write. Too high: users wait.
/// As long as a host that is cleaned is watched.
pub const WATCHED: Duration = WATCH_EVERY.saturating_mul(WATCH_LOOKS);

/// Shortest wait until a VM that could not be moved is tried again is twice that. Too low: a guest that does not stop is
/// asked to all the time. Too high: room that comes is noticed late.
const RETRY_FLOOR: Duration = Duration::from_secs(2);

/// VMs that are named when it is said how a drain stands. More would not be read.
const NAMED: usize = 10;

/// What is known of all drains.
#[derive(Debug, Default)]
pub(super) struct Drains {
    /// The hosts, and whether it was told that they are empty.
    pub(super) hosts: BTreeMap<HostId, bool>,
    /// VMs that are being moved.
    pub(super) moves: BTreeMap<VmId, Move>,
    /// VMs that could not be moved.
    stuck: BTreeMap<VmId, Stuck>,
    /// Those of them for a reason that was not told yet.
    unsaid: BTreeSet<VmId>,
}

/// A VM that is being moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Move {
    /// Off this host.
    pub from: HostId,
    /// The start that is ended by it.
    pub incarnation: u64,
    step: Step,
    /// The journal knows of it.
    durable: bool,
    /// Since when it is believed to be stopped.
    stopped: Option<Duration>,
    /// It was verified gone: where it runs on all the same, its host started it again.
    gone: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// It is asked where there is room.
    Placing,
    /// Its intent is being recorded.
    Intending,
    /// It is being stopped.
    Stopping,
    /// It was stopped at that time, or it is not known whether: what is believed of it says what is to be done.
    Out(Duration),
    /// It was to be stopped and runs on. Should it end after all, of a kill that took long, it is owed a start.
    Stayed,
}

impl Move {
    /// One that the journal remembers.
    pub fn remembered(from: HostId, incarnation: u64) -> Move {
        Move { from, incarnation, step: Step::Out(Duration::ZERO), durable: true, stopped: None, gone: false }
    }

    /// Whether the flows of HA may not bring it back yet: it is being stopped, or was just now.
    pub(super) fn holds(&self, state: VmState, now: Duration) -> bool {
        let watched = sabotage::on(Sabotage::DrainUnwatched)
            || self.stopped.is_some_and(|since| now.saturating_sub(since) >= WATCHED);
        !matches!(self.step, Step::Out(_) | Step::Stayed) || (state == VmState::Stopped && !watched)
    }
}

/// Why a VM is not moved, how often that was tried, and when it is again.
#[derive(Debug, Default)]
struct Stuck {
    why: String,
    tries: u32,
    next: Duration,
}

impl Drains {
    pub(super) fn new(hosts: BTreeMap<HostId, bool>, moves: BTreeMap<VmId, Move>) -> Drains {
        Drains { hosts, moves, ..Drains::default() }
    }

    /// It stays for now; whether that is news.
    fn stays(&mut self, vm: VmId, why: &str, now: Duration) -> bool {
        let stuck = self.stuck.entry(vm).or_default();
        stuck.tries = stuck.tries.saturating_add(1);
        stuck.next = now + RETRY_CEILING.min(RETRY_FLOOR * (1 << stuck.tries.min(10)));
        let news = stuck.why != why;
        why.clone_into(&mut stuck.why);
        news
    }
}

impl Core {
    /// A host is to be emptied, from now on or anew.
    pub(super) fn drain_begins(&mut self, host: HostId) {
        self.drains.hosts.insert(host, false);
        // Who asks again wants it tried now.
        self.forget_stuck(host);
    }

    /// A host is in service again: what was moved stays where it is, what is stopped is started, there too.
    pub(super) fn drain_ends(&mut self, host: HostId) {
        self.drains.hosts.remove(&host);
        self.forget_stuck(host);
    }

    fn forget_stuck(&mut self, host: HostId) {
        let there = self.on_host.get(&host).into_iter().flatten();
        there.for_each(|id| drop(self.drains.stuck.remove(id)));
    }

    /// Ends moves that are over, and begins others.
    pub(super) fn drain(&mut self, now: Duration, commands: &mut Vec<Command>) {
        self.end_moves(now, commands);
        for (id, of) in &mut self.drains.moves {
            let stopped = self.vms.get(id).is_some_and(|vm| vm.belief.state == VmState::Stopped);
            of.stopped = stopped.then(|| of.stopped.unwrap_or(now));
        }
        let on_host = &self.on_host;
        for (host, told) in &mut self.drains.hosts {
            // One that was empty and is not any more is asked again.
            *told &= on_host.get(host).is_none_or(BTreeSet::is_empty);
        }
        let mut left = match sabotage::on(Sabotage::DrainAtOnce) {
            true => usize::MAX,
            false => MOVES_AT_ONCE.saturating_sub(self.drains.moves.iter().filter(|of| self.counts(of)).count()),
        };
        for from in self.drains.hosts.keys().filter(|host| self.hosts.contains_key(host)) {
            for id in self.on_host.get(from).into_iter().flatten() {
                if left == 0 {
                    return;
                }
                let (Some(vm), Ok(_)) = (self.vms.get(id), self.directory.vm(*id)) else { continue };
                let due = self.drains.stuck.get(id).is_none_or(|stuck| now >= stuck.next);
                let before = self.drains.moves.get(id);
                let idle = vm.flow.is_none() && before.is_none_or(|of| of.step == Step::Stayed);
                if vm.belief.state == VmState::Running && idle && due {
                    left -= 1;
                    // One that is not to run needs no place.
                    let step = if vm.belief.wanted { Step::Placing } else { Step::Intending };
                    let durable = before.is_some_and(|of| of.durable);
                    self.drains
                        .moves
                        .insert(*id, Move { step, durable, ..Move::remembered(*from, vm.belief.incarnation) });
                    commands.extend(match vm.belief.wanted {
                        true => Some(Command::Place(*id)),
                        false => {
                            self.moved(*id, true, None, "it is not to run: it is stopped").map(Command::IntendMove)
                        }
                    });
                }
            }
        }
    }

    /// Asks draining hosts that seem empty, and those that are not yet, what runs there.
    pub(super) fn look_at_drained(&self, commands: &mut Vec<Command>) {
        let asked = self.drains.hosts.iter().filter(|(host, told)| !**told && self.hosts.contains_key(host));
        commands.extend(asked.map(|(host, _)| Command::List(*host)));
    }

    /// It was asked where a VM has room.
    pub(super) fn placed(&mut self, id: VmId, found: Result<TargetReply>, now: Duration, commands: &mut Vec<Command>) {
        let Some(of) = self.drains.moves.get(&id).copied().filter(|of| of.step == Step::Placing) else { return };
        let target = match found {
            Ok(TargetReply { host_uuid: Some(target), .. }) => Ok(Some(target)),
            Ok(_) if sabotage::on(Sabotage::DrainAnyway) => Ok(None),
            Ok(TargetReply { full, .. }) => {
                Err(self.directory.vm(id).map_or_else(|gone| gone.to_string(), |vm| nowhere(vm, full)))
            }
            Err(error) => Err(format!("where there is room is not known: {error}")),
        };
        let runs = self.runs_at(id, of.from) && self.drains.hosts.contains_key(&of.from);
        match target {
            // Whoever was to be stopped before may have ended of that.
            _ if !runs && of.durable => drop(self.drains.moves.insert(id, Move { step: Step::Out(now), ..of })),
            _ if !runs => drop(self.drains.moves.remove(&id)),
            Ok(target) => {
                self.drains.moves.insert(id, Move { step: Step::Intending, ..of });
                let reason = "its host is drained: it is stopped there, and started where there is room";
                commands.extend(self.moved(id, true, target, reason).map(Command::IntendMove));
            }
            Err(why) => {
                let news = self.drains.stays(id, &why, now);
                self.stayed(id, news, &why, commands);
            }
        }
    }

    /// It runs on where it is: whoever was to be stopped is remembered as long as that may still come true.
    fn stayed(&mut self, id: VmId, news: bool, why: &str, commands: &mut Vec<Command>) {
        let Some(of) = self.drains.moves.get(&id).copied() else { return };
        if news {
            let told = self.moved(id, of.durable, Some(of.from), &format!("it stays, and runs on: {why}"));
            commands.extend(told.map(|event| Command::Tell(Fact::Move(event))));
        }
        match of.durable {
            true => drop(self.drains.moves.insert(id, Move { step: Step::Stayed, ..of })),
            false => drop(self.drains.moves.remove(&id)),
        }
    }

    /// Whether it is one of those that are moved at once.
    fn counts(&self, (id, of): &(&VmId, &Move)) -> bool {
        of.step != Step::Stayed || !self.runs_at(**id, of.from)
    }

    /// The intent to move a VM is durable, or cannot be made so.
    pub(super) fn move_intended(&mut self, id: VmId, result: Result<()>, now: Duration, commands: &mut Vec<Command>) {
        let Some(of) = self.drains.moves.get(&id).copied().filter(|of| of.step == Step::Intending) else { return };
        match result {
            Err(error) => {
                let why = format!("its move cannot be recorded: {error}");
                self.drains.stays(id, &why, now);
                self.stayed(id, false, &why, commands);
            }
            Ok(()) if !self.drains.hosts.contains_key(&of.from) => {
                self.drains.moves.insert(id, Move { step: Step::Out(now), durable: true, ..of });
            }
            Ok(()) => {
                self.drains.moves.insert(id, Move { step: Step::Stopping, durable: true, ..of });
                commands.push(Command::Vacate(id, of.from));
            }
        }
    }

    /// A VM that is moved was stopped and verified gone, or that failed.
    pub(super) fn vacated(&mut self, id: VmId, result: Result<Belief>, now: Duration) {
        let Some(of) = self.drains.moves.get(&id).copied().filter(|of| of.step == Step::Stopping) else { return };
        self.drains.moves.insert(id, Move { step: Step::Out(now), gone: result.is_ok(), ..of });
        match result {
            Ok(belief) => self.believe(id, belief, now),
            Err(error) => {
                let why = format!("it does not stop: {error}");
                let news = self.drains.stays(id, &why, now);
                self.drains.unsaid.extend(news.then_some(id));
            }
        }
    }

    /// A host that is drained said what runs there.
    pub(super) fn drained(&mut self, host: HostId, running: &[RunningVm], commands: &mut Vec<Command>) {
        let ours = |process: &RunningVm| !process.other_agent && self.directory.vm(process.vm_uuid).is_ok();
        let ours = running.iter().any(ours);
        let waiting = self.drains.moves.values().any(|of| of.from == host);
        let empty = !ours && !waiting && self.vms_on(host) == 0;
        let Some(told) = self.drains.hosts.get_mut(&host) else { return };
        if std::mem::replace(told, empty) || !empty {
            return;
        }
        let drained = HostDrained { host_uuid: host, host: self.directory.host_name(host) };
        commands.push(Command::Tell(Fact::Drained(drained)));
    }

    /// How a drain stands, in words.
    pub(super) fn drain_standing(&self, host: HostId) -> Option<String> {
        if *self.drains.hosts.get(&host)? {
            return Some("drained: it was asked, and nothing runs there".to_owned());
        }
        let name = |id: &VmId| self.directory.vm_name(*id);
        let moving: BTreeSet<&VmId> =
            self.drains.moves.iter().filter(|of| of.1.from == host && self.counts(of)).map(|(id, _)| id).collect();
        let there = self.on_host.get(&host).into_iter().flatten();
        let waiting: Vec<&VmId> = there.filter(|id| !moving.contains(id)).collect();
        if moving.is_empty() && waiting.is_empty() {
            return Some("draining: nothing is believed to run there, and it is asked".to_owned());
        }
        let mut says: Vec<String> = moving.iter().map(|id| format!("{} is being moved", name(id))).collect();
        says.extend(waiting.iter().map(|id| match self.drains.stuck.get(id) {
            _ if self.vms.get(id).is_some_and(|vm| vm.belief.state == VmState::Unknown) => {
                format!("{}: whether it runs is not known", name(id))
            }
            Some(stuck) => format!("{} stays for now: {}", name(id), stuck.why),
            None => format!("{} waits for its turn", name(id)),
        }));
        let more = says.len().saturating_sub(NAMED);
        says.truncate(NAMED);
        says.extend((more > 0).then(|| format!("{more} more")));
        Some(format!("draining: {}", says.join("; ")))
    }

    /// What a drain of this host would do now, if these hosts of each cluster can take VMs.
    pub fn plan_drain(&self, host: HostId, mut candidates: BTreeMap<ClusterId, Vec<Candidate>>) -> DrainPlan {
        candidates.values_mut().for_each(|of| of.retain(|candidate| candidate.host != host));
        let mut plan = DrainPlan { host: self.directory.host_name(host), feasible: true, vms: Vec::new() };
        for id in self.on_host.get(&host).into_iter().flatten() {
            let (Some(of), Ok(vm)) = (self.vms.get(id), self.directory.vm(*id)) else { continue };
            let candidates = candidates.entry(vm.cluster).or_default();
            let full = u32::try_from(candidates.len()).unwrap_or(u32::MAX);
            let (target, what) = match of.belief.state {
                VmState::Unknown => (None, Err("whether it runs is not known: it is not touched".to_owned())),
                _ if !of.belief.wanted => (None, Ok("it is not to run: it is stopped".to_owned())),
                _ => match spread(candidates, vm.memory_mib) {
                    Some(target) => {
                        let target = self.directory.host_name(target);
                        let what = format!("stopped, verified gone, started on {target}");
                        (Some(target), Ok(what))
                    }
                    None => (None, Err(format!("it stays, and runs on: {}", nowhere(vm, full)))),
                },
            };
            plan.feasible &= what.is_ok();
            plan.vms.push(DrainStep { vm: vm.name.clone(), target, what: what.unwrap_or_else(|why| why) });
        }
        plan
    }

    /// Clusters of VMs that run or may run on a host.
    pub(super) fn clusters_on(&self, host: HostId) -> BTreeSet<ClusterId> {
        let there = self.on_host.get(&host).into_iter().flatten();
        there.filter_map(|id| self.directory.vm(*id).ok().map(|vm| vm.cluster)).collect()
    }

    /// What the shell asks for a place with; an error if there is nothing to place any more.
    pub(super) fn place_of(&self, id: VmId) -> Result<(HostId, ClusterId, u64)> {
        let gone = || ErrorCode::new(Code::NOT_FOUND, "it is not being moved any more");
        let of = self.drains.moves.get(&id).ok_or_else(gone)?;
        self.directory.vm(id).map(|vm| (of.from, vm.cluster, vm.memory_mib))
    }

    fn runs_at(&self, id: VmId, host: HostId) -> bool {
        let belief = self.vms.get(&id).map(|vm| vm.belief);
        belief.is_some_and(|of| of.state == VmState::Running && of.host == Some(host))
    }

    /// Those that run, or are not to run, are not being moved any more.
    fn end_moves(&mut self, now: Duration, commands: &mut Vec<Command>) {
        let (mut over, mut stay) = (Vec::new(), Vec::new());
        for (id, of) in &self.drains.moves {
            let since = match of.step {
                Step::Out(since) => since,
                Step::Stayed => Duration::ZERO,
                _ => continue,
            };
            let Some(vm) = self.vms.get(id) else { continue };
            let Belief { state, host, incarnation, wanted } = vm.belief;
            let stayed = host == Some(of.from) && incarnation == of.incarnation;
            let said = self.drains.stuck.get(id).map_or("it was not stopped", |stuck| stuck.why.as_str());
            match state {
                _ if vm.flow.is_some() => {}
                _ if self.directory.vm(*id).is_err() => over.push((*id, None, "it left the inventory".to_owned())),
                VmState::Running if !stayed => {
                    let at = host.map_or_else(String::new, |host| self.directory.host_name(host));
                    over.push((*id, host, format!("it runs on {at}")));
                }
                VmState::Running if now.saturating_sub(since) >= STAYS_AFTER => {
                    match self.drains.hosts.contains_key(&of.from) {
                        true if of.step == Step::Stayed => {}
                        true => stay.push((*id, said.to_owned())),
                        false => over.push((*id, host, format!("it stays, and runs on: {said}"))),
                    }
                }
                VmState::Stopped if !wanted => over.push((*id, None, "it is stopped, and not to run".to_owned())),
                _ => {}
            }
        }
        for (id, mut why) in stay {
            let mut news = self.drains.unsaid.remove(&id);
            if self.drains.moves.get_mut(&id).is_some_and(|of| std::mem::take(&mut of.gone)) {
                "something there started it again".clone_into(&mut why);
                news |= self.drains.stays(id, &why, now);
            }
            self.stayed(id, news, &why, commands);
        }
        for (id, host, reason) in over {
            let told = self.moved(id, false, host, &reason);
            commands.extend(told.map(|event| Command::Tell(Fact::Move(event))));
            let of = self.drains.moves.remove(&id);
            self.drains.unsaid.remove(&id);
            if of.is_some_and(|of| host != Some(of.from)) {
                self.drains.stuck.remove(&id);
            }
        }
    }

    fn moved(&self, id: VmId, moving: bool, host: Option<HostId>, reason: &str) -> Option<VmMoveChanged> {
        let of = self.drains.moves.get(&id)?;
        Some(VmMoveChanged {
            vm_uuid: id,
            vm: self.directory.vm_name(id),
            from_host_uuid: of.from,
            from_host: self.directory.host_name(of.from),
            incarnation: of.incarnation,
            moving,
            host: host.map(|host| self.directory.host_name(host)),
            reason: reason.to_owned(),
        })
    }
}
