//! Deadlines: inherited, never outlived; late replies dropped and counted; exactly one reply each.

mod common;

use std::time::Duration;

use common::*;
use proptest::prelude::*;
use ringfence::{
    Accepts, Actor, Address, AsyncReply, Bus, Code, Ctx, DEFAULT_DEADLINE, Handler, Kind, RestartPolicy, deadline,
    message,
    testkit::{self, World},
    with_deadline,
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

#[test]
fn expired_request_is_not_handled_by_an_idle_actor() {
    testkit::run(|world| async move {
        let log = Log::default();
        let l = log.clone();
        let counter = world.bus().spawn(world.id(), move || Counter::logging(&l)).unwrap();
        counter.ask(Add(0)).await.unwrap();
        let within = Duration::from_millis(10);
        let expired = (counter.ask_within(Add(1), within), counter.ask_within(Add(2), within));
        // As if another actor blocked this thread: 50 ms pass before the actor gets its turn.
        tokio::time::advance(Duration::from_millis(50)).await;
        assert_eq!(expired.0.await.unwrap_err().code, Code::TIMEOUT);
        assert_eq!(expired.1.await.unwrap_err().code, Code::TIMEOUT);
        counter.ask(Add(3)).await.unwrap();
        assert_eq!(*log.lock(), ["started", "0", "3"]);
    });
}

/// Sets timers, delays and restarts at the end of time; answers by its deadline.
struct Patience;

impl Actor for Patience {
    const KIND: Kind = Kind::new("patience");
    fn accepts(accepts: &mut Accepts<Self>) {
        accepts.message::<Add>().message::<Panic>();
    }
    fn started(&mut self, ctx: &mut Ctx<'_, Self>) {
        ctx.every(Duration::MAX, |_, _| unreachable!("the end of time"));
        ctx.after(Duration::MAX, |_, _| unreachable!("the end of time"));
    }
}

impl Handler<Add> for Patience {
    type Answer = ringfence::Result<u64>;
    fn handle(&mut self, add: Add, _: &mut Ctx<'_, Self>) -> Self::Answer {
        Ok(add.0)
    }
}

impl Handler<Panic> for Patience {
    type Answer = ringfence::Result<()>;
    fn handle(&mut self, message: Panic, _: &mut Ctx<'_, Self>) -> Self::Answer {
        panic!("{}", message.0)
    }
}

#[test]
fn every_duration_may_be_the_greatest() {
    testkit::run(|world| async move {
        let end = Duration::MAX;
        let policy = RestartPolicy { max: 10, window: end, backoff: end, backoff_ceiling: end };
        let patience = world.bus().actor(world.id(), || Patience).restarts(policy).spawn().unwrap();
        assert_eq!(patience.ask_within(Add(1), end).await, Ok(1));
        assert_eq!(world.bus().ask_within(patience.address(), Add(2), end).await, Ok(2));
        patience.ask(Panic("the first restart is immediate".into())).await.unwrap_err();
        assert_eq!(patience.ask_within(Add(3), end).await, Ok(3));
        patience.ask(Panic("the second one is not".into())).await.unwrap_err();
        let never = patience.ask_within(Add(4), end);
        assert!(tokio::time::timeout(Duration::from_secs(3600), never).await.is_err());
    });
}

/// Passes a message on from a separate task, as `Errand` says.
struct Courier(Address);

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
enum Errand {
    /// In a spawned task, under the deadline of the message.
    Carried,
    /// As `Carried`, with more time than the message has.
    Longer,
    /// In a spawned task without a deadline.
    Uncarried,
}
message!(Errand, 1 => Option<u64>);

impl Actor for Courier {
    const KIND: Kind = Kind::new("courier");
    fn accepts(accepts: &mut Accepts<Self>) {
        accepts.message::<Errand>();
    }
}

impl Handler<Errand> for Courier {
    type Answer = AsyncReply<Option<u64>>;
    fn handle(&mut self, errand: Errand, ctx: &mut Ctx<'_, Self>) -> Self::Answer {
        let (bus, to) = (ctx.bus().clone(), self.0);
        AsyncReply::new(async move {
            let ask = async move { bus.ask(to, Relay(0)).await };
            let day = tokio::time::Instant::now() + Duration::from_secs(24 * 3600);
            let task = match errand {
                Errand::Carried => tokio::spawn(with_deadline(deadline(), ask)),
                Errand::Longer => tokio::spawn(with_deadline(day, ask)),
                Errand::Uncarried => tokio::spawn(ask),
            };
            task.await.expect("the task does not panic")
        })
    }
}

#[test]
fn deadline_is_carried_over_a_spawned_task() {
    testkit::run(|world| async move {
        let relay = relayer(&world);
        let courier = world.bus().spawn(world.id(), move || Courier(relay)).unwrap();
        let (ten, default) = (Duration::from_secs(10), DEFAULT_DEADLINE.as_secs());
        assert_eq!(courier.ask_within(Errand::Carried, ten).await, Ok(Some(9)));
        assert_eq!(courier.ask_within(Errand::Longer, ten).await, Ok(Some(9)), "a child outlives its parent");
        assert_eq!(courier.ask_within(Errand::Uncarried, ten).await, Ok(Some(default - 1)));
        // From outside, as an HTTP request would.
        let within = tokio::time::Instant::now() + Duration::from_secs(5);
        let (bus, outside) = (world.bus().clone(), with_deadline(within, async { deadline() }).await);
        assert_eq!((outside, deadline()), (Some(within), None));
        assert_eq!(with_deadline(within, async { bus.ask(relay, Relay(0)).await }).await, Ok(Some(4)));
        // The deadline of an outer one applies to an inner one that allows more.
        let longer = within + Duration::from_secs(60);
        assert_eq!(with_deadline(within, with_deadline(longer, async { deadline() })).await, Some(within));
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
