//! `ringfence doctor`: what is missing, and what would make a fence fail tonight.
//!
//! ```text
//! local     what a host finds on itself: state, disk, tokens, QEMU, what its storages need
//! siblings  the way from a host to the hosts that it would have to fence, up to a login
//! hosts     the agents of all hosts, asked for both, and for their clocks
//! office    the controller's own: journal, disk, tokens, policy, Ceph
//! twins     whether each host is one machine, and has the addresses that the file names
//! levels    how many independent ways there are to prove the VMs of a host dead
//! report    how it is told
//! ```
//! Invariants: nothing that anybody uses is changed (the right to block is tried on an address that is nobody's, as
//! `check --live` does); every look is bounded; what could not be looked at is "unknown", and counts as not fine.

mod hosts;
mod levels;
mod local;
mod office;
mod report;
mod siblings;
pub(crate) mod twins;

use std::path::Path;

pub(crate) use local::look as look_at_host;
pub(crate) use siblings::{MAX_SIBLINGS, look as look_at_siblings};

use ringfence_messages::doctor::{Finding, Verdict};

use crate::{
    commands::{check, live},
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
    let seen = live::seen(config).await;
    let (hosts, office) = tokio::join!(hosts::look(config, &seen), office::look(config, &seen));
    let levels = levels::of_all(config, &hosts, &office);
    report::Report::of_controller(config, office, hosts, levels)
}

fn refused(problems: &Problems) -> u8 {
    check::report(problems);
    2
}

fn usage(path: &Path, what: &str, fix: &str) -> u8 {
    eprintln!("error: {} is {what}: {fix}", path.display());
    2
}

/// Builds a finding: `of("disk", WHY).about(path).ok("12 GiB free")`.
pub(crate) struct Check {
    check: &'static str,
    why: &'static str,
    about: String,
}

/// A check by its name, and why it matters tonight.
pub(crate) fn of(check: &'static str, why: &'static str) -> Check {
    Check { check, why, about: String::new() }
}

impl Check {
    pub(crate) fn about(self, about: impl ToString) -> Check {
        Check { about: about.to_string(), ..self }
    }

    fn found(self, verdict: Verdict, found: impl Into<String>, mend: Option<String>) -> Finding {
        let Check { check, why, about } = self;
        Finding { check: check.to_owned(), about, verdict, found: found.into(), why: why.to_owned(), mend }
    }

    pub(crate) fn ok(self, found: impl Into<String>) -> Finding {
        self.found(Verdict::Ok, found, None)
    }

    pub(crate) fn warn(self, found: impl Into<String>, mend: impl Into<String>) -> Finding {
        self.found(Verdict::Warn, found, Some(mend.into()))
    }

    pub(crate) fn fail(self, found: impl Into<String>, mend: impl Into<String>) -> Finding {
        self.found(Verdict::Fail, found, Some(mend.into()))
    }

    pub(crate) fn unknown(self, found: impl Into<String>, mend: impl Into<String>) -> Finding {
        self.found(Verdict::Unknown, found, Some(mend.into()))
    }
}

/// A path, so that a shell that it is pasted into takes it for one word.
pub(crate) fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '/' | '.' | '_' | '-' | ':' | '@');
    match !text.is_empty() && text.chars().all(plain) {
        true => text,
        false => format!("'{}'", text.replace('\'', r"'\''")),
    }
}
