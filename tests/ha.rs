//! HA and fencing: all actors together, over ports in memory and in virtual time.
#![allow(missing_docs)]

use std::{sync::Arc, time::Duration};

use parking_lot::Mutex;
use ringfence::{
    Actor, Address,
    testkit::{self, World},
};
use ringfence_actors::{
    assembly::Assembly,
    fence::StartPermit,
    fencers::ceph::{CHECK_EVERY, CephActor, LASTING},
    ha::HaActor,
    host::{HostActor, LaunchVmMsg},
    inventory::{Cluster, Inventory, PingSettings, Settings},
    spans,
    testkit::{FakeWorld, ceph_of, cluster_of, vm_of},
    vm::VmActor,
};
use ringfence_messages::{
    ClusterId, Code, ErrorCode, Event, HostId, StorageId, VmId,
    ceph::{FenceHostOnStorageMsg, LiftStorageFenceMsg, StorageFenceChanged, StorageFencePhase},
    fence::{FenceOutcome, SiblingFenceAudited},
    ha::{
        ConfirmHostFencedMsg, FindTargetMsg, HaStartVmInstanceMsg, HostQuarantineChanged, PLACEMENT, PlanHaStartMsg,
        QuarantineHostMsg, VmHaBlocked, VmHaStarted,
    },
    vhost::DeployVhostCmd,
    vm::{QueryVmMsg, StartVmCmd, StartVmMsg, StopVmCmd, StopVmMsg, VmInventory, VmState},
};
use tracing::{
    field::{Field, Visit},
    span::{Attributes, Id},
};
use tracing_subscriber::{
    Layer,
    filter::Targets,
    layer::{Context, SubscriberExt},
    registry::LookupSpan,
};

const S: Duration = Duration::from_secs(1);

fn host(name: &str) -> HostId {
    HostId::from_name(name)
}

struct Scene {
    world: World,
    fake: Arc<FakeWorld>,
    _assembly: Assembly,
}

impl Scene {
    /// Hosts a, b, c that are Connected, and one in another cluster; VMs of these names on Ceph, `NeverStop`.
    async fn start_with(world: World, vms: &[&str], settings: Settings) -> Scene {
        let fake = FakeWorld::new(["a", "b", "c", "far"].map(host));
        let vms = vms.iter().map(|name| vm_of(name)).collect();
        let mut inventory = Inventory { storages: vec![ceph_of("s")], vms, ..cluster_of(["a", "b", "c", "far"]) };
        let elsewhere = Cluster { id: ClusterId::from_name("c2"), name: "c2".to_owned() };
        inventory.hosts[3].cluster = elsewhere.id;
        inventory.clusters.push(elsewhere);
        let ping = PingSettings { interval: S, timeout: S, sleep_after_failure: S / 5, ..PingSettings::default() };
        let settings = Settings { ping, ..settings };
        let assembly = Assembly::start(world.bus().clone(), inventory, settings, fake.ports()).await.unwrap();
        let scene = Scene { world, fake, _assembly: assembly };
        scene.pass(3 * S).await;
        scene
    }

    async fn start(world: World, vms: &[&str]) -> Scene {
        Scene::start_with(world, vms, Settings::default()).await
    }

    async fn pass(&self, time: Duration) {
        tokio::time::sleep(time).await;
    }

    fn vm(name: &str) -> Address {
        Address::new(VmActor::KIND, VmId::from_name(name))
    }

    async fn run(&self, name: &str, at: &str) {
        self.world.bus().ask(Self::vm(name), StartVmMsg { host_uuid: Some(host(at)) }).await.unwrap();
    }

    async fn shown(&self, name: &str) -> VmInventory {
        self.world.bus().ask(Self::vm(name), QueryVmMsg {}).await.unwrap()
    }

    async fn place(&self, name: &str) -> (VmState, String) {
        let shown = self.shown(name).await;
        (shown.state, shown.host.unwrap_or_default())
    }

    fn power(&self, name: &str, on: bool) {
        self.fake.host(host(name), |host| {
            (host.answers, host.ssh) = (on, on);
            if !on {
                host.vms.clear();
            }
        });
    }

    fn events<E: Event>(&self) -> Vec<E> {
        self.fake.journal.events()
    }

    fn outcomes(&self) -> Vec<FenceOutcome> {
        self.events::<SiblingFenceAudited>().into_iter().map(|audit| audit.outcome).collect()
    }

    async fn ha_start(&self, name: &str) -> Result<(), ErrorCode> {
        let order = HaStartVmInstanceMsg {
            vm_instance_uuid: VmId::from_name(name),
            judger_class_name: "Operator".to_owned(),
            soft_avoid_host_uuids: Vec::new(),
            host_uuid: None,
            ha_reason: "asked".to_owned(),
        };
        self.world.bus().ask(Address::singleton(HaActor::KIND), order).await.map(|_| ())
    }

    fn phases(&self) -> Vec<StorageFencePhase> {
        self.events::<StorageFenceChanged>().into_iter().map(|event| event.phase).collect()
    }
}

/// The whole failover as recorded in the journal.
#[test]
fn powered_off_host_is_fenced_and_returns_to_service() {
    testkit::run(|world| async move {
        let scene = Scene::start(world, &["vm1"]).await;
        scene.run("vm1", "a").await;
        let from = scene.fake.journal.records().len();
        scene.power("a", false);
        scene.pass(10 * S).await;
        assert_eq!(scene.place("vm1").await.0, VmState::Running);
        scene.power("a", true);
        scene.pass(10 * S).await;
        let tell = |record: &ringfence_actors::ports::Record| {
            let says = ["newStatus", "newState", "level", "phase", "outcome", "quarantined", "host"];
            let says: Vec<_> = says.iter().filter_map(|key| record.payload.get(key)).map(ToString::to_string).collect();
            format!("{:<24} {:<8} {}", record.topic, record.subject, says.join(" "))
        };
        let story: Vec<String> = scene.fake.journal.records()[from..].iter().map(tell).collect();
        insta::assert_snapshot!(story.join("\n"));
    });
}

/// Every span of the product, with its path from the root.
#[derive(Clone, Default)]
struct Seen(Arc<Mutex<Vec<String>>>);

/// Name of a span.
struct Called(String);

impl Visit for Called {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        if field.name() == "otel.name" {
            self.0 = format!("{value:?}").trim_matches('"').to_owned();
        }
    }
}

impl<S: tracing::Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Seen {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, ctx: Context<'_, S>) {
        let mut called = Called(attributes.metadata().name().to_owned());
        attributes.record(&mut called);
        let span = ctx.span(id).unwrap();
        let above = span.parent().and_then(|parent| Some(parent.extensions().get::<Called>()?.0.clone()));
        let way = above.map_or(called.0.clone(), |above| format!("{above} > {}", called.0));
        self.0.lock().push(way.clone());
        span.extensions_mut().insert(Called(way));
    }
}

/// From HA's command through the VM to its fence, level by level: one trace, through four actors.
#[test]
fn fence_is_traced_under_its_start() {
    let seen = Seen::default();
    let only = Targets::new().with_target(spans::TARGET, tracing::Level::INFO);
    let subscriber = tracing_subscriber::registry().with(seen.clone().with_filter(only));
    tracing::subscriber::with_default(subscriber, || {
        testkit::run(|world| async move {
            let scene = Scene::start(world, &["vm1"]).await;
            scene.run("vm1", "a").await;
            scene.power("a", false);
            scene.pass(10 * S).await;
            assert_eq!(scene.place("vm1").await.0, VmState::Running);
            scene.power("a", true);
            scene.pass(10 * S).await;
            // The failure of another VM belongs to no trace of the first.
            let to = scene.place("vm1").await.1;
            scene.power(&to, false);
            scene.pass(10 * S).await;
            assert_eq!(scene.outcomes().len(), 2);
        });
    });
    let seen = seen.0.lock().clone();
    let levels = ["fence.watchers", "fence.intent", "fence.sibling", "fence.intent", "fence.storage", "fence.watchers"];
    let below = levels.map(|level| format!("ha.start > fence > {level}"));
    let once = ["ha.start".to_owned(), "ha.start > fence".to_owned()].into_iter().chain(below);
    assert_eq!(seen, once.clone().chain(once).collect::<Vec<_>>());
}

/// Fault 29: the VM waits, no fence is repeated, and it starts once when there is room.
#[test]
fn failover_waits_for_room_and_starts_once() {
    testkit::run(|world| async move {
        let scene = Scene::start(world, &["vm1"]).await;
        scene.run("vm1", "a").await;
        for name in ["b", "c"] {
            scene.fake.host(host(name), |host| host.available_mib = 100);
        }
        // Earlier snapshots of the hosts expire.
        scene.pass(3 * S).await;
        scene.power("a", false);
        scene.pass(60 * S).await;
        assert_eq!(scene.place("vm1").await.0, VmState::Unknown);
        let blocked = scene.events::<VmHaBlocked>();
        assert!(blocked.len() == 1 && blocked[0].reason.contains("no host has room"), "{blocked:?}");
        scene.fake.host(host("c"), |host| host.available_mib = 4096);
        scene.pass(40 * S).await;
        assert_eq!(scene.place("vm1").await, (VmState::Running, "c".to_owned()));
        assert_eq!((scene.outcomes().len(), scene.events::<VmHaStarted>().len()), (1, 1));
    });
}

/// Fault 16: a removed entry is re-applied, and none ends before it is lifted.
#[test]
fn storage_fence_is_kept_until_removed() {
    testkit::run(|world| async move {
        let scene = Scene::start(world, &[]).await;
        let to = Address::new(CephActor::KIND, StorageId::from_name("s"));
        let fence = FenceHostOnStorageMsg { host_uuid: host("a"), reason: "r".to_owned() };
        let reply = scene.world.bus().ask(to, fence).await.unwrap();
        assert_eq!(reply.addresses, ["10.0.0.1".parse::<std::net::IpAddr>().unwrap()]);
        scene.fake.ceph.lock().map.blocked.clear();
        scene.pass(CHECK_EVERY + S).await;
        assert_eq!(scene.fake.ceph.lock().map.blocked.len(), 1, "put back");
        scene.pass(LASTING / 2 + CHECK_EVERY).await;
        use StorageFencePhase::{Fenced, Intended, LiftIntended, Lifted, Renewed};
        assert_eq!(scene.phases(), [Intended, Fenced, Intended, Renewed, Intended, Renewed]);
        scene.world.bus().ask(to, LiftStorageFenceMsg { host_uuid: host("a") }).await.unwrap();
        scene.pass(2 * CHECK_EVERY).await;
        assert_eq!(scene.phases()[6..], [LiftIntended, Lifted], "not put back any more");
        assert!(scene.fake.ceph.lock().map.blocked.is_empty());
    });
}

/// K13: a blocklist entry without a record. Its host serves no VM, is reconciled and returns to service.
#[test]
fn unknown_blocklist_entry_is_kept_until_reconciled() {
    testkit::run(|world| async move {
        let scene = Scene::start(world, &["vm1"]).await;
        scene.run("vm1", "a").await;
        scene.fake.ceph.lock().map.blocked.insert("10.0.0.1".parse().unwrap());
        scene.pass(CHECK_EVERY).await;
        assert_eq!(scene.phases(), [], "one look may be older than a fence that was lifted");
        scene.pass(2 * CHECK_EVERY).await;
        use StorageFencePhase::{Found, LiftIntended, Lifted};
        assert_eq!(scene.phases(), [Found, LiftIntended, Lifted]);
        let told: Vec<bool> = scene.events::<HostQuarantineChanged>().iter().map(|event| event.quarantined).collect();
        assert_eq!(told, [true, false]);
        assert!(scene.fake.ceph.lock().map.blocked.is_empty());
        scene.pass(10 * S).await;
        assert_eq!(scene.shown("vm1").await.state, VmState::Running);
        assert!(scene.shown("vm1").await.incarnation > 1, "its client was refused: it was ended, and started again");
    });
}

/// K15: a dry run decides as the start does, with the same text.
#[test]
fn dry_run_rejects_what_the_start_rejects() {
    testkit::run(|world| async move {
        let scene = Scene::start(world, &["vm1"]).await;
        scene.run("vm1", "a").await;
        let dry_run =
            async || scene.world.bus().ask(Scene::vm("vm1"), PlanHaStartMsg { host_uuid: None }).await.unwrap();
        let plan = dry_run().await;
        assert_eq!((plan.feasible, plan.steps), (false, vec!["nothing: the VM runs".to_owned()]));

        let stranger = "10.9.9.9".parse().unwrap();
        scene.fake.ceph.lock().watchers.insert("vm1".to_owned(), vec![stranger]);
        scene.power("a", false);
        scene.pass(20 * S).await;
        let refused = scene.ha_start("vm1").await.unwrap_err().to_string();
        let plan = dry_run().await;
        assert!(refused.contains("is in use by") && plan.evidence.iter().any(|said| said.contains("10.9.9.9:0/1")));
        assert_eq!((plan.feasible, plan.steps), (false, vec![refused]));

        scene.power("b", false);
        scene.pass(20 * S).await;
        scene.fake.ceph.lock().watchers.clear();
        let plan = dry_run().await;
        let refused = scene.ha_start("vm1").await.unwrap_err().to_string();
        let braked = "the storm brake of c1 is engaged";
        assert!(!plan.feasible && plan.steps[0].contains(braked) && refused.contains(braked), "{plan:?}: {refused}");
        assert_eq!(scene.outcomes(), [], "nothing was fenced for it");

        scene.power("b", true);
        scene.fake.ceph.lock().error = Some(ErrorCode::new(Code::TIMEOUT, "no monitor answered"));
        scene.pass(20 * S).await;
        let plan = dry_run().await;
        assert!(!plan.feasible && plan.steps[0].contains("no monitor answered"), "{plan:?}");
    });
}

/// Fault 35: no fencer is registered.
#[test]
fn policy_decides_without_fencer() {
    for (profile, starts) in [("safe", false), ("zstack", true)] {
        testkit::run(move |world| async move {
            let fence = match profile {
                "safe" => ringfence_actors::fence::policy::Profile::Safe.policy(),
                _ => ringfence_actors::fence::policy::Profile::Zstack.policy(),
            };
            let settings = Settings { fence, sibling_fencer: false, ..Settings::default() };
            let scene = Scene::start_with(world, &["vm1"], settings).await;
            scene.run("vm1", "a").await;
            scene.power("a", false);
            scene.pass(10 * S).await;
            assert!(scene.outcomes().is_empty(), "no sibling could look: the host is not taken for failed");
            assert_eq!(scene.ha_start("vm1").await.is_ok(), starts, "{profile}");
            assert_eq!(scene.outcomes(), [FenceOutcome::SkippedNoFencer]);
        });
    }
}

/// Fault 23: a stale leader decides, but does nothing any more.
#[test]
fn stale_leader_touches_no_host() {
    testkit::run(|world| async move {
        let scene = Scene::start(world, &["vm1"]).await;
        scene.run("vm1", "a").await;
        scene.fake.stale_leader.store(true, std::sync::atomic::Ordering::Relaxed);
        scene.fake.take_calls();
        let to = Address::new(HostActor::KIND, host("a"));
        for refused in [
            scene
                .world
                .bus()
                .ask(to, StopVmCmd { vm_uuid: VmId::from_name("vm1"), epoch: 0, incarnation: 0 })
                .await
                .map(|_| ()),
            scene
                .world
                .bus()
                .ask(
                    to,
                    DeployVhostCmd {
                        primary_storage_uuid: StorageId::from_name("s"),
                        storage: "s".to_owned(),
                        volume_dir: None,
                        on_target_loss: Default::default(),
                    },
                )
                .await
                .map(|_| ()),
            scene.world.bus().ask(Scene::vm("vm1"), StopVmMsg {}).await.map(|_| ()),
        ] {
            assert!(refused.unwrap_err().to_string().contains("not the leader any more"));
        }
        assert!(scene.fake.take_calls().is_empty(), "it was asked all the same");
    });
}

/// Fault 24, and I1: a permit is for one start of one VM on one host, and it expires.
#[test]
fn expired_or_foreign_permit_starts_nothing() {
    testkit::run(|world| async move {
        let scene = Scene::start(world, &[]).await;
        let cmd = || StartVmCmd {
            not_after_ms: 0,
            vm_uuid: VmId::from_name("x"),
            name: "x".to_owned(),
            incarnation: 1,
            epoch: 1,
            memory_mib: 16,
            disks: Vec::new(),
            qemu_args: Vec::new(),
            libvirt_xml: None,
            head: None,
        };
        let permit = || StartPermit::for_test(host("a"), &cmd(), tokio::time::Instant::now().into_std());
        let old = permit();
        scene.pass(31 * S).await;
        let to = Address::new(HostActor::KIND, host("a"));
        let late = scene.world.bus().ask(to, LaunchVmMsg { permit: old, cmd: cmd() }).await.unwrap_err();
        assert!(late.is(&Code::CHANGE_STATE) && late.details.contains("has expired"), "{late}");
        assert!(scene.fake.host(host("a"), |host| host.vms.is_empty()));
        scene.world.bus().ask(to, LaunchVmMsg { permit: permit(), cmd: cmd() }).await.unwrap();
        assert!(!scene.fake.host(host("a"), |host| host.vms.is_empty()));
    });
}

#[test]
fn answering_host_is_neither_quarantined_nor_attested() {
    testkit::run(|world| async move {
        let scene = Scene::start(world, &[]).await;
        let ha = Address::singleton(HaActor::KIND);
        let quarantine = QuarantineHostMsg { host_uuid: host("a"), reason: "r".to_owned() };
        let error = scene.world.bus().ask(ha, quarantine).await.unwrap_err();
        assert!(error.details.contains("is not Disconnected"), "{error}");
        let confirm = ConfirmHostFencedMsg { host_uuid: host("a"), by: "me".to_owned() };
        let error = scene.world.bus().ask(ha, confirm).await.unwrap_err();
        assert!(error.details.contains("can be attested off"), "{error}");
    });
}

#[test]
fn crashed_vm_restarts_and_stopped_vm_stays() {
    testkit::run(|world| async move {
        let scene = Scene::start(world, &["vm1", "vm2"]).await;
        scene.run("vm1", "a").await;
        scene.run("vm2", "b").await;
        scene.world.bus().ask(Scene::vm("vm2"), StopVmMsg {}).await.unwrap();
        scene.fake.host(host("a"), |host| host.vms.clear());
        scene.pass(10 * S).await;
        assert_eq!(scene.place("vm1").await, (VmState::Running, "a".to_owned()));
        assert_eq!(scene.shown("vm1").await.incarnation, 2);
        assert_eq!(scene.place("vm2").await.0, VmState::Stopped);
        assert!(scene.outcomes().is_empty(), "its host said that it is gone: nothing is fenced");
    });
}

/// Found as seed 16: a VM was moved to another cluster. Its host was not in the list of the VM's own cluster, so the
/// last host was never queried. Found at scale: every start queried every host by itself.
#[test]
fn concurrent_placements_share_queries() {
    testkit::run(|world| async move {
        let scene = Scene::start(world, &[]).await;
        scene.fake.take_calls();
        let ask = |(vm, last): (&str, &str)| FindTargetMsg {
            vm_uuid: VmId::from_name(vm),
            cluster_uuid: cluster_of([]).clusters[0].id,
            memory_mib: 3000,
            host_uuid: None,
            last_host_uuid: Some(host(last)),
            place_host_uuids: vec![host(last)],
            soft_avoid_host_uuids: Vec::new(),
            may_have_moved: false,
            dry_run: false,
        };
        scene.power("c", false);
        let all = [("vm1", "a"), ("vm2", "a"), ("vm3", "far"), ("vm4", "nobody knows it")];
        let all = all.map(|of| scene.world.bus().ask(PLACEMENT, ask(of)));
        let found: Vec<_> = futures_util::future::join_all(all).await.into_iter().map(Result::unwrap).collect();
        let mut asked = scene.fake.take_calls();
        asked.sort();
        let mut once = ["a", "b", "c"].map(|name| (host(name), "facts"));
        once.sort();
        assert_eq!(asked, once, "each host once for all four");
        // Each host has room for one of them: the last host first, then the next best, then none.
        let targets: Vec<_> = found.iter().map(|found| found.host_uuid).collect();
        assert_eq!(targets[0], Some(host("a")));
        assert_eq!(targets[1], Some(host("b")));
        assert_eq!(&targets[2..], [None, None], "{found:?}");
        let answers: Vec<_> = found.iter().map(|found| found.silent_host_uuids.is_empty()).collect();
        assert_eq!(answers, [true, true, true, false]);
    });
}
