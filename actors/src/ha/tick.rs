//! Periodic queries of the core: sibling hosts about unreachable hosts, hosts about their processes, storages about
//! lost VMs.
//!
//! Invariants: an unanswered query is repeated, with backoff if the host answers but cannot list its processes.
//! Alternatives considered: wait for events. One may have been missed.

use std::{collections::BTreeSet, time::Duration};

use ringfence_messages::{ClusterId, HostId, host::HostStatus, vm::VmState};

use super::core::{Command, Core, Host, SCAN_EVERY};
use crate::replay::REJECTED;

impl Core {
    /// Emits every query and command that is due.
    pub(super) fn tick(&mut self, now: Duration, commands: &mut Vec<Command>) {
        // Failed hosts too while VMs wait for them: a fence starts from the newest scan.
        let waited_for: BTreeSet<HostId> =
            self.lost.iter().filter_map(|id| self.vms.get(id).and_then(|vm| vm.observed.host)).collect();
        let unreachable: Vec<HostId> = self
            .hosts
            .iter()
            .filter(|(id, host)| !host.maintenance && (host.failed.is_none() || waited_for.contains(id)))
            .filter(|(_, host)| host.suspect || host.status == Some(HostStatus::Disconnected))
            .map(|(id, _)| *id)
            .collect();
        for host in unreachable {
            let due = self.hosts[&host].scan.as_ref().is_none_or(|scan| now.saturating_sub(scan.at) >= SCAN_EVERY);
            if due {
                self.scan(host, commands);
            }
        }
        let refused = |host: &Host| host.refused && !host.quarantined && now >= host.next_reconcile;
        for (id, host) in self.hosts.iter_mut().filter(|(_, host)| refused(host)) {
            if !std::mem::replace(&mut host.quarantining, true) {
                commands.push(Command::Quarantine(*id, REJECTED.to_owned()));
            }
        }
        let quarantined = self.inventory.hosts.iter().filter(|item| self.hosts[&item.id].quarantined);
        let clusters: BTreeSet<ClusterId> = quarantined.map(|item| item.cluster).collect();
        commands.extend(clusters.into_iter().map(Command::QueryAnswering));
        for _ in 0..self.census.per_tick {
            let id = self.inventory.hosts[self.census.position % self.inventory.hosts.len()].id;
            self.census.position = self.census.position.wrapping_add(1);
            let host = &self.hosts[&id];
            let answers = match host.maintenance {
                // No ping says whether it answers.
                true => now >= host.ask_again,
                false => host.status == Some(HostStatus::Connected) && !host.suspect,
            };
            if answers {
                commands.push(Command::List(id));
            }
        }
        self.ask_unheard(now, commands);
        self.query_drained(commands);
        for id in &self.lost {
            let Some(vm) = self.vms.get_mut(id) else { continue };
            let Some(host) = vm.observed.host.and_then(|host| self.hosts.get(&host)) else { continue };
            let waits = match vm.observed.state {
                VmState::Unknown => true,
                // The host where it stopped cannot be queried any more.
                VmState::Stopped => host.is_unreachable(),
                _ => false,
            };
            if !waits || vm.failover.is_some() {
                continue;
            }
            if host.status == Some(HostStatus::Connected) && !host.suspect {
                // With backoff: the host answers but does not resolve the state.
                if vm.searches.begin(now) {
                    commands.push(Command::LookFor(*id, None));
                }
            } else if host.seen_by_siblings(now) && !std::mem::replace(&mut vm.watching, true) {
                commands.push(Command::Watch(*id));
            }
        }
    }
}
