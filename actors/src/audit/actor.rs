//! The shell of the audit: carries the core's commands to the journal port and the bus.

use std::{collections::HashMap, sync::Arc};

use ringfence::{Accepts, Actor, Ctx, Handler, Kind, Promise, Promised};
use ringfence_messages::audit::{Durability, EventRecorded, RecordMsg, RecordReply};
use serde_json::json;
use tokio::time::Instant;

use super::core::{Command, Core, Token};
use crate::{leader::LeaderStatus, ports::JournalPort};

/// The one writer of the journal.
pub struct AuditActor {
    core: Core,
    journal: Arc<dyn JournalPort>,
    leader_status: LeaderStatus,
    owed: HashMap<Token, Promise<RecordReply>>,
    next: Token,
    born: Instant,
}

impl AuditActor {
    /// An audit over this journal; `leader_status` decides whether intents are accepted.
    pub fn new(journal: Arc<dyn JournalPort>, leader_status: LeaderStatus) -> AuditActor {
        AuditActor { core: Core::new(), journal, leader_status, owed: HashMap::new(), next: 0, born: Instant::now() }
    }

    fn carry_out(&mut self, commands: Vec<Command>, ctx: &mut Ctx<'_, Self>) {
        for command in commands {
            match command {
                Command::Append(records) => {
                    let journal = self.journal.clone();
                    ctx.spawn_detached(async move { journal.append(records).await }, |audit, result, ctx| {
                        match &result {
                            Ok(records) => audit.leader_status.recorded(records),
                            Err(error) => {
                                metrics::counter!("ringfence_journal_append_failures_total").increment(1);
                                tracing::error!(%error, backlog = audit.core.backlog(), "journal append failed");
                            }
                        }
                        let commands = audit.core.appended(result, audit.born.elapsed());
                        audit.carry_out(commands, ctx);
                    });
                }
                Command::Reply(token, result) => {
                    if let Some(promise) = self.owed.remove(&token) {
                        promise.complete(result);
                    }
                }
                Command::Publish(record) => {
                    let event = EventRecorded {
                        seq: record.seq,
                        time: record.time,
                        topic: record.topic,
                        subject: record.subject,
                        payload: record.payload.to_string(),
                        hash: record.hash,
                    };
                    if let Err(error) = ctx.bus().publish(event) {
                        tracing::warn!(%error, "journal record not published");
                    }
                }
                Command::WakeAt(at) => {
                    ctx.after(at.saturating_sub(self.born.elapsed()), |audit, ctx| {
                        let commands = audit.core.wakeup(audit.born.elapsed());
                        audit.carry_out(commands, ctx);
                    });
                }
            }
        }
        metrics::gauge!("ringfence_journal_backlog").set(self.core.backlog() as f64);
    }
}

impl Actor for AuditActor {
    const KIND: Kind = Kind::new("audit");

    fn accepts(accepts: &mut Accepts<Self>) {
        accepts.message::<RecordMsg>();
    }

    fn observe(&self) -> serde_json::Value {
        json!({ "backlog": self.core.backlog(), "blocked": self.core.blocked().map(ToString::to_string) })
    }
}

impl Handler<RecordMsg> for AuditActor {
    type Answer = Promised<RecordMsg>;

    fn handle(&mut self, message: RecordMsg, ctx: &mut Ctx<'_, Self>) -> Self::Answer {
        let (promise, answer) = ctx.promise::<RecordMsg>();
        // The one gate before every irreversible act: each has an intent (I4).
        if message.durability == Durability::Intent
            && let Err(error) = self.leader_status.may_act()
        {
            promise.complete(Err(error));
            return answer;
        }
        let token = self.next;
        self.next += 1;
        self.owed.insert(token, promise);
        let commands = self.core.record(token, message, self.born.elapsed());
        self.carry_out(commands, ctx);
        answer
    }
}
