//! The work of a sibling host on a failed host over SSH.
//!
//! It reaches the host that answers at the failed host's address. A program that was started there continues after the
//! connection broke.

use std::time::Duration;

use ringfence_actors::sabotage::{self, Sabotage};
use ringfence_messages::{
    Code, ErrorCode, Result,
    evidence::{Machine, Sight},
    fence::SiblingFenceVmOnHostReply,
};
use tokio::sync::oneshot;

use super::{
    agent::half_blind,
    calls::{At, long_words},
    hands::kill,
    links::Node,
};
use crate::fault::SshFault;

/// How long SSH may take to connect, and its command to end (domain).
const SSH_CONNECT: Duration = Duration::from_secs(8);
const SSH_COMMAND: Duration = Duration::from_secs(20);

/// Whether the machine that was reached is not the one that is meant.
fn is_another(expected: &Machine, reached: &Machine) -> bool {
    !reached.is(expected) && !sabotage::on(Sabotage::OtherMachineCounts)
}

/// A sibling goes to a failed host by SSH.
pub(super) async fn over_ssh(
    at: &At,
    failed: usize,
    vm: usize,
    expected: &Machine,
) -> Result<SiblingFenceVmOnHostReply> {
    let failed = at.state().answers_at(failed);
    let boot = at.state().machines[failed].boot;
    if let Err(why) = connect(at, failed).await? {
        return why.reply(vm);
    }
    let trouble = at.state().machines[failed].ssh.first().map(|(_, how)| *how);
    let (reached, sight, wordy) = {
        let state = at.state();
        let machine = &state.machines[failed];
        let half = (machine.blind_ssh > 0).then(half_blind);
        (machine.identity(), half.or((machine.unaware > 0).then(Sight::full)), machine.wordy > 0)
    };
    if is_another(expected, &reached) {
        return unknown(vm, "other-machine");
    }
    if let Some(sight) = sight {
        return Ok(SiblingFenceVmOnHostReply {
            alive: false,
            ssh_reachable: true,
            reason: "no such QEMU was seen".to_owned(),
            machine: Some(reached),
            sight: Some(sight),
            ..SiblingFenceVmOnHostReply::default()
        });
    }
    let on_failed = At { world: at.world.clone(), host: failed, boot, life: 0, by: at.by };
    // What runs there goes on though the connection breaks.
    let (tell, told) = oneshot::channel();
    tokio::spawn(async move {
        let _ = tell.send(kill(&on_failed, vm, false).await);
    });
    let said = tokio::time::timeout(SSH_COMMAND, told).await;
    at.goes_on(true).await?;
    let open = at.state().links.both_ways(Node::Host(at.host), Node::Host(failed));
    match said {
        Ok(Ok(Ok(_))) if open && trouble == Some(SshFault::Truncated) => unknown(vm, "truncated"),
        Ok(Ok(Ok((found, killed, alive, reason)))) if open => Ok(SiblingFenceVmOnHostReply {
            alive,
            killed,
            ssh_reachable: true,
            qemu_found: found,
            executor_host_uuid: None,
            executor_role: None,
            reason: if wordy { reason + &long_words() } else { reason },
            machine: Some(reached),
            sight: Some(Sight::full()),
        }),
        _ => unknown(vm, "timeout"),
    }
}

/// Why a connection does not come about.
enum NoSession {
    /// Nobody answers at the address.
    Unreachable(&'static str),
    /// The VM's state is unknown.
    Unknown(&'static str),
}

impl NoSession {
    fn reply(self, vm: usize) -> Result<SiblingFenceVmOnHostReply> {
        match self {
            NoSession::Unreachable(reason) => {
                Ok(SiblingFenceVmOnHostReply { reason: reason.to_owned(), ..SiblingFenceVmOnHostReply::default() })
            }
            NoSession::Unknown(reason) => unknown(vm, reason),
        }
    }
}

fn unknown(vm: usize, reason: &str) -> Result<SiblingFenceVmOnHostReply> {
    let details = format!("whether vm-{vm} runs there is unknown: {reason}");
    Err(ErrorCode::new(Code::OPERATION, details).with("reason", reason))
}

/// Connects to the SSH server of a host, which takes its time.
async fn connect(at: &At, failed: usize) -> Result<Result<(), NoSession>> {
    let (reach, refused, frozen) = {
        let state = at.state();
        let open = state.links.both_ways(Node::Host(at.host), Node::Host(failed));
        let machine = &state.machines[failed];
        let closed = machine.ssh.iter().any(|(_, how)| *how == SshFault::Refused);
        (open && machine.on, closed, machine.freezes > 0)
    };
    if !reach {
        at.work(SSH_CONNECT).await?;
        return Ok(Err(NoSession::Unreachable("no route to it")));
    }
    at.work(Duration::from_millis(40)).await?;
    if frozen {
        at.work(SSH_CONNECT).await?;
        return Ok(Err(NoSession::Unknown("timeout")));
    }
    if refused {
        return Ok(Err(NoSession::Unreachable("connection refused")));
    }
    let trouble = at.state().machines[failed].ssh.first().map(|(_, how)| *how);
    Ok(match trouble {
        Some(SshFault::Hangs) => {
            at.work(SSH_CONNECT).await?;
            Err(NoSession::Unknown("timeout"))
        }
        Some(SshFault::Auth) => Err(NoSession::Unknown("auth-failed")),
        Some(SshFault::HostKey) => Err(NoSession::Unknown("host-key-mismatch")),
        Some(SshFault::Exit255) => Err(NoSession::Unknown("bad-exit")),
        _ => Ok(()),
    })
}
