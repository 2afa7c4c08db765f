//! The lab as tests use it: a lab of a test's own; another one may be up beside it.
//!
//! Waits are level-triggered and bounded, and say what was seen last. A question that cannot be asked is asked again
//! for [`PROBE_WITHIN`], and then fails the test with what it said: nothing seen is not nothing there. Dropped, a lab
//! is taken down, also when the test panics; one that was left by a crash is taken down first.
#![allow(dead_code, unreachable_pub)]

pub mod agent;

use std::{
    future::Future,
    os::fd::AsFd,
    path::{Path, PathBuf},
    process::{Command, Output},
    time::{Duration, Instant},
};

use ringfence_cli::oracle::{self, Guests};
use serde_json::Value;

pub const WITHIN: Duration = Duration::from_secs(120);

/// How long a probe may fail. Too low: a busy machine, or a controller that is being started, fails a test. Too high: a
/// probe that is broken holds up the others.
const PROBE_WITHIN: Duration = Duration::from_secs(20);

const HOSTS: [&str; 3] = ["host-a", "host-b", "host-c"];

/// A lab that is up.
pub struct Lab {
    pub dir: PathBuf,
    pub id: &'static str,
    environment: Vec<(&'static str, String)>,
}

impl Lab {
    /// Brings one up; the environment is the scripts'.
    pub fn with(id: &'static str, environment: &[(&'static str, &str)]) -> Lab {
        let environment = environment.iter().map(|(key, value)| (*key, (*value).to_owned())).collect();
        let lab = Lab { dir: std::env::temp_dir().join(format!("ringfence-lab-{id}")), id, environment };
        lab.run("all-down.sh", &[]);
        lab.ok("up.sh", &[]);
        // What the oracle is to judge later can be seen at all.
        let vms = lab.list("vms");
        let vms: Vec<String> = vms.iter().map(|vm| vm["name"].as_str().unwrap().to_owned()).collect();
        lab.until("every guest writes", |lab| oracle::silent(&lab.told(), &vms).is_empty());
        lab
    }

    /// What a probe answers once it succeeds.
    fn probe<T>(&self, what: &str, look: impl Fn(&Lab) -> Result<T, String>) -> T {
        let deadline = Instant::now() + PROBE_WITHIN;
        loop {
            match look(self) {
                Ok(seen) => return seen,
                Err(why) => assert!(Instant::now() < deadline, "cannot look at {what}: {why}"),
            }
        }
    }

    /// A list that the program prints as JSON.
    fn json(&self, arguments: &[&str]) -> Vec<Value> {
        self.probe(&format!("{arguments:?}"), |lab| {
            let output = lab.ringfence(arguments);
            let said = || String::from_utf8_lossy(&output.stderr).into_owned();
            match output.status.success() {
                true => serde_json::from_slice(&output.stdout).map_err(|e| format!("{e}: {}", said())),
                false => Err(format!("{}: {}", output.status, said())),
            }
        })
    }

    /// What the guests say, host by host.
    fn told(&self) -> Vec<(&'static str, Guests)> {
        let ask = |host: &str| {
            self.probe(host, |lab| oracle::read(&lab.run("host-exec.sh", &[host, "sh", "-c", oracle::SCRIPT])))
        };
        HOSTS.iter().map(|host| (*host, ask(host))).collect()
    }

    pub fn run(&self, script: &str, arguments: &[&str]) -> Output {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../lab").join(script);
        let mut command = Command::new("bash");
        command.arg(script).args(arguments).env("TB", &self.dir).env("TB_ID", self.id);
        command.envs(self.environment.iter().map(|(key, value)| (key, value)));
        command.env("RINGFENCE", env!("CARGO_BIN_EXE_ringfence")).output().unwrap()
    }

    pub fn ok(&self, script: &str, arguments: &[&str]) -> String {
        let output = self.run(script, arguments);
        let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{script} {arguments:?}: {said}");
        String::from_utf8(output.stdout).unwrap()
    }

    pub fn ringfence(&self, arguments: &[&str]) -> Output {
        let (net, program) = (format!("{}-net", self.id), self.dir.join("controller/ringfence"));
        Command::new("ip").args(["netns", "exec", &net]).arg(program).args(arguments).output().unwrap()
    }

    pub fn order(&self, arguments: &[&str]) -> Result<String, String> {
        let output = self.ringfence(arguments);
        match output.status.success() {
            true => Ok(String::from_utf8(output.stdout).unwrap()),
            false => Err(String::from_utf8(output.stderr).unwrap()),
        }
    }

    pub fn list(&self, what: &str) -> Vec<Value> {
        self.json(&[what, "--json"])
    }

    /// What is shown of one thing: `("vms", "vm1", "state")`.
    pub fn shown(&self, what: &str, name: &str, field: &str) -> String {
        let all = self.list(what);
        let of = all.iter().find(|one| one["name"] == name);
        of.and_then(|one| one[field].as_str()).unwrap_or("-").to_owned()
    }

    pub fn until(&self, what: &str, mut is: impl FnMut(&Lab) -> bool) {
        let deadline = Instant::now() + WITHIN;
        while !is(self) {
            let last = String::from_utf8(self.ringfence(&["status"]).stdout).unwrap();
            assert!(Instant::now() < deadline, "waited {WITHIN:?} in vain until {what}; {last}");
        }
    }

    /// What the guest has told on its serial line on a host; nothing if it never ran there, or the host is down.
    pub fn serial(&self, host: &str, vm: &str) -> String {
        self.console(host, &format!("[ ! -e /run/{vm}.serial ] || cat /run/{vm}.serial"))
    }

    /// The counter on the VM's disk and who wrote it.
    pub fn disk(&self, vm: &str) -> (u64, String) {
        let said = self.ok("vm-journal.sh", &[vm, "1"]);
        let mut words = said.lines().next().unwrap().split(' ').skip(1);
        (words.next().unwrap().parse().unwrap(), words.next().unwrap_or_default().to_owned())
    }

    /// Waits until the guest writes here, and nobody else has.
    pub fn writes(&self, host: &str, vm: &str) {
        let before = self.serial(host, vm).matches('.').count();
        self.until(&format!("{vm} writes on {host}"), |lab| lab.serial(host, vm).matches('.').count() > before + 5);
        let serial = self.serial(host, vm);
        assert!(!serial.contains('S'), "split brain of {vm} on {host}: {serial}");
    }
}

/// What the tests of HA look at and do to hosts.
impl Lab {
    /// The newest record's number.
    pub fn mark(&self) -> u64 {
        self.events(0).last().map_or(0, |record| record["seq"].as_u64().unwrap())
    }

    /// The records after a number.
    pub fn events(&self, after: u64) -> Vec<Value> {
        self.json(&["events", "--json", "--after", &after.to_string()])
    }

    /// What the records of a topic after a number tell.
    pub fn facts(&self, after: u64, topic: &str) -> Vec<Value> {
        self.events(after).iter().filter(|record| record["topic"] == topic).map(|r| r["payload"].clone()).collect()
    }

    /// The one fence since then that was audited, once it was: its outcome and reason.
    pub fn fence_of(&self, after: u64, vm: &str) -> (String, String) {
        let of = |lab: &Lab| -> Vec<Value> {
            lab.facts(after, "ceph.ha.sibling-fence").into_iter().filter(|fact| fact["vm"] == vm).collect()
        };
        self.until(&format!("a fence of {vm} is audited"), |lab| !of(lab).is_empty());
        let text = |key: &str| of(self)[0][key].as_str().unwrap().to_owned();
        (text("outcome"), text("reason"))
    }

    pub fn runs_on(&self, vm: &str) -> Option<String> {
        (self.shown("vms", vm, "state") == "Running").then(|| self.shown("vms", vm, "host"))
    }

    /// Waits until the VM runs and writes on another host than this, and says on which.
    pub fn moved_from(&self, host: &str, vm: &str) -> String {
        let elsewhere = |lab: &Lab| lab.runs_on(vm).filter(|at| at != host);
        self.until(&format!("{vm} runs elsewhere than on {host}"), |lab| elsewhere(lab).is_some());
        let at = elsewhere(self).unwrap();
        self.writes(&at, vm);
        at
    }

    pub fn status(&self, host: &str) -> String {
        self.shown("hosts", host, "status")
    }

    pub fn until_status(&self, host: &str, status: &str) {
        self.until(&format!("{host} is {status}"), |lab| lab.status(host) == status);
    }

    /// Runs a script on a host's console, which has to succeed; what it says. A host that is down says nothing.
    pub fn console(&self, host: &str, script: &str) -> String {
        let output = self.run("host-exec.sh", &[host, "sh", "-c", script]);
        let (said, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        let fine = output.status.success() || oracle::is_down(&output);
        assert!(fine, "{script} on {host}: {}: {said}{errors}", output.status);
        said.trim().to_owned()
    }

    pub fn kill_agent(&self, host: &str) {
        self.ok("host-exec.sh", &[host, "sh", "-c", "kill -9 $(cat /run/agent.pid)"]);
        self.until_status(host, "Disconnected");
    }

    /// The pid of a VM's QEMU on a host, 0 if there is none.
    pub fn qemu(&self, host: &str, vm: &str) -> u32 {
        let uuid = ringfence_messages::VmId::from_name(vm);
        let script = format!(
            "for p in /proc/[0-9]*; do tr '\\0' '\\n' <$p/cmdline 2>/dev/null | grep -qx {uuid} && \
             readlink $p/exe | grep -q qemu-system && echo ${{p#/proc/}}; done; echo complete"
        );
        let output = self.run("host-exec.sh", &[host, "sh", "-c", &script]);
        let said = String::from_utf8_lossy(&output.stdout);
        let errors = String::from_utf8_lossy(&output.stderr);
        let looked = oracle::is_down(&output) || said.ends_with("complete\n");
        assert!(looked, "cannot look for the QEMU of {vm} on {host}: {}: {said}{errors}", output.status);
        said.lines().next().and_then(|pid| pid.parse().ok()).unwrap_or(0)
    }

    /// Nobody has ever seen another writer on its disk, and every VM that runs has written to it.
    pub fn no_split_brain(&self) {
        let running = self.list("vms").into_iter().filter(|vm| vm["state"] == "Running");
        let running: Vec<String> = running.map(|vm| vm["name"].as_str().unwrap().to_owned()).collect();
        self.until("every VM that runs has written", |lab| {
            let told = lab.told();
            let split = oracle::split_brain(&told);
            assert!(split.is_empty(), "split brain: {split:?}");
            oracle::silent(&told, &running).is_empty()
        });
    }

    /// `ceph osd blocklist ...` as Ceph's administrator; what it prints.
    pub fn blocklist(&self, arguments: &[&str]) -> String {
        let net = format!("{}-net", self.id);
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &net, "ceph", "--conf"]).arg(self.dir.join("ceph/ceph.conf"));
        let output = command.args(["osd", "blocklist"]).args(arguments).output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn controller_pid(&self) -> String {
        std::fs::read_to_string(self.dir.join("controller/pid")).unwrap_or_default().trim().to_owned()
    }

    pub fn kill_controller(&self) {
        assert!(Command::new("kill").args(["-9", &self.controller_pid()]).status().unwrap().success());
        self.until("the controller is gone", |lab| !lab.controller_runs());
    }

    pub fn controller_runs(&self) -> bool {
        let pid = self.controller_pid();
        let state = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        state.rsplit(')').next().is_some_and(|rest| !rest.is_empty() && !rest.trim_start().starts_with('Z'))
    }

    /// (Re)starts the controller, with more in its environment.
    pub fn controller(&self, environment: &[(&str, &str)]) {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../lab/controller-up.sh");
        let mut command = Command::new("bash");
        command.arg(script).env("TB", &self.dir).env("TB_ID", self.id).envs(environment.iter().copied());
        assert!(command.status().unwrap().success());
        self.until("the controller answers", |lab| {
            lab.ringfence(&["status"]).status.success() || !lab.controller_runs()
        });
    }
}

/// Runs this where the lab's network is: on a thread of its own that has moved there.
pub fn inside<T: Send>(lab: &Lab, work: impl Future<Output = T> + Send) -> T {
    let net = std::fs::File::open(format!("/run/netns/{}-net", lab.id)).unwrap();
    std::thread::scope(|scope| {
        let thread = scope.spawn(move || {
            let network = rustix::thread::LinkNameSpaceType::Network;
            rustix::thread::move_into_link_name_space(net.as_fd(), Some(network)).unwrap();
            tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
        });
        thread.join().unwrap()
    })
}

impl Drop for Lab {
    fn drop(&mut self) {
        // What a failed test leaves to read: its lab is gone in a moment.
        if std::thread::panicking() {
            let log = std::fs::read_to_string(self.dir.join("controller/log")).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            eprintln!("the controller's last words:\n{}", lines[lines.len().saturating_sub(40)..].join("\n"));
        }
        let output = self.run("all-down.sh", &[]);
        if !output.status.success() {
            eprintln!("{}", String::from_utf8_lossy(&output.stderr));
        }
    }
}
