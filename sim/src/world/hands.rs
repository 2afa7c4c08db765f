//! The work of an agent on its host: start, kill, removal of exports, and kills of VMs that may not run there.
//!
//! The judgement of commands is that of `drivers`. A QEMU that is being started comes up even if the agent dies; a QEMU
//! whose command timed out comes up paused and is killed.

use std::{sync::Arc, time::Duration};

use ringfence_actors::sabotage::{self, Sabotage};
use ringfence_messages::{
    Code, ErrorCode, Result,
    vm::{StartVmCmd, StartVmCmdReply},
};
use tokio::{sync::oneshot, time::Instant};

use super::{
    State, World,
    calls::{At, reset},
    machine::QUITS,
};
use crate::fault::Claimant;

/// How long QEMU may take to come up (the agent's).
const START_TIMEOUT: Duration = Duration::from_secs(25);

/// A QEMU that is up writes so much later: its firmware and loader come first.
const GUEST_BOOTS: Duration = Duration::from_secs(1);

/// A VM that ends at once lives for so long.
const SHORT_LIFE: Duration = Duration::from_millis(150);

/// The agent starts a VM: as `drivers` does it, with the very same judgement of the order.
pub(super) async fn start(at: At, cmd: StartVmCmd) -> Result<StartVmCmdReply> {
    let lock = at.state().machines[at.host].busy.clone();
    let order = lock.lock_owned().await;
    at.goes_on(true).await?;
    let vm = at.vm(cmd.vm_uuid)?;
    {
        let mut state = at.state();
        let now = state.now;
        let machine = &mut state.machines[at.host];
        let void = cmd.not_after_ms != 0 && machine.clock_ms(now) >= cmd.not_after_ms;
        // Its own are known by their pid files, so that a blind agent sees them too; a user's are none of it.
        let is = |process: &&super::machine::Process| process.vm == vm && process.claim != Some(Claimant::LocalUser);
        let runs_as = machine.processes.iter().find(is).map(|process| process.pid);
        let next = machine.orders.admit(&cmd, runs_as, void || Instant::now() >= at.by)?;
        if machine.disk_full > 0 {
            return Err(ErrorCode::new(Code::IO, "orders.json cannot be written: disk full"));
        }
        machine.orders = next;
    }
    // From here on it goes on without the agent; the order is in QEMU's hands.
    let (tell, told) = oneshot::channel();
    let there = at.clone();
    tokio::spawn(async move {
        let result = launch(&there, vm, cmd.incarnation).await;
        drop(order);
        let _ = tell.send(result);
    });
    told.await.unwrap_or_else(|_| Err(reset()))
}

async fn launch(at: &At, vm: usize, incarnation: u64) -> Result<StartVmCmdReply> {
    let failed = |why: &str| Err(ErrorCode::new(Code::HOST_START_VM, format!("QEMU does not start: {why}")));
    let (time, late) = {
        let mut state = at.state();
        let time = state.some(200..1500);
        (time, state.machines[at.host].late.iter().map(|(_, millis)| Duration::from_millis(*millis)).max())
    };
    if let Some(late) = late {
        at.work_on_host(late.min(START_TIMEOUT)).await?;
        if late > START_TIMEOUT {
            at.state().machines[at.host].unheard += 1;
            tokio::spawn(comes_late(at.clone(), vm, incarnation, late - START_TIMEOUT));
            return Err(ErrorCode::new(Code::TIMEOUT, format!("libvirtd did not answer within {START_TIMEOUT:?}")));
        }
    }
    at.work_on_host(time).await?;
    let (reach, until) = {
        let state = at.state();
        (state.machines[at.host].contact, Instant::now() + START_TIMEOUT)
    };
    if !reach {
        // It hangs in opening its disk until the storage is back or somebody loses patience.
        let back = at.world.until(|state| {
            let machine = &state.machines[at.host];
            machine.contact || !machine.on || machine.boot != at.boot
        });
        if tokio::time::timeout_at(until, back).await.is_err() {
            return Err(ErrorCode::new(Code::TIMEOUT, format!("QEMU was not ready within {START_TIMEOUT:?}")));
        }
        at.work_on_host(Duration::from_millis(5)).await?;
    }
    let mut state = at.state();
    // It has the newest map: from now on no OSD knows less.
    state.newest_map_spreads();
    let (now, ips) = (state.now, state.machines[at.host].storage_ips.clone());
    if state.disks.vhost_of(vm).is_none() && state.ceph.refuses(&ips, now) {
        return failed("the storage rejects this host");
    }
    let pid = state.spawn(at.host, vm, incarnation, false);
    if state.short_lived.contains_key(&vm) {
        let (world, host) = (at.world.clone(), at.host);
        tokio::spawn(async move {
            tokio::time::sleep(SHORT_LIFE).await;
            world.state().end(host, "it stops at once", |process| process.pid == pid);
        });
    }
    Ok(StartVmCmdReply { pid, accel: "kvm".to_owned(), memory: "memfd".to_owned() })
}

/// A domain whose command timed out comes up: paused, as requested. The agent kills it.
async fn comes_late(at: At, vm: usize, incarnation: u64, after: Duration) {
    if at.work_on_host(after).await.is_ok() {
        let paused = !sabotage::on(Sabotage::LateResume);
        let mut state = at.state();
        let pid = state.spawn_as(at.host, vm, incarnation, |process| process.paused = paused);
        if paused {
            state.end(at.host, "its command had timed out", |process| process.pid == pid);
        }
    }
    let mut state = at.state();
    let unheard = &mut state.machines[at.host].unheard;
    *unheard = unheard.saturating_sub(1);
}

/// Kills every QEMU of a VM on a host, ends its exports, and looks for what comes back: found, killed, alive, why.
pub(super) async fn kill(at: &At, vm: usize, by_agent: bool) -> Result<(bool, bool, bool, String)> {
    let (mut found, mut killed) = (false, false);
    let mut said = String::new();
    for round in 0..3 {
        let (there, incoming, stuck) = {
            let state = at.state();
            let of: Vec<_> = state.machines[at.host].processes.iter().filter(|p| p.is_killed_for(vm)).collect();
            (!of.is_empty(), of.iter().any(|p| p.seems_incoming()), of.iter().any(|p| p.unkillable > 0))
        };
        if !there {
            break;
        }
        found = true;
        if incoming {
            return Ok((true, killed, true, "it is the target of a migration and left alone".to_owned()));
        }
        if stuck {
            at.work_on_host(Duration::from_secs(10)).await?;
            return Ok((true, killed, true, "it is still there after SIGKILL (D state)".to_owned()));
        }
        if round == 2 {
            return Ok((true, killed, true, "something starts it again".to_owned()));
        }
        {
            let mut state = at.state();
            // An agent asks first.
            let how = if by_agent { QUITS } else { "killed" };
            let ended = state.end(at.host, how, |process| process.is_killed_for(vm) && process.unkillable == 0);
            if let Some(process) = ended.first()
                && let Some((_, slow)) = state.machines[at.host].respawns.get(&vm).copied()
            {
                let (world, host, boot, incarnation) = (at.world.clone(), at.host, at.boot, process.incarnation);
                let after = if slow == 0 { state.some(50..400) } else { Duration::from_millis(slow) };
                tokio::spawn(respawn(world, host, boot, vm, incarnation, after));
            }
        }
        killed = true;
        said = "killed, verified gone".to_owned();
        // The search for one that comes back.
        if by_agent {
            at.work(Duration::from_millis(100)).await?;
        } else {
            at.work_on_host(Duration::from_millis(500)).await?;
        }
    }
    let mut state = at.state();
    let exported = state.machines[at.host].exports.contains_key(&vm);
    match state.end_export(at.host, vm) {
        Ok(()) if exported && !found => Ok((true, true, false, "its export is ended".to_owned())),
        Ok(()) => Ok((found, killed, false, said)),
        Err(why) => Ok((true, killed, true, why)),
    }
}

async fn respawn(world: Arc<World>, host: usize, boot: u32, vm: usize, incarnation: u64, after: Duration) {
    tokio::time::sleep(after).await;
    let mut state = world.state();
    let machine = &state.machines[host];
    let wanted = machine.on && machine.boot == boot && machine.respawns.contains_key(&vm);
    if wanted && machine.processes.iter().all(|process| process.vm != vm) {
        let boots = state.now + GUEST_BOOTS;
        state.spawn_as(host, vm, incarnation, |process| process.writes_from = boots);
        world.settle_at(boots);
    }
}

impl State {
    pub(super) fn sweep_all(&mut self) {
        (0..self.machines.len()).for_each(|host| self.sweep(host));
    }

    /// An agent that learned that a VM is over here up to some incarnation ends what appears without a newer order. It
    /// hears of each exec, so that it is gone before its guest has booted.
    pub(super) fn sweep(&mut self, host: usize) {
        let machine = &self.machines[host];
        let looks = machine.answers()
            && machine.agent_up
            && machine.agent_freezes == 0
            && machine.blind_agent + machine.unaware == 0;
        let over = |p: &super::machine::Process| {
            let over = machine.over.get(&p.vm).copied().unwrap_or(0);
            p.claim.is_none() && !p.incoming && p.unkillable == 0 && p.incarnation <= over
        };
        let intruders: Vec<u64> = machine.processes.iter().filter(|p| over(p)).map(|p| p.uid).collect();
        if looks && !intruders.is_empty() && !sabotage::on(Sabotage::IntruderIgnored) {
            self.end(host, "the VM may not run here", |process| intruders.contains(&process.uid));
        }
    }
}
