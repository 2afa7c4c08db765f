//! One hook: reads the journal from its position, delivers matching records one at a time, and stores its position.
//!
//! Invariants: the position advances only after a record is delivered or dropped; memory holds one page of the
//! journal ([`PAGE`]), however large the lag is; the hook waits only for its own receiver.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use parking_lot::Mutex;
use ringfence_actors::ports::{JournalPort, Record};
use ringfence_messages::{Code, ErrorCode, Result};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use utoipa::ToSchema;

use super::{
    command::Program,
    cursor::Cursor,
    notice::Notice,
    retry::{Attempts, Outcome, RetryPolicy, Step},
    webhook::Webhook,
};
use crate::config::{HookConfig, HookTransport};

/// Records in one read: with the largest payloads 3 MiB. Too low: a hook with a large lag catches up slowly. Too
/// high: memory.
const PAGE: usize = 50;

/// Time between two attempts to read the journal. Too low: a broken disk gets many reads. Too high: events arrive
/// late after its repair.
const UNREAD: Duration = Duration::from_secs(5);

/// Status of a hook.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct HookInventory {
    /// Name.
    pub name: String,
    /// Transport.
    pub kind: HookKind,
    /// Receiver: scheme and address of a URL, or a program. The rest of a URL may be secret.
    pub target: String,
    /// Globs over topics.
    pub topics: Vec<String>,
    /// Position in the journal: the last record that is done.
    pub cursor: u64,
    /// Number of later records in the journal, whatever their topics.
    pub lag: u64,
    /// Records delivered since the controller started.
    pub delivered: u64,
    /// Records dropped after repeated rejections since the controller started.
    pub given_up: u64,
    /// Failed attempts of the current record; 0 if none waits.
    pub tries: u32,
    /// Time of the last delivery since the controller started.
    pub last_delivered: Option<String>,
    /// Reason of the last failed attempt since the controller started.
    pub last_error: Option<String>,
    /// Time of the next attempt.
    pub next_try: Option<String>,
}

/// Transport of a hook.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum HookKind {
    /// A signed POST request.
    Webhook,
    /// A program.
    Command,
}

/// Result of a test event.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct HookTest {
    /// Its `webhook-id`.
    pub id: String,
    /// Whether the receiver accepted it.
    pub delivered: bool,
    /// The response, or the reason for the failure.
    pub says: String,
    /// Duration in milliseconds.
    pub millis: u64,
}

/// The receiver.
enum Receiver {
    Webhook(Box<Webhook>),
    Program(Program),
}

/// Observable state.
#[derive(Default)]
struct State {
    seq: u64,
    delivered: u64,
    given_up: u64,
    tries: u32,
    /// Time of the current record.
    turn: Option<Timestamp>,
    last_delivered: Option<Timestamp>,
    last_error: Option<String>,
    next_try: Option<Timestamp>,
}

/// One hook.
pub(super) struct Hook {
    config: HookConfig,
    receiver: Receiver,
    start: Cursor,
    policy: RetryPolicy,
    state: Mutex<State>,
    testing: tokio::sync::Mutex<()>,
}

impl Hook {
    pub(super) fn open(config: &HookConfig, start: Cursor, policy: RetryPolicy) -> Result<Hook> {
        let receiver = match &config.transport {
            HookTransport::Webhook(access) => Receiver::Webhook(Box::new(Webhook::open(access, config.timeout)?)),
            HookTransport::Command(argv) => Receiver::Program(Program::new(&config.name, argv, config.timeout)),
        };
        let state = Mutex::new(State { seq: start.seq, ..State::default() });
        Ok(Hook { config: config.clone(), receiver, start, policy, state, testing: tokio::sync::Mutex::default() })
    }

    pub(super) fn name(&self) -> &str {
        &self.config.name
    }

    /// Delivers present and future records of the journal, forever.
    pub(super) async fn run(self: Arc<Self>, journal: Arc<dyn JournalPort>, mut newest: watch::Receiver<u64>) {
        let mut cursor = self.start.clone();
        let mut unread = 0;
        loop {
            newest.borrow_and_update();
            let records = match journal.read(cursor.seq, PAGE).await {
                Ok(records) => records,
                Err(error) => {
                    unread += 1;
                    self.wait(unread, format!("cannot read the journal: {error}"), UNREAD).await;
                    continue;
                }
            };
            if records.is_empty() && newest.changed().await.is_err() {
                return;
            }
            unread = 0;
            for record in records {
                let save = match self.config.topics.matches(&record.topic) {
                    true => {
                        self.deliver(&record).await;
                        cursor.seq = record.seq;
                        true
                    }
                    false => cursor.skip(record.seq),
                };
                if save {
                    cursor = self.save(cursor).await;
                }
                self.state.lock().seq = cursor.seq;
            }
        }
    }

    /// Makes the position durable. If that fails, the hook continues, and repeats some records after a crash.
    async fn save(&self, mut cursor: Cursor) -> Cursor {
        let kept = cursor.clone();
        let saved = tokio::task::spawn_blocking(move || cursor.save().map(|()| cursor));
        match saved.await.unwrap_or_else(|panic| Err(std::io::Error::other(panic))) {
            Ok(cursor) => cursor,
            Err(error) => {
                tracing::warn!(hook = self.name(), %error, "cannot store the position of a hook; after a crash it \
                    repeats events");
                kept
            }
        }
    }

    /// Retries until the record is delivered or dropped.
    async fn deliver(&self, record: &Record) {
        let (hook, notice) = (self.name().to_owned(), Notice::of(self.name(), record));
        let mut tries = Attempts::new(self.policy);
        self.state.lock().turn = Some(record.time.parse().unwrap_or_else(|_| Timestamp::now()));
        loop {
            let outcome = self.send(&notice).await;
            match (tries.after(&outcome, rand::random()), outcome) {
                (Step::Done, _) => {
                    metrics::counter!("ringfence_hook_delivered_total", "hook" => hook).increment(1);
                    let mut state = self.state.lock();
                    (state.delivered, state.last_delivered) = (state.delivered + 1, Some(Timestamp::now()));
                    break;
                }
                (Step::Drop, outcome) => {
                    let why = outcome.says().to_owned();
                    tracing::error!(
                        hook,
                        seq = record.seq,
                        topic = record.topic,
                        why,
                        "hook dropped an event after repeated rejections"
                    );
                    metrics::counter!("ringfence_hook_given_up_total", "hook" => hook).increment(1);
                    let mut state = self.state.lock();
                    (state.given_up, state.last_error) = (state.given_up + 1, Some(why));
                    break;
                }
                (Step::Retry(wait), outcome) => {
                    metrics::counter!("ringfence_hook_retries_total", "hook" => hook.clone()).increment(1);
                    self.wait(tries.failed(), outcome.says().to_owned(), wait).await;
                }
            }
        }
        let mut state = self.state.lock();
        (state.turn, state.tries) = (None, 0);
    }

    /// Waits after a failure, visibly in the status.
    async fn wait(&self, tries: u32, why: String, wait: Duration) {
        tracing::warn!(hook = self.name(), tries, ?wait, why, "hook delivery failed; retrying");
        {
            let mut state = self.state.lock();
            state.next_try = Timestamp::now().checked_add(wait).ok();
            (state.tries, state.last_error) = (tries, Some(why));
        }
        tokio::time::sleep(wait).await;
        self.state.lock().next_try = None;
    }

    async fn send(&self, notice: &Notice) -> Outcome {
        match &self.receiver {
            Receiver::Webhook(webhook) => webhook.send(notice).await,
            Receiver::Program(program) => program.run(notice).await,
        }
    }

    /// Sends a test event without waiting for earlier events.
    ///
    /// # Errors
    /// `SYS.1005` while another test is in progress.
    pub(super) async fn test(&self) -> Result<HookTest> {
        let busy = || ErrorCode::new(Code::CHANGE_STATE, format!("a test of {} is in progress", self.name()));
        let _one_at_a_time = self.testing.try_lock().map_err(|_| busy())?;
        let (notice, began) = (Notice::test(self.name()), tokio::time::Instant::now());
        let outcome = self.send(&notice).await;
        let delivered = matches!(outcome, Outcome::Delivered(_));
        let millis = began.elapsed().as_millis().try_into().unwrap_or(u64::MAX);
        Ok(HookTest { id: notice.id, delivered, says: outcome.says().to_owned(), millis })
    }

    pub(super) fn inventory(&self, newest: u64) -> HookInventory {
        let (kind, target) = match &self.config.transport {
            HookTransport::Webhook(access) => (HookKind::Webhook, access.url.origin()),
            HookTransport::Command(argv) => (HookKind::Command, argv.first().cloned().unwrap_or_default()),
        };
        let state = self.state.lock();
        let time = |at: Option<Timestamp>| at.map(|at| format!("{at:.3}"));
        HookInventory {
            name: self.config.name.clone(),
            kind,
            target,
            topics: self.config.topics.texts().map(str::to_owned).collect(),
            cursor: state.seq,
            lag: newest.saturating_sub(state.seq),
            delivered: state.delivered,
            given_up: state.given_up,
            tries: state.tries,
            last_delivered: time(state.last_delivered),
            last_error: state.last_error.clone(),
            next_try: time(state.next_try),
        }
    }

    /// How long the record whose turn it is has waited, in seconds; 0 if none waits.
    pub(super) fn waited(&self) -> f64 {
        let turn = self.state.lock().turn;
        turn.map_or(0.0, |since| Timestamp::now().duration_since(since).as_secs_f64().max(0.0))
    }
}
