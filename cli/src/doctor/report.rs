//! Output of the doctor: failed checks first, each with its consequence and a fix; the others in one line.

use comfy_table::Table;
use ringfence_messages::doctor::{Finding, Verdict};
use ringfence_server::{
    config::ControllerConfig,
    doctor::{Fenceability, Findings},
};
use serde::Serialize;

/// All findings.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Report {
    fine: bool,
    parts: Vec<Part>,
}

/// The findings of the controller or of one host.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Part {
    /// `controller`, `this host`, or the host's name.
    of: String,
    /// Of a host of the inventory.
    fenceability: Option<Fenceability>,
    findings: Vec<Finding>,
}

impl Report {
    pub(super) fn of_agent(findings: Vec<Finding>) -> Report {
        Report::new(vec![Part { of: "this host".to_owned(), fenceability: None, findings }])
    }

    pub(super) fn of_controller(config: &ControllerConfig, found: Findings) -> Report {
        let controller = Part { of: "controller".to_owned(), fenceability: None, findings: found.controller };
        let hosts = config.inventory.hosts.iter().zip(found.hosts).zip(found.levels).map(|((host, look), level)| {
            let mut findings = look.findings;
            findings.insert(0, level.finding(config, host));
            Part { of: host.name.clone(), fenceability: Some(level), findings }
        });
        Report::new(std::iter::once(controller).chain(hosts).collect())
    }

    fn new(parts: Vec<Part>) -> Report {
        let fine = parts.iter().flat_map(|part| &part.findings).all(|of| of.verdict < Verdict::Unknown);
        Report { fine, parts }
    }

    /// No check failed, and none is unknown.
    pub(super) fn is_fine(&self) -> bool {
        self.fine
    }

    /// The report as text of at most `width` columns; a longer word is not broken.
    pub(super) fn text(&self, width: usize, colours: bool) -> String {
        let mut lines = Vec::new();
        for part in &self.parts {
            let level = part.fenceability.as_ref().map(Fenceability::line).unwrap_or_default();
            lines.extend(wrapped(&format!("{}  ", part.of), &level, 4, width));
            let mut wrong: Vec<&Finding> = part.findings.iter().filter(|of| of.verdict != Verdict::Ok).collect();
            wrong.sort_by_key(|of| std::cmp::Reverse(of.verdict));
            for of in wrong {
                let about = if of.about.is_empty() { String::new() } else { format!(" {}", of.about) };
                let word = format!("  {:<8}", word(of.verdict));
                let mut lines_of_finding = wrapped(&word, &format!("{}{about}: {}", of.check, of.found), 10, width);
                if let Some(first) = lines_of_finding.first_mut() {
                    *first = first.replacen(word.trim(), &paint(word.trim(), of.verdict, colours), 1);
                }
                lines.extend(lines_of_finding);
                lines.extend(wrapped("          why   ", &of.why, 16, width));
                lines.extend(of.mend.iter().flat_map(|remedy| wrapped("          fix   ", remedy, 16, width)));
            }
            let mut fine: Vec<&str> =
                part.findings.iter().filter(|of| of.verdict == Verdict::Ok).map(|of| of.check.as_str()).collect();
            fine.dedup();
            if !fine.is_empty() {
                lines.extend(wrapped("  ok      ", &fine.join(", "), 10, width));
            }
        }
        lines.push(self.counts());
        lines.join("\n") + "\n"
    }

    fn counts(&self) -> String {
        let all = || self.parts.iter().flat_map(|part| &part.findings);
        let of = |verdict| all().filter(|finding| finding.verdict == verdict).count();
        let (warned, unknown, fail) = (of(Verdict::Warn), of(Verdict::Unknown), of(Verdict::Fail));
        match (warned, unknown, fail) {
            (0, 0, 0) => format!("{} checks passed", all().count()),
            _ => format!("{} checks: {fail} failed, {unknown} unknown, {warned} warnings", all().count()),
        }
    }
}

fn word(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Ok => "ok",
        Verdict::Warn => "warn",
        Verdict::Unknown => "unknown",
        Verdict::Fail => "FAIL",
    }
}

fn paint(word: &str, verdict: Verdict, colours: bool) -> String {
    match (colours, verdict) {
        (false, _) | (_, Verdict::Ok) => word.to_owned(),
        (true, Verdict::Fail) => format!("\x1b[31m{word}\x1b[0m"),
        (true, _) => format!("\x1b[33m{word}\x1b[0m"),
    }
}

/// The terminal's columns; without a terminal no line is broken, so that grep works.
pub(super) fn width() -> usize {
    Table::new().width().map_or(usize::MAX, usize::from)
}

/// The text after its head, broken between words; further lines are indented.
fn wrapped(head: &str, text: &str, indent: usize, width: usize) -> Vec<String> {
    let (mut lines, mut line) = (Vec::new(), head.to_owned());
    let mut begun = line.chars().count();
    for (n, word) in text.split(' ').enumerate() {
        let gap = usize::from(n > 0 && line.chars().count() > begun);
        if line.chars().count() + gap + word.chars().count() > width && line.chars().count() > begun {
            lines.push(std::mem::replace(&mut line, " ".repeat(indent)));
            begun = indent;
        } else if gap > 0 {
            line.push(' ');
        } else if n > 0 && word.is_empty() {
            continue;
        }
        line.push_str(word);
    }
    lines.push(line.trim_end().to_owned());
    lines
}

#[cfg(test)]
mod tests {
    use ringfence_server::doctor::ByStorage;
    use ringfence_service::checks::of;

    use super::*;

    fn report() -> Report {
        let level = Fenceability {
            score: 30,
            level: "no-storage",
            siblings: vec!["host-b".to_owned()],
            tried: 2,
            storage: ByStorage::No,
            storage_reason: "no storage of its cluster can fence a host".to_owned(),
        };
        let login = of("ssh-login", "a sibling host kills VMs of a failed host through this login").about("host-c");
        let findings = vec![
            of("agent", "").about("http://10.77.0.11:7070").ok("version 0.1.0"),
            of("accel", "VMs on this host run with it").warn("tcg", "modprobe kvm_intel"),
            login.fail(
                "authentication failed: 10.77.0.13 does not let root in with /etc/ringfence/id_ed25519",
                "ssh-copy-id -i /etc/ringfence/id_ed25519.pub -p 22 root@10.77.0.13",
            ),
        ];
        let controller_findings = vec![of("journal", "").ok("none yet")];
        Report::new(vec![
            Part { of: "controller".to_owned(), fenceability: None, findings: controller_findings },
            Part { of: "host-a".to_owned(), fenceability: Some(level), findings },
        ])
    }

    #[test]
    fn failed_checks_come_first_and_fit_the_terminal() {
        let text = report().text(80, false);
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
        insta::assert_snapshot!(text);
        assert!(!report().is_fine());
    }

    #[test]
    fn without_a_terminal_findings_are_one_line_without_colours() {
        let (plain, seen) = (report().text(usize::MAX, false), report().text(usize::MAX, true));
        assert!(
            plain.contains("\n  FAIL    ssh-login host-c: authentication failed: 10.77.0.13 does not let root in with")
        );
        assert!(!plain.contains('\x1b') && seen.contains("\x1b[31mFAIL\x1b[0m"));
    }

    /// I2: a check that could not run is not a pass.
    #[test]
    fn unknown_fails_and_warning_passes() {
        let of_agent = |finding| Report::of_agent(vec![finding]).is_fine();
        assert!(!of_agent(of("x", "").unknown("not asked", "ask")));
        assert!(of_agent(of("x", "").warn("soon", "mend")));
    }
}
