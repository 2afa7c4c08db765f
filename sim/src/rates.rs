//! The rates of the faults of the second part of the fault matrix in a campaign's runs.
//!
//! Invariant: each kind has its own random numbers, so that a changed rate changes no other fault of a seed.

use std::time::Duration;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use ringfence_actors::inventory::Inventory;
use ringfence_messages::vm::InstallPath;

use crate::fault::{Act, Claimant, Fault, Looker, Step, StepKind};

/// Number of these faults per 100 other faults.
const RATES: [(u32, ExtraFault); 16] = [
    (1, ExtraFault::AddressTaken),    // K1
    (1, ExtraFault::BlindAgent),      // K2
    (1, ExtraFault::BlindSsh),        // K2
    (1, ExtraFault::HeldWrites),      // K4
    (1, ExtraFault::TargetHangs),     // K4
    (1, ExtraFault::LibvirtLate),     // K6
    (1, ExtraFault::JournalRestored), // K7
    (1, ExtraFault::SlowRespawn),     // K8
    (1, ExtraFault::SecondQemu),      // K8, K19
    (1, ExtraFault::Attested),        // K9
    (1, ExtraFault::Migrated),        // K12
    (1, ExtraFault::BlocklistAdded),  // K13
    (1, ExtraFault::Lookalike),       // K19
    (1, ExtraFault::LocalUser),       // K20
    (1, ExtraFault::LongWords),       // K22
    (1, ExtraFault::EndsAtOnce),      // K23
];

/// A fault with a rate of its own.
#[derive(Clone, Copy, Debug)]
enum ExtraFault {
    AddressTaken,
    BlindAgent,
    BlindSsh,
    HeldWrites,
    TargetHangs,
    LibvirtLate,
    JournalRestored,
    SlowRespawn,
    SecondQemu,
    Attested,
    Migrated,
    BlocklistAdded,
    Lookalike,
    LocalUser,
    LongWords,
    EndsAtOnce,
}

/// The faults of [`RATES`] in the run of a seed.
pub(crate) fn extra_faults(seed: u64, rate: f64, inventory: &Inventory, last: Duration) -> Vec<Step> {
    let mut steps = Vec::new();
    for (n, (percent, fault)) in (1u64..).zip(RATES).filter(|(_, (percent, _))| *percent > 0) {
        let mut rng = ChaCha8Rng::seed_from_u64(seed ^ n.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let pause = 3600.0 / (rate * f64::from(percent) / 100.0);
        let mut at = Duration::from_secs(120);
        loop {
            at += Duration::from_secs_f64(pause * 2.0 * rng.random::<f64>());
            if at >= last {
                break;
            }
            steps.extend(extra_fault_steps(&mut rng, fault, inventory, at, last.saturating_sub(at)));
        }
    }
    steps
}

/// One of them, with what belongs to it.
fn extra_fault_steps(
    rng: &mut ChaCha8Rng,
    fault: ExtraFault,
    inventory: &Inventory,
    at: Duration,
    at_most: Duration,
) -> Vec<Step> {
    let mut h = || inventory.hosts[rng.random_range(0..inventory.hosts.len())].name.clone();
    let (host, other) = (h(), h());
    let vm = inventory.vms[rng.random_range(0..inventory.vms.len())].name.clone();
    let mut seconds = |from: f64, to: f64| {
        Duration::from_secs_f64((from.ln() + rng.random::<f64>() * (to.ln() - from.ln())).exp()).min(at_most)
    };
    let step = |after: Duration, effect: Fault, lasting: Duration| Step {
        at: at + after.min(at_most),
        kind: StepKind::Fault(effect, lasting.min(at_most.saturating_sub(after))),
    };
    let now = Duration::ZERO;
    let cut = |to: &str| Fault::Cut { from: host.clone(), to: to.to_owned(), one_way: false };
    let claim = |how| Fault::Claim { vm: vm.clone(), host: other.clone(), how };
    match fault {
        ExtraFault::AddressTaken => {
            vec![step(now, Fault::AddressTaken { host, by: other }, seconds(2.0, 1200.0))]
        }
        ExtraFault::BlindAgent => vec![step(now, Fault::Blind { host, how: Looker::Agent }, seconds(2.0, 1200.0))],
        // A search over SSH happens only after another fault.
        ExtraFault::BlindSsh => {
            let lasting = seconds(30.0, 1200.0);
            let frozen = Fault::FreezeAgent { host: host.clone() };
            vec![step(now, Fault::Blind { host, how: Looker::Ssh }, lasting), step(now, frozen, lasting)]
        }
        ExtraFault::HeldWrites => {
            let lasting = seconds(20.0, 600.0);
            let vm = inventory.vms.iter().position(|candidate| candidate.name == vm).unwrap_or(0);
            let exported = |n: usize| !matches!(inventory.vms[n].volumes[0].install_path, InstallPath::Ceph { .. });
            let near =
                (0..inventory.vms.len()).map(|n| (vm + n) % inventory.vms.len()).find(|n| exported(*n)).unwrap_or(vm);
            // The VM is often still on its first host.
            let host = inventory.hosts[near % inventory.hosts.len()].name.clone();
            let cut = Fault::Cut { from: host.clone(), to: "ceph".to_owned(), one_way: false };
            let act = match rng.random_range(0..3) {
                0 => StepKind::Act(Act::Stop { vm: inventory.vms[near].name.clone() }),
                1 => StepKind::Act(Act::Drain { host }),
                _ => StepKind::Fault(Fault::QemuCrash { vm: inventory.vms[near].name.clone() }, now),
            };
            vec![step(now, cut, lasting), Step { at: at + Duration::from_secs(5).min(at_most), kind: act }]
        }
        ExtraFault::TargetHangs => vec![step(now, Fault::TargetHangs { host }, seconds(2.0, 1200.0))],
        ExtraFault::LibvirtLate => {
            let millis = rng.random_range(1_000..60_000);
            vec![step(now, Fault::LibvirtLate { host, millis }, Duration::from_secs(300))]
        }
        // Without time for an operator's act the controller would stay behind.
        ExtraFault::JournalRestored if at_most < Duration::from_secs(900) => Vec::new(),
        ExtraFault::JournalRestored => {
            let lasting = seconds(2.0, 300.0);
            let restored = step(now, Fault::JournalRestored { records: rng.random_range(1..200) }, lasting);
            // As in the runbook; sometimes only after the controller reports that it is behind.
            let after = lasting + Duration::from_secs(rng.random_range(1..300));
            vec![restored, Step { at: at + after.min(at_most), kind: StepKind::Act(Act::DeclareRestored) }]
        }
        ExtraFault::SlowRespawn => {
            let after_millis = seconds(0.05, 30.0).as_millis() as u64;
            vec![step(now, Fault::Respawn { vm, after_millis }, seconds(30.0, 1200.0))]
        }
        ExtraFault::SecondQemu => {
            let lasting = seconds(2.0, 60.0);
            let away = lasting + seconds(10.0, 600.0);
            vec![step(now, cut("everything"), away), step(Duration::from_secs(1), claim(Claimant::Second), lasting)]
        }
        ExtraFault::Attested => {
            let off = seconds(60.0, 600.0);
            let word = Act::ConfirmFenced { host: host.clone(), if_off: true };
            let later = off + seconds(600.0, 3600.0);
            vec![
                step(now, Fault::PowerLoss { host: host.clone() }, off),
                Step { at: at + Duration::from_secs(30).min(at_most), kind: StepKind::Act(word) },
                step(later, cut("management"), seconds(60.0, 600.0)),
            ]
        }
        ExtraFault::Migrated => {
            // libvirt moves VMs only within their cluster; a move beyond is detected with the next list of VMs.
            let cluster = inventory.vms.iter().find(|candidate| candidate.name == vm).map(|found| found.cluster);
            let mut near = inventory.hosts.iter().filter(|to| Some(to.cluster) == cluster).map(|to| &to.name);
            let to = near.clone().find(|to| **to == host).or(near.next()).cloned().unwrap_or(other);
            vec![step(now, Fault::Migration { vm, to, succeeds: true }, seconds(2.0, 120.0))]
        }
        ExtraFault::BlocklistAdded => vec![step(now, Fault::BlocklistAdded { host }, now)],
        ExtraFault::Lookalike => vec![step(now, claim(Claimant::Lookalike), seconds(2.0, 60.0))],
        ExtraFault::LocalUser => vec![step(now, claim(Claimant::LocalUser), seconds(2.0, 1200.0))],
        ExtraFault::LongWords => vec![step(now, Fault::LongWords { host }, seconds(60.0, 1200.0))],
        // After ten ends in a row the controller waits for its operator, who finds the cause and starts the VM again.
        ExtraFault::EndsAtOnce => {
            let lasting = seconds(2.0, 600.0);
            let start = |after: Duration| Step { at: at + after, kind: StepKind::Act(Act::HaStart { vm: vm.clone() }) };
            let starts = [start((lasting + Duration::from_secs(30)).min(at_most)), start(at_most)];
            starts.into_iter().chain([step(now, Fault::EndsAtOnce { vm: vm.clone() }, lasting)]).collect()
        }
    }
}
