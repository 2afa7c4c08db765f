//! The inventory changes under a controller that runs: by the API, from the command line, and by reading the config
//! again.
#![allow(missing_docs)]

use std::{
    path::Path,
    process::{Command, Output},
    time::Duration,
};

use ringfence_cli::demo::cluster::{Cluster, Plan};
use serde_json::Value;

const WITHIN: Duration = Duration::from_secs(60);

fn program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_ringfence"))
}

fn run(cluster: &Cluster, arguments: &[&str]) -> Output {
    Command::new(program()).args(arguments).env("RINGFENCE_SERVER", cluster.server()).output().unwrap()
}

fn says(cluster: &Cluster, arguments: &[&str]) -> String {
    let output = run(cluster, arguments);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn refuses(cluster: &Cluster, arguments: &[&str]) -> String {
    let output = run(cluster, arguments);
    assert_eq!(output.status.code(), Some(1), "{arguments:?}: {}", String::from_utf8_lossy(&output.stdout));
    String::from_utf8(output.stderr).unwrap()
}

async fn state(cluster: &Cluster, vm: &str) -> Option<String> {
    let vms: Vec<Value> = cluster.client().items("/v1/vms").await.unwrap();
    vms.iter().find(|of| of["name"] == vm).map(|of| of["state"].as_str().unwrap().to_owned())
}

/// With a uuid of its own: agents see every QEMU of this machine, also those of another test's `vm2`.
fn vm2() -> String {
    format!("[[vm]]\nname = \"vm2\"\nuuid = \"{}\"\n{VM2}", uuid::Uuid::new_v4())
}

const VM2: &str = r#"
cluster = "c1"
memory_mib = 16
[[vm.volume]]
storage = "vhost-1"
install_path = "vhost://vm2"
root = true
"#;

#[tokio::test]
async fn a_vm_comes_survives_the_controllers_death_and_goes_only_when_it_is_stopped() {
    let mut cluster = Cluster::start(program(), Plan::default()).await.unwrap();
    cluster.connected(WITHIN).await.unwrap();
    let file = cluster.path().join("vm2.toml");
    std::fs::write(&file, vm2()).unwrap();
    let disk = std::fs::File::create(cluster.path().join("volumes/vm2.raw")).unwrap();
    disk.set_len(1 << 20).unwrap();
    let file = file.to_str().unwrap();

    assert_eq!(says(&cluster, &["inventory", "apply", file]), "+ VM vm2\nnothing applied yet: add --yes\n");
    assert_eq!(state(&cluster, "vm2").await, None);
    assert_eq!(says(&cluster, &["inventory", "apply", file, "--yes"]), "+ VM vm2\napplied\n");
    assert_eq!(says(&cluster, &["inventory", "apply", file, "--yes"]), "no changes\n");
    says(&cluster, &["vm", "start", "vm2"]);

    cluster.kill("controller").unwrap();
    cluster.restart("controller").await.unwrap();
    let again = async || Ok(state(&cluster, "vm2").await.filter(|state| state == "Running"));
    cluster.until("vm2 is found running", WITHIN, again).await.unwrap();

    let refused = refuses(&cluster, &["inventory", "remove", "vm", "vm2", "--yes"]);
    assert!(refused.contains("VM vm2 is Running; run `ringfence vm stop vm2` first"), "{refused}");
    assert_eq!(state(&cluster, "vm2").await.as_deref(), Some("Running"));
    says(&cluster, &["vm", "stop", "vm2"]);
    assert_eq!(says(&cluster, &["inventory", "remove", "vm", "vm2", "--yes"]), "- VM vm2\napplied\n");
    assert_eq!(state(&cluster, "vm2").await, None);
    assert_eq!(cluster.qemus("host-a").len() + cluster.qemus("host-b").len(), 0);
    let told: Vec<Value> = cluster.events(0).await.unwrap().iter().map(|record| record.payload.clone()).collect();
    let told: Vec<&Value> =
        told.iter().filter(|payload| payload["changes"].is_array()).map(|of| &of["changes"][0]).collect();
    assert_eq!(told, ["+ VM vm2", "- VM vm2"]);
}

#[tokio::test]
async fn the_config_is_read_again_as_a_whole_or_not_at_all() {
    let cluster = Cluster::start(program(), Plan::default()).await.unwrap();
    cluster.connected(WITHIN).await.unwrap();
    let config = cluster.path().join("controller.toml");
    let before = std::fs::read_to_string(&config).unwrap();
    let host = |cluster: &str| {
        format!(
            "{before}\n[[host]]\nname = \"host-z\"\ncluster = \"{cluster}\"\nmanagement_ip = \"127.0.0.9\"\n\
             agent = \"http://127.0.0.9:1\"\n"
        )
    };
    std::fs::write(&config, host("c9")).unwrap();
    let refused = refuses(&cluster, &["inventory", "reload", "--yes"]);
    assert!(refused.contains("cluster = \"c9\": there is no cluster named \"c9\""), "{refused}");

    std::fs::write(&config, host("c1").replace("interval = \"", "interval = \"1")).unwrap();
    let shown = says(&cluster, &["inventory", "reload", "--yes"]);
    let lines: Vec<&str> = shown.lines().collect();
    assert_eq!((lines[0], lines[lines.len() - 1]), ("+ host host-z", "applied"), "{shown}");
    assert!(lines.contains(&"! [ping] takes effect after the controller restarts"), "{shown}");
    let noticed = async || {
        let hosts: Vec<Value> = cluster.client().items("/v1/hosts").await?;
        let status = |name: &str| hosts.iter().find(|host| host["name"] == name).map(|host| host["status"].clone());
        Ok((status("host-z") == Some("Disconnected".into())).then(|| status("host-a")))
    };
    let other = cluster.until("nobody answers for host-z", WITHIN, noticed).await.unwrap();
    assert_eq!(other, Some("Connected".into()), "those that were there notice nothing");
    let defined = says(&cluster, &["inventory", "show"]);
    assert!(defined.lines().any(|line| line.contains("host-z") && line.contains("the config")), "{defined}");
    let refused = refuses(&cluster, &["inventory", "remove", "host", "host-z"]);
    assert!(refused.contains("change it there, then reload"), "{refused}");
}
