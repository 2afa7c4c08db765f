//! Who was heard since this controller took office, and whom nobody may start VMs without.
//!
//! Invariants (K7): nothing is started in a cluster before each of its hosts listed its processes with full sight, or is
//! out of service, or cannot be asked; one that cannot be asked is a silent place for VMs whose volumes nobody watches. A
//! failed look is no look. Hosts in maintenance are asked too, and not waited for: an operator emptied them or answers for
//! them, unless that is from before the journal was restored. One that fails before it was heard stays a place, in quarantine
//! too. Rejected: believing the journal about where nothing runs; whatever starts VMs beside us does not write it.

use std::time::Duration;

use ringfence_messages::{ClusterId, HostId, Result, host::HostStatus, vm::ListVmsReply};

use super::core::{CENSUS_PER_TICK, Command, Core, Host, MAX_DEAF, RETRY_CEILING};
use crate::sabotage::{self, Sabotage};

impl Core {
    /// A host answered for its processes, or did not.
    pub(super) fn heard(&mut self, host: HostId, reply: &Result<ListVmsReply>, now: Duration) {
        let Some(of) = self.hosts.get_mut(&host) else { return };
        of.listing = false;
        match reply {
            Ok(reply) if reply.sight.is_full() => (of.heard, of.deaf) = (true, 0),
            // A blind one will see no more the next time.
            Ok(_) => of.deaf = MAX_DEAF,
            Err(_) => of.deaf = of.deaf.saturating_add(1),
        }
        of.ask_again = if of.deaf < MAX_DEAF { Duration::ZERO } else { now + RETRY_CEILING };
    }

    /// Asks those who were not heard yet; rarely, once they proved deaf or blind.
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

    /// The hosts of a cluster without whose word nothing is started there yet.
    pub fn unsettled(&self, cluster: ClusterId) -> Vec<HostId> {
        if !self.census_open || sabotage::on(Sabotage::NoCensus) {
            return Vec::new();
        }
        let waited_for = |host: &Host| {
            let can_answer = host.status != Some(HostStatus::Disconnected) && host.deaf < MAX_DEAF;
            !host.heard && !host.is_settled() && can_answer
        };
        self.of_cluster(cluster).filter(|(_, host)| waited_for(host)).map(|(id, _)| id).collect()
    }

    /// The hosts of a cluster that cannot be asked and were never heard: places where something may run.
    pub fn unheard(&self, cluster: ClusterId) -> Vec<HostId> {
        if !self.census_open {
            return Vec::new();
        }
        let silent = |host: &Host| {
            let cannot_answer = host.status == Some(HostStatus::Disconnected) || host.deaf >= MAX_DEAF;
            !host.heard && !host.is_settled() && !host.confirmed && cannot_answer
        };
        self.of_cluster(cluster).filter(|(_, host)| silent(host)).map(|(id, _)| id).collect()
    }

    fn of_cluster(&self, cluster: ClusterId) -> impl Iterator<Item = (HostId, &Host)> {
        let of_cluster = self.directory.hosts.iter().filter(move |of| of.cluster == cluster);
        of_cluster.filter_map(|of| self.hosts.get(&of.id).map(|host| (of.id, host)))
    }
}

impl Host {
    /// Somebody answers for what may run there: it was fenced, or an operator emptied it.
    fn is_settled(&self) -> bool {
        (self.maintenance || self.quarantined) && !self.unproven
    }
}
