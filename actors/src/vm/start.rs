//! How a VM is started: a target is chosen, places are searched, the fence is passed, disks are exported, QEMU is launched.
//!
//! Invariants: as the core's; an order is dated by the clock of the host that it is for, and void when its permit is.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use ringfence_messages::{
    Code, ErrorCode, HostId, Result,
    ha::TargetReply,
    vm::{DiskSource, DiskSpec, StartVmCmd, VmState},
};

use super::core::{Busy, Command, Core, Order, Seen};
use crate::fence::{
    StartPermit,
    attempt::{self, Attempt, Case, Place},
};
use crate::{
    ha::placement::nowhere,
    sabotage::{self, Sabotage},
};

impl Core {
    pub(super) fn choose(&mut self, order: Order, found: Result<(TargetReply, Option<String>)>) -> Vec<Command> {
        let (found, human) = match found {
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
        let mut left = vec![target];
        let mut silent = Vec::new();
        // One that does not answer pings is not asked.
        match self.place.filter(|place| *place != target) {
            Some(place) if found.last_host_answers => left.push(place),
            Some(place) => {
                let error = ErrorCode::new(Code::HOST_DISCONNECTED, "its agent does not answer pings");
                silent.push((place, Err(error)));
            }
            None => {}
        }
        // Something else may have started it on any host of the cluster.
        let seen = found.seen_host_uuids.into_iter();
        left.extend(seen.filter(|host| *host != target && Some(*host) != self.place));
        let commands = left.iter().map(|host| Command::Search(*host)).collect();
        self.busy = Busy::Searching { order, target, human, left, found: silent };
        commands
    }

    /// Every host on which it may run has answered, or could not be asked.
    pub(super) fn searched(
        &mut self,
        order: Order,
        target: HostId,
        human: Option<String>,
        found: Vec<(HostId, Result<Seen>)>,
        now: Instant,
    ) -> Vec<Command> {
        // Where it is known to run counts before where else it is seen: agents of one machine see each other's.
        let elsewhere = |host: &HostId| Some(*host) != self.place;
        let says = |host: HostId| found.iter().find(|(of, _)| *of == host).map(|(_, is)| is);
        // One that waits for a migration is the VM only if that is gone from where it ran last.
        let left = self.place.is_none_or(|place| says(place) == Some(&Ok(Seen::Nothing)));
        let is_it = |(host, is): &&(HostId, Result<Seen>)| match is {
            Ok(Seen::Running) => true,
            Ok(Seen::Coming) => left || Some(*host) == self.place,
            _ => false,
        };
        let mut there: Vec<HostId> = found.iter().filter(is_it).map(|(host, _)| *host).collect();
        there.sort_by_key(elsewhere);
        if let Some(host) = there.first().copied().filter(|_| !sabotage::on(Sabotage::FoundElsewhereIgnored)) {
            let mut commands = Vec::new();
            if self.state != VmState::Running || self.place != Some(host) {
                self.wanted = true;
                commands.push(self.becomes(VmState::Running, Some(host), "found running when it was to be started"));
            }
            let details = format!("{} already runs on {}", self.vm.name, self.directory.host_name(host));
            commands.push(Command::Reply(match order.ha {
                true => Ok(()),
                false => Err(ErrorCode::new(Code::CHANGE_STATE, details)),
            }));
            return commands;
        }
        if let Some((host, _)) = found.iter().find(|(_, is)| *is == Ok(Seen::Coming)) {
            let host = self.directory.host_name(*host);
            let details = format!(
                "a QEMU of {} on {host} waits for its migration, or took it: where it ran last cannot be asked, so not started",
                self.vm.name
            );
            return vec![Command::Reply(Err(ErrorCode::new(Code::HOST_START_VM, details)))];
        }
        let silence = |host: HostId| says(host).and_then(|is| is.as_ref().err());
        let refused = |host: HostId, why: &str, error: &ErrorCode| {
            let host = self.directory.host_name(host);
            let details = format!("{} may still run on {host}, which cannot be asked: not started{why}", self.vm.name);
            vec![Command::Reply(Err(ErrorCode::new(Code::HOST_START_VM, details).caused_by(error.clone())))]
        };
        if let Some(error) = silence(target) {
            return refused(target, "", error);
        }
        let place = match self.place.map(|place| (place, silence(place))) {
            None => Place::Nowhere,
            Some((place, _)) if sabotage::on(Sabotage::SilentIsClear) => Place::Clear(place),
            Some((place, None)) => Place::Clear(place),
            Some((place, Some(_))) if order.ha => Place::Silent(place),
            Some((place, Some(error))) => {
                let hint = format!(". `ringfence vm ha-start {}` fences it there first", self.vm.name);
                return refused(place, &hint, error);
            }
        };
        let last = self.place.and_then(|place| self.directory.host(place).ok());
        let case = Case {
            attempt: order.attempt,
            vm: self.vm.id,
            cluster: last.map_or(self.vm.cluster, |host| host.cluster),
            place,
            addresses: last.map(|host| host.storage_ips.clone()).unwrap_or_default(),
            target,
            incarnation: self.incarnation + 1,
            epoch: self.epoch,
            volumes: self.vm.volumes.iter().map(|v| (v.storage, v.install_path.clone())).collect(),
            human,
            ordered: self.ordered.is_some_and(|(at, until)| Some(at) == self.place && now < until),
            policy: self.policy,
        };
        let (attempt, commands) = Attempt::begin(case, now);
        self.fence(Box::new(attempt), commands, order.reason)
    }

    /// Passes on what the attempt orders, and goes on when it ended.
    pub(super) fn fence(
        &mut self,
        attempt: Box<Attempt>,
        mut commands: Vec<attempt::Command>,
        reason: String,
    ) -> Vec<Command> {
        let done = match commands.pop() {
            Some(attempt::Command::Done(done)) => Some(done),
            other => {
                commands.extend(other);
                None
            }
        };
        let case = Arc::new(attempt.case().clone());
        let mut out: Vec<Command> = commands.into_iter().map(|command| Command::Fence(case.clone(), command)).collect();
        let target = attempt.case().target;
        match done {
            None => self.busy = Busy::Fencing(attempt, reason),
            Some(Err(error)) => {
                let error =
                    ErrorCode::new(Code::HOST_START_VM, format!("{} is not started", self.vm.name)).caused_by(error);
                out.push(Command::Reply(Err(error)));
            }
            Some(Ok(permit)) => {
                self.incarnation = permit.incarnation();
                self.wanted = true;
                let change = self.change(VmState::Starting, Some(target), format!("{reason}; {}", permit.proof()));
                self.busy = Busy::Intending(target, permit);
                out.push(Command::Intend(change));
            }
        }
        out
    }

    pub(super) fn export(&mut self, target: HostId, permit: StartPermit) -> Vec<Command> {
        let count = self.vm.volumes.len();
        self.busy = Busy::Exporting { target, permit, disks: vec![None; count] };
        (0..count).map(|index| Command::Export(target, index)).collect()
    }

    pub(super) fn exported(
        &mut self,
        index: usize,
        result: Result<DiskSource>,
        target: HostId,
        permit: StartPermit,
        mut disks: Vec<Option<Result<DiskSource>>>,
        now: Instant,
    ) -> Vec<Command> {
        disks[index] = Some(result);
        if disks.iter().any(Option::is_none) {
            self.busy = Busy::Exporting { target, permit, disks };
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
