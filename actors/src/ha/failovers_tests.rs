//! Which VMs are failed over, when again, and which processes are searched.

use ringfence_messages::{Code, ErrorCode, vm::VmState};

use super::{core::*, core_tests::*};

fn refused() -> ErrorCode {
    ErrorCode::new(Code::HOST_START_VM, "may still write")
}

fn looked_for(commands: &[Command]) -> bool {
    commands.contains(&Command::LookFor(vm("v1"), None))
}

#[test]
fn vm_whose_desired_state_is_stopped_is_not_started() {
    let mut core = core_of(&["v1"], 10);
    let stopped = ObservedState { state: VmState::Stopped, host: Some(host("a")), incarnation: 1, wanted: false };
    assert_eq!(starts(&core.on(Event::Vm(vm("v1"), stopped), S)), []);
    assert_eq!(starts(&core.on(Event::Tick, 60 * S)), []);
}

/// Checks of the volumes count for one host: its client may have written, and the next host's may not have begun.
#[test]
fn missing_watchers_count_for_one_host() {
    let mut core = core_of(&["v1"], 10);
    core.on(believed("v1", VmState::Running, "a", 1), S);
    for name in ["a", "b"] {
        core.on(scanned(name, &["c"], &[]), S);
        core.on(believed("v1", VmState::Unknown, name, 1), S);
        core.on(Event::HostChanged(host(name), ringfence_messages::host::HostStatus::Disconnected), S);
        core.on(scanned(name, &["c"], &[]), S);
        assert_eq!(starts(&core.on(Event::Unwatched(vm("v1"), true), S)), [], "{name}");
    }
    assert_eq!(starts(&core.on(Event::Unwatched(vm("v1"), true), S)), [(vm("v1"), "WatchersGone")]);
}

#[test]
fn search_on_a_host_that_answers_backs_off_until_the_state_changes() {
    let mut core = core_of(&["v1"], 10);
    core.on(believed("v1", VmState::Unknown, "a", 1), S);
    assert!(looked_for(&core.on(Event::Tick, S)));
    core.on(believed("v1", VmState::Unknown, "a", 1), S);
    assert!(!looked_for(&core.on(Event::Tick, S)), "the same report is no change");
    core.on(believed("v1", VmState::Unknown, "a", 2), S);
    assert!(looked_for(&core.on(Event::Tick, S)));
    let mut waits = Vec::new();
    let (mut now, mut last) = (S, S);
    while waits.len() < 6 {
        now += S / 2;
        if looked_for(&core.on(Event::Tick, now)) {
            waits.push((now - last).as_millis());
            last = now;
        }
    }
    assert_eq!(waits, [500, 1000, 2000, 4000, 8000, 16000]);
}

/// K23: the report that a VM runs may be repeated; its run began with the first one.
#[test]
fn repeated_report_does_not_begin_a_new_run() {
    let mut core = core_of(&["v1"], 10);
    core.on(believed("v1", VmState::Running, "a", 1), S);
    core.on(believed("v1", VmState::Running, "a", 1), STEADY);
    let commands = core.on(believed("v1", VmState::Stopped, "a", 1), S + STEADY);
    assert_eq!(starts(&commands), [(vm("v1"), "QemuDied")], "it ran for a while");
}

#[test]
fn report_of_a_vm_that_is_still_down_does_not_end_the_wait() {
    let mut core = core_of(&["v1"], 10);
    core.on(believed("v1", VmState::Running, "a", 1), S);
    lose(&mut core, "a", S);
    core.on(believed("v1", VmState::Unknown, "a", 1), S);
    core.on(Event::Quarantined(host("a"), Ok(())), S);
    core.on(Event::Started(vm("v1"), Err(refused())), 2 * S);
    assert_eq!(starts(&core.on(believed("v1", VmState::Unknown, "a", 1), 2 * S)), []);
    assert_eq!(starts(&core.on(Event::Tick, 3 * S)), [(vm("v1"), "HostSilent")]);

    // Once it has run, its next failure is a new one.
    core.on(Event::Started(vm("v1"), Err(refused())), 4 * S);
    core.on(believed("v1", VmState::Running, "b", 2), 4 * S);
    lose(&mut core, "b", 4 * S);
    core.on(Event::Quarantined(host("b"), Ok(())), 4 * S);
    assert_eq!(starts(&core.on(believed("v1", VmState::Unknown, "b", 2), 4 * S)), [(vm("v1"), "HostSilent")]);
}
