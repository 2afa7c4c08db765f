//! The texts in a JSON value: what somebody said, wherever in an answer it stands.
//!
//! Purpose: one walk for whoever bounds, cleans or hides words. Rejected: a list of the fields that are free text; the next
//! field would be forgotten.

use serde_json::Value;

/// The same JSON, each text in it another; keys of extras of an error are texts too.
pub fn each(value: Value, change: &dyn Fn(&str) -> String) -> Value {
    match value {
        Value::String(said) => change(&said).into(),
        Value::Array(all) => all.into_iter().map(|of| each(of, change)).collect(),
        Value::Object(all) => all.into_iter().map(|(key, of)| (change(&key), each(of, change))).collect(),
        other => other,
    }
}
