//! The sender's side of a request.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

use ringfence_messages::{Address, Code, ErrorCode, Result};
use tokio::{
    sync::oneshot,
    time::{Instant, Sleep, sleep_until},
};

use crate::stats::{self, BusId};

/// A future for the reply to a message that has been sent. It resolves to the reply, to an error, or to `SYS.1001` at
/// the deadline.
///
/// Dropping it does not cancel the message: the receiver handles it, and the reply is dropped.
#[must_use = "the message is sent either way, but its result is known only after `.await`"]
pub struct Ask<R>(State<R>);

enum State<R> {
    Refused(Option<ErrorCode>),
    Waiting {
        reply: oneshot::Receiver<Result<R>>,
        deadline: Instant,
        timer: Timer,
        to: Address,
        name: &'static str,
        bus: BusId,
    },
}

/// The timer of the deadline. Most replies come before the runtime's next turn, so the timer is set only after that
/// turn: setting and clearing it costs as much as the rest of the request.
enum Timer {
    New,
    /// Polled once. The runtime polls again in its next turn, with or without a reply.
    Seen,
    Set(Pin<Box<Sleep>>),
}

impl<R> Ask<R> {
    pub(crate) fn refused(error: ErrorCode) -> Ask<R> {
        Ask(State::Refused(Some(error)))
    }

    pub(crate) fn waiting(
        reply: oneshot::Receiver<Result<R>>,
        deadline: Instant,
        to: Address,
        name: &'static str,
        bus: BusId,
    ) -> Ask<R> {
        Ask(State::Waiting { reply, deadline, timer: Timer::New, to, name, bus })
    }
}

impl<R> Future for Ask<R> {
    type Output = Result<R>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<R>> {
        let (reply, deadline, timer, to, name, bus) = match &mut self.get_mut().0 {
            State::Refused(error) => return Poll::Ready(Err(error.take().expect("polled after completion"))),
            State::Waiting { reply, deadline, timer, to, name, bus } => (reply, deadline, timer, to, name, *bus),
        };
        if let Poll::Ready(answer) = Pin::new(reply).poll(cx) {
            return Poll::Ready(answer.unwrap_or_else(|_| {
                let details = format!("{to} stopped without an answer to {name}");
                Err(ErrorCode::new(Code::NODE_UNAVAILABLE, details))
            }));
        }
        match timer {
            Timer::New => {
                *timer = Timer::Seen;
                // Wakes this task after the runtime has run the others.
                let _ = std::pin::pin!(tokio::task::yield_now()).poll(cx);
                return Poll::Pending;
            }
            Timer::Seen => *timer = Timer::Set(Box::pin(sleep_until(*deadline))),
            Timer::Set(_) => {}
        }
        let Timer::Set(alarm) = timer else { unreachable!("set above") };
        if alarm.as_mut().poll(cx).is_pending() {
            return Poll::Pending;
        }
        stats::timeout(bus);
        Poll::Ready(Err(ErrorCode::new(Code::TIMEOUT, format!("{to} did not answer {name} before the deadline"))))
    }
}
