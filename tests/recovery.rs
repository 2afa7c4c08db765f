//! Recovery: all actors together, over ports in memory and in virtual time.
#![allow(missing_docs)]

use std::{sync::Arc, time::Duration};

use ringfence::{
    Actor, Address,
    testkit::{self, World},
};
use ringfence_actors::{
    assembly::Assembly,
    inventory::{Inventory, PingSettings, Settings},
    storage::StorageActor,
    testkit::{FakeWorld, cluster_of, storage_of},
};
use ringfence_messages::{
    Code, ErrorCode, Event, HostId, Protocol, ProtocolStatus, StorageId, VmId,
    audit::ControllerStarted,
    host::{ChangeHostStateMsg, HostAction, HostState, HostStatus, HostStatusChanged, HostsReply, QueryHostsMsg},
    recovery::{BestEffortStepFailed, ProtocolRedeploy, RedeployPhase},
    storage::{ActivateVolumeMsg, DeployClientMsg, ProtocolStatusChanged, StorageHostStatusChanged, StorageKind},
    vm::DiskSource,
};

const INTERVAL: Duration = Duration::from_secs(60);

fn host(name: &str) -> HostId {
    HostId::from_name(name)
}

fn inventory(kind: StorageKind, protocols: &[Protocol]) -> Inventory {
    Inventory { storages: vec![storage_of("s", kind, protocols)], ..cluster_of(["a", "b"]) }
}

struct Scene {
    world: World,
    fake: Arc<FakeWorld>,
    assembly: Assembly,
}

impl Scene {
    async fn start_on(world: World, fake: Arc<FakeWorld>, inventory: Inventory) -> Scene {
        let ping = PingSettings { interval: INTERVAL, ..PingSettings::default() };
        let settings = Settings { ping, ..Settings::default() };
        let assembly = Assembly::start(world.bus().clone(), inventory, settings, fake.ports()).await.unwrap();
        Scene { world, fake, assembly }
    }

    async fn start(world: World, kind: StorageKind, protocols: &[Protocol]) -> Scene {
        Scene::start_on(world, FakeWorld::new([host("a"), host("b")]), inventory(kind, protocols)).await
    }

    async fn vhost(world: World) -> Scene {
        Scene::start(world, StorageKind::Vhost, &[Protocol::Vhost]).await
    }

    /// Waits for this many pings of every host, and their effects.
    async fn pings(&self, count: u32) {
        tokio::time::sleep(INTERVAL * count).await;
    }

    async fn hosts(&self) -> HostsReply {
        self.world.bus().ask(self.assembly.recovery(), QueryHostsMsg {}).await.unwrap()
    }

    async fn order(&self, name: &str, action: HostAction) -> Result<(), ErrorCode> {
        let order = ChangeHostStateMsg { host_uuid: host(name), action };
        self.world.bus().ask(self.assembly.recovery(), order).await.map(|_| ())
    }

    /// A start makes its volume usable on host `a`.
    async fn activate(&self) -> Result<DiskSource, ErrorCode> {
        let ask = ActivateVolumeMsg {
            host_uuid: host("a"),
            install_path: "vhost://vm1".parse().unwrap(),
            bdev_name: "vm1-0".to_owned(),
            vm_uuid: VmId::from_name("vm1"),
        };
        let storage = Address::new(StorageActor::KIND, StorageId::from_name("s"));
        self.world.bus().ask(storage, ask).await
    }

    fn events<E: Event>(&self) -> Vec<E> {
        self.fake.journal.events()
    }

    fn redeploys(&self, name: &str) -> Vec<(RedeployPhase, u32, u32)> {
        let of = self.events::<ProtocolRedeploy>().into_iter().filter(|redeploy| redeploy.host == name);
        of.map(|redeploy| (redeploy.phase, redeploy.attempt, redeploy.skipped_pings)).collect()
    }
}

fn broken() -> ErrorCode {
    ErrorCode::new(Code::OPERATION, "no such file")
}

#[test]
fn down_target_is_redeployed_after_preparation() {
    testkit::run(|world| async move {
        let scene = Scene::vhost(world).await;
        scene.pings(3).await;
        let calls = scene.fake.take_calls();
        for name in ["a", "b"] {
            let of_host: Vec<_> = calls.iter().filter(|(id, _)| *id == host(name)).map(|(_, call)| *call).collect();
            assert_eq!(of_host, ["prepare", "deploy"], "{name}");
            assert_eq!(scene.redeploys(name), [(RedeployPhase::Intent, 1, 0), (RedeployPhase::Done, 1, 0)]);
        }
        let hosts = scene.hosts().await;
        assert!(hosts.refs.iter().all(|r| r.status == Some(ProtocolStatus::Connected) && r.reason.is_none()));
        assert!(hosts.hosts.iter().all(|host| host.status == HostStatus::Connected && host.reason.is_none()));
        let changes: Vec<_> =
            scene.events::<ProtocolStatusChanged>().into_iter().map(|e| (e.host, e.old_status, e.new_status)).collect();
        let (up, down) = (ProtocolStatus::Connected, ProtocolStatus::Disconnected);
        let of = |name: &str| [(name.to_owned(), None, down), (name.to_owned(), Some(down), up)];
        let mut sorted = changes.clone();
        sorted.sort_by(|x, y| x.0.cmp(&y.0));
        assert_eq!(sorted, [of("a"), of("b")].concat(), "on change only");
    });
}

#[test]
fn start_redeploys_a_target_that_is_down() {
    testkit::run(|world| async move {
        let scene = Scene::vhost(world).await;
        scene.fake.host(host("a"), |host| host.deploy_error = Some(broken()));
        // Deep in the backoff.
        scene.pings(50).await;
        scene.fake.host(host("a"), |host| host.deploy_error = None);
        scene.fake.take_calls();
        let disk = scene.activate().await.unwrap();
        assert_eq!(disk, DiskSource::VhostUser { socket_path: "/run/vm1-0.sock".to_owned() });
        let calls: Vec<_> = scene.fake.take_calls().into_iter().map(|(_, call)| call).collect();
        assert_eq!(calls, ["export", "prepare", "deploy", "export"]);
    });
}

/// I5: a start that was on its way when its host left service redeploys nothing there.
#[test]
fn start_redeploys_nothing_on_a_host_that_left_service() {
    testkit::run(|world| async move {
        let scene = Scene::vhost(world).await;
        scene.pings(3).await;
        scene.order("a", HostAction::Maintain).await.unwrap();
        scene.fake.host(host("a"), |host| host.target = false);
        scene.fake.take_calls();
        let redeploys = scene.redeploys("a").len();
        let error = scene.activate().await.unwrap_err();
        assert!(error.is(&Code::CHANGE_STATE) && error.details.contains("a does not serve"), "{error}");
        assert_eq!(scene.fake.take_calls(), [(host("a"), "export")]);
        assert_eq!(scene.redeploys("a").len(), redeploys);
    });
}

/// I5: a redeploy stops between two steps when its host leaves service.
#[test]
fn redeploy_does_not_continue_on_a_host_that_left_service() {
    testkit::run(|world| async move {
        let scene = Scene::vhost(world).await;
        scene.pings(3).await;
        scene.fake.host(host("a"), |host| {
            (host.target, host.prepare_takes) = (false, Duration::from_secs(30));
        });
        scene.fake.take_calls();
        while scene.redeploys("a").last().map(|(phase, ..)| *phase) != Some(RedeployPhase::Intent) {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        scene.order("a", HostAction::Maintain).await.unwrap();
        scene.pings(2).await;
        assert_eq!(scene.fake.take_calls(), [(host("a"), "prepare")], "the target was deployed in maintenance");
        assert_eq!(scene.redeploys("a").last().map(|(phase, ..)| *phase), Some(RedeployPhase::Failed));
    });
}

#[test]
fn redeploy_backoff_resets_after_recovery() {
    testkit::run(|world| async move {
        let scene = Scene::vhost(world).await;
        scene.fake.host(host("a"), |host| host.deploy_error = Some(broken()));
        scene.pings(200).await;
        let skipped = |phase: RedeployPhase, scene: &Scene| -> Vec<u32> {
            scene.redeploys("a").into_iter().filter(|(p, ..)| *p == phase).map(|(_, _, skipped)| skipped).collect()
        };
        assert_eq!(skipped(RedeployPhase::Intent, &scene), [0, 2, 4, 8, 16, 32, 64, 64]);
        assert_eq!(skipped(RedeployPhase::Failed, &scene), [0, 2, 4, 8, 16, 32, 64, 64]);
        // An operator repairs it by hand: the outage is over, and with it the backoff.
        scene.fake.host(host("a"), |host| host.target = true);
        scene.pings(2).await;
        scene.fake.host(host("a"), |host| (host.target, host.deploy_error) = (false, None));
        scene.pings(2).await;
        assert_eq!(scene.redeploys("a").last(), Some(&(RedeployPhase::Done, 1, 0)));
        assert_eq!(scene.redeploys("b").len(), 2, "the neighbour was redeployed once, at the beginning");
    });
}

#[test]
fn failed_preparation_is_recorded_and_deploy_continues() {
    testkit::run(|world| async move {
        let scene = Scene::vhost(world).await;
        scene.fake.host(host("a"), |host| host.prepare_error = Some(broken()));
        scene.pings(2).await;
        let [warning] = &scene.events::<BestEffortStepFailed>()[..] else { panic!("one warning is expected") };
        assert_eq!((warning.host.as_str(), warning.step.name.as_str()), ("a", "prepare-vhost-target-env"));
        assert_eq!(warning.step.error, Some(broken()));
        assert_eq!(scene.redeploys("a"), [(RedeployPhase::Intent, 1, 0), (RedeployPhase::Done, 1, 0)]);
        assert!(scene.fake.host(host("a"), |host| host.target));
    });
}

#[test]
fn failed_health_check_keeps_statuses_and_is_shown() {
    testkit::run(|world| async move {
        let scene = Scene::vhost(world).await;
        scene.pings(3).await;
        let (redeploys, changes) = (scene.redeploys("a").len(), scene.events::<ProtocolStatusChanged>().len());
        scene.fake.host(host("a"), |host| (host.target, host.health_error) = (false, Some(broken())));
        scene.pings(5).await;
        assert_eq!((scene.redeploys("a").len(), scene.events::<ProtocolStatusChanged>().len()), (redeploys, changes));
        let reply = scene.hosts().await;
        let of_a = reply.storages.iter().find(|storage| storage.host == "a").unwrap();
        assert_eq!((of_a.status, of_a.check_error.clone()), (Some(ProtocolStatus::Connected), Some(broken())));
    });
}

/// Any protocol Connected makes the storage Connected on the host.
#[test]
fn one_healthy_protocol_keeps_storage_connected() {
    testkit::run(|world| async move {
        let scene = Scene::start(world, StorageKind::Zbs, &[Protocol::Cbd, Protocol::Vhost]).await;
        scene.fake.host(host("a"), |host| host.deploy_error = Some(broken()));
        scene.pings(3).await;
        let of_a = |event: &StorageHostStatusChanged| event.host == "a";
        let told: Vec<_> = scene.events::<StorageHostStatusChanged>().into_iter().filter(of_a).collect();
        assert_eq!(told.len(), 1, "{told:?}");
        assert_eq!((told[0].new_status, told[0].reason.clone()), (ProtocolStatus::Connected, None));
        let reply = scene.hosts().await;
        let of_a: Vec<_> = reply.refs.iter().filter(|r| r.host == "a").map(|r| (r.protocol, r.status)).collect();
        let (up, down) = (Some(ProtocolStatus::Connected), Some(ProtocolStatus::Disconnected));
        assert_eq!(of_a, [(Protocol::Cbd, up), (Protocol::Vhost, down)]);
        let calls: Vec<_> =
            scene.fake.take_calls().into_iter().filter(|(id, _)| *id == host("a")).map(|c| c.1).collect();
        assert_eq!(calls[..4], ["deploy client", "update dependency", "prepare", "deploy"], "the whole flow, in order");
    });
}

#[test]
fn maintenance_stops_pings_also_after_restart() {
    let fake = FakeWorld::new([host("a"), host("b")]);
    let again = fake.clone();
    testkit::run(|world| async move {
        let scene = Scene::start_on(world, fake, inventory(StorageKind::Vhost, &[Protocol::Vhost])).await;
        scene.pings(2).await;
        scene.order("a", HostAction::Maintain).await.unwrap();
        scene.fake.host(host("a"), |host| host.target = false);
        let redeploys = scene.redeploys("a").len();
        scene.pings(20).await;
        assert_eq!(scene.redeploys("a").len(), redeploys, "healed in maintenance");
        let error = scene.order("a", HostAction::Ping).await.unwrap_err();
        assert!(error.is(&Code::CHANGE_STATE) && error.details.contains("activate"), "{error}");
    });
    // Another controller on the same journal.
    testkit::run(|world| async move {
        let scene = Scene::start_on(world, again, inventory(StorageKind::Vhost, &[Protocol::Vhost])).await;
        assert_eq!(scene.assembly.epoch, 2);
        assert_eq!(scene.events::<ControllerStarted>().iter().map(|e| e.epoch).collect::<Vec<_>>(), [1, 2]);
        scene.pings(3).await;
        assert_eq!(scene.hosts().await.hosts[0].state, HostState::Maintenance);
        assert!(!scene.fake.host(host("a"), |host| host.target), "healed in maintenance after a restart");
        scene.order("a", HostAction::Activate).await.unwrap();
        scene.pings(2).await;
        assert!(scene.fake.host(host("a"), |host| host.target));
    });
}

#[test]
fn no_redeploy_without_journal_and_no_lost_event() {
    testkit::run(|world| async move {
        let scene = Scene::vhost(world).await;
        scene.pings(2).await;
        scene.fake.take_calls();
        scene.fake.journal.set_broken(Some(ErrorCode::new(Code::IO, "disk full")));
        scene.fake.host(host("a"), |host| host.target = false);
        scene.pings(10).await;
        assert!(scene.fake.take_calls().is_empty(), "deployed without a durable intent");
        let changes = scene.events::<ProtocolStatusChanged>().len();
        scene.fake.journal.set_broken(None);
        scene.pings(20).await;
        let later: Vec<_> = scene.events::<ProtocolStatusChanged>().split_off(changes);
        let statuses: Vec<_> = later.iter().map(|event| event.new_status).collect();
        assert_eq!(statuses, [ProtocolStatus::Disconnected, ProtocolStatus::Connected], "kept while it was away");
        assert!(scene.fake.host(host("a"), |host| host.target));
    });
}

#[test]
fn silent_host_is_disconnected_with_reason() {
    testkit::run(|world| async move {
        let scene = Scene::vhost(world).await;
        scene.pings(2).await;
        scene.fake.take_calls();
        scene.fake.host(host("a"), |host| (host.answers, host.target) = (false, false));
        scene.pings(10).await;
        assert!(scene.fake.take_calls().is_empty(), "a host that is away was redeployed to");
        let told: Vec<_> =
            scene.events::<HostStatusChanged>().into_iter().filter(|e| e.inventory.name == "a").collect();
        let statuses: Vec<_> = told.iter().map(|event| event.new_status).collect();
        assert_eq!(statuses, [HostStatus::Connected, HostStatus::Disconnected]);
        assert!(told[1].reason.as_deref().is_some_and(|reason| reason.contains("no route to host")), "{:?}", told[1]);
        scene.fake.host(host("a"), |host| host.answers = true);
        scene.pings(2).await;
        assert!(scene.fake.host(host("a"), |host| host.target), "back, it is healed");
    });
}

/// The path of one message, seen from the bus: a tap sees every deploy that the supervisor requests.
#[test]
fn supervisor_requests_deploys_by_message() {
    testkit::run(|world| async move {
        let tap = world.tap::<DeployClientMsg>();
        let scene = Scene::vhost(world).await;
        scene.pings(2).await;
        let orders: Vec<_> =
            tap.take().into_iter().map(|(to, order)| (to.id, order.host_uuid, order.attempt)).collect();
        let storage = StorageId::from_name("s").0;
        assert_eq!(orders, [(storage, host("a"), 1), (storage, host("b"), 1)]);
    });
}
