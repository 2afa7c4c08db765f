//! A typed message bus between actors, on actix, for programs that must not lose a message.
//!
//! An **actor** is a struct that only one thread accesses. A **message** is a struct with a typed reply. The **bus**
//! finds actors by address and delivers messages to them. Compared with channels:
//!
//! * every request gets exactly one answer: its reply, an error with the reason, or a timeout;
//! * every request has a deadline, which the requests of its handler inherit;
//! * mailboxes are bounded and have three lanes; a full lane rejects at once, and nothing is dropped silently;
//! * a panic in a handler fails one message; the actor is rebuilt, and the queued messages are handled;
//! * a busy actor does not delay the timers and the other actors of its thread;
//! * tests run in virtual time: a day of minute ticks takes milliseconds ([`testkit`]).
//!
//! # An actor in five minutes
//!
//! A message is plain data with one line that gives name, version and reply type. An actor lists the messages that it
//! accepts, and has one `impl Handler` per message:
//!
//! ```
//! use ringfence::{Accepts, Actor, Bus, Ctx, Handler, Kind, Result, message};
//! use serde::{Deserialize, Serialize};
//!
//! /// Adds to the sum and returns the sum.
//! #[derive(Debug, Serialize, Deserialize)]
//! struct Add(u64);
//! message!(Add, 1 => u64);            // version 1, the reply is a u64
//!
//! #[derive(Default)]
//! struct Counter {
//!     sum: u64,
//! }
//!
//! impl Actor for Counter {
//!     const KIND: Kind = Kind::new("counter");
//!
//!     fn accepts(accepts: &mut Accepts<Self>) {
//!         accepts.message::<Add>();
//!     }
//! }
//!
//! impl Handler<Add> for Counter {
//!     type Answer = Result<u64>;
//!
//!     fn handle(&mut self, add: Add, _: &mut Ctx<'_, Self>) -> Result<u64> {
//!         self.sum += add.0;
//!         Ok(self.sum)
//!     }
//! }
//!
//! # fn main() -> Result<()> {
//! actix::System::new().block_on(async {
//!     let bus = Bus::new();
//!     let id = uuid::Uuid::new_v4();
//!     let counter = bus.spawn(id, Counter::default)?;     // the factory also rebuilds it after a panic
//!
//!     counter.tell(Add(1))?;                              // without a reply
//!     assert_eq!(counter.ask(Add(2)).await?, 3);          // with a reply
//!
//!     // Without a reference, send to the address: kind and uuid.
//!     let address = ringfence::Address::new(Counter::KIND, id);
//!     assert_eq!(bus.ask(address, Add(4)).await?, 7);
//!     Ok(())
//! })
//! # }
//! ```
//!
//! # An event
//!
//! An event is a fact for any number of subscribers. Actors subscribe to its type; streams, such as a log or a web
//! page, match its topic with a glob:
//!
//! ```
//! # use ringfence::{Accepts, Actor, Bus, Ctx, EventHandler, Kind, Result, event};
//! # use serde::{Deserialize, Serialize};
//! #[derive(Clone, Debug, Serialize, Deserialize)]
//! struct DoorOpened { door: String }
//! event!(DoorOpened, "door.opened", 1, |e| e.door.clone());      // last: the subject
//!
//! #[derive(Default)]
//! struct Porter { seen: Vec<String> }
//!
//! impl Actor for Porter {
//!     const KIND: Kind = Kind::new("porter");
//!     fn accepts(accepts: &mut Accepts<Self>) {
//!         accepts.event::<DoorOpened>();
//!     }
//!     fn started(&mut self, ctx: &mut Ctx<'_, Self>) {
//!         ctx.subscribe::<DoorOpened>();
//!     }
//! }
//!
//! impl EventHandler<DoorOpened> for Porter {
//!     fn on_event(&mut self, event: &DoorOpened, _: &mut Ctx<'_, Self>) {
//!         self.seen.push(event.door.clone());
//!     }
//! }
//!
//! # fn main() -> Result<()> {
//! actix::System::new().block_on(async {
//!     let bus = Bus::new();
//!     let mut log = bus.subscribe("door.*")?;
//!     bus.spawn(uuid::Uuid::nil(), Porter::default)?;
//!     bus.publish(DoorOpened { door: "front".into() })?;
//!     let heard = log.recv().await.expect("it was published");
//!     assert_eq!((heard.topic, heard.subject()), ("door.opened", "front".to_owned()));
//!     Ok(())
//! })
//! # }
//! ```
//!
//! # A test
//!
//! [`testkit::run`] gives a test its own bus and virtual time. Time advances only when every task waits, so that a year
//! passes at once and every run is the same. A [`probe`](testkit::World::probe) replaces another actor. Enable the
//! feature
//! `testkit` in the dev-dependencies.
//!
//! ```
//! # use ringfence::{Accepts, Actor, Address, Ctx, Handler, Kind, AsyncReply, Result, message, testkit};
//! # use serde::{Deserialize, Serialize};
//! # use std::time::Duration;
//! # #[derive(Debug, Serialize, Deserialize)] struct Ring;
//! # message!(Ring, 1 => ());
//! # #[derive(Debug, Serialize, Deserialize)] struct WakeMe { after: Duration }
//! # message!(WakeMe, 1 => ());
//! struct Clock { bell: Address }
//! # impl Actor for Clock {
//! #     const KIND: Kind = Kind::new("clock");
//! #     fn accepts(accepts: &mut Accepts<Self>) { accepts.message::<WakeMe>(); }
//! # }
//!
//! impl Handler<WakeMe> for Clock {
//!     type Answer = Result<()>;
//!
//!     fn handle(&mut self, wake: WakeMe, ctx: &mut Ctx<'_, Self>) -> Result<()> {
//!         ctx.after(wake.after, |clock, ctx| {
//!             let _ = ctx.bus().tell(clock.bell, Ring);
//!         });
//!         Ok(())
//!     }
//! }
//!
//! testkit::run(|world| async move {
//!     let bell = world.probe::<Ring>(None, |_| Ok(()));
//!     let to = bell.address();
//!     let clock = world.bus().spawn(world.id(), move || Clock { bell: to }).unwrap();
//!     clock.ask(WakeMe { after: Duration::from_secs(365 * 24 * 3600) }).await.unwrap();
//!     tokio::time::sleep(Duration::from_secs(364 * 24 * 3600)).await;
//!     assert_eq!(bell.count(), 0);
//!     tokio::time::sleep(Duration::from_secs(24 * 3600 + 1)).await;
//!     assert_eq!(bell.count(), 1);
//! });
//! ```
//!
//! # Answers of a handler
//!
//! | type | use |
//! |---|---|
//! | `Result<Reply>` | the reply is known at once |
//! | [`AsyncReply`] | a future replies, beside the mailbox or alone ([`exclusive`](AsyncReply::exclusive)) |
//! | [`Promised`] | other code replies later through the [`Promise`] from [`Ctx::promise`] |
//!
//! ```
//! # use ringfence::{Accepts, Actor, Bus, Ctx, Handler, Kind, AsyncReply, Result, message};
//! # use serde::{Deserialize, Serialize};
//! # #[derive(Debug, Serialize, Deserialize)] struct Fetch(String);
//! # message!(Fetch, 1 => usize);
//! # struct Fetcher;
//! # impl Actor for Fetcher {
//! #     const KIND: Kind = Kind::new("fetcher");
//! #     fn accepts(accepts: &mut Accepts<Self>) { accepts.message::<Fetch>(); }
//! # }
//! # async fn download(what: String) -> Result<usize> { Ok(what.len()) }
//! impl Handler<Fetch> for Fetcher {
//!     type Answer = AsyncReply<usize>;
//!
//!     fn handle(&mut self, fetch: Fetch, _: &mut Ctx<'_, Self>) -> AsyncReply<usize> {
//!         // The actor handles other messages while the future runs.
//!         AsyncReply::new(async move { download(fetch.0).await })
//!     }
//! }
//! # actix::System::new().block_on(async {
//! #     let fetcher = Bus::new().spawn(uuid::Uuid::nil(), || Fetcher).unwrap();
//! #     assert_eq!(fetcher.ask(Fetch("abc".into())).await, Ok(3));
//! # });
//! ```
//!
//! # Errors
//!
//! Errors are [`ErrorCode`]s with a stable [`Code`]. The bus itself returns:
//!
//! | code | meaning |
//! |---|---|
//! | `SYS.1000` | the handler panicked, and the actor is rebuilt by its [`RestartPolicy`]; or an interceptor panicked |
//! | `SYS.1001` | the deadline passed; the work may still be done, so query the state |
//! | `SYS.1008` | the actor has no handler for the message |
//! | `SYS.1009` | no actor has the address |
//! | `SYS.1010` | the lane is full; retry later |
//! | `SYS.1012` | the actor stopped before it answered; its handler may have run |
//! | `SYS.1017` | the actor dropped the request; its handler may have run |
//!
//! [`Bus::dead_letters`] lists messages that no actor handled. [`Bus::inspect`] shows every actor with its lanes and
//! counts. An [`Interceptor`] can read, change, reject or answer every message. [`Ctx::watch`] reports the end of
//! another actor.
//!
//! # Deadlines outside handlers
//!
//! A handler and its futures inherit the deadline of their message. [`with_deadline`] carries it into a spawned task,
//! or sets one from outside; [`detached`] removes it.
//!
//! # Threads
//!
//! [`Bus::spawn`] runs an actor on the current thread, in an actix system or another `LocalSet` of tokio, and
//! [`Spawn::spawn_on`] on the thread of an actix arbiter. A message within a thread costs tens of nanoseconds; a
//! message to another thread also costs a wake-up of that thread. So actors with much traffic belong on one thread.
//! `make bench` compares the bus with actix, kameo, ractor, xtra and tokio's channels.
//!
//! Each module header states invariants and alternatives considered; longer arguments are in `docs/adr/`.

mod actor;
mod actor_ref;
mod answer;
mod any_mailbox;
mod ask;
mod bus;
mod context;
mod current;
mod dead_letter;
mod envelope;
mod event;
mod exit;
mod inspect;
mod interceptor;
mod mailbox;
mod mailbox_loop;
mod panicked;
mod registry;
mod request;
mod shared;
mod spawn;
mod stats;
mod supervise;
#[cfg(feature = "testkit")]
pub mod testkit;
mod topic;
mod watches;

pub use actor::{Accepts, Actor, EventHandler, Handler};
pub use actor_ref::ActorRef;
pub use answer::{AsyncReply, IntoAnswer, Promise, Promised};
pub use ask::Ask;
pub use bus::{Bus, DEFAULT_DEADLINE, OBSERVE_TIMEOUT};
pub use context::{Ctx, TaskHandle};
pub use current::{WithDeadline, deadline, detached, with_deadline};
pub use dead_letter::{DeadLetter, MAX_DEAD_LETTERS};
pub use event::{AnyEvent, MAX_STREAM_BACKLOG, Subscription};
pub use exit::Exit;
pub use inspect::{ActorSnapshot, LaneSnapshot, Snapshot};
pub use interceptor::{InterceptedMessage, Interceptor, Verdict};
pub use mailbox::{LaneLimits, MAX_RESULTS};
pub use mailbox_loop::{MAX_TURN, SLICE, TURN, UNTIMED};
pub use request::MIN_DEADLINE;
pub use spawn::Spawn;
pub use stats::{BusStats, MessageStats, export as export_metrics};
pub use supervise::RestartPolicy;
pub use topic::{Glob, MAX_GLOB_BYTES};

pub use ringfence_messages::{Address, Code, ErrorCode, Event, Kind, Lane, Message, Result, event, message};
