//! What makes a struct a message: its name, its version, its lane and the type of its reply.
//!
//! The traits live here and not in the bus, so that a message needs no runtime to exist.

use std::fmt::Debug;

use serde::{Serialize, de::DeserializeOwned};

/// The lane of a mailbox that a message travels in. A higher lane is always served first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Lane {
    /// Few and urgent: stop, fence, ping. Served before everything else.
    Control = 0,
    /// The common case.
    Normal = 1,
    /// Many and patient: inventory sweeps, statistics.
    Bulk = 2,
}

impl Lane {
    /// Every lane, in the order in which a mailbox serves them.
    pub const ALL: [Lane; 3] = [Lane::Control, Lane::Normal, Lane::Bulk];
}

/// A request that is answered exactly once: with its [`Message::Reply`], an error or a timeout.
///
/// Declare one with [`message!`](macro@crate::message); implementing the trait by hand is fine too.
pub trait Message: Serialize + DeserializeOwned + Debug + Send + 'static {
    /// The stable wire name, unique in the process. By convention the type's name.
    const NAME: &'static str;
    /// Raised whenever the fields change; a reader refuses a version it does not know.
    const VERSION: u16;
    /// The lane it travels in unless the sender says otherwise.
    const LANE: Lane = Lane::Normal;
    /// What the handler answers.
    type Reply: Serialize + DeserializeOwned + Debug + Send + 'static;
}

/// A past fact that is published to whoever subscribed to its topic. It has no reply.
pub trait Event: Serialize + DeserializeOwned + Clone + Debug + Send + Sync + 'static {
    /// Dotted lower-case path such as `host.status-changed`; subscribers match it with globs.
    const TOPIC: &'static str;
    /// Raised whenever the fields change.
    const VERSION: u16;
    /// What the fact is about, by name or uuid, for a reader of the journal.
    fn subject(&self) -> String;
}

/// Declares that a struct is a [`Message`]: `message!(Ping, 1 => Pong);`, with a lane if it is not the
/// normal one: `message!(Ping, 1, Lane::Control => Pong);`.
#[macro_export]
macro_rules! message {
    ($name:ident, $version:literal => $reply:ty) => {
        $crate::message!($name, $version, $crate::Lane::Normal => $reply);
    };
    ($name:ident, $version:literal, $lane:expr => $reply:ty) => {
        impl $crate::Message for $name {
            const NAME: &'static str = stringify!($name);
            const VERSION: u16 = $version;
            const LANE: $crate::Lane = $lane;
            type Reply = $reply;
        }
    };
}

/// Declares that a struct is an [`Event`]: `event!(DoorOpened, "door.opened", 1, |e| e.door.clone());`.
#[macro_export]
macro_rules! event {
    ($name:ident, $topic:literal, $version:literal, |$e:ident| $subject:expr) => {
        impl $crate::Event for $name {
            const TOPIC: &'static str = $topic;
            const VERSION: u16 = $version;
            fn subject(&self) -> String {
                let $e = self;
                $subject
            }
        }
    };
}
