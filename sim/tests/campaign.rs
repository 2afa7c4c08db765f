//! Plans of seeds, shrinking, and the model.
#![allow(missing_docs)]

use std::time::{Duration, Instant};

use ringfence_sim::{
    campaign::{Campaign, campaign},
    fault::{Fault, Step, StepKind},
    model::{self, Protocol},
    plan::{Location, Plan, Probe, Size},
    run::run,
    shrink::shrink,
};

fn size(hours: u64) -> Size {
    Size { hosts: 6, vms: 12, lasting: Duration::from_secs(hours * 3600) }
}

#[test]
fn equal_seeds_give_equal_runs() {
    let play = |seed| run(&Plan::of_seed(seed, size(3))).log;
    let log = play(7);
    assert_eq!(log, play(7));
    assert_ne!(log, play(8));
    assert!(log.iter().any(|line| line.contains(" fault: ")), "nothing went wrong in it");
}

#[test]
fn campaign_runs_every_seed_once() {
    let mut seeds = Vec::new();
    let of = Campaign { seeds: 1..=6, size: size(2), jobs: 2, until: None };
    let summary = campaign(&of, |seed, _| seeds.push(seed));
    seeds.sort_unstable();
    assert_eq!(seeds, [1, 2, 3, 4, 5, 6]);
    assert_eq!((summary.passed, summary.failures.len()), (6, 0), "{:?}", summary.failures);
    assert!(summary.counts.simulated >= Duration::from_secs(6 * 2 * 3600));
    let over = Campaign { until: Some(Instant::now()), ..of };
    assert_eq!(campaign(&over, |_, _| ()).passed, 0, "no seed is begun after its time");
}

/// What is wrong is that the VM is to stay where its host has no power; the other faults are noise.
#[test]
fn failing_plan_is_shrunk_to_the_relevant_fault() {
    let mut plan = Plan::of_seed(3, size(2));
    let step =
        |at: u64, fault| Step { at: Duration::from_secs(at), kind: StepKind::Fault(fault, Duration::from_secs(60)) };
    plan.steps = (0..9).map(|n| step(120 + n, Fault::TargetCrash { host: format!("host-{}", n % 6) })).collect();
    plan.steps.insert(4, step(124, Fault::PowerLoss { host: "host-0".to_owned() }));
    plan.probes = vec![Probe {
        at: Duration::from_secs(150),
        vm: plan.inventory.vms[0].name.clone(),
        on: Location::On("host-0".to_owned()),
    }];
    let failed = run(&plan);
    assert_eq!(failed.violations.first().map(|violation| violation.rule), Some("expect"));
    let (smallest, outcome) = shrink(&plan, failed);
    assert_eq!(smallest.steps, [plan.steps[4].clone()]);
    assert_eq!(outcome.violations.first().map(|violation| violation.rule), Some("expect"));
}

#[test]
fn at_most_one_qemu_writes_in_every_state_of_the_model() {
    let checked = model::check(Protocol::new(), 13, 2);
    assert!(checked.violation.is_empty(), "{}", checked.violation.join("\n"));
    assert!(checked.moves && checked.states > 10_000, "the model is about nothing: {checked:?}");
}

/// K19: what a host shows for a moment takes no place away where the VM may run. Before claims added places, the model
/// found two writers after nine actions.
#[test]
fn ended_claim_clears_no_other_host() {
    let checked = model::check(Protocol::with_claims(), 10, 2);
    assert!(checked.violation.is_empty(), "{}", checked.violation.join("\n"));
    assert!(checked.moves && checked.states > 10_000, "the model is about nothing: {checked:?}");
}
