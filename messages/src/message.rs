//! The traits of messages and events: name, version, lane and reply type.
//!
//! The traits are not in the bus, so that messages need no runtime.

use std::fmt::Debug;

use serde::{Serialize, de::DeserializeOwned};

/// A queue of a mailbox. A message of an earlier lane is always handled before one of a later lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Lane {
    /// Few and urgent messages: stop, fence, ping.
    Control = 0,
    /// All other messages.
    Normal = 1,
    /// Many messages that can wait: inventory queries, statistics.
    Bulk = 2,
}

impl Lane {
    /// Every lane, in the sequence in which a mailbox serves them.
    pub const ALL: [Lane; 3] = [Lane::Control, Lane::Normal, Lane::Bulk];
}

/// A request with exactly one answer: its [`Message::Reply`], an error or a timeout.
///
/// [`message!`](macro@crate::message) implements the trait; an implementation by hand is possible too.
pub trait Message: Serialize + DeserializeOwned + Debug + Send + 'static {
    /// Stable name on the wire, unique in the process. By convention the name of the type.
    const NAME: &'static str;
    /// Raised with every change of the fields. A decoder rejects an unknown version.
    const VERSION: u16;
    /// The lane, unless the sender selects another.
    const LANE: Lane = Lane::Normal;
    /// The handler's reply on success.
    type Reply: Serialize + DeserializeOwned + Debug + Send + 'static;
}

/// A past fact, published to all subscribers of its topic. An event has no reply.
pub trait Event: Serialize + DeserializeOwned + Clone + Debug + Send + Sync + 'static {
    /// Dotted lower-case path such as `host.status-changed`. Streams match topics with globs.
    const TOPIC: &'static str;
    /// Raised with every change of the fields.
    const VERSION: u16;
    /// The object of the event, by name or uuid, such as `vm1`.
    fn subject(&self) -> String;
}

/// Implements [`Message`]: `message!(Ping, 1 => Pong);`, or with a lane other than the normal one:
/// `message!(Ping, 1, Lane::Control => Pong);`.
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

/// Implements [`Event`], with an expression for the subject: `event!(DoorOpened, "door.opened", 1, |e|
/// e.door.clone());`.
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
