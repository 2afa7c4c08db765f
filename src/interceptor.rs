//! Interceptors: hooks that see every message and event at three gates and may change, reject or answer it.

use std::{
    any::Any,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use parking_lot::RwLock;
use ringfence_messages::{Address, Code, ErrorCode, Event, Message, Result};

use crate::panicked::{Panicked, discard};

/// A message at a gate.
pub struct InterceptedMessage<'a> {
    /// Address of the receiver.
    pub to: Address,
    /// [`Message::NAME`] or [`Event::TOPIC`].
    pub name: &'static str,
    message: &'a mut dyn Any,
}

impl<'a> InterceptedMessage<'a> {
    pub(crate) fn new<M: Message>(to: Address, message: &'a mut M) -> InterceptedMessage<'a> {
        InterceptedMessage { to, name: M::NAME, message }
    }

    /// The message, if it is an `M`.
    pub fn get<M: Message>(&self) -> Option<&M> {
        self.message.downcast_ref()
    }

    /// Mutable access to the message, if it is an `M`.
    pub fn get_mut<M: Message>(&mut self) -> Option<&mut M> {
        self.message.downcast_mut()
    }
}

/// An interceptor's decision about a message.
pub enum Verdict {
    /// Deliver the message, changed or not.
    Pass,
    /// Reject the message: the sender gets this error.
    Veto(ErrorCode),
    /// Answer the message: the sender gets this reply, the receiver gets nothing. See [`Verdict::answer`].
    Answer(Box<dyn Any + Send>),
}

impl Verdict {
    /// A reply in place of the receiver's.
    pub fn answer<M: Message>(reply: M::Reply) -> Verdict {
        Verdict::Answer(Box::new(reply))
    }

    pub(crate) fn downcast<M: Message>(answer: Box<dyn Any + Send>) -> Result<M::Reply> {
        let reply = answer.downcast::<M::Reply>().map(|reply| *reply);
        reply.map_err(|other| {
            discard(other);
            ErrorCode::new(Code::INTERNAL, format!("interceptor answered {} with a reply of another type", M::NAME))
        })
    }
}

/// A hook for messages and events. The default methods let everything pass. A method runs on the thread of the sender
/// or of the receiver, and must not block. After a panic in a method the sender or publisher gets `SYS.1000`, and the
/// message or event is not delivered.
pub trait Interceptor: Send + Sync {
    /// Called before a message is put into a mailbox.
    fn before_send(&self, message: &mut InterceptedMessage<'_>) -> Verdict {
        let _ = message;
        Verdict::Pass
    }

    /// Called before a message is handled.
    fn before_delivery(&self, message: &mut InterceptedMessage<'_>) -> Verdict {
        let _ = message;
        Verdict::Pass
    }

    /// Called before an event is published. `event` can be downcast to the type of the event.
    ///
    /// # Errors
    /// Rejects the event; the publisher gets the error.
    fn before_publish(&self, topic: &'static str, event: &mut dyn Any) -> Result<()> {
        let _ = (topic, event);
        Ok(())
    }
}

/// All interceptors of a bus, in the sequence in which they were added.
#[derive(Default)]
pub(crate) struct Interceptors {
    any: AtomicBool,
    /// Shared, as a gate runs them outside the lock: an interceptor may add another one.
    list: RwLock<Arc<Vec<Arc<dyn Interceptor>>>>,
}

/// The answer or error of an interceptor that stopped a message.
type Stopped = Option<Result<Box<dyn Any + Send>>>;

impl Interceptors {
    pub(crate) fn add(&self, interceptor: Arc<dyn Interceptor>) {
        Arc::make_mut(&mut self.list.write()).push(interceptor);
        self.any.store(true, Relaxed);
    }

    /// Without interceptors a message costs only this load.
    #[inline]
    pub(crate) fn any(&self) -> bool {
        self.any.load(Relaxed)
    }

    pub(crate) fn before_send(&self, message: InterceptedMessage<'_>) -> Stopped {
        self.pass(message, |interceptor, message| interceptor.before_send(message))
    }

    pub(crate) fn before_delivery(&self, message: InterceptedMessage<'_>) -> Stopped {
        self.pass(message, |interceptor, message| interceptor.before_delivery(message))
    }

    fn pass(
        &self,
        mut message: InterceptedMessage<'_>,
        gate: impl Fn(&dyn Interceptor, &mut InterceptedMessage<'_>) -> Verdict,
    ) -> Stopped {
        let list = self.list.read().clone();
        let name = message.name;
        let verdict = Panicked::caught(|| {
            list.iter().find_map(|interceptor| match gate(interceptor.as_ref(), &mut message) {
                Verdict::Pass => None,
                Verdict::Veto(error) => Some(Err(error)),
                Verdict::Answer(answer) => Some(Ok(answer)),
            })
        });
        verdict.unwrap_or_else(|panicked| Some(Err(failed(name, &panicked))))
    }

    pub(crate) fn before_publish<E: Event>(&self, event: &mut E) -> Result<()> {
        let list = self.list.read().clone();
        let verdict =
            Panicked::caught(|| list.iter().try_for_each(|interceptor| interceptor.before_publish(E::TOPIC, event)));
        verdict.unwrap_or_else(|panicked| Err(failed(E::TOPIC, &panicked)))
    }
}

fn failed(name: &'static str, panicked: &Panicked) -> ErrorCode {
    tracing::error!(message = name, panic = panicked.0, "interceptor panicked");
    panicked.error(&format!("an interceptor of {name}"))
}
