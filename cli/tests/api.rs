//! The controller's HTTP API and the command line on it, on a real cluster; and that no secret comes out anywhere.
#![allow(missing_docs)]

use std::{
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Command, Output},
    time::Duration,
};

use eventsource_stream::Eventsource;
use futures_util::StreamExt;
use ringfence_actors::ports::Record;
use ringfence_cli::demo::cluster::{Cluster, Plan};
use serde_json::{Value, json};

const TOKEN: &str = "token-0123456789-secret";
const PASSWORD: &str = "password-0123456789-secret";
const WITHIN: Duration = Duration::from_secs(60);

fn program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_ringfence"))
}

/// Two hosts with tokens and SSH passwords, and a ZBS storage whose MDS nobody runs.
async fn start(dir: &Path) -> Cluster {
    let file = |name: &str, content: &str| {
        let path = dir.join(name);
        std::fs::write(&path, content).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
        path.display().to_string()
    };
    let (token, password) = (file("token", TOKEN), file("password", PASSWORD));
    let plan = Plan {
        controller: format!("agent_token_file = {token:?}\n"),
        host: format!("ssh_password_file = {password:?}\n"),
        agent: format!("[auth]\ntoken_file = {token:?}\n"),
        tables: "[[storage]]\nname = \"zbs-1\"\nkind = \"zbs\"\nclusters = [\"c1\"]\nprotocols = [\"Vhost\"]\n\
                 mds = [\"http://127.0.0.1:1\"]\n"
            .to_owned(),
        ..Plan::default()
    };
    let cluster = Cluster::start(program(), plan).await.unwrap();
    let vhost_is_up = async || {
        let storages: Vec<Value> = cluster.client().items("/v1/storages").await?;
        let hosts = &storages.iter().find(|storage| storage["name"] == "vhost-1").unwrap()["hosts"];
        Ok(hosts.as_array().unwrap().iter().all(|host| host["status"] == "Connected").then_some(()))
    };
    cluster.until("the vhost storage is Connected", WITHIN, vhost_is_up).await.unwrap();
    cluster
}

struct Http<'a>(&'a Cluster, reqwest::Client);

impl Http<'_> {
    async fn get(&self, path: &str) -> (u16, String) {
        let response = self.1.get(format!("{}{path}", self.0.server())).send().await.unwrap();
        (response.status().as_u16(), response.text().await.unwrap())
    }

    async fn post(&self, path: &str, body: impl Into<reqwest::Body>) -> (u16, String) {
        let response = self.1.post(format!("{}{path}", self.0.server())).body(body).send().await.unwrap();
        (response.status().as_u16(), response.text().await.unwrap())
    }
}

fn run(cluster: &Cluster, arguments: &[&str]) -> Output {
    Command::new(program()).args(arguments).env("RINGFENCE_SERVER", cluster.server()).output().unwrap()
}

#[tokio::test]
async fn the_api_and_the_command_line_say_what_is_and_never_a_secret() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = start(dir.path()).await;
    let http = Http(&cluster, ringfence_drivers::tls::plain_client().unwrap().build().unwrap());
    let mut said = String::new();

    for path in [
        "/",
        "/healthz",
        "/metrics",
        "/v1/hosts",
        "/v1/hosts/host-a",
        "/v1/storages",
        "/v1/vms",
        "/v1/vms/vm1",
        "/v1/host-protocol-refs",
        "/v1/events?limit=1000",
        "/v1/inspect",
    ] {
        let (status, body) = http.get(path).await;
        assert_eq!(status, 200, "{path}: {body}");
        said.push_str(&body);
    }
    let (_, metrics) = http.get("/metrics").await;
    for name in ["ringfence_bus_messages_handled_total", "ringfence_redeploys_total", "ringfence_journal_backlog"] {
        assert!(metrics.contains(name), "{name} is not among the metrics");
    }

    // Every refusal is {"error": ErrorCode} with a fitting status and words that help.
    let big = "x".repeat(1 << 20);
    for (method, path, body, status, code, says) in [
        ("GET", "/v1/nothing", "", 404, "SYS.1003", "GET / lists the paths"),
        ("GET", "/v1/vms/vm2", "", 404, "SYS.1003", "\\\"vm2\\\""),
        ("GET", "/v1/hosts/..%2f..%2fetc", "", 404, "SYS.1003", "there is no host"),
        ("GET", "/v1/events?after=x", "", 400, "SYS.1007", "whole numbers"),
        ("GET", "/v1/events?limit=0", "", 400, "SYS.1007", "out of range (1 to 1000)"),
        ("GET", "/v1/events?offset=3", "", 400, "SYS.1007", "unknown field"),
        ("POST", "/v1/hosts", "{}", 405, "SYS.1007", "does not accept POST"),
        ("POST", "/v1/vms/vm1/actions", "", 400, "SYS.1007", "not a valid action"),
        ("POST", "/v1/vms/vm1/actions", r#"{"reboot":{}}"#, 400, "SYS.1007", "unknown action"),
        ("POST", "/v1/vms/vm1/actions", r#"{"start":{"hots":"host-a"}}"#, 400, "SYS.1007", "unknown parameter"),
        ("POST", "/v1/vms/vm1/actions", r#"{"start":{"host":"host-z"}}"#, 404, "SYS.1003", "host-z"),
        ("POST", "/v1/vms/vm1/actions", big.as_str(), 413, "SYS.1007", "more than 65536 bytes"),
    ] {
        let (got, answer) = match method {
            "GET" => http.get(path).await,
            _ => http.post(path, body.to_owned()).await,
        };
        let error: Value = serde_json::from_str(&answer).unwrap_or_else(|e| panic!("{method} {path}: {e}: {answer}"));
        assert_eq!((got, &error["error"]["code"]), (status, &json!(code)), "{method} {path}: {answer}");
        assert!(answer.contains(says), "{method} {path} does not say {says:?}: {answer}");
        said.push_str(&answer);
    }

    // The command line: a table for people, the API's JSON for scripts, errors with exit code 1.
    for (arguments, lines) in [
        (&["hosts"][..], vec!["HOST", "host-a", "host-b", "Connected"]),
        (&["storages"], vec!["STORAGE", "vhost-1", "zbs-1", "2/2", "0/2"]),
        (&["vms"], vec!["VM", "vm1", "Stopped"]),
        (&["refs"], vec!["PROTOCOL", "Vhost", "Disconnected"]),
        (&["status"], vec!["HOST", "STORAGE", "VM"]),
        (&["events"], vec!["controller.started", "storage.protocol-redeploy", "attempt=1"]),
        (&["inspect"], vec!["recovery", "audit", "host", "storage", "vm"]),
        (&["host", "maintain", "host-b"], vec!["host-b is Maintenance"]),
        (&["host", "drain", "host-b", "--dry-run"], vec!["host-b: dry run, nothing is changed"]),
        (&["host", "drain", "host-b"], vec!["host-b is in Maintenance, drain in progress"]),
        (&["explain", "host-b"], vec!["in maintenance", "HA: drain"]),
        (&["host", "activate", "host-b"], vec!["host-b is Enabled"]),
        (&["host", "ping", "host-a"], vec!["host-a is Enabled, Connected"]),
    ] {
        let output = run(&cluster, arguments);
        let text = String::from_utf8(output.stdout).unwrap();
        let errors = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(0), "{arguments:?}: {errors}");
        for line in lines {
            assert!(text.contains(line), "{arguments:?} does not say {line:?}: {text}");
        }
        assert!(!text.contains('\x1b'), "{arguments:?}: colours where no terminal is");
        let json = run(&cluster, &[arguments, &["--json"]].concat());
        let value: Value = serde_json::from_slice(&json.stdout).unwrap_or_else(|e| panic!("{arguments:?} --json: {e}"));
        assert!(value.is_array() || value.is_object());
        said.push_str(&format!("{text}{errors}{value}"));
    }
    for (arguments, says) in [
        (&["vm", "start", "vm9"][..], "there is no VM"),
        (&["vm", "start", "vm1", "--host", "host-9"], "there is no host"),
        (&["hosts", "--server", "http://127.0.0.1:1"], "start one with `ringfence serve`"),
    ] {
        let output = run(&cluster, arguments);
        let errors = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {errors}");
        assert!(errors.starts_with("error: ") && errors.contains(says) && output.stdout.is_empty(), "{errors}");
        said.push_str(&errors);
    }
    assert_eq!(run(&cluster, &["vm", "begin"]).status.code(), Some(2), "usage");

    // Everything that was ever written down.
    for entry in
        std::fs::read_dir(cluster.path()).unwrap().chain(std::fs::read_dir(cluster.path().join("state")).unwrap())
    {
        let path = entry.unwrap().path();
        if path.is_file() {
            said.push_str(&String::from_utf8_lossy(&std::fs::read(&path).unwrap()));
        }
    }
    assert!(
        said.contains("storage.protocol-redeploy") && said.contains("the agent serves"),
        "journal and logs were read"
    );
    assert!(
        said.contains("cannot reach http://127.0.0.1:1"),
        "the call that carries the password was made, and failed"
    );
    for secret in [TOKEN, PASSWORD] {
        assert!(!said.contains(secret), "{secret} came out");
        // Command lines are for everybody to read.
        let in_argv = |p: &ringfence_drivers::node::proc::Process| p.argv.iter().any(|arg| arg.contains(secret));
        assert!(ringfence_drivers::node::proc::Process::scan(in_argv).unwrap().is_empty(), "in a command line");
    }
}

/// A reader that is cut off again and again, while events are made, misses none and sees none twice.
#[tokio::test]
async fn the_stream_tells_each_event_once_in_order_over_reconnects() {
    const CHANGES: usize = 30;
    let cluster =
        Cluster::start(program(), Plan { hosts: vec!["host-a".to_owned()], ..Plan::default() }).await.unwrap();
    cluster.connected(WITHIN).await.unwrap();
    let http = Http(&cluster, ringfence_drivers::tls::plain_client().unwrap().build().unwrap());
    let changing = async {
        for n in 0..CHANGES {
            let action = if n % 2 == 0 { r#"{"maintain":{}}"# } else { r#"{"activate":{}}"# };
            let (status, body) = http.post("/v1/hosts/host-a/actions", action).await;
            assert_eq!(status, 200, "{body}");
        }
        cluster.events(0).await.unwrap().last().unwrap().seq
    };
    let reading = async {
        let (mut told, mut last): (Vec<Record>, u64) = (Vec::new(), 0);
        loop {
            let url = format!("{}/v1/events/stream", cluster.server());
            let response = http.1.get(url).header("last-event-id", last.to_string()).send().await.unwrap();
            let mut events = response.bytes_stream().eventsource();
            // Cut off after a few.
            for _ in 0..7 {
                let Ok(Some(event)) = tokio::time::timeout(Duration::from_secs(3), events.next()).await else {
                    return told;
                };
                let event = event.unwrap();
                let record: Record = serde_json::from_str(&event.data).unwrap();
                assert_eq!((event.id.as_str(), &event.event), (record.seq.to_string().as_str(), &record.topic));
                last = record.seq;
                told.push(record);
            }
        }
    };
    let (seq, told) = tokio::join!(changing, reading);
    assert!(told.len() >= seq as usize, "{} of {seq} were told", told.len());
    assert_eq!(told, cluster.events(0).await.unwrap()[..told.len()], "each once, in order");
}
