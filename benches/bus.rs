//! The bus beside raw actix, kameo, ractor, xtra and tokio's mpsc, in one run; then a table of ratios.
//!
//! `make bench`. Times of a noisy machine mean nothing alone; the ratios beside each other do.
#![allow(missing_docs, unreachable_pub, clippy::print_stdout)]

use std::{
    future::Future,
    time::{Duration, Instant},
};

use criterion::{BenchmarkGroup, Criterion, async_executor::AsyncExecutor, measurement::WallTime};
use futures_util::future::join_all;
use ringfence::{Actor, Address};
use ringfence_benches::peers::{
    Peer,
    on_kameo::Kameo,
    on_ractor::Ractor,
    on_xtra::Xtra,
    raw_actix::{self, Actix},
    ringfence_bus::{Add, Added, Ringfence, Sum},
    tokio_mpsc::Mpsc,
};
use uuid::Uuid;

/// Tells between two looks at whether they were handled.
const BATCH: u64 = 1000;

/// Asks in flight at once.
const IN_FLIGHT: u64 = 256;

/// Actors that one is picked from by address.
const CROWD: u128 = 100_000;

/// Subscribers of one event.
const AUDIENCE: u128 = 100;

struct System(actix::SystemRunner);

impl AsyncExecutor for &System {
    fn block_on<T>(&self, future: impl Future<Output = T>) -> T {
        self.0.block_on(future)
    }
}

/// Steps through a crowd so that no two steps in a row are neighbours.
fn stride(n: u64) -> u128 {
    u128::from(n.wrapping_mul(61_803) % CROWD as u64)
}

/// Measures what `work` does with one actor, per its count.
fn with_one<P: Peer>(
    group: &mut BenchmarkGroup<'_, WallTime>,
    system: &System,
    work: impl AsyncFn(&P, &P::Ref, u64) + Copy,
) {
    group.bench_function(P::NAME, |b| {
        b.to_async(system).iter_custom(|count| async move {
            let peer = P::default();
            let to = peer.spawn(1).await;
            let began = Instant::now();
            work(&peer, &to, count).await;
            let took = began.elapsed();
            peer.stop(to);
            took
        });
    });
}

/// One iteration is one message, handled.
fn tell<P: Peer>(group: &mut BenchmarkGroup<'_, WallTime>, system: &System) {
    with_one::<P>(group, system, async |peer, to, count| {
        let mut left = count;
        while left > 0 {
            let batch = left.min(BATCH);
            for n in 0..batch {
                peer.tell(to, n).await;
            }
            peer.ask(to, 0).await;
            left -= batch;
        }
    });
}

fn ask<P: Peer>(group: &mut BenchmarkGroup<'_, WallTime>, system: &System) {
    with_one::<P>(group, system, async |peer, to, count| {
        for n in 0..count {
            peer.ask(to, n).await;
        }
    });
}

/// One iteration is one ask.
fn ask_in_flight<P: Peer>(group: &mut BenchmarkGroup<'_, WallTime>, system: &System) {
    with_one::<P>(group, system, async |peer, to, count| {
        let mut left = count;
        while left > 0 {
            let batch = left.min(IN_FLIGHT);
            join_all((0..batch).map(|n| peer.ask(to, n))).await;
            left -= batch;
        }
    });
}

/// From nothing to an actor that answered.
fn spawn<P: Peer>(group: &mut BenchmarkGroup<'_, WallTime>, system: &System) {
    group.bench_function(P::NAME, |b| {
        b.to_async(system).iter_custom(|count| async move {
            let peer = P::default();
            let (mut took, mut left, mut id) = (Duration::ZERO, count, 0);
            while left > 0 {
                let batch = left.min(BATCH);
                let mut actors = Vec::with_capacity(batch as usize);
                let began = Instant::now();
                for _ in 0..batch {
                    id += 1;
                    actors.push(peer.spawn(id).await);
                }
                // The last one was spawned last and runs last.
                let last = actors.last().expect("at least one").clone();
                peer.ask(&last, 0).await;
                took += began.elapsed();
                drop(last);
                actors.into_iter().for_each(|actor| peer.stop(actor));
                // Untimed: they end.
                for _ in 0..4 {
                    tokio::task::yield_now().await;
                }
                left -= batch;
            }
            took
        });
    });
}

/// Ringfence finds one of many by its address; actix is handed the right one.
fn ask_by_address(criterion: &mut Criterion, system: &System) {
    let mut group = criterion.benchmark_group("ask by address");
    {
        let ringfence = Ringfence::default();
        (&system).block_on(async {
            for n in 0..CROWD {
                ringfence.spawn(n).await;
            }
        });
        let bus = &ringfence.0;
        group.bench_function(Ringfence::NAME, |b| {
            b.to_async(system).iter_custom(|count| async move {
                let began = Instant::now();
                for n in 0..count {
                    let to = Address::new(Sum::KIND, Uuid::from_u128(stride(n)));
                    bus.ask(to, Add(n)).await.expect("an answer");
                }
                began.elapsed()
            });
        });
        bus.stop_all();
        (&system).block_on(async {
            while !bus.is_empty() {
                tokio::task::yield_now().await;
            }
        });
    }
    let addresses: Vec<actix::Addr<raw_actix::Sum>> = (&system).block_on(async {
        let mut all = Vec::new();
        for n in 0..CROWD {
            all.push(Actix.spawn(n).await);
        }
        all
    });
    let addresses = &addresses;
    group.bench_function(Actix::NAME, |b| {
        b.to_async(system).iter_custom(|count| async move {
            let began = Instant::now();
            for n in 0..count {
                Actix.ask(&addresses[stride(n) as usize], n).await;
            }
            began.elapsed()
        });
    });
    group.finish();
}

/// One event to [`AUDIENCE`] actors, until the last has heard it.
fn publish(criterion: &mut Criterion, system: &System) {
    let mut group = criterion.benchmark_group("publish");
    group.bench_function(Ringfence::NAME, |b| {
        b.to_async(system).iter_custom(|count| async move {
            let ringfence = Ringfence::default();
            let mut last = None;
            for n in 0..AUDIENCE {
                last = Some(ringfence.0.spawn(Uuid::from_u128(n), Sum::listening).expect("a fresh address"));
            }
            let last = last.expect("an audience");
            ringfence.ask(&last, 0).await;
            let began = Instant::now();
            for n in 0..count {
                ringfence.0.publish(Added(n)).expect("no veto");
                ringfence.ask(&last, 0).await;
            }
            let took = began.elapsed();
            ringfence.0.stop_all();
            took
        });
    });
    by_hand::<Actix>(&mut group, system);
    by_hand::<Kameo>(&mut group, system);
    by_hand::<Ractor>(&mut group, system);
    by_hand::<Xtra>(&mut group, system);
    by_hand::<Mpsc>(&mut group, system);
    group.finish();
}

/// What has no topics sends to each.
fn by_hand<P: Peer>(group: &mut BenchmarkGroup<'_, WallTime>, system: &System) {
    group.bench_function(P::NAME, |b| {
        b.to_async(system).iter_custom(|count| async move {
            let peer = P::default();
            let mut audience = Vec::new();
            for n in 0..AUDIENCE {
                audience.push(peer.spawn(n).await);
            }
            let last = audience.last().expect("an audience").clone();
            peer.ask(&last, 0).await;
            let began = Instant::now();
            for n in 0..count {
                for actor in &audience {
                    peer.tell(actor, n).await;
                }
                peer.ask(&last, 0).await;
            }
            let took = began.elapsed();
            drop(last);
            audience.into_iter().for_each(|actor| peer.stop(actor));
            took
        });
    });
}

macro_rules! all_peers {
    ($criterion:expr, $system:expr, $name:literal, $bench:ident) => {{
        let mut group = $criterion.benchmark_group($name);
        $bench::<Ringfence>(&mut group, $system);
        $bench::<Actix>(&mut group, $system);
        $bench::<Kameo>(&mut group, $system);
        $bench::<Ractor>(&mut group, $system);
        $bench::<Xtra>(&mut group, $system);
        $bench::<Mpsc>(&mut group, $system);
        group.finish();
    }};
}

/// What each row must keep to, in words; see README, "How fast".
const ROWS: [(&str, &str); 6] = [
    ("tell", "at most 1.5 x actix"),
    ("ask", "at most 1.3 x actix"),
    ("ask, 256 in flight", ""),
    ("spawn", "faster than ractor and kameo"),
    ("ask by address", "1 of 100,000; at most 1.6 x actix"),
    ("publish", "to 100 actors"),
];

/// Reads what criterion has measured in this run and sets it side by side, each as a multiple of actix.
fn table() {
    let peers = [Ringfence::NAME, Actix::NAME, Kameo::NAME, Ractor::NAME, Xtra::NAME, Mpsc::NAME];
    let workspace = concat!(env!("CARGO_MANIFEST_DIR"), "/../target").to_owned();
    let target = std::env::var("CARGO_TARGET_DIR").unwrap_or(workspace);
    let nanos = |group: &str, peer: &str| -> Option<f64> {
        let name = |text: &str| text.replace(['"', '/', '\\', '*', '?', ':'], "_");
        let path = format!("{target}/criterion/{}/{}/new/estimates.json", name(group), name(peer));
        let estimates: serde_json::Value = serde_json::from_slice(&std::fs::read(path).ok()?).ok()?;
        estimates["median"]["point_estimate"].as_f64()
    };
    print!("\n{:<20}", "median, x actix");
    peers.iter().for_each(|peer| print!("{peer:>18}"));
    println!();
    for (row, goal) in ROWS {
        let Some(base) = nanos(row, Actix::NAME) else { continue };
        print!("{row:<20}");
        for peer in peers {
            match nanos(row, peer) {
                Some(took) => print!("{:>18}", format!("{:.2} ({took:.0} ns)", took / base)),
                None => print!("{:>18}", "-"),
            }
        }
        println!("   {goal}");
    }
}

fn main() {
    let system = System(actix::System::new());
    let mut criterion = Criterion::default()
        .sample_size(30)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2))
        .without_plots()
        .configure_from_args();
    all_peers!(criterion, &system, "tell", tell);
    all_peers!(criterion, &system, "ask", ask);
    all_peers!(criterion, &system, "ask, 256 in flight", ask_in_flight);
    all_peers!(criterion, &system, "spawn", spawn);
    ask_by_address(&mut criterion, &system);
    publish(&mut criterion, &system);
    criterion.final_summary();
    table();
}
