//! Timers beside busy neighbours, in real time and virtual.

mod common;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use common::*;
use ringfence::{Accepts, Actor, Bus, Ctx, Handler, Kind, Lane, Result, testkit};

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

/// Notes with each tick, every 20 ms, how many messages its neighbour has handled.
struct Pacer {
    neighbour: Log,
    handled: Arc<parking_lot::Mutex<Vec<usize>>>,
}

impl Actor for Pacer {
    const KIND: Kind = Kind::new("pacer");
    fn accepts(_: &mut Accepts<Self>) {}
    fn started(&mut self, ctx: &mut Ctx<'_, Self>) {
        ctx.every(Duration::from_millis(20), |pacer, _| pacer.handled.lock().push(pacer.neighbour.lock().len()));
    }
}

/// runtime.md's measured hazard: with actix's own mailbox this is 2.02 s. Counted in messages of a millisecond at
/// least, as a machine with other work takes the processor from this test for longer than 30 ms.
#[test]
fn flood_delays_other_timers_by_less_than_30_ms() {
    let (log, handled) = (Log::default(), Arc::new(parking_lot::Mutex::new(vec![0])));
    let (l, h) = (log.clone(), handled.clone());
    actix::System::new().block_on(async move {
        let bus = Bus::new();
        let neighbour = l.clone();
        bus.spawn(uuid::Uuid::nil(), move || Pacer { neighbour: neighbour.clone(), handled: h.clone() }).unwrap();
        let flooded = bus.spawn(uuid::Uuid::nil(), move || Counter::logging(&l)).unwrap();
        tokio::task::yield_now().await;
        let started = Instant::now();
        for _ in 0..1999 {
            flooded.tell(Busy(1)).unwrap();
        }
        flooded.ask(Busy(1)).await.unwrap();
        assert!(started.elapsed() >= Duration::from_secs(2), "the flood was no flood");
    });
    let mut handled = handled.lock().clone();
    handled.push(log.lock().len());
    let longest = handled.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap();
    assert!(longest < 20 + 30, "a tick waited for {longest} messages of 1 ms");
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

/// Never idle: each callback of a task starts the next task, and each urgent message sends itself another one. Stops
/// after `FLOOD` of them, so that a starved test fails instead of running for ever.
struct Flooded {
    floods: Arc<AtomicU64>,
    by: Flood,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Flood {
    Tasks,
    Lane(Lane),
}

const FLOOD: u64 = 200_000;

impl Flooded {
    fn flood(&mut self, ctx: &mut Ctx<'_, Self>) {
        if self.floods.fetch_add(1, Relaxed) < FLOOD {
            match self.by {
                Flood::Tasks => drop(ctx.spawn(std::future::ready(()), |flooded, (), ctx| flooded.flood(ctx))),
                Flood::Lane(Lane::Control) => ctx.bus().tell(ctx.address(), Urgent(0)).unwrap(),
                Flood::Lane(_) => ctx.bus().tell(ctx.address(), Add(0)).unwrap(),
            }
        }
    }
}

impl Actor for Flooded {
    const KIND: Kind = Kind::new("flooded");
    fn accepts(accepts: &mut Accepts<Self>) {
        accepts.message::<Urgent>().message::<Add>();
    }
    fn started(&mut self, ctx: &mut Ctx<'_, Self>) {
        for _ in 0..1000 {
            self.flood(ctx);
        }
    }
}

impl Handler<Urgent> for Flooded {
    type Answer = Result<u64>;
    fn handle(&mut self, urgent: Urgent, ctx: &mut Ctx<'_, Self>) -> Self::Answer {
        match urgent.0 {
            0 => self.flood(ctx),
            // A callback that competes with the flood.
            1 => drop(ctx.spawn(std::future::ready(()), |flooded, (), _| {
                flooded.floods.fetch_add(FLOOD, Relaxed);
            })),
            _ => {}
        }
        Ok(self.floods.load(Relaxed))
    }
}

impl Handler<Add> for Flooded {
    type Answer = Result<u64>;
    fn handle(&mut self, add: Add, ctx: &mut Ctx<'_, Self>) -> Self::Answer {
        if add.0 == 0 {
            self.flood(ctx);
        }
        Ok(self.floods.load(Relaxed))
    }
}

fn flooded(world: &testkit::World, by: Flood) -> (ringfence::ActorRef<Flooded>, Arc<AtomicU64>) {
    let floods = Arc::new(AtomicU64::new(0));
    let f = floods.clone();
    (world.bus().spawn(world.id(), move || Flooded { floods: f.clone(), by }).unwrap(), floods)
}

/// Waits until the flood feeds itself. Time stands still under it.
async fn under_way(floods: &AtomicU64) {
    while floods.load(Relaxed) < 3000 {
        tokio::task::yield_now().await;
    }
}

#[test]
fn task_results_starve_no_lane() {
    testkit::run(|world| async move {
        let (flooded, floods) = flooded(&world, Flood::Tasks);
        under_way(&floods).await;
        // Handled within the first turns: control first, then the normal lane.
        let (urgent, add) = (flooded.ask(Urgent(2)), flooded.ask(Add(1)));
        let (urgent, add) = (urgent.await.unwrap(), add.await.unwrap());
        assert!(urgent <= add && add < FLOOD / 10, "handled after {urgent} and {add} callbacks");
        floods.fetch_add(FLOOD, Relaxed);
    });
}

#[test]
fn lanes_starve_no_task_result() {
    for lane in [Lane::Control, Lane::Normal] {
        testkit::run(|world| async move {
            let (flooded, floods) = flooded(&world, Flood::Lane(lane));
            under_way(&floods).await;
            flooded.ask(Urgent(1)).await.unwrap();
            world.until("the callback has run", || floods.load(Relaxed) >= FLOOD).await;
            let messages = floods.load(Relaxed) - FLOOD;
            assert!(messages < FLOOD / 10, "the callback ran after {messages} messages of the {lane:?} lane");
        });
    }
}

#[test]
fn stop_waits_for_no_flood() {
    for by in [Flood::Tasks, Flood::Lane(Lane::Control)] {
        testkit::run(|world| async move {
            let (flooded, floods) = flooded(&world, by);
            under_way(&floods).await;
            flooded.stop();
            world.until("it ended", || world.bus().is_empty()).await;
            let handled = floods.load(Relaxed);
            assert!(handled < FLOOD / 10, "it ended after {handled} of {by:?}");
        });
    }
}
