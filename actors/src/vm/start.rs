//! How a VM is started: a target is chosen, places are searched, the fence is passed, disks are exported, QEMU is launched.
//!
//! Invariants: as the core's; every place where the VM may run is searched or fenced, one attempt for each that is
//! silent; an order is dated by the clock of the host that it is for, and void when its permit is; the VM's place moves
//! only when QEMU may have been launched (K13).

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use ringfence_messages::{
    Code, ErrorCode, HostId, Result,
    evidence::Machine,
    vm::{DiskSource, DiskSpec, InstallPath, StartVmCmd, VmState},
};
use uuid::Uuid;

use super::{
    claims::Seen,
    core::{Busy, Command, Core, Found, Order, SilentPlace, Whereabouts},
};
use crate::fence::{
    Cleared, Passed, Proof, Start, StartPermit,
    attempt::{self, Attempt, Case, Place},
};
use crate::{
    ha::placement::nowhere,
    sabotage::{self, Sabotage},
};

/// A start that passes the fence, place by place.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Fencing {
    pub(super) attempt: Attempt,
    /// Attempts that come after this one.
    rest: Vec<Case>,
    start: Start,
    /// Every host where it may run.
    places: Vec<HostId>,
    cleared: Vec<Cleared>,
    passed: Vec<Passed>,
    reason: String,
}

impl Core {
    pub(super) fn choose(&mut self, order: Order, found: Result<Found>) -> Vec<Command> {
        let Found { target: found, places: silent } = match found {
            Ok(found) => found,
            Err(error) => return vec![Command::Reply(Err(error))],
        };
        let Some(target) = found.host_uuid else {
            let details = match order.host {
                Some(_) => format!(
                    "the host asked for cannot take {}: it is not connected, in maintenance or quarantine, or of another cluster",
                    self.vm.name
                ),
                None => nowhere(&self.vm, found.full),
            };
            return vec![Command::Reply(Err(ErrorCode::new(Code::HOST_DISCONNECTED, details)))];
        };
        let mut places = self.places();
        // Who watches a Ceph volume is seen from everywhere. Of others only each host itself can say.
        let blind = self.vm.volumes.iter().any(|volume| !matches!(volume.install_path, InstallPath::Ceph { .. }));
        let unheard = found.unheard_host_uuids.into_iter().filter(|_| blind && !sabotage::on(Sabotage::NoCensus));
        places.extend(unheard.filter(|host| !self.places().contains(host)));
        // One that does not answer pings is not asked.
        let is_silent = |host: &HostId| silent.iter().any(|place| place.host == *host);
        let asked = places.iter().copied().filter(|place| !is_silent(place));
        // Something else may have started it on any host of the cluster.
        let mut left: Vec<HostId> = [target].into_iter().chain(asked).chain(found.seen_host_uuids).collect();
        let mut once = std::collections::BTreeSet::new();
        left.retain(|host| once.insert(*host));
        let not_asked = places.iter().filter(|place| **place != target && is_silent(place)).map(|place| {
            let error = ErrorCode::new(Code::HOST_DISCONNECTED, "its agent does not answer pings");
            (*place, Err(error))
        });
        let found = not_asked.collect();
        let commands = left.iter().map(|host| Command::Search(*host)).collect();
        self.busy = Busy::Searching { order, target, places, silent, left, found };
        commands
    }

    /// Every host on which it may run has answered, or could not be asked.
    pub(super) fn searched(
        &mut self,
        order: Order,
        target: HostId,
        mut places: Vec<HostId>,
        silent: Vec<SilentPlace>,
        found: Vec<(HostId, Result<Seen>)>,
        now: Instant,
    ) -> Vec<Command> {
        let says = |host: HostId| found.iter().find(|(of, _)| *of == host).map(|(_, is)| is);
        // Where it is known to run counts before where else it is seen: agents of one machine see each other's.
        let elsewhere = |host: &HostId| Some(*host) != self.place;
        // One that waits for a migration is the VM only if that is gone from where it ran last.
        let gone = |is: &Result<Seen>| matches!(is, Ok(Seen::Nothing(_) | Seen::Export));
        let left = self.place.is_none_or(|place| says(place).is_some_and(gone));
        let is_it = |(host, is): &&(HostId, Result<Seen>)| match is {
            Ok(Seen::Running(_)) => true,
            Ok(Seen::Coming) => left || Some(*host) == self.place,
            _ => false,
        };
        // Of another cluster: not believed, so that it is not taken over; nor is the VM started beside it.
        let foreign = found.iter().find(|(host, is)| {
            matches!(is, Ok(Seen::Running(_) | Seen::Coming)) && !places.contains(host) && !self.may_claim(*host)
        });
        if let Some((host, _)) = foreign.filter(|_| !sabotage::on(Sabotage::FoundElsewhereIgnored)) {
            let details = format!(
                "a QEMU of {} runs on {}, which is of another cluster: not started. End it there first",
                self.vm.name,
                self.directory.host_name(*host)
            );
            return vec![Command::Reply(Err(ErrorCode::new(Code::HOST_START_VM, details)))];
        }
        let mut there: Vec<HostId> = found.iter().filter(is_it).map(|(host, _)| *host).collect();
        there.sort_by_key(elsewhere);
        if let Some(host) = there.first().copied().filter(|_| !sabotage::on(Sabotage::FoundElsewhereIgnored)) {
            return self.found_running(host, &order, left);
        }
        if let Some((host, _)) = found.iter().find(|(_, is)| *is == Ok(Seen::Coming)) {
            let host = self.directory.host_name(*host);
            let details = format!(
                "a QEMU of {} on {host} waits for its migration, or took it: where it ran last cannot be asked, so not started",
                self.vm.name
            );
            return vec![Command::Reply(Err(ErrorCode::new(Code::HOST_START_VM, details)))];
        }
        let exports = found.iter().find(|(_, is)| *is == Ok(Seen::Export)).map(|(host, _)| *host);
        if let Some(host) = exports.filter(|_| !sabotage::on(Sabotage::ExportsLive)) {
            let reason =
                format!("a target on {} still writes for it: that is ended first", self.directory.host_name(host));
            let change = self.change(VmState::Stopping, self.place.or(Some(host)), reason);
            self.busy = Busy::IntendingClear(order, host);
            return vec![Command::Intend(change)];
        }
        let refused = |host: HostId, why: &str, error: &ErrorCode| {
            let host = self.directory.host_name(host);
            let details = format!("{} may still run on {host}, which cannot be asked: not started{why}", self.vm.name);
            vec![Command::Reply(Err(ErrorCode::new(Code::HOST_START_VM, details).caused_by(error.clone())))]
        };
        if let Some(Err(error)) = says(target) {
            return refused(target, "", error);
        }
        // Who seemed to run it a moment ago and cannot be asked now is a place, too.
        let unasked = found.iter().filter(|(_, is)| is.is_err()).map(|(host, _)| *host);
        places.extend(unasked.filter(|host| !places.contains(host)).collect::<Vec<_>>());
        let doubtful: Vec<(HostId, &ErrorCode)> =
            places.iter().filter_map(|host| says(*host)?.as_ref().err().map(|error| (*host, error))).collect();
        if let Some((host, error)) = doubtful.first().filter(|_| !order.ha) {
            let hint = format!(". `ringfence vm ha-start {}` fences it there first", self.vm.name);
            return refused(*host, &hint, error);
        }
        let doubtful: Vec<HostId> = doubtful.into_iter().map(|(host, _)| host).collect();
        let cleared = found.into_iter().filter_map(|(_, is)| match is {
            Ok(Seen::Nothing(cleared)) => Some(cleared),
            _ => None,
        });
        let cleared = cleared.collect();
        let mut cases = self.cases(&order, target, &places, &doubtful, &silent, now).into_iter();
        let Some(first) = cases.next() else { return Vec::new() };
        let start = Start { vm: self.vm.id, target, incarnation: self.incarnation + 1, epoch: self.epoch };
        let (attempt, commands) = Attempt::begin(first, now);
        let (rest, passed, reason) = (cases.collect(), Vec::new(), order.reason);
        self.fence(Box::new(Fencing { attempt, rest, start, places, cleared, passed, reason }), commands, now)
    }

    /// It runs already.
    fn found_running(&mut self, host: HostId, order: &Order, left_its_place: bool) -> Vec<Command> {
        let mut commands = Vec::new();
        if self.state != VmState::Running || self.place != Some(host) {
            self.wanted = true;
            if !left_its_place {
                self.adds_place(host);
            }
            commands.push(self.becomes(VmState::Running, Some(host), "found running when it was to be started"));
        }
        let details = format!("{} already runs on {}", self.vm.name, self.directory.host_name(host));
        commands.push(Command::Reply(match order.ha {
            true => Ok(()),
            false => Err(ErrorCode::new(Code::CHANGE_STATE, details)),
        }));
        commands
    }

    /// What is to be proven: one case for each place that is in doubt, or one look at the watchers.
    fn cases(
        &self,
        order: &Order,
        target: HostId,
        places: &[HostId],
        doubtful: &[HostId],
        silent: &[SilentPlace],
        now: Instant,
    ) -> Vec<Case> {
        let host = |host: HostId| self.directory.host(host).ok();
        let own: Vec<_> =
            places.iter().filter_map(|place| host(*place)).flat_map(|of| of.storage_ips.clone()).collect();
        let case = Case {
            attempt: order.attempt,
            vm: self.vm.id,
            cluster: self.vm.cluster,
            place: Place::Clear,
            machine: Machine::default(),
            addresses: own.clone(),
            own,
            target,
            incarnation: self.incarnation + 1,
            epoch: self.epoch,
            volumes: self.vm.volumes.iter().map(|v| (v.storage, v.install_path.clone())).collect(),
            human: None,
            ordered: false,
            policy: self.policy,
        };
        if doubtful.is_empty() || sabotage::on(Sabotage::SilentIsClear) {
            return vec![case];
        }
        let of_place = |(nth, place): (usize, &HostId)| {
            let known = silent.iter().find(|of| of.host == *place);
            let of = host(*place);
            Case {
                // Each attempt has an audit of its own.
                attempt: if nth == 0 { order.attempt } else { Uuid::new_v5(&order.attempt, place.0.as_bytes()) },
                cluster: of.map_or(self.vm.cluster, |of| of.cluster),
                place: Place::Silent(*place),
                machine: known.map(|of| of.machine.clone()).unwrap_or_default(),
                addresses: of.map(|of| of.storage_ips.clone()).unwrap_or_default(),
                human: known.and_then(|of| of.human.clone()),
                ordered: self.ordered.is_some_and(|(at, until)| at == *place && now < until),
                ..case.clone()
            }
        };
        doubtful.iter().enumerate().map(of_place).collect()
    }

    /// What wrote for it without a QEMU was ended: the start begins again.
    pub(super) fn cleared(&mut self, order: Order, host: HostId, now: Instant) -> Vec<Command> {
        let name = self.directory.host_name(host);
        let reason = format!("what still wrote for it on {name} was ended, verified");
        let stopped = match self.place {
            Some(place) => self.is_gone(place, &reason),
            None => self.becomes(VmState::Stopped, None, reason),
        };
        let mut commands = vec![stopped];
        commands.extend(self.on(super::core::Event::Start(order), now));
        commands
    }

    /// Passes on what the attempt orders, and goes on when it ended.
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
        let case = Arc::new(fencing.attempt.case().clone());
        let mut out: Vec<Command> = commands.into_iter().map(|command| Command::Fence(case.clone(), command)).collect();
        let passed = match done {
            None => {
                self.busy = Busy::Fencing(fencing);
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
                let before = Whereabouts { state: self.state, place: self.place, others: self.others.clone() };
                self.incarnation = permit.incarnation();
                self.wanted = true;
                // Of those that were fenced a start that fails has to ask again; the others said themselves that it is gone.
                self.others.extend(permit.proofs().iter().filter_map(Proof::fenced));
                let why = permit.proofs().first().map(ToString::to_string).unwrap_or_default();
                let change = self.change(VmState::Starting, Some(start.target), format!("{reason}; {why}"));
                self.busy = Busy::Intending(start.target, permit, before);
                out.push(Command::Intend(change));
            }
        }
        out
    }

    fn not_started(&self, error: ErrorCode) -> ErrorCode {
        ErrorCode::new(Code::HOST_START_VM, format!("{} is not started", self.vm.name)).caused_by(error)
    }

    pub(super) fn export(&mut self, target: HostId, permit: StartPermit, before: Whereabouts) -> Vec<Command> {
        let count = self.vm.volumes.len();
        self.busy = Busy::Exporting { target, permit, disks: vec![None; count], before };
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
        before: Whereabouts,
        now: Instant,
    ) -> Vec<Command> {
        disks[index] = Some(result);
        if disks.iter().any(Option::is_none) {
            self.busy = Busy::Exporting { target, permit, disks, before };
            return Vec::new();
        }
        let mut specs = Vec::with_capacity(disks.len());
        for (result, volume) in disks.into_iter().flatten().zip(&self.vm.volumes) {
            match result {
                Ok(source) => specs.push(DiskSpec { source, root: volume.root }),
                // Nothing was launched yet: this is no doubt, but a plain failure.
                Err(error) => {
                    let at = self.directory.host_name(target);
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
        // Void when the permit is, by the host's own clock: no clock has to agree with another.
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
        self.busy = Busy::Launching(target);
        vec![Command::Launch(target, permit, cmd)]
    }
}

fn as_millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
