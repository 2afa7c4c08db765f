//! The rules, judged by the events of the world and by the journal; never by what an actor observed.
//!
//! Purpose: the state of the checkers, and the rules that need records and counts alone. `world::judge` has the rules
//! that need the world, and passes on what happens there.
//!
//! | rule | broken by |
//! |---|---|
//! | I1 | two writers on one volume; a start command without a valid permit |
//! | I2 | an audit record that says dead while the QEMU runs |
//! | I4 | a kill, a block or a start without its intent in the journal |
//! | I5 | a redeploy on a host in quarantine or maintenance |
//! | I7 | at rest: an attempt with an intent and not exactly one audit record |
//! | I8 | a redeploy off the backoff; more failed hosts than the storm brake allows |
//! | I8 | more VMs down for drains than allowed; a VM started without end |
//! | I8 | control characters or long texts in the journal |
//! | live | at rest: a VM that should run does not run exactly once, a protocol is down, a fence is left |

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fmt,
    time::Duration,
};

use ringfence_actors::{ha::drain::MOVES_AT_ONCE, inventory::Inventory, ports::Record};
use ringfence_messages::{
    fence::{FenceIntended, SiblingFenceAudited},
    ha::HostFailed,
    recovery::ProtocolRedeploy,
};
use uuid::Uuid;

/// Time window in which failed hosts count together: that of the storm brake.
const STORM_WINDOW: Duration = Duration::from_secs(60);

/// Starts of a VM within a minute, at most. Too low: three faults in a minute break the rule. Too high: a VM that stops
/// at once may be started every few seconds for ever.
const STARTS_PER_MINUTE: usize = 10;

/// Time window of that count.
const STARTS_WINDOW: Duration = Duration::from_secs(60);

/// What a record says in words is at most so long, in bytes. Too low: an error with its causes does not fit. Too high:
/// one agent fills the journal.
const MAX_WORDS: usize = 16 << 10;

/// Characters of a text from outside in a line of the log, at most. Too low: the reason is cut. Too high: unreadable
/// lines.
const MAX_LINE_WORDS: usize = 1000;

/// A rule that was broken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Time since the beginning of the run.
    pub at: Duration,
    /// Name of the rule, such as `I1`.
    pub rule: &'static str,
    /// How it was broken.
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {:.3} s: {}", self.rule, self.at.as_secs_f64(), self.what)
    }
}

/// The state of the checkers. Each rule returns how it was broken, if it was.
#[derive(Debug)]
pub(crate) struct Checks {
    pub(crate) violations: Vec<Violation>,
    /// Intents and audits, by attempt.
    attempts: BTreeMap<Uuid, (String, u32, u32)>,
    failed: Vec<(Duration, String, String)>,
    /// The newest starts of each VM.
    started: BTreeMap<String, VecDeque<Duration>>,
    clusters: BTreeMap<String, (String, usize)>,
    storm_percent: usize,
    pub(crate) fences: u32,
    pub(crate) restarts: u32,
    pub(crate) redeployed: u32,
}

impl Checks {
    pub(crate) fn new(inventory: &Inventory) -> Checks {
        let size = |cluster| inventory.hosts.iter().filter(|host| host.cluster == cluster).count();
        let clusters =
            inventory.hosts.iter().map(|host| (host.name.clone(), (host.cluster.to_string(), size(host.cluster))));
        Checks {
            violations: Vec::new(),
            attempts: BTreeMap::new(),
            failed: Vec::new(),
            started: BTreeMap::new(),
            clusters: clusters.collect(),
            storm_percent: 30,
            fences: 0,
            restarts: 0,
            redeployed: 0,
        }
    }

    /// I8: a VM is started.
    pub(crate) fn starts(&mut self, vm: &str, now: Duration) -> Option<String> {
        self.restarts += 1;
        let starts = self.started.entry(vm.to_owned()).or_default();
        starts.retain(|at| now.saturating_sub(*at) < STARTS_WINDOW);
        starts.push_back(now);
        let often = starts.len();
        let wrong = format!("{vm} starts {often} times within a minute, limit {STARTS_PER_MINUTE}");
        (often > STARTS_PER_MINUTE).then_some(wrong)
    }

    /// Attempts are those of these records from now on: the journal lost some.
    pub(crate) fn recount_attempts(&mut self, records: &[Record]) {
        self.attempts.clear();
        for record in records {
            if let Ok(intent) = record.event::<FenceIntended>() {
                self.attempts.entry(intent.attempt).or_insert((intent.vm, 0, 0)).1 += 1;
            } else if let Ok(audit) = record.event::<SiblingFenceAudited>() {
                self.attempts.entry(audit.attempt).or_insert((audit.vm, 0, 0)).2 += 1;
            }
        }
    }

    /// The intent of an attempt is recorded.
    pub(crate) fn intends(&mut self, intent: FenceIntended) {
        let (_, intents, _) = self.attempts.entry(intent.attempt).or_insert((intent.vm, 0, 0));
        *intents += 1;
        self.fences += u32::from(*intents == 1);
    }

    /// I7: the audit of an attempt is recorded.
    pub(crate) fn audits(&mut self, audit: SiblingFenceAudited) -> Option<String> {
        let (vm, intents, audits) = self.attempts.entry(audit.attempt).or_insert((audit.vm, 0, 0));
        *audits += 1;
        let wrong = *intents == 0 || *audits > 1;
        wrong.then(|| format!("{vm}: {intents} intents, {audits} audits of one attempt"))
    }

    /// I7: attempts with an intent and without an audit record.
    pub(crate) fn owed_audits(&self) -> Vec<String> {
        let owed = self.attempts.values().filter(|(_, _, audits)| *audits == 0);
        owed.map(|(vm, _, _)| format!("a fence attempt of {vm} has no audit record")).collect()
    }

    /// I8: a host failed.
    pub(crate) fn fails(&mut self, failed: &HostFailed, at: Duration) -> Option<String> {
        let (cluster, size) = self.clusters.get(&failed.host).cloned().unwrap_or_default();
        self.failed.retain(|(before, _, _)| at.saturating_sub(*before) < STORM_WINDOW);
        self.failed.push((at, cluster.clone(), failed.host.clone()));
        let together: BTreeSet<&String> =
            self.failed.iter().filter(|(_, of, _)| *of == cluster).map(|(_, _, host)| host).collect();
        let limit = (size * self.storm_percent / 100).max(1);
        let wrong = together.len() > limit && !failed.unseen_by.is_empty();
        wrong.then(|| {
            format!("{} unreachable hosts failed within a minute, limit {limit}: {together:?}", together.len())
        })
    }

    /// The host answers: it does not count together with the next failed one (row 39).
    pub(crate) fn answers(&mut self, host: &str) {
        self.failed.retain(|(_, _, failed)| failed != host);
    }

    /// I8: the backoff, computed independently: at once, then after 2, 4, 8, ... 64, 64 skipped pings.
    pub(crate) fn redeploys(&mut self, subject: &str, redeploy: &ProtocolRedeploy) -> Option<String> {
        self.redeployed += 1;
        let n = redeploy.attempt;
        let expected = if n <= 1 { 0 } else { 1u32.checked_shl(n - 1).map_or(64, |skip| skip.min(64)) };
        // The number of earlier redeploys is not checked: attempts without a recorded intent are missing.
        let wrong = format!("{subject}: redeploy {n} after {} skipped pings", redeploy.skipped_pings);
        (redeploy.skipped_pings != expected).then_some(wrong)
    }
}

/// I8: these VMs are down for drains.
pub(crate) fn down_for_drains(down: &[String]) -> Option<String> {
    let wrong = down.len() > MOVES_AT_ONCE;
    wrong.then(|| format!("{} VMs are down for drains, limit {MOVES_AT_ONCE}: {down:?}", down.len()))
}

/// I8: texts from outside are bounded and clean.
pub(crate) fn wrong_text(record: &Record) -> Option<String> {
    let wrong = |text: &String| {
        let dirty = text.chars().any(|c| c.is_control() && c != '\n');
        if dirty {
            Some("control characters".to_owned())
        } else {
            (text.len() > MAX_WORDS).then(|| format!("a text of {} bytes", text.len()))
        }
    };
    let wrong = texts(&record.payload).find_map(wrong)?;
    Some(format!("record {} ({}) has {wrong}", record.seq, record.topic))
}

/// Every text in a payload.
fn texts(value: &serde_json::Value) -> Box<dyn Iterator<Item = &String> + '_> {
    match value {
        serde_json::Value::String(text) => Box::new(std::iter::once(text)),
        serde_json::Value::Array(of) => Box::new(of.iter().flat_map(texts)),
        serde_json::Value::Object(of) => Box::new(of.values().flat_map(texts)),
        _ => Box::new(std::iter::empty()),
    }
}

/// A record as one line of the log.
pub(crate) fn line(record: &Record) -> String {
    journal_line(record.seq, &record.topic, &record.subject, &record.payload)
}

/// The line of a record with these parts, which expectations of stories match.
pub fn journal_line(seq: u64, topic: &str, subject: &str, payload: &serde_json::Value) -> String {
    const KEYS: [&str; 10] = [
        "newState",
        "newStatus",
        "phase",
        "outcome",
        "level",
        "host",
        "incarnation",
        "quarantined",
        "moving",
        "reason",
    ];
    let mut line = format!("journal {seq}: {topic} {subject}");
    for key in KEYS {
        match &payload[key] {
            serde_json::Value::Null => {}
            serde_json::Value::String(text) => {
                let clean = |c: char| if c.is_control() { '?' } else { c };
                line.push(' ');
                line.extend(text.chars().take(MAX_LINE_WORDS).map(clean));
            }
            other => line.push_str(&format!(" {key}={other}")),
        }
    }
    line
}
