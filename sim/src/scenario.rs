//! A story in TOML: what there is, what happens when, what is expected. Times are seconds since the run began.
//!
//! ```
//! let story = ringfence_sim::scenario::Scenario::parse("title = 'nothing happens'\nlasting = 60\n[[vm]]\nhost = 'host-0'\n");
//! assert!(story?.play().failures.is_empty());
//! # Ok::<(), String>(())
//! ```

use std::time::Duration;

use ringfence_actors::{
    fence::{Policy, policy::Profile},
    inventory::{Cluster, Inventory, PingSettings, Settings, Vm, Volume},
};
use ringfence_messages::{
    ClusterId, VmId,
    vm::{HaMode, InstallPath},
};
use serde::Deserialize;

use crate::{
    fault::{Act, Fault},
    plan::{self, Location, Plan, Probe, Step, StepKind},
    run::{Outcome, run},
};

/// VMs of a story at most. Too low: no story of a large site. Too high: a slip of the finger fills the memory.
const MAX_VMS: usize = 100_000;

/// Seconds that a story lasts at most, and a fault: 116 days.
const MAX_LASTING: f64 = 1e7;

/// Seconds between pings at most: a day.
const MAX_PING_INTERVAL: f64 = 86_400.0;

/// Seconds by which a clock jumps at most: some 30 years.
const MAX_CLOCK_JUMP: u64 = 1_000_000_000;

/// One story.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    /// What it is about.
    pub title: String,
    /// The row of the fault matrix that it shows, if one.
    pub row: Option<u32>,
    /// Where chance comes from.
    #[serde(default = "one")]
    pub seed: u64,
    /// How long it lasts.
    pub lasting: f64,
    /// It can be played on the real lab too.
    #[serde(default)]
    pub lab: bool,
    /// Hosts: `host-0` and so on, of one cluster.
    #[serde(default = "three")]
    pub hosts: usize,
    /// Clusters, into which the hosts are split evenly.
    #[serde(default = "one_cluster")]
    pub clusters: usize,
    /// How the controller is set up.
    #[serde(default)]
    pub settings: Setup,
    /// VMs: `vm-0` and so on, in this order.
    #[serde(default, rename = "vm")]
    pub vms: Vec<VmSpec>,
    /// What happens, in any order.
    #[serde(default, rename = "step")]
    pub steps: Vec<StepSpec>,
    /// What is expected.
    #[serde(default, rename = "expect")]
    pub expected: Vec<Expected>,
    /// At the end everything is to be well: every VM that is to run runs, every protocol is up, no fence is left.
    #[serde(default = "yes")]
    pub ends_well: bool,
}

/// Settings that a story may choose.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Setup {
    /// `zstack` instead of the safe profile.
    pub zstack: bool,
    /// No fencer is registered.
    pub no_fencer: bool,
    /// VMs that are brought back at once.
    pub parallel_starts: Option<usize>,
    /// Seconds between pings; 1 unless said.
    pub ping_interval: Option<f64>,
    /// Memory of every host in MiB.
    pub host_memory_mib: Option<u64>,
    /// `host-0` has an address that a monitor of Ceph has too.
    pub shared_address: bool,
}

/// A VM.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmSpec {
    /// Where it is started first; `every` for one on each host.
    pub host: String,
    /// So many like it.
    #[serde(default = "one_guest")]
    pub count: usize,
    /// On a vhost target instead of Ceph.
    #[serde(default)]
    pub vhost: bool,
    /// It is not brought back by itself.
    #[serde(default)]
    pub no_ha: bool,
}

/// Something that happens.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StepSpec {
    /// When.
    pub at: f64,
    /// How long the fault lasts.
    #[serde(default)]
    pub lasting: f64,
    /// A fault, such as `{ kind = "power-loss", host = "host-0" }`.
    pub fault: Option<Fault>,
    /// An operator's act, such as `{ do = "stop", vm = "vm-0" }`.
    pub act: Option<Act>,
}

/// Something that is expected: a VM somewhere at a time, or lines of the log.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Expected {
    /// At this time, or by this time.
    pub at: Option<f64>,
    /// The VM.
    pub vm: Option<String>,
    /// Where it writes: `host-1`, `not host-0`, `somewhere`, `nowhere`.
    pub on: Option<String>,
    /// Lines of the log with all of these words.
    #[serde(default)]
    pub log: Vec<String>,
    /// Exactly so many such lines; at least one unless said.
    pub count: Option<usize>,
    /// The journal does not tell it, only the simulated world does: not expected on the lab.
    #[serde(default)]
    pub simulated_only: bool,
}

fn one() -> u64 {
    1
}

fn one_guest() -> usize {
    1
}

fn one_cluster() -> usize {
    1
}

fn three() -> usize {
    3
}

fn yes() -> bool {
    true
}

/// How a story went.
#[derive(Clone, Debug)]
pub struct Played {
    /// What was not as expected, and the rules that were broken; nothing if it passed.
    pub failures: Vec<String>,
    /// The run.
    pub outcome: Outcome,
}

impl Scenario {
    /// Reads a story.
    ///
    /// # Errors
    /// What is wrong with it and where, as a text for people.
    pub fn parse(text: &str) -> Result<Scenario, String> {
        let scenario: Scenario = toml::from_str(text).map_err(|error| error.to_string())?;
        let wrong = |what: String| Err(format!("{}: {what}", scenario.title));
        if scenario.hosts < 2 || scenario.hosts > 1000 || !(1.0..=MAX_LASTING).contains(&scenario.lasting) {
            return wrong("2 to 1000 hosts, and 1 to 10000000 seconds".to_owned());
        }
        let vms = |guest: &VmSpec| guest.count.saturating_mul(if guest.host == "every" { scenario.hosts } else { 1 });
        if scenario.vms.iter().fold(0, |sum: usize, guest| sum.saturating_add(vms(guest))) > MAX_VMS {
            return wrong(format!("more than {MAX_VMS} VMs"));
        }
        if !(0.01..=MAX_PING_INTERVAL).contains(&scenario.settings.ping_interval.unwrap_or(1.0)) {
            return wrong(format!("ping_interval is in seconds, 0.01 to {MAX_PING_INTERVAL}"));
        }
        if scenario.clusters == 0 || scenario.clusters > scenario.hosts {
            return wrong("at least one cluster, and a host for each".to_owned());
        }
        let hosts: Vec<String> = (0..scenario.hosts).map(|n| format!("host-{n}")).collect();
        if let Some(guest) = scenario.vms.iter().find(|guest| guest.host != "every" && !hosts.contains(&guest.host)) {
            return wrong(format!("there is no {}: hosts are host-0 to host-{}", guest.host, scenario.hosts - 1));
        }
        for step in &scenario.steps {
            if step.fault.is_some() == step.act.is_some() || !(0.0..=scenario.lasting).contains(&step.at) {
                return wrong(format!("the step at {} needs a fault or an act, within the story's time", step.at));
            }
            if !(f64::MIN..=MAX_LASTING).contains(&step.lasting) {
                return wrong(format!("the fault at {} lasts at most {MAX_LASTING} seconds", step.at));
            }
            if let Some(Fault::ClockJump { seconds }) = step.fault
                && seconds.unsigned_abs() > MAX_CLOCK_JUMP
            {
                return wrong(format!("the clock at {} jumps by at most {MAX_CLOCK_JUMP} seconds", step.at));
            }
        }
        for expected in &scenario.expected {
            let has_location = expected.vm.is_some() && expected.on.is_some() && expected.at.is_some();
            if !expected.at.is_none_or(|at| (0.0..=scenario.lasting).contains(&at)) {
                return wrong(format!("an expectation is within the story's time: {expected:?}"));
            }
            if has_location == expected.log.is_empty() {
                continue;
            }
            return wrong(format!("an expectation needs either vm, on and at, or log: {expected:?}"));
        }
        Ok(scenario)
    }

    /// What is to be run.
    pub fn plan(&self) -> Plan {
        let cluster = |n: usize| Cluster { id: ClusterId::from_name(&format!("c{n}")), name: format!("c{n}") };
        let clusters: Vec<Cluster> = (1..=self.clusters).map(cluster).collect();
        let of = |host: usize| clusters[host * self.clusters / self.hosts].id;
        let mut hosts: Vec<_> = (0..self.hosts).map(|n| plan::host(n, of(n))).collect();
        if self.settings.shared_address {
            hosts[0].storage_ips = vec![plan::MONITOR.parse().expect("an address")];
        }
        let storages = plan::storages(&clusters.iter().map(|cluster| cluster.id).collect::<Vec<_>>());
        let on = |guest: &VmSpec| -> Vec<String> {
            match guest.host.as_str() {
                "every" => hosts.iter().map(|host| host.name.clone()).collect(),
                host => vec![host.to_owned()],
            }
        };
        let each = self.vms.iter().flat_map(|guest| std::iter::repeat_n(guest, guest.count));
        let guests: Vec<(&VmSpec, String)> = each.flat_map(|of| on(of).into_iter().map(move |at| (of, at))).collect();
        let places = guests.iter().map(|(_, host)| host.clone()).collect();
        let vms = guests.iter().enumerate().map(|(n, (guest, at))| {
            let name = format!("vm-{n}");
            let (storage, install_path) = match guest.vhost {
                true => (storages[1].id, InstallPath::Vhost { name: name.clone() }),
                false => (storages[0].id, InstallPath::Ceph { pool: "rbd".to_owned(), image: name.clone() }),
            };
            Vm {
                id: VmId::from_name(&name),
                name,
                cluster: hosts.iter().find(|host| host.name == *at).map_or(clusters[0].id, |host| host.cluster),
                ha: if guest.no_ha { HaMode::None } else { HaMode::NeverStop },
                memory_mib: 1024,
                qemu_args: Vec::new(),
                libvirt_xml: None,
                volumes: vec![Volume { storage, install_path, root: true }],
            }
        });
        let vms = vms.collect();
        let setup = &self.settings;
        let interval = Duration::from_secs_f64(setup.ping_interval.unwrap_or(1.0));
        let ping = PingSettings {
            interval,
            timeout: interval.min(Duration::from_secs(10)),
            sleep_after_failure: Duration::from_millis(200),
            ..PingSettings::default()
        };
        let fence: Policy = if setup.zstack { Profile::Zstack } else { Profile::Safe }.policy();
        let mut settings = Settings { ping, fence, sibling_fencer: !setup.no_fencer, ..Settings::default() };
        settings.ha.parallelism = setup.parallel_starts.unwrap_or(settings.ha.parallelism);
        let mut steps: Vec<Step> = self.steps.iter().filter_map(StepSpec::step).collect();
        steps.sort_by_key(|step| step.at);
        let mut probes: Vec<Probe> = self.expected.iter().filter_map(Expected::probe).collect();
        probes.sort_by_key(|probe| probe.at);
        Plan {
            seed: self.seed,
            inventory: Inventory { clusters, hosts, storages, vms },
            settings,
            lasting: Duration::from_secs_f64(self.lasting),
            steps,
            places,
            probes,
            ends_well: self.ends_well,
            host_memory_mib: setup.host_memory_mib.unwrap_or(plan::HOST_MEMORY_MIB),
        }
    }

    /// Plays it in the simulated world.
    pub fn play(&self) -> Played {
        let outcome = run(&self.plan());
        let mut failures: Vec<String> = outcome.violations.iter().map(ToString::to_string).collect();
        failures.extend(self.expected.iter().filter_map(|expected| expected.unmet(&outcome.log)));
        Played { failures, outcome }
    }
}

impl StepSpec {
    fn step(&self) -> Option<Step> {
        let kind = match (&self.fault, &self.act) {
            (Some(fault), _) => StepKind::Fault(fault.clone(), Duration::from_secs_f64(self.lasting.max(0.0))),
            (None, Some(act)) => StepKind::Act(act.clone()),
            (None, None) => return None,
        };
        Some(Step { at: Duration::from_secs_f64(self.at), kind })
    }
}

impl Expected {
    fn probe(&self) -> Option<Probe> {
        let (at, vm, on) = (self.at?, self.vm.clone()?, self.location()?);
        Some(Probe { at: Duration::from_secs_f64(at), vm, on })
    }

    /// Where the VM is to be, if that is what is expected.
    pub fn location(&self) -> Option<Location> {
        let on = self.on.as_deref()?;
        Some(match (on, on.strip_prefix("not ")) {
            ("nowhere", _) => Location::Nowhere,
            ("somewhere", _) => Location::Somewhere,
            (_, Some(host)) => Location::NotOn(host.to_owned()),
            (host, None) => Location::On(host.to_owned()),
        })
    }

    /// What is missing in the log, or too much.
    pub fn unmet(&self, log: &[String]) -> Option<String> {
        if self.log.is_empty() {
            return None;
        }
        let in_time = |line: &&String| {
            let time: f64 = line.split_whitespace().next().and_then(|time| time.parse().ok()).unwrap_or(f64::MAX);
            self.at.is_none_or(|at| time <= at)
        };
        let said = log.iter().filter(in_time).filter(|line| self.log.iter().all(|words| line.contains(words))).count();
        let met = self.count.map_or(said > 0, |count| count == said);
        (!met).then(|| format!("{:?} was to be said {:?} times, and was {said} times", self.log, self.count))
    }
}
