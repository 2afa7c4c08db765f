//! How a host comes back: what is left of VMs that moved is killed, then its storage lets it in again, then it serves.
//!
//! Invariants: a storage fence is lifted only after many looks found none of the QEMUs that must not be there: a
//! survivor would write again the moment it is lifted. Every step may be repeated: a host that was cut off again in the
//! middle is cleaned anew. A VM that is to run here is left alone, unless a storage refused this host meanwhile: its
//! disk is gone from under it, and its client would never show up as a watcher again.

use std::{collections::BTreeSet, time::Duration};

use ringfence::{Actor, Address, Bus};
use ringfence_messages::{
    Code, ErrorCode, HostId, Result, StorageId, VmId,
    ceph::{LiftStorageFenceMsg, QueryStorageFencesMsg},
    ha::{HostQuarantineChanged, SetQuarantineMsg},
    storage::StorageKind,
    vm::{ListVmsCmd, QueryVmMsg, StopVmCmd},
};

use crate::{
    audit::Recorder,
    fence::ceph::CephActor,
    host::HostActor,
    inventory::Catalog,
    recovery::RecoveryActor,
    sabotage::{self, Sabotage},
    vm::{SEARCH_TIMEOUT, VM_TIMEOUT, VmActor},
};

/// Looks for what comes back, and the time between them: two seconds. Too few: a restarter is not seen. Too many: a host
/// that is back serves later.
pub(super) const WATCH_LOOKS: u32 = 20;

/// Between those looks.
pub(super) const WATCH_EVERY: Duration = Duration::from_millis(100);

/// What cleaning needs.
#[derive(Clone)]
pub(super) struct Cleaner {
    pub(super) catalog: Catalog,
    pub(super) bus: Bus,
    pub(super) recorder: Recorder,
}

impl Cleaner {
    /// Cleans a host and lets it out of quarantine.
    ///
    /// # Errors
    /// Why it stays in quarantine.
    pub(super) async fn clean(&self, host: HostId) -> Result<()> {
        let refusing = self.refusing(host).await?;
        let left = match sabotage::on(Sabotage::LiftBeforeClean) {
            true => Vec::new(),
            false => self.left(host, &refusing).await?,
        };
        let to = Address::new(HostActor::KIND, host);
        for (vm, incarnation) in &left {
            let stop = StopVmCmd { vm_uuid: *vm, epoch: 0, incarnation: *incarnation };
            self.bus.ask_within(to, stop, VM_TIMEOUT).await?;
        }
        // One that its storage refuses ends at once: whoever restarts it is seen only by looking again and again. Let in
        // again, it would write.
        for _ in 0..WATCH_LOOKS {
            tokio::time::sleep(WATCH_EVERY).await;
            if let Some((vm, _)) =
                self.left(host, &refusing).await?.first().filter(|_| !sabotage::on(Sabotage::LiftBeforeClean))
            {
                let details = format!("VM {vm} is there again after it was killed: something restarts it");
                return Err(ErrorCode::new(Code::OPERATION, details));
            }
        }
        for storage in refusing.into_iter().filter(|_| !sabotage::on(Sabotage::NeverLift)) {
            self.bus.ask(Address::new(CephActor::KIND, storage), LiftStorageFenceMsg { host_uuid: host }).await?;
        }
        let name = self.catalog.now().host_name(host);
        let reason = match left.len() {
            0 => "it answers, and nothing was left on it".to_owned(),
            n => format!("it answers, and {n} left-over QEMUs were killed"),
        };
        let released = HostQuarantineChanged { host_uuid: host, host: name, quarantined: false, reason };
        // Waits for the disk: a restart that forgets it cleans once more.
        self.recorder.fact(released).await?;
        let set = SetQuarantineMsg { host_uuid: host, reason: None };
        self.bus.ask(Address::singleton(RecoveryActor::KIND), set).await.map(|_| ())
    }

    /// The storages that refuse this host, or may.
    async fn refusing(&self, host: HostId) -> Result<BTreeSet<StorageId>> {
        let mut refusing = BTreeSet::new();
        let directory = self.catalog.now();
        for storage in directory.storages.iter().filter(|storage| storage.kind == StorageKind::Ceph) {
            let fences = self.bus.ask(Address::new(CephActor::KIND, storage.id), QueryStorageFencesMsg {}).await?;
            if fences.host_uuids.contains(&host) {
                refusing.insert(storage.id);
            }
        }
        Ok(refusing)
    }

    /// The VMs with a QEMU here that must not be, and up to which incarnation.
    async fn left(&self, host: HostId, refusing: &BTreeSet<StorageId>) -> Result<Vec<(VmId, u64)>> {
        let listed =
            self.bus.ask_within(Address::new(HostActor::KIND, host), ListVmsCmd::default(), SEARCH_TIMEOUT).await?;
        let directory = self.catalog.now();
        let mut left = BTreeSet::new();
        if !listed.sight.is_full() && !sabotage::on(Sabotage::BlindIsFull) {
            let details =
                format!("whether it is clean is not known: its agent does not see everything: {}", listed.sight);
            return Err(ErrorCode::new(Code::OPERATION, details));
        }
        for running in listed.vms.iter().filter(|running| running.stranger.is_none()) {
            let Ok(vm) = directory.vm(running.vm_uuid) else { continue };
            let believed = self.bus.ask(Address::new(VmActor::KIND, vm.id), QueryVmMsg {}).await?;
            let moved = believed.last_host_uuid.is_some_and(|last| last != host);
            if moved || vm.volumes.iter().any(|volume| refusing.contains(&volume.storage)) {
                left.insert((vm.id, believed.incarnation));
            }
        }
        Ok(left.into_iter().collect())
    }
}
