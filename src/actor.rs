//! The traits of actors: a struct on one thread, with one handler per accepted message.

use std::{any::TypeId, marker::PhantomData};

use ringfence_messages::{Address, ErrorCode, Event, Kind, Message};
use rustc_hash::FxHashMap;

use crate::{answer::IntoAnswer, context::Ctx, event::EventEnvelope, exit::Exit, mailbox::Mailbox, request::Request};

/// An actor: state that only one thread accesses, one message at a time.
///
/// An actor need not be `Send`: its factory creates it on its thread, and rebuilds it there after a panic.
pub trait Actor: Sized + 'static {
    /// The kind in the actor's address. The uuid is given when the actor is spawned.
    const KIND: Kind;

    /// Lists the messages and events with a handler. Called once per actor type. An unlisted message to the actor's
    /// address gets `SYS.1008`.
    fn accepts(accepts: &mut Accepts<Self>);

    /// Called before the first message, and again on the new value after each rebuild.
    fn started(&mut self, ctx: &mut Ctx<'_, Self>) {
        let _ = ctx;
    }

    /// Called after the last message. Not called on a value whose handler panicked.
    fn stopped(&mut self) {}

    /// Called when an actor that this one [watches](Ctx::watch) ended.
    fn terminated(&mut self, who: Address, why: &Exit, ctx: &mut Ctx<'_, Self>) {
        let _ = (who, why, ctx);
    }

    /// The state for [`Bus::inspect`](crate::Bus::inspect). Must not have a secret in it.
    fn observe(&self) -> serde_json::Value {
        serde_json::Value::Null
    }
}

/// The handler of one message type.
pub trait Handler<M: Message>: Actor {
    /// `Result<M::Reply>`, [`AsyncReply`](crate::AsyncReply) or [`Promised`](crate::Promised).
    type Answer: IntoAnswer<M>;

    /// Handles the message. A panic fails this one message with `SYS.1000`; the actor is rebuilt.
    fn handle(&mut self, message: M, ctx: &mut Ctx<'_, Self>) -> Self::Answer;
}

/// The handler of one event type, after [`Ctx::subscribe`].
pub trait EventHandler<E: Event>: Actor {
    /// Handles the event. After a panic the actor is rebuilt.
    fn on_event(&mut self, event: &E, ctx: &mut Ctx<'_, Self>);
}

/// Puts a message or event whose type is known only at run time into a mailbox of `A`.
pub(crate) type Intake<A> = fn(&Mailbox<A>, &mut dyn std::any::Any) -> Result<(), ErrorCode>;

/// The messages and events that an actor accepts.
pub struct Accepts<A: Actor> {
    intakes: FxHashMap<TypeId, Intake<A>>,
    events: Vec<TypeId>,
    _actor: PhantomData<fn(A)>,
}

impl<A: Actor> Accepts<A> {
    pub(crate) fn of() -> Accepts<A> {
        let mut accepts = Accepts { intakes: FxHashMap::default(), events: Vec::new(), _actor: PhantomData };
        A::accepts(&mut accepts);
        accepts
    }

    /// Adds the message `M`.
    pub fn message<M: Message>(&mut self) -> &mut Self
    where
        A: Handler<M>,
    {
        self.intakes.insert(TypeId::of::<M>(), |mailbox, request| {
            let request: &mut Option<Request<M>> = request.downcast_mut().expect("keyed by the message's type");
            let request = request.take().expect("a request is delivered once");
            mailbox.push(request.lane, Box::new(request))
        });
        self
    }

    /// Adds the event `E`. To receive it, the actor must also [subscribe](Ctx::subscribe). An actor that subscribes in
    /// [`started`](Actor::started) receives every event that is published after [`spawn`](crate::Bus::spawn).
    pub fn event<E: Event>(&mut self) -> &mut Self
    where
        A: EventHandler<E>,
    {
        self.events.push(TypeId::of::<E>());
        self.intakes.insert(TypeId::of::<E>(), |mailbox, event| {
            let event: &mut EventEnvelope<E> = event.downcast_mut().expect("keyed by the event's type");
            mailbox.push(ringfence_messages::Lane::Normal, Box::new(event.clone()))
        });
        self
    }

    /// The events with a handler.
    pub(crate) fn events(&self) -> &[TypeId] {
        &self.events
    }

    pub(crate) fn intake(&self, of: TypeId) -> Option<Intake<A>> {
        self.intakes.get(&of).copied()
    }
}
