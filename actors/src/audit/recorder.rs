//! Records and publishes events: one call, journal first.

use ringfence::{Address, Bus};
use ringfence_messages::{
    Code, ErrorCode, Event, Result,
    audit::{Durability, RecordMsg},
};

use super::AuditActor;
use crate::sabotage::{self, Sabotage};
use ringfence::Actor;

/// A handle on the audit that every actor holds.
#[derive(Clone)]
pub struct Recorder {
    bus: Bus,
}

impl Recorder {
    /// A handle on the audit of this bus.
    pub fn new(bus: Bus) -> Recorder {
        Recorder { bus }
    }

    /// Records an intent (I4) and returns its sequence number once it is durable; then the act may follow. An intent
    /// is not published: it is not an event yet.
    ///
    /// # Errors
    /// The journal is not writable, or did not answer in time: the act must not happen.
    pub async fn intent<E: Event>(&self, event: &E) -> Result<u64> {
        if sabotage::on(Sabotage::NoIntent) {
            return self.record(event, Durability::Fact).await.or(Ok(0));
        }
        self.record(event, Durability::Intent).await
    }

    /// Records an event and publishes it. The publication does not wait for the journal's disk: an actor that acts on
    /// it records its own intent before anything irreversible.
    pub fn fact<E: Event>(&self, event: E) -> impl Future<Output = Result<u64>> + use<E> {
        let message = message(&event, Durability::Fact);
        if let Err(error) = self.bus.publish(event) {
            tracing::warn!(%error, topic = E::TOPIC, "event not published to a subscriber");
        }
        // Sent now, not when awaited, so that events are recorded in order; and without the requester's deadline: an
        // event is recorded even if the requester has timed out.
        let sent =
            message.map(|message| ringfence::detached(|| self.bus.ask(Address::singleton(AuditActor::KIND), message)));
        async move {
            let sent = sent?.await;
            if let Err(error) = &sent {
                metrics::counter!("ringfence_journal_facts_unconfirmed_total", "topic" => E::TOPIC).increment(1);
                tracing::error!(%error, topic = E::TOPIC, "event may be missing from the journal");
            }
            sent.map(|reply| reply.seq)
        }
    }

    async fn record<E: Event>(&self, event: &E, durability: Durability) -> Result<u64> {
        let message = message(event, durability)?;
        Ok(self.bus.ask(Address::singleton(AuditActor::KIND), message).await?.seq)
    }
}

fn message<E: Event>(event: &E, durability: Durability) -> Result<RecordMsg> {
    let payload = serde_json::to_string(event)
        .map_err(|e| ErrorCode::new(Code::INTERNAL, format!("{} does not encode as JSON: {e}", E::TOPIC)))?;
    Ok(RecordMsg { topic: E::TOPIC.to_owned(), subject: event.subject(), payload, durability })
}
