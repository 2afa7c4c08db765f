//! Leadership, and the journal.
//!
//! The journal accepts records only from the leader: a clustered journal rejects a stale leader, and an embedded one
//! has a single process.

use std::{collections::BTreeMap, time::Duration};

use async_trait::async_trait;
use ringfence_actors::ports::{JournalPort, LeadershipPort, MAX_PAYLOAD_BYTES, MAX_READ, NewRecord, Record};
use ringfence_messages::{Code, ErrorCode, Result};

use super::{End, State};
use crate::check::line;

/// Epoch, lock and journal.
#[derive(Debug, Default)]
pub(crate) struct Leadership {
    pub(crate) leader: Option<usize>,
    epoch: u64,
    pub(crate) records: Vec<Record>,
    /// The newest record of each subject of a topic.
    latest: BTreeMap<(String, String), usize>,
    /// Number of active faults that prevent writes.
    pub(crate) broken: u32,
    /// Error of the wall clock in seconds.
    pub(crate) clock: i64,
}

impl State {
    fn append(&mut self, controller: usize, new: Vec<NewRecord>) -> Result<Vec<Record>> {
        if self.leadership.leader != Some(controller) {
            return Err(ErrorCode::new(Code::IO, "journal belongs to another controller"));
        }
        if self.leadership.broken > 0 {
            return Err(ErrorCode::new(Code::IO, "journal cannot be written: disk full"));
        }
        for record in &new {
            fits(record)?;
        }
        let mut appended = Vec::with_capacity(new.len());
        for NewRecord { topic, subject, payload, waited } in new {
            let seq = self.leadership.records.len() as u64 + 1;
            let at = self.now.saturating_sub(waited);
            let time = format!("{:.3}", at.as_secs_f64() + self.leadership.clock as f64);
            let record = Record { seq, time, topic, subject, payload, hash: String::new() };
            self.log(line(&record));
            self.check_record(&record, at);
            self.leadership
                .latest
                .insert((record.topic.clone(), record.subject.clone()), self.leadership.records.len());
            self.leadership.records.push(record.clone());
            appended.push(record);
        }
        Ok(appended)
    }

    /// The newest record of one subject of a topic.
    pub(crate) fn latest_of(&self, topic: &str, subject: &str) -> Option<&Record> {
        let newest = self.leadership.latest.get(&(topic.to_owned(), subject.to_owned()))?;
        self.leadership.records.get(*newest)
    }

    /// The newest record of each subject of a topic, oldest first.
    pub(crate) fn latest(&self, topic: &str) -> Vec<Record> {
        let of = self.leadership.latest.range((topic.to_owned(), String::new())..);
        let mut newest: Vec<usize> = of.take_while(|((of, _), _)| of == topic).map(|(_, newest)| *newest).collect();
        newest.sort_unstable();
        newest.into_iter().map(|newest| self.leadership.records[newest].clone()).collect()
    }
}

/// The same limits as the journal of `drivers`.
fn fits(record: &NewRecord) -> Result<()> {
    let payload = record.payload.to_string().len();
    match payload > MAX_PAYLOAD_BYTES {
        true => {
            let details = format!("a record of topic {} has a payload of {payload} bytes", record.topic);
            Err(ErrorCode::new(Code::INVALID_ARGUMENT, details))
        }
        false => Ok(()),
    }
}

impl State {
    /// Replaces the journal by a backup without the newest `lacks` records.
    pub(crate) fn restore(&mut self, lacks: u64) {
        let kept = self.leadership.records.len().saturating_sub(lacks as usize);
        let lacks = self.leadership.records.len() - kept;
        self.leadership.records.truncate(kept);
        self.leadership.latest.clear();
        for (n, record) in self.leadership.records.iter().enumerate() {
            self.leadership.latest.insert((record.topic.clone(), record.subject.clone()), n);
        }
        self.log(format_args!("the journal is a backup that lacks {lacks} records"));
        self.checks.recount_attempts(&self.leadership.records);
    }
}

impl End {
    async fn disk(&self, range: std::ops::Range<u64>) {
        let latency = self.world.state().some(range);
        tokio::time::sleep(latency).await;
    }
}

#[async_trait]
impl LeadershipPort for End {
    async fn acquire(&self, above: u64) -> Result<u64> {
        self.disk(1..10).await;
        let mut state = self.world.state();
        let epoch = state.leadership.epoch.max(above) + 1;
        (state.leadership.epoch, state.leadership.leader) = (epoch, Some(self.controller));
        let controller = self.controller;
        state.log(format_args!("controller {controller} becomes the leader in epoch {epoch}"));
        Ok(epoch)
    }

    fn leads(&self) -> bool {
        self.world.state().leadership.leader == Some(self.controller)
    }
}

#[async_trait]
impl JournalPort for End {
    async fn append(&self, records: Vec<NewRecord>) -> Result<Vec<Record>> {
        let dies = self.dies();
        self.disk(0..4).await;
        let appended = self.world.state().append(self.controller, records);
        if dies {
            return self.die().await;
        }
        self.disk(0..2).await;
        appended
    }

    async fn read(&self, after: u64, limit: usize) -> Result<Vec<Record>> {
        let state = self.world.state();
        Ok(state.leadership.records.iter().skip(after as usize).take(limit.min(MAX_READ)).cloned().collect())
    }

    async fn ends(&self) -> Result<Option<(String, u64)>> {
        let state = self.world.state();
        let ends = state.leadership.records.first().zip(state.leadership.records.last());
        Ok(ends.map(|(first, last)| (first.hash.clone(), last.seq)))
    }

    async fn latest(&self, topic: &str) -> Result<Vec<Record>> {
        tokio::time::sleep(Duration::from_millis(1)).await;
        Ok(self.world.state().latest(topic))
    }

    async fn latest_of(&self, topic: &str, subject: &str) -> Result<Option<Record>> {
        tokio::time::sleep(Duration::from_millis(1)).await;
        Ok(self.world.state().latest_of(topic, subject).cloned())
    }
}
