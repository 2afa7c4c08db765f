//! A typed reference to an actor.

use std::{sync::Arc, time::Duration};

use ringfence_messages::{Address, Lane, Message, Result};

use crate::{
    actor::{Actor, Handler},
    any_mailbox::AnyMailbox,
    ask::Ask,
    bus::DEFAULT_DEADLINE,
    mailbox::Mailbox,
    request::{Request, ask, passes},
};

/// A typed reference to one actor. Sends without the lookup of the address; the compiler checks the handler.
pub struct ActorRef<A: Actor> {
    mailbox: Arc<Mailbox<A>>,
}

impl<A: Actor> Clone for ActorRef<A> {
    fn clone(&self) -> Self {
        ActorRef { mailbox: self.mailbox.clone() }
    }
}

impl<A: Actor> ActorRef<A> {
    pub(crate) fn new(mailbox: Arc<Mailbox<A>>) -> ActorRef<A> {
        ActorRef { mailbox }
    }

    /// The actor's address.
    pub fn address(&self) -> Address {
        self.mailbox.address
    }

    /// Sends a message and returns a future for its reply, as [`Bus::ask`](crate::Bus::ask).
    pub fn ask<M: Message>(&self, message: M) -> Ask<M::Reply>
    where
        A: Handler<M>,
    {
        self.ask_within(message, DEFAULT_DEADLINE)
    }

    /// Sends a message with this time limit, as [`Bus::ask_within`](crate::Bus::ask_within).
    pub fn ask_within<M: Message>(&self, message: M, within: Duration) -> Ask<M::Reply>
    where
        A: Handler<M>,
    {
        let send = |reply, deadline| self.send(Request::new(message, Some(reply), Some(deadline)));
        ask(self.address(), within, send, M::NAME, self.mailbox.shared.bus)
    }

    /// Sends a message without waiting for its reply.
    ///
    /// # Errors
    /// `SYS.1010` if the lane is full, `SYS.1012` if the actor stopped.
    pub fn tell<M: Message>(&self, message: M) -> Result<()>
    where
        A: Handler<M>,
    {
        self.send(Request::new(message, None, None))
    }

    /// [`tell`](ActorRef::tell) in another lane than [`Message::LANE`].
    ///
    /// # Errors
    /// `SYS.1010` if the lane is full, `SYS.1012` if the actor stopped.
    pub fn tell_in<M: Message>(&self, lane: Lane, message: M) -> Result<()>
    where
        A: Handler<M>,
    {
        self.send(Request { lane, ..Request::new(message, None, None) })
    }

    /// Requests the actor to stop after the message in progress. Its queued messages get `SYS.1012`.
    pub fn stop(&self) {
        self.mailbox.stop();
    }

    #[inline]
    fn send<M: Message>(&self, mut request: Request<M>) -> Result<()>
    where
        A: Handler<M>,
    {
        match passes(&self.mailbox.shared, self.address(), &mut request)? {
            true => self.mailbox.push(request.lane, Box::new(request)),
            false => Ok(()),
        }
    }
}
