//! The rules, judged by what happened in the world and by what the journal says; never by what actors think.
//!
//! | rule | looked at |
//! |---|---|
//! | I1 | who wrote on which disk; orders without a good permit |
//! | I2 | an audit that says "dead" while the QEMU lives there |
//! | I4 | kills, blocks, starts without their intent in the journal |
//! | I5 | redeploys intended on hosts in quarantine or maintenance |
//! | I7 | attempts with an intent and not exactly one audit, when everything is quiet |
//! | I8 | redeploys off the backoff rule; more hosts failed at once than the storm brake lets; more VMs down for drains than may be; a VM started without end; control characters and long words in the journal |
//! | live | when everything is quiet: every VM that is to run, or was stopped for a drain, runs once, every protocol is up, no fence is left |

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

/// Failed hosts count together for so long (the storm brake's window).
const STORM_WINDOW: Duration = Duration::from_secs(60);

/// A VM is started so often within a minute at most. Too low: a VM that three faults hit in a minute counts as started
/// without end. Too high: one that ends at once is started every few seconds for ever.
const STARTS_PER_MINUTE: usize = 10;

/// Starts of a VM are counted for so long.
const STARTS_WINDOW: Duration = Duration::from_secs(60);

/// What a record says in words is at most so long, in bytes. Too low: an error with its causes does not fit. Too high: one
/// agent fills the journal.
const MAX_WORDS: usize = 16 << 10;

/// Of words from outside a line of the log has so many characters at most.
const MAX_LINE_WORDS: usize = 1000;

/// A rule that was broken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// When.
    pub at: Duration,
    /// Which rule.
    pub rule: &'static str,
    /// How.
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {:.3} s: {}", self.rule, self.at.as_secs_f64(), self.what)
    }
}

/// What the checkers remember.
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
        let of = inventory.hosts.iter().map(|host| (host.name.clone(), (host.cluster.to_string(), size(host.cluster))));
        Checks {
            violations: Vec::new(),
            vhost: (0..inventory.vms.len()).map(|vm| vhost_of(inventory, vm)).collect(),
            attempts: BTreeMap::new(),
            failed: Vec::new(),
            started: BTreeMap::new(),
            clusters: of.collect(),
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
            self.violation("I4", format!("{vm} is started without an intent in the journal"));
        }
        self.checks.restarts += 1;
        let now = self.now;
        let of = self.checks.started.entry(vm.to_owned()).or_default();
        of.retain(|at| now.saturating_sub(*at) < STARTS_WINDOW);
        of.push_back(now);
        let often = of.len();
        if often > STARTS_PER_MINUTE {
            self.violation("I8", format!("{vm} is started {often} times within a minute, {STARTS_PER_MINUTE} may be"));
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
        let of = self.machines.iter().map(|machine| machine.name.clone());
        of.filter(|name| self.newest::<HostStateChanged>(name).is_some_and(|is| is.new_state == HostState::Maintenance))
            .collect()
    }

    fn in_quarantine(&self, host: usize) -> bool {
        self.newest::<HostQuarantineChanged>(&self.machines[host].name).is_some_and(|is| is.quarantined)
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
                (text.len() > MAX_WORDS).then(|| format!("{} bytes of words", text.len()))
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
                let of = self.checks.attempts.entry(intent.attempt).or_insert((intent.vm, 0, 0));
                of.1 += 1;
                self.checks.fences += u32::from(of.1 == 1);
            }
            SiblingFenceAudited::TOPIC => {
                let Ok(audit) = record.event::<SiblingFenceAudited>() else { return };
                self.audited(&audit);
                let of = self.checks.attempts.entry(audit.attempt).or_insert((audit.vm, 0, 0));
                of.2 += 1;
                if of.1 == 0 || of.2 > 1 {
                    let what = format!("{}: {} intents, {} audits of one attempt", of.0, of.1, of.2);
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
                    // It answers: it is not away at once with the next one (row 39).
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

    /// I2: nobody is called dead who lives.
    fn audited(&mut self, audit: &SiblingFenceAudited) {
        let dead = matches!(audit.outcome, FenceOutcome::SuccessKilled | FenceOutcome::SuccessAlreadyDead);
        let Some(host) = self.machines.iter().position(|machine| machine.id == audit.failed_host_uuid) else { return };
        let refused = self.ceph.refuses(&self.machines[host].storage_ips, self.now);
        let is = |p: &Process| format!("vm-{}", p.vm) == audit.vm && !p.incoming && p.claim.is_none();
        let held = |(vm, export): (&usize, &Export)| export.held && format!("vm-{vm}") == audit.vm;
        let lives = self.machines[host].processes.iter().any(is) || self.machines[host].exports.iter().any(held);
        if dead && lives && !refused {
            self.violation("I2", format!("{}: {} on {}, where it lives", audit.vm, audit.outcome, audit.failed_host));
        }
    }

    /// I5 and the backoff rule, computed anew: at once, then after 2, 4, 8, ... 64, 64 skipped pings.
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
        // How many there were before is not looked at: tries whose intent could not be recorded are missing.
        if redeploy.skipped_pings != expected {
            let what = format!("{subject}: redeploy {n} after {} skipped pings", redeploy.skipped_pings);
            self.violation("I8", what);
        }
    }

    /// I8: who was stopped for a drain and does not run yet.
    fn stopped_for_drains(&mut self) {
        let moves = self.latest(VmMoveChanged::TOPIC);
        let moves = moves.iter().filter_map(|record| record.event::<VmMoveChanged>().ok()).filter(|of| of.moving);
        // Of who stayed it is told where it is; that it ends late is no doing of now.
        let moves = moves.filter(|of| of.host.as_ref() != Some(&of.from_host));
        let down = moves.filter(|of| {
            let is = self.newest::<VmStateChanged>(&of.vm);
            is.is_some_and(|is| matches!(is.new_state, VmState::Stopping | VmState::Stopped) && is.wanted)
        });
        let down: Vec<String> = down.map(|of| of.vm).collect();
        if down.len() > MOVES_AT_ONCE {
            self.violation("I8", format!("{} VMs are down for drains, {MOVES_AT_ONCE} may: {down:?}", down.len()));
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
                format!("{} hosts are away that failed within a minute, {limit} may: {together:?}", together.len());
            self.violation("I8", what);
        }
    }
}

impl World {
    /// What is not as it should be once everything has been quiet for long enough.
    pub(crate) fn unwell(&self) -> Vec<String> {
        let state = self.state();
        let mut unwell = Vec::new();
        for (n, vm) in self.inventory.vms.iter().enumerate() {
            let Some(believed) = state.newest::<VmStateChanged>(&vm.name) else { continue };
            let there: Vec<String> = state
                .machines
                .iter()
                .flat_map(|machine| {
                    let of = machine.processes.iter().filter(|process| process.vm == n && process.claim.is_none());
                    of.map(|p| format!("{}{}", machine.name, if p.writes { "" } else { " (does not write)" }))
                })
                .collect();
            let right = there.len() == 1 && !there[0].ends_with(')');
            let owed = state.newest::<VmMoveChanged>(&vm.name).is_some_and(|of| of.moving);
            if (vm.ha == HaMode::NeverStop || owed) && believed.wanted && !right {
                let state = believed.new_state;
                unwell.push(format!("{} runs on {there:?}, believed {state:?} on {:?}", vm.name, believed.host));
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
        unwell.extend(state.ceph.blocked(state.now).iter().map(|ip| format!("ceph still refuses {ip}")));
        unwell
    }

    /// Whether a VM is where it is to be now.
    pub(crate) fn probe(&self, probe: &Probe) {
        let mut state = self.state();
        let vm = self.vm_named(&probe.vm);
        let writes = |machine: &Machine| machine.processes.iter().any(|p| Some(p.vm) == vm && p.writes);
        let there: Vec<&str> = state.machines.iter().filter(|m| writes(m)).map(|m| m.name.as_str()).collect();
        let right = match &probe.on {
            Location::On(host) => there == [host.as_str()],
            Location::NotOn(host) => there.len() == 1 && there != [host.as_str()],
            Location::Somewhere => there.len() == 1,
            Location::Nowhere => there.is_empty(),
        };
        if !right {
            let what = format!("{} is to be {:?}, and writes on {there:?}", probe.vm, probe.on);
            state.violation("expect", what);
        }
    }

    /// I7: every attempt that has an intent has its audit.
    pub(crate) fn owed_audits(&self) -> Vec<String> {
        let state = self.state();
        let owed = state.checks.attempts.values().filter(|(_, _, audits)| *audits == 0);
        owed.map(|(vm, _, _)| format!("an attempt to fence {vm} has no audit")).collect()
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

/// A record as one line: what a reader of a run wants of it.
pub(crate) fn line(record: &Record) -> String {
    journal_line(record.seq, &record.topic, &record.subject, &record.payload)
}

/// The line of a record with these parts: what stories expect words of.
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
