//! `ringfence demo`: self-heal on this machine, with nothing simulated; and, as root, a host that fails, on a lab
//! inside.
//!
//! Two host agents and a controller run on loopback; a VM runs on a vhost-user disk; its storage target is killed
//! with SIGKILL, twice. Each step is waited for within a bound and must be seen, or the demo fails.

pub mod cluster;
pub mod guest;
mod ha;
mod timeline;

use std::time::Duration;

use ringfence_actors::ports::Record;
use ringfence_messages::{
    Code, ErrorCode, ProtocolStatus, Result,
    recovery::{ProtocolRedeploy, RedeployPhase},
    storage::ProtocolStatusChanged,
    vm::{VmInventory, VmState},
};
use serde::de::DeserializeOwned;
use serde_json::json;
use tokio::time::Instant;

use cluster::{Cluster, Plan, STORAGE, VM};
use timeline::Timeline;

/// Time limit of one step, generous for machines without kvm.
const STEP_TIMEOUT: Duration = Duration::from_secs(60);

/// Records that the guest must write after each outage to count as recovered.
const WRITES: u32 = 5;

const HOST: &str = "host-a";

/// Runs the demo; with `keep` it stays up afterwards. Returns the exit status: 0 if every step was observed, else 1.
pub async fn run(keep: bool) -> u8 {
    let mut timeline = Timeline::begin();
    let result = tokio::select! {
        result = tell(&mut timeline, keep) => result,
        () = ringfence_service::listen::shutdown_signal() => Err(ErrorCode::new(Code::CANCELLED, "interrupted")),
    };
    timeline.end();
    match result {
        Ok(ending) => {
            crate::output::print(format!("\n{} steps, every one observed. {ending}", timeline.seen()));
            0
        }
        Err(error) => {
            eprintln!("{}", crate::output::error(&error));
            1
        }
    }
}

async fn tell(timeline: &mut Timeline, keep: bool) -> Result<String> {
    let program = std::env::current_exe()
        .map_err(|e| ErrorCode::new(Code::IO, format!("cannot find this program's own file: {e}")))?;
    let cluster = timeline
        .step("two host agents and a controller", Cluster::start(&program, Plan::default()), |cluster| {
            format!("agents of host-a and host-b and the controller serve at {}", cluster.server())
        })
        .await?;
    let deployed = redeploy_of(&cluster, 0);
    timeline
        .step("the first vhost target", deployed, |redeploy| {
            let failed = redeploy.steps.iter().filter(|step| step.error.is_some());
            let skipped: Vec<_> = failed.map(|step| format!("{} (best effort) failed", step.name)).collect();
            format!("{STORAGE} was not deployed on {HOST}: it is now{}", list(&skipped))
        })
        .await?;
    timeline
        .step("all protocols to be Connected", cluster.connected(STEP_TIMEOUT), |()| {
            "every protocol on every host is Connected".to_owned()
        })
        .await?;

    let order = json!({ "start": { "host": HOST } });
    let started = async {
        let vm: VmInventory = cluster.client().post(&format!("/v1/vms/{VM}/actions"), &order).await?;
        match vm.state {
            VmState::Running => Ok(vm),
            state => Err(ErrorCode::new(Code::OPERATION, format!("{VM} is {state:?}, not Running"))),
        }
    };
    timeline.step("the VM", started, |vm| format!("{VM} runs on {HOST}, start {}", vm.incarnation)).await?;
    timeline
        .step("the guest's first writes", writes(&cluster, 0), |count| {
            format!("its guest writes: {count} records on its vhost-user disk")
        })
        .await?;

    outage(&cluster, timeline, "first").await?;
    outage(&cluster, timeline, "second").await?;
    timeline.note("the second outage was redeployed at once too: recovery made the backoff forget the first");

    if keep {
        let target = cluster.target(HOST).map_or("PID".to_owned(), |target| target.pid.to_string());
        let server = cluster.server().to_owned();
        let (program, down) = (program.display(), cluster.keep());
        return Ok(format!(
            "The demo keeps running: {server}/\nCommands to try:\n  export RINGFENCE_SERVER={server}\n  {program} \
             status\n  {program} events --follow\n  kill -9 {target}    # the target of {VM}: watch it come back\n\
             Stop it:\n  {down}"
        ));
    }
    let stopped = async {
        let order = json!({ "stop": {} });
        let _: VmInventory = cluster.client().post(&format!("/v1/vms/{VM}/actions"), &order).await?;
        match cluster.qemus(HOST).first() {
            None => Ok(()),
            Some(left) => Err(ErrorCode::new(Code::OPERATION, format!("QEMU process {} is still there", left.pid))),
        }
    };
    timeline.step("the VM to stop", stopped, |()| format!("{VM} is stopped, no QEMU of it is left")).await?;
    drop(cluster);
    match ha::missing() {
        Some(why) => timeline.note(&format!("the second story, the failure of a host, is skipped: {why}")),
        None => ha::tell(timeline, &program).await?,
    }
    Ok("Everything was stopped; `ringfence demo --keep` keeps the first story running.".to_owned())
}

/// Kills the target and waits for its redeploy.
async fn outage(cluster: &Cluster, timeline: &mut Timeline, which: &str) -> Result<()> {
    let after = cluster.events(0).await?.last().map_or(0, |record| record.seq);
    let old = cluster.target(HOST);
    let old = old.ok_or_else(|| ErrorCode::new(Code::NOT_FOUND, "the target does not run though it is Connected"))?;
    old.kill(STEP_TIMEOUT).await?;
    let killed = Instant::now();
    let counted = cluster.counter()?;
    timeline.note(&format!("{which} outage: kill -9 {} (the storage target); the guest counted to {counted}", old.pid));
    timeline
        .step("the outage to be noticed", status(cluster, after, ProtocolStatus::Disconnected), |change| {
            format!("noticed: {}", change.reason.as_deref().unwrap_or("no reason given"))
        })
        .await?;
    let redeployed = async {
        let redeploy = redeploy_of(cluster, after).await?;
        match (redeploy.attempt, redeploy.skipped_pings) {
            (1, 0) => Ok(redeploy),
            (attempt, skipped) => {
                let details = format!("attempt {attempt} after {skipped} skipped pings: expected the first, at once");
                Err(ErrorCode::new(Code::OPERATION, details))
            }
        }
    };
    timeline
        .step("the redeploy", redeployed, |redeploy| {
            let steps: Vec<_> = redeploy.steps.iter().map(|step| step.name.clone()).collect();
            format!("redeployed at once, without skipping a ping{}", list(&steps))
        })
        .await?;
    timeline
        .step("the protocol to be Connected", status(cluster, after, ProtocolStatus::Connected), |_| {
            "Connected again".to_owned()
        })
        .await?;
    timeline
        .step("the guest to write again", writes(cluster, counted), |count| {
            let took = killed.elapsed().as_secs_f64();
            format!("the guest writes again and counts on, to {count}; {took:.1} s after the kill")
        })
        .await?;
    Ok(())
}

async fn writes(cluster: &Cluster, beyond: u32) -> Result<u32> {
    let what = format!("the guest counts beyond {}", beyond + WRITES);
    cluster
        .until(&what, STEP_TIMEOUT, async || {
            let count = cluster.counter()?;
            Ok((count >= beyond + WRITES).then_some(count))
        })
        .await
}

async fn redeploy_of(cluster: &Cluster, after: u64) -> Result<ProtocolRedeploy> {
    let done = |event: &ProtocolRedeploy| event.host == HOST && event.phase == RedeployPhase::Done;
    heard(cluster, "the redeploy is done", after, done).await
}

async fn status(cluster: &Cluster, after: u64, status: ProtocolStatus) -> Result<ProtocolStatusChanged> {
    let is = |event: &ProtocolStatusChanged| event.host == HOST && event.new_status == status;
    heard(cluster, &format!("the protocol is {status}"), after, is).await
}

/// Waits for an event of one type in the journal.
async fn heard<E: ringfence_messages::Event + DeserializeOwned>(
    cluster: &Cluster,
    what: &str,
    after: u64,
    is: impl Fn(&E) -> bool,
) -> Result<E> {
    let read = |record: &Record| -> Option<E> {
        if record.topic != E::TOPIC {
            return None;
        }
        serde_json::from_value(record.payload.clone()).ok()
    };
    let record =
        cluster.event(what, after, STEP_TIMEOUT, |record| read(record).is_some_and(|event| is(&event))).await?;
    read(&record).ok_or_else(|| ErrorCode::new(Code::INTERNAL, "the record changed between two looks"))
}

fn list(items: &[String]) -> String {
    if items.is_empty() { String::new() } else { format!(" ({})", items.join(", ")) }
}
