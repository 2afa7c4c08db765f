//! Starts all actors over one [`Ports`] value, and starts and stops actors when the inventory changes.
//!
//! Purpose: daemon, tests and simulator run the same code.

use std::{collections::HashSet, time::Duration};

use futures_util::future::{join, try_join_all};
use ringfence::{Actor, Address, Bus, Result};
use ringfence_messages::{
    Code, ErrorCode, HostId, StorageId, VmId,
    audit::ControllerStarted,
    ceph::ForgetStorageFenceMsg,
    ha::{HA, PLACEMENT, QueryHaMsg, ScanHostMsg},
    host::QueryHostsMsg,
    inventory::{ForgetHostMsg, InventoryChanged, RetireMsg},
    recovery::RECOVERY,
    storage::StorageKind,
    vm::{ListVmsCmd, QueryVmMsg},
};

use crate::{
    audit::{AuditActor, Recorder},
    diff::{ChangeKind, CurrentState, InventoryDiff, ItemDiff},
    fencers::{FENCER, SiblingFencer, ceph::CephActor},
    ha::HaActor,
    host::{AGENT_VERSION, HostActor},
    inventory::{Inventory, Settings, SharedInventory, Storage, Vm},
    leader::LeaderStatus,
    placement::PlacementActor,
    ports::Ports,
    recovery::RecoveryActor,
    replay,
    storage::StorageActor,
    vm::{SEARCH_TIMEOUT, VmActor},
};

/// Checks whether an actor has stopped, and the wait between two. Together far longer than a stop takes.
const RETIRE_CHECKS: u32 = 5000;
const RETIRE_EVERY: Duration = Duration::from_millis(1);

/// All running actors.
#[derive(Clone)]
pub struct Assembly {
    /// The bus of the actors.
    pub bus: Bus,
    /// The current inventory.
    pub inventory: SharedInventory,
    /// The ports of the actors.
    pub ports: Ports,
    /// The epoch of this controller: above every earlier one on the same journal.
    pub epoch: u64,
    /// Whether this controller may act.
    pub leader_status: LeaderStatus,
    settings: Settings,
    recorder: Recorder,
}

impl Assembly {
    /// Raises the epoch durably, then starts every actor on this thread.
    ///
    /// # Errors
    /// `SYS.1016` if the journal cannot be read or written: a controller without one must not act.
    /// `SYS.1005` if an actor of the same address lives on the bus.
    ///
    /// # Panics
    /// Outside an actix system.
    pub async fn start(bus: Bus, inventory: Inventory, settings: Settings, ports: Ports) -> Result<Assembly> {
        let inventory = SharedInventory::new(inventory);
        let items = inventory.now();
        let journal = ports.journal.clone();
        let leader_status = LeaderStatus::open(inventory.clone(), journal.clone()).await?;
        let status = leader_status.clone();
        bus.spawn(uuid::Uuid::nil(), move || AuditActor::new(journal.clone(), status.clone()))?;
        let recorder = Recorder::new(bus.clone());
        // Not below the journal's epoch: the state directory may have been restored without the epoch file.
        let epoch = ports.leadership.acquire(leader_status.above()).await?;
        leader_status.took_leadership(epoch);
        recorder.intent(&ControllerStarted { epoch, version: AGENT_VERSION.to_owned() }).await?;

        let assembly = Assembly { bus, inventory, ports, epoch, leader_status, settings, recorder };
        items.hosts.iter().try_for_each(|host| assembly.host(host.id))?;
        items.storages.iter().try_for_each(|storage| assembly.storage(storage))?;
        let Assembly { bus, inventory, ports, recorder, .. } = &assembly;
        if settings.sibling_fencer {
            let (shared, own_bus, cross_cluster) = (inventory.clone(), bus.clone(), settings.cross_cluster_siblings);
            bus.spawn(FENCER.id, move || SiblingFencer::new(shared.clone(), own_bus.clone(), cross_cluster))?;
        }
        // Before the VMs: it must receive their first changes.
        let (shared, own_bus, audit, journal) =
            (inventory.clone(), bus.clone(), recorder.clone(), ports.journal.clone());
        bus.spawn(HA.id, move || {
            let (shared, own_bus, audit) = (shared.clone(), own_bus.clone(), audit.clone());
            HaActor::new(settings.ha, settings.ping.interval, shared, journal.clone(), audit, own_bus)
        })?;
        let (shared, own_bus) = (inventory.clone(), bus.clone());
        bus.spawn(PLACEMENT.id, move || PlacementActor::new(shared.clone(), own_bus.clone()))?;
        items.vms.iter().try_for_each(|vm| assembly.vm(vm))?;
        // Last: every actor that it queries exists.
        let (shared, journal, recorder) = (inventory.clone(), ports.journal.clone(), recorder.clone());
        bus.spawn(uuid::Uuid::nil(), move || {
            RecoveryActor::new(settings.ping, shared.clone(), journal.clone(), recorder.clone())
        })?;
        Ok(assembly)
    }

    fn host(&self, id: HostId) -> Result<()> {
        let (agents, leadership, epoch) = (self.ports.agents.clone(), self.ports.leadership.clone(), self.epoch);
        let leader_status = self.leader_status.clone();
        let host = move || HostActor::new(id, agents.clone(), leadership.clone(), leader_status.clone(), epoch);
        self.bus.spawn(id, host).map(|_| ())
    }

    fn storage(&self, storage: &Storage) -> Result<()> {
        let (id, inventory, mds) = (storage.id, self.inventory.clone(), self.ports.mds.clone());
        let (bus, hugepages) = (self.bus.clone(), self.settings.hugepages);
        if storage.kind == StorageKind::Ceph {
            self.ceph(id)?;
        }
        let storage = move || StorageActor::new(id, inventory.clone(), hugepages, mds.clone(), bus.clone());
        self.bus.spawn(id, storage).map(|_| ())
    }

    fn ceph(&self, id: StorageId) -> Result<()> {
        let (inventory, recorder) = (self.inventory.clone(), self.recorder.clone());
        let (ceph, journal) = (self.ports.ceph.clone(), self.ports.journal.clone());
        let actor = move || CephActor::new(id, inventory.clone(), ceph.clone(), journal.clone(), recorder.clone());
        self.bus.spawn(id, actor).map(|_| ())
    }

    fn vm(&self, vm: &Vm) -> Result<()> {
        let (vm, inventory, ports, bus) = (vm.clone(), self.inventory.clone(), self.ports.clone(), self.bus.clone());
        let (id, epoch, policy) = (vm.id, self.epoch, self.settings.fence);
        let actor = move || VmActor::new(vm.clone(), epoch, policy, inventory.clone(), ports.clone(), bus.clone());
        self.bus.spawn(id, actor).map(|_| ())
    }

    /// Compares this inventory with the current one.
    ///
    /// # Errors
    /// `SYS.1005` if the change must wait: all reasons, each with its remedy.
    pub async fn plan(&self, new: &Inventory) -> Result<InventoryDiff> {
        let inventory = self.inventory.now();
        let diff = InventoryDiff::between(&inventory, new);
        let queries = inventory.vms.iter().map(|vm| self.bus.ask(vm_address(vm.id), QueryVmMsg {}));
        let vms = try_join_all(queries).await?;
        let hosts = self.bus.ask(self.recovery(), QueryHostsMsg {}).await?.hosts;
        let mut quarantined: HashSet<HostId> = replay::quarantined(&*self.ports.journal).await?.into_keys().collect();
        let mut attested = HashSet::new();
        for host in removed(&diff.hosts) {
            if replay::attested_off(&*self.ports.journal, &host.name).await?.is_some() {
                // A destroyed host may be removed: an operator attested that it is off (K13).
                quarantined.remove(&host.id);
                attested.insert(host.id);
            }
        }
        let mut refusals = diff.refusals(&CurrentState { hosts: &hosts, quarantined: &quarantined, vms: &vms });
        if refusals.is_empty() {
            for host in removed(&diff.hosts) {
                refusals.extend(match attested.contains(&host.id) {
                    true => self.contradicts(host).await,
                    false => self.left_on(host).await,
                });
            }
        }
        if refusals.is_empty() { Ok(diff) } else { Err(ErrorCode::new(Code::CHANGE_STATE, refusals.join("; "))) }
    }

    /// Why a removed host may still run a VM of the inventory; `None` if its agent lists none.
    async fn left_on(&self, host: &ItemDiff<HostId>) -> Option<String> {
        let name = &host.name;
        let to = Address::new(HostActor::KIND, host.id);
        let inventory = self.inventory.now();
        match self.bus.ask_within(to, ListVmsCmd::default(), SEARCH_TIMEOUT).await {
            Err(error) => Some(format!(
                "the agent of host {name} does not list what runs there ({error}); start the agent, or attest that the \
                 host is off with `ringfence host confirm-fenced {name}` before its maintenance"
            )),
            Ok(listed) => {
                let ours = listed.vms.iter().filter_map(|running| inventory.vm(running.vm_uuid).ok());
                let ours: Vec<&str> = ours.map(|vm| vm.name.as_str()).collect();
                (!ours.is_empty()).then(|| format!("host {name} still runs {}; stop them first", ours.join(", ")))
            }
        }
    }

    /// Why the attestation that a removed host is off is wrong: its agent answers, or a sibling host reaches it (K9).
    async fn contradicts(&self, host: &ItemDiff<HostId>) -> Option<String> {
        let name = &host.name;
        let agent = Address::new(HostActor::KIND, host.id);
        let (scan, listed) = join(
            self.bus.ask_within(FENCER, ScanHostMsg { host_uuid: host.id }, SEARCH_TIMEOUT),
            self.bus.ask_within(agent, ListVmsCmd::default(), SEARCH_TIMEOUT),
        )
        .await;
        let seen_by = scan.map(|scan| scan.seen_by).unwrap_or_default();
        let by = match (listed.is_ok(), seen_by.first()) {
            (true, _) => "its agent answers".to_owned(),
            (_, Some(sibling)) => format!("{} reaches it", self.inventory.now().host_name(*sibling)),
            (false, None) => return None,
        };
        Some(format!(
            "host {name} was attested to be off, but {by}: switch it off, or stop its VMs and let its agent answer"
        ))
    }

    /// Applies a new inventory, by the diff that [`plan`](Assembly::plan) returned. `ports` already reach the new
    /// items. The caller makes one change at a time, directly after its plan.
    ///
    /// # Errors
    /// `SYS.1005` if an actor rejects its stop, `SYS.1016` if the change cannot be recorded. The old inventory is
    /// then in force.
    pub async fn change(&self, diff: &InventoryDiff, new: Inventory, by: &str) -> Result<()> {
        if diff.is_empty() {
            return Ok(());
        }
        let old = self.inventory.now();
        if let Err(error) = self.leave(diff, by).await {
            // Actors that have already stopped start again and replay the journal.
            let mut vms = old.vms.iter().filter(|vm| !self.bus.is_alive(vm_address(vm.id)));
            vms.try_for_each(|vm| self.vm(vm))?;
            let ceph = old.storages.iter().filter(|storage| storage.kind == StorageKind::Ceph);
            let mut ceph = ceph.filter(|storage| !self.bus.is_alive(Address::new(CephActor::KIND, storage.id)));
            ceph.try_for_each(|storage| self.ceph(storage.id))?;
            return Err(error);
        }
        self.inventory.set(new);
        let inventory = self.inventory.now();
        for host in added(&diff.hosts) {
            self.host(host.id)?;
        }
        for storage in added(&diff.storages) {
            self.storage(inventory.storage(storage.id)?)?;
        }
        for vm in added(&diff.vms) {
            self.vm(inventory.vm(vm.id)?)?;
        }
        // Both actors take the new inventory with a query.
        self.bus.ask(self.recovery(), QueryHostsMsg {}).await?;
        self.bus.ask(HA, QueryHaMsg {}).await?;
        for host in removed(&diff.hosts) {
            self.retire(Address::new(HostActor::KIND, host.id)).await?;
        }
        for storage in removed(&diff.storages) {
            self.retire(Address::new(StorageActor::KIND, storage.id)).await?;
        }
        Ok(())
    }

    /// Stops the actors that may reject, then records the change.
    async fn leave(&self, diff: &InventoryDiff, by: &str) -> Result<()> {
        for vm in removed(&diff.vms) {
            self.retire(vm_address(vm.id)).await?;
        }
        let inventory = self.inventory.now();
        for host in removed(&diff.hosts) {
            for storage in inventory.storages.iter().filter(|storage| storage.kind == StorageKind::Ceph) {
                let reason = format!("{} left the inventory, removed by {by}: its blocklist entry expires", host.name);
                let forget = ForgetStorageFenceMsg { host_uuid: host.id, reason };
                self.bus.ask(Address::new(CephActor::KIND, storage.id), forget).await?;
            }
        }
        for storage in removed(&diff.storages) {
            self.retire(Address::new(CephActor::KIND, storage.id)).await?;
        }
        let hosts: HashSet<HostId> = removed(&diff.hosts).map(|host| host.id).collect();
        if !hosts.is_empty() {
            let vms = &self.inventory.now().vms;
            let stay = vms.iter().map(|vm| vm_address(vm.id)).filter(|vm| self.bus.is_alive(*vm));
            try_join_all(stay.map(|vm| self.forget(vm, &hosts))).await?;
        }
        self.recorder.intent(&InventoryChanged { by: by.to_owned(), changes: diff.lines() }).await.map(|_| ())
    }

    /// Removes these hosts from the state of a VM that ran last on one of them.
    async fn forget(&self, vm: Address, hosts: &HashSet<HostId>) -> Result<()> {
        let last = self.bus.ask(vm, QueryVmMsg {}).await?.last_host_uuid;
        if let Some(host_uuid) = last.filter(|last| hosts.contains(last)) {
            self.bus.ask(vm, ForgetHostMsg { host_uuid }).await?;
        }
        Ok(())
    }

    /// Stops an actor and waits until its address is free.
    async fn retire(&self, address: Address) -> Result<()> {
        if !self.bus.is_alive(address) {
            return Ok(());
        }
        self.bus.ask(address, RetireMsg {}).await?;
        for _ in 0..RETIRE_CHECKS {
            if !self.bus.is_alive(address) {
                return Ok(());
            }
            tokio::time::sleep(RETIRE_EVERY).await;
        }
        Err(ErrorCode::new(Code::TIMEOUT, format!("actor {address} did not stop")))
    }

    /// The address of the recovery supervisor.
    pub fn recovery(&self) -> Address {
        RECOVERY
    }
}

fn added<Id>(all: &[ItemDiff<Id>]) -> impl Iterator<Item = &ItemDiff<Id>> {
    all.iter().filter(|item| item.kind == ChangeKind::Added)
}

fn removed<Id>(all: &[ItemDiff<Id>]) -> impl Iterator<Item = &ItemDiff<Id>> {
    all.iter().filter(|item| item.kind == ChangeKind::Removed)
}

fn vm_address(id: VmId) -> Address {
    Address::new(VmActor::KIND, id)
}
