//! Counts of the whole process: per type of message, and of what went wrong between actors.
//!
//! Plain atomics, because the hot path cannot afford a metrics registry; [`export`] hands them to `metrics`.

use std::{
    any::TypeId,
    cell::RefCell,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use parking_lot::Mutex;
use ringfence_messages::Message;
use rustc_hash::FxHashMap;
use serde::Serialize;

/// A count that only grows.
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) const fn new() -> Counter {
        Counter(AtomicU64::new(0))
    }

    pub(crate) fn add(&self) {
        self.0.fetch_add(1, Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// Replies that came after their asker had gone.
pub(crate) static LATE_REPLIES: Counter = Counter::new();
/// Requests whose deadline passed before they were handled.
pub(crate) static EXPIRED: Counter = Counter::new();
/// Asks that ended with their deadline.
pub(crate) static TIMEOUTS: Counter = Counter::new();
/// Events that a subscriber's full lane or stream refused.
pub(crate) static MISSED_EVENTS: Counter = Counter::new();
/// Actors that panicked too often.
pub(crate) static ESCALATIONS: Counter = Counter::new();

struct PerMessage {
    name: &'static str,
    handled: AtomicU64,
    failed: AtomicU64,
    nanos: AtomicU64,
}

static ALL: Mutex<Vec<&'static PerMessage>> = Mutex::new(Vec::new());

thread_local! {
    static KNOWN: RefCell<FxHashMap<TypeId, &'static PerMessage>> = RefCell::new(FxHashMap::default());
}

fn of<M: Message>() -> &'static PerMessage {
    KNOWN.with_borrow_mut(|known| {
        *known.entry(TypeId::of::<M>()).or_insert_with(|| {
            let mut all = ALL.lock();
            if let Some(found) = all.iter().find(|per| per.name == M::NAME) {
                return found;
            }
            let zero = || AtomicU64::new(0);
            // One per type of message for the life of the process.
            let new: &'static PerMessage =
                Box::leak(Box::new(PerMessage { name: M::NAME, handled: zero(), failed: zero(), nanos: zero() }));
            all.push(new);
            new
        })
    })
}

/// Counts one message that was handled.
pub(crate) fn handled<M: Message>(took: Option<Duration>, failed: bool) {
    let per = of::<M>();
    per.handled.fetch_add(1, Relaxed);
    if failed {
        per.failed.fetch_add(1, Relaxed);
    }
    if let Some(took) = took {
        per.nanos.fetch_add(took.as_nanos() as u64, Relaxed);
    }
}

/// What is counted per type of message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct MessageStats {
    /// The message's name.
    pub name: String,
    /// How many were handled.
    pub handled: u64,
    /// How many of them panicked.
    pub failed: u64,
    /// Nanoseconds spent in handlers, where the bus was built with timing.
    pub nanos: u64,
}

/// What is counted per process.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct BusStats {
    /// Replies that came after their asker had gone.
    pub late_replies: u64,
    /// Requests whose deadline passed before they were handled.
    pub expired: u64,
    /// Asks that ended with their deadline.
    pub timeouts: u64,
    /// Events that a subscriber's full lane or stream refused.
    pub missed_events: u64,
    /// Actors that panicked too often.
    pub escalations: u64,
    /// Per type of message, by name.
    pub messages: Vec<MessageStats>,
}

/// The counts of this process.
pub(crate) fn snapshot() -> BusStats {
    let mut messages: Vec<MessageStats> = ALL
        .lock()
        .iter()
        .map(|per| MessageStats {
            name: per.name.to_owned(),
            handled: per.handled.load(Relaxed),
            failed: per.failed.load(Relaxed),
            nanos: per.nanos.load(Relaxed),
        })
        .collect();
    messages.sort_by(|a, b| a.name.cmp(&b.name));
    BusStats {
        late_replies: LATE_REPLIES.get(),
        expired: EXPIRED.get(),
        timeouts: TIMEOUTS.get(),
        missed_events: MISSED_EVENTS.get(),
        escalations: ESCALATIONS.get(),
        messages,
    }
}

/// Hands the counts to the `metrics` recorder, if one is installed. Call it before a scrape is rendered.
pub fn export() {
    let stats = snapshot();
    metrics::counter!("ringfence_bus_late_replies_total").absolute(stats.late_replies);
    metrics::counter!("ringfence_bus_expired_total").absolute(stats.expired);
    metrics::counter!("ringfence_bus_timeouts_total").absolute(stats.timeouts);
    metrics::counter!("ringfence_bus_missed_events_total").absolute(stats.missed_events);
    metrics::counter!("ringfence_bus_escalations_total").absolute(stats.escalations);
    for per in stats.messages {
        metrics::counter!("ringfence_bus_messages_handled_total", "message" => per.name.clone()).absolute(per.handled);
        metrics::counter!("ringfence_bus_messages_panicked_total", "message" => per.name.clone()).absolute(per.failed);
        metrics::gauge!("ringfence_bus_message_seconds_sum", "message" => per.name).set(per.nanos as f64 / 1e9);
    }
}
