//! Shortens a record that does not fit, instead of losing it.
//!
//! Invariants: the result is an object of at most [`MAX_PAYLOAD_BYTES`] with [`MARK`]. Ids, numbers and short strings
//! stay, so that the event can still be decoded. Lists lose their ends only where shorter strings are not enough; a
//! consumer that decides by a list checks for the mark.
//! Alternatives considered: reject the record. The audit record of a fence would be lost.

use ringfence_messages::words;
use serde_json::{Map, Value, json};

use crate::ports::MAX_PAYLOAD_BYTES;

/// The field of a shortened record with its original size in bytes.
pub const MARK: &str = "shortenedFromBytes";

/// Attempts in order: bytes of each string, and length of each list.
const TRIES: [(usize, usize); 8] = [
    (4096, usize::MAX),
    (1024, usize::MAX),
    (256, usize::MAX),
    (64, usize::MAX),
    (64, 256),
    (64, 64),
    (64, 16),
    (64, 4),
];

/// The shortened payload.
pub(super) fn shortened(payload: &Value, bytes: usize) -> Value {
    let tries = TRIES.iter().map(|(words, list)| marked(cut(payload, *words, *list), bytes));
    let plain = || {
        let plain =
            payload.as_object().into_iter().flatten().filter(|(_, value)| !value.is_array() && !value.is_object());
        marked(cut(&plain.map(|(key, value)| (key.clone(), value.clone())).collect(), 64, 0), bytes)
    };
    let mut tries = tries.chain(std::iter::once_with(plain));
    tries.find(fits).unwrap_or_else(|| marked(Value::Null, bytes))
}

fn fits(payload: &Value) -> bool {
    payload.to_string().len() <= MAX_PAYLOAD_BYTES
}

fn marked(payload: Value, bytes: usize) -> Value {
    let mut all = match payload {
        Value::Object(all) => all,
        Value::Null => Map::new(),
        other => Map::from_iter([("value".to_owned(), other)]),
    };
    all.insert(MARK.to_owned(), json!(bytes));
    all.into()
}

fn cut(value: &Value, most: usize, list: usize) -> Value {
    match value {
        Value::String(said) => words::cut(said, most).into(),
        Value::Array(all) => all.iter().take(list).map(|item| cut(item, most, list)).collect(),
        Value::Object(all) => all.iter().map(|(key, item)| (key.clone(), cut(item, most, list))).collect(),
        other => other.clone(),
    }
}

#[cfg(test)]
mod tests {
    use ringfence_messages::{
        ClusterId, HostId, VmId,
        evidence::{Evidence, Source, Verdict},
        fence::{FenceOutcome, SiblingFenceAudited},
    };

    use super::*;

    fn short(payload: &Value) -> Value {
        let short = shortened(payload, payload.to_string().len());
        assert!(fits(&short) && short[MARK] == payload.to_string().len(), "{} bytes", short.to_string().len());
        short
    }

    #[test]
    fn shortened_fence_audit_is_still_decodable() {
        let host = HostId::from_name("host-a");
        let evidence = Evidence {
            host_uuid: host,
            source: Source::Sibling,
            verdict: Verdict::Alive,
            unknown: None,
            by: Some("host-b".to_owned()),
            machine: None,
            sight: None,
            after_ms: 7,
            said: "\u{1f600}".repeat(20_000),
        };
        let audit = SiblingFenceAudited {
            attempt: VmId::from_name("attempt").0,
            vm_uuid: VmId::from_name("vm1"),
            vm: "vm1".to_owned(),
            failed_host_uuid: host,
            failed_host: "host-a".to_owned(),
            cluster_uuid: ClusterId::from_name("c1"),
            ha_target_host_uuid: HostId::from_name("host-b"),
            outcome: FenceOutcome::FailedUnreachable,
            executor_host_uuid: None,
            reason: "x".repeat(70_000),
            evidence: vec![evidence; 30],
        };
        let told: SiblingFenceAudited = serde_json::from_value(short(&json!(audit))).unwrap();
        assert_eq!((told.attempt, told.vm_uuid, told.outcome), (audit.attempt, audit.vm_uuid, audit.outcome));
        assert_eq!((told.evidence.len(), told.evidence[29].verdict), (30, Verdict::Alive));
        assert!(told.reason.ends_with("(of 70000 bytes)"), "{}", told.reason);
    }

    #[test]
    fn any_payload_can_be_shortened() {
        let deep = (0..100).fold(json!(vec!["x".repeat(1000); 100]), |inner, _| json!([inner]));
        for huge in [
            json!({ "id": "a", "list": vec!["y".repeat(40); 10_000] }),
            json!({ "id": "a", "map": (0..10_000).map(|n| (n.to_string(), "z".into())).collect::<Map<_, _>>() }),
            json!((0..10_000).map(|n| (n.to_string(), "z".into())).collect::<Map<_, _>>()),
            json!("\u{0}".repeat(100_000)),
            json!(vec![vec![1; 1000]; 1000]),
            deep,
        ] {
            let short = short(&huge);
            if huge.get("id").is_some() {
                assert_eq!(short["id"], "a");
            }
        }
    }
}
