//! On the lab: real Ceph, three hosts with process tables, networks and disks of their own.
#![allow(missing_docs)]

mod common;

use std::{
    collections::HashMap,
    path::Path,
    time::{Duration, Instant},
};

use common::{Lab, inside};
use ringfence_actors::ports::{Call, HostAgentPort};
use ringfence_drivers::agent_client::AgentClient;
use ringfence_messages::{
    ErrorCode, HostId, VmId,
    evidence::Machine,
    fence::{SiblingFenceVmCmd, SiblingFenceVmOnHostReply},
};

#[test]
#[ignore = "needs root: a lab of network namespaces"]
fn vms_on_ceph_start_move_and_are_never_started_where_the_old_one_may_still_run() {
    let lab = Lab::with("rt", &[("TB_HA", "None")]);
    for (vm, host) in [("vm1", "host-a"), ("vm2", "host-b"), ("vm3", "host-c")] {
        lab.writes(host, vm);
        assert_eq!(lab.disk(vm).1, host);
    }

    // Stopped and started elsewhere, it counts on.
    lab.order(&["vm", "stop", "vm1"]).unwrap();
    let (stopped_at, _) = lab.disk("vm1");
    lab.order(&["vm", "start", "vm1", "--host", "host-b"]).unwrap();
    lab.writes("host-b", "vm1");
    let (counted, by) = lab.disk("vm1");
    assert!(counted > stopped_at && by == "host-b", "{counted} by {by} after {stopped_at}");

    // The plug is pulled: nobody can say whether vm3 still runs there, so it is started nowhere.
    lab.ok("host-down.sh", &["host-c"]);
    lab.until("host-c is Disconnected", |lab| lab.shown("hosts", "host-c", "status") == "Disconnected");
    lab.until("vm3 is Unknown", |lab| lab.shown("vms", "vm3", "state") == "Unknown");
    let refused = lab.order(&["vm", "start", "vm3", "--host", "host-a"]).unwrap_err();
    assert!(refused.contains("may still run on host-c"), "{refused}");
    lab.ok("host-up.sh", &["host-c"]);
    lab.ok("agent-up.sh", &["host-c"]);
    lab.until("vm3 is known to be Stopped", |lab| lab.shown("vms", "vm3", "state") == "Stopped");
    lab.order(&["vm", "start", "vm3", "--host", "host-a"]).unwrap();
    lab.writes("host-a", "vm3");

    // Only the management network is cut: the guests write on, and are not started anywhere else.
    lab.ok("host-cut.sh", &["host-b", "mgmt"]);
    lab.until("vm2 is Unknown", |lab| lab.shown("vms", "vm2", "state") == "Unknown");
    for target in ["host-a", "host-c"] {
        let refused = lab.order(&["vm", "start", "vm2", "--host", target]).unwrap_err();
        assert!(refused.contains("may still run on host-b"), "{refused}");
    }
    lab.writes("host-b", "vm2");
    lab.ok("host-heal.sh", &["host-b"]);
    lab.until("vm2 is Running", |lab| lab.shown("vms", "vm2", "state") == "Running");
    assert_eq!(lab.shown("vms", "vm2", "host"), "host-b");

    // A vhost target of one host is killed; only that host's is healed.
    let pid = |lab: &Lab, host: &str| {
        lab.ok("host-exec.sh", &[host, "sh", "-c", "cat /var/lib/ringfence-agent/vhost/*/target.pid"])
    };
    lab.until("the storage is Connected", |lab| {
        let storages = lab.list("storages");
        let hosts =
            storages.iter().find(|storage| storage["name"] == "vhost-1").unwrap()["hosts"].as_array().unwrap().clone();
        hosts.len() == 3 && hosts.iter().all(|host| host["status"] == "Connected")
    });
    let (killed, other) = (pid(&lab, "host-a"), pid(&lab, "host-b"));
    lab.ok("host-exec.sh", &["host-a", "kill", "-9", killed.trim()]);
    lab.until("the target on host-a is another one", |lab| {
        let output =
            lab.run("host-exec.sh", &["host-a", "sh", "-c", "cat /var/lib/ringfence-agent/vhost/*/target.pid"]);
        output.status.success() && !output.stdout.is_empty() && output.stdout != killed.as_bytes()
    });
    assert_eq!(pid(&lab, "host-b"), other);
}

#[test]
#[ignore = "needs root: a lab of network namespaces"]
fn a_drained_host_is_empty_and_its_vm_counts_on_elsewhere_though_the_controller_is_killed() {
    let lab = Lab::with("rd", &[]);
    lab.writes("host-a", "vm1");
    let (before, _) = lab.disk("vm1");
    let mark = lab.mark();
    let plan = lab.order(&["host", "drain", "host-a", "--dry-run"]).unwrap();
    assert!(plan.contains("vm1") && plan.contains("stopped, verified gone, started on host-"), "{plan}");
    assert_eq!(lab.runs_on("vm1").as_deref(), Some("host-a"), "nothing is changed by asking");

    // The controller dies as soon as it may have told the VM to stop: the next one owes it a start.
    lab.order(&["host", "drain", "host-a"]).unwrap();
    lab.until("the move is intended", |lab| !lab.facts(mark, "ha.vm-move").is_empty());
    lab.kill_controller();
    lab.controller(&[]);
    let at = lab.moved_from("host-a", "vm1");
    assert_eq!(lab.qemu("host-a", "vm1"), 0, "gone before it was started elsewhere");
    let (after, by) = lab.disk("vm1");
    assert!(after > before && by == at, "the guest's counter goes on: {before}, {after} by {by}");
    lab.until("host-a is drained", |lab| !lab.facts(mark, "ha.host-drained").is_empty());
    let explained = lab.order(&["explain", "host-a"]).unwrap();
    assert!(explained.contains("drained: the host reports that nothing runs there"), "{explained}");
    assert!(lab.facts(mark, "ceph.ha.sibling-fence").is_empty(), "nobody had to be fenced");
    lab.no_split_brain();
}

#[test]
#[ignore = "needs root: a lab of network namespaces"]
fn check_live_says_what_would_fail_tonight() {
    let lab = Lab::with("rl", &[("TB_HA", "None")]);
    let config = lab.dir.join("controller/controller.toml");
    let check = |config: &Path| {
        let output = lab.ringfence(&["check", "--live", "--config", config.to_str().unwrap()]);
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    };
    let (code, said) = check(&config);
    assert_eq!(code, Some(0), "{said}");
    for line in [
        "ok    agent of host-b: version",
        "ok    ceph-1, client.ringfence may add blocklist entries: 192.0.2.1",
        "ok    ceph-1, client.ringfence may remove blocklist entries: 192.0.2.1",
        "ok    vm1, ceph://rbd/vm1: watched by 10.77.0.11:0/",
        "12 checks passed",
    ] {
        assert!(said.contains(line), "{line:?} is missing in {said}");
    }
    let (_, again) = check(&config);
    assert!(again.contains(", 0 addresses blocked"), "the trial entry was left behind: {again}");

    // What breaks fences in practice: a compute node's key, a typo in an image's name, an agent that is not there.
    let ceph_conf = std::fs::read_to_string(lab.dir.join("ceph/ceph.conf")).unwrap();
    let keyring = format!("keyring = {}", lab.dir.join("ceph/compute.keyring").display());
    let lines: Vec<_> =
        ceph_conf.lines().map(|line| if line.starts_with("keyring") { &keyring } else { line }).collect();
    let compute_conf = lab.dir.join("controller/compute.conf");
    std::fs::write(&compute_conf, lines.join("\n") + "\n").unwrap();
    let text = std::fs::read_to_string(&config).unwrap();
    let of_lab = lab.dir.join("ceph/ringfence.conf").display().to_string();
    let text =
        text.replace("user = \"ringfence\"", "user = \"compute\"").replace(&of_lab, compute_conf.to_str().unwrap());
    let broken = lab.dir.join("controller/broken.toml");
    let text = text.replace("storage_ips = [\"10.77.0.12\"]", "storage_ips = [\"10.77.1.12\"]");
    std::fs::write(&broken, text.replace("ceph://rbd/vm3", "ceph://rbd/vm-3")).unwrap();
    lab.ok("host-down.sh", &["host-c"]);
    let (code, said) = check(&broken);
    assert_eq!(code, Some(1), "{said}");
    for line in [
        "FAIL  agent of host-c: cannot reach http://10.77.0.13:7070",
        "ok    ceph-1, client.compute may add blocklist entries",
        "FAIL  ceph-1, client.compute may remove blocklist entries: ceph osd blocklist as client.compute: exit status: \
         13",
        "FAIL  vm3, ceph://rbd/vm-3: image rbd/vm-3 does not exist",
        "FAIL  vm2, ceph://rbd/vm2: watched by 10.77.0.12:0/",
        "which is in no host's storage_ips",
        "FAIL  own-addresses of host-b: 10.77.1.12 of its storage_ips is not an address of host-b",
        "13 checks, 5 failed",
    ] {
        assert!(said.contains(line), "{line:?} is missing in {said}");
    }

    // No monitor answers: bounded, and said.
    let pid = std::fs::read_to_string(lab.dir.join("ceph/mon.a.pid")).unwrap();
    let pid = rustix::process::Pid::from_raw(pid.trim().parse().unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::STOP).unwrap();
    let began = Instant::now();
    let (code, said) = check(&config);
    rustix::process::kill_process(pid, rustix::process::Signal::CONT).unwrap();
    assert!(code == Some(1) && said.contains("FAIL  ceph-1: "), "{said}");
    assert!(began.elapsed() < Duration::from_secs(60), "it took {:?}", began.elapsed());
}

/// host-a is asked to make sure that vm3 does not run on host-c.
fn fence(lab: &Lab) -> Result<SiblingFenceVmOnHostReply, ErrorCode> {
    let token = std::fs::read_to_string(lab.dir.join("controller/token")).unwrap().trim().to_owned();
    let sibling = HostId::from_name("host-a");
    let cmd = SiblingFenceVmCmd {
        vm_uuid: VmId::from_name("vm3"),
        failed_host_ip: "10.77.0.13".to_owned(),
        failed_host_ssh_port: 22,
        failed_host_uuid: HostId::from_name("host-c"),
        machine: Machine { machine_id: lab.console("host-c", "cat /etc/machine-id"), ..Machine::default() },
    };
    inside(lab, async {
        let urls = HashMap::from([(sibling, "http://10.77.0.11:7070".to_owned())]);
        let client = AgentClient::new(urls, Some(token.into())).unwrap();
        client.sibling_fence(sibling, cmd, Call::within(Duration::from_secs(45))).await
    })
}

#[test]
#[ignore = "needs root: a lab of network namespaces"]
fn a_sibling_kills_over_ssh_and_calls_nothing_dead_that_it_did_not_see_dead() {
    let lab = Lab::with("rs", &[("TB_HA", "None")]);
    let start = || {
        lab.until("vm3 is known to be Stopped", |lab| {
            lab.order(&["host", "ping", "host-c"]).is_ok() && lab.order(&["vm", "stop", "vm3"]).is_ok()
        });
        lab.order(&["vm", "start", "vm3", "--host", "host-c"]).unwrap();
    };
    let processes = || {
        let output = lab.run(
            "host-exec.sh",
            &["host-c", "sh", "-c", "cat /proc/[0-9]*/cmdline | tr '\\0' ' ' | grep -c '[q]emu-system'"],
        );
        String::from_utf8_lossy(&output.stdout).trim() != "0"
    };
    // On its way through the shell there, the uuid is in that shell's own arguments too: no bystander is killed.
    assert!(processes());
    let reply = fence(&lab).unwrap();
    assert_eq!(
        (reply.alive, reply.killed, reply.ssh_reachable, reply.qemu_found),
        (false, true, true, true),
        "{reply:?}"
    );
    assert_eq!(reply.executor_host_uuid, Some(HostId::from_name("host-a")));
    assert!(!processes(), "it is gone");
    let reply = fence(&lab).unwrap();
    assert_eq!(
        (reply.alive, reply.killed, reply.ssh_reachable, reply.qemu_found),
        (false, false, true, false),
        "{reply:?}"
    );

    // Where the program is not installed, the script does it.
    start();
    lab.ok("host-exec.sh", &["host-c", "mv", "/usr/local/bin/ringfence", "/root/ringfence"]);
    let reply = fence(&lab).unwrap();
    assert_eq!((reply.alive, reply.killed, reply.qemu_found, reply.reason.as_str()), (false, true, true, "by script"));
    assert!(!processes());
    assert!(!fence(&lab).unwrap().qemu_found);
    lab.ok("host-exec.sh", &["host-c", "mv", "/root/ringfence", "/usr/local/bin/ringfence"]);

    // Nobody can say: each with its reason, and never dead.
    start();
    let reason = |lab: &Lab| fence(lab).unwrap_err().opaque["reason"].clone();
    let known_hosts = lab.dir.join("share/known_hosts");
    let keys = std::fs::read_to_string(&known_hosts).unwrap();
    let of_c = |line: &&str| line.starts_with("host-c,");
    let stranger = keys.lines().find(|line| line.starts_with("host-b,")).unwrap().split(' ').next_back().unwrap();
    let changed: Vec<_> = keys
        .lines()
        .map(|line| if of_c(&line) { format!("host-c,10.77.0.13 ssh-ed25519 {stranger}") } else { line.to_owned() })
        .collect();
    std::fs::write(&known_hosts, changed.join("\n") + "\n").unwrap();
    assert_eq!(reason(&lab), "host-key-mismatch");
    let without: Vec<_> = keys.lines().filter(|line| !of_c(line)).collect();
    std::fs::write(&known_hosts, without.join("\n") + "\n").unwrap();
    assert_eq!(reason(&lab), "host-key-mismatch", "an unknown key is not learned");
    std::fs::write(&known_hosts, &keys).unwrap();
    lab.ok("host-exec.sh", &["host-c", "mv", "/root/.ssh/authorized_keys", "/root/.ssh/away"]);
    assert_eq!(reason(&lab), "auth-failed");
    lab.ok("host-exec.sh", &["host-c", "mv", "/root/.ssh/away", "/root/.ssh/authorized_keys"]);
    lab.ok(
        "host-exec.sh",
        &[
            "host-c",
            "sh",
            "-c",
            "mv /usr/local/bin/ringfence /root/; printf '#!/bin/sh\\n\
             exit 255' > /usr/local/bin/ringfence; chmod 755 /usr/local/bin/ringfence",
        ],
    );
    assert_eq!(reason(&lab), "bad-exit");
    lab.ok("host-exec.sh", &["host-c", "sh", "-c", "printf '#!/bin/sh\\necho {}' > /usr/local/bin/ringfence"]);
    assert_eq!(reason(&lab), "unparsable");
    lab.ok("host-exec.sh", &["host-c", "mv", "/root/ringfence", "/usr/local/bin/ringfence"]);

    // Nothing answers there: reported as that, and alive for all that is known.
    lab.ok("host-freeze.sh", &["host-c"]);
    let reply = fence(&lab).unwrap();
    assert_eq!((reply.alive, reply.ssh_reachable, reply.killed), (true, false, false), "frozen: {reply:?}");
    lab.ok("host-freeze.sh", &["host-c", "thaw"]);
    lab.ok("host-cut.sh", &["host-c", "ssh"]);
    let reply = fence(&lab).unwrap();
    assert_eq!((reply.alive, reply.ssh_reachable, reply.killed), (true, false, false), "cut off: {reply:?}");
    lab.ok("host-heal.sh", &["host-c"]);
    assert!(processes(), "after all of this it runs on");
    assert!(fence(&lab).unwrap().killed);
}
