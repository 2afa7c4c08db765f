//! The wire form of messages: a versioned envelope around a bincode payload.
//!
//! Invariants: decoding never allocates more than its limit allows, never panics, refuses trailing bytes,
//! unknown names and versions. bincode is kept behind this one module, so that it can be replaced.
//! Rejected: bincode 2/3 and postcard (see `docs/adr/0002-bincode.md`); JSON between nodes (size, floats as keys).
//!
//! Layout: `magic "RF"`, format `u8`, then one bincode body `{name, version, payload}`; the payload is
//! the message itself, encoded on its own so that an envelope can be read, routed and refused without
//! knowing the message. Integers are fixed-size little-endian.

use bincode::Options;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{Code, ErrorCode, Message, Result};

/// The largest encoded message, 1 MiB. Too low: an inventory page does not fit. Too high: a hostile peer
/// makes a node allocate that much per connection.
pub const MAX_BYTES: u64 = 1 << 20;

const MAGIC: [u8; 2] = *b"RF";

/// The format of the envelope itself. 1: name, version, payload.
pub const FORMAT: u8 = 1;

/// An opened envelope: which message it holds, and the message's own bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Envelope {
    /// [`Message::NAME`] of the sender.
    pub name: String,
    /// [`Message::VERSION`] of the sender.
    pub version: u16,
    /// The encoded message.
    pub payload: Vec<u8>,
}

fn options() -> impl Options {
    bincode::DefaultOptions::new().with_fixint_encoding().with_limit(MAX_BYTES)
}

fn malformed(what: &str, error: impl std::fmt::Display) -> ErrorCode {
    ErrorCode::new(Code::INVALID_ARGUMENT, format!("{what}: {error}"))
}

/// Encodes any wire value (a reply, say) without an envelope.
///
/// # Errors
/// `SYS.1007` if it would be larger than [`MAX_BYTES`].
pub fn to_bytes<T: Serialize>(value: &T) -> Result<Vec<u8>> {
    options().serialize(value).map_err(|e| malformed("cannot encode", e))
}

/// Decodes a wire value that [`to_bytes`] made.
///
/// # Errors
/// `SYS.1007` if the bytes are cut short, too many, too large or not of this type.
pub fn from_bytes<T: DeserializeOwned>(bytes: &[u8]) -> Result<T> {
    options().deserialize(bytes).map_err(|e| malformed("cannot decode", e))
}

/// Encodes a message in its envelope.
///
/// # Errors
/// `SYS.1007` if it would be larger than [`MAX_BYTES`].
pub fn encode<M: Message>(message: &M) -> Result<Vec<u8>> {
    let envelope = Envelope { name: M::NAME.to_owned(), version: M::VERSION, payload: to_bytes(message)? };
    let mut bytes = vec![MAGIC[0], MAGIC[1], FORMAT];
    bytes.extend(to_bytes(&envelope)?);
    Ok(bytes)
}

/// Opens an envelope without looking at the message.
///
/// # Errors
/// `SYS.1007` if it is not an envelope of a known format or is damaged.
pub fn open(bytes: &[u8]) -> Result<Envelope> {
    let [m0, m1, format, body @ ..] = bytes else {
        return Err(malformed("not a message", format_args!("{} bytes are too few for an envelope", bytes.len())));
    };
    if [*m0, *m1] != MAGIC {
        return Err(malformed("not a message", format_args!("it starts with {m0:#04x} {m1:#04x}, not with \"RF\"")));
    }
    if *format != FORMAT {
        return Err(malformed("unknown envelope format", format_args!("{format}; this node speaks {FORMAT}")));
    }
    from_bytes(body)
}

/// Opens an envelope and decodes the message in it.
///
/// # Errors
/// `SYS.1008` if it holds another message or another version than `M`'s; `SYS.1007` if it is damaged.
pub fn decode<M: Message>(bytes: &[u8]) -> Result<M> {
    let envelope = open(bytes)?;
    if envelope.name != M::NAME || envelope.version != M::VERSION {
        let name: String = envelope.name.chars().take(80).collect();
        return Err(ErrorCode::new(
            Code::UNKNOWN_MESSAGE,
            format!("got {name} version {}, expected {} version {}", envelope.version, M::NAME, M::VERSION),
        ));
    }
    from_bytes(&envelope.payload)
}
