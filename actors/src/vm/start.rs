//! How a VM starts: target chosen, hosts searched, fence passed, disks exported, QEMU launched.
//!
//! Invariants: as in the core. Every host where the VM may run is searched or fenced, with one attempt for each that
//! cannot be queried. A start command is dated by the clock of its host and expires with its permit. The VM's host
//! changes only when QEMU may have been launched (K13).

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use ringfence_messages::{
    Code, ErrorCode, HostId, Result,
    evidence::Machine,
    vm::{DiskSource, DiskSpec, StartVmCmd, VmState},
};
use uuid::Uuid;

use super::{
    claims::Presence,
    core::{Command, Core, Found, Location, Operation, StartRequest, UnreachableHost},
};
use crate::fence::{
    Cleared, Passed, Proof, Start, StartPermit,
    attempt::{self, Attempt, FenceRequest, LastHost},
};
use crate::{
    placement::nowhere,
    sabotage::{self, Sabotage},
};

/// A start during its fence, host by host.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Fencing {
    pub(super) attempt: Attempt,
    /// Requests of the attempts after this one.
    rest: Vec<FenceRequest>,
    start: Start,
    /// Every host where the VM may run.
    places: Vec<HostId>,
    cleared: Vec<Cleared>,
    passed: Vec<Passed>,
    reason: String,
}

impl Core {
    pub(super) fn choose(&mut self, request: StartRequest, found: Result<Found>) -> Vec<Command> {
        let Found { target: found, places: silent } = match found {
            Ok(found) => found,
            Err(error) => return vec![Command::Reply(Err(error))],
        };
        let Some(target) = found.host_uuid else {
            let details = match request.host {
                Some(_) => format!(
                    "the requested host cannot take {}: it is not Connected, is in maintenance or quarantine, or is in \
                     another cluster",
                    self.vm.name
                ),
                None => nowhere(&self.vm, found.full),
            };
            return vec![Command::Reply(Err(ErrorCode::new(Code::HOST_DISCONNECTED, details)))];
        };
        let mut places = self.places();
        let unwatched = self.is_unwatched() && !sabotage::on(Sabotage::NoCensus);
        let unheard = found.unheard_host_uuids.into_iter().filter(|_| unwatched);
        places.extend(unheard.filter(|host| !self.places().contains(host)));
        // A host that does not answer pings is not queried.
        let is_silent = |host: &HostId| silent.iter().any(|place| place.host == *host);
        let answering = places.iter().copied().filter(|place| !is_silent(place));
        // Another program may have started it on any host of the cluster.
        let mut left: Vec<HostId> = [target].into_iter().chain(answering).chain(found.seen_host_uuids).collect();
        let mut once = std::collections::BTreeSet::new();
        left.retain(|host| once.insert(*host));
        let not_asked = places.iter().filter(|place| **place != target && is_silent(place)).map(|place| {
            let error = ErrorCode::new(Code::HOST_DISCONNECTED, "its agent does not answer pings");
            (*place, Err(error))
        });
        let found = not_asked.collect();
        let commands = left.iter().map(|host| Command::Search(*host)).collect();
        self.operation = Operation::Searching { request, target, places, silent, left, found };
        commands
    }

    /// Every host where the VM may run has answered, or could not be queried.
    pub(super) fn searched(
        &mut self,
        request: StartRequest,
        target: HostId,
        places: Vec<HostId>,
        silent: Vec<UnreachableHost>,
        found: Vec<(HostId, Result<Presence>)>,
        now: Instant,
    ) -> Vec<Command> {
        let answer_of = |host: HostId| found.iter().find(|(of, _)| *of == host).map(|(_, is)| is);
        // Its own host takes precedence: agents on one machine see each other's processes.
        let elsewhere = |host: &HostId| Some(*host) != self.place;
        // A migration target is the VM only if it is gone from its last host.
        let gone = |is: &Result<Presence>| matches!(is, Ok(Presence::Nothing(_) | Presence::Export));
        let left = self.place.is_none_or(|place| answer_of(place).is_some_and(gone));
        let runs_vm = |(host, presence): &&(HostId, Result<Presence>)| match presence {
            Ok(Presence::Running(_)) => true,
            Ok(Presence::MigrationTarget) => left || Some(*host) == self.place,
            _ => false,
        };
        // In another cluster: not taken over, and the VM does not start beside it.
        let foreign = found.iter().find(|(host, is)| {
            matches!(is, Ok(Presence::Running(_) | Presence::MigrationTarget))
                && !places.contains(host)
                && !self.may_claim(*host)
        });
        if let Some((host, _)) = foreign.filter(|_| !sabotage::on(Sabotage::FoundElsewhereIgnored)) {
            let details = format!(
                "a QEMU of {} runs on {} in another cluster: not started; stop it there first",
                self.vm.name,
                self.inventory.host_name(*host)
            );
            return vec![Command::Reply(Err(ErrorCode::new(Code::HOST_START_VM, details)))];
        }
        let mut running_on: Vec<HostId> = found.iter().filter(runs_vm).map(|(host, _)| *host).collect();
        running_on.sort_by_key(elsewhere);
        if let Some(host) = running_on.first().copied().filter(|_| !sabotage::on(Sabotage::FoundElsewhereIgnored)) {
            return self.found_running(host, &request, left);
        }
        if let Some((host, _)) = found.iter().find(|(_, is)| *is == Ok(Presence::MigrationTarget)) {
            let host = self.inventory.host_name(*host);
            let details = format!(
                "a QEMU of {} on {host} is a migration target and the last host cannot be queried: not started",
                self.vm.name
            );
            return vec![Command::Reply(Err(ErrorCode::new(Code::HOST_START_VM, details)))];
        }
        let exports = found.iter().find(|(_, is)| *is == Ok(Presence::Export)).map(|(host, _)| *host);
        if let Some(host) = exports.filter(|_| !sabotage::on(Sabotage::ExportsLive)) {
            let reason = format!(
                "a target on {} still exports a volume of the VM: it is stopped first",
                self.inventory.host_name(host)
            );
            let change = self.change(VmState::Stopping, self.place.or(Some(host)), reason);
            self.operation = Operation::IntendingClear(request, host);
            return vec![Command::Intend(change)];
        }
        match self.place.filter(|_| left && self.state != VmState::Stopped && self.may_have_moved()) {
            // It vanished. The others listed their processes before that, when it may still have been on its way.
            Some(place) => {
                let gone = self.is_gone(place, "not running there (a start queried it)");
                self.begin_again(request, gone, now)
            }
            None => self.begin_attempt(request, target, places, silent, found, now),
        }
    }

    /// After this change the start begins again.
    fn begin_again(&mut self, request: StartRequest, change: Command, now: Instant) -> Vec<Command> {
        let mut commands = vec![change];
        commands.extend(self.on(super::core::Event::Start(request), now));
        commands
    }

    /// The VM runs nowhere as far as known: begins the attempt that clears or fences every host where it may run.
    fn begin_attempt(
        &mut self,
        request: StartRequest,
        target: HostId,
        mut places: Vec<HostId>,
        silent: Vec<UnreachableHost>,
        found: Vec<(HostId, Result<Presence>)>,
        now: Instant,
    ) -> Vec<Command> {
        let answer_of = |host: HostId| found.iter().find(|(of, _)| *of == host).map(|(_, is)| is);
        let refused = |host: HostId, why: &str, error: &ErrorCode| {
            let host = self.inventory.host_name(host);
            let details =
                format!("{} may still run on {host}, which cannot be queried: not started{why}", self.vm.name);
            vec![Command::Reply(Err(ErrorCode::new(Code::HOST_START_VM, details).caused_by(error.clone())))]
        };
        if let Some(Err(error)) = answer_of(target) {
            return refused(target, "", error);
        }
        // A host that recently reported the VM and cannot be queried now may run it too.
        let unasked = found.iter().filter(|(_, is)| is.is_err()).map(|(host, _)| *host);
        places.extend(unasked.filter(|host| !places.contains(host)).collect::<Vec<_>>());
        let doubtful: Vec<(HostId, &ErrorCode)> =
            places.iter().filter_map(|host| answer_of(*host)?.as_ref().err().map(|error| (*host, error))).collect();
        if let Some((host, error)) = doubtful.first().filter(|_| !request.ha) {
            let hint = format!("; `ringfence vm ha-start {}` fences it there first", self.vm.name);
            return refused(*host, &hint, error);
        }
        let doubtful: Vec<HostId> = doubtful.into_iter().map(|(host, _)| host).collect();
        let cleared = found.into_iter().filter_map(|(_, is)| match is {
            Ok(Presence::Nothing(cleared)) => Some(cleared),
            _ => None,
        });
        let cleared = cleared.collect();
        let mut fence_requests = self.fence_requests(&request, target, &places, &doubtful, &silent, now).into_iter();
        let Some(first) = fence_requests.next() else { return Vec::new() };
        let start = Start { vm: self.vm.id, target, incarnation: self.incarnation + 1, epoch: self.epoch };
        let (attempt, commands) = Attempt::begin(first, now);
        let (rest, passed, reason) = (fence_requests.collect(), Vec::new(), request.reason);
        self.fence(Box::new(Fencing { attempt, rest, start, places, cleared, passed, reason }), commands, now)
    }

    /// The VM runs already.
    fn found_running(&mut self, host: HostId, request: &StartRequest, left_its_place: bool) -> Vec<Command> {
        let mut commands = Vec::new();
        if self.state != VmState::Running || self.place != Some(host) {
            self.wanted = true;
            if !left_its_place {
                self.adds_place(host);
            }
            commands.push(self.becomes(VmState::Running, Some(host), "found running at a start"));
        }
        let details = format!("{} already runs on {}", self.vm.name, self.inventory.host_name(host));
        let reply = if request.ha { Ok(()) } else { Err(ErrorCode::new(Code::CHANGE_STATE, details)) };
        commands.push(Command::Reply(reply));
        commands
    }

    /// One request for each host that cannot be queried, or one that checks only the watchers.
    fn fence_requests(
        &self,
        request: &StartRequest,
        target: HostId,
        places: &[HostId],
        doubtful: &[HostId],
        silent: &[UnreachableHost],
        now: Instant,
    ) -> Vec<FenceRequest> {
        let host = |host: HostId| self.inventory.host(host).ok();
        let own: Vec<_> =
            places.iter().filter_map(|place| host(*place)).flat_map(|host| host.storage_ips.clone()).collect();
        let fence_request = FenceRequest {
            attempt: request.attempt,
            vm: self.vm.id,
            cluster: self.vm.cluster,
            place: LastHost::ConfirmedAbsent,
            machine: Machine::default(),
            addresses: own.clone(),
            own,
            target,
            incarnation: self.incarnation + 1,
            epoch: self.epoch,
            volumes: self.vm.volumes.iter().map(|v| (v.storage, v.install_path.clone())).collect(),
            attested_by: None,
            ordered: false,
            policy: self.policy,
        };
        if doubtful.is_empty() || sabotage::on(Sabotage::SilentIsClear) {
            return vec![fence_request];
        }
        let of_place = |(nth, place): (usize, &HostId)| {
            let known = silent.iter().find(|host_info| host_info.host == *place);
            let item = host(*place);
            FenceRequest {
                // Each attempt has its own audit record.
                attempt: if nth == 0 { request.attempt } else { Uuid::new_v5(&request.attempt, place.0.as_bytes()) },
                cluster: item.map_or(self.vm.cluster, |item| item.cluster),
                place: LastHost::Unreachable(*place),
                machine: known.map(|host_info| host_info.machine.clone()).unwrap_or_default(),
                addresses: item.map(|item| item.storage_ips.clone()).unwrap_or_default(),
                attested_by: known.and_then(|host_info| host_info.attested_by.clone()),
                ordered: self.ordered.is_some_and(|(at, until)| at == *place && now < until),
                ..fence_request.clone()
            }
        };
        doubtful.iter().enumerate().map(of_place).collect()
    }

    /// The leftover exports have stopped: the start begins again.
    pub(super) fn cleared(&mut self, request: StartRequest, host: HostId, now: Instant) -> Vec<Command> {
        let name = self.inventory.host_name(host);
        let reason = format!("the leftover export on {name} was stopped, verified");
        let stopped = match self.place {
            Some(place) => self.is_gone(place, &reason),
            None => self.becomes(VmState::Stopped, None, reason),
        };
        self.begin_again(request, stopped, now)
    }

    /// Passes on the commands of the attempt, and continues when it has ended.
    pub(super) fn fence(
        &mut self,
        mut fencing: Box<Fencing>,
        mut commands: Vec<attempt::Command>,
        now: Instant,
    ) -> Vec<Command> {
        let done = match commands.pop() {
            Some(attempt::Command::Done(done)) => Some(done),
            other => {
                commands.extend(other);
                None
            }
        };
        let fence_request = Arc::new(fencing.attempt.request().clone());
        let mut out: Vec<Command> =
            commands.into_iter().map(|command| Command::Fence(fence_request.clone(), command)).collect();
        let passed = match done {
            None => {
                self.operation = Operation::Fencing(fencing);
                return out;
            }
            Some(Ok(passed)) => passed,
            Some(Err(error)) => {
                out.push(Command::Reply(Err(self.not_started(error))));
                return out;
            }
        };
        fencing.passed.push(passed);
        if !fencing.rest.is_empty() {
            let (attempt, commands) = Attempt::begin(fencing.rest.remove(0), now);
            fencing.attempt = attempt;
            out.extend(self.fence(fencing, commands, now));
            return out;
        }
        let Fencing { start, places, cleared, passed, reason, .. } = *fencing;
        match StartPermit::earned(start, &places, cleared, passed, now) {
            Err(error) => out.push(Command::Reply(Err(self.not_started(error)))),
            Ok(permit) => {
                let (others, halted) = (self.others.clone(), self.halted);
                let before = Location { state: self.state, place: self.place, others, halted };
                self.incarnation = permit.incarnation();
                self.wanted = true;
                // If the start fails, fenced hosts must be queried again; the others reported themselves that it is
                // gone.
                self.others.extend(permit.proofs().iter().filter_map(Proof::fenced));
                let why = permit.proofs().first().map(ToString::to_string).unwrap_or_default();
                let change = self.change(VmState::Starting, Some(start.target), format!("{reason}; {why}"));
                self.operation = Operation::Intending(start.target, permit, before);
                out.push(Command::Intend(change));
            }
        }
        out
    }

    fn not_started(&self, error: ErrorCode) -> ErrorCode {
        ErrorCode::new(Code::HOST_START_VM, format!("VM {} is not started", self.vm.name)).caused_by(error)
    }

    pub(super) fn export(&mut self, target: HostId, permit: StartPermit, before: Location) -> Vec<Command> {
        let count = self.vm.volumes.len();
        self.operation = Operation::Exporting { target, permit, disks: vec![None; count], before };
        (0..count).map(|index| Command::Export(target, index)).collect()
    }

    #[allow(clippy::too_many_arguments)]
    pub(super) fn exported(
        &mut self,
        index: usize,
        result: Result<DiskSource>,
        target: HostId,
        permit: StartPermit,
        mut disks: Vec<Option<Result<DiskSource>>>,
        before: Location,
        now: Instant,
    ) -> Vec<Command> {
        disks[index] = Some(result);
        if disks.iter().any(Option::is_none) {
            self.operation = Operation::Exporting { target, permit, disks, before };
            return Vec::new();
        }
        let mut specs = Vec::with_capacity(disks.len());
        for (result, volume) in disks.into_iter().flatten().zip(&self.vm.volumes) {
            match result {
                Ok(source) => specs.push(DiskSpec { source, root: volume.root }),
                // Nothing was launched yet: a plain failure, not an unknown outcome.
                Err(error) => {
                    let at = self.inventory.host_name(target);
                    let why = format!("volume {} cannot be used on {at}", volume.install_path);
                    let error = ErrorCode::new(Code::HOST_START_VM, why).caused_by(error);
                    if !sabotage::on(Sabotage::StartForgets) {
                        let starting = self.state;
                        self.is_back_at(before);
                        let (now, place) = (self.state, self.place);
                        self.state = starting;
                        let failed = self.becomes(now, place, error.to_string());
                        return vec![failed, Command::Reply(Err(error))];
                    }
                    let failed = self.becomes(VmState::Stopped, Some(target), error.to_string());
                    return vec![failed, Command::Reply(Err(error))];
                }
            }
        }
        // Expires with the permit, by the host's own clock: clocks need not agree.
        let left = permit.left(now).unwrap_or_default();
        let dated = self.clock.filter(|(host, _, _)| *host == target);
        let not_after = dated.map(|(_, clock, at)| clock + as_millis(now.duration_since(at) + left));
        self.ordered = Some((target, now + left));
        let cmd = StartVmCmd {
            vm_uuid: self.vm.id,
            name: self.vm.name.clone(),
            incarnation: permit.incarnation(),
            epoch: permit.epoch(),
            not_after_ms: not_after.unwrap_or_default(),
            memory_mib: self.vm.memory_mib,
            disks: specs,
            qemu_args: self.vm.qemu_args.clone(),
            libvirt_xml: self.vm.libvirt_xml.clone(),
            head: None,
        };
        self.operation = Operation::Launching(target);
        vec![Command::Launch(target, permit, cmd)]
    }
}

fn as_millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
