//! A message bus between actors, for programs that must not lose a message: embeddable, typed, on actix.
//!
//! An **actor** is a struct that one thread alone touches. A **message** is a struct with a typed reply. The **bus**
//! finds actors by address and carries messages to them. What you get over plain channels:
//!
//! * every request is answered exactly once: with its reply, an error that says why, or a timeout;
//! * a deadline on every request, inherited by the requests that its handler makes;
//! * bounded mailboxes with three lanes; a full lane refuses at once, nothing is dropped in silence;
//! * a panic in a handler fails that one message; the actor is rebuilt and the messages behind it are handled;
//! * a busy actor does not hold up the timers and neighbours on its thread;
//! * tests in virtual time: a day of minute ticks takes milliseconds ([`testkit`]).
//!
//! # An actor in five minutes
//!
//! A message is plain data plus one line that names it, versions it and types its reply. An actor lists what it
//! accepts and has one `impl Handler` per message:
//!
//! ```
//! use ringfence::{Accepts, Actor, Bus, Ctx, Handler, Kind, Result, message};
//! use serde::{Deserialize, Serialize};
//!
//! /// Adds to the sum and answers it.
//! #[derive(Debug, Serialize, Deserialize)]
//! struct Add(u64);
//! message!(Add, 1 => u64);            // version 1, answered by a u64
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
//!     let counter = bus.spawn(id, Counter::default)?;     // the factory makes it, and makes it anew after a panic
//!
//!     counter.tell(Add(1))?;                              // no answer wanted
//!     assert_eq!(counter.ask(Add(2)).await?, 3);          // or wanted
//!
//!     // Who holds no reference asks by address: a kind and a uuid.
//!     let address = ringfence::Address::new(Counter::KIND, id);
//!     assert_eq!(bus.ask(address, Add(4)).await?, 7);
//!     Ok(())
//! })
//! # }
//! ```
//!
//! # An event
//!
//! A fact that whoever cares may hear. Its topic is for streams of everything that matches a glob (a log, a web
//! page); actors subscribe to its type:
//!
//! ```
//! # use ringfence::{Accepts, Actor, Bus, Ctx, EventHandler, Kind, Result, event};
//! # use serde::{Deserialize, Serialize};
//! #[derive(Clone, Debug, Serialize, Deserialize)]
//! struct DoorOpened { door: String }
//! event!(DoorOpened, "door.opened", 1, |e| e.door.clone());      // the last part: what it is about
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
//!     # tokio::task::yield_now().await;
//!     # tokio::task::yield_now().await;
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
//! [`testkit::run`] gives a test a bus of its own and virtual time: it moves only when everything waits, so that a
//! year passes at once and every run is the same. A [`probe`](testkit::World::probe) stands in for another actor. The
//! feature `testkit` belongs into your dev-dependencies.
//!
//! ```
//! # use ringfence::{Accepts, Actor, Address, Ctx, Handler, Kind, Later, Result, message, testkit};
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
//! # What a handler may answer
//!
//! | returns | when |
//! |---|---|
//! | `Result<Reply>` | it knows now |
//! | [`Later`] | a future answers, beside the mailbox ([`Later::new`]) or with the mailbox held ([`Later::exclusive`]) |
//! | [`Promised`] | something else will: keep the [`Promise`] from [`Ctx::promise`] |
//!
//! ```
//! # use ringfence::{Accepts, Actor, Bus, Ctx, Handler, Kind, Later, Result, message};
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
//!     type Answer = Later<usize>;
//!
//!     fn handle(&mut self, fetch: Fetch, _: &mut Ctx<'_, Self>) -> Later<usize> {
//!         Later::new(async move { download(fetch.0).await })       // other messages are handled meanwhile
//!     }
//! }
//! # actix::System::new().block_on(async {
//! #     let fetcher = Bus::new().spawn(uuid::Uuid::nil(), || Fetcher).unwrap();
//! #     assert_eq!(fetcher.ask(Fetch("abc".into())).await, Ok(3));
//! # });
//! ```
//!
//! # When things go wrong
//!
//! Errors are [`ErrorCode`]s with a stable [`Code`]. The bus's own:
//!
//! | code | means |
//! |---|---|
//! | `SYS.1000` | the handler panicked; the actor is rebuilt under its [`RestartPolicy`] |
//! | `SYS.1001` | the deadline passed. The work may still happen: ask, do not guess |
//! | `SYS.1008`, `SYS.1009` | it has no handler for that; nobody lives there |
//! | `SYS.1010` | its lane is full: try later |
//! | `SYS.1012`, `SYS.1017` | it ended first; it gave the request up |
//!
//! Messages that no actor handled are in [`Bus::dead_letters`]; [`Bus::inspect`] shows every actor, lane and count;
//! [`Interceptor`]s see, change, refuse or answer whatever passes; [`Ctx::watch`] tells when another actor ends.
//!
//! # Which thread
//!
//! [`Bus::spawn`] keeps an actor on the current thread, [`Spawn::spawn_on`] puts it on an actix arbiter's. A message
//! within a thread costs tens of nanoseconds, across threads a wake-up of the other: let actors that talk much share one.
//! `make bench` sets the bus beside actix, kameo, ractor, xtra and tokio's channels.
//!
//! Invariants of the design and what was rejected stand at the top of each module, and in `docs/adr/`.

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
