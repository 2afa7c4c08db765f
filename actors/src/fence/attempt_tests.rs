//! Attempts, step by step. A world of answers, and what an attempt does with it.

use std::time::Instant;

use proptest::prelude::*;
use ringfence_messages::{
    ClusterId, Code, ErrorCode, HostId, Result, StorageId, VmId,
    ceph::{StorageFenceReply, Watcher},
    evidence::Sight,
    fence::{FenceLevel, FenceOutcome, SiblingFenceVmOnHostReply},
    vm::InstallPath,
};
use uuid::Uuid;

use super::{
    attempt::{Attempt, Case, Command, Event, Place},
    permit::Proof,
    policy::Profile,
};

const FAILED: &str = "10.0.0.1";
const OTHER: &str = "10.0.0.9";

fn host(name: &str) -> HostId {
    HostId::from_name(name)
}

fn case(place: Place) -> Case {
    Case {
        attempt: Uuid::nil(),
        vm: VmId::from_name("vm1"),
        cluster: ClusterId::from_name("c1"),
        place,
        addresses: vec![FAILED.parse().unwrap()],
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
    /// The watchers, at the first look and at the second.
    watchers: [Result<Vec<&'static str>>; 2],
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
        executor_host_uuid,
        ..default
    })
}

impl World {
    fn killed() -> World {
        World {
            watchers: [Ok(Vec::new()), Ok(Vec::new())],
            intent: Ok(()),
            report: reply(true, false, true, true),
            storages: [Ok(()), Ok(())],
        }
    }

    fn unreachable() -> World {
        World {
            watchers: [Ok(vec![FAILED]), Ok(Vec::new())],
            report: reply(false, true, false, false),
            ..World::killed()
        }
    }

    /// Runs an attempt to its end; everything that it ordered.
    fn run(&self, case: Case) -> Vec<Command> {
        let now = Instant::now();
        let storages: Vec<_> = case.volumes.iter().map(|(storage, _)| *storage).collect();
        let (mut attempt, commands) = Attempt::begin(case, now);
        let mut todo: std::collections::VecDeque<_> = commands.into();
        let (mut all, mut looks) = (Vec::new(), 0);
        while let Some(command) = todo.pop_front() {
            let event = match &command {
                Command::Watch(index) => {
                    looks += 1;
                    let look = usize::from(looks > storages.len());
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
                Command::Audit { .. } | Command::Done(_) => None,
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
            Command::Audit { .. } => "audit",
            Command::Done(Ok(_)) => "permit",
            Command::Done(Err(_)) => "refused",
        })
        .collect();
    assert_eq!(kinds, ["watch", "watch", "intend sibling", "ask", "watch", "watch", "audit", "permit"]);
    let Some(Command::Audit { outcome, executor, reason }) = all.iter().rev().nth(1) else { panic!() };
    assert_eq!((*outcome, *executor), (FenceOutcome::SuccessKilled, Some(host("c"))));
    assert!(reason.contains("verified gone"), "{reason}");
    let Some(Command::Done(Ok(permit))) = all.last() else { panic!() };
    assert_eq!(permit.proof(), &Proof::Fenced { host: host("a"), outcome: FenceOutcome::SuccessKilled });
    assert_eq!((permit.incarnation(), permit.epoch()), (2, 7));
}

#[test]
fn where_nothing_is_to_be_fenced_watchers_alone_decide_and_nothing_is_audited() {
    let world = |ips: &[&'static str]| World { watchers: [Ok(ips.to_vec()), Ok(Vec::new())], ..World::killed() };
    for (place, ips, starts) in [
        (Place::Nowhere, &[][..], true),
        (Place::Nowhere, &[OTHER], false),
        (Place::Clear(host("a")), &[], true),
        // What a QEMU that died leaves behind for 30 s.
        (Place::Clear(host("a")), &[FAILED], true),
        (Place::Clear(host("a")), &[OTHER], false),
    ] {
        let mut case = case(place);
        if place == Place::Nowhere {
            case.addresses.clear();
        }
        assert_eq!(world(ips).ends(case), (None, starts), "{place:?} {ips:?}");
    }
    let unknown = World { watchers: [Err(error("no answer")), Ok(Vec::new())], ..World::killed() };
    assert_eq!(unknown.ends(case(Place::Nowhere)), (None, false), "a start without knowing the watchers");
}

#[test]
fn what_a_sibling_cannot_prove_every_storage_must() {
    let silent = || case(Place::Silent(host("a")));
    let ends = |world: World| world.ends(silent());
    assert_eq!(ends(World::unreachable()), (Some(FenceOutcome::SuccessSshUnreachable), true));
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
    let stranger = World { watchers: [Ok(vec![FAILED]), Ok(vec![OTHER])], ..lost };
    assert_eq!(stranger.ends(confirmed), (Some(FenceOutcome::Failed), false));
}

#[test]
fn one_who_opens_the_volume_during_the_fence_takes_the_permit_away() {
    for second in [Ok(vec![OTHER]), Err(error("no answer"))] {
        let world = World { watchers: [Ok(Vec::new()), second], ..World::killed() };
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
        let world = World { watchers: [first, second.clone()], intent: intent.clone(), report: report.clone(), storages: storages.clone() };
        let mut case = case(if silent { Place::Silent(host("a")) } else { Place::Clear(host("a")) });
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
            prop_assert!(dead || refused || human);
            prop_assert!(second.is_ok_and(|ips| !ips.contains(&OTHER)));
        }
    }
}
