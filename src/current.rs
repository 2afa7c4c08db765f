//! The deadline of the message in progress on this thread, which requests of its handler inherit.
//!
//! Set while a handler runs, and while a future of a handler is polled.
//! Alternatives considered: a context argument in every function. One omission, and a request outlives its parent.

use std::{
    cell::Cell,
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

use tokio::time::Instant;

thread_local! {
    static DEADLINE: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// The deadline of the message in progress on this thread, if it has one.
#[inline]
pub(crate) fn deadline() -> Option<Instant> {
    DEADLINE.get()
}

/// Runs code outside the message in progress: its requests inherit no deadline. For work that must continue after the
/// request that caused it has timed out.
pub fn detached<T>(code: impl FnOnce() -> T) -> T {
    let _scope = Scope::enter(None);
    code()
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

/// A future that is polled under a deadline.
pub(crate) struct Scoped<F> {
    deadline: Option<Instant>,
    future: Pin<Box<F>>,
}

impl<F: Future> Scoped<F> {
    pub(crate) fn new(deadline: Option<Instant>, future: F) -> Scoped<F> {
        Scoped { deadline, future: Box::pin(future) }
    }
}

impl<F: Future> Future for Scoped<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let _scope = Scope::enter(self.deadline);
        self.future.as_mut().poll(cx)
    }
}
