//! `ringfence sim`, `model` and `scenario`: the simulator on the command line.

use std::{
    collections::BTreeSet,
    fs,
    ops::RangeInclusive,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use clap::{Args, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};
use ringfence_sim::{
    campaign::{Campaign, Failure, campaign},
    model::{self, Protocol},
    plan::{Plan, Size},
    run::run,
    scenario::Scenario,
};

use crate::{chaos, output::print, scenario_lab};

/// Lines of a failed run that are printed.
const LAST_EVENTS: usize = 40;

/// Options of a campaign.
#[derive(Args, Clone, Debug)]
pub struct SimArgs {
    /// Range of seeds, such as 1..1000; fresh seeds with --minutes alone
    #[arg(long, value_parser = seeds)]
    seeds: Option<RangeInclusive<u64>>,
    /// Single seed
    #[arg(long, conflicts_with_all = ["seeds", "minutes"])]
    seed: Option<u64>,
    /// Simulated hours of each run; the last 75 minutes are without faults
    #[arg(long, default_value_t = 24, value_parser = clap::value_parser!(u64).range(2..=8760))]
    hours: u64,
    /// Number of hosts, with two VMs each
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u64).range(3..=10_000))]
    hosts: u64,
    /// Minutes after which no further seed starts
    #[arg(long)]
    minutes: Option<u64>,
    /// Number of threads; all cores by default
    #[arg(long)]
    jobs: Option<usize>,
    /// Print every event; needs --seed
    #[arg(long, requires = "seed")]
    trace: bool,
    /// Faults of the seed's plan to inject, counted from 0; needs --seed
    #[arg(long, requires = "seed", value_delimiter = ',')]
    steps: Option<Vec<usize>>,
}

/// Options of the model checker.
#[derive(Args, Clone, Copy, Debug)]
pub struct ModelArgs {
    /// Number of consecutive actions
    #[arg(long, default_value_t = 14)]
    depth: usize,
    /// Variant with a VM on vhost, misleading processes, power losses and attestations, instead of a VM on Ceph and two
    /// controllers
    #[arg(long)]
    claims: bool,
}

/// Checks the model. Returns the exit status.
pub fn check_model(args: &ModelArgs) -> u8 {
    let threads = std::thread::available_parallelism().map_or(1, Into::into);
    let began = Instant::now();
    let of = if args.claims { Protocol::with_claims() } else { Protocol::new() };
    let checked = model::check(of, args.depth, threads);
    if !checked.violation.is_empty() {
        print(format!("violation of I1 after {} actions:", checked.violation.len()));
        checked.violation.iter().for_each(|action| print(format!("  {action}")));
    }
    print(format!(
        "{} states, every one that {} actions lead to, in {:.0} s: {}",
        checked.states,
        checked.depth,
        began.elapsed().as_secs_f64(),
        match (checked.violation.is_empty(), checked.moves) {
            (false, _) => "two QEMUs write",
            (true, true) => "never do two QEMUs write, and a VM does move",
            (true, false) => "never do two QEMUs write; no VM moves yet, look further",
        }
    ));
    u8::from(!checked.violation.is_empty())
}

/// Actions on stories.
#[derive(Subcommand, Clone, Debug)]
pub enum ScenarioCommand {
    /// Run stories
    ///
    /// The exit status is 1 if an expectation of a story fails.
    Run {
        /// Files of stories
        #[arg(required = true)]
        files: Vec<PathBuf>,
        /// Seed instead of the file's
        #[arg(long)]
        seed: Option<u64>,
        /// Print every event
        #[arg(long)]
        trace: bool,
        /// Run on the lab (`make lab`): real Ceph, QEMU and hosts, in real time; needs root
        #[arg(long, conflicts_with_all = ["seed", "trace", "stats"])]
        lab: bool,
        /// Print counts of events, recovery time and peak memory
        #[arg(long)]
        stats: bool,
    },
    /// Inject random faults into the lab (`make chaos`)
    ///
    /// The exit status is 1 unless every host and VM recovers. The command needs root.
    Chaos {
        /// Seed of the faults; a fresh one by default
        #[arg(long)]
        seed: Option<u64>,
        /// Duration in seconds
        #[arg(long, default_value_t = 1800, value_parser = clap::value_parser!(u64).range(60..=86_400))]
        seconds: u64,
    },
    /// List the stories of a directory
    List {
        /// Directory
        #[arg(default_value = "examples/scenarios")]
        dir: PathBuf,
    },
}

fn seeds(text: &str) -> Result<RangeInclusive<u64>, String> {
    let wrong = || format!("{text:?} is not a range of seeds; write 1..1000");
    let (first, last) = text.split_once("..").ok_or_else(wrong)?;
    let (first, last): (u64, u64) = (first.parse().map_err(|_| wrong())?, last.parse().map_err(|_| wrong())?);
    if first > last { Err(wrong()) } else { Ok(first..=last) }
}

/// Runs a campaign or one seed. Returns the exit status.
pub fn simulate(args: &SimArgs) -> u8 {
    let hosts = usize::try_from(args.hosts).unwrap_or(usize::MAX);
    let size = Size { hosts, vms: hosts * 2, lasting: Duration::from_secs(args.hours * 3600) };
    match args.seed {
        Some(seed) => one(args, seed, size),
        None => many(args, size),
    }
}

fn one(args: &SimArgs, seed: u64, size: Size) -> u8 {
    let mut plan = Plan::of_seed(seed, size);
    if let Some(only) = &args.steps {
        let only: BTreeSet<usize> = only.iter().copied().collect();
        let steps = plan.steps.into_iter().enumerate().filter(|(n, _)| only.contains(n));
        plan.steps = steps.map(|(_, step)| step).collect();
    }
    let outcome = run(&plan);
    if args.trace {
        outcome.log.iter().for_each(print);
    }
    outcome.violations.iter().for_each(|violation| print(format!("violation of {violation}")));
    let failed = u8::from(!outcome.violations.is_empty());
    print(format!("{} passed, {failed} failed", 1 - failed));
    failed
}

fn many(args: &SimArgs, size: Size) -> u8 {
    let fresh = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(1, |since| since.as_secs());
    let seeds = match (&args.seeds, args.minutes) {
        (Some(seeds), _) => seeds.clone(),
        (None, Some(_)) => fresh * 1000..=fresh * 1000 + 999_999,
        (None, None) => 1..=100,
    };
    let began = Instant::now();
    let jobs = args.jobs.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, Into::into));
    let until = args.minutes.map(|minutes| began + Duration::from_secs(minutes * 60));
    print(format!(
        "seeds {}..{}, {} hours, {} hosts, {} VMs, all faults, on {jobs} threads; {}",
        seeds.start(),
        seeds.end(),
        args.hours,
        size.hosts,
        size.vms,
        revision()
    ));
    let bar = ProgressBar::new(seeds.end() - seeds.start() + 1);
    let style = ProgressStyle::with_template("{bar:30.cyan} {pos}/{len}  {msg}");
    bar.set_style(style.expect("a constant template"));
    let of = Campaign { seeds, size, jobs, until };
    let (mut newest, mut told) = (0, 0);
    let summary = campaign(&of, |seed, summary| {
        newest = newest.max(seed);
        let wall = began.elapsed().as_secs_f64();
        for failure in &summary.failures[told..] {
            bar.suspend(|| tell(failure, args, size));
        }
        told = summary.failures.len();
        let ended = summary.passed + summary.failures.len() as u64;
        bar.set_position(ended);
        bar.set_message(format!(
            "{:.2} seeds/s, {:.1} simulated hours/s, {} failed",
            ended as f64 / wall,
            summary.counts.simulated.as_secs_f64() / 3600.0 / wall,
            summary.failures.len()
        ));
    });
    bar.finish_and_clear();
    let counts = &summary.counts;
    let simulated = counts.simulated.as_secs_f64();
    print(format!(
        "{:.0} simulated hours in {:.0} s: {:.0} simulated seconds per second and core; {} fences, {} starts, {} \
         redeploys; newest seed {newest}",
        simulated / 3600.0,
        began.elapsed().as_secs_f64(),
        simulated / summary.busy.as_secs_f64().max(0.001),
        counts.fences,
        counts.starts,
        counts.redeploys
    ));
    print(format!("{} passed, {} failed", summary.passed, summary.failures.len()));
    u8::from(!summary.failures.is_empty())
}

fn tell(failure: &Failure, args: &SimArgs, size: Size) {
    let whole = Plan::of_seed(failure.seed, size);
    let mut left = failure.plan.steps.iter().peekable();
    let kept = whole.steps.iter().enumerate().filter(|(_, step)| left.next_if(|kept| kept == step).is_some());
    let kept: Vec<String> = kept.map(|(n, _)| n.to_string()).collect();
    print(format!("seed {} at {}", failure.seed, revision()));
    failure.outcome.violations.iter().for_each(|violation| print(format!("  violation of {violation}")));
    print(format!("  {} of {} faults are enough:", kept.len(), whole.steps.len()));
    for step in &failure.plan.steps {
        print(format!("    {:>10.3} s {:?}", step.at.as_secs_f64(), step.kind));
    }
    print("  the last events:");
    let log = &failure.outcome.log;
    log[log.len().saturating_sub(LAST_EVENTS)..].iter().for_each(|line| print(format!("    {line}")));
    print(format!(
        "  again: ringfence sim --seed {} --hours {} --hosts {} --steps {} --trace",
        failure.seed,
        args.hours,
        args.hosts,
        kept.join(",")
    ));
}

/// Version and commit of this program.
fn revision() -> String {
    format!("ringfence {} ({})", env!("CARGO_PKG_VERSION"), option_env!("RINGFENCE_COMMIT").unwrap_or("unknown commit"))
}

/// Runs or lists stories. Returns the exit status.
pub fn scenario(command: &ScenarioCommand) -> u8 {
    match command {
        ScenarioCommand::Run { files, seed, trace, stats, lab } => {
            let (mut passed, mut failed) = (0, 0);
            for file in files {
                let mut scenario = match read(file) {
                    Ok(scenario) => scenario,
                    Err(why) => {
                        eprintln!("{why}");
                        return 2;
                    }
                };
                if *lab {
                    let failures = match (scenario.lab, scenario_lab::play(&scenario)) {
                        (false, _) => vec!["the story is not marked for the lab".to_owned()],
                        (true, Ok(failures)) => failures,
                        (true, Err(why)) => vec![why],
                    };
                    outcome(file, &scenario, &failures);
                    if failures.is_empty() {
                        passed += 1
                    } else {
                        failed += 1
                    }
                    continue;
                }
                scenario.seed = seed.unwrap_or(scenario.seed);
                let played = scenario.play();
                if *trace {
                    played.outcome.log.iter().for_each(print);
                }
                let well = played.failures.is_empty();
                outcome(file, &scenario, &played.failures);
                if *stats {
                    let counts = &played.outcome.counts;
                    print(format!(
                        "     {} fences, {} starts, {} redeploys; {}; peak memory {} MiB",
                        counts.fences,
                        counts.starts,
                        counts.redeploys,
                        recovery(&played.outcome.log),
                        peak_memory_mib()
                    ));
                }
                if well { passed += 1 } else { failed += 1 }
            }
            print(format!("{passed} passed, {failed} failed"));
            u8::from(failed > 0)
        }
        ScenarioCommand::Chaos { seed, seconds } => {
            chaos::run(seed.unwrap_or_else(rand::random), Duration::from_secs(*seconds))
        }
        ScenarioCommand::List { dir } => list(dir),
    }
}

fn outcome(file: &Path, scenario: &Scenario, failures: &[String]) {
    let word = if failures.is_empty() { "ok  " } else { "FAIL" };
    print(format!("{word} {}: {}", file.display(), scenario.title));
    failures.iter().for_each(|failure| print(format!("     {failure}")));
}

/// Time from the first fault to the last failover, in simulated time.
fn recovery(log: &[String]) -> String {
    let time = |line: &String| line.split_whitespace().next().and_then(|time| time.parse::<f64>().ok());
    let fault = log.iter().find(|line| line.contains(" fault: ")).and_then(time);
    let back = log.iter().rfind(|line| line.contains(" ha.vm-started ")).and_then(time);
    match (fault, back) {
        (Some(fault), Some(back)) => format!("the last VM was back {:.1} s after the first fault", back - fault),
        _ => "nothing had to be brought back".to_owned(),
    }
}

/// Peak memory of this process.
fn peak_memory_mib() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    peak.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0) / 1024
}

fn read(file: &Path) -> Result<Scenario, String> {
    let text = fs::read_to_string(file).map_err(|error| format!("{}: {error}", file.display()))?;
    Scenario::parse(&text).map_err(|why| format!("{}: {why}", file.display()))
}

fn list(dir: &Path) -> u8 {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) => {
            eprintln!("{}: {error}", dir.display());
            return 2;
        }
    };
    let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    files.retain(|file| file.extension().is_some_and(|ending| ending == "toml"));
    files.sort();
    for file in files {
        match read(&file) {
            Ok(scenario) => {
                let row = scenario.row.map_or("   ".to_owned(), |row| format!("{row:>3}"));
                let lab = if scenario.lab { "lab" } else { "   " };
                print(format!("{row} {lab} {:<60} {}", file.display(), scenario.title));
            }
            Err(why) => {
                eprintln!("{why}");
                return 2;
            }
        }
    }
    0
}
