//! The strings of a JSON value, at any depth.
//!
//! Purpose: one walk for all code that bounds, cleans or hides text.
//! Alternatives considered: a list of the free-text fields; the next field would be forgotten.

use serde_json::Value;

/// The same JSON with every string changed, keys included: the extras of an error have free text as keys.
pub fn each(value: Value, change: &dyn Fn(&str) -> String) -> Value {
    match value {
        Value::String(said) => change(&said).into(),
        Value::Array(all) => all.into_iter().map(|item| each(item, change)).collect(),
        Value::Object(all) => all.into_iter().map(|(key, item)| (change(&key), each(item, change))).collect(),
        other => other,
    }
}
