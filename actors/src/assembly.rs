//! Starts all actors over one [`Ports`] value, and lets them come and go with the inventory: daemon, tests and simulator run
//! the same code.

use std::{collections::HashSet, time::Duration};

use futures_util::future::try_join_all;
use ringfence::{Actor, Address, Bus, Result};
use ringfence_messages::{
    Code, ErrorCode, HostId, StorageId, VmId,
    audit::ControllerStarted,
    ceph::ForgetStorageFenceMsg,
    ha::QueryHaMsg,
    host::QueryHostsMsg,
    storage::StorageKind,
    vm::{ListVmsCmd, QueryVmMsg},
};

use crate::{
    audit::{AuditActor, Recorder},
    change::{Change, Difference, ForgetHostMsg, How, InventoryChanged, Known, RetireMsg},
    fence::{FENCER, SiblingFencer, ceph::CephActor},
    ha::HaActor,
    host::{AGENT_VERSION, HostActor},
    inventory::{Catalog, Inventory, Settings, Storage, Vm},
    memory,
    office::Standing,
    ports::Ports,
    recovery::RecoveryActor,
    storage::StorageActor,
    vm::{SEARCH_TIMEOUT, VmActor},
};

/// Looks whether an actor that was told to end did, and the time between them: together far longer than it takes.
const RETIRE_LOOKS: u32 = 5000;
const RETIRE_EVERY: Duration = Duration::from_millis(1);

/// Everything that runs.
#[derive(Clone)]
pub struct Assembly {
    /// The bus it runs on.
    pub bus: Bus,
    /// What it looks after.
    pub catalog: Catalog,
    /// The ports it runs over.
    pub ports: Ports,
    /// This start's number: above every earlier start's on the same journal.
    pub epoch: u64,
    /// Whether this controller may act.
    pub standing: Standing,
    settings: Settings,
    recorder: Recorder,
}

impl Assembly {
    /// Raises the epoch durably, then starts every actor on this thread.
    ///
    /// # Errors
    /// `SYS.1016` if the journal cannot be read or written: a controller without one may do nothing.
    /// `SYS.1005` if an actor of the same address lives on the bus.
    ///
    /// # Panics
    /// Outside an actix system.
    pub async fn start(bus: Bus, inventory: Inventory, settings: Settings, ports: Ports) -> Result<Assembly> {
        let catalog = Catalog::new(inventory);
        let directory = catalog.now();
        let journal = ports.journal.clone();
        let standing = Standing::open(catalog.clone(), journal.clone()).await?;
        let stands = standing.clone();
        bus.spawn(uuid::Uuid::nil(), move || AuditActor::new(journal.clone(), stands.clone()))?;
        let recorder = Recorder::new(bus.clone());
        // Not below what the journal has seen: the state directory may have been restored without the epoch.
        let epoch = ports.leadership.acquire(standing.above()).await?;
        standing.took_office(epoch);
        recorder.intent(&ControllerStarted { epoch, version: AGENT_VERSION.to_owned() }).await?;

        let assembly = Assembly { bus, catalog, ports, epoch, standing, settings, recorder };
        directory.hosts.iter().try_for_each(|host| assembly.host(host.id))?;
        directory.storages.iter().try_for_each(|storage| assembly.storage(storage))?;
        let Assembly { bus, catalog, ports, recorder, .. } = &assembly;
        if settings.sibling_fencer {
            let (of, on, cross_cluster) = (catalog.clone(), bus.clone(), settings.cross_cluster_siblings);
            bus.spawn(FENCER.id, move || SiblingFencer::new(of.clone(), on.clone(), cross_cluster))?;
        }
        // Before the VMs, whose first changes it must hear.
        let (of, on, told, journal) = (catalog.clone(), bus.clone(), recorder.clone(), ports.journal.clone());
        bus.spawn(uuid::Uuid::nil(), move || {
            let (of, on, told) = (of.clone(), on.clone(), told.clone());
            HaActor::new(settings.ha, settings.ping.interval, of, journal.clone(), told, on)
        })?;
        directory.vms.iter().try_for_each(|vm| assembly.vm(vm))?;
        // Last: everyone it will speak to is there.
        let (of, journal, recorder) = (catalog.clone(), ports.journal.clone(), recorder.clone());
        bus.spawn(uuid::Uuid::nil(), move || {
            RecoveryActor::new(settings.ping, of.clone(), journal.clone(), recorder.clone())
        })?;
        Ok(assembly)
    }

    fn host(&self, id: HostId) -> Result<()> {
        let (agents, leadership, epoch) = (self.ports.agents.clone(), self.ports.leadership.clone(), self.epoch);
        let standing = self.standing.clone();
        let host = move || HostActor::new(id, agents.clone(), leadership.clone(), standing.clone(), epoch);
        self.bus.spawn(id, host).map(|_| ())
    }

    fn storage(&self, of: &Storage) -> Result<()> {
        let (id, catalog, mds, on) = (of.id, self.catalog.clone(), self.ports.mds.clone(), self.bus.clone());
        let hugepages = self.settings.hugepages;
        if of.kind == StorageKind::Ceph {
            self.ceph(id)?;
        }
        let storage = move || StorageActor::new(id, catalog.clone(), hugepages, mds.clone(), on.clone());
        self.bus.spawn(id, storage).map(|_| ())
    }

    fn ceph(&self, id: StorageId) -> Result<()> {
        let (catalog, recorder) = (self.catalog.clone(), self.recorder.clone());
        let (ceph, journal) = (self.ports.ceph.clone(), self.ports.journal.clone());
        let actor = move || CephActor::new(id, catalog.clone(), ceph.clone(), journal.clone(), recorder.clone());
        self.bus.spawn(id, actor).map(|_| ())
    }

    fn vm(&self, of: &Vm) -> Result<()> {
        let (of, catalog, ports, on) = (of.clone(), self.catalog.clone(), self.ports.clone(), self.bus.clone());
        let (id, epoch, policy) = (of.id, self.epoch, self.settings.fence);
        let vm = move || VmActor::new(of.clone(), epoch, policy, catalog.clone(), ports.clone(), on.clone());
        self.bus.spawn(id, vm).map(|_| ())
    }

    /// What would have to be done to look after this inventory instead.
    ///
    /// # Errors
    /// `SYS.1005` why that may not be done now, all reasons and what would let it.
    pub async fn plan(&self, new: &Inventory) -> Result<Change> {
        let directory = self.catalog.now();
        let change = Change::between(&directory, new);
        let asked = directory.vms.iter().map(|vm| self.bus.ask(vm_address(vm.id), QueryVmMsg {}));
        let vms = try_join_all(asked).await?;
        let hosts = self.bus.ask(self.recovery(), QueryHostsMsg {}).await?.hosts;
        let mut quarantined: HashSet<HostId> = memory::quarantined(&*self.ports.journal).await?.into_keys().collect();
        let mut asked = Vec::new();
        for host in removed(&change.hosts) {
            match memory::attested_off(&*self.ports.journal, &host.name).await? {
                // One that burnt down may go: a human answers for it (K13).
                Some(_) => drop(quarantined.remove(&host.id)),
                None => asked.push(host),
            }
        }
        let mut refusals = change.refusals(&Known { hosts: &hosts, quarantined: &quarantined, vms: &vms });
        if refusals.is_empty() {
            for host in asked {
                refusals.extend(self.left_on(host).await);
            }
        }
        match refusals.is_empty() {
            true => Ok(change),
            false => Err(ErrorCode::new(Code::CHANGE_STATE, refusals.join("; "))),
        }
    }

    /// Why it is not known that nothing of ours is left on a host that goes.
    async fn left_on(&self, host: &Difference<HostId>) -> Option<String> {
        let name = &host.name;
        let to = Address::new(HostActor::KIND, host.id);
        let directory = self.catalog.now();
        match self.bus.ask_within(to, ListVmsCmd::default(), SEARCH_TIMEOUT).await {
            Err(error) => Some(format!(
                "host {name} cannot be asked what runs on it ({error}): bring its agent up, or attest that it is off with \
                 `ringfence host confirm-fenced {name}` before it is maintained"
            )),
            Ok(listed) => {
                let ours = listed.vms.iter().filter_map(|running| directory.vm(running.vm_uuid).ok());
                let ours: Vec<&str> = ours.map(|vm| vm.name.as_str()).collect();
                (!ours.is_empty()).then(|| format!("host {name} still runs {}: stop it first", ours.join(", ")))
            }
        }
    }

    /// Looks after another inventory from now on, by what [`plan`](Assembly::plan) found has to be done; `ports` already reach
    /// what is new in it. One change at a time, planned just before: the caller's duty.
    ///
    /// # Errors
    /// `SYS.1005` if what leaves refuses, `SYS.1016` if it cannot be recorded. Everything is then as it was.
    pub async fn change(&self, change: &Change, new: Inventory, by: &str) -> Result<()> {
        if change.is_empty() {
            return Ok(());
        }
        let old = self.catalog.now();
        if let Err(error) = self.leave(change, by).await {
            // Those that ended already are there again: they remember.
            let mut vms = old.vms.iter().filter(|vm| !self.bus.is_alive(vm_address(vm.id)));
            vms.try_for_each(|vm| self.vm(vm))?;
            let ceph = old.storages.iter().filter(|of| of.kind == StorageKind::Ceph);
            let mut ceph = ceph.filter(|of| !self.bus.is_alive(Address::new(CephActor::KIND, of.id)));
            ceph.try_for_each(|of| self.ceph(of.id))?;
            return Err(error);
        }
        self.catalog.set(new);
        let directory = self.catalog.now();
        for host in added(&change.hosts) {
            self.host(host.id)?;
        }
        for storage in added(&change.storages) {
            self.storage(directory.storage(storage.id)?)?;
        }
        for vm in added(&change.vms) {
            self.vm(directory.vm(vm.id)?)?;
        }
        // Both take charge when they are asked.
        self.bus.ask(self.recovery(), QueryHostsMsg {}).await?;
        self.bus.ask(Address::singleton(HaActor::KIND), QueryHaMsg {}).await?;
        for host in removed(&change.hosts) {
            self.retire(Address::new(HostActor::KIND, host.id)).await?;
        }
        for storage in removed(&change.storages) {
            self.retire(Address::new(StorageActor::KIND, storage.id)).await?;
        }
        Ok(())
    }

    /// Has those that may refuse end first, and records the change as the last word.
    async fn leave(&self, change: &Change, by: &str) -> Result<()> {
        for vm in removed(&change.vms) {
            self.retire(vm_address(vm.id)).await?;
        }
        let directory = self.catalog.now();
        for host in removed(&change.hosts) {
            for storage in directory.storages.iter().filter(|of| of.kind == StorageKind::Ceph) {
                let reason = format!("{} leaves the inventory, {by} removes it: its entry expires", host.name);
                let forget = ForgetStorageFenceMsg { host_uuid: host.id, reason };
                self.bus.ask(Address::new(CephActor::KIND, storage.id), forget).await?;
            }
        }
        for storage in removed(&change.storages) {
            self.retire(Address::new(CephActor::KIND, storage.id)).await?;
        }
        let hosts: HashSet<HostId> = removed(&change.hosts).map(|host| host.id).collect();
        if !hosts.is_empty() {
            let vms = &self.catalog.now().vms;
            let stay = vms.iter().map(|vm| vm_address(vm.id)).filter(|vm| self.bus.is_alive(*vm));
            try_join_all(stay.map(|vm| self.forget(vm, &hosts))).await?;
        }
        self.recorder.intent(&InventoryChanged { by: by.to_owned(), changes: change.lines() }).await.map(|_| ())
    }

    /// Has a VM that was last on one of these hosts forget it.
    async fn forget(&self, vm: Address, hosts: &HashSet<HostId>) -> Result<()> {
        let last = self.bus.ask(vm, QueryVmMsg {}).await?.last_host_uuid;
        if let Some(host_uuid) = last.filter(|last| hosts.contains(last)) {
            self.bus.ask(vm, ForgetHostMsg { host_uuid }).await?;
        }
        Ok(())
    }

    /// Ends an actor and waits until its address is free.
    async fn retire(&self, of: Address) -> Result<()> {
        if !self.bus.is_alive(of) {
            return Ok(());
        }
        self.bus.ask(of, RetireMsg {}).await?;
        for _ in 0..RETIRE_LOOKS {
            if !self.bus.is_alive(of) {
                return Ok(());
            }
            tokio::time::sleep(RETIRE_EVERY).await;
        }
        Err(ErrorCode::new(Code::TIMEOUT, format!("{of} does not end")))
    }

    /// The address of the supervisor of recovery.
    pub fn recovery(&self) -> Address {
        Address::singleton(RecoveryActor::KIND)
    }
}

fn added<Id>(all: &[Difference<Id>]) -> impl Iterator<Item = &Difference<Id>> {
    all.iter().filter(|of| of.how == How::Added)
}

fn removed<Id>(all: &[Difference<Id>]) -> impl Iterator<Item = &Difference<Id>> {
    all.iter().filter(|of| of.how == How::Removed)
}

fn vm_address(id: VmId) -> Address {
    Address::new(VmActor::KIND, id)
}
