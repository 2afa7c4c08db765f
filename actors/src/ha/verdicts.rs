//! Decides which hosts failed, when the storm brake engages, and when a returned host is reconciled.

use std::time::Duration;

use ringfence_messages::{
    ClusterId, Code, ErrorCode, HostId, Result,
    ha::{HostFailed, ScanHostReply, StormBrakeChanged},
    host::HostStatus,
};

use super::{
    core::{Command, Core, HaEvent, Host, SCAN_EVERY, SCAN_FRESH, STORM_WINDOW},
    failovers::Searches,
};
use crate::{
    inventory::Cluster,
    sabotage::{self, Sabotage},
};

/// The last scan of a host by sibling hosts.
#[derive(Debug)]
pub(super) struct Scan {
    pub(super) at: Duration,
    pub(super) reply: ScanHostReply,
}

impl Scan {
    pub(super) fn is_fresh(&self, now: Duration) -> bool {
        now.saturating_sub(self.at) < SCAN_FRESH
    }

    /// Whether no sibling host is known to miss the host.
    fn is_inconclusive_or_seen(&self) -> bool {
        !self.reply.seen_by.is_empty() || self.reply.unseen_by.is_empty()
    }
}

impl Core {
    /// Whether a fence on this host may begin; `true` if the host is in quarantine already.
    ///
    /// # Errors
    /// The host answers, is being reconciled, or the storm brake of its cluster is engaged and no operator attested
    /// that the host is off. A start that began before the brake engaged checks here too (K10).
    pub fn may_quarantine(&self, host: HostId) -> Result<bool> {
        let name = self.inventory.host_name(host);
        let refuse = |why: &str| Err(ErrorCode::new(Code::CHANGE_STATE, format!("{name} {why}: not fenced")));
        match self.hosts.get(&host) {
            None => refuse("is not in the inventory"),
            Some(host) if host.reconciling => refuse("is reachable again and is being reconciled"),
            Some(host) if host.status != Some(HostStatus::Disconnected) => refuse("is not Disconnected"),
            Some(known) => match self.brake_holds(host) {
                Some(cluster) => refuse(&format!("does not answer, and {}", cluster.braked())),
                None => Ok(known.quarantined),
            },
        }
    }

    /// Handles a failed ping of a host.
    pub(super) fn suspected(&mut self, host: HostId, commands: &mut Vec<Command>) {
        if let Some(suspect) = self.hosts.get_mut(&host) {
            suspect.suspect = true;
            suspect.answers = false;
            self.scan(host, commands);
        }
    }

    /// Handles the probes of a host by sibling hosts.
    pub(super) fn scanned(
        &mut self,
        host: HostId,
        result: Result<ScanHostReply>,
        now: Duration,
        commands: &mut Vec<Command>,
    ) {
        if let Some(scanned) = self.hosts.get_mut(&host) {
            scanned.set_scan(result.ok().map(|reply| Scan { at: now, reply }));
            self.judge_host(host, now, commands);
        }
    }

    /// Handles which hosts of a cluster answer pings.
    pub(super) fn answering(&mut self, cluster: ClusterId, answering: &[HostId]) {
        for item in self.inventory.hosts.iter().filter(|host| host.cluster == cluster) {
            if let Some(host) = self.hosts.get_mut(&item.id) {
                host.answers = answering.contains(&item.id);
            }
        }
    }

    /// Handles an attestation that a host is off.
    pub(super) fn confirmed(&mut self, host: HostId, now: Duration, commands: &mut Vec<Command>) {
        let Some(attested) = self.hosts.get_mut(&host) else { return };
        attested.confirmed = true;
        // VMs that wait for this host need not wait any more.
        for vm in self.vms.values_mut().filter(|vm| vm.observed.host == Some(host)) {
            vm.next = now;
        }
        self.judge_host(host, now, commands);
    }

    /// The cluster whose storm brake forbids a fence on this host.
    pub(super) fn brake_holds(&self, host: HostId) -> Option<&Cluster> {
        let unreachable = self.hosts.get(&host)?;
        if !unreachable.is_unreachable() || unreachable.confirmed || sabotage::on(Sabotage::BrakeBypassed) {
            return None;
        }
        let cluster = self.inventory.host(host).ok()?.cluster;
        self.inventory.cluster(cluster).ok().filter(|_| self.braked.contains(&cluster))
    }

    /// Whether an operator may attest that this host is off.
    ///
    /// # Errors
    /// The host is not Disconnected.
    pub fn may_confirm(&self, host: HostId) -> Result<()> {
        match self.hosts.get(&host).map(|host| host.status) {
            Some(Some(HostStatus::Disconnected)) => Ok(()),
            _ => {
                let details = format!(
                    "{} is not Disconnected: only a Disconnected host can be attested off",
                    self.inventory.host_name(host)
                );
                Err(ErrorCode::new(Code::CHANGE_STATE, details))
            }
        }
    }

    pub(super) fn scan(&mut self, host: HostId, commands: &mut Vec<Command>) {
        let Some(scanned) = self.hosts.get_mut(&host) else { return };
        if !std::mem::replace(&mut scanned.scanning, true) {
            commands.push(Command::Scan(host));
        }
    }

    pub(super) fn host_changed(
        &mut self,
        host: HostId,
        status: HostStatus,
        now: Duration,
        commands: &mut Vec<Command>,
    ) {
        let Some(changed) = self.hosts.get_mut(&host) else { return };
        changed.status = Some(status);
        if status != HostStatus::Disconnected
            && !sabotage::on(Sabotage::AttestationStays)
            && std::mem::replace(&mut changed.confirmed, false)
        {
            // An attestation is valid for one outage, which is over (K9).
            commands.push(Command::EndAttestation(host));
        }
        match status {
            HostStatus::Connected => {
                changed.suspect = false;
                changed.reset_failure();
                let on_host = self.vms.values_mut().filter(|vm| vm.observed.host == Some(host));
                on_host.for_each(|vm| vm.searches = Searches::default());
                if !changed.heard && !std::mem::replace(&mut changed.listing, true) {
                    commands.push(Command::List(host));
                }
            }
            HostStatus::Connecting => changed.suspect = false,
            HostStatus::Disconnected => {
                changed.suspect = true;
                changed.answers = false;
                match &changed.scan {
                    Some(scan) if scan.is_fresh(now) => self.judge_host(host, now, commands),
                    _ => self.scan(host, commands),
                }
            }
        }
    }

    /// Decides whether a host failed.
    pub(super) fn judge_host(&mut self, host: HostId, now: Duration, commands: &mut Vec<Command>) {
        let over = self.over(host, now);
        let Some(judged) = self.hosts.get_mut(&host) else { return };
        if judged.status != Some(HostStatus::Disconnected)
            || judged.failed.is_some()
            || judged.maintenance
            || judged.reconciling
        {
            return;
        }
        let fresh = judged.scan.as_ref().filter(|scan| scan.is_fresh(now)).map(|scan| &scan.reply);
        let (unseen_by, reason) = match fresh {
            _ if judged.confirmed => (Vec::new(), "an operator attested that it is off".to_owned()),
            Some(scan) if scan.seen_by.is_empty() && !scan.unseen_by.is_empty() && !over => {
                let names = scan.unseen_by.iter().map(|sibling| self.inventory.host_name(*sibling));
                (names.collect(), scan.reason.clone())
            }
            _ => return,
        };
        judged.failed = Some(now);
        let name = self.inventory.host_name(host);
        if !std::mem::replace(&mut judged.told, true) {
            let failed = HostFailed { host_uuid: host, host: name, unseen_by, reason: reason.clone() };
            commands.push(Command::Emit(HaEvent::HostFailed(failed)));
        }
        if !judged.quarantined && !std::mem::replace(&mut judged.quarantining, true) {
            commands.push(Command::Quarantine(host, format!("host failed: {reason}")));
        }
    }

    /// The unreachable hosts of a cluster, and the number of its hosts in service. An attested host does not count.
    pub(super) fn unreachable(&self, cluster: ClusterId, now: Duration) -> (Vec<HostId>, usize) {
        let of_cluster = self.inventory.hosts.iter().filter(|item| item.cluster == cluster);
        let in_service = of_cluster.filter_map(|item| self.hosts.get(&item.id).map(|host| (item.id, host)));
        let in_service: Vec<_> = in_service.filter(|(_, host)| !host.maintenance).collect();
        let unreachable = in_service.iter().filter(|(_, host)| {
            let recent = host.failed.is_none_or(|at| now.saturating_sub(at) < STORM_WINDOW);
            // A host quarantined by a single fence is as unreachable as the others (K10).
            let settled = host.quarantined && host.failed.is_none() && sabotage::on(Sabotage::BrakeBypassed);
            host.is_unreachable() && recent && !host.confirmed && !settled
        });
        (unreachable.map(|(id, _)| *id).collect(), in_service.len())
    }

    /// Whether so many hosts are unreachable that the controller's own network is the likelier cause.
    pub(super) fn over(&self, host: HostId, now: Duration) -> bool {
        let Ok(cluster) = self.inventory.host(host).map(|host| host.cluster) else { return true };
        let (unreachable, all) = self.unreachable(cluster, now);
        self.is_storm(unreachable.len(), all)
    }

    pub(super) fn is_storm(&self, unreachable: usize, all: usize) -> bool {
        !sabotage::on(Sabotage::NoStormBrake)
            && unreachable >= 2
            && unreachable * 100 >= all * self.settings.storm_brake_percent as usize
    }

    /// Engages and releases the storm brake.
    pub(super) fn brake(&mut self, now: Duration, commands: &mut Vec<Command>) {
        for cluster in &self.inventory.clusters {
            let (unreachable, all) = self.unreachable(cluster.id, now);
            let engaged = self.is_storm(unreachable.len(), all);
            if engaged == self.braked.contains(&cluster.id) {
                continue;
            }
            // Suspects come and go: the event needs a host that is Disconnected.
            let disconnected = |id: &HostId| self.hosts[id].status == Some(HostStatus::Disconnected);
            if engaged && !unreachable.iter().any(disconnected) {
                continue;
            }
            let hosts: Vec<String> = unreachable.iter().map(|id| self.inventory.host_name(*id)).collect();
            let percent = self.settings.storm_brake_percent;
            let count = unreachable.len();
            let reason = if engaged {
                format!(
                    "{count} of {all} hosts are unreachable (limit {percent} %): fencing is suspended until hosts \
                     return or are attested off with `ringfence host confirm-fenced`"
                )
            } else {
                format!("{count} of {all} hosts are unreachable")
            };
            if engaged {
                self.braked.insert(cluster.id);
            } else {
                self.braked.remove(&cluster.id);
            }
            commands.push(Command::Emit(HaEvent::Brake(StormBrakeChanged {
                cluster_uuid: cluster.id,
                cluster: cluster.name.clone(),
                engaged,
                hosts,
                reason,
            })));
        }
    }

    /// Starts the reconciliation of quarantined hosts that answer again, unless one of their VMs is in a failover.
    pub(super) fn reconcile(&mut self, now: Duration, commands: &mut Vec<Command>) {
        for (id, host) in self.hosts.iter_mut().filter(|(_, host)| host.quarantined && host.answers) {
            let held =
                || self.vms.values().any(|vm| vm.failover.as_ref().is_some_and(|failover| failover.from == Some(*id)));
            if !host.reconciling && !host.maintenance && now >= host.next_reconcile && !held() {
                host.reconciling = true;
                host.refused = false;
                commands.push(Command::Reconcile(*id));
            }
        }
    }
}

impl Host {
    /// The host answers again: the next failure is a new one.
    pub(super) fn reset_failure(&mut self) {
        self.failed = None;
        self.scan = None;
        self.told = false;
    }

    pub(super) fn set_maintenance(&mut self, maintenance: bool) {
        self.maintenance = maintenance;
        self.suspect = false;
        self.unproven = false;
    }

    pub(super) fn set_scan(&mut self, scan: Option<Scan>) {
        self.scanning = false;
        self.scan = scan;
        let not_missed = self.scan.as_ref().is_none_or(Scan::is_inconclusive_or_seen);
        if self.status == Some(HostStatus::Connected) && not_missed {
            self.suspect = false;
        }
    }

    /// The quarantine is durable and in force, or not: then the host is judged again.
    pub(super) fn quarantine_decided(&mut self, in_force: bool, now: Duration) {
        self.quarantining = false;
        if in_force {
            self.quarantined = true;
            self.unproven |= !self.heard;
        } else {
            self.failed = None;
            self.next_reconcile = now + SCAN_EVERY;
        }
    }

    pub(super) fn reconciled(&mut self, result: Result<()>, now: Duration) {
        self.reconciling = false;
        self.reconcile_error = result.err().map(|error| error.to_string());
        if self.reconcile_error.is_none() {
            self.quarantined = false;
            self.confirmed = false;
            self.reset_failure();
        }
        self.next_reconcile = now + SCAN_EVERY;
    }

    /// Whether the host does not answer pings.
    pub(super) fn is_unreachable(&self) -> bool {
        self.suspect || self.status == Some(HostStatus::Disconnected)
    }

    /// Whether the host is Disconnected and a sibling host reached it.
    pub(super) fn seen_by_siblings(&self, now: Duration) -> bool {
        let fresh = self.scan.as_ref().filter(|scan| scan.is_fresh(now));
        self.status == Some(HostStatus::Disconnected) && fresh.is_some_and(|scan| !scan.reply.seen_by.is_empty())
    }
}
