//! Hosts: ping, facts, maintenance, and their events.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::{
    ClusterId, HostId, Lane, agent_command, event,
    evidence::Machine,
    journal::JournalHead,
    message,
    storage::{HostProtocolRef, StorageHostRef},
};

/// The status of a host by its pings.
///
/// ```text
/// Connecting --ping ok--> Connected --max_failure pings failed--> Disconnected --ping ok--> Connected
/// ```
/// Every event is legal in every state. Only changes are published.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub enum HostStatus {
    /// Not yet pinged, or not yet returned to service.
    Connecting,
    /// The expected host answered the last ping.
    Connected,
    /// `max_failure` pings in a row were not answered.
    Disconnected,
}

/// The desired state of a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub enum HostState {
    /// In service.
    Enabled,
    /// Excluded by an operator from pings, redeploys and placement.
    Maintenance,
}

/// Liveness probe of an agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HostPingCmd {
    /// The host that the caller addresses.
    pub host_uuid: HostId,
    /// Head of the caller's journal. The host remembers the latest head that it received.
    #[serde(default)]
    pub head: Option<JournalHead>,
}
agent_command!(HostPingCmd, "/host/ping" => HostPingReply);

/// The answer to a ping.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HostPingReply {
    /// The host that answered. The controller rejects the answer of any other host than the addressed one.
    pub host_uuid: HostId,
    /// The agent's version, such as `0.1.0`.
    pub version: String,
    /// Id of the agent's process: changes with every start of the agent.
    pub boot_id: String,
    /// Machine and boot of the host.
    #[serde(default)]
    pub machine: Machine,
    /// The latest head of a journal that this host ever received, including this ping.
    #[serde(default)]
    pub witness: Option<JournalHead>,
}

/// A host answers as this machine: published when machine or boot changed. Later evidence about the host counts only if
/// it is from this machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HostIdentified {
    /// Uuid of the host.
    pub host_uuid: HostId,
    /// Name of the host in the inventory.
    pub host: String,
    /// The new machine and boot.
    pub machine: Machine,
}
event!(HostIdentified, "host.identified", 1, |e| e.host.clone());

/// Queries the equipment of a host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostFactsCmd {}
agent_command!(HostFactsCmd, "/host/facts" => HostFactsReply);

/// The equipment of a host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HostFactsReply {
    /// Uuid of the host.
    pub host_uuid: HostId,
    /// Version of the agent.
    pub version: String,
    /// The kernel's host name.
    pub hostname: String,
    /// Accelerator of QEMU: `kvm` or `tcg`.
    pub accel: String,
    /// Version of QEMU, such as `7.2.17`; empty if QEMU is not installed.
    pub qemu_version: String,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// Available memory in MiB.
    pub available_mib: u64,
    /// Number of logical processors.
    pub cpus: u32,
    /// Number of free 2 MiB hugepages.
    pub free_hugepages: u64,
    /// All IP addresses of the host except loopback and link-local ones. Empty if unknown.
    #[serde(default)]
    pub addresses: Vec<IpAddr>,
}

/// Pings a host's agent once. An unanswered ping is a reply with `connected` = false, not an error.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PingHostMsg {
    /// Time limit in milliseconds.
    pub timeout_ms: u64,
}
message!(PingHostMsg, 1, Lane::Control => PingHostReply);

/// The result of one ping.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PingHostReply {
    /// Whether the expected host answered within the time limit.
    pub connected: bool,
    /// Reason as text while not connected; `None` if connected.
    pub reason: Option<String>,
    /// [`HostPingReply::boot_id`]; empty if not connected.
    pub boot_id: String,
    /// The machine that answered; unknown if not connected.
    #[serde(default)]
    pub machine: Machine,
}

/// Lists the latest pings of a host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct QueryPingsMsg {}
message!(QueryPingsMsg, 1 => PingsReply);

/// The latest pings of a host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PingsReply {
    /// Oldest first.
    pub pings: Vec<Pinged>,
}

/// One past ping.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Pinged {
    /// Time since its end, in seconds.
    pub ago_s: u32,
    /// Duration in microseconds.
    pub took_us: u32,
    /// Whether the expected host answered within the time limit.
    pub answered: bool,
}

/// An operator's action on a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum HostAction {
    /// Begin maintenance: no pings, no redeploys, no placement.
    Maintain,
    /// Return the host to service; ends a drain.
    Activate,
    /// Ping now, independent of the schedule.
    Ping,
    /// Begin maintenance and move the VMs to other hosts, two at a time.
    Drain,
}

/// Requests an action on a host. The reply is sent when the change is on disk and in effect.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ChangeHostStateMsg {
    /// Uuid of the host.
    pub host_uuid: HostId,
    /// The action.
    pub action: HostAction,
}
message!(ChangeHostStateMsg, 1, Lane::Control => HostInventory);

/// A host as the API shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct HostInventory {
    /// Uuid of the host.
    pub uuid: HostId,
    /// Name in the config.
    pub name: String,
    /// Name of the cluster.
    pub cluster: String,
    /// IP address or name for management: pings, agent, SSH.
    pub management_ip: String,
    /// Desired state, set by an operator.
    pub state: HostState,
    /// Status by the pings.
    pub status: HostStatus,
    /// Reason as text while not connected; `None` while connected.
    pub reason: Option<String>,
}

/// The status of a host changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HostStatusChanged {
    /// Uuid of the host.
    pub host_uuid: HostId,
    /// Value before the change.
    pub old_status: HostStatus,
    /// Value after the change.
    pub new_status: HostStatus,
    /// Reason as text while not connected; `None` while connected.
    pub reason: Option<String>,
    /// The host after the change.
    pub inventory: HostInventory,
}
event!(HostStatusChanged, "host.status-changed", 1, |e| e.inventory.name.clone());

/// An operator changed the desired state of a host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HostStateChanged {
    /// Uuid of the host.
    pub host_uuid: HostId,
    /// Name of the host in the inventory.
    pub host: String,
    /// Value before the change.
    pub old_state: HostState,
    /// Value after the change.
    pub new_state: HostState,
    /// A drain is in progress: the controller moves the VMs to other hosts until the host returns to service.
    #[serde(default)]
    pub draining: bool,
}
event!(HostStateChanged, "host.state-changed", 2, |e| e.host.clone());

/// Lists the serving hosts of a cluster: Enabled, Connected, last ping answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct QueryServingHostsMsg {
    /// Uuid of the cluster.
    pub cluster_uuid: ClusterId,
}
message!(QueryServingHostsMsg, 1, Lane::Control => ServingHostsReply);

/// The serving hosts of a cluster, in the sequence of the config.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServingHostsReply {
    /// Serving hosts.
    pub host_uuids: Vec<HostId>,
    /// Hosts whose last ping was answered, serving or not.
    pub answering_host_uuids: Vec<HostId>,
    /// Enabled hosts that missed at least one ping and are not in quarantine.
    pub doubtful_host_uuids: Vec<HostId>,
    /// Number of Enabled hosts of the cluster.
    pub enabled: u32,
}

/// Lists hosts, protocols and storages with their statuses.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueryHostsMsg {}
message!(QueryHostsMsg, 1, Lane::Control => HostsReply);

/// All hosts and all (storage, host, protocol), sorted by name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HostsReply {
    /// The hosts.
    pub hosts: Vec<HostInventory>,
    /// One entry for each storage, host and protocol.
    pub refs: Vec<HostProtocolRef>,
    /// One entry for each storage and host: the status over all protocols.
    pub storages: Vec<StorageHostRef>,
}
