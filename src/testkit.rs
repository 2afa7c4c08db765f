//! A world for tests: virtual time on one thread, probes that stand in for actors, taps on messages.
//!
//! Invariants: time moves only when everything waits, so a day of minute ticks takes milliseconds and two runs
//! are the same; a test that leaves an actor which does not stop fails.

use std::{cell::Cell, future::Future, sync::Arc, time::Duration};

use parking_lot::Mutex;
use ringfence_messages::{Address, Kind, Message, Result, codec};
use tokio::time::Instant;
use uuid::Uuid;

use crate::{
    Accepts, Actor, Bus, Ctx, Handler, Interceptor,
    interceptor::{Letter, Verdict},
};

/// Virtual time that actors have to stop in when the test ends.
pub const STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// Virtual time that [`World::until`] waits at most.
pub const UNTIL_TIMEOUT: Duration = Duration::from_secs(24 * 3600);

/// Runs a test in a world of its own.
///
/// # Panics
/// If the test panics, or if an actor of the world's bus does not stop within [`STOP_TIMEOUT`] afterwards.
pub fn run<F: Future<Output = ()>>(test: impl FnOnce(World) -> F) {
    let system = actix::System::with_tokio_rt(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build();
        runtime.expect("a runtime on this thread")
    });
    system.block_on(async {
        let world = World { bus: Bus::new(), born: Instant::now(), ids: Arc::default() };
        let bus = world.bus.clone();
        test(world).await;
        bus.stop_all();
        let deadline = Instant::now() + STOP_TIMEOUT;
        while !bus.is_empty() {
            let left = bus.inspect().await.actors;
            assert!(Instant::now() < deadline, "these actors outlive the test: {left:#?}");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    });
}

/// The world of one test.
#[derive(Clone)]
pub struct World {
    bus: Bus,
    born: Instant,
    ids: Arc<Mutex<Cell<u128>>>,
}

impl World {
    /// Its bus.
    pub fn bus(&self) -> &Bus {
        &self.bus
    }

    /// Virtual time since the test began.
    pub fn elapsed(&self) -> Duration {
        self.born.elapsed()
    }

    /// A new id: 1, 2, 3... the same on every run.
    pub fn id(&self) -> Uuid {
        let ids = self.ids.lock();
        ids.set(ids.get() + 1);
        Uuid::from_u128(ids.get())
    }

    /// Waits, in virtual time, until something is true; it is looked at every millisecond.
    ///
    /// # Panics
    /// After [`UNTIL_TIMEOUT`], with `what`.
    pub async fn until(&self, what: &str, mut is_so: impl FnMut() -> bool) {
        let deadline = Instant::now() + UNTIL_TIMEOUT;
        while !is_so() {
            assert!(Instant::now() < deadline, "waited {UNTIL_TIMEOUT:?} in vain until {what}");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// An actor that records every `M` and answers what `answer` says, under an address of its own or, with
    /// `at`, in the place of somebody.
    ///
    /// # Panics
    /// If somebody lives there.
    pub fn probe<M: Message>(
        &self,
        at: Option<Address>,
        answer: impl FnMut(&M) -> Result<M::Reply> + Send + 'static,
    ) -> Probe<M> {
        let (seen, answer) = (Arc::new(Mutex::new(Vec::new())), Arc::new(Mutex::new(answer)));
        let address = at.unwrap_or(Address::new(PROBE, self.id()));
        let record = seen.clone();
        let factory = move || ProbeActor::<M> { seen: record.clone(), answer: answer.clone() };
        self.bus.actor(address.id, factory).at(address).spawn().expect("nobody lives there");
        Probe { address, seen }
    }

    /// Records every `M` that is delivered to anybody from now on.
    pub fn tap<M: Message>(&self) -> Tap<M> {
        let seen = Arc::new(Mutex::new(Vec::new()));
        self.bus.intercept(TapInterceptor { seen: seen.clone() });
        Tap { seen }
    }
}

const PROBE: Kind = Kind::new("probe");

/// A stand-in for an actor.
pub struct Probe<M> {
    address: Address,
    seen: Arc<Mutex<Vec<M>>>,
}

impl<M> Probe<M> {
    /// Where it lives.
    pub fn address(&self) -> Address {
        self.address
    }

    /// How many messages came.
    pub fn count(&self) -> usize {
        self.seen.lock().len()
    }

    /// Takes the messages that came, in order.
    pub fn take(&self) -> Vec<M> {
        std::mem::take(&mut self.seen.lock())
    }
}

type Answering<M> = dyn FnMut(&M) -> Result<<M as Message>::Reply> + Send;

struct ProbeActor<M: Message> {
    seen: Arc<Mutex<Vec<M>>>,
    answer: Arc<Mutex<Answering<M>>>,
}

impl<M: Message> Actor for ProbeActor<M> {
    const KIND: Kind = PROBE;

    fn accepts(accepts: &mut Accepts<Self>) {
        accepts.message::<M>();
    }
}

impl<M: Message> Handler<M> for ProbeActor<M> {
    type Answer = Result<M::Reply>;

    fn handle(&mut self, message: M, _: &mut Ctx<'_, Self>) -> Self::Answer {
        let answer = (self.answer.lock())(&message);
        self.seen.lock().push(message);
        answer
    }
}

/// A record of what was delivered.
pub struct Tap<M> {
    seen: Arc<Mutex<Vec<(Address, M)>>>,
}

impl<M> Tap<M> {
    /// How many messages were delivered.
    pub fn count(&self) -> usize {
        self.seen.lock().len()
    }

    /// Takes the messages that were delivered, in order, with the address of who got them.
    pub fn take(&self) -> Vec<(Address, M)> {
        std::mem::take(&mut self.seen.lock())
    }
}

struct TapInterceptor<M> {
    seen: Arc<Mutex<Vec<(Address, M)>>>,
}

impl<M: Message> Interceptor for TapInterceptor<M> {
    fn before_delivery(&self, letter: &mut Letter<'_>) -> Verdict {
        if let Some(message) = letter.get::<M>() {
            // A message need not be Clone; its wire form always is.
            let copy = codec::to_bytes(message).and_then(|bytes| codec::from_bytes(&bytes));
            self.seen.lock().push((letter.to, copy.expect("a message survives its own codec")));
        }
        Verdict::Pass
    }
}
