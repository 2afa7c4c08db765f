//! The bus: spawns actors, finds them by address and carries what they say to each other.

use std::{any::TypeId, sync::Arc, time::Duration};

use actix::ArbiterHandle;
use parking_lot::Mutex;
use ringfence_messages::{Address, Code, ErrorCode, Event, Lane, Message, Result};
use rustc_hash::FxHashMap;
use tokio::{sync::oneshot, time::Instant};
use uuid::Uuid;

use crate::{
    actor::{Accepts, Actor, Handler},
    any_mailbox::AnyMailbox,
    ask::Ask,
    current,
    dead_letter::DeadLetter,
    envelope::{Request, current_span},
    event::{Subscription, Topics},
    exit::Exit,
    inspect::Snapshot,
    interceptor::{InterceptedMessage, Interceptor, Verdict},
    mailbox::{LaneLimits, Mailbox},
    mailbox_loop::{Farewell, MailboxLoop},
    registry::Registry,
    shared::Shared,
    stats::{self, BusId},
    supervise::RestartPolicy,
    watches::Watches,
};

/// Default deadline of a request: 30 s. Too low: slow work times out while it continues. Too high: a sender waits long
/// for a receiver that does not answer.
pub const DEFAULT_DEADLINE: Duration = Duration::from_secs(30);

/// Least remaining time to send a request: 1 ms. Too low: requests are sent that must time out. Too high: short
/// deadlines fail without an attempt.
pub const MIN_DEADLINE: Duration = Duration::from_millis(1);

/// Time limit of [`Bus::inspect`] for all [`Actor::observe`] calls: 1 s. Too low: busy actors show no state. Too high:
/// one blocked actor delays every snapshot.
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
    tables: Mutex<FxHashMap<TypeId, Arc<dyn std::any::Any + Send + Sync>>>,
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

    /// Spawns an actor on this thread with the default limits and restart policy.
    ///
    /// # Errors
    /// `SYS.1005` if an actor has the address already.
    ///
    /// # Panics
    /// Outside an actix system or another local task set of tokio.
    pub fn spawn<A: Actor>(&self, id: impl Into<Uuid>, factory: impl FnMut() -> A + 'static) -> Result<ActorRef<A>> {
        self.actor(id, factory).spawn()
    }

    /// Begins to spawn an actor of kind [`Actor::KIND`] with this id. `factory` creates it, and rebuilds it after a
    /// panic.
    pub fn actor<A: Actor, F: FnMut() -> A + 'static>(&self, id: impl Into<Uuid>, factory: F) -> Spawn<'_, A, F> {
        Spawn {
            bus: self,
            address: Address::new(A::KIND, id),
            factory,
            lanes: LaneLimits::default(),
            restarts: RestartPolicy::default(),
            _actor: std::marker::PhantomData,
        }
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
        let send = |reply, deadline| self.send(to, request(message, Some(reply), Some(deadline)));
        ask(to, within, send, M::NAME, self.0.shared.bus)
    }

    /// Sends a message without waiting for its reply.
    ///
    /// # Errors
    /// `SYS.1009`, `SYS.1008`, `SYS.1010` or `SYS.1012` if the message is not in a mailbox. It is then a dead letter.
    pub fn tell<M: Message>(&self, to: Address, message: M) -> Result<()> {
        self.send(to, request(message, None, None))
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

    /// The actor has started for the first time, or again.
    pub(crate) fn started<A: Actor>(&self, mailbox: &Mailbox<A>) {
        if !mailbox.events().is_empty() {
            self.0.topics.started(&mailbox.address);
        }
    }

    pub(crate) fn ended<A: Actor>(&self, mailbox: &Mailbox<A>, exit: &Exit) {
        let address = mailbox.address;
        if !mailbox.events().is_empty() {
            self.0.topics.forget(&address, mailbox.events());
        }
        let mut watches = self.0.watches.lock();
        self.0.registry.remove(&address);
        let watchers = watches.ended(&address);
        drop(watches);
        for watcher in watchers.values() {
            watcher.terminated(address, exit);
        }
    }

    fn table<A: Actor>(&self) -> Arc<Accepts<A>> {
        let mut tables = self.0.tables.lock();
        let table = tables.entry(TypeId::of::<A>()).or_insert_with(|| Arc::new(Accepts::<A>::of()));
        table.clone().downcast().expect("keyed by the actor's type")
    }
}

#[inline]
fn request<M: Message>(
    message: M,
    reply: Option<oneshot::Sender<Result<M::Reply>>>,
    deadline: Option<Instant>,
) -> Request<M> {
    let span = current_span().map(Box::new);
    Request { message, lane: M::LANE, reply, deadline, span }
}

fn ask<R>(
    to: Address,
    within: Duration,
    send: impl FnOnce(oneshot::Sender<Result<R>>, Instant) -> Result<()>,
    name: &'static str,
    bus: BusId,
) -> Ask<R> {
    let now = Instant::now();
    let own = current::after(now, within);
    let deadline = current::deadline().map_or(own, |inherited| inherited.min(own));
    if deadline <= now + MIN_DEADLINE {
        stats::timeout(bus);
        return Ask::refused(ErrorCode::new(Code::TIMEOUT, format!("no time is left to send {name} to {to}")));
    }
    let (sender, receiver) = oneshot::channel();
    match send(sender, deadline) {
        Ok(()) => Ask::waiting(receiver, deadline, to, name, bus),
        Err(error) => Ask::refused(error),
    }
}

/// Runs the interceptors on a message. False if one of them answered it.
#[inline]
fn passes<M: Message>(shared: &Shared, to: Address, request: &mut Request<M>) -> Result<bool> {
    if shared.interceptors.any() { shown(shared, to, request) } else { Ok(true) }
}

#[cold]
fn shown<M: Message>(shared: &Shared, to: Address, request: &mut Request<M>) -> Result<bool> {
    let Some(answer) = shared.interceptors.before_send(InterceptedMessage::new(to, &mut request.message)) else {
        return Ok(true);
    };
    let reply = Verdict::downcast::<M>(answer?);
    if let Some(sender) = request.reply.take() {
        let _ = sender.send(reply);
    }
    Ok(false)
}

/// The settings of an actor before it is spawned.
#[must_use = "`spawn` or `spawn_on` starts the actor"]
pub struct Spawn<'a, A: Actor, F> {
    bus: &'a Bus,
    address: Address,
    factory: F,
    lanes: LaneLimits,
    restarts: RestartPolicy,
    _actor: std::marker::PhantomData<fn() -> A>,
}

impl<A: Actor, F: FnMut() -> A + 'static> Spawn<'_, A, F> {
    /// Sets another address than that of kind and id, so that a test can replace an actor.
    pub fn at(mut self, address: Address) -> Self {
        self.address = address;
        self
    }

    /// Sets the lengths of the lanes.
    pub fn lanes(mut self, lanes: LaneLimits) -> Self {
        self.lanes = lanes;
        self
    }

    /// Sets the restart policy after panics.
    pub fn restarts(mut self, restarts: RestartPolicy) -> Self {
        self.restarts = restarts;
        self
    }

    fn mailbox(&self) -> Result<Arc<Mailbox<A>>> {
        let (bus, table) = (self.bus, self.bus.table::<A>());
        let mailbox = Arc::new(Mailbox::new(self.address, bus.0.shared.clone(), table, self.lanes));
        bus.0.registry.insert(self.address, mailbox.clone())?;
        if !mailbox.events().is_empty() {
            bus.0.topics.spawned(self.address, mailbox.clone());
        }
        Ok(mailbox)
    }

    /// Spawns the actor on this thread.
    ///
    /// # Errors
    /// `SYS.1005` if an actor has the address already.
    ///
    /// # Panics
    /// Outside an actix system or another local task set of tokio.
    pub fn spawn(self) -> Result<ActorRef<A>> {
        let mailbox = self.mailbox()?;
        MailboxLoop::start(Box::new(self.factory), mailbox.clone(), self.bus.clone(), self.restarts);
        Ok(ActorRef { mailbox })
    }

    /// Spawns the actor on another thread, where the factory runs too.
    ///
    /// # Errors
    /// `SYS.1005` if an actor has the address already, `SYS.1012` if that thread has ended.
    pub fn spawn_on(self, arbiter: &ArbiterHandle) -> Result<ActorRef<A>>
    where
        F: Send,
    {
        let (mailbox, factory, restarts) = (self.mailbox()?, self.factory, self.restarts);
        // Dropped with the closure if the thread ends before it runs the closure.
        let spawned = Spawned(Some((mailbox.clone(), self.bus.clone())));
        let accepted = arbiter.spawn_fn(move || {
            let mut spawned = spawned;
            let (mailbox, bus) = spawned.0.take().expect("called once");
            MailboxLoop::start(Box::new(factory), mailbox, bus, restarts);
        });
        if !accepted {
            return Err(ErrorCode::new(
                Code::NODE_UNAVAILABLE,
                format!("cannot spawn {}: its thread has ended", self.address),
            ));
        }
        Ok(ActorRef { mailbox })
    }
}

/// An actor on the way to its thread. Ends the actor if it does not get there.
struct Spawned<A: Actor>(Option<(Arc<Mailbox<A>>, Bus)>);

impl<A: Actor> Drop for Spawned<A> {
    fn drop(&mut self) {
        if let Some((mailbox, bus)) = &self.0 {
            drop(Farewell { bus, mailbox, exit: &Exit::Stopped });
        }
    }
}

/// A typed reference to one actor. Sends without the lookup of the address; the compiler checks the handler.
pub struct ActorRef<A: Actor> {
    mailbox: Arc<Mailbox<A>>,
}

impl<A: Actor> Clone for ActorRef<A> {
    fn clone(&self) -> Self {
        ActorRef { mailbox: self.mailbox.clone() }
    }
}

impl<A: Actor> ActorRef<A> {
    /// The actor's address.
    pub fn address(&self) -> Address {
        self.mailbox.address
    }

    /// Sends a message and returns a future for its reply, as [`Bus::ask`].
    pub fn ask<M: Message>(&self, message: M) -> Ask<M::Reply>
    where
        A: Handler<M>,
    {
        self.ask_within(message, DEFAULT_DEADLINE)
    }

    /// Sends a message with this time limit, as [`Bus::ask_within`].
    pub fn ask_within<M: Message>(&self, message: M, within: Duration) -> Ask<M::Reply>
    where
        A: Handler<M>,
    {
        let send = |reply, deadline| self.send(request(message, Some(reply), Some(deadline)));
        ask(self.address(), within, send, M::NAME, self.mailbox.shared.bus)
    }

    /// Sends a message without waiting for its reply.
    ///
    /// # Errors
    /// `SYS.1010` if the lane is full, `SYS.1012` if the actor stopped.
    pub fn tell<M: Message>(&self, message: M) -> Result<()>
    where
        A: Handler<M>,
    {
        self.send(request(message, None, None))
    }

    /// [`tell`](ActorRef::tell) in another lane than [`Message::LANE`].
    ///
    /// # Errors
    /// `SYS.1010` if the lane is full, `SYS.1012` if the actor stopped.
    pub fn tell_in<M: Message>(&self, lane: Lane, message: M) -> Result<()>
    where
        A: Handler<M>,
    {
        self.send(Request { lane, ..request(message, None, None) })
    }

    /// Requests the actor to stop after the message in progress. Its queued messages get `SYS.1012`.
    pub fn stop(&self) {
        self.mailbox.stop();
    }

    #[inline]
    fn send<M: Message>(&self, mut request: Request<M>) -> Result<()>
    where
        A: Handler<M>,
    {
        match passes(&self.mailbox.shared, self.address(), &mut request)? {
            true => self.mailbox.push(request.lane, Box::new(request)),
            false => Ok(()),
        }
    }
}
