//! Attempts, step by step. A world of answers, and what an attempt does with it.

use std::time::Instant;

use proptest::prelude::*;
use ringfence_messages::{
    ClusterId, Code, ErrorCode, HostId, Result, StorageId, VmId,
    ceph::{StorageFenceReply, Watcher},
    evidence::{Machine, Sight, Source, Verdict},
    fence::{FenceLevel, FenceOutcome, SiblingFenceVmOnHostReply, UnknownReason},
    vm::InstallPath,
};
use uuid::Uuid;

use super::{
    attempt::{Attempt, Case, Command, Event, Place, WATCH_AGAIN, WATCH_GONE, story},
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

fn case(place: Place) -> Case {
    Case {
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
        human: None,
        ordered: false,
        policy: Profile::Safe.policy(),
    }
}

/// How the world answers.
#[derive(Clone, Debug)]
struct World {
    /// The watchers at each look; the last ones stay.
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

    /// Runs an attempt to its end; everything that it ordered.
    fn run(&self, case: Case) -> Vec<Command> {
        let mut now = Instant::now();
        let storages: Vec<_> = case.volumes.iter().map(|(storage, _)| *storage).collect();
        let (mut attempt, commands) = Attempt::begin(case, now);
        let mut todo: std::collections::VecDeque<_> = commands.into();
        let (mut all, mut looks) = (Vec::new(), 0);
        while let Some(command) = todo.pop_front() {
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

    /// How it ended: the audited outcome, and whether a permit was given.
    fn ends(&self, case: Case) -> (Option<FenceOutcome>, bool) {
        let all = self.run(case);
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
fn a_kill_is_intended_done_looked_at_again_audited_and_only_then_permitted() {
    let all = World::killed().run(case(Place::Silent(host("a"))));
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
    assert!(story(evidence).contains("verified gone"), "{evidence:?}");
    let looks: Vec<_> = evidence.iter().map(|of| (of.source, of.verdict)).collect();
    assert_eq!(looks, [(Source::Sibling, Verdict::Dead), (Source::Watchers, Verdict::Dead)]);
    assert_eq!(evidence[0].machine, Some(machine("m")), "the machine that was looked at is in the audit");
    let Some(Command::Done(Ok(Passed { cleared: Some(cleared), .. }))) = all.last() else { panic!() };
    assert_eq!(cleared.host(), host("a"));
}

#[test]
fn where_nothing_is_to_be_fenced_watchers_alone_decide_and_nothing_is_audited() {
    let world = |ips: &[&'static str]| World { watchers: vec![Ok(ips.to_vec()), Ok(Vec::new())], ..World::killed() };
    for (ran, ips, starts) in [
        (false, &[][..], true),
        (false, &[OTHER], false),
        (true, &[], true),
        // What a QEMU that died leaves behind for 30 s: it ends.
        (true, &[FAILED], true),
        (true, &[OTHER], false),
    ] {
        let mut case = case(Place::Clear);
        if !ran {
            (case.addresses, case.own) = (Vec::new(), Vec::new());
        }
        assert_eq!(world(ips).ends(case), (None, starts), "{ran} {ips:?}");
    }
    let unknown = World { watchers: vec![Err(error("no answer")), Ok(Vec::new())], ..World::killed() };
    assert_eq!(unknown.ends(case(Place::Clear)), (None, false), "a start without knowing the watchers");
}

/// K3: "not there" beside a watch from there is waited out, for as long as the watch of a dead client may last.
#[test]
fn a_watch_from_where_it_is_called_dead_is_waited_out_and_stays_a_sign_of_life() {
    let stays = |looks: usize| World {
        watchers: std::iter::repeat_n(Ok(vec![FAILED]), looks).chain([Ok(Vec::new())]).collect(),
        ..World::killed()
    };
    let waits = |all: &[Command]| all.iter().filter(|c| **c == Command::Wait(WATCH_AGAIN)).count();
    let limit = (WATCH_GONE.as_secs() / WATCH_AGAIN.as_secs()) as usize;

    // An agent says that it is not there; nothing is fenced, whatever the watch does.
    let all = stays(limit).run(case(Place::Clear));
    assert!(matches!(all.last(), Some(Command::Done(Ok(_)))), "{all:?}");
    assert_eq!(waits(&all), limit);
    let all = stays(limit + 5).run(case(Place::Clear));
    let Some(Command::Done(Err(refused))) = all.last() else { panic!("started: {all:?}") };
    assert!(refused.to_string().contains("one of both is wrong"), "{refused}");
    assert_eq!(waits(&all), limit, "it is waited for, and not for ever");

    // A sibling killed it, "verified gone"; the watch goes on: the storage has to refuse the host.
    let silent = || case(Place::Silent(host("a")));
    assert_eq!(stays(3).ends(silent()), (Some(FenceOutcome::SuccessKilled), true), "it ends: nothing more is done");
    let all = stays(1000).run(silent());
    assert!(all.iter().any(|c| matches!(c, Command::Block(_))), "{all:?}");
    assert_eq!(stays(1000).ends(silent()), (Some(FenceOutcome::SuccessStorageFenced), true));
    let denied = World { storages: [Err(error("denied")), Ok(())], ..stays(1000) };
    assert_eq!(denied.ends(silent()), (Some(FenceOutcome::Failed), false));
    let Some(Command::Audit { evidence, .. }) = denied.run(silent()).into_iter().rev().nth(1) else { panic!() };
    assert!(evidence.iter().any(|of| of.unknown == Some(UnknownReason::Contradicted)), "{evidence:?}");

    // Nor does a human's word stand against it.
    let mut confirmed = silent();
    confirmed.human = Some("root".to_owned());
    let lost =
        World { storages: [Err(error("denied")), Ok(())], report: reply(false, true, false, false), ..stays(1000) };
    assert_eq!(lost.ends(confirmed.clone()), (Some(FenceOutcome::Failed), false));
    assert!(lost.run(confirmed).contains(&Command::EndAttestation(host("a"))), "the watch is younger");
}

/// K1: a storage fence whose addresses are not those from which the host is seen writing proves nothing.
#[test]
fn a_storage_fence_that_does_not_cover_the_watching_address_is_no_proof() {
    let mut wide = case(Place::Silent(host("a")));
    wide.addresses.push("10.0.0.2".parse().unwrap());
    wide.own.push("10.0.0.2".parse().unwrap());
    let world = World { watchers: vec![Ok(vec!["10.0.0.2"])], ..World::unreachable() };
    assert_eq!(world.ends(wide), (Some(FenceOutcome::Failed), false));
}

/// K1, K2: what a sibling reports of another machine, or with less than full sight, is not "dead".
#[test]
fn a_report_of_another_machine_or_of_a_blind_one_leads_to_the_next_level() {
    let dead = || reply(true, false, false, false).unwrap();
    let other = SiblingFenceVmOnHostReply { machine: Some(machine("other")), ..dead() };
    let blind = SiblingFenceVmOnHostReply { sight: Some(Sight { euid: 1000, ..Sight::full() }), ..dead() };
    for (report, why) in [(other, UnknownReason::OtherMachine), (blind, UnknownReason::Blind)] {
        let world = World { report: Ok(report), ..World::unreachable() };
        assert_eq!(world.ends(case(Place::Silent(host("a")))), (Some(FenceOutcome::SuccessStorageFenced), true));
        let all = world.run(case(Place::Silent(host("a"))));
        let Some(Command::Audit { evidence, .. }) = all.into_iter().rev().nth(1) else { panic!() };
        assert_eq!((evidence[0].verdict, evidence[0].unknown), (Verdict::Unknown, Some(why)));
    }
}

#[test]
fn what_a_sibling_cannot_prove_every_storage_must() {
    let silent = || case(Place::Silent(host("a")));
    let ends = |world: World| world.ends(silent());
    assert_eq!(ends(World::unreachable()), (Some(FenceOutcome::SuccessStorageFenced), true));
    let one_refuses = World { storages: [Ok(()), Err(error("quorum lost"))], ..World::unreachable() };
    assert_eq!(ends(one_refuses), (Some(FenceOutcome::FailedUnreachable), false));
    let alive = World { report: reply(true, true, true, false), ..World::unreachable() };
    assert_eq!(ends(alive.clone()), (Some(FenceOutcome::SuccessStorageFenced), true));
    let neither = World { storages: [Err(error("denied")), Ok(())], ..alive };
    assert_eq!(ends(neither), (Some(FenceOutcome::FailedStillAlive), false));
    let nobody = World { report: Err(error("no sibling is connected")), ..World::unreachable() };
    assert_eq!(ends(nobody), (Some(FenceOutcome::SuccessStorageFenced), true));

    // A volume that no storage can refuse.
    let mut local = silent();
    local.volumes[1].1 = InstallPath::Vhost { name: "x".to_owned() };
    assert_eq!(World::unreachable().ends(local.clone()), (Some(FenceOutcome::FailedUnreachable), false));
    assert_eq!(World::killed().ends(local), (Some(FenceOutcome::SuccessKilled), true));
}

#[test]
fn while_an_order_may_still_be_carried_out_there_no_kill_is_proof_enough() {
    let ordered = Case { ordered: true, ..case(Place::Silent(host("a"))) };
    for report in [reply(true, false, true, true), reply(true, false, false, false)] {
        let world = World { report, ..World::killed() };
        assert_eq!(world.ends(ordered.clone()), (Some(FenceOutcome::SuccessStorageFenced), true));
        let denied = World { storages: [Ok(()), Err(error("denied"))], ..world };
        assert_eq!(denied.ends(ordered.clone()), (Some(FenceOutcome::Failed), false));
    }
}

#[test]
fn a_humans_word_is_the_last_level_and_is_not_taken_against_a_stranger() {
    let mut confirmed = case(Place::Silent(host("a")));
    confirmed.human = Some("root".to_owned());
    let lost = World { storages: [Err(error("quorum lost")), Ok(())], ..World::unreachable() };
    assert_eq!(lost.ends(confirmed.clone()), (Some(FenceOutcome::SuccessHumanConfirmed), true));
    assert_eq!(World::killed().ends(confirmed.clone()), (Some(FenceOutcome::SuccessKilled), true), "proof goes first");
    let stranger = World { watchers: vec![Ok(vec![FAILED]), Ok(vec![OTHER])], ..lost };
    assert_eq!(stranger.ends(confirmed), (Some(FenceOutcome::Failed), false));
}

/// K9, I2: a sibling reached the machine that an operator attested to be off: one of both is wrong.
#[test]
fn an_attestation_does_not_count_for_a_machine_that_answers() {
    let mut confirmed = case(Place::Silent(host("a")));
    confirmed.human = Some("root".to_owned());
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
        assert!(world.run(confirmed.clone()).contains(&ends), "it does not count for the next attempt either");
    }
    // An order may still be under way on a host that answers.
    let ordered = Case { ordered: true, ..confirmed.clone() };
    assert_eq!(denied(with(&same, dead)).ends(ordered), (Some(FenceOutcome::Failed), false));
    // Another machine has the address: that says nothing of the one that is off.
    let elsewhere = denied(with(&other, dead));
    assert_eq!(elsewhere.ends(confirmed), (Some(FenceOutcome::SuccessHumanConfirmed), true));
}

#[test]
fn one_who_opens_the_volume_during_the_fence_takes_the_permit_away() {
    for second in [Ok(vec![OTHER]), Err(error("no answer"))] {
        let world = World { watchers: vec![Ok(Vec::new()), second], ..World::killed() };
        assert_eq!(world.ends(case(Place::Silent(host("a")))), (Some(FenceOutcome::Failed), false));
    }
}

#[test]
fn without_a_durable_intent_nothing_is_touched() {
    let world = World { intent: Err(error("disk full")), ..World::unreachable() };
    let all = world.run(case(Place::Silent(host("a"))));
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
    // Most worlds end early: so many that the rare ones come, too.
    #![proptest_config(ProptestConfig::with_cases(4096))]

    /// I1 and I7 over every world: a permit only if death or refusal is proven and nobody else has the volume open at
    /// the end; exactly one audit if and only if an intent was durable; no audit that says success without a permit.
    #[test]
    fn no_permit_without_proof(
        first in any_watchers(), second in any_watchers(), intent in any_result(Just(())),
        report in any_result((any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>())),
        storages in [any_result(Just(())), any_result(Just(()))],
        human in any::<bool>(), silent in any::<bool>(),
    ) {
        let report = report.and_then(|(ssh, alive, found, killed)| reply(ssh, alive, found, killed));
        let world = World { watchers: vec![first, second.clone()], intent: intent.clone(), report: report.clone(), storages: storages.clone() };
        let mut case = case(if silent { Place::Silent(host("a")) } else { Place::Clear });
        case.human = human.then(|| "root".to_owned());
        let (outcome, permitted) = world.ends(case.clone());
        let asked = world.run(case).iter().any(|c| matches!(c, Command::AskFencer | Command::Block(_)));
        prop_assert_eq!(outcome.is_some(), asked, "an audit for every attempt, and only for those");
        prop_assert!(!asked || intent.is_ok());
        if let Some(outcome) = outcome {
            prop_assert_eq!(outcome.as_str().starts_with("success"), permitted, "{} and permitted = {}", outcome, permitted);
        }
        if silent && permitted {
            let dead = report.as_ref().is_ok_and(|r| r.ssh_reachable && !r.alive && r.killed == r.qemu_found);
            let refused = storages.iter().all(Result::is_ok);
            let reached = report.as_ref().is_ok_and(|r| r.ssh_reachable);
            prop_assert!(dead || refused || (human && !reached));
            prop_assert!(second.is_ok_and(|ips| !ips.contains(&OTHER)));
        }
    }
}
