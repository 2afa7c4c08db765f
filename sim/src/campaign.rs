//! A campaign: many seeds in parallel, each on one thread in its own world.

use std::{
    ops::RangeInclusive,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    sync::mpsc,
    time::{Duration, Instant},
};

use crate::{
    plan::{Plan, Size},
    run::{Counts, Outcome, run},
    shrink::shrink,
};

/// What is to be run.
#[derive(Clone, Debug)]
pub struct Campaign {
    /// The seeds, in order.
    pub seeds: RangeInclusive<u64>,
    /// How large each run is.
    pub size: Size,
    /// Threads.
    pub jobs: usize,
    /// No seed is begun after this.
    pub until: Option<Instant>,
}

/// A seed that broke a rule.
#[derive(Clone, Debug)]
pub struct Failure {
    /// Which.
    pub seed: u64,
    /// The plan, cut down to what matters.
    pub plan: Plan,
    /// How that one ends.
    pub outcome: Outcome,
}

/// How a campaign ended.
#[derive(Clone, Debug, Default)]
pub struct Summary {
    /// Seeds without a broken rule.
    pub passed: u64,
    /// The others, in the order in which they ended.
    pub failures: Vec<Failure>,
    /// How much happened in all of them.
    pub counts: Counts,
    /// How long they took on all threads together.
    pub busy: Duration,
}

/// Runs a campaign; `progress` hears of every seed that ended.
pub fn campaign(of: &Campaign, mut progress: impl FnMut(u64, &Summary)) -> Summary {
    let next = AtomicU64::new(*of.seeds.start());
    let mut summary = Summary::default();
    std::thread::scope(|scope| {
        let (tell, told) = mpsc::channel();
        for _ in 0..of.jobs.max(1) {
            let (tell, next) = (tell.clone(), &next);
            scope.spawn(move || {
                loop {
                    let seed = next.fetch_add(1, Relaxed);
                    if seed > *of.seeds.end() || of.until.is_some_and(|until| Instant::now() >= until) {
                        return;
                    }
                    let began = Instant::now();
                    let plan = Plan::of_seed(seed, of.size);
                    let outcome = run(&plan);
                    let took = began.elapsed();
                    let counts = outcome.counts;
                    let failure = (!outcome.violations.is_empty()).then(|| {
                        let (plan, outcome) = shrink(&plan, outcome);
                        Failure { seed, plan, outcome }
                    });
                    if tell.send((seed, counts, took, failure)).is_err() {
                        return;
                    }
                }
            });
        }
        drop(tell);
        for (seed, counts, took, failure) in told {
            summary.passed += u64::from(failure.is_none());
            summary.failures.extend(failure);
            summary.busy += took;
            let all = &mut summary.counts;
            all.simulated += counts.simulated;
            all.fences += counts.fences;
            all.starts += counts.starts;
            all.redeploys += counts.redeploys;
            progress(seed, &summary);
        }
    });
    summary
}
