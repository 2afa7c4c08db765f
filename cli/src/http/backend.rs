//! What the API needs of the controller: questions and orders, no HTTP.

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

/// The controller, as the API sees it.
#[async_trait]
pub trait Backend: Send + Sync {
    /// Whether it can do its work: the journal answers.
    async fn healthy(&self) -> Result<()>;
    /// Its metrics in Prometheus' text format.
    async fn metrics(&self) -> String;
    /// All hosts.
    async fn hosts(&self) -> Result<Vec<HostInventory>>;
    /// One host.
    async fn host(&self, id: HostId) -> Result<HostInventory>;
    /// How the last pings of a host went, the oldest first.
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
    /// Records as they are made from now on, in order; it ends if the reader is too slow.
    async fn live(&self) -> Result<BoxStream<'static, Record>>;
    /// A picture of all actors.
    async fn inspect(&self) -> Value;
    /// Starts a VM, on the host given or one that is chosen.
    async fn start_vm(&self, vm: VmId, host: Option<HostId>) -> Result<VmInventory>;
    /// Stops a VM.
    async fn stop_vm(&self, vm: VmId) -> Result<VmInventory>;
    /// Brings a VM back: fenced where it ran last, then started, on the host given or one that is chosen.
    async fn ha_start_vm(&self, vm: VmId, host: Option<HostId>) -> Result<VmInventory>;
    /// What that would do now. Changes nothing.
    async fn plan_ha_start(&self, vm: VmId, host: Option<HostId>) -> Result<HaStartPlan>;
    /// A human attests that a host is off.
    async fn confirm_fenced(&self, host: HostId, by: String) -> Result<HostInventory>;
    /// In plain words: what state a VM or host is in, why, and what would change it.
    async fn explain(&self, name: &str) -> Result<Vec<String>>;
    /// What HA thinks of everything that is not in order.
    async fn thoughts(&self) -> Result<HaReply>;
    /// What draining a host would do now. Changes nothing.
    async fn plan_drain(&self, host: HostId) -> Result<DrainPlan>;
    /// Does something to a host.
    async fn host_action(&self, host: HostId, action: HostAction) -> Result<HostInventory>;
    /// Shows or changes the inventory, for this person. The answer's shape is the order's.
    async fn inventory(&self, order: Order, by: String, dry_run: bool) -> Result<Value>;
    /// How the hooks are.
    async fn hooks(&self) -> Result<Vec<HookInventory>>;
    /// Sends a test message by a hook.
    async fn test_hook(&self, name: &str) -> Result<HookTest>;
    /// The host of this name or uuid.
    fn host_id(&self, text: &str) -> Result<HostId>;
    /// The VM of this name or uuid.
    fn vm_id(&self, text: &str) -> Result<VmId>;
}
