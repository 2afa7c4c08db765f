//! Processes that look like a VM, and hosts that answer for another: claims, migrations, duplicate addresses.

use super::{State, World, machine::Process};
use crate::fault::Claimant;

impl State {
    /// The host that answers at this host's management address.
    pub(crate) fn answers_at(&self, host: usize) -> usize {
        self.machines[host].taken.first().map_or(host, |(_, by)| *by)
    }

    /// A process that looked like a VM ends, if nobody has ended it.
    pub(super) fn claim_ends(&mut self, fault: u64) {
        let (over, left) = std::mem::take(&mut self.claims).into_iter().partition(|(of, _, _)| *of == fault);
        self.claims = left;
        let over: Vec<(u64, usize, u64)> = over;
        for (_, host, uid) in over {
            self.end(host, "stopped by its owner", |process| process.uid == uid);
        }
    }
}

impl World {
    /// Whether a host has power.
    pub(crate) fn is_on(&self, host: &str) -> bool {
        self.host_named(host).is_some_and(|at| self.state().machines[at].on)
    }

    /// Nothing starts with this host when its power returns: its agent's unit, or its operator, has seen to it.
    pub(crate) fn hold_autostart(&self, host: &str) {
        if let Some(at) = self.host_named(host) {
            self.state().machines[at].autostart.clear();
        }
    }

    pub(super) fn claim(&self, state: &mut State, vm: &str, host: Option<usize>, how: Claimant, fault: u64) {
        let (Some(host), Some(vm)) = (host, self.vm_named(vm)) else { return };
        if !state.machines[host].on {
            return;
        }
        let mut uid = 0;
        state.spawn_as(host, vm, 0, |process| {
            (process.claim, uid) = (Some(how), process.uid);
            if how != Claimant::Second {
                // It has nothing open.
                (process.unwatched, process.watch_until) = (true, Some(std::time::Duration::ZERO));
            }
        });
        state.claims.push((fault, host, uid));
    }

    pub(super) fn migration_begins(&self, state: &mut State, vm: &str, to: Option<usize>) {
        let (Some(to), Some((at, vm))) = (to, self.location(state, vm)) else { return };
        if at != to && state.machines[to].on {
            state.spawn(to, vm, 0, true);
        }
    }

    /// The one that waits becomes the VM, if it can: then the other one ends. Else it ends itself.
    pub(super) fn migration_ends(&self, state: &mut State, vm: &str, to: Option<usize>, succeeds: bool) {
        let (Some(to), Some(number)) = (to, self.vm_named(vm)) else { return };
        let waits = |process: &Process| process.vm == number && process.incoming;
        let uid = state.machines[to].processes.iter().find(|process| waits(process)).map(|process| process.uid);
        let Some(uid) = uid else { return };
        let well = |state: &State, host: usize| state.machines[host].answers() && state.machines[host].contact;
        let ips = state.machines[to].storage_ips.clone();
        let can = succeeds && well(state, to) && !state.ceph.refuses(&ips, state.now);
        let source = self.location(state, vm).filter(|(at, _)| *at != to && can && well(state, *at));
        let Some((from, _)) = source else {
            state.end(to, "the migration failed", |process| process.uid == uid);
            state.machines[to].exports.retain(|_, export| export.uid != uid);
            return;
        };
        let is = |process: &Process| process.vm == number && !process.incoming && process.claim.is_none();
        let ended = state.end(from, "it has migrated", is);
        // It quits in order: its watch and its export go with it.
        state.machines[from].exports.remove(&number);
        state.ceph.ghosts.retain(|(vm, host, _)| (*vm, *host) != (number, from));
        let incarnation = ended.first().map_or(0, |process| process.incarnation);
        for process in state.machines[to].processes.iter_mut().filter(|process| process.uid == uid) {
            (process.incoming, process.came, process.incarnation) = (false, true, incarnation);
        }
        state.exports(to, number, uid, incarnation);
        let name = state.machines[to].name.clone();
        state.log(format_args!("{name}: QEMU of {vm} has taken its migration, incarnation {incarnation}"));
    }
}
