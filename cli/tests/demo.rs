//! `ringfence demo` as a user runs it: without a terminal, left up, and taken down by the line that it prints.
#![allow(missing_docs)]

use std::{
    path::Path,
    process::{Command, Output},
    time::{Duration, Instant},
};

use ringfence_drivers::node::proc::Process;

fn run(program: &str, arguments: &[&str]) -> Output {
    Command::new(program).args(arguments).output().unwrap()
}

#[test]
fn what_keep_leaves_up_works_and_goes_away_by_the_line_that_is_printed() {
    let ringfence = env!("CARGO_BIN_EXE_ringfence");
    let demo = run(ringfence, &["demo", "--keep"]);
    let said = String::from_utf8(demo.stdout).unwrap();
    assert_eq!(demo.status.code(), Some(0), "{said}{}", String::from_utf8_lossy(&demo.stderr));
    assert!(said.contains("13 steps, every one observed") && !said.contains('\x1b'), "{said}");
    let after = |start: &str| said.lines().find_map(|line| line.trim().strip_prefix(start)).unwrap().to_owned();
    let server = after("export RINGFENCE_SERVER=");
    let down = said.lines().last().unwrap().trim();
    let dir = down.rsplit_once(' ').unwrap().1;
    let ours = |p: &Process| p.is_alive() && p.argv.iter().any(|arg| arg.contains(dir));
    let count = || Process::scan(ours).unwrap().len();

    let status = run(ringfence, &["vms", "--server", &server]);
    assert!(String::from_utf8_lossy(&status.stdout).contains("Running"));
    assert_eq!(count(), 6, "controller, two agents, two targets, one QEMU");

    let down = run("sh", &["-c", down]);
    assert!(down.status.success(), "{}", String::from_utf8_lossy(&down.stderr));
    let deadline = Instant::now() + Duration::from_secs(10);
    while count() > 0 {
        assert!(Instant::now() < deadline, "{:?} run on", Process::scan(ours));
        std::thread::yield_now();
    }
    assert!(!Path::new(dir).exists());
}
