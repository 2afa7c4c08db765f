//! Kills processes of VMs that may no longer run here (K8): a supervisor may restart them seconds or hours later.
//!
//! Invariants: only VMs that a stop holds and no newer command released are killed; strangers, QEMUs that wait for a
//! migration, and VMs of another agent of this machine never are; the kill is the verified one. The check is cheap: it
//! reads young processes, and older ones once in a while.
//! Alternatives considered: the kernel's process connector. It needs CAP_NET_ADMIN in the first namespaces and loses
//! events under load, so that a search is needed anyway.

use std::{
    collections::{HashMap, HashSet},
    sync::Weak,
    time::Duration,
};

use tokio::time::MissedTickBehavior;

use super::{
    lookout::{LOOK_TIMEOUT, off_the_runtime},
    migration, proc,
    vms::{KILL_TIMEOUT, Vms},
};

/// Between looks. Too low: it costs a host's CPU. Too high: a guest has booted, and writes, before it is ended.
pub const GUARD_POLL: Duration = Duration::from_millis(200);

/// Looks at a process before it is left alone: a program may become QEMU some moments after its process began.
const YOUNG: u32 = 15;

/// Looks between two at everything, for a process that becomes QEMU late, or has the number of one that was looked at.
const ALL_AFTER: u32 = 25;

/// Which processes are due for a look.
#[derive(Default)]
struct Rounds {
    looks: HashMap<u32, u32>,
    round: u32,
}

impl Rounds {
    fn due(&mut self, pids: Vec<u32>) -> Vec<u32> {
        let present: HashSet<u32> = pids.iter().copied().collect();
        self.looks.retain(|pid, _| present.contains(pid));
        let all = self.round.is_multiple_of(ALL_AFTER);
        self.round = self.round.wrapping_add(1);
        let mut due = pids;
        due.retain(|pid| {
            let looks = self.looks.entry(*pid).or_default();
            *looks = looks.saturating_add(1);
            all || *looks <= YOUNG
        });
        due
    }
}

/// Guards until the VMs are gone. Nothing is looked at while nothing is held.
pub async fn guard(vms: Weak<Vms>) {
    let mut rounds = Rounds::default();
    let mut tick = tokio::time::interval(GUARD_POLL);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        let Some(vms) = vms.upgrade() else { return };
        if vms.holds_nothing() {
            rounds = Rounds::default();
            continue;
        }
        if let Err(error) = look(&vms, &mut rounds).await {
            tracing::warn!(%error, "cannot search for VMs that may not run here");
        }
    }
}

async fn look(vms: &Vms, rounds: &mut Rounds) -> ringfence_messages::Result<()> {
    let pids = off_the_runtime("list the processes of this host", LOOK_TIMEOUT, proc::pids).await?;
    let pids = pids.map_err(|e| super::io_error("list", std::path::Path::new("/proc"), &e))?;
    let seen = vms.lookout().look_at(Some(rounds.due(pids))).await?;
    let ends =
        seen.qemus.iter().filter(|qemu| qemu.stranger.is_none() && !vms.is_of_another_agent(qemu)).map(async |qemu| {
            // Held is asked last: an order that released it meanwhile has started this very process.
            if !vms.is_held(qemu.vm) || migration::waits(qemu).await || !vms.is_held(qemu.vm) {
                return;
            }
            let (vm, pid) = (qemu.vm, qemu.process.pid);
            match qemu.process.kill(KILL_TIMEOUT).await {
                Ok(()) => {
                    tracing::warn!(%vm, pid,
                        "killed a QEMU of a VM that may no longer run here: something restarted it")
                }
                Err(error) => tracing::error!(%vm, pid, %error, "cannot kill a QEMU of a VM that may not run here"),
            }
        });
    futures_util::future::join_all(ends).await;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn young_processes_are_read_often_and_old_ones_rarely() {
        let mut rounds = Rounds::default();
        let looks: Vec<bool> = (0..2 * ALL_AFTER).map(|_| !rounds.due(vec![7]).is_empty()).collect();
        let young = usize::try_from(YOUNG).unwrap();
        assert!(looks[..young].iter().all(|look| *look));
        assert_eq!(looks[young..].iter().filter(|look| **look).count(), 1, "{looks:?}");
        assert_eq!(rounds.due(vec![7, 8]), [7, 8], "one of everything");
        assert_eq!(rounds.due(vec![8]), [8], "a new one");
        assert_eq!(rounds.due(vec![7, 8]), [7, 8], "gone and back is new");
    }
}
