//! What a host finds on itself, with a controller or without.
//!
//! Invariants: nothing is made, started or grown; programs are only asked for their version; judgements of numbers are
//! functions of numbers.

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
use rustix::fs::{Access, StatVfs, access, statvfs};

use super::{Check, of, quoted, siblings};
use crate::{auth::read_token, config::AgentSettings};

/// How long a program may take to say its version. Too low: a busy host seems to lack it. Too high: the doctor waits.
const VERSION_TIMEOUT: Duration = Duration::from_secs(5);

/// Below this a disk is as good as full: an order, an intent, a log line do not fit for long. Too high: it cries wolf.
const LEAST_FREE: u64 = 64 << 20;

/// Below this it will be full one of these nights. Too high: small disks are never well.
const LITTLE_FREE: u64 = 1 << 30;

/// Files that can still be made; below this a disk with room is full all the same.
const LEAST_INODES: u64 = 1000;

const WHY_STATE: &str = "what was ordered is kept there before it is done; where it cannot be, nothing is done";
const WHY_DISK: &str = "an intent that does not fit on the disk is not carried out: no fence, no start";
const WHY_TOKEN: &str =
    "whoever reads it may command every host; one that others may read is refused at the next start";
const WHY_QEMU: &str = "a VM that is fenced elsewhere is to be started here";
const WHY_ACCEL: &str = "a VM that is started here runs with it";
const WHY_TARGET: &str = "a storage target that died at night is deployed again with it";
const WHY_HUGEPAGES: &str = "a VM with a vhost disk that is started here tonight needs them, in one piece";
const WHY_ENGINE: &str = "the storage targets of this host run in containers";
const WHY_PATH: &str = "a VM that is started here tonight opens its disk with it";

/// What an agent can know of its storages without a controller: what its own file says that it runs.
pub(crate) fn needs_of(settings: &AgentSettings) -> HostNeeds {
    let containers = settings.docker.is_some() && !matches!(settings.target, Runner::Docker(..));
    HostNeeds { vhost_target: !containers, containers, ..HostNeeds::default() }
}

/// Everything that a host can find on itself.
pub(crate) async fn look(settings: &AgentSettings, needs: &HostNeeds) -> Vec<Finding> {
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
    findings.extend(needs.paths.iter().map(|path| is_there(Path::new(path))));
    findings.push(siblings::own_key(settings.ssh.as_ref()));
    findings
}

/// A state directory and the disk under it. `whose` it is: the agent's or the controller's.
pub(crate) fn state(dir: &Path, whose: &str) -> Vec<Finding> {
    let check = || of("state-dir", WHY_STATE).about(dir.display());
    let metadata = match std::fs::metadata(dir) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let fix = format!("start the {whose} once: it makes it; or correct state_dir in its file");
            let nearest = dir.ancestors().skip(1).find(|above| above.is_dir()).unwrap_or(Path::new("/"));
            return vec![check().warn("it is not there yet", fix), disk(nearest)];
        }
        Err(error) => return vec![check().unknown(error.to_string(), "look at it as the user that runs it")],
    };
    let judged = if !metadata.is_dir() {
        check().fail("it is no directory", "point state_dir to a directory")
    } else if let Err(error) = access(dir, Access::WRITE_OK | Access::EXEC_OK) {
        check().fail(format!("this user may not write it: {error}"), format!("chown \"$USER\" {}", quoted(dir)))
    } else if let Some(why) = not_ours(&metadata) {
        check().fail(why, format!("chown \"$USER\" {0}; chmod 700 {0}", quoted(dir)))
    } else {
        check().ok("it can be written")
    };
    vec![judged, disk(dir)]
}

fn disk(dir: &Path) -> Finding {
    let check = of("disk", WHY_DISK).about(dir.display());
    match statvfs(dir) {
        Ok(found) => room(check, dir, &found),
        Err(error) => check.unknown(format!("its file system does not say: {error}"), format!("df {}", quoted(dir))),
    }
}

fn room(check: Check, dir: &Path, of: &StatVfs) -> Finding {
    let (free, inodes) = (of.f_bavail.saturating_mul(of.f_frsize), of.f_favail);
    let found = format!("{} MiB free", free >> 20);
    let mend = format!("du -xhd1 {} | sort -h, and make room", quoted(dir));
    match (judge_room(free), of.f_files) {
        // Some file systems make inodes as they need them, and have none to count.
        (_, files) if files > 0 && inodes < LEAST_INODES => {
            check.fail(format!("{found}, and {inodes} files can still be made"), mend)
        }
        (Verdict::Ok, _) => check.ok(found),
        (Verdict::Warn, _) => check.warn(found, mend),
        _ => check.fail(found, mend),
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
        None if settings.listen.ip().is_loopback() => check().ok("none, and only this machine reaches the agent"),
        None => check().warn(
            format!("none: whoever reaches {} may command this host", settings.listen),
            "openssl rand -base64 24 > /etc/ringfence/token; chmod 600 /etc/ringfence/token; name it in [auth] \
             token_file here and in agent_token_file of the controller",
        ),
    }
}

/// A file with a token: only its owner may read it.
pub(crate) fn token_file(file: &Path) -> Finding {
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
            "kvm is asked for, and this user may not use /dev/kvm",
            "modprobe kvm_intel || modprobe kvm_amd; ls -l /dev/kvm; or accel = \"auto\" in [qemu]",
        ),
        _ if settings.qemu.accel.is_some() => check.ok(format!("{accel}, as the file says")),
        _ => check.warn(
            format!("{accel}: /dev/kvm cannot be used, so that guests run some ten times slower"),
            "modprobe kvm_intel || modprobe kvm_amd; ls -l /dev/kvm; or say accel = \"tcg\" if that is meant",
        ),
    };
    [version, accel]
}

async fn version(program: &str) -> Result<qemu::Version, ErrorCode> {
    tokio::time::timeout(VERSION_TIMEOUT, vms::version(program)).await.unwrap_or_else(|_| {
        let details = format!("{program} did not say its version within {VERSION_TIMEOUT:?}");
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
                    let found = "the image is not on this host, and nothing is pulled at night";
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

/// `prepared`: the agent's file has it see to the engine before a deploy. `zbsadm` itself is not looked for here: the MDS runs
/// it, on a machine of its own.
fn judge_engine(check: Check, answers: Result<(), ErrorCode>, prepared: bool) -> Finding {
    let mend = "target = \"zbsadm\" under [vhost] in agent.toml, and restart the agent";
    match (answers, prepared) {
        (Ok(()), true) => check.ok("docker answers"),
        (Ok(()), false) => check.warn("docker answers, and the agent would not start it again before a deploy", mend),
        (Err(error), _) => {
            let install = "apt-get install docker.io; systemctl enable --now docker.service";
            check.fail(error.details, if prepared { install.to_owned() } else { format!("{install}; {mend}") })
        }
    }
}

fn hugepages(wanted: u64) -> Finding {
    let check = of("hugepages", WHY_HUGEPAGES);
    let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let available = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let available = available.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0) / 1024;
    match Hugepages::default().free() {
        Ok(free) => judge_hugepages(check, wanted, free, available),
        Err(error) => check.fail(error.details, "boot a kernel with CONFIG_HUGETLBFS"),
    }
}

/// The pool is grown when a host is prepared: what counts is whether there would be memory for it.
fn judge_hugepages(check: Check, wanted: u64, free: u64, available_mib: u64) -> Finding {
    let (short, found) = (wanted.saturating_sub(free), format!("{free} of {wanted} are free"));
    let mend = format!("echo vm.nr_hugepages={wanted} > /etc/sysctl.d/50-hugepages.conf; sysctl --system");
    match short * 2 {
        0 => check.ok(found),
        mib if mib > available_mib => {
            check.fail(format!("{found}, and {available_mib} MiB of memory cannot make {mib} MiB of them"), mend)
        }
        _ => check.warn(format!("{found}: the others have to be found when they are needed"), mend),
    }
}

fn is_there(path: &Path) -> Finding {
    let check = of("path", WHY_PATH).about(path.display());
    match access(path, Access::READ_OK) {
        Ok(()) => check.ok("it is there"),
        Err(error) => check.fail(
            format!("it cannot be read: {error}"),
            format!("ls -l {0}; copy or mount it here as on the other hosts", quoted(path)),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_judged_by_what_still_fits() {
        assert_eq!(judge_room(0), Verdict::Fail);
        assert_eq!(judge_room(LEAST_FREE - 1), Verdict::Fail);
        assert_eq!(judge_room(LEAST_FREE), Verdict::Warn);
        assert_eq!(judge_room(LITTLE_FREE), Verdict::Ok);
    }

    #[test]
    fn an_engine_that_the_agent_does_not_see_to_is_told() {
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
    fn hugepages_that_are_missing_need_memory_to_be_made_of() {
        let judge = |wanted, free, available| judge_hugepages(of("hugepages", ""), wanted, free, available).verdict;
        assert_eq!(judge(1024, 1024, 0), Verdict::Ok);
        assert_eq!(judge(1024, 24, 2000), Verdict::Warn);
        assert_eq!(judge(1024, 24, 1999), Verdict::Fail);
    }
}
