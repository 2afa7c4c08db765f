//! Journals that earlier versions wrote: a controller of today migrates each, starts over it and knows what was known.
//!
//! `drivers/tests/journals/schema-N.sql` is a journal of version N of the schema, as the first release with that
//! version wrote it; none is ever changed. They all tell the [`story`]. How one is made: `writes_a_journal_to_keep`
//! below.
#![allow(missing_docs)]

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use ringfence::{
    Actor, Address,
    testkit::{self, World},
};
use ringfence_actors::{
    assembly::Assembly,
    ha::HaActor,
    inventory::{Inventory, PingSettings, Settings},
    ports::{JournalPort, MAX_READ, NewRecord, Ports},
    testkit::{FakeWorld, ceph_of, cluster_of, vm_of},
    vm::VmActor,
};
use ringfence_drivers::journal::{GENESIS, Journal, SCHEMA_VERSION, follows};
use ringfence_messages::{
    HostId, VmId,
    ha::QueryHaMsg,
    host::{ChangeHostStateMsg, HostAction, HostState, QueryHostsMsg},
    vm::{QueryVmMsg, RunningVm, StartVmMsg, StopVmMsg, VmInventory, VmState},
};
use rusqlite::Connection;

const S: Duration = Duration::from_secs(1);

/// The kept journals, by schema version.
fn kept() -> Vec<(i64, PathBuf)> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("drivers/tests/journals");
    let mut kept: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).map(version).collect();
    kept.sort();
    kept
}

fn version(path: PathBuf) -> (i64, PathBuf) {
    let name = path.file_name().unwrap().to_str().unwrap();
    let version = name.strip_prefix("schema-").and_then(|rest| rest.strip_suffix(".sql")?.parse().ok());
    (version.unwrap_or_else(|| panic!("{name} is not schema-N.sql")), path)
}

/// A kept journal as a file.
fn restored(sql: &Path) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let connection = Connection::open(dir.path().join("journal.db")).unwrap();
    connection.execute_batch(&fs::read_to_string(sql).unwrap()).unwrap();
    dir
}

fn user_version(dir: &Path) -> i64 {
    let connection = Connection::open(dir.join("journal.db")).unwrap();
    connection.pragma_query_value(None, "user_version", |row| row.get(0)).unwrap()
}

fn host(name: &str) -> HostId {
    HostId::from_name(name)
}

/// A controller over a world in memory and a journal on disk; hosts a, b, c, and two VMs on Ceph.
async fn controller(world: &World, fake: &Arc<FakeWorld>, dir: &Path) -> Assembly {
    let vms = vec![vm_of("vm1"), vm_of("vm2")];
    let inventory = Inventory { storages: vec![ceph_of("s")], vms, ..cluster_of(["a", "b", "c"]) };
    let ping = PingSettings { interval: S, timeout: S, sleep_after_failure: S / 5, ..PingSettings::default() };
    let ports = Ports { journal: Arc::new(Journal::open(dir).unwrap()), ..fake.ports() };
    Assembly::start(world.bus().clone(), inventory, Settings { ping, ..Settings::default() }, ports).await.unwrap()
}

fn vm(name: &str) -> Address {
    Address::new(VmActor::KIND, VmId::from_name(name))
}

fn off(fake: &FakeWorld, name: &str) {
    fake.host(host(name), |host| {
        (host.answers, host.ssh) = (false, false);
        host.vms.clear();
    });
}

/// vm2 ran on b and was stopped; vm1 ran on a, which lost its power: fenced on the storage, quarantined, vm1 started
/// on b; c is in maintenance.
async fn story(world: World, dir: PathBuf) {
    let fake = FakeWorld::new(["a", "b", "c"].map(host));
    let assembly = controller(&world, &fake, &dir).await;
    tokio::time::sleep(3 * S).await;
    for (name, at) in [("vm1", "a"), ("vm2", "b")] {
        world.bus().ask(vm(name), StartVmMsg { host_uuid: Some(host(at)) }).await.unwrap();
    }
    world.bus().ask(vm("vm2"), StopVmMsg {}).await.unwrap();
    let maintain = ChangeHostStateMsg { host_uuid: host("c"), action: HostAction::Maintain };
    world.bus().ask(assembly.recovery(), maintain).await.unwrap();
    off(&fake, "a");
    let mut vm1: VmInventory;
    for _ in 0..60 {
        tokio::time::sleep(S).await;
        vm1 = world.bus().ask(vm("vm1"), QueryVmMsg {}).await.unwrap();
        if (vm1.state, vm1.incarnation) == (VmState::Running, 2) {
            return;
        }
    }
    panic!("vm1 was not brought back");
}

/// A controller that starts over that journal replays how it ended; a is still without power.
async fn goes_on(world: World, dir: PathBuf) {
    let fake = FakeWorld::new(["a", "b", "c"].map(host));
    off(&fake, "a");
    let vm_uuid = VmId::from_name("vm1");
    let runs = RunningVm { incarnation: Some(2), ..RunningVm::qemu(vm_uuid, 7) };
    fake.host(host("b"), |host| host.vms.insert(vm_uuid, runs));
    let assembly = controller(&world, &fake, &dir).await;
    assert_eq!(assembly.epoch, 2, "the term after the one that is recorded");
    tokio::time::sleep(3 * S).await;
    let vm1 = world.bus().ask(vm("vm1"), QueryVmMsg {}).await.unwrap();
    assert_eq!((vm1.state, vm1.host.as_deref(), vm1.incarnation), (VmState::Running, Some("b"), 2));
    let vm2 = world.bus().ask(vm("vm2"), QueryVmMsg {}).await.unwrap();
    assert_eq!((vm2.state, vm2.wanted, vm2.incarnation), (VmState::Stopped, false, 1));
    let hosts = world.bus().ask(assembly.recovery(), QueryHostsMsg {}).await.unwrap().hosts;
    assert_eq!(hosts.iter().find(|of| of.name == "c").unwrap().state, HostState::Maintenance);
    let ha = world.bus().ask(Address::singleton(HaActor::KIND), QueryHaMsg {}).await.unwrap();
    let a = ha.hosts.iter().find(|of| of.host_uuid == host("a")).expect("a is in trouble");
    assert!(a.standing.contains("quarantine"), "{}", a.standing);
    // The storage still rejects it: a missing fence is re-applied.
    tokio::time::sleep(30 * S).await;
    assert_eq!(fake.ceph.lock().map.blocked.len(), 1);
}

fn run(act: impl AsyncFnOnce(World, PathBuf) + 'static, dir: &Path) {
    let dir = dir.to_owned();
    testkit::run(move |world| async move { act(world, dir).await });
}

/// A new schema version needs a journal of every earlier version, and of the new one.
#[test]
fn there_is_a_journal_of_every_version() {
    let versions: Vec<i64> = kept().into_iter().map(|(version, _)| version).collect();
    let wanted: Vec<i64> = (1..=SCHEMA_VERSION).collect();
    assert_eq!(versions, wanted, "keep a journal of each version of the schema: see `writes_a_journal_to_keep`");
    for (version, sql) in kept() {
        assert_eq!(user_version(restored(&sql).path()), version, "{}", sql.display());
    }
}

#[tokio::test]
async fn every_journal_is_migrated_verified_read_and_appended_to() {
    for (_, sql) in kept() {
        let dir = restored(&sql);
        let records: i64 = Connection::open(dir.path().join("journal.db"))
            .unwrap()
            .query_row("SELECT count(*) FROM events", [], |row| row.get(0))
            .unwrap();
        let journal = Journal::open(dir.path()).unwrap();
        assert_eq!(user_version(dir.path()), SCHEMA_VERSION);
        assert_eq!(journal.verify().unwrap(), records as u64);
        let read = journal.read(0, MAX_READ).await.unwrap();
        assert_eq!(read.len(), records as usize);
        let mut before = GENESIS.to_owned();
        for record in &read {
            assert!(follows(&before, record), "{} {record:?}", sql.display());
            before.clone_from(&record.hash);
        }
        let new = NewRecord {
            topic: "t".to_owned(),
            subject: "s".to_owned(),
            payload: serde_json::json!({ "n": 1 }),
            waited: Duration::ZERO,
        };
        let appended = journal.append(vec![new]).await.unwrap();
        assert!(appended[0].seq == records as u64 + 1 && follows(&before, &appended[0]));
        drop(journal);
        assert_eq!(Journal::open(dir.path()).unwrap().verify().unwrap(), records as u64 + 1);
    }
}

#[test]
fn controller_continues_journal_of_earlier_version() {
    for (_, sql) in kept() {
        let dir = restored(&sql);
        run(goes_on, dir.path());
        assert!(Journal::open(dir.path()).unwrap().verify().is_ok());
    }
}

/// The same over a journal of the current version.
#[test]
fn controller_continues_where_previous_stopped() {
    let dir = tempfile::tempdir().unwrap();
    run(story, dir.path());
    run(goes_on, dir.path());
}

/// Before a release whose schema is new: `RINGFENCE_JOURNAL=/tmp/j cargo nextest run --test journals --run-ignored
/// only`, then `{ sqlite3 /tmp/j/journal.db .dump; echo "PRAGMA user_version = N;"; } >
/// drivers/tests/journals/schema-N.sql`.
#[test]
#[ignore = "writes a journal to keep, for a new version of the schema"]
fn writes_a_journal_to_keep() {
    let dir = PathBuf::from(std::env::var_os("RINGFENCE_JOURNAL").expect("RINGFENCE_JOURNAL names a folder"));
    fs::create_dir_all(&dir).unwrap();
    run(story, &dir);
    eprintln!("{} records in {}", Journal::open(&dir).unwrap().verify().unwrap(), dir.display());
}
