//! Which VMs are brought back, and what came of it.

use std::time::Duration;

use ringfence_messages::{
    Code, ErrorCode, HostId, Result, VmId,
    ha::{VmHaBlocked, VmHaStarted},
    vm::{HaMode, InstallPath, RunningVm, VmState},
};

use super::core::{Belief, Command, Core, Fact, GONE_LOOKS, RETRY_CEILING};

impl Core {
    /// Begins flows for VMs that are wanted and lost, so many at once.
    pub(super) fn bring_back(&mut self, now: Duration, commands: &mut Vec<Command>) {
        for id in &self.lost {
            if self.flows >= self.settings.parallelism {
                break;
            }
            let (Some(vm), Ok(of)) = (self.vms.get_mut(id), self.directory.vm(*id)) else { continue };
            // Whoever is moved off a host was stopped by us: it is owed a start, whatever its mode is.
            let moved = self.drains.moves.get(id);
            let owed = moved.is_some() && vm.belief.state == VmState::Stopped;
            let held = moved.is_some_and(|of| of.holds(vm.belief.state, now));
            if (of.ha != HaMode::NeverStop && !owed) || held || vm.flow.is_some() || now < vm.next {
                continue;
            }
            let host = vm.belief.host.and_then(|host| self.hosts.get(&host));
            let name = vm.belief.host.map_or("nowhere".to_owned(), |host| self.directory.host_name(host));
            let (judger, reason) = match (vm.belief.state, host) {
                (_, Some(host)) if host.cleaning => continue,
                (VmState::Stopped, _) if let Some(of) = moved => {
                    ("Drain", format!("{} is drained", self.directory.host_name(of.from)))
                }
                (VmState::Stopped, _) => ("QemuDied", format!("it does not run on {name}")),
                (VmState::Unknown, _) if self.braked.contains(&of.cluster) => continue,
                (VmState::Unknown, Some(host)) if host.failed.is_some() && host.quarantined => {
                    ("HostSilent", format!("{name} failed"))
                }
                (VmState::Unknown, Some(host))
                    if vm.gone >= GONE_LOOKS
                        && host.seen_by_siblings(now)
                        && of.volumes.iter().all(|v| matches!(v.install_path, InstallPath::Ceph { .. })) =>
                {
                    ("WatchersGone", format!("nobody watches its volumes, and the controller does not reach {name}"))
                }
                _ => continue,
            };
            let mut soft_avoid: Vec<HostId> = Vec::new();
            let avoided = |host: &HostId| match moved {
                // Where it did not start; where it ran it may again, once that is in service.
                Some(of) => of.from != *host,
                None => judger != "QemuDied" || vm.failures >= 2,
            };
            soft_avoid.extend(vm.belief.host.filter(avoided));
            vm.flow = Some((vm.belief.incarnation, vm.belief.host, reason.clone()));
            self.flows += 1;
            commands.push(Command::Start { vm: *id, judger, host: None, soft_avoid, reason });
        }
    }

    /// An operator wants a VM brought back now: the judge is the operator, the fence is not spared.
    pub(super) fn requested(&mut self, id: VmId, host: Option<HostId>, now: Duration, commands: &mut Vec<Command>) {
        let refuse = |why: String| vec![Command::Refuse(id, ErrorCode::new(Code::CHANGE_STATE, why))];
        if !self.vms.contains_key(&id) {
            self.believe(id, Belief { state: VmState::Stopped, host: None, incarnation: 0, wanted: false });
        }
        let Some(vm) = self.vms.get_mut(&id) else { return };
        let place = vm.belief.host.and_then(|host| self.hosts.get(&host));
        if vm.flow.is_some() {
            commands.extend(refuse("it is being brought back already".to_owned()));
        } else if self.drains.moves.get(&id).is_some_and(|of| of.holds(vm.belief.state, now)) {
            commands.extend(refuse("its host is being drained, and it is being stopped there".to_owned()));
        } else if place.is_some_and(|place| place.cleaning) {
            commands.extend(refuse("its host is back and being reconciled: try again in a moment".to_owned()));
        } else {
            let reason = "an operator asked for it".to_owned();
            vm.flow = Some((vm.belief.incarnation, vm.belief.host, reason.clone()));
            self.flows += 1;
            commands.push(Command::Start { vm: id, judger: "Operator", host, soft_avoid: Vec::new(), reason });
        }
    }

    pub(super) fn started(
        &mut self,
        id: VmId,
        result: Result<Option<HostId>>,
        now: Duration,
        commands: &mut Vec<Command>,
    ) {
        let Some(vm) = self.vms.get_mut(&id) else { return };
        let Some((incarnation, from, reason)) = vm.flow.take() else { return };
        self.flows -= 1;
        let name = self.directory.vm(id).map(|of| of.name.clone()).unwrap_or_default();
        match result {
            Ok(host) => {
                (vm.failures, vm.next) = (0, Duration::ZERO);
                vm.why.clear();
                // One that is moved is told of as such.
                let moved = self.drains.moves.contains_key(&id);
                if let Some(host) = host.filter(|_| vm.belief.incarnation > incarnation && !moved) {
                    commands.push(Command::Tell(Fact::Started(VmHaStarted {
                        vm_uuid: id,
                        vm: name,
                        from_host: from.map(|host| self.directory.host_name(host)),
                        host_uuid: host,
                        host: self.directory.host_name(host),
                        reason,
                    })));
                }
            }
            Err(error) => {
                vm.failures = vm.failures.saturating_add(1);
                vm.next = now + RETRY_CEILING.min(Duration::from_millis(500) * (1 << vm.failures.min(10)));
                let why = error.to_string();
                if vm.why != why {
                    vm.why.clone_from(&why);
                    commands.push(Command::Tell(Fact::Blocked(VmHaBlocked { vm_uuid: id, vm: name, reason: why })));
                }
            }
        }
    }

    /// What runs on a host that answers, against what is believed.
    pub(super) fn listed(&mut self, host: HostId, running: &[RunningVm], commands: &mut Vec<Command>) {
        let missed = self.on_host.get(&host).into_iter().flatten().filter(|id| {
            let runs = running.iter().any(|process| process.vm_uuid == **id);
            let looked_for = |state| match state {
                VmState::Running => true,
                // It is not pinged: nothing else would ask it again.
                VmState::Unknown => self.drains.hosts.contains_key(&host),
                _ => false,
            };
            self.vms.get(id).is_some_and(|vm| looked_for(vm.belief.state)) && !runs
        });
        commands.extend(missed.map(|id| Command::LookFor(*id, None)));
        for process in running.iter().filter(|process| !process.other_agent) {
            let id = process.vm_uuid;
            let found = match self.vms.get(&id) {
                Some(vm) => vm.flow.is_none() && matches!(vm.belief.state, VmState::Stopped | VmState::Unknown),
                // One that was never started by us.
                None => self.directory.vm(id).is_ok(),
            };
            if found {
                commands.push(Command::LookFor(id, Some(host)));
            }
        }
    }
}
