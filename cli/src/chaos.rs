//! Random faults on the lab: `make chaos`.
//!
//! Invariants: the seed alone determines all faults before the first one, and each is printed, so that a run can be
//! repeated; after each fault the guests are checked for another writer; at the end all faults are removed, then
//! every host must be in service and every VM must run and write. A failed probe is a failure. Alternative
//! considered: endless faults on all hosts at the same time (the storm brake would suspend fencing, and nothing would
//! be tested).

use std::{
    fmt,
    time::{Duration, Instant},
};

use rand::{Rng, SeedableRng, rngs::StdRng, seq::IndexedRandom};
use ringfence_sim::fault::Fault;

use crate::{
    output::print,
    scenario_lab::{HOSTS, Lab, wait},
};

/// VMs of the lab: more than one on each host, so that a loss moves several.
const VMS: usize = 6;

/// Duration of a fault in seconds. Too low: the fault is not detected. Too high: few faults in a run.
const LASTS: std::ops::RangeInclusive<u64> = 3..=45;

/// Seconds until the next fault, which may overlap with the previous one.
const NEXT: std::ops::RangeInclusive<u64> = 5..=60;

/// Time limit of the recovery after the last fault: the late return of a host, a quarantine, and the 30 s of a watch.
const RECOVERY_TIMEOUT: Duration = Duration::from_secs(300);

/// A fault of the lab.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Blow {
    /// A fault of a story.
    Fault(Fault),
    /// The controller is killed with SIGKILL and restarted at the end.
    Controller,
    /// The QEMU of a VM is killed.
    Qemu(usize),
    /// A host is drained, and returned to service at the end.
    Drain(usize),
}

impl fmt::Display for Blow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Blow::Fault(Fault::PowerLoss { host }) => write!(f, "power loss of {host}"),
            Blow::Fault(Fault::FreezeHost { host }) => write!(f, "{host} freezes"),
            Blow::Fault(Fault::AgentCrash { host }) => write!(f, "the agent of {host} is killed"),
            Blow::Fault(Fault::Cut { from, to, .. }) => write!(f, "{from} is cut off from {to}"),
            Blow::Fault(other) => write!(f, "{other:?}"),
            Blow::Controller => f.write_str("the controller is killed"),
            Blow::Qemu(vm) => write!(f, "the QEMU of vm{vm} is killed"),
            Blow::Drain(host) => write!(f, "{} is drained", HOSTS[*host]),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Plan {
    at: Duration,
    lasts: Duration,
    blow: Blow,
}

/// The faults of a seed within this time.
fn plan(seed: u64, duration: Duration) -> Vec<Plan> {
    let mut rng = StdRng::seed_from_u64(seed);
    let (mut at, mut plan) = (Duration::ZERO, Vec::new());
    loop {
        at += Duration::from_secs(rng.random_range(NEXT));
        let lasts = Duration::from_secs(rng.random_range(LASTS));
        if at + lasts > duration {
            return plan;
        }
        let n = rng.random_range(0..HOSTS.len());
        let (host, cut) = (format!("host-{n}"), |from: &str, to: &str| Fault::Cut {
            from: from.to_owned(),
            to: to.to_owned(),
            one_way: false,
        });
        let blow = match rng.random_range(0..10) {
            0 | 1 => Blow::Fault(Fault::PowerLoss { host }),
            2 => Blow::Fault(Fault::FreezeHost { host }),
            3 => Blow::Fault(Fault::AgentCrash { host }),
            4 | 5 => {
                let what = *["ceph", "management", "everything"].choose(&mut rng).expect("three");
                Blow::Fault(cut(&host, what))
            }
            6 => Blow::Fault(cut("controller", &host)),
            7 => Blow::Controller,
            8 => Blow::Qemu(rng.random_range(1..=VMS)),
            _ => Blow::Drain(n),
        };
        // One fault of a host at a time: a host that is off cannot freeze.
        let busy = |of: &Plan| of.at + of.lasts >= at && touches(&of.blow) == touches(&blow);
        if !plan.iter().any(busy) {
            plan.push(Plan { at, lasts, blow });
        }
    }
}

/// The part of the lab that has at most one fault at a time.
fn touches(blow: &Blow) -> Option<String> {
    match blow {
        Blow::Fault(Fault::Cut { from, to, .. }) if from == "controller" => Some(to.clone()),
        Blow::Fault(Fault::Cut { from: host, .. })
        | Blow::Fault(Fault::PowerLoss { host } | Fault::FreezeHost { host } | Fault::AgentCrash { host }) => {
            Some(host.clone())
        }
        Blow::Drain(n) => Some(format!("host-{n}")),
        Blow::Controller => Some("controller".to_owned()),
        Blow::Fault(_) | Blow::Qemu(_) => None,
    }
}

/// Runs the faults of a seed on its own lab. Returns the exit status.
pub(crate) fn run(seed: u64, duration: Duration) -> u8 {
    print(format!(
        "seed {seed}, {} s; again: make chaos SEED={seed} DURATION={}",
        duration.as_secs(),
        duration.as_secs()
    ));
    let failures = play(seed, duration).unwrap_or_else(|why| vec![why]);
    failures.iter().for_each(|failure| print(format!("FAIL {failure}")));
    if failures.is_empty() {
        print("ok   no guest saw another writer, and everything recovered");
    }
    u8::from(!failures.is_empty())
}

fn play(seed: u64, duration: Duration) -> Result<Vec<String>, String> {
    let lab = Lab::up(VMS)?;
    lab.begun()?;
    let began = Instant::now();
    let tell = |what: &str| print(format!("{:>8.1}  {what}", began.elapsed().as_secs_f64()));
    let plan = plan(seed, duration);
    let begins = plan.iter().map(|of| (of.at, true, of));
    let ends = plan.iter().map(|of| (of.at + of.lasts, false, of));
    let mut moments: Vec<(Duration, bool, &Plan)> = begins.chain(ends).collect();
    moments.sort_by_key(|(at, begins, _)| (*at, *begins));
    for (at, begins, of) in moments {
        wait((began + at).saturating_duration_since(Instant::now()));
        if begins {
            tell(&format!("{}, for {} s", lab_words(&of.blow), of.lasts.as_secs()));
        } else if !matches!(of.blow, Blow::Qemu(_)) {
            tell(&format!("over: {}", lab_words(&of.blow)));
        }
        let active: Vec<(Duration, Fault)> = plan
            .iter()
            .filter(|other| other.at <= at && at < other.at + other.lasts && !std::ptr::eq(*other, of))
            .filter_map(|other| match &other.blow {
                Blow::Fault(fault) => Some((other.at + other.lasts, fault.clone())),
                _ => None,
            })
            .collect();
        match strike(&lab, &of.blow, begins, &active) {
            Ok(said) => said.iter().for_each(|said| tell(said)),
            Err(why) => return Ok(vec![format!("the lab cannot inject the fault: {why}")]),
        }
        let split = lab.split_now();
        if !split.is_empty() {
            return Ok(split);
        }
    }
    tell("all faults have ended; waiting for the recovery");
    let mut failures = lab.unwell_within(RECOVERY_TIMEOUT);
    tell("checking for another writer");
    failures.extend(lab.split_brain());
    if !failures.is_empty() {
        failures.extend(lab.last_words());
    }
    Ok(failures)
}

fn lab_words(blow: &Blow) -> String {
    crate::scenario_lab::on_the_lab_all(&blow.to_string())
}

/// Starts or ends a fault. Returns a message, if any.
fn strike(lab: &Lab, blow: &Blow, begins: bool, active: &[(Duration, Fault)]) -> Result<Option<String>, String> {
    let order = |words: &[&str]| {
        // A rejection is not a failure: the host may be unreachable.
        let output = lab.ringfence(words)?;
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        Ok((!output.status.success()).then(|| format!("  {words:?} was rejected: {said:.200}")))
    };
    match (blow, begins) {
        (Blow::Fault(fault), _) => lab.change(fault, begins, active).map(|()| None),
        (Blow::Controller, true) => lab.kill_controller().map(|()| None),
        (Blow::Controller, false) => lab.script(&["controller-up.sh".to_owned()]).map(|_| None),
        (Blow::Qemu(vm), true) => lab.kill_qemu(&format!("vm{vm}")).map(|at| Some(format!("  it ran on {at}"))),
        (Blow::Qemu(_), false) => Ok(None),
        (Blow::Drain(n), true) => order(&["host", "drain", HOSTS[*n]]),
        (Blow::Drain(n), false) => order(&["host", "activate", HOSTS[*n]]),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_seed_is_one_story_with_every_blow_in_it_and_no_host_struck_twice_at_once() {
        let hours = Duration::from_secs(4 * 3600);
        let story = plan(7, hours);
        assert_eq!(story, plan(7, hours));
        assert_ne!(story, plan(8, hours));
        let kind = |of: &Plan| of.blow.to_string().split(' ').filter(|word| !word.contains('-')).collect::<String>();
        let kinds: BTreeSet<String> = story.iter().map(kind).map(|kind| kind.replace(char::is_numeric, "")).collect();
        assert!(kinds.len() >= 8, "{kinds:?}");
        for (n, of) in story.iter().enumerate() {
            assert!(of.at + of.lasts <= hours);
            let overlaps = story[n + 1..].iter().filter(|other| other.at <= of.at + of.lasts);
            for other in overlaps.filter(|other| touches(&other.blow).is_some()) {
                assert_ne!(touches(&of.blow), touches(&other.blow), "{of:?} {other:?}");
            }
        }
    }
}
