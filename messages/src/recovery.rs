//! Self-heal: what the journal says of redeploys.

use serde::{Deserialize, Serialize};

use crate::{HostId, Protocol, StorageId, event, storage::DeployStep};

/// Where a redeploy stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RedeployPhase {
    /// It is about to be tried; durable before anything is done.
    Intent,
    /// It was tried and every step that matters succeeded. Health is still to be seen.
    Done,
    /// It was tried and failed.
    Failed,
}

/// A protocol that is down on a host is redeployed: once as intent, once with what came of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ProtocolRedeploy {
    /// The host.
    pub host_uuid: HostId,
    /// Its name.
    pub host: String,
    /// The storage.
    pub primary_storage_uuid: StorageId,
    /// Its name.
    pub storage: String,
    /// The protocol.
    pub protocol: Protocol,
    /// Where it stands.
    pub phase: RedeployPhase,
    /// Which redeploy of this outage it is, from 1.
    pub attempt: u32,
    /// Pings that were skipped since the one before: 0, 2, 4, 8, 16, 32, 64, 64...
    pub skipped_pings: u32,
    /// What was done, step by step; empty in an intent.
    pub steps: Vec<DeployStep>,
}
event!(ProtocolRedeploy, "storage.protocol-redeploy", 1, |e| format!("{}@{}/{}", e.storage, e.host, e.protocol));

/// A best-effort step failed; the flow went on without it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BestEffortStepFailed {
    /// The host.
    pub host_uuid: HostId,
    /// Its name.
    pub host: String,
    /// The storage.
    pub primary_storage_uuid: StorageId,
    /// Its name.
    pub storage: String,
    /// The step and why it failed.
    pub step: DeployStep,
}
event!(BestEffortStepFailed, "storage.best-effort-step-failed", 1, |e| format!("{}@{}", e.storage, e.host));
