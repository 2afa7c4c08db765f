//! What a host remembers of start commands, so that it rejects stale ones (I1).
//!
//! Invariants: a command is admitted only if its incarnation is above every known one of the VM and its epoch is not
//! below the highest. The new state must be durable before the start. A held VM ("nothing up to this incarnation may
//! run here") stays held until a newer command is admitted; any process of it that appears is stopped. Pure: the
//! agent, the simulator's hosts and the model checker run this code.

use std::collections::{BTreeMap, BTreeSet};

use crate::sabotage::{self, Sabotage};
use ringfence_messages::{
    Code, ErrorCode, Result, VmId,
    vm::{StartVmCmd, VoidOrders},
};
use serde::{Deserialize, Serialize};

/// The durable state of a host; the field names are those of the file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct FencingGuard {
    /// The highest known epoch.
    epoch: u64,
    /// The highest known incarnation of each VM.
    incarnations: BTreeMap<VmId, u64>,
    /// The last admitted command of each VM, until it is voided or the VM is stopped.
    #[serde(default)]
    admitted: BTreeMap<VmId, u64>,
    /// The incarnation up to which a VM must not run here.
    #[serde(default)]
    held: BTreeMap<VmId, u64>,
}

impl FencingGuard {
    /// The state after a query of this epoch, with these commands voided. Epoch 0 is a query without a controller,
    /// such as an operator's: it cannot be stale.
    ///
    /// # Errors
    /// `SYS.1005` if the epoch is below the highest.
    pub fn observe_epoch(&self, epoch: u64, void: Option<VoidOrders>) -> Result<FencingGuard> {
        let mut next = self.clone();
        if epoch == 0 {
            return Ok(next);
        }
        self.check_epoch(epoch)?;
        next.epoch = epoch;
        if let Some(VoidOrders { vm_uuid, incarnation }) = void.filter(|_| !sabotage::on(Sabotage::NothingIsVoid)) {
            next.void(vm_uuid, incarnation);
        }
        Ok(next)
    }

    /// The state after a stop of a VM in this epoch: a start in progress is no longer current. An incarnation above 0
    /// holds the VM, unless a newer one was admitted: then the stop is late.
    ///
    /// # Errors
    /// `SYS.1005` if the epoch is below the highest.
    pub fn stop(&self, epoch: u64, vm: VmId, incarnation: u64) -> Result<FencingGuard> {
        let mut next = self.observe_epoch(epoch, None)?;
        if incarnation == 0 {
            next.admitted.remove(&vm);
        } else if next.admitted.get(&vm).is_none_or(|admitted| *admitted <= incarnation) {
            next.void(vm, incarnation);
            let held = next.held.entry(vm).or_default();
            *held = incarnation.max(*held);
        }
        Ok(next)
    }

    fn void(&mut self, vm: VmId, incarnation: u64) {
        let seen = self.incarnations.entry(vm).or_default();
        *seen = incarnation.max(*seen);
        if self.admitted.get(&vm).is_some_and(|admitted| *admitted <= incarnation) {
            self.admitted.remove(&vm);
        }
    }

    fn check_epoch(&self, epoch: u64) -> Result<()> {
        if epoch >= self.epoch || sabotage::on(Sabotage::ForgetEpoch) {
            return Ok(());
        }
        let details = format!("the command is of epoch {epoch}, but epoch {} is already known", self.epoch);
        Err(ErrorCode::new(Code::CHANGE_STATE, details))
    }

    /// The state after this command is admitted: make it durable, then start. `runs_as` is a process of the VM here;
    /// `late` means that the command has expired.
    ///
    /// # Errors
    /// `SYS.1005` if the command is stale or late, or the VM runs.
    pub fn admit(&self, cmd: &StartVmCmd, runs_as: Option<u32>, late: bool) -> Result<FencingGuard> {
        let stale =
            |what: String| Err(ErrorCode::new(Code::CHANGE_STATE, format!("VM {}: {what}: not started", cmd.name)));
        self.check_epoch(cmd.epoch).or_else(|error| stale(error.details).map(|_: FencingGuard| ()))?;
        let seen = self.incarnation(cmd.vm_uuid).unwrap_or(0);
        if cmd.incarnation <= seen && !sabotage::on(Sabotage::ForgetIncarnation) {
            return stale(format!("the command is for incarnation {}, but {seen} is already known", cmd.incarnation));
        }
        if let Some(pid) = runs_as {
            return stale(format!("it runs as process {pid}"));
        }
        // A host that was frozen continues as if no time had passed; the evidence behind the command is old.
        if late && !sabotage::on(Sabotage::OrdersNeverVoid) {
            return stale("the command arrived too late".to_owned());
        }
        let mut next = self.clone();
        next.epoch = cmd.epoch;
        next.incarnations.insert(cmd.vm_uuid, cmd.incarnation);
        next.admitted.insert(cmd.vm_uuid, cmd.incarnation);
        next.held.remove(&cmd.vm_uuid);
        Ok(next)
    }

    /// Whether an admitted command should still be carried out: no higher epoch, no void, no stop and no newer
    /// command since.
    pub fn is_current(&self, cmd: &StartVmCmd) -> bool {
        self.epoch == cmd.epoch && self.admitted.get(&cmd.vm_uuid) == Some(&cmd.incarnation)
    }

    /// Every known VM.
    pub fn vms(&self) -> BTreeSet<VmId> {
        self.incarnations.keys().chain(self.held.keys()).copied().collect()
    }

    /// The held VMs, with their incarnations.
    pub fn held(&self) -> &BTreeMap<VmId, u64> {
        &self.held
    }

    /// The highest known incarnation of a VM.
    pub fn incarnation(&self, vm: VmId) -> Option<u64> {
        self.incarnations.get(&vm).copied()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn vm(n: u8) -> VmId {
        VmId::from_name(&format!("vm-{n}"))
    }

    fn order(n: u8, incarnation: u64, epoch: u64) -> StartVmCmd {
        StartVmCmd {
            vm_uuid: vm(n),
            name: format!("vm-{n}"),
            incarnation,
            epoch,
            not_after_ms: 0,
            memory_mib: 16,
            disks: Vec::new(),
            qemu_args: Vec::new(),
            libvirt_xml: None,
            head: None,
        }
    }

    #[test]
    fn start_is_admitted_once_in_time_from_the_leader() {
        let guard = FencingGuard::default().admit(&order(1, 2, 5), None, false).unwrap();
        for (cmd, runs, late, why) in [
            (order(1, 2, 5), None, false, "2 is already known"),
            (order(1, 1, 6), None, false, "2 is already known"),
            (order(1, 3, 4), None, false, "epoch 5 is already known"),
            (order(1, 3, 5), Some(42), false, "it runs as process 42"),
            (order(1, 3, 5), None, true, "arrived too late"),
        ] {
            let refused = guard.admit(&cmd, runs, late).unwrap_err();
            assert!(refused.details.contains(why), "{cmd:?}: {refused}");
        }
        assert!(guard.admit(&order(2, 1, 5), None, false).is_ok(), "another VM counts for itself");
        assert!(guard.observe_epoch(4, None).unwrap_err().details.contains("epoch 5 is already known"));
        assert_eq!(guard.observe_epoch(0, None).unwrap(), guard, "epoch 0 changes nothing");
    }

    #[test]
    fn voided_start_is_rejected_at_any_time() {
        let void = |incarnation| Some(VoidOrders { vm_uuid: vm(1), incarnation });
        let guard = FencingGuard::default().observe_epoch(7, void(3)).unwrap();
        assert!(guard.admit(&order(1, 3, 7), None, false).is_err());
        assert!(guard.admit(&order(1, 9, 6), None, false).is_err(), "a higher epoch is known");
        assert!(guard.admit(&order(1, 4, 7), None, false).is_ok());
        assert_eq!(guard.observe_epoch(7, void(1)).unwrap(), guard, "the state never goes back");
    }

    #[test]
    fn stopped_vm_is_held_until_a_newer_start() {
        let guard = FencingGuard::default().admit(&order(1, 3, 5), None, false).unwrap();
        assert!(guard.is_current(&order(1, 3, 5)) && guard.held().is_empty());
        assert_eq!(guard.vms(), BTreeSet::from([vm(1)]));
        let held = guard.stop(5, vm(1), 3).unwrap();
        assert_eq!((held.held().get(&vm(1)), held.is_current(&order(1, 3, 5))), (Some(&3), false));
        assert!(held.admit(&order(1, 3, 5), None, false).is_err());
        let again = held.admit(&order(1, 4, 5), None, false).unwrap();
        assert!(again.held().is_empty() && again.is_current(&order(1, 4, 5)));
        assert!(again.stop(5, vm(1), 3).unwrap().held().is_empty(), "a stop that comes late holds nothing newer");
        assert!(guard.stop(0, vm(1), 0).unwrap().held().is_empty(), "a stop of epoch 0 holds nothing");
        assert!(!guard.stop(0, vm(1), 0).unwrap().is_current(&order(1, 3, 5)), "but it ends a start in progress");
        assert!(!guard.observe_epoch(6, None).unwrap().is_current(&order(1, 3, 5)), "another controller is the leader");
        assert!(guard.stop(4, vm(1), 3).is_err(), "a stale leader holds nothing");
    }

    #[test]
    fn state_of_earlier_versions_is_read() {
        let text = format!(r#"{{"epoch":5,"incarnations":{{"{}":2}}}}"#, vm(1));
        let guard: FencingGuard = serde_json::from_str(&text).unwrap();
        assert_eq!((guard.incarnation(vm(1)), guard.held().len()), (Some(2), 0));
    }

    proptest! {
        /// For any sequence of inputs: a VM is held exactly if, after the last admitted command, a stop came for an
        /// incarnation that is not older.
        #[test]
        fn hold_lasts_until_a_newer_start(inputs in prop::collection::vec((0u64..6, 0u8..3), 1..40)) {
            let (mut guard, mut held, mut runs) = (FencingGuard::default(), None, 0);
            for (incarnation, input) in inputs {
                guard = match input {
                    0 => match guard.admit(&order(1, incarnation, 1), None, false) {
                        Err(_) => continue,
                        Ok(next) => {
                            prop_assert!(held.is_none_or(|held| incarnation > held), "started though it is held");
                            (held, runs) = (None, incarnation);
                            next
                        }
                    },
                    1 => guard.observe_epoch(1, Some(VoidOrders { vm_uuid: vm(1), incarnation })).unwrap(),
                    _ => {
                        let voided = guard.admitted.is_empty();
                        if incarnation > 0 && (incarnation >= runs || voided) {
                            held = held.max(Some(incarnation));
                        }
                        guard.stop(1, vm(1), incarnation).unwrap()
                    }
                };
                prop_assert_eq!(guard.held().get(&vm(1)).copied(), held);
            }
        }

        /// For any sequence of inputs, repeated or late: the started incarnations of one VM only rise, and so do the
        /// epochs.
        #[test]
        fn starts_only_go_up(inputs in prop::collection::vec((0u8..2, 0u64..6, 1u64..5, any::<bool>()), 1..40)) {
            let mut guard = FencingGuard::default();
            let (mut started, mut epoch) = ([0; 2], 0);
            for (n, incarnation, from_epoch, starts) in inputs {
                let heard = if starts {
                    guard.admit(&order(n, incarnation, from_epoch), None, false)
                } else {
                    guard.observe_epoch(from_epoch, Some(VoidOrders { vm_uuid: vm(n), incarnation }))
                };
                let Ok(next) = heard else { continue };
                guard = next;
                prop_assert!(from_epoch >= epoch, "a stale leader was obeyed");
                epoch = from_epoch;
                if starts {
                    prop_assert!(incarnation > started[usize::from(n)], "a start was admitted twice or late");
                    started[usize::from(n)] = incarnation;
                }
            }
        }
    }
}
