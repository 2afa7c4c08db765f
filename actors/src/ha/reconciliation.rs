//! Reconciliation: how a quarantined host returns to service.
//!
//! Purpose: kill leftover VMs, remove the storage fences, end the quarantine.
//! Invariants: a storage fence is removed only after many checks found no leftover QEMU: a survivor would write again
//! at once. Every step may be repeated: an interrupted reconciliation starts from the beginning. A VM that should run
//! here is left alone, unless a storage rejected this host since: its disk is lost, and its client would never be a
//! watcher again.

use std::{collections::BTreeSet, time::Duration};

use ringfence::{Actor, Address, Bus};
use ringfence_messages::{
    Code, ErrorCode, HostId, Result, StorageId, VmId,
    ceph::{LiftStorageFenceMsg, QueryStorageFencesMsg},
    ha::SetQuarantineMsg,
    recovery::RECOVERY,
    storage::StorageKind,
    vm::{ListVmsCmd, QueryVmMsg, StopVmCmd},
};

use crate::{
    fencers::ceph::CephActor,
    host::HostActor,
    inventory::SharedInventory,
    sabotage::{self, Sabotage},
    vm::{SEARCH_TIMEOUT, VM_TIMEOUT, VmActor},
};

/// Checks for leftover VMs that restart. With [`WATCH_EVERY`]: two seconds. Too few: a restarting unit is missed. Too
/// many: a returned host serves later.
pub(super) const WATCH_LOOKS: u32 = 20;

/// Between two of those checks.
pub(super) const WATCH_EVERY: Duration = Duration::from_millis(100);

/// Context of a reconciliation.
#[derive(Clone)]
pub(super) struct Reconciler {
    pub(super) inventory: SharedInventory,
    pub(super) bus: Bus,
}

impl Reconciler {
    /// Reconciles a host and ends its quarantine.
    ///
    /// # Errors
    /// Why the host stays in quarantine.
    pub(super) async fn reconcile(&self, host: HostId) -> Result<()> {
        let refusing = self.refusing(host).await?;
        let skipped = sabotage::on(Sabotage::LiftBeforeClean);
        let left = if skipped { Vec::new() } else { self.left(host, &refusing).await? };
        let to = Address::new(HostActor::KIND, host);
        for (vm, incarnation) in &left {
            let stop = StopVmCmd { vm_uuid: *vm, epoch: 0, incarnation: *incarnation };
            self.bus.ask_within(to, stop, VM_TIMEOUT).await?;
        }
        // A QEMU that its storage rejects ends at once, so a restarting unit shows only in repeated checks. After the
        // fence is removed the QEMU would write.
        for _ in 0..WATCH_LOOKS {
            tokio::time::sleep(WATCH_EVERY).await;
            if let Some((vm, _)) =
                self.left(host, &refusing).await?.first().filter(|_| !sabotage::on(Sabotage::LiftBeforeClean))
            {
                let details = format!("VM {vm} runs again after it was killed: something on the host restarts it");
                return Err(ErrorCode::new(Code::OPERATION, details));
            }
        }
        for storage in refusing.into_iter().filter(|_| !sabotage::on(Sabotage::NeverLift)) {
            self.bus.ask(Address::new(CephActor::KIND, storage), LiftStorageFenceMsg { host_uuid: host }).await?;
        }
        let reason = match left.len() {
            0 => "its agent answers and no VM was left on it".to_owned(),
            n => format!("its agent answers; {n} leftover QEMUs were killed"),
        };
        let set = SetQuarantineMsg { host_uuid: host, quarantined: false, reason };
        self.bus.ask(RECOVERY, set).await.map(|_| ())
    }

    /// The storages that reject this host, or may.
    async fn refusing(&self, host: HostId) -> Result<BTreeSet<StorageId>> {
        let mut refusing = BTreeSet::new();
        let inventory = self.inventory.now();
        for storage in inventory.storages.iter().filter(|storage| storage.kind == StorageKind::Ceph) {
            let fences = self.bus.ask(Address::new(CephActor::KIND, storage.id), QueryStorageFencesMsg {}).await?;
            if fences.host_uuids.contains(&host) {
                refusing.insert(storage.id);
            }
        }
        Ok(refusing)
    }

    /// The leftover VMs of a host, and the incarnation up to which each must not run there.
    async fn left(&self, host: HostId, refusing: &BTreeSet<StorageId>) -> Result<Vec<(VmId, u64)>> {
        let listed =
            self.bus.ask_within(Address::new(HostActor::KIND, host), ListVmsCmd::default(), SEARCH_TIMEOUT).await?;
        let inventory = self.inventory.now();
        let mut left = BTreeSet::new();
        if !listed.sight.is_full() && !sabotage::on(Sabotage::BlindIsFull) {
            let details = format!("leftover VMs are unknown: its agent does not see every process: {}", listed.sight);
            return Err(ErrorCode::new(Code::OPERATION, details));
        }
        for running in listed.vms.iter().filter(|running| running.stranger.is_none()) {
            let Ok(vm) = inventory.vm(running.vm_uuid) else { continue };
            let observed = self.bus.ask(Address::new(VmActor::KIND, vm.id), QueryVmMsg {}).await?;
            let moved = observed.last_host_uuid.is_some_and(|last| last != host);
            if moved || vm.volumes.iter().any(|volume| refusing.contains(&volume.storage)) {
                left.insert((vm.id, observed.incarnation));
            }
        }
        Ok(left.into_iter().collect())
    }
}
