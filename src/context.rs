//! The context of a handler: promises, timers, background tasks, watches, stop.
//!
//! Invariants: a task or timer belongs to one incarnation of its actor and ends with it; a reply beside the mailbox
//! does not touch the actor and ends with the last incarnation; a finished task leaves nothing; a missed tick of an
//! interval is skipped.
//! Alternatives considered: tasks as futures inside actix's context. It polls all of them whenever one is woken.

use std::{
    any::TypeId,
    cell::RefCell,
    collections::BTreeMap,
    future::Future,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use parking_lot::Mutex;
use ringfence_messages::{Address, Code, ErrorCode, Event, Message};
use tokio::{
    task::AbortHandle,
    time::{Instant, MissedTickBehavior},
};
use tracing::Instrument;

use crate::{
    actor::{Actor, EventHandler},
    answer::{AsyncReply, Promise, Promised, Reply},
    bus::Bus,
    current::{self, Scope, Scoped},
    envelope::TaskResult,
    mailbox::Mailbox,
    request::current_span,
    stats::LocalCounts,
};

/// The bus as an actor sees it while it handles a message, an event or a task result.
pub struct Ctx<'a, A: Actor> {
    pub(crate) mailbox: &'a Arc<Mailbox<A>>,
    pub(crate) deadline: Option<Instant>,
    bus: &'a Bus,
    tasks: &'a mut Tasks,
    pub(crate) counts: &'a LocalCounts,
    pub(crate) stop: bool,
    pub(crate) exclusive: bool,
}

/// How long a task may run.
#[derive(Clone, Copy, PartialEq)]
enum Life {
    /// Until the actor is rebuilt or ends: its result touches the actor.
    Incarnation,
    /// Until the actor ends.
    Actor,
}

/// The running tasks of an actor. Allocates nothing before the first one.
#[derive(Default)]
pub(crate) struct Tasks(Option<Rc<RefCell<Running>>>);

/// By number, so that every run aborts in the same sequence.
#[derive(Default)]
struct Running {
    next: u64,
    tasks: BTreeMap<u64, (AbortHandle, Life)>,
}

impl Tasks {
    fn spawn(&mut self, life: Life, work: impl Future<Output = ()> + 'static) -> AbortHandle {
        let running = self.0.get_or_insert_default();
        let number = running.borrow().next;
        let entry = Entry { running: running.clone(), number };
        let task = tokio::task::spawn_local(async move {
            let _entry = entry;
            work.await;
        });
        let mut running = running.borrow_mut();
        running.next += 1;
        running.tasks.insert(number, (task.abort_handle(), life));
        task.abort_handle()
    }

    /// Aborts the tasks of an incarnation.
    pub(crate) fn abort_incarnation(&mut self) {
        self.abort(|life| life == Life::Incarnation);
    }

    /// Aborts all tasks.
    pub(crate) fn abort_all(&mut self) {
        self.abort(|_| true);
    }

    fn abort(&mut self, which: impl Fn(Life) -> bool) {
        let Some(running) = &self.0 else { return };
        let tasks = std::mem::take(&mut running.borrow_mut().tasks);
        let (ended, kept): (BTreeMap<_, _>, _) = tasks.into_iter().partition(|(_, (_, life))| which(*life));
        running.borrow_mut().tasks = kept;
        ended.values().for_each(|(task, _)| task.abort());
    }
}

/// Removes a task that ended or was aborted.
struct Entry {
    running: Rc<RefCell<Running>>,
    number: u64,
}

impl Drop for Entry {
    fn drop(&mut self) {
        let mut running = self.running.borrow_mut();
        running.tasks.remove(&self.number);
        if running.tasks.is_empty() {
            // An emptied map keeps its last node.
            running.tasks = BTreeMap::new();
        }
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
    pub(crate) fn new(
        mailbox: &'a Arc<Mailbox<A>>,
        bus: &'a Bus,
        tasks: &'a mut Tasks,
        counts: &'a LocalCounts,
    ) -> Ctx<'a, A> {
        Ctx { mailbox, deadline: None, bus, tasks, counts, stop: false, exclusive: false }
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

    /// Subscribes to the events `E` from now on, until the actor ends. In [`started`](Actor::started) also to those
    /// that were published since the actor was spawned.
    pub fn subscribe<E: Event>(&mut self)
    where
        A: EventHandler<E>,
    {
        self.bus.subscribe_actor(TypeId::of::<E>(), self.mailbox.clone(), self.address());
    }

    /// Requests a call of [`Actor::terminated`] when the actor of this address ends; at once if there is none. A second
    /// watch of the same actor changes nothing. A watch outlives a rebuild of this actor.
    pub fn watch(&mut self, address: Address) {
        self.bus.watch(address, self.address(), self.mailbox.clone());
    }

    /// Ends the [watch](Ctx::watch) of an actor.
    pub fn unwatch(&mut self, address: Address) {
        self.bus.unwatch(address, self.address());
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
        let mut interval = tokio::time::interval_at(current::after(Instant::now(), period), period);
        interval.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let abort = self.tasks.spawn(Life::Incarnation, async move {
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
        TaskHandle { abort, cancelled }
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
        let future = Scoped::new(deadline, future);
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
                Err(panicked) => TaskResult::Panicked(panicked),
            });
        };
        TaskHandle { abort: self.tasks.spawn(Life::Incarnation, work), cancelled }
    }

    pub(crate) fn run_async<R: 'static>(
        &mut self,
        later: AsyncReply<R>,
        reply: Reply<R>,
        name: &'static str,
        span: tracing::Span,
    ) {
        let mailbox = later.exclusive.then(|| self.mailbox.clone());
        let life = if later.exclusive { Life::Incarnation } else { Life::Actor };
        self.exclusive |= later.exclusive;
        let future = Scoped::new(self.deadline, later.future);
        // Sends an error when the task is aborted: the guard is dropped with the task.
        let mut pending = PendingReply(Some(reply));
        let work = async move {
            let result = match future.await {
                Ok(result) => result,
                Err(panicked) => Err(panicked.error(name)),
            };
            if let Some(reply) = pending.0.take() {
                reply.send(result);
            }
            if let Some(mailbox) = mailbox {
                mailbox.push_result(TaskResult::Resume);
            }
        };
        self.tasks.spawn(life, work.instrument(span));
    }
}

/// A reply of a task that may be aborted.
struct PendingReply<R>(Option<Reply<R>>);

impl<R> Drop for PendingReply<R> {
    fn drop(&mut self) {
        if let Some(reply) = self.0.take() {
            let details = "the receiver stopped or was rebuilt before it answered";
            reply.send(Err(ErrorCode::new(Code::CANCELLED, details)));
        }
    }
}
