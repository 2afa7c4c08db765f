//! What agents, MDS and the program on a failed host answer.
//!
//! Properties: nothing but the exact shape is an answer; "not alive" was said in so many words, once, by somebody who
//! was reached.

use reqwest::StatusCode;
use ringfence_drivers::{agent_client::parse_reply, node::sibling};
use ringfence_messages::{
    Code,
    agent::{AgentCommand, Done},
    fence::*,
    ha::*,
    host::*,
    vhost::*,
    vm::*,
    zbs::*,
};
use serde::{Deserialize, Deserializer, Serialize, de};
use serde_json::Value;

/// JSON whose objects name every key once: what two readers cannot understand differently. Written apart from the one
/// under test.
struct Once(Value);

impl<'de> Deserialize<'de> for Once {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Once, D::Error> {
        struct Reader;
        impl<'de> de::Visitor<'de> for Reader {
            type Value = Once;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("JSON")
            }
            fn visit_unit<E>(self) -> Result<Once, E> {
                Ok(Once(Value::Null))
            }
            fn visit_bool<E>(self, value: bool) -> Result<Once, E> {
                Ok(Once(value.into()))
            }
            fn visit_u64<E>(self, value: u64) -> Result<Once, E> {
                Ok(Once(value.into()))
            }
            fn visit_i64<E>(self, value: i64) -> Result<Once, E> {
                Ok(Once(value.into()))
            }
            fn visit_f64<E>(self, value: f64) -> Result<Once, E> {
                Ok(Once(value.into()))
            }
            fn visit_str<E>(self, value: &str) -> Result<Once, E> {
                Ok(Once(value.into()))
            }
            fn visit_seq<A: de::SeqAccess<'de>>(self, mut list: A) -> Result<Once, A::Error> {
                let mut all = Vec::new();
                while let Some(Once(value)) = list.next_element()? {
                    all.push(value);
                }
                Ok(Once(all.into()))
            }
            fn visit_map<A: de::MapAccess<'de>>(self, mut map: A) -> Result<Once, A::Error> {
                let mut all = serde_json::Map::new();
                while let Some((key, Once(value))) = map.next_entry::<String, Once>()? {
                    if all.insert(key, value).is_some() {
                        return Err(de::Error::custom("a key stands twice"));
                    }
                }
                Ok(Once(all.into()))
            }
        }
        from.deserialize_any(Reader)
    }
}

/// Everything that the reply says stands in the answer just so; what the answer leaves away may be filled in.
fn stands_in(reply: &Value, answer: &Value) -> bool {
    match (reply, answer) {
        (Value::Object(reply), Value::Object(answer)) => {
            reply.iter().all(|(key, value)| answer.get(key).is_none_or(|said| stands_in(value, said)))
        }
        (Value::Array(reply), Value::Array(answer)) => {
            reply.len() == answer.len() && reply.iter().zip(answer).all(|(reply, answer)| stands_in(reply, answer))
        }
        // Uuids are read in several forms and written in one.
        (Value::String(reply), Value::String(answer)) => {
            reply == answer || answer.replace('-', "").to_lowercase().contains(&reply.replace('-', ""))
        }
        _ => reply == answer,
    }
}

fn answer<C: AgentCommand>(status: StatusCode, body: &[u8]) {
    match parse_reply::<C::Reply>("http://10.77.0.11:7070/x", status, body) {
        Ok(reply) => {
            let Once(said) = serde_json::from_slice(body).expect("a reply is JSON in which no key stands twice");
            assert!(status.is_success() && said["success"] == true && said["error"].is_null(), "{said}");
            let reply = serde_json::to_value(&reply).expect("a reply can be written");
            assert!(stands_in(&reply, &said), "{reply} was read from {said}");
            // The one word that lets a VM be started elsewhere.
            if reply.get("alive") == Some(&Value::Bool(false)) {
                assert_eq!(said["alive"], false, "dead, though nobody said so: {said}");
            }
            if let Some(vms) = reply.get("vms") {
                assert_eq!(vms.as_array().map(Vec::len), said["vms"].as_array().map(Vec::len), "{said}");
            }
        }
        Err(error) if error.is(&Code::HTTP) => {}
        // Its own words, then: only a failure may have them.
        Err(_) => {
            let Once(said) = serde_json::from_slice(body).expect("an error is JSON in which no key stands twice");
            assert!(said["success"] == false && said["error"].is_object(), "{said}");
        }
    }
}

fn status(byte: usize) -> StatusCode {
    [StatusCode::OK, StatusCode::BAD_REQUEST, StatusCode::INTERNAL_SERVER_ERROR, StatusCode::NO_CONTENT][byte % 4]
}

/// An agent's: the first byte chooses the command and the status.
pub(crate) fn agent(bytes: &[u8]) {
    const COMMANDS: [fn(StatusCode, &[u8]); 12] = [
        answer::<SiblingFenceVmCmd>,
        answer::<ListVmsCmd>,
        answer::<ScanHostCmd>,
        answer::<HostPingCmd>,
        answer::<HostFactsCmd>,
        answer::<VhostTargetHealthCmd>,
        answer::<PrepareVhostTargetEnvCmd>,
        answer::<DeployVhostCmd>,
        answer::<CreateVhostBdevCmd>,
        answer::<StartVmCmd>,
        answer::<StopVmCmd>,
        answer::<DeleteVhostBdevCmd>,
    ];
    let Some((first, body)) = super::chosen(bytes) else { return };
    COMMANDS[first % 16 % COMMANDS.len()](status(first / 16), body);
}

/// An MDS's, likewise.
pub(crate) fn mds(bytes: &[u8]) {
    const COMMANDS: [fn(StatusCode, &[u8]); 5] = [
        answer::<CheckHostConnectionCmd>,
        answer::<CreateVhostBdevOnHostCmd>,
        answer::<MdsFactsCmd>,
        answer::<DeployClientCmd>,
        answer::<UpdateHostDependencyCmd>,
    ];
    const _: fn(Done) = |_| ();
    let Some((first, body)) = super::chosen(bytes) else { return };
    COMMANDS[first % 16 % COMMANDS.len()](status(first / 16), body);
}

/// The line that the program on a failed host prints.
pub(crate) fn sibling(bytes: &[u8]) {
    let Ok(said) = std::str::from_utf8(bytes) else { return };
    match sibling::parse_reply(said) {
        Ok(killed) => {
            let line = said.strip_suffix('\n').expect("a whole line");
            let Once(exact) = serde_json::from_str(line).expect("no key stands twice");
            assert_eq!(exact, written(&killed), "not in its exact shape: {line}");
        }
        Err(error) => assert_eq!(error.opaque.get("reason").map(String::as_str), Some("unparsable"), "{error}"),
    }
}

fn written(value: &impl Serialize) -> Value {
    serde_json::to_value(value).expect("it can be written")
}
