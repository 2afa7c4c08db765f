//! Strict JSON that two readers cannot interpret differently.
//!
//! Invariants: an object has each key once; an object of a type is an object in the text. serde takes the last of two
//! equal keys in a map, and a list for a struct: `{"alive": true, "alive": false}` and `[[]]` would be valid replies,
//! and a reply may prove that a VM is dead (I2).
//! Alternatives considered: `deny_unknown_fields` on replies. Newer peers and other versions of Ceph have more fields.

use std::{fmt, marker::PhantomData};

use serde::{
    Deserialize, Deserializer, Serialize,
    de::{DeserializeOwned, DeserializeSeed, Error, MapAccess, SeqAccess, Visitor, value::MapAccessDeserializer},
};
use serde_json::{Map, Value};

/// A struct that is read only from an object. Its derive rejects duplicate keys.
pub(crate) struct Object<T>(pub(crate) T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Object<T>, D::Error> {
        struct OfMap<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for OfMap<T> {
            type Value = Object<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Object<T>, A::Error> {
                T::deserialize(MapAccessDeserializer::new(map)).map(Object)
            }
        }
        from.deserialize_map(OfMap(PhantomData))
    }
}

/// Parses any JSON and rejects duplicate keys.
pub(crate) fn value(text: &[u8]) -> serde_json::Result<Value> {
    let mut reader = serde_json::Deserializer::from_slice(text);
    let value = Once.deserialize(&mut reader)?;
    reader.end()?;
    Ok(value)
}

/// Reads a type from JSON; its structs only from objects.
pub(crate) fn read<T: DeserializeOwned + Serialize>(value: Value) -> serde_json::Result<T> {
    let read: T = serde_json::from_value(value.clone())?;
    match same_shape(&serde_json::to_value(&read)?, &value) {
        true => Ok(read),
        false => Err(serde_json::Error::custom("list in place of an object")),
    }
}

/// Whether both have objects and lists in the same places, where both have a value.
fn same_shape(read: &Value, said: &Value) -> bool {
    match (read, said) {
        (Value::Object(read), Value::Object(said)) => {
            read.iter().all(|(key, value)| said.get(key).is_none_or(|said| same_shape(value, said)))
        }
        (Value::Array(read), Value::Array(said)) => read.iter().zip(said).all(|(read, said)| same_shape(read, said)),
        (Value::Object(_), _) => false,
        _ => true,
    }
}

/// Reads any value as serde_json does, but rejects duplicate keys.
struct Once;

impl<'de> DeserializeSeed<'de> for Once {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<Value, D::Error> {
        from.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Once {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Value, A::Error> {
        let mut all = Vec::new();
        while let Some(value) = list.next_element_seed(Once)? {
            all.push(value);
        }
        Ok(all.into())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut all = Map::new();
        while let Some(key) = map.next_key::<String>()? {
            let value = map.next_value_seed(Once)?;
            if all.contains_key(&key) {
                return Err(A::Error::custom(format_args!("duplicate key {key:.40?} in an object")));
            }
            all.insert(key, value);
        }
        Ok(all.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Pair {
        a: bool,
        b: Vec<(u8, u8)>,
    }

    #[test]
    fn lists_for_objects_and_duplicate_keys_are_rejected() {
        let pair = Pair { a: true, b: vec![(1, 2)] };
        let text = r#"{"a": true, "b": [[1, 2]], "more": {}}"#;
        assert_eq!(read::<Pair>(value(text.as_bytes()).unwrap()).unwrap(), pair);
        assert_eq!(serde_json::from_str::<Object<Pair>>(text).unwrap().0, pair);
        for odd in ["[true, []]", "7", "null"] {
            assert!(read::<Pair>(value(odd.as_bytes()).unwrap()).is_err(), "{odd}");
            assert!(serde_json::from_str::<Object<Pair>>(odd).is_err(), "{odd}");
        }
        assert!(read::<Vec<Pair>>(value(b"[[true, []]]").unwrap()).is_err());
        for odd in [r#"{"a": true, "a": false}"#, r#"{"x": [{"a": 1, "a": 1}]}"#, "{} {}", "{"] {
            assert!(value(odd.as_bytes()).is_err(), "{odd}");
        }
    }
}
