//! The part of a bus that mailboxes use: everything but the registry, which holds the mailboxes.

use std::sync::Arc;

use crate::{
    dead_letter::DeadLetters,
    interceptor::Interceptors,
    stats::{BusId, Counts},
};

pub(crate) struct Shared {
    pub(crate) bus: BusId,
    pub(crate) counts: Arc<Counts>,
    pub(crate) interceptors: Interceptors,
    pub(crate) dead_letters: DeadLetters,
    /// Whether handlers are timed.
    pub(crate) timing: bool,
}

impl Shared {
    pub(crate) fn new(timing: bool) -> Shared {
        let counts = Counts::new();
        Shared {
            bus: counts.bus,
            dead_letters: DeadLetters::new(counts.clone()),
            counts,
            interceptors: Interceptors::default(),
            timing,
        }
    }
}
