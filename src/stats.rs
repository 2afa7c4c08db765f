//! Counts of each bus: per message type, and failures between actors.
//!
//! Invariants: a count belongs to one bus and never decreases; what a thread or a bus that ended has counted is summed
//! up, not kept.
//! Alternatives considered: a metrics registry, or a counter that two cores share. Both are too slow for each message.
//! So each thread counts in its own cells, a snapshot adds them up, and [`export`] passes the sums to `metrics`. A
//! reference to the counts in each request costs an atomic increment, so a request has the [`BusId`] instead.

use std::{
    any::TypeId,
    borrow::Cow,
    cell::RefCell,
    collections::BTreeMap,
    rc::{self, Rc},
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use parking_lot::Mutex;
use ringfence_messages::Message;
use rustc_hash::FxHashMap;
use serde::Serialize;

/// A counter that only increases.
#[derive(Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self) {
        self.0.fetch_add(1, Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// Adds to a counter that only one thread writes. Avoids the locked instruction of `fetch_add`, which costs more than a
/// small handler.
#[inline]
pub(crate) fn add_alone(counter: &AtomicU64, n: u64) {
    counter.store(counter.load(Relaxed) + n, Relaxed);
}

/// The number of a bus in this process.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct BusId(u64);

/// Buses, and the sums of those that ended.
type Buses = (BTreeMap<BusId, Weak<Counts>>, Option<Sums>);

/// The buses of this process.
static BUSES: Mutex<Buses> = Mutex::new((BTreeMap::new(), None));

/// The counts of a bus, unless it ended.
fn of(bus: BusId) -> Option<Arc<Counts>> {
    BUSES.lock().0.get(&bus).and_then(Weak::upgrade)
}

/// Counts a reply after its sender stopped waiting.
#[cold]
pub(crate) fn late_reply(bus: BusId) {
    if let Some(counts) = of(bus) {
        counts.late_replies.add();
    }
}

/// Counts a request without an answer before its deadline.
#[cold]
pub(crate) fn timeout(bus: BusId) {
    if let Some(counts) = of(bus) {
        counts.timeouts.add();
    }
}

/// The counts of one bus.
pub(crate) struct Counts {
    pub(crate) bus: BusId,
    late_replies: Counter,
    timeouts: Counter,
    pub(crate) expired: Counter,
    pub(crate) missed_events: Counter,
    pub(crate) escalations: Counter,
    messages: Mutex<PerMessage>,
    dead_letters: Mutex<BTreeMap<&'static str, u64>>,
}

#[derive(Default)]
struct PerMessage {
    /// The first type of each name.
    names: FxHashMap<&'static str, TypeId>,
    /// The cells of the threads.
    cells: Vec<Arc<Cell>>,
    /// The sums of the threads that ended.
    ended: BTreeMap<Name, MessageStats>,
}

/// [`Message::NAME`]; with the path of the type for a second type of that name.
type Name = Cow<'static, str>;

/// The counts of one thread for one message type of one bus.
struct Cell {
    name: Name,
    handled: AtomicU64,
    failed: AtomicU64,
    nanos: AtomicU64,
}

impl Cell {
    fn add_to(&self, sums: &mut BTreeMap<Name, MessageStats>) {
        let sum = MessageStats {
            name: self.name.clone().into_owned(),
            handled: self.handled.load(Relaxed),
            failed: self.failed.load(Relaxed),
            nanos: self.nanos.load(Relaxed),
        };
        add_to(sums, self.name.clone(), &sum);
    }
}

fn add_to(sums: &mut BTreeMap<Name, MessageStats>, name: Name, more: &MessageStats) {
    let zero = || MessageStats { name: more.name.clone(), handled: 0, failed: 0, nanos: 0 };
    let sum = sums.entry(name).or_insert_with(zero);
    sum.handled += more.handled;
    sum.failed += more.failed;
    sum.nanos += more.nanos;
}

impl Counts {
    pub(crate) fn new() -> Arc<Counts> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let counts = Arc::new(Counts {
            bus: BusId(NEXT.fetch_add(1, Relaxed)),
            late_replies: Counter::default(),
            timeouts: Counter::default(),
            expired: Counter::default(),
            missed_events: Counter::default(),
            escalations: Counter::default(),
            messages: Mutex::default(),
            dead_letters: Mutex::default(),
        });
        BUSES.lock().0.insert(counts.bus, Arc::downgrade(&counts));
        counts
    }

    pub(crate) fn dead_letter(&self, name: &'static str) {
        *self.dead_letters.lock().entry(name).or_default() += 1;
    }

    /// A new cell for a message type and this thread.
    #[cold]
    fn cell<M: Message>(&self) -> Arc<Cell> {
        let mut messages = self.messages.lock();
        let PerMessage { names, cells, ended } = &mut *messages;
        cells.retain(|cell| {
            let counted = Arc::strong_count(cell) > 1;
            if !counted {
                cell.add_to(ended);
            }
            counted
        });
        let name = if *names.entry(M::NAME).or_insert(TypeId::of::<M>()) == TypeId::of::<M>() {
            M::NAME.into()
        } else {
            let r#type = std::any::type_name::<M>();
            tracing::warn!(message = M::NAME, r#type, "a second message type has this name; rename one of them");
            format!("{} ({type})", M::NAME).into()
        };
        let zero = || AtomicU64::new(0);
        cells.push(Arc::new(Cell { name, handled: zero(), failed: zero(), nanos: zero() }));
        cells.last().expect("pushed above").clone()
    }

    /// The sums over all threads.
    pub(crate) fn snapshot(&self) -> BusStats {
        let messages = self.messages.lock();
        let mut sums = messages.ended.clone();
        messages.cells.iter().for_each(|cell| cell.add_to(&mut sums));
        BusStats {
            late_replies: self.late_replies.get(),
            expired: self.expired.get(),
            timeouts: self.timeouts.get(),
            missed_events: self.missed_events.get(),
            escalations: self.escalations.get(),
            messages: sums.into_values().collect(),
        }
    }
}

impl Drop for Counts {
    fn drop(&mut self) {
        let mut buses = BUSES.lock();
        buses.0.remove(&self.bus);
        buses.1.get_or_insert_default().add(self);
    }
}

/// The counts of one bus on one thread.
pub(crate) struct LocalCounts {
    counts: Arc<Counts>,
    cells: RefCell<FxHashMap<TypeId, Arc<Cell>>>,
}

thread_local! {
    static LOCAL: RefCell<FxHashMap<BusId, rc::Weak<LocalCounts>>> = RefCell::default();
}

impl LocalCounts {
    /// The counts of this bus on this thread, for as long as an actor of the bus is on this thread.
    pub(crate) fn of(counts: &Arc<Counts>) -> Rc<LocalCounts> {
        LOCAL.with_borrow_mut(|local| {
            if let Some(known) = local.get(&counts.bus).and_then(rc::Weak::upgrade) {
                return known;
            }
            local.retain(|_, known| known.strong_count() > 0);
            let new = Rc::new(LocalCounts { counts: counts.clone(), cells: RefCell::default() });
            local.insert(counts.bus, Rc::downgrade(&new));
            new
        })
    }

    /// Counts one handled message.
    #[inline]
    pub(crate) fn handled<M: Message>(&self, took: Option<Duration>, failed: bool) {
        let mut cells = self.cells.borrow_mut();
        let cell = cells.entry(TypeId::of::<M>()).or_insert_with(|| self.counts.cell::<M>());
        add_alone(&cell.handled, 1);
        if failed {
            add_alone(&cell.failed, 1);
        }
        if let Some(took) = took {
            add_alone(&cell.nanos, took.as_nanos() as u64);
        }
    }
}

/// The counts of one message type.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct MessageStats {
    /// [`Message::NAME`]. A second type with the same name has its path behind the name.
    pub name: String,
    /// Number of handled messages.
    pub handled: u64,
    /// Number of panics in handlers.
    pub failed: u64,
    /// Nanoseconds in handlers; 0 without [`Bus::with_timing`](crate::Bus::with_timing).
    pub nanos: u64,
}

/// What is counted per bus.
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

/// The sums of several buses.
#[derive(Clone, Default)]
struct Sums {
    totals: BusStats,
    messages: BTreeMap<Name, MessageStats>,
    dead_letters: BTreeMap<&'static str, u64>,
}

impl Sums {
    fn add(&mut self, counts: &Counts) {
        let more = counts.snapshot();
        self.totals.late_replies += more.late_replies;
        self.totals.expired += more.expired;
        self.totals.timeouts += more.timeouts;
        self.totals.missed_events += more.missed_events;
        self.totals.escalations += more.escalations;
        for message in more.messages {
            add_to(&mut self.messages, message.name.clone().into(), &message);
        }
        for (name, count) in counts.dead_letters.lock().iter() {
            *self.dead_letters.entry(name).or_default() += count;
        }
    }
}

/// Passes the counts of all buses of the process to the `metrics` recorder, if one is installed. Call it before each
/// scrape.
pub fn export() {
    let (mut sums, buses) = {
        let buses = BUSES.lock();
        (buses.1.clone().unwrap_or_default(), buses.0.values().filter_map(Weak::upgrade).collect::<Vec<_>>())
    };
    buses.iter().for_each(|counts| sums.add(counts));
    metrics::counter!("ringfence_bus_late_replies_total").absolute(sums.totals.late_replies);
    metrics::counter!("ringfence_bus_expired_total").absolute(sums.totals.expired);
    metrics::counter!("ringfence_bus_timeouts_total").absolute(sums.totals.timeouts);
    metrics::counter!("ringfence_bus_missed_events_total").absolute(sums.totals.missed_events);
    metrics::counter!("ringfence_bus_escalations_total").absolute(sums.totals.escalations);
    for (name, count) in sums.dead_letters {
        metrics::counter!("ringfence_bus_dead_letters_total", "message" => name).absolute(count);
    }
    for per in sums.messages.into_values() {
        metrics::counter!("ringfence_bus_messages_handled_total", "message" => per.name.clone()).absolute(per.handled);
        metrics::counter!("ringfence_bus_messages_panicked_total", "message" => per.name.clone()).absolute(per.failed);
        metrics::gauge!("ringfence_bus_message_seconds_sum", "message" => per.name).set(per.nanos as f64 / 1e9);
    }
}
