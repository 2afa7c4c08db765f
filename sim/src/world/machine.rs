//! One host: power, agent, sshd, processes, vhost targets.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use ringfence_actors::{
    fence::FencingGuard,
    inventory::{Host, Inventory},
    sabotage::{self, Sabotage},
};
use ringfence_messages::{
    Code, ErrorCode, HostId, Result, StorageId,
    evidence::Machine as MachineId,
    journal::JournalHead,
    storage::StorageKind,
    vm::{RunningVm, VoidOrders, WriterKind},
};
use uuid::Uuid;

use super::{State, exports::Export};
use crate::fault::{BogusReply, Claimant, SshFault};

/// The pid of every host's target.
const TARGET_PID: u32 = 7;

/// Why a QEMU ends that its agent asks to.
pub(crate) const QUITS: &str = "quits";

/// For so long the watch of a client that quits stays.
const QUIT_WATCH: Duration = Duration::from_millis(200);

/// Ceph drops a watch that was not renewed for so long (domain: `osd_client_watch_timeout`).
pub(crate) const WATCH_TIMEOUT: Duration = Duration::from_secs(30);

/// A host.
#[derive(Debug)]
pub(crate) struct Machine {
    pub(crate) id: HostId,
    pub(crate) name: String,
    pub(crate) storage_ips: Vec<IpAddr>,
    pub(crate) on: bool,
    /// Which boot it is: what began before is gone.
    pub(crate) boot: u32,
    pub(crate) booted: Duration,
    /// The fault that took its power.
    pub(crate) off_by: u64,
    /// What it starts again when it boots: VM and incarnation.
    pub(crate) autostart: Vec<(usize, u64)>,
    pub(crate) freezes: u32,
    pub(crate) agent_up: bool,
    /// Which process of the agent it is.
    pub(crate) agent_life: u32,
    pub(crate) agent_freezes: u32,
    pub(crate) slow: Vec<(u64, u64)>,
    pub(crate) bogus_replies: Vec<(u64, BogusReply)>,
    pub(crate) disk_full: u32,
    pub(crate) orders: FencingGuard,
    /// The furthest that it has heard of the journal; durable.
    pub(crate) witness: Option<JournalHead>,
    /// One order at a time, until its QEMU is up.
    pub(crate) busy: Arc<tokio::sync::Mutex<()>>,
    /// Tasks that were done, so that a repeat does nothing.
    pub(crate) done: HashMap<Uuid, Duration>,
    pub(crate) ssh: Vec<(u64, SshFault)>,
    pub(crate) processes: Vec<Process>,
    /// VMs, by number, that something starts again when they are killed: by so many faults, so many ms later.
    pub(crate) respawns: BTreeMap<usize, (u32, u64)>,
    /// Up to which incarnation a VM is over here, as its agent learned.
    pub(crate) over: BTreeMap<usize, u64>,
    /// Whose agent answers at its management address instead of it, by the fault that does it.
    pub(crate) taken: Vec<(u64, usize)>,
    /// Faults under which its agent, or who comes by SSH, does not see its QEMUs.
    pub(crate) blind_agent: u32,
    pub(crate) blind_ssh: u32,
    /// Faults under which neither sees them, nor knows that.
    pub(crate) unaware: u32,
    /// libvirtd is so much later, in ms, by the fault that does it.
    pub(crate) late: Vec<(u64, u64)>,
    /// Domains that libvirtd was asked for and has not answered about.
    pub(crate) unheard: u32,
    pub(crate) wordy: u32,
    pub(crate) memory_mib: u64,
    pub(crate) targets: BTreeMap<StorageId, bool>,
    pub(crate) targets_broken: u32,
    /// Faults under which its targets cannot be killed.
    pub(crate) targets_hang: u32,
    /// What its targets write for, by VM.
    pub(crate) exports: BTreeMap<usize, Export>,
    pub(crate) prepare_fails: u32,
    /// From then on clients here reach the storage again, if the way is open.
    pub(crate) contact_from: Duration,
    pub(crate) contact: bool,
    next_pid: u32,
}

/// A QEMU.
#[derive(Clone, Debug)]
pub(crate) struct Process {
    /// Unique in the world.
    pub(crate) uid: u64,
    pub(crate) pid: u32,
    /// The VM's number.
    pub(crate) vm: usize,
    pub(crate) incarnation: u64,
    /// It waits for a migration.
    pub(crate) incoming: bool,
    /// It took one: its command line says for ever that it waits.
    pub(crate) came: bool,
    pub(crate) unkillable: u32,
    /// Its watch is over then; `None` while it is renewed.
    pub(crate) watch_until: Option<Duration>,
    /// It was refused once: it never watches again, but writes when it is let in (seen on real Ceph).
    pub(crate) unwatched: bool,
    pub(crate) writes: bool,
    /// Its guest has not booted before.
    pub(crate) writes_from: Duration,
    /// It was created paused, and not resumed.
    pub(crate) paused: bool,
    /// It is no VM, but looks like one.
    pub(crate) claim: Option<Claimant>,
}

impl Process {
    /// Whether it waits for a migration, as far as an agent or a sibling can tell: they ask QEMU, whose command line
    /// stays.
    pub(crate) fn seems_incoming(&self) -> bool {
        self.incoming || (self.came && sabotage::on(Sabotage::IncomingForever))
    }

    /// Whether a kill of this VM's QEMUs includes the process.
    pub(crate) fn is_killed_for(&self, vm: usize) -> bool {
        self.vm == vm && self.claim != Some(Claimant::LocalUser)
    }
}

impl Machine {
    pub(crate) fn new(host: &Host, inventory: &Inventory, memory_mib: u64) -> Machine {
        let deployed = inventory.storages.iter().filter(|s| matches!(s.kind, StorageKind::Vhost | StorageKind::Zbs));
        Machine {
            id: host.id,
            name: host.name.clone(),
            storage_ips: host.storage_ips.clone(),
            on: true,
            boot: 0,
            booted: Duration::ZERO,
            off_by: 0,
            autostart: Vec::new(),
            freezes: 0,
            agent_up: true,
            agent_life: 0,
            agent_freezes: 0,
            slow: Vec::new(),
            bogus_replies: Vec::new(),
            disk_full: 0,
            orders: FencingGuard::default(),
            witness: None,
            busy: Arc::default(),
            done: HashMap::new(),
            ssh: Vec::new(),
            processes: Vec::new(),
            respawns: BTreeMap::new(),
            over: BTreeMap::new(),
            taken: Vec::new(),
            blind_agent: 0,
            blind_ssh: 0,
            unaware: 0,
            late: Vec::new(),
            unheard: 0,
            wordy: 0,
            memory_mib,
            targets: deployed.map(|storage| (storage.id, true)).collect(),
            targets_broken: 0,
            targets_hang: 0,
            exports: BTreeMap::new(),
            prepare_fails: 0,
            contact_from: Duration::ZERO,
            contact: true,
            next_pid: 1000,
        }
    }

    /// Its kernel answers: closed ports refuse, open ones take connections.
    pub(crate) fn answers(&self) -> bool {
        self.on && self.freezes == 0
    }

    /// Which machine it is, and which boot of it.
    pub(crate) fn identity(&self) -> MachineId {
        MachineId { machine_id: self.id.0.simple().to_string(), boot_id: format!("{}-{}", self.name, self.boot) }
    }

    /// Its clock since it booted.
    pub(crate) fn clock_ms(&self, now: Duration) -> u64 {
        u64::try_from(now.saturating_sub(self.booted).as_millis()).unwrap_or(u64::MAX) + 1
    }

    /// Somebody of this epoch asks; durable, if the disk takes it.
    pub(crate) fn hear(&mut self, epoch: u64, void: Option<VoidOrders>) -> Result<()> {
        let next = self.orders.observe_epoch(epoch, void)?;
        if next != self.orders && self.disk_full > 0 {
            return Err(ErrorCode::new(Code::IO, "orders.json cannot be written: disk full"));
        }
        self.orders = next;
        Ok(())
    }

    pub(crate) fn running(&self, inventory: &Inventory) -> Vec<RunningVm> {
        let of = |process: &Process| RunningVm {
            incarnation: process.claim.is_none().then_some(process.incarnation),
            incoming: process.seems_incoming(),
            stranger: (process.claim == Some(Claimant::LocalUser)).then(|| "it is a process of user nobody".to_owned()),
            ..RunningVm::qemu(inventory.vms[process.vm].id, process.pid)
        };
        let alone = |vm: &&usize| self.processes.iter().all(|process| process.vm != **vm);
        let export = |vm: &usize| RunningVm {
            incarnation: Some(self.exports[vm].incarnation),
            kind: WriterKind::Export,
            ..RunningVm::qemu(inventory.vms[*vm].id, TARGET_PID)
        };
        self.processes.iter().map(of).chain(self.exports.keys().filter(alone).map(export)).collect()
    }
}

impl State {
    /// A QEMU comes up.
    pub(crate) fn spawn(&mut self, host: usize, vm: usize, incarnation: u64, incoming: bool) -> u32 {
        self.spawn_as(host, vm, incarnation, |process| process.incoming = incoming)
    }

    /// A QEMU comes up, which is special.
    pub(crate) fn spawn_as(
        &mut self,
        host: usize,
        vm: usize,
        incarnation: u64,
        special: impl FnOnce(&mut Process),
    ) -> u32 {
        let uid = self.id();
        let machine = &mut self.machines[host];
        machine.next_pid += 1;
        let pid = machine.next_pid;
        let mut process = Process {
            uid,
            pid,
            vm,
            incarnation,
            incoming: false,
            came: false,
            unkillable: 0,
            watch_until: None,
            unwatched: false,
            writes: false,
            writes_from: Duration::ZERO,
            paused: false,
            claim: None,
        };
        special(&mut process);
        let coming = match &process {
            Process { claim: Some(claim), .. } => &format!(", a claim: {claim:?}"),
            Process { incoming: true, .. } => ", waiting for a migration",
            Process { paused: true, .. } => ", paused",
            _ => "",
        };
        let name = machine.name.clone();
        let exports = process.claim.is_none();
        machine.processes.push(process);
        self.log(format_args!("{name}: QEMU of vm-{vm} is up, incarnation {incarnation}, pid {pid}{coming}"));
        if exports {
            self.exports(host, vm, uid, incarnation);
        }
        self.sweep(host);
        self.settle(host);
        pid
    }

    /// QEMUs end; their watches stay until they time out.
    pub(crate) fn end(&mut self, host: usize, why: &str, ends: impl Fn(&Process) -> bool) -> Vec<Process> {
        let (ended, left) = std::mem::take(&mut self.machines[host].processes).into_iter().partition(|p| ends(p));
        self.machines[host].processes = left;
        let ended: Vec<Process> = ended;
        for process in &ended {
            // One that is asked to quit takes its watch with it, if it reaches the storage (K3: seen on real Ceph).
            let quits = why == QUITS && self.machines[host].contact;
            let lasts = if quits { QUIT_WATCH } else { WATCH_TIMEOUT };
            let until = process.watch_until.unwrap_or(self.now + lasts);
            if !process.unwatched && !process.incoming {
                self.ceph.ghosts.push((process.vm, host, until));
            }
            self.disks.stops(process.uid, self.now);
            let name = self.machines[host].name.clone();
            self.log(format_args!("{name}: QEMU of vm-{} ends, pid {}: {why}", process.vm, process.pid));
        }
        ended
    }
}
