//! Decides which hosts failed and which VMs are brought back.
//!
//! Invariants: a host is failed only if it is Disconnected, siblings looked for it and none saw it, or a human attested
//! it; and only while so few hosts of its cluster are away that it is not rather us (storm brake, I8). A VM is brought
//! back one flow at a time, so many at once over all hosts. A host is not cleaned while one of its VMs is in a flow, and
//! no flow of its VMs begins while it is cleaned: a fence must not be lifted under a VM that was just permitted to
//! start. Everything is derived anew on every tick; nothing waits for an event that may have been missed.
//! Rejected: a queue of failed hosts. What is not in the queue after a crash is never done.

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

use super::drain::{Drains, Move};
use crate::inventory::{Directory, HaSettings};

/// Between [`Event::Tick`]s.
pub const TICK: Duration = Duration::from_secs(1);

/// Hosts that are asked for their processes in one tick, at most. Too low: a QEMU that died in a large cluster is seen
/// late. Too high: a burst every second.
pub const CENSUS_PER_TICK: usize = 500;

/// For so long a look of siblings counts. Too high: a host that is back is failed.
pub const SCAN_FRESH: Duration = Duration::from_secs(4);

/// Between looks at a host that is away, at least.
pub const SCAN_EVERY: Duration = Duration::from_secs(1);

/// For so long a host that failed counts for the storm brake. Too low: a storm that comes host by host is not seen.
pub const STORM_WINDOW: Duration = Duration::from_secs(60);

/// Longest wait between tries to bring a VM back, or to hear a host that is deaf. Too high: a cause that is gone is noticed
/// late.
pub const RETRY_CEILING: Duration = Duration::from_secs(30);

/// For so long a VM has to run before its start counts as one that worked. Too low: one that dies at once is started
/// again and again. Too high: an old failure makes a new one slow.
pub const STEADY: Duration = Duration::from_secs(60);

/// So often in a row a VM may end within [`STEADY`] of its start; then a human is asked for. Too low: a guest that
/// needs some tries stays down. Too high: the journal fills.
pub const MAX_DEATHS: u32 = 10;

/// So often a host that is connected is asked in vain for its processes before VMs are started without its word, if
/// their volumes can tell. Too low: one lost answer is a silent place. Too high: a broken agent keeps everybody waiting.
pub const MAX_DEAF: u32 = 3;

/// Looks in a row at which nobody watches a VM's volumes before it counts as lost. One may be a watch that is just
/// being renewed.
pub const GONE_LOOKS: u32 = 2;

/// What happens.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// [`TICK`] went by.
    Tick,
    /// A try of a host's ping failed.
    Suspected(HostId),
    /// A host's status changed.
    HostChanged(HostId, HostStatus),
    /// An operator took a host out of service, or put it back.
    Maintenance(HostId, bool),
    /// An operator wants a host, which is in maintenance, emptied.
    Drain(HostId),
    /// Siblings looked for a host.
    Scanned(HostId, Result<ScanHostReply>),
    /// These hosts of a cluster answer pings, asked for by [`Command::AskStanding`].
    Standing(ClusterId, Vec<HostId>),
    /// A storage refuses a host, and no record says why.
    Refused(HostId),
    /// The quarantine of a host is durable and in force, or not.
    Quarantined(HostId, Result<()>),
    /// A host in quarantine is clean and was let out, or not.
    Cleaned(HostId, Result<()>),
    /// A human attested that a host is off.
    Confirmed(HostId),
    /// The attestation of a host no longer counts: the host answered.
    AttestationEnded(HostId),
    /// What is believed of a VM.
    Vm(VmId, Belief),
    /// Nobody watches any volume of a VM; or somebody does, or it is not known.
    Unwatched(VmId, bool),
    /// An operator wants a VM brought back.
    Requested(VmId, Option<HostId>),
    /// What came of [`Command::Start`].
    Started(VmId, Result<Option<HostId>>),
    /// The QEMU processes of a host, or why they are not known.
    Listed(HostId, Result<ListVmsReply>),
    /// Where a VM of a host that is drained has room, asked for by [`Command::Place`].
    Placed(VmId, Result<TargetReply>),
    /// The intent to move a VM is durable, or cannot be made so.
    MoveIntended(VmId, Result<()>),
    /// What came of [`Command::Vacate`]; success means verified gone.
    Vacated(VmId, Result<Belief>),
}

/// What is believed of a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Belief {
    /// Its state.
    pub state: VmState,
    /// Where it runs, may run, or ran last.
    pub host: Option<HostId>,
    /// Which start it is.
    pub incarnation: u64,
    /// Whether it is to run.
    pub wanted: bool,
}

impl From<&VmStateChanged> for Belief {
    fn from(event: &VmStateChanged) -> Belief {
        let VmStateChanged { new_state, host_uuid, incarnation, wanted, .. } = *event;
        Belief { state: new_state, host: host_uuid, incarnation, wanted }
    }
}

impl From<&VmInventory> for Belief {
    fn from(of: &VmInventory) -> Belief {
        Belief { state: of.state, host: of.last_host_uuid, incarnation: of.incarnation, wanted: of.wanted }
    }
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq)]
pub enum Command {
    /// Have siblings look for a host.
    Scan(HostId),
    /// Ask which hosts of a cluster answer.
    AskStanding(ClusterId),
    /// Take a host out of service, durably.
    Quarantine(HostId, String),
    /// Kill what is left on a host, lift its fences, let it out of quarantine.
    Clean(HostId),
    /// A human's word that a host is off is over.
    EndWord(HostId),
    /// Look whether anybody watches a VM's volumes.
    Watch(VmId),
    /// Have the VM's actor fence and start it.
    Start {
        /// The VM.
        vm: VmId,
        /// Who decided.
        judger: &'static str,
        /// Where, if somebody said.
        host: Option<HostId>,
        /// Hosts to avoid.
        soft_avoid: Vec<HostId>,
        /// Why.
        reason: String,
    },
    /// Answer the operator who wanted a VM brought back: refused.
    Refuse(VmId, ErrorCode),
    /// Ask a host for its QEMU processes.
    List(HostId),
    /// Have a VM's actor look for it.
    LookFor(VmId, Option<HostId>),
    /// Ask where a VM that is to be moved has room.
    Place(VmId),
    /// Make a move durable before anything is done.
    IntendMove(VmMoveChanged),
    /// Have a VM's actor stop it on this host.
    Vacate(VmId, HostId),
    /// Record and publish.
    Tell(Fact),
}

/// What is told.
#[derive(Clone, Debug, PartialEq)]
pub enum Fact {
    /// A host failed.
    HostFailed(HostFailed),
    /// The storm brake.
    Brake(StormBrakeChanged),
    /// A VM was brought back.
    Started(VmHaStarted),
    /// A VM could not be brought back.
    Blocked(VmHaBlocked),
    /// A VM is not being moved any more, or cannot be.
    Move(VmMoveChanged),
    /// A host is empty.
    Drained(HostDrained),
    /// A QEMU is claimed where it does not belong.
    Intruder(VmIntruder),
}

#[derive(Debug, Default)]
pub(super) struct Host {
    pub(super) status: Option<HostStatus>,
    pub(super) maintenance: bool,
    /// A ping failed, and nothing since says that it is well.
    pub(super) suspect: bool,
    pub(super) scanning: bool,
    pub(super) scan: Option<(Duration, ScanHostReply)>,
    pub(super) failed: Option<Duration>,
    /// That it failed was told: as long as it cannot be recorded it fails anew with each look, which is no news.
    pub(super) told: bool,
    pub(super) quarantining: bool,
    pub(super) quarantined: bool,
    pub(super) confirmed: bool,
    /// That it is in quarantine or maintenance says nothing of what runs there: it is from before the journal was restored, or
    /// nobody had heard the host by then.
    pub(super) unproven: bool,
    /// A storage refuses it, and no cleaning that began since has seen to that.
    pub(super) refused: bool,
    pub(super) cleaning: bool,
    pub(super) answers: bool,
    /// Its processes were listed, with full sight, since this controller took office.
    pub(super) heard: bool,
    /// It was asked so often in vain, or by somebody blind, that it is not waited for any more.
    pub(super) deaf: u32,
    pub(super) listing: bool,
    /// When it may be asked again.
    pub(super) ask_again: Duration,
    pub(super) next_clean: Duration,
    pub(super) clean_error: Option<String>,
}

#[derive(Debug)]
pub(super) struct Vm {
    pub(super) belief: Belief,
    /// A flow is under way; it began at this incarnation, from this host, for this reason.
    pub(super) flow: Option<(u64, Option<HostId>, String)>,
    pub(super) failures: u32,
    /// Since when it runs, as far as is known; taken when it ended.
    pub(super) up_since: Option<Duration>,
    /// How often in a row it ended within [`STEADY`] of its start.
    pub(super) deaths: u32,
    pub(super) next: Duration,
    pub(super) why: String,
    pub(super) watching: bool,
    /// How often in a row it was looked for on a host that answers, and when it is looked for again.
    pub(super) looks: (u32, Duration),
    /// Looks in a row at which nobody watched its volumes.
    pub(super) gone: u32,
}

/// See the module.
#[derive(Debug)]
pub struct Core {
    pub(super) settings: HaSettings,
    pub(super) directory: Arc<Directory>,
    pub(super) hosts: BTreeMap<HostId, Host>,
    pub(super) vms: BTreeMap<VmId, Vm>,
    /// VMs that are to run and do not, or may not.
    pub(super) lost: BTreeSet<VmId>,
    /// VMs that run or may run on a host.
    pub(super) on_host: BTreeMap<HostId, BTreeSet<VmId>>,
    pub(super) braked: BTreeSet<ClusterId>,
    pub(super) flows: usize,
    /// Hosts of one tick of the census, and where it stands.
    pub(super) census: (usize, usize),
    /// Ticks of one census.
    ticks: usize,
    /// What is known of hosts that are not in the directory: one that comes back is as it was.
    gone: BTreeMap<HostId, Host>,
    /// Some host was not heard yet.
    pub(super) census_open: bool,
    /// Claims that were told of; true: of a QEMU like a VM's, on a host of another cluster.
    pub(super) intruders: BTreeMap<(HostId, VmId), bool>,
    pub(super) drains: Drains,
}

/// What the journal says.
#[derive(Clone, Debug, Default)]
pub struct Memory {
    /// Of VMs.
    pub vms: Vec<(VmId, Belief)>,
    /// Hosts in quarantine.
    pub quarantined: BTreeSet<HostId>,
    /// Hosts that a human attested to be off.
    pub confirmed: BTreeSet<HostId>,
    /// Hosts that a storage refuses, as far as is known.
    pub refused: BTreeSet<HostId>,
    /// Hosts whose quarantine or maintenance is from before the journal was restored.
    pub unproven: BTreeSet<HostId>,
    /// Hosts that failed and have not answered since.
    pub failed: BTreeSet<HostId>,
    /// Hosts in maintenance.
    pub maintenance: BTreeSet<HostId>,
    /// Hosts that are to be emptied, and whether they were.
    pub draining: BTreeMap<HostId, bool>,
    /// VMs whose move has not ended.
    pub moves: BTreeMap<VmId, Move>,
}

impl Core {
    /// Looks after everything in the directory. Every host is asked for its processes once in `census_every`.
    pub fn new(settings: HaSettings, census_every: Duration, directory: Arc<Directory>, memory: Memory) -> Core {
        let Memory { vms, quarantined, refused, confirmed, unproven, failed, maintenance, draining, moves } = memory;
        let mut gone = BTreeMap::<HostId, Host>::new();
        refused.into_iter().for_each(|id| gone.entry(id).or_default().refused = true);
        quarantined.into_iter().for_each(|id| gone.entry(id).or_default().quarantined = true);
        // It failed before: that it is still away is no storm.
        failed.iter().filter(|id| gone.contains_key(id)).copied().collect::<Vec<_>>().into_iter().for_each(|id| {
            let of = gone.entry(id).or_default();
            (of.failed, of.told) = (Some(Duration::ZERO), true);
        });
        confirmed.into_iter().for_each(|id| gone.entry(id).or_default().confirmed = true);
        maintenance.into_iter().for_each(|id| gone.entry(id).or_default().maintenance = true);
        unproven.into_iter().for_each(|id| gone.entry(id).or_default().unproven = true);
        let ticks = (census_every.as_millis() / TICK.as_millis()).max(1) as usize;
        let mut core = Core {
            settings,
            directory: Arc::default(),
            hosts: BTreeMap::new(),
            vms: BTreeMap::new(),
            lost: BTreeSet::new(),
            on_host: BTreeMap::new(),
            braked: BTreeSet::new(),
            flows: 0,
            census: (0, 0),
            ticks,
            gone,
            census_open: true,
            intruders: BTreeMap::new(),
            drains: Drains::new(draining, moves),
        };
        core.look_after(&directory);
        for (id, mut belief) in vms {
            // Whoever was running when the controller ended may have ended since.
            if belief.state != VmState::Stopped {
                belief.state = VmState::Unknown;
            }
            core.believe(id, belief, Duration::ZERO);
        }
        core
    }

    /// Takes charge of what this directory has. A host that is not in it any more is forgotten but for what an operator
    /// or a fence said of it.
    pub fn look_after(&mut self, directory: &Arc<Directory>) {
        if Arc::ptr_eq(&self.directory, directory) {
            return;
        }
        self.directory = directory.clone();
        self.census_open = true;
        self.gone.append(&mut self.hosts);
        self.hosts = directory.hosts.iter().map(|of| (of.id, self.gone.remove(&of.id).unwrap_or_default())).collect();
        self.gone.values_mut().for_each(|host| {
            let Host { quarantined, confirmed, unproven, maintenance, failed, told, .. } = *host;
            *host = Host { quarantined, confirmed, unproven, maintenance, failed, told, ..Host::default() };
        });
        self.census = (directory.hosts.len().div_ceil(self.ticks).min(CENSUS_PER_TICK), 0);
        self.braked.retain(|id| directory.cluster(*id).is_ok());
    }

    /// Handles one event. `now` never goes back.
    pub fn on(&mut self, event: Event, now: Duration) -> Vec<Command> {
        let mut commands = Vec::new();
        match event {
            Event::Tick => self.tick(now, &mut commands),
            Event::Suspected(host) => {
                if let Some(of) = self.hosts.get_mut(&host) {
                    of.suspect = true;
                    of.answers = false;
                    self.scan(host, &mut commands);
                }
            }
            Event::HostChanged(host, status) => self.host_changed(host, status, now, &mut commands),
            Event::Maintenance(host, on) => {
                if let Some(of) = self.hosts.get_mut(&host) {
                    (of.maintenance, of.suspect, of.unproven) = (on, false, false);
                }
                if !on {
                    self.drain_ends(host);
                }
            }
            Event::Drain(host) => self.drain_begins(host),
            Event::Scanned(host, result) => {
                if let Some(of) = self.hosts.get_mut(&host) {
                    of.scanning = false;
                    of.scan = result.ok().map(|scan| (now, scan));
                    let seen =
                        of.scan.as_ref().is_none_or(|(_, scan)| !scan.seen_by.is_empty() || scan.unseen_by.is_empty());
                    if of.status == Some(HostStatus::Connected) && seen {
                        of.suspect = false;
                    }
                    self.judge_host(host, now, &mut commands);
                }
            }
            Event::Standing(cluster, answering) => {
                let of_cluster = self.directory.hosts.iter().filter(|host| host.cluster == cluster);
                let ids: Vec<HostId> = of_cluster.map(|host| host.id).collect();
                for id in ids {
                    if let Some(host) = self.hosts.get_mut(&id) {
                        host.answers = answering.contains(&id);
                    }
                }
            }
            Event::Refused(host) => {
                if let Some(of) = self.hosts.get_mut(&host) {
                    of.refused = true;
                }
            }
            Event::Quarantined(host, result) => {
                if let Some(of) = self.hosts.get_mut(&host) {
                    of.quarantining = false;
                    match result {
                        Ok(()) => (of.quarantined, of.unproven) = (true, of.unproven || !of.heard),
                        // Not durable: it is judged again.
                        Err(_) => (of.failed, of.next_clean) = (None, now + SCAN_EVERY),
                    }
                }
            }
            Event::Cleaned(host, result) => {
                if let Some(of) = self.hosts.get_mut(&host) {
                    of.cleaning = false;
                    of.clean_error = result.err().map(|error| error.to_string());
                    if of.clean_error.is_none() {
                        (of.quarantined, of.confirmed, of.failed, of.scan, of.told) = (false, false, None, None, false);
                    }
                    of.next_clean = now + SCAN_EVERY;
                }
            }
            Event::Confirmed(host) => {
                if let Some(of) = self.hosts.get_mut(&host) {
                    of.confirmed = true;
                    // Whoever waits because of this host need not any more.
                    for vm in self.vms.values_mut().filter(|vm| vm.belief.host == Some(host)) {
                        vm.next = now;
                    }
                    self.judge_host(host, now, &mut commands);
                }
            }
            Event::AttestationEnded(host) => {
                if let Some(of) = self.hosts.get_mut(&host) {
                    of.confirmed = false;
                }
            }
            Event::Vm(id, belief) => self.believe(id, belief, now),
            Event::Unwatched(vm, nobody) => {
                if let Some(vm) = self.vms.get_mut(&vm) {
                    vm.watching = false;
                    vm.gone = if nobody { vm.gone + 1 } else { 0 };
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
            Event::Vacated(vm, result) => self.vacated(vm, result, now),
        }
        self.brake(now, &mut commands);
        self.bring_back(now, &mut commands);
        // After those that are down: they come first.
        self.drain(now, &mut commands);
        self.clean(now, &mut commands);
        commands
    }

    /// VMs that are believed to run on a host.
    pub fn vms_on(&self, host: HostId) -> usize {
        self.on_host.get(&host).map_or(0, BTreeSet::len)
    }

    /// Whether it was told how the way to a host is.
    pub fn knows_status(&self, host: HostId) -> bool {
        self.hosts.get(&host).is_none_or(|host| host.status.is_some())
    }

    /// Whether a host is in maintenance.
    pub fn is_maintained(&self, host: HostId) -> bool {
        self.hosts.get(&host).is_some_and(|host| host.maintenance)
    }

    /// What is thought of everything that is not in order.
    pub fn thoughts(&self) -> HaReply {
        let hosts = self.hosts.iter().filter_map(|(id, host)| {
            let trouble = match host {
                Host { cleaning: true, .. } => "back: what is left on it is killed, then it is let in again".to_owned(),
                Host { quarantined: true, clean_error: Some(error), .. } => format!("quarantined: {error}"),
                Host { quarantined: true, .. } => {
                    "quarantined: it is let in again when it answers and nothing is left on it".to_owned()
                }
                Host { status: Some(HostStatus::Disconnected), scan: Some((_, scan)), .. }
                    if !scan.seen_by.is_empty() =>
                {
                    format!("only the controller does not reach it ({})", scan.reason)
                }
                Host { status: Some(HostStatus::Disconnected), scan: Some((_, scan)), .. }
                    if scan.unseen_by.is_empty() =>
                {
                    format!("not taken for failed: no sibling could look ({})", scan.reason)
                }
                Host { status: Some(HostStatus::Disconnected), .. } => {
                    "siblings are asked whether they see it".to_owned()
                }
                _ => String::new(),
            };
            let says = [Some(trouble).filter(|says| !says.is_empty()), self.drain_standing(*id)];
            let standing = says.into_iter().flatten().collect::<Vec<_>>().join("; ");
            if standing.is_empty() {
                return None;
            }
            Some(HostHa { host_uuid: *id, standing })
        });
        let vms = self.vms.iter().filter(|(_, vm)| vm.belief.wanted && vm.belief.state != VmState::Running);
        let vms = vms.map(|(id, vm)| {
            let why = match &vm.flow {
                Some((_, _, reason)) => format!("being brought back: {reason}"),
                None if !vm.why.is_empty() => vm.why.clone(),
                None => "waiting for a verdict on its host".to_owned(),
            };
            VmHa { vm_uuid: *id, why }
        });
        HaReply { hosts: hosts.collect(), vms: vms.collect(), braked: self.braked.iter().copied().collect() }
    }

    pub(super) fn believe(&mut self, id: VmId, belief: Belief, now: Duration) {
        let vm = self.vms.entry(id).or_insert_with(|| Vm {
            belief,
            flow: None,
            failures: 0,
            up_since: None,
            deaths: 0,
            next: Duration::ZERO,
            why: String::new(),
            watching: false,
            looks: (0, Duration::ZERO),
            gone: 0,
        });
        if vm.belief.host != belief.host {
            vm.gone = 0;
        }
        if vm.belief != belief {
            vm.looks = (0, Duration::ZERO);
        }
        if belief.state == VmState::Running && (vm.belief.state != VmState::Running || vm.up_since.is_none()) {
            vm.up_since = Some(now);
        }
        if let Some(vms) = vm.belief.host.and_then(|host| self.on_host.get_mut(&host)) {
            vms.remove(&id);
        }
        if let Some(host) = belief.host.filter(|_| belief.state != VmState::Stopped) {
            self.on_host.entry(host).or_default().insert(id);
        }
        let lost = belief.wanted && matches!(belief.state, VmState::Stopped | VmState::Unknown);
        let _ = if lost { self.lost.insert(id) } else { self.lost.remove(&id) };
        vm.belief = belief;
        if belief.state == VmState::Running {
            (vm.failures, vm.next) = (0, Duration::ZERO);
            vm.why.clear();
        }
    }
}
