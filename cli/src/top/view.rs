//! Draws the state. Pure: the same state and size give the same cells.
//!
//! Invariant: only visible rows are built, so a thousand hosts cost as much as one screen.

use std::{ops::Range, time::Instant};

use ratatui::{
    Frame,
    layout::{Constraint, Layout, Rect},
    style::{Color, Modifier, Style, Stylize},
    text::{Line, Span},
    widgets::{Block, Clear, Paragraph, Wrap},
};
use ringfence_actors::ports::Record;
use ringfence_messages::{
    ProtocolStatus,
    fence::FenceLevel,
    host::{HostInventory, HostState, HostStatus},
    storage::StorageInventory,
    vm::{VmInventory, VmState},
};
use ringfence_server::times::clock;

use super::state::{Fence, Over, Pane, State};
use crate::output::event_summary;

/// Width from which there are two columns.
const WIDE: u16 = 120;

/// Shares of the height: the table with the cursor gets three times as much.
const FOCUSED: u16 = 3;

const HELP: [&str; 10] = [
    "tab, shift-tab, left, right   next, previous table",
    "up, down, page up, page down  move the cursor; also j, k, home, end",
    "enter                         explain the selected row",
    "/                             filter by a word; esc clears the filter",
    "?                             help",
    "q, ctrl-c                     quit",
    "",
    "Unconnected hosts come first. VMs are listed while off their desired state.",
    "A storage has a sign for each host: # connected, x not, . not checked yet.",
    "Fencing levels: 1 kill by a sibling host, 2 storage fence; else attestation.",
];

/// Draws everything.
pub(super) fn draw(frame: &mut Frame<'_>, state: &State, now: Instant) {
    let [head, body, foot] =
        Layout::vertical([Constraint::Length(1), Constraint::Fill(1), Constraint::Length(1)]).areas(frame.area());
    frame.render_widget(heading(state, now), head);
    frame.render_widget(footing(state), foot);
    let share = |pane: Pane| Constraint::Fill(if pane == state.pane { FOCUSED } else { 1 });
    let mut column = |area: Rect, panes: &[Pane]| {
        let areas = Layout::vertical(panes.iter().map(|pane| share(*pane))).split(area);
        panes.iter().zip(areas.iter()).for_each(|(pane, area)| table(frame, state, *pane, *area));
    };
    if body.width >= WIDE {
        let [left, right] = Layout::horizontal([Constraint::Fill(1), Constraint::Fill(1)]).spacing(1).areas(body);
        column(left, &[Pane::Hosts, Pane::Storages, Pane::Vms]);
        column(right, &[Pane::Fences, Pane::Events]);
    } else {
        column(body, &super::state::PANES);
    }
    match &state.over {
        Over::Nothing => {}
        Over::Help => over(frame, "keys", HELP.map(str::to_owned).to_vec(), 0),
        Over::Text(title, lines, first) => over(frame, title, lines.clone(), *first),
    }
}

fn heading(state: &State, now: Instant) -> Line<'static> {
    let data = &state.data;
    let connected = data.hosts.iter().filter(|host| host.status == HostStatus::Connected).count();
    let running = data.vms.iter().filter(|vm| vm.state == VmState::Running).count();
    match state.disconnected(now) {
        Some((since, why)) => {
            // The server's address is shown already.
            let why = why.rsplit_once(&state.server).map_or(why, |(_, rest)| rest.trim_start_matches([':', ' ']));
            let text = format!(" {} not reachable for {} s, retrying: {why}", state.server, since.as_secs());
            Line::from(text).style(Style::new().fg(Color::White).bg(Color::Red))
        }
        None => Line::from(format!(
            " ringfence {}  hosts {connected}/{} connected  VMs {running}/{} running",
            state.server,
            data.hosts.len(),
            data.vms.len()
        ))
        .reversed(),
    }
}

fn footing(state: &State) -> Line<'static> {
    match (state.typing, state.filter.as_str()) {
        (true, filter) => Line::from(format!(" /{filter}_   enter: keep, esc: clear")),
        (false, "") => Line::from(" q quit  tab table  enter explain  / filter  ? help").dim(),
        (false, filter) => Line::from(format!(" only {filter:?}   esc: all  / change  ? help")),
    }
}

/// The visible rows, with the cursor among them.
fn window(cursor: usize, rows: usize, height: usize) -> Range<usize> {
    let first = (cursor + 1).saturating_sub(height).min(rows);
    first..(first + height).min(rows)
}

fn table(frame: &mut Frame<'_>, state: &State, pane: Pane, area: Rect) {
    let Some(height) = usize::from(area.height).checked_sub(1) else { return };
    let (rows, cursor, focused) = (state.rows(pane), state.cursor(pane), pane == state.pane);
    let seen = window(cursor, rows, height);
    let width = usize::from(area.width);
    let mut lines = vec![title(pane, &seen, rows, width, focused)];
    match pane {
        Pane::Hosts => lines.extend(state.hosts()[seen.clone()].iter().map(|of| host(of))),
        Pane::Storages => lines.extend(state.storages()[seen.clone()].iter().map(|of| storage(of, width))),
        Pane::Vms => lines.extend(state.vms()[seen.clone()].iter().map(|of| vm(of))),
        Pane::Fences => lines.extend(state.fences()[seen.clone()].iter().map(|of| fence(of))),
        Pane::Events => lines.extend(state.events()[seen.clone()].iter().map(|of| event(of))),
    }
    if focused && seen.contains(&cursor) {
        let at = 1 + cursor - seen.start;
        if let Some(line) = lines.get_mut(at) {
            // To the end of the row, and marked by more than a colour.
            let fill = width.saturating_sub(line.width());
            line.push_span(Span::raw(" ".repeat(fill)));
            line.style = line.style.add_modifier(Modifier::REVERSED);
        }
    }
    frame.render_widget(Paragraph::new(lines), area);
}

fn title(pane: Pane, seen: &Range<usize>, rows: usize, width: usize, focused: bool) -> Line<'static> {
    let name = match pane {
        Pane::Hosts => "Hosts",
        Pane::Storages => "Storages",
        Pane::Vms => "VMs off desired state",
        Pane::Fences => "Fences",
        Pane::Events => "Events, newest first",
    };
    let place = if rows == 0 { "none".to_owned() } else { format!("{}-{} of {rows}", seen.start + 1, seen.end) };
    let text = format!("{} {name}  {place} ", if focused { ">" } else { "-" });
    let line = Line::from(format!("{text}{}", "-".repeat(width.saturating_sub(text.len()))));
    if focused { line.bold() } else { line.dim() }
}

fn host(host: &HostInventory) -> Line<'static> {
    let colour = match (host.state, host.status) {
        (HostState::Maintenance, _) => Color::Blue,
        (_, HostStatus::Connected) => Color::Green,
        (_, HostStatus::Disconnected) => Color::Red,
        (_, HostStatus::Connecting) => Color::Yellow,
    };
    let service = if host.state == HostState::Maintenance { "maintenance" } else { "" };
    Line::from(vec![
        Span::raw(format!("  {:<16} {:<12} ", host.name, host.cluster)),
        Span::styled(format!("{:<13}", format!("{:?}", host.status)), colour),
        Span::raw(format!("{service:<12}{}", host.reason.as_deref().unwrap_or_default())),
    ])
}

fn storage(storage: &StorageInventory, width: usize) -> Line<'static> {
    let connected = storage.hosts.iter().filter(|host| host.status == Some(ProtocolStatus::Connected)).count();
    let counted = format!("{connected}/{}", storage.hosts.len());
    let head = format!("  {:<16} {:<6} {counted:<10} ", storage.name, format!("{:?}", storage.kind).to_lowercase());
    let room = width.saturating_sub(head.len());
    let mut spans = vec![Span::raw(head)];
    // Unconnected hosts first, so that they are never cut off.
    let bad = |host: &&ringfence_messages::storage::StorageHostRef| host.status != Some(ProtocolStatus::Connected);
    let (worse, well): (Vec<_>, Vec<_>) = match storage.hosts.len() > room {
        true => storage.hosts.iter().partition(bad),
        false => (storage.hosts.iter().collect(), Vec::new()),
    };
    spans.extend(worse.into_iter().chain(well).take(room).map(|host| match host.status {
        Some(ProtocolStatus::Connected) => Span::styled("#", Color::Green),
        None => Span::styled(".", Color::Yellow),
        Some(_) => Span::styled("x", Color::Red),
    }));
    Line::from(spans)
}

fn vm(vm: &VmInventory) -> Line<'static> {
    let desired = if vm.wanted { "should run" } else { "should stop" };
    let colour = if vm.state == VmState::Unknown { Color::Red } else { Color::Yellow };
    Line::from(vec![
        Span::raw(format!("  {:<16} ", vm.name)),
        Span::styled(format!("{:<9} ", format!("{:?}", vm.state)), colour),
        Span::raw(format!("{desired:<14} {:<16} start {}", vm.host.as_deref().unwrap_or("-"), vm.incarnation)),
    ])
}

fn fence(fence: &Fence) -> Line<'static> {
    let step = match fence.level {
        FenceLevel::Sibling => "1 sibling",
        FenceLevel::Storage => "2 storage",
    };
    let since = clock(&fence.since);
    let (how, colour) = match &fence.outcome {
        None => ("in progress", Color::Yellow),
        Some(outcome) if outcome.starts_with("success") => (outcome.as_str(), Color::Green),
        Some(outcome) => (outcome.as_str(), Color::Red),
    };
    Line::from(vec![
        Span::raw(format!("  {since} {:<10} on {:<10} {step:<9} ", fence.vm, fence.host)),
        Span::styled(how.to_owned(), colour),
    ])
}

fn event(record: &Record) -> Line<'static> {
    let time = clock(&record.time);
    Line::from(format!("  {time} {:<24} {:<14} {}", record.topic, record.subject, event_summary(record)))
}

fn over(frame: &mut Frame<'_>, title: &str, lines: Vec<String>, first: usize) {
    let (all, count) = (frame.area(), lines.len() as u16);
    let area = all.centered(
        Constraint::Length(all.width.saturating_sub(4).min(100)),
        Constraint::Length(count.saturating_add(4).max(8).min(all.height.saturating_sub(2))),
    );
    let lines: Vec<Line<'_>> = lines.into_iter().skip(first).take(usize::from(area.height)).map(Line::from).collect();
    let block = Block::bordered().title(format!(" {title} ")).title_bottom(" any other key closes ");
    frame.render_widget(Clear, area);
    frame.render_widget(Paragraph::new(lines).wrap(Wrap { trim: false }).block(block), area);
}

#[cfg(test)]
mod tests;
