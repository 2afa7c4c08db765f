//! Attempts, step by step, against a world of answers.

use std::time::Instant;

use proptest::prelude::*;
use ringfence_messages::{
    ClusterId, Code, ErrorCode, HostId, Result, StorageId, VmId,
    ceph::{StorageFenceReply, Watcher},
    evidence::{Machine, Sight, Source, UnknownReason, Verdict},
    fence::{FenceLevel, FenceOutcome, SiblingFenceVmOnHostReply},
    vm::InstallPath,
};
use uuid::Uuid;

use super::{
    attempt::{Attempt, Command, Event, FenceRequest, LastHost, WATCH_AGAIN, WATCH_GONE, evidence_text},
    permit::Passed,
    policy::Profile,
};

const FAILED: &str = "10.0.0.1";
const OTHER: &str = "10.0.0.9";

fn host(name: &str) -> HostId {
    HostId::from_name(name)
}

fn machine(id: &str) -> Machine {
    Machine { machine_id: id.to_owned(), boot_id: "b".to_owned() }
}

fn request(place: LastHost) -> FenceRequest {
    FenceRequest {
        attempt: Uuid::nil(),
        vm: VmId::from_name("vm1"),
        cluster: ClusterId::from_name("c1"),
        place,
        machine: machine("m"),
        addresses: vec![FAILED.parse().unwrap()],
        own: vec![FAILED.parse().unwrap()],
        target: host("b"),
        incarnation: 2,
        epoch: 7,
        volumes: vec![
            (StorageId::from_name("ceph-1"), "ceph://rbd/vm1".parse().unwrap()),
            (StorageId::from_name("ceph-2"), "ceph://rbd/data".parse().unwrap()),
        ],
        attested_by: None,
        ordered: false,
        policy: Profile::Safe.policy(),
    }
}

/// How the world answers.
#[derive(Clone, Debug)]
struct World {
    /// The watchers at each check; the last ones stay.
    watchers: Vec<Result<Vec<&'static str>>>,
    intent: Result<()>,
    report: Result<SiblingFenceVmOnHostReply>,
    storages: [Result<()>; 2],
}

fn error(what: &str) -> ErrorCode {
    ErrorCode::new(Code::TIMEOUT, what)
}

fn reply(ssh: bool, alive: bool, found: bool, killed: bool) -> Result<SiblingFenceVmOnHostReply> {
    let executor_host_uuid = Some(host("c"));
    let default = SiblingFenceVmOnHostReply::default();
    Ok(SiblingFenceVmOnHostReply {
        alive,
        killed,
        ssh_reachable: ssh,
        qemu_found: found,
        sight: Some(Sight::full()),
        machine: Some(machine("m")),
        executor_host_uuid,
        ..default
    })
}

impl World {
    fn killed() -> World {
        World {
            watchers: vec![Ok(Vec::new()), Ok(Vec::new())],
            intent: Ok(()),
            report: reply(true, false, true, true),
            storages: [Ok(()), Ok(())],
        }
    }

    fn unreachable() -> World {
        World {
            watchers: vec![Ok(vec![FAILED]), Ok(Vec::new())],
            report: reply(false, true, false, false),
            ..World::killed()
        }
    }

    /// Runs an attempt to its end and returns its commands.
    fn run(&self, request: FenceRequest) -> Vec<Command> {
        let mut now = Instant::now();
        let storages: Vec<_> = request.volumes.iter().map(|(storage, _)| *storage).collect();
        let (mut attempt, commands) = Attempt::begin(request, now);
        let mut todo: std::collections::VecDeque<_> = commands.into();
        let (mut all, mut looks) = (Vec::new(), 0);
        while let Some(command) = todo.pop_front() {
            assert!(all.len() < 1000, "the attempt does not end");
            let event = match &command {
                Command::Watch(index) => {
                    looks += 1;
                    let look = ((looks - 1) / storages.len()).min(self.watchers.len() - 1);
                    let watchers = self.watchers[look].clone().map(|ips| {
                        ips.iter().map(|ip| Watcher { address: format!("{ip}:0/1"), ip: ip.parse().unwrap() }).collect()
                    });
                    Some(Event::Watched(*index, if *index == 0 { watchers } else { Ok(Vec::new()) }))
                }
                Command::Intend(_) => Some(Event::Intended(self.intent.clone())),
                Command::AskFencer => Some(Event::Reported(self.report.clone())),
                Command::Block(storage) => {
                    let at = storages.iter().position(|s| s == storage).unwrap();
                    let done = self.storages[at].clone();
                    let addresses = vec![FAILED.parse().unwrap()];
                    Some(Event::Blocked(*storage, done.map(|()| StorageFenceReply { osd_epoch: 41, addresses })))
                }
                Command::Wait(time) => {
                    now += *time;
                    Some(Event::Waited)
                }
                Command::Audit { .. } | Command::EndAttestation(_) | Command::Done(_) => None,
            };
            if let Some(event) = event {
                todo.extend(attempt.on(event, now));
            }
            all.push(command);
        }
        all
    }

    /// The audited outcome, and whether a permit was given.
    fn ends(&self, request: FenceRequest) -> (Option<FenceOutcome>, bool) {
        let all = self.run(request);
        let audits: Vec<_> = all
            .iter()
            .filter_map(|c| if let Command::Audit { outcome, .. } = c { Some(*outcome) } else { None })
            .collect();
        assert!(audits.len() <= 1, "more than one audit: {all:?}");
        let Some(Command::Done(done)) = all.last() else { panic!("it never ended: {all:?}") };
        (audits.first().copied(), done.is_ok())
    }
}

#[test]
fn kill_needs_intent_second_check_and_audit_before_permit() {
    let all = World::killed().run(request(LastHost::Unreachable(host("a"))));
    let kinds: Vec<&str> = all
        .iter()
        .map(|command| match command {
            Command::Watch(_) => "watch",
            Command::Intend(FenceLevel::Sibling) => "intend sibling",
            Command::Intend(FenceLevel::Storage) => "intend storage",
            Command::AskFencer => "ask",
            Command::Block(_) => "block",
            Command::Wait(_) => "wait",
            Command::Audit { .. } => "audit",
            Command::Done(Ok(_)) => "permit",
            Command::Done(Err(_)) => "refused",
            Command::EndAttestation(_) => "end-attestation",
        })
        .collect();
    assert_eq!(kinds, ["watch", "watch", "intend sibling", "ask", "watch", "watch", "audit", "permit"]);
    let Some(Command::Audit { outcome, executor, evidence }) = all.iter().rev().nth(1) else { panic!() };
    assert_eq!((*outcome, *executor), (FenceOutcome::SuccessKilled, Some(host("c"))));
    assert!(evidence_text(evidence).contains("verified"), "{evidence:?}");
    let looks: Vec<_> = evidence.iter().map(|of| (of.source, of.verdict)).collect();
    assert_eq!(looks, [(Source::Sibling, Verdict::Dead), (Source::Watchers, Verdict::Dead)]);
    assert_eq!(evidence[0].machine, Some(machine("m")), "the inspected machine is in the audit");
    assert_eq!(evidence[0].by, Some(host("c").to_string()), "the sibling host that inspected it is in the audit");
    assert_eq!(evidence[0].sight, Some(Sight::full()), "what the sibling host could see is in the audit");
    let Some(Command::Done(Ok(Passed { cleared: Some(cleared), .. }))) = all.last() else { panic!() };
    assert_eq!(cleared.host(), host("a"));
}

#[test]
fn watchers_alone_decide_without_fence_or_audit() {
    let world = |ips: &[&'static str]| World { watchers: vec![Ok(ips.to_vec()), Ok(Vec::new())], ..World::killed() };
    for (ran, ips, starts) in [
        (false, &[][..], true),
        (false, &[OTHER], false),
        (true, &[], true),
        // The watch of a dead QEMU: it ends within 30 s.
        (true, &[FAILED], true),
        (true, &[OTHER], false),
    ] {
        let mut request = request(LastHost::ConfirmedAbsent);
        if !ran {
            (request.addresses, request.own) = (Vec::new(), Vec::new());
        }
        assert_eq!(world(ips).ends(request), (None, starts), "{ran} {ips:?}");
    }
    let unknown = World { watchers: vec![Err(error("no answer")), Ok(Vec::new())], ..World::killed() };
    assert_eq!(unknown.ends(request(LastHost::ConfirmedAbsent)), (None, false), "a start without knowing the watchers");
}

/// K3: a report "not there" beside a watch from there is waited out, as long as the watch of a dead client may last.
#[test]
fn own_watch_after_death_report_is_waited_out() {
    let stays = |looks: usize| World {
        watchers: std::iter::repeat_n(Ok(vec![FAILED]), looks).chain([Ok(Vec::new())]).collect(),
        ..World::killed()
    };
    let waits = |all: &[Command]| all.iter().filter(|c| **c == Command::Wait(WATCH_AGAIN)).count();
    let limit = (WATCH_GONE.as_secs() / WATCH_AGAIN.as_secs()) as usize;

    // An agent reports that it is not there; nothing is fenced, whatever the watch does.
    let all = stays(limit).run(request(LastHost::ConfirmedAbsent));
    assert!(matches!(all.last(), Some(Command::Done(Ok(_)))), "{all:?}");
    assert_eq!(waits(&all), limit);
    let all = stays(limit + 5).run(request(LastHost::ConfirmedAbsent));
    let Some(Command::Done(Err(refused))) = all.last() else { panic!("started: {all:?}") };
    assert!(refused.to_string().contains("contradicts itself"), "{refused}");
    assert_eq!(waits(&all), limit, "it is waited for, and not for ever");

    // A sibling host killed it, verified; the watch stays: the storage must reject the host.
    let silent = || request(LastHost::Unreachable(host("a")));
    assert_eq!(stays(3).ends(silent()), (Some(FenceOutcome::SuccessKilled), true), "it ends: nothing more is done");
    let all = stays(1000).run(silent());
    assert!(all.iter().any(|c| matches!(c, Command::Block(_))), "{all:?}");
    assert_eq!(stays(1000).ends(silent()), (Some(FenceOutcome::SuccessStorageFenced), true));
    let denied = World { storages: [Err(error("denied")), Ok(())], ..stays(1000) };
    assert_eq!(denied.ends(silent()), (Some(FenceOutcome::Failed), false));
    let Some(Command::Audit { evidence, .. }) = denied.run(silent()).into_iter().rev().nth(1) else { panic!() };
    assert!(evidence.iter().any(|of| of.unknown == Some(UnknownReason::Contradicted)), "{evidence:?}");

    // An attestation does not override the watch either.
    let mut confirmed = silent();
    confirmed.attested_by = Some("root".to_owned());
    let lost =
        World { storages: [Err(error("denied")), Ok(())], report: reply(false, true, false, false), ..stays(1000) };
    assert_eq!(lost.ends(confirmed.clone()), (Some(FenceOutcome::Failed), false));
    assert!(lost.run(confirmed).contains(&Command::EndAttestation(host("a"))), "the watch is younger");
}

/// K1: a storage fence whose addresses are not those of the writing client proves nothing.
#[test]
fn storage_fence_of_another_address_is_no_proof() {
    let mut wide = request(LastHost::Unreachable(host("a")));
    wide.addresses.push("10.0.0.2".parse().unwrap());
    wide.own.push("10.0.0.2".parse().unwrap());
    let world = World { watchers: vec![Ok(vec!["10.0.0.2"])], ..World::unreachable() };
    assert_eq!(world.ends(wide), (Some(FenceOutcome::Failed), false));
}

/// K1, K2: a sibling host's report of another machine, or without full sight, is not "dead".
#[test]
fn report_of_other_machine_or_without_sight_escalates() {
    let dead = || reply(true, false, false, false).unwrap();
    let other = SiblingFenceVmOnHostReply { machine: Some(machine("other")), ..dead() };
    let blind = SiblingFenceVmOnHostReply { sight: Some(Sight { euid: 1000, ..Sight::full() }), ..dead() };
    for (report, why) in [(other, UnknownReason::OtherMachine), (blind, UnknownReason::Blind)] {
        let world = World { report: Ok(report), ..World::unreachable() };
        assert_eq!(
            world.ends(request(LastHost::Unreachable(host("a")))),
            (Some(FenceOutcome::SuccessStorageFenced), true)
        );
        let all = world.run(request(LastHost::Unreachable(host("a"))));
        let Some(Command::Audit { evidence, .. }) = all.into_iter().rev().nth(1) else { panic!() };
        assert_eq!((evidence[0].verdict, evidence[0].unknown), (Verdict::Unknown, Some(why)));
    }
}

#[test]
fn unproven_level_one_needs_every_storage() {
    let silent = || request(LastHost::Unreachable(host("a")));
    let ends = |world: World| world.ends(silent());
    assert_eq!(ends(World::unreachable()), (Some(FenceOutcome::SuccessStorageFenced), true));
    let one_refuses = World { storages: [Ok(()), Err(error("quorum lost"))], ..World::unreachable() };
    assert_eq!(ends(one_refuses), (Some(FenceOutcome::FailedUnreachable), false));
    let alive = World { report: reply(true, true, true, false), ..World::unreachable() };
    assert_eq!(ends(alive.clone()), (Some(FenceOutcome::SuccessStorageFenced), true));
    let neither = World { storages: [Err(error("denied")), Ok(())], ..alive };
    assert_eq!(ends(neither.clone()), (Some(FenceOutcome::FailedStillAlive), false));
    let Some(Command::Audit { evidence, .. }) = neither.run(silent()).into_iter().rev().nth(1) else { panic!() };
    assert_eq!((evidence[0].source, evidence[0].verdict), (Source::Sibling, Verdict::Alive));
    let no_sibling = World { report: Err(error("no sibling host is Connected")), ..World::unreachable() };
    assert_eq!(ends(no_sibling), (Some(FenceOutcome::SuccessStorageFenced), true));

    // A volume that no storage can reject.
    let mut local = silent();
    local.volumes[1].1 = InstallPath::Vhost { name: "x".to_owned() };
    assert_eq!(World::unreachable().ends(local.clone()), (Some(FenceOutcome::FailedUnreachable), false));
    assert_eq!(World::killed().ends(local.clone()), (Some(FenceOutcome::SuccessKilled), true));
    assert!(!World::killed().run(local).contains(&Command::Watch(1)), "only Ceph lists watchers");
}

#[test]
fn answer_of_one_storage_does_not_stand_for_another() {
    let silent = request(LastHost::Unreachable(host("a")));
    let now = Instant::now();
    let (mut attempt, _) = Attempt::begin(silent, now);
    let blocked = |storage| {
        let addresses = vec![FAILED.parse().unwrap()];
        Event::Blocked(storage, Ok(StorageFenceReply { osd_epoch: 41, addresses }))
    };
    let mut commands = Vec::new();
    for event in [
        Event::Watched(0, Ok(Vec::new())),
        Event::Watched(1, Ok(Vec::new())),
        Event::Intended(Ok(())),
        Event::Reported(reply(false, true, false, false)),
        Event::Intended(Ok(())),
    ] {
        commands = attempt.on(event, now);
    }
    let [Command::Block(first), Command::Block(second)] = commands[..] else { panic!("{commands:?}") };
    for storage in [first, first, StorageId::from_name("other")] {
        assert_eq!(attempt.on(blocked(storage), now), [], "the second storage still admits the host");
    }
    assert_eq!(attempt.on(blocked(second), now), [Command::Watch(0), Command::Watch(1)]);
}

#[test]
fn kill_is_no_proof_while_a_start_command_is_valid() {
    let ordered = FenceRequest { ordered: true, ..request(LastHost::Unreachable(host("a"))) };
    for report in [reply(true, false, true, true), reply(true, false, false, false)] {
        let world = World { report, ..World::killed() };
        assert_eq!(world.ends(ordered.clone()), (Some(FenceOutcome::SuccessStorageFenced), true));
        let denied = World { storages: [Ok(()), Err(error("denied"))], ..world };
        assert_eq!(denied.ends(ordered.clone()), (Some(FenceOutcome::Failed), false));
    }
}

#[test]
fn attestation_is_last_and_yields_to_foreign_watcher() {
    let mut confirmed = request(LastHost::Unreachable(host("a")));
    confirmed.attested_by = Some("root".to_owned());
    let lost = World { storages: [Err(error("quorum lost")), Ok(())], ..World::unreachable() };
    assert_eq!(lost.ends(confirmed.clone()), (Some(FenceOutcome::SuccessHumanConfirmed), true));
    let Some(Command::Audit { evidence, .. }) = lost.run(confirmed.clone()).into_iter().rev().nth(1) else { panic!() };
    let attested = evidence.iter().find(|of| of.source == Source::Human);
    assert_eq!(attested.and_then(|of| of.by.as_deref()), Some("root"), "the operator is in the audit");
    assert_eq!(World::killed().ends(confirmed.clone()), (Some(FenceOutcome::SuccessKilled), true), "proof goes first");
    let stranger = World { watchers: vec![Ok(vec![FAILED]), Ok(vec![OTHER])], ..lost };
    assert_eq!(stranger.ends(confirmed), (Some(FenceOutcome::Failed), false));
}

/// K9, I2: a sibling host reaches the machine that an operator attested to be off.
#[test]
fn attestation_does_not_count_for_a_reachable_machine() {
    let mut confirmed = request(LastHost::Unreachable(host("a")));
    confirmed.attested_by = Some("root".to_owned());
    let denied = |report| World { storages: [Err(error("denied")), Ok(())], report, ..World::unreachable() };
    let with = |change: &dyn Fn(&mut SiblingFenceVmOnHostReply), bits: [bool; 4]| {
        let [ssh, alive, found, killed] = bits;
        reply(ssh, alive, found, killed).map(|mut reply| {
            change(&mut reply);
            reply
        })
    };
    let same = |_: &mut SiblingFenceVmOnHostReply| {};
    let other = |reply: &mut SiblingFenceVmOnHostReply| reply.machine = Some(machine("another"));
    let unknown = |reply: &mut SiblingFenceVmOnHostReply| reply.machine = None;
    let blind = |reply: &mut SiblingFenceVmOnHostReply| reply.sight = None;
    let (alive, dead) = ([true, true, true, true], [true, false, false, false]);
    for (report, outcome) in [
        (with(&same, alive), FenceOutcome::FailedStillAlive),
        (with(&blind, dead), FenceOutcome::Failed),
        (with(&unknown, dead), FenceOutcome::Failed),
        (with(&other, alive), FenceOutcome::Failed),
    ] {
        let world = denied(report);
        assert_eq!(world.ends(confirmed.clone()), (Some(outcome), false), "{:?}", world.report);
        let ends = Command::EndAttestation(host("a"));
        assert!(world.run(confirmed.clone()).contains(&ends), "it must not count for the next attempt");
    }
    // An earlier start command may still be carried out on a reachable host.
    let ordered = FenceRequest { ordered: true, ..confirmed.clone() };
    assert_eq!(denied(with(&same, dead)).ends(ordered), (Some(FenceOutcome::Failed), false));
    // A different machine at the address is no evidence about the host that is off.
    let elsewhere = denied(with(&other, dead));
    assert_eq!(elsewhere.ends(confirmed), (Some(FenceOutcome::SuccessHumanConfirmed), true));
}

#[test]
fn new_watcher_during_fence_denies_permit() {
    for second in [Ok(vec![OTHER]), Err(error("no answer"))] {
        let world = World { watchers: vec![Ok(Vec::new()), second], ..World::killed() };
        assert_eq!(world.ends(request(LastHost::Unreachable(host("a")))), (Some(FenceOutcome::Failed), false));
    }
}

#[test]
fn failed_intent_touches_nothing() {
    let world = World { intent: Err(error("disk full")), ..World::unreachable() };
    let all = world.run(request(LastHost::Unreachable(host("a"))));
    assert!(
        !all.iter().any(|c| matches!(c, Command::AskFencer | Command::Block(_) | Command::Audit { .. })),
        "{all:?}"
    );
    assert!(matches!(all.last(), Some(Command::Done(Err(_)))));
}

fn any_result<T: Clone + std::fmt::Debug + 'static>(ok: impl Strategy<Value = T>) -> impl Strategy<Value = Result<T>> {
    ok.prop_flat_map(|value| prop_oneof![3 => Just(Ok(value)), 1 => Just(Err(error("x")))])
}

fn any_watchers() -> impl Strategy<Value = Result<Vec<&'static str>>> {
    any_result(prop_oneof![Just(vec![]), Just(vec![FAILED]), Just(vec![OTHER]), Just(vec![FAILED, OTHER])])
}

proptest! {
    // Most worlds end early. So many cases also reach the rare ones.
    #![proptest_config(ProptestConfig::with_cases(4096))]

    /// I1 and I7 over every world: a permit only if death or rejection is proven and no other client has the volume
    /// open at the end; exactly one audit record if and only if an intent was durable; no success in the audit
    /// without a permit.
    #[test]
    fn no_permit_without_proof(
        first in any_watchers(), second in any_watchers(), intent in any_result(Just(())),
        report in any_result((any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>())),
        storages in [any_result(Just(())), any_result(Just(()))],
        attested_by in any::<bool>(), silent in any::<bool>(),
    ) {
        let report = report.and_then(|(ssh, alive, found, killed)| reply(ssh, alive, found, killed));
        let world = World { watchers: vec![first, second.clone()], intent: intent.clone(), report: report.clone(),
            storages: storages.clone() };
        let mut request = request(if silent { LastHost::Unreachable(host("a")) } else { LastHost::ConfirmedAbsent });
        request.attested_by = attested_by.then(|| "root".to_owned());
        let (outcome, permitted) = world.ends(request.clone());
        let asked = world.run(request).iter().any(|c| matches!(c, Command::AskFencer | Command::Block(_)));
        prop_assert_eq!(outcome.is_some(), asked, "an audit for every attempt, and only for those");
        prop_assert!(!asked || intent.is_ok());
        if let Some(outcome) = outcome {
            prop_assert_eq!(outcome.as_str().starts_with("success"), permitted, "{} and permitted = {}", outcome,
                permitted);
        }
        if silent && permitted {
            let dead = report.as_ref().is_ok_and(|r| r.ssh_reachable && !r.alive && r.killed == r.qemu_found);
            let refused = storages.iter().all(Result::is_ok);
            let reached = report.as_ref().is_ok_and(|r| r.ssh_reachable);
            prop_assert!(dead || refused || (attested_by && !reached));
            prop_assert!(second.is_ok_and(|ips| !ips.contains(&OTHER)));
        }
    }
}
