//! `ringfence doctor` against real agents and a real sshd on loopback: each thing that would make a fence fail is
//! found, by its own name, with what mends it.
#![allow(missing_docs)]

mod common;

use std::{
    net::{SocketAddr, TcpListener},
    os::{fd::OwnedFd, unix::fs::PermissionsExt},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    time::{SystemTime, UNIX_EPOCH},
};

use axum::{Json, Router, routing::post};
use ringfence_agent::config::AgentSettings;
use ringfence_drivers::node::ssh::SshSettings;
use ringfence_messages::HostId;
use serde_json::{Value, json};
use tokio::sync::oneshot;

/// A cluster of which nothing but the map, the blocklist and empty images is asked.
const CEPH: &str = r#"#!/bin/sh
dir=$(dirname "$0")
denied() { [ ! -f "$dir/denied" ] || { echo 'Error EACCES: access denied' >&2; exit 13; }; }
case "$*" in
  *"osd dump"*)
    [ ! -f "$dir/gone" ] || { echo 'timed out' >&2; exit 1; }
    [ -f "$dir/blocked" ] && range='"cidr:192.0.2.1:0/32": "2030"' || range=
    echo "{\"epoch\": 7, \"blocklist\": {}, \"range_blocklist\": {$range}, \"osds\": []}" ;;
  *"mon dump"*) echo '{"mons": []}' ;;
  *"range add"*) denied; touch "$dir/blocked" ;;
  *"range rm"*) denied; rm -f "$dir/blocked" ;;
  *" status "*) echo '{"watchers": []}' ;;
  *) echo "not known here: $*" >&2; exit 2 ;;
esac
"#;

fn write(path: &Path, text: impl AsRef<str>, mode: u32) {
    std::fs::write(path, text.as_ref()).unwrap();
    std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
}

fn keygen(path: &Path) -> String {
    let made = Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(path).output().unwrap();
    assert!(made.status.success(), "{made:?}");
    std::fs::read_to_string(path.with_extension("pub")).unwrap()
}

/// A host's sshd: one process for each connection, which ends with it.
fn sshd(dir: &Path) -> SocketAddr {
    std::fs::create_dir_all("/run/sshd").unwrap();
    keygen(&dir.join("hostkey"));
    let conf = dir.join("sshd_config");
    let text = format!(
        "HostKey {0}/hostkey\nAuthorizedKeysFile {0}/authorized\nStrictModes no\nUsePAM no\nPasswordAuthentication no\n\
         KbdInteractiveAuthentication no\nPermitRootLogin prohibit-password\nUseDNS no\n",
        dir.display()
    );
    write(&conf, text, 0o600);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let (input, output): (OwnedFd, OwnedFd) = (stream.try_clone().unwrap().into(), stream.into());
            let server =
                Command::new("/usr/sbin/sshd").arg("-i").arg("-f").arg(&conf).stdin(input).stdout(output).spawn();
            // Reaped where nobody waits for it.
            std::thread::spawn(move || server.unwrap().wait());
        }
    });
    address
}

/// One host: an agent in this process, an sshd, and the files of both.
struct Host {
    name: &'static str,
    dir: PathBuf,
    ssh: SocketAddr,
    agent: SocketAddr,
    _end: oneshot::Sender<()>,
}

impl Host {
    async fn start(name: &'static str, root: &Path) -> Host {
        let dir = root.join(name);
        std::fs::create_dir(&dir).unwrap();
        let ssh = sshd(&dir);
        keygen(&dir.join("key"));
        let settings = settings(name, &dir);
        let (ready, address) = oneshot::channel();
        let (end, ended) = oneshot::channel::<()>();
        tokio::spawn(async move {
            let ended = async { drop(ended.await) };
            ringfence_agent::run(settings, |address| ready.send(address).unwrap(), ended).await.unwrap();
        });
        Host { name, dir, ssh, agent: address.await.unwrap(), _end: end }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    fn text(&self, name: &str) -> String {
        std::fs::read_to_string(self.file(name)).unwrap()
    }

    /// As `known_hosts` has it.
    fn known_as(&self, key: &str) -> String {
        format!("[127.0.0.1]:{} {key}", self.ssh.port())
    }

    /// Both let each other in.
    fn befriend(&self, other: &Host) {
        write(&self.file("known_hosts"), other.known_as(&other.text("hostkey.pub")), 0o600);
        write(&other.file("authorized"), self.text("key.pub"), 0o600);
    }
}

fn settings(name: &str, dir: &Path) -> AgentSettings {
    let (key_file, known_hosts_file) = (dir.join("key"), dir.join("known_hosts"));
    let ssh = Some(SshSettings { user: "root".to_owned(), key_file, known_hosts_file });
    AgentSettings { ssh, ..common::agent::settings(name, &dir.join("state")) }
}

/// A controller's file, and the programs that it finds.
struct Office {
    dir: tempfile::TempDir,
}

impl Office {
    fn new() -> Office {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("bin")).unwrap();
        std::fs::create_dir(dir.path().join("state")).unwrap();
        for program in ["ceph", "rbd"] {
            write(&dir.path().join("bin").join(program), CEPH, 0o755);
        }
        write(&dir.path().join("ceph.conf"), "", 0o600);
        Office { dir }
    }

    fn switch(&self, name: &str, on: bool) {
        let path = self.dir.path().join("bin").join(name);
        if on { std::fs::write(path, "").unwrap() } else { std::fs::remove_file(path).unwrap() }
    }

    fn doctor(&self, arguments: &[&str], config: &str) -> Output {
        let path = self.dir.path().join("config.toml");
        std::fs::write(&path, config).unwrap();
        let bin = self.dir.path().join("bin").display().to_string();
        let paths = format!("{bin}:{}", std::env::var("PATH").unwrap());
        let mut command = Command::new(env!("CARGO_BIN_EXE_ringfence"));
        command.args(["doctor", "--config"]).arg(&path).args(arguments).env("PATH", paths).stdin(Stdio::null());
        command.output().unwrap()
    }

    /// The exit code and what was found.
    fn asked(&self, config: &str) -> (i32, Report) {
        let output = self.doctor(&["--json"], config);
        let said = String::from_utf8_lossy(&output.stdout);
        let report = serde_json::from_str(&said).unwrap_or_else(|e| panic!("{e}: {said} {:?}", output.stderr));
        (output.status.code().unwrap(), Report(report))
    }
}

struct Report(Value);

impl Report {
    fn part(&self, of: &str) -> &Value {
        self.0["parts"].as_array().unwrap().iter().find(|part| part["of"] == of).unwrap()
    }

    /// The one finding of a check about something, which it names or which is in a path.
    fn finding(&self, of: &str, check: &str, about: &str) -> &Value {
        let findings = self.part(of)["findings"].as_array().unwrap();
        let found = findings
            .iter()
            .filter(|finding| finding["check"] == check && finding["about"].as_str().unwrap().contains(about));
        let [one] = found.collect::<Vec<_>>()[..] else { panic!("{check} {about}: {findings:#?}") };
        one
    }

    fn says(&self, (of, check, about): (&str, &str, &str), verdict: &str, found: &str, mend: &str) {
        let finding = self.finding(of, check, about);
        assert_eq!(finding["verdict"], verdict, "{finding:#}");
        assert!(finding["found"].as_str().unwrap().contains(found), "{found:?}: {finding:#}");
        assert!(finding["mend"].as_str().unwrap_or_default().contains(mend), "{mend:?}: {finding:#}");
        assert!(!finding["why"].as_str().unwrap().is_empty(), "{finding:#}");
    }

    fn level(&self, of: &str) -> (&str, u64) {
        let fenceability = &self.part(of)["fenceability"];
        (fenceability["level"].as_str().unwrap(), fenceability["score"].as_u64().unwrap())
    }
}

fn controller(office: &Office, hosts: &[&Host]) -> String {
    let conf = office.dir.path().join("ceph.conf");
    let mut text = "[controller]\nstate_dir = \"state\"\n[[cluster]]\nname = \"c1\"\n".to_owned();
    for (n, host) in hosts.iter().enumerate() {
        text += &format!(
            "[[host]]\nname = {:?}\ncluster = \"c1\"\nmanagement_ip = \"127.0.0.1\"\nstorage_ips = [\"10.77.0.1{n}\"]\n\
             agent = \"http://{}\"\nssh_port = {}\n",
            host.name,
            host.agent,
            host.ssh.port()
        );
    }
    text + &format!(
        "[[storage]]\nname = \"ceph-1\"\nkind = \"ceph\"\nclusters = [\"c1\"]\npool = \"rbd\"\nconf = {conf:?}\n\
         user = \"ringfence\"\nhost_conf = {conf:?}\n[[vm]]\nname = \"vm1\"\ncluster = \"c1\"\nmemory_mib = 16\n\
         ha = \"NeverStop\"\n[[vm.volume]]\nstorage = \"ceph-1\"\ninstall_path = \"ceph://rbd/vm1\"\nroot = true\n"
    )
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root: sshd and a small disk"]
async fn each_thing_that_would_make_a_fence_fail_is_found_with_its_mend() {
    let (root, office) = (tempfile::tempdir().unwrap(), Office::new());
    let (a, b) = (Host::start("host-a", root.path()).await, Host::start("host-b", root.path()).await);
    a.befriend(&b);
    b.befriend(&a);
    let config = controller(&office, &[&a, &b]);
    let asked = || tokio::task::block_in_place(|| office.asked(&config));
    let (key, known) = (("host-a", "ssh-key", ""), ("host-a", "known-hosts", "host-b"));
    let login = ("host-a", "ssh-login", "host-b");

    let (code, report) = asked();
    assert_eq!(code, 0, "{:#}", report.0);
    assert_eq!(report.level("host-a"), ("good", 80));
    report.says(login, "ok", "works, as root", "");
    report.says(key, "ok", "only its owner", "");
    report.says(("host-b", "clock", ""), "ok", " ms ", "");
    report.says(("controller", "ceph-block", "ceph-1"), "ok", "192.0.2.1 blocked", "");
    report.says(("controller", "journal", ""), "ok", "none yet", "");
    assert!(!office.dir.path().join("bin/blocked").exists(), "the trial entry was left behind");
    assert_eq!(std::fs::read_dir(office.dir.path().join("state")).unwrap().count(), 0, "a look made a file");

    // The key: missing, or readable by others.
    std::fs::rename(a.file("key"), a.file("key.away")).unwrap();
    let (code, report) = asked();
    assert_eq!(code, 1);
    report.says(key, "fail", "the key does not exist", "ssh-keygen -q -t ed25519");
    report.says(login, "unknown", "not tried", "fix ssh-key first");
    assert_eq!(report.level("host-b"), ("no-kill", 60), "nobody can kill there");
    assert_eq!(report.level("host-a"), ("good", 80), "host-b still can");
    std::fs::rename(a.file("key.away"), a.file("key")).unwrap();
    write(&a.file("key"), a.text("key"), 0o644);
    let (code, report) = asked();
    report.says(key, "fail", "others may read it (mode 644)", "chmod 600 ");
    report.says(login, "unknown", "not tried", "fix ssh-key first");
    assert_eq!(code, 1, "OpenSSH would refuse it too");
    write(&a.file("key"), "no key", 0o600);
    asked().1.says(key, "fail", "not a private key", "ssh-keygen");
    std::fs::remove_file(a.file("key")).unwrap();
    keygen(&a.file("key"));
    a.befriend(&b);

    // The sibling's host key: not known, or another one than is known.
    write(&a.file("known_hosts"), "", 0o600);
    let (code, report) = asked();
    report.says(known, "fail", "has no key of 127.0.0.1", "ssh-keyscan -p ");
    report.says(login, "unknown", "not tried", "fix known-hosts first");
    assert_eq!(code, 1);
    write(&a.file("known_hosts"), b.known_as(&a.text("hostkey.pub")), 0o600);
    let (code, report) = asked();
    report.says(known, "ok", "1 keys", "");
    report.says(login, "fail", "its host key has changed", "ssh-keygen -f ");
    assert_eq!((code, report.level("host-b")), (1, ("no-kill", 60)));

    // Authentication fails, or the key forces a command.
    a.befriend(&b);
    write(&b.file("authorized"), "", 0o600);
    let (code, report) = asked();
    report.says(login, "fail", "authentication failed", "ssh-copy-id -i ");
    assert_eq!((code, report.level("host-b")), (1, ("no-kill", 60)));
    write(&b.file("authorized"), format!("command=\"echo hello\" {}", a.text("key.pub")), 0o600);
    asked().1.says(login, "fail", "check whether the key has a forced command", "command -v ringfence");
    a.befriend(&b);

    // Ceph: a key that may not block, and a cluster that does not answer.
    office.switch("denied", true);
    let (code, report) = asked();
    let caps = "ceph auth caps client.ringfence mon 'allow r, allow command \"osd blocklist\"'";
    report.says(("controller", "ceph", "ceph-1"), "ok", "epoch 7", "");
    report.says(("controller", "ceph-block", "ceph-1"), "fail", "access denied", caps);
    report.says(("controller", "ceph-unblock", "ceph-1"), "fail", "access denied", caps);
    report.says(("host-a", "fenceability", ""), "warn", "after a loss of power an operator must attest", "ceph-block");
    assert_eq!((code, report.level("host-a")), (1, ("no-storage", 30)));
    office.switch("denied", false);
    office.switch("gone", true);
    let (_, report) = asked();
    report.says(("controller", "ceph", "ceph-1"), "fail", "timed out", "osd dump");
    report.says(("controller", "ceph-block", "ceph-1"), "unknown", "not tried", "fix ceph first");
    // And no sibling either: nobody but a human.
    write(&b.file("authorized"), "", 0o600);
    let (_, report) = asked();
    report.says(("host-b", "fenceability", ""), "fail", "some are NeverStop", "ssh-login");
    assert_eq!(report.level("host-b"), ("human-only", 10));
    office.switch("gone", false);
    a.befriend(&b);

    // What the file says: addresses, a token that others may read, a policy that takes silence for death.
    let without = config.replacen("storage_ips = [\"10.77.0.10\"]\n", "", 1);
    let (_, report) = tokio::task::block_in_place(|| office.asked(&without));
    report.says(("host-a", "storage-ips", ""), "fail", "none is configured", "storage_ips = [\"127.0.0.1\"]");
    assert_eq!((report.level("host-a"), report.level("host-b")), (("no-storage", 30), ("good", 80)));
    write(&office.dir.path().join("token"), "0123456789abcdef", 0o644);
    let open = config.replacen("[[cluster]]", "agent_token_file = \"token\"\n[[cluster]]", 1);
    let (code, report) = tokio::task::block_in_place(|| office.asked(&open));
    report.says(("controller", "token", "token"), "fail", "others may read it", "chmod 600 ");
    report.says(("host-a", "agent", ""), "unknown", "not checked", "token");
    assert_eq!(code, 1);
    let bold = config.replacen("[[cluster]]", "[fence]\non_ssh_unreachable = \"allow\"\n[[cluster]]", 1);
    let (_, report) = tokio::task::block_in_place(|| office.asked(&bold));
    report.says(("controller", "policy", ""), "warn", "counts as dead", "on_ssh_unreachable = \"storage-fence\"");
    assert_eq!(report.level("host-a"), ("no-storage", 30));

    // A sibling that is not there at all.
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let away = config.replace(&format!("ssh_port = {}\n", b.ssh.port()), &format!("ssh_port = {nobody}\n"));
    write(&a.file("known_hosts"), format!("[127.0.0.1]:{nobody} {}", b.text("hostkey.pub")), 0o600);
    let (_, report) = tokio::task::block_in_place(|| office.asked(&away));
    report.says(login, "fail", "no answer", "systemctl enable --now ssh");
}

/// An agent that says what it is told to.
async fn fake(uuid: HostId, version: &'static str, ahead_ms: i64) -> SocketAddr {
    let facts = json!({ "success": true, "hostUuid": uuid, "version": version, "hostname": "h", "accel": "kvm",
        "qemuVersion": "7.2.22", "memoryMib": 1024, "availableMib": 512, "cpus": 2, "freeHugepages": 0 });
    let ping = json!({ "success": true, "hostUuid": uuid, "version": version, "bootId": "b" });
    let diagnosed = move || async move {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as i64;
        Json(json!({ "success": true, "hostUuid": uuid, "unixMs": now + ahead_ms, "findings": [] }))
    };
    let app = Router::new()
        .route("/host/facts", post(|| async { Json(facts) }))
        .route("/host/ping", post(|| async { Json(ping) }))
        .route("/host/diagnose", post(diagnosed));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(ringfence_service::listen::serve(listener, app, std::future::pending()));
    address
}

#[tokio::test(flavor = "multi_thread")]
async fn clocks_and_agents_that_are_not_the_right_ones_are_found() {
    let (office, version) = (Office::new(), env!("CARGO_PKG_VERSION"));
    let host = HostId::from_name;
    let agents = [
        ("ahead", fake(host("ahead"), version, 5000).await),
        ("behind", fake(host("behind"), version, -5000).await),
        ("other", fake(host("nobody"), version, 0).await),
        ("old", fake(host("old"), "0.0.1", 0).await),
        ("gone", TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()),
    ];
    let mut config = "[controller]\nstate_dir = \"state\"\n[[cluster]]\nname = \"c1\"\n".to_owned();
    for (name, address) in agents {
        config += &format!(
            "[[host]]\nname = {name:?}\ncluster = \"c1\"\nmanagement_ip = \"127.0.0.1\"\nagent = \"http://{address}\"\n"
        );
    }
    let (code, report) = tokio::task::block_in_place(|| office.asked(&config));
    assert_eq!(code, 1);
    for (name, side) in [("ahead", "ahead"), ("behind", "behind")] {
        report.says((name, "agent", ""), "ok", "version", "");
        report.says((name, "clock", ""), "warn", side, "timedatectl set-ntp true");
        let found = report.finding(name, "clock", "")["found"].as_str().unwrap();
        let skew: i64 = found.split(' ').next().unwrap().parse().unwrap();
        assert!((4000..=6000).contains(&skew), "{found}");
    }
    for (name, found) in [("other", "is another host"), ("old", "version 0.0.1"), ("gone", "refused")] {
        let said = report.finding(name, "agent", "")["found"].as_str().unwrap();
        assert_eq!(report.finding(name, "agent", "")["verdict"], "fail", "{said}");
        assert!(said.contains(found) || name == "other", "{name}: {said}");
        report.says((name, "look", ""), "unknown", "not checked", "fix agent first");
        assert_eq!(report.level(name), ("human-only", 10));
    }
}

fn agent_toml(state: &Path, more: &str) -> String {
    format!("host = \"host-a\"\nlisten = \"127.0.0.1:0\"\nstate_dir = {state:?}\n[qemu]\naccel = \"tcg\"\n{more}")
}

#[test]
fn a_host_is_looked_at_without_a_controller() {
    let office = Office::new();
    let dir = office.dir.path();
    let key = dir.join("key");
    keygen(&key);
    let ssh = format!("[ssh]\nkey_file = {key:?}\nknown_hosts_file = \"known\"\n");
    std::fs::set_permissions(dir.join("state"), PermissionsExt::from_mode(0o700)).unwrap();
    let agent = |more: &str| {
        let output = office.doctor(&["--agent", "--json"], &agent_toml(&dir.join("state"), more));
        (output.status.code(), Report(serde_json::from_slice(&output.stdout).unwrap()))
    };
    let (code, report) = agent(&ssh);
    assert_eq!(code, Some(0), "{:#}", report.0);
    report.says(("this host", "qemu", ""), "ok", "version", "");
    report.says(("this host", "vhost-target", ""), "ok", "version", "");
    let (code, report) = agent("");
    report.says(("this host", "ssh-key", ""), "fail", "has no [ssh]", "[ssh] key_file");
    assert_eq!(code, Some(1));
    let (_, report) = agent("binary = \"no-such-qemu\"\n[vhost]\nbinary = \"no-such-qsd\"\n");
    report.says(("this host", "qemu", ""), "fail", "does not run", "apt-get install qemu-system-x86");
    report.says(("this host", "vhost-target", ""), "fail", "does not run", "apt-get install qemu-system-common");
    let (_, report) = agent("[vhost]\nrunner = \"docker\"\nimage = \"x:1\"\n[docker]\nsocket = \"/nowhere.sock\"\n");
    report.says(("this host", "vhost-target", "x:1"), "fail", "no Docker engine answers", "docker.service");
    std::fs::set_permissions(dir.join("state"), PermissionsExt::from_mode(0o777)).unwrap();
    agent("").1.says(("this host", "state-dir", ""), "fail", "others may write it", "chmod 700 ");

    // For people: no colours where nobody sees them, and one line per finding to grep.
    let output = office.doctor(&["--agent"], &agent_toml(&dir.join("state"), ""));
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("\n  FAIL    ssh-key: the agent's file has no [ssh]\n          why   without it"), "{text}");
    assert!(!text.contains('\x1b'), "{text}");

    // A file of the wrong kind, and one with a mistake, are not looked at.
    let wrong = office.doctor(&[], &agent_toml(dir, ""));
    assert_eq!(wrong.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&wrong.stderr).contains("add --agent"));
    assert_eq!(office.doctor(&["--agent"], "listen = 7\n").status.code(), Some(2));
}

/// A disk of a megabyte, taken away again also when the test fails.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn at(path: PathBuf) -> SmallDisk {
        use rustix::mount::{MountFlags, mount};
        mount("tmpfs", &path, "tmpfs", MountFlags::empty(), c"size=1M,mode=700").unwrap();
        SmallDisk(path)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH);
    }
}

#[test]
#[ignore = "needs root: sshd and a small disk"]
fn a_disk_that_is_nearly_full_is_found() {
    let office = Office::new();
    let disk = SmallDisk::at(office.dir.path().join("state"));
    let output = office.doctor(&["--agent", "--json"], &agent_toml(&disk.0, ""));
    assert_eq!(output.status.code(), Some(1));
    let report = Report(serde_json::from_slice(&output.stdout).unwrap());
    report.says(("this host", "disk", "state"), "fail", "MiB free", "du -xhd1 ");
}
