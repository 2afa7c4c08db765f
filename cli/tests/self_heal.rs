//! Self-heal end to end: real agents, controller, storage daemons and QEMU.
#![allow(missing_docs)]

use std::{path::Path, time::Duration};

use ringfence_cli::demo::cluster::{Cluster, Plan, VM};
use ringfence_drivers::node::proc::Process;
use ringfence_messages::{
    Event, ProtocolStatus,
    recovery::{ProtocolRedeploy, RedeployPhase},
    storage::ProtocolStatusChanged,
    vm::{VmInventory, VmState},
};
use serde_json::{Value, json};
use tokio::time::Instant;

const HOST: &str = "host-a";
const WITHIN: Duration = Duration::from_secs(60);

fn program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_ringfence"))
}

async fn connected(plan: Plan) -> Cluster {
    let cluster = Cluster::start(program(), plan).await.unwrap();
    cluster.connected(WITHIN).await.unwrap();
    cluster
}

async fn order(cluster: &Cluster, order: Value) -> ringfence_messages::Result<VmInventory> {
    cluster.client().post(&format!("/v1/vms/{VM}/actions"), &order).await
}

async fn last_seq(cluster: &Cluster) -> u64 {
    cluster.events(0).await.unwrap().last().unwrap().seq
}

/// Waits for the first event of this type after `after` that `is` picks; its sequence number and itself.
async fn heard<E: Event>(cluster: &Cluster, after: u64, within: Duration, is: impl Fn(&E) -> bool) -> (u64, E) {
    let read = |payload: &Value| serde_json::from_value::<E>(payload.clone()).unwrap();
    let picks = |topic: &str, payload: &Value| topic == E::TOPIC && is(&read(payload));
    let record = cluster.event(E::TOPIC, after, within, |record| picks(&record.topic, &record.payload)).await.unwrap();
    (record.seq, read(&record.payload))
}

async fn counts_beyond(cluster: &Cluster, beyond: u32) -> u32 {
    let look = async || Ok(Some(cluster.counter()?).filter(|count| *count > beyond));
    cluster.until(&format!("the guest counts beyond {beyond}"), WITHIN, look).await.unwrap()
}

#[tokio::test]
async fn the_guest_counts_on_after_each_death_of_its_target() {
    let cluster = connected(Plan::default()).await;
    order(&cluster, json!({ "start": { "host": HOST } })).await.unwrap();
    counts_beyond(&cluster, 5).await;
    for _ in 0..3 {
        cluster.connected(WITHIN).await.unwrap();
        let before = last_seq(&cluster).await;
        let target = cluster.target(HOST).unwrap();
        target.kill(WITHIN).await.unwrap();
        let counted = cluster.counter().unwrap();
        let done = |redeploy: &ProtocolRedeploy| redeploy.host == HOST && redeploy.phase == RedeployPhase::Done;
        let (_, redeploy) = heard(&cluster, before, WITHIN, done).await;
        // The first of its outage, for recovery forgets the one before.
        assert_eq!((redeploy.attempt, redeploy.skipped_pings), (1, 0));
        counts_beyond(&cluster, counted).await;
    }
    assert_eq!(cluster.qemus(HOST).len(), 1, "it was one and the same QEMU all the time");
    let serial = std::fs::read_to_string(cluster.path().join(format!("{VM}.serial"))).unwrap();
    assert!(!serial.contains('S'), "the guest saw a write that was not its own: {serial}");
}

/// 2 minutes at a ping a second, and the 64 skipped pings that are under way when they are over.
#[tokio::test]
async fn an_undeployable_target_is_tried_after_0_2_4_8_skipped_pings_and_at_once_after_recovery() {
    let dir = tempfile::tempdir().unwrap();
    let binary = dir.path().join("target");
    let real = ["/usr/bin/qemu-storage-daemon", "/usr/local/bin/qemu-storage-daemon"].map(Path::new);
    let real = real.into_iter().find(|path| path.exists()).expect("qemu-storage-daemon is installed");
    std::os::unix::fs::symlink(real, &binary).unwrap();
    let cluster = connected(Plan { target_binary: Some(binary.clone()), ..Plan::default() }).await;

    let before = last_seq(&cluster).await;
    std::fs::remove_file(&binary).unwrap();
    cluster.target(HOST).unwrap().kill(WITHIN).await.unwrap();
    let began = Instant::now();
    let failed =
        |skipped: u32| move |r: &ProtocolRedeploy| r.phase == RedeployPhase::Failed && r.skipped_pings == skipped;
    let (_, redeploy) = heard(&cluster, before, Duration::from_secs(100), failed(32)).await;
    let error = redeploy.steps.last().unwrap().error.as_ref().unwrap();
    assert!(error.details.contains("does not start") && error.details.contains("[vhost] binary"), "{error}");
    tokio::time::sleep_until(began + Duration::from_secs(120)).await;
    std::os::unix::fs::symlink(real, &binary).unwrap();

    let connected = |event: &ProtocolStatusChanged| event.host == HOST && event.new_status == ProtocolStatus::Connected;
    let (recovered, _) = heard(&cluster, before, Duration::from_secs(60), connected).await;
    let skipped = |after: u64| {
        let cluster = &cluster;
        async move {
            let events = cluster.events(after).await.unwrap();
            let redeploys = events.iter().filter(|record| record.topic == ProtocolRedeploy::TOPIC);
            let redeploys = redeploys.map(|r| serde_json::from_value::<ProtocolRedeploy>(r.payload.clone()).unwrap());
            let intents = redeploys.filter(|redeploy| redeploy.host == HOST && redeploy.phase == RedeployPhase::Intent);
            intents.map(|redeploy| (redeploy.attempt, redeploy.skipped_pings)).collect::<Vec<_>>()
        }
    };
    assert_eq!(skipped(before).await, [(1, 0), (2, 2), (3, 4), (4, 8), (5, 16), (6, 32), (7, 64)]);

    cluster.connected(WITHIN).await.unwrap();
    cluster.target(HOST).unwrap().kill(WITHIN).await.unwrap();
    let done = |redeploy: &ProtocolRedeploy| redeploy.host == HOST && redeploy.phase == RedeployPhase::Done;
    heard(&cluster, recovered + 1, Duration::from_secs(10), done).await;
    assert_eq!(skipped(recovered).await, [(1, 0)], "the outage after the recovery is redeployed at once");
}

/// Freezes the target of the VM's host.
fn freeze_target(cluster: &Cluster) -> Process {
    let target = cluster.target(HOST).unwrap();
    let pid = rustix::process::Pid::from_raw(target.pid as i32).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::STOP).unwrap();
    target
}

/// A stopped daemon still accepts connections: only one that answers is healthy.
#[tokio::test]
async fn a_target_that_hangs_is_replaced() {
    let cluster = connected(Plan::default()).await;
    let before = last_seq(&cluster).await;
    let hung = freeze_target(&cluster);
    let down = |event: &ProtocolStatusChanged| event.host == HOST && event.new_status == ProtocolStatus::Disconnected;
    let (seen, event) = heard(&cluster, before, WITHIN, down).await;
    assert!(event.reason.as_deref().unwrap_or_default().contains("within 1s"), "{:?}", event.reason);
    let up = |event: &ProtocolStatusChanged| event.host == HOST && event.new_status == ProtocolStatus::Connected;
    heard(&cluster, seen, WITHIN, up).await;
    let new = cluster.target(HOST).unwrap();
    assert!(new.pid != hung.pid && !hung.is_alive(), "the hung one is gone, another one runs");
}

/// Row 44 (K4): the target holds what the guest wrote. Without its end the VM is not stopped, and moves nowhere.
#[tokio::test]
async fn a_vm_whose_target_hangs_is_stopped_and_drained_with_its_target() {
    let cluster = connected(Plan::default()).await;
    order(&cluster, json!({ "start": { "host": HOST } })).await.unwrap();
    counts_beyond(&cluster, 3).await;
    let hung = freeze_target(&cluster);
    let stopped = order(&cluster, json!({ "stop": {} })).await.unwrap();
    assert_eq!((stopped.state, cluster.qemus(HOST).len()), (VmState::Stopped, 0));
    assert!(!hung.is_alive(), "it may still write what it holds");

    cluster.connected(WITHIN).await.unwrap();
    order(&cluster, json!({ "start": { "host": HOST } })).await.unwrap();
    let counted = cluster.counter().unwrap();
    counts_beyond(&cluster, counted + 3).await;
    let hung = freeze_target(&cluster);
    let drain = json!({ "drain": {} });
    let _: Value = cluster.client().post(&format!("/v1/hosts/{HOST}/actions"), &drain).await.unwrap();
    let moved = async || {
        let vm: VmInventory = cluster.client().get(&format!("/v1/vms/{VM}")).await?;
        Ok(Some(vm).filter(|vm| vm.state == VmState::Running && vm.host.as_deref() == Some("host-b")))
    };
    cluster.until("the VM runs on host-b", WITHIN, moved).await.unwrap();
    assert!(!hung.is_alive(), "it may still write what it holds");
    let counted = cluster.counter().unwrap();
    counts_beyond(&cluster, counted + 3).await;
    let serial = std::fs::read_to_string(cluster.path().join(format!("{VM}.serial"))).unwrap();
    assert!(!serial.contains('S'), "the guest saw a write that was not its own: {serial}");
}

#[tokio::test]
async fn a_killed_agent_and_a_killed_controller_leave_the_vm_running_and_forget_nothing() {
    let mut cluster = connected(Plan::default()).await;
    order(&cluster, json!({ "start": { "host": HOST } })).await.unwrap();
    counts_beyond(&cluster, 3).await;
    let qemu = cluster.qemus(HOST);

    cluster.kill(HOST).unwrap();
    cluster.kill("controller").unwrap();
    let counted = cluster.counter().unwrap();
    counts_beyond(&cluster, counted + 5).await;
    cluster.restart(HOST).await.unwrap();
    cluster.restart("controller").await.unwrap();
    cluster.connected(WITHIN).await.unwrap();

    let vm = async || {
        let vm: VmInventory = cluster.client().get(&format!("/v1/vms/{VM}")).await?;
        Ok(Some(vm).filter(|vm| vm.state == VmState::Running))
    };
    let vm = cluster.until("the controller knows that the VM runs", WITHIN, vm).await.unwrap();
    assert_eq!((vm.host.as_deref(), vm.incarnation), (Some(HOST), 1));
    for host in [HOST, "host-b"] {
        let error = order(&cluster, json!({ "start": { "host": host } })).await.unwrap_err();
        assert!(error.details.contains("already runs on host-a"), "{error}");
    }
    assert_eq!(cluster.qemus(HOST), qemu);
    let epochs: Vec<u64> =
        cluster.events(0).await.unwrap().iter().filter_map(|r| r.payload["epoch"].as_u64()).collect();
    assert_eq!(epochs, [1, 2], "each start of the controller raises the epoch");

    let stopped = order(&cluster, json!({ "stop": {} })).await.unwrap();
    assert_eq!((stopped.state, cluster.qemus(HOST).len()), (VmState::Stopped, 0));
    let again = order(&cluster, json!({ "start": { "host": "host-b" } })).await.unwrap();
    assert_eq!((again.host.as_deref(), again.incarnation), (Some("host-b"), 2));
    let counted = cluster.counter().unwrap();
    counts_beyond(&cluster, counted).await;
}
