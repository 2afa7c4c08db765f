//! The bus: finds actors by address and carries messages, events and notifications between them.
//!
//! Knows actors as mailboxes of any type: what depends on the type of an actor is in `spawn` and `actor_ref`.

use std::{
    any::{Any, TypeId},
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use ringfence_messages::{Address, Code, ErrorCode, Event, Message, Result};
use rustc_hash::FxHashMap;
use tokio::{sync::oneshot, time::Instant};

use crate::{
    any_mailbox::AnyMailbox,
    ask::Ask,
    dead_letter::DeadLetter,
    event::{Subscription, Topics},
    exit::Exit,
    inspect::Snapshot,
    interceptor::Interceptor,
    registry::Registry,
    request::{Request, ask, passes},
    shared::Shared,
    watches::Watches,
};

/// Default deadline of a request: 30 s. Too low: slow work times out while it continues. Too high: a sender waits long
/// for a receiver that does not answer.
pub const DEFAULT_DEADLINE: Duration = Duration::from_secs(30);

/// Time limit of [`Bus::inspect`] for all [`Actor::observe`](crate::Actor::observe) calls: 1 s. Too low: busy actors
/// show no state. Too high: one blocked actor delays every snapshot.
pub const OBSERVE_TIMEOUT: Duration = Duration::from_secs(1);

/// The bus: a registry of actors, topics and interceptors. Cheap to clone; all clones are the same bus.
#[derive(Clone)]
pub struct Bus(Arc<Inner>);

struct Inner {
    shared: Arc<Shared>,
    registry: Registry,
    topics: Topics,
    watches: Mutex<Watches>,
    /// The accepted messages of each actor type: one table per type.
    tables: Mutex<FxHashMap<TypeId, Arc<dyn Any + Send + Sync>>>,
}

impl Default for Bus {
    fn default() -> Self {
        Bus::new()
    }
}

impl Bus {
    /// A new bus, independent of every other one.
    pub fn new() -> Bus {
        Bus::with(false)
    }

    /// A new bus that measures the time of handlers ([`MessageStats::nanos`](crate::MessageStats::nanos)). Costs two
    /// clock reads per message.
    pub fn with_timing() -> Bus {
        Bus::with(true)
    }

    fn with(timing: bool) -> Bus {
        Bus(Arc::new(Inner {
            shared: Arc::new(Shared::new(timing)),
            registry: Registry::new(),
            topics: Topics::default(),
            watches: Mutex::default(),
            tables: Mutex::default(),
        }))
    }

    /// Sends a message and returns a future for its reply. The message is in the mailbox before this returns.
    /// The deadline is [`DEFAULT_DEADLINE`] from now, or that of the message in progress if that is earlier.
    ///
    /// # Errors
    /// The future resolves to `SYS.1009` if no actor has the address, `SYS.1008` if the actor has no handler,
    /// `SYS.1010` if the lane is full, `SYS.1012` if the actor stops first, `SYS.1001` at the deadline, `SYS.1000` if
    /// the handler panics, or the handler's error.
    pub fn ask<M: Message>(&self, to: Address, message: M) -> Ask<M::Reply> {
        self.ask_within(to, message, DEFAULT_DEADLINE)
    }

    /// [`ask`](Bus::ask) with this time limit. An earlier inherited deadline applies instead.
    pub fn ask_within<M: Message>(&self, to: Address, message: M, within: Duration) -> Ask<M::Reply> {
        let send = |reply, deadline| self.send(to, Request::new(message, Some(reply), Some(deadline)));
        ask(to, within, send, M::NAME, self.0.shared.bus)
    }

    /// Sends a message without waiting for its reply.
    ///
    /// # Errors
    /// `SYS.1009`, `SYS.1008`, `SYS.1010` or `SYS.1012` if the message is not in a mailbox. It is then a dead letter.
    pub fn tell<M: Message>(&self, to: Address, message: M) -> Result<()> {
        self.send(to, Request::new(message, None, None))
    }

    fn send<M: Message>(&self, to: Address, mut request: Request<M>) -> Result<()> {
        if !passes(&self.0.shared, to, &mut request)? {
            return Ok(());
        }
        let refusal = match self.0.registry.get(&to) {
            None => ErrorCode::new(Code::NO_ROUTE, format!("no actor has the address {to}")),
            Some(mailbox) => {
                let mut slot = Some(request);
                match mailbox.take_in(TypeId::of::<M>(), &mut slot) {
                    Some(result) => return result,
                    None => request = slot.expect("not accepted"),
                }
                ErrorCode::new(Code::UNKNOWN_MESSAGE, format!("{to} has no handler for {}", M::NAME))
            }
        };
        self.0.shared.dead_letters.push(to, M::NAME, &refusal);
        drop(request);
        Err(refusal)
    }

    /// Publishes an event to all subscribed actors and streams, and returns the number of receivers. Never waits: a
    /// subscriber with a full queue misses the event, which is counted.
    ///
    /// # Errors
    /// The error of an interceptor that rejects the event.
    pub fn publish<E: Event>(&self, mut event: E) -> Result<usize> {
        if self.0.shared.interceptors.any() {
            self.0.shared.interceptors.before_publish(&mut event)?;
        }
        Ok(self.0.topics.publish(event, &self.0.shared.counts))
    }

    /// A stream of the events whose topic matches a glob: `*` is any text, `?` one character, `{name}` one segment.
    ///
    /// # Errors
    /// `SYS.1007` if the glob is malformed.
    pub fn subscribe(&self, glob: &str) -> Result<Subscription> {
        self.0.topics.subscribe_stream(glob)
    }

    /// Adds an interceptor. Interceptors run in the sequence in which they were added.
    pub fn intercept(&self, interceptor: impl Interceptor + 'static) {
        self.0.shared.interceptors.add(Arc::new(interceptor));
    }

    /// The newest [`MAX_DEAD_LETTERS`](crate::MAX_DEAD_LETTERS) messages that no actor handled, oldest first.
    pub fn dead_letters(&self) -> Vec<DeadLetter> {
        self.0.shared.dead_letters.list()
    }

    /// Whether an actor has this address.
    pub fn is_alive(&self, address: Address) -> bool {
        self.0.registry.get(&address).is_some()
    }

    /// The number of actors on this bus.
    pub fn len(&self) -> usize {
        self.0.registry.len()
    }

    /// Whether the bus has no actor.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Requests all actors to stop. Their queued messages get `SYS.1012`.
    pub fn stop_all(&self) {
        self.0.registry.all().iter().for_each(|(_, mailbox)| mailbox.stop());
    }

    /// A snapshot of all actors, their lanes and counts. The state of an actor that does not answer within
    /// [`OBSERVE_TIMEOUT`] is null.
    pub async fn inspect(&self) -> Snapshot {
        let mailboxes = self.0.registry.all();
        let mut asked = Vec::with_capacity(mailboxes.len());
        for (_, mailbox) in &mailboxes {
            let (sender, receiver) = oneshot::channel();
            mailbox.observe(sender);
            asked.push(receiver);
        }
        let until = Instant::now() + OBSERVE_TIMEOUT;
        let mut actors = Vec::with_capacity(mailboxes.len());
        for ((_, mailbox), state) in mailboxes.iter().zip(asked) {
            let mut actor = mailbox.snapshot();
            if let Ok(Ok(state)) = tokio::time::timeout_at(until, state).await {
                actor.state = state;
            }
            actors.push(actor);
        }
        Snapshot { actors, stats: self.0.shared.counts.snapshot(), dead_letters: self.dead_letters() }
    }

    pub(crate) fn subscribe_actor(&self, event: TypeId, mailbox: Arc<dyn AnyMailbox>, address: Address) {
        self.0.topics.subscribe_actor(event, address, mailbox);
    }

    pub(crate) fn is_subscribed(&self, event: TypeId, address: Address) -> bool {
        self.0.topics.is_subscribed(event, &address)
    }

    pub(crate) fn watch(&self, address: Address, by: Address, watcher: Arc<dyn AnyMailbox>) {
        // Under the lock: an actor that stops at the same time is either missing here or notifies the watcher.
        let mut watches = self.0.watches.lock();
        if self.0.registry.get(&address).is_some() {
            watches.add(address, by, watcher);
        } else {
            drop(watches);
            watcher.terminated(address, &Exit::Missing);
        }
    }

    pub(crate) fn unwatch(&self, address: Address, by: Address) {
        self.0.watches.lock().remove(&address, &by);
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.0.shared
    }

    /// Gives an actor its address. Queues `events` for it until it has started.
    pub(crate) fn spawned(&self, address: Address, mailbox: Arc<dyn AnyMailbox>, events: &[TypeId]) -> Result<()> {
        self.0.registry.insert(address, mailbox.clone())?;
        if !events.is_empty() {
            self.0.topics.spawned(address, mailbox);
        }
        Ok(())
    }

    /// The actor has started, for the first time or again.
    pub(crate) fn started(&self, address: Address, events: &[TypeId]) {
        if !events.is_empty() {
            self.0.topics.started(&address);
        }
    }

    /// Frees the address of an actor and notifies its watchers.
    pub(crate) fn ended(&self, address: Address, events: &[TypeId], exit: &Exit) {
        if !events.is_empty() {
            self.0.topics.forget(&address, events);
        }
        let mut watches = self.0.watches.lock();
        self.0.registry.remove(&address);
        let watchers = watches.ended(&address);
        drop(watches);
        for watcher in watchers.values() {
            watcher.terminated(address, exit);
        }
    }

    /// The table of an actor type, made once per bus.
    pub(crate) fn table<T: Any + Send + Sync>(&self, actor: TypeId, make: fn() -> T) -> Arc<T> {
        let mut tables = self.0.tables.lock();
        let table = tables.entry(actor).or_insert_with(|| Arc::new(make()));
        table.clone().downcast().expect("keyed by the actor's type")
    }
}
