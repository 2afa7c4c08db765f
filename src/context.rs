//! What a handler may do beside returning an answer: promise, wait, work in the background, watch, stop.
//!
//! Invariants: a task or timer belongs to one incarnation of its actor and ends with it; what it brings back is
//! handled by the actor itself, before further messages; an interval that was missed is skipped, never caught up.
//! Rejected: running tasks as futures inside actix's context. It polls all of them whenever one is woken.

use std::{
    future::Future,
    panic::AssertUnwindSafe,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use futures_util::FutureExt;
use parking_lot::Mutex;
use ringfence_messages::{Address, Event, Message};
use tokio::{
    task::AbortHandle,
    time::{Instant, MissedTickBehavior},
};
use tracing::Instrument;

use crate::{
    actor::{Actor, EventHandler},
    answer::{Later, Promise, Promised, Reply},
    bus::Bus,
    current::{Scope, Scoped},
    envelope::{Panicked, Return, current_span},
    mailbox::Mailbox,
};

/// The actor's side of the bus while it handles something.
pub struct Ctx<'a, A: Actor> {
    pub(crate) mailbox: &'a Arc<Mailbox<A>>,
    pub(crate) deadline: Option<Instant>,
    bus: &'a Bus,
    tasks: &'a mut Tasks,
    /// The actor waited for what it is handling now, not the other way round.
    pub(crate) fresh: bool,
    pub(crate) stop: bool,
    pub(crate) exclusive: bool,
}

/// The tasks of one incarnation of an actor, so that they can be ended with it.
#[derive(Default)]
pub(crate) struct Tasks {
    running: Vec<AbortHandle>,
    prune_at: usize,
}

impl Tasks {
    fn add(&mut self, task: AbortHandle) {
        if self.running.len() >= self.prune_at.max(32) {
            self.running.retain(|task| !task.is_finished());
            self.prune_at = 2 * self.running.len();
        }
        self.running.push(task);
    }

    pub(crate) fn abort(&mut self) {
        self.running.drain(..).for_each(|task| task.abort());
    }
}

/// A task or timer of an actor. Dropping the handle lets it run on.
#[derive(Debug)]
pub struct TaskHandle {
    abort: AbortHandle,
    cancelled: Arc<AtomicBool>,
}

impl TaskHandle {
    /// Ends the task or timer. What it would have done with the actor is not done any more, even if it is due.
    pub fn cancel(&self) {
        self.cancelled.store(true, Relaxed);
        self.abort.abort();
    }
}

impl<'a, A: Actor> Ctx<'a, A> {
    pub(crate) fn new(mailbox: &'a Arc<Mailbox<A>>, bus: &'a Bus, tasks: &'a mut Tasks) -> Ctx<'a, A> {
        Ctx { mailbox, deadline: None, bus, tasks, fresh: false, stop: false, exclusive: false }
    }

    /// The bus.
    pub fn bus(&self) -> &Bus {
        self.bus
    }

    /// This actor's address.
    pub fn address(&self) -> Address {
        self.mailbox.address
    }

    /// By when the message that is being handled must be answered; asks made meanwhile inherit it by
    /// themselves. `None` for a message that was told, an event or a timer.
    pub fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// Answers the message that is being handled at another time: keep the promise and return the other half.
    pub fn promise<M: Message>(&self) -> (Promise<M::Reply>, Promised<M>) {
        crate::answer::promise()
    }

    /// Hears all events `E` that are published from now on, until the actor ends.
    pub fn subscribe<E: Event>(&mut self)
    where
        A: EventHandler<E>,
    {
        self.bus.subscribe_actor::<E, A>(self.mailbox);
    }

    /// Has [`Actor::terminated`] called when the actor of this address ends; at once if there is none.
    pub fn watch(&mut self, address: Address) {
        self.bus.watch(address, self.mailbox.clone());
    }

    /// Handles no further message and ends.
    pub fn stop(&mut self) {
        self.stop = true;
    }

    /// Runs a future beside the mailbox, under the deadline of what is being handled, then calls back with its
    /// output, still under it and in the span of what is being handled. A panic in it counts as a panic of the actor.
    pub fn spawn<T: Send + 'static>(
        &mut self,
        future: impl Future<Output = T> + 'static,
        then: impl FnOnce(&mut A, T, &mut Ctx<'_, A>) + Send + 'static,
    ) -> TaskHandle {
        self.run(self.deadline, current_span(), future.in_current_span(), then)
    }

    /// The same without a deadline: for work that goes on after what is being handled was answered. What is called back
    /// is in no span either: an actor that goes on from there all its life would never leave it.
    pub fn spawn_detached<T: Send + 'static>(
        &mut self,
        future: impl Future<Output = T> + 'static,
        then: impl FnOnce(&mut A, T, &mut Ctx<'_, A>) + Send + 'static,
    ) -> TaskHandle {
        self.run(None, None, future.in_current_span(), then)
    }

    /// Calls back once, after this long.
    pub fn after(
        &mut self,
        delay: Duration,
        then: impl FnOnce(&mut A, &mut Ctx<'_, A>) + Send + 'static,
    ) -> TaskHandle {
        self.run(None, None, tokio::time::sleep(delay), |actor, (), ctx| then(actor, ctx))
    }

    /// Calls back again and again, first after one period. A tick that finds the one before it still waiting
    /// in the mailbox, or comes late, is skipped.
    ///
    /// # Panics
    /// If the period is zero.
    pub fn every(
        &mut self,
        period: Duration,
        tick: impl FnMut(&mut A, &mut Ctx<'_, A>) + Send + 'static,
    ) -> TaskHandle {
        let (mailbox, cancelled) = (self.mailbox.clone(), Arc::new(AtomicBool::new(false)));
        let (tick, waiting, ended) = (Arc::new(Mutex::new(tick)), Arc::new(AtomicBool::new(false)), cancelled.clone());
        let mut interval = tokio::time::interval_at(Instant::now() + period, period);
        interval.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let task = tokio::task::spawn_local(async move {
            loop {
                interval.tick().await;
                if waiting.swap(true, Relaxed) {
                    continue;
                }
                let (tick, waiting, ended) = (tick.clone(), waiting.clone(), ended.clone());
                mailbox.bring_back(Return::Then(Box::new(move |actor, ctx| {
                    waiting.store(false, Relaxed);
                    if !ended.load(Relaxed) {
                        (tick.lock())(actor, ctx);
                    }
                })));
            }
        });
        self.tasks.add(task.abort_handle());
        TaskHandle { abort: task.abort_handle(), cancelled }
    }

    fn run<T: Send + 'static>(
        &mut self,
        deadline: Option<Instant>,
        span: Option<tracing::Span>,
        future: impl Future<Output = T> + 'static,
        then: impl FnOnce(&mut A, T, &mut Ctx<'_, A>) + Send + 'static,
    ) -> TaskHandle {
        let (mailbox, cancelled) = (self.mailbox.clone(), Arc::new(AtomicBool::new(false)));
        let ended = cancelled.clone();
        let future = AssertUnwindSafe(Scoped::new(deadline, future)).catch_unwind();
        let work = async move {
            mailbox.bring_back(match future.await {
                Ok(output) => Return::Then(Box::new(move |actor, ctx| {
                    if !ended.load(Relaxed) {
                        ctx.deadline = deadline;
                        let _scope = Scope::enter(deadline);
                        let _span = span.as_ref().map(tracing::Span::enter);
                        then(actor, output, ctx);
                    }
                })),
                Err(panic) => Return::Panicked(Panicked::of(panic)),
            });
        };
        let task = tokio::task::spawn_local(work);
        self.tasks.add(task.abort_handle());
        TaskHandle { abort: task.abort_handle(), cancelled }
    }

    pub(crate) fn run_later<R: 'static>(
        &mut self,
        later: Later<R>,
        reply: Reply<R>,
        name: &'static str,
        span: tracing::Span,
    ) {
        let mailbox = later.exclusive.then(|| self.mailbox.clone());
        self.exclusive |= later.exclusive;
        let future = AssertUnwindSafe(Scoped::new(self.deadline, later.future)).catch_unwind();
        // Answers when the task is aborted: the guard is dropped with it.
        let mut owed = Owed(Some(reply));
        let work = async move {
            let result = match future.await {
                Ok(result) => result,
                Err(panic) => Err(Panicked::of(panic).error(name)),
            };
            if let Some(reply) = owed.0.take() {
                reply.send(result);
            }
            if let Some(mailbox) = mailbox {
                mailbox.bring_back(Return::Resume);
            }
        };
        self.tasks.add(tokio::task::spawn_local(work.instrument(span)).abort_handle());
    }
}

/// A reply that is owed by a task which may be aborted.
struct Owed<R>(Option<Reply<R>>);

impl<R> Drop for Owed<R> {
    fn drop(&mut self) {
        if let Some(reply) = self.0.take() {
            let details = "the receiver ended or was rebuilt before it answered";
            reply.send(Err(ringfence_messages::ErrorCode::new(ringfence_messages::Code::CANCELLED, details)));
        }
    }
}
