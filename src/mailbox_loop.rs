//! The mailbox loop: the actix actor that takes messages from a mailbox and calls the handlers of the bus's actor.
//!
//! ```text
//!            panic, restart allowed            backoff over
//! Running ---------------------------> Backoff ------------> Running (a new value of the factory)
//!    | stop, or panic too often
//!    +---> Ended: mailbox closed, watchers notified, address free
//! ```
//!
//! Invariants: timers and other actors get their turn after [`TURN`] and at most [`UNTIMED`] + [`SLICE`] more messages;
//! queued messages survive a panic; no task of a dead incarnation reaches its successor; `Ended` happens exactly once.
//! Alternatives considered: actix's `Supervisor`. It does not survive a panic and restarts without limit
//! (docs/adr/0001).

use std::{
    future::Future,
    pin::Pin,
    sync::{Arc, atomic::Ordering::Relaxed},
    task::{Context, Poll},
    time::Duration,
};

use actix::{ActorContext, ActorFuture, AsyncContext};
use tokio::time::{Instant, Sleep};

use crate::{
    actor::{Actor, Exit},
    bus::Bus,
    context::{Ctx, Tasks},
    envelope::{Panicked, TaskResult},
    mailbox::{Item, Mailbox},
    stats,
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
    factory: Box<dyn FnMut() -> A>,
    mailbox: Arc<Mailbox<A>>,
    bus: Bus,
    tasks: Tasks,
    policy: RestartPolicy,
    restarts: Restarts,
    backoff: Option<Pin<Box<Sleep>>>,
    exclusive: bool,
    /// The mailbox was empty at the last read.
    idle: bool,
    ended: bool,
}

impl<A: Actor> MailboxLoop<A> {
    pub(crate) fn new(
        factory: Box<dyn FnMut() -> A>,
        mailbox: Arc<Mailbox<A>>,
        bus: Bus,
        policy: RestartPolicy,
    ) -> Self {
        MailboxLoop {
            actor: None,
            factory,
            mailbox,
            bus,
            tasks: Tasks::default(),
            policy,
            restarts: Restarts::default(),
            backoff: None,
            exclusive: false,
            idle: false,
            ended: false,
        }
    }

    /// Creates and starts the actor. False if the mailbox loop ended.
    fn build(&mut self) -> bool {
        let made = Panicked::caught(|| (self.factory)()).and_then(|actor| {
            let actor = self.actor.insert(actor);
            let mut ctx = Ctx::new(&self.mailbox, &self.bus, &mut self.tasks);
            Panicked::caught(|| actor.started(&mut ctx))?;
            Ok(ctx.stop)
        });
        match made {
            Ok(false) => true,
            Ok(true) => {
                self.end(Exit::Stopped);
                false
            }
            Err(panicked) => self.panicked(panicked),
        }
    }

    /// Drops the incarnation and schedules the next one. False if no restart is left.
    fn panicked(&mut self, panicked: Panicked) -> bool {
        let address = self.mailbox.address;
        self.tasks.abort();
        self.mailbox.clear_results();
        self.exclusive = false;
        let broken = self.actor.take();
        let _ = Panicked::caught(|| drop(broken));
        match self.restarts.after_panic(&self.policy, Instant::now()) {
            Some(wait) => {
                tracing::error!(actor = %address, panic = panicked.0, ?wait, "actor panicked and will be rebuilt");
                self.mailbox.restarts.fetch_add(1, Relaxed);
                self.backoff = Some(Box::pin(tokio::time::sleep(wait)));
                true
            }
            None => {
                tracing::error!(actor = %address, panic = panicked.0, "actor panicked too often and was stopped");
                stats::ESCALATIONS.add();
                self.end(Exit::Escalated(panicked.0));
                false
            }
        }
    }

    fn end(&mut self, exit: Exit) {
        if std::mem::replace(&mut self.ended, true) {
            return;
        }
        self.tasks.abort();
        if let Some(mut actor) = self.actor.take() {
            let _ = Panicked::caught(move || actor.stopped());
        }
        self.mailbox.close(exit.clone());
        self.bus.ended(self.mailbox.address, &exit);
    }

    /// Handles up to `count` items. `Ok(true)` if there may be more, `Err` if the actor ended.
    fn slice(&mut self, count: usize, cx: &mut Context<'_>) -> Result<bool, ()> {
        for _ in 0..count {
            let Some(actor) = self.actor.as_mut() else { return Ok(true) };
            let mut ctx = Ctx::new(&self.mailbox, &self.bus, &mut self.tasks);
            ctx.fresh = std::mem::take(&mut self.idle);
            let (item, last) = self.mailbox.pop(cx.waker(), self.exclusive);
            let outcome = match item {
                Item::Idle => {
                    self.idle = true;
                    return Ok(false);
                }
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
                Item::TaskResult(TaskResult::Stop) => {
                    ctx.stop = true;
                    Ok(())
                }
            };
            let stop = ctx.stop;
            self.exclusive |= ctx.exclusive;
            match outcome {
                Ok(()) if stop => {
                    self.end(Exit::Stopped);
                    return Err(());
                }
                Ok(()) if last => {
                    self.idle = true;
                    return Ok(false);
                }
                Ok(()) => {}
                Err(panicked) => {
                    return if self.panicked(panicked) { Ok(true) } else { Err(()) };
                }
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

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while let Some(sleep) = &mut self.backoff {
            if sleep.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            self.backoff = None;
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

impl<A: Actor> actix::Actor for MailboxLoop<A> {
    type Context = actix::Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        if self.build() {
            ctx.spawn(RunMailbox);
        } else {
            ctx.stop();
        }
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

/// The mailbox loop as a future of its actix actor.
struct RunMailbox;

impl<A: Actor> ActorFuture<MailboxLoop<A>> for RunMailbox {
    type Output = ();

    fn poll(
        self: Pin<&mut Self>,
        mailbox_loop: &mut MailboxLoop<A>,
        ctx: &mut actix::Context<MailboxLoop<A>>,
        task: &mut Context<'_>,
    ) -> Poll<()> {
        let poll = mailbox_loop.poll(task);
        if poll.is_ready() {
            ctx.stop();
        }
        poll
    }
}
