//! How an actor records and publishes an event: one call, journal first.

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
    /// A handle on this bus's audit.
    pub fn new(bus: Bus) -> Recorder {
        Recorder { bus }
    }

    /// Records an intent (I4) and returns its sequence number once it is durable; then the act may follow.
    /// Nothing is published: an intent is not a fact.
    ///
    /// # Errors
    /// The act must not be done: the journal cannot be written, or did not answer in time.
    pub async fn intent<E: Event>(&self, event: &E) -> Result<u64> {
        if sabotage::on(Sabotage::NoIntent) {
            return self.record(event, Durability::Fact).await.or(Ok(0));
        }
        self.record(event, Durability::Intent).await
    }

    /// Records a fact and publishes it. The publication does not wait for the journal's disk: who acts on the
    /// fact records an intent of its own before it does anything irreversible.
    pub fn fact<E: Event>(&self, event: E) -> impl Future<Output = Result<u64>> + use<E> {
        let message = message(&event, Durability::Fact);
        if let Err(error) = self.bus.publish(event) {
            tracing::warn!(%error, topic = E::TOPIC, "a subscriber misses an event");
        }
        // Sent now, not when it is awaited: facts are recorded in the order in which they are told. And sent
        // without a deadline of whoever asked: what happened is recorded though he has given up.
        let sent =
            message.map(|message| ringfence::detached(|| self.bus.ask(Address::singleton(AuditActor::KIND), message)));
        async move {
            let sent = sent?.await;
            if let Err(error) = &sent {
                metrics::counter!("ringfence_journal_facts_unconfirmed_total", "topic" => E::TOPIC).increment(1);
                tracing::error!(%error, topic = E::TOPIC, "not known to be in the journal");
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
