//! Journal records as lines of text.

use ringfence_actors::ports::Record;
use ringfence_messages::words;

/// A record as one line: number, time, topic, subject and main fields.
pub(crate) fn event_line(record: &Record) -> String {
    let Record { seq, time, topic, subject, .. } = record;
    words::clean(&format!("{seq:>6}  {time}  {topic:<32} {subject:<28} {}", event_summary(record)))
}

/// The main fields of a record.
pub(crate) fn event_summary(record: &Record) -> String {
    let fields = record.payload.as_object();
    let field = |key: &str| fields.and_then(|fields| fields.get(key)).filter(|value| !value.is_null());
    let change = |old: &str, new: &str| {
        let text =
            |key| field(key).map_or("-".to_owned(), |value| value.as_str().map_or(value.to_string(), str::to_owned));
        field(new).map(|_| format!("{} -> {}", text(old), text(new)))
    };
    let mut parts: Vec<String> =
        [("oldStatus", "newStatus"), ("oldState", "newState")].iter().filter_map(|(a, b)| change(a, b)).collect();
    for key in [
        "phase",
        "attempt",
        "skippedPings",
        "epoch",
        "level",
        "outcome",
        "quarantined",
        "engaged",
        "confirmed",
        "by",
        "draining",
        "moving",
        "reason",
    ] {
        if let Some(value) = field(key) {
            parts.push(format!("{key}={}", value.as_str().map_or(value.to_string(), |text| format!("{text:?}"))));
        }
    }
    parts.join(" ")
}
