//! Test kit: virtual time on one thread, probes that replace actors, taps that record messages.
//!
//! Invariants: time advances only when every task waits, so that a day of minute ticks takes milliseconds and two runs
//! are the same; a test fails if an actor does not stop at its end.

use std::{
    cell::Cell,
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use parking_lot::Mutex;
use ringfence_messages::{Address, Kind, Message, Result, codec};
use tokio::time::Instant;
use uuid::Uuid;

use crate::{
    Accepts, Actor, Bus, Ctx, Handler, Interceptor,
    interceptor::{InterceptedMessage, Verdict},
};

/// Virtual time for actors to stop at the end of a test.
pub const STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// Time limit of [`World::until`], in virtual time.
pub const UNTIL_TIMEOUT: Duration = Duration::from_secs(24 * 3600);

/// Runs a test with its own bus in virtual time.
///
/// # Panics
/// If the test panics, or if an actor does not stop within [`STOP_TIMEOUT`] after it.
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
            assert!(Instant::now() < deadline, "actors did not stop after the test: {left:#?}");
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
    /// The bus of this test.
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

    /// Waits, in virtual time, until a condition is true. The condition is checked every millisecond.
    ///
    /// # Panics
    /// After [`UNTIL_TIMEOUT`], with `what`.
    pub async fn until(&self, what: &str, mut condition: impl FnMut() -> bool) {
        let deadline = Instant::now() + UNTIL_TIMEOUT;
        while !condition() {
            assert!(Instant::now() < deadline, "timed out after {UNTIL_TIMEOUT:?}: {what}");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// An actor that records every `M` and replies with the result of `answer`. It has a new address, or `at` to
    /// replace another actor.
    ///
    /// # Panics
    /// If an actor has the address already.
    pub fn probe<M: Message>(
        &self,
        at: Option<Address>,
        answer: impl FnMut(&M) -> Result<M::Reply> + Send + 'static,
    ) -> Probe<M> {
        let (seen, answer) = (Arc::new(Mutex::new(Vec::new())), Arc::new(Mutex::new(answer)));
        let address = at.unwrap_or(Address::new(PROBE, self.id()));
        let record = seen.clone();
        let factory = move || ProbeActor::<M> { seen: record.clone(), answer: answer.clone() };
        self.bus.actor(address.id, factory).at(address).spawn().expect("the address is free");
        Probe { address, seen }
    }

    /// Records every `M` that any actor gets from now on.
    pub fn tap<M: Message>(&self) -> Tap<M> {
        let (seen, skipped) = (Arc::default(), Arc::default());
        self.bus.intercept(TapInterceptor { seen: Arc::clone(&seen), skipped: Arc::clone(&skipped) });
        Tap { seen, skipped }
    }
}

const PROBE: Kind = Kind::new("probe");

/// A replacement for an actor, which records its messages.
pub struct Probe<M> {
    address: Address,
    seen: Arc<Mutex<Vec<M>>>,
}

impl<M> Probe<M> {
    /// The probe's address.
    pub fn address(&self) -> Address {
        self.address
    }

    /// The number of recorded messages.
    pub fn count(&self) -> usize {
        self.seen.lock().len()
    }

    /// Takes the recorded messages, oldest first.
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

/// A record of delivered messages.
pub struct Tap<M> {
    seen: Arc<Mutex<Vec<(Address, M)>>>,
    skipped: Arc<AtomicUsize>,
}

impl<M> Tap<M> {
    /// The number of recorded messages.
    pub fn count(&self) -> usize {
        self.seen.lock().len()
    }

    /// The number of messages that the tap could not copy: too large for the codec, or not readable back.
    pub fn skipped(&self) -> usize {
        self.skipped.load(Relaxed)
    }

    /// Takes the recorded messages with the address of their receiver, oldest first.
    pub fn take(&self) -> Vec<(Address, M)> {
        std::mem::take(&mut self.seen.lock())
    }
}

struct TapInterceptor<M> {
    seen: Arc<Mutex<Vec<(Address, M)>>>,
    skipped: Arc<AtomicUsize>,
}

impl<M: Message> Interceptor for TapInterceptor<M> {
    fn before_delivery(&self, intercepted: &mut InterceptedMessage<'_>) -> Verdict {
        if let Some(message) = intercepted.get::<M>() {
            // A message need not be Clone: copy it through its wire form.
            match codec::to_bytes(message).and_then(|bytes| codec::from_bytes(&bytes)) {
                Ok(copy) => self.seen.lock().push((intercepted.to, copy)),
                Err(_) => drop(self.skipped.fetch_add(1, Relaxed)),
            }
        }
        Verdict::Pass
    }
}
