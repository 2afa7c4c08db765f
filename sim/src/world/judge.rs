//! Judges what happens in the world: the rules of [`check`](crate::check) that need processes, storages and journal.

use std::{net::IpAddr, time::Duration};

use ringfence_actors::ports::Record;
use ringfence_messages::{
    Event,
    ceph::StorageFenceChanged,
    fence::{FenceIntended, FenceOutcome, SiblingFenceAudited},
    ha::{HostFailed, HostQuarantineChanged, VmMoveChanged},
    host::{HostState, HostStateChanged, HostStatus, HostStatusChanged},
    recovery::{ProtocolRedeploy, RedeployPhase},
    vm::{HaMode, IntruderPhase, VmIntruder, VmState, VmStateChanged},
};

use super::{Export, Machine, Process, State, World};
use crate::{
    check::{Violation, down_for_drains, wrong_text},
    plan::{Location, Probe},
};

impl State {
    pub(crate) fn violation(&mut self, rule: &'static str, what: String) {
        self.log(format_args!("VIOLATION of {rule}: {what}"));
        let at = self.now;
        self.checks.violations.push(Violation { at, rule, what });
    }

    fn judged(&mut self, rule: &'static str, wrong: Option<String>) {
        if let Some(wrong) = wrong {
            self.violation(rule, wrong);
        }
    }

    fn newest<E: Event>(&self, subject: &str) -> Option<E> {
        self.latest_of(E::TOPIC, subject).and_then(|record| record.event().ok())
    }

    /// A start is ordered.
    pub(crate) fn starts(&mut self, vm: &str, incarnation: u64) {
        let intent = self.newest::<VmStateChanged>(vm);
        if intent.is_none_or(|is| is.new_state != VmState::Starting || is.incarnation != incarnation) {
            self.violation("I4", format!("{vm} starts without an intent in the journal"));
        }
        let wrong = self.checks.starts(vm, self.now);
        self.judged("I8", wrong);
    }

    /// A stop is ordered.
    pub(crate) fn stops(&mut self, host: usize, vm: &str) {
        let intended = self.newest::<VmStateChanged>(vm).is_some_and(|is| is.new_state == VmState::Stopping);
        let cleaned = self.in_quarantine(host);
        let id = self.machines[host].id;
        let intruder = self.newest::<VmIntruder>(vm);
        let ended = intruder.is_some_and(|of| of.phase == IntruderPhase::EndIntended && of.host_uuid == id);
        if !intended && !cleaned && !ended {
            let host = self.machines[host].name.clone();
            self.violation("I4", format!("{vm} is stopped on {host} without an intent in the journal"));
        }
    }

    /// A kill over SSH is ordered.
    pub(crate) fn sibling_fences(&mut self, failed: usize, vm: &str) {
        let id = self.machines[failed].id;
        if self.newest::<FenceIntended>(vm).is_none_or(|intent| intent.failed_host_uuid != id) {
            self.violation("I4", format!("{vm} is killed over SSH without an intent in the journal"));
        }
    }

    /// An address is blocked.
    pub(crate) fn blocks(&mut self, ip: IpAddr) {
        let intents = self.latest(StorageFenceChanged::TOPIC);
        let holds = |record: &Record| {
            let event = record.event::<StorageFenceChanged>();
            event.is_ok_and(|e| e.addresses.contains(&ip) && e.phase.is_kept())
        };
        if !intents.iter().any(holds) {
            self.violation("I4", format!("{ip} is blocked without an intent in the journal"));
        }
    }

    /// The hosts that the journal has in maintenance.
    pub(crate) fn maintained(&self) -> Vec<String> {
        let names = self.machines.iter().map(|machine| machine.name.clone());
        let state = |name: &String| self.newest::<HostStateChanged>(name).map(|change| change.new_state);
        names.filter(|name| state(name) == Some(HostState::Maintenance)).collect()
    }

    fn in_quarantine(&self, host: usize) -> bool {
        self.newest::<HostQuarantineChanged>(&self.machines[host].name).is_some_and(|newest| newest.quarantined)
    }

    /// A record is durable; it tells what happened `at`.
    pub(crate) fn check_record(&mut self, record: &Record, at: Duration) {
        self.judged("I8", wrong_text(record));
        match record.topic.as_str() {
            FenceIntended::TOPIC => {
                if let Ok(intent) = record.event::<FenceIntended>() {
                    self.checks.intends(intent);
                }
            }
            SiblingFenceAudited::TOPIC => {
                let Ok(audit) = record.event::<SiblingFenceAudited>() else { return };
                self.audited(&audit);
                let wrong = self.checks.audits(audit);
                self.judged("I7", wrong);
            }
            ProtocolRedeploy::TOPIC => {
                let Ok(redeploy) = record.event::<ProtocolRedeploy>() else { return };
                if redeploy.phase == RedeployPhase::Intent {
                    self.redeploys(&record.subject, &redeploy);
                }
            }
            HostFailed::TOPIC => {
                let Ok(failed) = record.event::<HostFailed>() else { return };
                let wrong = self.checks.fails(&failed, at);
                self.judged("I8", wrong);
            }
            HostStatusChanged::TOPIC => {
                let Ok(is) = record.event::<HostStatusChanged>() else { return };
                if is.new_status != HostStatus::Disconnected {
                    self.checks.answers(&record.subject);
                }
            }
            VmStateChanged::TOPIC => {
                let Ok(is) = record.event::<VmStateChanged>() else { return };
                if is.new_state == VmState::Stopping {
                    self.stopped_for_drains();
                }
            }
            _ => {}
        }
    }

    /// I2: no audit record says dead while the VM runs.
    fn audited(&mut self, audit: &SiblingFenceAudited) {
        let dead = matches!(audit.outcome, FenceOutcome::SuccessKilled | FenceOutcome::SuccessAlreadyDead);
        let Some(host) = self.machines.iter().position(|machine| machine.id == audit.failed_host_uuid) else { return };
        let refused = self.ceph.refuses(&self.machines[host].storage_ips, self.now);
        let is_vm = |p: &Process| format!("vm-{}", p.vm) == audit.vm && !p.incoming && p.claim.is_none();
        let held = |(vm, export): (&usize, &Export)| export.held && format!("vm-{vm}") == audit.vm;
        let lives = self.machines[host].processes.iter().any(is_vm) || self.machines[host].exports.iter().any(held);
        if dead && lives && !refused {
            self.violation("I2", format!("{}: {} on {}, where it runs", audit.vm, audit.outcome, audit.failed_host));
        }
    }

    /// I5: no redeploy in quarantine or maintenance; and the backoff.
    fn redeploys(&mut self, subject: &str, redeploy: &ProtocolRedeploy) {
        let host = &redeploy.host;
        let quarantined = self.newest::<HostQuarantineChanged>(host).is_some_and(|is| is.quarantined);
        let maintained = self.newest::<HostStateChanged>(host).is_some_and(|is| is.new_state == HostState::Maintenance);
        if quarantined || maintained {
            self.violation("I5", format!("{subject} is redeployed in quarantine or maintenance"));
        }
        let wrong = self.checks.redeploys(subject, redeploy);
        self.judged("I8", wrong);
    }

    /// I8: VMs that were stopped for a drain and do not run yet.
    fn stopped_for_drains(&mut self) {
        let moves = self.latest(VmMoveChanged::TOPIC);
        let moves = moves.iter().filter_map(|record| record.event::<VmMoveChanged>().ok()).filter(|of| of.moving);
        // A VM that did not stop has its own host in the record; its late stop is not part of a move.
        let moves = moves.filter(|of| of.host.as_ref() != Some(&of.from_host));
        let down = moves.filter(|of| {
            let newest = self.newest::<VmStateChanged>(&of.vm);
            newest.is_some_and(|vm| matches!(vm.new_state, VmState::Stopping | VmState::Stopped) && vm.wanted)
        });
        let down: Vec<String> = down.map(|of| of.vm).collect();
        self.judged("I8", down_for_drains(&down));
    }
}

impl World {
    /// Violations of the rule `live`: checked when no fault has been active for long enough.
    pub(crate) fn unwell(&self) -> Vec<String> {
        let state = self.state();
        let mut unwell = Vec::new();
        for (n, vm) in self.inventory.vms.iter().enumerate() {
            let Some(observed) = state.newest::<VmStateChanged>(&vm.name) else { continue };
            let hosts: Vec<String> = state
                .machines
                .iter()
                .flat_map(|machine| {
                    let own = machine.processes.iter().filter(|process| process.vm == n && process.claim.is_none());
                    own.map(|p| format!("{}{}", machine.name, if p.writes { "" } else { " (does not write)" }))
                })
                .collect();
            let right = hosts.len() == 1 && !hosts[0].ends_with(')');
            let owed = state.newest::<VmMoveChanged>(&vm.name).is_some_and(|of| of.moving);
            if (vm.ha == HaMode::NeverStop || owed) && observed.wanted && !right {
                let state = observed.new_state;
                unwell.push(format!("{} runs on {hosts:?}, observed state {state:?} on {:?}", vm.name, observed.host));
            }
        }
        for machine in &state.machines {
            let down = machine.targets.values().filter(|up| !**up).count();
            if down > 0 {
                unwell.push(format!("{down} vhost targets of {} are down", machine.name));
            }
            let status = state.newest::<HostStatusChanged>(&machine.name).map(|is| is.new_status);
            if status != Some(HostStatus::Connected) {
                unwell.push(format!("{} is {status:?}", machine.name));
            }
            if state.newest::<HostQuarantineChanged>(&machine.name).is_some_and(|is| is.quarantined) {
                unwell.push(format!("{} is in quarantine", machine.name));
            }
        }
        unwell.extend(state.ceph.blocked(state.now).iter().map(|ip| format!("ceph still rejects {ip}")));
        unwell
    }

    /// Checks the expected host of a VM.
    pub(crate) fn probe(&self, probe: &Probe) {
        let mut state = self.state();
        let vm = self.vm_named(&probe.vm);
        let writes = |machine: &Machine| machine.processes.iter().any(|p| Some(p.vm) == vm && p.writes);
        let hosts: Vec<&str> = state.machines.iter().filter(|m| writes(m)).map(|m| m.name.as_str()).collect();
        let right = match &probe.on {
            Location::On(host) => hosts == [host.as_str()],
            Location::NotOn(host) => hosts.len() == 1 && hosts != [host.as_str()],
            Location::Somewhere => hosts.len() == 1,
            Location::Nowhere => hosts.is_empty(),
        };
        if !right {
            let what = format!("{} is expected {:?}, but writes on {hosts:?}", probe.vm, probe.on);
            state.violation("expect", what);
        }
    }
}
