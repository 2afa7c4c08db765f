//! Decides when records are appended and how requests are answered while the journal fails and recovers.
//!
//! ```text
//!            append ok                    append failed
//! Idle <-------------- Appending(batch) ----------------> Blocked(until)
//!   |  record            ^   ^                              |
//!   +--------------------+   +------- wakeup at `until` ----+
//! ```
//! Invariants: one append in flight; records are appended in the order of arrival; every record is answered exactly
//! once (I6); pending records are bounded (I8), and so is each: a record that does not fit is shortened.
//! Alternatives considered: drop the oldest events when full. The newest is rejected instead: its sender can react.

use std::{collections::VecDeque, time::Duration};

use ringfence_messages::{
    Code, ErrorCode, Result,
    audit::{Durability, RecordMsg, RecordReply},
};

use super::shorten::shortened;
use crate::ports::{MAX_PAYLOAD_BYTES, NewRecord, Record};

/// Most records that wait for the journal. Too low: a storm of events is rejected while the disk is slow. Too high:
/// memory, at up to [`MAX_PAYLOAD_BYTES`] each.
pub const MAX_PENDING: usize = 10_000;

/// Most records of one append. Too low: one sync per few records. Too high: the first waits for the last.
pub const MAX_BATCH: usize = 256;

/// First wait after a failed append; it doubles with each further failure.
pub const RETRY_FLOOR: Duration = Duration::from_millis(100);

/// Longest wait between attempts. Too high: a journal that is writable again is noticed late.
pub const RETRY_CEILING: Duration = Duration::from_secs(5);

/// Id of a pending reply; chosen by the shell.
pub(crate) type Token = u64;

/// Output of the core.
#[derive(Debug, PartialEq)]
pub(crate) enum Command {
    /// Append these and report [`Core::appended`].
    Append(Vec<NewRecord>),
    /// Answer a request.
    Reply(Token, Result<RecordReply>),
    /// Publish a durable record.
    Publish(Record),
    /// Call [`Core::wakeup`] at this time.
    WakeAt(Duration),
}

#[derive(Debug)]
struct Pending {
    token: Token,
    durability: Durability,
    since: Duration,
    record: NewRecord,
}

#[derive(Debug)]
enum State {
    Idle,
    Appending(Vec<Pending>),
    Blocked { why: ErrorCode },
}

/// The audit's decisions; see the module.
#[derive(Debug)]
pub(crate) struct Core {
    state: State,
    pending: VecDeque<Pending>,
    retry: Duration,
}

impl Core {
    pub(crate) fn new() -> Core {
        Core { state: State::Idle, pending: VecDeque::new(), retry: RETRY_FLOOR }
    }

    /// Records that wait for the journal, the one in flight included.
    pub(crate) fn backlog(&self) -> usize {
        let in_flight = if let State::Appending(batch) = &self.state { batch.len() } else { 0 };
        self.pending.len() + in_flight
    }

    /// Why the journal is not writable, if so.
    pub(crate) fn blocked(&self) -> Option<&ErrorCode> {
        if let State::Blocked { why } = &self.state { Some(why) } else { None }
    }

    /// Accepts or rejects a record.
    pub(crate) fn record(&mut self, token: Token, message: RecordMsg, now: Duration) -> Vec<Command> {
        if let Err(error) = self.admit(&message) {
            return vec![Command::Reply(token, Err(error))];
        }
        let payload = match serde_json::from_str(&message.payload) {
            Ok(payload) if message.payload.len() > MAX_PAYLOAD_BYTES => shortened(&payload, message.payload.len()),
            Ok(payload) => payload,
            Err(e) => {
                let error =
                    ErrorCode::new(Code::INVALID_ARGUMENT, format!("payload of {} is not JSON: {e}", message.topic));
                return vec![Command::Reply(token, Err(error))];
            }
        };
        let record = NewRecord { topic: message.topic, subject: message.subject, payload, waited: Duration::ZERO };
        self.pending.push_back(Pending { token, durability: message.durability, since: now, record });
        if matches!(self.state, State::Idle) { self.append(now) } else { Vec::new() }
    }

    fn admit(&self, message: &RecordMsg) -> Result<()> {
        if self.backlog() >= MAX_PENDING {
            let error = ErrorCode::new(
                Code::NOT_READY,
                format!("the journal backlog is full: {MAX_PENDING} records are waiting"),
            );
            return Err(match self.blocked() {
                Some(why) => error.caused_by(why.clone()),
                None => error,
            });
        }
        match (&self.state, message.durability) {
            (State::Blocked { why }, Durability::Intent) => Err(refused(why)),
            _ => Ok(()),
        }
    }

    /// The append in flight ended.
    pub(crate) fn appended(&mut self, result: Result<Vec<Record>>, now: Duration) -> Vec<Command> {
        let State::Appending(batch) = std::mem::replace(&mut self.state, State::Idle) else {
            unreachable!("an append ended that was not in flight");
        };
        match result {
            Ok(records) => {
                self.retry = RETRY_FLOOR;
                let mut commands = Vec::with_capacity(2 * records.len() + 1);
                for (pending, record) in batch.into_iter().zip(records) {
                    commands.push(Command::Reply(pending.token, Ok(RecordReply { seq: record.seq })));
                    commands.push(Command::Publish(record));
                }
                commands.extend(self.append(now));
                commands
            }
            Err(why) => {
                let mut commands = Vec::new();
                let waiting = std::mem::take(&mut self.pending);
                for pending in batch.into_iter().chain(waiting) {
                    match pending.durability {
                        Durability::Intent => commands.push(Command::Reply(pending.token, Err(refused(&why)))),
                        Durability::Fact => self.pending.push_back(pending),
                    }
                }
                self.state = State::Blocked { why };
                commands.push(Command::WakeAt(now + self.retry));
                self.retry = (self.retry * 2).min(RETRY_CEILING);
                commands
            }
        }
    }

    /// The time of [`Command::WakeAt`] has come.
    pub(crate) fn wakeup(&mut self, now: Duration) -> Vec<Command> {
        if !matches!(self.state, State::Blocked { .. }) {
            return Vec::new();
        }
        self.state = State::Idle;
        self.append(now)
    }

    fn append(&mut self, now: Duration) -> Vec<Command> {
        if self.pending.is_empty() {
            return Vec::new();
        }
        let batch: Vec<Pending> = self.pending.drain(..self.pending.len().min(MAX_BATCH)).collect();
        let aged = |p: &Pending| NewRecord { waited: now.saturating_sub(p.since), ..p.record.clone() };
        let records = batch.iter().map(aged).collect();
        self.state = State::Appending(batch);
        vec![Command::Append(records)]
    }
}

fn refused(why: &ErrorCode) -> ErrorCode {
    ErrorCode::new(Code::IO, "the journal is not writable: actions that need a record are rejected")
        .caused_by(why.clone())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{super::shorten::MARK, *};

    fn message(subject: &str, durability: Durability) -> RecordMsg {
        RecordMsg { topic: "t".into(), subject: subject.into(), payload: "{}".into(), durability }
    }

    fn new_record(subject: &str) -> NewRecord {
        NewRecord { topic: "t".into(), subject: subject.into(), payload: json!({}), waited: Duration::ZERO }
    }

    fn record(seq: u64, subject: &str) -> Record {
        let (time, hash) = (String::new(), String::new());
        Record { seq, time, topic: "t".into(), subject: subject.into(), payload: json!({}), hash }
    }

    fn disk_full() -> ErrorCode {
        ErrorCode::new(Code::IO, "disk full")
    }

    #[test]
    fn records_during_an_append_form_one_ordered_batch() {
        let mut core = Core::new();
        assert_eq!(
            core.record(1, message("a", Durability::Fact), Duration::ZERO),
            [Command::Append(vec![new_record("a")])]
        );
        assert_eq!(core.record(2, message("b", Durability::Fact), Duration::ZERO), []);
        assert_eq!(core.record(3, message("c", Durability::Intent), Duration::ZERO), []);
        assert_eq!(
            core.appended(Ok(vec![record(1, "a")]), Duration::ZERO),
            [
                Command::Reply(1, Ok(RecordReply { seq: 1 })),
                Command::Publish(record(1, "a")),
                Command::Append(vec![new_record("b"), new_record("c")]),
            ]
        );
    }

    #[test]
    fn failed_append_rejects_intents_and_keeps_events() {
        let mut core = Core::new();
        core.record(1, message("a", Durability::Fact), Duration::ZERO);
        core.record(2, message("b", Durability::Intent), Duration::ZERO);
        assert_eq!(
            core.appended(Err(disk_full()), Duration::from_secs(1)),
            [Command::Reply(2, Err(refused(&disk_full()))), Command::WakeAt(Duration::from_secs(1) + RETRY_FLOOR),]
        );
        assert_eq!(
            core.record(3, message("c", Durability::Intent), Duration::ZERO),
            [Command::Reply(3, Err(refused(&disk_full())))]
        );
        assert_eq!(core.record(4, message("d", Durability::Fact), Duration::ZERO), []);
        assert_eq!(core.wakeup(Duration::ZERO), [Command::Append(vec![new_record("a"), new_record("d")])]);
        let done = core.appended(Ok(vec![record(1, "a"), record(2, "d")]), Duration::from_secs(2));
        assert_eq!(done.len(), 4, "both facts answered and published: {done:?}");
        assert_eq!(
            core.record(5, message("e", Durability::Intent), Duration::ZERO),
            [Command::Append(vec![new_record("e")])]
        );
    }

    #[test]
    fn waiting_event_keeps_its_own_time() {
        let at = Duration::from_secs;
        let mut core = Core::new();
        core.record(1, message("a", Durability::Fact), at(10));
        core.appended(Err(disk_full()), at(11));
        core.record(2, message("b", Durability::Fact), at(15));
        let [Command::Append(records)] = &core.wakeup(at(70))[..] else { panic!("nothing to append") };
        assert_eq!(records.iter().map(|record| record.waited).collect::<Vec<_>>(), [at(60), at(55)]);
    }

    #[test]
    fn append_backoff_doubles_to_ceiling_and_resets() {
        let mut core = Core::new();
        core.record(1, message("a", Durability::Fact), Duration::ZERO);
        let mut waits = Vec::new();
        for _ in 0..8 {
            let commands = core.appended(Err(disk_full()), Duration::ZERO);
            let [Command::WakeAt(at)] = commands[..] else { panic!("{commands:?}") };
            waits.push(at.as_millis());
            core.wakeup(Duration::ZERO);
        }
        assert_eq!(waits, [100, 200, 400, 800, 1600, 3200, 5000, 5000]);
        core.appended(Ok(vec![record(1, "a")]), Duration::ZERO);
        core.record(2, message("b", Durability::Fact), Duration::ZERO);
        assert_eq!(core.appended(Err(disk_full()), Duration::ZERO), [Command::WakeAt(RETRY_FLOOR)]);
    }

    #[test]
    fn full_backlog_rejects_with_the_cause() {
        let mut core = Core::new();
        core.record(0, message("first", Durability::Fact), Duration::ZERO);
        core.appended(Err(disk_full()), Duration::ZERO);
        for token in 1..MAX_PENDING as u64 {
            assert_eq!(core.record(token, message("x", Durability::Fact), Duration::ZERO), []);
        }
        let refusal = core.record(99_999, message("x", Durability::Fact), Duration::ZERO);
        let [Command::Reply(99_999, Err(error))] = &refusal[..] else { panic!("{refusal:?}") };
        assert_eq!((&error.code, error.cause.as_deref()), (&Code::NOT_READY, Some(&disk_full())));
        assert_eq!(core.backlog(), MAX_PENDING);
    }

    #[test]
    fn oversized_record_is_shortened() {
        for durability in [Durability::Fact, Durability::Intent] {
            let mut core = Core::new();
            let mut huge = message("a", durability);
            huge.payload = json!({ "reason": "x".repeat(MAX_PAYLOAD_BYTES), "n": 7 }).to_string();
            let [Command::Append(records)] = &core.record(1, huge, Duration::ZERO)[..] else {
                panic!("{durability:?}")
            };
            let NewRecord { topic, subject, payload, .. } = &records[0];
            assert_eq!((topic.as_str(), subject.as_str(), &payload["n"]), ("t", "a", &json!(7)));
            assert!(payload[MARK].as_u64().unwrap() > MAX_PAYLOAD_BYTES as u64, "{payload}");
            assert!(payload.to_string().len() <= MAX_PAYLOAD_BYTES);
        }
    }

    #[test]
    fn malformed_record_is_rejected_without_blocking() {
        let mut core = Core::new();
        let mut odd = message("b", Durability::Fact);
        odd.payload = "{".into();
        let answer = core.record(1, odd, Duration::ZERO);
        assert!(matches!(&answer[..], [Command::Reply(1, Err(e))] if e.is(&Code::INVALID_ARGUMENT)), "{answer:?}");
        assert_eq!(core.backlog(), 0);
    }
}
