//! Which VMs are failed over, when again, and which processes are searched.

use std::{sync::Arc, time::Duration};

use ringfence_messages::{
    ClusterId, Code, ErrorCode, HostId,
    host::HostStatus,
    vm::{RunningVm, VmState},
};

use super::{core::*, core_tests::*};
use crate::{
    inventory::{Inventory, InventoryIndex},
    testkit::list,
};

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
        core.on(Event::HostChanged(host(name), HostStatus::Disconnected), S);
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

/// The hosts that the only start avoids.
fn avoided(commands: &[Command]) -> Vec<HostId> {
    let start = |c: &Command| if let Command::Start { soft_avoid, .. } = c { Some(soft_avoid.clone()) } else { None };
    let [avoids] = &commands.iter().filter_map(start).collect::<Vec<_>>()[..] else { panic!("{commands:?}") };
    avoids.clone()
}

/// The VM may have died of its host: after two failures there it starts elsewhere if another host has room.
#[test]
fn vm_returns_to_its_host_until_two_starts_failed() {
    let mut core = core_of(&["v1"], 10);
    core.on(believed("v1", VmState::Running, "a", 1), S);
    assert_eq!(avoided(&core.on(believed("v1", VmState::Stopped, "a", 1), 2 * STEADY)), []);
    core.on(Event::Started(vm("v1"), Err(refused())), 2 * STEADY);
    assert_eq!(avoided(&core.on(Event::Tick, 3 * STEADY)), []);
    core.on(Event::Started(vm("v1"), Err(refused())), 3 * STEADY);
    assert_eq!(avoided(&core.on(Event::Tick, 4 * STEADY)), [host("a")]);

    let mut core = core_of(&["v1"], 10);
    core.on(believed("v1", VmState::Running, "a", 1), S);
    lose(&mut core, "a", S);
    core.on(believed("v1", VmState::Unknown, "a", 1), S);
    assert_eq!(avoided(&core.on(Event::Quarantined(host("a"), Ok(())), S)), [host("a")], "its host failed");
}

/// K23: an operator, or a run of [`STEADY`], makes the next crash the first one again.
#[test]
fn deaths_are_counted_in_a_row() {
    let crash = |core: &mut Core, now: &mut Duration, ran: Duration| {
        core.on(believed("v1", VmState::Running, "a", 1), *now);
        core.on(Event::Started(vm("v1"), Ok(Some(host("a")))), *now);
        *now += ran;
        let mut commands = core.on(believed("v1", VmState::Stopped, "a", 1), *now);
        for _ in 0..RETRY_CEILING.as_secs() + 1 {
            if !starts(&commands).is_empty() {
                return true;
            }
            *now += S;
            commands = core.on(Event::Tick, *now);
        }
        false
    };
    let (mut core, mut now) = (core_of(&["v1"], 10), S);
    for n in 1..MAX_DEATHS {
        assert!(crash(&mut core, &mut now, S), "{n}");
    }
    assert!(crash(&mut core, &mut now, STEADY), "it ran for a while");
    for n in 1..MAX_DEATHS {
        assert!(crash(&mut core, &mut now, S), "{n}");
    }
    assert!(!crash(&mut core, &mut now, S), "an operator is needed");
    core.on(Event::Requested(vm("v1"), None), now);
    for n in 1..MAX_DEATHS {
        assert!(crash(&mut core, &mut now, S), "{n}");
    }
    assert!(!crash(&mut core, &mut now, S));
}

/// K10: a host that failed and is in quarantine is not fenced either while the storm brake is engaged.
#[test]
fn storm_brake_holds_failovers_of_hosts_that_failed_before() {
    let mut core = core_of(&["v1"], 10);
    core.on(believed("v1", VmState::Running, "a", 1), S);
    lose(&mut core, "a", S);
    core.on(believed("v1", VmState::Unknown, "a", 1), S);
    core.on(Event::Quarantined(host("a"), Ok(())), S);
    core.on(Event::Started(vm("v1"), Err(refused())), S);
    for name in ["b", "c"] {
        core.on(Event::Suspected(host(name)), S);
    }
    core.on(Event::HostChanged(host("b"), HostStatus::Disconnected), S);
    assert_eq!(core.status().braked.len(), 1);
    assert_eq!(starts(&core.on(Event::Tick, 5 * S)), []);
    let commands = core.on(Event::HostChanged(host("b"), HostStatus::Connected), 6 * S);
    assert_eq!(starts(&commands), [(vm("v1"), "HostSilent")]);
}

/// The start found the VM running: nothing was failed over.
#[test]
fn start_without_a_new_incarnation_is_no_failover() {
    let mut core = core_of(&["v1"], 10);
    core.on(believed("v1", VmState::Running, "a", 1), S);
    core.on(believed("v1", VmState::Stopped, "a", 1), 2 * STEADY);
    core.on(believed("v1", VmState::Running, "a", 1), 2 * STEADY);
    assert_eq!(core.on(Event::Started(vm("v1"), Ok(Some(host("a")))), 2 * STEADY), []);
}

/// K19: a host of another cluster claims the VM. Only the host where the VM is known to run may be of another one.
#[test]
fn claim_of_a_host_of_another_cluster_is_reported() {
    let mut core = core_of(&["v1"], 10);
    let mut inventory = Inventory::clone(&core.inventory);
    inventory.hosts[9].cluster = ClusterId::from_name("c2");
    core.set_inventory(&Arc::new(InventoryIndex::new(inventory)));
    let listed = |core: &mut Core, at: &str| {
        let commands = core.on(Event::Listed(host(at), Ok(list(vec![RunningVm::qemu(vm("v1"), 9)]))), S);
        let told = commands.iter().any(|c| matches!(c, Command::Emit(HaEvent::Intruder(_))));
        (told, commands.contains(&Command::LookFor(vm("v1"), Some(host(at)))))
    };
    let claims = |core: &Core| core.claims().collect::<Vec<_>>();
    core.on(believed("v1", VmState::Running, "a", 1), S);
    assert_eq!(listed(&mut core, "b"), (false, true), "searched in its cluster");
    assert_eq!((listed(&mut core, "j"), claims(&core)), ((true, false), vec![(vm("v1"), host("j"))]));
    assert_eq!((listed(&mut core, "j"), claims(&core)), ((false, false), vec![(vm("v1"), host("j"))]), "reported once");
    core.on(Event::Listed(host("b"), Ok(list(vec![]))), S);
    assert_eq!(claims(&core), [(vm("v1"), host("j"))], "the list of another host");
    core.on(believed("v1", VmState::Running, "j", 2), S);
    assert_eq!((listed(&mut core, "j"), claims(&core)), ((false, false), vec![]), "it is known to run there");
}

/// A VM that is being started is not searched: its start queries the hosts itself.
#[test]
fn found_process_is_searched_unless_the_vm_is_being_started() {
    let listed = |core: &mut Core, at: &str| {
        let commands = core.on(Event::Listed(host(at), Ok(list(vec![RunningVm::qemu(vm("v1"), 9)]))), S);
        commands.contains(&Command::LookFor(vm("v1"), Some(host(at))))
    };
    for (state, searched) in [
        (VmState::Stopped, true),
        (VmState::Unknown, true),
        (VmState::Running, false),
        (VmState::Starting, false),
        (VmState::Stopping, false),
    ] {
        let mut core = core_of(&["v1"], 10);
        core.on(Event::Suspected(host("a")), S);
        core.on(believed("v1", state, "a", 1), S);
        assert_eq!(listed(&mut core, "a"), searched, "{state:?}");
    }
    let mut core = core_of(&["v1"], 10);
    core.on(believed("v1", VmState::Running, "a", 1), S);
    lose(&mut core, "a", S);
    core.on(believed("v1", VmState::Unknown, "a", 1), S);
    assert!(listed(&mut core, "b"));
    core.on(Event::Quarantined(host("a"), Ok(())), S);
    assert!(!listed(&mut core, "b"), "its failover is in progress");
}

/// A host in maintenance is not pinged: only the drain's query finds out that a VM in state Unknown ended there.
#[test]
fn unknown_vm_that_a_drained_host_does_not_list_is_searched() {
    for (drained, searched) in [(false, false), (true, true)] {
        let mut core = core_of(&["v1"], 10);
        core.on(Event::Maintenance(host("a"), true), S);
        core.on(believed("v1", VmState::Unknown, "a", 1), S);
        if drained {
            core.on(Event::Drain(host("a")), S);
        }
        assert_eq!(looked_for(&core.on(Event::Listed(host("a"), Ok(list(vec![]))), S)), searched);
    }
}
