//! The pump: the actix actor that takes messages out of a mailbox and has the bus's actor handle them.
//!
//! ```text
//!            panic, restart allowed            backoff over
//! Running ---------------------------> Resting ------------> Running (a new value of the factory)
//!    | stop, or panic too often
//!    +---> Ended: mailbox closed, watchers told, address free
//! ```
//! Invariants: timers and neighbours get their turn after [`TURN`] and at most [`UNTIMED`] + [`SLICE`] messages more; queued messages
//! survive a panic; no task of a dead incarnation reaches its successor; `Ended` happens exactly once.
//! Rejected: actix's `Supervisor`. It does not survive a panic and restarts without limit (see docs/adr/0001).

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
    envelope::{Panicked, Return},
    mailbox::{Item, Mailbox},
    stats,
    supervise::{RestartPolicy, Restarts},
};

/// Messages that are handled between two looks at the clock. Too low: the look costs as much as the message.
/// Too high: one busy actor delays every timer of its thread by that many messages.
pub const SLICE: usize = 6;

/// Messages that are handled before the first look at the clock: an actor that has no more than these, the usual
/// case, is spared the look.
pub const UNTIMED: usize = 2;

/// How long messages are handled before the runtime gets a turn, to the next multiple of [`SLICE`]. Too low: the
/// runtime's turn (a system call) costs more than the messages. Too high: timers and neighbours wait for so long.
pub const TURN: Duration = Duration::from_millis(1);

/// Messages that are handled before the runtime gets a turn, however quick they are.
pub const MAX_TURN: usize = 256;

pub(crate) struct Pump<A: Actor> {
    actor: Option<A>,
    factory: Box<dyn FnMut() -> A>,
    mailbox: Arc<Mailbox<A>>,
    bus: Bus,
    tasks: Tasks,
    policy: RestartPolicy,
    restarts: Restarts,
    resting: Option<Pin<Box<Sleep>>>,
    exclusive: bool,
    /// Nothing was there when it last looked.
    idle: bool,
    ended: bool,
}

impl<A: Actor> Pump<A> {
    pub(crate) fn new(
        factory: Box<dyn FnMut() -> A>,
        mailbox: Arc<Mailbox<A>>,
        bus: Bus,
        policy: RestartPolicy,
    ) -> Self {
        Pump {
            actor: None,
            factory,
            mailbox,
            bus,
            tasks: Tasks::default(),
            policy,
            restarts: Restarts::default(),
            resting: None,
            exclusive: false,
            idle: false,
            ended: false,
        }
    }

    /// Makes the actor and lets it start. False if it panicked for the last time.
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

    /// Gives up the incarnation. False if it was the last.
    fn panicked(&mut self, panicked: Panicked) -> bool {
        let address = self.mailbox.address;
        self.tasks.abort();
        self.mailbox.clear_returns();
        self.exclusive = false;
        let broken = self.actor.take();
        let _ = Panicked::caught(|| drop(broken));
        match self.restarts.after_panic(&self.policy, Instant::now()) {
            Some(wait) => {
                tracing::error!(actor = %address, panic = panicked.0, ?wait, "an actor panicked and is rebuilt");
                self.mailbox.restarts.fetch_add(1, Relaxed);
                self.resting = Some(Box::pin(tokio::time::sleep(wait)));
                true
            }
            None => {
                tracing::error!(actor = %address, panic = panicked.0, "an actor panicked too often and is given up");
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

    /// Handles up to `count` things. `Ok(true)` if there may be more, `Err` if the actor ended.
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
                Item::Return(Return::Then(then)) => Panicked::caught(|| then(actor, &mut ctx)),
                Item::Return(Return::Terminated(who, why)) => {
                    Panicked::caught(|| actor.terminated(who, &why, &mut ctx))
                }
                Item::Return(Return::Resume) => {
                    self.exclusive = false;
                    Ok(())
                }
                Item::Return(Return::Panicked(panicked)) => Err(panicked),
                Item::Return(Return::Stop) => {
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

    /// Handles messages until [`TURN`] or [`MAX_TURN`] is over. As [`slice`](Pump::slice).
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
        while let Some(sleep) = &mut self.resting {
            if sleep.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            self.resting = None;
            if !self.build() {
                return Poll::Ready(());
            }
        }
        match self.turn(cx) {
            Err(()) => Poll::Ready(()),
            Ok(false) => Poll::Pending,
            Ok(true) => {
                // Woken again only after the runtime has looked at its timers. A plain wake would have this
                // task polled up to 61 times before that.
                let _ = std::pin::pin!(tokio::task::yield_now()).poll(cx);
                Poll::Pending
            }
        }
    }
}

impl<A: Actor> actix::Actor for Pump<A> {
    type Context = actix::Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        if self.build() {
            ctx.spawn(Pumping);
        } else {
            ctx.stop();
        }
    }
}

impl<A: Actor> Drop for Pump<A> {
    /// The system went down under the actor: nobody is left waiting.
    fn drop(&mut self) {
        self.end(Exit::Stopped);
    }
}

/// Nothing in a pump is pinned in place: its actor is plain data to it.
impl<A: Actor> Unpin for Pump<A> {}

/// The pump as a future of its actix actor.
struct Pumping;

impl<A: Actor> ActorFuture<Pump<A>> for Pumping {
    type Output = ();

    fn poll(
        self: Pin<&mut Self>,
        pump: &mut Pump<A>,
        ctx: &mut actix::Context<Pump<A>>,
        task: &mut Context<'_>,
    ) -> Poll<()> {
        let poll = pump.poll(task);
        if poll.is_ready() {
            ctx.stop();
        }
        poll
    }
}
