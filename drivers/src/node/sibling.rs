//! Makes sure, from a sibling host, that a VM's QEMU does not run on a host that failed: over SSH, by exact uuid.
//!
//! On the failed host `ringfence kill-vm UUID` does the work where it is installed, a small POSIX script where not.
//! Invariants: "not alive" is said only of a host that was reached, whose program said so in the exact shape that is
//! expected; a process is matched by argv tokens, never by substrings; after the kill the host is searched again, for
//! something may have started it anew; libvirt is never asked, it may hang. No text from outside reaches a shell: the
//! uuid is one.

use std::{net::IpAddr, time::Duration};

use ringfence_messages::{
    Code, ErrorCode, Result, VmId,
    fence::{SiblingFenceVmCmd, SiblingFenceVmOnHostReply, UnknownReason},
};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::{
    exports,
    ssh::{self, SshSettings},
    vms,
};
use crate::exact::Object;

/// How long the program on the failed host may take: listing, killing, listing again (domain: 10 + 10 s).
pub const KILL_TIMEOUT: Duration = Duration::from_secs(20);

/// How long one killed process may take to be gone. D state lasts longer, and counts as alive.
pub const GONE_TIMEOUT: Duration = Duration::from_secs(10);

/// How long the host is searched after the kill for one that was started anew.
pub const RESPAWN_WATCH: Duration = Duration::from_millis(500);

/// What the sibling is in the failed host's cluster; the only role so far.
pub const ROLE: &str = "sibling";

/// What the program on the failed host says: one line of JSON.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Killed {
    /// A QEMU of the VM was there.
    pub found: bool,
    /// It was sent SIGKILL.
    pub killed: bool,
    /// One is there now.
    pub alive: bool,
    /// Why, in plain words; empty if there is nothing to say.
    pub reason: String,
}

/// Kills of one VM at most: the second is for one that came back, a third would be an endless race.
const MAX_KILLS: u32 = 2;

/// Kills every QEMU of a VM on this host, and looks whether one comes back.
///
/// # Errors
/// `SYS.1016` if the processes cannot be listed: nothing is known then.
pub async fn kill(vm: VmId) -> Result<Killed> {
    let (mut found, mut killed, mut kills, mut said) = (false, false, 0, Vec::new());
    // Before the kill, for it goes by the QEMUs. The kill does not wait for its success.
    let adopted = exports::adopt(None).await;
    let deadline = Instant::now() + RESPAWN_WATCH;
    let mut alive = loop {
        let there = vms::running(vm)?;
        if there.is_empty() {
            if Instant::now() >= deadline {
                break false;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
            continue;
        }
        found = true;
        if let Some(process) = there.iter().find(|process| vms::is_incoming(process)) {
            said.push(format!("process {} is the target of a migration and left alone", process.pid));
            break true;
        }
        if kills == MAX_KILLS {
            said.push("something starts it again".to_owned());
            break true;
        }
        kills += 1;
        let mut still_there = false;
        for process in &there {
            match process.kill(GONE_TIMEOUT).await {
                Ok(()) => {
                    killed = true;
                    said.push(format!("killed process {}", process.pid));
                }
                Err(error) => {
                    still_there = true;
                    said.push(error.details);
                }
            }
        }
        if still_there {
            break true;
        }
    };
    if !alive {
        // What its targets hold would be written after it.
        match exports::end(vm, None).await.and_then(|ended| adopted.map(|()| ended)) {
            Ok(ended) => {
                (found, killed) = (found || ended.found, killed || ended.found);
                said.extend(ended.said);
            }
            Err(error) => {
                (found, alive) = (true, true);
                said.push(format!("whether its exports are ended is not known: {}", error.details));
            }
        }
    }
    Ok(Killed { found, killed, alive, reason: said.join("; ") })
}

/// For a host without this program. Prints the same line. `/proc` is read by argv tokens; a zombie
/// without threads has no command line and is not found, one with threads has theirs.
const SCRIPT: &str = r#"
set -u
uuid=$1
if command -v ringfence >/dev/null 2>&1; then exec ringfence kill-vm "$uuid"; fi
list() {
  for d in /proc/[0-9]*; do
    i=$d
    if [ -z "$(tr '\0' x 2>/dev/null <"$d/cmdline")" ]; then
      for t in "$d"/task/[0-9]*; do [ -z "$(tr '\0' x 2>/dev/null <"$t/cmdline")" ] || i=$t; done
    fi
    tr '\0' '\n' 2>/dev/null <"$i/cmdline" | awk -v u="$uuid" -v c="$1" '
      prev == "-uuid" && $0 == u { hit = 1 } $0 == "-incoming" { coming = 1 } { prev = $0 }
      END { exit !(hit && (c == "any" || !coming)) }' || continue
    case $(readlink "$i/exe" 2>/dev/null) in
      */qemu-system-*|*/qemu-kvm|*/qemu-kvm\ *) echo "${d#/proc/}" ;;
    esac
  done
}
found=false killed=false alive=false
for round in 1 2; do
  pids=$(list mine)
  [ -n "$pids" ] || break
  found=true killed=true
  for p in $pids; do kill -9 "$p" 2>/dev/null; done
  n=0
  while [ "$n" -lt 100 ] && [ -n "$(list mine)" ]; do sleep 0.1; n=$((n + 1)); done
  sleep 0.5
done
[ -z "$(list any)" ] || found=true alive=true
# A vhost target may hold writes of the VM. It takes `ringfence kill-vm` to end them.
for d in /proc/[0-9]*; do
  admin=$(tr '\0' '\n' 2>/dev/null <"$d/cmdline" | sed -n 's/^socket,id=admin,path=\(.*\),server=on,wait=off$/\1/p')
  [ -z "$admin" ] || ! grep -q "$uuid" "${admin%/*}/exports.json" 2>/dev/null || found=true alive=true
done
printf '{"found":%s,"killed":%s,"alive":%s,"reason":"by script"}\n' "$found" "$killed" "$alive"
"#;

/// What a fence needs on the failed host, asked through the same door: a login, a shell, somebody who may kill, and
/// what [`SCRIPT`] is made of. Changes nothing.
const REHEARSAL: &str = r#"
set -u
by=ringfence
if ! command -v ringfence >/dev/null 2>&1; then
  by=script
  for tool in tr awk readlink; do command -v "$tool" >/dev/null 2>&1 || { echo "there is no $tool" >&2; exit 1; }; done
fi
printf '{"uid":%s,"by":"%s"}\n' "$(id -u)" "$by"
"#;

/// How long a rehearsal may take once the host let us in. Too low: a busy host seems broken. Too high: who asks waits.
pub const REHEARSAL_TIMEOUT: Duration = Duration::from_secs(5);

/// What a host that would be fenced says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rehearsal {
    /// Who one is there. Only root may kill everybody's QEMU.
    pub uid: u32,
    /// What would look for the QEMU: `ringfence`, or the `script`.
    pub by: String,
}

/// Goes the way of a fence to a host, and does nothing there.
///
/// # Errors
/// Why a fence could not be carried out there now.
pub async fn rehearse(settings: &SshSettings, ip: IpAddr, port: u16) -> Result<Rehearsal, ssh::Trouble> {
    let said = ssh::run(settings, ip, port, "sh -s", REHEARSAL.as_bytes(), REHEARSAL_TIMEOUT).await?;
    serde_json::from_str(&said).map_err(|e| ssh::Trouble {
        reason: UnknownReason::Unparsable,
        details: format!("it answers {said:.100?}, not what it was asked ({e}): does its key force a command?"),
        unreachable: false,
    })
}

/// Carries out the fence of one VM on a failed host.
///
/// # Errors
/// Why it is not known whether the VM lives there, with the reason as `reason` in the error's extras. A host on which
/// nothing answers is no error but a reply that says so; what that means is the policy's to decide.
pub async fn fence(settings: &SshSettings, cmd: &SiblingFenceVmCmd) -> Result<SiblingFenceVmOnHostReply> {
    let ip: IpAddr = cmd.failed_host_ip.parse().map_err(|_| {
        let details = format!("failedHostIp {:.60?} is not a literal IP address", cmd.failed_host_ip);
        ErrorCode::new(Code::INVALID_ARGUMENT, details)
    })?;
    if cmd.failed_host_ssh_port == 0 {
        return Err(ErrorCode::new(Code::INVALID_ARGUMENT, "failedHostSshPort 0 is no port"));
    }
    let command = format!("sh -s -- {}", cmd.vm_uuid);
    let said = ssh::run(settings, ip, cmd.failed_host_ssh_port, &command, SCRIPT.as_bytes(), KILL_TIMEOUT).await;
    let mut reply =
        SiblingFenceVmOnHostReply { executor_role: Some(ROLE.to_owned()), ..SiblingFenceVmOnHostReply::default() };
    match said {
        Ok(said) => {
            let killed = understood(&said)?;
            reply.ssh_reachable = true;
            (reply.qemu_found, reply.killed, reply.alive) = (killed.found, killed.killed, killed.alive);
            reply.reason = killed.reason;
            Ok(reply)
        }
        Err(trouble) if trouble.unreachable => {
            reply.reason = trouble.details;
            Ok(reply)
        }
        Err(trouble) => {
            let word = serde_json::to_value(trouble.reason).unwrap_or_default();
            let details = format!("whether {} runs on {ip} is not known: {}", cmd.vm_uuid, trouble.details);
            Err(ErrorCode::new(Code::OPERATION, details).with("reason", word.as_str().unwrap_or_default()))
        }
    }
}

/// Reads what the program on the failed host said: exactly one line of exactly this shape.
///
/// # Errors
/// `SYS.1006` with reason `unparsable` for anything else: it is not an answer.
pub fn understood(said: &str) -> Result<Killed> {
    let odd = |why: String| {
        let details = format!("the failed host answered in a way that is not known here: {why}: {said:.200?}");
        ErrorCode::new(Code::OPERATION, details).with("reason", "unparsable")
    };
    let Some(line) = said.strip_suffix('\n') else { return Err(odd("it is cut short".to_owned())) };
    let Object(killed) = serde_json::from_str::<Object<Killed>>(line).map_err(|e| odd(e.to_string()))?;
    if killed.killed && !killed.found {
        return Err(odd("it killed what it did not find".to_owned()));
    }
    Ok(killed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_exact_line_is_an_answer() {
        let good = "{\"found\":true,\"killed\":true,\"alive\":false,\"reason\":\"\"}\n";
        assert_eq!(
            understood(good).unwrap(),
            Killed { found: true, killed: true, alive: false, reason: String::new() }
        );
        for odd in [
            "",
            "\n",
            good.trim_end(),
            &good.replace("false", "\"false\""),
            &good.replace("\"alive\":false,", ""),
            &format!("Last login: today\n{good}"),
            &format!("{good}{good}"),
            "[false,false,false,\"\"]\n",
            "{\"found\":false,\"killed\":true,\"alive\":false,\"reason\":\"\"}\n",
            "{\"found\":false,\"killed\":false,\"alive\":false,\"reason\":\"\",\"more\":1}\n",
        ] {
            let error = understood(odd).unwrap_err();
            assert_eq!(error.opaque["reason"], "unparsable", "{odd:?}: {error}");
        }
    }
}
