//! Verdicts on hosts and failovers of VMs, step by step, and under any order of events.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use proptest::prelude::*;
use ringfence_messages::{
    ClusterId, Code, ErrorCode, HostId, VmId,
    ha::ScanHostReply,
    host::HostStatus,
    vm::{HaMode, RunningVm, VmState},
};

use super::core::*;
use crate::{
    inventory::{HaSettings, Inventory, InventoryIndex, Vm},
    testkit::{cluster_of, list, vm_of},
};

pub(super) const S: Duration = Duration::from_secs(1);

pub(super) fn host(name: &str) -> HostId {
    HostId::from_name(name)
}

pub(super) fn vm(name: &str) -> VmId {
    VmId::from_name(name)
}

/// Hosts a to j; VMs of these names on Ceph, NeverStop.
pub(super) fn core_of(vms: &[&str], parallelism: usize) -> Core {
    let ha = |name: &str| if name.starts_with("plain") { HaMode::None } else { HaMode::NeverStop };
    let of = |name: &&str| Vm { ha: ha(name), memory_mib: 16, ..vm_of(name) };
    let hosts = cluster_of(["a", "b", "c", "d", "e", "f", "g", "h", "i", "j"]);
    let inventory = Inventory { vms: vms.iter().map(of).collect(), ..hosts };
    let settings = HaSettings { parallelism, storm_brake_percent: 30 };
    let mut core = Core::new(settings, S, Arc::new(InventoryIndex::new(inventory)), ReplayedState::default());
    for name in ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j"] {
        core.on(Event::HostChanged(host(name), HostStatus::Connected), Duration::ZERO);
        core.on(Event::Listed(host(name), Ok(list(vec![]))), Duration::ZERO);
    }
    core
}

pub(super) fn believed(name: &str, state: VmState, at: &str, incarnation: u64) -> Event {
    Event::Vm(vm(name), ObservedState { state, host: Some(host(at)), incarnation, wanted: true })
}

pub(super) fn scanned(at: &str, seen: &[&str], unseen: &[&str]) -> Event {
    let ids = |names: &[&str]| names.iter().map(|name| host(name)).collect();
    Event::Scanned(host(at), Ok(ScanHostReply { seen_by: ids(seen), unseen_by: ids(unseen), reason: "r".to_owned() }))
}

pub(super) fn starts(commands: &[Command]) -> Vec<(VmId, &'static str)> {
    let start = |c: &Command| if let Command::Start { vm, cause, .. } = c { Some((*vm, cause.as_str())) } else { None };
    commands.iter().filter_map(start).collect()
}

pub(super) fn quarantines(commands: &[Command]) -> Vec<HostId> {
    commands.iter().filter_map(|c| if let Command::Quarantine(host, _) = c { Some(*host) } else { None }).collect()
}

/// `a` is Disconnected and no sibling host reaches it; returns the commands.
pub(super) fn lose(core: &mut Core, name: &str, now: Duration) -> Vec<Command> {
    core.on(Event::Suspected(host(name)), now);
    core.on(scanned(name, &[], &["b", "c"]), now);
    core.on(Event::HostChanged(host(name), HostStatus::Disconnected), now)
}

#[test]
fn unseen_host_fails_and_failovers_wait_for_quarantine() {
    let mut core = core_of(&["v1", "v2", "plain"], 10);
    for (name, at) in [("v1", "a"), ("v2", "b"), ("plain", "a")] {
        core.on(believed(name, VmState::Running, at, 1), S);
    }
    assert_eq!(core.on(Event::Suspected(host("a")), S), [Command::Scan(host("a"))], "a suspect is scanned at once");
    assert_eq!(core.on(scanned("a", &[], &["b", "c"]), S), [], "it is not Disconnected yet");
    let commands = core.on(Event::HostChanged(host("a"), HostStatus::Disconnected), 2 * S);
    assert_eq!(quarantines(&commands), [host("a")]);
    let commands = core.on(believed("v1", VmState::Unknown, "a", 1), 2 * S);
    assert_eq!(starts(&commands), [], "not before it is durable");
    core.on(believed("plain", VmState::Unknown, "a", 1), 2 * S);
    let commands = core.on(Event::Quarantined(host("a"), Ok(())), 2 * S);
    assert_eq!(starts(&commands), [(vm("v1"), "HostSilent")], "only what is NeverStop, and only of that host");
    assert!(starts(&core.on(Event::Tick, 3 * S)).is_empty(), "one failover at a time");

    // After the failover the VM is observed there, and that is reported once.
    core.on(believed("v1", VmState::Running, "b", 2), 3 * S);
    let commands = core.on(Event::Started(vm("v1"), Ok(Some(host("b")))), 3 * S);
    assert!(
        matches!(&commands[..], [Command::Emit(HaEvent::Started(e))] if e.from_host.as_deref() == Some("a")),
        "{commands:?}"
    );
}

#[test]
fn unrecorded_quarantine_is_retried_and_reported_once() {
    let told =
        |commands: &[Command]| commands.iter().filter(|c| matches!(c, Command::Emit(HaEvent::HostFailed(_)))).count();
    let full = || ErrorCode::new(Code::IO, "disk full");
    let mut core = core_of(&["v"], 10);
    assert_eq!(told(&lose(&mut core, "a", S)), 1);
    for n in 2..5 {
        core.on(Event::Quarantined(host("a"), Err(full())), n * S);
        let commands = core.on(scanned("a", &[], &["b", "c"]), n * S);
        assert_eq!((quarantines(&commands), told(&commands)), (vec![host("a")], 0), "at {n} s");
    }
    core.on(Event::Quarantined(host("a"), Err(full())), 5 * S);
    core.on(Event::HostChanged(host("a"), HostStatus::Connected), 6 * S);
    assert_eq!(told(&lose(&mut core, "a", 7 * S)), 1, "another failure is news");
}

#[test]
fn host_reached_or_never_probed_does_not_fail() {
    for (seen, unseen) in [(&["b"][..], &["c"][..]), (&[], &[])] {
        let mut core = core_of(&["v1"], 10);
        core.on(believed("v1", VmState::Running, "a", 1), S);
        core.on(Event::Suspected(host("a")), S);
        core.on(scanned("a", seen, unseen), S);
        let commands = core.on(Event::HostChanged(host("a"), HostStatus::Disconnected), S);
        assert_eq!(quarantines(&commands), []);
        core.on(believed("v1", VmState::Unknown, "a", 1), S);
        assert_eq!(starts(&core.on(Event::Tick, 2 * S)), []);
    }
}

#[test]
fn stale_scan_is_repeated_before_verdict() {
    let mut core = core_of(&[], 10);
    core.on(Event::Suspected(host("a")), S);
    core.on(scanned("a", &[], &["b"]), S);
    let commands = core.on(Event::HostChanged(host("a"), HostStatus::Disconnected), S + SCAN_FRESH);
    assert_eq!(commands, [Command::Scan(host("a"))]);
}

/// The requirement: cut off from the controller and from storage, alive.
#[test]
fn unwatched_vm_is_lost_although_its_host_is_reached() {
    let mut core = core_of(&["v1"], 10);
    core.on(believed("v1", VmState::Running, "a", 1), S);
    core.on(Event::HostChanged(host("a"), HostStatus::Disconnected), S);
    core.on(believed("v1", VmState::Unknown, "a", 1), S);
    core.on(scanned("a", &["b"], &["c"]), S);
    let looks = core.on(Event::Tick, 2 * S);
    assert!(looks.contains(&Command::Watch(vm("v1"))), "{looks:?}");
    assert_eq!(starts(&core.on(Event::Unwatched(vm("v1"), true), 2 * S)), [], "one check is not enough");
    core.on(scanned("a", &["b"], &["c"]), 3 * S);
    core.on(Event::Tick, 3 * S);
    assert_eq!(starts(&core.on(Event::Unwatched(vm("v1"), false), 3 * S)), [], "a watcher resets the count");
    for now in [4, 5] {
        core.on(scanned("a", &["b"], &["c"]), now * S);
        core.on(Event::Tick, now * S);
        let commands = core.on(Event::Unwatched(vm("v1"), true), now * S);
        assert_eq!(starts(&commands).len(), usize::from(now == 5));
    }
}

#[test]
fn storm_brake_is_released_by_recovery_or_attestation() {
    let mut core = core_of(&["v1"], 10);
    core.on(believed("v1", VmState::Running, "a", 1), S);
    for name in ["a", "b", "c"] {
        core.on(Event::Suspected(host(name)), S);
    }
    let mut told = Vec::new();
    for name in ["a", "b", "c"] {
        core.on(scanned(name, &[], &["d", "e"]), S);
        told.extend(core.on(Event::HostChanged(host(name), HostStatus::Disconnected), S));
    }
    core.on(believed("v1", VmState::Unknown, "a", 1), S);
    assert_eq!(quarantines(&told), [], "3 of 10 are 30 percent: nothing is fenced");
    let brakes = |commands: &[Command]| -> Vec<bool> {
        commands
            .iter()
            .filter_map(|c| if let Command::Emit(HaEvent::Brake(e)) = c { Some(e.engaged) } else { None })
            .collect()
    };
    assert_eq!(brakes(&told), [true], "emitted once");
    assert_eq!(core.status().braked, [ClusterId::from_name("c1")]);
    assert_eq!(starts(&core.on(Event::Tick, 2 * S)), []);

    // An operator attests that a is off: a fails, and counts no more.
    let commands = core.on(Event::Confirmed(host("a")), 2 * S);
    assert_eq!((quarantines(&commands), brakes(&commands)), (vec![host("a")], vec![false]));
    let commands = core.on(Event::Quarantined(host("a"), Ok(())), 2 * S);
    assert_eq!(starts(&commands), [(vm("v1"), "HostSilent")]);
    // The others are judged as before.
    assert_eq!(quarantines(&core.on(scanned("b", &[], &["d"]), 3 * S)), [host("b")]);
}

#[test]
fn failovers_are_bounded_and_back_off() {
    let names: Vec<String> = (0..5).map(|n| format!("v{n}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut core = core_of(&names, 2);
    for name in &names {
        core.on(believed(name, VmState::Running, "a", 1), S);
    }
    lose(&mut core, "a", S);
    for name in &names {
        core.on(believed(name, VmState::Unknown, "a", 1), S);
    }
    let mut under_way = starts(&core.on(Event::Quarantined(host("a"), Ok(())), S));
    assert_eq!(under_way.len(), 2);
    let (first, _) = under_way.remove(0);
    let refused = || Err(ErrorCode::new(Code::HOST_START_VM, "may still write"));
    let commands = core.on(Event::Started(first, refused()), S);
    assert_eq!(starts(&commands).len(), 1, "the next one's turn");
    assert!(commands.iter().any(|c| matches!(c, Command::Emit(HaEvent::Blocked(_)))));
    // Retries come after 1, 2, 4, 8, 16, 30, 30 seconds.
    let mut core = core_of(&["v"], 2);
    core.on(believed("v", VmState::Running, "a", 1), S);
    lose(&mut core, "a", S);
    core.on(believed("v", VmState::Unknown, "a", 1), S);
    core.on(Event::Quarantined(host("a"), Ok(())), S);
    let (mut now, mut waits, mut told) = (S, Vec::new(), 0);
    for _ in 0..7 {
        let commands = core.on(Event::Started(vm("v"), refused()), now);
        told += commands.iter().filter(|c| matches!(c, Command::Emit(HaEvent::Blocked(_)))).count();
        let failed = now;
        while starts(&core.on(Event::Tick, now)).is_empty() {
            now += S / 2;
        }
        waits.push((now - failed).as_secs());
    }
    assert_eq!((waits, told), (vec![1, 2, 4, 8, 16, 30, 30], 1), "the reason is told when it changes");
}

#[test]
fn reconciliation_and_failovers_of_a_host_exclude_each_other() {
    let mut core = core_of(&["v1", "v2"], 1);
    for name in ["v1", "v2"] {
        core.on(believed(name, VmState::Running, "a", 1), S);
    }
    lose(&mut core, "a", S);
    for name in ["v1", "v2"] {
        core.on(believed(name, VmState::Unknown, "a", 1), S);
    }
    let under_way = starts(&core.on(Event::Quarantined(host("a"), Ok(())), S));
    let [(first, _)] = under_way[..] else { panic!("{under_way:?}") };
    let (first, second) = if first == vm("v1") { ("v1", "v2") } else { ("v2", "v1") };
    core.on(Event::HostChanged(host("a"), HostStatus::Connecting), 2 * S);
    assert!(core.on(Event::Tick, 2 * S).contains(&Command::QueryAnswering(ClusterId::from_name("c1"))));
    let cleans = |commands: &[Command]| commands.iter().any(|c| matches!(c, Command::Reconcile { .. }));
    let answering = || Event::Answering(ClusterId::from_name("c1"), vec![host("a")]);
    assert!(!cleans(&core.on(answering(), 2 * S)), "the first is being fenced there");
    core.on(believed(first, VmState::Running, "b", 2), 3 * S);
    let commands = core.on(Event::Started(vm(first), Ok(Some(host("b")))), 3 * S);
    // The other VM's turn came first: it may still be fenced there too.
    assert!(!cleans(&commands) && starts(&commands).len() == 1, "{commands:?}");
    core.on(believed(second, VmState::Running, "b", 2), 3 * S);
    assert!(cleans(&core.on(Event::Started(vm(second), Ok(Some(host("b")))), 3 * S)));
    assert!(core.may_quarantine(host("a")).is_err(), "no fence on a host that is being reconciled");
    assert!(!cleans(&core.on(Event::Tick, 4 * S)), "one at a time");
    let error = ErrorCode::new(Code::OPERATION, "something on the host restarts it");
    core.on(Event::Reconciled(host("a"), Err(error)), 5 * S);
    assert!(core.status().hosts[0].standing.contains("something on the host restarts it"));
    assert!(cleans(&core.on(Event::Tick, 6 * S)), "tried again");
    core.on(Event::Reconciled(host("a"), Ok(())), 7 * S);
    core.on(Event::HostChanged(host("a"), HostStatus::Connected), 7 * S);
    assert!(core.status().hosts.is_empty());
}

#[test]
fn missing_and_unexpected_qemus_are_searched() {
    let mut core = core_of(&["v1", "v2", "v3"], 10);
    core.on(believed("v1", VmState::Running, "a", 1), S);
    core.on(believed("v2", VmState::Stopped, "a", 1), S);
    let running = |name: &str, other_agent| RunningVm { other_agent, ..RunningVm::qemu(vm(name), 7) };
    let listed = |core: &mut Core, vms: Vec<RunningVm>| core.on(Event::Listed(host("a"), Ok(list(vms))), S);
    let commands = listed(&mut core, vec![running("v1", false)]);
    assert!(commands.iter().all(|c| !matches!(c, Command::LookFor(..))), "{commands:?}");
    assert!(listed(&mut core, vec![]).contains(&Command::LookFor(vm("v1"), None)));
    assert!(listed(&mut core, vec![running("v3", false)]).contains(&Command::LookFor(vm("v3"), Some(host("a")))));
    let other = listed(&mut core, vec![running("v1", false), running("v3", true)]);
    assert!(
        !other.iter().any(|c| matches!(c, Command::LookFor(id, _) if *id == vm("v3"))),
        "another agent's is not here"
    );
}

#[test]
fn restart_replays_all_state() {
    let mut before = core_of(&["v1"], 10);
    before.on(believed("v1", VmState::Running, "a", 1), S);
    let Event::Vm(id, memory) = believed("v1", VmState::Starting, "a", 1) else { unreachable!() };
    let hosts = Inventory {
        vms: core_of(&["v1"], 1).inventory.vms.clone(),
        ..cluster_of(["a", "b", "c", "d", "e", "f", "g", "h", "i", "j"])
    };
    let memory =
        ReplayedState { vms: vec![(id, memory)], quarantined: BTreeSet::from([host("a")]), ..ReplayedState::default() };
    let mut core = Core::new(HaSettings::default(), S, Arc::new(InventoryIndex::new(hosts)), memory);
    core.on(Event::HostChanged(host("a"), HostStatus::Disconnected), S);
    let commands = core.on(scanned("a", &[], &["b"]), S);
    assert_eq!(quarantines(&commands), [], "it is already");
    assert_eq!(starts(&commands), [], "others were not heard yet (K7)");
    let mut commands = Vec::new();
    for name in ["b", "c", "d", "e", "f", "g", "h", "i", "j"] {
        assert_eq!(starts(&commands), [], "{name} was not heard yet (K7)");
        core.on(Event::HostChanged(host(name), HostStatus::Connected), S);
        commands = core.on(Event::Listed(host(name), Ok(list(vec![]))), S);
    }
    assert_eq!(starts(&commands), [(vm("v1"), "HostSilent")], "the failover starts again");
}

/// K9: an attestation is valid for one outage. Any answer of the host ends it, durably and at once.
#[test]
fn attestation_ends_with_the_first_answer() {
    for answer in [HostStatus::Connecting, HostStatus::Connected] {
        let mut core = core_of(&["v1"], 10);
        core.on(Event::HostChanged(host("a"), HostStatus::Disconnected), S);
        assert_eq!(quarantines(&core.on(Event::Confirmed(host("a")), S)), [host("a")]);
        core.on(Event::Quarantined(host("a"), Ok(())), S);
        let commands = core.on(Event::HostChanged(host("a"), answer), 2 * S);
        assert!(commands.contains(&Command::EndAttestation(host("a"))), "{answer:?}: {commands:?}");
        core.on(Event::Reconciled(host("a"), Ok(())), 3 * S);
        core.on(Event::HostChanged(host("a"), HostStatus::Connected), 3 * S);
        // A day later the host is unreachable, and sibling hosts reach it.
        let later = 86_400 * S;
        core.on(Event::HostChanged(host("a"), HostStatus::Disconnected), later);
        assert_eq!(quarantines(&core.on(scanned("a", &["b"], &["c"]), later)), []);
    }
}

/// K10: a VM that stopped on a host that is now unreachable waits like one in state Unknown, also on request of an
/// operator.
#[test]
fn stopped_vm_does_not_bypass_storm_brake() {
    let mut core = core_of(&["v1"], 10);
    core.on(believed("v1", VmState::Running, "a", 1), S);
    for name in ["a", "b", "c", "d"] {
        core.on(Event::Suspected(host(name)), S);
        core.on(Event::HostChanged(host(name), HostStatus::Disconnected), S);
    }
    assert_eq!(core.status().braked.len(), 1);
    assert_eq!(starts(&core.on(believed("v1", VmState::Stopped, "a", 1), 2 * S)), []);
    assert_eq!(starts(&core.on(Event::Tick, 3 * S)), []);
    let commands = core.on(Event::Requested(vm("v1"), None), 4 * S);
    assert!(
        matches!(&commands[..], [Command::Refuse(_, error)] if error.details.contains("confirm-fenced")),
        "{commands:?}"
    );

    // A start that was in progress when the brake engaged fences no more either, unless an operator attests.
    let error = core.may_quarantine(host("a")).unwrap_err();
    assert!(error.details.contains("storm brake of c1"), "{error}");
    core.on(Event::Confirmed(host("d")), 5 * S);
    core.may_quarantine(host("d")).unwrap();

    // A host quarantined by a fence still counts.
    core.on(Event::Quarantined(host("a"), Ok(())), 5 * S);
    assert_eq!(core.status().braked.len(), 1, "three are still unreachable");
    core.on(Event::HostChanged(host("c"), HostStatus::Connected), 6 * S);
    core.on(Event::HostChanged(host("b"), HostStatus::Connected), 6 * S);
    assert_eq!(core.status().braked.len(), 0);
}

/// K13: a host that a storage rejects is quarantined, also if that is found during another reconciliation.
#[test]
fn rejected_host_without_record_is_reconciled() {
    let mut core = core_of(&["v1"], 10);
    let (a, clean) = (host("a"), Command::Reconcile(host("a")));
    core.on(Event::HostChanged(a, HostStatus::Connected), S);
    core.on(Event::Refused(a), S);
    assert_eq!(quarantines(&core.on(Event::Tick, 2 * S)), [a]);
    assert_eq!(quarantines(&core.on(Event::Tick, 3 * S)), [], "once");
    core.on(Event::Quarantined(a, Err(ErrorCode::new(Code::IO, "disk full"))), 3 * S);
    assert_eq!(quarantines(&core.on(Event::Tick, 3 * S + SCAN_EVERY)), [a], "again");
    core.on(Event::Quarantined(a, Ok(())), 6 * S);
    assert!(core.on(Event::Answering(ClusterId::from_name("c1"), vec![a]), 10 * S).contains(&clean));
    core.on(Event::Refused(a), 11 * S);
    core.on(Event::Reconciled(a, Ok(())), 12 * S);
    assert_eq!(quarantines(&core.on(Event::Tick, 20 * S)), [a], "that reconciling may not have seen it");
    assert!(core.on(Event::Quarantined(a, Ok(())), 21 * S).contains(&clean), "it answers still");
    core.on(Event::Reconciled(a, Ok(())), 31 * S);
    assert_eq!(quarantines(&core.on(Event::Tick, 40 * S)), []);
}

/// K23: a start succeeded if the VM ran for a while. A crashing VM is restarted with backoff, then an operator is
/// needed.
#[test]
fn crashing_vm_is_not_restarted_for_ever() {
    let mut core = core_of(&["v1"], 10);
    core.on(believed("v1", VmState::Running, "a", 1), S);
    let (mut now, mut count, mut told, mut incarnation) = (S, 0, 0, 1);
    let mut commands = core.on(believed("v1", VmState::Stopped, "a", 1), now);
    for _ in 0..3600 {
        told += commands.iter().filter(|c| matches!(c, Command::Emit(HaEvent::Blocked(_)))).count();
        if starts(&commands).is_empty() {
            now += S;
            commands = core.on(Event::Tick, now);
            continue;
        }
        (count, incarnation) = (count + 1, incarnation + 1);
        core.on(believed("v1", VmState::Running, "a", incarnation), now);
        core.on(Event::Started(vm("v1"), Ok(Some(host("a")))), now);
        commands = core.on(believed("v1", VmState::Stopped, "a", incarnation), now);
    }
    // The first crash was of a start without HA.
    assert_eq!((count, told), (MAX_DEATHS as usize - 1, 1));
    let commands = core.on(Event::Requested(vm("v1"), None), now);
    assert_eq!(starts(&commands), [(vm("v1"), "Operator")], "an operator resets the backoff");

    // A VM that ran for a while is restarted at once.
    core.on(believed("v1", VmState::Running, "a", 99), now);
    core.on(Event::Started(vm("v1"), Ok(Some(host("a")))), now);
    let commands = core.on(believed("v1", VmState::Stopped, "a", 99), now + STEADY);
    assert_eq!(starts(&commands), [(vm("v1"), "QemuDied")]);
}

/// K7: a failed query does not count, nor does one without sight; a host that cannot be queried is not waited for.
#[test]
fn no_start_before_every_host_is_heard() {
    let inventory = core_of(&["v1"], 1).inventory.clone();
    let stopped = ObservedState { state: VmState::Stopped, host: Some(host("a")), incarnation: 1, wanted: true };
    let memory = ReplayedState { vms: vec![(vm("v1"), stopped)], ..ReplayedState::default() };
    let mut core = Core::new(HaSettings::default(), S, inventory, memory);
    let cluster = ClusterId::from_name("c1");
    for name in ["a", "b", "c", "d", "e", "f", "g"] {
        let commands = core.on(Event::HostChanged(host(name), HostStatus::Connected), S);
        assert!(commands.contains(&Command::List(host(name))), "queried at once: {commands:?}");
        core.on(Event::Listed(host(name), Ok(list(vec![]))), S);
    }
    core.on(Event::Maintenance(host("h"), true), S);
    core.on(Event::HostChanged(host("i"), HostStatus::Connected), S);
    assert_eq!(core.unsettled(cluster), [host("i"), host("j")]);
    assert_eq!(starts(&core.on(Event::Tick, S)), []);
    for _ in 0..MAX_DEAF {
        assert_eq!(core.unheard(cluster), []);
        core.on(Event::Listed(host("i"), Err(ErrorCode::new(Code::TIMEOUT, "no answer"))), S);
    }
    assert_eq!((core.unsettled(cluster), core.unheard(cluster)), (vec![host("j")], vec![host("i")]));
    let asked = |commands: &[Command]| commands.contains(&Command::List(host("i")));
    core.on(Event::Suspected(host("i")), S);
    assert!(!asked(&core.on(Event::Tick, 2 * S)), "a deaf host is queried rarely");
    assert!(asked(&core.on(Event::Tick, S + RETRY_CEILING)), "and not forgotten");
    core.on(Event::HostChanged(host("i"), HostStatus::Connected), 2 * S);
    let commands = core.on(Event::HostChanged(host("j"), HostStatus::Disconnected), S);
    assert_eq!(starts(&commands), [(vm("v1"), "QemuDied")], "no host is waited for any more");
    assert_eq!(core.unheard(cluster), [host("i"), host("j")]);
    core.on(Event::Quarantined(host("j"), Ok(())), S);
    assert_eq!(core.unheard(cluster), [host("i"), host("j")], "a quarantine proves nothing about an unheard host");
    core.on(Event::Confirmed(host("j")), S);
    assert_eq!(core.unheard(cluster), [host("i")]);
}

/// K7: since the backup a host may have returned to service and run a VM without a record.
#[test]
fn restored_journal_excuses_no_host_from_census() {
    let inventory = core_of(&["v1"], 1).inventory.clone();
    let of = |names: &[&str]| names.iter().map(|name| host(name)).collect::<std::collections::BTreeSet<_>>();
    for (unproven, waited_for, silent) in
        [(of(&[]), vec![], vec![]), (of(&["a", "b"]), vec![host("a")], vec![host("b")])]
    {
        let (quarantined, maintenance) = (of(&["b"]), of(&["a"]));
        let memory = ReplayedState { quarantined, maintenance, unproven, ..ReplayedState::default() };
        let mut core = Core::new(HaSettings::default(), S, inventory.clone(), memory);
        let cluster = ClusterId::from_name("c1");
        for name in ["c", "d", "e", "f", "g", "h", "i", "j"] {
            core.on(Event::Listed(host(name), Ok(list(vec![]))), S);
        }
        core.on(Event::HostChanged(host("b"), HostStatus::Disconnected), S);
        assert_eq!((core.unsettled(cluster), core.unheard(cluster)), (waited_for, silent.clone()));
        core.on(Event::Listed(host("a"), Ok(list(vec![]))), S);
        assert_eq!((core.unsettled(cluster), core.unheard(cluster)), (vec![], silent));
    }
}

/// K8, K19, K20: a second QEMU is searched; a mere claim is reported once and not accepted.
#[test]
fn second_qemu_is_searched_and_claim_reported_once() {
    let mut core = core_of(&["v1"], 1);
    core.on(believed("v1", VmState::Running, "a", 1), S);
    let on_b = |process: RunningVm| Event::Listed(host("b"), Ok(list(vec![process])));
    let looks = |commands: &[Command]| commands.contains(&Command::LookFor(vm("v1"), Some(host("b"))));
    assert!(looks(&core.on(on_b(RunningVm::qemu(vm("v1"), 9)), S)));
    let coming = RunningVm { incoming: true, ..RunningVm::qemu(vm("v1"), 9) };
    assert!(!looks(&core.on(on_b(coming), S)), "a migration is under way");
    let told = |commands: &[Command]| commands.iter().any(|c| matches!(c, Command::Emit(HaEvent::Intruder(_))));
    let stranger = || RunningVm { stranger: Some("of user nobody".to_owned()), ..RunningVm::qemu(vm("v1"), 9) };
    let commands = core.on(on_b(stranger()), S);
    assert!(told(&commands) && !looks(&commands), "{commands:?}");
    assert!(!told(&core.on(on_b(stranger()), S)), "once");
    core.on(Event::Listed(host("b"), Ok(list(vec![]))), S);
    assert!(told(&core.on(on_b(stranger()), S)), "it is there again");
    assert_eq!(core.claims().count(), 0, "a stranger is nothing to the VM");
    // It hides nothing on the VM's own host.
    let on_a = Event::Listed(host("a"), Ok(list(vec![stranger()])));
    assert!(core.on(on_a, S).contains(&Command::LookFor(vm("v1"), None)));
}

proptest! {
    /// For any sequence of events: no host fails that no sibling host missed, failovers are bounded and one per VM,
    /// and a host is never reconciled while one of its VMs is in a failover.
    #[test]
    fn failovers_are_bounded_and_never_beside_reconciliation(
        steps in prop::collection::vec((0u8..12, 0usize..3, 0usize..4, any::<bool>()), 1..150)
    ) {
        let (names, places) = (["v0", "v1", "v2", "v3"], ["a", "b", "c"]);
        let mut core = core_of(&names, 2);
        for (n, name) in names.iter().enumerate() {
            core.on(believed(name, VmState::Running, places[n % 3], 1), Duration::ZERO);
        }
        let (mut flows, mut reconciling) = (std::collections::BTreeMap::new(), BTreeSet::new());
        let mut at: Vec<&str> = (0..4).map(|n| places[n % 3]).collect();
        let mut unseen = BTreeSet::new();
        for (now, (action, h, v, ok)) in steps.into_iter().enumerate() {
            let (place, name) = (places[h], names[v]);
            let refused = ErrorCode::new(Code::OPERATION, "no");
            let event = match action {
                0 => Event::Suspected(host(place)),
                1 => Event::HostChanged(host(place), HostStatus::Disconnected),
                2 => Event::HostChanged(host(place), if ok { HostStatus::Connected } else { HostStatus::Connecting }),
                3 if ok => { unseen.insert(host(place)); scanned(place, &[], &["d"]) }
                3 => scanned(place, &["d"], &[]),
                4 => Event::Quarantined(host(place), if ok { Ok(()) } else { Err(refused) }),
                5 if reconciling.remove(&host(place)) => {
                    Event::Reconciled(host(place), if ok { Ok(()) } else { Err(refused) })
                }
                6 => Event::Answering(ClusterId::from_name("c1"), vec![host(place)]),
                7 if flows.remove(&vm(name)).is_some() => {
                    if ok {
                        at[v] = "d";
                        core.on(believed(name, VmState::Running, "d", now as u64 + 2), S * now as u32);
                    }
                    Event::Started(vm(name), if ok { Ok(Some(host("d"))) } else { Err(refused) })
                }
                8 if !flows.contains_key(&vm(name)) => {
                    believed(name, if ok { VmState::Unknown } else { VmState::Stopped }, at[v], 1)
                }
                9 => Event::Unwatched(vm(name), ok),
                10 if !flows.contains_key(&vm(name)) => Event::Requested(vm(name), None),
                _ => Event::Tick,
            };
            for command in core.on(event, S * now as u32) {
                match command {
                    Command::Start { vm: id, .. } => {
                        let n = names.iter().position(|name| vm(name) == id).unwrap();
                        let from = host(at[n]);
                        prop_assert!(flows.insert(id, from).is_none(), "two failovers of one VM");
                        prop_assert!(!reconciling.contains(&from), "a failover on a host that is being reconciled");
                    }
                    Command::Reconcile(host) => {
                        prop_assert!(reconciling.insert(host), "reconciled twice at the same time");
                        prop_assert!(!flows.values().any(|from| *from == host), "reconciled beside a failover");
                    }
                    Command::Emit(HaEvent::HostFailed(failed)) => {
                        prop_assert!(unseen.contains(&failed.host_uuid),
                            "failed without a sibling host that missed it");
                    }
                    _ => {}
                }
            }
        }
    }
}
