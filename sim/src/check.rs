//! The rules, judged by the events of the world and by the journal; never by what an actor observed.
//!
//! | rule | broken by |
//! |---|---|
//! | I1 | two writers on one volume; a start command without a valid permit |
//! | I2 | an audit record that says dead while the QEMU runs |
//! | I4 | a kill, a block or a start without its intent in the journal |
//! | I5 | a redeploy on a host in quarantine or maintenance |
//! | I7 | at rest: an attempt with an intent and not exactly one audit record |
//! | I8 | a redeploy off the backoff; more failed hosts than the storm brake allows; more VMs down for drains than allowed; a VM started without end; control characters or long texts in the journal |
//! | live | at rest: a VM that should run does not run exactly once, a protocol is down, a fence is left |

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fmt,
    net::IpAddr,
    time::Duration,
};

use ringfence_actors::{ha::drain::MOVES_AT_ONCE, inventory::Inventory, ports::Record};
use ringfence_messages::{
    Event, StorageId,
    ceph::StorageFenceChanged,
    fence::{FenceIntended, FenceOutcome, SiblingFenceAudited},
    ha::{HostFailed, HostQuarantineChanged, VmMoveChanged},
    host::{HostState, HostStateChanged, HostStatus, HostStatusChanged},
    recovery::{ProtocolRedeploy, RedeployPhase},
    vm::{HaMode, IntruderPhase, VmIntruder, VmState, VmStateChanged},
};
use uuid::Uuid;

use crate::{
    plan::{Location, Probe},
    world::{Export, Machine, Process, State, World, vhost_of},
};

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

/// The state of the checkers.
#[derive(Debug)]
pub(crate) struct Checks {
    pub(crate) violations: Vec<Violation>,
    vhost: Vec<Option<StorageId>>,
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
            vhost: (0..inventory.vms.len()).map(|vm| vhost_of(inventory, vm)).collect(),
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

    /// The storage whose target a VM writes through, if it does not write to Ceph.
    pub(crate) fn vhost_of(&self, vm: usize) -> Option<StorageId> {
        self.vhost[vm]
    }
}

impl State {
    pub(crate) fn violation(&mut self, rule: &'static str, what: String) {
        self.log(format_args!("VIOLATION of {rule}: {what}"));
        let at = self.now;
        self.checks.violations.push(Violation { at, rule, what });
    }

    fn newest<E: Event>(&self, subject: &str) -> Option<E> {
        self.latest_of(E::TOPIC, subject).and_then(|record| record.event().ok())
    }

    /// A start is ordered.
    pub(crate) fn starts(&mut self, vm: &str, incarnation: u64) {
        let intent = self.newest::<VmStateChanged>(vm);
        if intent.is_none_or(|is| is.new_state != VmState::Starting || is.incarnation != incarnation) {
            self.violation("I4", format!("{vm} starts without an intent in the journal"));
        }
        self.checks.restarts += 1;
        let now = self.now;
        let starts = self.checks.started.entry(vm.to_owned()).or_default();
        starts.retain(|at| now.saturating_sub(*at) < STARTS_WINDOW);
        starts.push_back(now);
        let often = starts.len();
        if often > STARTS_PER_MINUTE {
            self.violation("I8", format!("{vm} starts {often} times within a minute, limit {STARTS_PER_MINUTE}"));
        }
    }

    /// A stop is ordered.
    pub(crate) fn stops(&mut self, host: usize, vm: &str) {
        let intended = self.newest::<VmStateChanged>(vm).is_some_and(|is| is.new_state == VmState::Stopping);
        let cleaned = self.in_quarantine(host);
        let id = self.machines[host].id;
        let intruder = self.newest::<VmIntruder>(vm);
        let ended = intruder.is_some_and(|of| of.phase == IntruderPhase::EndIntended && of.host_uuid == id);
        if !intended && !cleaned && !ended {
            let host = self.machines[host].name.clone();
            self.violation("I4", format!("{vm} is stopped on {host} without an intent in the journal"));
        }
    }

    /// A kill over SSH is ordered.
    pub(crate) fn sibling_fences(&mut self, failed: usize, vm: &str) {
        let id = self.machines[failed].id;
        if self.newest::<FenceIntended>(vm).is_none_or(|intent| intent.failed_host_uuid != id) {
            self.violation("I4", format!("{vm} is killed over SSH without an intent in the journal"));
        }
    }

    /// An address is blocked.
    pub(crate) fn blocks(&mut self, ip: IpAddr) {
        let intents = self.latest(StorageFenceChanged::TOPIC);
        let holds = |record: &Record| {
            let event = record.event::<StorageFenceChanged>();
            event.is_ok_and(|e| e.addresses.contains(&ip) && e.phase.is_kept())
        };
        if !intents.iter().any(holds) {
            self.violation("I4", format!("{ip} is blocked without an intent in the journal"));
        }
    }

    /// The hosts that the journal has in maintenance.
    pub(crate) fn maintained(&self) -> Vec<String> {
        let names = self.machines.iter().map(|machine| machine.name.clone());
        let state = |name: &String| self.newest::<HostStateChanged>(name).map(|change| change.new_state);
        names.filter(|name| state(name) == Some(HostState::Maintenance)).collect()
    }

    fn in_quarantine(&self, host: usize) -> bool {
        self.newest::<HostQuarantineChanged>(&self.machines[host].name).is_some_and(|newest| newest.quarantined)
    }

    /// Attempts are those of the journal from now on, which lost some.
    pub(crate) fn recount_attempts(&mut self) {
        let mut attempts = BTreeMap::new();
        for record in &self.leadership.records {
            if let Ok(intent) = record.event::<FenceIntended>() {
                attempts.entry(intent.attempt).or_insert((intent.vm, 0, 0)).1 += 1;
            } else if let Ok(audit) = record.event::<SiblingFenceAudited>() {
                attempts.entry(audit.attempt).or_insert((audit.vm, 0, 0)).2 += 1;
            }
        }
        self.checks.attempts = attempts;
    }

    /// I8: words from outside are bounded and clean.
    fn words(&mut self, record: &Record) {
        let wrong = |text: &String| {
            let dirty = text.chars().any(|c| c.is_control() && c != '\n');
            if dirty {
                Some("control characters".to_owned())
            } else {
                (text.len() > MAX_WORDS).then(|| format!("a text of {} bytes", text.len()))
            }
        };
        if let Some(wrong) = texts(&record.payload).find_map(wrong) {
            self.violation("I8", format!("record {} ({}) has {wrong}", record.seq, record.topic));
        }
    }

    /// A record is durable; it tells what happened `at`.
    pub(crate) fn check_record(&mut self, record: &Record, at: Duration) {
        self.words(record);
        match record.topic.as_str() {
            FenceIntended::TOPIC => {
                let Ok(intent) = record.event::<FenceIntended>() else { return };
                let (_, intents, _) = self.checks.attempts.entry(intent.attempt).or_insert((intent.vm, 0, 0));
                *intents += 1;
                self.checks.fences += u32::from(*intents == 1);
            }
            SiblingFenceAudited::TOPIC => {
                let Ok(audit) = record.event::<SiblingFenceAudited>() else { return };
                self.audited(&audit);
                let (vm, intents, audits) = self.checks.attempts.entry(audit.attempt).or_insert((audit.vm, 0, 0));
                *audits += 1;
                if *intents == 0 || *audits > 1 {
                    let what = format!("{vm}: {intents} intents, {audits} audits of one attempt");
                    self.violation("I7", what);
                }
            }
            ProtocolRedeploy::TOPIC => {
                let Ok(redeploy) = record.event::<ProtocolRedeploy>() else { return };
                if redeploy.phase == RedeployPhase::Intent {
                    self.redeploys(&record.subject, &redeploy);
                }
            }
            HostFailed::TOPIC => {
                let Ok(failed) = record.event::<HostFailed>() else { return };
                self.failed(&failed, at);
            }
            HostStatusChanged::TOPIC => {
                let Ok(is) = record.event::<HostStatusChanged>() else { return };
                if is.new_status != HostStatus::Disconnected {
                    // The host answers: it does not count together with the next failed one (row 39).
                    self.checks.failed.retain(|(_, _, host)| *host != record.subject);
                }
            }
            VmStateChanged::TOPIC => {
                let Ok(is) = record.event::<VmStateChanged>() else { return };
                if is.new_state == VmState::Stopping {
                    self.stopped_for_drains();
                }
            }
            _ => {}
        }
    }

    /// I2: no audit record says dead while the VM runs.
    fn audited(&mut self, audit: &SiblingFenceAudited) {
        let dead = matches!(audit.outcome, FenceOutcome::SuccessKilled | FenceOutcome::SuccessAlreadyDead);
        let Some(host) = self.machines.iter().position(|machine| machine.id == audit.failed_host_uuid) else { return };
        let refused = self.ceph.refuses(&self.machines[host].storage_ips, self.now);
        let is_vm = |p: &Process| format!("vm-{}", p.vm) == audit.vm && !p.incoming && p.claim.is_none();
        let held = |(vm, export): (&usize, &Export)| export.held && format!("vm-{vm}") == audit.vm;
        let lives = self.machines[host].processes.iter().any(is_vm) || self.machines[host].exports.iter().any(held);
        if dead && lives && !refused {
            self.violation("I2", format!("{}: {} on {}, where it runs", audit.vm, audit.outcome, audit.failed_host));
        }
    }

    /// I5 and the backoff, computed independently: at once, then after 2, 4, 8, ... 64, 64 skipped pings.
    fn redeploys(&mut self, subject: &str, redeploy: &ProtocolRedeploy) {
        self.checks.redeployed += 1;
        let host = &redeploy.host;
        let quarantined = self.newest::<HostQuarantineChanged>(host).is_some_and(|is| is.quarantined);
        let maintained = self.newest::<HostStateChanged>(host).is_some_and(|is| is.new_state == HostState::Maintenance);
        if quarantined || maintained {
            self.violation("I5", format!("{subject} is redeployed in quarantine or maintenance"));
        }
        let n = redeploy.attempt;
        let expected = if n <= 1 { 0 } else { 1u32.checked_shl(n - 1).map_or(64, |skip| skip.min(64)) };
        // The number of earlier redeploys is not checked: attempts without a recorded intent are missing.
        if redeploy.skipped_pings != expected {
            let what = format!("{subject}: redeploy {n} after {} skipped pings", redeploy.skipped_pings);
            self.violation("I8", what);
        }
    }

    /// I8: VMs that were stopped for a drain and do not run yet.
    fn stopped_for_drains(&mut self) {
        let moves = self.latest(VmMoveChanged::TOPIC);
        let moves = moves.iter().filter_map(|record| record.event::<VmMoveChanged>().ok()).filter(|of| of.moving);
        // A VM that did not stop has its own host in the record; its late stop is not part of a move.
        let moves = moves.filter(|of| of.host.as_ref() != Some(&of.from_host));
        let down = moves.filter(|of| {
            let newest = self.newest::<VmStateChanged>(&of.vm);
            newest.is_some_and(|vm| matches!(vm.new_state, VmState::Stopping | VmState::Stopped) && vm.wanted)
        });
        let down: Vec<String> = down.map(|of| of.vm).collect();
        if down.len() > MOVES_AT_ONCE {
            self.violation("I8", format!("{} VMs are down for drains, limit {MOVES_AT_ONCE}: {down:?}", down.len()));
        }
    }

    fn failed(&mut self, failed: &HostFailed, at: Duration) {
        let (cluster, size) = self.checks.clusters.get(&failed.host).cloned().unwrap_or_default();
        self.checks.failed.retain(|(before, _, _)| at.saturating_sub(*before) < STORM_WINDOW);
        self.checks.failed.push((at, cluster.clone(), failed.host.clone()));
        let together: BTreeSet<&String> =
            self.checks.failed.iter().filter(|(_, of, _)| *of == cluster).map(|(_, _, host)| host).collect();
        let limit = (size * self.checks.storm_percent / 100).max(1);
        if together.len() > limit && !failed.unseen_by.is_empty() {
            let what =
                format!("{} unreachable hosts failed within a minute, limit {limit}: {together:?}", together.len());
            self.violation("I8", what);
        }
    }
}

impl World {
    /// Violations of the rule `live`: checked when no fault has been active for long enough.
    pub(crate) fn unwell(&self) -> Vec<String> {
        let state = self.state();
        let mut unwell = Vec::new();
        for (n, vm) in self.inventory.vms.iter().enumerate() {
            let Some(observed) = state.newest::<VmStateChanged>(&vm.name) else { continue };
            let hosts: Vec<String> = state
                .machines
                .iter()
                .flat_map(|machine| {
                    let own = machine.processes.iter().filter(|process| process.vm == n && process.claim.is_none());
                    own.map(|p| format!("{}{}", machine.name, if p.writes { "" } else { " (does not write)" }))
                })
                .collect();
            let right = hosts.len() == 1 && !hosts[0].ends_with(')');
            let owed = state.newest::<VmMoveChanged>(&vm.name).is_some_and(|of| of.moving);
            if (vm.ha == HaMode::NeverStop || owed) && observed.wanted && !right {
                let state = observed.new_state;
                unwell.push(format!("{} runs on {hosts:?}, observed state {state:?} on {:?}", vm.name, observed.host));
            }
        }
        for machine in &state.machines {
            let down = machine.targets.values().filter(|up| !**up).count();
            if down > 0 {
                unwell.push(format!("{down} vhost targets of {} are down", machine.name));
            }
            let status = state.newest::<HostStatusChanged>(&machine.name).map(|is| is.new_status);
            if status != Some(HostStatus::Connected) {
                unwell.push(format!("{} is {status:?}", machine.name));
            }
            if state.newest::<HostQuarantineChanged>(&machine.name).is_some_and(|is| is.quarantined) {
                unwell.push(format!("{} is in quarantine", machine.name));
            }
        }
        unwell.extend(state.ceph.blocked(state.now).iter().map(|ip| format!("ceph still rejects {ip}")));
        unwell
    }

    /// Checks the expected host of a VM.
    pub(crate) fn probe(&self, probe: &Probe) {
        let mut state = self.state();
        let vm = self.vm_named(&probe.vm);
        let writes = |machine: &Machine| machine.processes.iter().any(|p| Some(p.vm) == vm && p.writes);
        let hosts: Vec<&str> = state.machines.iter().filter(|m| writes(m)).map(|m| m.name.as_str()).collect();
        let right = match &probe.on {
            Location::On(host) => hosts == [host.as_str()],
            Location::NotOn(host) => hosts.len() == 1 && hosts != [host.as_str()],
            Location::Somewhere => hosts.len() == 1,
            Location::Nowhere => hosts.is_empty(),
        };
        if !right {
            let what = format!("{} is expected {:?}, but writes on {hosts:?}", probe.vm, probe.on);
            state.violation("expect", what);
        }
    }

    /// I7: attempts with an intent and without an audit record.
    pub(crate) fn owed_audits(&self) -> Vec<String> {
        let state = self.state();
        let owed = state.checks.attempts.values().filter(|(_, _, audits)| *audits == 0);
        owed.map(|(vm, _, _)| format!("a fence attempt of {vm} has no audit record")).collect()
    }
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
