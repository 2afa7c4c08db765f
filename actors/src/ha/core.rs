//! Decides which hosts failed and which VMs are failed over.
//!
//! Invariants: a host has failed only if it is Disconnected and sibling hosts probed it and none reached it, or an
//! operator attested that it is off; and only while the storm brake of its cluster is not engaged (I8). A VM has one
//! failover at a time, and at most `parallelism` run over all hosts. A host is not reconciled while one of its VMs is
//! in a failover, and no failover of its VMs starts while it is reconciled: a fence must not be removed under a VM
//! that was just permitted to start. Every decision is derived from the current state on every tick; nothing depends
//! on an event that may have been missed.
//! Alternatives considered: a queue of failed hosts. What is not in the queue after a crash is never done.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use ringfence_messages::{
    ClusterId, ErrorCode, HostId, Result, VmId,
    ha::{
        HaReply, HostDrained, HostFailed, HostHa, ScanHostReply, StormBrakeChanged, TargetReply, VmHa, VmHaBlocked,
        VmHaStarted, VmMoveChanged,
    },
    host::HostStatus,
    vm::{ListVmsReply, VmIntruder, VmInventory, VmState, VmStateChanged},
};

pub use super::failovers::FailoverReason;
use super::{
    drain::{Drains, Move},
    failovers::{Failover, Searches},
    verdicts::Scan,
};
use crate::inventory::{HaSettings, InventoryIndex};

/// Between two [`Event::Tick`]s.
pub const TICK: Duration = Duration::from_secs(1);

/// Hosts queried for their processes in one tick, at most. Too low: a crashed QEMU in a large cluster is noticed
/// late. Too high: a burst every second.
pub const CENSUS_PER_TICK: usize = 500;

/// Validity of a scan by sibling hosts. Too high: a host that returned is declared failed.
pub const SCAN_FRESH: Duration = Duration::from_secs(4);

/// Shortest wait between two scans of an unreachable host.
pub const SCAN_EVERY: Duration = Duration::from_secs(1);

/// Time for which a failed host counts for the storm brake. Too low: hosts that fail one by one engage no brake.
pub const STORM_WINDOW: Duration = Duration::from_secs(60);

/// Longest wait between two failovers of a VM, or two queries of a host that does not list its processes. Too high: a
/// remedy takes effect late.
pub const RETRY_CEILING: Duration = Duration::from_secs(30);

/// A VM must run this long before its start counts as a success. Too low: a VM that crashes at once is restarted for
/// ever. Too high: an old failure makes a new failover slow.
pub const STEADY: Duration = Duration::from_secs(60);

/// Ends in a row within [`STEADY`] of a start, before an operator is needed. Too low: a guest that needs some
/// attempts stays down. Too high: the journal fills.
pub const MAX_DEATHS: u32 = 10;

/// Failed queries of a Connected host before VMs start without its list, if their volumes have watchers. Too low: one
/// lost answer makes a host unheard. Too high: a broken agent delays every start.
pub const MAX_DEAF: u32 = 3;

/// Checks in a row without any watcher of a VM's volumes, before the VM counts as lost. One may be a watch that is
/// being renewed.
pub const GONE_LOOKS: u32 = 2;

/// Input of the core.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// [`TICK`] has passed.
    Tick,
    /// A ping of a host failed.
    Suspected(HostId),
    /// A host's status changed.
    HostChanged(HostId, HostStatus),
    /// An operator put a host into maintenance, or ended the maintenance.
    Maintenance(HostId, bool),
    /// An operator requested the drain of a host in maintenance.
    Drain(HostId),
    /// Sibling hosts probed a host.
    Scanned(HostId, Result<ScanHostReply>),
    /// The hosts of a cluster that answer pings; reply to [`Command::QueryAnswering`].
    Answering(ClusterId, Vec<HostId>),
    /// A storage rejects a host without a record.
    Refused(HostId),
    /// Whether the quarantine of a host is durable and in force.
    Quarantined(HostId, Result<()>),
    /// Whether a quarantined host was reconciled and returned to service.
    Reconciled(HostId, Result<()>),
    /// An operator attested that a host is off.
    Confirmed(HostId),
    /// The attestation of a host no longer counts: the host answered.
    AttestationEnded(HostId),
    /// The observed state of a VM.
    Vm(VmId, ObservedState),
    /// Whether all volumes of a VM are known to have no watcher.
    Unwatched(VmId, bool),
    /// An operator requested a failover, possibly to this host.
    Requested(VmId, Option<HostId>),
    /// Result of [`Command::Start`].
    Started(VmId, Result<Option<HostId>>),
    /// The processes of a host, or the error of the query.
    Listed(HostId, Result<ListVmsReply>),
    /// Target of a VM that is drained; reply to [`Command::Place`].
    Placed(VmId, Result<TargetReply>),
    /// Whether the intent to move a VM is durable.
    MoveIntended(VmId, Result<()>),
    /// Result of [`Command::Evict`]; success means verified gone.
    Evicted(VmId, Result<ObservedState>),
}

/// The observed state of a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ObservedState {
    /// State of the VM.
    pub state: VmState,
    /// Where it runs, may run, or ran last.
    pub host: Option<HostId>,
    /// Incarnation of the VM.
    pub incarnation: u64,
    /// Whether the desired state is running.
    pub wanted: bool,
}

impl From<&VmStateChanged> for ObservedState {
    fn from(event: &VmStateChanged) -> ObservedState {
        let VmStateChanged { new_state, host_uuid, incarnation, wanted, .. } = *event;
        ObservedState { state: new_state, host: host_uuid, incarnation, wanted }
    }
}

impl From<&VmInventory> for ObservedState {
    fn from(vm: &VmInventory) -> ObservedState {
        ObservedState { state: vm.state, host: vm.last_host_uuid, incarnation: vm.incarnation, wanted: vm.wanted }
    }
}

/// Output of the core.
#[derive(Clone, Debug, PartialEq)]
pub enum Command {
    /// Sibling hosts probe this host.
    Scan(HostId),
    /// Query which hosts of a cluster answer pings.
    QueryAnswering(ClusterId),
    /// Quarantine a host durably, for this reason.
    Quarantine(HostId, String),
    /// Kill leftover VMs on a host, remove its storage fences, and end its quarantine.
    Reconcile(HostId),
    /// Record the end of the attestation that a host is off.
    EndAttestation(HostId),
    /// Query the watchers of a VM's volumes.
    Watch(VmId),
    /// Fence and start a VM.
    Start {
        /// The VM to start.
        vm: VmId,
        /// Why the VM is failed over.
        cause: FailoverReason,
        /// Target host requested by an operator.
        host: Option<HostId>,
        /// Hosts to avoid if another one has room.
        soft_avoid: Vec<HostId>,
        /// Reason for readers.
        reason: String,
    },
    /// Reject the failover that an operator requested.
    Refuse(VmId, ErrorCode),
    /// List the processes of a host.
    List(HostId),
    /// Make the VM's actor search the VM, on this host or its own.
    LookFor(VmId, Option<HostId>),
    /// Query a target host for a VM that is drained.
    Place(VmId),
    /// Make a move durable before the VM is stopped.
    IntendMove(VmMoveChanged),
    /// Stop a VM on this host.
    Evict(VmId, HostId),
    /// Record and publish an event.
    Emit(HaEvent),
}

/// An event for the journal and the bus.
#[derive(Clone, Debug, PartialEq)]
pub enum HaEvent {
    /// A host failed.
    HostFailed(HostFailed),
    /// The storm brake.
    Brake(StormBrakeChanged),
    /// A VM was failed over.
    Started(VmHaStarted),
    /// A failover failed.
    Blocked(VmHaBlocked),
    /// A move of a VM ended, or cannot proceed.
    Move(VmMoveChanged),
    /// A host is drained.
    Drained(HostDrained),
    /// A host reports a QEMU where the VM does not belong.
    Intruder(VmIntruder),
}

#[derive(Debug, Default)]
pub(super) struct Host {
    pub(super) status: Option<HostStatus>,
    pub(super) maintenance: bool,
    /// A ping failed and none has succeeded since.
    pub(super) suspect: bool,
    pub(super) scanning: bool,
    pub(super) scan: Option<Scan>,
    pub(super) failed: Option<Duration>,
    /// The failure was emitted. While it cannot be recorded the host fails again with each scan, which is not a new
    /// event.
    pub(super) told: bool,
    pub(super) quarantining: bool,
    pub(super) quarantined: bool,
    pub(super) confirmed: bool,
    /// Quarantine or maintenance does not prove what runs there: it began before the journal was restored, or before
    /// the host listed its processes.
    pub(super) unproven: bool,
    /// A storage rejects the host, and no reconciliation that began later has handled that.
    pub(super) refused: bool,
    pub(super) reconciling: bool,
    pub(super) answers: bool,
    /// The host listed its processes with full sight since this controller became the leader.
    pub(super) heard: bool,
    /// Failed queries for its processes; [`MAX_DEAF`] at once if its sight is not full.
    pub(super) deaf: u32,
    pub(super) listing: bool,
    /// Time of the next query for its processes.
    pub(super) ask_again: Duration,
    pub(super) next_reconcile: Duration,
    pub(super) reconcile_error: Option<String>,
}

#[derive(Debug)]
pub(super) struct Vm {
    pub(super) observed: ObservedState,
    /// The failover in progress.
    pub(super) failover: Option<Failover>,
    pub(super) failures: u32,
    /// Start of the current run as observed; taken when it ended.
    pub(super) up_since: Option<Duration>,
    /// Ends in a row within [`STEADY`] of a start.
    pub(super) deaths: u32,
    pub(super) next: Duration,
    pub(super) why: String,
    pub(super) watching: bool,
    /// Searches of the VM on a host that answers.
    pub(super) searches: Searches,
    /// Checks in a row without a watcher.
    pub(super) gone: u32,
}

/// See the module.
#[derive(Debug)]
pub struct Core {
    pub(super) settings: HaSettings,
    pub(super) inventory: Arc<InventoryIndex>,
    pub(super) hosts: BTreeMap<HostId, Host>,
    pub(super) vms: BTreeMap<VmId, Vm>,
    /// VMs that should be running but are not, or may not be.
    pub(super) lost: BTreeSet<VmId>,
    /// VMs that run or may run on a host.
    pub(super) on_host: BTreeMap<HostId, BTreeSet<VmId>>,
    pub(super) braked: BTreeSet<ClusterId>,
    pub(super) failovers: usize,
    /// Position of the census.
    pub(super) census: Census,
    /// Ticks of one census.
    ticks: usize,
    /// State of hosts outside the inventory: a host that is added again keeps it.
    gone: BTreeMap<HostId, Host>,
    /// Some host has not listed its processes yet.
    pub(super) census_open: bool,
    /// Reported claims; true: of a QEMU like the VM's, on a host of another cluster.
    pub(super) intruders: BTreeMap<(HostId, VmId), bool>,
    pub(super) drains: Drains,
}

/// Where the census stands.
#[derive(Debug, Default)]
pub(super) struct Census {
    pub(super) per_tick: usize,
    pub(super) position: usize,
}

/// State replayed from the journal.
#[derive(Clone, Debug, Default)]
pub struct ReplayedState {
    /// Observed states of VMs.
    pub vms: Vec<(VmId, ObservedState)>,
    /// Hosts in quarantine.
    pub quarantined: BTreeSet<HostId>,
    /// Hosts that an operator attested to be off.
    pub confirmed: BTreeSet<HostId>,
    /// Hosts that a storage rejects, as far as known.
    pub refused: BTreeSet<HostId>,
    /// Hosts whose quarantine or maintenance began before the journal was restored.
    pub unproven: BTreeSet<HostId>,
    /// Hosts that failed and have not answered since.
    pub failed: BTreeSet<HostId>,
    /// Hosts in maintenance.
    pub maintenance: BTreeSet<HostId>,
    /// Hosts with a requested drain, and whether it has completed.
    pub draining: BTreeMap<HostId, bool>,
    /// VMs with a move in progress.
    pub moves: BTreeMap<VmId, Move>,
}

impl Core {
    /// A core for this inventory. Every host is queried for its processes once in `census_every`.
    pub fn new(
        settings: HaSettings,
        census_every: Duration,
        inventory: Arc<InventoryIndex>,
        replayed: ReplayedState,
    ) -> Core {
        let ReplayedState { vms, quarantined, refused, confirmed, unproven, failed, maintenance, draining, moves } =
            replayed;
        let mut gone = BTreeMap::<HostId, Host>::new();
        refused.into_iter().for_each(|id| gone.entry(id).or_default().refused = true);
        quarantined.into_iter().for_each(|id| gone.entry(id).or_default().quarantined = true);
        // A host that failed before the start of the controller is no storm.
        failed.iter().filter(|id| gone.contains_key(id)).copied().collect::<Vec<_>>().into_iter().for_each(|id| {
            let host = gone.entry(id).or_default();
            host.failed = Some(Duration::ZERO);
            host.told = true;
        });
        confirmed.into_iter().for_each(|id| gone.entry(id).or_default().confirmed = true);
        maintenance.into_iter().for_each(|id| gone.entry(id).or_default().maintenance = true);
        unproven.into_iter().for_each(|id| gone.entry(id).or_default().unproven = true);
        let ticks = (census_every.as_millis() / TICK.as_millis()).max(1) as usize;
        let mut core = Core {
            settings,
            inventory: Arc::default(),
            hosts: BTreeMap::new(),
            vms: BTreeMap::new(),
            lost: BTreeSet::new(),
            on_host: BTreeMap::new(),
            braked: BTreeSet::new(),
            failovers: 0,
            census: Census::default(),
            ticks,
            gone,
            census_open: true,
            intruders: BTreeMap::new(),
            drains: Drains::new(draining, moves),
        };
        core.set_inventory(&inventory);
        for (id, mut observed) in vms {
            // A VM that ran when the controller stopped may have ended since.
            if observed.state != VmState::Stopped {
                observed.state = VmState::Unknown;
            }
            core.observe(id, observed, Duration::ZERO);
        }
        core
    }

    /// Takes a new inventory. Of a removed host only quarantine, attestation, failure and maintenance are kept.
    pub fn set_inventory(&mut self, inventory: &Arc<InventoryIndex>) {
        if Arc::ptr_eq(&self.inventory, inventory) {
            return;
        }
        self.inventory = inventory.clone();
        self.census_open = true;
        self.gone.append(&mut self.hosts);
        self.hosts =
            inventory.hosts.iter().map(|item| (item.id, self.gone.remove(&item.id).unwrap_or_default())).collect();
        self.gone.values_mut().for_each(|host| {
            let Host { quarantined, confirmed, unproven, maintenance, failed, told, .. } = *host;
            *host = Host { quarantined, confirmed, unproven, maintenance, failed, told, ..Host::default() };
        });
        self.census = Census { per_tick: inventory.hosts.len().div_ceil(self.ticks).min(CENSUS_PER_TICK), position: 0 };
        self.braked.retain(|id| inventory.cluster(*id).is_ok());
    }

    /// Handles one event. `now` is monotonic.
    pub fn on(&mut self, event: Event, now: Duration) -> Vec<Command> {
        let mut commands = Vec::new();
        match event {
            Event::Tick => self.tick(now, &mut commands),
            Event::Suspected(host) => self.suspected(host, &mut commands),
            Event::HostChanged(host, status) => self.host_changed(host, status, now, &mut commands),
            Event::Maintenance(host, on) => {
                if let Some(host) = self.hosts.get_mut(&host) {
                    host.set_maintenance(on);
                }
                if !on {
                    self.end_drain(host);
                }
            }
            Event::Drain(host) => self.begin_drain(host),
            Event::Scanned(host, result) => self.scanned(host, result, now, &mut commands),
            Event::Answering(cluster, answering) => self.answering(cluster, &answering),
            Event::Refused(host) => {
                if let Some(host) = self.hosts.get_mut(&host) {
                    host.refused = true;
                }
            }
            Event::Quarantined(host, result) => {
                if let Some(host) = self.hosts.get_mut(&host) {
                    host.quarantine_decided(result.is_ok(), now);
                }
            }
            Event::Reconciled(host, result) => {
                if let Some(host) = self.hosts.get_mut(&host) {
                    host.reconciled(result, now);
                }
            }
            Event::Confirmed(host) => self.confirmed(host, now, &mut commands),
            Event::AttestationEnded(host) => {
                if let Some(of) = self.hosts.get_mut(&host) {
                    of.confirmed = false;
                }
            }
            Event::Vm(id, observed) => self.observe(id, observed, now),
            Event::Unwatched(vm, unwatched) => {
                if let Some(vm) = self.vms.get_mut(&vm) {
                    vm.watching = false;
                    vm.gone = if unwatched { vm.gone + 1 } else { 0 };
                }
            }
            Event::Requested(vm, host) => self.requested(vm, host, now, &mut commands),
            Event::Started(vm, result) => self.started(vm, result, now, &mut commands),
            Event::Listed(host, reply) => {
                self.heard(host, &reply, now);
                if let Ok(ListVmsReply { vms, .. }) = reply {
                    self.listed(host, &vms, &mut commands);
                    self.drained(host, &vms, &mut commands);
                }
            }
            Event::Placed(vm, found) => self.placed(vm, found, now, &mut commands),
            Event::MoveIntended(vm, result) => self.move_intended(vm, result, now, &mut commands),
            Event::Evicted(vm, result) => self.evicted(vm, result, now),
        }
        self.brake(now, &mut commands);
        self.start_failovers(now, &mut commands);
        // After the failovers: VMs that are down have precedence.
        self.drain(now, &mut commands);
        self.reconcile(now, &mut commands);
        commands
    }

    /// Number of VMs that run or may run on a host.
    pub fn vms_on(&self, host: HostId) -> usize {
        self.on_host.get(&host).map_or(0, BTreeSet::len)
    }

    /// Whether the status of a host is known.
    pub fn knows_status(&self, host: HostId) -> bool {
        self.hosts.get(&host).is_none_or(|host| host.status.is_some())
    }

    /// Whether a host is in maintenance.
    pub fn is_maintained(&self, host: HostId) -> bool {
        self.hosts.get(&host).is_some_and(|host| host.maintenance)
    }

    /// Status of every host and VM that needs attention.
    pub fn status(&self) -> HaReply {
        let hosts = self.hosts.iter().filter_map(|(id, host)| {
            let verdict = match host {
                Host { reconciling: true, .. } => {
                    "reachable: leftover VMs are removed before its return to service".to_owned()
                }
                Host { quarantined: true, reconcile_error: Some(error), .. } => format!("quarantined: {error}"),
                Host { quarantined: true, .. } => {
                    "quarantined: returns to service when its agent answers and no leftover VM is on it".to_owned()
                }
                Host { status: Some(HostStatus::Disconnected), scan: Some(Scan { reply: scan, .. }), .. }
                    if !scan.seen_by.is_empty() =>
                {
                    format!("unreachable only from the controller ({})", scan.reason)
                }
                Host { status: Some(HostStatus::Disconnected), scan: Some(Scan { reply: scan, .. }), .. }
                    if scan.unseen_by.is_empty() =>
                {
                    format!("not failed: no sibling host could probe it ({})", scan.reason)
                }
                Host { status: Some(HostStatus::Disconnected), .. } => {
                    "unreachable: sibling hosts are probing it".to_owned()
                }
                _ => String::new(),
            };
            let parts = [Some(verdict).filter(|verdict| !verdict.is_empty()), self.drain_status(*id)];
            let standing = parts.into_iter().flatten().collect::<Vec<_>>().join("; ");
            if standing.is_empty() {
                return None;
            }
            Some(HostHa { host_uuid: *id, standing })
        });
        let vms = self.vms.iter().filter(|(_, vm)| vm.observed.wanted && vm.observed.state != VmState::Running);
        let vms = vms.map(|(id, vm)| {
            let why = match &vm.failover {
                Some(Failover { reason, .. }) => format!("failover in progress: {reason}"),
                None if !vm.why.is_empty() => vm.why.clone(),
                None => "waiting for a verdict on its host".to_owned(),
            };
            VmHa { vm_uuid: *id, why }
        });
        HaReply { hosts: hosts.collect(), vms: vms.collect(), braked: self.braked.iter().copied().collect() }
    }

    pub(super) fn observe(&mut self, id: VmId, observed: ObservedState, now: Duration) {
        let vm = self.vms.entry(id).or_insert_with(|| Vm {
            observed,
            failover: None,
            failures: 0,
            up_since: None,
            deaths: 0,
            next: Duration::ZERO,
            why: String::new(),
            watching: false,
            searches: Searches::default(),
            gone: 0,
        });
        if vm.observed.host != observed.host {
            vm.gone = 0;
        }
        if vm.observed != observed {
            vm.searches = Searches::default();
        }
        if observed.state == VmState::Running && (vm.observed.state != VmState::Running || vm.up_since.is_none()) {
            vm.up_since = Some(now);
        }
        if let Some(vms) = vm.observed.host.and_then(|host| self.on_host.get_mut(&host)) {
            vms.remove(&id);
        }
        if let Some(host) = observed.host.filter(|_| observed.state != VmState::Stopped) {
            self.on_host.entry(host).or_default().insert(id);
        }
        let lost = observed.wanted && matches!(observed.state, VmState::Stopped | VmState::Unknown);
        if lost {
            self.lost.insert(id);
        } else {
            self.lost.remove(&id);
        }
        vm.observed = observed;
        if observed.state == VmState::Running {
            vm.failures = 0;
            vm.next = Duration::ZERO;
            vm.why.clear();
        }
    }
}
