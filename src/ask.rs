//! The waiting side of an ask.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

use pin_project_lite::pin_project;
use ringfence_messages::{Address, Code, ErrorCode, Result};
use tokio::{
    sync::oneshot,
    time::{Instant, Sleep},
};

use crate::stats;

pin_project! {
    /// The reply to a message that was sent already; resolves to it, to an error, or to `SYS.1001` at the deadline.
    ///
    /// Dropping it does not take the message back: what was asked for happens, and its reply is dropped.
    #[must_use = "the message is sent either way, but only awaiting tells what came of it"]
    pub struct Ask<R> {
        #[pin]
        state: State<R>,
    }
}

pin_project! {
    #[project = StateProj]
    enum State<R> {
        Refused { error: Option<ErrorCode> },
        Waiting { reply: oneshot::Receiver<Result<R>>, #[pin] timer: Sleep, to: Address, name: &'static str },
    }
}

impl<R> Ask<R> {
    pub(crate) fn refused(error: ErrorCode) -> Ask<R> {
        Ask { state: State::Refused { error: Some(error) } }
    }

    pub(crate) fn waiting(
        reply: oneshot::Receiver<Result<R>>,
        deadline: Instant,
        to: Address,
        name: &'static str,
    ) -> Ask<R> {
        Ask { state: State::Waiting { reply, timer: tokio::time::sleep_until(deadline), to, name } }
    }
}

impl<R> Future for Ask<R> {
    type Output = Result<R>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<R>> {
        match self.project().state.project() {
            StateProj::Refused { error } => Poll::Ready(Err(error.take().expect("polled after it was ready"))),
            StateProj::Waiting { reply, timer, to, name } => {
                if let Poll::Ready(answer) = Pin::new(reply).poll(cx) {
                    return Poll::Ready(answer.unwrap_or_else(|_| {
                        let details = format!("{to} is gone and never answered {name}");
                        Err(ErrorCode::new(Code::NODE_UNAVAILABLE, details))
                    }));
                }
                if timer.poll(cx).is_pending() {
                    return Poll::Pending;
                }
                stats::TIMEOUTS.add();
                Poll::Ready(Err(ErrorCode::new(Code::TIMEOUT, format!("{to} did not answer {name} by its deadline"))))
            }
        }
    }
}
