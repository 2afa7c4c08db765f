//! A request on its way: a message with its reply channel, deadline and span.

use std::time::Duration;

use ringfence_messages::{Address, Code, ErrorCode, Lane, Message, Result};
use tokio::{sync::oneshot, time::Instant};

use crate::{
    ask::Ask,
    current,
    interceptor::{InterceptedMessage, Verdict},
    shared::Shared,
    stats::{self, BusId},
};

/// Least remaining time to send a request: 1 ms. Too low: requests are sent that must time out. Too high: short
/// deadlines fail without an attempt.
pub const MIN_DEADLINE: Duration = Duration::from_millis(1);

/// A message with its reply channel, deadline and span.
pub(crate) struct Request<M: Message> {
    pub(crate) message: M,
    pub(crate) lane: Lane,
    pub(crate) reply: Option<oneshot::Sender<Result<M::Reply>>>,
    pub(crate) deadline: Option<Instant>,
    pub(crate) span: Option<Box<tracing::Span>>,
}

impl<M: Message> Request<M> {
    #[inline]
    pub(crate) fn new(
        message: M,
        reply: Option<oneshot::Sender<Result<M::Reply>>>,
        deadline: Option<Instant>,
    ) -> Request<M> {
        let span = current_span().map(Box::new);
        Request { message, lane: M::LANE, reply, deadline, span }
    }
}

/// Sends a request, unless no time is left, and returns the future of its reply.
pub(crate) fn ask<R>(
    to: Address,
    within: Duration,
    send: impl FnOnce(oneshot::Sender<Result<R>>, Instant) -> Result<()>,
    name: &'static str,
    bus: BusId,
) -> Ask<R> {
    let now = Instant::now();
    let own = current::after(now, within);
    let deadline = current::deadline().map_or(own, |inherited| inherited.min(own));
    if deadline <= now + MIN_DEADLINE {
        stats::timeout(bus);
        return Ask::refused(ErrorCode::new(Code::TIMEOUT, format!("no time is left to send {name} to {to}")));
    }
    let (sender, receiver) = oneshot::channel();
    match send(sender, deadline) {
        Ok(()) => Ask::waiting(receiver, deadline, to, name, bus),
        Err(error) => Ask::refused(error),
    }
}

/// Runs the interceptors on a message. False if one of them answered it.
#[inline]
pub(crate) fn passes<M: Message>(shared: &Shared, to: Address, request: &mut Request<M>) -> Result<bool> {
    if shared.interceptors.any() { shown(shared, to, request) } else { Ok(true) }
}

#[cold]
fn shown<M: Message>(shared: &Shared, to: Address, request: &mut Request<M>) -> Result<bool> {
    let Some(answer) = shared.interceptors.before_send(InterceptedMessage::new(to, &mut request.message)) else {
        return Ok(true);
    };
    let reply = Verdict::downcast::<M>(answer?);
    if let Some(sender) = request.reply.take() {
        let _ = sender.send(reply);
    }
    Ok(false)
}

/// Whether a subscriber may record the spans of messages: one load if none does.
#[inline]
pub(crate) fn traced() -> bool {
    tracing::Level::INFO <= tracing::level_filters::STATIC_MAX_LEVEL
        && tracing::Level::INFO <= tracing::level_filters::LevelFilter::current()
}

/// The current span, if a subscriber records it.
#[inline]
pub(crate) fn current_span() -> Option<tracing::Span> {
    if traced() { Some(tracing::Span::current()).filter(|span| !span.is_disabled()) } else { None }
}
