//! The journal is restored from a backup, with real processes: the controller notices, does nothing, and goes on when
//! it is told to.
#![allow(missing_docs)]

use std::{
    fs,
    path::Path,
    process::{Child, Command, Output, Stdio},
    time::Duration,
};

use ringfence_cli::demo::cluster::{Cluster, Plan};
use ringfence_messages::{
    Event,
    journal::{ControllerBehind, ControllerRestored},
};
use serde_json::Value;

const WITHIN: Duration = Duration::from_secs(60);

/// `--restored` waits 30 s for orders on their way.
const RESTORED_WITHIN: Duration = Duration::from_secs(90);

fn program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_ringfence"))
}

fn run(cluster: &Cluster, arguments: &[&str]) -> Output {
    Command::new(program()).args(arguments).env("RINGFENCE_SERVER", cluster.server()).output().unwrap()
}

/// The journal's files, from one folder to another.
fn copy(from: &Path, to: &Path) {
    for name in ["journal.db", "journal.db-wal", "journal.db-shm"] {
        let _ = fs::remove_file(to.join(name));
        if from.join(name).exists() {
            fs::copy(from.join(name), to.join(name)).unwrap();
        }
    }
}

/// Ends with the test.
struct Own(Child);

impl Drop for Own {
    fn drop(&mut self) {
        let _ = self.0.kill().and_then(|()| self.0.wait());
    }
}

#[tokio::test]
async fn a_restored_journal_is_noticed_and_nothing_is_done_until_somebody_says_so() {
    let mut cluster = Cluster::start(program(), Plan::default()).await.unwrap();
    cluster.connected(WITHIN).await.unwrap();
    let (state, backup) = (cluster.path().join("state"), cluster.path().join("backup"));
    fs::create_dir(&backup).unwrap();
    cluster.kill("controller").unwrap();
    copy(&state, &backup);

    cluster.restart("controller").await.unwrap();
    cluster.connected(WITHIN).await.unwrap();
    let started = run(&cluster, &["vm", "start", "vm1"]);
    assert!(started.status.success(), "{}", String::from_utf8_lossy(&started.stderr));
    // A ping after the start, so that both hosts have heard of it.
    let newest = cluster.events(0).await.unwrap().last().unwrap().seq;
    let heard = async || {
        let seq = |host: &str| -> Option<u64> {
            let text = fs::read(cluster.path().join(host).join("witness.json")).ok()?;
            serde_json::from_slice::<Value>(&text).ok()?["seq"].as_u64()
        };
        Ok(["host-a", "host-b"].iter().any(|host| seq(host) >= Some(newest - 3)).then_some(()))
    };
    cluster.until("a host's witness is on its disk", WITHIN, heard).await.unwrap();
    assert_eq!(cluster.qemus("host-a").len() + cluster.qemus("host-b").len(), 1);

    cluster.kill("controller").unwrap();
    copy(&backup, &state);
    cluster.restart("controller").await.unwrap();
    let noticed = async || {
        let events = cluster.events(0).await?;
        Ok(events.into_iter().find(|record| record.topic == ControllerBehind::TOPIC))
    };
    let behind = cluster.until("the controller notices", WITHIN, noticed).await.unwrap();
    assert!(behind.event::<ControllerBehind>().unwrap().head.seq < newest);
    let health = cluster.client().get::<Value>("/healthz").await.unwrap_err();
    assert!(health.details.contains("serve --restored"), "{health}");
    let shown = run(&cluster, &["status"]);
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    assert!(shown.starts_with("NOT HEALTHY: ") && shown.lines().next().unwrap().contains("behind"), "{shown}");
    for order in [&["vm", "start", "vm1"][..], &["vm", "stop", "vm1"], &["host", "maintain", "host-b"]] {
        let refused = run(&cluster, order);
        assert_eq!(refused.status.code(), Some(1), "{order:?}");
        let why = String::from_utf8_lossy(&refused.stderr).into_owned();
        // A start is refused before that: hosts do not answer a controller of a former epoch.
        let silent = order[1] == "start"
            && ["has not listed its processes", "cannot be queried", "already runs"]
                .iter()
                .any(|says| why.contains(says));
        assert!(silent || why.contains("the journal is behind"), "{order:?}: {why}");
    }
    assert_eq!(cluster.qemus("host-a").len() + cluster.qemus("host-b").len(), 1, "what runs goes on");

    cluster.kill("controller").unwrap();
    let log = fs::File::create(cluster.path().join("restored.log")).unwrap();
    let config = cluster.path().join("controller.toml");
    let mut serve = Command::new(program());
    serve.args(["serve", "--restored", "--config"]).arg(config).stdin(Stdio::null());
    let own = Own(serve.stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap());
    let acts = async || Ok(cluster.client().get::<Value>("/healthz").await.ok());
    cluster.until("the restored controller is well", RESTORED_WITHIN, acts).await.unwrap();
    let events = cluster.events(0).await.unwrap();
    let restored = events.iter().find(|record| record.topic == ControllerRestored::TOPIC).unwrap();
    let restored: ControllerRestored = restored.event().unwrap();
    assert!(restored.witness.unwrap().seq >= newest - 3 && restored.heard == 2, "{events:?}");
    drop(own);

    // From now on as ever: hosts have adopted it.
    cluster.restart("controller").await.unwrap();
    cluster.connected(WITHIN).await.unwrap();
    let found = async || {
        let vms: Vec<Value> = cluster.client().items("/v1/vms").await?;
        Ok((vms[0]["state"] == "Running").then_some(()))
    };
    cluster.until("vm1 is found where it runs", WITHIN, found).await.unwrap();
    let stopped = run(&cluster, &["vm", "stop", "vm1"]);
    assert!(stopped.status.success(), "{}", String::from_utf8_lossy(&stopped.stderr));
    assert_eq!(cluster.qemus("host-a").len() + cluster.qemus("host-b").len(), 0);
}
