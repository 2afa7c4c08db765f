//! Bytes that an idle actor of an empty struct holds, here and elsewhere. Exact: counted by the allocator.
#![allow(missing_docs, clippy::print_stdout)]

use std::alloc::System;

use ringfence_benches::peers::{
    Peer, on_kameo::Kameo, on_ractor::Ractor, on_xtra::Xtra, raw_actix::Actix, ringfence_bus::Ringfence,
    tokio_mpsc::Mpsc,
};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// Actors that the average is taken over; a power of two, so that tables that double are full.
const ACTORS: u128 = 65_536;

fn main() {
    println!("bytes per idle actor, over {ACTORS} of them (goal: ringfence at most 2048)");
    measure::<Ringfence>();
    measure::<Actix>();
    measure::<Kameo>();
    measure::<Ractor>();
    measure::<Xtra>();
    measure::<Mpsc>();
}

/// Each has handled one message before it is idle.
fn measure<P: Peer>() {
    actix::System::new().block_on(async {
        let peer = P::default();
        let mut actors = Vec::with_capacity(ACTORS as usize);
        let region = Region::new(ALLOCATOR);
        for n in 0..ACTORS {
            let actor = peer.spawn(n).await;
            peer.ask(&actor, 1).await;
            actors.push(actor);
        }
        let change = region.change();
        let held = change.bytes_allocated.saturating_sub(change.bytes_deallocated) as u128;
        println!("{:<12} {:>6}", P::NAME, held / ACTORS);
        actors.into_iter().for_each(|actor| peer.stop(actor));
    });
}
