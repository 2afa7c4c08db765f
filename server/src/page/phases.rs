//! The phases of a failover, from detection to the VM's next start, from the journal.
//!
//! Invariant: a phase lies between two records; a phase without its records is omitted, not guessed.

use jiff::Timestamp;
use ringfence_actors::ports::Record;
use ringfence_messages::{
    Event as _,
    fence::FenceLevel,
    ha::{HostFailed, VmHaStarted},
    host::{HostStatus, HostStatusChanged},
    vm::{VmState, VmStateChanged},
};

use super::{chart::Phase, fencing_attempts::Attempt};

/// Longest time between the cause of an attempt and the attempt. Too low: a slow detection is cut off. Too high: a
/// host that is down since yesterday shrinks all other phases to a line.
const CAUSE_WITHIN_S: i64 = 300;

fn at(time: &str) -> Option<Timestamp> {
    time.parse().ok()
}

/// The phases of an attempt, in order. `vm` and `host` are records of the VM and of its last host, the oldest first.
pub(super) fn of(attempt: &Attempt, vm: &[Record], host: &[Record]) -> Vec<Phase> {
    let Some(first) = attempt.levels.first().and_then(|(time, _)| at(time)) else { return Vec::new() };
    let near = |time: &Timestamp| *time <= first && first.as_second() - time.as_second() <= CAUSE_WITHIN_S;
    let newest = |records: &[Record], is: &dyn Fn(&Record) -> bool| {
        records.iter().rev().filter(|record| is(record)).filter_map(|record| at(&record.time)).find(near)
    };
    let disconnected = newest(host, &|record| {
        record.topic == HostStatusChanged::TOPIC
            && record.event::<HostStatusChanged>().is_ok_and(|of| of.new_status == HostStatus::Disconnected)
    });
    let failed = newest(host, &|record| record.topic == HostFailed::TOPIC);
    let unknown = newest(vm, &|record| {
        record.topic == VmStateChanged::TOPIC
            && record.event::<VmStateChanged>().is_ok_and(|of| of.new_state == VmState::Unknown)
    });
    let mut marks: Vec<(&'static str, Timestamp)> = Vec::new();
    if let Some(detected) = disconnected.or(unknown) {
        marks.push(("Detection by sibling hosts", detected));
    }
    if let Some(failed) = failed.filter(|failed| marks.last().is_none_or(|(_, last)| last <= failed)) {
        marks.push(("Checks before the fence", failed));
    } else if let Some(last) = marks.last_mut() {
        last.0 = "Detection and checks";
    }
    for (time, level) in &attempt.levels {
        let what = match level {
            FenceLevel::Sibling => "Kill by a sibling host",
            FenceLevel::Storage => "Storage fence",
        };
        marks.extend(at(time).map(|time| (what, time)));
    }
    let mut end = None;
    if let Some((time, audit)) = &attempt.ended {
        end = at(time);
        let started = |record: &&Record| record.topic == VmHaStarted::TOPIC && at(&record.time) >= end;
        let started = vm.iter().find(started).and_then(|record| at(&record.time));
        if let (Some(ended), Some(started), true) = (end, started, audit.outcome.as_str().starts_with("success")) {
            marks.push(("Start elsewhere", ended));
            end = Some(started);
        }
    }
    let ends = marks.iter().skip(1).map(|(_, time)| Some(*time)).chain([end]).collect::<Vec<_>>();
    let phase = |((what, from), to): (&(&'static str, Timestamp), Option<Timestamp>)| Phase { what, from: *from, to };
    marks.iter().zip(ends).map(phase).collect()
}
