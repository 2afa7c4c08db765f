//! Foreign code that panics outside a handler: interceptors, destructors, factories, `observe`, panic payloads.

mod common;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use common::*;
use ringfence::{
    Accepts, Actor, AsyncReply, Bus, Code, Ctx, ErrorCode, Handler, InterceptedMessage, Interceptor, Kind,
    RestartPolicy, Result, Verdict, message,
    testkit::{self, World},
};
use serde::{Deserialize, Serialize};

/// Panics at the gate whose number an `Add` has; `DoorOpened` panics at the third.
struct Mine;

impl Interceptor for Mine {
    fn before_send(&self, message: &mut InterceptedMessage<'_>) -> Verdict {
        assert!(message.get::<Add>() != Some(&Add(1001)), "mine at the first gate");
        Verdict::Pass
    }

    fn before_delivery(&self, message: &mut InterceptedMessage<'_>) -> Verdict {
        assert!(message.get::<Add>() != Some(&Add(1002)), "mine at the second gate");
        Verdict::Pass
    }

    fn before_publish(&self, _: &'static str, _: &mut dyn std::any::Any) -> Result<()> {
        panic!("mine at the third gate")
    }
}

#[test]
fn panicking_interceptor_fails_one_message_and_touches_no_actor() {
    testkit::run(|world| async move {
        world.bus().intercept(Mine);
        let counter = world.bus().spawn(world.id(), Counter::default).unwrap();
        assert_eq!(counter.ask(Add(5)).await, Ok(5));
        for (number, gate) in [(1001, "first gate"), (1002, "second gate")] {
            let (mined, behind) = (counter.ask(Add(number)), counter.ask(Add(0)));
            let error = mined.await.unwrap_err();
            assert_eq!((&error.code, error.details.contains(gate)), (&Code::INTERNAL, true), "{error}");
            assert_eq!(behind.await, Ok(5), "the state is kept and the queue too");
        }
        let error = world.bus().publish(DoorOpened("front".into())).unwrap_err();
        assert!(error.is(&Code::INTERNAL) && error.details.contains("third gate"), "{error}");
        assert_eq!(world.bus().inspect().await.actors[0].restarts, 0);
    });
}

/// Larger than the codec accepts.
#[derive(Debug, Serialize, Deserialize)]
struct Big(Vec<u8>);
message!(Big, 1 => ());

#[test]
fn tap_skips_and_counts_a_message_that_it_cannot_copy() {
    testkit::run(|world| async move {
        let probe = world.probe::<Big>(None, |_| Ok(()));
        let tap = world.tap::<Big>();
        assert_eq!(world.bus().ask(probe.address(), Big(vec![0; 2 << 20])).await, Ok(()));
        assert_eq!(world.bus().ask(probe.address(), Big(vec![1])).await, Ok(()));
        assert_eq!((probe.count(), tap.count(), tap.skipped()), (2, 1, 1));
    });
}

/// Panics when it is dropped, if it is armed.
#[derive(Debug, Serialize, Deserialize)]
struct Bomb {
    armed: bool,
}
message!(Bomb, 1 => Bomb);

impl Drop for Bomb {
    fn drop(&mut self) {
        assert!(!self.armed || std::thread::panicking(), "a bomb was dropped");
    }
}

fn bomb() -> Bomb {
    Bomb { armed: true }
}

/// Lets the carrier panic with a payload that is a bomb, or keep a bomb in a task, a timer or a future.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
enum Carry {
    Payload,
    /// The callback of a task in front of the bomb panics.
    BehindPanic,
    /// The callback of a task in front of the bomb stops the actor.
    BehindStop,
    Timer,
    Exclusive,
}
message!(Carry, 1 => u64);

/// Counts the messages that it handled, and is itself a bomb if it is armed.
struct Carrier {
    handled: u64,
    bomb: Option<Bomb>,
}

impl Carrier {
    fn harmless() -> Carrier {
        Carrier { handled: 0, bomb: None }
    }
}

impl Actor for Carrier {
    const KIND: Kind = Kind::new("carrier");

    fn accepts(accepts: &mut Accepts<Self>) {
        accepts.message::<Bomb>().message::<Carry>().message::<Add>().message::<Exclusive>().message::<Panic>();
    }

    fn stopped(&mut self) {
        assert!(self.bomb.is_none(), "the end of an armed carrier");
    }
}

impl Handler<Bomb> for Carrier {
    type Answer = Result<Bomb>;
    fn handle(&mut self, bomb: Bomb, _: &mut Ctx<'_, Self>) -> Self::Answer {
        self.handled += 1;
        Ok(bomb)
    }
}

impl Handler<Add> for Carrier {
    type Answer = Result<u64>;
    fn handle(&mut self, _: Add, _: &mut Ctx<'_, Self>) -> Self::Answer {
        self.handled += 1;
        Ok(self.handled)
    }
}

impl Handler<Panic> for Carrier {
    type Answer = Result<()>;
    fn handle(&mut self, message: Panic, _: &mut Ctx<'_, Self>) -> Self::Answer {
        panic!("{}", message.0)
    }
}

impl Handler<Exclusive> for Carrier {
    type Answer = AsyncReply<()>;
    fn handle(&mut self, message: Exclusive, _: &mut Ctx<'_, Self>) -> Self::Answer {
        AsyncReply::exclusive(async move {
            tokio::time::sleep(Duration::from_millis(message.0)).await;
            Ok(())
        })
    }
}

/// A future that is ready at once and panics when it is dropped.
struct BombFuture(#[allow(dead_code)] Bomb);

impl Future for BombFuture {
    type Output = Result<u64>;
    fn poll(self: std::pin::Pin<&mut Self>, _: &mut std::task::Context<'_>) -> std::task::Poll<Result<u64>> {
        std::task::Poll::Ready(Ok(7))
    }
}

impl Handler<Carry> for Carrier {
    type Answer = AsyncReply<u64>;
    fn handle(&mut self, carry: Carry, ctx: &mut Ctx<'_, Self>) -> Self::Answer {
        let carried = bomb();
        match carry {
            Carry::Payload => std::panic::panic_any(carried),
            Carry::Exclusive => return AsyncReply::exclusive(BombFuture(carried)),
            Carry::BehindPanic | Carry::BehindStop => {
                let stop = matches!(carry, Carry::BehindStop);
                ctx.spawn(std::future::ready(()), move |_, (), ctx| match stop {
                    true => ctx.stop(),
                    false => panic!("in front of the bomb"),
                });
                ctx.spawn(std::future::ready(carried), |_, carried, _| std::mem::forget(carried));
            }
            Carry::Timer => {
                drop(ctx.after(Duration::from_secs(3600), move |_, _| std::mem::forget(carried)));
            }
        }
        AsyncReply::new(std::future::ready(Ok(7)))
    }
}

/// Restarts without end, so that a restart shows as one.
fn patient() -> RestartPolicy {
    RestartPolicy { max: 1000, backoff: Duration::ZERO, ..RestartPolicy::default() }
}

fn carrier(world: &World) -> ringfence::ActorRef<Carrier> {
    world.bus().actor(world.id(), Carrier::harmless).restarts(patient()).spawn().unwrap()
}

async fn restarts(world: &World) -> u32 {
    world.bus().inspect().await.actors[0].restarts
}

#[test]
fn queued_message_with_a_panicking_drop_leaves_no_zombie() {
    testkit::run(|world| async move {
        let carrier = carrier(&world);
        let held = carrier.ask(Exclusive(10_000));
        tokio::time::sleep(Duration::from_millis(1)).await;
        let queued = (carrier.ask(bomb()), carrier.ask(Add(1)));
        carrier.stop();
        assert!(held.await.is_err());
        assert!(queued.0.await.unwrap_err().is(&Code::NODE_UNAVAILABLE));
        assert!(queued.1.await.unwrap_err().is(&Code::NODE_UNAVAILABLE), "the message behind the bomb is answered");
        world.until("the actor ended", || world.bus().is_empty()).await;
        world.bus().spawn(carrier.address().id, Carrier::harmless).expect("the address is free");
    });
}

#[test]
fn expired_message_with_a_panicking_drop_touches_no_actor() {
    testkit::run(|world| async move {
        let carrier = carrier(&world);
        let held = carrier.ask(Exclusive(100));
        tokio::time::sleep(Duration::from_millis(1)).await;
        let (expired, behind) = (carrier.ask_within(bomb(), Duration::from_millis(10)), carrier.ask(Add(1)));
        held.await.unwrap();
        assert!(expired.await.unwrap_err().is(&Code::TIMEOUT));
        assert_eq!((behind.await, restarts(&world).await), (Ok(1), 0));
    });
}

#[test]
fn untaken_reply_with_a_panicking_drop_touches_no_actor() {
    testkit::run(|world| async move {
        let carrier = carrier(&world);
        carrier.tell(bomb()).unwrap();
        assert_eq!((carrier.ask(Add(1)).await, restarts(&world).await), (Ok(2), 0));
    });
}

/// Rejects every bomb at the second gate.
struct BombSquad;

impl Interceptor for BombSquad {
    fn before_delivery(&self, message: &mut InterceptedMessage<'_>) -> Verdict {
        match message.get::<Bomb>() {
            Some(_) => Verdict::Veto(ErrorCode::new(Code::OPERATION, "no bombs")),
            None => Verdict::Pass,
        }
    }
}

#[test]
fn rejected_message_with_a_panicking_drop_touches_no_actor() {
    testkit::run(|world| async move {
        world.bus().intercept(BombSquad);
        let carrier = carrier(&world);
        let (rejected, behind) = (carrier.ask(bomb()), carrier.ask(Add(1)));
        assert_eq!(rejected.await.unwrap_err().details, "no bombs");
        assert_eq!((behind.await, restarts(&world).await), (Ok(1), 0));
    });
}

#[test]
fn panic_payload_with_a_panicking_drop_is_one_panic() {
    testkit::run(|world| async move {
        let carrier = carrier(&world);
        let (first, behind) = (carrier.ask(Carry::Payload), carrier.ask(Add(1)));
        assert!(first.await.unwrap_err().is(&Code::INTERNAL));
        assert_eq!((behind.await, restarts(&world).await), (Ok(1), 1));
    });
}

#[test]
fn callbacks_with_a_panicking_drop_end_with_their_incarnation() {
    testkit::run(|world| async move {
        let carrier = carrier(&world);
        for rebuilds in 1..=3 {
            // The rebuild drops two callbacks: one in the mailbox, one in the task of its timer.
            carrier.ask(Carry::Timer).await.unwrap();
            carrier.ask(Carry::BehindPanic).await.unwrap();
            tokio::time::sleep(Duration::from_millis(500)).await;
            assert_eq!((carrier.ask(Add(1)).await, restarts(&world).await), (Ok(1), rebuilds));
        }
        // So does the end of the actor.
        carrier.ask(Carry::Timer).await.unwrap();
        carrier.ask(Carry::BehindStop).await.unwrap();
        world.until("the actor ended", || world.bus().is_empty()).await;
    });
}

#[test]
fn exclusive_future_with_a_panicking_drop_releases_the_mailbox() {
    testkit::run(|world| async move {
        let carrier = carrier(&world);
        let (exclusive, behind) = (carrier.ask(Carry::Exclusive), carrier.ask(Add(1)));
        assert_eq!(exclusive.await, Ok(7));
        assert_eq!((behind.await, restarts(&world).await), (Ok(1), 0));
    });
}

#[test]
fn actor_and_factory_with_a_panicking_drop_leave_no_zombie() {
    testkit::run(|world| async move {
        let held = bomb();
        let factory = move || {
            let _held = &held;
            Carrier { handled: 0, bomb: Some(bomb()) }
        };
        let armed = world.bus().actor(world.id(), factory).restarts(patient()).spawn().unwrap();
        assert_eq!(armed.ask(Add(1)).await, Ok(1));
        armed.ask(Panic("boom".into())).await.unwrap_err();
        assert_eq!((armed.ask(Add(1)).await, restarts(&world).await), (Ok(1), 1));
        let (address, queued) = (armed.address(), armed.ask(Add(1)));
        armed.stop();
        assert!(queued.await.is_err());
        world.until("the actor ended", || !world.bus().is_alive(address)).await;
    });
}

/// Panics while it is observed.
struct Shy(u64);

impl Actor for Shy {
    const KIND: Kind = Kind::new("shy");
    fn accepts(accepts: &mut Accepts<Self>) {
        accepts.message::<Add>();
    }
    fn observe(&self) -> serde_json::Value {
        panic!("observed")
    }
}

impl Handler<Add> for Shy {
    type Answer = Result<u64>;
    fn handle(&mut self, add: Add, _: &mut Ctx<'_, Self>) -> Self::Answer {
        self.0 += add.0;
        Ok(self.0)
    }
}

#[test]
fn panic_in_observe_shows_null_and_keeps_the_state() {
    testkit::run(|world| async move {
        let shy = world.bus().spawn(world.id(), || Shy(0)).unwrap();
        shy.ask(Add(5)).await.unwrap();
        let before = world.elapsed();
        assert_eq!(world.bus().inspect().await.actors[0].state, serde_json::Value::Null);
        assert_eq!(world.elapsed(), before, "the snapshot waited for a state that does not come");
        assert_eq!((shy.ask(Add(0)).await, restarts(&world).await), (Ok(5), 0));
    });
}

#[test]
fn panic_cancels_no_reply_that_does_not_touch_the_actor() {
    testkit::run(|world| async move {
        let policy = patient();
        let counter = world.bus().actor(world.id(), Counter::default).restarts(policy).spawn().unwrap();
        let running: Vec<_> = (0..100).map(|n| counter.ask(Slow(100 + n))).collect();
        tokio::time::sleep(Duration::from_millis(10)).await;
        counter.ask(Panic("boom".into())).await.unwrap_err();
        for reply in running {
            assert_eq!(reply.await, Ok(()));
        }
        // The end of the actor does cancel them.
        let running = counter.ask(Slow(100));
        counter.ask(Add(0)).await.unwrap();
        counter.stop();
        assert!(running.await.unwrap_err().is(&Code::CANCELLED));
    });
}

#[test]
fn spawn_on_a_thread_that_ends_leaves_no_zombie() {
    actix::System::new().block_on(async {
        let (bus, arbiter) = (Bus::new(), actix::Arbiter::new());
        let handle = arbiter.handle();
        // The thread is busy until the request to stop is queued, so that the spawn is accepted and never runs.
        let go = Arc::new(AtomicBool::new(false));
        let busy = go.clone();
        handle.spawn_fn(move || {
            while !busy.load(Relaxed) {
                std::thread::yield_now();
            }
        });
        handle.stop();
        let counter = bus.actor(uuid::Uuid::nil(), Counter::default).spawn_on(&handle).expect("the thread runs yet");
        let waiting = counter.ask(Add(1));
        go.store(true, Relaxed);
        arbiter.join().unwrap();
        assert!(waiting.await.unwrap_err().is(&Code::NODE_UNAVAILABLE), "the message waited for an actor");
        assert!(bus.is_empty(), "the thread of the actor has ended");
        assert!(counter.ask(Add(2)).await.unwrap_err().is(&Code::NODE_UNAVAILABLE));
        bus.spawn(uuid::Uuid::nil(), Counter::default).expect("the address is free");
    });
}

/// Panics when a span of a handler is entered.
struct Subscriber;

impl tracing::Subscriber for Subscriber {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        metadata.is_span()
    }
    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }
    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}
    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
    fn event(&self, _: &tracing::Event<'_>) {}
    fn enter(&self, _: &tracing::span::Id) {
        panic!("in a subscriber")
    }
    fn exit(&self, _: &tracing::span::Id) {}
}

#[test]
fn panicking_log_subscriber_counts_as_a_panic_of_the_actor() {
    testkit::run(|world| async move {
        let counter = world.bus().actor(world.id(), Counter::default).restarts(patient()).spawn().unwrap();
        counter.ask(Add(5)).await.unwrap();
        let broken = tracing::subscriber::set_default(Subscriber);
        let logged = counter.ask(Add(6));
        assert!(logged.await.unwrap_err().is(&Code::NODE_UNAVAILABLE));
        drop(broken);
        assert_eq!((counter.ask(Add(1)).await, restarts(&world).await), (Ok(1), 1));
    });
}

#[test]
fn spawn_outside_a_local_task_set_leaves_no_zombie() {
    let bus = Bus::new();
    let spawned = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        bus.spawn(uuid::Uuid::nil(), Counter::default).map(|counter| counter.address())
    }));
    assert!(spawned.is_err(), "there is no runtime on this thread");
    assert!(bus.is_empty());
}
