//! Commands to a ZBS MDS agent (port 7763). Secrets are not fields: the driver adds them when it posts a command.

use serde::{Deserialize, Serialize};

use crate::{agent::Done, agent_command};

/// TCP port of an MDS agent; the number is that of ZStack's ZBS agent.
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

/// Updates the dependencies of the ZBS client on a host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct UpdateHostDependencyCmd {
    /// Address of the host.
    pub client_ip: String,
}
agent_command!(UpdateHostDependencyCmd, "/zbs/primarystorage/host/updatedependency" => Done);

/// Deploys a vhost target on a host. The driver adds `sshPassword`.
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

/// Exports a volume through a host's vhost target. The driver adds `sshPassword`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CreateVhostBdevOnHostCmd {
    /// Address of the host.
    pub host_ip: String,
    /// SSH port of the host.
    pub ssh_port: u16,
    /// SSH user on the host.
    pub ssh_username: String,
    /// Logical pool: the first segment after `zbs://`.
    pub logical_pool: String,
    /// Name of the volume: the second segment after `zbs://`.
    pub volume: String,
    /// Name of the export: the file name of the socket.
    pub bdev_name: String,
}
agent_command!(CreateVhostBdevOnHostCmd, "/zbs/primarystorage/vhost/bdev/create" => crate::vhost::CreateVhostBdevReply);

/// Ends an export of a host's vhost target. The driver adds `sshPassword`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DeleteVhostBdevOnHostCmd {
    /// Address of the host.
    pub host_ip: String,
    /// SSH port of the host.
    pub ssh_port: u16,
    /// SSH user on the host.
    pub ssh_username: String,
    /// Name of the export: the file name of the socket.
    pub bdev_name: String,
}
agent_command!(DeleteVhostBdevOnHostCmd, "/zbs/primarystorage/vhost/bdev/delete" => Done);

/// Checks whether a host reaches the storage by CBD.
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
    /// The host reaches the storage.
    pub connected: bool,
    /// Reason as text while not connected; `None` while connected.
    #[serde(default)]
    pub reason: Option<String>,
}

/// Queries the facts of an MDS agent: a cheap liveness probe.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MdsFactsCmd {}
agent_command!(MdsFactsCmd, "/zbs/primarystorage/facts" => MdsFactsReply);

/// An MDS agent's facts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MdsFactsReply {
    /// Version of the MDS; empty if it does not report one.
    #[serde(default)]
    pub version: String,
}

/// Path on the host of the vhost socket of an export of a ZBS target.
pub fn vhost_socket(bdev_name: &str) -> String {
    format!("/var/zbsvhost/sockets/{bdev_name}")
}

/// Path of the control socket of a ZBS vhost target; fixed by ZBS.
pub const CONTROL_SOCKET: &str = "/var/zbsvhost/sockets/admin.sock";

/// Name of the container of a host's ZBS vhost target; fixed by ZBS.
pub fn container_name(host_ip: &str) -> String {
    format!("zbsvhost-{host_ip}")
}
