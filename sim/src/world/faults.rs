//! The beginning and end of each fault.

use std::{sync::Arc, time::Duration};

use rand::Rng;

use super::{
    State, World,
    links::{Node, Place},
    machine::WATCH_TIMEOUT,
};
use crate::fault::{Fault, Looker};

/// Time until a client writes again after its storage returned, in ms: TCP backoff, measured 12 to 27 s after a minute
/// (lab/README.md). Too low: the slow return is never tested. Too high: runs take longer.
const SLOWEST_RECONNECT_MILLIS: u64 = 27_000;

impl World {
    /// Begins a fault, and ends it after `lasting`.
    pub(crate) fn begin(self: &Arc<Self>, fault: Fault, lasting: Duration) {
        let id = {
            let mut state = self.state();
            state.log(format_args!("fault: {fault:?} for {:.1} s", lasting.as_secs_f64()));
            let id = state.id();
            self.change(&mut state, &fault, id, true);
            state.sweep_all();
            state.settle_all();
            id
        };
        self.moved();
        let world = self.clone();
        tokio::spawn(async move {
            tokio::time::sleep(lasting).await;
            {
                let mut state = world.state();
                state.log(format_args!("over: {fault:?}"));
                world.change(&mut state, &fault, id, false);
                state.sweep_all();
                state.settle_all();
            }
            // Clients that lost their storage return later; watch timeouts are checked again.
            let at = world.state().now;
            world.settle_at(at + WATCH_TIMEOUT);
            world.settle_at(at + Duration::from_millis(SLOWEST_RECONNECT_MILLIS));
            world.moved();
        });
    }

    fn place(&self, name: &str) -> Place {
        match name {
            "controller" => Place::Node(Node::Controller),
            "ceph" => Place::Node(Node::Ceph),
            "mds" => Place::Node(Node::Mds),
            "management" => Place::Management,
            "everything" => Place::Everything,
            name => self.host_named(name).map_or(Place::Everything, |host| Place::Node(Node::Host(host))),
        }
    }

    /// Host and number of a VM's QEMU that does not wait for a migration.
    pub(super) fn location(&self, state: &State, vm: &str) -> Option<(usize, usize)> {
        let vm = self.vm_named(vm)?;
        let is = |p: &super::machine::Process| p.vm == vm && !p.incoming && p.claim.is_none();
        let on = |machine: &super::Machine| machine.processes.iter().any(is);
        state.machines.iter().position(on).map(|host| (host, vm))
    }

    fn change(self: &Arc<Self>, state: &mut State, fault: &Fault, id: u64, begins: bool) {
        let host = |name: &String| self.host_named(name);
        let count = |n: &mut u32| if begins { *n += 1 } else { *n = n.saturating_sub(1) };
        macro_rules! listed {
            ($list:expr, $value:expr) => {
                if begins { $list.push((id, $value)) } else { $list.retain(|(of, _)| *of != id) }
            };
        }
        match fault {
            Fault::PowerLoss { host: name } => {
                let Some(at) = host(name) else { return };
                if begins { self.power_off(state, at, id) } else { self.power_on(state, at, id) }
            }
            Fault::FreezeHost { host: name } => {
                host(name).into_iter().for_each(|at| count(&mut state.machines[at].freezes));
            }
            Fault::AgentCrash { host: name } => {
                let Some(machine) = host(name).map(|at| &mut state.machines[at]) else { return };
                machine.agent_up = !begins;
                machine.agent_life += 1;
                machine.done.clear();
            }
            Fault::FreezeAgent { host: name } => {
                host(name).into_iter().for_each(|at| count(&mut state.machines[at].agent_freezes));
            }
            Fault::Ssh { host: name, how } => {
                host(name).into_iter().for_each(|at| listed!(state.machines[at].ssh, *how));
            }
            Fault::BogusReplies { host: name, how } => {
                host(name).into_iter().for_each(|at| listed!(state.machines[at].bogus_replies, *how));
            }
            Fault::SlowAgent { host: name, millis } => {
                host(name).into_iter().for_each(|at| listed!(state.machines[at].slow, *millis));
            }
            Fault::HostDiskFull { host: name } => {
                host(name).into_iter().for_each(|at| count(&mut state.machines[at].disk_full));
            }
            Fault::QemuCrash { vm } if begins => {
                if let Some((at, vm)) = self.location(state, vm) {
                    state.end(at, "it crashed", |p| p.vm == vm && !p.incoming && p.claim.is_none());
                }
            }
            Fault::QemuRestart { vm, host: name } if begins => {
                let (Some(at), Some(number)) = (host(name), self.vm_named(vm)) else { return };
                let ended = state.end(at, "restarted by a local user", |p| p.vm == number && p.claim.is_none());
                let ips = state.machines[at].storage_ips.clone();
                match ended.first() {
                    Some(_) if state.ceph.refuses(&ips, state.now) => {
                        state.log(format_args!("{name}: the storage rejects a new QEMU of {vm}"));
                    }
                    Some(before) => drop(state.spawn(at, number, before.incarnation, false)),
                    None => {}
                }
            }
            Fault::ForeignWatcher { vm, host: name } => {
                let (Some(at), Some(number)) = (host(name), self.vm_named(vm)) else { return };
                listed!(state.ceph.foreign_watchers, (number, at));
            }
            Fault::QemuUnkillable { vm } => {
                let Some(vm) = self.vm_named(vm) else { return };
                for process in state.machines.iter_mut().flat_map(|m| &mut m.processes).filter(|p| p.vm == vm) {
                    count(&mut process.unkillable);
                }
            }
            Fault::Respawn { vm, after_millis } => {
                let Some(number) = self.vm_named(vm) else { return };
                if begins {
                    if let Some((at, _)) = self.location(state, vm) {
                        let of = state.machines[at].respawns.entry(number).or_default();
                        *of = (of.0 + 1, *after_millis);
                    }
                } else {
                    state.machines.iter_mut().for_each(|machine| {
                        machine.respawns.remove(&number);
                    });
                }
            }
            Fault::TargetCrash { host: name } if begins => self.targets_die(state, host(name)),
            Fault::TargetBroken { host: name } => {
                if begins {
                    self.targets_die(state, host(name));
                }
                host(name).into_iter().for_each(|at| count(&mut state.machines[at].targets_broken));
            }
            Fault::PrepareFails { host: name } => {
                host(name).into_iter().for_each(|at| count(&mut state.machines[at].prepare_fails));
            }
            Fault::Cut { from, to, one_way } => {
                if begins {
                    state.links.cut(id, self.place(from), self.place(to), *one_way);
                } else {
                    let before: Vec<bool> = (0..state.machines.len()).map(|at| self.reaches(state, at)).collect();
                    state.links.heal(id);
                    for (at, reached) in before.into_iter().enumerate() {
                        if !reached && self.reaches(state, at) {
                            let later = state.some(0..SLOWEST_RECONNECT_MILLIS);
                            state.machines[at].contact_from = state.now + later;
                            self.settle_at(state.now + later);
                        }
                    }
                }
            }
            Fault::Loss { percent } => listed!(state.links.loss, *percent),
            Fault::Delay { millis } => listed!(state.links.delay, *millis),
            Fault::Duplication { percent } => listed!(state.links.duplication, *percent),
            Fault::Ceph { how } => listed!(state.ceph.trouble, *how),
            Fault::BlocklistRemoved { host: name } if begins => {
                let Some(at) = host(name) else { return };
                // With a survivor on the host no rule could hold: the documentation warns operators of that.
                if state.machines[at].processes.is_empty() {
                    for ip in state.machines[at].storage_ips.clone() {
                        state.unblock(ip, "removed by an operator");
                    }
                }
            }
            Fault::BlocklistAdded { host: name } if begins => {
                let (Some(at), now) = (host(name), state.now) else { return };
                for ip in state.machines[at].storage_ips.clone() {
                    let epoch = state.refuse(ip, now + Duration::from_secs(86_400), now);
                    state.log(format_args!("ceph: rejects {ip} in epoch {epoch}: added by an operator"));
                }
                state.settle_all();
            }
            Fault::ControllerCrash => {
                if begins {
                    self.controller_dies(state, "it is killed");
                } else {
                    self.service_manager(state);
                }
            }
            Fault::ControllerCrashInCall { skip } => {
                if begins {
                    let living = state.controllers.iter_mut().rfind(|controller| controller.alive);
                    living.into_iter().for_each(|controller| controller.dies_in = Some(*skip));
                } else {
                    state.controllers.iter_mut().for_each(|controller| controller.dies_in = None);
                    self.service_manager(state);
                }
            }
            Fault::ControllerFreeze => {
                state.controllers.iter_mut().for_each(|controller| count(&mut controller.freezes));
            }
            Fault::SecondController => {
                count(&mut state.rivals);
                if begins { state.controllers_wanted += 1 } else { self.service_manager(state) }
            }
            Fault::JournalBroken => count(&mut state.leadership.broken),
            Fault::ClockJump { seconds } => state.leadership.clock += if begins { *seconds } else { -*seconds },
            Fault::TargetHangs { host: name } => {
                host(name).into_iter().for_each(|at| count(&mut state.machines[at].targets_hang));
            }
            Fault::LibvirtLate { host: name, millis } => {
                host(name).into_iter().for_each(|at| listed!(state.machines[at].late, *millis));
            }
            Fault::LongWords { host: name } => {
                host(name).into_iter().for_each(|at| count(&mut state.machines[at].wordy));
            }
            Fault::Blind { host: name, how } => {
                let Some(machine) = host(name).map(|at| &mut state.machines[at]) else { return };
                count(match how {
                    Looker::Agent => &mut machine.blind_agent,
                    Looker::Ssh => &mut machine.blind_ssh,
                    Looker::Unaware => &mut machine.unaware,
                });
            }
            Fault::AddressTaken { host: name, by } => {
                let (Some(at), Some(by)) = (host(name), host(by)) else { return };
                listed!(state.machines[at].taken, by);
            }
            Fault::EndsAtOnce { vm } => {
                let Some(number) = self.vm_named(vm) else { return };
                count(state.short_lived.entry(number).or_default());
                state.short_lived.retain(|_, faults| *faults > 0);
                if let Some((at, _)) = self.location(state, vm).filter(|_| begins) {
                    state.end(at, "it stops at once", |p| p.vm == number && !p.incoming && p.claim.is_none());
                }
            }
            Fault::Migration { vm, to, succeeds } => match begins {
                true => self.migration_begins(state, vm, host(to)),
                false => self.migration_ends(state, vm, host(to), *succeeds),
            },
            Fault::Claim { vm, host: name, how } => match begins {
                true => self.claim(state, vm, host(name), *how, id),
                false => state.claim_ends(id),
            },
            Fault::JournalRestored { records } => {
                state.controllers.iter_mut().for_each(|controller| controller.alive = false);
                if begins {
                    state.log("the controller is killed, and its journal is lost");
                } else {
                    state.restore(*records);
                    self.service_manager(state);
                }
            }
            Fault::LibvirtHangs { .. }
            | Fault::ZombieLeader { .. }
            | Fault::QemuCrash { .. }
            | Fault::QemuRestart { .. }
            | Fault::TargetCrash { .. }
            | Fault::BlocklistRemoved { .. }
            | Fault::BlocklistAdded { .. } => {}
        }
    }

    fn reaches(&self, state: &State, at: usize) -> bool {
        state.links.open(Node::Host(at), Node::Ceph)
    }

    /// One controller should run: the leader. A stale leader stops, unless a fault has rivals.
    fn service_manager(&self, state: &mut State) {
        let leader = state.leadership.leader;
        if state.rivals == 0 {
            for (n, controller) in state.controllers.iter_mut().enumerate() {
                controller.alive &= Some(n) == leader;
            }
        }
        let leads = |n: usize| state.controllers.get(n).is_some_and(|controller| controller.alive);
        if !leader.is_some_and(leads) {
            state.controllers_wanted = 1;
        }
    }

    fn controller_dies(&self, state: &mut State, why: &str) {
        if let Some(n) = state.controllers.iter().rposition(|controller| controller.alive) {
            state.controllers[n].alive = false;
            state.log(format_args!("controller {n} ends: {why}"));
        }
    }

    fn targets_die(&self, state: &mut State, at: Option<usize>) {
        if let Some(at) = at {
            let machine = &mut state.machines[at];
            machine.targets.values_mut().for_each(|up| *up = false);
            // The next target exports the volumes that a QEMU of this host has open.
            let processes = &machine.processes;
            machine.exports.retain(|_, export| processes.iter().any(|process| process.uid == export.uid));
        }
    }

    fn power_off(self: &Arc<Self>, state: &mut State, at: usize, id: u64) {
        if !state.machines[at].on {
            return;
        }
        let again = state.rng.random_bool(0.5);
        let ended = state.end(at, "no power", |_| true);
        let machine = &mut state.machines[at];
        machine.on = false;
        machine.off_by = id;
        machine.boot += 1;
        machine.agent_life += 1;
        machine.done.clear();
        machine.respawns.clear();
        machine.exports.clear();
        machine.unheard = 0;
        machine.busy = Arc::default();
        machine.targets.values_mut().for_each(|up| *up = false);
        let ran = ended.into_iter().filter(|process| !process.incoming && process.claim.is_none() && again);
        machine.autostart = ran.map(|process| (process.vm, process.incarnation)).collect();
    }

    /// VMs with autostart run before any search: agent and sshd start after libvirt.
    fn power_on(self: &Arc<Self>, state: &mut State, at: usize, id: u64) {
        if state.machines[at].on || state.machines[at].off_by != id {
            return;
        }
        let machine = &mut state.machines[at];
        (machine.on, machine.agent_up, machine.booted) = (true, true, state.now);
        machine.boot += 1;
        machine.contact_from = Duration::ZERO;
        let contact = state.links.open(Node::Host(at), Node::Ceph);
        let machine = &mut state.machines[at];
        machine.contact = contact;
        for (vm, incarnation) in std::mem::take(&mut machine.autostart) {
            let refused = state.disks.vhost_of(vm).is_none() && {
                let ips = state.machines[at].storage_ips.clone();
                state.newest_map_spreads();
                state.ceph.refuses(&ips, state.now)
            };
            // QEMU does not start with a disk that it cannot open.
            if contact && !refused {
                state.spawn(at, vm, incarnation, false);
            }
        }
    }
}
