//! A VM that another program moves between real hosts: row 52 of the fault matrix.
#![allow(missing_docs)]

mod common;

use common::Lab;

/// Runs commands of QMP (`$1`: the socket, `$2`: the address of the other QEMU) until the migration has ended.
const MIGRATE: &str = r#"
import json, socket, sys, time
monitor = socket.socket(socket.AF_UNIX)
monitor.settimeout(60)
monitor.connect(sys.argv[1])
answers = monitor.makefile()
answers.readline()
def ask(command, **arguments):
    monitor.sendall(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
    while True:
        answer = json.loads(answers.readline())
        if "error" in answer:
            sys.exit(str(answer["error"]))
        if "return" in answer:
            return answer["return"]
ask("qmp_capabilities")
ask("migrate", uri=sys.argv[2])
deadline = time.monotonic() + 60
while (status := ask("query-migrate").get("status")) != "completed":
    if status == "failed" or time.monotonic() > deadline:
        sys.exit(f"the migration is {status}")
    time.sleep(0.05)
ask("quit")
"#;

/// The QEMU of a VM on a host, started once more on another one, where it waits for the migration.
fn waits_for(lab: &Lab, vm: &str, from: &str, to: (&str, &str)) -> String {
    let pid = lab.qemu(from, vm);
    let arguments = lab.console(from, &format!("tr '\\0' '\\n' </proc/{pid}/cmdline"));
    let arguments: Vec<&str> = arguments.lines().collect();
    let monitor =
        arguments.iter().find_map(|argument| argument.strip_prefix("unix:")).expect("it has a control socket");
    let monitor = monitor.split(',').next().unwrap().to_owned();
    let quoted: Vec<String> =
        arguments.iter().map(|argument| format!("'{}'", argument.replace('\'', "'\\''"))).collect();
    let (host, address) = to;
    let dir = std::path::Path::new(&monitor).parent().unwrap().display().to_string();
    let start =
        format!("mkdir -p {dir}; setsid {} -incoming {address} </dev/null >/run/incoming.log 2>&1 &", quoted.join(" "));
    lab.console(host, &start);
    lab.until("it waits for the migration", |lab| lab.qemu(host, vm) != 0);
    monitor
}

/// K12: it is found where it is now, nothing starts beside it, and it is stopped and fenced there like any other.
#[test]
#[ignore = "needs root: a lab of network namespaces"]
fn a_migrated_vm_is_found_stopped_and_fenced_on_its_new_host() {
    let lab = Lab::with("mg", &[]);
    lab.writes("host-a", "vm1");
    let mark = lab.mark();
    let address = "tcp:10.77.0.12:4455";
    let monitor = waits_for(&lab, "vm1", "host-a", ("host-b", address));
    lab.ok("host-exec.sh", &["host-a", "python3", "-c", MIGRATE, &monitor, address]);
    lab.until("it is found on host-b", |lab| lab.runs_on("vm1").as_deref() == Some("host-b"));
    lab.writes("host-b", "vm1");
    assert_eq!(lab.qemu("host-a", "vm1"), 0);
    let started = |fact: &serde_json::Value| fact["vm"] == "vm1" && fact["newState"] == "Starting";
    assert!(!lab.facts(mark, "vm.state-changed").iter().any(started), "it was started beside itself");
    assert_eq!(lab.facts(mark, "vm.intruder").len(), 0, "neither of the two QEMUs is an intruder");

    lab.ok("host-down.sh", &["host-b"]);
    lab.moved_from("host-b", "vm1");
    lab.order(&["vm", "stop", "vm1"]).unwrap();
    assert!(["host-a", "host-c"].iter().all(|host| lab.qemu(host, "vm1") == 0));
    lab.no_split_brain();
}
