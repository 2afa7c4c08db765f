//! Which hosts listed their processes since this controller became the leader, and which must do so before a start.
//!
//! Invariants (K7): no VM of a cluster starts before each of its hosts listed its processes with full sight, is out
//! of service, or cannot be queried. A host that cannot be queried counts as a host where VMs may run whose volumes
//! have no watchers. A failed query counts as none. Hosts in maintenance are queried but not waited for: an operator
//! emptied them, unless that was before the journal was restored. A host that fails before it was heard counts, also
//! in quarantine.
//! Alternatives considered: trust the journal about where nothing runs. Other programs that start VMs do not write
//! it.

use std::time::Duration;

use ringfence_messages::{ClusterId, HostId, Result, ha::CensusReply, host::HostStatus, vm::ListVmsReply};

use super::core::{CENSUS_PER_TICK, Command, Core, Host, MAX_DEAF, RETRY_CEILING};
use crate::sabotage::{self, Sabotage};

impl Core {
    /// Handles a host's list of processes, or its error.
    pub(super) fn heard(&mut self, host: HostId, reply: &Result<ListVmsReply>, now: Duration) {
        let Some(listed) = self.hosts.get_mut(&host) else { return };
        listed.listing = false;
        match reply {
            Ok(reply) if reply.sight.is_full() => {
                listed.heard = true;
                listed.deaf = 0;
            }
            // A host without full sight would list no more the next time.
            Ok(_) => listed.deaf = MAX_DEAF,
            Err(_) => listed.deaf = listed.deaf.saturating_add(1),
        }
        listed.ask_again = if listed.deaf < MAX_DEAF { Duration::ZERO } else { now + RETRY_CEILING };
    }

    /// Queries hosts that were not heard yet; rarely if they failed often or lack full sight.
    pub(super) fn ask_unheard(&mut self, now: Duration, commands: &mut Vec<Command>) {
        if !self.census_open {
            return;
        }
        let askable = |host: &Host| host.status == Some(HostStatus::Connected) || host.maintenance;
        let due = |host: &Host| !host.heard && !host.listing && now >= host.ask_again && askable(host);
        let unheard = self.hosts.iter_mut().filter(|(_, host)| due(host));
        for (id, host) in unheard.take(CENSUS_PER_TICK) {
            host.listing = true;
            commands.push(Command::List(*id));
        }
        self.census_open = self.hosts.values().any(|host| !host.heard);
    }

    /// What placement must know before a VM starts in a cluster.
    pub fn census(&self, cluster: ClusterId) -> CensusReply {
        let occupied = self.of_cluster(cluster).map(|(id, _)| (id, self.vms_on(id))).filter(|(_, vms)| *vms > 0);
        let maintained = self.of_cluster(cluster).filter(|(_, host)| host.maintenance).map(|(id, _)| id);
        let disconnected = |host: &Host| host.status == Some(HostStatus::Disconnected) && !host.maintenance;
        let disconnected = self.of_cluster(cluster).filter(|(_, host)| disconnected(host));
        let unreachable = disconnected.clone().filter(|(_, host)| !host.confirmed);
        CensusReply {
            unsettled_host_uuids: self.unsettled(cluster),
            unheard_host_uuids: self.unheard(cluster),
            disconnected_host_uuids: disconnected.map(|(id, _)| id).collect(),
            unreachable_host_uuids: unreachable.map(|(id, _)| id).collect(),
            maintained_host_uuids: maintained.collect(),
            searched_host_uuids: self.searched(cluster),
            occupied: occupied.collect(),
            claims: self.claims().collect(),
        }
    }

    /// The hosts of a cluster that must list their processes before a VM starts there.
    pub fn unsettled(&self, cluster: ClusterId) -> Vec<HostId> {
        if sabotage::on(Sabotage::NoCensus) {
            return Vec::new();
        }
        let waited_for = |host: &Host| {
            let can_answer = host.status != Some(HostStatus::Disconnected) && host.deaf < MAX_DEAF;
            !host.heard && !host.is_settled() && can_answer
        };
        self.of_cluster(cluster).filter(|(_, host)| waited_for(host)).map(|(id, _)| id).collect()
    }

    /// The hosts of a cluster that cannot be queried and were never heard: VMs may run there.
    pub fn unheard(&self, cluster: ClusterId) -> Vec<HostId> {
        let silent = |host: &Host| {
            let cannot_answer = host.status == Some(HostStatus::Disconnected) || host.deaf >= MAX_DEAF;
            !host.heard && !host.is_settled() && !host.confirmed && cannot_answer
        };
        self.of_cluster(cluster).filter(|(_, host)| silent(host)).map(|(id, _)| id).collect()
    }

    /// The hosts of a cluster in maintenance that answer queries. VMs stay there, and another program may move one
    /// there (K12).
    fn searched(&self, cluster: ClusterId) -> Vec<HostId> {
        let searched =
            |host: &Host| host.maintenance && host.deaf < MAX_DEAF && !sabotage::on(Sabotage::MaintenanceUnsearched);
        self.of_cluster(cluster).filter(|(_, host)| searched(host)).map(|(id, _)| id).collect()
    }

    fn of_cluster(&self, cluster: ClusterId) -> impl Iterator<Item = (HostId, &Host)> + Clone {
        let of_cluster = self.inventory.hosts.iter().filter(move |item| item.cluster == cluster);
        of_cluster.filter_map(|item| self.hosts.get(&item.id).map(|host| (item.id, host)))
    }
}

impl Host {
    /// Whether it is settled what may run there: the host was fenced, or an operator emptied it.
    fn is_settled(&self) -> bool {
        (self.maintenance || self.quarantined) && !self.unproven
    }
}
