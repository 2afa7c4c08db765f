//! Crash points for tests: kills the controller just before or after a step of its journal. Debug builds only.
//!
//! `RINGFENCE_TEST_CRASH=after:fence.intent/storage` sends SIGKILL to this process when that record is on disk;
//! `before:` when the record is requested: its act may then have happened without a record. A step is the record's
//! topic with the phase in its payload. Inactive until the file `RINGFENCE_TEST_CRASH_ARMED` exists.

use ringfence_actors::ports::NewRecord;
use rustix::process::{Signal, getpid, kill_process};

/// The environment variable.
const VARIABLE: &str = "RINGFENCE_TEST_CRASH";

/// The environment variable that names the file.
const ARMED: &str = "RINGFENCE_TEST_CRASH_ARMED";

/// Fields that tell steps of one topic apart.
const PHASES: [&str; 5] = ["phase", "level", "newState", "newStatus", "quarantined"];

/// The step that a record is.
pub fn step(topic: &str, payload: &serde_json::Value) -> String {
    let phase = PHASES.iter().find_map(|key| payload.get(key)).filter(|value| !value.is_null());
    match phase {
        Some(serde_json::Value::String(phase)) => format!("{topic}/{phase}"),
        Some(phase) => format!("{topic}/{phase}"),
        None => topic.to_owned(),
    }
}

/// The steps that an append makes, if a crash is wanted at one.
pub(super) fn wanted(when: &str, records: &[NewRecord]) -> bool {
    let Ok(at) = std::env::var(VARIABLE) else { return false };
    let armed = std::env::var_os(ARMED).is_some_and(|file| std::path::Path::new(&file).exists());
    let Some(at) = Some(at).filter(|_| armed) else { return false };
    let Some(at) = at.strip_prefix(when).and_then(|rest| rest.strip_prefix(':')) else { return false };
    records.iter().any(|record| step(&record.topic, &record.payload) == at)
}

/// Ends this process as `kill -9` does.
pub(super) fn crash() {
    let _ = kill_process(getpid(), Signal::KILL);
}
