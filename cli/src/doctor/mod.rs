//! `ringfence doctor`: what is missing, and what would make a fence fail tonight.
//!
//! ```text
//! probes    what `check --live` and the doctor ask of agents and of Ceph
//! watchers  who watches a volume, and whether a fence would reach that
//! hosts     the agents of all hosts, asked for both, and for their clocks
//! office    the controller's own: journal, disk, tokens, policy, Ceph
//! twins     whether each host is one machine, and has the addresses that the file names
//! levels    how many independent ways there are to prove the VMs of a host dead
//! report    how it is told
//! ```
//! Invariants: nothing that anybody uses is changed (the right to block is tried on an address that is nobody's, as
//! `check --live` does); every look is bounded; what could not be looked at is "unknown", and counts as not fine.

mod controller;
mod hosts;
mod levels;
pub(crate) mod probes;
mod report;
pub(crate) mod twins;
mod watchers;

use std::path::Path;

use crate::{
    agent::diagnose::local,
    config::{self, Config, Problems},
    output::print,
};

/// Looks at everything that the file names; the exit code: 0 fine, 1 something would fail or is not known, 2 the file.
pub async fn run(path: &Path, agent: bool, json: bool) -> u8 {
    let report = match (config::load(path), agent) {
        (Err(problems), _) => return refused(&problems),
        (Ok(Config::Agent(agent)), true) => {
            let findings = local::look(&agent.settings, &local::needs_of(&agent.settings)).await;
            report::Report::of_agent(findings)
        }
        (Ok(Config::Controller(config)), false) => everything(&config).await,
        (Ok(Config::Agent(_)), false) => return usage(path, "an agent's file", "add --agent, or name a controller's"),
        (Ok(Config::Controller(_)), true) => {
            return usage(path, "a controller's file", "leave --agent away, or name an agent's");
        }
    };
    match json {
        true => print(serde_json::to_string_pretty(&report).unwrap_or_default()),
        false => print(report.text(report::width(), crate::output::colours()).trim_end()),
    }
    u8::from(!report.is_fine())
}

async fn everything(config: &config::ControllerConfig) -> report::Report {
    let seen = probes::seen(config).await;
    let (hosts, controller_findings) = tokio::join!(hosts::look(config, &seen), controller::look(config, &seen));
    let levels = levels::of_all(config, &hosts, &controller_findings);
    report::Report::of_controller(config, controller_findings, hosts, levels)
}

fn refused(problems: &Problems) -> u8 {
    config::report(problems);
    2
}

fn usage(path: &Path, what: &str, fix: &str) -> u8 {
    eprintln!("error: {} is {what}: {fix}", path.display());
    2
}
