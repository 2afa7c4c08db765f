//! Publishing: typed events to actors, and streams of events by topic.
//!
//! Invariant: a publisher never waits. A subscriber with a full queue misses the event. A missed event is counted, and
//! is a dead letter for an actor or in [`Subscription::missed`] for a stream. An actor that subscribes in its `started`
//! hears every event since its spawn: until it has started, every event that it accepts is queued for it.
//! Alternatives considered: to subscribe every actor to all that it accepts. An actor may subscribe later, or never.

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

use crate::{any_mailbox::AnyMailbox, registry::release, stats::Counts, topic::Glob};

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

/// An event on its way to one subscriber.
pub(crate) struct EventEnvelope<E> {
    pub(crate) event: Arc<E>,
    /// Published before the actor has started: it hears the event only if it subscribed then.
    pub(crate) early: bool,
}

impl<E> Clone for EventEnvelope<E> {
    fn clone(&self) -> Self {
        EventEnvelope { event: self.event.clone(), early: self.early }
    }
}

/// Actors in the sequence of delivery.
type Mailboxes = BTreeMap<Address, Arc<dyn AnyMailbox>>;

#[derive(Default)]
struct Audience {
    subscribers: FxHashMap<TypeId, Mailboxes>,
    /// Actors that accept events and have not started yet.
    unstarted: FxHashMap<Address, Arc<dyn AnyMailbox>>,
}

#[derive(Default)]
struct Streams {
    all: Vec<Streaming>,
    /// The streams whose glob matches a topic, by their place in `all`.
    of_topic: FxHashMap<&'static str, Vec<usize>>,
}

impl Streams {
    fn prune(&mut self) {
        self.all.retain(|stream| !stream.events.is_closed());
        self.of_topic.clear();
    }
}

/// All subscribers. Sorted, so that every run delivers in the same sequence.
#[derive(Default)]
pub(crate) struct Topics {
    actors: RwLock<Audience>,
    streams: RwLock<Streams>,
}

impl Topics {
    /// Queues the events that an actor accepts until it has [started](Topics::started).
    pub(crate) fn spawned(&self, address: Address, mailbox: Arc<dyn AnyMailbox>) {
        self.actors.write().unstarted.insert(address, mailbox);
    }

    pub(crate) fn started(&self, address: &Address) {
        let mut actors = self.actors.write();
        let started = actors.unstarted.remove(address);
        release(&mut actors.unstarted);
        drop(actors);
        drop(started);
    }

    pub(crate) fn subscribe_actor(&self, event: TypeId, address: Address, mailbox: Arc<dyn AnyMailbox>) {
        self.actors.write().subscribers.entry(event).or_default().insert(address, mailbox);
    }

    /// Whether an actor has subscribed to the event.
    pub(crate) fn is_subscribed(&self, event: TypeId, address: &Address) -> bool {
        self.actors.read().subscribers.get(&event).is_some_and(|subscribers| subscribers.contains_key(address))
    }

    pub(crate) fn subscribe_stream(&self, glob: &str) -> Result<Subscription> {
        let glob = Glob::new(glob)?;
        let (sender, events) = mpsc::channel(MAX_STREAM_BACKLOG);
        let missed = Arc::new(AtomicU64::new(0));
        let mut streams = self.streams.write();
        streams.prune();
        streams.all.push(Streaming { glob, events: sender, missed: missed.clone() });
        Ok(Subscription { events, missed })
    }

    /// Removes an actor that ended, from the events that it accepts.
    pub(crate) fn forget(&self, address: &Address, events: &[TypeId]) {
        let mut actors = self.actors.write();
        let unstarted = actors.unstarted.remove(address);
        for event in events {
            if let Some(subscribers) = actors.subscribers.get_mut(event) {
                subscribers.remove(address);
            }
        }
        drop(actors);
        drop(unstarted);
    }

    /// Delivers the event to all subscribers; returns the number of receivers.
    pub(crate) fn publish<E: Event>(&self, event: E, counts: &Counts) -> usize {
        let event = Arc::new(event);
        self.publish_to_actors(&event, counts) + self.publish_to_streams(&event, counts)
    }

    fn publish_to_actors<E: Event>(&self, event: &Arc<E>, counts: &Counts) -> usize {
        let actors = self.actors.read();
        let none = Mailboxes::new();
        let subscribers = actors.subscribers.get(&TypeId::of::<E>()).unwrap_or(&none);
        let mut envelope = EventEnvelope { event: event.clone(), early: false };
        let mut received = 0;
        let mut deliver = |mailbox: &Arc<dyn AnyMailbox>, envelope: &mut EventEnvelope<E>| match mailbox
            .take_in(TypeId::of::<E>(), envelope)
        {
            Some(Ok(())) => received += 1,
            Some(Err(_)) => counts.missed_events.add(),
            None => {}
        };
        subscribers.values().for_each(|mailbox| deliver(mailbox, &mut envelope));
        if !actors.unstarted.is_empty() {
            envelope.early = true;
            let mut unstarted: Vec<_> = actors.unstarted.iter().collect();
            unstarted.retain(|(address, _)| !subscribers.contains_key(address));
            unstarted.sort_unstable_by_key(|(address, _)| **address);
            unstarted.iter().for_each(|(_, mailbox)| deliver(mailbox, &mut envelope));
        }
        received
    }

    fn publish_to_streams<E: Event>(&self, event: &Arc<E>, counts: &Counts) -> usize {
        let mut streams = self.streams.read();
        if streams.all.is_empty() {
            return 0;
        }
        while !streams.of_topic.contains_key(E::TOPIC) {
            drop(streams);
            let mut matched = self.streams.write();
            let matching = |(at, stream): (usize, &Streaming)| stream.glob.matches(E::TOPIC).then_some(at);
            let places = matched.all.iter().enumerate().filter_map(matching).collect();
            matched.of_topic.insert(E::TOPIC, places);
            drop(matched);
            streams = self.streams.read();
        }
        let (mut received, mut closed) = (0, false);
        for at in &streams.of_topic[E::TOPIC] {
            let stream = &streams.all[*at];
            match stream.events.try_send(AnyEvent::new(event.clone())) {
                Ok(()) => received += 1,
                Err(mpsc::error::TrySendError::Full(_)) => {
                    stream.missed.fetch_add(1, Relaxed);
                    counts.missed_events.add();
                }
                Err(mpsc::error::TrySendError::Closed(_)) => closed = true,
            }
        }
        drop(streams);
        if closed {
            self.streams.write().prune();
        }
        received
    }
}
