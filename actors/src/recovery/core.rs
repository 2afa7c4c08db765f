//! Decides which hosts are pinged, judges the answers, and decides which protocols are redeployed.
//!
//! ```text
//!             ping ok                     max_failure pings failed
//! Connecting ---------> Connected (calm) <------------------------> Disconnected
//!     |                    | ^                      ping ok
//!     |    one ping failed v | ping ok
//!     |                 Connected (suspect: no redeploy)
//!     +-- max_failure pings failed --> Disconnected
//! Maintenance stops all of it; activation starts again at Connecting. In quarantine an answered ping leads to
//! Connecting, and no further.
//! ```
//! Invariants: I3: no other code changes any of this. I5: a redeploy is requested only for a host that is Enabled,
//! Connected, not suspect and not in quarantine. A host leaves service before the record of it is durable, and returns
//! after. I8: pings in flight and backoff are bounded. At most one check per (host, storage) and one redeploy per
//! (host, storage, protocol) are in flight. An event is emitted only for a change; a failed health check changes no
//! status.
//! Alternatives considered: one actor per host with its own timer. 100,000 timers burst together, and no one place
//! knows how many hosts fail at the same time.

use std::{collections::HashMap, sync::Arc, time::Duration};

use ringfence_messages::{
    ClusterId, Code, ErrorCode, HostId, Protocol, ProtocolStatus, Result, StorageId,
    ha::HostSuspected,
    host::{
        HostInventory, HostState, HostStateChanged, HostStatus, HostStatusChanged, HostsReply, PingHostReply,
        ServingHostsReply,
    },
    storage::{
        CheckHostHealthReply, HostProtocolRef, ProtocolStatusChanged, StorageHostRef, StorageHostStatusChanged,
        aggregate,
    },
};

pub use super::event::{Command, Event, HostEvent};
use super::{backoff::Backoff, schedule::Schedule};
use crate::{
    invariant,
    inventory::{Host as Item, InventoryIndex, PingSettings, Storage},
    sabotage::{self, Sabotage},
};

/// Distance between the generations of hosts added by successive inventory changes.
const GENERATIONS: u32 = 1 << 16;

/// One host. Its index is its position in the inventory.
#[derive(Debug)]
struct Host {
    state: HostState,
    status: HostStatus,
    reason: Option<String>,
    /// Failed pings in a row. Not zero means suspect.
    failures: u32,
    /// The last ping was answered.
    answers: bool,
    /// Why the host is in quarantine; see [`crate::ha`].
    quarantine: Option<Box<str>>,
    /// Number of changes being recorded that take the host out of service.
    withdrawals: u32,
    /// Incremented when answers in flight no longer count.
    generation: u32,
    links: Box<[Link]>,
}

/// A storage on a host.
#[derive(Debug)]
struct Link {
    /// Position in the inventory.
    storage: u32,
    status: Option<ProtocolStatus>,
    check_error: Option<Box<ErrorCode>>,
    checking: bool,
    keys: Box<[Key]>,
}

/// A protocol of a storage on a host.
#[derive(Debug)]
struct Key {
    protocol: Protocol,
    status: Option<ProtocolStatus>,
    reason: Option<Box<str>>,
    backoff: Backoff,
    deploying: bool,
}

/// The supervisor's state and decisions; see the module.
#[derive(Debug)]
pub struct Core {
    settings: PingSettings,
    inventory: Arc<InventoryIndex>,
    index: HashMap<HostId, u32>,
    hosts: Vec<Host>,
    schedule: Schedule,
    /// Requested state and quarantine of hosts outside the inventory: a host that is added again keeps them.
    gone: HashMap<HostId, (HostState, Option<Box<str>>)>,
    /// First generation of new hosts: answers to earlier queries do not count.
    first_generation: u32,
}

impl Core {
    /// A core for this inventory. `states` are the operators' earlier requests (default: Enabled); `quarantined` has
    /// the reasons. First pings are spread over one interval, in the order of the inventory.
    pub fn new(
        settings: PingSettings,
        inventory: Arc<InventoryIndex>,
        states: &HashMap<HostId, HostState>,
        quarantined: &HashMap<HostId, String>,
        now: Duration,
    ) -> Core {
        let mut gone: HashMap<_, _> = states.iter().map(|(id, state)| (*id, (*state, None))).collect();
        for (id, why) in quarantined {
            gone.entry(*id).or_insert((HostState::Enabled, None)).1 = Some(why.as_str().into());
        }
        let mut core = Core {
            settings,
            index: HashMap::new(),
            hosts: Vec::new(),
            schedule: Schedule::new(settings.interval, settings.parallelism),
            inventory: Arc::default(),
            gone,
            first_generation: 0,
        };
        core.set_inventory(&inventory, now);
        core
    }

    /// Takes a new inventory. Hosts that stay keep status, rhythm and backoff; first pings of new ones are spread
    /// over one interval. Returns whether it is new: then [`Event::Tick`] is due.
    pub fn set_inventory(&mut self, inventory: &Arc<InventoryIndex>, now: Duration) -> bool {
        if Arc::ptr_eq(&self.inventory, inventory) {
            return false;
        }
        let before = std::mem::replace(&mut self.inventory, inventory.clone());
        let from: Vec<Option<u32>> = inventory.hosts.iter().map(|host| self.index.get(&host.id).copied()).collect();
        let mut old: Vec<Option<Host>> = std::mem::take(&mut self.hosts).into_iter().map(Some).collect();
        self.schedule.rearrange(&from);
        self.index = inventory.hosts.iter().enumerate().map(|(i, h)| (h.id, i as u32)).collect();
        let count = from.iter().filter(|from| from.is_none()).count().max(1) as u32;
        let mut new = 0;
        for (i, item) in inventory.hosts.iter().enumerate() {
            let known = from[i].and_then(|from| old[from as usize].take());
            let is_new = known.is_none();
            let mut host = known.unwrap_or_else(|| {
                let (state, quarantine) = self.gone.remove(&item.id).unwrap_or((HostState::Enabled, None));
                Host::new(state, quarantine, self.first_generation)
            });
            let mut links = std::mem::take(&mut host.links).into_vec();
            let storages = inventory.storages.iter().enumerate();
            let storages = storages.filter(|(_, s)| s.clusters.contains(&item.cluster) && !s.protocols.is_empty());
            let link = |(i, s): (usize, &Storage)| {
                let known = links.iter().position(|link| before.storages[link.storage as usize].id == s.id);
                Link::new(i as u32, &s.protocols, known.map(|n| links.swap_remove(n)))
            };
            host.links = storages.map(link).collect();
            if is_new && host.state == HostState::Enabled {
                self.schedule.start(i as u32, now + self.settings.interval * new / count);
                new += 1;
            }
            self.hosts.push(host);
        }
        for (left, item) in old.into_iter().zip(&before.hosts) {
            self.gone.extend(left.map(|left| (item.id, (left.state, left.quarantine))));
        }
        self.first_generation = self.first_generation.wrapping_add(GENERATIONS);
        true
    }

    /// Handles one event.
    pub fn on(&mut self, event: Event, now: Duration) -> Vec<Command> {
        let mut commands = Vec::new();
        match event {
            Event::Tick => {}
            Event::PingDone { host, generation, reply } => {
                if let Some(i) = self.current(host, generation) {
                    self.ping_done(i, reply, now, &mut commands);
                }
            }
            Event::HealthDone { host, generation, storage, result } => {
                if let Some(i) = self.current(host, generation) {
                    self.health_done(i, storage, result, &mut commands);
                }
            }
            Event::DeployDone { host, storage, protocol } => {
                if let Some(key) = self.key(host, storage, protocol) {
                    key.deploying = false;
                }
            }
            Event::SetState { host, state, draining } => {
                if let Some(i) = self.index.get(&host).copied() {
                    self.set_state(i, state, draining, now, &mut commands);
                }
            }
            Event::SetQuarantine { host, reason } => {
                if let Some(i) = self.index.get(&host).copied() {
                    self.hosts[i as usize].quarantine = reason.map(Into::into);
                    self.schedule.hurry(i);
                }
            }
            Event::Withdrawing { host, begins } => {
                if let Some(i) = self.index.get(&host).copied() {
                    let count = &mut self.hosts[i as usize].withdrawals;
                    *count = if begins { *count + 1 } else { count.saturating_sub(1) };
                }
            }
            Event::Booted { host } => {
                if let Some(i) = self.index.get(&host).copied() {
                    self.hosts[i as usize].forget_backoff();
                }
            }
            Event::PingNow { host } => {
                if let Some(i) = self.index.get(&host).copied() {
                    self.schedule.hurry(i);
                }
            }
        }
        let (hosts, inventory) = (&self.hosts, &self.inventory);
        self.schedule.due(now, |i| {
            let generation = hosts[i as usize].generation;
            commands.push(Command::Ping { host: inventory.hosts[i as usize].id, generation });
        });
        let in_flight = self.schedule.in_flight();
        invariant!("I8", in_flight <= self.settings.parallelism.max(1), "{in_flight} pings in flight");
        commands
    }

    /// A start needs a protocol at once: the redeploy, or `None` if one is in progress. The backoff stays.
    ///
    /// # Errors
    /// The host does not serve (I5), or does not have the protocol.
    pub fn redeploy_now(&mut self, host: HostId, storage: StorageId, protocol: Protocol) -> Result<Option<Command>> {
        let serves = self.index.get(&host).is_some_and(|i| self.hosts[*i as usize].serves());
        if !serves {
            return Err(self.out_of_service(host));
        }
        let key = self.key(host, storage, protocol).ok_or_else(|| {
            ErrorCode::new(Code::INVALID_ARGUMENT, format!("{protocol} is no protocol of this storage there"))
        })?;
        let begins = !std::mem::replace(&mut key.deploying, true);
        Ok(begins.then_some(Command::Deploy { host, storage, protocol, attempt: 1, skipped_pings: 0 }))
    }

    /// Whether a redeploy that began may continue: a missed ping does not end it.
    ///
    /// # Errors
    /// The host left service (I5).
    pub fn continue_redeploy(&self, host: HostId) -> Result<()> {
        let in_service = |i: &u32| {
            let host = &self.hosts[*i as usize];
            host.in_service() && host.status == HostStatus::Connected
        };
        self.index.get(&host).filter(|i| in_service(i)).map(drop).ok_or_else(|| self.out_of_service(host))
    }

    fn out_of_service(&self, host: HostId) -> ErrorCode {
        let name = self.inventory.host_name(host);
        let details = format!("{name} does not serve (see `ringfence explain {name}`): nothing is redeployed there");
        ErrorCode::new(Code::CHANGE_STATE, details)
    }

    /// When [`Event::Tick`] is needed next. `None` if nothing is scheduled.
    pub fn next_wakeup(&mut self) -> Option<Duration> {
        self.schedule.next()
    }

    fn current(&self, host: HostId, generation: u32) -> Option<u32> {
        self.index.get(&host).copied().filter(|i| self.hosts[*i as usize].generation == generation)
    }

    fn key(&mut self, host: HostId, storage: StorageId, protocol: Protocol) -> Option<&mut Key> {
        let i = *self.index.get(&host)?;
        let (inventory, links) = (&self.inventory, &mut self.hosts[i as usize].links);
        let link = links.iter_mut().find(|link| inventory.storages[link.storage as usize].id == storage)?;
        link.keys.iter_mut().find(|key| key.protocol == protocol)
    }

    fn ping_done(&mut self, i: u32, reply: PingHostReply, now: Duration, commands: &mut Vec<Command>) {
        let host = &mut self.hosts[i as usize];
        host.answers = reply.connected;
        if reply.connected {
            host.failures = 0;
            self.schedule.ended(i, now, None);
            if let Some(why) = host.quarantine.clone().filter(|_| !sabotage::on(Sabotage::HealTheFenced)) {
                self.set_status(i, HostStatus::Connecting, Some(format!("quarantined: {why}")), commands);
                return;
            }
            self.set_status(i, HostStatus::Connected, None, commands);
            self.check_health(i, commands);
            return;
        }
        host.failures = host.failures.saturating_add(1);
        if host.failures == 1 {
            let item = &self.inventory.hosts[i as usize];
            let event = HostSuspected { host_uuid: item.id, host: item.name.clone() };
            commands.push(Command::Emit(HostEvent::Suspected(event)));
        }
        let exhausted = host.failures >= self.settings.max_failure.max(1);
        self.schedule.ended(i, now, (!exhausted).then_some(self.settings.sleep_after_failure));
        if exhausted {
            let reason = reply.reason.unwrap_or_else(|| "ping failed without a reason".to_owned());
            self.set_status(i, HostStatus::Disconnected, Some(reason), commands);
        }
    }

    fn check_health(&mut self, i: u32, commands: &mut Vec<Command>) {
        let id = self.inventory.hosts[i as usize].id;
        let host = &mut self.hosts[i as usize];
        for link in host.links.iter_mut().filter(|link| !link.checking) {
            link.checking = true;
            let storage = self.inventory.storages[link.storage as usize].id;
            commands.push(Command::CheckHealth { host: id, generation: host.generation, storage });
        }
    }

    fn health_done(
        &mut self,
        i: u32,
        storage: StorageId,
        result: Result<CheckHostHealthReply>,
        commands: &mut Vec<Command>,
    ) {
        let (inventory, host) = (&self.inventory.hosts[i as usize], &mut self.hosts[i as usize]);
        let serves = host.serves();
        let storages = &self.inventory.storages;
        let Some(link) = host.links.iter_mut().find(|link| storages[link.storage as usize].id == storage) else {
            return;
        };
        let item = &storages[link.storage as usize];
        link.checking = false;
        let reports = match result {
            Ok(reply) => {
                link.check_error = reply.errors.into_iter().next().map(Box::new);
                reply.protocols
            }
            Err(error) => {
                link.check_error = Some(Box::new(error));
                return;
            }
        };
        for report in reports {
            let Some(key) = link.keys.iter_mut().find(|key| key.protocol == report.protocol) else { continue };
            let new = ProtocolStatus::from(report.health);
            let connected = new == ProtocolStatus::Connected;
            let reason =
                if connected { None } else { Some(report.reason.unwrap_or_else(|| format!("{:?}", report.health))) };
            key.reason = reason.as_deref().map(Into::into);
            let old = key.status.replace(new);
            if old != Some(new) {
                commands.push(Command::Emit(HostEvent::ProtocolStatus(ProtocolStatusChanged {
                    host_uuid: inventory.id,
                    host: inventory.name.clone(),
                    primary_storage_uuid: item.id,
                    storage: item.name.clone(),
                    protocol: key.protocol,
                    old_status: old,
                    new_status: new,
                    reason,
                })));
            }
            if connected {
                key.backoff.ok();
            } else if serves
                && !key.deploying
                && let Some(due) = key.backoff.not_ok()
            {
                key.deploying = true;
                commands.push(Command::Deploy {
                    host: inventory.id,
                    storage,
                    protocol: key.protocol,
                    attempt: due.attempt,
                    skipped_pings: due.skipped,
                });
            }
        }
        link.status_changed(inventory, item, commands);
    }

    fn set_state(&mut self, i: u32, state: HostState, draining: bool, now: Duration, commands: &mut Vec<Command>) {
        let (host, inventory) = (&mut self.hosts[i as usize], &self.inventory.hosts[i as usize]);
        let old_state = std::mem::replace(&mut host.state, state);
        if old_state == state && !draining {
            return;
        }
        commands.push(Command::Emit(HostEvent::HostState(HostStateChanged {
            host_uuid: inventory.id,
            host: inventory.name.clone(),
            old_state,
            new_state: state,
            draining,
        })));
        if old_state == state {
            return;
        }
        host.generation = host.generation.wrapping_add(1);
        host.failures = 0;
        host.answers = false;
        for link in &mut host.links {
            link.checking = false;
        }
        match state {
            HostState::Maintenance => self.schedule.stop(i),
            HostState::Enabled => {
                // An operator may have repaired the host: redeploys start over.
                host.forget_backoff();
                self.schedule.start(i, now);
                self.set_status(i, HostStatus::Connecting, Some("activated, not pinged yet".to_owned()), commands);
            }
        }
    }

    fn set_status(&mut self, i: u32, new_status: HostStatus, reason: Option<String>, commands: &mut Vec<Command>) {
        let host = &mut self.hosts[i as usize];
        let old_status = std::mem::replace(&mut host.status, new_status);
        host.reason.clone_from(&reason);
        if old_status != new_status {
            let inventory = self.host_inventory(i);
            let host_uuid = inventory.uuid;
            let event = HostStatusChanged { host_uuid, old_status, new_status, reason, inventory };
            commands.push(Command::Emit(HostEvent::HostStatus(event)));
        }
    }

    fn host_inventory(&self, i: u32) -> HostInventory {
        let (host, item) = (&self.hosts[i as usize], &self.inventory.hosts[i as usize]);
        HostInventory {
            uuid: item.id,
            name: item.name.clone(),
            cluster: self.inventory.cluster(item.cluster).map(|c| c.name.clone()).unwrap_or_default(),
            management_ip: item.management_ip.clone(),
            state: host.state,
            status: host.status,
            reason: host.reason.clone(),
        }
    }

    /// One host for readers.
    pub fn host(&self, id: HostId) -> Option<HostInventory> {
        self.index.get(&id).map(|i| self.host_inventory(*i))
    }

    /// The hosts of a cluster. Serving hosts get redeploys and starts.
    pub fn serving(&self, cluster: ClusterId) -> ServingHostsReply {
        let mut reply = ServingHostsReply::default();
        let all = self.hosts.iter().zip(&self.inventory.hosts);
        for (host, item) in all.filter(|(host, item)| item.cluster == cluster && host.state == HostState::Enabled) {
            reply.enabled += 1;
            if host.answers {
                reply.answering_host_uuids.push(item.id);
            }
            if host.serves() {
                reply.host_uuids.push(item.id);
            } else if host.failures > 0 && host.quarantine.is_none() {
                reply.doubtful_host_uuids.push(item.id);
            }
        }
        reply
    }

    /// All hosts and their storages, in the order of the inventory.
    pub fn hosts(&self) -> HostsReply {
        let mut reply = HostsReply::default();
        for (i, (host, item)) in self.hosts.iter().zip(&self.inventory.hosts).enumerate() {
            reply.hosts.push(self.host_inventory(i as u32));
            for link in &host.links {
                let storage = &self.inventory.storages[link.storage as usize];
                reply.storages.push(StorageHostRef {
                    host_uuid: item.id,
                    host: item.name.clone(),
                    primary_storage_uuid: storage.id,
                    storage: storage.name.clone(),
                    status: link.status,
                    reason: link.reason(),
                    check_error: link.check_error.as_deref().cloned(),
                });
                reply.refs.extend(link.keys.iter().map(|key| HostProtocolRef {
                    id: 0,
                    host_uuid: item.id,
                    host: item.name.clone(),
                    primary_storage_uuid: storage.id,
                    storage: storage.name.clone(),
                    protocol: key.protocol,
                    status: key.status,
                    reason: key.reason.as_deref().map(str::to_owned),
                    redeploys: key.backoff.failures(),
                    skip_pings: key.backoff.skip(),
                }));
            }
        }
        for (n, host_protocol) in reply.refs.iter_mut().enumerate() {
            host_protocol.id = n as u64 + 1;
        }
        reply
    }
}

impl Host {
    fn new(state: HostState, quarantine: Option<Box<str>>, generation: u32) -> Host {
        let status = HostStatus::Connecting;
        let (reason, failures, answers, withdrawals) = (None, 0, false, 0);
        Host { state, status, reason, failures, answers, quarantine, withdrawals, generation, links: Box::default() }
    }

    /// Whether the host may get redeploys and starts (I5).
    fn serves(&self) -> bool {
        self.in_service() && self.status == HostStatus::Connected && self.failures == 0
    }

    fn in_service(&self) -> bool {
        let fenced = self.quarantine.is_some() || self.withdrawals > 0;
        self.state == HostState::Enabled && (!fenced || sabotage::on(Sabotage::HealTheFenced))
    }

    fn forget_backoff(&mut self) {
        self.links.iter_mut().flat_map(|link| &mut link.keys).for_each(|key| key.backoff.ok());
    }
}

impl Link {
    /// A storage with these protocols; known ones keep their state.
    fn new(storage: u32, protocols: &[Protocol], before: Option<Link>) -> Link {
        let mut link =
            before.unwrap_or(Link { storage, status: None, check_error: None, checking: false, keys: Box::default() });
        let mut known = std::mem::take(&mut link.keys).into_vec();
        let key = |protocol: &Protocol| match known.iter().position(|key| key.protocol == *protocol) {
            Some(n) => known.swap_remove(n),
            None => {
                Key { protocol: *protocol, status: None, reason: None, backoff: Backoff::default(), deploying: false }
            }
        };
        Link { storage, keys: protocols.iter().map(key).collect(), ..link }
    }

    /// Derives the status of the storage from its protocols, and emits a change.
    fn status_changed(&mut self, host: &Item, storage: &Storage, commands: &mut Vec<Command>) {
        let Some(new) = aggregate(self.keys.iter().filter_map(|key| key.status)) else { return };
        let old = self.status.replace(new);
        if old != Some(new) {
            let event = StorageHostStatusChanged {
                host_uuid: host.id,
                host: host.name.clone(),
                primary_storage_uuid: storage.id,
                storage: storage.name.clone(),
                old_status: old,
                new_status: new,
                reason: self.reason(),
            };
            // Emitted before the redeploys that it causes.
            let at = commands.iter().position(|c| matches!(c, Command::Deploy { .. })).unwrap_or(commands.len());
            commands.insert(at, Command::Emit(HostEvent::StorageHostStatus(event)));
        }
    }

    /// Why the storage is not connected on this host: the reason of the first protocol that is not. None if it is.
    fn reason(&self) -> Option<String> {
        if self.status != Some(ProtocolStatus::Disconnected) {
            return None;
        }
        self.keys.iter().find_map(|key| key.reason.as_deref()).map(str::to_owned)
    }
}
