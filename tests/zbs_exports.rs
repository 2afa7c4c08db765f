//! Exports of ZBS targets end with their QEMU, by the MDS, before the VM starts elsewhere (K4).
#![allow(missing_docs)]

use std::{sync::Arc, time::Duration};

use ringfence::{
    Actor, Address,
    testkit::{self, World},
};
use ringfence_actors::{
    assembly::Assembly,
    inventory::{Inventory, PingSettings, Settings},
    testkit::{FakeWorld, cluster_of, storage_of, vm_of},
    vm::VmActor,
};
use ringfence_messages::{
    Code, ErrorCode, HostId, Protocol, Result, VmId,
    fence::{FenceOutcome, SiblingFenceAudited},
    ha::HaStartVmInstanceMsg,
    storage::StorageKind,
    vm::{QueryVmMsg, StartVmMsg, StopVmMsg, VmInventory, VmState},
};

const S: Duration = Duration::from_secs(1);

fn host(name: &str) -> HostId {
    HostId::from_name(name)
}

fn refused() -> Option<ErrorCode> {
    Some(ErrorCode::new(Code::OPERATION, "zbsadm: cannot log in"))
}

struct Scene {
    world: World,
    fake: Arc<FakeWorld>,
    _assembly: Assembly,
}

impl Scene {
    /// Hosts a, b and c, with a VM on a ZBS volume that runs on a.
    async fn start(world: World) -> Scene {
        let names = ["a", "b", "c"];
        let fake = FakeWorld::new(names.map(host));
        for name in names {
            fake.host(host(name), |host| host.target = true);
        }
        let mut vm = vm_of("vm1");
        vm.volumes[0].install_path = "zbs://pool/vm1".parse().unwrap();
        let storages = vec![storage_of("s", StorageKind::Zbs, &[Protocol::Vhost])];
        let inventory = Inventory { storages, vms: vec![vm], ..cluster_of(names) };
        let ping = PingSettings { interval: S, timeout: S, sleep_after_failure: S / 5, ..PingSettings::default() };
        let settings = Settings { ping, ..Settings::default() };
        let assembly = Assembly::start(world.bus().clone(), inventory, settings, fake.ports()).await.unwrap();
        let scene = Scene { world, fake, _assembly: assembly };
        tokio::time::sleep(3 * S).await;
        scene.start_on("a").await.unwrap();
        scene.fake.take_calls();
        scene
    }

    fn vm() -> Address {
        Address::new(VmActor::KIND, VmId::from_name("vm1"))
    }

    async fn start_on(&self, at: &str) -> Result<VmInventory> {
        self.world.bus().ask(Self::vm(), StartVmMsg { host_uuid: Some(host(at)) }).await
    }

    async fn shown(&self) -> VmInventory {
        self.world.bus().ask(Self::vm(), QueryVmMsg {}).await.unwrap()
    }

    /// Hosts where the MDS was asked to end an export or QEMU was started or stopped, since the last query.
    fn acts(&self) -> Vec<(HostId, &'static str)> {
        let acts = ["end export", "start", "stop", "sibling fence"];
        self.fake.take_calls().into_iter().filter(|(_, call)| acts.contains(call)).collect()
    }
}

#[test]
fn stopped_vm_has_no_export() {
    testkit::run(|world| async move {
        let scene = Scene::start(world).await;
        let stopped = scene.world.bus().ask(Scene::vm(), StopVmMsg {}).await.unwrap();
        assert_eq!(stopped.state, VmState::Stopped);
        assert_eq!(scene.acts(), [(host("a"), "stop"), (host("a"), "end export")], "in this order");
        scene.start_on("b").await.unwrap();
        assert_eq!(scene.acts(), [(host("b"), "start")], "it has ended");
    });
}

#[test]
fn vm_with_an_export_left_is_not_stopped_and_starts_nowhere_else() {
    testkit::run(|world| async move {
        let scene = Scene::start(world).await;
        scene.fake.host(host("a"), |a| a.export_error = refused());
        let error = scene.world.bus().ask(Scene::vm(), StopVmMsg {}).await.unwrap_err();
        assert!(error.to_string().contains("a target on a may still write to zbs://pool/vm1"), "{error}");
        assert_ne!(scene.shown().await.state, VmState::Stopped);
        let error = scene.start_on("b").await.unwrap_err();
        assert!(error.to_string().contains("may still write to zbs://pool/vm1"), "{error}");

        scene.fake.host(host("a"), |a| a.export_error = None);
        scene.start_on("b").await.unwrap();
        assert_eq!(scene.shown().await.host_uuid, Some(host("b")));
    });
}

#[test]
fn kill_by_a_sibling_host_proves_nothing_while_the_target_exports() {
    testkit::run(|world| async move {
        let scene = Scene::start(world).await;
        scene.fake.host(host("a"), |a| (a.answers, a.export_error) = (false, refused()));
        tokio::time::sleep(10 * S).await;
        let start = || HaStartVmInstanceMsg {
            vm_instance_uuid: VmId::from_name("vm1"),
            judger_class_name: "Operator".to_owned(),
            soft_avoid_host_uuids: Vec::new(),
            host_uuid: None,
            ha_reason: "its host does not answer".to_owned(),
        };
        scene.world.bus().ask(Scene::vm(), start()).await.unwrap_err();
        assert_eq!(scene.shown().await.last_host_uuid, Some(host("a")), "not started elsewhere");
        let audit = scene.fake.journal.events::<SiblingFenceAudited>().pop().expect("an attempt was audited");
        assert_eq!(audit.outcome, FenceOutcome::Failed);
        assert!(audit.reason.contains("may still write to zbs://pool/vm1"), "{}", audit.reason);

        scene.fake.host(host("a"), |a| a.export_error = None);
        scene.world.bus().ask(Scene::vm(), start()).await.unwrap();
        let audit = scene.fake.journal.events::<SiblingFenceAudited>().pop().unwrap();
        assert_eq!(audit.outcome, FenceOutcome::SuccessAlreadyDead);
        assert_ne!(scene.shown().await.host_uuid, Some(host("a")));
    });
}
