//! What the core asks again with every tick: siblings about hosts that are away, hosts about their processes, storages about
//! VMs that are lost.
//!
//! Invariants: what nobody answers is asked again, and more and more rarely of a host that answers and cannot say.
//! Rejected: waiting for the events that would say so; one may have been missed.

use std::{collections::BTreeSet, time::Duration};

use ringfence_messages::{ClusterId, HostId, host::HostStatus, vm::VmState};

use super::{
    core::{Command, Core, Host, SCAN_EVERY},
    flows::backoff,
};

impl Core {
    /// What is asked and ordered again, for as long as it is due.
    pub(super) fn tick(&mut self, now: Duration, commands: &mut Vec<Command>) {
        // A failed one as long as VMs wait for it: what siblings see of it now is what a fence starts from.
        let waited_for: BTreeSet<HostId> =
            self.lost.iter().filter_map(|id| self.vms.get(id).and_then(|vm| vm.belief.host)).collect();
        let away: Vec<HostId> = self
            .hosts
            .iter()
            .filter(|(id, host)| !host.maintenance && (host.failed.is_none() || waited_for.contains(id)))
            .filter(|(_, host)| host.suspect || host.status == Some(HostStatus::Disconnected))
            .map(|(id, _)| *id)
            .collect();
        for host in away {
            let due = self.hosts[&host].scan.as_ref().is_none_or(|(at, _)| now.saturating_sub(*at) >= SCAN_EVERY);
            if due {
                self.scan(host, commands);
            }
        }
        let refused = |host: &Host| host.refused && !host.quarantined && now >= host.next_clean;
        for (id, host) in self.hosts.iter_mut().filter(|(_, host)| refused(host)) {
            if !std::mem::replace(&mut host.quarantining, true) {
                commands.push(Command::Quarantine(*id, "a storage refuses it, and no record says why".to_owned()));
            }
        }
        let quarantined = self.directory.hosts.iter().filter(|of| self.hosts[&of.id].quarantined);
        let clusters: BTreeSet<ClusterId> = quarantined.map(|of| of.cluster).collect();
        commands.extend(clusters.into_iter().map(Command::AskStanding));
        for _ in 0..self.census.0 {
            let of = &self.directory.hosts[self.census.1 % self.directory.hosts.len()];
            self.census.1 = self.census.1.wrapping_add(1);
            let host = &self.hosts[&of.id];
            if host.status == Some(HostStatus::Connected) && !host.suspect && !host.maintenance {
                commands.push(Command::List(of.id));
            }
        }
        self.ask_unheard(now, commands);
        self.look_at_drained(commands);
        for id in &self.lost {
            let Some(vm) = self.vms.get_mut(id) else { continue };
            let Some(host) = vm.belief.host.and_then(|host| self.hosts.get(&host)) else { continue };
            let waits = match vm.belief.state {
                VmState::Unknown => true,
                // Where it stopped cannot be asked any more.
                VmState::Stopped => host.is_away(),
                _ => false,
            };
            if !waits || vm.flow.is_some() {
                continue;
            }
            if host.status == Some(HostStatus::Connected) && !host.suspect {
                // A host that answers and cannot say is asked more and more rarely.
                if now >= vm.looks.1 {
                    vm.looks = (vm.looks.0.saturating_add(1), now + backoff(vm.looks.0));
                    commands.push(Command::LookFor(*id, None));
                }
            } else if host.seen_by_siblings(now) && !std::mem::replace(&mut vm.watching, true) {
                commands.push(Command::Watch(*id));
            }
        }
    }
}
