//! Inventory changes at run time: the other items keep running, and no possible writer is removed.
#![allow(missing_docs)]

use std::{sync::Arc, time::Duration};

use ringfence::{
    Actor, Address,
    testkit::{self, World},
};
use ringfence_actors::{
    assembly::Assembly,
    fencers::ceph::{CHECK_EVERY, CephActor},
    ha::HaActor,
    inventory::{Inventory, PingSettings, Settings, Vm},
    testkit::{FakeWorld, ceph_of, cluster_of, storage_of, vm_of},
    vm::VmActor,
};
use ringfence_messages::{
    Code, ErrorCode, HostId, Protocol, Result, StorageId, VmId,
    ceph::{FenceHostOnStorageMsg, LiftStorageFenceMsg, QueryStorageFencesMsg, StorageFenceChanged, StorageFencePhase},
    ha::{ConfirmHostFencedMsg, QuarantineHostMsg},
    host::{ChangeHostStateMsg, HostAction, HostInventory, HostStatus, HostStatusChanged, QueryHostsMsg},
    inventory::InventoryChanged,
    recovery::ProtocolRedeploy,
    storage::StorageKind,
    vm::{HaMode, QueryVmMsg, StartVmMsg, StopVmMsg, VmInventory, VmState},
};

const S: Duration = Duration::from_secs(1);

fn host(name: &str) -> HostId {
    HostId::from_name(name)
}

fn vm(name: &str, memory_mib: u64) -> Vm {
    Vm { ha: HaMode::None, memory_mib, ..vm_of(name) }
}

fn inventory(hosts: &[&str], vms: Vec<Vm>) -> Inventory {
    let target = storage_of("v", StorageKind::Vhost, &[Protocol::Vhost]);
    Inventory { storages: vec![ceph_of("s"), target], vms, ..cluster_of(hosts.iter().copied()) }
}

struct Scene {
    world: World,
    fake: Arc<FakeWorld>,
    assembly: Assembly,
}

impl Scene {
    /// The world has a, b and d; the inventory a and b, and `vm1`.
    async fn start(world: World) -> Scene {
        let fake = FakeWorld::new(["a", "b", "d"].map(host));
        let ping = PingSettings { interval: S, timeout: S, sleep_after_failure: S / 5, ..PingSettings::default() };
        let settings = Settings { ping, ..Settings::default() };
        let inventory = inventory(&["a", "b"], vec![vm("vm1", 512)]);
        let assembly = Assembly::start(world.bus().clone(), inventory, settings, fake.ports()).await.unwrap();
        let scene = Scene { world, fake, assembly };
        tokio::time::sleep(3 * S).await;
        scene
    }

    async fn change(&self, inventory: Inventory) -> Result<Vec<String>> {
        let change = self.assembly.plan(&inventory).await?;
        self.assembly.change(&change, inventory, "ops").await.map(|()| change.lines())
    }

    async fn run(&self, name: &str, at: Option<&str>) -> Result<VmInventory> {
        let ask = StartVmMsg { host_uuid: at.map(host) };
        self.world.bus().ask(Address::new(VmActor::KIND, VmId::from_name(name)), ask).await
    }

    async fn stop(&self, name: &str) {
        self.world.bus().ask(Address::new(VmActor::KIND, VmId::from_name(name)), StopVmMsg {}).await.unwrap();
    }

    async fn shown(&self, name: &str) -> Result<VmInventory> {
        self.world.bus().ask(Address::new(VmActor::KIND, VmId::from_name(name)), QueryVmMsg {}).await
    }

    async fn hosts(&self) -> Vec<HostInventory> {
        self.world.bus().ask(self.assembly.recovery(), QueryHostsMsg {}).await.unwrap().hosts
    }

    async fn maintain(&self, name: &str) {
        let order = ChangeHostStateMsg { host_uuid: host(name), action: HostAction::Maintain };
        self.world.bus().ask(self.assembly.recovery(), order).await.unwrap();
    }

    fn statuses(&self) -> usize {
        self.fake.journal.events::<HostStatusChanged>().len()
    }
}

fn refused(result: Result<Vec<String>>, says: &str) {
    let error = result.unwrap_err();
    assert!(error.is(&Code::CHANGE_STATE) && error.details.contains(says), "{error}");
}

#[test]
fn added_items_leave_others_untouched() {
    testkit::run(|world| async move {
        let scene = Scene::start(world).await;
        // The target of `b` stays down: its backoff must not start over.
        scene
            .fake
            .host(host("b"), |b| (b.target, b.deploy_error) = (false, Some(ErrorCode::new(Code::OPERATION, "no"))));
        tokio::time::sleep(12 * S).await;
        let before = scene.statuses();
        let tries = |scene: &Scene| {
            let all = scene.fake.journal.events::<ProtocolRedeploy>();
            all.into_iter().filter(|of| of.host == "b").map(|of| of.attempt).max().unwrap()
        };
        let tried = tries(&scene);
        assert!(tried > 1, "it was tried {tried} times");

        let mut new = inventory(&["d", "a", "b"], vec![vm("vm1", 512), vm("vm2", 512)]);
        // Unchanged items, in another order; addresses follow from the order.
        for of in &mut new.hosts {
            let n = ["a", "b", "d"].iter().position(|name| *name == of.name).unwrap() as u8;
            of.management_ip = format!("10.0.0.{}", n + 1);
            of.storage_ips = vec![of.management_ip.parse().unwrap()];
        }
        new.storages.push(storage_of("w", StorageKind::Vhost, &[Protocol::Vhost]));
        assert_eq!(scene.change(new).await.unwrap(), ["+ host d", "+ storage w", "+ VM vm2"]);
        tokio::time::sleep(3 * S).await;
        let now: Vec<_> = scene.hosts().await.into_iter().map(|host| (host.name, host.status)).collect();
        let connected = |name: &str| (name.to_owned(), HostStatus::Connected);
        assert_eq!(now, [connected("d"), connected("a"), connected("b")]);
        assert_eq!(scene.statuses(), before + 1, "only d's status is news");
        tokio::time::sleep(60 * S).await;
        let newest = scene
            .fake
            .journal
            .events::<ProtocolRedeploy>()
            .into_iter()
            .filter(|of| of.host == "b" && of.storage == "v");
        let attempts: Vec<u32> = newest.map(|of| of.attempt).collect();
        assert!(attempts.is_sorted() && *attempts.last().unwrap() > tried, "the backoff goes on: {attempts:?}");

        assert_eq!(scene.run("vm2", Some("d")).await.unwrap().host.as_deref(), Some("d"));
        let told = scene.fake.journal.events::<InventoryChanged>();
        assert_eq!((told.len(), told[0].by.as_str(), told[0].changes.len()), (1, "ops", 3));
    });
}

#[test]
fn vm_is_removed_only_stopped_and_keeps_its_state() {
    testkit::run(|world| async move {
        let scene = Scene::start(world).await;
        scene.run("vm1", Some("a")).await.unwrap();
        refused(
            scene.change(inventory(&["a", "b"], vec![])).await,
            "VM vm1 is Running; run `ringfence vm stop vm1` first",
        );
        assert_eq!(scene.shown("vm1").await.unwrap().state, VmState::Running, "it is as it was");
        scene.stop("vm1").await;
        assert_eq!(scene.change(inventory(&["a", "b"], vec![])).await.unwrap(), ["- VM vm1"]);
        assert!(scene.shown("vm1").await.unwrap_err().is(&Code::NO_ROUTE));

        let again = vec![vm("vm1", 1024)];
        assert_eq!(scene.change(inventory(&["a", "b"], again)).await.unwrap(), ["+ VM vm1"]);
        assert_eq!(scene.run("vm1", None).await.unwrap().incarnation, 2, "the journal knows it");
    });
}

#[test]
fn running_vm_change_applies_at_next_start() {
    testkit::run(|world| async move {
        let scene = Scene::start(world).await;
        scene.run("vm1", Some("a")).await.unwrap();
        let mut other = vm("vm1", 512);
        other.volumes[0].install_path = "ceph://rbd/another".parse().unwrap();
        refused(scene.change(inventory(&["a", "b"], vec![other])).await, "cannot change; stop the VM first");

        let lines = scene.change(inventory(&["a", "b"], vec![vm("vm1", 8192)])).await.unwrap();
        assert_eq!(lines, ["~ VM vm1: memory_mib: 512 -> 8192"]);
        scene.stop("vm1").await;
        let error = scene.run("vm1", None).await.unwrap_err();
        assert!(error.to_string().contains("8192 MiB"), "no host has so much: {error}");
    });
}

#[test]
fn host_is_removed_only_from_maintenance_and_empty() {
    testkit::run(|world| async move {
        let scene = Scene::start(world).await;
        scene.run("vm1", Some("b")).await.unwrap();
        let without = || inventory(&["a"], vec![vm("vm1", 512)]);
        refused(
            scene.change(without()).await,
            "host b has VMs (vm1): move them with `ringfence host drain b`, or stop them first",
        );
        scene.stop("vm1").await;
        refused(scene.change(without()).await, "`ringfence host maintain b` first");
        scene.maintain("b").await;
        scene.fake.host(host("b"), |b| b.answers = false);
        refused(scene.change(without()).await, "does not list what runs there");
        scene.fake.host(host("b"), |b| b.answers = true);
        assert_eq!(scene.change(without()).await.unwrap(), ["- host b"]);
        assert_eq!(scene.hosts().await.len(), 1);

        // b cannot be queried any more, and need not be.
        scene.fake.host(host("b"), |b| b.answers = false);
        assert_eq!(scene.run("vm1", None).await.unwrap().host.as_deref(), Some("a"));
        scene.stop("vm1").await;
        // A host that is added again keeps its state.
        scene.change(inventory(&["a", "b"], vec![vm("vm1", 512)])).await.unwrap();
        let b = scene.hosts().await.remove(1);
        assert_eq!((b.name.as_str(), b.state), ("b", ringfence_messages::host::HostState::Maintenance));
    });
}

#[test]
fn quarantined_host_cannot_change() {
    testkit::run(|world| async move {
        let scene = Scene::start(world).await;
        scene.fake.host(host("b"), |b| (b.answers, b.ssh) = (false, false));
        tokio::time::sleep(10 * S).await;
        let order = QuarantineHostMsg { host_uuid: host("b"), reason: "asked".to_owned() };
        scene.world.bus().ask(Address::singleton(HaActor::KIND), order).await.unwrap();
        let mut other = inventory(&["a", "b"], vec![vm("vm1", 512)]);
        other.hosts[1].storage_ips.clear();
        refused(scene.change(other).await, "host b is in quarantine");
    });
}

/// K13: the blocked addresses are renewed and lifted, even after the host's addresses changed.
#[test]
fn fence_survives_address_change() {
    testkit::run(|world| async move {
        let scene = Scene::start(world).await;
        let ceph = Address::new(CephActor::KIND, StorageId::from_name("s"));
        let fence = FenceHostOnStorageMsg { host_uuid: host("b"), reason: "asked".to_owned() };
        let was = scene.world.bus().ask(ceph, fence).await.unwrap().addresses;
        let mut other = inventory(&["a", "b"], vec![vm("vm1", 512)]);
        let new: std::net::IpAddr = "10.0.9.9".parse().unwrap();
        other.hosts[1].storage_ips = vec![new];
        scene.change(other).await.unwrap();
        scene.fake.ceph.lock().map.blocked.clear();
        tokio::time::sleep(CHECK_EVERY + S).await;
        let blocked = scene.fake.ceph.lock().map.blocked.clone();
        assert!(blocked.contains(&new) && was.iter().all(|ip| blocked.contains(ip)), "{blocked:?}");
        scene.world.bus().ask(ceph, LiftStorageFenceMsg { host_uuid: host("b") }).await.unwrap();
        assert!(scene.fake.ceph.lock().map.blocked.is_empty());
    });
}

/// K13: the blocklist entry of a destroyed host is not renewed for ever.
#[test]
fn quarantined_host_is_removed_after_attestation() {
    testkit::run(|world| async move {
        let scene = Scene::start(world).await;
        scene.fake.host(host("b"), |b| (b.answers, b.ssh) = (false, false));
        tokio::time::sleep(10 * S).await;
        let ha = Address::singleton(HaActor::KIND);
        let order = QuarantineHostMsg { host_uuid: host("b"), reason: "asked".to_owned() };
        scene.world.bus().ask(ha, order).await.unwrap();
        let ceph = Address::new(CephActor::KIND, StorageId::from_name("s"));
        let fence = FenceHostOnStorageMsg { host_uuid: host("b"), reason: "asked".to_owned() };
        let refused_there = scene.world.bus().ask(ceph, fence).await.unwrap().addresses;
        let without = || inventory(&["a"], vec![vm("vm1", 512)]);
        refused(scene.change(without()).await, "host b is in quarantine");

        let word = ConfirmHostFencedMsg { host_uuid: host("b"), by: "eve".to_owned() };
        scene.world.bus().ask(ha, word).await.unwrap();
        scene.maintain("b").await;
        scene.change(without()).await.unwrap();
        let fences = scene.fake.journal.events::<StorageFenceChanged>();
        let last = fences.last().unwrap();
        assert_eq!((last.phase, &last.addresses), (StorageFencePhase::Forgotten, &refused_there));
        let reply = scene.world.bus().ask(ceph, QueryStorageFencesMsg {}).await.unwrap();
        assert_eq!(reply.host_uuids, [], "nobody renews it");
    });
}

/// K9, K13: an attestation does not count against a machine that is reached, also when the host is removed.
#[test]
fn attested_host_that_is_reached_stays_in_the_inventory() {
    testkit::run(|world| async move {
        let scene = Scene::start(world).await;
        scene.fake.host(host("b"), |b| (b.answers, b.ssh) = (false, false));
        tokio::time::sleep(10 * S).await;
        let word = ConfirmHostFencedMsg { host_uuid: host("b"), by: "eve".to_owned() };
        scene.world.bus().ask(Address::singleton(HaActor::KIND), word).await.unwrap();
        scene.maintain("b").await;
        let without = || inventory(&["a"], vec![vm("vm1", 512)]);
        scene.fake.host(host("b"), |b| b.ssh = true);
        refused(scene.change(without()).await, "host b was attested to be off, but a reaches it");
        scene.fake.host(host("b"), |b| (b.answers, b.ssh) = (true, false));
        refused(scene.change(without()).await, "host b was attested to be off, but its agent answers");
        scene.fake.host(host("b"), |b| b.answers = false);
        scene.change(without()).await.unwrap();
    });
}

#[test]
fn unrecorded_change_is_not_applied() {
    testkit::run(|world| async move {
        let scene = Scene::start(world).await;
        scene.fake.journal.set_broken(Some(ErrorCode::new(Code::IO, "disk full")));
        assert!(scene.change(inventory(&["a", "b", "d"], vec![])).await.unwrap_err().is(&Code::IO));
        assert_eq!(scene.hosts().await.len(), 2);
        scene.fake.journal.set_broken(None);
        tokio::time::sleep(6 * S).await;
        assert_eq!(scene.run("vm1", Some("a")).await.unwrap().state, VmState::Running, "it is there again");
    });
}
