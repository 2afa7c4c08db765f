//! How long it takes from the loss of a host to its VM writing elsewhere, and which phase takes what, on the lab. Run
//! by `make lab-times`, as root.
#![allow(missing_docs, clippy::print_stdout)]

#[path = "../tests/common/mod.rs"]
mod common;

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use common::Lab;

const RUNS: usize = 5;
const DAY: f64 = 86_400.0;

/// Seconds since midnight, UTC.
fn clock() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64() % DAY
}

/// Of `2026-11-21T10:51:52.677Z`.
fn of_record(time: &str) -> f64 {
    let parts: Vec<f64> = time[11..time.len() - 1].split(':').map(|part| part.parse().unwrap()).collect();
    parts[0] * 3600.0 + parts[1] * 60.0 + parts[2]
}

const PHASES: [&str; 5] = ["noticed", "judged", "fenced", "started", "writes"];

/// One loss: the seconds at which each phase ended.
fn lose(lab: &Lab, from: &str, how: &[&str]) -> ([f64; 5], String) {
    let mark = lab.mark();
    let hosts = ["host-a", "host-b", "host-c"];
    let length = |host: &str| lab.serial(host, "vm1").len();
    for host in hosts.iter().filter(|host| **host != from) {
        lab.console(host, "rm -f /run/vm1.serial");
    }
    let began = clock();
    lab.ok(how[0], &how[1..]);
    let end = Instant::now() + Duration::from_secs(60);
    let (to, writes) = loop {
        if let Some(host) = hosts.iter().filter(|host| **host != from).find(|host| length(host) > 0) {
            break (*host, clock());
        }
        assert!(Instant::now() < end, "vm1 does not come back: {}", lab.order(&["explain", "vm1"]).unwrap());
    };
    let at = |topic: &str, key: &str, value: &str| {
        let mut seconds = 0.0;
        lab.until("it is in the journal", |lab| {
            let events = lab.events(mark);
            let found = events.iter().find(|r| r["topic"] == topic && (key.is_empty() || r["payload"][key] == value));
            seconds = found.map_or(0.0, |record| of_record(record["time"].as_str().unwrap()));
            found.is_some()
        });
        seconds
    };
    let ends = [
        at("host.status-changed", "newStatus", "Disconnected"),
        at("ha.host-failed", "", ""),
        at("ceph.ha.sibling-fence", "", ""),
        at("vm.state-changed", "newState", "Running"),
        writes,
    ];
    (ends.map(|end| (end - began + DAY) % DAY), to.to_owned())
}

fn median(mut of: Vec<f64>) -> f64 {
    of.sort_by(f64::total_cmp);
    of[of.len() / 2]
}

fn main() {
    assert!(rustix::process::geteuid().is_root(), "the lab needs root");
    println!(
        "from the loss of a host to its VM writing on another one; ping interval 1 s, timeout 2 s, max_failure 3; \
         {RUNS} runs\n"
    );
    let lab = Lab::with("tm", &[("TB_VMS", "1")]);
    lab.writes("host-a", "vm1");
    let mut at = "host-a".to_owned();
    for (what, cut) in
        [("the plug is pulled (its address still answers: refused)", false), ("cut off from everything, SSH too", true)]
    {
        let mut runs = Vec::new();
        println!("{what}");
        for _ in 0..RUNS {
            let from = at.clone();
            let how: &[&str] = if cut { &["host-cut.sh", &from, "all"] } else { &["host-down.sh", &from] };
            let (ends, to) = lose(&lab, &from, how);
            println!("  {from} -> {to}  {:.2} s", ends[4]);
            runs.push(ends);
            if cut {
                lab.ok("host-heal.sh", &[&from]);
            } else {
                lab.ok("host-up.sh", &[&from]);
                lab.ok("agent-up.sh", &[&from]);
            }
            lab.until_status(&from, "Connected");
            lab.no_split_brain();
            at = to;
        }
        let mut before = 0.0;
        for (n, phase) in PHASES.iter().enumerate() {
            let end = median(runs.iter().map(|ends| ends[n]).collect());
            println!("  {phase:<8} at {end:>5.2} s   (+{:.2})", end - before);
            before = end;
        }
        println!("  median {before:.2} s\n");
    }
}
