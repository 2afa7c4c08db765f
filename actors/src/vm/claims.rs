//! What hosts say of a VM, and what follows: where it runs, where it may run, and what of it does not belong.
//!
//! ```text
//!   a host says          of its place            of another place        of a host that was no place
//!   it runs here         Running                 two of it: confronted   Unknown: it is a place now, the old one stays another
//!   it is not here       Stopped, or Unknown     that place is clear     nothing
//!                        at another place
//!   nothing, or blind    Unknown                 nothing                 nothing
//! ```
//! Invariants: a claim adds a place and never takes one away (K19); "not here" takes a place away only if it was said with
//! full sight (K2); a stranger's process is nothing at all here (K20), and so is a claim from another cluster; of two
//! QEMUs the one that is not the journal's newest incarnation is ended, after the intent is durable; where that cannot
//! be told nothing is done but tell (K8). Rejected: "whoever says that it runs is right", which any process could say.

use ringfence_messages::{
    ErrorCode, HostId, Result, VmId,
    vm::{IntruderPhase, ListVmsReply, RunningVm, VmState, WriterKind},
};

use super::core::{Busy, Command, Core, Whereabouts};
use crate::{
    fence::Cleared,
    sabotage::{self, Sabotage},
};

/// What a host has of a VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Seen {
    /// Nothing that could write, said by who could have seen it.
    Nothing(Cleared),
    /// No QEMU, but a target that exports a volume of it.
    Export,
    /// Only one that was started to take a migration: it may wait for it yet, or be the VM since it took it.
    Coming,
    /// One that runs, and which start it is, if that is known.
    Running(Option<u64>),
}

impl Seen {
    /// Reads a host's list.
    ///
    /// # Errors
    /// The VM is not in it, and who made it could not have seen everything.
    pub(super) fn of(vm: VmId, host: HostId, reply: &ListVmsReply) -> Result<Seen> {
        let is_vm = |writer: &&RunningVm| writer.stranger.is_none() || sabotage::on(Sabotage::StrangersAreVms);
        let of_it = || reply.vms.iter().filter(|writer| writer.vm_uuid == vm).filter(is_vm);
        let qemus = || of_it().filter(|writer| writer.kind == WriterKind::Qemu);
        if let Some(running) = qemus().filter(|writer| !writer.incoming).max_by_key(|writer| writer.incarnation) {
            return Ok(Seen::Running(running.incarnation));
        }
        if qemus().next().is_some() {
            return Ok(Seen::Coming);
        }
        if of_it().next().is_some() && !sabotage::on(Sabotage::ExportIsNothing) {
            return Ok(Seen::Export);
        }
        Cleared::by_listing(vm, host, reply).map(Seen::Nothing)
    }
}

impl Core {
    /// Asks a host whether it runs there.
    pub(super) fn look_at(&mut self, host: HostId) -> Vec<Command> {
        self.busy = Busy::Reconciling(host, None);
        vec![Command::Search(host)]
    }

    /// A host said, or could not say, whether the VM runs there.
    pub(super) fn settle(&mut self, host: HostId, found: Result<ListVmsReply>, why: &str) -> Vec<Command> {
        let seen = found.and_then(|reply| Seen::of(self.vm.id, host, &reply));
        if self.place == Some(host) {
            return self.settle_here(host, seen, why);
        }
        let is_place = self.others.contains(&host);
        match seen {
            Ok(Seen::Nothing(_)) if is_place => {
                self.others.remove(&host);
                let name = self.directory.host_name(host);
                vec![self.becomes(self.state, self.place, format!("not on {name} any more ({why})"))]
            }
            // Whoever waits for a migration is not the VM yet, unless that is gone from where it ran last.
            Ok(Seen::Coming) if self.state != VmState::Stopped => Vec::new(),
            Ok(Seen::Running(_) | Seen::Coming) if !is_place && !self.may_claim(host) => Vec::new(),
            Ok(Seen::Running(_)) if self.state == VmState::Running => self.confront(host),
            Ok(Seen::Running(_) | Seen::Coming) => {
                // Nobody ordered it there; from now on it is looked after where it is.
                self.wanted |= self.state == VmState::Stopped;
                self.adds_place(host);
                vec![self.becomes(
                    VmState::Running,
                    Some(host),
                    format!("found running ({why}): something else started it"),
                )]
            }
            Ok(Seen::Nothing(_) | Seen::Export) | Err(_) => Vec::new(),
        }
    }

    fn settle_here(&mut self, host: HostId, seen: Result<Seen>, why: &str) -> Vec<Command> {
        match seen {
            Ok(Seen::Running(_) | Seen::Coming) if self.state == VmState::Running => Vec::new(),
            Ok(Seen::Running(_) | Seen::Coming) => {
                vec![self.becomes(VmState::Running, Some(host), format!("found running ({why})"))]
            }
            Ok(Seen::Nothing(_) | Seen::Export) if self.state == VmState::Stopped => Vec::new(),
            Ok(Seen::Nothing(_) | Seen::Export) => vec![self.is_gone(host, &format!("not there ({why})"))],
            // That a host cannot be asked is no doubt about one that was verified gone.
            Err(_) if matches!(self.state, VmState::Stopped | VmState::Unknown) => Vec::new(),
            Err(error) => {
                let reason = format!("its host cannot be asked: {error} ({why})");
                vec![self.becomes(VmState::Unknown, Some(host), reason)]
            }
        }
    }

    /// It is verified gone from its place. Where else it may run it is in doubt.
    pub(super) fn is_gone(&mut self, host: HostId, reason: &str) -> Command {
        match self.others.pop_first() {
            Some(other) => {
                let name = self.directory.host_name(other);
                self.becomes(VmState::Unknown, Some(other), format!("{reason}; it may still run on {name}"))
            }
            None => self.becomes(VmState::Stopped, Some(host), reason),
        }
    }

    /// Whether a host that is no place of the VM may say that it runs there: hosts of other clusters may not.
    pub(super) fn may_claim(&self, host: HostId) -> bool {
        let believed = |cluster| cluster == self.vm.cluster || sabotage::on(Sabotage::OtherClusterBelieved);
        self.directory.host(host).is_ok_and(|of| believed(of.cluster))
    }

    /// It is seen on another host than its place, which stays a place unless it is known to be gone from there.
    pub(super) fn adds_place(&mut self, host: HostId) {
        let stays = self.place.filter(|place| *place != host && self.state != VmState::Stopped);
        self.others.extend(stays.filter(|_| !sabotage::on(Sabotage::ClaimReplacesPlace)));
    }

    /// A start did not come so far that anything was launched: it is where it was.
    pub(super) fn is_back_at(&mut self, before: Whereabouts) {
        let Whereabouts { state, place, others } = before;
        (self.state, self.place, self.others) = (state, place, others);
    }

    /// A host leaves the inventory, with nothing of the VM on it.
    pub(super) fn host_gone(&mut self, host: HostId) -> Vec<Command> {
        const WHY: &str = "the host where it ran last was removed, with nothing left on it";
        let was_other = self.others.remove(&host);
        if self.place == Some(host) && self.state == VmState::Stopped {
            return vec![self.becomes(VmState::Stopped, None, WHY)];
        }
        if was_other { vec![self.becomes(self.state, self.place, WHY)] } else { Vec::new() }
    }

    /// It runs at its place, and on this host too, as it seems: both are asked.
    fn confront(&mut self, other: HostId) -> Vec<Command> {
        let Some(place) = self.place.filter(|_| !sabotage::on(Sabotage::IntruderIgnored)) else { return Vec::new() };
        self.busy = Busy::Confronting { other, at_other: None, at_place: None };
        vec![Command::Search(other), Command::Search(place)]
    }

    pub(super) fn confronted(
        &mut self,
        host: HostId,
        found: Result<ListVmsReply>,
        other: HostId,
        mut at_other: Option<Result<Seen>>,
        mut at_place: Option<Result<Seen>>,
    ) -> Vec<Command> {
        let seen = found.and_then(|reply| Seen::of(self.vm.id, host, &reply));
        match host == other {
            true => at_other = Some(seen),
            false => at_place = Some(seen),
        }
        let (Some(there), Some(here), Some(place)) = (&at_other, &at_place, self.place) else {
            self.busy = Busy::Confronting { other, at_other, at_place };
            return Vec::new();
        };
        let newest = Some(self.incarnation);
        let name = self.directory.host_name(other);
        match (there, here) {
            (Ok(Seen::Running(theirs)), Ok(Seen::Running(ours))) if (*theirs == newest) != (*ours == newest) => {
                let (ends, stays) = if *ours == newest { (other, place) } else { (place, other) };
                let stays = self.directory.host_name(stays);
                let reason = format!("incarnation {} runs on {stays}", self.incarnation);
                self.busy = Busy::IntendingEnd(ends);
                vec![Command::Intruder(ends, IntruderPhase::EndIntended, reason)]
            }
            (Ok(Seen::Running(_)), Ok(Seen::Running(_))) => {
                let reason = format!(
                    "it runs on {name} and on {} too, and neither is known to be incarnation {}: end the wrong one",
                    self.directory.host_name(place),
                    self.incarnation
                );
                vec![Command::Intruder(other, IntruderPhase::Undecided, reason)]
            }
            // It moved there by itself.
            (Ok(Seen::Running(_)), Ok(Seen::Nothing(_) | Seen::Export)) => {
                let reason = "found running (both hosts were asked): something else started it";
                vec![self.becomes(VmState::Running, Some(other), reason)]
            }
            // Its place cannot be asked: now there are two.
            (Ok(Seen::Running(_)), _) if self.others.insert(other) => {
                let reason = format!("it seems to run on {name} too, and its host cannot be asked");
                vec![self.becomes(self.state, Some(place), reason)]
            }
            (Ok(Seen::Nothing(_)), _) if self.others.remove(&other) => {
                vec![self.becomes(self.state, Some(place), format!("not on {name} any more (it was asked)"))]
            }
            _ => Vec::new(),
        }
    }

    /// One of two was ended, or not.
    pub(super) fn ended(&mut self, host: HostId, result: Result<(), ErrorCode>) -> Vec<Command> {
        if let Err(error) = result {
            return vec![Command::Intruder(host, IntruderPhase::NotEnded, error.to_string())];
        }
        let ended = Command::Intruder(host, IntruderPhase::Ended, "killed, verified gone".to_owned());
        if self.place == Some(host) {
            // The other one is the newest: it is found where it is.
            return vec![ended, self.is_gone(host, "the older of two was ended")];
        }
        match self.others.remove(&host) {
            true => vec![ended, self.becomes(self.state, self.place, "the other one was ended")],
            false => vec![ended],
        }
    }
}
