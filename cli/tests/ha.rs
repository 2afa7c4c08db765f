//! HA on the lab: the rows of the fault matrix that real parts allow. Each test says which.
#![allow(missing_docs)]

mod common;

use std::time::{Duration, Instant};

use common::Lab;

/// Waits until something has been so for a while: what must not happen is given the time to happen.
fn stays(lab: &Lab, what: &str, within: Duration, mut is: impl FnMut(&Lab) -> bool) {
    let end = Instant::now() + within;
    while Instant::now() < end {
        assert!(is(lab), "{what}: not any more");
    }
}

/// The race of the requirement, and row 4: cut off from storage until its watcher is gone, QEMU alive; its guest must
/// never write again once it runs elsewhere.
#[test]
#[ignore = "needs root: a lab of network namespaces"]
fn an_empty_watcher_list_proves_nothing_the_vm_is_killed_by_a_sibling_first() {
    let lab = Lab::with("hr", &[]);
    lab.writes("host-c", "vm3");
    let (before, _) = lab.disk("vm3");
    let mark = lab.mark();
    lab.ok("host-cut.sh", &["host-c", "ceph"]);
    lab.ok("host-cut.sh", &["host-c", "mgmt"]);
    lab.until_status("host-c", "Disconnected");
    // Siblings still see the host, and the storage still sees the VM.
    assert!(lab.facts(mark, "ha.host-failed").is_empty(), "siblings see it");
    assert_ne!(lab.qemu("host-c", "vm3"), 0, "it lives on");
    let at = lab.moved_from("host-c", "vm3");
    // Its storage is back, the controller is not: nothing but the fence keeps it from writing (after 12 to 27 s, as TCP
    // backs off).
    lab.ok("host-heal.sh", &["host-c"]);
    lab.ok("host-cut.sh", &["host-c", "mgmt"]);
    let end = Instant::now() + Duration::from_secs(35);
    while Instant::now() < end {
        lab.no_split_brain();
    }
    assert_eq!(lab.qemu("host-c", "vm3"), 0, "killed before it was started elsewhere");
    let (outcome, reason) = lab.fence_of(mark, "vm3");
    assert!(outcome == "success-killed" && reason.contains("verified gone"), "{outcome}: {reason}");
    // Fenced before it was started: the order of the journal.
    let position = |is: &dyn Fn(&serde_json::Value) -> bool| lab.events(mark).iter().position(is).unwrap();
    let fenced = position(&|record| record["topic"] == "ceph.ha.sibling-fence");
    let started =
        position(&|record| record["topic"] == "vm.state-changed" && record["payload"]["newState"] == "Starting");
    assert!(fenced < started);

    lab.ok("host-heal.sh", &["host-c"]);
    lab.until_status("host-c", "Connected");
    stays(&lab, "vm3 is alone", Duration::from_secs(15), |lab| lab.qemu("host-c", "vm3") == 0);
    lab.writes(&at, "vm3");
    let (after, by) = lab.disk("vm3");
    assert!(after > before && by == at, "the guest's counter goes on: {before}, {after} by {by}");
    lab.no_split_brain();
}

/// Rows 1, 28 and 31: the plug is pulled; back with a VM that was started at boot, the host is quarantined until that
/// one is gone, nothing is redeployed there meanwhile.
#[test]
#[ignore = "needs root: a lab of network namespaces"]
fn the_plug_is_pulled_and_the_host_comes_back_with_a_vm_that_was_started_at_boot() {
    let lab = Lab::with("hp", &[]);
    lab.writes("host-a", "vm1");
    let boot = lab.console("host-a", &format!("tr '\\0' ' ' < /proc/{}/cmdline", lab.qemu("host-a", "vm1")));
    let (before, _) = lab.disk("vm1");
    let mark = lab.mark();
    lab.ok("host-down.sh", &["host-a"]);
    let at = lab.moved_from("host-a", "vm1");
    assert!(lab.disk("vm1").0 > before);
    let (outcome, reason) = lab.fence_of(mark, "vm1");
    assert!(outcome == "success-storage-fenced" && reason.contains("rejects 10.77.0.11"), "{outcome}: {reason}");
    assert_eq!(lab.shown("vms", "vm2", "host"), "host-b", "others stay where they are");
    let explained = lab.order(&["explain", "host-a"]).unwrap();
    assert!(explained.contains("quarantined") && explained.contains("confirm-fenced"), "{explained}");

    lab.ok("host-up.sh", &["host-a"]);
    let boot = boot.replace(" -daemonize", "");
    lab.console(
        "host-a",
        &format!("mkdir -p /var/lib/ringfence-agent/vm; ({boot}) </dev/null >/run/boot.log 2>&1 & sleep 0.1"),
    );
    let mark = lab.mark();
    lab.ok("agent-up.sh", &["host-a"]);
    lab.until_status("host-a", "Connected");
    assert_eq!(lab.qemu("host-a", "vm1"), 0, "let in with a VM that moved");
    let events = lab.events(mark);
    let released = events.iter().position(|r| r["topic"] == "ha.host-quarantine").unwrap();
    let lifted = events.iter().position(|r| r["payload"]["phase"] == "lifted").unwrap();
    let redeployed = events.iter().position(|r| r["topic"] == "storage.protocol-redeploy");
    assert!(lifted < released, "killed, then lifted, then released");
    assert!(redeployed.is_none_or(|at| at > released), "redeployed on a host in quarantine");
    assert_eq!(lab.runs_on("vm1"), Some(at.clone()), "started once");
    lab.writes(&at, "vm1");
    lab.no_split_brain();
    assert!(lab.order(&["events", "--verify"]).unwrap().contains("hash chain verified"));
}

/// Rows 3 and 17: only the storage is still reached; the VM writes on until its storage refuses it, and a client that
/// comes anew from there is refused too.
#[test]
#[ignore = "needs root: a lab of network namespaces"]
fn a_host_that_only_reaches_its_storage_is_refused_by_it_before_the_vm_starts_elsewhere() {
    let lab = Lab::with("hl", &[]);
    lab.writes("host-b", "vm2");
    let mark = lab.mark();
    lab.ok("host-cut.sh", &["host-b", "lan"]);
    let at = lab.moved_from("host-b", "vm2");
    let (outcome, reason) = lab.fence_of(mark, "vm2");
    assert!(outcome == "success-storage-fenced" && reason.contains("rejects 10.77.0.12"), "{outcome}: {reason}");
    assert_ne!(lab.qemu("host-b", "vm2"), 0, "nobody could kill it");
    let serial = lab.serial("host-b", "vm2");
    let last = serial.trim_end_matches(['E', 'e']);
    assert!(last.len() < serial.len(), "its writes are refused: {serial}");
    stays(&lab, "it never writes again", Duration::from_secs(5), |lab| {
        let serial = lab.serial("host-b", "vm2");
        serial.starts_with(last) && !serial[last.len()..].contains('.')
    });
    // A new client has a new nonce.
    let new = lab.console(
        "host-b",
        "timeout 20 rbd --id compute status rbd/vm2 >/run/new 2>&1 && echo let in || tail -1 /run/new",
    );
    assert!(!new.is_empty() && !new.contains("let in"), "{new:?}");
    lab.writes(&at, "vm2");

    let mark = lab.mark();
    lab.ok("host-heal.sh", &["host-b"]);
    lab.until_status("host-b", "Connected");
    assert_eq!(lab.qemu("host-b", "vm2"), 0, "killed before its storage lets it in again");
    let lifted = lab.facts(mark, "ceph.storage-fence");
    assert_eq!(lifted.last().unwrap()["phase"], "lifted", "{lifted:?}");
    assert_eq!(lab.console("host-b", "rbd --id compute status rbd/vm2 >/dev/null && echo let in"), "let in");
    lab.writes(&at, "vm2");
    lab.no_split_brain();
}

/// What a guest says that comes back after its restart elsewhere: the answer to the one write that was under way when
/// it was cut off may reach it now, no other.
fn assert_refused(said: &str) {
    assert!(said.matches('.').count() <= 1, "it wrote after the restart: {said}");
}

/// Row 5: everything is cut, and heals after the restart.
#[test]
#[ignore = "needs root: a lab of network namespaces"]
fn a_partition_that_heals_after_the_restart_finds_its_vm_refused_and_destroyed() {
    let lab = Lab::with("hf", &[]);
    lab.writes("host-c", "vm3");
    let mark = lab.mark();
    lab.ok("host-cut.sh", &["host-c", "all"]);
    let at = lab.moved_from("host-c", "vm3");
    assert_eq!(lab.fence_of(mark, "vm3").0, "success-storage-fenced");
    assert_ne!(lab.qemu("host-c", "vm3"), 0, "nobody could kill it");
    let told = lab.serial("host-c", "vm3");
    lab.ok("host-heal.sh", &["host-c"]);
    lab.until_status("host-c", "Connected");
    assert_eq!(lab.qemu("host-c", "vm3"), 0);
    assert_refused(&lab.serial("host-c", "vm3")[told.len()..]);
    stays(&lab, "vm3 is alone", Duration::from_secs(5), |lab| lab.qemu("host-c", "vm3") == 0);
    lab.writes(&at, "vm3");
    lab.no_split_brain();
}

/// Row 27's half of a hung host: it takes connections and answers nothing; thawed, its QEMU is refused.
#[test]
#[ignore = "needs root: a lab of network namespaces"]
fn a_host_that_hangs_and_goes_on_finds_its_storage_closed() {
    let lab = Lab::with("hz", &[]);
    lab.writes("host-a", "vm1");
    let mark = lab.mark();
    lab.ok("host-freeze.sh", &["host-a"]);
    let at = lab.moved_from("host-a", "vm1");
    assert_eq!(lab.fence_of(mark, "vm1").0, "success-storage-fenced");
    let told = lab.serial("host-a", "vm1");
    lab.ok("host-freeze.sh", &["host-a", "thaw"]);
    lab.until_status("host-a", "Connected");
    assert_eq!(lab.qemu("host-a", "vm1"), 0);
    assert_refused(&lab.serial("host-a", "vm1")[told.len()..]);
    lab.writes(&at, "vm1");
    lab.no_split_brain();
}

/// Row 53 (K13): somebody else's entries on the blocklist, in both of their forms.
#[test]
#[ignore = "needs root: a lab of network namespaces"]
fn a_host_that_somebody_else_blocked_is_cleaned_and_let_in() {
    let lab = Lab::with("hb", &[]);
    lab.writes("host-b", "vm2");
    let mark = lab.mark();
    lab.blocklist(&["add", "10.77.0.12:0/0", "3600"]);
    lab.blocklist(&["range", "add", "10.77.0.12/32", "3600"]);
    let phases = |lab: &Lab| -> Vec<String> {
        let facts = lab.facts(mark, "ceph.storage-fence");
        facts.iter().map(|fact| fact["phase"].as_str().unwrap().to_owned()).collect()
    };
    lab.until("its entries are lifted", |lab| phases(lab).last().is_some_and(|phase| phase == "lifted"));
    assert_eq!(phases(&lab)[0], "found");
    let left = lab.blocklist(&["ls"]);
    assert!(!left.contains("10.77.0.12"), "{left}");
    lab.until("its VM runs again", |lab| lab.runs_on("vm2").is_some());
    let at = lab.runs_on("vm2").unwrap();
    lab.writes(&at, "vm2");
    lab.until_status("host-b", "Connected");
    lab.no_split_brain();
}

/// Row 20: everything looks dead from here.
#[test]
#[ignore = "needs root: a lab of network namespaces"]
fn when_everything_looks_dead_it_is_us_and_nothing_is_fenced() {
    let lab = Lab::with("hs", &[]);
    let mark = lab.mark();
    for host in ["host-a", "host-b", "host-c"] {
        lab.ok("host-cut.sh", &[host, "mgmt"]);
    }
    lab.until("the storm brake holds", |lab| !lab.facts(mark, "ha.storm-brake").is_empty());
    for host in ["host-a", "host-b", "host-c"] {
        lab.until_status(host, "Disconnected");
    }
    stays(&lab, "nothing is fenced", Duration::from_secs(10), |lab| {
        let of = |topic: &str| lab.facts(mark, topic).len();
        of("fence.intent") + of("ceph.storage-fence") + of("ha.host-failed") + of("ha.host-quarantine") == 0
    });
    let explained = lab.order(&["explain", "vm1"]).unwrap();
    assert!(explained.contains("Fencing is suspended (storm brake)"), "{explained}");
    for (host, vm) in [("host-a", "vm1"), ("host-b", "vm2"), ("host-c", "vm3")] {
        lab.writes(host, vm);
        lab.ok("host-heal.sh", &[host]);
    }
    for host in ["host-a", "host-b", "host-c"] {
        lab.until_status(host, "Connected");
    }
    lab.until("the brake is released", |lab| {
        lab.facts(mark, "ha.storm-brake").last().is_some_and(|brake| brake["engaged"] == false)
    });
    assert_eq!(lab.runs_on("vm1").as_deref(), Some("host-a"), "where it was all the time");
}

/// NeverStop: a QEMU that dies is started again; one that was stopped is not.
#[test]
#[ignore = "needs root: a lab of network namespaces"]
fn a_qemu_that_dies_is_started_again_and_one_that_was_stopped_is_not() {
    let lab = Lab::with("hd", &[]);
    lab.writes("host-a", "vm1");
    lab.order(&["vm", "stop", "vm2"]).unwrap();
    let died = lab.qemu("host-a", "vm1");
    assert_ne!(died, 0, "it has just written");
    lab.ok("host-exec.sh", &["host-a", "kill", "-9", &died.to_string()]);
    let mut at = String::new();
    lab.until("another QEMU of vm1 runs", |lab| {
        at = lab.runs_on("vm1").unwrap_or_default();
        !at.is_empty() && ![0, died].contains(&lab.qemu(&at, "vm1"))
    });
    lab.writes(&at, "vm1");
    stays(&lab, "vm2 is stopped", Duration::from_secs(4), |lab| lab.shown("vms", "vm2", "state") == "Stopped");
    lab.no_split_brain();
}
