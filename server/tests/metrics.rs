//! What is measured, what is described, and what alerts and the dashboard ask for are the same.
#![allow(missing_docs)]

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use ringfence_server::metrics::{ALL, Kind};

fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap()
}

fn sources(dir: PathBuf, found: &mut String) {
    for entry in std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()) {
        if entry.is_dir() {
            sources(entry, found);
        } else if entry.extension().is_some_and(|of| of == "rs") {
            found.push_str(&std::fs::read_to_string(entry).unwrap());
        }
    }
}

/// The words that look like names of metrics, after one of these.
fn names(text: &str, after: &[&str]) -> BTreeSet<String> {
    let starts = after.iter().flat_map(|start| text.match_indices(start).map(|(at, start)| at + start.len()));
    let name = |at: usize| {
        let rest = text[at..].trim_start().trim_start_matches('"');
        let end = rest.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).unwrap_or(rest.len());
        rest[..end].to_owned()
    };
    starts.map(name).filter(|name| name.starts_with("ringfence_")).collect()
}

#[test]
fn every_metric_is_described_and_everything_described_is_measured() {
    let mut text = String::new();
    for part in ["src", "actors/src", "drivers/src", "service/src", "agent/src", "server/src"] {
        sources(root().join(part), &mut text);
    }
    let measured = names(&text, &["counter!(", "gauge!(", "histogram!("]);
    let described: BTreeSet<String> = ALL.iter().map(|(name, _, _)| (*name).to_owned()).collect();
    assert_eq!(measured, described);
    for (name, kind, _) in ALL {
        let suffix = name.rsplit('_').next().unwrap();
        match kind {
            Kind::Counter => assert_eq!(suffix, "total", "{name}"),
            Kind::Seconds => assert_eq!(suffix, "seconds", "{name}"),
            Kind::Gauge => assert_ne!(suffix, "total", "{name}"),
        }
    }
}

#[test]
fn alerts_and_dashboard_ask_for_what_there_is_and_every_alert_has_its_runbook() {
    let (alerts, dashboard, runbook) =
        (read("deploy/prometheus/alerts.yml"), read("deploy/grafana/ringfence.json"), read("docs/RUNBOOK.md"));
    let dashboard: serde_json::Value = serde_json::from_str(&dashboard).unwrap();
    let asked = dashboard["panels"].as_array().unwrap().iter().flat_map(|panel| panel["targets"].as_array().unwrap());
    let asked: Vec<&str> = asked.map(|target| target["expr"].as_str().unwrap()).collect();
    for name in names(&format!("{alerts} {}", asked.join(" ")), &["(", " "]) {
        let plain = name.trim_end_matches("_bucket");
        assert!(ALL.iter().any(|(known, _, _)| *known == plain), "{name} is not measured");
    }
    let names = alerts.lines().filter_map(|line| line.trim().strip_prefix("- alert: "));
    for alert in names {
        assert!(runbook.contains(&format!("## {alert}\n")), "{alert} has no section in docs/RUNBOOK.md");
        assert!(alerts.contains(&format!("docs/RUNBOOK.md#{}", alert.to_lowercase())), "{alert}");
    }
}
