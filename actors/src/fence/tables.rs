//! The decision tables of a fence, row by row.
//!
//! Invariants: I2: unknown never counts as dead, and a report that contradicts itself is unknown. A start without
//! proof happens only where the policy has it. Each row has a test with its name.

use std::net::IpAddr;

use ringfence_messages::{
    Code, Result,
    ceph::Watcher,
    evidence::{Machine, Sight, UnknownReason},
    fence::{FenceOutcome, SiblingFenceVmOnHostReply},
};

use super::policy::{OnNoFencer, OnSshUnreachable, OnWatchers, Policy, Profile};
use crate::sabotage::{self, Sabotage};

/// Verdict on the watchers of a VM's volumes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Watched {
    /// No watcher.
    Nobody,
    /// These, each with the index of its volume, all on hosts where the VM may run.
    Own(Vec<(usize, Watcher)>),
    /// The start is rejected, for this reason.
    Refuse(String),
}

/// Judges the watchers of all volumes; `own` are the addresses of the hosts where the VM may run.
pub fn watched<'a>(volumes: impl IntoIterator<Item = (String, &'a Result<Vec<Watcher>>)>, own: &[IpAddr]) -> Watched {
    let mut found = Vec::new();
    for (nth, (volume, watchers)) in volumes.into_iter().enumerate() {
        let watchers = match watchers {
            Ok(watchers) => watchers,
            Err(_) if sabotage::on(Sabotage::UnknownWatchersAreNobody) => continue,
            Err(error) => return Watched::Refuse(format!("the watchers of {volume} are unknown: {error}")),
        };
        if let Some(other) = watchers.iter().find(|watcher| !own.contains(&watcher.ip)) {
            return Watched::Refuse(format!("volume {volume} is in use by {}", other.address));
        }
        found.extend(watchers.iter().cloned().map(|watcher| (nth, watcher)));
    }
    if found.is_empty() { Watched::Nobody } else { Watched::Own(found) }
}

/// Judges a watcher on a host where the VM may run, before a fence.
pub fn own_watches(by: &Watcher, policy: &Policy) -> Result<(), String> {
    match policy.on_watchers {
        OnWatchers::Fence => Ok(()),
        OnWatchers::Block => Err(format!(
            "the volume is in use by {} on the VM's last host (`fence.on_watchers` = \"block\")",
            by.address
        )),
    }
}

/// Verdict on a sibling host's report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// The VM may start.
    Start(FenceOutcome),
    /// The storage must fence.
    Storage {
        /// Outcome if it does.
        fenced: FenceOutcome,
        /// Outcome if it does not.
        not: FenceOutcome,
    },
    /// The start is rejected.
    Refuse(FenceOutcome),
}

/// Why a sibling host's report does not count; `None` if it does. `machine` is the expected one.
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

/// Whether a report contradicts an attestation: the sibling host reached `machine`, an unidentified machine, or a QEMU
/// of the VM. A different machine at the host's address is no evidence about the host.
pub fn is_on(reply: &SiblingFenceVmOnHostReply, machine: &Machine) -> bool {
    let is_known = |of: &Machine| !of.machine_id.is_empty();
    let other =
        is_known(machine) && reply.machine.as_ref().is_some_and(|reached| is_known(reached) && !reached.is(machine));
    reply.ssh_reachable && (!other || reply.qemu_found)
}

/// Judges a sibling host's report; `machine` is the one of the failed host.
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
        // Contradictory: killed a QEMU that was not found, or has a result without SSH.
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
        let refused = |volumes: &[Result<Vec<Watcher>>], expected: &str| {
            let Watched::Refuse(why) = judge(volumes) else { panic!("{volumes:?} was not rejected") };
            assert!(why.contains(expected), "{why}");
        };
        // Query failed or malformed. One unknown volume is enough, at any position.
        refused(&[unknown()], "the watchers of v0 are unknown");
        refused(&[watchers(&[]), unknown()], "the watchers of v1 are unknown");
        // Some watchers, not all on the failed host.
        refused(&[watchers(&["10.0.0.9"])], "volume v0 is in use by 10.0.0.9:0/7");
        refused(&[watchers(&["10.0.0.1", "10.0.0.9"])], "by 10.0.0.9:0/7");
        refused(&[watchers(&["10.0.0.1"]), watchers(&["10.0.0.9"])], "v1 is in use by 10.0.0.9:0/7");
        // No watchers.
        assert_eq!(judge(&[watchers(&[]), watchers(&[])]), Watched::Nobody);
        assert_eq!(judge(&[]), Watched::Nobody);
        // Some, all on the failed host, at any of its addresses.
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
        let no_fencer: Result<_> = Err(ErrorCode::new(Code::NO_ROUTE, "no actor lives there"));

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

        assert_eq!(reported(&no_fencer, &machine(), &SAFE), Next::Refuse(SkippedNoFencer));
        assert_eq!(reported(&no_fencer, &machine(), &ZSTACK), Next::Start(SkippedNoFencer));
    }

    /// All 16 reports: only the two rows that prove death start without a higher level.
    #[test]
    fn contradictory_report_proves_nothing() {
        for bits in 0..16u8 {
            let [ssh, alive, found, killed] = [1, 2, 4, 8].map(|bit| bits & bit != 0);
            let proves = matches!((ssh, alive, found, killed), (true, false, true, true) | (true, false, false, false));
            let next = reported(&report(ssh, alive, found, killed), &machine(), &SAFE);
            assert_eq!(matches!(next, Next::Start(_)), proves, "{:?}: {next:?}", report(ssh, alive, found, killed));
        }
    }

    /// K1, K2: a report of another machine, or without full sight, is unknown.
    #[test]
    fn report_of_other_machine_or_without_sight_is_unknown() {
        let machine_of = |machine_id: &str| Machine { machine_id: machine_id.to_owned(), boot_id: "b".to_owned() };
        let dead = |machine: Option<Machine>, sight: Option<Sight>| {
            report(true, false, false, false).map(|reply| SiblingFenceVmOnHostReply { machine, sight, ..reply })
        };
        let full = Some(Sight::full());
        for (machine, expected) in [
            (Some(machine_of("other")), machine_of("m")),
            (None, machine_of("m")),
            (Some(machine_of("m")), machine_of("")),
        ] {
            let report = dead(machine, full.clone());
            assert_eq!(doubted(report.as_ref().unwrap(), &expected), Some(UnknownReason::OtherMachine));
            assert!(!matches!(reported(&report, &expected, &SAFE), Next::Start(_)), "{report:?}");
            assert!(!matches!(reported(&report, &expected, &ZSTACK), Next::Start(_)), "{report:?}");
        }
        for sight in [None, Some(Sight { hidepid: true, ..Sight::full() }), Some(Sight { unnamed: 1, ..Sight::full() })]
        {
            let report = dead(Some(machine_of("m")), sight);
            assert_eq!(doubted(report.as_ref().unwrap(), &machine_of("m")), Some(UnknownReason::Blind));
            assert!(!matches!(reported(&report, &machine_of("m"), &SAFE), Next::Start(_)), "{report:?}");
        }
        let same = dead(Some(Machine { boot_id: "another".to_owned(), ..machine_of("m") }), full);
        assert!(
            matches!(reported(&same, &machine_of("m"), &SAFE), Next::Start(_)),
            "another boot of it is the same machine"
        );
    }
}
