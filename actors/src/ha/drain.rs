//! Drain: each VM on a host is stopped, verified gone, and started on another host with room.
//!
//! ```text
//! runs there --room elsewhere--> intent durable --> stopped, verified gone --> failover to another host --> over
//!     ^            |                                        |
//!     +-- none: it runs on --+------ it does not stop ------+
//! ```
//! Invariants: no VM is stopped without a target. The intent is durable before the stop (I4), and ends only when the
//! VM runs or its desired state is stopped: a restarted controller still starts it, whatever its HA mode is. The
//! start is a normal one that queries the drained host again (I1), after a wait in which a restarting unit there
//! would show. At most [`MOVES_AT_ONCE`] VMs (I8), including those that were stopped and did not start. Derived from
//! the current state on every event.
//! Alternatives considered: stop with desired state stopped and start like an operator. A stop by an operator in
//! between would be undone, and a crash in between would leave a `NeverStop` VM down.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use ringfence_messages::{
    ClusterId, Code, ErrorCode, HostId, Result, VmId,
    ha::{Candidate, DrainPlan, DrainStep, HostDrained, TargetReply, VmMoveChanged},
    vm::{RunningVm, VmState},
};

use super::{
    core::{Command, Core, HaEvent, ObservedState, RETRY_CEILING},
    reconciliation::{WATCH_EVERY, WATCH_LOOKS},
};
use crate::{
    placement::{nowhere, spread},
    sabotage::{self, Sabotage},
};

/// VMs moved at the same time, over all hosts. Too low: a large host is empty late. Too high: as many VMs are down at
/// the same time, and for longer if target hosts are slow.
pub const MOVES_AT_ONCE: usize = 2;

/// A VM that should have stopped must be seen running this long before the stop counts as failed. Too low: an old
/// report counts as a new one. Too high: the retry is late.
pub const STAYS_AFTER: Duration = Duration::from_secs(2);

/// Wait between the stop of a VM and its start elsewhere. A unit or a watchdog of the host may restart the VM, which
/// the start then finds when it queries that host. Too low: the restart comes later, and two QEMUs write. Too high:
/// users wait. Equal to the watch of a reconciled host.
pub const WATCHED: Duration = WATCH_EVERY.saturating_mul(WATCH_LOOKS);

/// Half of the shortest wait before the move of a VM is retried. Too low: a guest that does not stop gets stop
/// commands all the time. Too high: room that becomes free is used late.
const RETRY_FLOOR: Duration = Duration::from_secs(2);

/// VMs listed in the status of a drain.
const NAMED: usize = 10;

/// State of all drains.
#[derive(Debug, Default)]
pub(super) struct Drains {
    /// Hosts with a requested drain, and whether completion was emitted.
    pub(super) hosts: BTreeMap<HostId, bool>,
    /// VMs with a move in progress.
    pub(super) moves: BTreeMap<VmId, Move>,
    /// VMs that could not be moved.
    stuck: BTreeMap<VmId, Stuck>,
    /// Those of them whose reason was not emitted yet.
    unreported: BTreeSet<VmId>,
}

/// The move of one VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Move {
    /// The drained host.
    pub from: HostId,
    /// The incarnation that the move stops.
    pub incarnation: u64,
    step: Step,
    /// The intent is in the journal.
    durable: bool,
    /// Since when the VM is observed as stopped.
    stopped: Option<Duration>,
    /// Verified gone: if it runs on the host after that, the host restarted it.
    gone: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// A target is being queried.
    Placing,
    /// The intent is being recorded.
    Intending,
    /// The VM is being stopped.
    Stopping,
    /// Stopped at that time, or the outcome is unknown: the observed state decides.
    Out(Duration),
    /// The stop failed and the VM runs. If it ends later, the move starts it elsewhere.
    Stayed,
}

impl Move {
    /// A move replayed from the journal.
    pub fn replayed(from: HostId, incarnation: u64) -> Move {
        Move { from, incarnation, step: Step::Out(Duration::ZERO), durable: true, stopped: None, gone: false }
    }

    /// Whether a failover must wait: the VM is being stopped, or was stopped just now.
    pub(super) fn holds(&self, state: VmState, now: Duration) -> bool {
        let watched = sabotage::on(Sabotage::DrainUnwatched)
            || self.stopped.is_some_and(|since| now.saturating_sub(since) >= WATCHED);
        !matches!(self.step, Step::Out(_) | Step::Stayed) || (state == VmState::Stopped && !watched)
    }
}

/// Why a VM cannot be moved, and the backoff.
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

    /// Notes that the VM stays for now. Returns whether the reason is new.
    fn stays(&mut self, vm: VmId, why: &str, now: Duration) -> bool {
        let stuck = self.stuck.entry(vm).or_default();
        stuck.tries = stuck.tries.saturating_add(1);
        stuck.next = now + RETRY_CEILING.min(RETRY_FLOOR * (1 << stuck.tries.min(10)));
        let is_new = stuck.why != why;
        why.clone_into(&mut stuck.why);
        is_new
    }
}

impl Core {
    /// An operator requested a drain, possibly again.
    pub(super) fn begin_drain(&mut self, host: HostId) {
        self.drains.hosts.insert(host, false);
        // A repeated request retries at once.
        self.forget_stuck(host);
    }

    /// The host returned to service: moved VMs stay on their new hosts, stopped ones start, possibly here.
    pub(super) fn end_drain(&mut self, host: HostId) {
        self.drains.hosts.remove(&host);
        self.forget_stuck(host);
    }

    fn forget_stuck(&mut self, host: HostId) {
        let there = self.on_host.get(&host).into_iter().flatten();
        there.for_each(|id| drop(self.drains.stuck.remove(id)));
    }

    /// Ends completed moves and begins new ones.
    pub(super) fn drain(&mut self, now: Duration, commands: &mut Vec<Command>) {
        self.end_moves(now, commands);
        for (id, vm_move) in &mut self.drains.moves {
            let stopped = self.vms.get(id).is_some_and(|vm| vm.observed.state == VmState::Stopped);
            vm_move.stopped = stopped.then(|| vm_move.stopped.unwrap_or(now));
        }
        let on_host = &self.on_host;
        for (host, told) in &mut self.drains.hosts {
            // A drained host with a VM again is queried again.
            *told &= on_host.get(host).is_none_or(BTreeSet::is_empty);
        }
        let under_way = self.drains.moves.iter().filter(|(id, vm_move)| self.counts(**id, vm_move)).count();
        let unlimited = sabotage::on(Sabotage::DrainAtOnce);
        let mut left = if unlimited { usize::MAX } else { MOVES_AT_ONCE.saturating_sub(under_way) };
        for from in self.drains.hosts.keys().filter(|host| self.hosts.contains_key(host)) {
            for id in self.on_host.get(from).into_iter().flatten() {
                if left == 0 {
                    return;
                }
                let (Some(vm), Ok(_)) = (self.vms.get(id), self.inventory.vm(*id)) else { continue };
                let due = self.drains.stuck.get(id).is_none_or(|stuck| now >= stuck.next);
                let before = self.drains.moves.get(id);
                let idle = vm.failover.is_none() && before.is_none_or(|vm_move| vm_move.step == Step::Stayed);
                if vm.observed.state == VmState::Running && idle && due {
                    left -= 1;
                    // A VM that should be stopped needs no target.
                    let step = if vm.observed.wanted { Step::Placing } else { Step::Intending };
                    let durable = before.is_some_and(|vm_move| vm_move.durable);
                    self.drains
                        .moves
                        .insert(*id, Move { step, durable, ..Move::replayed(*from, vm.observed.incarnation) });
                    commands.extend(match vm.observed.wanted {
                        true => Some(Command::Place(*id)),
                        false => self
                            .moved(*id, true, None, "its desired state is stopped: the VM is stopped")
                            .map(Command::IntendMove),
                    });
                }
            }
        }
    }

    /// Queries the processes of hosts whose drain has not completed.
    pub(super) fn query_drained(&self, commands: &mut Vec<Command>) {
        let open = self.drains.hosts.iter().filter(|(host, emitted)| !**emitted && self.hosts.contains_key(host));
        commands.extend(open.map(|(host, _)| Command::List(*host)));
    }

    /// Handles the target of a VM.
    pub(super) fn placed(&mut self, id: VmId, found: Result<TargetReply>, now: Duration, commands: &mut Vec<Command>) {
        let Some(vm_move) = self.drains.moves.get(&id).copied().filter(|vm_move| vm_move.step == Step::Placing) else {
            return;
        };
        let target = match found {
            Ok(TargetReply { host_uuid: Some(target), .. }) => Ok(Some(target)),
            Ok(_) if sabotage::on(Sabotage::DrainAnyway) => Ok(None),
            Ok(TargetReply { full, .. }) => {
                Err(self.inventory.vm(id).map_or_else(|gone| gone.to_string(), |vm| nowhere(vm, full)))
            }
            Err(error) => Err(format!("placement failed: {error}")),
        };
        let runs = self.runs_at(id, vm_move.from) && self.drains.hosts.contains_key(&vm_move.from);
        match target {
            // The earlier stop may have taken effect late.
            _ if !runs && vm_move.durable => {
                self.drains.moves.insert(id, Move { step: Step::Out(now), ..vm_move });
            }
            _ if !runs => {
                self.drains.moves.remove(&id);
            }
            Ok(target) => {
                self.drains.moves.insert(id, Move { step: Step::Intending, ..vm_move });
                let reason = "its host is being drained: stop it there, then start it on another host";
                commands.extend(self.moved(id, true, target, reason).map(Command::IntendMove));
            }
            Err(why) => {
                let is_new = self.drains.stays(id, &why, now);
                self.stayed(id, is_new, &why, commands);
            }
        }
    }

    /// The VM keeps running on its host. A recorded move is kept while its stop may still take effect.
    fn stayed(&mut self, id: VmId, is_new: bool, why: &str, commands: &mut Vec<Command>) {
        let Some(vm_move) = self.drains.moves.get(&id).copied() else { return };
        if is_new {
            let event =
                self.moved(id, vm_move.durable, Some(vm_move.from), &format!("it keeps running on its host: {why}"));
            commands.extend(event.map(|event| Command::Emit(HaEvent::Move(event))));
        }
        if vm_move.durable {
            self.drains.moves.insert(id, Move { step: Step::Stayed, ..vm_move });
        } else {
            self.drains.moves.remove(&id);
        }
    }

    /// Whether the move counts against [`MOVES_AT_ONCE`].
    fn counts(&self, id: VmId, vm_move: &Move) -> bool {
        vm_move.step != Step::Stayed || !self.runs_at(id, vm_move.from)
    }

    /// Handles whether the intent of a move is durable.
    pub(super) fn move_intended(&mut self, id: VmId, result: Result<()>, now: Duration, commands: &mut Vec<Command>) {
        let Some(vm_move) = self.drains.moves.get(&id).copied().filter(|vm_move| vm_move.step == Step::Intending)
        else {
            return;
        };
        match result {
            Err(error) => {
                let why = format!("the move cannot be recorded: {error}");
                self.drains.stays(id, &why, now);
                self.stayed(id, false, &why, commands);
            }
            Ok(()) if !self.drains.hosts.contains_key(&vm_move.from) => {
                self.drains.moves.insert(id, Move { step: Step::Out(now), durable: true, ..vm_move });
            }
            Ok(()) => {
                self.drains.moves.insert(id, Move { step: Step::Stopping, durable: true, ..vm_move });
                commands.push(Command::Evict(id, vm_move.from));
            }
        }
    }

    /// Handles the result of a stop.
    pub(super) fn evicted(&mut self, id: VmId, result: Result<ObservedState>, now: Duration) {
        let Some(vm_move) = self.drains.moves.get(&id).copied().filter(|vm_move| vm_move.step == Step::Stopping) else {
            return;
        };
        self.drains.moves.insert(id, Move { step: Step::Out(now), gone: result.is_ok(), ..vm_move });
        match result {
            Ok(observed) => self.observe(id, observed, now),
            Err(error) => {
                let why = format!("the VM does not stop: {error}");
                let is_new = self.drains.stays(id, &why, now);
                self.drains.unreported.extend(is_new.then_some(id));
            }
        }
    }

    /// Handles the processes of a drained host.
    pub(super) fn drained(&mut self, host: HostId, running: &[RunningVm], commands: &mut Vec<Command>) {
        let ours = |process: &RunningVm| !process.other_agent && self.inventory.vm(process.vm_uuid).is_ok();
        let ours = running.iter().any(ours);
        let waiting = self.drains.moves.values().any(|vm_move| vm_move.from == host);
        let empty = !ours && !waiting && self.vms_on(host) == 0;
        let Some(told) = self.drains.hosts.get_mut(&host) else { return };
        if std::mem::replace(told, empty) || !empty {
            return;
        }
        let drained = HostDrained { host_uuid: host, host: self.inventory.host_name(host) };
        commands.push(Command::Emit(HaEvent::Drained(drained)));
    }

    /// Status of a drain for readers.
    pub(super) fn drain_status(&self, host: HostId) -> Option<String> {
        if *self.drains.hosts.get(&host)? {
            return Some("drained: the host reports that nothing runs there".to_owned());
        }
        let name = |id: &VmId| self.inventory.vm_name(*id);
        let moving: BTreeSet<&VmId> = {
            let counted =
                self.drains.moves.iter().filter(|(id, vm_move)| vm_move.from == host && self.counts(**id, vm_move));
            counted.map(|(id, _)| id).collect()
        };
        let there = self.on_host.get(&host).into_iter().flatten();
        let waiting: Vec<&VmId> = there.filter(|id| !moving.contains(id)).collect();
        if moving.is_empty() && waiting.is_empty() {
            return Some("draining: no VM is known to run there; the host is being queried".to_owned());
        }
        let mut parts: Vec<String> = moving.iter().map(|id| format!("{} is being moved", name(id))).collect();
        parts.extend(waiting.iter().map(|id| match self.drains.stuck.get(id) {
            _ if self.vms.get(id).is_some_and(|vm| vm.observed.state == VmState::Unknown) => {
                format!("{}: its state is unknown", name(id))
            }
            Some(stuck) => format!("{} stays for now: {}", name(id), stuck.why),
            None => format!("{} waits for its turn", name(id)),
        }));
        let more = parts.len().saturating_sub(NAMED);
        parts.truncate(NAMED);
        parts.extend((more > 0).then(|| format!("{more} more")));
        Some(format!("draining: {}", parts.join("; ")))
    }

    /// What a drain of this host would do now, given the candidates of each cluster.
    pub fn plan_drain(&self, host: HostId, mut candidates: BTreeMap<ClusterId, Vec<Candidate>>) -> DrainPlan {
        candidates.values_mut().for_each(|hosts| hosts.retain(|candidate| candidate.host_uuid != host));
        let mut plan = DrainPlan { host: self.inventory.host_name(host), feasible: true, vms: Vec::new() };
        for id in self.on_host.get(&host).into_iter().flatten() {
            let (Some(known), Ok(vm)) = (self.vms.get(id), self.inventory.vm(*id)) else { continue };
            let candidates = candidates.entry(vm.cluster).or_default();
            let full = u32::try_from(candidates.len()).unwrap_or(u32::MAX);
            let (target, what) = match known.observed.state {
                VmState::Unknown => (None, Err("its state is unknown: it is not touched".to_owned())),
                _ if !known.observed.wanted => (None, Ok("its desired state is stopped: the VM is stopped".to_owned())),
                _ => match spread(candidates, vm.memory_mib) {
                    Some(target) => {
                        let target = self.inventory.host_name(target);
                        let what = format!("stopped, verified gone, started on {target}");
                        (Some(target), Ok(what))
                    }
                    None => (None, Err(format!("it keeps running on its host: {}", nowhere(vm, full)))),
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
        there.filter_map(|id| self.inventory.vm(*id).ok().map(|vm| vm.cluster)).collect()
    }

    /// Host, cluster and memory for the placement query; an error if the move has ended.
    pub(super) fn place_of(&self, id: VmId) -> Result<(HostId, ClusterId, u64)> {
        let gone = || ErrorCode::new(Code::NOT_FOUND, "the move has ended");
        let vm_move = self.drains.moves.get(&id).ok_or_else(gone)?;
        self.inventory.vm(id).map(|vm| (vm_move.from, vm.cluster, vm.memory_mib))
    }

    fn runs_at(&self, id: VmId, host: HostId) -> bool {
        let observed = self.vms.get(&id).map(|vm| vm.observed);
        observed.is_some_and(|vm| vm.state == VmState::Running && vm.host == Some(host))
    }

    /// Ends the moves of VMs that run, or that should be stopped.
    fn end_moves(&mut self, now: Duration, commands: &mut Vec<Command>) {
        let (mut over, mut stay) = (Vec::new(), Vec::new());
        for (id, vm_move) in &self.drains.moves {
            let since = match vm_move.step {
                Step::Out(since) => since,
                Step::Stayed => Duration::ZERO,
                _ => continue,
            };
            let Some(vm) = self.vms.get(id) else { continue };
            let ObservedState { state, host, incarnation, wanted } = vm.observed;
            let stayed = host == Some(vm_move.from) && incarnation == vm_move.incarnation;
            let reason = self.drains.stuck.get(id).map_or("the VM was not stopped", |stuck| stuck.why.as_str());
            match state {
                _ if vm.failover.is_some() => {}
                _ if self.inventory.vm(*id).is_err() => over.push((*id, None, "removed from the inventory".to_owned())),
                VmState::Running if !stayed => {
                    let at = host.map_or_else(String::new, |host| self.inventory.host_name(host));
                    over.push((*id, host, format!("runs on {at}")));
                }
                VmState::Running if now.saturating_sub(since) >= STAYS_AFTER => {
                    match self.drains.hosts.contains_key(&vm_move.from) {
                        true => stay.push((*id, reason.to_owned())),
                        false => over.push((*id, host, format!("it keeps running on its host: {reason}"))),
                    }
                }
                VmState::Stopped if !wanted => over.push((*id, None, "stopped, as desired".to_owned())),
                _ => {}
            }
        }
        for (id, mut why) in stay {
            let mut is_new = self.drains.unreported.remove(&id);
            if self.drains.moves.get_mut(&id).is_some_and(|vm_move| std::mem::take(&mut vm_move.gone)) {
                "something on the host started it again".clone_into(&mut why);
                is_new |= self.drains.stays(id, &why, now);
            }
            self.stayed(id, is_new, &why, commands);
        }
        for (id, host, reason) in over {
            let event = self.moved(id, false, host, &reason);
            commands.extend(event.map(|event| Command::Emit(HaEvent::Move(event))));
            let vm_move = self.drains.moves.remove(&id);
            self.drains.unreported.remove(&id);
            if vm_move.is_some_and(|vm_move| host != Some(vm_move.from)) {
                self.drains.stuck.remove(&id);
            }
        }
    }

    fn moved(&self, id: VmId, moving: bool, host: Option<HostId>, reason: &str) -> Option<VmMoveChanged> {
        let vm_move = self.drains.moves.get(&id)?;
        Some(VmMoveChanged {
            vm_uuid: id,
            vm: self.inventory.vm_name(id),
            from_host_uuid: vm_move.from,
            from_host: self.inventory.host_name(vm_move.from),
            incarnation: vm_move.incarnation,
            moving,
            host: host.map(|host| self.inventory.host_name(host)),
            reason: reason.to_owned(),
        })
    }
}
