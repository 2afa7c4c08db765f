//! Self-heal: events about redeploys.

use serde::{Deserialize, Serialize};

use crate::{HostId, Protocol, StorageId, event, storage::DeployStep};

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
