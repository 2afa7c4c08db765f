//! The bus: spawns actors, finds them by address and carries what they say to each other.

use std::{any::TypeId, sync::Arc, time::Duration};

use actix::{Actor as _, ArbiterHandle};
use parking_lot::Mutex;
use ringfence_messages::{Address, Code, ErrorCode, Event, Lane, Message, Result};
use rustc_hash::FxHashMap;
use tokio::{sync::oneshot, time::Instant};
use uuid::Uuid;

use crate::{
    actor::{Accepts, Actor, EventHandler, Exit, Handler},
    ask::Ask,
    current,
    dead_letter::{DeadLetter, DeadLetters},
    envelope::{Parcel, current_span},
    event::{Subscription, Topics},
    inspect::Snapshot,
    interceptor::{Interceptor, Interceptors, Letter, Verdict},
    mailbox::{AnyMailbox, LaneLimits, Mailbox},
    pump::Pump,
    registry::Registry,
    stats,
    supervise::RestartPolicy,
};

/// How long an ask waits unless told otherwise. Too low: slow work is given up while it goes on. Too high: a
/// caller hangs on a peer that will not answer.
pub const DEFAULT_DEADLINE: Duration = Duration::from_secs(30);

/// With this much or less left, an ask is over before it begins.
pub const MIN_DEADLINE: Duration = Duration::from_millis(1);

/// How long [`Bus::inspect`] waits for actors to tell of themselves.
pub const OBSERVE_TIMEOUT: Duration = Duration::from_secs(1);

/// The bus. Cheap to clone; all clones are the same bus.
#[derive(Clone)]
pub struct Bus(Arc<Inner>);

struct Inner {
    shared: Arc<Shared>,
    registry: Registry,
    topics: Topics,
    watches: Mutex<FxHashMap<Address, Vec<Arc<dyn AnyMailbox>>>>,
    /// What each type of actor accepts: one table per type, however many actors.
    tables: Mutex<FxHashMap<TypeId, Arc<dyn std::any::Any + Send + Sync>>>,
}

/// What every mailbox needs of the bus, without the registry that holds the mailboxes.
#[derive(Default)]
pub(crate) struct Shared {
    pub(crate) interceptors: Interceptors,
    pub(crate) dead_letters: DeadLetters,
    /// Measure how long handlers take.
    pub(crate) timing: bool,
}

impl Default for Bus {
    fn default() -> Self {
        Bus::new()
    }
}

impl Bus {
    /// A bus of its own.
    pub fn new() -> Bus {
        Bus::with(false)
    }

    /// A bus that measures how long handlers take; two clock reads per message.
    pub fn with_timing() -> Bus {
        Bus::with(true)
    }

    fn with(timing: bool) -> Bus {
        Bus(Arc::new(Inner {
            shared: Arc::new(Shared { timing, ..Shared::default() }),
            registry: Registry::new(),
            topics: Topics::default(),
            watches: Mutex::default(),
            tables: Mutex::default(),
        }))
    }

    /// Spawns an actor on this thread with the default limits.
    ///
    /// # Errors
    /// `SYS.1005` if one lives under its address already.
    ///
    /// # Panics
    /// Outside an actix system.
    pub fn spawn<A: Actor>(&self, id: impl Into<Uuid>, factory: impl FnMut() -> A + 'static) -> Result<ActorRef<A>> {
        self.actor(id, factory).spawn()
    }

    /// Prepares an actor. `factory` makes it, and makes it anew after a panic.
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

    /// Sends a message and returns its reply to be awaited. The message is on its way before this returns.
    /// The deadline is [`DEFAULT_DEADLINE`] from now, or the one of the message that is being handled.
    ///
    /// The reply is an error `SYS.1009` if nobody lives there, `SYS.1008` if he does not know the message,
    /// `SYS.1010` if his lane is full, `SYS.1001` at the deadline, or what the handler says.
    pub fn ask<M: Message>(&self, to: Address, message: M) -> Ask<M::Reply> {
        self.ask_within(to, message, DEFAULT_DEADLINE)
    }

    /// As [`ask`](Bus::ask) with a deadline of its own, which an inherited earlier one cuts short.
    pub fn ask_within<M: Message>(&self, to: Address, message: M, within: Duration) -> Ask<M::Reply> {
        ask(to, within, |reply, deadline| self.send(to, parcel(message, Some(reply), Some(deadline))), M::NAME)
    }

    /// Sends a message whose reply nobody wants.
    ///
    /// # Errors
    /// `SYS.1009`, `SYS.1008` or `SYS.1010` if it could not be put into a mailbox. It is then among the dead letters.
    pub fn tell<M: Message>(&self, to: Address, message: M) -> Result<()> {
        self.send(to, parcel(message, None, None))
    }

    fn send<M: Message>(&self, to: Address, mut parcel: Parcel<M>) -> Result<()> {
        if !passes(&self.0.shared, to, &mut parcel)? {
            return Ok(());
        }
        let refusal = match self.0.registry.get(&to) {
            None => ErrorCode::new(Code::NO_ROUTE, format!("no actor lives at {to}")),
            Some(mailbox) => {
                let mut slot = Some(parcel);
                match mailbox.take_in(TypeId::of::<M>(), &mut slot) {
                    Some(result) => return result,
                    None => parcel = slot.expect("not taken in"),
                }
                ErrorCode::new(Code::UNKNOWN_MESSAGE, format!("{to} has no handler for {}", M::NAME))
            }
        };
        self.0.shared.dead_letters.push(to, M::NAME, &refusal);
        drop(parcel);
        Err(refusal)
    }

    /// Publishes an event to all actors and streams that subscribed, and returns how many got it.
    ///
    /// # Errors
    /// What an interceptor vetoed it with.
    pub fn publish<E: Event>(&self, mut event: E) -> Result<usize> {
        if self.0.shared.interceptors.any() {
            self.0.shared.interceptors.before_publish(&mut event)?;
        }
        Ok(self.0.topics.publish(event))
    }

    /// A stream of the events whose topic matches a glob: `*` any text, `?` one character, `{name}` one segment.
    ///
    /// # Errors
    /// `SYS.1007` if the glob is malformed.
    pub fn subscribe(&self, glob: &str) -> Result<Subscription> {
        self.0.topics.subscribe_stream(glob)
    }

    /// Adds an interceptor behind those that are there.
    pub fn intercept(&self, interceptor: impl Interceptor + 'static) {
        self.0.shared.interceptors.add(Arc::new(interceptor));
    }

    /// The messages that no actor handled, oldest first.
    pub fn dead_letters(&self) -> Vec<DeadLetter> {
        self.0.shared.dead_letters.list()
    }

    /// Whether an actor lives there.
    pub fn is_alive(&self, address: Address) -> bool {
        self.0.registry.get(&address).is_some()
    }

    /// How many actors live on this bus.
    pub fn len(&self) -> usize {
        self.0.registry.len()
    }

    /// Whether none does.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Asks all actors to stop. What lies in their mailboxes is answered with `SYS.1012`.
    pub fn stop_all(&self) {
        self.0.registry.all().iter().for_each(|(_, mailbox)| mailbox.stop());
    }

    /// A picture of all actors, their lanes and counts. An actor that does not answer within
    /// [`OBSERVE_TIMEOUT`] shows no state.
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
        Snapshot { actors, stats: stats::snapshot(), dead_letters: self.dead_letters() }
    }

    pub(crate) fn subscribe_actor<E: Event, A: EventHandler<E>>(&self, mailbox: &Arc<Mailbox<A>>) {
        self.0.topics.subscribe_actor::<E>(mailbox.address, mailbox.clone());
    }

    pub(crate) fn watch(&self, address: Address, watcher: Arc<dyn AnyMailbox>) {
        // Under the lock, so that an actor that ends meanwhile is either seen here or tells.
        let mut watches = self.0.watches.lock();
        if self.0.registry.get(&address).is_some() {
            watches.entry(address).or_default().push(watcher);
        } else {
            drop(watches);
            watcher.terminated(address, &Exit::Missing);
        }
    }

    pub(crate) fn ended(&self, address: Address, exit: &Exit) {
        self.0.topics.forget(&address);
        let mut watches = self.0.watches.lock();
        self.0.registry.remove(&address);
        let watchers = watches.remove(&address).unwrap_or_default();
        drop(watches);
        for watcher in watchers {
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
fn parcel<M: Message>(
    message: M,
    reply: Option<oneshot::Sender<Result<M::Reply>>>,
    deadline: Option<Instant>,
) -> Parcel<M> {
    let span = current_span().map(Box::new);
    Parcel { message, lane: M::LANE, reply, deadline, span }
}

fn ask<R>(
    to: Address,
    within: Duration,
    send: impl FnOnce(oneshot::Sender<Result<R>>, Instant) -> Result<()>,
    name: &'static str,
) -> Ask<R> {
    let now = Instant::now();
    let own = now + within;
    let deadline = current::deadline().map_or(own, |inherited| inherited.min(own));
    if deadline <= now + MIN_DEADLINE {
        stats::TIMEOUTS.add();
        return Ask::refused(ErrorCode::new(Code::TIMEOUT, format!("no time is left to ask {to} for {name}")));
    }
    let (sender, receiver) = oneshot::channel();
    match send(sender, deadline) {
        Ok(()) => Ask::waiting(receiver, deadline, to, name),
        Err(error) => Ask::refused(error),
    }
}

/// Shows a message to the interceptors. False if one of them answered it.
#[inline]
fn passes<M: Message>(shared: &Shared, to: Address, parcel: &mut Parcel<M>) -> Result<bool> {
    if shared.interceptors.any() { shown(shared, to, parcel) } else { Ok(true) }
}

#[cold]
fn shown<M: Message>(shared: &Shared, to: Address, parcel: &mut Parcel<M>) -> Result<bool> {
    let Some(answer) = shared.interceptors.before_send(Letter::new(to, &mut parcel.message)) else { return Ok(true) };
    let reply = Verdict::downcast::<M>(answer?);
    if let Some(sender) = parcel.reply.take() {
        let _ = sender.send(reply);
    }
    Ok(false)
}

/// An actor that is about to be spawned.
#[must_use = "it is spawned by `spawn` or `spawn_on`"]
pub struct Spawn<'a, A: Actor, F> {
    bus: &'a Bus,
    address: Address,
    factory: F,
    lanes: LaneLimits,
    restarts: RestartPolicy,
    _actor: std::marker::PhantomData<fn() -> A>,
}

impl<A: Actor, F: FnMut() -> A + 'static> Spawn<'_, A, F> {
    /// Under another address than its kind's: how a test stands in for somebody.
    pub fn at(mut self, address: Address) -> Self {
        self.address = address;
        self
    }

    /// With these limits of its lanes.
    pub fn lanes(mut self, lanes: LaneLimits) -> Self {
        self.lanes = lanes;
        self
    }

    /// With this policy for panics.
    pub fn restarts(mut self, restarts: RestartPolicy) -> Self {
        self.restarts = restarts;
        self
    }

    fn mailbox(&self) -> Result<Arc<Mailbox<A>>> {
        let (bus, table) = (self.bus, self.bus.table::<A>());
        let mailbox = Arc::new(Mailbox::new(self.address, bus.0.shared.clone(), table, self.lanes));
        bus.0.registry.insert(self.address, mailbox.clone())?;
        Ok(mailbox)
    }

    /// Spawns it on this thread.
    ///
    /// # Errors
    /// `SYS.1005` if one lives under its address already.
    ///
    /// # Panics
    /// Outside an actix system.
    pub fn spawn(self) -> Result<ActorRef<A>> {
        let mailbox = self.mailbox()?;
        Pump::new(Box::new(self.factory), mailbox.clone(), self.bus.clone(), self.restarts).start();
        Ok(ActorRef { mailbox })
    }

    /// Spawns it on another thread, where the factory is called too.
    ///
    /// # Errors
    /// `SYS.1005` if one lives under its address already, `SYS.1012` if that thread has ended.
    pub fn spawn_on(self, arbiter: &ArbiterHandle) -> Result<ActorRef<A>>
    where
        F: Send,
    {
        let (mailbox, bus) = (self.mailbox()?, self.bus.clone());
        let (there, factory, restarts, address) = (mailbox.clone(), self.factory, self.restarts, self.address);
        let accepted = arbiter.spawn_fn(move || {
            Pump::new(Box::new(factory), there, bus, restarts).start();
        });
        if !accepted {
            self.bus.ended(address, &Exit::Missing);
            return Err(ErrorCode::new(
                Code::NODE_UNAVAILABLE,
                format!("the thread that {address} was to live on has ended"),
            ));
        }
        Ok(ActorRef { mailbox })
    }
}

/// The typed reference to one actor: the shortest way to it.
pub struct ActorRef<A: Actor> {
    mailbox: Arc<Mailbox<A>>,
}

impl<A: Actor> Clone for ActorRef<A> {
    fn clone(&self) -> Self {
        ActorRef { mailbox: self.mailbox.clone() }
    }
}

impl<A: Actor> ActorRef<A> {
    /// Its address.
    pub fn address(&self) -> Address {
        self.mailbox.address
    }

    /// As [`Bus::ask`].
    pub fn ask<M: Message>(&self, message: M) -> Ask<M::Reply>
    where
        A: Handler<M>,
    {
        self.ask_within(message, DEFAULT_DEADLINE)
    }

    /// As [`Bus::ask_within`].
    pub fn ask_within<M: Message>(&self, message: M, within: Duration) -> Ask<M::Reply>
    where
        A: Handler<M>,
    {
        ask(self.address(), within, |reply, deadline| self.send(parcel(message, Some(reply), Some(deadline))), M::NAME)
    }

    /// As [`Bus::tell`].
    ///
    /// # Errors
    /// As [`Bus::tell`]'s; `SYS.1012` if the actor ended.
    pub fn tell<M: Message>(&self, message: M) -> Result<()>
    where
        A: Handler<M>,
    {
        self.send(parcel(message, None, None))
    }

    /// As [`tell`](ActorRef::tell), in another lane than the message's own.
    ///
    /// # Errors
    /// As [`tell`](ActorRef::tell)'s.
    pub fn tell_in<M: Message>(&self, lane: Lane, message: M) -> Result<()>
    where
        A: Handler<M>,
    {
        self.send(Parcel { lane, ..parcel(message, None, None) })
    }

    /// Asks it to stop after what it is handling now. What lies in its mailbox is answered with `SYS.1012`.
    pub fn stop(&self) {
        self.mailbox.stop();
    }

    #[inline]
    fn send<M: Message>(&self, mut parcel: Parcel<M>) -> Result<()>
    where
        A: Handler<M>,
    {
        match passes(&self.mailbox.shared, self.address(), &mut parcel)? {
            true => self.mailbox.push(parcel.lane, Box::new(parcel)),
            false => Ok(()),
        }
    }
}
