//! What a doctor asks of a host, and what it finds there: what would make a fence fail tonight.
//!
//! Invariant: "not known" is a verdict of its own and never turns into "ok" (I2). Nothing is changed by asking.
//! Rejected: raw facts, judged by who asks. A host is looked at without a controller too, and the words and the way to
//! mend it belong beside what was looked at.

use serde::{Deserialize, Serialize};

use crate::{HostId, agent_command};

/// What was found of one thing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// It is as it should be.
    Ok,
    /// It works tonight, and is not as it should be.
    Warn,
    /// It was not possible to look. Not the same as ok.
    Unknown,
    /// Something would fail tonight.
    Fail,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Finding {
    /// Which check, such as `ssh-login`.
    pub check: String,
    /// What of: a host, a file, a storage. Empty if there is but one.
    pub about: String,
    /// How it is.
    pub verdict: Verdict,
    /// What was found, in plain words.
    pub found: String,
    /// Why it matters tonight.
    pub why: String,
    /// What mends it, as a command or an edit; `None` if there is nothing to mend.
    pub mend: Option<String>,
}

/// A host that another one would have to reach by SSH to fence it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SiblingAddress {
    /// The host.
    pub host_uuid: HostId,
    /// Its name.
    pub host: String,
    /// Its literal address.
    pub ip: String,
    /// Its SSH port.
    pub ssh_port: u16,
}

/// What the storages of a host need on it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HostNeeds {
    /// Hugepages of 2 MiB that a vhost target is prepared with; 0: none.
    pub hugepages: u64,
    /// A vhost target that the agent runs.
    pub vhost_target: bool,
    /// A container engine, as the targets of ZBS do.
    pub containers: bool,
    /// Files and directories that have to be there.
    pub paths: Vec<String>,
}

/// Has an agent look at its host, and try the way to its siblings. Changes nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DiagnoseHostCmd {
    /// The host that the caller believes to speak to.
    pub host_uuid: HostId,
    /// Whom it would have to fence.
    pub siblings: Vec<SiblingAddress>,
    /// What its storages need.
    pub needs: HostNeeds,
}
agent_command!(DiagnoseHostCmd, "/host/diagnose" => DiagnoseHostReply);

/// What an agent found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DiagnoseHostReply {
    /// The host that was looked at.
    pub host_uuid: HostId,
    /// Its wall clock when it was asked, in milliseconds since 1970 in UTC.
    pub unix_ms: u64,
    /// Everything that was looked at.
    pub findings: Vec<Finding>,
}
