//! Counts of the process: per message type, and failures between actors.
//!
//! A metrics registry, or a counter that two cores share, is too slow for each message. So each thread counts in its
//! own cells, [`snapshot`] adds them up, and [`export`] passes the sums to `metrics`.

use std::{
    any::TypeId,
    cell::RefCell,
    collections::BTreeMap,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use parking_lot::Mutex;
use ringfence_messages::Message;
use rustc_hash::FxHashMap;
use serde::Serialize;

/// A counter that only increases.
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

/// Replies after their sender stopped waiting.
pub(crate) static LATE_REPLIES: Counter = Counter::new();
/// Requests whose deadline passed in the mailbox.
pub(crate) static EXPIRED: Counter = Counter::new();
/// Requests without an answer before their deadline.
pub(crate) static TIMEOUTS: Counter = Counter::new();
/// Events that a subscriber with a full queue missed.
pub(crate) static MISSED_EVENTS: Counter = Counter::new();
/// Actors that panicked too often and were stopped.
pub(crate) static ESCALATIONS: Counter = Counter::new();

/// Adds to a counter that only one thread writes. Avoids the locked instruction of `fetch_add`, which costs more than a
/// small handler.
#[inline]
pub(crate) fn add_alone(counter: &AtomicU64, n: u64) {
    counter.store(counter.load(Relaxed) + n, Relaxed);
}

/// The counts of one thread for one message type.
struct PerMessage {
    name: &'static str,
    handled: AtomicU64,
    failed: AtomicU64,
    nanos: AtomicU64,
}

/// The counts of all threads and message types. Kept after the end of a thread, so that no sum decreases.
static ALL: Mutex<Vec<&'static PerMessage>> = Mutex::new(Vec::new());

thread_local! {
    static KNOWN: RefCell<FxHashMap<TypeId, &'static PerMessage>> = RefCell::new(FxHashMap::default());
}

#[inline]
fn of<M: Message>() -> &'static PerMessage {
    KNOWN.with_borrow_mut(|known| *known.entry(TypeId::of::<M>()).or_insert_with(|| new(M::NAME)))
}

#[cold]
fn new(name: &'static str) -> &'static PerMessage {
    let zero = || AtomicU64::new(0);
    // One per thread and message type, for the life of the process.
    let new: &'static PerMessage =
        Box::leak(Box::new(PerMessage { name, handled: zero(), failed: zero(), nanos: zero() }));
    ALL.lock().push(new);
    new
}

/// Counts one handled message of this thread.
#[inline]
pub(crate) fn handled<M: Message>(took: Option<Duration>, failed: bool) {
    let per = of::<M>();
    add_alone(&per.handled, 1);
    if failed {
        add_alone(&per.failed, 1);
    }
    if let Some(took) = took {
        add_alone(&per.nanos, took.as_nanos() as u64);
    }
}

/// The counts of one message type.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct MessageStats {
    /// [`Message::NAME`].
    pub name: String,
    /// Number of handled messages.
    pub handled: u64,
    /// Number of panics in handlers.
    pub failed: u64,
    /// Nanoseconds in handlers; 0 without [`Bus::with_timing`](crate::Bus::with_timing).
    pub nanos: u64,
}

/// What is counted per process.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct BusStats {
    /// Replies after their sender stopped waiting.
    pub late_replies: u64,
    /// Requests whose deadline passed in the mailbox.
    pub expired: u64,
    /// Requests without an answer before their deadline.
    pub timeouts: u64,
    /// Events that a subscriber with a full queue missed.
    pub missed_events: u64,
    /// Actors that panicked too often and were stopped.
    pub escalations: u64,
    /// Counts per message type, sorted by name.
    pub messages: Vec<MessageStats>,
}

/// The sums over all threads.
pub(crate) fn snapshot() -> BusStats {
    let mut messages = BTreeMap::<&str, MessageStats>::new();
    for per in ALL.lock().iter() {
        let sum = messages.entry(per.name).or_insert_with(|| MessageStats {
            name: per.name.to_owned(),
            handled: 0,
            failed: 0,
            nanos: 0,
        });
        sum.handled += per.handled.load(Relaxed);
        sum.failed += per.failed.load(Relaxed);
        sum.nanos += per.nanos.load(Relaxed);
    }
    BusStats {
        late_replies: LATE_REPLIES.get(),
        expired: EXPIRED.get(),
        timeouts: TIMEOUTS.get(),
        missed_events: MISSED_EVENTS.get(),
        escalations: ESCALATIONS.get(),
        messages: messages.into_values().collect(),
    }
}

/// Passes the counts to the `metrics` recorder, if one is installed. Call it before each scrape.
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
