//! Containment of foreign code: handlers, destructors, factories, interceptors, futures and their panics.
//!
//! Invariant: a panic of foreign code ends at the call that ran it. The bus calls foreign code only through
//! [`Panicked::caught`] and drops its values only through [`discard`].
//! Alternatives considered: one `catch_unwind` around a mailbox loop. A panic that did not touch the actor would cost
//! the actor its state, and the message in progress its answer.

use std::{
    any::Any,
    panic::{AssertUnwindSafe, catch_unwind},
};

use ringfence_messages::{Code, ErrorCode};

type Payload = Box<dyn Any + Send>;

/// The text of a panic of foreign code.
pub(crate) struct Panicked(pub(crate) String);

impl Panicked {
    fn of(payload: Payload) -> Panicked {
        let text = payload.downcast_ref::<&str>().map(|text| (*text).to_owned());
        let text = text.or_else(|| payload.downcast_ref::<String>().cloned());
        if let Err(second) = catch_unwind(AssertUnwindSafe(|| drop(payload))) {
            // Its drop may panic with a third one, and so on without end.
            std::mem::forget(second);
        }
        Panicked(text.unwrap_or_else(|| "panic without text".into()))
    }

    /// Runs foreign code and converts a panic into an error.
    pub(crate) fn caught<T>(code: impl FnOnce() -> T) -> Result<T, Panicked> {
        catch_unwind(AssertUnwindSafe(code)).map_err(Panicked::of)
    }

    pub(crate) fn error(&self, where_: &str) -> ErrorCode {
        ErrorCode::new(Code::INTERNAL, format!("{where_} panicked: {}", self.0))
    }
}

/// Drops a value of foreign code. A panic of its destructor is logged.
#[inline]
pub(crate) fn discard<T>(value: T) {
    if std::mem::needs_drop::<T>() {
        discard_caught(value);
    }
}

fn discard_caught<T>(value: T) {
    if let Err(panicked) = Panicked::caught(|| drop(value)) {
        tracing::error!(panic = panicked.0, r#type = std::any::type_name::<T>(), "destructor panicked");
    }
}
