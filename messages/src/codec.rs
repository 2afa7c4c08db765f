//! The wire form of messages: a versioned envelope around a bincode payload.
//!
//! Invariants: decoding never allocates more than its limit allows, never panics, and rejects trailing bytes, unknown
//! names and unknown versions. Only this module uses bincode, so that it can be replaced.
//! Alternatives considered: bincode 2/3 and postcard (see `docs/adr/0002-bincode.md`); JSON between nodes (size, floats
//! as keys).
//!
//! Layout: `magic "RF"`, format `u8`, then one bincode body `{name, version, payload}`; the payload is
//! the message itself, encoded separately, so that an envelope can be read, routed and rejected without
//! its message type. Integers are fixed-size little-endian.

use bincode::Options;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{Code, ErrorCode, Message, Result};

/// The largest encoded message, 1 MiB. Too low: a page of the inventory does not fit. Too high: a hostile peer makes a
/// node allocate that much per connection.
pub const MAX_BYTES: u64 = 1 << 20;

const MAGIC: [u8; 2] = *b"RF";

/// Version of the envelope's layout. 1: name, version, payload.
pub const FORMAT: u8 = 1;

/// A decoded envelope with the encoded message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Envelope {
    /// [`Message::NAME`] of the sender.
    pub name: String,
    /// [`Message::VERSION`] of the sender.
    pub version: u16,
    /// The message, encoded by [`to_bytes`].
    pub payload: Vec<u8>,
}

fn options() -> impl Options {
    bincode::DefaultOptions::new().with_fixint_encoding().with_limit(MAX_BYTES)
}

fn malformed(what: &str, error: impl std::fmt::Display) -> ErrorCode {
    ErrorCode::new(Code::INVALID_ARGUMENT, format!("{what}: {error}"))
}

/// Encodes a value, such as a reply, without an envelope.
///
/// # Errors
/// `SYS.1007` if the encoding is larger than [`MAX_BYTES`].
pub fn to_bytes<T: Serialize>(value: &T) -> Result<Vec<u8>> {
    options().serialize(value).map_err(|e| malformed("cannot encode", e))
}

/// Decodes a value that [`to_bytes`] encoded.
///
/// # Errors
/// `SYS.1007` if the bytes are truncated, have a tail, exceed [`MAX_BYTES`] or are not of this type.
pub fn from_bytes<T: DeserializeOwned>(bytes: &[u8]) -> Result<T> {
    options().deserialize(bytes).map_err(|e| malformed("cannot decode", e))
}

/// Encodes a message in its envelope.
///
/// # Errors
/// `SYS.1007` if the encoding is larger than [`MAX_BYTES`].
pub fn encode<M: Message>(message: &M) -> Result<Vec<u8>> {
    let envelope = Envelope { name: M::NAME.to_owned(), version: M::VERSION, payload: to_bytes(message)? };
    let mut bytes = vec![MAGIC[0], MAGIC[1], FORMAT];
    bytes.extend(to_bytes(&envelope)?);
    Ok(bytes)
}

/// Decodes an envelope, but not the message in it.
///
/// # Errors
/// `SYS.1007` if the bytes are damaged or no envelope of a known format.
pub fn open(bytes: &[u8]) -> Result<Envelope> {
    let [m0, m1, format, body @ ..] = bytes else {
        return Err(malformed("not a message", format_args!("{} bytes are too few for an envelope", bytes.len())));
    };
    if [*m0, *m1] != MAGIC {
        return Err(malformed("not a message", format_args!("it starts with {m0:#04x} {m1:#04x}, not with \"RF\"")));
    }
    if *format != FORMAT {
        return Err(malformed("envelope format is unknown", format_args!("{format}; this node supports {FORMAT}")));
    }
    from_bytes(body)
}

/// Decodes an envelope and the message in it.
///
/// # Errors
/// `SYS.1008` if name or version of the message are not those of `M`; `SYS.1007` if the bytes are damaged.
pub fn decode<M: Message>(bytes: &[u8]) -> Result<M> {
    let envelope = open(bytes)?;
    if envelope.name != M::NAME || envelope.version != M::VERSION {
        let name: String = envelope.name.chars().take(80).collect();
        return Err(ErrorCode::new(
            Code::UNKNOWN_MESSAGE,
            format!("{name} version {} is unknown: expected {} version {}", envelope.version, M::NAME, M::VERSION),
        ));
    }
    from_bytes(&envelope.payload)
}
