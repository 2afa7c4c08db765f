//! Which hosts are scanned and listed, and which VMs are searched or watched, on each tick.

use ringfence_messages::{Code, ErrorCode, HostId, host::HostStatus, vm::VmState};

use super::{core::*, core_tests::*};

fn scans(commands: &[Command]) -> Vec<HostId> {
    commands.iter().filter_map(|c| if let Command::Scan(host) = c { Some(*host) } else { None }).collect()
}

/// Whether the VM is searched, and whether its volumes are watched.
fn inspected(commands: &[Command]) -> (bool, bool) {
    (commands.contains(&Command::LookFor(vm("v1"), None)), commands.contains(&Command::Watch(vm("v1"))))
}

#[test]
fn unreachable_host_is_scanned_once_per_interval() {
    let mut core = core_of(&[], 10);
    assert_eq!(scans(&core.on(Event::Tick, S)), [], "all answer");
    assert_eq!(scans(&core.on(Event::Suspected(host("a")), S)), [host("a")]);
    assert_eq!(scans(&core.on(Event::Tick, 2 * S)), [], "the scan is under way");
    core.on(scanned("a", &[], &["b"]), 2 * S);
    assert_eq!(scans(&core.on(Event::Tick, 2 * S + SCAN_EVERY / 2)), []);
    assert_eq!(scans(&core.on(Event::Tick, 2 * S + SCAN_EVERY)), [host("a")], "suspect, still Connected");
    core.on(scanned("a", &["b"], &[]), 3 * S);
    assert_eq!(scans(&core.on(Event::Tick, 60 * S)), [], "a sibling host reached it: not suspect any more");
    assert_eq!(scans(&core.on(Event::HostChanged(host("a"), HostStatus::Disconnected), 60 * S)), [host("a")]);
    core.on(scanned("a", &[], &[]), 60 * S);
    assert_eq!(scans(&core.on(Event::Tick, 60 * S + SCAN_EVERY)), [host("a")]);
    core.on(scanned("a", &[], &[]), 61 * S);

    core.on(Event::Maintenance(host("a"), true), 62 * S);
    assert_eq!(scans(&core.on(Event::Tick, 80 * S)), [], "an operator works on it");
    core.on(Event::Maintenance(host("a"), false), 80 * S);
    assert_eq!(scans(&core.on(Event::Tick, 80 * S)), [host("a")], "Disconnected as before");
}

#[test]
fn failed_host_is_scanned_while_a_vm_waits_for_it() {
    for (wanted, expected) in [(true, vec![host("a")]), (false, vec![])] {
        let mut core = core_of(&["v1"], 10);
        let observed = ObservedState { state: VmState::Unknown, host: Some(host("a")), incarnation: 1, wanted };
        lose(&mut core, "a", S);
        core.on(Event::Vm(vm("v1"), observed), S);
        core.on(Event::Quarantined(host("a"), Ok(())), S);
        assert_eq!(scans(&core.on(Event::Tick, S + SCAN_EVERY)), expected, "desired state running: {wanted}");
    }
}

#[test]
fn census_lists_the_hosts_that_answer() {
    let mut core = core_of(&[], 10);
    core.on(Event::Suspected(host("b")), S);
    core.on(Event::HostChanged(host("c"), HostStatus::Connecting), S);
    core.on(Event::HostChanged(host("d"), HostStatus::Disconnected), S);
    let mut listed = Vec::new();
    for _ in 0..10 {
        let commands = core.on(Event::Tick, S);
        listed.extend(commands.into_iter().filter_map(|c| if let Command::List(host) = c { Some(host) } else { None }));
    }
    listed.sort();
    listed.dedup();
    let mut answering = ["a", "e", "f", "g", "h", "i", "j"].map(host);
    answering.sort();
    assert_eq!(listed, answering);
}

/// A VM that is down is searched on a host that answers. On a host that only sibling hosts reach, its volumes are
/// watched, also if it stopped there (K10).
#[test]
fn lost_vm_is_searched_or_watched_by_what_its_host_answers() {
    for state in [VmState::Unknown, VmState::Stopped] {
        let mut core = core_of(&["v1"], 10);
        core.on(Event::HostChanged(host("a"), HostStatus::Disconnected), S);
        core.on(believed("v1", state, "a", 1), S);
        assert_eq!(inspected(&core.on(Event::Tick, S)), (false, false), "no sibling host was heard");
        core.on(scanned("a", &["b"], &[]), S);
        assert_eq!(inspected(&core.on(Event::Tick, S)), (false, true), "{state:?}");
        assert_eq!(inspected(&core.on(Event::Tick, S)), (false, false), "the check is under way");
    }
    let mut core = core_of(&["v1"], 10);
    core.on(believed("v1", VmState::Unknown, "a", 1), S);
    assert_eq!(inspected(&core.on(Event::Tick, S)), (true, false));
    core.on(Event::Suspected(host("a")), S);
    assert_eq!(inspected(&core.on(Event::Tick, 60 * S)), (false, false), "it does not answer");
}

#[test]
fn vm_in_a_failover_is_neither_searched_nor_watched() {
    let mut core = core_of(&["v1"], 10);
    core.on(believed("v1", VmState::Unknown, "a", 1), S);
    assert_eq!(starts(&core.on(Event::Requested(vm("v1"), None), S)).len(), 1);
    assert_eq!(inspected(&core.on(Event::Tick, S)), (false, false));
    core.on(Event::Started(vm("v1"), Err(ErrorCode::new(Code::HOST_START_VM, "no room"))), S);
    assert_eq!(inspected(&core.on(Event::Tick, S)), (true, false));
}
