//! Which VMs are brought back, and what came of it.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use ringfence_messages::{
    ClusterId, Code, ErrorCode, HostId, Result, VmId,
    ha::{VmHaBlocked, VmHaStarted},
    vm::{HaMode, InstallPath, IntruderPhase, RunningVm, VmIntruder, VmState, WriterKind},
};

use super::{
    core::{Belief, Command, Core, Fact, GONE_LOOKS, MAX_DEATHS, RETRY_CEILING, STEADY},
    verdicts::braked,
};
use crate::sabotage::{self, Sabotage};

impl Core {
    /// Begins flows for VMs that are wanted and lost, so many at once.
    pub(super) fn bring_back(&mut self, now: Duration, commands: &mut Vec<Command>) {
        if self.lost.is_empty() {
            return;
        }
        let clusters = self.directory.clusters.iter().map(|cluster| cluster.id);
        let unsettled: BTreeSet<ClusterId> = match self.census_open {
            true => clusters.filter(|cluster| !self.unsettled(*cluster).is_empty()).collect(),
            false => BTreeSet::new(),
        };
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
            if unsettled.contains(&of.cluster) {
                continue;
            }
            let host = vm.belief.host.and_then(|host| self.hosts.get(&host));
            let name = vm.belief.host.map_or("nowhere".to_owned(), |host| self.directory.host_name(host));
            let (judger, reason) = match (vm.belief.state, host) {
                (_, Some(host)) if host.cleaning => continue,
                (VmState::Stopped, _) if let Some(of) = moved => {
                    ("Drain", format!("{} is drained", self.directory.host_name(of.from)))
                }
                // Where it stopped cannot be asked any more: it waits like one that is in doubt (K10).
                (VmState::Stopped, host)
                    if host.is_none_or(|host| !host.is_away()) || sabotage::on(Sabotage::BrakeBypassed) =>
                {
                    ("QemuDied", format!("it does not run on {name}"))
                }
                (VmState::Unknown | VmState::Stopped, _) if self.braked.contains(&of.cluster) => continue,
                (VmState::Unknown | VmState::Stopped, Some(host)) if host.failed.is_some() && host.quarantined => {
                    ("HostSilent", format!("{name} failed"))
                }
                (VmState::Unknown | VmState::Stopped, Some(host))
                    if vm.gone >= GONE_LOOKS
                        && host.seen_by_siblings(now)
                        && of.volumes.iter().all(|v| matches!(v.install_path, InstallPath::Ceph { .. })) =>
                {
                    ("WatchersGone", format!("nobody watches its volumes, and the controller does not reach {name}"))
                }
                _ => continue,
            };
            // A start worked if the VM ran for a while (K23).
            let up = vm.up_since.take();
            if up.is_some_and(|since| now.saturating_sub(since) >= STEADY) {
                (vm.failures, vm.deaths) = (0, 0);
            } else if judger == "QemuDied" && !sabotage::on(Sabotage::StartIsSuccess) {
                if vm.deaths >= MAX_DEATHS {
                    continue;
                }
                if up.is_some() {
                    vm.deaths += 1;
                    vm.next = now + backoff(vm.deaths);
                    if vm.deaths == MAX_DEATHS {
                        vm.why = format!(
                            "it ended within {} s of its start {MAX_DEATHS} times in a row: look why, then `ringfence vm ha-start {}`",
                            STEADY.as_secs(),
                            of.name
                        );
                        let blocked = VmHaBlocked { vm_uuid: *id, vm: of.name.clone(), reason: vm.why.clone() };
                        commands.push(Command::Tell(Fact::Blocked(blocked)));
                    }
                    continue;
                }
            }
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
            self.believe(id, Belief { state: VmState::Stopped, host: None, incarnation: 0, wanted: false }, now);
        }
        let last = self.vms.get(&id).and_then(|vm| vm.belief.host);
        let brake = last.and_then(|host| self.brake_holds(host)).map(braked);
        let Some(vm) = self.vms.get_mut(&id) else { return };
        let place = last.and_then(|host| self.hosts.get(&host));
        if vm.flow.is_some() {
            commands.extend(refuse("it is being brought back already".to_owned()));
        } else if self.drains.moves.get(&id).is_some_and(|of| of.holds(vm.belief.state, now)) {
            commands.extend(refuse("its host is being drained, and it is being stopped there".to_owned()));
        } else if let Some(brake) = brake {
            commands.extend(refuse(format!("where it ran last does not answer, and {brake}")));
        } else if place.is_some_and(|place| place.cleaning) {
            commands.extend(refuse("its host is back and being reconciled: try again in a moment".to_owned()));
        } else {
            (vm.deaths, vm.failures) = (0, 0);
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
                vm.next = Duration::ZERO;
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
                vm.next = now + backoff(vm.failures);
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
            let is_it = |process: &RunningVm| {
                process.vm_uuid == **id && process.stranger.is_none() && process.kind == WriterKind::Qemu
            };
            let runs = running.iter().any(is_it);
            let looked_for = |state| match state {
                VmState::Running => true,
                // It is not pinged: nothing else would ask it again.
                VmState::Unknown => self.drains.hosts.contains_key(&host),
                _ => false,
            };
            self.vms.get(id).is_some_and(|vm| looked_for(vm.belief.state)) && !runs
        });
        commands.extend(missed.map(|id| Command::LookFor(*id, None)));
        let mut claimed = BTreeMap::new();
        for process in running.iter().filter(|process| !process.other_agent && process.kind == WriterKind::Qemu) {
            let id = process.vm_uuid;
            let Ok(of) = self.directory.vm(id) else { continue };
            let cluster = self.directory.host(host).map(|host| host.cluster).ok();
            let is_place = self.vms.get(&id).is_some_and(|vm| vm.belief.host == Some(host));
            let why = match &process.stranger {
                Some(stranger) => Some(format!("not believed to be the VM: {stranger}")),
                None if cluster != Some(of.cluster) && !is_place => {
                    Some(format!("process {} there carries its uuid, and the host is of another cluster", process.pid))
                }
                None => None,
            };
            if let Some(reason) = why {
                claimed.insert((host, id), process.stranger.is_none());
                if !self.intruders.contains_key(&(host, id)) {
                    let (vm, name) = (of.name.clone(), self.directory.host_name(host));
                    let phase = IntruderPhase::Told;
                    let told = VmIntruder { vm_uuid: id, vm, host_uuid: host, host: name, phase, reason };
                    commands.push(Command::Tell(Fact::Intruder(told)));
                }
                continue;
            }
            let found = match self.vms.get(&id) {
                Some(vm) if vm.flow.is_some() => false,
                // A second one of a VM that runs elsewhere (K8). One that waits for a migration may become it.
                Some(vm) if vm.belief.state == VmState::Running => {
                    vm.belief.host != Some(host) && !process.incoming && !sabotage::on(Sabotage::IntruderIgnored)
                }
                Some(vm) => matches!(vm.belief.state, VmState::Stopped | VmState::Unknown),
                // One that was never started by us.
                None => true,
            };
            if found {
                commands.push(Command::LookFor(id, Some(host)));
            }
        }
        self.intruders.retain(|claim, _| claim.0 != host);
        self.intruders.extend(claimed);
    }

    /// Hosts of other clusters on which it seems to run: none of them is believed, and none may be passed over.
    pub fn claimed_elsewhere(&self, vm: VmId) -> impl Iterator<Item = HostId> {
        self.intruders.iter().filter(move |((_, of), like_a_vm)| *of == vm && **like_a_vm).map(|((host, _), _)| *host)
    }
}

/// How long after so many failures, or looks in vain, the next try comes.
pub(super) fn backoff(failures: u32) -> Duration {
    RETRY_CEILING.min(Duration::from_millis(500) * (1 << failures.min(10)))
}
