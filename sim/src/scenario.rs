//! A story in TOML: inventory, steps with their times, and expectations. Times are seconds since the beginning of the
//! run.
//!
//! ```
//! let text = "title = 'nothing happens'\nlasting = 60\n[[vm]]\nhost = 'host-0'\n";
//! let story = ringfence_sim::scenario::Scenario::parse(text)?;
//! assert!(story.play().failures.is_empty());
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
    fault::{Act, Fault, Step, StepKind},
    plan::{self, Location, Plan, Probe},
    run::{Outcome, run},
};

/// VMs of a story, at most. Too low: no story of a large site. Too high: a typing error fills the memory.
const MAX_VMS: usize = 100_000;

/// Seconds of a story and of a fault, at most: 116 days. Too low: no long stories. Too high: a typing error runs for
/// hours.
const MAX_LASTING: f64 = 1e7;

/// Seconds between pings, at most: a day. Too high: no ping within a story.
const MAX_PING_INTERVAL: f64 = 86_400.0;

/// Seconds of a clock jump, at most: some 30 years. Too high: times overflow.
const MAX_CLOCK_JUMP: u64 = 1_000_000_000;

/// One story.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    /// One sentence: the faults and the expected result.
    pub title: String,
    /// Row of the fault matrix that the story shows.
    pub row: Option<u32>,
    /// Seed of all random numbers; 1 by default.
    #[serde(default = "one")]
    pub seed: u64,
    /// Duration in seconds.
    pub lasting: f64,
    /// The story also runs on the lab.
    #[serde(default)]
    pub lab: bool,
    /// Number of hosts: `host-0` and so on; 3 by default.
    #[serde(default = "three")]
    pub hosts: usize,
    /// Number of clusters, into which the hosts are split evenly; 1 by default.
    #[serde(default = "one_cluster")]
    pub clusters: usize,
    /// Settings of the controller.
    #[serde(default)]
    pub settings: Setup,
    /// VMs: `vm-0` and so on, in this sequence.
    #[serde(default, rename = "vm")]
    pub vms: Vec<VmSpec>,
    /// Faults and acts, in any sequence.
    #[serde(default, rename = "step")]
    pub steps: Vec<StepSpec>,
    /// Expectations.
    #[serde(default, rename = "expect")]
    pub expected: Vec<Expected>,
    /// At the end all is well: every VM that should run runs, every protocol is up, no fence is left; true by default.
    #[serde(default = "yes")]
    pub ends_well: bool,
}

/// Settings of a story.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Setup {
    /// Fencing profile `zstack` instead of `safe`.
    pub zstack: bool,
    /// No fencer is registered.
    pub no_fencer: bool,
    /// Failovers at the same time, at most.
    pub parallel_starts: Option<usize>,
    /// Seconds between pings; 1 by default.
    pub ping_interval: Option<f64>,
    /// Memory of each host in MiB.
    pub host_memory_mib: Option<u64>,
    /// `host-0` shares an address with a monitor of Ceph.
    pub shared_address: bool,
}

/// One VM, or several with the same properties.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmSpec {
    /// First host of the VM; `every` for one VM on each host.
    pub host: String,
    /// Number of VMs; 1 by default.
    #[serde(default = "one_vm")]
    pub count: usize,
    /// Volume on a vhost target instead of Ceph.
    #[serde(default)]
    pub vhost: bool,
    /// HA mode `None` instead of `NeverStop`.
    #[serde(default)]
    pub no_ha: bool,
}

/// One step: a fault or an act.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StepSpec {
    /// Time in seconds.
    pub at: f64,
    /// Duration of the fault in seconds.
    #[serde(default)]
    pub lasting: f64,
    /// A fault, such as `{ kind = "power-loss", host = "host-0" }`.
    pub fault: Option<Fault>,
    /// An operator's act, such as `{ do = "stop", vm = "vm-0" }`.
    pub act: Option<Act>,
}

/// One expectation: the host of a VM at a time, or lines of the log.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Expected {
    /// Time in seconds: exact for a VM, latest for lines of the log.
    pub at: Option<f64>,
    /// Name of the VM.
    pub vm: Option<String>,
    /// The host where the VM writes: `host-1`, `not host-0`, `somewhere`, `nowhere`.
    pub on: Option<String>,
    /// Texts that a line of the log must all have.
    #[serde(default)]
    pub log: Vec<String>,
    /// Exact number of such lines; at least one by default.
    pub count: Option<usize>,
    /// The line is not from the journal, only from the simulated world: not expected on the lab.
    #[serde(default)]
    pub simulated_only: bool,
}

fn one() -> u64 {
    1
}

fn one_vm() -> usize {
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

/// The result of a story.
#[derive(Clone, Debug)]
pub struct Played {
    /// Failed expectations and broken rules; empty if the story passed.
    pub failures: Vec<String>,
    /// The run.
    pub outcome: Outcome,
}

impl Scenario {
    /// Parses a story.
    ///
    /// # Errors
    /// The problem and its place, as text.
    pub fn parse(text: &str) -> Result<Scenario, String> {
        let scenario: Scenario = toml::from_str(text).map_err(|error| error.to_string())?;
        let wrong = |what: String| Err(format!("{}: {what}", scenario.title));
        if scenario.hosts < 2 || scenario.hosts > 1000 || !(1.0..=MAX_LASTING).contains(&scenario.lasting) {
            return wrong("`hosts` must be 2 to 1000, and `lasting` 1 to 10000000 seconds".to_owned());
        }
        let vms =
            |vm_spec: &VmSpec| vm_spec.count.saturating_mul(if vm_spec.host == "every" { scenario.hosts } else { 1 });
        if scenario.vms.iter().fold(0, |sum: usize, vm_spec| sum.saturating_add(vms(vm_spec))) > MAX_VMS {
            return wrong(format!("number of VMs exceeds the limit of {MAX_VMS}"));
        }
        if !(0.01..=MAX_PING_INTERVAL).contains(&scenario.settings.ping_interval.unwrap_or(1.0)) {
            return wrong(format!("`ping_interval` is out of range (0.01 to {MAX_PING_INTERVAL} seconds)"));
        }
        if scenario.clusters == 0 || scenario.clusters > scenario.hosts {
            return wrong("`clusters` must be at least 1 and at most `hosts`".to_owned());
        }
        let hosts: Vec<String> = (0..scenario.hosts).map(|n| format!("host-{n}")).collect();
        if let Some(vm_spec) =
            scenario.vms.iter().find(|vm_spec| vm_spec.host != "every" && !hosts.contains(&vm_spec.host))
        {
            return wrong(format!(
                "host {} does not exist: hosts are host-0 to host-{}",
                vm_spec.host,
                scenario.hosts - 1
            ));
        }
        for step in &scenario.steps {
            if step.fault.is_some() == step.act.is_some() || !(0.0..=scenario.lasting).contains(&step.at) {
                return wrong(format!(
                    "step at {} needs either `fault` or `act`, and a time within `lasting`",
                    step.at
                ));
            }
            if !(f64::MIN..=MAX_LASTING).contains(&step.lasting) {
                return wrong(format!("fault at {} exceeds the limit of {MAX_LASTING} seconds", step.at));
            }
            if let Some(Fault::ClockJump { seconds }) = step.fault
                && seconds.unsigned_abs() > MAX_CLOCK_JUMP
            {
                return wrong(format!("clock jump at {} exceeds the limit of {MAX_CLOCK_JUMP} seconds", step.at));
            }
        }
        for expected in &scenario.expected {
            let has_location = expected.vm.is_some() && expected.on.is_some() && expected.at.is_some();
            if !expected.at.is_none_or(|at| (0.0..=scenario.lasting).contains(&at)) {
                return wrong(format!("expectation is not within `lasting`: {expected:?}"));
            }
            if has_location == expected.log.is_empty() {
                continue;
            }
            return wrong(format!("expectation needs either `vm`, `on` and `at`, or `log`: {expected:?}"));
        }
        Ok(scenario)
    }

    /// The plan of the story.
    pub fn plan(&self) -> Plan {
        let cluster = |n: usize| Cluster { id: ClusterId::from_name(&format!("c{n}")), name: format!("c{n}") };
        let clusters: Vec<Cluster> = (1..=self.clusters).map(cluster).collect();
        let cluster_of = |host: usize| clusters[host * self.clusters / self.hosts].id;
        let mut hosts: Vec<_> = (0..self.hosts).map(|n| plan::host(n, cluster_of(n))).collect();
        if self.settings.shared_address {
            hosts[0].storage_ips = vec![plan::MONITOR.parse().expect("an address")];
        }
        let storages = plan::storages(&clusters.iter().map(|cluster| cluster.id).collect::<Vec<_>>());
        let on = |vm_spec: &VmSpec| -> Vec<String> {
            match vm_spec.host.as_str() {
                "every" => hosts.iter().map(|host| host.name.clone()).collect(),
                host => vec![host.to_owned()],
            }
        };
        let each = self.vms.iter().flat_map(|vm_spec| std::iter::repeat_n(vm_spec, vm_spec.count));
        let specs: Vec<(&VmSpec, String)> =
            each.flat_map(|spec| on(spec).into_iter().map(move |at| (spec, at))).collect();
        let places = specs.iter().map(|(_, host)| host.clone()).collect();
        let vms = specs.iter().enumerate().map(|(n, (vm_spec, at))| {
            let name = format!("vm-{n}");
            let (storage, install_path) = match vm_spec.vhost {
                true => (storages[1].id, InstallPath::Vhost { name: name.clone() }),
                false => (storages[0].id, InstallPath::Ceph { pool: "rbd".to_owned(), image: name.clone() }),
            };
            Vm {
                id: VmId::from_name(&name),
                name,
                cluster: hosts.iter().find(|host| host.name == *at).map_or(clusters[0].id, |host| host.cluster),
                ha: if vm_spec.no_ha { HaMode::None } else { HaMode::NeverStop },
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

    /// Runs the story in the simulated world.
    pub fn play(&self) -> Played {
        let outcome = run(&self.plan());
        let mut failures: Vec<String> = outcome.violations.iter().map(ToString::to_string).collect();
        failures.extend(self.expected.iter().filter_map(|expected| expected.unmet(&outcome.log)));
        Played { failures, outcome }
    }
}

impl Expected {
    fn expected_count(&self) -> String {
        self.count.map_or("at least once".to_owned(), |count| format!("{count} times"))
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

    /// The expected host of a VM, if this is an expectation about a VM.
    pub fn location(&self) -> Option<Location> {
        let on = self.on.as_deref()?;
        Some(match (on, on.strip_prefix("not ")) {
            ("nowhere", _) => Location::Nowhere,
            ("somewhere", _) => Location::Somewhere,
            (_, Some(host)) => Location::NotOn(host.to_owned()),
            (host, None) => Location::On(host.to_owned()),
        })
    }

    /// Checks the expected lines of the log; `None` if the expectation is met.
    pub fn unmet(&self, log: &[String]) -> Option<String> {
        if self.log.is_empty() {
            return None;
        }
        let in_time = |line: &&String| {
            let time: f64 = line.split_whitespace().next().and_then(|time| time.parse().ok()).unwrap_or(f64::MAX);
            self.at.is_none_or(|at| time <= at)
        };
        let found = log.iter().filter(in_time).filter(|line| self.log.iter().all(|words| line.contains(words))).count();
        let met = self.count.map_or(found > 0, |count| count == found);
        (!met).then(|| format!("expected {:?} {}, found {found} times", self.log, self.expected_count()))
    }
}
