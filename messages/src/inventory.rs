//! Changes of the inventory while the controller runs.

use serde::{Deserialize, Serialize};

use crate::{HostId, agent::Done, event, message, vm::VmInventory};

/// The item of this actor is removed from the inventory: the actor stops, or rejects while it cannot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RetireMsg {}
message!(RetireMsg, 1 => Done);

/// A host is removed from the inventory with nothing of the VM left there: a stopped VM does not query it again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ForgetHostMsg {
    /// The removed host.
    pub host_uuid: HostId,
}
message!(ForgetHostMsg, 1 => VmInventory);

/// The inventory changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct InventoryChanged {
    /// Name of the token, or `a local user`.
    pub by: String,
    /// One line for each changed item, as text for operators.
    pub changes: Vec<String>,
}
event!(InventoryChanged, "inventory.changed", 1, |_e| "inventory".to_owned());
