//! Drains: all actors together, over ports in memory and in virtual time.
#![allow(missing_docs)]

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use ringfence::{
    Actor, Address,
    testkit::{self, World},
};
use ringfence_actors::{
    assembly::Assembly,
    ha::HaActor,
    inventory::{Inventory, PingSettings, Settings, Vm},
    testkit::{FakeWorld, ceph_of, cluster_of, vm_of},
    vm::VmActor,
};
use ringfence_messages::{
    Code, ErrorCode, Event, HostId, VmId,
    fence::SiblingFenceAudited,
    ha::{DrainPlan, HostDrained, PlanDrainMsg, QueryHaMsg, VmHaBlocked, VmHaStarted, VmMoveChanged},
    host::{ChangeHostStateMsg, HostAction, HostInventory, HostState, HostStateChanged},
    vm::{HaMode, QueryVmMsg, StartVmMsg, StopVmMsg, VmInventory, VmState, VmStateChanged},
};

const S: Duration = Duration::from_secs(1);

fn host(name: &str) -> HostId {
    HostId::from_name(name)
}

/// Hosts a, b, c; VMs of these names on Ceph, of 512 MiB. Those called plain have HA mode None.
fn inventory(hosts: &[&str], vms: &[&str]) -> Inventory {
    let ha = |name: &str| if name.starts_with("plain") { HaMode::None } else { HaMode::NeverStop };
    let vms = vms.iter().map(|name| Vm { ha: ha(name), ..vm_of(name) }).collect();
    Inventory { storages: vec![ceph_of("s")], vms, ..cluster_of(hosts.iter().copied()) }
}

struct Scene {
    world: World,
    fake: Arc<FakeWorld>,
    assembly: Assembly,
    vms: Vec<&'static str>,
}

impl Scene {
    async fn start(world: World, vms: &[&'static str]) -> Scene {
        let scene = Scene::over(world, FakeWorld::new(["a", "b", "c"].map(host)), vms).await;
        for name in vms {
            scene.ask(name, StartVmMsg { host_uuid: Some(host("a")) }).await.unwrap();
        }
        scene
    }

    /// A controller over the state that an earlier one left.
    async fn over(world: World, fake: Arc<FakeWorld>, vms: &[&'static str]) -> Scene {
        let ping = PingSettings { interval: S, timeout: S, sleep_after_failure: S / 5, ..PingSettings::default() };
        let settings = Settings { ping, ..Settings::default() };
        let of = inventory(&["a", "b", "c"], vms);
        let assembly = Assembly::start(world.bus().clone(), of, settings, fake.ports()).await.unwrap();
        tokio::time::sleep(3 * S).await;
        Scene { world, fake, assembly, vms: vms.to_vec() }
    }

    async fn ask<M: ringfence_messages::Message>(&self, name: &str, message: M) -> Result<M::Reply, ErrorCode> {
        self.world.bus().ask(Address::new(VmActor::KIND, VmId::from_name(name)), message).await
    }

    async fn order(&self, name: &str, action: HostAction) -> HostInventory {
        let order = ChangeHostStateMsg { host_uuid: host(name), action };
        self.world.bus().ask(self.assembly.recovery(), order).await.unwrap()
    }

    async fn plan(&self, name: &str) -> DrainPlan {
        let ask = PlanDrainMsg { host_uuid: host(name) };
        self.world.bus().ask(Address::singleton(HaActor::KIND), ask).await.unwrap()
    }

    async fn standing(&self) -> Option<String> {
        let ha = self.world.bus().ask(Address::singleton(HaActor::KIND), QueryHaMsg {}).await.unwrap();
        ha.hosts.into_iter().find(|of| of.host_uuid == host("a")).map(|of| of.standing)
    }

    async fn shown(&self, name: &str) -> VmInventory {
        self.ask(name, QueryVmMsg {}).await.unwrap()
    }

    /// Where each VM runs: on the disks of the hosts, and as observed.
    async fn places(&self) -> Vec<String> {
        let mut places = Vec::new();
        for name in &self.vms {
            let id = VmId::from_name(name);
            let there =
                ["a", "b", "c"].into_iter().filter(|at| self.fake.host(host(at), |at| at.vms.contains_key(&id)));
            let there: Vec<&str> = there.collect();
            assert!(there.len() <= 1, "{name} runs on {there:?}");
            let shown = self.shown(name).await;
            assert_eq!(shown.host.as_deref().filter(|_| shown.state == VmState::Running), there.first().copied());
            places.push(there.first().copied().unwrap_or("nowhere").to_owned());
        }
        places
    }

    fn events<E: Event>(&self) -> Vec<E> {
        self.fake.journal.events()
    }

    fn room(&self, mib: u64) {
        for name in ["b", "c"] {
            self.fake.host(host(name), |host| host.available_mib = mib);
        }
    }
}

#[test]
fn host_is_drained_two_at_a_time_and_removed() {
    testkit::run(|world| async move {
        let scene = Scene::start(world, &["v1", "v2", "v3", "plain", "off"]).await;
        scene.ask("off", StopVmMsg {}).await.unwrap();
        let from = scene.fake.journal.records().len();
        let plan = scene.plan("a").await;
        assert_eq!((plan.feasible, plan.vms.len()), (true, 4), "{plan:?}");
        assert!(plan.vms.iter().all(|step| step.target.is_some()), "{plan:?}");
        assert_eq!(scene.fake.journal.records().len(), from, "a plan changes nothing");

        assert_eq!(scene.order("a", HostAction::Drain).await.state, HostState::Maintenance);
        // A repeated request does no harm.
        scene.order("a", HostAction::Drain).await;
        scene.order("a", HostAction::Maintain).await;
        tokio::time::sleep(10 * S).await;
        let places = scene.places().await;
        assert!(places[..4].iter().all(|at| at == "b" || at == "c"), "{places:?}");
        assert_eq!(places[4], "nowhere", "what is stopped stays as it is");
        assert_eq!(scene.shown("plain").await.incarnation, 2, "each is started once");

        // Each VM: intended before its stop, stopped before its start; never more than two in between.
        let (mut between, mut most) = (0i32, 0);
        for name in ["v1", "v2", "v3", "plain"] {
            let told = |record: &ringfence_actors::ports::Record| {
                let key = if record.topic == VmMoveChanged::TOPIC { "moving" } else { "newState" };
                (record.subject == name).then(|| record.payload[key].to_string().replace('"', ""))
            };
            let story: Vec<String> = scene.fake.journal.records()[from..].iter().filter_map(told).collect();
            assert_eq!(story, ["true", "Stopping", "Stopped", "Starting", "Running", "false"], "{name}");
        }
        for of in scene.events::<VmMoveChanged>() {
            between += if of.moving { 1 } else { -1 };
            most = most.max(between);
        }
        assert_eq!((between, most), (0, 2));
        assert!(scene.events::<SiblingFenceAudited>().is_empty() && scene.events::<VmHaStarted>().is_empty());
        assert_eq!(scene.events::<HostDrained>().len(), 1);
        assert_eq!(scene.standing().await.as_deref(), Some("drained: the host reports that nothing runs there"));

        let mut without = inventory(&["a", "b", "c"], &scene.vms);
        without.hosts.remove(0);
        let change = scene.assembly.plan(&without).await.unwrap();
        assert_eq!(change.lines(), ["- host a"]);
        scene.assembly.change(&change, without, "ops").await.unwrap();
    });
}

#[test]
fn drain_waits_for_room() {
    testkit::run(|world| async move {
        let scene = Scene::start(world, &["v1", "v2"]).await;
        scene.room(100);
        tokio::time::sleep(3 * S).await;
        scene.fake.take_calls();
        let plan = scene.plan("a").await;
        assert!(!plan.feasible && plan.vms[0].what.contains("no host has room for"), "{plan:?}");
        scene.order("a", HostAction::Drain).await;
        tokio::time::sleep(60 * S).await;
        assert_eq!(scene.places().await, ["a", "a"]);
        assert!(scene.fake.take_calls().iter().all(|(_, call)| *call != "stop"), "one was stopped");
        let told = scene.events::<VmMoveChanged>();
        assert!(told.len() == 2 && told.iter().all(|of| !of.moving && of.reason.contains("keeps running")), "{told:?}");
        let standing = scene.standing().await.unwrap();
        assert!(standing.contains("v2 stays for now: no host has room for v2"), "{standing}");
        assert!(scene.events::<HostDrained>().is_empty());

        scene.room(4096);
        tokio::time::sleep(40 * S).await;
        let places = scene.places().await;
        assert!(places.iter().all(|at| at != "a"), "{places:?}");
    });
}

#[test]
fn unstoppable_vm_stays_and_others_move() {
    testkit::run(|world| async move {
        let scene = Scene::start(world, &["v1", "v2", "v3"]).await;
        let error = ErrorCode::new(Code::OPERATION, "QEMU of v2 is still there");
        scene.fake.host(host("a"), |a| a.stop_error = Some((VmId::from_name("v2"), error)));
        scene.order("a", HostAction::Drain).await;
        tokio::time::sleep(20 * S).await;
        let places = scene.places().await;
        assert_eq!((places[1].as_str(), places.iter().filter(|at| *at == "a").count()), ("a", 1), "{places:?}");
        assert_eq!(scene.shown("v2").await.incarnation, 1);
        let told = scene.events::<VmMoveChanged>();
        let stays = |of: &VmMoveChanged| of.vm == "v2" && of.moving && of.reason.contains("still there");
        assert!(told.iter().any(stays), "{told:?}");
        assert!(scene.standing().await.unwrap().contains("v2 stays for now: the VM does not stop"));

        scene.fake.host(host("a"), |a| a.stop_error = None);
        tokio::time::sleep(40 * S).await;
        assert_ne!(scene.places().await[1], "a");
    });
}

#[test]
fn failed_start_is_reported_and_retried_elsewhere() {
    testkit::run(|world| async move {
        let scene = Scene::start(world, &["plain"]).await;
        scene
            .fake
            .host(host("b"), |b| (b.available_mib, b.start_error) = (64 << 10, Some(ErrorCode::new(Code::IO, "no"))));
        tokio::time::sleep(3 * S).await;
        scene.order("a", HostAction::Drain).await;
        tokio::time::sleep(20 * S).await;
        assert_eq!(scene.places().await, ["c"], "not where it did not start");
        assert_eq!(scene.events::<VmHaBlocked>().len(), 1);
    });
}

#[test]
fn activation_ends_drain_and_moved_vms_stay() {
    testkit::run(|world| async move {
        let scene = Scene::start(world, &["v1", "v2", "v3"]).await;
        let error = ErrorCode::new(Code::OPERATION, "still there");
        scene.fake.host(host("a"), |a| a.stop_error = Some((VmId::from_name("v2"), error)));
        scene.order("a", HostAction::Drain).await;
        tokio::time::sleep(10 * S).await;
        scene.order("a", HostAction::Activate).await;
        scene.fake.host(host("a"), |a| a.stop_error = None);
        let before = scene.places().await;
        tokio::time::sleep(60 * S).await;
        assert_eq!(scene.places().await, before);
        assert_eq!(before[1], "a");
        assert_eq!(scene.standing().await, None);
        let states: Vec<_> = scene.events::<HostStateChanged>().iter().map(|of| (of.new_state, of.draining)).collect();
        assert_eq!(states, [(HostState::Maintenance, true), (HostState::Enabled, false)]);
    });
}

/// A controller is killed after each record of a drain; the next one completes it.
#[test]
fn controller_killed_during_drain_leaves_no_vm_down() {
    const VMS: [&str; 3] = ["v1", "plain1", "plain2"];
    let whole = drain_until(usize::MAX);
    assert_eq!(whole.journal.events::<VmMoveChanged>().len(), 2 * VMS.len());
    for n in 1.. {
        let fake = drain_until(n);
        let (left, all) = (fake.journal.records().len(), whole.journal.records().len());
        let over = !fake.journal.events::<HostDrained>().is_empty();
        testkit::run(move |world| async move {
            let scene = Scene::over(world, fake, &VMS).await;
            tokio::time::sleep(60 * S).await;
            let places = scene.places().await;
            assert!(places.iter().all(|at| at == "b" || at == "c"), "killed after record {left} of {all}: {places:?}");
            assert_eq!(scene.events::<HostDrained>().len(), 1, "killed after record {left} of {all}");
            let mut newest = BTreeMap::new();
            newest.extend(scene.events::<VmMoveChanged>().into_iter().map(|of| (of.vm, of.moving)));
            assert!(newest.values().all(|moving| !moving), "killed after record {left} of {all}: {newest:?}");
            let starts = |name: &&str| {
                let all = scene.events::<VmStateChanged>().into_iter();
                all.filter(move |of| of.vm == *name && of.new_state == VmState::Starting).count()
            };
            assert!(VMS.iter().all(|name| (2..4).contains(&starts(name))), "started again and again");
        });
        if over {
            return;
        }
    }
}

/// Runs a drain of `a` until this many records were made, and drops everything there.
fn drain_until(records: usize) -> Arc<FakeWorld> {
    let fake = FakeWorld::new(["a", "b", "c"].map(host));
    let kept = fake.clone();
    testkit::run(move |world| async move {
        let vms = ["v1", "plain1", "plain2"];
        let scene = Scene::over(world, fake, &vms).await;
        for name in vms {
            scene.ask(name, StartVmMsg { host_uuid: Some(host("a")) }).await.unwrap();
        }
        let from = scene.fake.journal.records().len();
        scene.order("a", HostAction::Drain).await;
        for _ in 0..20_000 {
            let drained = !scene.events::<HostDrained>().is_empty();
            if drained || scene.fake.journal.records().len() - from >= records {
                return;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        panic!("the drain does not end");
    });
    kept
}
