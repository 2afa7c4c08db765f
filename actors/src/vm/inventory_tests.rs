//! Changes of the inventory, and what may be removed from it.

use std::{sync::Arc, time::Duration};

use ringfence_messages::vm::VmState;

use super::{claims_tests::core_of_two_hosts, core::*, core_tests::*};
use crate::inventory::{Inventory, InventoryIndex};

fn with_memory(core: &Core, mib: u64) -> Arc<InventoryIndex> {
    let mut inventory = Inventory::clone(&core.inventory);
    inventory.vms[0].memory_mib = mib;
    Arc::new(InventoryIndex::new(inventory))
}

#[test]
fn operation_ends_on_the_inventory_that_it_began_with() {
    let (mut core, _) = remembering(VmState::Stopped, Some("a"), 4);
    core.set_inventory(&with_memory(&core, 32));
    assert_eq!((core.vm.memory_mib, core.inventory.vms[0].memory_mib), (32, 32));
    core.feed(start(None));
    core.set_inventory(&with_memory(&core, 64));
    assert_eq!((core.vm.memory_mib, core.inventory.vms[0].memory_mib), (32, 32));
    core.feed(found_none(0));
    core.set_inventory(&with_memory(&core, 64));
    assert_eq!((core.vm.memory_mib, core.inventory.vms[0].memory_mib), (64, 64));
}

#[test]
fn vm_that_runs_or_is_in_an_operation_may_not_retire() {
    let why = |core: &Core| core.may_retire(now()).unwrap_err().details;
    let (mut core, _) = remembering(VmState::Stopped, Some("a"), 4);
    assert_eq!(core.may_retire(now()), Ok(()));
    core.feed(start(None));
    assert!(why(&core).contains("retry when it completes"));
    let (mut core, _) = remembering(VmState::Running, Some("a"), 4);
    core.feed(Event::Searched(host("a"), Ok(runs(4))));
    assert!(why(&core).contains("run `ringfence vm stop vm1` first"));
}

/// The agent was frozen and did not answer; its stop answers, but the start command is still valid.
#[test]
fn vm_may_not_retire_while_a_start_command_is_valid() {
    let mut core = launching();
    core.feed(Event::Launched(Err(broken())));
    core.feed(Event::Searched(host("b"), Err(broken())));
    core.feed(Event::Stop);
    core.feed(Event::Recorded(Ok(())));
    core.feed(Event::Halted(Ok(())));
    assert_eq!(core.state(), VmState::Stopped);
    let later = |seconds| core.may_retire(now() + Duration::from_secs(seconds));
    assert!(later(29).unwrap_err().details.contains("retry when it completes"));
    assert_eq!(later(30), Ok(()));
}

#[test]
fn removed_host_is_forgotten_once_nothing_is_left_on_it() {
    let (mut core, _) = remembering(VmState::Stopped, Some("a"), 4);
    assert_eq!(core.feed(Event::HostGone(host("b"))), [], "it never ran there");
    assert_eq!(core.place(), Some(host("a")));
    let commands = core.feed(Event::HostGone(host("a")));
    assert_eq!((told(&commands), core.place()), (vec![(VmState::Stopped, VmState::Stopped)], None));

    let mut core = core_of_two_hosts("b");
    assert_eq!(core.feed(Event::HostGone(host("a"))), [], "its state there is unknown");
    let commands = core.feed(Event::HostGone(host("b")));
    assert!(matches!(&commands[..], [Command::Emit(change)] if change.may_run_on.is_empty()), "{commands:?}");
    assert_eq!((core.state(), core.places()), (VmState::Unknown, vec![host("a")]));
}
