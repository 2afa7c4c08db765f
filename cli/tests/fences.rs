//! The ladder on the lab: rows of the fault matrix in which a sibling cannot prove it, or the storage cannot refuse it.
//! The failed host's agent is killed; its SSH and its VM live on, so that nothing but the operator's order fences it.
#![allow(missing_docs)]

mod common;

use std::time::{Duration, Instant};

use common::Lab;
use ringfence_messages::{HostId, VmId};
use rustix::process::{Pid, Signal, kill_process};

/// A lab on which host-c's agent is dead and vm3 lives on there.
fn without_agent(id: &'static str) -> Lab {
    without_agent_and_with(id, &[])
}

fn without_agent_and_with(id: &'static str, environment: &[(&'static str, &str)]) -> Lab {
    let lab = Lab::with(id, environment);
    lab.writes("host-c", "vm3");
    lab.kill_agent("host-c");
    lab
}

/// Puts something in the place of the program that kills there, and says where the program is now.
fn instead_of_the_program(lab: &Lab, script: &str) {
    lab.console(
        "host-c",
        &format!(
            "[ -e /root/rf ] || mv /usr/local/bin/ringfence /root/rf; printf '%s\\n' '#!/bin/sh' '{script}' \
             > /usr/local/bin/ringfence; chmod 755 /usr/local/bin/ringfence"
        ),
    );
}

fn edit_config(lab: &Lab, from: &str, to: &str) {
    let path = lab.dir.join("controller/controller.toml");
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(text.contains(from), "{text}");
    std::fs::write(&path, text.replace(from, to)).unwrap();
    lab.controller(&[]);
}

/// Rows 6 and 18. Every way in which SSH can fail to say whether it is dead leads to the next level, with its name; and
/// that one is refused before the act, because the address belongs to a daemon. One of another host is refused by the
/// check.
#[test]
#[ignore = "needs root: a lab of network namespaces"]
fn whatever_ssh_cannot_say_is_unknown_and_a_shared_address_is_never_blocked() {
    let lab = without_agent("fs");
    let shared = |with: &str, instead_of: &str| {
        edit_config(
            &lab,
            &format!("storage_ips = [\"10.77.0.13\"{instead_of}]"),
            &format!("storage_ips = [\"10.77.0.13\"{with}]"),
        );
        lab.until_status("host-c", "Disconnected");
        for host in ["host-a", "host-b"] {
            lab.until_status(host, "Connected");
        }
    };
    shared(", \"10.77.0.2\"", "");
    let known_hosts = lab.dir.join("share/known_hosts");
    let keys = std::fs::read_to_string(&known_hosts).unwrap();
    let without: Vec<_> = keys.lines().filter(|line| !line.starts_with("host-c,")).collect();
    let refused = |named: &str, storage: &str| {
        let mark = lab.mark();
        let error = lab.order(&["vm", "ha-start", "vm3"]).unwrap_err();
        let (outcome, reason) = lab.fence_of(mark, "vm3");
        assert_eq!(outcome, "failed", "{named}: {reason}");
        assert!(reason.contains(named) && reason.contains(storage), "{named}, {storage}: {reason}");
        assert!(error.contains("not started"), "{error}");
        assert!(lab.facts(mark, "ceph.storage-fence").is_empty(), "{named}: the storage was told");
    };

    std::fs::write(&known_hosts, without.join("\n") + "\n").unwrap();
    refused("host-key-mismatch", "10.77.0.2 is also the address of");
    std::fs::write(&known_hosts, &keys).unwrap();
    lab.console("host-c", "mv /root/.ssh/authorized_keys /root/.ssh/away");
    refused("auth-failed", "10.77.0.2 is also the address of");
    lab.console("host-c", "mv /root/.ssh/away /root/.ssh/authorized_keys");
    instead_of_the_program(&lab, "exit 255");
    refused("bad-exit", "10.77.0.2 is also the address of");
    instead_of_the_program(&lab, "echo {}");
    refused("unparsable", "10.77.0.2 is also the address of");
    // The session's own end takes the answer with it.
    instead_of_the_program(&lab, "kill -9 $PPID");
    refused("truncated", "10.77.0.2 is also the address of");
    instead_of_the_program(&lab, "sleep 60");
    refused("timeout", "10.77.0.2 is also the address of");
    assert_ne!(lab.qemu("host-c", "vm3"), 0);
    lab.writes("host-c", "vm3");

    // Refused: nobody is there; siblings see nobody either, so that HA comes by itself, and is blocked.
    let mark = lab.mark();
    lab.console("host-c", "kill -9 $(cat /run/sshd.pid)");
    let (outcome, reason) = lab.fence_of(mark, "vm3");
    assert!(outcome == "failed-unreachable" && reason.contains("Connection refused"), "{outcome}: {reason}");
    lab.until("HA says why", |lab| !lab.facts(mark, "ha.vm-blocked").is_empty());
    let explained = lab.order(&["explain", "vm3"]).unwrap();
    assert!(
        explained.contains("failed-unreachable") && explained.contains("host confirm-fenced host-c"),
        "{explained}"
    );
    lab.writes("host-c", "vm3");

    // Corrected, it goes on by itself: the next level holds.
    shared("", ", \"10.77.0.2\"");
    lab.moved_from("host-c", "vm3");
    lab.no_split_brain();
}

/// Row 8: SIGKILL does not end it (a frozen task is in state D as one that waits for a dead disk).
#[test]
#[ignore = "needs root: a lab of network namespaces"]
fn a_qemu_that_cannot_be_killed_is_alive_and_refused_by_the_storage() {
    let lab = without_agent("fd");
    // The group that host-freeze.sh thaws, also when this test panics.
    let group = format!("/sys/fs/cgroup/freezer/{}-host-c", lab.id);
    let pid = lab.qemu("host-c", "vm3");
    lab.console(
        "host-c",
        &format!("mkdir {group}; echo {pid} > {group}/cgroup.procs; echo FROZEN > {group}/freezer.state"),
    );
    let mark = lab.mark();
    lab.order(&["vm", "ha-start", "vm3"]).unwrap();
    let (outcome, reason) = lab.fence_of(mark, "vm3");
    assert!(
        outcome == "success-storage-fenced" && reason.contains("still alive") && reason.contains("state D"),
        "{outcome}: {reason}"
    );
    let at = lab.moved_from("host-c", "vm3");
    lab.ok("host-freeze.sh", &["host-c", "thaw"]);
    lab.ok("agent-up.sh", &["host-c"]);
    lab.until_status("host-c", "Connected");
    assert_eq!(lab.qemu("host-c", "vm3"), 0);
    lab.writes(&at, "vm3");
    lab.no_split_brain();
}

const DOMAIN: &str = r#"<domain type='qemu' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>vm3</name><uuid>{uuid}</uuid><memory unit='MiB'>16</memory><vcpu>1</vcpu>
  <os><type arch='x86_64' machine='pc'>hvm</type></os>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <disk type='network' device='disk'>
      <driver name='qemu' type='raw' cache='none'/>
      <auth username='compute'><secret type='ceph' uuid='22222222-2222-3333-4444-555555555550'/></auth>
      <source protocol='rbd' name='rbd/vm3'><host name='10.77.0.2' port='6789'/></source>
      <target dev='vda' bus='virtio'/><boot order='1'/>
    </disk>
    <serial type='file'><source path='/run/vm3.serial'/></serial>
  </devices>
  <qemu:commandline><qemu:arg value='-fw_cfg'/><qemu:arg value='name=opt/tb,string={host}'/></qemu:commandline>
</domain>
"#;

/// A lab with a libvirt on each host; vm3 is stopped, and is started as a domain from now on. `before` happens in
/// between.
fn with_libvirt(id: &'static str, before: impl FnOnce(&Lab)) -> Lab {
    let lab = Lab::with(id, &[]);
    for host in ["host-a", "host-b", "host-c"] {
        lab.ok("libvirt-up.sh", &[host]);
    }
    lab.order(&["vm", "stop", "vm3"]).unwrap();
    std::fs::write(lab.dir.join("controller/vm3.xml"), DOMAIN).unwrap();
    before(&lab);
    edit_config(
        &lab,
        "install_path = \"ceph://rbd/vm3\"\nroot = true\n",
        "install_path = \"ceph://rbd/vm3\"\nroot = true\n[vm.libvirt]\nxml = \"vm3.xml\"\n",
    );
    lab.until_status("host-c", "Connected");
    lab
}

fn domains(lab: &Lab, host: &str) -> String {
    lab.console(host, "timeout 5 virsh list --name || echo hangs")
}

/// Row 7, and VMs that something else started: the VM is a libvirt domain, and libvirtd hangs. Nothing asks it: killed
/// through /proc, started elsewhere through the libvirt there.
#[test]
#[ignore = "needs root: a lab of network namespaces"]
fn a_libvirt_domain_is_killed_though_libvirtd_hangs() {
    let lab = with_libvirt("fl", |lab| {
        // Started by hand, it is found by its uuid, believed to run there, and not started twice.
        let by_hand = DOMAIN.replace("{uuid}", &VmId::from_name("vm3").to_string()).replace("{host}", "host-b");
        std::fs::write(lab.dir.join("share/vm3.xml"), by_hand).unwrap();
        lab.console("host-b", &format!("virsh create {}", lab.dir.join("share/vm3.xml").display()));
        lab.until("the domain is found", |lab| lab.runs_on("vm3").as_deref() == Some("host-b"));
        let refused = lab.order(&["vm", "start", "vm3", "--host", "host-a"]).unwrap_err();
        assert!(refused.contains("already runs on host-b"), "{refused}");
        lab.order(&["vm", "stop", "vm3"]).unwrap();
        assert_eq!(lab.qemu("host-b", "vm3"), 0);
    });
    lab.until("vm3 starts as a domain", |lab| lab.order(&["vm", "start", "vm3", "--host", "host-c"]).is_ok());
    assert_eq!(domains(&lab, "host-c"), "vm3");
    lab.writes("host-c", "vm3");

    lab.console("host-c", "kill -STOP $(cat /run/libvirtd.pid)");
    assert_eq!(domains(&lab, "host-c"), "hangs");
    lab.writes("host-c", "vm3");
    lab.kill_agent("host-c");
    let mark = lab.mark();
    // The watch of the one that ran on host-b lasts for 30 s: until then the volume is somebody else's.
    lab.until("nobody else has the volume open", |lab| lab.order(&["vm", "ha-start", "vm3"]).is_ok());
    let (outcome, reason) = lab.fence_of(mark, "vm3");
    assert_eq!(outcome, "success-killed", "{reason}");
    assert_eq!(lab.qemu("host-c", "vm3"), 0);
    let at = lab.moved_from("host-c", "vm3");
    assert_eq!(domains(&lab, &at), "vm3");
    lab.no_split_brain();
}

/// Row 46 (K6): libvirt carries an order out after the agent gave it up.
#[test]
#[ignore = "needs root: a lab of network namespaces"]
fn a_domain_that_libvirt_creates_too_late_never_runs() {
    let lab = with_libvirt("fk", |_| {});
    let watch = "setsid virsh -k 0 event --all --loop </dev/null >/run/events 2>&1 &";
    lab.ok("host-exec.sh", &["host-a", "sh", "-c", watch]);
    lab.console("host-a", "kill -STOP $(cat /run/libvirtd.pid)");
    let refused = lab.order(&["vm", "start", "vm3", "--host", "host-a"]).unwrap_err();
    assert!(refused.contains("did not answer"), "{refused}");
    let refused = lab.order(&["vm", "start", "vm3", "--host", "host-b"]).unwrap_err();
    assert!(!refused.is_empty() && lab.qemu("host-b", "vm3") == 0, "host-a may start it yet: {refused}");

    lab.console("host-a", "kill -CONT $(cat /run/libvirtd.pid)");
    // What libvirt tells of the domain that was given up.
    let events = |lab: &Lab| -> Vec<String> {
        let said = lab.console("host-a", "cat /run/events");
        said.lines().filter(|line| line.contains("lifecycle") && line.contains("vm3")).map(str::to_owned).collect()
    };
    let ended = |line: &String| line.contains("Stopped");
    lab.until("it is created, and ended", |lab| events(lab).iter().any(ended));
    let of_it: Vec<String> = events(&lab).into_iter().take_while(|line| !ended(line)).collect();
    let says = |word: &str| of_it.iter().any(|line| line.contains(word));
    assert!(says("Started") && says("Suspended") && !says("Resumed"), "what was given up ran: {of_it:?}");
    lab.until("vm3 runs and writes", |lab| {
        lab.runs_on("vm3").is_some_and(|at| lab.serial(&at, "vm3").matches('.').count() > 20)
    });
    lab.no_split_brain();
}

/// Row 11: something starts it again and again.
#[test]
#[ignore = "needs root: a lab of network namespaces"]
fn a_qemu_that_comes_back_after_the_kill_is_found_and_refused_by_the_storage() {
    let lab = without_agent("fw");
    let pid = lab.qemu("host-c", "vm3");
    lab.console("host-c", &format!("cp /proc/{pid}/cmdline /run/again"));
    lab.ok(
        "host-exec.sh",
        &[
            "host-c",
            "sh",
            "-c",
            "setsid sh -c 'while :; do xargs -0 -a /run/again env; sleep 0.02; \
             done' </dev/null >/dev/null 2>&1 & echo $! > /run/again.pid",
        ],
    );
    let mark = lab.mark();
    lab.order(&["vm", "ha-start", "vm3"]).unwrap();
    let (outcome, reason) = lab.fence_of(mark, "vm3");
    assert!(outcome == "success-storage-fenced" && reason.contains("starts it again"), "{outcome}: {reason}");
    let at = lab.moved_from("host-c", "vm3");
    // As long as something restarts it, the host stays out, and its storage closed.
    lab.ok("agent-up.sh", &["host-c"]);
    lab.until("it is said why host-c stays out", |lab| {
        lab.order(&["explain", "host-c"]).unwrap().contains("something on the host restarts it")
    });
    assert_ne!(lab.status("host-c"), "Connected");
    lab.console("host-c", "kill -9 -$(cat /run/again.pid)");
    lab.until_status("host-c", "Connected");
    assert_eq!(lab.qemu("host-c", "vm3"), 0);
    lab.writes(&at, "vm3");
    lab.no_split_brain();
}

/// Row 14: somebody opens the volume while the fence is under way.
#[test]
#[ignore = "needs root: a lab of network namespaces"]
fn one_who_opens_the_volume_during_the_fence_takes_the_permit_away() {
    let lab = without_agent("fo");
    instead_of_the_program(&lab, "sleep 8; exec /root/rf \"$@\"");
    let mark = lab.mark();
    std::thread::scope(|scope| {
        let start = scope.spawn(|| lab.order(&["vm", "ha-start", "vm3"]));
        lab.until("the fence is under way", |lab| !lab.facts(mark, "fence.intent").is_empty());
        lab.console(
            "host-b",
            "setsid sh -c 'sleep 1000 | rbd --id compute watch rbd/vm3' </dev/null >/dev/null 2>&1 & echo $! > \
             /run/watch.pid",
        );
        let error = start.join().unwrap().unwrap_err();
        assert!(error.contains("after the fence: volume ceph://rbd/vm3 is in use by 10.77.0.12"), "{error}");
    });
    assert_eq!(lab.fence_of(mark, "vm3").0, "failed");
    assert_eq!(lab.qemu("host-c", "vm3"), 0, "the old one is dead all the same");
    lab.console("host-b", "kill -9 -$(cat /run/watch.pid)");
    lab.moved_from("host-c", "vm3");
    lab.no_split_brain();
}

/// Rows 19 and 26: the sibling that was sent dies on its way, another one goes; then the VM is dead already.
#[test]
#[ignore = "needs root: a lab of network namespaces"]
fn another_sibling_goes_where_the_first_one_died_and_what_is_dead_is_dead() {
    // Two of three are away here: the storm brake would hold (K10).
    let lab = without_agent_and_with("fn", &[("TB_CONFIG", "[ha]\nstorm_brake_percent = 100")]);
    instead_of_the_program(&lab, "sleep 6; exec /root/rf \"$@\"");
    let mark = lab.mark();
    std::thread::scope(|scope| {
        let start = scope.spawn(|| lab.order(&["vm", "ha-start", "vm3", "--host", "host-b"]));
        lab.until("the fence is under way", |lab| !lab.facts(mark, "fence.intent").is_empty());
        lab.console("host-b", "kill -9 $(cat /run/agent.pid)");
        let (outcome, reason) = lab.fence_of(mark, "vm3");
        // What the first one had begun on the failed host may have ended by itself, a moment before.
        assert!(matches!(&*outcome, "success-killed" | "success-already-dead"), "{outcome}: {reason}");
        let executor = lab.facts(mark, "ceph.ha.sibling-fence")[0]["executorHostUuid"].clone();
        assert_eq!(executor, HostId::from_name("host-a").to_string());
        // Its target died too: refused there, brought back elsewhere.
        let _ = start.join().unwrap();
    });
    let at = lab.moved_from("host-c", "vm3");
    assert_eq!(at, "host-a");

    // Dead by its state, not by what a kill returned: nothing was there to kill.
    lab.kill_agent("host-a");
    let pid = lab.qemu("host-a", "vm3");
    lab.console("host-a", &format!("kill -9 {pid}"));
    lab.ok("agent-up.sh", &["host-b"]);
    lab.until_status("host-b", "Connected");
    let mark = lab.mark();
    lab.order(&["vm", "ha-start", "vm3"]).unwrap();
    let (outcome, reason) = lab.fence_of(mark, "vm3");
    assert!(outcome == "success-already-dead" && reason.contains("no QEMU of the VM"), "{outcome}: {reason}");
    lab.moved_from("host-a", "vm3");
    lab.no_split_brain();
}

/// Rows 13 and 15: the cluster does not answer, then does not obey; then a human's word.
#[test]
#[ignore = "needs root: a lab of network namespaces"]
fn without_the_storages_answer_nothing_starts_until_it_answers_or_a_human_does() {
    let lab = Lab::with("fq", &[]);
    lab.writes("host-a", "vm1");
    let pid = std::fs::read_to_string(lab.dir.join("ceph/mon.a.pid")).unwrap();
    let mon = Pid::from_raw(pid.trim().parse().unwrap()).unwrap();
    let mark = lab.mark();
    kill_process(mon, Signal::STOP).unwrap();
    lab.ok("host-down.sh", &["host-a"]);
    lab.until("HA says why", |lab| !lab.facts(mark, "ha.vm-blocked").is_empty());
    let why = lab.facts(mark, "ha.vm-blocked")[0]["reason"].to_string();
    kill_process(mon, Signal::CONT).unwrap();
    assert!(why.contains("the watchers of ceph://rbd/vm1 are unknown"), "{why}");
    assert!(lab.facts(mark, "fence.intent").is_empty(), "a fence without knowing the watchers");
    lab.moved_from("host-a", "vm1");

    // It answers and does not obey.
    let caps = |mon: &str| {
        let conf = lab.dir.join("ceph/ceph.conf").display().to_string();
        let net = format!("{}-net", lab.id);
        let ceph = [
            "netns",
            "exec",
            &net,
            "ceph",
            "--conf",
            &conf,
            "auth",
            "caps",
            "client.ringfence",
            "mon",
            mon,
            "osd",
            "profile rbd-read-only",
        ];
        assert!(std::process::Command::new("ip").args(ceph).output().unwrap().status.success());
    };
    lab.ok("host-up.sh", &["host-a"]);
    lab.ok("agent-up.sh", &["host-a"]);
    lab.until_status("host-a", "Connected");
    caps("allow r");
    let mark = lab.mark();
    lab.ok("host-down.sh", &["host-c"]);
    let (outcome, reason) = lab.fence_of(mark, "vm3");
    assert!(outcome == "failed-unreachable" && reason.contains("storage: not fenced"), "{outcome}: {reason}");
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(6) {
        assert_ne!(lab.shown("vms", "vm3", "state"), "Running", "started without proof");
    }
    let plan = lab.order(&["vm", "ha-start", "vm3", "--dry-run"]).unwrap();
    for line in [
        "nothing is changed",
        "does not answer pings",
        "a sibling host kills vm3 on host-c",
        "Ceph rejects 10.77.0.13",
        "start the VM on host-",
    ] {
        assert!(plan.contains(line), "{line:?} is missing in {plan}");
    }
    let refused = lab.order(&["host", "confirm-fenced", "host-a"]).unwrap_err();
    assert!(refused.contains("is not Disconnected"), "{refused}");
    lab.order(&["host", "confirm-fenced", "host-c"]).unwrap();
    lab.moved_from("host-c", "vm3");
    let last = lab.facts(mark, "ceph.ha.sibling-fence").pop().unwrap();
    assert!(last["outcome"] == "success-human-confirmed" && last["reason"].to_string().contains("attested"), "{last}");
    lab.no_split_brain();
}
