#![allow(missing_docs)]
use ringfence_sim::{
    plan::{Plan, Size},
    run::run,
};
use std::time::{Duration, Instant};

#[test]
fn smoke() {
    let hours: u64 = std::env::var("H").map_or(2, |h| h.parse().unwrap());
    let seeds: u64 = std::env::var("N").map_or(1, |h| h.parse().unwrap());
    let first: u64 = std::env::var("S").map_or(1, |h| h.parse().unwrap());
    for seed in first..first + seeds {
        let began = Instant::now();
        let plan = Plan::of_seed(seed, Size { hosts: 20, vms: 40, lasting: Duration::from_secs(3600 * hours) });
        let outcome = run(&plan);
        println!(
            "seed {seed} steps {} {:?} {:?} {:.0} s/s",
            plan.steps.len(),
            outcome.counts,
            began.elapsed(),
            outcome.counts.simulated.as_secs_f64() / began.elapsed().as_secs_f64()
        );
        if std::env::var("TRACE").is_ok() {
            for line in &outcome.log {
                println!("{line}");
            }
        }
        for v in &outcome.violations {
            println!("   {v}");
        }
    }
}
