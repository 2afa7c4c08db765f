//! `ringfence doctor`: checks everything that a fence needs.
//!
//! ```text
//! probes     requests to agents and to Ceph, shared with `check --live`
//! watchers   who watches a volume, and whether a fence would reach that watcher
//! hosts      checks through the agents of all hosts
//! controller journal, disk, tokens, policy, Ceph
//! twins      whether each host is one machine, with the addresses of the file
//! levels     the number of independent ways to fence each host
//! report     output
//! ```
//! Invariants: nothing in use is changed (the right to block is tried on an address reserved for documentation);
//! every check has a time limit; a check that could not run is "unknown", which is not a pass.

mod controller;
mod hosts;
mod levels;
pub(crate) mod probes;
mod report;
pub(crate) mod twins;
mod watchers;

use std::path::Path;

use ringfence_agent::diagnose::local;
use ringfence_server::config::ControllerConfig;
use ringfence_service::config_file::{Problems, report};

use crate::{
    config::{self, Config},
    output::print,
};

/// Runs all checks. Returns the exit status: 0 pass, 1 a check failed or is unknown, 2 invalid file or arguments.
pub async fn run(path: &Path, agent: bool, json: bool) -> u8 {
    let report = match (config::load(path), agent) {
        (Err(problems), _) => return refused(&problems),
        (Ok(Config::Agent(agent)), true) => {
            let findings = local::look(&agent.settings, &local::needs_of(&agent.settings)).await;
            report::Report::of_agent(findings)
        }
        (Ok(Config::Controller(config)), false) => everything(&config).await,
        (Ok(Config::Agent(_)), false) => {
            return usage(path, "an agent's file", "add --agent, or use a controller's file");
        }
        (Ok(Config::Controller(_)), true) => {
            return usage(path, "a controller's file", "omit --agent, or use an agent's file");
        }
    };
    match json {
        true => print(serde_json::to_string_pretty(&report).unwrap_or_default()),
        false => print(report.text(report::width(), crate::output::colours()).trim_end()),
    }
    u8::from(!report.is_fine())
}

async fn everything(config: &ControllerConfig) -> report::Report {
    let seen = probes::seen(config).await;
    let (hosts, controller_findings) = tokio::join!(hosts::look(config, &seen), controller::look(config, &seen));
    let levels = levels::of_all(config, &hosts, &controller_findings);
    report::Report::of_controller(config, controller_findings, hosts, levels)
}

fn refused(problems: &Problems) -> u8 {
    report(problems);
    2
}

fn usage(path: &Path, what: &str, fix: &str) -> u8 {
    eprintln!("error: {} is {what}; {fix}", path.display());
    2
}
