//! Stories in TOML.
//!
//! Properties: an error names a line that exists; what is accepted can be planned, within bounds, and happens within
//! its time.

use ringfence_sim::scenario::Scenario;

/// A story.
pub(crate) fn scenario(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    match Scenario::parse(text) {
        Ok(story) => {
            let plan = story.plan();
            assert_eq!(plan.places.len(), plan.inventory.vms.len(), "a VM, a place");
            assert_eq!((plan.inventory.hosts.len(), plan.inventory.clusters.len()), (story.hosts, story.clusters));
            assert!(plan.steps.is_sorted_by_key(|step| step.at) && plan.steps.len() == story.steps.len());
            assert!(plan.steps.iter().all(|step| step.at <= plan.lasting), "something happens after the end");
            assert!(!plan.settings.ping.interval.is_zero() && !plan.settings.ping.timeout.is_zero());
        }
        Err(error) => {
            assert!(!error.trim().is_empty());
            let line = error.split("at line ").nth(1).and_then(|rest| rest.split(',').next()?.parse::<usize>().ok());
            let lines = text.split('\n').count();
            assert!(line.is_none_or(|line| (1..=lines).contains(&line)), "line {line:?} of {lines}: {error}");
        }
    }
}
