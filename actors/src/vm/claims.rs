//! How reports of hosts about a VM change its observed state.
//!
//! ```text
//!   report           of its host             of another known host   of a host of neither kind
//!   running          Running                 two QEMUs: confronted   Unknown: becomes its host, the old one stays
//!   not running      Stopped, or Unknown     that host is clear      nothing
//!                    on another host
//!   error, no sight  Unknown                 nothing                 nothing
//! ```
//! Invariants: a claim adds a host and never removes one (K19). "Not running" removes a host only with full sight
//! (K2). A stranger's process does not count (K20), and neither does a claim from another cluster. Of two QEMUs the
//! one that is not the journal's newest incarnation is stopped, after the intent is durable; if the incarnations are
//! unknown the controller only reports (K8).
//! Alternatives considered: trust every report of a running VM. Any process could make it.

use ringfence_messages::{
    ErrorCode, HostId, Result, VmId,
    vm::{IntruderPhase, ListVmsReply, RunningVm, VmState, WriterKind},
};

use super::core::{Command, Core, Location, Operation};
use crate::{
    fence::Cleared,
    sabotage::{self, Sabotage},
};

/// What a host has of a VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Presence {
    /// Nothing that could write, verified with full sight.
    Nothing(Cleared),
    /// No QEMU, but a target that exports a volume of the VM.
    Export,
    /// Only a QEMU started as migration target: it may still wait, or be the VM since the migration.
    MigrationTarget,
    /// A running QEMU, with its incarnation if known.
    Running(Option<u64>),
}

impl Presence {
    /// Reads the process list of a host.
    ///
    /// # Errors
    /// The list lacks the VM and was made without full sight.
    pub(super) fn of(vm: VmId, host: HostId, reply: &ListVmsReply) -> Result<Presence> {
        let is_vm = |writer: &&RunningVm| writer.stranger.is_none() || sabotage::on(Sabotage::StrangersAreVms);
        let of_it = || reply.vms.iter().filter(|writer| writer.vm_uuid == vm).filter(is_vm);
        let qemus = || of_it().filter(|writer| writer.kind == WriterKind::Qemu);
        if let Some(running) = qemus().filter(|writer| !writer.incoming).max_by_key(|writer| writer.incarnation) {
            return Ok(Presence::Running(running.incarnation));
        }
        if qemus().next().is_some() {
            return Ok(Presence::MigrationTarget);
        }
        if of_it().next().is_some() && !sabotage::on(Sabotage::ExportIsNothing) {
            return Ok(Presence::Export);
        }
        Cleared::by_listing(vm, host, reply).map(Presence::Nothing)
    }
}

impl Core {
    /// Queries whether the VM runs on a host.
    pub(super) fn look_at(&mut self, host: HostId) -> Vec<Command> {
        self.operation = Operation::Reconciling(host, None);
        vec![Command::Search(host)]
    }

    /// Handles the answer to that query.
    pub(super) fn settle(&mut self, host: HostId, found: Result<ListVmsReply>, why: &str) -> Vec<Command> {
        let seen = found.and_then(|reply| Presence::of(self.vm.id, host, &reply));
        if self.place == Some(host) {
            return self.settle_here(host, seen, why);
        }
        let is_place = self.others.contains(&host);
        match seen {
            Ok(Presence::Nothing(_)) if is_place => {
                self.others.remove(&host);
                let name = self.inventory.host_name(host);
                vec![self.becomes(self.state, self.place, format!("not on {name} any more ({why})"))]
            }
            // A migration target is not the VM yet, unless the VM is gone from its last host.
            Ok(Presence::MigrationTarget) if self.state != VmState::Stopped => Vec::new(),
            Ok(Presence::Running(_) | Presence::MigrationTarget) if !is_place && !self.may_claim(host) => Vec::new(),
            Ok(Presence::Running(_)) if self.state == VmState::Running => self.confront(host),
            Ok(Presence::Running(_) | Presence::MigrationTarget) => {
                // Started by another program: from now on the controller manages it there.
                self.wanted |= self.state == VmState::Stopped;
                self.adds_place(host);
                vec![self.becomes(
                    VmState::Running,
                    Some(host),
                    format!("found running ({why}): something else started it"),
                )]
            }
            Ok(Presence::Nothing(_) | Presence::Export) | Err(_) => Vec::new(),
        }
    }

    fn settle_here(&mut self, host: HostId, seen: Result<Presence>, why: &str) -> Vec<Command> {
        match seen {
            Ok(Presence::Running(_) | Presence::MigrationTarget) if self.state == VmState::Running => Vec::new(),
            Ok(Presence::Running(_) | Presence::MigrationTarget) => {
                vec![self.becomes(VmState::Running, Some(host), format!("found running ({why})"))]
            }
            Ok(Presence::Nothing(_) | Presence::Export) if self.state == VmState::Stopped => Vec::new(),
            Ok(Presence::Nothing(_) | Presence::Export) => {
                vec![self.is_gone(host, &format!("not running there ({why})"))]
            }
            // A host that cannot be queried does not change a verified stop.
            Err(_) if matches!(self.state, VmState::Stopped | VmState::Unknown) => Vec::new(),
            Err(error) => {
                let reason = format!("its host cannot be queried: {error} ({why})");
                vec![self.becomes(VmState::Unknown, Some(host), reason)]
            }
        }
    }

    /// Verified gone from its host. On other hosts its state is unknown.
    pub(super) fn is_gone(&mut self, host: HostId, reason: &str) -> Command {
        match self.others.pop_first() {
            Some(other) => {
                let name = self.inventory.host_name(other);
                self.becomes(VmState::Unknown, Some(other), format!("{reason}; it may still run on {name}"))
            }
            None => self.becomes(VmState::Stopped, Some(host), reason),
        }
    }

    /// Whether a host that is not a known host of the VM may claim it: hosts of other clusters may not.
    pub(super) fn may_claim(&self, host: HostId) -> bool {
        let accepted = |cluster| cluster == self.vm.cluster || sabotage::on(Sabotage::OtherClusterBelieved);
        self.inventory.host(host).is_ok_and(|host| accepted(host.cluster))
    }

    /// Keeps the old host as one where the VM may run, unless the VM is known to be gone from there.
    pub(super) fn adds_place(&mut self, host: HostId) {
        let stays = self.place.filter(|place| *place != host && self.state != VmState::Stopped);
        self.others.extend(stays.filter(|_| !sabotage::on(Sabotage::ClaimReplacesPlace)));
    }

    /// The start launched nothing: the old location holds.
    pub(super) fn is_back_at(&mut self, before: Location) {
        let Location { state, place, others, halted } = before;
        self.state = state;
        self.place = place;
        self.others = others;
        self.halted = halted;
    }

    /// A host is removed from the inventory, with nothing of the VM left there.
    pub(super) fn host_gone(&mut self, host: HostId) -> Vec<Command> {
        const WHY: &str = "its last host was removed from the inventory with nothing left on it";
        let was_other = self.others.remove(&host);
        if self.place == Some(host) && self.state == VmState::Stopped {
            return vec![self.becomes(VmState::Stopped, None, WHY)];
        }
        if was_other { vec![self.becomes(self.state, self.place, WHY)] } else { Vec::new() }
    }

    /// Two hosts report the VM as running: both are queried.
    fn confront(&mut self, other: HostId) -> Vec<Command> {
        let Some(place) = self.place.filter(|_| !sabotage::on(Sabotage::IntruderIgnored)) else { return Vec::new() };
        self.operation = Operation::Confronting { other, at_other: None, at_place: None };
        vec![Command::Search(other), Command::Search(place)]
    }

    pub(super) fn confronted(
        &mut self,
        host: HostId,
        found: Result<ListVmsReply>,
        other: HostId,
        mut at_other: Option<Result<Presence>>,
        mut at_place: Option<Result<Presence>>,
    ) -> Vec<Command> {
        let seen = found.and_then(|reply| Presence::of(self.vm.id, host, &reply));
        if host == other {
            at_other = Some(seen);
        } else {
            at_place = Some(seen);
        }
        let (Some(there), Some(here), Some(place)) = (&at_other, &at_place, self.place) else {
            self.operation = Operation::Confronting { other, at_other, at_place };
            return Vec::new();
        };
        let newest = Some(self.incarnation);
        let name = self.inventory.host_name(other);
        match (there, here) {
            (Ok(Presence::Running(theirs)), Ok(Presence::Running(ours)))
                if (*theirs == newest) != (*ours == newest) =>
            {
                let (ends, stays) = if *ours == newest { (other, place) } else { (place, other) };
                let stays = self.inventory.host_name(stays);
                let reason = format!("incarnation {} runs on {stays}", self.incarnation);
                self.operation = Operation::IntendingEnd(ends);
                vec![Command::Intruder(ends, IntruderPhase::EndIntended, reason)]
            }
            (Ok(Presence::Running(_)), Ok(Presence::Running(_))) => {
                let reason = format!(
                    "it runs on {name} and on {}, and neither is known to be incarnation {}; stop the wrong one",
                    self.inventory.host_name(place),
                    self.incarnation
                );
                vec![Command::Intruder(other, IntruderPhase::Undecided, reason)]
            }
            // It moved there without the controller.
            (Ok(Presence::Running(_)), Ok(Presence::Nothing(_) | Presence::Export)) => {
                let reason = "found running (both hosts were queried): something else started it";
                vec![self.becomes(VmState::Running, Some(other), reason)]
            }
            // Its own host cannot be queried: the VM may run on both.
            (Ok(Presence::Running(_)), _) if self.others.insert(other) => {
                let reason = format!("also reported running on {name}, and its own host cannot be queried");
                vec![self.becomes(self.state, Some(place), reason)]
            }
            (Ok(Presence::Nothing(_)), _) if self.others.remove(&other) => {
                vec![self.becomes(self.state, Some(place), format!("not on {name} any more (the host was queried)"))]
            }
            _ => Vec::new(),
        }
    }

    /// Handles the stop of one of two QEMUs.
    pub(super) fn ended(&mut self, host: HostId, result: Result<(), ErrorCode>) -> Vec<Command> {
        if let Err(error) = result {
            return vec![Command::Intruder(host, IntruderPhase::NotEnded, error.to_string())];
        }
        let ended = Command::Intruder(host, IntruderPhase::Ended, "killed, verified gone".to_owned());
        if self.place == Some(host) {
            // The other one is the newest incarnation: it is found on its host.
            return vec![ended, self.is_gone(host, "the older of two processes was stopped")];
        }
        let mut commands = vec![ended];
        if self.others.remove(&host) {
            commands.push(self.becomes(self.state, self.place, "the other process was stopped"));
        }
        commands
    }
}
