//! Timers beside busy neighbours, in real time and virtual.

mod common;

use std::time::{Duration, Instant};

use common::*;
use ringfence::{Accepts, Actor, Bus, Ctx, Kind, testkit};

type Ticks = std::sync::Arc<parking_lot::Mutex<Vec<Duration>>>;

/// Notes when its ticks came.
struct Ticker {
    ticks: Ticks,
    period: Duration,
    busy: Duration,
}

impl Actor for Ticker {
    const KIND: Kind = Kind::new("ticker");
    fn accepts(_: &mut Accepts<Self>) {}
    fn started(&mut self, ctx: &mut Ctx<'_, Self>) {
        let born = tokio::time::Instant::now();
        ctx.every(self.period, move |ticker, ctx| {
            ticker.ticks.lock().push(born.elapsed());
            let busy = std::mem::take(&mut ticker.busy);
            if !busy.is_zero() {
                // Blocks this thread's virtual clock by going through a task: the tick comes back late.
                ctx.spawn(async move { tokio::time::advance(busy).await }, |_, (), _| {});
            }
        });
    }
}

/// runtime.md's measured hazard: with actix's own mailbox this is 2.02 s.
#[test]
fn flood_delays_other_timers_by_less_than_30_ms() {
    let ticks = Ticks::default();
    let t = ticks.clone();
    actix::System::new().block_on(async move {
        let bus = Bus::new();
        let period = Duration::from_millis(20);
        bus.spawn(uuid::Uuid::nil(), move || Ticker { ticks: t.clone(), period, busy: Duration::ZERO }).unwrap();
        let flooded = bus.spawn(uuid::Uuid::nil(), Counter::default).unwrap();
        tokio::task::yield_now().await;
        let started = Instant::now();
        for _ in 0..1999 {
            flooded.tell(Busy(1)).unwrap();
        }
        flooded.ask(Busy(1)).await.unwrap();
        assert!(started.elapsed() >= Duration::from_secs(2), "the flood was no flood");
    });
    let ticks = ticks.lock();
    assert!(ticks.len() >= 60, "only {} ticks in 2 s", ticks.len());
    let late = ticks.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap() - Duration::from_millis(20);
    assert!(late < Duration::from_millis(30), "a tick came {late:?} late");
}

#[test]
fn missed_ticks_are_skipped_not_caught_up() {
    let ticks = Ticks::default();
    let t = ticks.clone();
    testkit::run(|world| async move {
        let (period, busy) = (Duration::from_secs(1), Duration::from_millis(4500));
        let factory = move || Ticker { ticks: t.clone(), period, busy };
        world.bus().spawn(world.id(), factory).unwrap();
        tokio::time::sleep(Duration::from_millis(8500)).await;
    });
    let seconds: Vec<u64> = ticks.lock().iter().map(|t| t.as_millis() as u64 / 100).collect();
    // After the first tick 4.5 s pass at once: one late tick, then the old rhythm. Nothing in a burst.
    assert_eq!(seconds, [10, 55, 60, 70, 80, 90, 100, 110, 120, 130][..seconds.len()], "in tenths of a second");
    assert!(seconds.len() >= 4, "{seconds:?}");
}

#[test]
fn day_of_minute_ticks_is_fast_and_deterministic() {
    let run = || {
        let ticks = Ticks::default();
        let t = ticks.clone();
        testkit::run(|world| async move {
            let factory = move || Ticker { ticks: t.clone(), period: Duration::from_secs(60), busy: Duration::ZERO };
            world.bus().spawn(world.id(), factory).unwrap();
            tokio::time::sleep(Duration::from_secs(24 * 3600) + Duration::from_millis(1)).await;
        });
        let ticks = ticks.lock();
        (ticks.len(), ticks.clone())
    };
    let (first, second) = (run(), run());
    assert_eq!(first.0, 24 * 60);
    assert_eq!(first, second);
}
