//! The message to a receiver: a record of the journal and the hook.

use axum::body::Bytes;
use ringfence_actors::ports::Record;
use serde::Serialize;
use serde_json::json;
use uuid::Uuid;

/// Topic of the test event of `ringfence hooks test`. No record of the journal has it.
pub const TEST_TOPIC: &str = "ringfence.test";

/// One message, identical at every attempt.
#[derive(Clone, Debug)]
pub struct Notice {
    /// Stable over retries and restarts, so that receivers can deduplicate. Without a full stop, the separator of the
    /// signed text.
    pub id: String,
    /// Of the record; 0 for a test.
    pub seq: u64,
    /// Of the record.
    pub topic: String,
    /// Of the record.
    pub subject: String,
    /// The JSON.
    pub body: Bytes,
}

#[derive(Serialize)]
struct Body<'a> {
    #[serde(flatten)]
    record: &'a Record,
    webhook: About<'a>,
}

/// Fields that are not of the record.
#[derive(Serialize)]
struct About<'a> {
    id: &'a str,
    name: &'a str,
    test: bool,
}

impl Notice {
    /// The message of a hook for a record.
    pub fn of(hook: &str, record: &Record) -> Notice {
        // With the hash: a restored journal reuses sequence numbers for other records.
        let identity = format!("ringfence/hook/{hook}/{}/{}", record.seq, record.hash);
        Notice::build(hook, record, Uuid::new_v5(&Uuid::NAMESPACE_URL, identity.as_bytes()), false)
    }

    /// A test event.
    pub fn test(hook: &str) -> Notice {
        let record = Record {
            seq: 0,
            time: format!("{:.3}", jiff::Timestamp::now()),
            topic: TEST_TOPIC.to_owned(),
            subject: hook.to_owned(),
            payload: json!({ "text": "test of this hook by an operator; nothing happened" }),
            hash: String::new(),
        };
        Notice::build(hook, &record, Uuid::new_v4(), true)
    }

    fn build(hook: &str, record: &Record, id: Uuid, test: bool) -> Notice {
        let id = format!("msg_{}", id.simple());
        let body = Body { record, webhook: About { id: &id, name: hook, test } };
        let body = serde_json::to_vec(&body).unwrap_or_default().into();
        Notice { id, seq: record.seq, topic: record.topic.clone(), subject: record.subject.clone(), body }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_one_hooks_and_one_records_and_stable() {
        let record = |seq, hash: &str| Record {
            seq,
            time: "2026-11-21T10:00:00.000Z".to_owned(),
            topic: "ha.host-failed".to_owned(),
            subject: "host-a".to_owned(),
            payload: json!({ "host": "host-a" }),
            hash: hash.to_owned(),
        };
        let notice = Notice::of("ops", &record(7, "aa"));
        // A change here affects receivers: an updated controller would deliver events again under new ids.
        assert_eq!(notice.id, "msg_533b5784f4c3528ebf256d9a95f33407");
        let others = [
            Notice::of("pager", &record(7, "aa")),
            Notice::of("ops", &record(8, "aa")),
            Notice::of("ops", &record(7, "ab")),
        ];
        assert!(others.iter().all(|other| other.id != notice.id && !other.id.contains('.')));
        assert_eq!(
            serde_json::from_slice::<serde_json::Value>(&notice.body).unwrap(),
            json!({
                "seq": 7, "time": "2026-11-21T10:00:00.000Z", "topic": "ha.host-failed", "subject": "host-a",
                "payload": { "host": "host-a" }, "hash": "aa",
                "webhook": { "id": notice.id, "name": "ops", "test": false },
            })
        );
    }
}
