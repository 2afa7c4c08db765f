//! The bus of Ringfence: typed messages between actors, for programs that must not lose one.

mod actor;
mod answer;
mod ask;
mod bus;
mod context;
mod current;
mod dead_letter;
mod envelope;
mod event;
mod inspect;
mod interceptor;
mod mailbox;
mod pump;
mod registry;
mod stats;
mod supervise;
#[cfg(feature = "testkit")]
pub mod testkit;
mod topic;

pub use actor::{Accepts, Actor, EventHandler, Exit, Handler};
pub use answer::{IntoAnswer, Later, Promise, Promised};
pub use ask::Ask;
pub use bus::{ActorRef, Bus, DEFAULT_DEADLINE, MIN_DEADLINE, OBSERVE_TIMEOUT, Spawn};
pub use context::{Ctx, TaskHandle};
pub use current::detached;
pub use dead_letter::{DeadLetter, MAX_DEAD_LETTERS};
pub use event::{AnyEvent, MAX_STREAM_BACKLOG, Subscription};
pub use inspect::{ActorSnapshot, LaneSnapshot, Snapshot};
pub use interceptor::{Interceptor, Letter, Verdict};
pub use mailbox::LaneLimits;
pub use pump::{MAX_TURN, SLICE, TURN, UNTIMED};
pub use stats::{BusStats, MessageStats, export as export_metrics};
pub use supervise::RestartPolicy;
pub use topic::{Glob, MAX_GLOB_BYTES};

pub use ringfence_messages::{Address, Code, ErrorCode, Event, Kind, Lane, Message, Result, event, message};
