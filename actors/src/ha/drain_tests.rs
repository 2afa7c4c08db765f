//! Drains, step by step, after a restart, and under any order of events.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use proptest::prelude::*;
use ringfence_messages::{
    ClusterId, Code, ErrorCode, HostId, VmId,
    ha::{Candidate, TargetReply},
    host::HostStatus,
    vm::{HaMode, RunningVm, VmState},
};

use super::{
    core::*,
    drain::{MOVES_AT_ONCE, Move, STAYS_AFTER, WATCHED},
};
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

/// Hosts a, b, c; VMs of these names. Those called plain have HA mode None.
pub(super) fn core_with(vms: &[&str], memory: ReplayedState) -> Core {
    let ha = |name: &str| if name.starts_with("plain") { HaMode::None } else { HaMode::NeverStop };
    let of = |name: &&str| Vm { ha: ha(name), memory_mib: 1024, ..vm_of(name) };
    let inventory = Inventory { vms: vms.iter().map(of).collect(), ..cluster_of(["a", "b", "c"]) };
    let settings = HaSettings { parallelism: 10, storm_brake_percent: 30 };
    let mut core = Core::new(settings, S, Arc::new(InventoryIndex::new(inventory)), memory);
    for name in ["a", "b", "c"] {
        core.on(Event::HostChanged(host(name), HostStatus::Connected), Duration::ZERO);
        core.on(Event::Listed(host(name), Ok(list(vec![]))), Duration::ZERO);
    }
    core
}

/// All of them run on `a`.
pub(super) fn running_on_a(vms: &[&str]) -> Core {
    let mut core = core_with(vms, ReplayedState::default());
    vms.iter().for_each(|name| drop(core.on(believed(name, VmState::Running, "a", 1), S)));
    core
}

pub(super) fn observed(state: VmState, at: &str, incarnation: u64) -> ObservedState {
    ObservedState { state, host: Some(host(at)), incarnation, wanted: true }
}

pub(super) fn believed(name: &str, state: VmState, at: &str, incarnation: u64) -> Event {
    Event::Vm(vm(name), observed(state, at, incarnation))
}

pub(super) fn drain(core: &mut Core, name: &str, now: Duration) -> Vec<Command> {
    let mut commands = core.on(Event::Maintenance(host(name), true), now);
    commands.extend(core.on(Event::Drain(host(name)), now));
    commands
}

pub(super) fn found(at: Option<&str>) -> ringfence_messages::Result<TargetReply> {
    Ok(TargetReply { host_uuid: at.map(host), full: 2, ..TargetReply::default() })
}

pub(super) fn broken() -> ErrorCode {
    ErrorCode::new(Code::IO, "broken")
}

/// The commands in short: `place vm`, `intend vm`, `stop vm`, `start vm cause`, `told vm host`, `drained host`.
pub(super) fn says(commands: &[Command]) -> Vec<String> {
    let names: BTreeMap<VmId, String> =
        ["v1", "v2", "v3", "v4", "plain", "v0"].iter().map(|name| (vm(name), (*name).to_owned())).collect();
    let name = |id: &VmId| names[id].clone();
    let one = |command: &Command| match command {
        Command::Place(id) => Some(format!("place {}", name(id))),
        Command::IntendMove(of) => Some(format!("intend {} {}", of.vm, of.host.as_deref().unwrap_or("nowhere"))),
        Command::Evict(id, _) => Some(format!("stop {}", name(id))),
        Command::Start { vm, cause, .. } => Some(format!("start {} {}", name(vm), cause.as_str())),
        Command::Emit(HaEvent::Move(of)) => {
            let told = if of.moving { "still" } else { "told" };
            Some(format!("{told} {} on {}: {}", of.vm, of.host.as_deref().unwrap_or("none"), of.reason))
        }
        Command::Emit(HaEvent::Drained(of)) => Some(format!("drained {}", of.host)),
        Command::Emit(HaEvent::Started(of)) => Some(format!("brought back {}", of.vm)),
        Command::Emit(HaEvent::Blocked(of)) => Some(format!("blocked {}", of.vm)),
        _ => None,
    };
    commands.iter().filter_map(one).collect()
}

/// Takes a VM to the point where it is being stopped.
pub(super) fn to_the_stop(core: &mut Core, name: &str, now: Duration) {
    assert_eq!(says(&core.on(Event::Placed(vm(name), found(Some("b"))), now)), [format!("intend {name} b")]);
    assert_eq!(says(&core.on(Event::MoveIntended(vm(name), Ok(())), now)), [format!("stop {name}")]);
}

#[test]
fn drain_places_intends_stops_and_starts_in_order() {
    // Not NeverStop: it is started all the same.
    let mut core = running_on_a(&["plain"]);
    assert_eq!(says(&drain(&mut core, "a", S)), ["place plain"]);
    assert_eq!(says(&core.on(Event::Tick, 2 * S)), [""; 0], "one thing at a time");
    to_the_stop(&mut core, "plain", 2 * S);
    assert_eq!(says(&core.on(Event::Tick, 3 * S)), [""; 0], "not before it is verified gone");
    let commands = core.on(Event::Evicted(vm("plain"), Ok(observed(VmState::Stopped, "a", 1))), 3 * S);
    assert_eq!(says(&commands), [""; 0], "something there may start it again");
    assert_eq!(says(&core.on(Event::Tick, 3 * S + WATCHED)), ["start plain Drain"]);
    assert_eq!(
        says(&core.on(Event::Listed(host("a"), Ok(list(vec![]))), 4 * S)),
        [""; 0],
        "not empty while one of its VMs is down"
    );
    core.on(believed("plain", VmState::Running, "b", 2), 4 * S);
    let commands = core.on(Event::Started(vm("plain"), Ok(Some(host("b")))), 4 * S);
    assert_eq!(says(&commands), ["told plain on b: runs on b"], "a moved VM is no failover event");

    let commands = core.on(Event::Tick, 5 * S);
    let asked = commands.iter().filter(|command| **command == Command::List(host("a"))).count();
    assert_eq!(asked, 2, "also by the drain: it is queried before it counts as empty");
    let left = RunningVm::qemu(vm("plain"), 1);
    assert_eq!(
        says(&core.on(Event::Listed(host("a"), Ok(list(vec![left]))), 5 * S)),
        [""; 0],
        "something of ours is there"
    );
    assert_eq!(says(&core.on(Event::Listed(host("a"), Ok(list(vec![]))), 6 * S)), ["drained a"]);
    assert_eq!(says(&core.on(Event::Listed(host("a"), Ok(list(vec![]))), 7 * S)), [""; 0], "emitted once");
    let asked = core.on(Event::Tick, 8 * S).iter().filter(|command| **command == Command::List(host("a"))).count();
    assert_eq!(asked, 1, "by the census alone");
}

#[test]
fn vm_without_target_is_not_stopped_and_blocks_none() {
    let mut core = running_on_a(&["v1", "v2", "v3"]);
    let mut placed = says(&drain(&mut core, "a", S));
    let (mut told, mut stuck) = (0, Vec::new());
    for n in 1..60u32 {
        let mut commands = Vec::new();
        for what in std::mem::take(&mut placed) {
            let name = what.strip_prefix("place ").unwrap().to_owned();
            stuck.push(name.clone());
            commands.extend(core.on(Event::Placed(vm(&name), found(None)), n * S));
        }
        commands.extend(core.on(Event::Tick, n * S));
        told += commands.iter().filter(|c| matches!(c, Command::Emit(HaEvent::Move(_)))).count();
        placed = says(&commands).into_iter().filter(|what| !what.starts_with("told")).collect();
        assert!(placed.iter().all(|what| what.starts_with("place")), "{placed:?}");
        assert!(placed.len() <= MOVES_AT_ONCE);
    }
    assert_eq!(told, 3, "each once, for the reason stays the same");
    stuck.sort();
    let each = ["v1", "v2", "v3"].map(|name| stuck.iter().filter(|of| *of == name).count());
    assert!(each.iter().all(|tries| (3..12).contains(tries)), "with growing pauses: {each:?}");
    let standing = core.status().hosts.remove(0).standing;
    assert!(standing.contains("v1 stays for now: no host has room for v1: 2 Connected"), "{standing}");
}

#[test]
fn repeated_request_retries_at_once() {
    let mut core = running_on_a(&["v1"]);
    drain(&mut core, "a", S);
    core.on(Event::Placed(vm("v1"), found(None)), S);
    assert_eq!(says(&core.on(Event::Tick, 2 * S)), [""; 0]);
    assert_eq!(says(&core.on(Event::Drain(host("a")), 2 * S)), ["place v1"]);
}

/// The drain ended, or the VM did, while its target was queried.
#[test]
fn target_that_comes_late_moves_nothing() {
    for ends in [Event::Maintenance(host("a"), false), believed("plain", VmState::Stopped, "a", 1)] {
        let mut core = running_on_a(&["plain"]);
        assert_eq!(says(&drain(&mut core, "a", S)), ["place plain"]);
        core.on(ends, 2 * S);
        assert_eq!(says(&core.on(Event::Placed(vm("plain"), found(Some("b"))), 2 * S)), [""; 0]);
        assert_eq!(says(&core.on(Event::Tick, 60 * S)), [""; 0]);
    }
}

/// The drain ended while the intent was being recorded, and was requested again.
#[test]
fn recorded_move_of_an_ended_drain_is_known_to_the_next_drain() {
    let mut core = running_on_a(&["v1"]);
    drain(&mut core, "a", S);
    core.on(Event::Placed(vm("v1"), found(Some("b"))), S);
    core.on(Event::Maintenance(host("a"), false), S);
    core.on(Event::MoveIntended(vm("v1"), Ok(())), S);
    assert_eq!(says(&drain(&mut core, "a", S)), [""; 0], "its stop may have been sent");
    let mut commands = core.on(Event::Tick, S + STAYS_AFTER);
    commands.extend(core.on(Event::Tick, S + STAYS_AFTER));
    assert_eq!(says(&commands), ["place v1"]);
    let told = says(&core.on(Event::Placed(vm("v1"), found(None)), S + STAYS_AFTER));
    assert!(told.len() == 1 && told[0].starts_with("still v1 on a"), "the move in the journal is open: {told:?}");
}

/// The move is in the journal: a stop that takes effect while the next target is queried still leads to a start.
#[test]
fn stop_that_takes_effect_during_the_retry_leads_to_a_start() {
    let mut core = running_on_a(&["plain"]);
    drain(&mut core, "a", S);
    to_the_stop(&mut core, "plain", S);
    core.on(Event::Evicted(vm("plain"), Err(broken())), 2 * S);
    core.on(Event::Tick, 2 * S + STAYS_AFTER);
    assert_eq!(says(&core.on(Event::Tick, 40 * S)), ["place plain"]);
    core.on(believed("plain", VmState::Stopped, "a", 1), 41 * S);
    assert_eq!(says(&core.on(Event::Placed(vm("plain"), found(Some("b"))), 41 * S)), [""; 0]);
    assert_eq!(says(&core.on(Event::Tick, 41 * S + WATCHED)), ["start plain Drain"]);
}

#[test]
fn unstoppable_vm_stays_and_is_retried_last() {
    let mut core = running_on_a(&["v1"]);
    drain(&mut core, "a", S);
    to_the_stop(&mut core, "v1", S);
    assert_eq!(says(&core.on(Event::Evicted(vm("v1"), Err(broken())), 30 * S)), [""; 0], "old reports do not count");
    core.on(believed("v1", VmState::Running, "a", 1), 30 * S);
    let told = says(&core.on(Event::Tick, 30 * S + STAYS_AFTER));
    assert!(
        told.len() == 1 && told[0].starts_with("still v1 on a: it keeps running on its host: the VM does not stop"),
        "{told:?}"
    );
    assert_eq!(says(&core.on(Event::Tick, 40 * S)), ["place v1"]);

    // It fails for the same reason again: no event.
    to_the_stop(&mut core, "v1", 40 * S);
    core.on(Event::Evicted(vm("v1"), Err(broken())), 50 * S);
    assert_eq!(says(&core.on(Event::Tick, 52 * S)), [""; 0]);
}

/// The move of a VM that did not stop is still in the journal: it ends with the drain, or when the VM runs elsewhere.
#[test]
fn move_of_a_vm_that_stays_ends() {
    let stays = || {
        let mut core = running_on_a(&["v1"]);
        drain(&mut core, "a", S);
        to_the_stop(&mut core, "v1", S);
        core.on(Event::Evicted(vm("v1"), Err(broken())), 2 * S);
        core.on(Event::Tick, 2 * S + STAYS_AFTER);
        core
    };
    let told = says(&stays().on(Event::Maintenance(host("a"), false), 5 * S));
    assert!(told.len() == 1 && told[0].starts_with("told v1 on a: it keeps running on its host"), "{told:?}");
    for (at, incarnation) in [("b", 1), ("b", 2)] {
        let told = says(&stays().on(believed("v1", VmState::Running, at, incarnation), 5 * S));
        assert_eq!(told, [format!("told v1 on {at}: runs on {at}")]);
    }
    // An operator started it again on the drained host: that is a different run, and the pause continues.
    let mut core = stays();
    let told = says(&core.on(believed("v1", VmState::Running, "a", 2), 5 * S));
    assert_eq!(told, ["told v1 on a: runs on a"]);
    // It ran elsewhere and is back: the next attempt does not wait for the pause of the last one.
    let mut core = stays();
    core.on(believed("v1", VmState::Running, "b", 2), 5 * S);
    assert_eq!(says(&core.on(believed("v1", VmState::Running, "a", 3), 5 * S)), ["place v1"]);
}

#[test]
fn move_ends_when_its_vm_is_removed_from_the_inventory() {
    let mut core = running_on_a(&["v1"]);
    drain(&mut core, "a", S);
    to_the_stop(&mut core, "v1", S);
    core.on(Event::Evicted(vm("v1"), Ok(observed(VmState::Stopped, "a", 1))), 2 * S);
    let without = Inventory { vms: Vec::new(), ..Inventory::clone(&core.inventory) };
    core.set_inventory(&Arc::new(InventoryIndex::new(without)));
    let told = core.on(Event::Tick, 2 * S);
    let removed =
        |c: &Command| matches!(c, Command::Emit(HaEvent::Move(of)) if of.reason == "removed from the inventory");
    assert!(told.iter().any(removed), "{told:?}");
}

/// The VM hangs in the kernel, and the kill is delayed.
#[test]
fn late_stop_still_leads_to_a_start() {
    let mut core = running_on_a(&["plain", "v1", "v2", "v3"]);
    let mut first = says(&drain(&mut core, "a", S));
    while !first.contains(&"place plain".to_owned()) {
        // Its turn comes when the others cannot be moved.
        let one = first.remove(0);
        first.extend(says(&core.on(Event::Placed(vm(one.strip_prefix("place ").unwrap()), found(None)), S)));
    }
    to_the_stop(&mut core, "plain", 2 * S);
    core.on(Event::Evicted(vm("plain"), Err(broken())), 3 * S);
    let mut commands = core.on(Event::Tick, 3 * S + STAYS_AFTER);
    commands.extend(core.on(Event::Tick, 6 * S));
    assert!(says(&commands).iter().any(|what| what.starts_with("place v")), "the others go on: {:?}", says(&commands));
    let standing = core.status().hosts.remove(0).standing;
    assert!(standing.contains("plain stays for now: the VM does not stop"), "{standing}");
    assert_eq!(
        says(&core.on(believed("plain", VmState::Stopped, "a", 1), 7 * S)),
        [""; 0],
        "its host may start it again"
    );
    assert_eq!(says(&core.on(Event::Tick, 7 * S + WATCHED)), ["start plain Drain"]);
}

/// A unit with `Restart=always`, a watchdog.
#[test]
fn vm_restarted_by_its_host_is_not_started_elsewhere() {
    let mut core = running_on_a(&["plain"]);
    drain(&mut core, "a", S);
    to_the_stop(&mut core, "plain", S);
    core.on(Event::Evicted(vm("plain"), Ok(observed(VmState::Stopped, "a", 1))), 2 * S);
    let soon = 2 * S + WATCHED - Duration::from_millis(1);
    let requested = core.on(Event::Requested(vm("plain"), Some(host("b"))), soon);
    assert!(matches!(&requested[..], [Command::Refuse(..)]), "an operator waits as well: {requested:?}");
    // It runs again.
    core.on(believed("plain", VmState::Running, "a", 1), soon);
    let told = says(&core.on(Event::Tick, 4 * S));
    assert!(
        told.len() == 1 && told[0].ends_with("it keeps running on its host: something on the host started it again"),
        "{told:?}"
    );
    assert_eq!(says(&core.on(Event::Tick, 7 * S)), [""; 0], "not at once again");
    assert_eq!(says(&core.on(Event::Tick, 8 * S)), ["place plain"]);
}

#[test]
fn drain_never_exceeds_the_limit_of_stopped_vms() {
    let mut core = running_on_a(&["v1", "v2", "v3", "v4"]);
    let first = says(&drain(&mut core, "a", S));
    assert_eq!(first.len(), MOVES_AT_ONCE);
    for what in &first {
        let name = what.strip_prefix("place ").unwrap();
        to_the_stop(&mut core, name, S);
        core.on(Event::Evicted(vm(name), Ok(observed(VmState::Stopped, "a", 1))), 2 * S);
    }
    assert_eq!(says(&core.on(Event::Tick, 2 * S + WATCHED)).len(), MOVES_AT_ONCE);
    for what in &first {
        let name = what.strip_prefix("place ").unwrap();
        // There was room, and there is none any more.
        assert_eq!(says(&core.on(Event::Started(vm(name), Err(broken())), 5 * S)), [format!("blocked {name}")]);
    }
    for n in 6..100u32 {
        let commands = says(&core.on(Event::Tick, n * S));
        assert!(commands.iter().all(|what| what.starts_with("start")), "no other is stopped: {commands:?}");
        for what in &commands {
            let name = what.split(' ').nth(1).unwrap();
            core.on(Event::Started(vm(name), Err(broken())), n * S);
        }
    }
}

#[test]
fn restart_continues_moves_of_stopped_and_running_vms() {
    let memory = || ReplayedState {
        vms: vec![(vm("plain"), observed(VmState::Stopping, "a", 4))],
        maintenance: [host("a")].into(),
        draining: [(host("a"), false)].into(),
        moves: [(vm("plain"), Move::replayed(host("a"), 4))].into(),
        ..ReplayedState::default()
    };
    let mut core = core_with(&["plain"], memory());
    assert_eq!(says(&core.on(Event::Tick, 5 * S)), [""; 0], "its host was not queried yet");
    assert_eq!(says(&core.on(believed("plain", VmState::Stopped, "a", 4), 5 * S)), [""; 0], "it is watched");
    assert_eq!(says(&core.on(Event::Tick, 5 * S + WATCHED)), ["start plain Drain"]);

    let mut core = core_with(&["plain"], memory());
    let commands = says(&core.on(believed("plain", VmState::Running, "a", 4), 5 * S));
    assert_eq!(commands, ["place plain"]);

    // The end was not recorded any more.
    let mut core = core_with(&["plain"], memory());
    let commands = says(&core.on(believed("plain", VmState::Running, "b", 5), 5 * S));
    assert_eq!(commands, ["told plain on b: runs on b"]);
}

#[test]
fn activation_ends_drain_and_starts_stopped_vms() {
    let mut core = running_on_a(&["v1", "plain", "v2", "v3"]);
    let first = says(&drain(&mut core, "a", S));
    let names: Vec<&str> = first.iter().map(|what| what.strip_prefix("place ").unwrap()).collect();
    to_the_stop(&mut core, names[0], S);
    // The other one's intent is being recorded.
    core.on(Event::Placed(vm(names[1]), found(Some("b"))), S);
    core.on(Event::Maintenance(host("a"), false), 2 * S);
    core.on(Event::Evicted(vm(names[0]), Ok(observed(VmState::Stopped, "a", 1))), 3 * S);
    assert_eq!(says(&core.on(Event::MoveIntended(vm(names[1]), Ok(())), 4 * S)), [""; 0], "it is not stopped any more");
    let commands = core.on(Event::Tick, 3 * S + WATCHED);
    let anywhere = |command: &Command| matches!(command, Command::Start { soft_avoid, .. } if soft_avoid.is_empty());
    assert!(commands.iter().any(anywhere), "it may start where it was: {commands:?}");
    let told = says(&core.on(Event::Tick, 4 * S + STAYS_AFTER));
    assert_eq!(told, [format!("told {} on a: it keeps running on its host: the VM was not stopped", names[1])]);
    assert_eq!(says(&core.on(Event::Tick, 60 * S)), [""; 0], "nothing else is moved");
    assert!(core.status().hosts.is_empty());
}

#[test]
fn undesired_vm_is_not_started_and_ended_vm_not_moved() {
    // Stopped by an operator in the middle of it.
    let mut core = running_on_a(&["v1"]);
    drain(&mut core, "a", S);
    to_the_stop(&mut core, "v1", S);
    let not_wanted = ObservedState { wanted: false, ..observed(VmState::Stopped, "a", 1) };
    let commands = core.on(Event::Evicted(vm("v1"), Ok(not_wanted)), 2 * S);
    assert_eq!(says(&commands), ["told v1 on none: stopped, as desired"]);

    // Its desired state was stopped before: it is stopped now, and needs no target.
    let mut core = running_on_a(&["v1"]);
    core.on(Event::Vm(vm("v1"), ObservedState { wanted: false, ..observed(VmState::Running, "a", 1) }), S);
    assert_eq!(says(&drain(&mut core, "a", S)), ["intend v1 nowhere"]);

    // A VM of HA mode None ended before: draining its host does not start it.
    let mut core = running_on_a(&["plain"]);
    core.on(believed("plain", VmState::Stopped, "a", 1), S);
    drain(&mut core, "a", S);
    assert_eq!(says(&core.on(Event::Tick, 30 * S)), [""; 0]);
}

#[test]
fn failed_target_is_avoided() {
    let mut core = running_on_a(&["plain"]);
    drain(&mut core, "a", S);
    to_the_stop(&mut core, "plain", S);
    core.on(Event::Evicted(vm("plain"), Ok(observed(VmState::Stopped, "a", 1))), S);
    core.on(Event::Tick, S + WATCHED);
    core.on(believed("plain", VmState::Stopped, "b", 2), 4 * S);
    core.on(Event::Started(vm("plain"), Err(broken())), 4 * S);
    let commands = core.on(Event::Tick, 10 * S);
    let avoids = |c: &Command| matches!(c, Command::Start { soft_avoid, .. } if *soft_avoid == [host("b")]);
    assert!(commands.iter().any(avoids), "{commands:?}");
}

#[test]
fn plan_counts_assigned_memory_and_explains_stays() {
    let mut core = running_on_a(&["v1", "v2", "v3", "plain"]);
    core.on(believed("plain", VmState::Unknown, "a", 1), S);
    let of = |name: &str| Candidate { host_uuid: host(name), available_mib: Some(1500), reserved_mib: 0, vms: 0 };
    let plan = core.plan_drain(host("a"), [(ClusterId::from_name("c1"), vec![of("a"), of("b"), of("c")])].into());
    let mut lines: Vec<String> = plan
        .vms
        .iter()
        .map(|step| {
            let what = step.what.replace(&step.vm, "VM");
            format!("{}: {what}", step.target.as_deref().unwrap_or("-"))
        })
        .collect();
    lines.sort();
    assert_eq!(
        lines,
        [
            "-: it keeps running on its host: no host has room for VM: 2 Connected, none with 1024 MiB of memory free",
            "-: its state is unknown: it is not touched",
            "b: stopped, verified gone, started on b",
            "c: stopped, verified gone, started on c",
        ]
    );
    assert!(!plan.feasible && core.plan_drain(host("b"), BTreeMap::new()).feasible);
}

proptest! {
    /// For any sequence of events: a VM is stopped only after it has a target and a durable intent; moves in progress
    /// are bounded; and no VM is started while it is being stopped.
    #[test]
    fn stops_follow_places_and_intents_and_are_bounded(
        steps in prop::collection::vec((0u8..12, 0usize..4, any::<bool>()), 1..200)
    ) {
        let names = ["v0", "v1", "v2", "plain"];
        let mut core = running_on_a(&names);
        let (mut placed, mut intended) = (BTreeMap::new(), BTreeMap::new());
        let (mut stopping, mut down) = (BTreeSet::new(), BTreeSet::new());
        let mut now = 2 * S;
        for (what, which, good) in steps {
            now += S / 2;
            let id = vm(names[which]);
            let event = match what {
                0 => Event::Maintenance(host("a"), good),
                1 | 2 => Event::Drain(host("a")),
                3 | 4 => {
                    placed.insert(id, good);
                    Event::Placed(id, found(good.then_some("b")))
                }
                5 | 6 => {
                    intended.insert(id, good);
                    Event::MoveIntended(id, if good { Ok(()) } else { Err(broken()) })
                }
                // An answer goes to its requester.
                7 | 8 if !stopping.remove(&id) => continue,
                7 => Event::Evicted(id, Ok(observed(VmState::Stopped, "a", 1))),
                8 => { down.remove(&id); Event::Evicted(id, Err(broken())) }
                9 => Event::Started(id, if good { Ok(Some(host("b"))) } else { Err(broken()) }),
                10 => { down.remove(&id); Event::Vm(id, observed(VmState::Running, if good { "b" } else { "a" }, 2)) }
                _ => Event::Tick,
            };
            for command in core.on(event, now) {
                match command {
                    Command::IntendMove(of) => {
                        prop_assert_eq!(placed.remove(&of.vm_uuid), Some(true), "intended without a place");
                    }
                    Command::Evict(id, _) => {
                        prop_assert_eq!(intended.remove(&id), Some(true), "stopped without its intent");
                        stopping.insert(id);
                        down.insert(id);
                    }
                    Command::Start { vm, .. } => prop_assert!(!stopping.contains(&vm), "started while it is stopped"),
                    _ => {}
                }
            }
            prop_assert!(down.len() <= MOVES_AT_ONCE, "{} at once", down.len());
        }
    }
}
