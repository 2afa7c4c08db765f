//! The three kinds of answers to a message: at once, by a future, or through a promise.
//!
//! Invariant (I6): every request gets exactly one reply. A dropped [`Promise`] sends an error.

use std::{fmt, future::Future, pin::Pin, sync::Arc};

use parking_lot::Mutex;
use ringfence_messages::{Code, ErrorCode, Message, Result};
use tokio::sync::oneshot;

use crate::{
    panicked::discard,
    stats::{self, BusId},
};

/// The types that a handler may return for a message `M`: `Result`, [`AsyncReply`], [`Promised`].
pub trait IntoAnswer<M: Message> {
    #[doc(hidden)]
    fn into_answer(self) -> Answer<M::Reply>;
}

#[doc(hidden)]
pub enum Answer<R> {
    Now(Result<R>),
    AsyncReply(AsyncReply<R>),
    Promised(Arc<Mutex<Pending<R>>>),
}

impl<M: Message> IntoAnswer<M> for Result<M::Reply> {
    fn into_answer(self) -> Answer<M::Reply> {
        Answer::Now(self)
    }
}

/// An answer by a future, which runs without access to the actor.
///
/// Requests of the future inherit the message's deadline. A panic in the future fails only this message. The future is
/// cancelled when the actor stops, and an [exclusive](AsyncReply::exclusive) one also when the actor is rebuilt: the
/// sender then gets `SYS.1017`.
pub struct AsyncReply<R> {
    pub(crate) future: Pin<Box<dyn Future<Output = Result<R>>>>,
    pub(crate) exclusive: bool,
}

impl<R> AsyncReply<R> {
    /// A future beside the mailbox: the actor handles further messages while it runs. It does not touch the actor, so
    /// it continues when the actor is rebuilt.
    pub fn new(future: impl Future<Output = Result<R>> + 'static) -> AsyncReply<R> {
        AsyncReply { future: Box::pin(future), exclusive: false }
    }

    /// A future that holds the mailbox: the actor handles no further message before it ends.
    pub fn exclusive(future: impl Future<Output = Result<R>> + 'static) -> AsyncReply<R> {
        AsyncReply { future: Box::pin(future), exclusive: true }
    }
}

impl<M: Message> IntoAnswer<M> for AsyncReply<M::Reply> {
    fn into_answer(self) -> Answer<M::Reply> {
        Answer::AsyncReply(self)
    }
}

/// The return value of a handler that answers through the [`Promise`] of the same
/// [`Ctx::promise`](crate::Ctx::promise) call.
pub struct Promised<M: Message>(Arc<Mutex<Pending<M::Reply>>>);

impl<M: Message> IntoAnswer<M> for Promised<M> {
    fn into_answer(self) -> Answer<M::Reply> {
        Answer::Promised(self.0)
    }
}

/// The rendezvous of a promise and its request's reply channel. Either may come first.
#[doc(hidden)]
pub enum Pending<R> {
    /// Neither has come.
    Open,
    /// The reply channel waits for the answer.
    Asked(Reply<R>),
    /// The answer waits for the reply channel.
    Answered(Result<R>),
    /// The answer was sent.
    Met,
}

impl<R> Pending<R> {
    fn meet(cell: &Mutex<Pending<R>>, other: Pending<R>) {
        let mut pending = cell.lock();
        let (reply, result) = match (std::mem::replace(&mut *pending, Pending::Met), other) {
            (Pending::Open, other) => {
                *pending = other;
                return;
            }
            (Pending::Asked(reply), Pending::Answered(result)) | (Pending::Answered(result), Pending::Asked(reply)) => {
                (reply, result)
            }
            _ => return,
        };
        drop(pending);
        reply.send(result);
    }
}

/// Connects a promised answer with the request's reply channel.
pub(crate) fn bind<R>(cell: &Mutex<Pending<R>>, reply: Reply<R>) {
    Pending::meet(cell, Pending::Asked(reply));
}

/// The obligation to answer one request. A dropped promise sends `SYS.1017`.
pub struct Promise<R> {
    cell: Option<Arc<Mutex<Pending<R>>>>,
}

/// A promise, and the return value of the handler.
pub(crate) fn promise<M: Message>() -> (Promise<M::Reply>, Promised<M>) {
    let cell = Arc::new(Mutex::new(Pending::Open));
    (Promise { cell: Some(cell.clone()) }, Promised(cell))
}

impl<R> Promise<R> {
    /// Sends the answer. If the sender no longer waits, the answer is dropped and counted.
    pub fn complete(mut self, result: Result<R>) {
        if let Some(cell) = self.cell.take() {
            Pending::meet(&cell, Pending::Answered(result));
        }
    }
}

impl<R> Drop for Promise<R> {
    fn drop(&mut self) {
        if let Some(cell) = self.cell.take() {
            let details = "the receiver dropped the request without an answer";
            Pending::meet(&cell, Pending::Answered(Err(ErrorCode::new(Code::CANCELLED, details))));
        }
    }
}

impl<R> fmt::Debug for Promise<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Promise")
    }
}

/// The reply channel of one request.
#[doc(hidden)]
pub struct Reply<R> {
    /// `None` for a `tell`, which has no reply.
    pub(crate) sender: Option<oneshot::Sender<Result<R>>>,
    pub(crate) bus: BusId,
}

impl<R> Reply<R> {
    /// Sends the answer. An answer that cannot be sent is dropped here, where a panic of its destructor is contained.
    pub(crate) fn send(self, result: Result<R>) {
        match self.sender {
            Some(sender) => {
                if let Err(late) = sender.send(result) {
                    stats::late_reply(self.bus);
                    discard(late);
                }
            }
            None => match result {
                Ok(reply) => discard(reply),
                Err(error) => tracing::debug!(%error, "message without reply failed"),
            },
        }
    }
}
