//! Level 1 of a fence: makes sure over SSH, from a sibling host, that a VM's QEMU does not run on a failed host.
//!
//! On the failed host `ringfence kill-vm UUID@MACHINE` does the work if it is installed, otherwise a small POSIX
//! script.
//! Invariants: a VM counts as not alive only by a report in the exact shape, from the right machine, with full sight;
//! on another machine nothing is killed; a process is matched by argv tokens, never by substrings; after the kill the
//! host is searched again, because a supervisor may restart the QEMU; nothing depends on libvirt, which may hang. No
//! text from outside reaches a shell: the uuid is parsed, the machine is 32 hex digits.

use std::{fmt, net::IpAddr, str::FromStr, sync::Arc, time::Duration};

use ringfence_messages::{
    Code, ErrorCode, Result, VmId,
    evidence::{Machine, Sight, UnknownReason},
    fence::{SiblingFenceVmCmd, SiblingFenceVmOnHostReply},
};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::{
    exports::Exports,
    lookout::Lookout,
    migration, script,
    ssh::{self, SshSettings},
};
use crate::strict_json::Object;

/// How long the program on the failed host may take: listing, killing, listing again (domain: 10 + 10 s).
pub const KILL_TIMEOUT: Duration = Duration::from_secs(20);

/// How long one killed process may take to be gone. D state lasts longer, and counts as alive.
pub const GONE_TIMEOUT: Duration = Duration::from_secs(10);

/// Time of the search for a restarted QEMU after the kill. Too low: a restart is missed. Too high: each fence takes
/// longer.
pub const RESPAWN_WATCH: Duration = Duration::from_millis(500);

/// Role of the executor in the cluster; the only one so far.
pub const ROLE: &str = "sibling";

/// The report of the program on the failed host: one line of JSON.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Killed {
    /// A QEMU of the VM was found.
    pub found: bool,
    /// The QEMU got SIGKILL.
    pub killed: bool,
    /// A QEMU of the VM runs or may run now.
    pub alive: bool,
    /// Reason as text for operators; may be empty.
    pub reason: String,
    /// Sight of the search.
    pub sight: Sight,
    /// The searched machine.
    pub machine: Machine,
}

/// The VM to kill, and the only permitted machine: `UUID@MACHINE`, or `UUID` for any machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Victim {
    /// Uuid of the VM.
    pub vm: VmId,
    /// The machine id, 32 hex digits; `None` for any machine.
    pub machine: Option<String>,
}

impl FromStr for Victim {
    type Err = String;

    fn from_str(text: &str) -> Result<Victim, String> {
        let (vm, machine) = text.split_once('@').map_or((text, None), |(vm, machine)| (vm, Some(machine)));
        let vm = vm.parse().map_err(|e| format!("{e}"))?;
        match machine.filter(|machine| !is_machine_id(machine)) {
            Some(odd) => Err(format!("{odd:.60?} is not a machine id: expected the 32 hex digits of /etc/machine-id")),
            None => Ok(Victim { vm, machine: machine.map(str::to_owned) }),
        }
    }
}

impl fmt::Display for Victim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.vm)?;
        self.machine.iter().try_for_each(|machine| write!(f, "@{machine}"))
    }
}

fn is_machine_id(text: &str) -> bool {
    text.len() == 32 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// Kills of one VM, at most. Too low: a restarted QEMU survives. Too high: an endless race with a supervisor.
const MAX_KILLS: u32 = 2;

/// Kills every QEMU of a VM on this host, and checks whether one restarts. On the wrong machine it does nothing.
///
/// # Errors
/// `SYS.1016` or `SYS.1001` if the processes cannot be listed: the result is unknown.
pub async fn kill(victim: &Victim, lookout: &Arc<Lookout>) -> Result<Killed> {
    let (vm, machine) = (victim.vm, super::machine());
    if let Some(meant) = victim.machine.as_ref().filter(|meant| **meant != machine.machine_id) {
        let reason = format!("this is machine {}, not {meant}: nothing was searched", machine.machine_id);
        return Ok(Killed { found: false, killed: false, alive: true, reason, sight: Sight::default(), machine });
    }
    let (mut found, mut killed, mut kills, mut notes) = (false, false, 0, Vec::new());
    let exports = Exports::new(None, lookout);
    // Before the kill, for it goes by the QEMUs. The kill does not wait for its success.
    let adopted = exports.adopt().await;
    let deadline = Instant::now() + RESPAWN_WATCH;
    let mut sight = Sight::full();
    let mut alive = loop {
        let seen = lookout.look().await?;
        let processes: Vec<_> = seen.of(vm).cloned().collect();
        if !seen.sight.is_full() {
            sight = seen.sight.clone();
        }
        if processes.is_empty() {
            if Instant::now() >= deadline {
                notes.extend(seen.strangers(vm).map(|who| format!("{who} and no VM")));
                break false;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
            continue;
        }
        found = true;
        let waits = migration::all_wait(&processes).await;
        if let Some((qemu, _)) = processes.iter().zip(waits).find(|(_, waits)| *waits) {
            notes.push(format!("process {} waits for a migration and is not killed", qemu.process.pid));
            break true;
        }
        if kills == MAX_KILLS {
            notes.push("something starts it again".to_owned());
            break true;
        }
        kills += 1;
        let mut still_there = false;
        for process in processes.iter().map(|qemu| &qemu.process) {
            match process.kill(GONE_TIMEOUT).await {
                Ok(()) => {
                    killed = true;
                    notes.push(format!("killed process {}", process.pid));
                }
                Err(error) => {
                    still_there = true;
                    notes.push(error.details);
                }
            }
        }
        if still_there {
            break true;
        }
    };
    if !alive {
        // What its targets hold would be written after it.
        match exports.end(vm).await.and_then(|ended| adopted.map(|()| ended)) {
            Ok(ended) => {
                (found, killed) = (found || ended.found, killed || ended.found);
                notes.extend(ended.said);
            }
            Err(error) => {
                (found, alive) = (true, true);
                notes.push(format!("the state of its exports is unknown: {}", error.details));
            }
        }
    }
    Ok(Killed { found, killed, alive, reason: notes.join("; "), sight, machine })
}

/// Checks what a fence needs on a host, over the same path: login, shell, permission to kill, and the tools of the
/// script. Changes nothing.
const REHEARSAL: &str = r#"
set -u
by=ringfence
if ! command -v ringfence >/dev/null 2>&1; then
  by=script
  for tool in tr awk readlink head cat id wc; do
    command -v "$tool" >/dev/null 2>&1 || { echo "$tool is missing" >&2; exit 1; }
  done
fi
printf '{"uid":%s,"by":"%s"}\n' "$(id -u)" "$by"
"#;

/// Time limit of a rehearsal after the login. Too low: a busy host looks broken. Too high: the caller waits.
pub const REHEARSAL_TIMEOUT: Duration = Duration::from_secs(5);

/// The result of a rehearsal on a host.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rehearsal {
    /// User id of the login. Only root may kill every user's QEMU.
    pub uid: u32,
    /// The program that would search: `ringfence` or `script`.
    pub by: String,
}

/// Rehearses the path of a fence to a host. Changes nothing.
///
/// # Errors
/// The reason why a fence would fail now.
pub async fn rehearse(settings: &SshSettings, ip: IpAddr, port: u16) -> Result<Rehearsal, ssh::SshError> {
    let output = ssh::run(settings, ip, port, "sh -s", REHEARSAL.as_bytes(), REHEARSAL_TIMEOUT).await?;
    serde_json::from_str(&output).map_err(|e| ssh::SshError {
        reason: UnknownReason::Unparsable,
        details: format!("unexpected output {output:.100?} ({e}): check whether the key has a forced command"),
        unreachable: false,
    })
}

/// Carries out level 1 of the fence of one VM on a failed host.
///
/// # Errors
/// The VM's state is unknown; `opaque` has the [`UnknownReason`] under `reason`. An unreachable host is no error but a
/// reply with `ssh_reachable` = false; the policy decides about it.
pub async fn fence(settings: &SshSettings, cmd: &SiblingFenceVmCmd) -> Result<SiblingFenceVmOnHostReply> {
    let ip: IpAddr = cmd.failed_host_ip.parse().map_err(|_| {
        let details = format!("failedHostIp {:.60?} is not a literal IP address", cmd.failed_host_ip);
        ErrorCode::new(Code::INVALID_ARGUMENT, details)
    })?;
    if cmd.failed_host_ssh_port == 0 {
        return Err(ErrorCode::new(Code::INVALID_ARGUMENT, "failedHostSshPort = 0 is out of range (1 to 65535)"));
    }
    if !is_machine_id(&cmd.machine.machine_id) {
        let details = format!(
            "whether {} runs on {ip} is unknown: its host never reported a machine id ({:.60?}), so another machine \
             may answer at that address",
            cmd.vm_uuid, cmd.machine.machine_id
        );
        return Err(unknown(UnknownReason::OtherMachine, details));
    }
    let victim = Victim { vm: cmd.vm_uuid, machine: Some(cmd.machine.machine_id.clone()) };
    let command = format!("sh -s -- {victim}");
    let output =
        ssh::run(settings, ip, cmd.failed_host_ssh_port, &command, script::text().as_bytes(), KILL_TIMEOUT).await;
    let mut reply =
        SiblingFenceVmOnHostReply { executor_role: Some(ROLE.to_owned()), ..SiblingFenceVmOnHostReply::default() };
    match output {
        Ok(output) => {
            let killed = checked(parse_reply(&output)?, cmd, ip)?;
            reply.ssh_reachable = true;
            (reply.qemu_found, reply.killed, reply.alive) = (killed.found, killed.killed, killed.alive);
            (reply.reason, reply.sight, reply.machine) = (killed.reason, Some(killed.sight), Some(killed.machine));
            Ok(reply)
        }
        Err(error) if error.unreachable => {
            reply.reason = error.details;
            Ok(reply)
        }
        Err(error) => {
            let details = format!("whether {} runs on {ip} is unknown: {}", cmd.vm_uuid, error.details);
            Err(unknown(error.reason, details))
        }
    }
}

/// Checks a report: one of another machine proves nothing, and absence requires full sight.
fn checked(mut killed: Killed, cmd: &SiblingFenceVmCmd, ip: IpAddr) -> Result<Killed> {
    let about = format!("whether {} runs on {ip} is unknown", cmd.vm_uuid);
    if !killed.machine.is(&cmd.machine) {
        let (answered, meant) = (&killed.machine.machine_id, &cmd.machine.machine_id);
        let details = format!("{about}: machine {answered:.60} answers there, not {meant}: {:.200}", killed.reason);
        return Err(unknown(UnknownReason::OtherMachine, details));
    }
    if !killed.alive && !killed.sight.is_full() {
        let details =
            format!("{about}: it was not found, and the sight was not full: {}: {:.200}", killed.sight, killed.reason);
        return Err(unknown(UnknownReason::Blind, details));
    }
    if killed.machine.is_another_boot_of(&cmd.machine) {
        let note = "the machine has booted since, so that every process of the former boot is dead";
        let more = if killed.reason.is_empty() { String::new() } else { format!("; {}", killed.reason) };
        killed.reason = format!("{note}{more}");
    }
    Ok(killed)
}

fn unknown(reason: UnknownReason, details: String) -> ErrorCode {
    let word = serde_json::to_value(reason).unwrap_or_default();
    ErrorCode::new(Code::OPERATION, details).with("reason", word.as_str().unwrap_or_default())
}

/// Parses the report of the program on the failed host: exactly one line of exactly this shape.
///
/// # Errors
/// `SYS.1006` with reason `unparsable` for anything else.
pub fn parse_reply(output: &str) -> Result<Killed> {
    let malformed = |why: String| {
        let details = format!("report of the failed host is malformed: {why}: {output:.200?}");
        ErrorCode::new(Code::OPERATION, details).with("reason", "unparsable")
    };
    let Some(line) = output.strip_suffix('\n') else { return Err(malformed("truncated".to_owned())) };
    let Object(killed) = serde_json::from_str::<Object<Killed>>(line).map_err(|e| malformed(e.to_string()))?;
    // Every field must be present: a missing one has no default here.
    let whole = serde_json::to_value(&killed).ok();
    if crate::strict_json::value(line.as_bytes()).ok() != whole {
        return Err(malformed("fields are missing, unknown or duplicate".to_owned()));
    }
    if killed.killed && !killed.found {
        return Err(malformed("killed without found".to_owned()));
    }
    Ok(killed)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MACHINE: &str = "0123456789abcdef0123456789abcdef";

    fn line() -> String {
        let killed = Killed {
            found: true,
            killed: true,
            sight: Sight::full(),
            machine: Machine { machine_id: MACHINE.into(), boot_id: "b1".into() },
            ..Killed::default()
        };
        serde_json::to_string(&killed).unwrap() + "\n"
    }

    fn cmd(machine_id: &str) -> SiblingFenceVmCmd {
        SiblingFenceVmCmd {
            vm_uuid: VmId::from_name("vm1"),
            failed_host_ip: "127.0.0.1".into(),
            failed_host_ssh_port: 1,
            failed_host_uuid: ringfence_messages::HostId::from_name("a"),
            machine: Machine { machine_id: machine_id.into(), boot_id: "b1".into() },
        }
    }

    #[test]
    fn only_the_exact_line_is_a_report() {
        let good = line();
        assert!(parse_reply(&good).unwrap().killed);
        for odd in [
            "",
            "\n",
            good.trim_end(),
            &good.replace("false", "\"false\""),
            &good.replace("\"alive\":false,", ""),
            &good.replacen("\"hostPids\":true,", "", 1),
            &good.replace(",\"bootId\":\"b1\"", ""),
            &format!("Last login: today\n{good}"),
            &format!("{good}{good}"),
            "[false,false,false,\"\"]\n",
            &good.replacen("\"found\":true", "\"found\":false", 1),
            &good.replacen("{", "{\"more\":1,", 1),
            "{\"found\":true,\"killed\":true,\"alive\":false,\"reason\":\"\"}\n",
        ] {
            let error = parse_reply(odd).unwrap_err();
            assert_eq!(error.opaque["reason"], "unparsable", "{odd:?}: {error}");
        }
    }

    #[test]
    fn absence_counts_only_on_the_right_machine_with_full_sight() {
        let ip = "127.0.0.1".parse().unwrap();
        let killed = parse_reply(&line()).unwrap();
        assert!(!checked(killed.clone(), &cmd(MACHINE), ip).unwrap().alive);
        let reason =
            |killed: Killed, cmd: &SiblingFenceVmCmd| checked(killed, cmd, ip).unwrap_err().opaque["reason"].clone();
        assert_eq!(reason(killed.clone(), &cmd("ffffffffffffffffffffffffffffffff")), "other-machine");
        assert_eq!(reason(killed.clone(), &cmd("")), "other-machine", "unknown matches nothing");
        let nameless = Killed { machine: Machine::default(), ..killed.clone() };
        assert_eq!(reason(nameless, &cmd("")), "other-machine", "two unknown machines are not equal");
        for sight in [
            Sight { euid: 1000, ..Sight::full() },
            Sight { host_pids: false, ..Sight::full() },
            Sight { hidepid: true, ..Sight::full() },
            Sight { unreadable: 1, ..Sight::full() },
            Sight { unnamed: 1, ..Sight::full() },
        ] {
            assert_eq!(reason(Killed { sight: sight.clone(), ..killed.clone() }, &cmd(MACHINE)), "blind", "{sight}");
            // What was seen was seen.
            assert!(checked(Killed { sight, alive: true, ..killed.clone() }, &cmd(MACHINE), ip).unwrap().alive);
        }
        let booted = Machine { boot_id: "b2".into(), ..killed.machine.clone() };
        let said = checked(Killed { machine: booted, ..killed }, &cmd(MACHINE), ip).unwrap();
        assert!(said.reason.contains("has booted since"), "{said:?}");
    }

    #[tokio::test]
    async fn unknown_machine_is_not_fenced_over_ssh() {
        let settings =
            SshSettings { user: "root".into(), key_file: "/nowhere".into(), known_hosts_file: "/nowhere".into() };
        for machine in ["", "$(reboot)", "0123456789ABCDEF0123456789ABCDEF"] {
            let error = fence(&settings, &cmd(machine)).await.unwrap_err();
            assert_eq!(error.opaque["reason"], "other-machine", "{error}");
        }
    }

    #[test]
    fn who_is_to_be_killed_is_read_strictly() {
        let vm = VmId::from_name("vm1");
        for good in [format!("{vm}"), format!("{vm}@{MACHINE}")] {
            assert_eq!(good.parse::<Victim>().unwrap().to_string(), good);
        }
        for odd in [
            "",
            "vm1",
            &format!("{vm}@"),
            &format!("{vm}@x"),
            &format!("{vm}@{MACHINE}@{MACHINE}"),
            &format!("@{MACHINE}"),
        ] {
            assert!(odd.parse::<Victim>().is_err(), "{odd}");
        }
    }

    #[tokio::test]
    async fn on_another_machine_nothing_is_looked_at() {
        let lookout = Arc::new(Lookout::new(None, &[], true).unwrap());
        let victim = Victim { vm: VmId::from_name("vm1"), machine: Some(MACHINE.into()) };
        let killed = kill(&victim, &lookout).await.unwrap();
        assert!(killed.alive && !killed.killed && killed.reason.contains("not 0123"), "{killed:?}");
    }
}
