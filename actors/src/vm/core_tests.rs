//! Starting, stopping and finding a VM: step by step, and under any order of answers.

use std::sync::Arc;

use proptest::prelude::*;
use ringfence_messages::{
    ClusterId, Code, ErrorCode, HostId, StorageId, VmId,
    host::HostStatus,
    vm::{DiskSource, HaMode, RunningVm, StartVmCmdReply, VmState},
};

use super::core::*;
use crate::{
    inventory::{Directory, Inventory, Vm, Volume},
    testkit::cluster_of,
};

fn host(name: &str) -> HostId {
    HostId::from_name(name)
}

fn id() -> VmId {
    VmId::from_name("vm1")
}

fn core() -> Core {
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
        volumes: vec![volume("root", true), volume("data", false)],
    };
    let inventory = Inventory { vms: vec![vm.clone()], ..cluster_of(["a", "b"]) };
    Core::new(vm, Arc::new(Directory::new(inventory)), 7)
}

/// As the journal left it.
fn remembering(state: VmState, at: Option<&str>, incarnation: u64) -> (Core, Vec<Command>) {
    let mut core = core();
    let commands = core.on(Event::Remembered(Some(Memory { state, host: at.map(host), incarnation })));
    (core, commands)
}

fn here() -> Vec<RunningVm> {
    vec![RunningVm { vm_uuid: id(), pid: 42, incarnation: Some(1) }]
}

fn elsewhere() -> Vec<RunningVm> {
    vec![RunningVm { vm_uuid: VmId::from_name("other"), pid: 43, incarnation: None }]
}

fn disk(path: &str) -> DiskSource {
    DiskSource::VhostUser { socket_path: path.to_owned() }
}

fn broken() -> ErrorCode {
    ErrorCode::new(Code::TIMEOUT, "no answer")
}

fn refusal(commands: &[Command]) -> &ErrorCode {
    match commands.last() {
        Some(Command::Reply(Err(error))) => error,
        other => panic!("expected a refusal, got {other:?} at the end of {commands:?}"),
    }
}

/// The states that are told, in order.
fn told(commands: &[Command]) -> Vec<(VmState, VmState)> {
    let change = |command: &Command| match command {
        Command::Tell(change) | Command::Intend(change) => Some((change.old, change.new)),
        _ => None,
    };
    commands.iter().filter_map(change).collect()
}

/// A VM that ran on `a` before and is being launched on `b`.
fn launching() -> Core {
    let (mut core, _) = remembering(VmState::Stopped, Some("a"), 4);
    assert_eq!(core.on(Event::Start(Some(host("b")))), [Command::FindHosts]);
    let searches = core.on(Event::HostsFound(Ok(vec![host("a"), host("b")])));
    assert_eq!(searches, [Command::Search(host("b")), Command::Search(host("a"))], "the target and where it ran last");
    assert!(core.on(Event::Searched(host("b"), Ok(elsewhere()))).is_empty(), "one answer is not enough");
    let intent = core.on(Event::Searched(host("a"), Ok(Vec::new())));
    assert!(
        matches!(&intent[..], [Command::Intend(change)] if change.host == Some(host("b")) && change.incarnation == 5)
    );
    assert_eq!(core.on(Event::Recorded(Ok(()))), [Command::Export(host("b"), 0), Command::Export(host("b"), 1)]);
    assert!(core.on(Event::Exported(1, Ok(disk("data")))).is_empty());
    let launch = core.on(Event::Exported(0, Ok(disk("root"))));
    let [Command::Launch(at, cmd)] = &launch[..] else { panic!("{launch:?}") };
    assert_eq!((*at, cmd.incarnation, cmd.epoch), (host("b"), 5, 7));
    let disks: Vec<_> = cmd.disks.iter().map(|disk| (disk.source.clone(), disk.root)).collect();
    assert_eq!(disks, [(disk("root"), true), (disk("data"), false)], "in the order of the config");
    core
}

#[test]
fn a_start_searches_then_records_then_exports_then_launches() {
    let mut core = launching();
    let reply = StartVmCmdReply { pid: 9, accel: "kvm".into(), memory: "memfd".into() };
    let commands = core.on(Event::Launched(Ok(reply)));
    assert_eq!(told(&commands), [(VmState::Starting, VmState::Running)]);
    assert_eq!(commands.last(), Some(&Command::Reply(Ok(()))));
    assert_eq!((core.state(), core.place(), core.incarnation()), (VmState::Running, Some(host("b")), 5));
}

#[test]
fn a_host_that_cannot_be_asked_refuses_the_start_whatever_the_other_says() {
    for silent_first in [true, false] {
        let (mut core, _) = remembering(VmState::Stopped, Some("a"), 1);
        core.on(Event::Start(Some(host("b"))));
        core.on(Event::HostsFound(Ok(vec![host("b")])));
        let mut answers = [(host("a"), Err(broken())), (host("b"), Ok(Vec::new()))];
        if !silent_first {
            answers.reverse();
        }
        let [first, second] = answers;
        assert!(core.on(Event::Searched(first.0, first.1)).is_empty());
        let commands = core.on(Event::Searched(second.0, second.1));
        let error = refusal(&commands);
        assert!(error.details.contains("may still run on a") && error.cause.is_some(), "{error}");
        assert_eq!((core.state(), core.incarnation()), (VmState::Stopped, 1), "nothing was begun");
    }
}

#[test]
fn one_that_runs_is_found_not_started_and_its_known_place_counts_first() {
    let (mut core, commands) = remembering(VmState::Running, Some("a"), 1);
    assert_eq!(commands, [Command::Search(host("a"))], "the journal says where to look, not what to believe");
    core.on(Event::Searched(host("a"), Ok(here())));
    assert_eq!(core.state(), VmState::Running);
    core.on(Event::Start(Some(host("b"))));
    core.on(Event::HostsFound(Ok(vec![host("a"), host("b")])));
    // Both agents are of one machine, so both see its process.
    core.on(Event::Searched(host("b"), Ok(here())));
    let commands = core.on(Event::Searched(host("a"), Ok(here())));
    assert!(refusal(&commands).details.contains("already runs on a"));
    assert_eq!((core.place(), commands.len()), (Some(host("a")), 1), "nothing changed");
}

#[test]
fn one_that_something_else_started_is_believed_to_run_where_it_was_seen() {
    let (mut core, _) = remembering(VmState::Stopped, Some("a"), 1);
    core.on(Event::Start(Some(host("b"))));
    core.on(Event::HostsFound(Ok(vec![host("b")])));
    core.on(Event::Searched(host("a"), Err(broken())));
    let commands = core.on(Event::Searched(host("b"), Ok(here())));
    assert!(refusal(&commands).details.contains("already runs on b"));
    assert_eq!((core.state(), core.place()), (VmState::Running, Some(host("b"))));
}

#[test]
fn a_third_host_is_asked_too_but_its_silence_refuses_nothing() {
    for (answer, refused) in [(Ok(here()), true), (Ok(elsewhere()), false), (Err(broken()), false)] {
        let (mut core, _) = remembering(VmState::Stopped, Some("a"), 1);
        core.on(Event::Start(Some(host("b"))));
        let searches = core.on(Event::HostsFound(Ok(vec![host("a"), host("b"), host("c")])));
        assert_eq!(searches, ["b", "a", "c"].map(|name| Command::Search(host(name))));
        core.on(Event::Searched(host("a"), Ok(Vec::new())));
        core.on(Event::Searched(host("b"), Ok(Vec::new())));
        let commands = core.on(Event::Searched(host("c"), answer));
        if refused {
            assert!(refusal(&commands).details.contains("already runs on"));
            assert_eq!((core.state(), core.place()), (VmState::Running, Some(host("c"))));
        } else {
            assert!(matches!(&commands[..], [Command::Intend(_)]), "{commands:?}");
        }
    }
}

#[test]
fn without_a_durable_intent_nothing_is_done() {
    let (mut core, _) = remembering(VmState::Stopped, None, 0);
    core.on(Event::Start(None));
    core.on(Event::HostsFound(Ok(vec![host("a")])));
    core.on(Event::Searched(host("a"), Ok(Vec::new())));
    let commands = core.on(Event::Recorded(Err(ErrorCode::new(Code::IO, "disk full"))));
    assert_eq!(commands.len(), 1, "{commands:?}");
    assert!(refusal(&commands).details.contains("disk full"));
    assert_eq!(core.state(), VmState::Stopped);
    // The number was used up: it may be in the journal after all.
    core.on(Event::Start(None));
    core.on(Event::HostsFound(Ok(vec![host("a")])));
    let intent = core.on(Event::Searched(host("a"), Ok(Vec::new())));
    assert!(matches!(&intent[..], [Command::Intend(change)] if change.incarnation == 2), "{intent:?}");
}

#[test]
fn a_volume_that_cannot_be_opened_ends_the_start_before_anything_runs() {
    let (mut core, _) = remembering(VmState::Stopped, None, 0);
    core.on(Event::Start(None));
    core.on(Event::HostsFound(Ok(vec![host("a")])));
    core.on(Event::Searched(host("a"), Ok(Vec::new())));
    core.on(Event::Recorded(Ok(())));
    assert!(core.on(Event::Exported(0, Err(broken()))).is_empty(), "the other is waited for");
    let commands = core.on(Event::Exported(1, Ok(disk("data"))));
    assert_eq!(told(&commands), [(VmState::Starting, VmState::Stopped)]);
    assert!(refusal(&commands).details.contains("volume vhost://root cannot be used on a"));
}

#[test]
fn a_launch_of_unknown_outcome_is_looked_up() {
    for (found, truth) in
        [(Ok(here()), VmState::Running), (Ok(Vec::new()), VmState::Stopped), (Err(broken()), VmState::Unknown)]
    {
        let mut core = launching();
        let commands = core.on(Event::Launched(Err(broken())));
        assert_eq!(commands, [Command::Search(host("b"))]);
        let commands = core.on(Event::Searched(host("b"), found));
        assert_eq!((core.state(), core.place()), (truth, Some(host("b"))));
        assert_eq!(refusal(&commands).code, Code::TIMEOUT, "the asker hears why, not a guess");
    }
}

#[test]
fn a_stop_is_recorded_then_done_and_its_doubt_is_looked_up_too() {
    let (mut core, _) = remembering(VmState::Running, Some("a"), 1);
    core.on(Event::Searched(host("a"), Ok(here())));
    assert!(matches!(&core.on(Event::Stop)[..], [Command::Intend(change)] if change.new == VmState::Stopping));
    assert_eq!(core.on(Event::Recorded(Ok(()))), [Command::Halt(host("a"))]);
    assert_eq!(core.on(Event::Halted(Err(broken()))), [Command::Search(host("a"))]);
    let commands = core.on(Event::Searched(host("a"), Ok(here())));
    assert_eq!((refusal(&commands).code.clone(), core.state()), (Code::TIMEOUT, VmState::Running));
    core.on(Event::Stop);
    core.on(Event::Recorded(Ok(())));
    let commands = core.on(Event::Halted(Ok(())));
    assert_eq!((commands.last(), core.state()), (Some(&Command::Reply(Ok(()))), VmState::Stopped));
    assert_eq!(core.on(Event::Stop), [Command::Reply(Ok(()))], "stopping what is stopped is done already");
}

#[test]
fn a_host_that_goes_leaves_its_vm_unknown_and_is_asked_when_it_is_back() {
    let (mut core, _) = remembering(VmState::Running, Some("a"), 1);
    core.on(Event::Searched(host("a"), Ok(here())));
    assert!(core.on(Event::HostChanged(host("b"), HostStatus::Disconnected)).is_empty(), "another host");
    let commands = core.on(Event::HostChanged(host("a"), HostStatus::Disconnected));
    assert_eq!(told(&commands), [(VmState::Running, VmState::Unknown)]);
    assert_eq!(core.on(Event::HostChanged(host("a"), HostStatus::Connected)), [Command::Search(host("a"))]);
    let commands = core.on(Event::Searched(host("a"), Ok(Vec::new())));
    assert_eq!(told(&commands), [(VmState::Unknown, VmState::Stopped)]);
}

#[test]
fn a_second_operation_is_refused_while_one_is_under_way() {
    let mut core = launching();
    for event in [Event::Start(None), Event::Stop] {
        assert!(refusal(&core.on(event)).details.contains("try again"));
    }
    let reply = StartVmCmdReply { pid: 9, accel: "kvm".into(), memory: "memfd".into() };
    assert_eq!(core.on(Event::Launched(Ok(reply))).last(), Some(&Command::Reply(Ok(()))), "the first goes on");
}

#[test]
fn nothing_is_done_before_the_journal_was_read() {
    let mut core = core();
    assert!(refusal(&core.on(Event::Start(None))).details.contains("try again"));
    assert!(core.on(Event::Remembered(None)).is_empty());
    assert_eq!((core.state(), core.incarnation()), (VmState::Stopped, 0));
}

/// What the world answers a command with; `None` for one that wants no answer.
fn answer(command: &Command, choice: u8) -> Option<Event> {
    let ok = !choice.is_multiple_of(4);
    Some(match command {
        Command::FindHosts if ok => Event::HostsFound(Ok(vec![host("a"), host("b")])),
        Command::FindHosts => Event::HostsFound(Err(broken())),
        Command::Search(at) => Event::Searched(
            *at,
            match choice % 4 {
                0 => Err(broken()),
                1 => Ok(here()),
                _ => Ok(elsewhere()),
            },
        ),
        Command::Intend(_) => Event::Recorded(if ok { Ok(()) } else { Err(broken()) }),
        Command::Export(_, n) => Event::Exported(*n, if ok { Ok(disk("d")) } else { Err(broken()) }),
        Command::Launch(..) if ok => {
            Event::Launched(Ok(StartVmCmdReply { pid: 1, accel: "tcg".into(), memory: "memfd".into() }))
        }
        Command::Launch(..) => Event::Launched(Err(broken())),
        Command::Halt(_) => Event::Halted(if ok { Ok(()) } else { Err(broken()) }),
        Command::Tell(_) | Command::Reply(_) => return None,
    })
}

proptest! {
    /// Whatever is asked, whatever answers come in whatever order, doubled or late: every request is answered once,
    /// nothing is launched or halted without its intent, and no two launches carry the same incarnation.
    #[test]
    fn every_request_is_answered_once_and_every_launch_was_intended(
        steps in prop::collection::vec((0u8..12, any::<u8>(), any::<prop::sample::Index>()), 1..120)
    ) {
        let mut core = core();
        let (mut asked, mut answered) = (0, 0);
        let (mut intended, mut launched) = (0, 0);
        let mut pending = vec![Event::Remembered(Some(Memory { state: VmState::Running, host: Some(host("a")), incarnation: 3 }))];
        for (action, choice, which) in steps {
            let event = match action {
                0 => { asked += 1; Event::Start(None) }
                1 => { asked += 1; Event::Start(Some(host("b"))) }
                2 => { asked += 1; Event::Stop }
                3 => Event::HostChanged(host("a"), HostStatus::Disconnected),
                4 => Event::HostChanged(host("a"), HostStatus::Connected),
                _ if pending.is_empty() => continue,
                5 => pending[which.index(pending.len())].clone(),
                _ => pending.remove(which.index(pending.len())),
            };
            for command in core.on(event) {
                match &command {
                    Command::Reply(_) => answered += 1,
                    Command::Intend(change) if change.new == VmState::Starting => {
                        prop_assert!(change.incarnation > intended, "an incarnation was used twice");
                        intended = change.incarnation;
                    }
                    Command::Launch(_, cmd) => {
                        prop_assert_eq!(cmd.incarnation, intended, "launched without its intent");
                        prop_assert!(cmd.incarnation > launched, "launched twice");
                        launched = cmd.incarnation;
                    }
                    _ => {}
                }
                pending.extend(answer(&command, choice));
            }
            prop_assert!(answered <= asked, "an answer that nobody asked for");
        }
        // Everything that is under way comes to its end.
        while !pending.is_empty() {
            for command in core.on(pending.remove(0)) {
                answered += usize::from(matches!(command, Command::Reply(_)));
                pending.extend(answer(&command, 2));
            }
        }
        prop_assert_eq!(answered, asked, "a request without an answer");
    }
}
