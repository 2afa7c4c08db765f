//! What the status of HA reports of hosts and VMs, and what other actors read from the core.

use ringfence_messages::{ClusterId, Code, ErrorCode, HostId, host::HostStatus, vm::VmState};

use super::{core::*, core_tests::*};
use crate::inventory::HaSettings;

/// The standing of a host; empty if it needs no attention.
fn standing(core: &Core, name: &str) -> String {
    let hosts = core.status().hosts;
    hosts.into_iter().find(|of| of.host_uuid == host(name)).map_or_else(String::new, |of| of.standing)
}

#[test]
fn standing_of_a_host_follows_its_outage() {
    let mut core = core_of(&[], 10);
    assert_eq!(standing(&core, "a"), "");
    core.on(Event::HostChanged(host("a"), HostStatus::Disconnected), S);
    assert_eq!(standing(&core, "a"), "unreachable: sibling hosts are probing it");
    core.on(scanned("a", &["b"], &["c"]), S);
    assert_eq!(standing(&core, "a"), "unreachable only from the controller (r)");
    core.on(scanned("a", &[], &[]), 2 * S);
    assert_eq!(standing(&core, "a"), "not failed: no sibling host could probe it (r)");
    core.on(scanned("a", &[], &["b"]), 3 * S);
    assert_eq!(standing(&core, "a"), "unreachable: sibling hosts are probing it", "its quarantine is being recorded");
    core.on(Event::Quarantined(host("a"), Ok(())), 3 * S);
    let waits = "quarantined: returns to service when its agent answers and no leftover VM is on it";
    assert_eq!(standing(&core, "a"), waits);
    core.on(Event::HostChanged(host("a"), HostStatus::Connecting), 4 * S);
    core.on(Event::Answering(ClusterId::from_name("c1"), vec![host("a")]), 4 * S);
    assert_eq!(standing(&core, "a"), "reachable: leftover VMs are removed before its return to service");
    let error = ErrorCode::new(Code::OPERATION, "something restarts it");
    core.on(Event::Reconciled(host("a"), Err(error.clone())), 5 * S);
    assert_eq!(standing(&core, "a"), format!("quarantined: {error}"));
    core.on(Event::Tick, 6 * S);
    core.on(Event::Reconciled(host("a"), Ok(())), 7 * S);
    core.on(Event::HostChanged(host("a"), HostStatus::Connected), 7 * S);
    assert_eq!(standing(&core, "a"), "");
}

#[test]
fn vm_that_should_run_and_does_not_is_explained() {
    let mut core = core_of(&["v1", "v2"], 10);
    let why = |core: &Core| core.status().vms.into_iter().map(|of| (of.vm_uuid, of.why)).collect::<Vec<_>>();
    core.on(believed("v1", VmState::Running, "a", 1), S);
    let unwanted = ObservedState { state: VmState::Stopped, host: Some(host("a")), incarnation: 1, wanted: false };
    core.on(Event::Vm(vm("v2"), unwanted), S);
    assert_eq!(why(&core), []);
    lose(&mut core, "a", S);
    core.on(believed("v1", VmState::Unknown, "a", 1), S);
    assert_eq!(why(&core), [(vm("v1"), "waiting for a verdict on its host".to_owned())]);
    core.on(Event::Quarantined(host("a"), Ok(())), S);
    assert_eq!(why(&core), [(vm("v1"), "failover in progress: a failed".to_owned())]);
    let error = ErrorCode::new(Code::HOST_START_VM, "may still write");
    core.on(Event::Started(vm("v1"), Err(error.clone())), 2 * S);
    assert_eq!(why(&core), [(vm("v1"), error.to_string())]);
    core.on(believed("v1", VmState::Running, "b", 2), 3 * S);
    assert_eq!(why(&core), []);
}

/// An attestation that a host is off ends the wait of its VMs.
#[test]
fn attestation_retries_the_failovers_of_the_host_at_once() {
    let mut core = core_of(&["v1"], 10);
    core.on(believed("v1", VmState::Running, "a", 1), S);
    lose(&mut core, "a", S);
    core.on(believed("v1", VmState::Unknown, "a", 1), S);
    core.on(Event::Quarantined(host("a"), Ok(())), S);
    let refused = ErrorCode::new(Code::HOST_START_VM, "may still write");
    assert_eq!(starts(&core.on(Event::Started(vm("v1"), Err(refused)), 2 * S)), []);
    assert_eq!(starts(&core.on(Event::Confirmed(host("b")), 2 * S)), [], "of another host");
    assert_eq!(starts(&core.on(Event::Confirmed(host("a")), 2 * S)), [(vm("v1"), "HostSilent")]);
}

#[test]
fn vms_of_a_host_are_those_that_may_run_there() {
    let mut core = core_of(&["v1", "v2"], 10);
    let counts = |core: &Core| ["a", "b"].map(|name| core.vms_on(host(name)));
    assert_eq!(counts(&core), [0, 0]);
    core.on(believed("v1", VmState::Running, "a", 1), S);
    core.on(believed("v2", VmState::Unknown, "a", 1), S);
    assert_eq!(counts(&core), [2, 0]);
    core.on(believed("v1", VmState::Running, "b", 2), S);
    core.on(believed("v2", VmState::Stopped, "a", 1), S);
    assert_eq!(counts(&core), [0, 1]);
}

#[test]
fn status_of_a_host_is_known_once_it_was_received() {
    let mut core = Core::new(HaSettings::default(), S, core_of(&[], 1).inventory.clone(), ReplayedState::default());
    assert!(!core.knows_status(host("a")));
    core.on(Event::HostChanged(host("a"), HostStatus::Connecting), S);
    assert!(core.knows_status(host("a")));
    assert!(core.knows_status(HostId::from_name("removed")), "no status will come");
}
