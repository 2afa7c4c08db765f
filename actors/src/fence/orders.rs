//! What a host remembers of the orders that it was given, so that it refuses stale ones (I1).
//!
//! Invariants: an order is admitted only if its incarnation is above every one that this host has seen for the VM and its
//! epoch is not below the highest; what it then has seen must be durable before anything is started. A VM that is held
//! ("nothing up to this incarnation may run here") stays so until a newer order is admitted, and whatever of it appears
//! meanwhile is to be ended. Pure: the agent, the simulator's hosts and the model checker run this very code.

use std::collections::{BTreeMap, BTreeSet};

use crate::sabotage::{self, Sabotage};
use ringfence_messages::{
    Code, ErrorCode, Result, VmId,
    vm::{StartVmCmd, VoidOrders},
};
use serde::{Deserialize, Serialize};

/// What was ordered before; durable.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Orders {
    /// The highest epoch seen.
    epoch: u64,
    /// The highest incarnation seen, per VM.
    incarnations: BTreeMap<VmId, u64>,
    /// The last order that was admitted per VM, while nobody has declared it void or stopped the VM.
    #[serde(default)]
    admitted: BTreeMap<VmId, u64>,
    /// Up to which incarnation nothing of a VM may run here.
    #[serde(default)]
    held: BTreeMap<VmId, u64>,
}

impl Orders {
    /// What is remembered once somebody of this epoch has asked, and once these orders are void. An epoch of 0 is a
    /// human's, who gives no orders that could be stale.
    ///
    /// # Errors
    /// `SYS.1005` if the epoch is below the highest.
    pub fn hear(&self, epoch: u64, void: Option<VoidOrders>) -> Result<Orders> {
        let mut next = self.clone();
        if epoch == 0 {
            return Ok(next);
        }
        self.of_now(epoch)?;
        next.epoch = epoch;
        if let Some(VoidOrders { vm_uuid, incarnation }) = void.filter(|_| !sabotage::on(Sabotage::NothingIsVoid)) {
            next.void(vm_uuid, incarnation);
        }
        Ok(next)
    }

    /// What is remembered once somebody of this epoch has stopped a VM: an order that is still under way is no longer
    /// current. An incarnation above 0 holds the VM, unless a newer one was admitted: then the stop came late.
    ///
    /// # Errors
    /// `SYS.1005` if the epoch is below the highest.
    pub fn stop(&self, epoch: u64, vm: VmId, incarnation: u64) -> Result<Orders> {
        let mut next = self.hear(epoch, None)?;
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

    fn of_now(&self, epoch: u64) -> Result<()> {
        if epoch >= self.epoch || sabotage::on(Sabotage::ForgetEpoch) {
            return Ok(());
        }
        let details = format!("the order is of epoch {epoch}, epoch {} gave orders already", self.epoch);
        Err(ErrorCode::new(Code::CHANGE_STATE, details))
    }

    /// What is remembered once this order is taken: make it durable, then start. `runs_as` is a process of the VM that
    /// runs here, `late` says that the order came after its time.
    ///
    /// # Errors
    /// `SYS.1005` if the order is stale, too late, or the VM runs.
    pub fn admit(&self, cmd: &StartVmCmd, runs_as: Option<u32>, late: bool) -> Result<Orders> {
        let stale =
            |what: String| Err(ErrorCode::new(Code::CHANGE_STATE, format!("VM {}: {what}: not started", cmd.name)));
        self.of_now(cmd.epoch).or_else(|error| stale(error.details).map(|_: Orders| ()))?;
        let seen = self.incarnation(cmd.vm_uuid).unwrap_or(0);
        if cmd.incarnation <= seen && !sabotage::on(Sabotage::ForgetIncarnation) {
            return stale(format!("the order is for incarnation {}, {seen} was ordered already", cmd.incarnation));
        }
        if let Some(pid) = runs_as {
            return stale(format!("it runs as process {pid}"));
        }
        // A host that was frozen goes on here as if nothing had been; the evidence behind the order is old by then.
        if late && !sabotage::on(Sabotage::OrdersNeverVoid) {
            return stale("the order came too late".to_owned());
        }
        let mut next = self.clone();
        next.epoch = cmd.epoch;
        next.incarnations.insert(cmd.vm_uuid, cmd.incarnation);
        next.admitted.insert(cmd.vm_uuid, cmd.incarnation);
        next.held.remove(&cmd.vm_uuid);
        Ok(next)
    }

    /// Whether an order that was admitted is still to be carried out: nobody of a higher epoch spoke since, nobody
    /// declared it void, stopped the VM, or gave a newer one.
    pub fn is_current(&self, cmd: &StartVmCmd) -> bool {
        self.epoch == cmd.epoch && self.admitted.get(&cmd.vm_uuid) == Some(&cmd.incarnation)
    }

    /// Every VM that orders were heard of.
    pub fn vms(&self) -> BTreeSet<VmId> {
        self.incarnations.keys().chain(self.held.keys()).copied().collect()
    }

    /// The VMs of which nothing may run here, with the incarnation up to which that was said.
    pub fn held(&self) -> &BTreeMap<VmId, u64> {
        &self.held
    }

    /// The highest incarnation of a VM that was ordered here.
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
    fn an_order_is_taken_once_in_its_time_and_only_of_who_is_in_office() {
        let orders = Orders::default().admit(&order(1, 2, 5), None, false).unwrap();
        for (cmd, runs, late, why) in [
            (order(1, 2, 5), None, false, "2 was ordered already"),
            (order(1, 1, 6), None, false, "2 was ordered already"),
            (order(1, 3, 4), None, false, "epoch 5 gave orders already"),
            (order(1, 3, 5), Some(42), false, "it runs as process 42"),
            (order(1, 3, 5), None, true, "came too late"),
        ] {
            let refused = orders.admit(&cmd, runs, late).unwrap_err();
            assert!(refused.details.contains(why), "{cmd:?}: {refused}");
        }
        assert!(orders.admit(&order(2, 1, 5), None, false).is_ok(), "another VM counts for itself");
        assert!(orders.hear(4, None).unwrap_err().details.contains("epoch 5 gave orders already"));
        assert_eq!(orders.hear(0, None).unwrap(), orders, "a human gives no orders");
    }

    #[test]
    fn what_was_declared_void_is_refused_whenever_it_comes() {
        let void = |incarnation| Some(VoidOrders { vm_uuid: vm(1), incarnation });
        let orders = Orders::default().hear(7, void(3)).unwrap();
        assert!(orders.admit(&order(1, 3, 7), None, false).is_err());
        assert!(orders.admit(&order(1, 9, 6), None, false).is_err(), "who asked is in office since");
        assert!(orders.admit(&order(1, 4, 7), None, false).is_ok());
        assert_eq!(orders.hear(7, void(1)).unwrap(), orders, "what is remembered never goes back");
    }

    #[test]
    fn a_vm_that_was_stopped_for_good_is_held_until_a_newer_order() {
        let orders = Orders::default().admit(&order(1, 3, 5), None, false).unwrap();
        assert!(orders.is_current(&order(1, 3, 5)) && orders.held().is_empty());
        let held = orders.stop(5, vm(1), 3).unwrap();
        assert_eq!((held.held().get(&vm(1)), held.is_current(&order(1, 3, 5))), (Some(&3), false));
        assert!(held.admit(&order(1, 3, 5), None, false).is_err());
        let again = held.admit(&order(1, 4, 5), None, false).unwrap();
        assert!(again.held().is_empty() && again.is_current(&order(1, 4, 5)));
        assert!(again.stop(5, vm(1), 3).unwrap().held().is_empty(), "a stop that comes late holds nothing newer");
        assert!(orders.stop(0, vm(1), 0).unwrap().held().is_empty(), "a human's stop holds nothing");
        assert!(!orders.stop(0, vm(1), 0).unwrap().is_current(&order(1, 3, 5)), "and ends what is under way");
        assert!(!orders.hear(6, None).unwrap().is_current(&order(1, 3, 5)), "another controller is in office");
        assert!(orders.stop(4, vm(1), 3).is_err(), "a deposed one holds nothing");
    }

    #[test]
    fn orders_of_earlier_versions_are_read() {
        let text = format!(r#"{{"epoch":5,"incarnations":{{"{}":2}}}}"#, vm(1));
        let orders: Orders = serde_json::from_str(&text).unwrap();
        assert_eq!((orders.incarnation(vm(1)), orders.held().len()), (Some(2), 0));
    }

    proptest! {
        /// Whatever comes in whatever order: a VM is held exactly if, after the last order that was admitted, somebody
        /// stopped it for an incarnation that is not older.
        #[test]
        fn a_hold_lasts_until_a_newer_order_and_no_longer(asked in prop::collection::vec((0u64..6, 0u8..3), 1..40)) {
            let (mut orders, mut held, mut runs) = (Orders::default(), None, 0);
            for (incarnation, what) in asked {
                orders = match what {
                    0 => match orders.admit(&order(1, incarnation, 1), None, false) {
                        Err(_) => continue,
                        Ok(next) => {
                            prop_assert!(held.is_none_or(|held| incarnation > held), "started though it is held");
                            (held, runs) = (None, incarnation);
                            next
                        }
                    },
                    1 => orders.hear(1, Some(VoidOrders { vm_uuid: vm(1), incarnation })).unwrap(),
                    _ => {
                        let voided = orders.admitted.is_empty();
                        if incarnation > 0 && (incarnation >= runs || voided) {
                            held = held.max(Some(incarnation));
                        }
                        orders.stop(1, vm(1), incarnation).unwrap()
                    }
                };
                prop_assert_eq!(orders.held().get(&vm(1)).copied(), held);
            }
        }

        /// Whatever comes in whatever order, doubled or late: of one VM the incarnations that are started only rise, and
        /// so do the epochs of those who are obeyed.
        #[test]
        fn starts_only_go_up(asked in prop::collection::vec((0u8..2, 0u64..6, 1u64..5, any::<bool>()), 1..40)) {
            let mut orders = Orders::default();
            let (mut started, mut epoch) = ([0; 2], 0);
            for (n, incarnation, of, starts) in asked {
                let heard = match starts {
                    true => orders.admit(&order(n, incarnation, of), None, false),
                    false => orders.hear(of, Some(VoidOrders { vm_uuid: vm(n), incarnation })),
                };
                let Ok(next) = heard else { continue };
                orders = next;
                prop_assert!(of >= epoch, "a deposed one was obeyed");
                epoch = of;
                if starts {
                    prop_assert!(incarnation > started[usize::from(n)], "an order was taken twice or after its time");
                    started[usize::from(n)] = incarnation;
                }
            }
        }
    }
}
