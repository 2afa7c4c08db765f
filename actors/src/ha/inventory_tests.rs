//! What is kept of a host that is removed from the inventory and added again.

use std::{collections::BTreeSet, sync::Arc};

use ringfence_messages::{ClusterId, Code, ErrorCode, host::HostStatus, vm::VmState};

use super::{core::*, core_tests::*};
use crate::{
    inventory::{HaSettings, Inventory, InventoryIndex},
    testkit::list,
};

/// Removes `a` and adds it again.
fn without_a_for_a_while(core: &mut Core) {
    let before = core.inventory.clone();
    let mut without = Inventory::clone(&before);
    without.hosts.remove(0);
    core.set_inventory(&Arc::new(InventoryIndex::new(without)));
    assert_eq!(core.status().hosts, []);
    core.set_inventory(&before);
}

fn failures(commands: &[Command]) -> usize {
    commands.iter().filter(|c| matches!(c, Command::Emit(HaEvent::HostFailed(_)))).count()
}

#[test]
fn failed_host_in_quarantine_is_still_both() {
    let mut core = core_of(&["v1"], 10);
    core.on(believed("v1", VmState::Running, "a", 1), S);
    assert_eq!(failures(&lose(&mut core, "a", S)), 1);
    core.on(Event::Quarantined(host("a"), Ok(())), S);
    without_a_for_a_while(&mut core);
    let commands = core.on(believed("v1", VmState::Unknown, "a", 1), 2 * S);
    assert_eq!(starts(&commands), [(vm("v1"), "HostSilent")], "no new verdict is needed");
    core.on(Event::HostChanged(host("a"), HostStatus::Disconnected), 2 * S);
    assert_eq!(core.may_quarantine(host("a")), Ok(true));
}

#[test]
fn failure_that_was_emitted_is_not_emitted_again() {
    let mut core = core_of(&[], 10);
    assert_eq!(failures(&lose(&mut core, "a", S)), 1);
    core.on(Event::Quarantined(host("a"), Err(ErrorCode::new(Code::IO, "disk full"))), S);
    without_a_for_a_while(&mut core);
    let commands = lose(&mut core, "a", 2 * S);
    assert_eq!((quarantines(&commands), failures(&commands)), (vec![host("a")], 0));
}

#[test]
fn attestation_and_maintenance_stay() {
    let mut core = core_of(&[], 10);
    core.on(Event::HostChanged(host("a"), HostStatus::Disconnected), S);
    core.on(Event::Confirmed(host("a")), S);
    without_a_for_a_while(&mut core);
    let commands = core.on(Event::HostChanged(host("a"), HostStatus::Connected), 2 * S);
    assert!(commands.contains(&Command::EndAttestation(host("a"))), "{commands:?}");

    core.on(Event::Maintenance(host("a"), true), 3 * S);
    without_a_for_a_while(&mut core);
    assert!(core.is_maintained(host("a")) && !core.is_maintained(host("b")));
}

/// K7: the host may have run VMs of another inventory. Its maintenance settles that, unless it is from before the
/// journal was restored.
#[test]
fn added_host_must_list_its_processes() {
    let cluster = ClusterId::from_name("c1");
    let mut core = core_of(&[], 10);
    assert_eq!(core.unsettled(cluster), []);
    without_a_for_a_while(&mut core);
    core.on(Event::HostChanged(host("a"), HostStatus::Connected), S);
    assert_eq!(core.unsettled(cluster), [host("a")]);
    core.on(Event::Listed(host("a"), Ok(list(vec![]))), S);
    assert_eq!(core.unsettled(cluster), []);

    for (unproven, expected) in [(BTreeSet::new(), vec![]), (BTreeSet::from([host("a")]), vec![host("a")])] {
        let memory = ReplayedState { maintenance: [host("a")].into(), unproven, ..ReplayedState::default() };
        let mut core = Core::new(HaSettings::default(), S, core_of(&[], 1).inventory.clone(), memory);
        for name in ["b", "c", "d", "e", "f", "g", "h", "i", "j"] {
            core.on(Event::Listed(host(name), Ok(list(vec![]))), S);
        }
        without_a_for_a_while(&mut core);
        assert_eq!(core.unsettled(cluster), expected);
    }
}
