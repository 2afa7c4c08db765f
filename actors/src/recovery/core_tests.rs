//! The recovery core, step by step and under any interleaving.

use std::collections::{HashMap, HashSet};

use proptest::prelude::*;
use ringfence_messages::{Code, Health, storage::StorageKind};

use super::core::*;
use crate::inventory::{Cluster, Host, Inventory, InventoryIndex, PingSettings, Storage};
use ringfence_messages::{
    ClusterId, ErrorCode, HostId, Protocol, ProtocolStatus, StorageId,
    host::{HostState, HostStatus, PingHostReply},
    storage::{CheckHostHealthReply, ProtocolHealth},
};
use std::{sync::Arc, time::Duration};

pub(super) const S: Duration = Duration::from_secs(1);

pub(super) fn host(n: usize) -> HostId {
    HostId::from_name(&format!("h{n}"))
}

fn storage(n: usize) -> StorageId {
    StorageId::from_name(&format!("s{n}"))
}

/// `hosts` hosts of one cluster with `storages` storages of two protocols each.
pub(super) fn inventory(hosts: usize, storages: usize) -> Arc<InventoryIndex> {
    let cluster = ClusterId::from_name("c");
    let of = |n: usize| Host {
        id: host(n),
        name: format!("h{n}"),
        cluster,
        management_ip: "127.0.0.1".into(),
        agent_port: 7070,
        ssh_port: 22,
        storage_ips: vec![],
    };
    let with = |n: usize| Storage {
        id: storage(n),
        name: format!("s{n}"),
        kind: StorageKind::Zbs,
        clusters: vec![cluster],
        protocols: vec![Protocol::Cbd, Protocol::Vhost],
        volume_dir: None,
        on_target_loss: Default::default(),
        ceph: None,
        watchers_allowed: Vec::new(),
    };
    Arc::new(InventoryIndex::new(Inventory {
        clusters: vec![Cluster { id: cluster, name: "c".into() }],
        hosts: (0..hosts).map(of).collect(),
        storages: (0..storages).map(with).collect(),
        vms: vec![],
    }))
}

pub(super) fn settings() -> PingSettings {
    PingSettings { interval: 10 * S, timeout: 2 * S, max_failure: 3, sleep_after_failure: S, parallelism: 100 }
}

pub(super) fn core(hosts: usize, storages: usize) -> Core {
    Core::new(settings(), inventory(hosts, storages), &HashMap::new(), &HashMap::new(), Duration::ZERO)
}

pub(super) fn pong(connected: bool) -> PingHostReply {
    PingHostReply {
        connected,
        reason: (!connected).then(|| "no answer".into()),
        boot_id: String::new(),
        machine: Default::default(),
    }
}

pub(super) fn pinged(n: usize, connected: bool) -> Event {
    Event::PingDone { host: host(n), generation: 0, reply: pong(connected) }
}

pub(super) fn health(n: usize, cbd: Health, vhost: Health) -> Event {
    let report = |protocol, health: Health| ProtocolHealth {
        protocol,
        health,
        reason: (health != Health::Ok).then(|| format!("{protocol} is {health:?}")),
    };
    let result = Ok(vec![report(Protocol::Cbd, cbd), report(Protocol::Vhost, vhost)].into());
    Event::HealthDone { host: host(n), generation: 0, storage: storage(0), result }
}

/// The commands that are no events, in short.
fn orders(commands: &[Command]) -> Vec<String> {
    let short = |command: &Command| match command {
        Command::Ping { .. } => Some("ping".to_owned()),
        Command::CheckHealth { .. } => Some("check".to_owned()),
        Command::Deploy { protocol, attempt, skipped_pings, .. } => {
            Some(format!("deploy {protocol} {attempt}/{skipped_pings}"))
        }
        Command::Emit(_) => None,
    };
    commands.iter().filter_map(short).collect()
}

/// The events among the commands, in short.
fn facts(commands: &[Command]) -> Vec<String> {
    let short = |command: &Command| match command {
        Command::Emit(HostEvent::HostStatus(e)) => {
            Some(format!("{:?}->{:?} {:?}", e.old_status, e.new_status, e.reason))
        }
        Command::Emit(HostEvent::Suspected(_)) => Some("suspected".to_owned()),
        Command::Emit(HostEvent::HostState(e)) => Some(format!("{:?}->{:?}", e.old_state, e.new_state)),
        Command::Emit(HostEvent::ProtocolStatus(e)) => {
            Some(format!("{} {:?}->{} {:?}", e.protocol, e.old_status.map(|s| s.to_string()), e.new_status, e.reason))
        }
        Command::Emit(HostEvent::StorageHostStatus(e)) => {
            Some(format!("{} {:?}->{} {:?}", e.storage, e.old_status.map(|s| s.to_string()), e.new_status, e.reason))
        }
        _ => None,
    };
    commands.iter().filter_map(short).collect()
}

/// A host with one successful ping, its storage checked and both protocols Ok.
pub(super) fn well() -> Core {
    let mut core = core(1, 1);
    assert_eq!(orders(&core.on(Event::Tick, Duration::ZERO)), ["ping"]);
    assert_eq!(orders(&core.on(pinged(0, true), Duration::ZERO)), ["check"]);
    core.on(health(0, Health::Ok, Health::Ok), Duration::ZERO);
    core
}

/// The next ping of the only host, its answer and the health report that follows.
pub(super) fn cycle(core: &mut Core, cbd: Health, vhost: Health) -> Vec<Command> {
    let now = core.next_wakeup().expect("a ping is scheduled");
    assert_eq!(orders(&core.on(Event::Tick, now)), ["ping"]);
    let mut commands = core.on(pinged(0, true), now);
    assert_eq!(orders(&commands), ["check"]);
    commands.clear();
    core.on(health(0, cbd, vhost), now)
}

#[test]
fn host_disconnects_after_max_failure_and_returns_with_one() {
    let mut core = core(1, 0);
    core.on(Event::Tick, Duration::ZERO);
    assert_eq!(facts(&core.on(pinged(0, true), Duration::ZERO)), ["Connecting->Connected None"]);
    let mut now = 10 * S;
    assert_eq!(orders(&core.on(Event::Tick, now)), ["ping"]);
    for suspected in [&["suspected"][..], &[]] {
        assert_eq!(facts(&core.on(pinged(0, false), now)), suspected, "told once");
        assert!(core.serving(ClusterId::from_name("c")).host_uuids.is_empty(), "a suspect host takes no work");
        now += S;
        assert_eq!(core.next_wakeup(), Some(now), "the next try");
        assert_eq!(orders(&core.on(Event::Tick, now)), ["ping"]);
    }
    let given_up = core.on(pinged(0, false), now);
    assert_eq!(facts(&given_up), ["Connected->Disconnected Some(\"no answer\")"]);
    assert_eq!(core.next_wakeup(), Some(20 * S), "back in its rhythm");
    core.on(Event::Tick, 20 * S);
    assert!(facts(&core.on(pinged(0, false), 20 * S)).is_empty(), "told once");
    core.on(Event::Tick, 30 * S);
    assert_eq!(facts(&core.on(pinged(0, true), 30 * S)), ["Disconnected->Connected None"]);
    assert_eq!(core.serving(ClusterId::from_name("c")).host_uuids, [host(0)]);
}

#[test]
fn first_pings_are_spread_over_the_interval_and_bounded() {
    let settings = PingSettings { parallelism: 2, ..settings() };
    let mut core = Core::new(settings, inventory(5, 0), &HashMap::new(), &HashMap::new(), Duration::ZERO);
    assert_eq!(orders(&core.on(Event::Tick, Duration::ZERO)).len(), 1);
    assert_eq!(core.next_wakeup(), Some(2 * S));
    assert_eq!(orders(&core.on(Event::Tick, 9 * S)).len(), 1, "two are in flight");
    assert_eq!(orders(&core.on(pinged(0, true), 9 * S)), ["ping"], "one ended, one more may");
}

#[test]
fn events_are_emitted_on_change_only() {
    let mut core = core(1, 1);
    core.on(Event::Tick, Duration::ZERO);
    core.on(pinged(0, true), Duration::ZERO);
    let first = core.on(health(0, Health::Ok, Health::Failed), Duration::ZERO);
    let told =
        ["CBD None->Connected None", "Vhost None->Disconnected Some(\"Vhost is Failed\")", "s0 None->Connected None"];
    assert_eq!(facts(&first), told, "any protocol connected makes the storage connected");
    assert!(facts(&cycle(&mut core, Health::Ok, Health::Failed)).is_empty());
    let down = cycle(&mut core, Health::Unknown, Health::Warn);
    let told = [
        "CBD Some(\"Connected\")->Disconnected Some(\"CBD is Unknown\")",
        "s0 Some(\"Connected\")->Disconnected Some(\"CBD is Unknown\")",
    ];
    assert_eq!(facts(&down), told);
    let hosts = core.hosts();
    assert_eq!(hosts.storages[0].reason.as_deref(), Some("CBD is Unknown"));
    assert_eq!(hosts.refs.iter().map(|r| r.id).collect::<Vec<_>>(), [1, 2]);
    cycle(&mut core, Health::Ok, Health::Failed);
    assert_eq!(core.hosts().storages[0].reason, None);
    assert_eq!(
        core.hosts().refs.iter().map(|r| r.status).collect::<Vec<_>>(),
        [Some(ProtocolStatus::Connected), Some(ProtocolStatus::Disconnected)]
    );
}

#[test]
fn failed_health_check_changes_nothing() {
    let mut core = well();
    core.on(Event::Tick, 10 * S);
    core.on(pinged(0, true), 10 * S);
    let error = ErrorCode::new(Code::TIMEOUT, "agent busy");
    let failed = Event::HealthDone { host: host(0), generation: 0, storage: storage(0), result: Err(error.clone()) };
    assert_eq!(core.on(failed, 10 * S), []);
    let storage = &core.hosts().storages[0];
    assert_eq!((storage.status, storage.check_error.as_ref()), (Some(ProtocolStatus::Connected), Some(&error)));
    cycle(&mut core, Health::Ok, Health::Ok);
    assert_eq!(core.hosts().storages[0].check_error, None);
}

#[test]
fn redeploys_back_off_and_new_outage_redeploys_at_once() {
    let mut core = well();
    let mut skipped = Vec::new();
    let mut pings = 0;
    // Nine redeploys and the 254 skipped pings between them.
    for _ in 0..263 {
        for command in cycle(&mut core, Health::Ok, Health::Failed) {
            if let Command::Deploy { attempt, skipped_pings, protocol, .. } = command {
                assert_eq!((attempt as usize, skipped_pings, protocol), (skipped.len() + 1, pings, Protocol::Vhost));
                skipped.push(skipped_pings);
                pings = u32::MAX;
                core.on(Event::DeployDone { host: host(0), storage: storage(0), protocol }, Duration::ZERO);
            }
        }
        pings = pings.wrapping_add(1);
    }
    assert_eq!(skipped, [0, 2, 4, 8, 16, 32, 64, 64, 64]);
    assert!(orders(&cycle(&mut core, Health::Ok, Health::Ok)).is_empty());
    assert_eq!(orders(&cycle(&mut core, Health::Ok, Health::Failed)), ["deploy Vhost 1/0"]);
}

#[test]
fn one_redeploy_at_a_time_without_skipping_pings() {
    let mut core = well();
    assert_eq!(orders(&cycle(&mut core, Health::Ok, Health::Failed)), ["deploy Vhost 1/0"]);
    for _ in 0..5 {
        assert!(orders(&cycle(&mut core, Health::Ok, Health::Failed)).is_empty());
    }
    let done = Event::DeployDone { host: host(0), storage: storage(0), protocol: Protocol::Vhost };
    core.on(done, Duration::ZERO);
    let orders: Vec<_> = (0..3).map(|_| orders(&cycle(&mut core, Health::Ok, Health::Failed))).collect();
    assert_eq!(orders, [vec![], vec![], vec!["deploy Vhost 2/2".to_owned()]]);
}

#[test]
fn suspect_host_gets_no_redeploy() {
    let mut core = well();
    core.on(Event::Tick, 10 * S);
    assert_eq!(orders(&core.on(pinged(0, true), 10 * S)), ["check"]);
    // The report is slow; the next ping fails before it.
    core.on(Event::Tick, 20 * S);
    core.on(pinged(0, false), 20 * S);
    let late = core.on(health(0, Health::Failed, Health::Failed), 21 * S);
    assert_eq!((orders(&late), facts(&late).len()), (vec!["ping".to_owned()], 3), "noted, not acted upon");
}

#[test]
fn maintenance_stops_and_activation_restarts() {
    let mut core = well();
    core.on(Event::Tick, 10 * S);
    core.on(pinged(0, true), 10 * S);
    let set = |state| Event::SetState { host: host(0), state, draining: false };
    assert_eq!(facts(&core.on(set(HostState::Maintenance), 11 * S)), ["Enabled->Maintenance"]);
    assert_eq!(core.next_wakeup(), None);
    assert_eq!(core.on(health(0, Health::Failed, Health::Failed), 12 * S), [], "it was queried before");
    assert_eq!(core.on(Event::PingNow { host: host(0) }, 12 * S), []);
    assert_eq!(core.on(set(HostState::Maintenance), 12 * S), [], "nothing changed");
    let active = core.on(set(HostState::Enabled), 13 * S);
    assert_eq!(facts(&active)[0], "Maintenance->Enabled");
    assert_eq!(facts(&active)[1], "Connected->Connecting Some(\"activated, not pinged yet\")");
    assert_eq!(orders(&active), ["ping"]);
    assert_eq!(core.on(pinged(0, true), 13 * S), [], "an answer from before");
    let reply = Event::PingDone { host: host(0), generation: 2, reply: pong(true) };
    assert_eq!(orders(&core.on(reply, 13 * S)), ["check"], "the earlier check was dropped");
}

#[test]
fn maintenance_survives_restart() {
    let states = HashMap::from([(host(0), HostState::Maintenance)]);
    let mut core = Core::new(settings(), inventory(1, 1), &states, &HashMap::new(), Duration::ZERO);
    assert_eq!((core.on(Event::Tick, 100 * S), core.next_wakeup()), (vec![], None));
}

/// I5, and faults 28 and 31: a quarantined host answers, but neither serves nor gets redeploys.
#[test]
fn quarantined_host_neither_serves_nor_gets_redeploys() {
    let quarantined = HashMap::from([(host(0), "it failed".to_owned())]);
    let mut core = Core::new(settings(), inventory(1, 1), &HashMap::new(), &quarantined, Duration::ZERO);
    let cluster = ClusterId::from_name("c");
    core.on(Event::Tick, Duration::ZERO);
    assert_eq!(core.on(pinged(0, true), Duration::ZERO), [], "no health check, no change");
    let standing = core.serving(cluster);
    assert_eq!((standing.host_uuids, standing.answering_host_uuids), (vec![], vec![host(0)]));
    assert_eq!(core.host(host(0)).unwrap().reason.as_deref(), Some("quarantined: it failed"));

    let released = core.on(Event::SetQuarantine { host: host(0), reason: None }, S);
    assert_eq!(orders(&released), ["ping"], "pinged at once");
    assert_eq!(facts(&core.on(pinged(0, true), S)), ["Connecting->Connected None"]);
    assert_eq!(core.serving(cluster).host_uuids, [host(0)]);

    // An unreachable host is doubtful only until its quarantine.
    core.on(Event::Tick, 20 * S);
    core.on(pinged(0, false), 20 * S);
    assert_eq!(core.serving(cluster).doubtful_host_uuids, [host(0)]);
    core.on(Event::SetQuarantine { host: host(0), reason: Some("again".to_owned()) }, 10 * S);
    assert_eq!((core.serving(cluster).doubtful_host_uuids, core.serving(cluster).enabled), (vec![], 1));
}

/// I5, seed 1796005904017: a health check under way when the host leaves service redeploys nothing.
#[test]
fn host_that_leaves_service_gets_no_redeploy() {
    let leaves = [
        Event::SetQuarantine { host: host(0), reason: Some("a storage rejects it".to_owned()) },
        Event::Withdrawing { host: host(0), begins: true },
    ];
    for event in leaves {
        let mut core = well();
        core.on(Event::Tick, 10 * S);
        core.on(pinged(0, true), 10 * S);
        core.on(event.clone(), 10 * S);
        assert_eq!(core.serving(ClusterId::from_name("c")).host_uuids, [], "{event:?}");
        let commands = core.on(health(0, Health::Ok, Health::Failed), 10 * S);
        assert_eq!(orders(&commands), Vec::<String>::new(), "{event:?}");
        core.on(Event::Withdrawing { host: host(0), begins: false }, 11 * S);
        core.on(Event::SetQuarantine { host: host(0), reason: None }, 11 * S);
        assert_eq!(core.serving(ClusterId::from_name("c")).host_uuids, [host(0)], "{event:?}");
    }
}

#[test]
fn only_enabled_hosts_of_the_cluster_serve() {
    let mut far = Inventory::clone(&inventory(3, 0));
    far.hosts[2].cluster = ClusterId::from_name("far");
    let far = Arc::new(InventoryIndex::new(far));
    let states = HashMap::from([(host(1), HostState::Maintenance)]);
    let mut core = Core::new(settings(), far, &states, &HashMap::new(), Duration::ZERO);
    let reply = core.serving(ClusterId::from_name("c"));
    assert_eq!((reply.enabled, reply.host_uuids, reply.doubtful_host_uuids), (1, vec![], vec![]), "not pinged yet");
    core.on(Event::Tick, 9 * S);
    core.on(pinged(0, true), 9 * S);
    core.on(pinged(2, true), 9 * S);
    let reply = core.serving(ClusterId::from_name("c"));
    assert_eq!((reply.enabled, reply.host_uuids, reply.answering_host_uuids), (1, vec![host(0)], vec![host(0)]));
}

/// Four redeploys failed; the fifth comes after 16 skipped pings.
fn backed_off() -> Core {
    let mut core = well();
    for ping in 0.. {
        let deploys = orders(&cycle(&mut core, Health::Ok, Health::Failed));
        core.on(Event::DeployDone { host: host(0), storage: storage(0), protocol: Protocol::Vhost }, Duration::ZERO);
        if deploys.iter().any(|deploy| deploy.starts_with("deploy Vhost 4/")) {
            return core;
        }
        assert!(ping < 100, "it backs off");
    }
    unreachable!()
}

#[test]
fn new_boot_resets_backoff() {
    for (booted, expected) in [(false, vec![]), (true, vec!["deploy Vhost 1/0"])] {
        let mut core = backed_off();
        if booted {
            core.on(Event::Booted { host: host(0) }, Duration::ZERO);
        }
        assert_eq!(orders(&cycle(&mut core, Health::Ok, Health::Failed)), expected);
    }
}

#[test]
fn activation_resets_backoff() {
    let mut core = backed_off();
    for state in [HostState::Maintenance, HostState::Enabled] {
        core.on(Event::SetState { host: host(0), state, draining: false }, 20 * S);
    }
    assert_eq!(
        core.hosts().refs.iter().map(|key| (key.redeploys, key.skip_pings)).collect::<Vec<_>>(),
        [(0, 0), (0, 0)]
    );
}

#[test]
fn failed_probe_hides_no_other_protocol() {
    let mut core = well();
    core.on(Event::Tick, 10 * S);
    core.on(pinged(0, true), 10 * S);
    let error = ErrorCode::new(Code::TIMEOUT, "MDS busy");
    let vhost = ProtocolHealth { protocol: Protocol::Vhost, health: Health::Failed, reason: None };
    let result = Ok(CheckHostHealthReply { protocols: vec![vhost], errors: vec![error.clone()] });
    let commands = core.on(Event::HealthDone { host: host(0), generation: 0, storage: storage(0), result }, 10 * S);
    assert_eq!(orders(&commands), ["deploy Vhost 1/0"]);
    let hosts = core.hosts();
    assert_eq!(hosts.storages[0].check_error, Some(error));
    assert_eq!(hosts.refs[0].status, Some(ProtocolStatus::Connected), "the other stays as it was");
}

#[test]
fn unknown_hosts_are_ignored() {
    let mut core = core(1, 1);
    let stranger = HostId::from_name("stranger");
    let events = [
        Event::PingDone { host: stranger, generation: 0, reply: pong(true) },
        Event::HealthDone {
            host: host(0),
            generation: 0,
            storage: StorageId::from_name("other"),
            result: Ok(vec![].into()),
        },
        Event::DeployDone { host: stranger, storage: storage(0), protocol: Protocol::Nbd },
        Event::SetState { host: stranger, state: HostState::Maintenance, draining: true },
        Event::PingNow { host: stranger },
    ];
    core.on(Event::Tick, Duration::ZERO);
    for event in events {
        assert_eq!(core.on(event, Duration::ZERO), []);
    }
}

/// The next event of the world.
#[derive(Clone, Debug)]
enum Move {
    /// Time passes.
    Pass(u64),
    /// The n-th request in flight ends, successful or not.
    End(usize, bool, bool),
    /// An operator changes the requested state.
    State(usize, bool),
    /// The quarantine of a host begins or ends.
    Quarantine(usize, bool),
    /// A record that takes a host out of service begins or ends.
    Withdrawing(usize, bool),
    Hurry(usize),
}

fn moves() -> impl Strategy<Value = Vec<Move>> {
    let any_move = prop_oneof![
        4 => (0..8000u64).prop_map(Move::Pass),
        12 => (any::<usize>(), prop::bool::weighted(0.8), any::<bool>()).prop_map(|(n, a, b)| Move::End(n, a, b)),
        1 => (0..4usize, any::<bool>()).prop_map(|(n, on)| Move::State(n, on)),
        1 => (0..4usize, any::<bool>()).prop_map(|(n, on)| Move::Quarantine(n, on)),
        1 => (0..4usize, any::<bool>()).prop_map(|(n, begins)| Move::Withdrawing(n, begins)),
        1 => (0..4usize).prop_map(Move::Hurry),
    ];
    prop::collection::vec(any_move, 1..600)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Whatever the order in which answers come: never two pings of a host nor more than allowed in flight, one
    /// check per (host, storage), one redeploy per key, none for a host that is suspect, away, in maintenance,
    /// in quarantine or about to be,
    /// skips as the rule says, facts on change only.
    #[test]
    fn no_interleaving_breaks_the_rules(moves in moves()) {
        let settings = PingSettings { parallelism: 3, ..settings() };
        let mut core = Core::new(settings, inventory(4, 2), &HashMap::new(), &HashMap::new(), Duration::ZERO);
        let mut now = Duration::ZERO;
        let mut in_flight: Vec<Command> = Vec::new();
        let mut generation: HashMap<HostId, u32> = HashMap::new();
        let mut maintenance: HashSet<HostId> = HashSet::new();
        let mut quarantined: HashSet<HostId> = HashSet::new();
        let mut withdrawals: HashMap<HostId, u32> = HashMap::new();
        let mut last_ping_good: HashMap<HostId, bool> = HashMap::new();
        let mut told: HashMap<String, String> = HashMap::new();
        for step in moves {
            let event = match step {
                Move::Pass(ms) => { now += Duration::from_millis(ms); Event::Tick }
                Move::State(n, on) => {
                    let changed = if on { maintenance.insert(host(n)) } else { maintenance.remove(&host(n)) };
                    if changed {
                        *generation.entry(host(n)).or_default() += 1;
                        last_ping_good.remove(&host(n));
                    }
                    let state = if on { HostState::Maintenance } else { HostState::Enabled };
                    Event::SetState { host: host(n), state, draining: on }
                }
                Move::Quarantine(n, on) => {
                    if on { quarantined.insert(host(n)) } else { quarantined.remove(&host(n)) };
                    Event::SetQuarantine { host: host(n), reason: on.then(|| "it failed".to_owned()) }
                }
                Move::Withdrawing(n, begins) => {
                    let count = withdrawals.entry(host(n)).or_default();
                    if !begins && *count == 0 {
                        continue;
                    }
                    *count = if begins { *count + 1 } else { *count - 1 };
                    Event::Withdrawing { host: host(n), begins }
                }
                Move::Hurry(n) => Event::PingNow { host: host(n) },
                Move::End(_, _, _) if in_flight.is_empty() => continue,
                Move::End(n, good, other) => match in_flight.swap_remove(n % in_flight.len()) {
                    Command::Ping { host, generation: g } => {
                        if g == generation.get(&host).copied().unwrap_or(0) {
                            last_ping_good.insert(host, good);
                        }
                        Event::PingDone { host, generation: g, reply: pong(good) }
                    }
                    Command::CheckHealth { host, generation, storage } => {
                        let report = |protocol, ok| {
                            let health = if ok { Health::Ok } else { Health::Failed };
                            ProtocolHealth { protocol, health, reason: None }
                        };
                        let result = if good { Ok(vec![report(Protocol::Cbd, true), report(Protocol::Vhost, other)]) }
                            else if other { Ok(vec![report(Protocol::Cbd, false), report(Protocol::Vhost, false)]) }
                            else { Err(ErrorCode::new(Code::TIMEOUT, "x")) };
                        Event::HealthDone { host, generation, storage, result: result.map(Into::into) }
                    }
                    Command::Deploy { host, storage, protocol, .. } => Event::DeployDone { host, storage, protocol },
                    Command::Emit(_) => unreachable!(),
                },
            };
            for command in core.on(event, now) {
                match &command {
                    Command::Emit(fact) => {
                        let (key, value) = match fact {
                            // Emitted per streak of failures, not per change.
                            HostEvent::Suspected(_) => continue,
                            HostEvent::HostStatus(e) => {
                                prop_assert_eq!(e.reason.is_none(), e.new_status == HostStatus::Connected);
                                (format!("h{}", e.host_uuid), format!("{:?}", e.new_status))
                            }
                            // A repeated drain request: HA gets it again.
                            HostEvent::HostState(e) if e.draining && e.old_state == e.new_state => continue,
                            HostEvent::HostState(e) => (format!("m{}", e.host_uuid), format!("{:?}", e.new_state)),
                            HostEvent::ProtocolStatus(e) => {
                                let key = format!("p{}{}{}", e.host_uuid, e.primary_storage_uuid, e.protocol);
                                (key, e.new_status.to_string())
                            }
                            HostEvent::StorageHostStatus(e) => {
                                prop_assert_eq!(e.reason.is_none(), e.new_status == ProtocolStatus::Connected);
                                (format!("s{}{}", e.host_uuid, e.primary_storage_uuid), e.new_status.to_string())
                            }
                        };
                        prop_assert_ne!(told.insert(key.clone(), value.clone()), Some(value), "{} told twice", key);
                        continue;
                    }
                    Command::Ping { host, generation: g } => {
                        prop_assert!(!maintenance.contains(host));
                        prop_assert_eq!(*g, generation.get(host).copied().unwrap_or(0));
                        let current = |c: &&Command| {
                            let Command::Ping { host, generation: of } = c else { return false };
                            *of == generation.get(host).copied().unwrap_or(0)
                        };
                        let pings: Vec<_> = in_flight.iter().filter(current).collect();
                        prop_assert!(pings.len() < 3, "more than three pings in flight");
                        prop_assert!(!pings.contains(&&command), "two pings of one host in flight");
                    }
                    Command::CheckHealth { .. } => prop_assert!(!in_flight.contains(&command)),
                    Command::Deploy { host, storage, protocol, attempt, skipped_pings } => {
                        let leaves = withdrawals.get(host).is_some_and(|count| *count > 0);
                        prop_assert!(!quarantined.contains(host) && !leaves,
                            "redeployed on a host that leaves service");
                        prop_assert!(!maintenance.contains(host) && last_ping_good.get(host) == Some(&true),
                            "redeployed on a host that is not well");
                        let same = |c: &Command| {
                            let Command::Deploy { host: h, storage: s, protocol: p, .. } = c else { return false };
                            (h, s, p) == (host, storage, protocol)
                        };
                        prop_assert!(!in_flight.iter().any(same), "two redeploys of one key");
                        let rule = if *attempt == 1 { 0 } else { 2u32.pow((attempt - 1).min(6)) };
                        prop_assert_eq!(*skipped_pings, rule, "attempt {}", attempt);
                    }
                }
                in_flight.push(command);
            }
        }
    }
}
