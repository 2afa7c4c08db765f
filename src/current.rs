//! The deadline of the message in progress on this thread, which requests of its handler inherit.
//!
//! Set while a handler runs, and while a future of a handler is polled. [`with_deadline`] sets it for any other future.
//! Alternatives considered: a context argument in every function. One omission, and a request outlives its parent.

use std::{
    cell::Cell,
    future::Future,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use tokio::time::Instant;

use crate::panicked::{Panicked, discard};

/// What stands for the end of time: 30 years from now, as in tokio. Too low: a wait ends that should not. Too high: the
/// sum with the clock overflows.
const FAR: Duration = Duration::from_secs(86400 * 365 * 30);

thread_local! {
    static DEADLINE: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// The deadline of the message in progress on this thread, or of the innermost [`with_deadline`]. `None` without one.
#[inline]
pub fn deadline() -> Option<Instant> {
    DEADLINE.get()
}

/// Runs code outside the message in progress: its requests inherit no deadline. For work that must continue after the
/// request that caused it has timed out.
pub fn detached<T>(code: impl FnOnce() -> T) -> T {
    let _scope = Scope::enter(None);
    code()
}

/// Sets the deadline that the requests of a future inherit. An earlier deadline of the caller, or of the task that
/// polls the future, applies instead. The future itself is not cancelled at the deadline.
///
/// A spawned task inherits no deadline. This carries it over:
///
/// ```
/// # use ringfence::{deadline, with_deadline};
/// # tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(async {
/// # let work = async {};
/// tokio::spawn(with_deadline(deadline(), work)).await.unwrap();
/// # });
/// ```
pub fn with_deadline<F: Future>(at: impl Into<Option<Instant>>, future: F) -> WithDeadline<F> {
    WithDeadline { deadline: earliest(deadline(), at.into()), future: Box::pin(future) }
}

/// The future of [`with_deadline`].
#[must_use = "a future does nothing until it is awaited or spawned"]
pub struct WithDeadline<F> {
    deadline: Option<Instant>,
    future: Pin<Box<F>>,
}

impl<F: Future> Future for WithDeadline<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let _scope = Scope::enter(earliest(deadline(), self.deadline));
        self.future.as_mut().poll(cx)
    }
}

fn earliest(a: Option<Instant>, b: Option<Instant>) -> Option<Instant> {
    a.into_iter().chain(b).min()
}

/// The time after a wait of any length.
#[inline]
pub(crate) fn after(now: Instant, wait: Duration) -> Instant {
    now.checked_add(wait).unwrap_or_else(|| now + FAR)
}

/// Sets the deadline until dropped, then restores the previous one.
pub(crate) struct Scope(Option<Instant>);

impl Scope {
    #[inline]
    pub(crate) fn enter(deadline: Option<Instant>) -> Scope {
        Scope(DEADLINE.replace(deadline))
    }
}

impl Drop for Scope {
    #[inline]
    fn drop(&mut self) {
        DEADLINE.set(self.0);
    }
}

/// A future of a handler: polled under a deadline, its panics contained.
pub(crate) struct Scoped<F> {
    deadline: Option<Instant>,
    future: Option<Pin<Box<F>>>,
}

impl<F: Future> Scoped<F> {
    pub(crate) fn new(deadline: Option<Instant>, future: F) -> Scoped<F> {
        Scoped { deadline, future: Some(Box::pin(future)) }
    }
}

impl<F: Future> Future for Scoped<F> {
    type Output = Result<F::Output, Panicked>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let _scope = Scope::enter(self.deadline);
        let future = self.future.as_mut().expect("not polled after completion");
        let output = match Panicked::caught(|| future.as_mut().poll(cx)) {
            Ok(Poll::Pending) => return Poll::Pending,
            Ok(Poll::Ready(output)) => Ok(output),
            Err(panicked) => Err(panicked),
        };
        discard(self.future.take());
        Poll::Ready(output)
    }
}

impl<F> Drop for Scoped<F> {
    fn drop(&mut self) {
        if let Some(future) = self.future.take() {
            discard(future);
        }
    }
}
