//! Deadlines: inherited, never outlived; late replies dropped and counted; exactly one reply each.

mod common;

use std::time::Duration;

use common::*;
use proptest::prelude::*;
use ringfence::{
    Accepts, Actor, Address, AsyncReply, Bus, Code, Ctx, DEFAULT_DEADLINE, Handler, Kind, message,
    testkit::{self, World},
};
use serde::{Deserialize, Serialize};

/// Passed from relay to relay, each asking the next with 20 s of its own; the last says how long it has left.
#[derive(Debug, Serialize, Deserialize)]
struct Relay(u32);
message!(Relay, 1 => Option<u64>);

struct Relayer(Bus);

impl Actor for Relayer {
    const KIND: Kind = Kind::new("relayer");
    fn accepts(accepts: &mut Accepts<Self>) {
        accepts.message::<Relay>();
    }
}

impl Handler<Relay> for Relayer {
    type Answer = AsyncReply<Option<u64>>;
    fn handle(&mut self, Relay(hops): Relay, ctx: &mut Ctx<'_, Self>) -> Self::Answer {
        let (bus, me, deadline) = (self.0.clone(), ctx.address(), ctx.deadline());
        AsyncReply::new(async move {
            tokio::time::sleep(Duration::from_secs(1)).await;
            match hops {
                0 => Ok(deadline.map(|at| at.saturating_duration_since(tokio::time::Instant::now()).as_secs())),
                _ => bus.ask_within(me, Relay(hops - 1), Duration::from_secs(20)).await,
            }
        })
    }
}

fn relayer(world: &World) -> Address {
    let bus = world.bus().clone();
    world.bus().spawn(world.id(), move || Relayer(bus.clone())).unwrap().address()
}

#[test]
fn child_inherits_its_parents_deadline() {
    testkit::run(|world| async move {
        let relay = relayer(&world);
        // Three hops of a second each: of ten seconds seven are left, whatever a hop would allow by itself.
        assert_eq!(world.bus().ask_within(relay, Relay(2), Duration::from_secs(10)).await, Ok(Some(7)));
        // A hop's own, shorter deadline counts where the parent has more: the second hop has 19 of the first's 20.
        assert_eq!(world.bus().ask_within(relay, Relay(2), Duration::from_secs(100)).await, Ok(Some(18)));
    });
}

#[test]
fn last_hop_inherits_the_first_deadline() {
    testkit::run(|world| async move {
        let relay = relayer(&world);
        let error = world.bus().ask_within(relay, Relay(5), Duration::from_millis(2500)).await.unwrap_err();
        assert_eq!((error.code, world.elapsed()), (Code::TIMEOUT, Duration::from_millis(2500)));
    });
}

#[test]
fn late_reply_is_dropped_and_counted() {
    testkit::run(|world| async move {
        let log = Log::default();
        let l = log.clone();
        let counter = world.bus().spawn(world.id(), move || Counter::logging(&l)).unwrap();
        let late = counter.ask(Slow(DEFAULT_DEADLINE.as_millis() as u64 + 500)).await.unwrap_err();
        assert_eq!((late.code, world.elapsed()), (Code::TIMEOUT, DEFAULT_DEADLINE));
        let before = world.bus().inspect().await.stats;
        world.until("the work is done all the same", || log.lock().len() == 2).await;
        world.until("its reply is dropped", || true).await;
        let after = world.bus().inspect().await.stats;
        assert_eq!((after.late_replies - before.late_replies, before.timeouts), (1, 1));
    });
}

#[test]
fn dropped_ask_does_not_cancel_the_message() {
    testkit::run(|world| async move {
        let counter = world.bus().spawn(world.id(), Counter::default).unwrap();
        drop(counter.ask(Add(5)));
        drop(world.bus().ask(counter.address(), Add(6)));
        assert_eq!(counter.ask(Add(0)).await, Ok(11));
    });
}

#[test]
fn expired_request_is_not_handled() {
    testkit::run(|world| async move {
        let counter = world.bus().spawn(world.id(), Counter::default).unwrap();
        let blocked = counter.ask(Exclusive(1000));
        let expired = counter.ask_within(Add(5), Duration::from_millis(500));
        blocked.await.unwrap();
        assert_eq!(expired.await.unwrap_err().code, Code::TIMEOUT);
        assert_eq!(counter.ask(Add(0)).await, Ok(0));
        assert_eq!(world.bus().inspect().await.stats.expired, 1);
    });
}

#[test]
fn ask_without_time_left_sends_nothing() {
    testkit::run(|world| async move {
        let counter = world.bus().spawn(world.id(), Counter::default).unwrap();
        let error = counter.ask_within(Add(5), Duration::from_millis(1)).await.unwrap_err();
        assert_eq!((error.code, world.elapsed()), (Code::TIMEOUT, Duration::ZERO));
        assert_eq!(counter.ask(Add(0)).await, Ok(0));
    });
}

#[test]
fn dropped_promise_is_an_error() {
    testkit::run(|world| async move {
        let counter = world.bus().spawn(world.id(), Counter::default).unwrap();
        assert_eq!(counter.ask(Promise_(false)).await.unwrap_err().code, Code::CANCELLED);
        assert_eq!(counter.ask(Promise_(true)).await.unwrap_err().code, Code::TIMEOUT);
    });
}

#[derive(Clone, Debug)]
enum Step {
    Add,
    Panic,
    Slow(u64),
    Exclusive(u64),
    Promise(bool),
    Unknown,
    Stop,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => Just(Step::Add),
        2 => Just(Step::Panic),
        3 => (0..60_000u64).prop_map(Step::Slow),
        2 => (0..20_000u64).prop_map(Step::Exclusive),
        2 => any::<bool>().prop_map(Step::Promise),
        1 => Just(Step::Unknown),
        1 => Just(Step::Stop),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// I6: whatever happens to the actor, every request ends, once, and none later than its deadline.
    #[test]
    fn every_request_gets_exactly_one_reply(steps in prop::collection::vec(step(), 1..40)) {
        testkit::run(|world| async move {
            let counter = world.bus().spawn(world.id(), Counter::default).unwrap();
            let (to, bus) = (counter.address(), world.bus().clone());
            let mut asks = tokio::task::JoinSet::new();
            let count = steps.len();
            for step in steps {
                let bus = bus.clone();
                let counter = counter.clone();
                asks.spawn_local(async move {
                    match step {
                        Step::Add => bus.ask(to, Add(1)).await.map(|_| ()),
                        Step::Panic => bus.ask(to, Panic("!".into())).await,
                        Step::Slow(ms) => bus.ask(to, Slow(ms)).await,
                        Step::Exclusive(ms) => bus.ask(to, Exclusive(ms)).await,
                        Step::Promise(keep) => bus.ask(to, Promise_(keep)).await,
                        Step::Unknown => bus.ask(to, Relay(0)).await.map(|_| ()),
                        Step::Stop => {
                            tokio::time::sleep(Duration::from_millis(10)).await;
                            counter.stop();
                            Ok(())
                        }
                    }
                });
            }
            let mut ended = 0;
            while let Some(result) = asks.join_next().await {
                result.expect("an ask never panics").ok();
                ended += 1;
            }
            assert_eq!(ended, count);
            assert!(world.elapsed() <= DEFAULT_DEADLINE + Duration::from_millis(10), "{:?}", world.elapsed());
        });
    }
}
