//! Hosts: ping, facts, maintenance, and what is published about them.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::{
    ClusterId, HostId, Lane, agent_command, event,
    evidence::Machine,
    journal::JournalHead,
    message,
    storage::{HostProtocolRef, StorageHostRef},
};

/// What the controller knows of the way to a host.
///
/// ```text
/// Connecting --ping ok--> Connected --max_failure pings failed--> Disconnected --ping ok--> Connected
/// ```
/// Every event is legal in every state; nothing is published when nothing changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub enum HostStatus {
    /// Not yet pinged, or being reconnected.
    Connecting,
    /// The last ping was answered by the right host.
    Connected,
    /// `max_failure` pings in a row were not answered.
    Disconnected,
}

/// What an operator wants of a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub enum HostState {
    /// It serves.
    Enabled,
    /// It is being worked on: neither pinged nor healed nor given VMs.
    Maintenance,
}

/// Asks an agent whether it is there and who it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HostPingCmd {
    /// The host that the caller believes to speak to.
    pub host_uuid: HostId,
    /// How far the caller's journal is. The host remembers the furthest that it was told.
    #[serde(default)]
    pub head: Option<JournalHead>,
}
agent_command!(HostPingCmd, "/host/ping" => HostPingReply);

/// Who answered a ping.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HostPingReply {
    /// The host that answered. Another than the one asked for is no answer at all.
    pub host_uuid: HostId,
    /// The agent's version, such as `0.1.0`.
    pub version: String,
    /// Changes with every start of the agent, so that a restart between two pings is seen.
    pub boot_id: String,
    /// The machine on which the agent runs.
    #[serde(default)]
    pub machine: Machine,
    /// The furthest that this host was ever told, this ping included.
    #[serde(default)]
    pub witness: Option<JournalHead>,
}

/// A host answers as this machine: published when it is another one, or another boot of it, than before. What later is
/// said of the host counts only if it is said of this machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HostIdentified {
    /// The host.
    pub host_uuid: HostId,
    /// Its name.
    pub host: String,
    /// The machine.
    pub machine: Machine,
}
event!(HostIdentified, "host.identified", 1, |e| e.host.clone());

/// Asks an agent what its host has.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostFactsCmd {}
agent_command!(HostFactsCmd, "/host/facts" => HostFactsReply);

/// What a host has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HostFactsReply {
    /// The host.
    pub host_uuid: HostId,
    /// The agent's version.
    pub version: String,
    /// The kernel's host name.
    pub hostname: String,
    /// `kvm` or `tcg`: what QEMU will run with.
    pub accel: String,
    /// QEMU's version, such as `7.2.17`; empty if QEMU is missing.
    pub qemu_version: String,
    /// Memory of the host in MiB.
    pub memory_mib: u64,
    /// Memory that is available now in MiB.
    pub available_mib: u64,
    /// Logical processors.
    pub cpus: u32,
    /// Free hugepages of 2 MiB.
    pub free_hugepages: u64,
    /// Every address that the host itself has, loopback and link-local ones left out. Empty: not known.
    #[serde(default)]
    pub addresses: Vec<IpAddr>,
}

/// Tells a host actor to ping its agent once. The reply says what came of it; it is an error only if the
/// question could not be put.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PingHostMsg {
    /// How long the agent may take, in milliseconds.
    pub timeout_ms: u64,
}
message!(PingHostMsg, 1, Lane::Control => PingHostReply);

/// What came of one ping.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PingHostReply {
    /// Whether the right host answered in time.
    pub connected: bool,
    /// Why not, in plain words; `None` when connected.
    pub reason: Option<String>,
    /// The agent's [`HostPingReply::boot_id`]; empty when not connected.
    pub boot_id: String,
    /// The machine that answered; unknown when not connected.
    #[serde(default)]
    pub machine: Machine,
}

/// Asks a host actor how its last pings went.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct QueryPingsMsg {}
message!(QueryPingsMsg, 1 => PingsReply);

/// The last pings of a host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PingsReply {
    /// The oldest first.
    pub pings: Vec<Pinged>,
}

/// How one ping went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Pinged {
    /// How long ago it ended, in seconds.
    pub ago_s: u32,
    /// How long it took, in microseconds.
    pub took_us: u32,
    /// Whether the right host answered in time.
    pub answered: bool,
}

/// What an operator asks of a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum HostAction {
    /// Take it out of service: no ping, no healing, no VM.
    Maintain,
    /// Put it back into service; a drain that is under way ends.
    Activate,
    /// Ping it now, whatever the schedule says.
    Ping,
    /// Take it out of service, and move the VMs that run there to other hosts, a few at a time.
    Drain,
}

/// An operator's request about one host, answered when it is durable and in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ChangeHostStateMsg {
    /// The host.
    pub host_uuid: HostId,
    /// What is asked.
    pub action: HostAction,
}
message!(ChangeHostStateMsg, 1, Lane::Control => HostInventory);

/// A host as the outside sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct HostInventory {
    /// The host.
    pub uuid: HostId,
    /// Its name in the config.
    pub name: String,
    /// The name of its cluster.
    pub cluster: String,
    /// Address of its management interface.
    pub management_ip: String,
    /// What the operator wants.
    pub state: HostState,
    /// What the pings say.
    pub status: HostStatus,
    /// Why it is not connected; `None` when it is.
    pub reason: Option<String>,
}

/// A host's status changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HostStatusChanged {
    /// The host.
    pub host_uuid: HostId,
    /// Before.
    pub old_status: HostStatus,
    /// Now.
    pub new_status: HostStatus,
    /// Why it is not connected; `None` when it is.
    pub reason: Option<String>,
    /// The host at that moment.
    pub inventory: HostInventory,
}
event!(HostStatusChanged, "host.status-changed", 1, |e| e.inventory.name.clone());

/// An operator changed what a host is wanted for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HostStateChanged {
    /// The host.
    pub host_uuid: HostId,
    /// Its name.
    pub host: String,
    /// Before.
    pub old_state: HostState,
    /// Now.
    pub new_state: HostState,
    /// Its VMs are to be moved to other hosts, until it is put back into service.
    #[serde(default)]
    pub draining: bool,
}
event!(HostStateChanged, "host.state-changed", 2, |e| e.host.clone());

/// Asks the recovery supervisor which hosts of a cluster can take work now: Enabled, Connected, last ping good.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct QueryServingHostsMsg {
    /// The cluster.
    pub cluster_uuid: ClusterId,
}
message!(QueryServingHostsMsg, 1, Lane::Control => ServingHostsReply);

/// The hosts of a cluster that can take work, in the order of the config.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServingHostsReply {
    /// Their ids.
    pub host_uuids: Vec<HostId>,
    /// Hosts whose last ping was answered, whether or not they take work.
    pub answering_host_uuids: Vec<HostId>,
    /// Enabled hosts that do not answer, be it for one ping, and are not in quarantine.
    pub doubtful_host_uuids: Vec<HostId>,
    /// How many hosts of the cluster are Enabled.
    pub enabled: u32,
}

/// Asks the recovery supervisor for what it knows of hosts and of their protocols.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueryHostsMsg {}
message!(QueryHostsMsg, 1, Lane::Control => HostsReply);

/// Every host and every (storage, host, protocol), ordered by name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HostsReply {
    /// The hosts.
    pub hosts: Vec<HostInventory>,
    /// The host-protocol refs.
    pub refs: Vec<HostProtocolRef>,
    /// Per storage and host, the status over all protocols.
    pub storages: Vec<StorageHostRef>,
}
