//! `ringfence doctor`: checks everything that a fence needs.
//!
//! The checks are `ringfence_agent::diagnose` and `ringfence_server::doctor`; `report` is the output.

mod report;

use std::path::Path;

use ringfence_agent::diagnose::local;
use ringfence_server::doctor::look;
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
        (Ok(Config::Controller(config)), false) => report::Report::of_controller(&config, look(&config).await),
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

fn refused(problems: &Problems) -> u8 {
    report(problems);
    2
}

fn usage(path: &Path, what: &str, fix: &str) -> u8 {
    eprintln!("error: {} is {what}; {fix}", path.display());
    2
}
