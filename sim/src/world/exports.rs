//! Exports: the writers of VMs on vhost and ZBS volumes, which are the host's targets.
//!
//! A target that loses its storage holds the writes in flight, and writes them when the storage returns, with or
//! without the QEMU (seen on a real target). An export lives until it is removed or its target dies.

use std::time::Duration;

use ringfence_actors::sabotage::{self, Sabotage};
use ringfence_messages::StorageId;

use super::State;

/// One VM's volumes on one host's target.
#[derive(Clone, Debug)]
pub(crate) struct Export {
    /// The QEMU that it writes for.
    pub(crate) uid: u64,
    pub(crate) incarnation: u64,
    pub(crate) storage: StorageId,
    /// A write is in flight, and its storage is away.
    pub(crate) held: bool,
}

impl State {
    /// The target of this host writes for this QEMU from now on, if that does not write to Ceph.
    pub(super) fn exports(&mut self, host: usize, vm: usize, uid: u64, incarnation: u64) {
        if let Some(storage) = self.disks.vhost_of(vm) {
            self.machines[host].exports.insert(vm, Export { uid, incarnation, storage, held: false });
        }
    }

    /// Ends a VM's export on a host. A target that holds something does not answer: it is killed, and with it go all of
    /// its exports, until it is deployed again.
    pub(super) fn end_export(&mut self, host: usize, vm: usize) -> Result<(), String> {
        let machine = &mut self.machines[host];
        let Some(export) = machine.exports.get(&vm).filter(|_| !sabotage::on(Sabotage::ExportsLive)) else {
            return Ok(());
        };
        if machine.targets_hang > 0 && machine.targets.get(&export.storage) == Some(&true) {
            return Err("its target holds the volume, and is still there after SIGKILL (D state)".to_owned());
        }
        let (storage, held) = (export.storage, export.held);
        machine.exports.remove(&vm);
        if held {
            machine.targets.insert(storage, false);
            let name = machine.name.clone();
            self.log(format_args!("{name}: a target does not end the export of vm-{vm}, and is killed"));
            self.settle(host);
        }
        Ok(())
    }

    /// What was held is written, where the storage is back; forgotten, where the target is gone.
    pub(super) fn exports_land(&mut self, host: usize, now: Duration) {
        let machine = &mut self.machines[host];
        let mut landed = Vec::new();
        for (vm, export) in machine.exports.iter_mut().filter(|(_, export)| export.held) {
            let up = machine.targets.get(&export.storage).copied().unwrap_or(false);
            export.held = up && !machine.contact;
            // One whose QEMU lives goes on writing by itself.
            if up && machine.contact && machine.processes.iter().all(|process| process.uid != export.uid) {
                landed.push((*vm, export.uid, export.incarnation));
            }
        }
        let name = machine.name.clone();
        for (vm, uid, incarnation) in landed {
            let who = format!("the target on {name} for incarnation {incarnation}, whose QEMU is gone,");
            self.log(format_args!("vm-{vm}: {who} writes what it held"));
            if let Some(wrong) = self.disks.writes(vm, uid, who, now) {
                self.violation("I1", wrong);
            }
            self.disks.stops(uid, now);
        }
    }
}
