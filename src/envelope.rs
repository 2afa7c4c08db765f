//! The items of a mailbox: requests with their reply channel, events, and results of the actor's tasks.

use std::any::TypeId;

use ringfence_messages::{Address, Code, ErrorCode, Event, Message, Result};
use tokio::{sync::oneshot, time::Instant};

use crate::{
    actor::{Actor, EventHandler, Handler},
    answer::{Answer, IntoAnswer, Reply, bind},
    context::Ctx,
    current::Scope,
    event::EventEnvelope,
    exit::Exit,
    interceptor::{InterceptedMessage, Verdict},
    panicked::{Panicked, discard},
    request::{Request, traced},
    stats::{self, BusId},
};

/// A message or event for an actor of type `A`.
pub(crate) trait Envelope<A: Actor>: Send {
    fn name(&self) -> &'static str;
    /// Calls the handler. After an error the actor's state is unusable.
    fn deliver(self: Box<Self>, actor: &mut A, ctx: &mut Ctx<'_, A>) -> Result<(), Panicked>;
    /// Rejects the item: no handler will be called.
    fn fail(self: Box<Self>, error: ErrorCode, bus: BusId);
}

impl<A: Handler<M>, M: Message> Envelope<A> for Request<M> {
    fn name(&self) -> &'static str {
        M::NAME
    }

    fn deliver(self: Box<Self>, actor: &mut A, ctx: &mut Ctx<'_, A>) -> Result<(), Panicked> {
        let Request { mut message, reply, deadline, span, .. } = *self;
        let mailbox = ctx.mailbox;
        let reply = Reply { sender: reply, bus: mailbox.shared.bus };
        if deadline.is_some_and(|deadline| deadline <= Instant::now()) {
            mailbox.shared.counts.expired.add();
            let details = format!("{} waited in the mailbox of {} until its deadline", M::NAME, mailbox.address);
            reply.send(Err(ErrorCode::new(Code::TIMEOUT, details)));
            discard(message);
            return Ok(());
        }
        if mailbox.shared.interceptors.any() {
            let intercepted = InterceptedMessage::new(mailbox.address, &mut message);
            if let Some(answer) = mailbox.shared.interceptors.before_delivery(intercepted) {
                reply.send(answer.and_then(Verdict::downcast::<M>));
                discard(message);
                return Ok(());
            }
        }
        let started = mailbox.shared.timing.then(std::time::Instant::now);
        let span =
            if traced() { handling(span.map(|span| *span), mailbox.address, M::NAME) } else { tracing::Span::none() };
        let outcome = {
            let (_scope, _span) = (Scope::enter(deadline), span.enter());
            ctx.deadline = deadline;
            Panicked::caught(|| actor.handle(message, ctx).into_answer())
        };
        ctx.counts.handled::<M>(started.map(|at| at.elapsed()), outcome.is_err());
        stats::add_alone(&mailbox.handled, 1);
        match outcome {
            Ok(Answer::Now(result)) => reply.send(result),
            Ok(Answer::AsyncReply(later)) => ctx.run_async(later, reply, M::NAME, span),
            Ok(Answer::Promised(cell)) => bind(&cell, reply),
            Err(panicked) => {
                stats::add_alone(&mailbox.failed, 1);
                reply.send(Err(panicked.error(M::NAME)));
                return Err(panicked);
            }
        }
        Ok(())
    }

    fn fail(self: Box<Self>, error: ErrorCode, bus: BusId) {
        let Request { message, reply, .. } = *self;
        if reply.is_some() {
            Reply { sender: reply, bus }.send(Err(error));
        }
        discard(message);
    }
}

/// The span of a handler: a new one if every message is recorded, else the sender's.
fn handling(sender: Option<tracing::Span>, actor: Address, message: &'static str) -> tracing::Span {
    let own = match &sender {
        Some(sender) => tracing::debug_span!(parent: sender, "handle", %actor, message),
        None => tracing::debug_span!("handle", %actor, message),
    };
    if own.is_disabled() { sender.unwrap_or(own) } else { own }
}

impl<A: EventHandler<E>, E: Event> Envelope<A> for EventEnvelope<E> {
    fn name(&self) -> &'static str {
        E::TOPIC
    }

    fn deliver(self: Box<Self>, actor: &mut A, ctx: &mut Ctx<'_, A>) -> Result<(), Panicked> {
        if self.early && !ctx.bus().is_subscribed(TypeId::of::<E>(), ctx.address()) {
            return Ok(());
        }
        let _scope = Scope::enter(None);
        ctx.deadline = None;
        let outcome = Panicked::caught(|| actor.on_event(&self.event, ctx));
        discard(self);
        stats::add_alone(&ctx.mailbox.handled, 1);
        stats::add_alone(&ctx.mailbox.failed, u64::from(outcome.is_err()));
        outcome
    }

    fn fail(self: Box<Self>, _: ErrorCode, _: BusId) {
        discard(self);
    }
}

/// The callback of a task.
pub(crate) type Then<A> = Box<dyn FnOnce(&mut A, &mut Ctx<'_, A>) + Send>;

/// Results of an actor's tasks and watches.
pub(crate) enum TaskResult<A: Actor> {
    /// A task ended or a timer fired: the callback.
    Then(Then<A>),
    /// An exclusive answer was sent: the actor handles messages again.
    Resume,
    /// A task panicked, so that its callback will never run.
    Panicked(Panicked),
    /// A watched actor ended.
    Terminated(Address, Exit),
    /// Snapshots wait for the actor's state.
    Observe(Vec<oneshot::Sender<serde_json::Value>>),
}
