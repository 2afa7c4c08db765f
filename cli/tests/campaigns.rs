//! Campaigns on the lab: a controller killed at every step of its journal, a full disk, all VMs of one host.
#![allow(missing_docs)]

mod common;

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use common::Lab;
use ringfence_drivers::journal::crash::step;
use serde_json::Value;

/// Every step that the journal of an HA flow has, from the host that does not answer to the VM that was brought back,
/// with a storage fence on the way. The first run proves that there is no other.
const STEPS: [&str; 10] = [
    "host.status-changed/Disconnected",
    "vm.state-changed/Unknown",
    "ha.host-failed",
    "ha.host-quarantine/true",
    "fence.intent/sibling",
    "fence.intent/storage",
    "ceph.storage-fence/intended",
    "ceph.storage-fence/fenced",
    "ceph.ha.sibling-fence",
    "vm.state-changed/Starting",
];

/// And what follows the act of starting it.
const ENDS: [&str; 2] = ["vm.state-changed/Running", "ha.vm-started"];

fn power_on(lab: &Lab, host: &str) {
    lab.ok("host-up.sh", &[host]);
    lab.ok("agent-up.sh", &[host]);
    lab.until_status(host, "Connected");
}

/// Row 22: killed -9 just before and just after every step, it resumes; the VM is started at most once per fence.
#[test]
#[ignore = "needs root: a lab of network namespaces"]
fn a_controller_killed_at_any_step_of_its_journal_resumes_and_starts_once() {
    // One VM, so that every step is one of its own.
    let lab = Lab::with("ck", &[("TB_VMS", "1")]);
    lab.writes("host-a", "vm1");
    let mark = lab.mark();
    lab.ok("host-down.sh", &["host-a"]);
    let mut at = lab.moved_from("host-a", "vm1");
    lab.until("it is told", |lab| !lab.facts(mark, "ha.vm-started").is_empty());
    let seen: BTreeSet<String> = lab
        .events(mark)
        .iter()
        .map(|record| step(record["topic"].as_str().unwrap(), &record["payload"]))
        .filter(|step| !step.starts_with("storage."))
        .collect();
    let listed: BTreeSet<String> = STEPS.iter().chain(&ENDS).map(|step| (*step).to_owned()).collect();
    assert_eq!(seen, listed, "the list of steps is not complete");
    power_on(&lab, "host-a");

    for step in STEPS.iter().chain(&ENDS) {
        for when in ["before", "after"] {
            let (from, mark) = (at.clone(), lab.mark());
            let (counted, _) = lab.disk("vm1");
            let armed = lab.dir.join("controller/armed");
            let crash = [
                ("RINGFENCE_TEST_CRASH", format!("{when}:{step}")),
                ("RINGFENCE_TEST_CRASH_ARMED", armed.display().to_string()),
            ];
            lab.controller(&crash.each_ref().map(|(name, value)| (*name, value.as_str())));
            for host in ["host-a", "host-b", "host-c"] {
                lab.until_status(host, "Connected");
            }
            lab.until("vm1 is known to run", |lab| lab.runs_on("vm1").is_some());
            std::fs::write(&armed, "").unwrap();
            lab.ok("host-down.sh", &[&from]);
            lab.until(&format!("the controller is killed {when} {step}"), |lab| !lab.controller_runs());
            std::fs::remove_file(&armed).unwrap();
            lab.controller(&[]);
            at = lab.moved_from(&from, "vm1");
            assert!(lab.disk("vm1").0 > counted, "{when} {step}: the guest's counter went back");
            lab.no_split_brain();
            // Every attempt that began has exactly one end.
            let attempts = |topic: &str| -> Vec<Value> {
                lab.facts(mark, topic).iter().map(|fact| fact["attempt"].clone()).collect()
            };
            let begun: BTreeSet<String> = attempts("fence.intent").iter().map(Value::to_string).collect();
            lab.until(&format!("{when} {step}: every attempt is audited"), |lab| {
                lab.facts(mark, "ceph.ha.sibling-fence").len() == begun.len()
            });
            let ended: BTreeSet<String> = attempts("ceph.ha.sibling-fence").iter().map(Value::to_string).collect();
            assert_eq!(begun, ended, "{when} {step}");
            power_on(&lab, &from);
            assert_eq!(lab.qemu(&from, "vm1"), 0, "{when} {step}");
        }
    }
    assert!(lab.order(&["events", "--verify"]).unwrap().contains("hash chain verified"));
}

/// Row 36: where the journal cannot be written nothing irreversible is done; when it can, it goes on by itself.
#[test]
#[ignore = "needs root: a lab of network namespaces"]
fn with_a_full_disk_nothing_is_fenced_and_when_there_is_room_it_goes_on() {
    let lab = Lab::with("cf", &[("TB_STATE_MB", "8")]);
    lab.writes("host-b", "vm2");
    let filler = lab.dir.join("controller/state/filler");
    let mut full = std::fs::File::create(&filler).unwrap();
    while std::io::Write::write_all(&mut full, &[0; 4096]).is_ok() {}
    let mark = lab.mark();
    lab.ok("host-down.sh", &["host-b"]);
    lab.until_status("host-b", "Disconnected");
    let end = Instant::now() + Duration::from_secs(8);
    while Instant::now() < end {
        assert_ne!(lab.shown("vms", "vm2", "state"), "Running", "started without a journal");
        for host in ["host-a", "host-c"] {
            assert_eq!(lab.qemu(host, "vm2"), 0, "started on {host} without a journal");
        }
    }
    let blocked = lab.blocklist(&["ls"]);
    assert!(!blocked.contains("10.77.0.12"), "fenced without a journal: {blocked}");
    drop(full);
    std::fs::remove_file(&filler).unwrap();
    lab.moved_from("host-b", "vm2");
    let failed = lab.facts(mark, "host.status-changed");
    assert!(
        failed.iter().any(|fact| fact["newStatus"] == "Disconnected"),
        "what happened meanwhile is told: {failed:?}"
    );
    lab.no_split_brain();
    assert!(lab.order(&["events", "--verify"]).unwrap().contains("hash chain verified"));
}

/// Row 38, with few, or with the 20 of `make many-vms`: all of them up elsewhere, spread out, none twice.
#[test]
#[ignore = "needs root: a lab of network namespaces"]
fn all_vms_of_one_host_come_back_spread_out_and_none_twice() {
    let vms = std::env::var("VMS").unwrap_or("8".to_owned());
    let count: usize = vms.parse().expect("VMS is a number");
    let lab = Lab::with("cv", &[("TB_VMS", &vms), ("TB_ON", "host-a"), ("TB_ACCEL", "auto")]);
    let mark = lab.mark();
    lab.ok("host-down.sh", &["host-a"]);
    let running =
        |lab: &Lab| lab.list("vms").iter().filter(|vm| vm["state"] == "Running" && vm["host"] != "host-a").count();
    lab.until("all of them run elsewhere", |lab| running(lab) == count);
    let on = |host: &str| -> Vec<String> {
        lab.list("vms")
            .iter()
            .filter(|vm| vm["host"] == host)
            .map(|vm| vm["name"].as_str().unwrap().to_owned())
            .collect()
    };
    let (b, c) = (on("host-b"), on("host-c"));
    assert!(
        b.len() + c.len() == count && b.len().abs_diff(c.len()) <= (count * 3 / 10).max(4),
        "spread out: {} and {}",
        b.len(),
        c.len()
    );
    for (host, other, vms) in [("host-b", "host-c", &b), ("host-c", "host-b", &c)] {
        for vm in vms {
            assert_ne!(lab.qemu(host, vm), 0, "{vm} on {host}");
            assert_eq!(lab.qemu(other, vm), 0, "{vm} runs twice");
        }
        lab.writes(host, &vms[0]);
        lab.writes(host, vms.last().unwrap());
    }
    assert_eq!(lab.facts(mark, "ceph.ha.sibling-fence").len(), count, "one fence each");
    assert_eq!(lab.facts(mark, "ha.vm-started").len(), count, "one start each");
    // The storage was told once, not once for each.
    let fenced: Vec<_> =
        lab.facts(mark, "ceph.storage-fence").into_iter().filter(|f| f["phase"] == "intended").collect();
    assert!(fenced.len() <= 5, "{} orders to the storage", fenced.len());
    lab.no_split_brain();
}
