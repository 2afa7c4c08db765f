//! Checks of the host itself, with a controller or without.
//!
//! Invariants: nothing is created, started or grown; programs run only with `--version`; verdicts on numbers are pure
//! functions.

use std::{path::Path, time::Duration};

use ringfence_drivers::files::not_ours;
use ringfence_drivers::node::{
    docker::{DEFAULT_SOCKET, Engine},
    hugepages::Hugepages,
    qemu,
    target::Runner,
    vms,
};
use ringfence_messages::{
    Code, ErrorCode,
    doctor::{Finding, HostNeeds, Verdict},
};
use ringfence_service::token_file::read_token;
use rustix::fs::{Access, StatVfs, access, statvfs};

use super::{Check, of, quoted, siblings};
use crate::config::AgentSettings;

/// Time limit of `--version`. Too low: a program counts as missing on a busy host. Too high: the doctor waits.
const VERSION_TIMEOUT: Duration = Duration::from_secs(5);

/// Free space below which a disk counts as full. Too low: the next intent does not fit. Too high: false alarms.
const LEAST_FREE: u64 = 64 << 20;

/// Free space below which a disk gets a warning. Too low: no time to react. Too high: small disks never pass.
const LITTLE_FREE: u64 = 1 << 30;

/// Free inodes below which a disk counts as full.
const LEAST_INODES: u64 = 1000;

const WHY_STATE: &str = "every command is written there before it is carried out; without it, nothing is carried out";
const WHY_DISK: &str = "an intent that does not fit on the disk blocks the fence or start that it precedes";
const WHY_TOKEN: &str =
    "a user that reads it may command every host; a file that others may read is rejected at the next start";
const WHY_QEMU: &str = "VMs that fail over to this host need it";
const WHY_ACCEL: &str = "VMs on this host run with it";
const WHY_TARGET: &str = "a storage target that dies is redeployed with it";
const WHY_HUGEPAGES: &str = "a VM with a vhost disk that starts here needs them, contiguously";
const WHY_ENGINE: &str = "the storage targets of this host run in containers";
const WHY_PATH: &str = "a VM that starts here opens its disk with it";

/// The needs of storages that an agent knows without a controller: the targets that its own file sets.
pub fn needs_of(settings: &AgentSettings) -> HostNeeds {
    let containers = settings.docker.is_some() && !matches!(settings.target, Runner::Docker(..));
    HostNeeds { vhost_target: !containers, containers, ..HostNeeds::default() }
}

/// All checks of the host itself.
pub async fn look(settings: &AgentSettings, needs: &HostNeeds) -> Vec<Finding> {
    let mut findings = state(&settings.state_dir, "agent");
    findings.push(token(settings));
    findings.extend(qemu(settings).await);
    if needs.vhost_target {
        findings.push(target(&settings.target).await);
    }
    if needs.containers {
        findings.push(engine(settings.docker.as_ref()).await);
    }
    if needs.hugepages > 0 {
        findings.push(hugepages(needs.hugepages));
    }
    findings.extend(needs.paths.iter().map(|path| path_exists(Path::new(path))));
    findings.push(siblings::own_key(settings.ssh.as_ref()));
    findings
}

/// A state directory and its disk. `owner` is "agent" or "controller".
pub fn state(dir: &Path, owner: &str) -> Vec<Finding> {
    let check = || of("state-dir", WHY_STATE).about(dir.display());
    let metadata = match std::fs::metadata(dir) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let fix = format!("start the {owner} once, which creates it, or correct state_dir in its file");
            let nearest = dir.ancestors().skip(1).find(|above| above.is_dir()).unwrap_or(Path::new("/"));
            return vec![check().warn("it does not exist yet", fix), disk(nearest)];
        }
        Err(error) => return vec![check().unknown(error.to_string(), "run the doctor as the user of the service")],
    };
    let judged = if !metadata.is_dir() {
        check().fail("it is not a directory", "set state_dir to a directory")
    } else if let Err(error) = access(dir, Access::WRITE_OK | Access::EXEC_OK) {
        check().fail(format!("this user may not write it: {error}"), format!("chown \"$USER\" {}", quoted(dir)))
    } else if let Some(why) = not_ours(&metadata) {
        check().fail(why, format!("chown \"$USER\" {0}; chmod 700 {0}", quoted(dir)))
    } else {
        check().ok("writable")
    };
    vec![judged, disk(dir)]
}

fn disk(dir: &Path) -> Finding {
    let check = of("disk", WHY_DISK).about(dir.display());
    match statvfs(dir) {
        Ok(found) => room(check, dir, &found),
        Err(error) => {
            check.unknown(format!("its file system does not report free space: {error}"), format!("df {}", quoted(dir)))
        }
    }
}

fn room(check: Check, dir: &Path, of: &StatVfs) -> Finding {
    let (free, inodes) = (of.f_bavail.saturating_mul(of.f_frsize), of.f_favail);
    let found = format!("{} MiB free", free >> 20);
    let remedy = format!("du -xhd1 {} | sort -h; free some space", quoted(dir));
    match (judge_room(free), of.f_files) {
        // Some file systems allocate inodes on demand and report none.
        (_, files) if files > 0 && inodes < LEAST_INODES => {
            check.fail(format!("{found}, only {inodes} free inodes"), remedy)
        }
        (Verdict::Ok, _) => check.ok(found),
        (Verdict::Warn, _) => check.warn(found, remedy),
        _ => check.fail(found, remedy),
    }
}

fn judge_room(free: u64) -> Verdict {
    match free {
        free if free < LEAST_FREE => Verdict::Fail,
        free if free < LITTLE_FREE => Verdict::Warn,
        _ => Verdict::Ok,
    }
}

fn token(settings: &AgentSettings) -> Finding {
    let check = || of("token", WHY_TOKEN);
    match &settings.token_file {
        Some(file) => token_file(file),
        None if settings.listen.ip().is_loopback() => check().ok("none; the agent listens on loopback only"),
        None => check().warn(
            format!("none: every client that reaches {} may command this host", settings.listen),
            "openssl rand -base64 24 > /etc/ringfence/token; chmod 600 /etc/ringfence/token; set [auth] \
             token_file here and agent_token_file of the controller to it",
        ),
    }
}

/// A token file, which only its owner may read.
pub fn token_file(file: &Path) -> Finding {
    let check = of("token", WHY_TOKEN).about(file.display());
    match read_token(file) {
        Ok(_) => check.ok("only its owner may read it"),
        Err(error) => check.fail(error.details, format!("chmod 600 {0}; head -c 40 {0}", quoted(file))),
    }
}

async fn qemu(settings: &AgentSettings) -> [Finding; 2] {
    let (binary, accel) = (&settings.qemu.binary, settings.qemu.accel());
    let check = of("qemu", WHY_QEMU).about(binary);
    let version = match version(binary).await {
        Ok(version) => check.ok(format!("version {version}")),
        Err(error) => check.fail(error.details, "apt-get install qemu-system-x86"),
    };
    let check = of("accel", WHY_ACCEL);
    let accel = match (accel.as_str(), vms::kvm_is_usable()) {
        ("kvm", true) => check.ok("kvm"),
        ("kvm", false) => check.fail(
            "accel = \"kvm\", but this user may not use /dev/kvm",
            "modprobe kvm_intel || modprobe kvm_amd; ls -l /dev/kvm; or accel = \"auto\" in [qemu]",
        ),
        _ if settings.qemu.accel.is_some() => check.ok(format!("{accel}, as configured")),
        _ => check.warn(
            format!("{accel}: /dev/kvm is not usable, so guests run about ten times slower"),
            "modprobe kvm_intel || modprobe kvm_amd; ls -l /dev/kvm; or set accel = \"tcg\" if that is intended",
        ),
    };
    [version, accel]
}

async fn version(program: &str) -> Result<qemu::Version, ErrorCode> {
    tokio::time::timeout(VERSION_TIMEOUT, vms::version(program)).await.unwrap_or_else(|_| {
        let details = format!("{program} --version did not finish within {VERSION_TIMEOUT:?}");
        Err(ErrorCode::new(Code::TIMEOUT, details))
    })
}

async fn target(runner: &Runner) -> Finding {
    match runner {
        Runner::Process(program) => {
            let check = of("vhost-target", WHY_TARGET).about(program);
            match version(program).await {
                Ok(version) => check.ok(format!("version {version}")),
                Err(error) => check.fail(error.details, "apt-get install qemu-system-common"),
            }
        }
        Runner::Docker(engine, image) => {
            let check = of("vhost-target", WHY_TARGET).about(image);
            match engine.has_image(image).await {
                Ok(true) => check.ok("the image is on this host"),
                Ok(false) => {
                    let found = "the image is not on this host, and a redeploy does not pull it";
                    check.fail(found, format!("docker pull {image}"))
                }
                Err(error) => check.fail(error.details, "systemctl enable --now docker.service"),
            }
        }
    }
}

async fn engine(engine: Option<&Engine>) -> Finding {
    let default = Engine::at(DEFAULT_SOCKET);
    let answers = engine.unwrap_or(&default).answers().await;
    judge_engine(of("docker", WHY_ENGINE), answers, engine.is_some())
}

/// `prepared`: by its file, the agent starts the engine before a redeploy. `zbsadm` itself is not checked: the MDS
/// runs it, on its own machine.
fn judge_engine(check: Check, answers: Result<(), ErrorCode>, prepared: bool) -> Finding {
    let remedy = "set target = \"zbsadm\" under [vhost] in agent.toml; restart the agent";
    match (answers, prepared) {
        (Ok(()), true) => check.ok("docker answers"),
        (Ok(()), false) => check.warn("docker answers, but the agent does not start it before a redeploy", remedy),
        (Err(error), _) => {
            let install = "apt-get install docker.io; systemctl enable --now docker.service";
            check.fail(error.details, if prepared { install.to_owned() } else { format!("{install}; {remedy}") })
        }
    }
}

fn hugepages(required: u64) -> Finding {
    let check = of("hugepages", WHY_HUGEPAGES);
    let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let available = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let available = available.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0) / 1024;
    match Hugepages::default().free() {
        Ok(free) => judge_hugepages(check, required, free, available),
        Err(error) => check.fail(error.details, "boot a kernel with CONFIG_HUGETLBFS"),
    }
}

/// Preparing the host grows the pool, so the verdict depends on the memory for missing pages.
fn judge_hugepages(check: Check, required: u64, free: u64, available_mib: u64) -> Finding {
    let (short, found) = (required.saturating_sub(free), format!("{free} of {required} are free"));
    let remedy = format!("echo vm.nr_hugepages={required} > /etc/sysctl.d/50-hugepages.conf; sysctl --system");
    match short * 2 {
        0 => check.ok(found),
        mib if mib > available_mib => check
            .fail(format!("{found}; {available_mib} MiB of free memory are too few for the missing {mib} MiB"), remedy),
        _ => check.warn(format!("{found}; the others must be allocated when they are needed"), remedy),
    }
}

fn path_exists(path: &Path) -> Finding {
    let check = of("path", WHY_PATH).about(path.display());
    match access(path, Access::READ_OK) {
        Ok(()) => check.ok("readable"),
        Err(error) => check.fail(
            format!("cannot be read: {error}"),
            format!("ls -l {0}; copy or mount it as on the other hosts", quoted(path)),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disk_verdict_depends_on_free_space() {
        assert_eq!(judge_room(0), Verdict::Fail);
        assert_eq!(judge_room(LEAST_FREE - 1), Verdict::Fail);
        assert_eq!(judge_room(LEAST_FREE), Verdict::Warn);
        assert_eq!(judge_room(LITTLE_FREE), Verdict::Ok);
    }

    #[test]
    fn unprepared_docker_engine_is_reported() {
        let judge = |answers, prepared| judge_engine(of("docker", ""), answers, prepared);
        let gone = || Err(ErrorCode::new(Code::IO, "no answer"));
        assert_eq!(judge(Ok(()), true).verdict, Verdict::Ok);
        for (found, verdict) in [(judge(Ok(()), false), Verdict::Warn), (judge(gone(), false), Verdict::Fail)] {
            assert_eq!(found.verdict, verdict);
            assert!(found.mend.unwrap().contains("target = \"zbsadm\""));
        }
        assert!(!judge(gone(), true).mend.unwrap().contains("zbsadm"));
    }

    #[test]
    fn missing_hugepages_need_free_memory() {
        let judge = |required, free, available| judge_hugepages(of("hugepages", ""), required, free, available).verdict;
        assert_eq!(judge(1024, 1024, 0), Verdict::Ok);
        assert_eq!(judge(1024, 24, 2000), Verdict::Warn);
        assert_eq!(judge(1024, 24, 1999), Verdict::Fail);
    }
}
