//! Data and key bindings of `top`: a plain struct without terminal and clock.
//!
//! Invariants: the data is bounded; the cursor of a non-empty table is always on a row; while the controller is
//! unreachable, the last data stays on the screen, marked as old.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use ringfence_actors::ports::Record;
use ringfence_messages::{
    Event,
    fence::{FenceIntended, FenceLevel, SiblingFenceAudited},
    host::HostInventory,
    storage::StorageInventory,
    vm::{VmInventory, VmState},
};
use uuid::Uuid;

/// Stored records. Too low: a busy minute is lost. Too high: memory.
pub(super) const MAX_RECORDS: usize = 500;

/// Stored fences; finished ones are evicted first.
const MAX_FENCES: usize = 100;

/// Longest filter.
const MAX_FILTER: usize = 64;

/// Rows of a page key.
const PAGE: usize = 10;

/// The inventory with its state at one moment.
#[derive(Clone, Debug, Default)]
pub(super) struct Data {
    pub(super) hosts: Vec<HostInventory>,
    pub(super) storages: Vec<StorageInventory>,
    pub(super) vms: Vec<VmInventory>,
}

/// An update for the screen.
#[derive(Debug)]
pub(super) enum Update {
    Data(Data),
    Record(Record),
    /// The controller is unreachable, with the reason.
    Lost(String),
    /// The answer to [`Effect::Explain`].
    Explained(String, Vec<String>),
}

/// Effect of a key outside of the state.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Effect {
    None,
    Quit,
    Explain(String),
}

/// One of the tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pane {
    Hosts,
    Storages,
    Vms,
    Fences,
    Events,
}

/// In the order of the tab key.
pub(super) const PANES: [Pane; 5] = [Pane::Hosts, Pane::Storages, Pane::Vms, Pane::Fences, Pane::Events];

/// A fence and its current level.
#[derive(Clone, Debug)]
pub(super) struct Fence {
    attempt: Uuid,
    pub(super) vm: String,
    pub(super) host: String,
    pub(super) since: String,
    pub(super) level: FenceLevel,
    /// Outcome; `None` while it is in progress.
    pub(super) outcome: Option<String>,
}

/// Overlay of the tables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Over {
    Nothing,
    Help,
    /// Title, lines, and the first visible line.
    Text(String, Vec<String>, usize),
}

/// The whole screen.
pub(super) struct State {
    pub(super) server: String,
    pub(super) data: Data,
    pub(super) records: VecDeque<Record>,
    pub(super) fences: Vec<Fence>,
    pub(super) pane: Pane,
    cursors: [usize; PANES.len()],
    pub(super) filter: String,
    /// The filter is being typed.
    pub(super) typing: bool,
    pub(super) over: Over,
    /// Start and reason of the lost connection; initially the start of the program.
    pub(super) lost: Option<(Instant, String)>,
}

impl State {
    pub(super) fn new(server: &str, now: Instant) -> State {
        State {
            server: server.to_owned(),
            data: Data::default(),
            records: VecDeque::new(),
            fences: Vec::new(),
            pane: Pane::Hosts,
            cursors: [0; PANES.len()],
            filter: String::new(),
            typing: false,
            over: Over::Nothing,
            lost: Some((now, "not connected yet".to_owned())),
        }
    }

    /// Duration and reason of the lost connection.
    pub(super) fn disconnected(&self, now: Instant) -> Option<(Duration, &str)> {
        self.lost.as_ref().map(|(since, why)| (now.saturating_duration_since(*since), why.as_str()))
    }

    pub(super) fn update(&mut self, update: Update, now: Instant) {
        match update {
            Update::Data(data) => {
                self.data = data;
                self.lost = None;
            }
            Update::Record(record) => self.record(record),
            Update::Lost(why) => {
                let since = self.lost.as_ref().map_or(now, |(since, _)| *since);
                self.lost = Some((since, why));
            }
            Update::Explained(title, lines) => self.over = Over::Text(title, lines, 0),
        }
        self.settle();
    }

    fn record(&mut self, record: Record) {
        // Repeated after a reconnect.
        if self.records.back().is_some_and(|last| record.seq <= last.seq) {
            return;
        }
        if record.topic == FenceIntended::TOPIC {
            if let Ok(intent) = record.event::<FenceIntended>() {
                let host = self.data.hosts.iter().find(|host| host.uuid == intent.failed_host_uuid);
                let host = host.map_or_else(|| intent.failed_host_uuid.to_string(), |host| host.name.clone());
                match self.fences.iter_mut().find(|fence| fence.attempt == intent.attempt) {
                    Some(fence) => fence.level = intent.level,
                    None => self.fences.push(Fence {
                        attempt: intent.attempt,
                        vm: intent.vm,
                        host,
                        since: record.time.clone(),
                        level: intent.level,
                        outcome: None,
                    }),
                }
            }
        } else if record.topic == SiblingFenceAudited::TOPIC
            && let Ok(audit) = record.event::<SiblingFenceAudited>()
            && let Some(fence) = self.fences.iter_mut().find(|fence| fence.attempt == audit.attempt)
        {
            fence.outcome = Some(audit.outcome.as_str().to_owned());
            fence.host = audit.failed_host;
        }
        if self.fences.len() > MAX_FENCES {
            let oldest = self.fences.iter().position(|fence| fence.outcome.is_some()).unwrap_or_default();
            self.fences.remove(oldest);
        }
        self.records.push_back(record);
        if self.records.len() > MAX_RECORDS {
            self.records.pop_front();
        }
    }

    fn matches(&self, texts: &[&str]) -> bool {
        let wanted = self.filter.to_lowercase();
        wanted.is_empty() || texts.iter().any(|text| text.to_lowercase().contains(&wanted))
    }

    /// The hosts that match the filter; unconnected ones first.
    pub(super) fn hosts(&self) -> Vec<&HostInventory> {
        let fits = |host: &&HostInventory| {
            let (status, state) = (format!("{:?}", host.status), format!("{:?}", host.state));
            self.matches(&[&host.name, &host.cluster, &host.management_ip, &status, &state])
        };
        let mut hosts: Vec<_> = self.data.hosts.iter().filter(fits).collect();
        hosts.sort_by_key(|host| host.reason.is_none());
        hosts
    }

    pub(super) fn storages(&self) -> Vec<&StorageInventory> {
        self.data.storages.iter().filter(|storage| self.matches(&[&storage.name])).collect()
    }

    /// The VMs off their desired state.
    pub(super) fn vms(&self) -> Vec<&VmInventory> {
        let odd = |vm: &&VmInventory| vm.state == VmState::Unknown || vm.wanted != (vm.state == VmState::Running);
        let fits = |vm: &&VmInventory| self.matches(&[&vm.name, vm.host.as_deref().unwrap_or_default()]);
        self.data.vms.iter().filter(odd).filter(fits).collect()
    }

    /// Fences in progress first, then the newest.
    pub(super) fn fences(&self) -> Vec<&Fence> {
        let mut fences: Vec<_> =
            self.fences.iter().rev().filter(|fence| self.matches(&[&fence.vm, &fence.host])).collect();
        fences.sort_by_key(|fence| fence.outcome.is_some());
        fences
    }

    /// The newest first.
    pub(super) fn events(&self) -> Vec<&Record> {
        self.records.iter().rev().filter(|record| self.matches(&[&record.topic, &record.subject])).collect()
    }

    /// How many rows a table has.
    pub(super) fn rows(&self, pane: Pane) -> usize {
        match pane {
            Pane::Hosts => self.hosts().len(),
            Pane::Storages => self.storages().len(),
            Pane::Vms => self.vms().len(),
            Pane::Fences => self.fences().len(),
            Pane::Events => self.events().len(),
        }
    }

    pub(super) fn cursor(&self, pane: Pane) -> usize {
        self.cursors[pane as usize]
    }

    fn settle(&mut self) {
        for pane in PANES {
            self.cursors[pane as usize] = self.cursor(pane).min(self.rows(pane).saturating_sub(1));
        }
    }

    pub(super) fn key(&mut self, key: KeyEvent) -> Effect {
        if key.modifiers.contains(KeyModifiers::CONTROL) && matches!(key.code, KeyCode::Char('c' | 'd')) {
            return Effect::Quit;
        }
        let effect = match (&mut self.over, self.typing) {
            (Over::Text(_, lines, first), _) => {
                let last = lines.len().saturating_sub(1);
                match key.code {
                    KeyCode::Up => *first = first.saturating_sub(1),
                    KeyCode::Down => *first = (*first + 1).min(last),
                    KeyCode::PageUp => *first = first.saturating_sub(PAGE),
                    KeyCode::PageDown => *first = (*first + PAGE).min(last),
                    _ => self.over = Over::Nothing,
                }
                Effect::None
            }
            (Over::Help, _) => {
                self.over = Over::Nothing;
                Effect::None
            }
            (Over::Nothing, true) => self.typed(key.code),
            (Over::Nothing, false) => self.pressed(key.code),
        };
        self.settle();
        effect
    }

    fn typed(&mut self, code: KeyCode) -> Effect {
        match code {
            KeyCode::Enter => self.typing = false,
            KeyCode::Esc => {
                self.typing = false;
                self.filter.clear();
            }
            KeyCode::Backspace => drop(self.filter.pop()),
            KeyCode::Char(c) if self.filter.chars().count() < MAX_FILTER => self.filter.push(c),
            _ => {}
        }
        Effect::None
    }

    fn pressed(&mut self, code: KeyCode) -> Effect {
        let (at, tables) = (self.pane as usize, PANES.len());
        let (cursor, last) = (self.cursor(self.pane), self.rows(self.pane).saturating_sub(1));
        let mut go = |to: usize| self.cursors[at] = to.min(last);
        match code {
            KeyCode::Char('q') => return Effect::Quit,
            KeyCode::Up | KeyCode::Char('k') => go(cursor.saturating_sub(1)),
            KeyCode::Down | KeyCode::Char('j') => go(cursor + 1),
            KeyCode::PageUp => go(cursor.saturating_sub(PAGE)),
            KeyCode::PageDown => go(cursor + PAGE),
            KeyCode::Home => go(0),
            KeyCode::End => go(last),
            KeyCode::Tab | KeyCode::Right => self.pane = PANES[(at + 1) % tables],
            KeyCode::BackTab | KeyCode::Left => self.pane = PANES[(at + tables - 1) % tables],
            KeyCode::Char('/') => self.typing = true,
            KeyCode::Esc => self.filter.clear(),
            KeyCode::Char('?') => self.over = Over::Help,
            KeyCode::Enter => return self.entered(cursor),
            _ => {}
        }
        Effect::None
    }

    /// Details of the selected row: the controller explains hosts and VMs; the others are local.
    fn entered(&mut self, cursor: usize) -> Effect {
        let explain = |name: Option<&str>| name.map_or(Effect::None, |name| Effect::Explain(name.to_owned()));
        match self.pane {
            Pane::Hosts => explain(self.hosts().get(cursor).map(|host| host.name.as_str())),
            Pane::Vms => explain(self.vms().get(cursor).map(|vm| vm.name.as_str())),
            Pane::Fences => explain(self.fences().get(cursor).map(|fence| fence.vm.as_str())),
            Pane::Storages => {
                let of = self.storages().get(cursor).map(|storage| {
                    let line = |host: &ringfence_messages::storage::StorageHostRef| {
                        let status = host.status.map_or("not checked yet".to_owned(), |status| status.to_string());
                        let why = host.reason.as_ref().map(|why| format!(": {why}")).unwrap_or_default();
                        format!("{}  {status}{why}", host.host)
                    };
                    (storage.name.clone(), storage.hosts.iter().map(line).collect())
                });
                self.show(of)
            }
            Pane::Events => {
                let of = self.events().get(cursor).map(|record| {
                    let text = serde_json::to_string_pretty(&record.payload).unwrap_or_default();
                    (format!("{} {}", record.topic, record.time), text.lines().map(str::to_owned).collect())
                });
                self.show(of)
            }
        }
    }

    fn show(&mut self, of: Option<(String, Vec<String>)>) -> Effect {
        if let Some((title, lines)) = of {
            self.over = Over::Text(title, lines, 0);
        }
        Effect::None
    }
}
