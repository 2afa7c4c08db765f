//! Start, stop and search of a VM: step by step, and under any order of answers.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use proptest::prelude::*;
use ringfence_messages::{
    ClusterId, Code, ErrorCode, HostId, StorageId, VmId,
    evidence::Sight,
    fence::{FenceLevel, SiblingFenceVmOnHostReply},
    ha::TargetReply,
    host::HostStatus,
    vm::{DiskSource, HaMode, IntruderPhase, ListVmsReply, RunningVm, StartVmCmdReply, VmState, WriterKind},
};

use super::core::*;
use crate::{
    fence::{Policy, attempt},
    inventory::{Inventory, InventoryIndex, Vm, Volume},
    testkit::{cluster_of, machine},
};

pub(super) fn host(name: &str) -> HostId {
    HostId::from_name(name)
}

pub(super) fn id() -> VmId {
    VmId::from_name("vm1")
}

impl Core {
    /// The time is constant.
    pub(super) fn feed(&mut self, event: Event) -> Vec<Command> {
        self.on(event, now())
    }
}

pub(super) fn now() -> Instant {
    static NOW: std::sync::LazyLock<Instant> = std::sync::LazyLock::new(Instant::now);
    *NOW
}

pub(super) fn start(at: Option<&str>) -> Event {
    Event::Start(StartRequest { host: at.map(host), reason: "start requested".to_owned(), ..StartRequest::default() })
}

/// A start by HA.
pub(super) fn ha_start() -> Event {
    Event::Start(StartRequest { ha: true, reason: "brought back".to_owned(), ..StartRequest::default() })
}

/// It may start there, and its last host answers.
pub(super) fn found(target: &str) -> Event {
    found_with(target, true, &[])
}

pub(super) fn found_with(target: &str, last_host_answers: bool, seen: &[&str]) -> Event {
    let seen_host_uuids = seen.iter().map(|name| host(name)).collect();
    let silent = if last_host_answers { vec![] } else { vec!["a"] };
    found_silent(target, &silent, TargetReply { seen_host_uuids, ..TargetReply::default() })
}

/// It may start there, and these hosts are unreachable.
pub(super) fn found_silent(target: &str, silent: &[&str], found: TargetReply) -> Event {
    let silent_host_uuids: Vec<HostId> = silent.iter().map(|name| host(name)).collect();
    let of = |host: &HostId| UnreachableHost { host: *host, attested_by: None, machine: machine(*host) };
    let unheard = found.unheard_host_uuids.iter();
    let places = silent_host_uuids.iter().chain(unheard).map(of).collect();
    let target = TargetReply { host_uuid: Some(host(target)), silent_host_uuids, ..found };
    Event::TargetFound(Ok(Found { target, places }))
}

/// No target: this many hosts are full.
pub(super) fn found_none(full: u32) -> Event {
    Event::TargetFound(Ok(Found { target: TargetReply { full, ..TargetReply::default() }, places: Vec::new() }))
}

pub(super) fn core() -> Core {
    let volume = |name: &str, root| Volume {
        storage: StorageId::from_name("s"),
        install_path: format!("vhost://{name}").parse().unwrap(),
        root,
    };
    let vm = Vm {
        id: id(),
        name: "vm1".to_owned(),
        cluster: ClusterId::from_name("c1"),
        ha: HaMode::None,
        memory_mib: 16,
        qemu_args: Vec::new(),
        libvirt_xml: None,
        volumes: vec![volume("root", true), volume("data", false)],
    };
    let mut inventory = Inventory { vms: vec![vm.clone()], ..cluster_of(["a", "b", "c", "far"]) };
    inventory.hosts[3].cluster = ClusterId::from_name("c2"); // "far" belongs to another cluster
    Core::new(vm, Arc::new(InventoryIndex::new(inventory)), 7, Policy::default())
}

fn replayed(state: VmState, at: Option<&str>, incarnation: u64, wanted: bool) -> Event {
    let (host, may_run_on) = (at.map(host), Vec::new());
    Event::Replayed(Some(ReplayedState { state, host, incarnation, wanted, may_run_on }))
}

pub(super) fn remembering(state: VmState, at: Option<&str>, incarnation: u64) -> (Core, Vec<Command>) {
    let mut core = core();
    let commands = core.feed(replayed(state, at, incarnation, false));
    (core, commands)
}

fn here() -> ListVmsReply {
    listed(vec![RunningVm { incarnation: Some(1), ..RunningVm::qemu(id(), 42) }])
}

pub(super) fn elsewhere() -> ListVmsReply {
    listed(vec![RunningVm::qemu(VmId::from_name("other"), 43)])
}

/// No QEMU, but a target that may write for it.
pub(super) fn exported() -> ListVmsReply {
    listed(vec![RunningVm { kind: WriterKind::Export, ..RunningVm::qemu(id(), 50) }])
}

/// Nothing, listed without full sight.
pub(super) fn blind() -> ListVmsReply {
    ListVmsReply { sight: Sight { euid: 1000, ..Sight::full() }, ..listed(vec![]) }
}

/// A running QEMU of this incarnation.
pub(super) fn runs(incarnation: u64) -> ListVmsReply {
    listed(vec![RunningVm { incarnation: Some(incarnation), ..RunningVm::qemu(id(), 42) }])
}

/// A QEMU started as migration target.
pub(super) fn coming() -> ListVmsReply {
    listed(vec![RunningVm { incoming: true, ..RunningVm::qemu(id(), 42) }])
}

/// The host's clock is at 7 s.
pub(super) fn listed(vms: Vec<RunningVm>) -> ListVmsReply {
    ListVmsReply { vms, clock_ms: 7000, sight: Sight::full(), ..ListVmsReply::default() }
}

fn disk(path: &str) -> DiskSource {
    DiskSource::VhostUser { socket_path: path.to_owned() }
}

pub(super) fn broken() -> ErrorCode {
    ErrorCode::new(Code::TIMEOUT, "no answer")
}

pub(super) fn refusal(commands: &[Command]) -> &ErrorCode {
    match commands.last() {
        Some(Command::Reply(Err(error))) => error,
        other => panic!("expected a refusal, got {other:?} at the end of {commands:?}"),
    }
}

/// The emitted states, in order.
pub(super) fn told(commands: &[Command]) -> Vec<(VmState, VmState)> {
    let change = |command: &Command| match command {
        Command::Emit(change) | Command::Intend(change) => Some((change.old, change.new)),
        _ => None,
    };
    commands.iter().filter_map(change).collect()
}

/// A VM that ran on `a` and is being launched on `b`.
pub(super) fn launching() -> Core {
    let (mut core, _) = remembering(VmState::Stopped, Some("a"), 4);
    assert_eq!(core.feed(start(Some("b"))), [Command::FindTarget(Some(host("b")), Vec::new())]);
    let searches = core.feed(found("b"));
    assert_eq!(searches, [Command::Search(host("b")), Command::Search(host("a"))], "the target and where it ran last");
    assert!(core.feed(Event::Searched(host("b"), Ok(elsewhere()))).is_empty(), "one answer is not enough");
    let intent = core.feed(Event::Searched(host("a"), Ok(listed(Vec::new()))));
    assert!(
        matches!(&intent[..], [Command::Intend(change)] if change.host == Some(host("b")) && change.incarnation == 5)
    );
    assert_eq!(core.feed(Event::Recorded(Ok(()))), [Command::Export(host("b"), 0), Command::Export(host("b"), 1)]);
    assert!(core.feed(Event::Exported(1, Ok(disk("data")))).is_empty());
    let launch = core.feed(Event::Exported(0, Ok(disk("root"))));
    let [Command::Launch(at, permit, cmd)] = &launch[..] else { panic!("{launch:?}") };
    assert_eq!((*at, cmd.incarnation, cmd.epoch), (host("b"), 5, 7));
    assert!(permit.covers(*at, cmd));
    assert_eq!(cmd.not_after_ms, 7000 + 30_000, "void with its permit, by the target's own clock");
    let disks: Vec<_> = cmd.disks.iter().map(|disk| (disk.source.clone(), disk.root)).collect();
    assert_eq!(disks, [(disk("root"), true), (disk("data"), false)], "in the request of the config");
    core
}

#[test]
fn start_searches_records_exports_launches() {
    let mut core = launching();
    let reply = StartVmCmdReply { pid: 9, accel: "kvm".into(), memory: "memfd".into() };
    let commands = core.feed(Event::Launched(Ok(reply)));
    assert_eq!(told(&commands), [(VmState::Starting, VmState::Running)]);
    assert_eq!(commands.last(), Some(&Command::Reply(Ok(()))));
    assert_eq!((core.state(), core.place(), core.incarnation()), (VmState::Running, Some(host("b")), 5));
}

#[test]
fn unreachable_host_rejects_the_start() {
    for silent_first in [true, false] {
        let (mut core, _) = remembering(VmState::Stopped, Some("a"), 1);
        core.feed(start(Some("b")));
        core.feed(found("b"));
        let mut answers = [(host("a"), Err(broken())), (host("b"), Ok(listed(Vec::new())))];
        if !silent_first {
            answers.reverse();
        }
        let [first, second] = answers;
        assert!(core.feed(Event::Searched(first.0, first.1)).is_empty());
        let commands = core.feed(Event::Searched(second.0, second.1));
        let error = refusal(&commands);
        assert!(error.details.contains("may still run on a") && error.cause.is_some(), "{error}");
        assert_eq!((core.state(), core.incarnation()), (VmState::Stopped, 1), "nothing was begun");
    }
}

#[test]
fn running_vm_is_found_first_on_its_own_host() {
    let (mut core, commands) = remembering(VmState::Running, Some("a"), 1);
    assert_eq!(commands, [Command::Search(host("a"))], "the journal shows where to search");
    core.feed(Event::Searched(host("a"), Ok(here())));
    assert_eq!(core.state(), VmState::Running);
    core.feed(start(Some("b")));
    core.feed(found("b"));
    // Both agents run on one machine, so both list its process.
    core.feed(Event::Searched(host("b"), Ok(here())));
    let commands = core.feed(Event::Searched(host("a"), Ok(here())));
    assert!(refusal(&commands).details.contains("already runs on a"));
    assert_eq!((core.place(), commands.len()), (Some(host("a")), 1), "nothing changed");
}

#[test]
fn vm_started_elsewhere_is_adopted() {
    let (mut core, _) = remembering(VmState::Stopped, Some("a"), 1);
    core.feed(start(Some("b")));
    core.feed(found("b"));
    core.feed(Event::Searched(host("a"), Err(broken())));
    let commands = core.feed(Event::Searched(host("b"), Ok(here())));
    assert!(refusal(&commands).details.contains("already runs on b"));
    assert_eq!((core.state(), core.place()), (VmState::Running, Some(host("b"))));
}

#[test]
fn third_host_that_reported_vm_is_queried_too() {
    for (answer, refused) in [
        (Ok(here()), Some("already runs on")),
        (Ok(elsewhere()), None),
        (Err(broken()), Some("may still run on c")),
        (Ok(blind()), Some("may still run on c")),
    ] {
        let (mut core, _) = remembering(VmState::Stopped, Some("a"), 1);
        core.feed(start(Some("b")));
        let searches = core.feed(found_with("b", true, &["a", "c"]));
        assert_eq!(searches, ["b", "a", "c"].map(|name| Command::Search(host(name))));
        core.feed(Event::Searched(host("a"), Ok(listed(Vec::new()))));
        core.feed(Event::Searched(host("b"), Ok(listed(Vec::new()))));
        let commands = core.feed(Event::Searched(host("c"), answer));
        match refused {
            Some(why) => assert!(refusal(&commands).details.contains(why), "{commands:?}"),
            None => assert!(matches!(&commands[..], [Command::Intend(_)]), "{commands:?}"),
        }
    }
}

pub(super) fn reported_on(at: &str, killed: bool) -> Event {
    let Event::Fence(attempt::Event::Reported(Ok(reply))) = reported(killed) else { unreachable!() };
    let reply = SiblingFenceVmOnHostReply { machine: Some(machine(host(at))), ..reply };
    Event::Fence(attempt::Event::Reported(Ok(reply)))
}

pub(super) fn reported(killed: bool) -> Event {
    let reply = SiblingFenceVmOnHostReply {
        alive: !killed,
        killed,
        ssh_reachable: killed,
        qemu_found: killed,
        sight: Some(Sight::full()),
        machine: Some(machine(host("a"))),
        ..SiblingFenceVmOnHostReply::default()
    };
    Event::Fence(attempt::Event::Reported(Ok(reply)))
}

#[test]
fn unreachable_host_needs_ha_start_with_fence() {
    let silent = || {
        let (mut core, _) = remembering(VmState::Running, Some("a"), 4);
        core.feed(Event::Searched(host("a"), Err(broken())));
        core
    };
    let mut core = silent();
    core.feed(start(Some("b")));
    assert_eq!(core.feed(found_with("b", false, &[])), [Command::Search(host("b"))], "a is unreachable: not queried");
    let commands = core.feed(Event::Searched(host("b"), Ok(elsewhere())));
    assert!(
        refusal(&commands).details.contains("may still run on a") && refusal(&commands).details.contains("ha-start")
    );

    for (killed, starts) in [(true, true), (false, false)] {
        let mut core = silent();
        core.feed(ha_start());
        core.feed(found_with("b", false, &[]));
        let commands = core.feed(Event::Searched(host("b"), Ok(elsewhere())));
        let [Command::Fence(fence_request, attempt::Command::Intend(FenceLevel::Sibling))] = &commands[..] else {
            panic!("{commands:?}")
        };
        assert_eq!(
            (fence_request.place, fence_request.target, fence_request.incarnation),
            (attempt::LastHost::Unreachable(host("a")), host("b"), 5)
        );
        let commands = core.feed(Event::Fence(attempt::Event::Intended(Ok(()))));
        assert!(matches!(&commands[..], [Command::Fence(_, attempt::Command::AskFencer)]), "{commands:?}");
        assert!(refusal(&core.feed(Event::Stop)).details.contains("retry when it completes"), "one thing at a time");
        let commands = core.feed(reported(killed));
        assert!(matches!(&commands[..], [Command::Fence(_, attempt::Command::Audit { .. }), _]), "{commands:?}");
        assert_eq!(matches!(commands.last(), Some(Command::Intend(_))), starts);
        if !starts {
            assert!(refusal(&commands).cause.as_ref().unwrap().details.contains("may still write"));
            assert_eq!((core.state(), core.place(), core.incarnation()), (VmState::Unknown, Some(host("a")), 4));
        }
    }
}

#[test]
fn missing_target_is_explained() {
    let why = |request: Event, full| {
        let (mut core, _) = remembering(VmState::Stopped, Some("b"), 1);
        core.feed(request);
        refusal(&core.feed(found_none(full))).details.clone()
    };
    assert!(why(start(Some("a")), 1).contains("the requested host cannot take vm1"));
    assert!(why(start(None), 1).contains("no host has room for vm1: 1 Connected"));
    assert!(why(start(None), 0).contains("no host in the cluster"));
}

#[test]
fn vm_on_other_host_is_adopted_and_missed_only_at_home() {
    let (mut core, _) = remembering(VmState::Stopped, Some("a"), 1);
    assert_eq!(core.feed(Event::LookFor(Some(host("c")))), [Command::Search(host("c"))]);
    let commands = core.feed(Event::Searched(host("c"), Ok(here())));
    assert_eq!((told(&commands), core.wanted()), (vec![(VmState::Stopped, VmState::Running)], true));
    assert_eq!(core.feed(Event::LookFor(Some(host("b")))), [Command::Search(host("b"))]);
    assert!(core.feed(Event::Searched(host("b"), Ok(elsewhere()))).is_empty(), "another host has nothing to say of it");
    assert_eq!(core.feed(Event::LookFor(None)), [Command::Search(host("c"))]);
    let commands = core.feed(Event::Searched(host("c"), Ok(elsewhere())));
    assert_eq!(told(&commands), [(VmState::Running, VmState::Stopped)]);
    assert!(core.wanted(), "it crashed; it was not stopped");
}

#[test]
fn failed_intent_does_nothing() {
    let (mut core, _) = remembering(VmState::Stopped, None, 0);
    core.feed(start(None));
    core.feed(found("a"));
    core.feed(Event::Searched(host("a"), Ok(listed(Vec::new()))));
    let commands = core.feed(Event::Recorded(Err(ErrorCode::new(Code::IO, "disk full"))));
    assert_eq!(commands.len(), 1, "{commands:?}");
    assert!(refusal(&commands).details.contains("disk full"));
    assert_eq!(core.state(), VmState::Stopped);
    // The incarnation was used: it may be in the journal.
    core.feed(start(None));
    core.feed(found("a"));
    let intent = core.feed(Event::Searched(host("a"), Ok(listed(Vec::new()))));
    assert!(matches!(&intent[..], [Command::Intend(change)] if change.incarnation == 2), "{intent:?}");
}

#[test]
fn unusable_volume_ends_start_before_launch() {
    let (mut core, _) = remembering(VmState::Stopped, None, 0);
    core.feed(start(None));
    core.feed(found("a"));
    core.feed(Event::Searched(host("a"), Ok(listed(Vec::new()))));
    core.feed(Event::Recorded(Ok(())));
    assert!(core.feed(Event::Exported(0, Err(broken()))).is_empty(), "the other is waited for");
    let commands = core.feed(Event::Exported(1, Ok(disk("data"))));
    assert_eq!(told(&commands), [(VmState::Starting, VmState::Stopped)]);
    assert!(refusal(&commands).details.contains("volume vhost://root cannot be used on a"));
}

#[test]
fn unknown_launch_outcome_is_resolved() {
    for (found, truth) in
        [(Ok(here()), VmState::Running), (Ok(listed(Vec::new())), VmState::Stopped), (Err(broken()), VmState::Unknown)]
    {
        let mut core = launching();
        let commands = core.feed(Event::Launched(Err(broken())));
        assert_eq!(commands, [Command::Search(host("b"))]);
        let commands = core.feed(Event::Searched(host("b"), found));
        assert_eq!((core.state(), core.place()), (truth, Some(host("b"))));
        assert_eq!(refusal(&commands).code, Code::TIMEOUT, "the asker hears why, not a guess");
    }
}

/// A start command may be in the socket of a frozen agent: what SSH finds there is not final.
#[test]
fn unresolved_start_needs_storage_fence_until_it_expires() {
    let in_doubt = |later: Duration, restarted: bool| {
        let mut core = launching();
        core.feed(Event::Launched(Err(broken())));
        core.feed(Event::Searched(host("b"), Err(broken())));
        if restarted {
            core = remembering(VmState::Starting, Some("b"), 5).0;
            core.feed(Event::Searched(host("b"), Err(broken())));
        }
        let mut feed = |event| core.on(event, now() + later);
        feed(ha_start());
        feed(found_silent("a", &["b"], TargetReply::default()));
        let begins = feed(Event::Searched(host("a"), Ok(listed(Vec::new()))));
        let [Command::Fence(fence_request, _), ..] = &begins[..] else { panic!("{begins:?}") };
        assert_eq!(fence_request.place, attempt::LastHost::Unreachable(host("b")));
        fence_request.ordered
    };
    for restarted in [false, true] {
        assert!(in_doubt(Duration::from_secs(29), restarted), "restarted: {restarted}");
        assert!(!in_doubt(Duration::from_secs(30), restarted), "restarted: {restarted}");
    }
}

#[test]
fn stop_is_recorded_and_its_unknown_outcome_resolved() {
    let (mut core, _) = remembering(VmState::Running, Some("a"), 1);
    core.feed(Event::Searched(host("a"), Ok(here())));
    assert!(matches!(&core.feed(Event::Stop)[..], [Command::Intend(change)] if change.new == VmState::Stopping));
    assert_eq!(core.feed(Event::Recorded(Ok(()))), [Command::Halt(host("a"))]);
    assert_eq!(core.feed(Event::Halted(Err(broken()))), [Command::Search(host("a"))]);
    let commands = core.feed(Event::Searched(host("a"), Ok(here())));
    assert_eq!((refusal(&commands).code.clone(), core.state()), (Code::TIMEOUT, VmState::Running));
    core.feed(Event::Stop);
    core.feed(Event::Recorded(Ok(())));
    let commands = core.feed(Event::Halted(Ok(())));
    assert_eq!((commands.last(), core.state()), (Some(&Command::Reply(Ok(()))), VmState::Stopped));
    assert_eq!(core.feed(Event::Stop), [Command::Reply(Ok(()))], "stopping what is stopped is done already");
}

#[test]
fn evict_stops_only_there_and_keeps_desired_state() {
    for wanted in [true, false] {
        let mut core = core();
        core.feed(replayed(VmState::Running, Some("a"), 1, wanted));
        core.feed(Event::Searched(host("a"), Ok(here())));
        assert!(refusal(&core.feed(Event::Evict(host("b")))).details.contains("does not run on"), "it is elsewhere");
        assert!(
            matches!(&core.feed(Event::Evict(host("a")))[..], [Command::Intend(change)] if change.wanted == wanted)
        );
        // The change cannot be recorded: nothing is done, and nothing forgotten.
        assert_eq!(core.feed(Event::Recorded(Err(broken()))), [Command::Search(host("a"))]);
        core.feed(Event::Searched(host("a"), Ok(here())));
        assert_eq!((core.state(), core.wanted()), (VmState::Running, wanted));
        core.feed(Event::Evict(host("a")));
        core.feed(Event::Recorded(Ok(())));
        let commands = core.feed(Event::Halted(Ok(())));
        assert_eq!((told(&commands), core.wanted()), (vec![(VmState::Stopping, VmState::Stopped)], wanted));
        assert!(refusal(&core.feed(Event::Evict(host("a")))).details.contains("does not run on"), "it is done");
    }
}

#[test]
fn disconnected_host_makes_vm_unknown_until_queried() {
    let (mut core, _) = remembering(VmState::Running, Some("a"), 1);
    core.feed(Event::Searched(host("a"), Ok(here())));
    assert!(core.feed(Event::HostChanged(host("b"), HostStatus::Disconnected)).is_empty(), "another host");
    let commands = core.feed(Event::HostChanged(host("a"), HostStatus::Disconnected));
    assert_eq!(told(&commands), [(VmState::Running, VmState::Unknown)]);
    assert_eq!(core.feed(Event::HostChanged(host("a"), HostStatus::Connected)), [Command::Search(host("a"))]);
    let commands = core.feed(Event::Searched(host("a"), Ok(listed(Vec::new()))));
    assert_eq!(told(&commands), [(VmState::Unknown, VmState::Stopped)]);
}

#[test]
fn second_operation_is_rejected() {
    let mut core = launching();
    for event in [start(None), Event::Stop] {
        assert!(refusal(&core.feed(event)).details.contains("retry when it completes"));
    }
    let reply = StartVmCmdReply { pid: 9, accel: "kvm".into(), memory: "memfd".into() };
    assert_eq!(core.feed(Event::Launched(Ok(reply))).last(), Some(&Command::Reply(Ok(()))), "the first goes on");
}

#[test]
fn request_waits_for_reconciliation_of_vm() {
    let (mut core, _) = remembering(VmState::Running, Some("a"), 1);
    core.feed(Event::Searched(host("a"), Ok(here())));
    core.feed(Event::LookFor(None));
    assert!(core.feed(Event::Stop).is_empty(), "not for other VMs");
    assert!(refusal(&core.feed(start(None))).details.contains("retry when it completes"), "one waits, not two");
    let commands = core.feed(Event::Searched(host("a"), Ok(here())));
    assert!(matches!(&commands[..], [Command::Intend(change)] if change.new == VmState::Stopping), "{commands:?}");
    core.feed(Event::Recorded(Ok(())));
    core.feed(Event::Halted(Ok(())));
    core.feed(Event::LookFor(Some(host("a"))));
    assert!(core.feed(Event::Searched(host("a"), Err(broken()))).is_empty());
    assert_eq!(core.state(), VmState::Stopped);
}

/// The world's answer to a command; `None` if it needs none.
fn answer(command: &Command, choice: u8) -> Option<Event> {
    let ok = !choice.is_multiple_of(4);
    Some(match command {
        Command::FindTarget(named, _) if ok => {
            let target = if named.is_some() || choice < 64 { "b" } else { "a" };
            found_with(target, choice > 127, if choice % 8 == 3 { &["c"] } else { &[] })
        }
        Command::FindTarget(..) => Event::TargetFound(Err(broken())),
        Command::Search(at) => Event::Searched(
            *at,
            match choice % 4 {
                0 => Err(broken()),
                1 => Ok(here()),
                _ if choice == 7 => Ok(exported()),
                _ if choice == 11 => Ok(blind()),
                _ => Ok(elsewhere()),
            },
        ),
        Command::Intend(_) => Event::Recorded(if ok { Ok(()) } else { Err(broken()) }),
        Command::Export(_, n) => Event::Exported(*n, if ok { Ok(disk("d")) } else { Err(broken()) }),
        Command::Launch(..) if ok => {
            Event::Launched(Ok(StartVmCmdReply { pid: 1, accel: "tcg".into(), memory: "memfd".into() }))
        }
        Command::Launch(..) => Event::Launched(Err(broken())),
        Command::Fence(_, attempt::Command::Intend(_)) => {
            Event::Fence(attempt::Event::Intended(if ok { Ok(()) } else { Err(broken()) }))
        }
        Command::Fence(_, attempt::Command::AskFencer) => reported(ok),
        Command::Fence(..) => return None,
        Command::Halt(_) => Event::Halted(if ok { Ok(()) } else { Err(broken()) }),
        Command::Intruder(_, IntruderPhase::EndIntended, _) => Event::Recorded(if ok { Ok(()) } else { Err(broken()) }),
        Command::Intruder(..) | Command::Emit(_) | Command::Reply(_) => return None,
    })
}

proptest! {
    /// For any requests and any answers, in any order, repeated or late: every request is answered once, nothing is
    /// launched or halted without its intent, and no two launches have the same incarnation.
    #[test]
    fn every_request_is_answered_once_and_every_launch_was_intended(
        steps in prop::collection::vec((0u8..14, any::<u8>(), any::<prop::sample::Index>()), 1..120),
        claimed in prop::collection::vec(any::<bool>(), 120)
    ) {
        let mut core = core();
        let (mut asked, mut answered) = (0, 0);
        let (mut intended, mut launched) = (0, 0);
        let mut pending = vec![replayed(VmState::Running, Some("a"), 3, true)];
        for ((action, choice, which), claimed) in steps.into_iter().zip(claimed) {
            let event = match action {
                3 if claimed => Event::LookFor(Some(host("b"))),
                0 => { asked += 1; start(None) }
                1 => { asked += 1; start(Some("b")) }
                2 => { asked += 1; Event::Stop }
                12 => { asked += 1; ha_start() }
                13 => { asked += 1; Event::Evict(host("a")) }
                3 => Event::HostChanged(host("a"), HostStatus::Disconnected),
                4 => Event::HostChanged(host("a"), HostStatus::Connected),
                _ if pending.is_empty() => continue,
                5 => pending[which.index(pending.len())].clone(),
                _ => pending.remove(which.index(pending.len())),
            };
            for command in core.feed(event) {
                match &command {
                    Command::Reply(_) => answered += 1,
                    Command::Intend(change) if change.new == VmState::Starting => {
                        prop_assert!(change.incarnation > intended, "an incarnation was used twice");
                        intended = change.incarnation;
                    }
                    Command::Launch(at, permit, cmd) => {
                        prop_assert!(permit.covers(*at, cmd), "launched without a permit for it");
                        prop_assert_eq!(cmd.incarnation, intended, "launched without its intent");
                        prop_assert!(cmd.incarnation > launched, "launched twice");
                        launched = cmd.incarnation;
                    }
                    _ => {}
                }
                pending.extend(answer(&command, choice));
            }
            prop_assert!(answered <= asked, "an answer without a request");
        }
        // Every operation in progress ends.
        while !pending.is_empty() {
            for command in core.feed(pending.remove(0)) {
                answered += usize::from(matches!(command, Command::Reply(_)));
                pending.extend(answer(&command, 2));
            }
        }
        prop_assert_eq!(answered, asked, "a request without an answer");
    }
}
