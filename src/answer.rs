//! The three ways to answer a message: now, later, or when somebody keeps a promise.
//!
//! Invariant (I6): every request gets exactly one reply. A [`Promise`] that is dropped answers an error.

use std::{fmt, future::Future, pin::Pin, sync::Arc};

use parking_lot::Mutex;
use ringfence_messages::{Code, ErrorCode, Message, Result};
use tokio::sync::oneshot;

/// What a handler may return for a message `M`.
pub trait IntoAnswer<M: Message> {
    #[doc(hidden)]
    fn into_answer(self) -> Answer<M::Reply>;
}

#[doc(hidden)]
pub enum Answer<R> {
    Now(Result<R>),
    Later(Later<R>),
    Promised(Arc<Mutex<Pending<R>>>),
}

impl<M: Message> IntoAnswer<M> for Result<M::Reply> {
    fn into_answer(self) -> Answer<M::Reply> {
        Answer::Now(self)
    }
}

/// An answer that takes time: a future that runs beside the mailbox, without the actor.
///
/// It inherits the deadline of the message for the asks it makes. A panic in it fails only this message. It
/// ends with the actor: a stop or rebuild answers `SYS.1017`.
pub struct Later<R> {
    pub(crate) future: Pin<Box<dyn Future<Output = Result<R>>>>,
    pub(crate) exclusive: bool,
}

impl<R> Later<R> {
    /// Further messages are handled while the future runs.
    pub fn new(future: impl Future<Output = Result<R>> + 'static) -> Later<R> {
        Later { future: Box::pin(future), exclusive: false }
    }

    /// No further message is handled before the future ends.
    pub fn exclusive(future: impl Future<Output = Result<R>> + 'static) -> Later<R> {
        Later { future: Box::pin(future), exclusive: true }
    }
}

impl<M: Message> IntoAnswer<M> for Later<M::Reply> {
    fn into_answer(self) -> Answer<M::Reply> {
        Answer::Later(self)
    }
}

/// Says that the answer will come through the [`Promise`] that was made with it by
/// [`Ctx::promise`](crate::Ctx::promise).
pub struct Promised<M: Message>(Arc<Mutex<Pending<M::Reply>>>);

impl<M: Message> IntoAnswer<M> for Promised<M> {
    fn into_answer(self) -> Answer<M::Reply> {
        Answer::Promised(self.0)
    }
}

/// Where the promise and the way back of a request meet, whichever comes first.
#[doc(hidden)]
pub enum Pending<R> {
    /// Neither is known.
    Open,
    /// The way back waits for an answer.
    Asked(Reply<R>),
    /// The answer waits for the way back.
    Answered(Result<R>),
    /// They met.
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

/// Ties an answer that was promised to the request's way back.
pub(crate) fn bind<R>(cell: &Mutex<Pending<R>>, reply: Reply<R>) {
    Pending::meet(cell, Pending::Asked(reply));
}

/// The right and duty to answer one request.
pub struct Promise<R> {
    cell: Option<Arc<Mutex<Pending<R>>>>,
}

/// A promise, and what the handler returns to say that it was made.
pub(crate) fn promise<M: Message>() -> (Promise<M::Reply>, Promised<M>) {
    let cell = Arc::new(Mutex::new(Pending::Open));
    (Promise { cell: Some(cell.clone()) }, Promised(cell))
}

impl<R> Promise<R> {
    /// Answers. Nobody may be waiting any more; the answer is then dropped and counted.
    pub fn complete(mut self, result: Result<R>) {
        if let Some(cell) = self.cell.take() {
            Pending::meet(&cell, Pending::Answered(result));
        }
    }
}

impl<R> Drop for Promise<R> {
    fn drop(&mut self) {
        if let Some(cell) = self.cell.take() {
            let details = "the receiver dropped the request before it was answered";
            Pending::meet(&cell, Pending::Answered(Err(ErrorCode::new(Code::CANCELLED, details))));
        }
    }
}

impl<R> fmt::Debug for Promise<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Promise")
    }
}

/// The way back of one request; `None` for a `tell`, whose reply nobody wants.
#[doc(hidden)]
pub struct Reply<R>(pub(crate) Option<oneshot::Sender<Result<R>>>);

impl<R> Reply<R> {
    /// The asker waits no more: the deadline is over, or the ask was dropped.
    #[inline]
    pub(crate) fn is_abandoned(&self) -> bool {
        self.0.as_ref().is_some_and(oneshot::Sender::is_closed)
    }

    pub(crate) fn send(self, result: Result<R>) {
        match self.0 {
            Some(sender) => {
                if sender.send(result).is_err() {
                    crate::stats::LATE_REPLIES.add();
                }
            }
            None => {
                if let Err(error) = result {
                    tracing::debug!(%error, "a message that was told, not asked, failed");
                }
            }
        }
    }
}
