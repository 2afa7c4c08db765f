//! Publishing: typed events to actors, and streams of events by topic.
//!
//! Invariant: a publisher never waits. A subscriber with a full queue misses the event. A missed event is counted, and
//! is a dead letter for an actor or in [`Subscription::missed`] for a stream.

use std::{
    any::{Any, TypeId},
    collections::BTreeMap,
    fmt,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll},
};

use futures_util::Stream;
use parking_lot::RwLock;
use ringfence_messages::{Address, Event, Result};
use rustc_hash::FxHashMap;
use tokio::sync::mpsc;

use crate::{envelope::EventEnvelope, mailbox::AnyMailbox, stats, topic::Glob};

/// Events that wait in a [`Subscription`], at most. Too low: a burst is missed. Too high: a slow reader costs memory.
pub const MAX_STREAM_BACKLOG: usize = 4096;

/// An event of any type.
#[derive(Clone)]
pub struct AnyEvent {
    /// [`Event::TOPIC`].
    pub topic: &'static str,
    /// [`Event::VERSION`].
    pub version: u16,
    event: Arc<dyn Any + Send + Sync>,
    view: fn(&(dyn Any + Send + Sync)) -> (String, serde_json::Value),
}

impl AnyEvent {
    fn new<E: Event>(event: Arc<E>) -> AnyEvent {
        AnyEvent {
            topic: E::TOPIC,
            version: E::VERSION,
            event,
            view: |event| {
                let event: &E = event.downcast_ref().expect("made from an E");
                (event.subject(), serde_json::to_value(event).unwrap_or_default())
            },
        }
    }

    /// [`Event::subject`]: the object of the event.
    pub fn subject(&self) -> String {
        (self.view)(self.event.as_ref()).0
    }

    /// The event as JSON.
    pub fn json(&self) -> serde_json::Value {
        (self.view)(self.event.as_ref()).1
    }

    /// The event, if it is an `E`.
    pub fn downcast_ref<E: Event>(&self) -> Option<&E> {
        self.event.downcast_ref()
    }
}

impl fmt::Debug for AnyEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.topic, self.json())
    }
}

/// A stream of the events whose topic matches a glob, from its creation on.
pub struct Subscription {
    events: mpsc::Receiver<AnyEvent>,
    missed: Arc<AtomicU64>,
}

impl Subscription {
    /// The next event; `None` after the bus is dropped.
    pub async fn recv(&mut self) -> Option<AnyEvent> {
        self.events.recv().await
    }

    /// Number of events that this stream lost because [`MAX_STREAM_BACKLOG`] events were waiting.
    pub fn missed(&self) -> u64 {
        self.missed.load(Relaxed)
    }
}

impl Stream for Subscription {
    type Item = AnyEvent;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<AnyEvent>> {
        self.events.poll_recv(cx)
    }
}

struct Streaming {
    glob: Glob,
    events: mpsc::Sender<AnyEvent>,
    missed: Arc<AtomicU64>,
}

/// The subscribers of one event type, in the sequence of delivery.
type Subscribers = BTreeMap<Address, Arc<dyn AnyMailbox>>;

/// All subscribers. Sorted, so that every run delivers in the same sequence.
#[derive(Default)]
pub(crate) struct Topics {
    actors: RwLock<FxHashMap<TypeId, Subscribers>>,
    streams: RwLock<Vec<Streaming>>,
}

impl Topics {
    pub(crate) fn subscribe_actor<E: Event>(&self, address: Address, mailbox: Arc<dyn AnyMailbox>) {
        self.actors.write().entry(TypeId::of::<E>()).or_default().insert(address, mailbox);
    }

    pub(crate) fn subscribe_stream(&self, glob: &str) -> Result<Subscription> {
        let glob = Glob::new(glob)?;
        let (sender, events) = mpsc::channel(MAX_STREAM_BACKLOG);
        let missed = Arc::new(AtomicU64::new(0));
        let mut streams = self.streams.write();
        streams.retain(|stream| !stream.events.is_closed());
        streams.push(Streaming { glob, events: sender, missed: missed.clone() });
        Ok(Subscription { events, missed })
    }

    /// Removes an actor that ended.
    pub(crate) fn forget(&self, address: &Address) {
        self.actors.write().values_mut().for_each(|subscribers| {
            subscribers.remove(address);
        });
    }

    /// Delivers the event to all subscribers; returns the number of receivers.
    pub(crate) fn publish<E: Event>(&self, event: E) -> usize {
        let event = Arc::new(event);
        let mut received = 0;
        if let Some(subscribers) = self.actors.read().get(&TypeId::of::<E>()) {
            let mut envelope = EventEnvelope(event.clone());
            for mailbox in subscribers.values() {
                match mailbox.take_in(TypeId::of::<E>(), &mut envelope) {
                    Some(Ok(())) => received += 1,
                    _ => stats::MISSED_EVENTS.add(),
                }
            }
        }
        for stream in self.streams.read().iter().filter(|stream| stream.glob.matches(E::TOPIC)) {
            match stream.events.try_send(AnyEvent::new(event.clone())) {
                Ok(()) => received += 1,
                Err(mpsc::error::TrySendError::Full(_)) => {
                    stream.missed.fetch_add(1, Relaxed);
                    stats::MISSED_EVENTS.add();
                }
                Err(mpsc::error::TrySendError::Closed(_)) => {}
            }
        }
        received
    }
}
