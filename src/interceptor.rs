//! Interceptors see every message and event at its three gates and may change, refuse or answer it.

use std::{
    any::Any,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use parking_lot::RwLock;
use ringfence_messages::{Address, Code, ErrorCode, Event, Message, Result};

/// A message at a gate.
pub struct Letter<'a> {
    /// Where it goes.
    pub to: Address,
    /// [`Message::NAME`] or [`Event::TOPIC`].
    pub name: &'static str,
    message: &'a mut dyn Any,
}

impl<'a> Letter<'a> {
    pub(crate) fn new<M: Message>(to: Address, message: &'a mut M) -> Letter<'a> {
        Letter { to, name: M::NAME, message }
    }

    /// The message, if it is an `M`.
    pub fn get<M: Message>(&self) -> Option<&M> {
        self.message.downcast_ref()
    }

    /// The message to be changed, if it is an `M`.
    pub fn get_mut<M: Message>(&mut self) -> Option<&mut M> {
        self.message.downcast_mut()
    }
}

/// What becomes of a message at a gate.
pub enum Verdict {
    /// It goes on, changed or not.
    Pass,
    /// The sender gets this error.
    Veto(ErrorCode),
    /// The sender gets this answer; the receiver sees nothing. See [`Verdict::answer`].
    Answer(Box<dyn Any + Send>),
}

impl Verdict {
    /// Answers in the receiver's place.
    pub fn answer<M: Message>(reply: M::Reply) -> Verdict {
        Verdict::Answer(Box::new(reply))
    }

    pub(crate) fn downcast<M: Message>(answer: Box<dyn Any + Send>) -> Result<M::Reply> {
        let reply = answer.downcast::<M::Reply>().map(|reply| *reply);
        reply.map_err(|_| {
            ErrorCode::new(Code::INTERNAL, format!("an interceptor answered {} with a reply of another type", M::NAME))
        })
    }
}

/// Sees messages and events on their way. Every method passes them on unless it is overridden. It runs on the
/// sender's or the receiver's thread and must not block.
pub trait Interceptor: Send + Sync {
    /// A message is about to be put into a mailbox.
    fn before_send(&self, letter: &mut Letter<'_>) -> Verdict {
        let _ = letter;
        Verdict::Pass
    }

    /// A message is about to be handled.
    fn before_delivery(&self, letter: &mut Letter<'_>) -> Verdict {
        let _ = letter;
        Verdict::Pass
    }

    /// An event is about to be published; an error stops it, and the publisher gets the error. `event` can be
    /// downcast to the type of the event.
    ///
    /// # Errors
    /// Whatever it vetoes with.
    fn before_publish(&self, topic: &'static str, event: &mut dyn Any) -> Result<()> {
        let _ = (topic, event);
        Ok(())
    }
}

/// All interceptors of a bus, asked in the order in which they were added.
#[derive(Default)]
pub(crate) struct Interceptors {
    any: AtomicBool,
    list: RwLock<Vec<Arc<dyn Interceptor>>>,
}

/// An answer or refusal that keeps a message from going on.
type Stopped = Option<Result<Box<dyn Any + Send>>>;

impl Interceptors {
    pub(crate) fn add(&self, interceptor: Arc<dyn Interceptor>) {
        self.list.write().push(interceptor);
        self.any.store(true, Relaxed);
    }

    /// The one load that a message pays for when nobody intercepts.
    #[inline]
    pub(crate) fn any(&self) -> bool {
        self.any.load(Relaxed)
    }

    pub(crate) fn before_send(&self, letter: Letter<'_>) -> Stopped {
        self.pass(letter, |interceptor, letter| interceptor.before_send(letter))
    }

    pub(crate) fn before_delivery(&self, letter: Letter<'_>) -> Stopped {
        self.pass(letter, |interceptor, letter| interceptor.before_delivery(letter))
    }

    fn pass(&self, mut letter: Letter<'_>, gate: impl Fn(&dyn Interceptor, &mut Letter<'_>) -> Verdict) -> Stopped {
        let list = self.list.read().clone();
        list.iter().find_map(|interceptor| match gate(interceptor.as_ref(), &mut letter) {
            Verdict::Pass => None,
            Verdict::Veto(error) => Some(Err(error)),
            Verdict::Answer(answer) => Some(Ok(answer)),
        })
    }

    pub(crate) fn before_publish<E: Event>(&self, event: &mut E) -> Result<()> {
        let list = self.list.read().clone();
        list.iter().try_for_each(|interceptor| interceptor.before_publish(E::TOPIC, event))
    }
}
