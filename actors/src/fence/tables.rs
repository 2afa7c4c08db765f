//! The decision tables of a fence (design: section 4), row by row.
//!
//! Invariants: I2: nothing that is not known counts as dead; what contradicts itself is not known. A start without proof
//! happens only where the policy names it. Each row has a test that names it.

use std::net::IpAddr;

use ringfence_messages::{
    Code, Result,
    ceph::Watcher,
    fence::{FenceOutcome, SiblingFenceVmOnHostReply},
};

use super::policy::{OnNoFencer, OnSshUnreachable, OnWatchers, Policy, Profile};
use crate::sabotage::{self, Sabotage};

/// What the watchers of a VM's volumes say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Watched {
    /// Nobody but the failed host: on to the ladder.
    Fence,
    /// The start is refused, for this reason.
    Refuse(String),
}

/// Judges the watchers of all volumes; `failed` are the addresses of the host where the VM ran last.
pub fn watched<'a>(
    volumes: impl IntoIterator<Item = (String, &'a Result<Vec<Watcher>>)>,
    failed: &[IpAddr],
    policy: &Policy,
) -> Watched {
    let mut own = None;
    for (volume, watchers) in volumes {
        let watchers = match watchers {
            Ok(watchers) => watchers,
            Err(_) if sabotage::on(Sabotage::UnknownWatchersAreNobody) => continue,
            Err(error) => return Watched::Refuse(format!("who watches {volume} is not known: {error}")),
        };
        if let Some(other) = watchers.iter().find(|watcher| !failed.contains(&watcher.ip)) {
            return Watched::Refuse(format!("volume is in use: {volume} by {}", other.address));
        }
        own = own.or(watchers.first().map(|watcher| format!("{volume} by {}", watcher.address)));
    }
    match own {
        Some(by) if policy.on_watchers == OnWatchers::Block => Watched::Refuse(format!(
            "volume is in use: {by}, which is the host where it ran last (fence.on_watchers = \"block\")"
        )),
        _ => Watched::Fence,
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

/// Judges a sibling's report.
pub fn reported(report: &Result<SiblingFenceVmOnHostReply>, policy: &Policy) -> Next {
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
    match (reply.ssh_reachable, reply.alive, reply.qemu_found, reply.killed) {
        (true, false, true, true) => Next::Start(SuccessKilled),
        (true, false, false, false) => Next::Start(SuccessAlreadyDead),
        (true, true, _, _) if sabotage::on(Sabotage::StillAliveIsKilled) => Next::Start(SuccessKilled),
        (true, true, _, _) => higher(FailedStillAlive),
        (false, true, false, false) if sabotage::on(Sabotage::UnreachableIsDead) => Next::Start(SuccessSshUnreachable),
        (false, true, false, false) => match policy.on_ssh_unreachable {
            OnSshUnreachable::StorageFence => Next::Storage { fenced: SuccessSshUnreachable, not: FailedUnreachable },
            OnSshUnreachable::Allow => Next::Start(SuccessSshUnreachable),
            OnSshUnreachable::Block => Next::Refuse(FailedUnreachable),
        },
        // It contradicts itself: killed what it did not find, or knows what it did not reach.
        _ => higher(Failed),
    }
}

#[cfg(test)]
mod tests {
    use ringfence_messages::{ErrorCode, evidence::Sight};

    use super::*;

    const SAFE: Policy = Profile::Safe.policy();
    const ZSTACK: Policy = Profile::Zstack.policy();

    fn watchers(ips: &[&str]) -> Result<Vec<Watcher>> {
        Ok(ips.iter().map(|ip| Watcher { address: format!("{ip}:0/7"), ip: ip.parse().unwrap() }).collect())
    }

    fn judge(volumes: &[Result<Vec<Watcher>>], policy: &Policy) -> Watched {
        let named = volumes.iter().enumerate().map(|(i, w)| (format!("v{i}"), w));
        watched(named, &["10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap()], policy)
    }

    #[test]
    fn rows_of_watchers() {
        let unknown = || Err(ErrorCode::new(Code::TIMEOUT, "no answer"));
        for policy in [&SAFE, &ZSTACK] {
            let refused = |volumes: &[Result<Vec<Watcher>>], says: &str| {
                let Watched::Refuse(why) = judge(volumes, policy) else { panic!("{volumes:?} was let through") };
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
            assert_eq!(judge(&[watchers(&[]), watchers(&[])], policy), Watched::Fence);
            assert_eq!(judge(&[], policy), Watched::Fence);
        }
        // Some, all from the failed host, by any of its addresses.
        let own = [watchers(&["10.0.0.1"]), watchers(&["10.0.0.2", "10.0.0.1"])];
        assert_eq!(judge(&own, &SAFE), Watched::Fence);
        assert!(matches!(judge(&own, &ZSTACK), Watched::Refuse(why) if why.contains("on_watchers")));
        let block = Policy { on_watchers: OnWatchers::Block, ..SAFE };
        assert!(matches!(judge(&own, &block), Watched::Refuse(_)));
    }

    fn report(ssh: bool, alive: bool, found: bool, killed: bool) -> Result<SiblingFenceVmOnHostReply> {
        Ok(SiblingFenceVmOnHostReply {
            alive,
            killed,
            ssh_reachable: ssh,
            qemu_found: found,
            sight: Some(Sight::full()),
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
            assert_eq!(reported(&killed, policy), Next::Start(SuccessKilled));
            assert_eq!(reported(&dead, policy), Next::Start(SuccessAlreadyDead));
        }
        let on_ssh = |on_ssh_unreachable, base: Policy| reported(&unreachable, &Policy { on_ssh_unreachable, ..base });
        let fence = Next::Storage { fenced: SuccessSshUnreachable, not: FailedUnreachable };
        assert_eq!(reported(&unreachable, &SAFE), fence);
        assert_eq!(reported(&unreachable, &ZSTACK), Next::Start(SuccessSshUnreachable));
        assert_eq!(on_ssh(OnSshUnreachable::Block, SAFE), Next::Refuse(FailedUnreachable));
        assert_eq!(on_ssh(OnSshUnreachable::Allow, SAFE), Next::Start(SuccessSshUnreachable));
        assert_eq!(on_ssh(OnSshUnreachable::StorageFence, ZSTACK), fence);

        assert_eq!(reported(&alive, &SAFE), Next::Storage { fenced: SuccessStorageFenced, not: FailedStillAlive });
        assert_eq!(reported(&alive, &ZSTACK), Next::Refuse(FailedStillAlive));
        assert_eq!(reported(&broken, &SAFE), Next::Storage { fenced: SuccessStorageFenced, not: Failed });
        assert_eq!(reported(&broken, &ZSTACK), Next::Refuse(Failed));

        assert_eq!(reported(&nobody, &SAFE), Next::Refuse(SkippedNoFencer));
        assert_eq!(reported(&nobody, &ZSTACK), Next::Start(SkippedNoFencer));
    }

    /// Every one of the 16 reports: only the two rows that prove death start without a higher level, whatever the rest.
    #[test]
    fn a_report_that_contradicts_itself_proves_nothing() {
        for bits in 0..16u8 {
            let [ssh, alive, found, killed] = [1, 2, 4, 8].map(|bit| bits & bit != 0);
            let proves = matches!((ssh, alive, found, killed), (true, false, true, true) | (true, false, false, false));
            let next = reported(&report(ssh, alive, found, killed), &SAFE);
            assert_eq!(matches!(next, Next::Start(_)), proves, "{:?}: {next:?}", report(ssh, alive, found, killed));
        }
    }
}
