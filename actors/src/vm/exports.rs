//! Ends the exports of a VM that its host's agent cannot end: those of ZBS targets, through the MDS.
//!
//! Invariants (K4): a QEMU that is gone from a host proves nothing while a target there exports a volume of the VM, for
//! the target may hold writes and complete them later. Only the MDS's success ends such an export; an error leaves the
//! VM's presence on that host unknown. The exports of a VM that is Stopped have ended: nothing is asked again.
//! Alternatives considered: the MDS's list of a volume's clients. It is empty too if the ZBS version does not support
//! it or the volume does not exist, so it proves nothing; and deleting an export twice may be an error.

use futures_util::future::try_join_all;
use ringfence::{Actor as _, Address};
use ringfence_messages::{
    Code, ErrorCode, HostId, Result,
    fence::SiblingFenceVmOnHostReply,
    storage::DeactivateVolumeMsg,
    vm::{InstallPath, ListVmsReply, VmState},
};

use super::{actor::VM_TIMEOUT, claims::Presence};
use crate::{
    sabotage::{self, Sabotage},
    storage::StorageActor,
};

impl super::VmActor {
    /// Ends every export of the VM by ZBS targets on a host.
    ///
    /// # Errors
    /// An export is not known to have ended.
    pub(super) fn end_exports(&self, host: HostId) -> impl Future<Output = Result<()>> + use<> {
        let zbs = |path: &InstallPath| matches!(path, InstallPath::Zbs { .. } | InstallPath::Cbd { .. });
        let volumes = self.core.vm.volumes.iter().enumerate();
        let volumes =
            volumes.filter(|(_, volume)| zbs(&volume.install_path) && !sabotage::on(Sabotage::ZbsExportsLive));
        let name = self.core.inventory.host_name(host);
        let ends: Vec<_> = volumes
            .map(|(index, volume)| {
                let ask = DeactivateVolumeMsg { host_uuid: host, bdev_name: self.bdev_name(index) };
                let open = format!("a target on {name} may still write to {}", volume.install_path);
                (Address::new(StorageActor::KIND, volume.storage), ask, open)
            })
            .collect();
        let bus = self.bus.clone();
        // An ask is sent when it is made: QEMU has to be gone before.
        async move {
            let ends = ends.into_iter().map(|(storage, ask, open)| {
                let ended = bus.ask_within(storage, ask, VM_TIMEOUT);
                async { ended.await.map_err(|error| ErrorCode::new(Code::OPERATION, open).caused_by(error)) }
            });
            try_join_all(ends).await.map(|_| ())
        }
    }

    /// Whether the list of a host that may have an export of the VM shows nothing of it.
    pub(super) fn may_export(&self, host: HostId, listed: &Result<ListVmsReply>) -> bool {
        let nothing = |reply| matches!(Presence::of(self.core.vm.id, host, reply), Ok(Presence::Nothing(_)));
        let ran_there = self.core.state() != VmState::Stopped && self.core.places().contains(&host);
        ran_there && listed.as_ref().is_ok_and(nothing)
    }
}

/// Whether a sibling host reports that no QEMU of the VM is left on the host.
pub(super) fn is_gone(report: &SiblingFenceVmOnHostReply) -> bool {
    report.ssh_reachable && !report.alive
}
