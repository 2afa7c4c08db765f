use std::time::Duration;

use crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use proptest::prelude::*;
use ratatui::{Terminal, backend::TestBackend};
use ringfence_messages::{
    ClusterId, Event, HostId, Protocol, StorageId, VmId,
    fence::{FenceIntended, FenceOutcome, SiblingFenceAudited},
    storage::{StorageHostRef, StorageKind},
    vm::HaMode,
};

use super::*;
use crate::top::state::{Data, Effect, Update};

fn host(n: usize) -> HostInventory {
    HostInventory {
        uuid: HostId::from_name(&format!("host-{n}")),
        name: format!("host-{n}"),
        cluster: "c1".to_owned(),
        management_ip: format!("10.77.{}.{}", n / 250, n % 250 + 1),
        state: if n == 2 { HostState::Maintenance } else { HostState::Enabled },
        status: if n == 1 { HostStatus::Disconnected } else { HostStatus::Connected },
        reason: (n == 1).then(|| "no answer within 2s".to_owned()),
    }
}

fn vm(n: usize) -> VmInventory {
    VmInventory {
        uuid: VmId::from_name(&format!("vm{n}")),
        name: format!("vm{n}"),
        cluster: "c1".to_owned(),
        ha: HaMode::NeverStop,
        state: if n == 1 { VmState::Unknown } else { VmState::Running },
        host_uuid: None,
        host: Some(format!("host-{n}")),
        last_host_uuid: None,
        incarnation: 3,
        wanted: true,
        volumes: Vec::new(),
    }
}

fn data(hosts: usize) -> Data {
    let of = |host: &HostInventory| StorageHostRef {
        host_uuid: host.uuid,
        host: host.name.clone(),
        primary_storage_uuid: StorageId::from_name("vhost-1"),
        storage: "vhost-1".to_owned(),
        status: match host.name.as_str() {
            "host-1" => Some(ProtocolStatus::Disconnected),
            "host-2" => None,
            _ => Some(ProtocolStatus::Connected),
        },
        reason: None,
        check_error: None,
    };
    let all: Vec<_> = (0..hosts).map(host).collect();
    let storage = StorageInventory {
        uuid: StorageId::from_name("vhost-1"),
        name: "vhost-1".to_owned(),
        kind: StorageKind::Vhost,
        clusters: vec!["c1".to_owned()],
        protocols: vec![Protocol::Vhost],
        hosts: all.iter().map(of).collect(),
    };
    Data { hosts: all, storages: vec![storage], vms: (0..hosts).map(vm).collect() }
}

fn record<E: Event>(seq: u64, event: &E) -> Update {
    Update::Record(Record {
        seq,
        time: format!("2026-11-21T10:00:{:02}.000Z", seq % 60),
        topic: E::TOPIC.to_owned(),
        subject: event.subject(),
        payload: serde_json::to_value(event).unwrap(),
        hash: String::new(),
    })
}

fn intent(vm: &str, level: FenceLevel) -> FenceIntended {
    FenceIntended {
        attempt: VmId::from_name(vm).0,
        vm_uuid: VmId::from_name(vm),
        vm: vm.to_owned(),
        failed_host_uuid: HostId::from_name("host-1"),
        cluster_uuid: ClusterId::from_name("c1"),
        ha_target_host_uuid: HostId::from_name("host-0"),
        level,
    }
}

fn audit(vm: &str, outcome: FenceOutcome) -> SiblingFenceAudited {
    SiblingFenceAudited {
        attempt: VmId::from_name(vm).0,
        vm_uuid: VmId::from_name(vm),
        vm: vm.to_owned(),
        failed_host_uuid: HostId::from_name("host-1"),
        failed_host: "host-1".to_owned(),
        cluster_uuid: ClusterId::from_name("c1"),
        ha_target_host_uuid: HostId::from_name("host-0"),
        outcome,
        executor_host_uuid: None,
        reason: "r".to_owned(),
        evidence: Vec::new(),
    }
}

struct Screen {
    state: State,
    now: Instant,
}

impl Screen {
    /// A night: a host is down, one VM of it was fenced, another is being fenced.
    fn of(hosts: usize) -> Screen {
        let now = Instant::now();
        let mut screen = Screen { state: State::new("http://127.0.0.1:7080", now), now };
        screen.gets(Update::Data(data(hosts)));
        screen.gets(record(1, &intent("vm7", FenceLevel::Sibling)));
        screen.gets(record(2, &audit("vm7", FenceOutcome::SuccessKilled)));
        screen.gets(record(3, &intent("vm1", FenceLevel::Sibling)));
        screen.gets(record(4, &intent("vm1", FenceLevel::Storage)));
        screen
    }

    fn gets(&mut self, update: Update) {
        self.state.update(update, self.now);
    }

    fn press(&mut self, keys: &[KeyCode]) -> Effect {
        let press = |code: &KeyCode| self.state.key(KeyEvent::new(*code, KeyModifiers::NONE));
        keys.iter().map(press).last().unwrap()
    }

    fn word(&mut self, word: &str) {
        self.press(&word.chars().map(KeyCode::Char).collect::<Vec<_>>());
    }

    fn drawn(&self, width: u16, height: u16) -> String {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| draw(frame, &self.state, self.now)).unwrap();
        terminal.backend().to_string()
    }
}

#[test]
fn a_night_on_a_small_and_on_a_wide_terminal() {
    let mut screen = Screen::of(8);
    insta::assert_snapshot!("small", screen.drawn(80, 24));
    insta::assert_snapshot!("wide", screen.drawn(140, 40));
    screen.press(&[KeyCode::Char('?')]);
    insta::assert_snapshot!("help", screen.drawn(80, 24));
    screen.press(&[KeyCode::Esc]);
    assert_eq!(
        screen.press(&[KeyCode::Enter]),
        Effect::Explain("host-1".to_owned()),
        "the one that is not well is first"
    );
    screen.gets(Update::Explained("host-1".to_owned(), vec!["host-1 is Disconnected: no answer.".to_owned()]));
    insta::assert_snapshot!("explained", screen.drawn(80, 24));
}

#[test]
fn a_controller_that_is_away_is_said_with_how_long_and_what_was_known_stays() {
    let mut screen = Screen::of(3);
    screen.gets(Update::Lost("connection refused".to_owned()));
    screen.now += Duration::from_secs(7);
    screen.gets(Update::Lost("timed out".to_owned()));
    let drawn = screen.drawn(100, 24);
    assert!(drawn.contains("http://127.0.0.1:7080 not reachable for 7 s, retrying: timed out"), "{drawn}");
    assert!(drawn.contains("host-2"), "{drawn}");
    screen.gets(Update::Data(data(3)));
    assert!(screen.drawn(80, 24).contains("hosts 2/3 connected"));
}

#[test]
fn a_fence_climbs_and_ends() {
    let mut screen = Screen::of(3);
    let all = |screen: &Screen| screen.drawn(140, 40);
    assert!(all(&screen).contains("vm1        on host-1     2 storage in progress"), "{}", all(&screen));
    screen.gets(record(5, &audit("vm1", FenceOutcome::FailedUnreachable)));
    assert!(all(&screen).contains("2 storage failed-unreachable"), "{}", all(&screen));
    // Repeated after a reconnect: no duplicates.
    screen.gets(record(5, &audit("vm1", FenceOutcome::FailedUnreachable)));
    assert_eq!((screen.state.records.len(), screen.state.fences.len()), (5, 2));
}

#[test]
fn a_filter_holds_for_all_tables_and_is_forgotten() {
    let mut screen = Screen::of(8);
    screen.press(&[KeyCode::Char('/')]);
    screen.word("host-3q");
    assert_eq!(screen.press(&[KeyCode::Backspace, KeyCode::Enter]), Effect::None, "q was typed, not pressed");
    assert_eq!((screen.state.rows(Pane::Hosts), screen.state.rows(Pane::Vms)), (1, 0));
    assert_eq!(screen.press(&[KeyCode::Enter]), Effect::Explain("host-3".to_owned()));
    screen.press(&[KeyCode::Esc]);
    assert_eq!(screen.state.rows(Pane::Hosts), 8);
    assert_eq!(screen.press(&[KeyCode::Char('q')]), Effect::Quit);
}

#[test]
fn of_a_thousand_hosts_those_at_the_cursor_are_drawn_and_bad_ones_are_seen_in_a_storage() {
    let mut screen = Screen::of(1000);
    assert!(!screen.drawn(80, 24).contains("host-999"));
    screen.press(&[KeyCode::End]);
    let drawn = screen.drawn(80, 24);
    assert!(drawn.contains("host-999"), "{drawn}");
    assert!(drawn.contains("of 1000") && drawn.contains("998/1000"), "{drawn}");
    assert!(drawn.contains("998/1000   x.#"), "those that are not well stand first where not all fit: {drawn}");
    // Half of them are gone: the cursor is on a row still.
    screen.gets(Update::Data(data(500)));
    assert_eq!(screen.state.cursor(Pane::Hosts), 499);
}

#[test]
fn what_is_kept_is_bounded() {
    let mut screen = Screen::of(2);
    for n in 5..3000 {
        screen.gets(record(n, &intent(&format!("vm{n}"), FenceLevel::Sibling)));
    }
    assert!(screen.state.records.len() <= crate::top::state::MAX_RECORDS && screen.state.fences.len() <= 101);
}

proptest! {
    /// Any keys on any size of terminal: something is drawn, and the cursor is among what is seen.
    #[test]
    fn no_keys_and_no_size_break_it(keys in prop::collection::vec(0usize..14, 0..40), width in 1u16..200,
        height in 1u16..60) {
        const KEYS: [KeyCode; 14] = [
            KeyCode::Up, KeyCode::Down, KeyCode::PageDown, KeyCode::PageUp, KeyCode::Home, KeyCode::End, KeyCode::Tab,
            KeyCode::BackTab, KeyCode::Enter, KeyCode::Esc, KeyCode::Char('/'), KeyCode::Char('?'), KeyCode::Char('1'),
            KeyCode::Backspace,
        ];
        let mut screen = Screen::of(30);
        for key in keys {
            screen.press(&[KEYS[key]]);
        }
        screen.drawn(width, height);
    }

    #[test]
    fn the_cursor_is_in_the_window(rows in 1usize..2000, at in any::<prop::sample::Index>(), height in 1usize..100) {
        let cursor = at.index(rows);
        let seen = window(cursor, rows, height);
        prop_assert!(seen.contains(&cursor) && seen.len() <= height && seen.end <= rows);
    }
}
