//! The agent over its real HTTP: what hostile, broken and slow clients cannot do to it, and what it remembers.
#![allow(missing_docs)]

mod common;

use std::{
    io::Write,
    net::SocketAddr,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Output},
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use ringfence_agent::config::AgentSettings;
use ringfence_drivers::node::{proc::Process, target::Runner};
use ringfence_messages::{HostId, StorageId, VmId};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::oneshot,
    task::JoinHandle,
};
use uuid::Uuid;

const TOKEN: &str = "0123456789abcdef-secret";

struct Agent {
    address: SocketAddr,
    end: Option<oneshot::Sender<()>>,
    running: Option<JoinHandle<()>>,
    http: reqwest::Client,
    state: PathBuf,
}

fn settings(state: &Path) -> AgentSettings {
    common::agent::settings("host-a", state)
}

impl Agent {
    async fn start(settings: AgentSettings) -> Agent {
        let (ready, address) = oneshot::channel();
        let (end, ended) = oneshot::channel::<()>();
        let state = settings.state_dir.clone();
        let running = tokio::spawn(async move {
            let ended = async { ended.await.unwrap_or(()) };
            ringfence_agent::run(settings, |address| ready.send(address).unwrap(), ended).await.unwrap();
        });
        let address = address.await.expect("it serves");
        // The agent closes idle connections; what is on its way on one just then is lost.
        let http = ringfence_drivers::tls::plain_client().unwrap().pool_max_idle_per_host(0).build().unwrap();
        Agent { address, end: Some(end), running: Some(running), http, state }
    }

    async fn stop(mut self) {
        drop(self.end.take());
        self.running.take().unwrap().await.unwrap();
    }

    fn request(&self, path: &str) -> reqwest::RequestBuilder {
        self.http.post(format!("http://{}{path}", self.address))
    }

    async fn post(&self, path: &str, body: Value) -> Value {
        answer(self.request(path).json(&body)).await.1
    }

    /// A ping, which must be answered at once whatever else goes on.
    async fn ping(&self) {
        let began = Instant::now();
        let reply = self.post("/host/ping", json!({ "hostUuid": HostId::from_name("host-a") })).await;
        assert_eq!(reply["success"], true, "{reply}");
        assert!(began.elapsed() < Duration::from_secs(2), "a ping took {:?}", began.elapsed());
    }
}

impl Drop for Agent {
    /// QEMU and targets outlive their agent by design; not this one's.
    fn drop(&mut self) {
        let dir = self.state.canonicalize().unwrap_or_default().display().to_string();
        let ours = |p: &Process| p.program().starts_with("qemu-") && p.argv.iter().any(|arg| arg.contains(&dir));
        for process in Process::scan(ours).unwrap_or_default() {
            let pid = rustix::process::Pid::from_raw(process.pid as i32).unwrap();
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    }
}

async fn answer(request: reqwest::RequestBuilder) -> (u16, Value) {
    let response = request.send().await.unwrap();
    let status = response.status().as_u16();
    (status, response.json().await.unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn junk_is_answered_in_the_protocols_own_shape() {
    let dir = tempfile::tempdir().unwrap();
    let agent = Agent::start(settings(dir.path())).await;
    let big = "x".repeat(10 << 20);
    let deep = "[".repeat(100_000);
    let request = |path| agent.request(path);
    for (what, request, status, code) in [
        ("an unknown path", request("/etc/passwd"), 404, "SYS.1003"),
        ("a path that leaves", request("/host/../../etc"), 404, "SYS.1003"),
        ("another method", agent.http.get(format!("http://{}/host/ping", agent.address)), 405, "SYS.1007"),
        ("no body", request("/host/ping"), 400, "SYS.1007"),
        ("no JSON", request("/vm/start").body("rm -rf /"), 400, "SYS.1007"),
        ("another shape", request("/vm/stop").body(r#"{"vmUuid": 7}"#), 400, "SYS.1007"),
        ("deep nesting", request("/vm/start").body(deep), 400, "SYS.1007"),
        ("10 MB", request("/vm/start").body(big), 413, "SYS.1007"),
        ("a task that is none", request("/host/ping").header("taskuuid", "x").body("{}"), 400, "SYS.1007"),
        ("a deadline that is none", request("/host/ping").header("deadline-ms", "soon").body("{}"), 400, "SYS.1007"),
        (
            "a header that is no text",
            request("/host/ping").header("taskuuid", &b"\xff\xfe"[..]).body("{}"),
            400,
            "SYS.1007",
        ),
    ] {
        let (got, body) = answer(request).await;
        assert_eq!(
            (got, &body["success"], &body["error"]["code"]),
            (status, &json!(false), &json!(code)),
            "{what}: {body}"
        );
        agent.ping().await;
    }
    // Not even HTTP.
    for bytes in [&b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc"[..], b"GET / HTTP/9\r\n\r\n", &[b'A'; 100_000]] {
        let mut stream = TcpStream::connect(agent.address).await.unwrap();
        let _ = stream.write_all(bytes).await;
        let mut said = Vec::new();
        let read = tokio::time::timeout(Duration::from_secs(20), stream.read_to_end(&mut said)).await;
        assert!(read.is_ok(), "the connection of {:?} is still open", &bytes[..8]);
        agent.ping().await;
    }
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_who_shows_the_token_is_heard() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("token");
    std::fs::write(&file, format!("{TOKEN}\n")).unwrap();
    std::fs::set_permissions(&file, PermissionsExt::from_mode(0o600)).unwrap();
    let agent = Agent::start(AgentSettings { token_file: Some(file), ..settings(&dir.path().join("state")) }).await;
    let body = json!({ "hostUuid": HostId::from_name("host-a") });
    for (shown, status) in [
        (None, 401),
        (Some("Bearer wrong-wrong-wrong-wrong"), 401),
        (Some("Bearer "), 401),
        (Some(TOKEN), 401),
        (Some(&format!("Bearer {TOKEN}x")), 401),
        (Some(&format!("Bearer {TOKEN}")), 200),
    ] {
        let mut request = agent.request("/host/ping").json(&body);
        if let Some(shown) = shown {
            request = request.header("authorization", shown);
        }
        let (got, said) = answer(request).await;
        assert_eq!(got, status, "{shown:?}: {said}");
        assert!(!said.to_string().contains(TOKEN));
    }
    // A page that a browser shows, from wherever, has nothing to order, whatever it shows.
    for (name, value) in [("origin", "http://127.0.0.1"), ("sec-fetch-site", "none")] {
        let shown = agent.request("/host/ping").json(&body).header("authorization", format!("Bearer {TOKEN}"));
        assert_eq!(answer(shown.header(name, value)).await.0, 403, "{name}");
    }
    // Who has no token does not learn which paths there are.
    assert_eq!(answer(agent.request("/no/such/path").json(&body)).await.0, 401);
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_and_idle_clients_hold_nobody_up_and_are_cut_off() {
    let dir = tempfile::tempdir().unwrap();
    let agent = Agent::start(settings(dir.path())).await;
    let connect = || async { TcpStream::connect(agent.address).await.unwrap() };
    let mut idle = join_all((0..900).map(|_| connect())).await;
    agent.ping().await;
    // A header that never ends, and a body that never comes.
    let mut header = connect().await;
    header.write_all(b"POST /host/ping HTTP/1.1\r\nhost: x\r\nx-slow: ").await.unwrap();
    let mut body = connect().await;
    body.write_all(b"POST /host/ping HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{").await.unwrap();
    agent.ping().await;
    let mut said = String::new();
    let cut = tokio::time::timeout(Duration::from_secs(30), body.read_to_string(&mut said));
    cut.await.expect("a body that does not come is given up").unwrap();
    assert!(said.starts_with("HTTP/1.1 408"), "{said}");
    let cut = tokio::time::timeout(Duration::from_secs(30), header.read_to_end(&mut Vec::new())).await;
    assert!(cut.is_ok(), "a header that does not end is given up");
    let cut = tokio::time::timeout(Duration::from_secs(30), idle[0].read_to_end(&mut Vec::new())).await;
    assert!(cut.is_ok(), "an idle connection is closed");
    agent.ping().await;
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_is_done_once_a_deadline_ends_it_and_pings_are_answered_meanwhile() {
    let dir = tempfile::tempdir().unwrap();
    let deploy = json!({ "primaryStorageUuid": StorageId::from_name("s"), "storage": "s", "volumeDir": null });
    let agent = Agent::start(settings(&dir.path().join("real"))).await;
    let task = Uuid::new_v4().simple().to_string();
    let request = |task: &str| agent.request("/zbs/primarystorage/vhost/deploy").header("taskuuid", task).json(&deploy);
    // Two at once and one afterwards: one deploy, one answer.
    let ((_, first), (_, second)) = tokio::join!(answer(request(&task)), answer(request(&task)));
    let (_, third) = answer(request(&task)).await;
    assert_eq!((&first["started"], &first), (&json!(true), &second));
    assert_eq!(first, third);
    let (_, anew) = answer(request(&Uuid::new_v4().to_string())).await;
    assert_eq!((&anew["started"], &anew["pid"]), (&json!(false), &first["pid"]), "a healthy target is left alone");
    agent.stop().await;

    // A target that takes for ever to start.
    let slow = dir.path().join("slow");
    let seconds = (100_000 + std::process::id()).to_string(); // tells it from any other `sleep`
    std::fs::write(&slow, format!("#!/bin/sh\nexec sleep {seconds}\n")).unwrap();
    std::fs::set_permissions(&slow, PermissionsExt::from_mode(0o755)).unwrap();
    let target = Runner::Process(slow.display().to_string());
    let agent = Agent::start(AgentSettings { target, ..settings(&dir.path().join("slow-state")) }).await;
    let began = Instant::now();
    let request = agent.request("/zbs/primarystorage/vhost/deploy").header("deadline-ms", "700").json(&deploy);
    let deploying = tokio::spawn(answer(request));
    tokio::time::sleep(Duration::from_millis(100)).await;
    agent.ping().await;
    let (_, said) = deploying.await.unwrap();
    assert_eq!(said["error"]["code"], "SYS.1001", "{said}");
    assert!(began.elapsed() < Duration::from_secs(10), "given up only after {:?}", began.elapsed());
    let deadline = Instant::now() + Duration::from_secs(10);
    let left = || Process::scan(|p| p.argv == ["sleep", &seconds] && p.is_alive()).unwrap();
    while !left().is_empty() {
        assert!(Instant::now() < deadline, "what was given up runs on: {:?}", left());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    agent.stop().await;
}

/// I1 on the host's side: what was ordered is durable before QEMU starts, and no older order is carried out.
#[tokio::test(flavor = "multi_thread")]
async fn a_stale_start_is_refused_also_after_a_restart_of_the_agent() {
    let dir = tempfile::tempdir().unwrap();
    let disk = dir.path().join("disk.raw");
    ringfence_cli::demo::guest::make_disk(&disk).unwrap();
    // Of its own: an agent sees every QEMU of the machine, and labs may be up beside this.
    let vm = VmId::from_name("vm-of-a-stale-start");
    let order = |incarnation: u64, epoch: u64| {
        json!({ "vmUuid": vm, "name": "vm1", "incarnation": incarnation, "epoch": epoch, "memoryMib": 16,
            "qemuArgs": [],
                "disks": [{ "source": { "file": { "path": disk } }, "root": true }] })
    };
    let refused = |answer: &Value, says: &str| {
        assert_eq!(answer["error"]["code"], "SYS.1005", "{answer}");
        assert!(answer["error"]["details"].as_str().unwrap().contains(says), "{answer}");
    };
    let agent = Agent::start(settings(&dir.path().join("state"))).await;
    let started = agent.post("/vm/start", order(2, 5)).await;
    assert_eq!(started["success"], true, "{started}");
    refused(&agent.post("/vm/start", order(3, 5)).await, "it runs as process");
    let listed = agent.post("/vm/list", json!({})).await;
    let ours: Vec<_> = listed["vms"].as_array().unwrap().iter().filter(|of| of["vmUuid"] == json!(vm)).collect();
    assert_eq!(ours[0]["incarnation"], 2, "{listed}");
    assert_eq!(agent.post("/vm/stop", json!({ "vmUuid": vm })).await["success"], true);
    let state = agent.state.clone();
    agent.stop().await;

    let agent = Agent::start(settings(&state)).await;
    refused(&agent.post("/vm/start", order(2, 5)).await, "2 is already known");
    refused(&agent.post("/vm/start", order(1, 9)).await, "2 is already known");
    refused(&agent.post("/vm/start", order(3, 4)).await, "epoch 5 is already known");
    assert_eq!(agent.post("/vm/start", order(3, 6)).await["success"], true);
    refused(&agent.post("/vm/start", order(9, 5)).await, "epoch 6 is already known");
    assert_eq!(agent.post("/vm/stop", json!({ "vmUuid": vm })).await["success"], true);
    agent.stop().await;
}

/// K1: an address says only who answers there now.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_for_another_host_is_refused_and_a_task_is_its_command_too() {
    let dir = tempfile::tempdir().unwrap();
    let agent = Agent::start(settings(dir.path())).await;
    let (us, other) = (HostId::from_name("host-a"), HostId::from_name("host-b"));
    let request = |path: &str, host: HostId| agent.request(path).header("host-uuid", host.to_string());
    let refused = request("/vm/list", other).json(&json!({})).send().await.unwrap();
    assert_eq!((refused.status().as_u16(), refused.headers()["host-uuid"].to_str().unwrap()), (421, &*us.to_string()));
    let said: Value = refused.json().await.unwrap();
    let details = said["error"]["details"].as_str().unwrap();
    assert!(details.contains(&us.to_string()) && details.contains(&other.to_string()), "{details}");
    assert_eq!(answer(request("/vm/list", us).json(&json!({}))).await.0, 200);
    assert_eq!(answer(agent.request("/host/ping").header("host-uuid", "x").body("{}")).await.0, 400);

    let task = Uuid::new_v4().to_string();
    let ping = agent.request("/host/ping").header("taskuuid", &task).json(&json!({ "hostUuid": us }));
    assert_eq!(answer(ping).await.1["success"], true);
    let (status, said) = answer(agent.request("/vm/stop").header("taskuuid", &task).json(&json!({}))).await;
    assert_eq!(status, 400, "the answer of a ping was taken for that of a stop: {said}");
    agent.stop().await;
}

/// K8: what starts a VM again that may not run here is ended, and the next order is carried out.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_stopped_for_good_does_not_come_back_until_a_newer_order() {
    let dir = tempfile::tempdir().unwrap();
    let disk = dir.path().join("disk.raw");
    ringfence_cli::demo::guest::make_disk(&disk).unwrap();
    let vm = VmId::from_name(&format!("vm-held {}", std::process::id()));
    let order = |incarnation: u64| {
        json!({ "vmUuid": vm, "name": "vm1", "incarnation": incarnation, "epoch": 1, "memoryMib": 16, "qemuArgs": [],
                "disks": [{ "source": { "file": { "path": disk } }, "root": true }] })
    };
    let program = dir.path().join("qemu-system-respawned");
    std::fs::copy(std::fs::canonicalize("/bin/dash").unwrap(), &program).unwrap();
    let respawn = || {
        let mut command = Command::new(&program);
        command.args(["-c", "read line", "q", "-uuid", &vm.to_string()]);
        command.stdin(std::process::Stdio::piped()).spawn().unwrap()
    };
    let ended = async |mut child: std::process::Child| {
        let deadline = Instant::now() + Duration::from_secs(30);
        while child.try_wait().unwrap().is_none() {
            assert!(Instant::now() < deadline, "what was started again runs on");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let agent = Agent::start(settings(&dir.path().join("state"))).await;
    assert_eq!(agent.post("/vm/start", order(2)).await["success"], true);
    let stop = json!({ "vmUuid": vm, "epoch": 1, "incarnation": 2 });
    assert_eq!(agent.post("/vm/stop", stop).await["success"], true);
    ended(respawn()).await;
    // Kept over a restart of the agent.
    let state = agent.state.clone();
    agent.stop().await;
    let agent = Agent::start(settings(&state)).await;
    ended(respawn()).await;
    let started = agent.post("/vm/start", order(3)).await;
    assert_eq!(started["success"], true, "{started}");
    // A stop that comes late, and one by hand, hold nothing.
    let listed = agent.post("/vm/list", json!({})).await;
    let ours: Vec<_> = listed["vms"].as_array().unwrap().iter().filter(|of| of["vmUuid"] == json!(vm)).collect();
    assert_eq!((ours.len(), &ours[0]["incarnation"]), (1, &json!(3)), "{listed}");
    assert_eq!(agent.post("/vm/stop", json!({ "vmUuid": vm })).await["success"], true);
    agent.stop().await;
}

fn run(command: &str, file: &Path) -> Output {
    Command::new(env!("CARGO_BIN_EXE_ringfence")).args([command, "--config"]).arg(file).output().unwrap()
}

/// One clear line each, and nothing is served.
#[test]
fn what_keeps_it_from_starting_is_said_in_one_line() {
    let dir = tempfile::tempdir().unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap();
    let file = dir.path().join("a-file");
    std::fs::File::create(&file).unwrap().write_all(b"x").unwrap();
    let open_token = dir.path().join("open-token");
    std::fs::write(&open_token, TOKEN).unwrap();
    std::fs::set_permissions(&open_token, PermissionsExt::from_mode(0o644)).unwrap();
    let held = dir.path().join("held");
    let _held = ringfence_drivers::state_dir::StateDir::open(&held).unwrap();

    let agent = |listen: &str, state: &Path, more: &str| {
        ("agent", format!("host = \"a\"\nlisten = \"{listen}\"\nstate_dir = {:?}\n{more}", state.display().to_string()))
    };
    let open = |(command, text): (&'static str, String)| (command, format!("insecure = true\n{text}"));
    let serve = |listen: &str, state: &Path| {
        let hosts = "[[cluster]]\nname = \"c\"\n[[host]]\nname = \"a\"\ncluster = \"c\"\n\
            management_ip = \"127.0.0.1\"\nagent = \"http://127.0.0.1:1\"\n";
        (
            "serve",
            format!("[controller]\nlisten = \"{listen}\"\nstate_dir = {:?}\n{hosts}", state.display().to_string()),
        )
    };
    let (free, state) = ("127.0.0.1:0", dir.path().join("state"));
    for (what, (command, config), says) in [
        ("agent: port in use", open(agent(&port.to_string(), &state, "")), "stop the program that uses the port"),
        ("serve: port in use", serve(&port.to_string(), &state), "stop the program that uses the port"),
        ("agent: state_dir below a file", open(agent(free, &file.join("state"), "")), "set `state_dir` to a directory"),
        ("serve: state_dir below a file", serve(free, &file.join("state")), "set `state_dir` to a directory"),
        ("agent: state_dir in use", open(agent(free, &held, "")), "is in use by process"),
        ("serve: state_dir in use", serve(free, &held), "is in use by process"),
        ("agent: no QEMU", open(agent(free, &state, "[qemu]\nbinary = \"no-such-qemu\"\n")), "install qemu-system-x86"),
        (
            "agent: QEMU that is none",
            open(agent(free, &state, "[qemu]\nbinary = \"true\"\n")),
            "its version is not readable",
        ),
        ("agent: open to all", agent(free, &state, ""), "neither [auth] token_file nor [tls]"),
        ("agent: open token", agent(free, &state, &format!("[auth]\ntoken_file = {open_token:?}\n")), "chmod 600"),
        ("agent: no token", agent(free, &state, "[auth]\ntoken_file = \"nowhere\"\n"), "No such file"),
    ] {
        let path = dir.path().join("config.toml");
        std::fs::write(&path, config).unwrap();
        let output = run(command, &path);
        let said = String::from_utf8(output.stderr).unwrap();
        let errors: Vec<_> = said.lines().filter(|line| !line.contains(" INFO ")).collect();
        assert_eq!(output.status.code(), Some(1), "{what}: {said}");
        assert!(errors.len() == 1 && errors[0].starts_with("error: ") && errors[0].contains(says), "{what}: {said}");
        assert!(output.stdout.is_empty(), "{what}");
        assert!(!said.contains(TOKEN), "{what}");
    }
}
