//! Shrinks a failing plan to the faults that matter.
//!
//! Delta debugging (Zeller, Hildebrandt 2002): omit halves, then quarters, while the same rule is broken. The operator
//! of a plan stays: without `serve --restored` a restored controller does nothing, and that breaks liveness.

use crate::{
    fault::{Act, Step, StepKind},
    plan::Plan,
    run::{Outcome, run},
};

/// Runs that a plan is worth at most. Too few: what is printed is longer than it must be. Too many: a campaign waits.
const MAX_RUNS: usize = 120;

/// The smallest plan found that breaks the same rule first, and how it ended.
pub fn shrink(plan: &Plan, failed: Outcome) -> (Plan, Outcome) {
    let Some(rule) = failed.violations.first().map(|violation| violation.rule) else { return (plan.clone(), failed) };
    let mut best = (plan.clone(), failed);
    let mut runs = 0;
    let mut parts = 2;
    while best.0.steps.len() > 1 && runs < MAX_RUNS {
        let steps = best.0.steps.clone();
        let size = steps.len().div_ceil(parts);
        let mut smaller = None;
        for (n, _) in steps.chunks(size).enumerate() {
            let stays = |(i, step): &(usize, &Step)| i / size != n || is_indispensable(step);
            let left: Vec<Step> = steps.iter().enumerate().filter(stays).map(|(_, step)| step.clone()).collect();
            if left.len() == steps.len() {
                continue;
            }
            let candidate = Plan { steps: left, ..best.0.clone() };
            let outcome = run(&candidate);
            runs += 1;
            if outcome.violations.first().is_some_and(|violation| violation.rule == rule) {
                smaller = Some((candidate, outcome));
                break;
            }
            if runs >= MAX_RUNS {
                break;
            }
        }
        match smaller {
            Some(found) => {
                best = found;
                parts = (parts - 1).max(2);
            }
            None if size == 1 => break,
            None => parts = (parts * 2).min(best.0.steps.len()),
        }
    }
    best
}

fn is_indispensable(step: &Step) -> bool {
    matches!(step.kind, StepKind::Act(Act::DeclareRestored))
}
