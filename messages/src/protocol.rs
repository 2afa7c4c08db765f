//! The protocols by which a host reaches a storage, and their health.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A protocol by which a host reaches a primary storage. In JSON: `NVMEoF`, `iSCSI`, `Vhost`, `CBD`, `NBD`, `RBD`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub enum Protocol {
    /// NVMe over fabrics.
    #[serde(rename = "NVMEoF")]
    NvmeOf,
    /// iSCSI.
    #[serde(rename = "iSCSI")]
    Iscsi,
    /// A vhost-user target on the host.
    Vhost,
    /// The ZBS block device client.
    #[serde(rename = "CBD")]
    Cbd,
    /// Network block device.
    #[serde(rename = "NBD")]
    Nbd,
    /// Ceph's block device.
    #[serde(rename = "RBD")]
    Rbd,
}

impl Protocol {
    /// Every protocol, in the order of the enum.
    pub const ALL: [Protocol; 6] =
        [Protocol::NvmeOf, Protocol::Iscsi, Protocol::Vhost, Protocol::Cbd, Protocol::Nbd, Protocol::Rbd];

    /// The name, as in JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Protocol::NvmeOf => "NVMEoF",
            Protocol::Iscsi => "iSCSI",
            Protocol::Vhost => "Vhost",
            Protocol::Cbd => "CBD",
            Protocol::Nbd => "NBD",
            Protocol::Rbd => "RBD",
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The result of a probe of a protocol. Only [`Health::Ok`] counts as connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Health {
    /// The protocol works.
    Ok,
    /// The probe had no result.
    Unknown,
    /// The protocol answers and reports a problem.
    Warn,
    /// The protocol does not work.
    Failed,
}

/// Whether a host reaches a storage, by one protocol or by any of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub enum ProtocolStatus {
    /// The host reaches the storage.
    Connected,
    /// The host does not reach the storage.
    Disconnected,
}

impl From<Health> for ProtocolStatus {
    fn from(health: Health) -> ProtocolStatus {
        match health {
            Health::Ok => ProtocolStatus::Connected,
            Health::Unknown | Health::Warn | Health::Failed => ProtocolStatus::Disconnected,
        }
    }
}

impl fmt::Display for ProtocolStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ProtocolStatus::Connected => "Connected",
            ProtocolStatus::Disconnected => "Disconnected",
        })
    }
}
