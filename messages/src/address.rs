//! The address of an actor: its kind and its uuid.

use std::fmt;

use serde::Serialize;
use uuid::Uuid;

/// The kind of an actor, such as `counter`: a short, constant, lower-case word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Kind(&'static str);

impl Kind {
    /// The kind with this text. Two kinds with the same text are equal.
    pub const fn new(name: &'static str) -> Kind {
        Kind(name)
    }

    /// The text, as it stands in an address.
    pub const fn as_str(self) -> &'static str {
        self.0
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

/// The address of one actor, displayed as `kind/uuid`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Address {
    /// Kind of the actor: one for each actor type.
    pub kind: Kind,
    /// Uuid of the actor, unique within its kind; nil for a [singleton](Address::singleton).
    pub id: Uuid,
}

impl Address {
    /// The address of the actor `id` of kind `kind`. Every typed id of this crate converts into a uuid.
    pub fn new(kind: Kind, id: impl Into<Uuid>) -> Address {
        Address { kind, id: id.into() }
    }

    /// The address of the only actor of a kind: its uuid is nil.
    pub const fn singleton(kind: Kind) -> Address {
        Address { kind, id: Uuid::nil() }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.kind, self.id)
    }
}
