//! The simulated world: machines, networks, storages, the history of each volume; and the ports into it.
//!
//! ```text
//!   controller 1 --\                                            /-- machine: agent, sshd, processes, targets
//!   controller 2 ---> ends (the ports) --> links, with faults --> -- ceph: watchers, blocklist, epochs
//!                                                               \-- leadership: epoch, lock, journal
//! ```
//! Invariants: one thread, virtual time, every choice from the seed; a request that was sent continues after its caller
//! timed out or died; nothing here depends on the actors: only on the ports' traits, the inventory, and the agent's own
//! judgement of commands.
//! Alternatives considered: a port that decides at once and replies later. Most bugs are in between.

mod agent;
mod calls;
mod ceph;
mod disks;
mod exports;
mod faults;
mod hands;
mod impostors;
mod judge;
mod leadership;
mod links;
mod machine;
mod ssh;
mod storages;

use std::{
    collections::{BTreeMap, HashMap},
    fmt::Write as _,
    sync::Arc,
    time::Duration,
};

use parking_lot::{Mutex, MutexGuard};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use ringfence_actors::{inventory::Inventory, ports::Ports};
use ringfence_messages::{Code, ErrorCode, HostId, Result, VmId};
use tokio::{sync::Notify, time::Instant};

pub(crate) use self::{
    ceph::Ceph,
    disks::Disks,
    exports::Export,
    leadership::Leadership,
    links::Links,
    machine::{Machine, Process},
};
use crate::check::Checks;

/// A world; shared by everything that happens in it.
pub struct World {
    /// What there is, as everybody is told.
    pub(crate) inventory: Inventory,
    born: Instant,
    hosts: HashMap<HostId, usize>,
    vms: HashMap<VmId, usize>,
    state: Mutex<State>,
    /// Something that stood still goes on, or is gone.
    moved: Notify,
}

/// Everything that changes.
pub(crate) struct State {
    pub(crate) now: Duration,
    pub(crate) rng: ChaCha8Rng,
    pub(crate) machines: Vec<Machine>,
    pub(crate) links: Links,
    pub(crate) ceph: Ceph,
    pub(crate) disks: Disks,
    pub(crate) leadership: Leadership,
    pub(crate) checks: Checks,
    pub(crate) controllers: Vec<Controller>,
    /// So many more are to be started.
    pub(crate) controllers_wanted: u32,
    /// The next controller is started with `--restored`.
    pub(crate) declared: bool,
    /// Faults under which more than one may run.
    pub(crate) rivals: u32,
    /// VMs, by number, that end by themselves at once.
    pub(crate) short_lived: BTreeMap<usize, u32>,
    /// Processes that look like VMs: the fault that started them, host, process.
    pub(crate) claims: Vec<(u64, usize, u64)>,
    log: Vec<String>,
    next_id: u64,
}

/// A controller's process.
#[derive(Debug, Default)]
pub(crate) struct Controller {
    pub(crate) alive: bool,
    pub(crate) freezes: u32,
    /// It dies after so many more calls.
    pub(crate) dies_in: Option<u32>,
}

impl State {
    /// One line of the event log: what everybody may read afterwards.
    pub(crate) fn log(&mut self, what: impl std::fmt::Display) {
        let mut line = String::with_capacity(64);
        let _ = write!(line, "{:>11.3} {what}", self.now.as_secs_f64());
        tracing::debug!("{line}");
        self.log.push(line);
    }

    pub(crate) fn id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    /// Up to so long, from the seed.
    pub(crate) fn some(&mut self, range: std::ops::Range<u64>) -> Duration {
        Duration::from_micros(self.rng.random_range(range.start * 1000..range.end * 1000))
    }
}

impl World {
    /// The world of this inventory, in which everything is well and nothing runs.
    pub fn new(seed: u64, inventory: Inventory, host_memory_mib: u64) -> Arc<World> {
        let machine = |host| Machine::new(host, &inventory, host_memory_mib);
        let machines: Vec<Machine> = inventory.hosts.iter().map(machine).collect();
        let hosts = inventory.hosts.iter().enumerate().map(|(n, host)| (host.id, n)).collect();
        let vms = inventory.vms.iter().enumerate().map(|(n, vm)| (vm.id, n)).collect();
        let state = State {
            now: Duration::ZERO,
            // Not the plan's: leaving out a fault must not change what the others are.
            rng: ChaCha8Rng::seed_from_u64(seed ^ 0x9e37_79b9_7f4a_7c15),
            machines,
            links: Links::default(),
            ceph: Ceph::default(),
            disks: Disks::new(&inventory.vms),
            leadership: Leadership::default(),
            checks: Checks::new(&inventory),
            controllers: Vec::new(),
            controllers_wanted: 1,
            declared: false,
            rivals: 0,
            short_lived: BTreeMap::new(),
            claims: Vec::new(),
            log: Vec::new(),
            next_id: 0,
        };
        let moved = Notify::new();
        Arc::new(World { inventory, born: Instant::now(), hosts, vms, state: Mutex::new(state), moved })
    }

    /// The ports of one more controller.
    pub(crate) fn controller(self: &Arc<Self>) -> (usize, Ports) {
        let mut state = self.state();
        state.controllers.push(Controller { alive: true, ..Controller::default() });
        let n = state.controllers.len() - 1;
        let end = Arc::new(End { world: self.clone(), controller: n });
        let ports =
            Ports { agents: end.clone(), mds: end.clone(), ceph: end.clone(), leadership: end.clone(), journal: end };
        (n, ports)
    }

    /// The state, with its clock set.
    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        let mut state = self.state.lock();
        state.now = self.born.elapsed();
        state
    }

    /// What happened so far, a line each.
    pub fn log(&self) -> Vec<String> {
        self.state().log.clone()
    }

    pub(crate) fn host(&self, id: HostId) -> Result<usize> {
        self.hosts.get(&id).copied().ok_or_else(|| ErrorCode::new(Code::NOT_FOUND, format!("host {id} does not exist")))
    }

    pub(crate) fn host_named(&self, name: &str) -> Option<usize> {
        self.host(HostId::from_name(name)).ok()
    }

    pub(crate) fn vm(&self, id: VmId) -> Result<usize> {
        self.vms.get(&id).copied().ok_or_else(|| ErrorCode::new(Code::NOT_FOUND, format!("VM {id} does not exist")))
    }

    pub(crate) fn vm_named(&self, name: &str) -> Option<usize> {
        self.vm(VmId::from_name(name)).ok()
    }

    /// Wakes all waiters for a change.
    pub(crate) fn moved(&self) {
        self.moved.notify_waiters();
    }

    /// Waits until this is so; looked at whenever something moved.
    pub(crate) async fn until(&self, mut is: impl FnMut(&mut State) -> bool) {
        loop {
            let notified = self.moved.notified();
            tokio::pin!(notified);
            notified.as_mut().enable();
            if is(&mut self.state()) {
                return;
            }
            notified.await;
        }
    }
}

/// A controller's end of the ports.
pub(crate) struct End {
    pub(crate) world: Arc<World>,
    pub(crate) controller: usize,
}

impl End {
    /// A call is made: the moment for a controller to die in it. Returns whether it does, after the call took effect.
    pub(crate) fn dies(&self) -> bool {
        let mut state = self.world.state();
        match &mut state.controllers[self.controller].dies_in {
            Some(0) => true,
            Some(left) => {
                *left -= 1;
                false
            }
            None => false,
        }
    }

    /// It died in the middle of a call; nothing comes after.
    pub(crate) async fn die<T>(&self) -> T {
        {
            let mut state = self.world.state();
            state.controllers[self.controller].alive = false;
            state.log(format_args!("controller {} dies in a call", self.controller));
        }
        self.world.moved();
        std::future::pending().await
    }
}

impl World {
    /// Waits until something moves.
    pub(crate) async fn until_moved(&self) {
        self.moved.notified().await;
    }

    /// The controller that runs ends, and the next one goes on from its journal as a restored one.
    pub(crate) fn declare_restored(&self) {
        let mut state = self.state();
        state.controllers.iter_mut().for_each(|controller| controller.alive = false);
        (state.declared, state.controllers_wanted) = (true, 1);
        drop(state);
        self.moved();
    }

    /// One more controller, in a while.
    pub(crate) fn restart_soon(self: &Arc<Self>) {
        let world = self.clone();
        self.moved();
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_secs(2)).await;
            world.state().controllers_wanted += 1;
            world.moved();
        });
    }
}

impl State {
    /// How many controllers are to be started now. A service manager runs one; a rival comes from somewhere else.
    pub(crate) fn take_controllers_wanted(&mut self) -> u32 {
        let wanted = std::mem::take(&mut self.controllers_wanted);
        let one_runs = self.controllers.iter().any(|controller| controller.alive);
        if self.rivals > 0 { wanted } else { wanted.min(u32::from(!one_runs)) }
    }
}
