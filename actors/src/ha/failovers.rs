//! Decides which VMs are failed over, and judges the results.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use ringfence_messages::{
    ClusterId, Code, ErrorCode, HostId, Result, VmId,
    ha::{VmHaBlocked, VmHaStarted},
    vm::{HaMode, InstallPath, IntruderPhase, RunningVm, VmIntruder, VmState, WriterKind},
};

use super::core::{Command, Core, GONE_LOOKS, HaEvent, MAX_DEATHS, ObservedState, RETRY_CEILING, STEADY, Vm};
use crate::{
    inventory::{Cluster, Vm as Item},
    sabotage::{self, Sabotage},
};

/// Why a VM is failed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailoverReason {
    /// The VM does not run on its host, which answers.
    QemuDied,
    /// Its host failed.
    HostSilent,
    /// Its volumes have no watcher, and only the controller does not reach its host.
    WatchersGone,
    /// Its host is being drained.
    Drain,
    /// An operator requested it.
    Operator,
}

impl FailoverReason {
    /// Name in messages and traces.
    pub const fn as_str(self) -> &'static str {
        match self {
            FailoverReason::QemuDied => "QemuDied",
            FailoverReason::HostSilent => "HostSilent",
            FailoverReason::WatchersGone => "WatchersGone",
            FailoverReason::Drain => "Drain",
            FailoverReason::Operator => "Operator",
        }
    }
}

/// A failover in progress.
#[derive(Debug)]
pub(super) struct Failover {
    /// Incarnation before it.
    incarnation: u64,
    /// Host before it.
    pub(super) from: Option<HostId>,
    pub(super) reason: String,
}

impl Failover {
    fn of(observed: &ObservedState, reason: &str) -> Failover {
        Failover { incarnation: observed.incarnation, from: observed.host, reason: reason.to_owned() }
    }
}

/// Searches of a VM on a host that answers.
#[derive(Debug, Default)]
pub(super) struct Searches {
    count: u32,
    next: Duration,
}

impl Searches {
    /// Whether a search is due; counts it.
    pub(super) fn begin(&mut self, now: Duration) -> bool {
        let due = now >= self.next;
        if due {
            self.next = now + backoff(self.count);
            self.count = self.count.saturating_add(1);
        }
        due
    }
}

impl Vm {
    fn reset_failures(&mut self) {
        self.failures = 0;
        self.deaths = 0;
    }

    /// Whether the VM may be started again: a start succeeded if the VM ran for a while (K23).
    ///
    /// # Errors
    /// The VM must wait, or an operator is needed: then with the event, once.
    fn may_restart(&mut self, cause: FailoverReason, item: &Item, now: Duration) -> Result<(), Option<VmHaBlocked>> {
        let up = self.up_since.take();
        if up.is_some_and(|since| now.saturating_sub(since) >= STEADY) {
            self.reset_failures();
            return Ok(());
        }
        if cause != FailoverReason::QemuDied || sabotage::on(Sabotage::StartIsSuccess) {
            return Ok(());
        }
        if self.deaths >= MAX_DEATHS {
            return Err(None);
        }
        if up.is_none() {
            return Ok(());
        }
        self.deaths += 1;
        self.next = now + backoff(self.deaths);
        if self.deaths < MAX_DEATHS {
            return Err(None);
        }
        self.why = format!(
            "ended within {} s of its start {MAX_DEATHS} times in a row; find the cause, then run \
             `ringfence vm ha-start {}`",
            STEADY.as_secs(),
            item.name
        );
        Err(Some(VmHaBlocked { vm_uuid: item.id, vm: item.name.clone(), reason: self.why.clone() }))
    }
}

impl Core {
    /// Starts failovers of lost VMs, at most `parallelism` at the same time.
    pub(super) fn start_failovers(&mut self, now: Duration, commands: &mut Vec<Command>) {
        if self.lost.is_empty() {
            return;
        }
        let clusters = self.inventory.clusters.iter().map(|cluster| cluster.id);
        let unsettled: BTreeSet<ClusterId> =
            clusters.filter(|cluster| self.census_open && !self.unsettled(*cluster).is_empty()).collect();
        for id in &self.lost {
            if self.failovers >= self.settings.parallelism {
                break;
            }
            if self.inventory.vm(*id).is_ok_and(|item| unsettled.contains(&item.cluster)) {
                continue;
            }
            let Some((cause, reason)) = self.failover_cause(*id, now) else { continue };
            let (Some(vm), Ok(item)) = (self.vms.get_mut(id), self.inventory.vm(*id)) else { continue };
            if let Err(blocked) = vm.may_restart(cause, item, now) {
                commands.extend(blocked.map(|event| Command::Emit(HaEvent::Blocked(event))));
                continue;
            }
            let moved = self.drains.moves.get(id);
            let avoided = |host: &HostId| match moved {
                // Avoid the host where the start failed; the drained host is allowed once it is in service.
                Some(vm_move) => vm_move.from != *host,
                None => cause != FailoverReason::QemuDied || vm.failures >= 2,
            };
            let soft_avoid = vm.observed.host.filter(avoided).into_iter().collect();
            vm.failover = Some(Failover::of(&vm.observed, &reason));
            self.failovers += 1;
            commands.push(Command::Start { vm: *id, cause, host: None, soft_avoid, reason });
        }
    }

    /// Why a VM that does not run where it should is failed over now; `None` if it is not, or must wait.
    fn failover_cause(&self, id: VmId, now: Duration) -> Option<(FailoverReason, String)> {
        let (vm, item) = (self.vms.get(&id)?, self.inventory.vm(id).ok()?);
        // A VM stopped by a drain must be started again, whatever its HA mode is.
        let moved = self.drains.moves.get(&id);
        let owed = moved.is_some() && vm.observed.state == VmState::Stopped;
        let held = moved.is_some_and(|vm_move| vm_move.holds(vm.observed.state, now));
        if (item.ha != HaMode::NeverStop && !owed) || held || vm.failover.is_some() || now < vm.next {
            return None;
        }
        let host = vm.observed.host.and_then(|host| self.hosts.get(&host));
        let name = vm.observed.host.map_or("any host".to_owned(), |host| self.inventory.host_name(host));
        let cause = match (vm.observed.state, host) {
            (_, Some(host)) if host.reconciling => return None,
            (VmState::Stopped, _) if let Some(vm_move) = moved => {
                (FailoverReason::Drain, format!("{} is being drained", self.inventory.host_name(vm_move.from)))
            }
            // If the host where it stopped cannot be queried, the VM waits like one in state Unknown (K10).
            (VmState::Stopped, host)
                if host.is_none_or(|host| !host.is_unreachable()) || sabotage::on(Sabotage::BrakeBypassed) =>
            {
                (FailoverReason::QemuDied, format!("not running on {name}"))
            }
            (VmState::Unknown | VmState::Stopped, _) if self.braked.contains(&item.cluster) => return None,
            (VmState::Unknown | VmState::Stopped, Some(host)) if host.failed.is_some() && host.quarantined => {
                (FailoverReason::HostSilent, format!("{name} failed"))
            }
            (VmState::Unknown | VmState::Stopped, Some(host))
                if vm.gone >= GONE_LOOKS
                    && host.seen_by_siblings(now)
                    && item.volumes.iter().all(|v| matches!(v.install_path, InstallPath::Ceph { .. })) =>
            {
                (FailoverReason::WatchersGone, format!("its volumes have no watchers and {name} is unreachable"))
            }
            _ => return None,
        };
        Some(cause)
    }

    /// An operator requests a failover: no verdict is needed, but the fence is.
    pub(super) fn requested(&mut self, id: VmId, host: Option<HostId>, now: Duration, commands: &mut Vec<Command>) {
        let refuse = |why: String| vec![Command::Refuse(id, ErrorCode::new(Code::CHANGE_STATE, why))];
        if !self.vms.contains_key(&id) {
            self.observe(id, ObservedState { state: VmState::Stopped, host: None, incarnation: 0, wanted: false }, now);
        }
        let last = self.vms.get(&id).and_then(|vm| vm.observed.host);
        let brake = last.and_then(|host| self.brake_holds(host)).map(Cluster::braked);
        let Some(vm) = self.vms.get_mut(&id) else { return };
        let place = last.and_then(|host| self.hosts.get(&host));
        if vm.failover.is_some() {
            commands.extend(refuse("a failover of this VM is already in progress".to_owned()));
        } else if self.drains.moves.get(&id).is_some_and(|vm_move| vm_move.holds(vm.observed.state, now)) {
            commands.extend(refuse("its host is being drained and the VM is being stopped there".to_owned()));
        } else if let Some(brake) = brake {
            commands.extend(refuse(format!("its last host is unreachable, and {brake}")));
        } else if place.is_some_and(|place| place.reconciling) {
            commands.extend(refuse("its host is being reconciled; retry in a moment".to_owned()));
        } else {
            vm.reset_failures();
            let reason = "requested by an operator".to_owned();
            vm.failover = Some(Failover::of(&vm.observed, &reason));
            self.failovers += 1;
            let cause = FailoverReason::Operator;
            commands.push(Command::Start { vm: id, cause, host, soft_avoid: Vec::new(), reason });
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
        let Some(Failover { incarnation, from, reason }) = vm.failover.take() else { return };
        self.failovers -= 1;
        let name = self.inventory.vm(id).map(|item| item.name.clone()).unwrap_or_default();
        match result {
            Ok(host) => {
                vm.next = Duration::ZERO;
                vm.why.clear();
                // A moved VM has its own event.
                let moved = self.drains.moves.contains_key(&id);
                if let Some(host) = host.filter(|_| vm.observed.incarnation > incarnation && !moved) {
                    commands.push(Command::Emit(HaEvent::Started(VmHaStarted {
                        vm_uuid: id,
                        vm: name,
                        from_host: from.map(|host| self.inventory.host_name(host)),
                        host_uuid: host,
                        host: self.inventory.host_name(host),
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
                    commands.push(Command::Emit(HaEvent::Blocked(VmHaBlocked { vm_uuid: id, vm: name, reason: why })));
                }
            }
        }
    }

    /// Compares the processes of a host with the observed state.
    pub(super) fn listed(&mut self, host: HostId, running: &[RunningVm], commands: &mut Vec<Command>) {
        // In maintenance an operator may stop VMs by other means: they are not failed over, except in a drain.
        let draining = self.drains.hosts.contains_key(&host);
        let judged = draining || !self.is_maintained(host);
        let missed = self.on_host.get(&host).into_iter().flatten().filter(|id| {
            let is_it = |process: &RunningVm| {
                process.vm_uuid == **id && process.stranger.is_none() && process.kind == WriterKind::Qemu
            };
            let runs = running.iter().any(is_it);
            let looked_for = |state| match state {
                VmState::Running => true,
                // The host is not pinged: no other query finds the VM.
                VmState::Unknown => draining,
                _ => false,
            };
            judged && self.vms.get(id).is_some_and(|vm| looked_for(vm.observed.state)) && !runs
        });
        commands.extend(missed.map(|id| Command::LookFor(*id, None)));
        let mut claimed = BTreeMap::new();
        for process in running.iter().filter(|process| !process.other_agent && process.kind == WriterKind::Qemu) {
            let id = process.vm_uuid;
            let Ok(item) = self.inventory.vm(id) else { continue };
            let cluster = self.inventory.host(host).map(|host| host.cluster).ok();
            let is_place = self.vms.get(&id).is_some_and(|vm| vm.observed.host == Some(host));
            let why = match &process.stranger {
                Some(stranger) => Some(format!("not accepted as the VM: {stranger}")),
                None if cluster != Some(item.cluster) && !is_place => {
                    Some(format!("process {} has the VM's uuid, but the host is in another cluster", process.pid))
                }
                None => None,
            };
            if let Some(reason) = why {
                claimed.insert((host, id), process.stranger.is_none());
                if !self.intruders.contains_key(&(host, id)) {
                    let (vm, name) = (item.name.clone(), self.inventory.host_name(host));
                    let phase = IntruderPhase::Told;
                    let told = VmIntruder { vm_uuid: id, vm, host_uuid: host, host: name, phase, reason };
                    commands.push(Command::Emit(HaEvent::Intruder(told)));
                }
                continue;
            }
            let found = match self.vms.get(&id) {
                Some(vm) if vm.failover.is_some() => false,
                // A second QEMU of a VM that runs elsewhere (K8). A migration target may become the VM.
                Some(vm) if vm.observed.state == VmState::Running => {
                    vm.observed.host != Some(host) && !process.incoming && !sabotage::on(Sabotage::IntruderIgnored)
                }
                Some(vm) => matches!(vm.observed.state, VmState::Stopped | VmState::Unknown),
                // Never started by this controller.
                None => true,
            };
            if found {
                commands.push(Command::LookFor(id, Some(host)));
            }
        }
        self.intruders.retain(|claim, _| claim.0 != host);
        self.intruders.extend(claimed);
    }

    /// QEMUs like a VM's on hosts of other clusters: the reports are not accepted as the VM's host, and no start may
    /// ignore them.
    pub(super) fn claims(&self) -> impl Iterator<Item = (VmId, HostId)> {
        self.intruders.iter().filter(|(_, like_a_vm)| **like_a_vm).map(|((host, claimed), _)| (*claimed, *host))
    }
}

/// Wait after this many failures or searches.
pub(super) fn backoff(failures: u32) -> Duration {
    RETRY_CEILING.min(Duration::from_millis(500) * (1 << failures.min(10)))
}
