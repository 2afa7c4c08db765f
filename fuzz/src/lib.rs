//! What reads bytes from elsewhere, given any bytes at all.
//!
//! Each target is a function of bytes that returns if all is well and panics if a property does not hold. libFuzzer
//! searches with them (`make fuzz`), the kept inputs in `corpus/` are replayed by an ordinary test, and `ringfence-fuzz
//! TARGET FILE` replays one.
//! Invariants: a target asks for more than "no panic": what is accepted reads the same when it is written again, errors
//! name a place that exists, and nothing but an answer in its exact shape proves that something is dead (I2).
//! Rejected: `arbitrary` structs as inputs (the bytes on the wire are what comes from elsewhere, and real ones are
//! seeds); fuzzing the libraries beneath by themselves (their own projects do).

mod answers;
mod ceph;
mod config;
mod host;
mod scenario;
mod wire;

/// A target by its name, which is also that of its folder in `corpus/`.
pub struct Target {
    /// What it is called.
    pub name: &'static str,
    /// What it does with some bytes; panics if a property does not hold.
    pub run: fn(&[u8]),
}

/// Every target.
pub const TARGETS: [Target; 10] = [
    Target { name: "wire", run: wire::wire },
    Target { name: "controller_config", run: config::controller },
    Target { name: "agent_config", run: config::agent },
    Target { name: "scenario", run: scenario::scenario },
    Target { name: "agent_answer", run: answers::agent },
    Target { name: "mds_answer", run: answers::mds },
    Target { name: "sibling_answer", run: answers::sibling },
    Target { name: "ceph_answer", run: ceph::ceph },
    Target { name: "known_hosts", run: host::known_hosts },
    Target { name: "proc", run: host::proc },
];

/// The target of a name.
pub fn target(name: &str) -> Option<&'static Target> {
    TARGETS.iter().find(|target| target.name == name)
}

/// A byte that chooses, and the rest.
fn chosen(bytes: &[u8]) -> Option<(usize, &[u8])> {
    bytes.split_first().map(|(first, rest)| (usize::from(*first), rest))
}
