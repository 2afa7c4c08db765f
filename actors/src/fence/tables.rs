//! The decision tables of a fence (design: section 4), row by row.
//!
//! Invariants: I2: nothing that is not known counts as dead; what contradicts itself is not known. A start without proof
//! happens only where the policy names it. Each row has a test that names it.

use std::net::IpAddr;

use ringfence_messages::{
    Code, Result,
    ceph::Watcher,
    evidence::{Machine, Sight},
    fence::{FenceOutcome, SiblingFenceVmOnHostReply, UnknownReason},
};

use super::policy::{OnNoFencer, OnSshUnreachable, OnWatchers, Policy, Profile};
use crate::sabotage::{self, Sabotage};

/// What the watchers of a VM's volumes say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Watched {
    /// Nobody.
    Nobody,
    /// These, each with the number of its volume, all from the hosts where it may run.
    Own(Vec<(usize, Watcher)>),
    /// The start is refused, for this reason.
    Refuse(String),
}

/// Judges the watchers of all volumes; `own` are the addresses of the hosts where the VM may run.
pub fn watched<'a>(volumes: impl IntoIterator<Item = (String, &'a Result<Vec<Watcher>>)>, own: &[IpAddr]) -> Watched {
    let mut found = Vec::new();
    for (nth, (volume, watchers)) in volumes.into_iter().enumerate() {
        let watchers = match watchers {
            Ok(watchers) => watchers,
            Err(_) if sabotage::on(Sabotage::UnknownWatchersAreNobody) => continue,
            Err(error) => return Watched::Refuse(format!("who watches {volume} is not known: {error}")),
        };
        if let Some(other) = watchers.iter().find(|watcher| !own.contains(&watcher.ip)) {
            return Watched::Refuse(format!("volume is in use: {volume} by {}", other.address));
        }
        found.extend(watchers.iter().cloned().map(|watcher| (nth, watcher)));
    }
    if found.is_empty() { Watched::Nobody } else { Watched::Own(found) }
}

/// What follows from watches of the hosts where the VM may run, before anything is fenced.
pub fn own_watches(by: &Watcher, policy: &Policy) -> Result<(), String> {
    match policy.on_watchers {
        OnWatchers::Fence => Ok(()),
        OnWatchers::Block => Err(format!(
            "volume is in use: by {}, which is the host where it ran last (fence.on_watchers = \"block\")",
            by.address
        )),
    }
}

/// What follows from a sibling's report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// The VM may start.
    Start(FenceOutcome),
    /// The storage is to fence.
    Storage {
        /// How that ends if it does.
        fenced: FenceOutcome,
        /// How that ends if it does not.
        not: FenceOutcome,
    },
    /// The start is refused.
    Refuse(FenceOutcome),
}

/// Why a sibling's report is not about what it should be about; `None` if it is. `machine` is the one that is meant.
pub fn doubted(reply: &SiblingFenceVmOnHostReply, machine: &Machine) -> Option<UnknownReason> {
    if !reply.ssh_reachable {
        return None;
    }
    let same = reply.machine.as_ref().is_some_and(|reached| reached.is(machine));
    if !same && !sabotage::on(Sabotage::OtherMachineCounts) {
        return Some(UnknownReason::OtherMachine);
    }
    let seen = reply.sight.as_ref().is_some_and(Sight::is_full);
    (!seen && !reply.alive && !sabotage::on(Sabotage::BlindIsFull)).then_some(UnknownReason::Blind)
}

/// Whether a report contradicts "the host is off": a sibling reached `machine`, or it is not known which, or a QEMU of the VM.
/// Another machine at the host's address says nothing of the host.
pub fn is_on(reply: &SiblingFenceVmOnHostReply, machine: &Machine) -> bool {
    let is_known = |of: &Machine| !of.machine_id.is_empty();
    let other =
        is_known(machine) && reply.machine.as_ref().is_some_and(|reached| is_known(reached) && !reached.is(machine));
    reply.ssh_reachable && (!other || reply.qemu_found)
}

/// Judges a sibling's report; `machine` is the one that the failed host is.
pub fn reported(report: &Result<SiblingFenceVmOnHostReply>, machine: &Machine, policy: &Policy) -> Next {
    use FenceOutcome::*;
    let higher = |not| match policy.profile {
        Profile::Safe => Next::Storage { fenced: SuccessStorageFenced, not },
        Profile::Zstack => Next::Refuse(not),
    };
    let reply = match report {
        Ok(reply) => reply,
        Err(error) if error.is(&Code::NO_ROUTE) => {
            return match policy.on_no_fencer {
                OnNoFencer::Block => Next::Refuse(SkippedNoFencer),
                OnNoFencer::Allow => Next::Start(SkippedNoFencer),
            };
        }
        Err(_) if sabotage::on(Sabotage::UnknownIsDead) => return Next::Start(SuccessAlreadyDead),
        Err(_) => return higher(Failed),
    };
    if doubted(reply, machine).is_some() {
        return higher(Failed);
    }
    match (reply.ssh_reachable, reply.alive, reply.qemu_found, reply.killed) {
        (true, false, true, true) => Next::Start(SuccessKilled),
        (true, false, false, false) => Next::Start(SuccessAlreadyDead),
        (true, true, _, _) if sabotage::on(Sabotage::StillAliveIsKilled) => Next::Start(SuccessKilled),
        (true, true, _, _) => higher(FailedStillAlive),
        (false, true, false, false) if sabotage::on(Sabotage::UnreachableIsDead) => Next::Start(SuccessSshUnreachable),
        (false, true, false, false) => match policy.on_ssh_unreachable {
            OnSshUnreachable::StorageFence => Next::Storage { fenced: SuccessStorageFenced, not: FailedUnreachable },
            OnSshUnreachable::Allow => Next::Start(SuccessSshUnreachable),
            OnSshUnreachable::Block => Next::Refuse(FailedUnreachable),
        },
        // It contradicts itself: killed what it did not find, or knows what it did not reach.
        _ => higher(Failed),
    }
}

#[cfg(test)]
mod tests {
    use ringfence_messages::ErrorCode;

    use super::*;

    const SAFE: Policy = Profile::Safe.policy();
    const ZSTACK: Policy = Profile::Zstack.policy();

    fn watchers(ips: &[&str]) -> Result<Vec<Watcher>> {
        Ok(ips.iter().map(|ip| Watcher { address: format!("{ip}:0/7"), ip: ip.parse().unwrap() }).collect())
    }

    fn judge(volumes: &[Result<Vec<Watcher>>]) -> Watched {
        let named = volumes.iter().enumerate().map(|(i, w)| (format!("v{i}"), w));
        watched(named, &["10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap()])
    }

    fn machine() -> Machine {
        Machine { machine_id: "m".to_owned(), boot_id: "b".to_owned() }
    }

    #[test]
    fn rows_of_watchers() {
        let unknown = || Err(ErrorCode::new(Code::TIMEOUT, "no answer"));
        let refused = |volumes: &[Result<Vec<Watcher>>], says: &str| {
            let Watched::Refuse(why) = judge(volumes) else { panic!("{volumes:?} was let through") };
            assert!(why.contains(says), "{why}");
        };
        // Query failed or odd. One volume that is not known is enough, wherever it stands.
        refused(&[unknown()], "who watches v0 is not known");
        refused(&[watchers(&[]), unknown()], "who watches v1 is not known");
        // Some, not all from the failed host.
        refused(&[watchers(&["10.0.0.9"])], "volume is in use: v0 by 10.0.0.9:0/7");
        refused(&[watchers(&["10.0.0.1", "10.0.0.9"])], "by 10.0.0.9:0/7");
        refused(&[watchers(&["10.0.0.1"]), watchers(&["10.0.0.9"])], "v1 by 10.0.0.9:0/7");
        // None.
        assert_eq!(judge(&[watchers(&[]), watchers(&[])]), Watched::Nobody);
        assert_eq!(judge(&[]), Watched::Nobody);
        // Some, all from the failed host, by any of its addresses.
        let Watched::Own(by) = judge(&[watchers(&["10.0.0.1"]), watchers(&["10.0.0.2", "10.0.0.1"])]) else { panic!() };
        assert_eq!(by.len(), 3);
        assert_eq!(own_watches(&by[0].1, &SAFE), Ok(()));
        for policy in [ZSTACK, Policy { on_watchers: OnWatchers::Block, ..SAFE }] {
            assert!(own_watches(&by[0].1, &policy).unwrap_err().contains("on_watchers"));
        }
    }

    fn report(ssh: bool, alive: bool, found: bool, killed: bool) -> Result<SiblingFenceVmOnHostReply> {
        Ok(SiblingFenceVmOnHostReply {
            alive,
            killed,
            ssh_reachable: ssh,
            qemu_found: found,
            sight: Some(Sight::full()),
            machine: Some(machine()),
            ..SiblingFenceVmOnHostReply::default()
        })
    }

    #[test]
    fn rows_of_reports() {
        use FenceOutcome::*;
        let killed = report(true, false, true, true);
        let dead = report(true, false, false, false);
        let unreachable = report(false, true, false, false);
        let alive = report(true, true, true, true);
        let broken: Result<_> = Err(ErrorCode::new(Code::TIMEOUT, "no answer"));
        let nobody: Result<_> = Err(ErrorCode::new(Code::NO_ROUTE, "no actor lives there"));

        for policy in [&SAFE, &ZSTACK] {
            assert_eq!(reported(&killed, &machine(), policy), Next::Start(SuccessKilled));
            assert_eq!(reported(&dead, &machine(), policy), Next::Start(SuccessAlreadyDead));
        }
        let on_ssh = |on_ssh_unreachable, base: Policy| {
            reported(&unreachable, &machine(), &Policy { on_ssh_unreachable, ..base })
        };
        let fence = Next::Storage { fenced: SuccessStorageFenced, not: FailedUnreachable };
        assert_eq!(reported(&unreachable, &machine(), &SAFE), fence);
        assert_eq!(reported(&unreachable, &machine(), &ZSTACK), Next::Start(SuccessSshUnreachable));
        assert_eq!(on_ssh(OnSshUnreachable::Block, SAFE), Next::Refuse(FailedUnreachable));
        assert_eq!(on_ssh(OnSshUnreachable::Allow, SAFE), Next::Start(SuccessSshUnreachable));
        assert_eq!(on_ssh(OnSshUnreachable::StorageFence, ZSTACK), fence);

        assert_eq!(
            reported(&alive, &machine(), &SAFE),
            Next::Storage { fenced: SuccessStorageFenced, not: FailedStillAlive }
        );
        assert_eq!(reported(&alive, &machine(), &ZSTACK), Next::Refuse(FailedStillAlive));
        assert_eq!(reported(&broken, &machine(), &SAFE), Next::Storage { fenced: SuccessStorageFenced, not: Failed });
        assert_eq!(reported(&broken, &machine(), &ZSTACK), Next::Refuse(Failed));

        assert_eq!(reported(&nobody, &machine(), &SAFE), Next::Refuse(SkippedNoFencer));
        assert_eq!(reported(&nobody, &machine(), &ZSTACK), Next::Start(SkippedNoFencer));
    }

    /// Every one of the 16 reports: only the two rows that prove death start without a higher level, whatever the rest.
    #[test]
    fn a_report_that_contradicts_itself_proves_nothing() {
        for bits in 0..16u8 {
            let [ssh, alive, found, killed] = [1, 2, 4, 8].map(|bit| bits & bit != 0);
            let proves = matches!((ssh, alive, found, killed), (true, false, true, true) | (true, false, false, false));
            let next = reported(&report(ssh, alive, found, killed), &machine(), &SAFE);
            assert_eq!(matches!(next, Next::Start(_)), proves, "{:?}: {next:?}", report(ssh, alive, found, killed));
        }
    }

    /// K1, K2: who reached another machine, or could not see everything, knows nothing of the one that is meant.
    #[test]
    fn a_report_about_another_machine_or_without_full_sight_is_unknown() {
        let of = |machine_id: &str| Machine { machine_id: machine_id.to_owned(), boot_id: "b".to_owned() };
        let dead = |machine: Option<Machine>, sight: Option<Sight>| {
            report(true, false, false, false).map(|reply| SiblingFenceVmOnHostReply { machine, sight, ..reply })
        };
        let full = Some(Sight::full());
        for (machine, expected) in [(Some(of("other")), of("m")), (None, of("m")), (Some(of("m")), of(""))] {
            let report = dead(machine, full.clone());
            assert_eq!(doubted(report.as_ref().unwrap(), &expected), Some(UnknownReason::OtherMachine));
            assert!(!matches!(reported(&report, &expected, &SAFE), Next::Start(_)), "{report:?}");
            assert!(!matches!(reported(&report, &expected, &ZSTACK), Next::Start(_)), "{report:?}");
        }
        for sight in [None, Some(Sight { hidepid: true, ..Sight::full() }), Some(Sight { unnamed: 1, ..Sight::full() })]
        {
            let report = dead(Some(of("m")), sight);
            assert_eq!(doubted(report.as_ref().unwrap(), &of("m")), Some(UnknownReason::Blind));
            assert!(!matches!(reported(&report, &of("m"), &SAFE), Next::Start(_)), "{report:?}");
        }
        let same = dead(Some(Machine { boot_id: "another".to_owned(), ..of("m") }), full);
        assert!(matches!(reported(&same, &of("m"), &SAFE), Next::Start(_)), "another boot of it is the same machine");
    }
}
