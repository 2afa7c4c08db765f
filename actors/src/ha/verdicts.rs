//! Which hosts failed, when it is rather us, and when a host that is back may be cleaned.

use std::time::Duration;

use ringfence_messages::{
    ClusterId, Code, ErrorCode, HostId, Result,
    ha::{HostFailed, StormBrakeChanged},
    host::HostStatus,
};

use super::core::{Command, Core, Fact, Host, SCAN_FRESH, STORM_WINDOW};
use crate::{
    inventory::Cluster,
    sabotage::{self, Sabotage},
};

impl Core {
    /// Whether a fence on this host may begin; `true` if it is in quarantine already.
    ///
    /// # Errors
    /// It answers, is being reconciled, or the storm brake of its cluster is engaged and nobody attested that it is off:
    /// nothing may be fenced there. A start that began before the brake asks here too (K10).
    pub fn may_quarantine(&self, host: HostId) -> Result<bool> {
        let name = self.directory.host_name(host);
        let refuse = |why: &str| Err(ErrorCode::new(Code::CHANGE_STATE, format!("{name} {why}: it is not fenced")));
        match self.hosts.get(&host) {
            None => refuse("is not in the inventory"),
            Some(of) if of.cleaning => refuse("is back and being reconciled"),
            Some(of) if of.status != Some(HostStatus::Disconnected) => refuse("is not Disconnected"),
            Some(of) => match self.brake_holds(host) {
                Some(cluster) => refuse(&format!("does not answer, and {}", braked(cluster))),
                None => Ok(of.quarantined),
            },
        }
    }

    /// The cluster whose storm brake forbids a fence on this host.
    pub(super) fn brake_holds(&self, host: HostId) -> Option<&Cluster> {
        let of = self.hosts.get(&host)?;
        if !of.is_away() || of.confirmed || sabotage::on(Sabotage::BrakeBypassed) {
            return None;
        }
        let cluster = self.directory.host(host).ok()?.cluster;
        self.directory.cluster(cluster).ok().filter(|_| self.braked.contains(&cluster))
    }

    /// Whether a human may attest that this host is off.
    ///
    /// # Errors
    /// It answers.
    pub fn may_confirm(&self, host: HostId) -> Result<()> {
        match self.hosts.get(&host).map(|of| of.status) {
            Some(Some(HostStatus::Disconnected)) => Ok(()),
            _ => {
                let details = format!("{} is not Disconnected: it cannot be off", self.directory.host_name(host));
                Err(ErrorCode::new(Code::CHANGE_STATE, details))
            }
        }
    }

    pub(super) fn scan(&mut self, host: HostId, commands: &mut Vec<Command>) {
        let Some(of) = self.hosts.get_mut(&host) else { return };
        if !std::mem::replace(&mut of.scanning, true) {
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
        let Some(of) = self.hosts.get_mut(&host) else { return };
        of.status = Some(status);
        if status != HostStatus::Disconnected
            && !sabotage::on(Sabotage::AttestationStays)
            && std::mem::replace(&mut of.confirmed, false)
        {
            // A word is for one outage, and this one is over (K9).
            commands.push(Command::EndWord(host));
        }
        match status {
            HostStatus::Connected => {
                (of.suspect, of.failed, of.scan, of.told) = (false, None, None, false);
                let looked_for = self.vms.values_mut().filter(|vm| vm.belief.host == Some(host));
                looked_for.for_each(|vm| vm.looks = (0, Duration::ZERO));
                if !of.heard && !std::mem::replace(&mut of.listing, true) {
                    commands.push(Command::List(host));
                }
            }
            HostStatus::Connecting => of.suspect = false,
            HostStatus::Disconnected => {
                (of.suspect, of.answers) = (true, false);
                match &of.scan {
                    Some((at, _)) if now.saturating_sub(*at) < SCAN_FRESH => self.judge_host(host, now, commands),
                    _ => self.scan(host, commands),
                }
            }
        }
    }

    /// Decides whether a host failed.
    pub(super) fn judge_host(&mut self, host: HostId, now: Duration, commands: &mut Vec<Command>) {
        let over = self.over(host, now);
        let Some(of) = self.hosts.get_mut(&host) else { return };
        if of.status != Some(HostStatus::Disconnected) || of.failed.is_some() || of.maintenance || of.cleaning {
            return;
        }
        let fresh = of.scan.as_ref().filter(|(at, _)| now.saturating_sub(*at) < SCAN_FRESH).map(|(_, scan)| scan);
        let (unseen_by, reason) = match fresh {
            _ if of.confirmed => (Vec::new(), "a human attested that it is off".to_owned()),
            Some(scan) if scan.seen_by.is_empty() && !scan.unseen_by.is_empty() && !over => {
                let names = scan.unseen_by.iter().map(|sibling| self.directory.host_name(*sibling));
                (names.collect(), scan.reason.clone())
            }
            _ => return,
        };
        of.failed = Some(now);
        let name = self.directory.host_name(host);
        if !std::mem::replace(&mut of.told, true) {
            let failed = HostFailed { host_uuid: host, host: name, unseen_by, reason: reason.clone() };
            commands.push(Command::Tell(Fact::HostFailed(failed)));
        }
        if !of.quarantined && !std::mem::replace(&mut of.quarantining, true) {
            commands.push(Command::Quarantine(host, format!("it failed: {reason}")));
        }
    }

    /// The hosts of a cluster that are away at once, and how many it has. A human's word settles one.
    pub(super) fn away(&self, cluster: ClusterId, now: Duration) -> (Vec<HostId>, usize) {
        let of_cluster = self.directory.hosts.iter().filter(|of| of.cluster == cluster);
        let in_service = of_cluster.filter_map(|of| self.hosts.get(&of.id).map(|host| (of.id, host)));
        let in_service: Vec<_> = in_service.filter(|(_, host)| !host.maintenance).collect();
        let away = in_service.iter().filter(|(_, host)| {
            let recent = host.failed.is_none_or(|at| now.saturating_sub(at) < STORM_WINDOW);
            // One that a single fence took out of service is as far away as the others (K10).
            let settled = host.quarantined && host.failed.is_none() && sabotage::on(Sabotage::BrakeBypassed);
            host.is_away() && recent && !host.confirmed && !settled
        });
        (away.map(|(id, _)| *id).collect(), in_service.len())
    }

    /// Whether so many are away that it is rather us.
    pub(super) fn over(&self, host: HostId, now: Duration) -> bool {
        let Ok(cluster) = self.directory.host(host).map(|of| of.cluster) else { return true };
        let (away, all) = self.away(cluster, now);
        self.is_storm(away.len(), all)
    }

    pub(super) fn is_storm(&self, away: usize, all: usize) -> bool {
        !sabotage::on(Sabotage::NoStormBrake)
            && away >= 2
            && away * 100 >= all * self.settings.storm_brake_percent as usize
    }

    /// Engages and releases the storm brake.
    pub(super) fn brake(&mut self, now: Duration, commands: &mut Vec<Command>) {
        for cluster in &self.directory.clusters {
            let (away, all) = self.away(cluster.id, now);
            let engaged = self.is_storm(away.len(), all);
            if engaged == self.braked.contains(&cluster.id) {
                continue;
            }
            // Suspects come and go: only hosts that are Disconnected make it worth telling.
            let disconnected = |id: &HostId| self.hosts[id].status == Some(HostStatus::Disconnected);
            if engaged && !away.iter().any(disconnected) {
                continue;
            }
            let hosts: Vec<String> = away.iter().map(|id| self.directory.host_name(*id)).collect();
            let percent = self.settings.storm_brake_percent;
            let reason = match engaged {
                true => format!(
                    "{} of {all} hosts are away at once ({percent}% brake it): nothing is fenced until some are back, or \
                     `ringfence host confirm-fenced` says which are off",
                    away.len()
                ),
                false => format!("{} of {all} hosts are away", away.len()),
            };
            let _ = if engaged { self.braked.insert(cluster.id) } else { self.braked.remove(&cluster.id) };
            commands.push(Command::Tell(Fact::Brake(StormBrakeChanged {
                cluster_uuid: cluster.id,
                cluster: cluster.name.clone(),
                engaged,
                hosts,
                reason,
            })));
        }
    }

    /// Begins to clean hosts that answer again, unless a VM of theirs is in a flow.
    pub(super) fn clean(&mut self, now: Duration, commands: &mut Vec<Command>) {
        for (id, host) in self.hosts.iter_mut().filter(|(_, host)| host.quarantined && host.answers) {
            let held = || self.vms.values().any(|vm| vm.flow.as_ref().is_some_and(|(_, from, _)| *from == Some(*id)));
            if !host.cleaning && !host.maintenance && now >= host.next_clean && !held() {
                (host.cleaning, host.refused) = (true, false);
                commands.push(Command::Clean(*id));
            }
        }
    }
}

impl Host {
    /// Its pings are not answered.
    pub(super) fn is_away(&self) -> bool {
        self.suspect || self.status == Some(HostStatus::Disconnected)
    }

    /// It is away for the controller, and a sibling sees it.
    pub(super) fn seen_by_siblings(&self, now: Duration) -> bool {
        let fresh = self.scan.as_ref().filter(|(at, _)| now.saturating_sub(*at) < SCAN_FRESH);
        self.status == Some(HostStatus::Disconnected) && fresh.is_some_and(|(_, scan)| !scan.seen_by.is_empty())
    }
}

/// What is refused while the storm brake of a cluster is engaged, and the way out.
pub(crate) fn braked(cluster: &Cluster) -> String {
    format!("the storm brake of {} is engaged: `ringfence host confirm-fenced` says that a host is off", cluster.name)
}
