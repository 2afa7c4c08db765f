//! What is being handled on this thread right now, so that asks made meanwhile inherit its deadline.
//!
//! Set while a handler runs and while a future that a handler started is polled. Rejected: passing a context
//! argument through every function; it is forgotten exactly once, and that child outlives its parent.

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

/// The deadline of what is being handled on this thread, if it has one.
#[inline]
pub(crate) fn deadline() -> Option<Instant> {
    DEADLINE.get()
}

/// Runs code as if nothing were being handled: asks made in it inherit no deadline. For work that must go on
/// when the request that led to it is given up.
pub fn detached<T>(code: impl FnOnce() -> T) -> T {
    let _scope = Scope::enter(None);
    code()
}

/// Sets the deadline until dropped, then puts back the one before.
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
