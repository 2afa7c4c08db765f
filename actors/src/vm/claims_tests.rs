//! Claims, known hosts and intruders, step by step (K2, K4, K7, K8, K13, K19).

use ringfence_messages::{
    Code, HostId,
    ha::TargetReply,
    host::HostStatus,
    vm::{IntruderPhase, ListVmsReply, RunningVm, VmState},
};

use super::{core::*, core_tests::*};
use crate::fence::{PERMIT_VALIDITY, attempt};

/// It ran on `a` as incarnation 4, and `a` is unreachable.
fn out_of_sight() -> Core {
    let (mut core, _) = remembering(VmState::Running, Some("a"), 4);
    core.feed(Event::Searched(host("a"), Ok(runs(4))));
    core.feed(Event::HostChanged(host("a"), HostStatus::Disconnected));
    assert_eq!(core.state(), VmState::Unknown);
    core
}

fn asks_fencer(commands: &[Command]) -> bool {
    commands.iter().any(|c| matches!(c, Command::Fence(_, attempt::Command::Intend(_))))
}

fn others(core: &Core) -> Vec<HostId> {
    core.others().iter().copied().collect()
}

/// K19: a host of its cluster reports it running, and then not: its state on the first host is still unknown.
#[test]
fn claim_adds_a_host_and_its_end_keeps_the_first() {
    let mut core = out_of_sight();
    core.feed(Event::LookFor(Some(host("c"))));
    let commands = core.feed(Event::Searched(host("c"), Ok(listed(vec![RunningVm::qemu(id(), 9)]))));
    assert!(matches!(&commands[..], [Command::Emit(change)] if change.may_run_on == [host("a")]), "{commands:?}");
    assert_eq!((core.state(), core.place(), others(&core)), (VmState::Running, Some(host("c")), vec![host("a")]));
    assert!(core.may_retire(now()).is_err());

    core.feed(Event::LookFor(None));
    let commands = core.feed(Event::Searched(host("c"), Ok(elsewhere())));
    assert_eq!(told(&commands), [(VmState::Running, VmState::Unknown)], "not Stopped: a was never heard");
    assert_eq!((core.place(), others(&core)), (Some(host("a")), vec![]));

    // A plain start is rejected, an HA start fences a.
    core.feed(start(None));
    core.feed(found_with("b", false, &[]));
    assert!(refusal(&core.feed(Event::Searched(host("b"), Ok(elsewhere())))).to_string().contains("may still run on"));
    core.feed(ha_start());
    core.feed(found_with("b", false, &[]));
    assert!(asks_fencer(&core.feed(Event::Searched(host("b"), Ok(elsewhere())))));
}

/// It may run on `a` or on this host, and `a` was not heard.
pub(super) fn core_of_two_hosts(other: &str) -> Core {
    let mut core = core();
    core.feed(Event::Replayed(Some(ReplayedState {
        state: VmState::Unknown,
        host: Some(host("a")),
        incarnation: 4,
        wanted: true,
        may_run_on: vec![host(other)],
    })));
    core.feed(Event::Searched(host("a"), Err(broken())));
    core
}

/// K19: both hosts are cleared before a permit, although the second one cleared at once.
#[test]
fn every_host_is_fenced_also_after_restart() {
    let mut core = core_of_two_hosts("b");
    assert_eq!(core.places(), [host("a"), host("b")]);
    // Start commands of the earlier controller have expired by now.
    let mut feed = |event| core.on(event, now() + PERMIT_VALIDITY);
    feed(ha_start());
    feed(found_silent("c", &["a", "b"], TargetReply::default()));
    let fenced = |commands: &[Command]| -> Vec<attempt::LastHost> {
        commands
            .iter()
            .filter_map(|c| if let Command::Fence(fence_request, _) = c { Some(fence_request.place) } else { None })
            .collect()
    };
    let commands = feed(Event::Searched(host("c"), Ok(elsewhere())));
    assert_eq!(fenced(&commands), [attempt::LastHost::Unreachable(host("a"))]);
    feed(Event::Fence(attempt::Event::Intended(Ok(()))));
    let commands = feed(reported_on("a", true));
    assert!(!commands.iter().any(|c| matches!(c, Command::Intend(_))), "one of two is no permit: {commands:?}");
    assert_eq!(fenced(&commands).last(), Some(&attempt::LastHost::Unreachable(host("b"))));
    feed(Event::Fence(attempt::Event::Intended(Ok(()))));
    let commands = feed(reported_on("b", true));
    let Some(Command::Intend(change)) = commands.last() else { panic!("{commands:?}") };
    assert_eq!((change.new, change.host), (VmState::Starting, Some(host("c"))));
    assert_eq!(change.may_run_on.len(), 2, "until it runs, a crash must query both again");
}

/// K19: HA reports the claim of a host of another cluster; the VM ignores it.
#[test]
fn claim_of_other_cluster_or_stranger_is_ignored() {
    let mut core = out_of_sight();
    core.feed(Event::LookFor(Some(host("far"))));
    assert_eq!(core.feed(Event::Searched(host("far"), Ok(runs(9)))), []);
    let stranger = RunningVm { stranger: Some("of user nobody".to_owned()), ..RunningVm::qemu(id(), 7) };
    core.feed(Event::LookFor(Some(host("c"))));
    assert_eq!(core.feed(Event::Searched(host("c"), Ok(listed(vec![stranger.clone()])))), []);
    assert_eq!((core.state(), core.place(), core.places().len()), (VmState::Unknown, Some(host("a")), 1));

    // On its own host a stranger neither hides the death of the VM nor delays a start.
    let (mut core, _) = remembering(VmState::Running, Some("a"), 4);
    let commands = core.feed(Event::Searched(host("a"), Ok(listed(vec![stranger.clone()]))));
    assert_eq!(told(&commands), [(VmState::Unknown, VmState::Stopped)]);
    core.feed(start(None));
    core.feed(found("a"));
    let commands = core.feed(Event::Searched(host("a"), Ok(listed(vec![stranger]))));
    assert!(matches!(commands.last(), Some(Command::Intend(_))), "{commands:?}");
}

/// K12, K19: a VM moved to a host of another cluster is neither accepted nor ignored there: nothing starts beside it.
#[test]
fn no_start_beside_qemu_in_another_cluster() {
    let (mut core, _) = remembering(VmState::Stopped, Some("a"), 4);
    for (there, starts) in [(runs(4), false), (elsewhere(), true)] {
        core.feed(start(None));
        core.feed(found_with("b", true, &["far"]));
        core.feed(Event::Searched(host("a"), Ok(elsewhere())));
        core.feed(Event::Searched(host("b"), Ok(elsewhere())));
        let commands = core.feed(Event::Searched(host("far"), Ok(there)));
        match starts {
            true => assert!(matches!(commands.last(), Some(Command::Intend(_))), "{commands:?}"),
            false => {
                assert!(refusal(&commands).details.contains("another cluster"), "{commands:?}");
                assert_eq!(core.places(), [host("a")]);
            }
        }
    }
}

/// K2: "not there" without full sight is no answer.
#[test]
fn host_without_sight_counts_as_unreachable() {
    let (mut core, _) = remembering(VmState::Running, Some("a"), 4);
    assert!(core.feed(Event::Searched(host("a"), Ok(blind()))).is_empty());
    assert_eq!(core.state(), VmState::Unknown);
    core.feed(start(None));
    core.feed(found("b"));
    core.feed(Event::Searched(host("a"), Ok(blind())));
    let refused = core.feed(Event::Searched(host("b"), Ok(elsewhere())));
    assert!(refusal(&refused).cause.as_ref().unwrap().details.contains("looked as user 1000"), "{refused:?}");
}

/// K4: the target of a dead QEMU may still write: it is stopped, verified, before anything starts.
#[test]
fn leftover_export_is_stopped_before_start() {
    let (mut core, _) = remembering(VmState::Stopped, Some("a"), 4);
    core.feed(start(None));
    core.feed(found("b"));
    core.feed(Event::Searched(host("b"), Ok(elsewhere())));
    let commands = core.feed(Event::Searched(host("a"), Ok(exported())));
    assert!(matches!(&commands[..], [Command::Intend(change)] if change.new == VmState::Stopping), "{commands:?}");
    assert_eq!(core.feed(Event::Recorded(Ok(()))), [Command::Halt(host("a"))]);
    let commands = core.feed(Event::Halted(Ok(())));
    assert!(matches!(&commands[..], [Command::Emit(_), Command::FindTarget(None, _)]), "it begins again: {commands:?}");
    core.feed(found("b"));
    core.feed(Event::Searched(host("b"), Ok(elsewhere())));
    let commands = core.feed(Event::Searched(host("a"), Ok(elsewhere())));
    assert!(matches!(commands.last(), Some(Command::Intend(change)) if change.new == VmState::Starting));

    // It does not stop: nothing starts.
    let (mut core, _) = remembering(VmState::Stopped, Some("a"), 4);
    core.feed(start(None));
    core.feed(found("a"));
    core.feed(Event::Searched(host("a"), Ok(exported())));
    core.feed(Event::Recorded(Ok(())));
    core.feed(Event::Halted(Err(broken())));
    assert!(refusal(&core.feed(Event::Searched(host("a"), Ok(exported())))).to_string().contains("no answer"));
}

/// K7: an unheard host may run a VM whose volumes have no watchers.
#[test]
fn unheard_host_may_run_the_vm() {
    let unheard = || TargetReply { unheard_host_uuids: vec![host("c")], ..TargetReply::default() };
    let (mut core, _) = remembering(VmState::Stopped, Some("a"), 4);
    core.feed(start(None));
    core.feed(found_silent("a", &[], unheard()));
    let refused = core.feed(Event::Searched(host("a"), Ok(elsewhere())));
    assert!(refusal(&refused).to_string().contains("may still run on"), "{refused:?}");
    core.feed(ha_start());
    core.feed(found_silent("a", &[], unheard()));
    assert!(asks_fencer(&core.feed(Event::Searched(host("a"), Ok(elsewhere())))));
}

/// K7: a client on an unheard host would be a watcher of the volumes on Ceph.
#[test]
fn unheard_host_is_not_waited_for_if_all_volumes_are_on_ceph() {
    let (mut core, _) = remembering(VmState::Stopped, Some("a"), 4);
    for volume in &mut core.vm.volumes {
        volume.install_path = "ceph://rbd/vm1".parse().unwrap();
    }
    core.feed(start(None));
    core.feed(found_silent("a", &[], TargetReply { unheard_host_uuids: vec![host("c")], ..TargetReply::default() }));
    let commands = core.feed(Event::Searched(host("a"), Ok(elsewhere())));
    assert!(matches!(&commands[..], [Command::Fence(_, attempt::Command::Watch(0)), _]), "{commands:?}");
}

/// K19: a start finds the VM on another host: the host where it ran stays, unless it reports the VM gone.
#[test]
fn start_that_finds_the_vm_elsewhere_keeps_a_silent_host() {
    for (answers, may_run_on) in [(false, vec![host("a")]), (true, vec![])] {
        let mut core = out_of_sight();
        core.feed(ha_start());
        core.feed(found_with("b", answers, &[]));
        if answers {
            core.feed(Event::Searched(host("a"), Ok(elsewhere())));
        }
        let commands = core.feed(Event::Searched(host("b"), Ok(runs(9))));
        assert_eq!(commands.last(), Some(&Command::Reply(Ok(()))));
        assert_eq!((core.state(), core.place(), others(&core)), (VmState::Running, Some(host("b")), may_run_on));
    }
    // Also if its own host was expected to run it.
    let (mut core, _) = remembering(VmState::Running, Some("a"), 4);
    core.feed(Event::Searched(host("a"), Ok(runs(4))));
    core.feed(start(None));
    core.feed(found("b"));
    core.feed(Event::Searched(host("a"), Ok(elsewhere())));
    core.feed(Event::Searched(host("b"), Ok(runs(4))));
    assert_eq!((core.state(), core.place(), others(&core)), (VmState::Running, Some(host("b")), vec![]));
}

/// I7: each host that cannot be queried is fenced with its own addresses, cluster, machine and attestation.
#[test]
fn each_unreachable_host_has_its_own_attempt() {
    let mut core = core_of_two_hosts("far");
    core.feed(ha_start());
    let Event::TargetFound(Ok(mut found)) = found_silent("b", &["a", "far"], TargetReply::default()) else { panic!() };
    found.places[1].attested_by = Some("root".to_owned());
    core.feed(Event::TargetFound(Ok(found)));
    let mut requests = Vec::new();
    let mut feed = |event| {
        let commands = core.on(event, now() + PERMIT_VALIDITY);
        let request = |command: &Command| match command {
            Command::Fence(of, attempt::Command::Intend(_)) => Some(of.clone()),
            _ => None,
        };
        requests.extend(commands.iter().filter_map(request));
    };
    feed(Event::Searched(host("b"), Ok(elsewhere())));
    feed(Event::Fence(attempt::Event::Intended(Ok(()))));
    feed(reported_on("a", true));
    let [first, second] = &requests[..] else { panic!("{requests:?}") };
    let cluster = |at: &str| core.inventory.host(host(at)).unwrap().cluster;
    let addresses = |at: &str| core.inventory.host(host(at)).unwrap().storage_ips.clone();
    for (request, at, attested_by) in [(first, "a", None), (second, "far", Some("root"))] {
        assert_eq!(request.place, attempt::LastHost::Unreachable(host(at)));
        assert_eq!((request.cluster, &request.addresses), (cluster(at), &addresses(at)));
        assert_eq!(request.attested_by.as_deref(), attested_by);
        assert_eq!(request.own, [addresses("a"), addresses("far")].concat(), "a watch from either is its own");
        assert_eq!(request.machine.machine_id, host(at).0.simple().to_string());
    }
    assert_eq!(first.attempt, uuid::Uuid::nil(), "the id of the request");
    assert_ne!(first.attempt, second.attempt, "one audit record for each");
}

/// K8: the QEMU that is not the newest incarnation is stopped, after its intent; without known incarnations none is.
#[test]
fn older_of_two_qemus_is_stopped_or_reported() {
    let confronted = |there: ListVmsReply, here: ListVmsReply| {
        let (mut core, _) = remembering(VmState::Running, Some("a"), 4);
        core.feed(Event::Searched(host("a"), Ok(runs(4))));
        core.feed(Event::LookFor(Some(host("b"))));
        let commands = core.feed(Event::Searched(host("b"), Ok(there.clone())));
        assert_eq!(commands, [Command::Search(host("b")), Command::Search(host("a"))]);
        core.feed(Event::Searched(host("b"), Ok(there)));
        let commands = core.feed(Event::Searched(host("a"), Ok(here)));
        (core, commands)
    };
    let (mut core, commands) = confronted(runs(3), runs(4));
    assert!(
        matches!(&commands[..], [Command::Intruder(at, IntruderPhase::EndIntended, _)] if *at == host("b")),
        "{commands:?}"
    );
    assert_eq!(core.feed(Event::Recorded(Ok(()))), [Command::Halt(host("b"))]);
    let commands = core.feed(Event::Halted(Ok(())));
    assert!(matches!(&commands[..], [Command::Intruder(_, IntruderPhase::Ended, _)]), "{commands:?}");
    assert_eq!((core.state(), core.place()), (VmState::Running, Some(host("a"))));

    let (mut core, _) = confronted(runs(3), runs(4));
    assert_eq!(core.feed(Event::Recorded(Err(broken()))), [], "nothing is ended without its intent");

    let by_hand = || listed(vec![RunningVm::qemu(id(), 8)]);
    let (_, commands) = confronted(by_hand(), by_hand());
    assert!(matches!(&commands[..], [Command::Intruder(_, IntruderPhase::Undecided, _)]), "{commands:?}");

    // The newest is on another host than in the journal: the older one is stopped.
    let (_, commands) = confronted(runs(4), runs(3));
    assert!(matches!(&commands[..], [Command::Intruder(at, IntruderPhase::EndIntended, _)] if *at == host("a")));

    // It moved without the controller.
    let (core, _) = confronted(runs(4), elsewhere());
    assert_eq!((core.state(), core.place()), (VmState::Running, Some(host("b"))));
}

/// After a stop there, the host rejects what the stop was for, and not the QEMU that runs on.
#[test]
fn stop_holds_the_stopped_incarnations() {
    let ending = |there: ListVmsReply, here: ListVmsReply| {
        let (mut core, _) = remembering(VmState::Running, Some("a"), 4);
        core.feed(Event::Searched(host("a"), Ok(runs(4))));
        core.feed(Event::LookFor(Some(host("b"))));
        core.feed(Event::Searched(host("b"), Ok(there.clone())));
        core.feed(Event::Searched(host("b"), Ok(there)));
        core.feed(Event::Searched(host("a"), Ok(here)));
        core.feed(Event::Recorded(Ok(())));
        ["a", "b"].map(|at| core.stopped_incarnation(host(at)))
    };
    assert_eq!(ending(runs(3), runs(4)), [4, 4], "the one on b is stopped");
    assert_eq!(ending(runs(4), runs(3)), [3, 4], "the one on a is stopped, and the newest may return to a");
    assert_eq!(launching().stopped_incarnation(host("a")), 5);
}

/// K8: its own host does not answer in the comparison, so it may run on both.
#[test]
fn second_qemu_counts_if_the_own_host_cannot_be_queried() {
    let compared = |core: &mut Core, there: ListVmsReply, here| {
        core.feed(Event::LookFor(Some(host("b"))));
        let commands = core.feed(Event::Searched(host("b"), Ok(runs(3))));
        assert_eq!(commands, [Command::Search(host("b")), Command::Search(host("a"))]);
        core.feed(Event::Searched(host("b"), Ok(there)));
        core.feed(Event::Searched(host("a"), here))
    };
    let (mut core, _) = remembering(VmState::Running, Some("a"), 4);
    core.feed(Event::Searched(host("a"), Ok(runs(4))));
    assert_eq!(compared(&mut core, elsewhere(), Ok(runs(4))), [], "it has ended");
    let commands = compared(&mut core, runs(3), Err(broken()));
    assert!(matches!(&commands[..], [Command::Emit(change)] if change.may_run_on == [host("b")]), "{commands:?}");
    assert_eq!((core.state(), core.places()), (VmState::Running, vec![host("a"), host("b")]));
    assert_eq!(compared(&mut core, runs(3), Err(broken())), [], "known");
    let commands = compared(&mut core, elsewhere(), Ok(runs(4)));
    assert!(matches!(&commands[..], [Command::Emit(change)] if change.may_run_on.is_empty()), "{commands:?}");
    assert_eq!((core.state(), core.places()), (VmState::Running, vec![host("a")]));
}

#[test]
fn only_hosts_of_the_vm_are_queried_when_they_connect() {
    let (mut core, _) = remembering(VmState::Running, Some("a"), 4);
    core.feed(Event::Searched(host("a"), Ok(runs(4))));
    assert_eq!(core.feed(Event::HostChanged(host("c"), HostStatus::Connected)), []);
    assert_eq!(core.feed(Event::HostChanged(host("a"), HostStatus::Connected)), [Command::Search(host("a"))]);
    assert_eq!(core.feed(Event::Searched(host("c"), Ok(elsewhere()))), [], "an answer of another host");
    let commands = core.feed(Event::Searched(host("a"), Ok(elsewhere())));
    assert_eq!(told(&commands), [(VmState::Running, VmState::Stopped)]);

    let mut core = launching();
    core.feed(Event::Launched(Err(broken())));
    assert_eq!(core.feed(Event::Searched(host("a"), Ok(elsewhere()))), [], "an answer of another host");
    assert!(refusal(&core.feed(Event::Searched(host("b"), Ok(runs(5))))).is(&Code::TIMEOUT));
    assert_eq!(core.state(), VmState::Running);
}

/// A rehearsal works on a copy: it drops the operation, but it does not act before the journal is read.
#[test]
fn rehearsal_sets_an_operation_aside() {
    let mut core = launching();
    assert!(core.sets_aside() && !core.sets_aside());
    assert_eq!(core.feed(start(None)), [Command::FindTarget(None, Vec::new())]);
    let mut unread = super::core_tests::core();
    assert!(!unread.sets_aside());
    assert!(refusal(&unread.feed(start(None))).details.contains("retry when it completes"));
}

/// K13: a start that fails before the launch leaves the VM where it may run.
#[test]
fn failed_start_before_launch_keeps_the_host() {
    let mut core = out_of_sight();
    core.feed(ha_start());
    core.feed(found_with("b", false, &[]));
    core.feed(Event::Searched(host("b"), Ok(elsewhere())));
    core.feed(Event::Fence(attempt::Event::Intended(Ok(()))));
    core.feed(reported_on("a", true));
    core.feed(Event::Recorded(Ok(())));
    core.feed(Event::Exported(0, Err(broken())));
    let commands = core.feed(Event::Exported(1, Err(broken())));
    assert_eq!(told(&commands), [(VmState::Starting, VmState::Unknown)], "{commands:?}");
    assert_eq!((core.place(), others(&core)), (Some(host("a")), vec![]));
}

/// A host that reports "not here" with full sight is cleared.
#[test]
fn returned_host_without_the_vm_is_cleared() {
    let mut core = out_of_sight();
    core.feed(Event::LookFor(Some(host("c"))));
    core.feed(Event::Searched(host("c"), Ok(runs(9))));
    assert_eq!(core.feed(Event::HostChanged(host("a"), HostStatus::Connected)), [Command::Search(host("a"))]);
    let commands = core.feed(Event::Searched(host("a"), Ok(blind())));
    assert_eq!((commands, others(&core)), (vec![], vec![host("a")]), "listed without full sight");
    core.feed(Event::HostChanged(host("a"), HostStatus::Connected));
    let commands = core.feed(Event::Searched(host("a"), Ok(elsewhere())));
    assert!(matches!(&commands[..], [Command::Emit(change)] if change.may_run_on.is_empty()), "{commands:?}");
}

/// Fault 12, found as seed 16: a migration target was taken for the VM; when the migration failed, the VM counted as
/// stopped on a host where it had never run, and its real host was forgotten.
#[test]
fn migration_target_is_the_vm_only_if_source_is_gone() {
    let (mut core, _) = remembering(VmState::Running, Some("a"), 4);
    core.feed(Event::Searched(host("a"), Err(broken())));
    assert_eq!(core.state(), VmState::Unknown);
    core.feed(Event::LookFor(Some(host("b"))));
    assert_eq!(core.feed(Event::Searched(host("b"), Ok(coming()))), []);
    assert_eq!((core.state(), core.place()), (VmState::Unknown, Some(host("a"))));

    // Its last host cannot be queried: nothing starts beside it.
    core.feed(ha_start());
    core.feed(found_with("c", false, &["b"]));
    core.feed(Event::Searched(host("c"), Ok(elsewhere())));
    let refused = core.feed(Event::Searched(host("b"), Ok(coming())));
    assert!(refusal(&refused).to_string().contains("is a migration target"), "{refused:?}");

    // Its last host reports that it is not there any more: it moved.
    core.feed(ha_start());
    core.feed(found("b"));
    core.feed(Event::Searched(host("a"), Ok(elsewhere())));
    core.feed(Event::Searched(host("b"), Ok(coming())));
    assert_eq!((core.state(), core.place()), (VmState::Running, Some(host("b"))));

    // It was stopped: nothing migrates to there.
    let (mut core, _) = remembering(VmState::Stopped, Some("a"), 4);
    core.feed(Event::LookFor(Some(host("b"))));
    core.feed(Event::Searched(host("b"), Ok(coming())));
    assert_eq!((core.state(), core.place()), (VmState::Running, Some(host("b"))));
}

#[test]
fn stopped_vm_that_is_not_found_stays_as_recorded() {
    let (mut core, _) = remembering(VmState::Stopped, Some("a"), 4);
    for answer in [elsewhere(), exported()] {
        core.feed(Event::LookFor(Some(host("a"))));
        assert_eq!(core.feed(Event::Searched(host("a"), Ok(answer))), []);
    }
}

#[test]
fn no_operation_before_journal_is_read() {
    let mut core = core();
    assert!(refusal(&core.feed(start(None))).details.contains("retry when it completes"));
    assert!(core.feed(Event::Replayed(None)).is_empty());
    assert_eq!((core.state(), core.incarnation()), (VmState::Stopped, 0));
}

/// K12: it vanished while a start was on its way. Lists of other hosts are older than that, so the start queries again.
#[test]
fn start_that_finds_the_vm_gone_queries_the_hosts_again() {
    let (mut core, _) = remembering(VmState::Running, Some("a"), 4);
    core.feed(Event::Searched(host("a"), Ok(runs(4))));
    core.feed(ha_start());
    core.feed(found("b"));
    core.feed(Event::Searched(host("b"), Ok(elsewhere())));
    let commands = core.feed(Event::Searched(host("a"), Ok(elsewhere())));
    let [Command::Emit(change), Command::FindTarget(..)] = &commands[..] else { panic!("{commands:?}") };
    assert_eq!(change.new, VmState::Stopped);
    core.feed(found("b"));
    core.feed(Event::Searched(host("b"), Ok(elsewhere())));
    let commands = core.feed(Event::Searched(host("a"), Ok(elsewhere())));
    assert!(
        matches!(commands.last(), Some(Command::Intend(change)) if change.new == VmState::Starting),
        "{commands:?}"
    );
}

/// Another program moves what runs. What this controller stopped itself, verified, stays where it is.
#[test]
fn vm_that_was_stopped_here_has_not_moved() {
    let (mut core, _) = remembering(VmState::Running, Some("a"), 4);
    core.feed(Event::Searched(host("a"), Ok(runs(4))));
    assert!(core.may_have_moved(), "it runs");
    core.feed(Event::Evict(host("a")));
    core.feed(Event::Recorded(Ok(())));
    core.feed(Event::Halted(Ok(())));
    assert!(!core.may_have_moved(), "it was stopped");
    core.feed(Event::Searched(host("a"), Ok(elsewhere())));

    let (mut vanished, _) = remembering(VmState::Running, Some("a"), 4);
    vanished.feed(Event::Searched(host("a"), Ok(elsewhere())));
    assert_eq!((vanished.state(), vanished.may_have_moved()), (VmState::Stopped, true));
    for volume in &mut vanished.vm.volumes {
        volume.install_path = "ceph://rbd/vm1".parse().unwrap();
    }
    assert!(!vanished.may_have_moved(), "its watchers would show it");

    let (mut core, _) = remembering(VmState::Stopped, Some("a"), 4);
    assert!(core.may_have_moved(), "the journal does not show how it stopped");
    core = super::core_tests::core();
    core.feed(Event::Replayed(None));
    assert!(!core.may_have_moved(), "it never ran");
}
