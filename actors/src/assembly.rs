//! Starts all actors over one [`Ports`] value: daemon, tests and simulator run the same code.

use std::sync::Arc;

use ringfence::{Actor, Address, Bus, Event, Result};
use ringfence_messages::{audit::ControllerStarted, storage::StorageKind};

use crate::{
    audit::{AuditActor, Recorder},
    fence::{FENCER, SiblingFencer, ceph::CephActor},
    ha::HaActor,
    host::{AGENT_VERSION, HostActor},
    inventory::{Directory, Inventory, Settings},
    ports::Ports,
    recovery::RecoveryActor,
    storage::StorageActor,
    vm::VmActor,
};

/// Everything that runs.
#[derive(Clone)]
pub struct Assembly {
    /// The bus it runs on.
    pub bus: Bus,
    /// What it looks after.
    pub directory: Arc<Directory>,
    /// The ports it runs over.
    pub ports: Ports,
    /// This start's number: above every earlier start's on the same journal.
    pub epoch: u64,
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
        let directory = Arc::new(Directory::new(inventory));
        let journal = ports.journal.clone();
        bus.spawn(uuid::Uuid::nil(), move || AuditActor::new(journal.clone()))?;
        let recorder = Recorder::new(bus.clone());
        // Not below what the journal has seen: the state directory may have been restored without the epoch.
        let epoch = ports.leadership.acquire(last_epoch(&ports).await?).await?;
        recorder.intent(&ControllerStarted { epoch, version: AGENT_VERSION.to_owned() }).await?;

        for host in &directory.hosts {
            let (id, agents, leadership) = (host.id, ports.agents.clone(), ports.leadership.clone());
            bus.spawn(id, move || HostActor::new(id, agents.clone(), leadership.clone(), epoch))?;
        }
        for storage in &directory.storages {
            let (of, directory, mds, on) = (storage.clone(), directory.clone(), ports.mds.clone(), bus.clone());
            let hugepages = settings.hugepages;
            if of.kind == StorageKind::Ceph {
                let (of, directory, recorder) = (of.clone(), directory.clone(), recorder.clone());
                let (ceph, journal) = (ports.ceph.clone(), ports.journal.clone());
                bus.spawn(storage.id, move || {
                    CephActor::new(of.clone(), directory.clone(), ceph.clone(), journal.clone(), recorder.clone())
                })?;
            }
            bus.spawn(storage.id, move || {
                StorageActor::new(of.clone(), directory.clone(), hugepages, mds.clone(), on.clone())
            })?;
        }
        if settings.sibling_fencer {
            let (of, on, cross_cluster) = (directory.clone(), bus.clone(), settings.cross_cluster_siblings);
            bus.spawn(FENCER.id, move || SiblingFencer::new(of.clone(), on.clone(), cross_cluster))?;
        }
        // Before the VMs, whose first changes it must hear.
        let (of, on, told, journal) = (directory.clone(), bus.clone(), recorder.clone(), ports.journal.clone());
        bus.spawn(uuid::Uuid::nil(), move || {
            let (of, on, told) = (of.clone(), on.clone(), told.clone());
            HaActor::new(settings.ha, settings.ping.interval, of, journal.clone(), told, on)
        })?;
        for vm in &directory.vms {
            let (of, directory, ports, on) = (vm.clone(), directory.clone(), ports.clone(), bus.clone());
            bus.spawn(vm.id, move || {
                VmActor::new(of.clone(), epoch, settings.fence, directory.clone(), ports.clone(), on.clone())
            })?;
        }
        // Last: everyone it will speak to is there.
        let (of, journal) = (directory.clone(), ports.journal.clone());
        bus.spawn(uuid::Uuid::nil(), move || {
            RecoveryActor::new(settings.ping, of.clone(), journal.clone(), recorder.clone())
        })?;
        Ok(Assembly { bus, directory, ports, epoch })
    }

    /// The address of the supervisor of recovery.
    pub fn recovery(&self) -> Address {
        Address::singleton(RecoveryActor::KIND)
    }
}

async fn last_epoch(ports: &Ports) -> Result<u64> {
    let Some(record) = ports.journal.latest(ControllerStarted::TOPIC).await?.pop() else { return Ok(0) };
    Ok(record.event::<ControllerStarted>()?.epoch)
}
