//! Self-heal: redeploys on request, and events about redeploys.

use serde::{Deserialize, Serialize};

use crate::{Address, HostId, Kind, Lane, Protocol, StorageId, agent::Done, event, message, storage::DeployStep};

/// Address of the recovery supervisor, which decides every redeploy (I3).
pub const RECOVERY: Address = Address::singleton(Kind::new("recovery"));

/// Redeploys a protocol that a start needs, without waiting for its backoff. The recovery supervisor replies when the
/// redeploy ended, successful or not, also if it was in progress already. Rejected with `SYS.1005` if the host does not
/// serve (I5).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RedeployNowMsg {
    /// Uuid of the host.
    pub host_uuid: HostId,
    /// Uuid of the storage.
    pub primary_storage_uuid: StorageId,
    /// The protocol that is down on the host.
    pub protocol: Protocol,
}
message!(RedeployNowMsg, 1 => Done);

/// Queries whether the next step of a redeploy may run on a host. Rejected with `SYS.1005` if the host left service
/// since the redeploy began (I5).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ContinueRedeployMsg {
    /// Uuid of the host.
    pub host_uuid: HostId,
}
message!(ContinueRedeployMsg, 1, Lane::Control => Done);

/// The phase of a redeploy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RedeployPhase {
    /// The redeploy is about to begin; on disk before the first step.
    Intent,
    /// Every required step succeeded. The next ping shows whether the protocol is healthy.
    Done,
    /// A required step failed.
    Failed,
}

/// A redeploy of a protocol on a host: one event with the intent, one with the outcome.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ProtocolRedeploy {
    /// Uuid of the host.
    pub host_uuid: HostId,
    /// Name of the host in the inventory.
    pub host: String,
    /// Uuid of the storage.
    pub primary_storage_uuid: StorageId,
    /// Name of the storage in the inventory.
    pub storage: String,
    /// The protocol.
    pub protocol: Protocol,
    /// The phase.
    pub phase: RedeployPhase,
    /// Number of the redeploy in this outage, from 1.
    pub attempt: u32,
    /// Pings that the backoff skipped since the previous redeploy: 0, 2, 4, 8, 16, 32, 64, 64...
    pub skipped_pings: u32,
    /// The executed steps; empty in an intent.
    pub steps: Vec<DeployStep>,
}
event!(ProtocolRedeploy, "storage.protocol-redeploy", 1, |e| format!("{}@{}/{}", e.storage, e.host, e.protocol));

/// A best-effort step failed; the redeploy continued.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BestEffortStepFailed {
    /// Uuid of the host.
    pub host_uuid: HostId,
    /// Name of the host in the inventory.
    pub host: String,
    /// Uuid of the storage.
    pub primary_storage_uuid: StorageId,
    /// Name of the storage in the inventory.
    pub storage: String,
    /// The failed step, with its error.
    pub step: DeployStep,
}
event!(BestEffortStepFailed, "storage.best-effort-step-failed", 1, |e| format!("{}@{}", e.storage, e.host));
