//! The controller as the API sees it: queries and actions, without HTTP.

use async_trait::async_trait;
use futures_util::stream::BoxStream;
use ringfence_actors::ports::Record;
use ringfence_messages::{
    HostId, Result, VmId,
    ha::{DrainPlan, HaReply, HaStartPlan},
    host::{HostAction, HostInventory, Pinged},
    storage::{HostProtocolRef, StorageInventory},
    vm::VmInventory,
};
use serde_json::Value;

use crate::{
    inventory::Order,
    notify::{HookInventory, HookTest},
};

/// The controller.
#[async_trait]
pub trait Backend: Send + Sync {
    /// Whether the controller can work: the journal answers.
    async fn healthy(&self) -> Result<()>;
    /// Metrics in Prometheus' text format.
    async fn metrics(&self) -> String;
    /// All hosts.
    async fn hosts(&self) -> Result<Vec<HostInventory>>;
    /// One host.
    async fn host(&self, id: HostId) -> Result<HostInventory>;
    /// The last pings of a host, the oldest first.
    async fn pings(&self, id: HostId) -> Result<Vec<Pinged>>;
    /// All storages.
    async fn storages(&self) -> Result<Vec<StorageInventory>>;
    /// All VMs.
    async fn vms(&self) -> Result<Vec<VmInventory>>;
    /// One VM.
    async fn vm(&self, id: VmId) -> Result<VmInventory>;
    /// All host-protocol refs.
    async fn refs(&self) -> Result<Vec<HostProtocolRef>>;
    /// Records of the journal after `after`, at most `limit`.
    async fn events(&self, after: u64, limit: usize) -> Result<Vec<Record>>;
    /// The newest records, the oldest of them first, at most `limit`: of these topics about one subject, or of all.
    async fn newest(&self, of: Option<(&[&str], &str)>, limit: usize) -> Result<Vec<Record>>;
    /// New records, in sequence; the stream ends if the reader is too slow.
    async fn live(&self) -> Result<BoxStream<'static, Record>>;
    /// State of all actors.
    async fn inspect(&self) -> Value;
    /// Starts a VM, on this host or on one chosen by placement.
    async fn start_vm(&self, vm: VmId, host: Option<HostId>) -> Result<VmInventory>;
    /// Stops a VM.
    async fn stop_vm(&self, vm: VmId) -> Result<VmInventory>;
    /// Fails over a VM, to this host or to one chosen by placement.
    async fn ha_start_vm(&self, vm: VmId, host: Option<HostId>) -> Result<VmInventory>;
    /// Plan of a failover, without changes.
    async fn plan_ha_start(&self, vm: VmId, host: Option<HostId>) -> Result<HaStartPlan>;
    /// Records an operator's attestation that a host is off.
    async fn confirm_fenced(&self, host: HostId, by: String) -> Result<HostInventory>;
    /// Explains the state of a VM or host, and how to change it.
    async fn explain(&self, name: &str) -> Result<Vec<String>>;
    /// HA status of hosts and VMs with problems.
    async fn ha_status(&self) -> Result<HaReply>;
    /// Plan of a drain, without changes.
    async fn plan_drain(&self, host: HostId) -> Result<DrainPlan>;
    /// Carries out an action on a host.
    async fn host_action(&self, host: HostId, action: HostAction) -> Result<HostInventory>;
    /// Shows or changes the inventory for this user. The shape of the answer depends on the request.
    async fn inventory(&self, order: Order, by: String, dry_run: bool) -> Result<Value>;
    /// Status of the hooks.
    async fn hooks(&self) -> Result<Vec<HookInventory>>;
    /// Sends a test event through a hook.
    async fn test_hook(&self, name: &str) -> Result<HookTest>;
    /// The host of this name or uuid.
    fn host_id(&self, text: &str) -> Result<HostId>;
    /// The VM of this name or uuid.
    fn vm_id(&self, text: &str) -> Result<VmId>;
}
