//! The mailbox loop: the local task that takes messages from a mailbox and calls the handlers of its actor.
//!
//! ```text
//!            panic, restart allowed            backoff over
//! Running ---------------------------> Backoff ------------> Running (a new value of the factory)
//!    | stop, or panic too often   stop  |
//!    +---> Ended: mailbox closed, <-----+ watchers notified, address free
//! ```
//!
//! Invariants: timers and other actors get their turn after [`TURN`] and at most [`UNTIMED`] + [`SLICE`] more messages;
//! queued messages survive a panic; no task of a dead incarnation reaches its successor; `Ended` happens exactly once,
//! whatever foreign code does; a stop goes before a restart and before every item.
//! Alternatives considered: actix's `Supervisor`. It does not survive a panic and restarts without limit
//! (docs/adr/0001). An actix actor around the loop: its context polls a second, empty mailbox with each message.

use std::{
    future::Future,
    pin::Pin,
    rc::Rc,
    sync::{Arc, atomic::Ordering::Relaxed},
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    sync::oneshot,
    time::{Instant, Sleep},
};

use crate::{
    actor::Actor,
    bus::Bus,
    context::{Ctx, Tasks},
    envelope::TaskResult,
    exit::Exit,
    mailbox::{Item, Mailbox},
    panicked::{Panicked, discard},
    stats::LocalCounts,
    supervise::{RestartPolicy, Restarts},
};

/// Messages between two reads of the clock. Too low: the read costs as much as the message. Too high: a busy actor
/// delays every timer of its thread by that many messages.
pub const SLICE: usize = 6;

/// Messages before the first read of the clock: an actor with no more than these, the usual case, needs no read. Too
/// low: most turns read the clock. Too high: as for [`SLICE`].
pub const UNTIMED: usize = 2;

/// Time of messages before the runtime gets a turn, rounded up to a multiple of [`SLICE`] messages. Too low: the
/// runtime's turn (a system call) costs more than the messages. Too high: timers and other actors wait that long.
pub const TURN: Duration = Duration::from_millis(1);

/// Messages before the runtime gets a turn, however fast they are. Too low and too high: as for [`TURN`].
pub const MAX_TURN: usize = 256;

pub(crate) struct MailboxLoop<A: Actor> {
    actor: Option<A>,
    factory: Option<Box<dyn FnMut() -> A>>,
    mailbox: Arc<Mailbox<A>>,
    bus: Bus,
    counts: Rc<LocalCounts>,
    tasks: Tasks,
    policy: RestartPolicy,
    restarts: Restarts,
    backoff: Option<Pin<Box<Sleep>>>,
    exclusive: bool,
    ended: bool,
}

impl<A: Actor> MailboxLoop<A> {
    /// Starts the loop on this thread. The actor is created in the loop's first turn.
    ///
    /// # Panics
    /// Outside a local task set, such as that of an actix system; the mailbox is then closed.
    pub(crate) fn start(factory: Box<dyn FnMut() -> A>, mailbox: Arc<Mailbox<A>>, bus: Bus, policy: RestartPolicy) {
        let counts = LocalCounts::of(&mailbox.shared.counts);
        tokio::task::spawn_local(MailboxLoop {
            actor: None,
            factory: Some(factory),
            mailbox,
            bus,
            counts,
            tasks: Tasks::default(),
            policy,
            restarts: Restarts::default(),
            backoff: None,
            exclusive: false,
            ended: false,
        });
    }

    /// Creates and starts the actor. False if the mailbox loop ended.
    fn build(&mut self) -> bool {
        let factory = self.factory.as_mut().expect("the loop has not ended");
        let mut stop = false;
        let made = Panicked::caught(factory).and_then(|actor| {
            let actor = self.actor.insert(actor);
            let mut ctx = Ctx::new(&self.mailbox, &self.bus, &mut self.tasks, &self.counts);
            let started = Panicked::caught(|| actor.started(&mut ctx));
            stop = ctx.stop;
            started
        });
        if made.is_ok() {
            self.bus.started(self.mailbox.address, self.mailbox.events());
        }
        self.after_item(made, stop)
    }

    /// Acts on the outcome of foreign code and on a request of the actor to stop. False if the mailbox loop ended.
    fn after_item(&mut self, outcome: Result<(), Panicked>, stop: bool) -> bool {
        match outcome {
            Ok(()) if !stop => true,
            Err(panicked) if !stop => self.panicked(panicked),
            outcome => {
                if let Err(panicked) = outcome {
                    tracing::error!(actor = %self.mailbox.address, panic = panicked.0, "actor panicked after its stop");
                }
                self.end(Exit::Stopped);
                false
            }
        }
    }

    /// Drops the incarnation and schedules the next one. False if no restart is left.
    fn panicked(&mut self, panicked: Panicked) -> bool {
        let address = self.mailbox.address;
        self.tasks.abort_incarnation();
        self.mailbox.clear_results();
        self.exclusive = false;
        discard(self.actor.take());
        match self.restarts.after_panic(&self.policy, Instant::now()) {
            Some(wait) => {
                tracing::error!(actor = %address, panic = panicked.0, ?wait, "actor panicked and will be rebuilt");
                self.mailbox.restarts.fetch_add(1, Relaxed);
                self.backoff = Some(Box::pin(tokio::time::sleep(wait)));
                true
            }
            None => {
                tracing::error!(actor = %address, panic = panicked.0, "actor panicked too often and was stopped");
                self.mailbox.shared.counts.escalations.add();
                self.end(Exit::Escalated(panicked.0));
                false
            }
        }
    }

    fn end(&mut self, exit: Exit) {
        if std::mem::replace(&mut self.ended, true) {
            return;
        }
        let farewell = Farewell { bus: &self.bus, mailbox: &self.mailbox, exit: &exit };
        self.tasks.abort_all();
        if let Some(mut actor) = self.actor.take() {
            if let Err(panicked) = Panicked::caught(|| actor.stopped()) {
                let address = self.mailbox.address;
                tracing::error!(actor = %address, panic = panicked.0, "actor panicked while it stopped");
            }
            discard(actor);
        }
        discard(self.factory.take());
        drop(farewell);
    }

    /// Handles up to `count` items. `Ok(true)` if there may be more, `Err` if the actor ended.
    fn slice(&mut self, count: usize, cx: &mut Context<'_>) -> Result<bool, ()> {
        for _ in 0..count {
            let Some(actor) = self.actor.as_mut() else { return Ok(true) };
            let mut ctx = Ctx::new(&self.mailbox, &self.bus, &mut self.tasks, &self.counts);
            let (item, last) = self.mailbox.pop(cx.waker(), self.exclusive);
            let outcome = match item {
                Item::Idle => return Ok(false),
                Item::Message(envelope) => envelope.deliver(actor, &mut ctx),
                Item::TaskResult(TaskResult::Then(then)) => Panicked::caught(|| then(actor, &mut ctx)),
                Item::TaskResult(TaskResult::Terminated(who, why)) => {
                    Panicked::caught(|| actor.terminated(who, &why, &mut ctx))
                }
                Item::TaskResult(TaskResult::Resume) => {
                    self.exclusive = false;
                    Ok(())
                }
                Item::TaskResult(TaskResult::Panicked(panicked)) => Err(panicked),
                Item::TaskResult(TaskResult::Observe(waiting)) => {
                    observe(actor, &self.mailbox, waiting);
                    Ok(())
                }
                Item::Stop => {
                    ctx.stop = true;
                    Ok(())
                }
            };
            let stop = ctx.stop;
            self.exclusive |= ctx.exclusive;
            let is_ok = outcome.is_ok();
            if !self.after_item(outcome, stop) {
                return Err(());
            }
            if !is_ok || last {
                return Ok(!is_ok);
            }
        }
        Ok(true)
    }

    /// Handles messages until [`TURN`] or [`MAX_TURN`] is over. Returns the same as [`slice`](MailboxLoop::slice).
    fn turn(&mut self, cx: &mut Context<'_>) -> Result<bool, ()> {
        if !self.slice(UNTIMED, cx)? {
            return Ok(false);
        }
        let until = Instant::now() + TURN;
        for _ in 0..MAX_TURN / SLICE {
            if !self.slice(SLICE, cx)? {
                return Ok(false);
            }
            if self.actor.is_none() || Instant::now() >= until {
                break;
            }
        }
        Ok(true)
    }

    fn run(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while self.actor.is_none() {
            if self.mailbox.is_stopping(cx.waker()) {
                self.end(Exit::Stopped);
                return Poll::Ready(());
            }
            if let Some(sleep) = &mut self.backoff {
                if sleep.as_mut().poll(cx).is_pending() {
                    return Poll::Pending;
                }
                self.backoff = None;
            }
            if !self.build() {
                return Poll::Ready(());
            }
        }
        match self.turn(cx) {
            Err(()) => Poll::Ready(()),
            Ok(false) => Poll::Pending,
            Ok(true) => {
                // Woken again only after the runtime has checked its timers. After a plain wake the runtime would poll
                // this task up to 61 times before that.
                let _ = std::pin::pin!(tokio::task::yield_now()).poll(cx);
                Poll::Pending
            }
        }
    }
}

/// Answers snapshots. A panic does not touch the actor, which is only read.
fn observe<A: Actor>(actor: &A, mailbox: &Mailbox<A>, waiting: Vec<oneshot::Sender<serde_json::Value>>) {
    let state = Panicked::caught(|| actor.observe()).unwrap_or_else(|panicked| {
        tracing::error!(actor = %mailbox.address, panic = panicked.0, "actor panicked while it was observed");
        serde_json::Value::Null
    });
    for sender in waiting {
        let _ = sender.send(state.clone());
    }
}

/// Fails the queued messages and frees the address when dropped, so that no panic can leave a zombie.
pub(crate) struct Farewell<'a, A: Actor> {
    pub(crate) bus: &'a Bus,
    pub(crate) mailbox: &'a Mailbox<A>,
    pub(crate) exit: &'a Exit,
}

impl<A: Actor> Drop for Farewell<'_, A> {
    fn drop(&mut self) {
        self.mailbox.close(self.exit);
        self.bus.ended(self.mailbox.address, self.mailbox.events(), self.exit);
    }
}

impl<A: Actor> Future for MailboxLoop<A> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.get_mut();
        // What contains foreign code inside does not contain a log subscriber that panics.
        let panicked = match Panicked::caught(|| this.run(cx)) {
            Ok(poll) => return poll,
            Err(panicked) => panicked,
        };
        if this.ended || !this.panicked(panicked) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

impl<A: Actor> Drop for MailboxLoop<A> {
    /// The runtime stopped: fails the queued messages, so that no sender waits.
    fn drop(&mut self) {
        self.end(Exit::Stopped);
    }
}

/// The mailbox loop pins nothing: the actor is plain data to it.
impl<A: Actor> Unpin for MailboxLoop<A> {}
