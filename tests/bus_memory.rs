//! Nothing that the bus keeps grows with what has ended. Bytes are counted by the allocator of this program.

mod common;

use std::{alloc::System, time::Duration};

use common::*;
use parking_lot::{Mutex, MutexGuard};
use ringfence::{Accepts, Actor, Address, Bus, Ctx, Kind, RestartPolicy, testkit};
use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};
use uuid::Uuid;

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// One test at a time, as the counts are of the process.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock()
}

fn live() -> usize {
    let stats = ALLOCATOR.stats();
    stats.bytes_allocated - stats.bytes_deallocated
}

/// Bytes that further rounds leave behind, after rounds that fill what is kept once.
macro_rules! growth {
    ($rounds:expr, $round:expr) => {{
        for _ in 0..3 {
            $round;
        }
        let before = live();
        for _ in 0..$rounds {
            $round;
        }
        live().saturating_sub(before)
    }};
}

/// Watches one address from its start.
struct Watcher(Address);

impl Actor for Watcher {
    const KIND: Kind = Kind::new("watcher");
    fn accepts(_: &mut Accepts<Self>) {}
    fn started(&mut self, ctx: &mut Ctx<'_, Self>) {
        ctx.watch(self.0);
        ctx.after(Duration::from_millis(1), |_, ctx| ctx.stop());
    }
}

#[test]
fn watchers_that_ended_are_forgotten() {
    let _alone = alone();
    testkit::run(|world| async move {
        let bus = world.bus();
        let hub = bus.spawn(Uuid::nil(), Counter::default).unwrap().address();
        let grown = growth!(10, {
            for n in 1..=1000 {
                bus.spawn(Uuid::from_u128(n), move || Watcher(hub)).unwrap();
            }
            world.until("the watchers ended", || bus.len() == 1).await;
        });
        assert!(grown < 100_000, "10,000 watchers that ended hold {grown} bytes");
    });
}

#[test]
fn finished_replies_are_forgotten() {
    let _alone = alone();
    testkit::run(|world| async move {
        let actors: Vec<_> =
            (1..=200).map(|n| world.bus().spawn(Uuid::from_u128(n), Counter::default).unwrap()).collect();
        for actor in &actors {
            actor.ask(Slow(0)).await.unwrap();
        }
        let before = live();
        for _ in 0..30 {
            for actor in &actors {
                actor.ask(Slow(0)).await.unwrap();
            }
        }
        // The log of a counter grows by some bytes per message.
        let each = live().saturating_sub(before) / actors.len();
        assert!(each < 3000, "an idle actor holds {each} bytes more after 30 replies");
    });
}

/// Spawns a counter on this thread, sends it three types of messages and waits for its end.
fn counter_of_one_thread(bus: &Bus) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, async {
        let counter = bus.spawn(Uuid::nil(), Counter::default).unwrap();
        counter.tell(Urgent(1)).unwrap();
        counter.tell(Patient(1)).unwrap();
        counter.ask(Add(1)).await.unwrap();
        counter.stop();
        while !bus.is_empty() {
            tokio::task::yield_now().await;
        }
    });
}

#[test]
fn counts_of_threads_and_buses_that_ended_are_summed_up() {
    let _alone = alone();
    let bus = Bus::new();
    let grown = growth!(100, {
        let bus = bus.clone();
        std::thread::spawn(move || counter_of_one_thread(&bus)).join().unwrap();
    });
    assert!(grown < 10_000, "100 threads that ended hold {grown} bytes");
    let stats = futures_util::FutureExt::now_or_never(bus.inspect()).expect("nothing to wait for").stats;
    assert_eq!(stats.messages.iter().find(|m| m.name == "Add").unwrap().handled, 103, "a count is lost");

    let grown = growth!(100, counter_of_one_thread(&Bus::new()));
    assert!(grown < 10_000, "100 buses that ended hold {grown} bytes");
}

#[test]
fn snapshots_of_an_actor_that_does_not_answer_do_not_pile_up() {
    let _alone = alone();
    testkit::run(|world| async move {
        let day = Duration::from_secs(24 * 3600);
        let policy = RestartPolicy { window: day * 10, backoff: day, backoff_ceiling: day, ..RestartPolicy::default() };
        let counter = world.bus().actor(world.id(), Counter::default).restarts(policy).spawn().unwrap();
        for _ in 0..2 {
            counter.ask(Panic("boom".into())).await.unwrap_err();
        }
        let grown = growth!(1000, {
            world.bus().inspect().await;
        });
        assert!(grown < 10_000, "1000 snapshots hold {grown} bytes");
    });
}
