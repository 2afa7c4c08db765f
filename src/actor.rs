//! What an actor is: a struct on one thread, and one handler per message that it accepts.

use std::{any::TypeId, fmt, marker::PhantomData};

use ringfence_messages::{Address, ErrorCode, Event, Kind, Message};
use rustc_hash::FxHashMap;
use serde::Serialize;

use crate::{
    answer::IntoAnswer,
    context::Ctx,
    envelope::{EventEnvelope, Parcel},
    mailbox::Mailbox,
};

/// An actor: state that one thread alone touches, one message at a time.
///
/// It need not be `Send`: it is made by its factory on the thread it lives on, and made anew there after a panic.
pub trait Actor: Sized + 'static {
    /// The first half of its address; the other is the uuid it is spawned with.
    const KIND: Kind;

    /// Lists the messages and events it has handlers for; asked once per spawn. A message that is not listed
    /// is answered with `SYS.1008` when it comes by address.
    fn accepts(accepts: &mut Accepts<Self>);

    /// Called before the first message, and again on the new value after each rebuild.
    fn started(&mut self, ctx: &mut Ctx<'_, Self>) {
        let _ = ctx;
    }

    /// Called after the last message. Not called on a value whose handler panicked.
    fn stopped(&mut self) {}

    /// An actor that this one [watches](Ctx::watch) ended.
    fn terminated(&mut self, who: Address, why: &Exit, ctx: &mut Ctx<'_, Self>) {
        let _ = (who, why, ctx);
    }

    /// What of its state belongs into the [snapshot](crate::Bus::inspect). Never a secret.
    fn observe(&self) -> serde_json::Value {
        serde_json::Value::Null
    }
}

/// Answers one type of message.
pub trait Handler<M: Message>: Actor {
    /// `Result<M::Reply>`, [`Later`](crate::Later) or [`Promised`](crate::Promised).
    type Answer: IntoAnswer<M>;

    /// Handles the message. A panic fails this one message with `SYS.1000` and has the actor rebuilt.
    fn handle(&mut self, message: M, ctx: &mut Ctx<'_, Self>) -> Self::Answer;
}

/// Hears one type of event, after [`Ctx::subscribe`].
pub trait EventHandler<E: Event>: Actor {
    /// Takes note of the event. A panic has the actor rebuilt.
    fn on_event(&mut self, event: &E, ctx: &mut Ctx<'_, Self>);
}

/// Why an actor is no more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub enum Exit {
    /// It stopped itself or was stopped.
    Stopped,
    /// It panicked more often than its [`RestartPolicy`](crate::RestartPolicy) allows; this is the last panic.
    Escalated(String),
    /// There never was one, or it was gone before it could be watched.
    Missing,
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Exit::Stopped => f.write_str("stopped"),
            Exit::Escalated(panic) => write!(f, "panicked too often, last: {panic}"),
            Exit::Missing => f.write_str("not there"),
        }
    }
}

/// How a message or event that is known only by its type at run time gets into a mailbox of `A`.
pub(crate) type Intake<A> = fn(&Mailbox<A>, &mut dyn std::any::Any) -> Result<(), ErrorCode>;

/// The messages and events that an actor accepts.
pub struct Accepts<A: Actor> {
    intakes: FxHashMap<TypeId, Intake<A>>,
    _actor: PhantomData<fn(A)>,
}

impl<A: Actor> Accepts<A> {
    pub(crate) fn of() -> Accepts<A> {
        let mut accepts = Accepts { intakes: FxHashMap::default(), _actor: PhantomData };
        A::accepts(&mut accepts);
        accepts
    }

    /// It has a handler for `M`.
    pub fn message<M: Message>(&mut self) -> &mut Self
    where
        A: Handler<M>,
    {
        self.intakes.insert(TypeId::of::<M>(), |mailbox, parcel| {
            let parcel: &mut Option<Parcel<M>> = parcel.downcast_mut().expect("keyed by the message's type");
            let parcel = parcel.take().expect("a parcel is delivered once");
            mailbox.push(parcel.lane, Box::new(parcel))
        });
        self
    }

    /// It has a handler for `E`. It still must [subscribe](Ctx::subscribe).
    pub fn event<E: Event>(&mut self) -> &mut Self
    where
        A: EventHandler<E>,
    {
        self.intakes.insert(TypeId::of::<E>(), |mailbox, event| {
            let event: &mut EventEnvelope<E> = event.downcast_mut().expect("keyed by the event's type");
            mailbox.push(ringfence_messages::Lane::Normal, Box::new(event.clone()))
        });
        self
    }

    pub(crate) fn intake(&self, of: TypeId) -> Option<Intake<A>> {
        self.intakes.get(&of).copied()
    }
}
