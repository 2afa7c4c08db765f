//! The context of a handler: promises, timers, background tasks, watches, stop.
//!
//! Invariants: a task or timer belongs to one incarnation of its actor and ends with it; the actor handles its result
//! before further messages; a missed tick of an interval is skipped.
//! Alternatives considered: tasks as futures inside actix's context. It polls all of them whenever one is woken.

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
    answer::{AsyncReply, Promise, Promised, Reply},
    bus::Bus,
    current::{Scope, Scoped},
    envelope::{Panicked, TaskResult, current_span},
    mailbox::Mailbox,
};

/// The bus as an actor sees it while it handles a message, an event or a task result.
pub struct Ctx<'a, A: Actor> {
    pub(crate) mailbox: &'a Arc<Mailbox<A>>,
    pub(crate) deadline: Option<Instant>,
    bus: &'a Bus,
    tasks: &'a mut Tasks,
    /// The actor was idle when the message arrived, so the message did not wait.
    pub(crate) fresh: bool,
    pub(crate) stop: bool,
    pub(crate) exclusive: bool,
}

/// The tasks of one incarnation of an actor, which are aborted at its end.
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

/// A task or timer of an actor. Dropping the handle does not cancel it.
#[derive(Debug)]
pub struct TaskHandle {
    abort: AbortHandle,
    cancelled: Arc<AtomicBool>,
}

impl TaskHandle {
    /// Cancels the task or timer. Its callback does not run any more, even if it is due.
    pub fn cancel(&self) {
        self.cancelled.store(true, Relaxed);
        self.abort.abort();
    }
}

impl<'a, A: Actor> Ctx<'a, A> {
    pub(crate) fn new(mailbox: &'a Arc<Mailbox<A>>, bus: &'a Bus, tasks: &'a mut Tasks) -> Ctx<'a, A> {
        Ctx { mailbox, deadline: None, bus, tasks, fresh: false, stop: false, exclusive: false }
    }

    /// The bus of this actor.
    pub fn bus(&self) -> &Bus {
        self.bus
    }

    /// The address of this actor.
    pub fn address(&self) -> Address {
        self.mailbox.address
    }

    /// Deadline of the message in progress; requests of its handler inherit it. `None` for a message without reply, an
    /// event or a timer.
    pub fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// Defers the answer to the message in progress: keep the [`Promise`] and return the [`Promised`].
    pub fn promise<M: Message>(&self) -> (Promise<M::Reply>, Promised<M>) {
        crate::answer::promise()
    }

    /// Subscribes to the events `E` from now on, until the actor ends.
    pub fn subscribe<E: Event>(&mut self)
    where
        A: EventHandler<E>,
    {
        self.bus.subscribe_actor::<E, A>(self.mailbox);
    }

    /// Requests a call of [`Actor::terminated`] when the actor of this address ends; at once if there is none.
    pub fn watch(&mut self, address: Address) {
        self.bus.watch(address, self.mailbox.clone());
    }

    /// Stops this actor after the message in progress.
    pub fn stop(&mut self) {
        self.stop = true;
    }

    /// Runs a future beside the mailbox and calls `then` with its output. Both inherit deadline and span of the message
    /// in progress. A panic in the future counts as a panic of the actor.
    pub fn spawn<T: Send + 'static>(
        &mut self,
        future: impl Future<Output = T> + 'static,
        then: impl FnOnce(&mut A, T, &mut Ctx<'_, A>) + Send + 'static,
    ) -> TaskHandle {
        self.run(self.deadline, current_span(), future.in_current_span(), then)
    }

    /// [`spawn`](Ctx::spawn) without a deadline, for work that continues after the answer. `then` runs in no span: a
    /// chain of callbacks would otherwise stay in the first span for ever.
    pub fn spawn_detached<T: Send + 'static>(
        &mut self,
        future: impl Future<Output = T> + 'static,
        then: impl FnOnce(&mut A, T, &mut Ctx<'_, A>) + Send + 'static,
    ) -> TaskHandle {
        self.run(None, None, future.in_current_span(), then)
    }

    /// Calls `then` once, after `delay`.
    pub fn after(
        &mut self,
        delay: Duration,
        then: impl FnOnce(&mut A, &mut Ctx<'_, A>) + Send + 'static,
    ) -> TaskHandle {
        self.run(None, None, tokio::time::sleep(delay), |actor, (), ctx| then(actor, ctx))
    }

    /// Calls `tick` periodically, first after one period. A tick is skipped if it is late, or if the previous one still
    /// waits in the mailbox.
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
                mailbox.push_result(TaskResult::Then(Box::new(move |actor, ctx| {
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
            mailbox.push_result(match future.await {
                Ok(output) => TaskResult::Then(Box::new(move |actor, ctx| {
                    if !ended.load(Relaxed) {
                        ctx.deadline = deadline;
                        let _scope = Scope::enter(deadline);
                        let _span = span.as_ref().map(tracing::Span::enter);
                        then(actor, output, ctx);
                    }
                })),
                Err(panic) => TaskResult::Panicked(Panicked::of(panic)),
            });
        };
        let task = tokio::task::spawn_local(work);
        self.tasks.add(task.abort_handle());
        TaskHandle { abort: task.abort_handle(), cancelled }
    }

    pub(crate) fn run_async<R: 'static>(
        &mut self,
        later: AsyncReply<R>,
        reply: Reply<R>,
        name: &'static str,
        span: tracing::Span,
    ) {
        let mailbox = later.exclusive.then(|| self.mailbox.clone());
        self.exclusive |= later.exclusive;
        let future = AssertUnwindSafe(Scoped::new(self.deadline, later.future)).catch_unwind();
        // Sends an error when the task is aborted: the guard is dropped with the task.
        let mut pending = PendingReply(Some(reply));
        let work = async move {
            let result = match future.await {
                Ok(result) => result,
                Err(panic) => Err(Panicked::of(panic).error(name)),
            };
            if let Some(reply) = pending.0.take() {
                reply.send(result);
            }
            if let Some(mailbox) = mailbox {
                mailbox.push_result(TaskResult::Resume);
            }
        };
        self.tasks.add(tokio::task::spawn_local(work.instrument(span)).abort_handle());
    }
}

/// A reply of a task that may be aborted.
struct PendingReply<R>(Option<Reply<R>>);

impl<R> Drop for PendingReply<R> {
    fn drop(&mut self) {
        if let Some(reply) = self.0.take() {
            let details = "the receiver stopped or was rebuilt before it answered";
            reply.send(Err(ringfence_messages::ErrorCode::new(ringfence_messages::Code::CANCELLED, details)));
        }
    }
}
