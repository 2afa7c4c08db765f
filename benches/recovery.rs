//! One ping cycle of 100,000 hosts with two protocols each: through the supervisor's core alone, and through all the
//! actors over ports made of memory. Time, and bytes per host.
#![allow(missing_docs, clippy::print_stdout)]

use std::{
    alloc::System,
    collections::HashMap,
    hint::black_box,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};

use criterion::Criterion;
use ringfence::Bus;
use ringfence_actors::{
    assembly::Assembly,
    inventory::{Inventory, InventoryIndex, PingSettings, Settings},
    recovery::core::{Command, Core, Event},
    testkit::{FakeWorld, cluster_of, storage_of},
};
use ringfence_messages::{
    Health, Protocol,
    host::PingHostReply,
    storage::{ProtocolHealth, StorageKind},
};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const HOSTS: usize = 100_000;
const PROTOCOLS: [Protocol; 2] = [Protocol::Vhost, Protocol::Cbd];
const INTERVAL: Duration = Duration::from_secs(60);

fn inventory() -> Inventory {
    let names: Vec<String> = (0..HOSTS).map(|n| format!("host-{n}")).collect();
    let storage = storage_of("zbs-1", StorageKind::Zbs, &PROTOCOLS);
    Inventory { storages: vec![storage], ..cluster_of(names.iter().map(String::as_str)) }
}

/// Answers every command of the core at once, until none is left: every host was pinged and both its protocols
/// were looked at.
fn cycle(core: &mut Core, now: Duration, health: Health) -> usize {
    let mut commands = core.on(Event::Tick, now);
    let mut handled = 0;
    while let Some(command) = commands.pop() {
        handled += 1;
        let event = match command {
            Command::Ping { host, generation } => {
                let reply = PingHostReply {
                    connected: true,
                    reason: None,
                    boot_id: String::new(),
                    machine: Default::default(),
                };
                Event::PingDone { host, generation, reply }
            }
            Command::CheckHealth { host, generation, storage } => {
                let reason = (health != Health::Ok).then(|| "the target does not run".to_owned());
                let report = |protocol| ProtocolHealth { protocol, health, reason: reason.clone() };
                Event::HealthDone { host, generation, storage, result: Ok(PROTOCOLS.map(report).to_vec().into()) }
            }
            Command::Deploy { host, storage, protocol, .. } => Event::DeployDone { host, storage, protocol },
            Command::Emit(fact) => {
                black_box(fact);
                continue;
            }
        };
        commands.extend(core.on(event, now));
    }
    handled
}

fn main() {
    let mut criterion = Criterion::default().sample_size(10).without_plots().configure_from_args();
    let settings = PingSettings { interval: INTERVAL, ..PingSettings::default() };
    let directory = Arc::new(InventoryIndex::new(inventory()));

    let region = Region::new(ALLOCATOR);
    let mut core = Core::new(settings, directory.clone(), &HashMap::new(), &HashMap::new(), Duration::ZERO);
    let mut now = INTERVAL;
    // The worst for memory: every protocol down, each with its reason.
    assert!(cycle(&mut core, now, Health::Failed) >= HOSTS * 4, "some host was not pinged");
    let bytes = held(&region);
    let keys = HOSTS * PROTOCOLS.len();
    println!("core: {} bytes per (host, protocol), all of them down (goal: at most 1024)", bytes / keys);

    for (name, health) in [("all well", Health::Ok), ("all down", Health::Failed)] {
        criterion.bench_function(&format!("core cycle of {HOSTS} hosts x 2, {name}"), |b| {
            b.iter(|| {
                now += INTERVAL;
                cycle(&mut core, now, health)
            });
        });
    }
    drop(core);
    actors();
}

/// Pings without a pause: the interval is over as soon as it began.
fn actors() {
    const CYCLES: u64 = 3;
    actix::System::new().block_on(async {
        let inventory = inventory();
        let world = FakeWorld::new(inventory.hosts.iter().map(|host| host.id));
        for host in &inventory.hosts {
            world.host(host.id, |host| host.target = true);
        }
        let ping = PingSettings { interval: Duration::from_millis(1), parallelism: 1000, ..PingSettings::default() };
        let region = Region::new(ALLOCATOR);
        let bus = Bus::new();
        let settings = Settings { ping, ..Settings::default() };
        let began = Instant::now();
        let assembly = Assembly::start(bus.clone(), inventory, settings, world.ports()).await.expect("it starts");
        println!("actors: {} started in {:?}", bus.len(), began.elapsed());
        let mut last = Instant::now();
        for cycle in 1..=CYCLES {
            let pings = cycle * HOSTS as u64;
            while world.pings.load(Relaxed) < pings || world.health_checks.load(Relaxed) < 2 * pings {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            let took = last.elapsed();
            last = Instant::now();
            println!("actors: cycle {cycle} of {HOSTS} hosts x 2 in {took:?}, {:?} per host", took / HOSTS as u32);
        }
        println!("actors: {} bytes per host, everything included", held(&region) / HOSTS);
        drop(assembly);
        bus.stop_all();
    });
}

fn held(region: &Region<'_, System>) -> usize {
    let change = region.change();
    change.bytes_allocated.saturating_sub(change.bytes_deallocated)
}
