//! Checks of a host by its agent, for the doctor: what would make a fence fail.
//!
//! Invariants: unknown is a verdict and never counts as ok (I2); a check changes nothing.
//! Alternatives considered: raw facts that the caller judges. An agent also checks its host without a controller, and
//! text and remedy belong to the check.

use serde::{Deserialize, Serialize};

use crate::{HostId, agent_command};

/// The result of one check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// Correct.
    Ok,
    /// A fence would work, but the setup should be changed.
    Warn,
    /// The check could not be carried out. Never counts as ok.
    Unknown,
    /// A fence or a start would fail.
    Fail,
}

/// One checked item.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Finding {
    /// Name of the check, such as `ssh-login`.
    pub check: String,
    /// The checked item: a host, a file, a storage. Empty if there is only one.
    pub about: String,
    /// The result.
    pub verdict: Verdict,
    /// What the check found, as text for operators.
    pub found: String,
    /// What fails if the item stays as it is.
    pub why: String,
    /// The remedy, as a command or an edit; `None` if none is needed.
    pub mend: Option<String>,
}

/// A host that the checked host would have to reach by SSH to fence it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SiblingAddress {
    /// Uuid of the host.
    pub host_uuid: HostId,
    /// Name of the host in the inventory.
    pub host: String,
    /// Literal IP address, no name.
    pub ip: String,
    /// TCP port of sshd.
    pub ssh_port: u16,
}

/// What the storages of a host require on that host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HostNeeds {
    /// Number of 2 MiB hugepages that a vhost target requires; 0 for none.
    pub hugepages: u64,
    /// The agent runs a vhost target.
    pub vhost_target: bool,
    /// A container engine is required, as for the targets of ZBS.
    pub containers: bool,
    /// Files and directories that must exist.
    pub paths: Vec<String>,
}

/// Makes an agent check its host and the SSH path to its sibling hosts. Changes nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DiagnoseHostCmd {
    /// The host that the caller addresses. An agent of another host rejects the command.
    pub host_uuid: HostId,
    /// The sibling hosts that this host would have to fence.
    pub siblings: Vec<SiblingAddress>,
    /// The requirements of its storages.
    pub needs: HostNeeds,
}
agent_command!(DiagnoseHostCmd, "/host/diagnose" => DiagnoseHostReply);

/// The findings of an agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DiagnoseHostReply {
    /// The checked host.
    pub host_uuid: HostId,
    /// Wall clock of the host at the request, in milliseconds since 1970-01-01 UTC.
    pub unix_ms: u64,
    /// One finding for each checked item.
    pub findings: Vec<Finding>,
}
