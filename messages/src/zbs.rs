//! What a ZBS MDS agent is asked (port 7763). Secrets are not fields: the driver that posts a command adds them.

use serde::{Deserialize, Serialize};

use crate::{agent::Done, agent_command};

/// Port that an MDS agent listens on (ZStack's ZBS agent).
pub const MDS_PORT: u16 = 7763;

/// Installs the ZBS client on a host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DeployClientCmd {
    /// Address of the host.
    pub client_ip: String,
    /// SSH port of the host.
    pub ssh_port: u16,
    /// SSH user on the host.
    pub ssh_username: String,
}
agent_command!(DeployClientCmd, "/zbs/primarystorage/client/deploy" => Done);

/// Brings what the client needs on a host up to date.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct UpdateHostDependencyCmd {
    /// Address of the host.
    pub client_ip: String,
}
agent_command!(UpdateHostDependencyCmd, "/zbs/primarystorage/host/updatedependency" => Done);

/// Has the MDS put a vhost target on a host. The driver adds `sshPassword`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VhostHostCmd {
    /// Address of the host.
    pub host_ip: String,
    /// SSH port of the host.
    pub ssh_port: u16,
    /// SSH user on the host.
    pub ssh_username: String,
}
agent_command!(VhostHostCmd, "/zbs/primarystorage/vhost/deploy" => Done);

/// Has the MDS export a volume through a host's vhost target. The driver adds `sshPassword`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CreateVhostBdevOnHostCmd {
    /// Address of the host.
    pub host_ip: String,
    /// SSH port of the host.
    pub ssh_port: u16,
    /// SSH user on the host.
    pub ssh_username: String,
    /// Pool: the first segment after `zbs://`.
    pub logical_pool: String,
    /// The volume.
    pub volume: String,
    /// Name of the export.
    pub bdev_name: String,
}
agent_command!(CreateVhostBdevOnHostCmd, "/zbs/primarystorage/vhost/bdev/create" => crate::vhost::CreateVhostBdevReply);

/// Asks whether a host reaches the storage by CBD.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CheckHostConnectionCmd {
    /// Address of the host.
    pub client_ip: String,
}
agent_command!(CheckHostConnectionCmd, "/zbs/primarystorage/check/host/connection" => CheckHostConnectionReply);

/// Whether a host reaches the storage by CBD.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CheckHostConnectionReply {
    /// It does.
    pub connected: bool,
    /// Why not; `None` when it does.
    #[serde(default)]
    pub reason: Option<String>,
}

/// Asks an MDS agent for its facts; a cheap sign of life.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MdsFactsCmd {}
agent_command!(MdsFactsCmd, "/zbs/primarystorage/facts" => MdsFactsReply);

/// An MDS agent's facts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MdsFactsReply {
    /// The version it runs; empty if it does not say.
    #[serde(default)]
    pub version: String,
}

/// Path of the vhost socket that a ZBS target makes for an export.
pub fn vhost_socket(bdev_name: &str) -> String {
    format!("/var/zbsvhost/sockets/{bdev_name}")
}

/// Control socket of a ZBS vhost target.
pub const CONTROL_SOCKET: &str = "/var/zbsvhost/sockets/admin.sock";

/// Name of the container of the ZBS vhost target of the host with this address.
pub fn container_name(host_ip: &str) -> String {
    format!("zbsvhost-{host_ip}")
}
