//! A journal that is behind what hosts have heard: all actors together, over ports in memory and in virtual time.
#![allow(missing_docs)]

use std::{sync::Arc, time::Duration};

use ringfence::Actor;
use ringfence::{
    Address,
    testkit::{self, World},
};
use ringfence_actors::{
    assembly::Assembly,
    fence::PERMIT_VALIDITY,
    inventory::{Inventory, PingSettings, Settings, SharedInventory},
    leader::LeaderStatus,
    restore,
    testkit::{FakeWorld, ceph_of, cluster_of, vm_of},
    vm::VmActor,
};
use ringfence_messages::{
    Code, Event, HostId, VmId,
    journal::{ControllerBehind, ControllerRestored, JournalHead},
    vm::{QueryVmMsg, StartVmMsg, StopVmMsg, VmState},
};

const S: Duration = Duration::from_secs(1);

fn host(name: &str) -> HostId {
    HostId::from_name(name)
}

fn vm() -> Address {
    Address::new(VmActor::KIND, VmId::from_name("vm1"))
}

/// The witness of a host.
fn witness(fake: &FakeWorld, name: &str) -> Option<JournalHead> {
    fake.host(host(name), |host| host.witness.clone())
}

async fn controller(world: &World, fake: &Arc<FakeWorld>) -> Assembly {
    let inventory = Inventory { storages: vec![ceph_of("s")], vms: vec![vm_of("vm1")], ..cluster_of(["a", "b"]) };
    let ping = PingSettings { interval: S, timeout: S, sleep_after_failure: S / 5, ..PingSettings::default() };
    let settings = Settings { ping, ..Settings::default() };
    let assembly = Assembly::start(world.bus().clone(), inventory, settings, fake.ports()).await.unwrap();
    tokio::time::sleep(3 * S).await;
    assembly
}

#[test]
fn hosts_keep_journal_head() {
    testkit::run(|world| async move {
        let fake = FakeWorld::new(["a", "b"].map(host));
        let assembly = controller(&world, &fake).await;
        world.bus().ask(vm(), StartVmMsg { host_uuid: Some(host("a")) }).await.unwrap();
        tokio::time::sleep(3 * S).await;
        let newest = fake.journal.records().len() as u64;
        for name in ["a", "b"] {
            let heard = witness(&fake, name).unwrap();
            assert_eq!((heard.seq, heard.epoch, heard.generation), (newest, assembly.epoch, 0), "{name}");
        }
        assert!(assembly.leader_status.may_act().is_ok() && fake.journal.events::<ControllerBehind>().is_empty());
    });
}

#[test]
fn behind_controller_rejects_acts_and_reports_once() {
    testkit::run(|world| async move {
        let fake = FakeWorld::new(["a", "b"].map(host));
        let assembly = controller(&world, &fake).await;
        world.bus().ask(vm(), StartVmMsg { host_uuid: Some(host("a")) }).await.unwrap();
        tokio::time::sleep(2 * S).await;
        // As if the journal was copied here, and the original continued.
        let ahead = |name| {
            fake.host(host(name), |host| {
                let heard = host.witness.as_mut().unwrap();
                heard.seq += 1000;
                heard.clone()
            })
        };
        let further = ahead("b");
        ahead("a");
        tokio::time::sleep(3 * S).await;
        let told = fake.journal.events::<ControllerBehind>();
        assert_eq!(told.len(), 1, "{told:?}");
        assert_eq!(told[0].witness.seq, further.seq);

        fake.take_calls();
        let refused = world.bus().ask(vm(), StopVmMsg {}).await.unwrap_err();
        assert!(refused.to_string().contains("serve --restored"), "{refused}");
        // Also acts without an intent, or with an earlier one.
        fake.host(host("a"), |host| host.vms.clear());
        let records = fake.journal.records().len();
        tokio::time::sleep(60 * S).await;
        let acts: Vec<_> =
            fake.take_calls().into_iter().filter(|(_, call)| matches!(*call, "start" | "stop")).collect();
        assert_eq!(acts, []);
        let more = fake.journal.records().split_off(records);
        assert!(more.iter().all(|record| record.topic != ControllerBehind::TOPIC), "{more:?}");
        assert!(assembly.leader_status.may_act().unwrap_err().is(&Code::CHANGE_STATE));
        assert_eq!(witness(&fake, "b").unwrap().seq, further.seq, "what a host has heard never goes back");
        // Its own records outgrow what hosts have heard: a restart does not complete it.
        let restarted =
            LeaderStatus::open(SharedInventory::new(Inventory::default()), fake.ports().journal).await.unwrap();
        assert!(restarted.may_act().is_err() && restarted.head().is_none(), "hosts must not take its head for news");
    });
}

#[test]
fn restored_controller_acts_above_all_witnesses() {
    testkit::run(|world| async move {
        let fake = FakeWorld::new(["a", "b", "c"].map(host));
        let former = JournalHead { journal_id: "former".to_owned(), generation: 4, seq: 900, epoch: 17 };
        fake.host(host("a"), |host| host.witness = Some(former.clone()));
        fake.host(host("c"), |host| host.answers = false);
        let began = tokio::time::Instant::now();
        let hosts = ["a", "b", "c"].map(|name| (host(name), name.to_owned())).to_vec();
        let restored = restore::restore(&fake.ports(), hosts).await.unwrap();
        assert!(began.elapsed() >= PERMIT_VALIDITY, "orders of the former controller may have been on their way");
        assert_eq!((restored.generation, restored.epoch, restored.heard), (5, 17, 2));
        assert_eq!((restored.witness.as_ref(), &restored.silent[..]), (Some(&former), &["c".to_owned()][..]));

        let assembly = controller(&world, &fake).await;
        assert!(assembly.epoch > 17);
        let heard = witness(&fake, "a").unwrap();
        assert_eq!((heard.generation, heard.journal_id), (5, restored.journal_id.clone()), "hosts adopt it");
        world.bus().ask(vm(), StartVmMsg { host_uuid: Some(host("a")) }).await.unwrap();
        assert_eq!(world.bus().ask(vm(), QueryVmMsg {}).await.unwrap().state, VmState::Running);
        assert_eq!(fake.journal.events::<ControllerRestored>(), [restored]);
        assert!(fake.journal.events::<ControllerBehind>().is_empty());
        // The former controller would detect that it is behind.
        assert!(former.is_behind(&witness(&fake, "b").unwrap()));
    });
}
