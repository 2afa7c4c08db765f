//! What claims to be a VM, and what contradicts that it is dead, on real hosts: rows of the fault matrix about
//! evidence.
#![allow(missing_docs)]

mod common;

use common::Lab;
use ringfence_messages::VmId;

/// Starts a program on a host that lives on when its console is gone.
fn leave(lab: &Lab, host: &str, program: &str) {
    lab.ok("host-exec.sh", &[host, "sh", "-c", &format!("setsid {program} </dev/null >/dev/null 2>&1 &")]);
}

fn phases(lab: &Lab, mark: u64) -> Vec<(String, String)> {
    let text = |fact: &serde_json::Value, key: &str| fact[key].as_str().unwrap().to_owned();
    lab.facts(mark, "vm.intruder").iter().map(|fact| (text(fact, "host"), text(fact, "phase"))).collect()
}

/// Rows 48 and 54 (K8, K20): a second QEMU of a VM that runs is ended; what a local user calls by its uuid is reported,
/// and keeps nobody from bringing the VM back.
#[test]
#[ignore = "needs root: a lab of network namespaces"]
fn a_second_qemu_is_ended_and_a_local_users_claim_is_not_believed() {
    let lab = Lab::with("ci", &[]);
    lab.writes("host-b", "vm2");
    let mark = lab.mark();
    let uuid = VmId::from_name("vm2");
    leave(&lab, "host-c", &format!("qemu-system-x86_64 -machine none -display none -S -uuid {uuid}"));
    lab.until("the second one is seen", |lab| !phases(lab, mark).is_empty());
    let ended = ("host-c".to_owned(), "ended".to_owned());
    lab.until("the second one is ended", |lab| phases(lab, mark).contains(&ended));
    assert_eq!((lab.qemu("host-c", "vm2"), lab.runs_on("vm2").as_deref()), (0, Some("host-b")));
    lab.writes("host-b", "vm2");

    let (mark, uuid) = (lab.mark(), VmId::from_name("vm1"));
    lab.writes("host-a", "vm1");
    lab.console("host-c", "install -m 755 $(readlink -f $(which perl)) /usr/local/bin/qemu-system-x");
    let claim =
        format!("setpriv --reuid 65534 --regid 65534 --clear-groups qemu-system-x -e 'sleep 600' -- -uuid {uuid}");
    leave(&lab, "host-c", &claim);
    let told = ("host-c".to_owned(), "told".to_owned());
    lab.until("the claim is reported", |lab| phases(lab, mark).contains(&told));
    lab.ok("host-down.sh", &["host-a"]);
    lab.moved_from("host-a", "vm1");
    assert_eq!(phases(&lab, mark), [told], "once, and it was left alone");
    assert_ne!(lab.qemu("host-c", "vm1"), 0, "it still runs");
    lab.no_split_brain();
}

/// Row 43 (K3): no QEMU of the VM is left on a host whose agent is gone, and a client there has its volume open.
#[test]
#[ignore = "needs root: a lab of network namespaces"]
fn a_vm_that_is_called_dead_and_watched_from_there_is_refused_by_the_storage_first() {
    let lab = Lab::with("cw", &[]);
    lab.writes("host-c", "vm3");
    // It watches until its input ends.
    leave(&lab, "host-c", "sh -c 'sleep 600 | rbd --id compute watch rbd/vm3'");
    let watchers = |lab: &Lab| {
        let said = lab.console("host-c", "timeout 20 rbd --id compute status rbd/vm3");
        said.matches("watcher=10.77.0.13").count()
    };
    lab.until("a second client watches", |lab| watchers(lab) == 2);
    let pid = lab.qemu("host-c", "vm3");
    lab.kill_agent("host-c");
    lab.console("host-c", &format!("kill -9 {pid}"));
    let mark = lab.mark();
    lab.order(&["vm", "ha-start", "vm3"]).unwrap();
    let (outcome, reason) = lab.fence_of(mark, "vm3");
    assert!(outcome == "success-storage-fenced" && reason.contains("reported dead there"), "{outcome}: {reason}");
    lab.moved_from("host-c", "vm3");
    lab.no_split_brain();
}

/// Row 41 (K1): the inventory has two hosts' addresses exchanged. Whoever answers is not the machine that is meant.
#[test]
#[ignore = "needs root: a lab of network namespaces"]
fn a_host_at_whose_address_another_one_answers_is_not_connected_and_nothing_is_fenced() {
    let lab = Lab::with("cx", &[]);
    lab.writes("host-a", "vm1");
    let mark = lab.mark();
    lab.kill_controller();
    let path = lab.dir.join("controller/controller.toml");
    let text = std::fs::read_to_string(&path).unwrap();
    let (a, b) = ("agent = \"http://10.77.0.11:7070\"", "agent = \"http://10.77.0.12:7070\"");
    assert!(text.contains(a) && text.contains(b), "{text}");
    let text = text.replace(a, "agent = \"-\"").replace(b, a).replace("agent = \"-\"", b);
    std::fs::write(&path, text).unwrap();
    lab.controller(&[]);
    for host in ["host-a", "host-b"] {
        lab.until(&format!("{host} is not taken for the other one"), |lab| {
            lab.status(host) == "Disconnected" && lab.order(&["explain", host]).unwrap().contains("is answered by host")
        });
    }
    assert_eq!(lab.facts(mark, "fence.intent").len(), 0, "what another machine says proves nothing");
    assert_eq!(lab.status("host-c"), "Connected");
    lab.no_split_brain();
}

/// The QEMU goes on by another name and spelling.
const RENAMED: &str = "cp $(readlink -f /proc/PID/exe) /usr/bin/emulator; tr '\\0' '\\n' </proc/PID/cmdline | \
                       sed '1s,.*,/usr/bin/emulator,; s,^-uuid$,--uuid,' >/run/arguments; kill -9 PID; \
                       while [ -e /proc/PID ]; do sleep 0.1; done; \
                       setsid xargs -d '\\n' -a /run/arguments env </dev/null >/dev/null 2>&1 &";

/// The agent of a host ends, and the QEMU of a VM there meets this end.
fn ends(lab: &Lab, host: &str, vm: &str, end: &str) {
    lab.kill_agent(host);
    lab.console(host, &end.replace("PID", &lab.qemu(host, vm).to_string()));
}

fn fence(lab: &Lab, vm: &str) -> (String, String) {
    let mark = lab.mark();
    lab.order(&["vm", "ha-start", vm]).unwrap();
    lab.fence_of(mark, vm)
}

/// Row 42 (K2): a QEMU by another name and spelling is the VM; who does not see all processes proves nothing.
#[test]
#[ignore = "needs root: a lab of network namespaces"]
fn a_renamed_qemu_is_killed_and_a_blind_observer_proves_nothing() {
    let lab = Lab::with("bl", &[]);
    lab.writes("host-b", "vm2");
    ends(&lab, "host-b", "vm2", RENAMED);
    lab.writes("host-b", "vm2");
    let (outcome, reason) = fence(&lab, "vm2");
    assert_eq!(outcome, "success-killed", "{reason}");
    lab.moved_from("host-b", "vm2");
    lab.console("host-b", "! pgrep -x emulator");
    lab.ok("agent-up.sh", &["host-b"]);
    lab.until_status("host-b", "Connected");

    lab.writes("host-c", "vm3");
    let hidden = "mount -o remount,hidepid=invisible /proc; kill -9 PID";
    ends(&lab, "host-c", "vm3", hidden);
    let (outcome, reason) = fence(&lab, "vm3");
    assert!(outcome == "success-storage-fenced" && reason.contains("hidepid"), "{outcome}: {reason}");
    lab.moved_from("host-c", "vm3");
    lab.no_split_brain();
}
