//! Runs a story on the lab: real Ceph, QEMU, sshd and hosts in namespaces, with the scripts of `lab/`.
//!
//! The lab has three hosts, and its n-th VM starts on its n-th host: `host-0` is `host-a`, `vm-0` is `vm1`.
//! Expectations about VMs and the journal are checked until their time plus [`GRACE`], because real machines are
//! slower. Expectations that only the simulated world can observe are skipped. Invariants: the guests detect two
//! writers on one disk, which is always checked at the end; a failed probe fails the expectation, see [`oracle`].

use std::{
    path::{Path, PathBuf},
    process::{Command, Output},
    time::{Duration, Instant},
};

use ringfence_sim::{
    fault::{Act, Fault, Step, StepKind},
    plan::Location,
    scenario::{Expected, Scenario},
};
use serde_json::Value;

use crate::oracle::{self, Guests};

/// Extra time compared with the simulated world. Too low: slow machines fail stories. Too high: failures take long.
const GRACE: Duration = Duration::from_secs(45);

/// Time between two probes.
const LOOK_EVERY: Duration = Duration::from_millis(200);

pub(crate) const HOSTS: [&str; 3] = ["host-a", "host-b", "host-c"];

/// A running lab; dropping it takes it down.
pub(crate) struct Lab {
    /// Prefix of its namespaces, so that two stories can run at the same time.
    id: String,
    scripts: PathBuf,
    dir: PathBuf,
    environment: Vec<(&'static str, String)>,
}

/// Runs a story. Returns failed expectations.
///
/// # Errors
/// The reason why the story cannot run on the lab.
pub(crate) fn play(scenario: &Scenario) -> Result<Vec<String>, String> {
    let plan = scenario.plan();
    let misplaced = plan.places.iter().enumerate().find(|(n, place)| **place != format!("host-{}", n % HOSTS.len()));
    if let Some((n, place)) = misplaced {
        return Err(format!("the lab starts vm-{n} on host-{}, not on {place}", n % HOSTS.len()));
    }
    let faults = plan.steps.iter().filter_map(|step| match &step.kind {
        StepKind::Fault(fault, _) => Some(fault),
        StepKind::Act(_) => None,
    });
    if plan.steps.iter().any(|step| step.kind == StepKind::Act(Act::DeclareRestored)) {
        return Err("the lab does not start its controller with --restored".to_owned());
    }
    for fault in faults {
        commands(fault, true, &[]).ok_or_else(|| format!("the lab does not have this fault: {fault:?}"))?;
    }
    let lab = Lab::up(plan.places.len())?;
    lab.begun()?;
    let first = plan.steps.first().map_or(Duration::ZERO, |step| step.at);
    // Starting the lab covers everything before the first fault.
    let began = Instant::now().checked_sub(first).unwrap_or_else(Instant::now) + Duration::from_secs(2);
    let mut active: Vec<(Duration, Fault)> = Vec::new();
    let mut failures = Vec::new();
    for moment in moments(scenario, &plan.steps) {
        wait((began + moment.at).saturating_duration_since(Instant::now()));
        match moment.what {
            Then::Begin(fault, lasting) => {
                active.push((moment.at + lasting, fault.clone()));
                lab.change(&fault, true, &active)?;
            }
            Then::End(fault) => {
                active.retain(|(until, other)| *until > moment.at || *other != fault);
                lab.change(&fault, false, &active)?;
            }
            Then::Act(act) => lab.act(&act),
            Then::Expect(expected) => failures.extend(lab.expect(&expected, GRACE)),
        }
    }
    if scenario.ends_well {
        failures.extend(lab.unwell());
    }
    failures.extend(lab.split_brain());
    Ok(failures)
}

struct Moment {
    at: Duration,
    what: Then,
}

enum Then {
    Begin(Fault, Duration),
    End(Fault),
    Act(Act),
    Expect(Expected),
}

/// All steps and expectations, in sequence of time.
fn moments(scenario: &Scenario, steps: &[Step]) -> Vec<Moment> {
    let mut moments = Vec::new();
    let mut over = Duration::ZERO;
    for step in steps {
        match &step.kind {
            StepKind::Fault(fault, lasting) => {
                moments.push(Moment { at: step.at, what: Then::Begin(fault.clone(), *lasting) });
                moments.push(Moment { at: step.at + *lasting, what: Then::End(fault.clone()) });
                over = over.max(step.at + *lasting);
            }
            StepKind::Act(act) => moments.push(Moment { at: step.at, what: Then::Act(act.clone()) }),
        }
    }
    for expected in scenario.expected.iter().filter(|expected| !expected.simulated_only) {
        // Expectations of the end are checked after all faults have ended, without waiting for virtual hours.
        let at = expected.at.map_or(over, Duration::from_secs_f64).min(over + Duration::from_secs(30));
        moments.push(Moment { at, what: Then::Expect(expected.clone()) });
    }
    moments.sort_by_key(|moment| moment.at);
    moments
}

/// The lab's name of a story's host.
fn host(name: &str) -> Option<&'static str> {
    HOSTS.iter().enumerate().find(|(n, _)| format!("host-{n}") == name).map(|(_, host)| *host)
}

/// The scripts that start or end a fault while the `active` faults continue; none if the lab does not support it.
fn commands(fault: &Fault, begins: bool, active: &[(Duration, Fault)]) -> Option<Vec<Vec<String>>> {
    let words = |line: &[&str]| line.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
    match fault {
        Fault::PowerLoss { host: name } => {
            let at = host(name)?;
            Some(match begins {
                true => vec![words(&["host-down.sh", at])],
                false => vec![words(&["host-up.sh", at]), words(&["agent-up.sh", at])],
            })
        }
        Fault::FreezeHost { host: name } => {
            let at = host(name)?;
            Some(vec![if begins { words(&["host-freeze.sh", at]) } else { words(&["host-freeze.sh", at, "thaw"]) }])
        }
        Fault::AgentCrash { host: name } => {
            let at = host(name)?;
            Some(vec![match begins {
                true => words(&["host-exec.sh", at, "sh", "-c", "kill -9 $(cat /run/agent.pid)"]),
                false => words(&["agent-up.sh", at]),
            }])
        }
        Fault::Cut { .. } => {
            let cuts = cuts(fault)?;
            let mut lines = Vec::new();
            for (at, what) in &cuts {
                if begins {
                    lines.push(words(&["host-cut.sh", at, what]));
                    continue;
                }
                lines.push(words(&["host-heal.sh", at]));
                let left = active.iter().filter_map(|(_, fault)| self::cuts(fault)).flatten();
                lines.extend(left.filter(|(of, _)| of == at).map(|(of, what)| words(&["host-cut.sh", of, what])));
            }
            Some(lines)
        }
        _ => None,
    }
}

/// The cuts between hosts and other parts.
fn cuts(fault: &Fault) -> Option<Vec<(&'static str, &'static str)>> {
    let Fault::Cut { from, to, one_way: false } = fault else { return None };
    match (from.as_str(), to.as_str()) {
        ("controller", "management") => Some(HOSTS.iter().map(|at| (*at, "mgmt")).collect()),
        ("controller", name) => Some(vec![(host(name)?, "mgmt")]),
        (name, "ceph") => Some(vec![(host(name)?, "ceph")]),
        (name, "management") => Some(vec![(host(name)?, "lan")]),
        (name, "everything") => Some(vec![(host(name)?, "all")]),
        _ => None,
    }
}

impl Lab {
    pub(crate) fn up(vms: usize) -> Result<Lab, String> {
        if !rustix::process::geteuid().is_root() {
            return Err("the lab needs root".to_owned());
        }
        let scripts = Path::new("lab")
            .canonicalize()
            .map_err(|e| format!("lab/: {e}; run the command in the project's folder"))?;
        let program = std::env::current_exe().map_err(|e| e.to_string())?;
        let id = format!("s{}", std::process::id());
        let dir = std::env::temp_dir().join(format!("ringfence-lab-{id}"));
        let environment = vec![
            ("TB", dir.display().to_string()),
            ("TB_ID", id.clone()),
            ("TB_VMS", vms.max(1).to_string()),
            ("RINGFENCE", program.display().to_string()),
        ];
        let lab = Lab { id, scripts, dir, environment };
        lab.script(&["up.sh".to_owned()])?;
        Ok(lab)
    }

    fn run(&self, line: &[String]) -> Result<Output, String> {
        let mut command = Command::new("bash");
        command.arg(self.scripts.join(&line[0])).args(&line[1..]);
        command.envs(self.environment.iter().map(|(key, value)| (key, value)));
        command.output().map_err(|e| e.to_string())
    }

    pub(crate) fn script(&self, line: &[String]) -> Result<String, String> {
        let output = self.run(line)?;
        let said = |of: &[u8]| String::from_utf8_lossy(of).into_owned();
        match output.status.success() {
            true => Ok(said(&output.stdout)),
            false => Err(format!("{line:?}: {}{}", said(&output.stdout), said(&output.stderr))),
        }
    }

    pub(crate) fn change(&self, fault: &Fault, begins: bool, active: &[(Duration, Fault)]) -> Result<(), String> {
        let lines = commands(fault, begins, active).unwrap_or_default();
        lines.iter().try_for_each(|line| self.script(line).map(drop))
    }

    pub(crate) fn ringfence(&self, arguments: &[&str]) -> Result<Output, String> {
        let program = self.dir.join("controller/ringfence");
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &format!("{}-net", self.id)]).arg(program).args(arguments);
        command.output().map_err(|e| e.to_string())
    }

    fn json(&self, arguments: &[&str]) -> Result<Vec<Value>, String> {
        let output = self.ringfence(arguments)?;
        let said = || format!("{arguments:?}: {}: {}", output.status, String::from_utf8_lossy(&output.stderr));
        match output.status.success() {
            true => serde_json::from_slice(&output.stdout).map_err(|e| format!("{}: {e}", said())),
            false => Err(said()),
        }
    }

    /// The guests of each host.
    fn told(&self) -> Result<Vec<(&'static str, Guests)>, String> {
        let ask = |host: &&'static str| {
            let line = ["host-exec.sh", host, "sh", "-c", oracle::SCRIPT].map(str::to_owned);
            Ok((*host, oracle::read(&self.run(&line)?)?))
        };
        HOSTS.iter().map(ask).collect()
    }

    fn act(&self, act: &Act) {
        let (words, name): (&[&str], &String) = match act {
            Act::Start { vm, .. } => (&["vm", "start"], vm),
            Act::HaStart { vm } => (&["vm", "ha-start"], vm),
            Act::Stop { vm } => (&["vm", "stop"], vm),
            Act::Maintain { host } => (&["host", "maintain"], host),
            Act::Drain { host } => (&["host", "drain"], host),
            Act::Activate { host } => (&["host", "activate"], host),
            Act::ConfirmFenced { host, .. } => (&["host", "confirm-fenced"], host),
            Act::DeclareRestored => return eprintln!("the lab does not restart its controller with --restored"),
        };
        let real = on_the_lab(name);
        let arguments: Vec<&str> = words.iter().copied().chain([real.as_str()]).collect();
        // A rejection may be part of the story; a failed request is not.
        if let Err(why) = self.ringfence(&arguments) {
            eprintln!("{arguments:?}: {why}");
        }
    }

    /// Probes until an expectation holds or times out.
    fn expect(&self, expected: &Expected, within: Duration) -> Option<String> {
        let deadline = Instant::now() + within;
        loop {
            let wrong = match (&expected.vm, expected.location()) {
                (Some(vm), Some(on)) => {
                    let is = self.writer(vm);
                    let right = is.as_ref().is_ok_and(|is| match &on {
                        Location::On(host) => is.as_ref() == Some(host),
                        Location::NotOn(host) => is.as_ref().is_some_and(|is| is != host),
                        Location::Somewhere => is.is_some(),
                        Location::Nowhere => is.is_none(),
                    });
                    (!right).then(|| format!("{vm} should be {on:?}, but is {is:?}"))
                }
                _ => self.log().map_or_else(Some, |log| expected.unmet(&log)),
            };
            if wrong.is_none() || Instant::now() >= deadline {
                return wrong;
            }
            wait(LOOK_EVERY);
        }
    }

    /// The journal with names of the simulated world.
    fn log(&self) -> Result<Vec<String>, String> {
        let records = self.json(&["events", "--json"])?;
        let line = |record: &Value| {
            let text = |key: &str| record[key].as_str().unwrap_or_default().to_owned();
            let line = ringfence_sim::check::journal_line(
                record["seq"].as_u64().unwrap_or_default(),
                &text("topic"),
                &text("subject"),
                &record["payload"],
            );
            format!("{:>11.3} {}", 0.0, simulated(&line))
        };
        Ok(records.iter().map(line).collect())
    }

    /// The one host on which a VM's guest keeps writing, whatever state the controller observes.
    fn writer(&self, vm: &str) -> Result<Option<String>, String> {
        let real = on_the_lab(vm);
        let counts = || -> Result<Vec<(&str, u64)>, String> {
            let told = self.told()?.into_iter();
            Ok(told
                .map(|(at, told)| (at, told.and_then(|told| told.get(&real).copied()).unwrap_or_default().writes))
                .collect())
        };
        let before = counts()?;
        wait(LOOK_EVERY * 5);
        let grown = before.iter().zip(counts()?).filter(|((_, before), (_, now))| now > before);
        let grown: Vec<&str> = grown.map(|((at, _), _)| *at).collect();
        let [at] = grown[..] else { return Ok(None) };
        Ok(Some(simulated(at)))
    }

    /// The VMs that the controller reports as running.
    fn running(&self) -> Result<Vec<String>, String> {
        let vms = self.json(&["vms", "--json"])?;
        let running = vms.iter().filter(|vm| vm["state"] == "Running");
        Ok(running.filter_map(|vm| vm["name"].as_str()).map(str::to_owned).collect())
    }

    /// Waits until every guest has written, so that the final check can prove something.
    pub(crate) fn begun(&self) -> Result<(), String> {
        let deadline = Instant::now() + GRACE;
        loop {
            let silent = oracle::silent(&self.told()?, &self.running()?);
            if silent.is_empty() {
                return Ok(());
            }
            if Instant::now() >= deadline {
                return Err(format!("before the story: {}", silent.join(", ")));
            }
            wait(LOOK_EVERY);
        }
    }

    fn unwell(&self) -> Vec<String> {
        self.unwell_within(GRACE * 2)
    }

    /// Hosts and VMs that have not recovered after this time.
    pub(crate) fn unwell_within(&self, within: Duration) -> Vec<String> {
        let well = |lab: &Lab| -> Result<Vec<String>, String> {
            let hosts = lab.json(&["hosts", "--json"])?;
            let away = hosts.iter().filter(|host| host["status"] != "Connected").map(|host| host["name"].to_string());
            let vms = lab.json(&["vms", "--json"])?;
            if hosts.len() != HOSTS.len() || vms.is_empty() {
                return Err(format!("the controller knows {} hosts and {} VMs", hosts.len(), vms.len()));
            }
            let lost = vms.iter().filter(|vm| vm["wanted"] == true && vm["state"] != "Running");
            Ok(away.chain(lost.map(|vm| vm["name"].to_string())).collect())
        };
        let deadline = Instant::now() + within;
        loop {
            let unwell = well(self).unwrap_or_else(|why| vec![why]);
            if unwell.is_empty() || Instant::now() >= deadline {
                return unwell.into_iter().map(|name| format!("{} did not recover", simulated(&name))).collect();
            }
            wait(LOOK_EVERY);
        }
    }

    /// Guests that saw another writer, and guests without proof.
    pub(crate) fn split_brain(&self) -> Vec<String> {
        let deadline = Instant::now() + GRACE;
        loop {
            let seen =
                self.told().and_then(|told| Ok((oracle::split_brain(&told), oracle::silent(&told, &self.running()?))));
            match seen {
                Ok((split, _)) if !split.is_empty() => {
                    return split.into_iter().map(|why| format!("violation of I1: {why}")).collect();
                }
                Ok((_, silent)) if silent.is_empty() => return Vec::new(),
                Ok((_, silent)) if Instant::now() >= deadline => return silent,
                Err(why) if Instant::now() >= deadline => return vec![format!("I1 cannot be verified: {why}")],
                _ => wait(LOOK_EVERY),
            }
        }
    }
}

/// Steps and checks of a run of random faults.
impl Lab {
    /// Guests that saw another writer so far; a host that is being frozen may not answer.
    pub(crate) fn split_now(&self) -> Vec<String> {
        match self.told() {
            Ok(told) => oracle::split_brain(&told).into_iter().map(|why| format!("violation of I1: {why}")).collect(),
            Err(why) => vec![why],
        }
    }

    pub(crate) fn kill_controller(&self) -> Result<(), String> {
        let pid =
            std::fs::read_to_string(self.dir.join("controller/pid")).map_err(|e| format!("controller/pid: {e}"))?;
        let pid = pid.trim().parse().ok().and_then(rustix::process::Pid::from_raw).ok_or("controller/pid is no pid")?;
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).map_err(|e| format!("kill: {e}"))
    }

    /// Kills the QEMU of a VM on its host. Returns the host.
    pub(crate) fn kill_qemu(&self, vm: &str) -> Result<String, String> {
        let uuid = ringfence_messages::VmId::from_name(vm);
        let script = format!(
            "for p in /proc/[0-9]*; do tr '\\0' '\\n' <$p/cmdline 2>/dev/null | grep -qx {uuid} && \
             readlink $p/exe | grep -q qemu-system && kill -9 ${{p#/proc/}} && echo killed; done; true"
        );
        let mut at = Vec::new();
        for host in HOSTS {
            let output = self.run(&["host-exec.sh", host, "sh", "-c", &script].map(str::to_owned))?;
            if !output.status.success() && !oracle::is_down(&output) {
                return Err(format!("{host}: {}", String::from_utf8_lossy(&output.stderr)));
            }
            if !output.stdout.is_empty() {
                at.push(host);
            }
        }
        Ok(if at.is_empty() { "no host".to_owned() } else { at.join(" and ") })
    }

    /// Reports of the controller, for the analysis of a failure.
    pub(crate) fn last_words(&self) -> Vec<String> {
        let said = |arguments: &[&str]| {
            let output = self.ringfence(arguments);
            output.map_or_else(|why| why, |output| String::from_utf8_lossy(&output.stdout).into_owned())
        };
        let vms = (1..=VMS_SHOWN).map(|n| said(&["explain", &format!("vm{n}")]));
        let hosts = HOSTS.iter().map(|host| said(&["explain", host]));
        std::iter::once(said(&["status"])).chain(hosts).chain(vms).collect()
    }
}

/// Number of VMs that a failed run explains.
const VMS_SHOWN: usize = 6;

/// Sleeps in real time between steps and probes of a story.
#[allow(clippy::disallowed_methods)]
pub(crate) fn wait(time: Duration) {
    std::thread::sleep(time);
}

impl Drop for Lab {
    fn drop(&mut self) {
        if let Err(why) = self.script(&["all-down.sh".to_owned()]) {
            eprintln!("{why}");
        }
    }
}

const NAMES: [(&str, &str); 9] = [
    ("host-0", "host-a"),
    ("host-1", "host-b"),
    ("host-2", "host-c"),
    ("vm-0", "vm1"),
    ("vm-1", "vm2"),
    ("vm-2", "vm3"),
    ("10.2.0.1", "10.77.0.11"),
    ("10.2.0.2", "10.77.0.12"),
    ("10.2.0.3", "10.77.0.13"),
];

fn on_the_lab(name: &str) -> String {
    NAMES.iter().find(|(simulated, _)| *simulated == name).map_or(name, |(_, real)| *real).to_owned()
}

fn simulated(text: &str) -> String {
    NAMES.iter().fold(text.to_owned(), |text, (simulated, real)| text.replace(real, simulated))
}

/// Replaces the lab's names in a text by those of the simulated world.
pub(crate) fn on_the_lab_all(text: &str) -> String {
    NAMES.iter().fold(text.to_owned(), |text, (simulated, real)| text.replace(simulated, real))
}
