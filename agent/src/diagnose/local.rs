//! Checks of the host itself, with a controller or without.
//!
//! Invariants: nothing is created, started or grown; programs run only with `--version`; verdicts on numbers are pure
//! functions.

use std::{path::Path, time::Duration};

use ringfence_drivers::node::{
    docker::{DEFAULT_SOCKET, Engine},
    hugepages::Hugepages,
    qemu,
    target::Runner,
    vms,
};
use ringfence_messages::{
    Code, ErrorCode,
    doctor::{Finding, HostNeeds},
};
use ringfence_service::checks::{Check, WHY_TOKEN, of, quoted, state, token_file};
use rustix::fs::{Access, access};

use super::siblings;
use crate::config::AgentSettings;

/// Time limit of `--version`. Too low: a program counts as missing on a busy host. Too high: the doctor waits.
const VERSION_TIMEOUT: Duration = Duration::from_secs(5);

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
    use ringfence_messages::doctor::Verdict;

    use super::*;

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
