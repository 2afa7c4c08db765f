//! The plan of one run: inventory, settings, faults and their times. A seed or a story makes a plan.
//!
//! Invariant: a plan and its seed determine the run: the same plan gives the same log, byte for byte. Plans are values,
//! so that a failing plan can be shrunk.

use std::time::Duration;

use rand::{Rng, SeedableRng, seq::IndexedRandom};
use rand_chacha::ChaCha8Rng;
use ringfence_actors::inventory::{
    CephHostAccess, Cluster, Host, Inventory, PingSettings, Settings, Storage, Vm, Volume,
};
use ringfence_messages::{
    ClusterId, HostId, Protocol, StorageId, VmId,
    storage::StorageKind,
    vm::{HaMode, InstallPath},
};

use crate::{
    fault::{Act, BogusReply, CephFault, Fault, SshFault, Step, StepKind},
    rates,
};

/// One run.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Seed of all random numbers.
    pub seed: u64,
    /// The inventory.
    pub inventory: Inventory,
    /// Settings of the controller.
    pub settings: Settings,
    /// Duration of the run; all faults end before.
    pub lasting: Duration,
    /// The steps, sorted by time.
    pub steps: Vec<Step>,
    /// The first host of each VM.
    pub places: Vec<String>,
    /// Expected hosts of VMs at some times.
    pub probes: Vec<Probe>,
    /// At the end all is well: the rule `live` is checked.
    pub ends_well: bool,
    /// Memory of each host in MiB.
    pub host_memory_mib: u64,
}

/// Default memory of a host in MiB. Too low: VMs do not fit. Too high: placement never fails.
pub const HOST_MEMORY_MIB: u64 = 64 << 10;

/// Address of Ceph's monitor.
pub const MONITOR: &str = "10.2.255.1";

/// The expected host of a VM at a time.
#[derive(Clone, Debug, PartialEq)]
pub struct Probe {
    /// Time since the beginning of the run.
    pub at: Duration,
    /// Name of the VM.
    pub vm: String,
    /// The hosts where a QEMU of the VM writes.
    pub on: Location,
}

/// An expected location of a VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Location {
    /// On this host only.
    On(String),
    /// On one host, not this one.
    NotOn(String),
    /// On any one host.
    Somewhere,
    /// On no host.
    Nowhere,
}

/// The size of a campaign's plans.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Number of hosts; at least 3.
    pub hosts: usize,
    /// Number of VMs.
    pub vms: usize,
    /// Duration of a run.
    pub lasting: Duration,
}

/// Time after the last fault of a campaign's run until all must be well: a failed host is detected by 3 pings and
/// reconciled, and its targets are redeployed after at most 64 skipped pings, 64 minutes at the slowest. Too low:
/// correct runs fail. Too high: fewer faults per run.
pub const QUIET: Duration = Duration::from_secs(75 * 60);

/// Faults per hour of a campaign's runs, on average. Too low: runs without faults. Too high: all faults overlap.
const FAULTS_PER_HOUR: [f64; 4] = [4.0, 8.0, 16.0, 30.0];

impl Plan {
    /// The run of a seed: an inventory, settings and faults of every kind.
    pub fn of_seed(seed: u64, size: Size) -> Plan {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let inventory = inventory(&mut rng, size);
        let interval = Duration::from_secs(*[10, 20, 30, 60].choose(&mut rng).unwrap_or(&60));
        let ping = PingSettings { interval, timeout: interval / 4, ..PingSettings::default() };
        let mut settings = Settings { ping, ..Settings::default() };
        settings.ha.parallelism = rng.random_range(1..12);
        settings.cross_cluster_siblings = rng.random_bool(0.5);
        let rate = *FAULTS_PER_HOUR.choose(&mut rng).unwrap_or(&8.0);
        let mut steps = Vec::new();
        let mut at = Duration::from_secs(120);
        let last = size.lasting.saturating_sub(QUIET);
        loop {
            at += Duration::from_secs_f64(3600.0 / rate * 2.0 * rng.random::<f64>());
            if at >= last {
                break;
            }
            // One in three comes with another one on its heels.
            let together = if rng.random_bool(0.33) { rng.random_range(2..4) } else { 1 };
            for _ in 0..together {
                let at = at + Duration::from_millis(rng.random_range(0..40_000));
                steps.push(Step { at, kind: random_step(&mut rng, &inventory, last.saturating_sub(at)) });
            }
        }
        steps.extend(rates::extra_faults(seed, rate, &inventory, last));
        steps.sort_by_key(|step| step.at);
        let all = steps.clone();
        steps.retain(|step| !is_removal(step) || is_calm(&all, step.at));
        let places = (0..inventory.vms.len()).map(|n| inventory.hosts[n % size.hosts].name.clone()).collect();
        Plan {
            seed,
            inventory,
            settings,
            lasting: size.lasting,
            steps,
            places,
            probes: Vec::new(),
            ends_well: true,
            host_memory_mib: HOST_MEMORY_MIB,
        }
    }
}

/// For so long nothing else may happen when somebody removes an entry of the blocklist: the controller looks every 20
/// s, and puts it back. Nothing that Ringfence does helps against a removal that nobody is there to notice (seeds 156
/// and 364: the controller stood still or was away, and the host came back with autostart).
const CALM: Duration = Duration::from_secs(60);

fn is_removal(step: &Step) -> bool {
    matches!(step.kind, StepKind::Fault(Fault::BlocklistRemoved { .. }, _))
}

/// Whether the controller and Ceph are well from then on for [`CALM`], and nothing begins or ends.
fn is_calm(steps: &[Step], at: Duration) -> bool {
    let within = |time: Duration| (at..=at + CALM).contains(&time);
    steps.iter().filter(|step| !is_removal(step)).all(|step| match &step.kind {
        StepKind::Fault(fault, lasting) => {
            let end = step.at + *lasting;
            let lasts = step.at <= at && end >= at;
            let disturbs = within(step.at) || within(end) || (lasts && fault.is_everywhere());
            !disturbs
        }
        StepKind::Act(_) => true,
    })
}

/// Clusters of hosts on one Ceph cluster and a vhost and a ZBS storage; VMs of all kinds on them.
pub fn inventory(rng: &mut impl Rng, size: Size) -> Inventory {
    let clusters: Vec<Cluster> = (1..=(size.hosts / 10).max(1))
        .map(|n| Cluster { id: ClusterId::from_name(&format!("c{n}")), name: format!("c{n}") })
        .collect();
    let hosts: Vec<Host> = (0..size.hosts).map(|n| host(n, clusters[n * clusters.len() / size.hosts].id)).collect();
    let all: Vec<ClusterId> = clusters.iter().map(|cluster| cluster.id).collect();
    let storages = storages(&all);
    let vms = (0..size.vms)
        .map(|n| {
            let ceph = |image: String| Volume {
                storage: storages[0].id,
                install_path: InstallPath::Ceph { pool: "rbd".to_owned(), image },
                root: true,
            };
            let mut volumes = match rng.random_range(0..10) {
                0 => vec![Volume {
                    storage: storages[1].id,
                    install_path: InstallPath::Vhost { name: format!("vm-{n}") },
                    root: true,
                }],
                1 | 2 => vec![ceph(format!("vm-{n}")), ceph(format!("vm-{n}-data"))],
                _ => vec![ceph(format!("vm-{n}"))],
            };
            volumes.iter_mut().skip(1).for_each(|volume| volume.root = false);
            let name = format!("vm-{n}");
            Vm {
                id: VmId::from_name(&name),
                name,
                cluster: hosts[n % hosts.len()].cluster,
                ha: if rng.random_bool(0.9) { HaMode::NeverStop } else { HaMode::None },
                memory_mib: *[512, 1024, 2048, 4096].choose(rng).unwrap_or(&512),
                qemu_args: Vec::new(),
                libvirt_xml: None,
                volumes,
            }
        })
        .collect();
    Inventory { clusters, hosts, storages, vms }
}

/// The host of this number: `host-0` and so on, at 10.1.0.1 and so on, with storage at 10.2.
pub fn host(n: usize, cluster: ClusterId) -> Host {
    let name = format!("host-{n}");
    let address = |net: u8| std::net::Ipv4Addr::from(u32::from_be_bytes([10, net, 0, 1]) + n as u32);
    Host {
        id: HostId::from_name(&name),
        name,
        cluster,
        management_ip: address(1).to_string(),
        agent_port: 7070,
        ssh_port: 22,
        storage_ips: vec![address(2).into()],
    }
}

/// One storage of each kind, for these clusters.
pub fn storages(clusters: &[ClusterId]) -> Vec<Storage> {
    let of = |name: &str, kind: StorageKind, protocols: &[Protocol]| Storage {
        id: StorageId::from_name(name),
        name: name.to_owned(),
        kind,
        clusters: clusters.to_vec(),
        protocols: protocols.to_vec(),
        volume_dir: None,
        on_target_loss: Default::default(),
        ceph: None,
        watchers_allowed: Vec::new(),
    };
    let access = CephHostAccess { conf: "/etc/ceph/ceph.conf".to_owned(), user: "compute".to_owned() };
    vec![
        Storage { ceph: Some(access), ..of("ceph-1", StorageKind::Ceph, &[]) },
        of("vhost-1", StorageKind::Vhost, &[Protocol::Vhost]),
        of("zbs-1", StorageKind::Zbs, &[Protocol::Cbd, Protocol::Vhost]),
    ]
}

fn random_step(rng: &mut ChaCha8Rng, inventory: &Inventory, at_most: Duration) -> StepKind {
    let host = |rng: &mut ChaCha8Rng| inventory.hosts[rng.random_range(0..inventory.hosts.len())].name.clone();
    let vm = |rng: &mut ChaCha8Rng| inventory.vms[rng.random_range(0..inventory.vms.len())].name.clone();
    // Most are short, some last: logarithmically even between 2 s and 20 min.
    let seconds = (2f64.ln() + rng.random::<f64>() * (1200f64.ln() - 2f64.ln())).exp();
    let lasting = Duration::from_secs_f64(seconds).min(at_most);
    let (h, v) = (host(rng), vm(rng));
    let fault = match rng.random_range(0..100) {
        0..=11 => Fault::PowerLoss { host: h },
        12..=17 => Fault::FreezeHost { host: h },
        18..=22 => Fault::AgentCrash { host: h },
        23..=26 => Fault::FreezeAgent { host: h },
        27..=31 => {
            use SshFault::{Auth, Exit255, Hangs, HostKey, Refused, Truncated};
            let how = [Refused, Hangs, Auth, HostKey, Exit255, Truncated][rng.random_range(0..6)];
            Fault::Ssh { host: h, how }
        }
        32 => Fault::LibvirtHangs { host: h },
        33..=34 => Fault::BogusReplies {
            host: h,
            how: [BogusReply::OtherUuid, BogusReply::OtherVersion, BogusReply::Junk][rng.random_range(0..3)],
        },
        35..=36 => Fault::SlowAgent { host: h, millis: rng.random_range(100..20_000) },
        37 => Fault::HostDiskFull { host: h },
        38..=40 => Fault::QemuCrash { vm: v },
        41..=42 => Fault::QemuUnkillable { vm: v },
        43 => Fault::ZombieLeader { vm: v },
        44 => Fault::Respawn { vm: v, after_millis: 0 },
        45..=46 => Fault::Migration { vm: v, to: h, succeeds: false },
        47..=49 => Fault::TargetCrash { host: h },
        50..=51 => Fault::TargetBroken { host: h },
        52 => Fault::PrepareFails { host: h },
        53..=58 => Fault::Cut { from: h, to: "ceph".to_owned(), one_way: false },
        59..=64 => Fault::Cut { from: h, to: "management".to_owned(), one_way: rng.random_bool(0.3) },
        65..=68 => Fault::Cut { from: h, to: "everything".to_owned(), one_way: false },
        69..=71 => Fault::Cut { from: "controller".to_owned(), to: h, one_way: rng.random_bool(0.3) },
        72..=73 => {
            Fault::Cut { from: "controller".to_owned(), to: "management".to_owned(), one_way: rng.random_bool(0.3) }
        }
        74 => Fault::Cut { from: "controller".to_owned(), to: "ceph".to_owned(), one_way: false },
        75 => Fault::Cut { from: h, to: host(rng), one_way: rng.random_bool(0.5) },
        76 => Fault::Loss { percent: rng.random_range(1..40) },
        77 => Fault::Delay { millis: *[50, 1_000, 8_000, 45_000].choose(rng).unwrap_or(&50) },
        78 => Fault::Duplication { percent: rng.random_range(1..60) },
        79..=80 => {
            use CephFault::{Denied, NoQuorum, OddJson};
            Fault::Ceph { how: [NoQuorum, OddJson, Denied][rng.random_range(0..3)] }
        }
        81 => Fault::BlocklistRemoved { host: h },
        82..=84 => Fault::ControllerCrash,
        85..=87 => Fault::ControllerCrashInCall { skip: rng.random_range(0..40) },
        88..=89 => Fault::ControllerFreeze,
        90 => Fault::SecondController,
        91 => Fault::JournalBroken,
        92 => Fault::ClockJump { seconds: rng.random_range(-86_400..86_400) },
        93..=94 => return StepKind::Act(Act::Stop { vm: v }),
        95..=97 => return StepKind::Act(Act::Start { vm: v, host: rng.random_bool(0.3).then_some(h) }),
        98 if rng.random_bool(0.5) => return StepKind::Act(Act::Maintain { host: h }),
        98 => return StepKind::Act(Act::Drain { host: h }),
        _ => return StepKind::Act(Act::Activate { host: h }),
    };
    StepKind::Fault(fault, lasting)
}
