//! The shape of the controller's file in TOML. [`controller`](super::controller) checks the values.

use std::path::{Path, PathBuf};

use ringfence_actors::fence::policy::{OnNoFencer, OnSshUnreachable, OnWatchers, Profile};
use ringfence_drivers::tls::ServerFiles;
use ringfence_messages::{Protocol, storage::StorageKind, vhost::OnTargetLoss, vm::HaMode};
use ringfence_service::config_file::RawTls;
use serde::Deserialize;
use serde_spanned::Spanned;

use super::telemetry::RawTelemetry;
use crate::auth::Role;

pub(super) type Text = Spanned<String>;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Raw {
    pub(super) controller: RawController,
    #[serde(default)]
    pub(super) ping: RawPing,
    #[serde(default)]
    pub(super) recovery: RawRecovery,
    #[serde(default)]
    pub(super) fence: RawFence,
    #[serde(default)]
    pub(super) ha: RawHa,
    #[serde(default)]
    pub(super) cluster: Vec<Spanned<RawCluster>>,
    #[serde(default)]
    pub(super) host: Vec<Spanned<RawHost>>,
    #[serde(default)]
    pub(super) storage: Vec<Spanned<RawStorage>>,
    #[serde(default)]
    pub(super) vm: Vec<Spanned<RawVm>>,
    #[serde(default)]
    pub(super) api_token: Vec<Spanned<RawApiToken>>,
    #[serde(default)]
    pub(super) webhook: Vec<Spanned<RawWebhook>>,
    #[serde(default)]
    pub(super) command_hook: Vec<Spanned<RawCommandHook>>,
    pub(super) agent_tls: Option<RawTls>,
    pub(super) telemetry: Option<RawTelemetry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawWebhook {
    pub(super) name: Text,
    pub(super) url: Text,
    pub(super) topics: Vec<Text>,
    pub(super) secret_file: Spanned<PathBuf>,
    pub(super) ca_file: Option<Spanned<PathBuf>>,
    pub(super) timeout: Option<Text>,
    #[serde(default)]
    pub(super) insecure: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawCommandHook {
    pub(super) name: Text,
    pub(super) argv: Vec<Text>,
    pub(super) topics: Vec<Text>,
    pub(super) timeout: Option<Text>,
}

/// The file of the items that the API added.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawManaged {
    #[serde(default)]
    pub(super) cluster: Vec<Spanned<RawCluster>>,
    #[serde(default)]
    pub(super) host: Vec<Spanned<RawHost>>,
    #[serde(default)]
    pub(super) storage: Vec<Spanned<RawStorage>>,
    #[serde(default)]
    pub(super) vm: Vec<Spanned<RawVm>>,
}

/// The API's certificate and key.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawApiTls {
    cert: PathBuf,
    key: PathBuf,
    client_ca: Option<PathBuf>,
}

impl RawApiTls {
    pub(super) fn files(&self, base: &Path) -> ServerFiles {
        let client_ca = self.client_ca.as_ref().map(|file| base.join(file));
        ServerFiles { cert: base.join(&self.cert), key: base.join(&self.key), client_ca }
    }
}

/// Keys that the API may set only if the file permits it: each gives root on hosts, or reads files of the controller
/// and discloses them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum ApiMay {
    /// `qemu_args` of a VM: QEMU can run programs.
    QemuArgs,
    /// `[vm.libvirt]`: a domain can set any emulator, and is read from the controller's disk.
    Libvirt,
    /// `ssh_password_file` of a host: a file of the controller that is read and sent to an MDS.
    SshPasswordFile,
    /// `conf` and `host_conf` of a storage: files that Ceph's programs read as the controller's user, or as QEMU's.
    Conf,
    /// An agent with `http://` beyond loopback: it receives the token of all agents.
    PlainAgents,
}

impl ApiMay {
    /// Table, key, permission, and its word in `api_may`.
    pub(super) const KEYS: [(&'static str, &'static str, ApiMay, &'static str); 6] = [
        ("vm", "qemu_args", ApiMay::QemuArgs, "qemu_args"),
        ("vm", "libvirt", ApiMay::Libvirt, "libvirt"),
        ("host", "ssh_password_file", ApiMay::SshPasswordFile, "ssh_password_file"),
        ("storage", "conf", ApiMay::Conf, "conf"),
        ("storage", "host_conf", ApiMay::Conf, "conf"),
        ("host", "agent", ApiMay::PlainAgents, "plain_agents"),
    ];

    /// Whether a value of this key needs the permission.
    pub(super) fn concerns(self, value: &toml::Value) -> bool {
        match self {
            ApiMay::PlainAgents => value.as_str().and_then(|url| url.strip_prefix("http://")).is_some_and(|address| {
                let host = address.trim_end_matches('/').rsplit_once(':').map_or(address, |(host, _)| host);
                !host.trim_matches(['[', ']']).parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
            }),
            _ => value.as_array().is_none_or(|all| !all.is_empty()),
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawApiToken {
    pub(super) name: Text,
    pub(super) role: Role,
    pub(super) sha256: Text,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawController {
    pub(super) listen: Option<Text>,
    pub(super) state_dir: PathBuf,
    pub(super) agent_token_file: Option<PathBuf>,
    #[serde(default)]
    pub(super) insecure: bool,
    pub(super) tls: Option<RawApiTls>,
    pub(super) requests_per_second: Option<Spanned<u32>>,
    /// Read by [`managed`](super::managed); listed here so that an unknown word is an error.
    #[serde(default, rename = "api_may")]
    pub(super) _api_may: Vec<ApiMay>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawPing {
    pub(super) interval: Option<Text>,
    pub(super) timeout: Option<Text>,
    pub(super) max_failure: Option<Spanned<u32>>,
    pub(super) sleep_after_failure: Option<Text>,
    pub(super) parallelism: Option<Spanned<usize>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawRecovery {
    pub(super) hugepages: Option<Spanned<u64>>,
}

/// The fencer of level 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum RawFencer {
    /// The built-in fencer.
    #[default]
    Sibling,
    /// None: `on_no_fencer` decides.
    None,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawFence {
    #[serde(default)]
    pub(super) profile: Profile,
    pub(super) on_watchers: Option<OnWatchers>,
    pub(super) on_ssh_unreachable: Option<OnSshUnreachable>,
    pub(super) on_no_fencer: Option<OnNoFencer>,
    #[serde(default)]
    pub(super) fencer: RawFencer,
    #[serde(default)]
    pub(super) cross_cluster_siblings: bool,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawHa {
    pub(super) parallel_starts: Option<Spanned<usize>>,
    pub(super) storm_brake_percent: Option<Spanned<u32>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawCluster {
    pub(super) name: Text,
    pub(super) uuid: Option<Text>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawHost {
    pub(super) name: Text,
    pub(super) uuid: Option<Text>,
    pub(super) cluster: Text,
    pub(super) management_ip: Text,
    #[serde(default)]
    pub(super) storage_ips: Vec<Text>,
    pub(super) agent: Text,
    pub(super) ssh_user: Option<String>,
    pub(super) ssh_port: Option<u16>,
    pub(super) ssh_password_file: Option<PathBuf>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawStorage {
    pub(super) name: Text,
    pub(super) uuid: Option<Text>,
    pub(super) kind: StorageKind,
    pub(super) clusters: Vec<Text>,
    pub(super) protocols: Option<Vec<Spanned<Protocol>>>,
    pub(super) dir: Option<Text>,
    pub(super) on_target_loss: Option<Spanned<OnTargetLoss>>,
    #[serde(default)]
    pub(super) mds: Vec<Text>,
    pub(super) pool: Option<String>,
    pub(super) conf: Option<PathBuf>,
    pub(super) user: Option<String>,
    pub(super) host_conf: Option<Text>,
    pub(super) host_user: Option<String>,
    #[serde(default)]
    pub(super) watchers_allowed: Vec<Text>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawVm {
    pub(super) name: Text,
    pub(super) uuid: Option<Text>,
    pub(super) cluster: Text,
    #[serde(default)]
    pub(super) ha: HaMode,
    pub(super) memory_mib: Spanned<u64>,
    #[serde(default)]
    pub(super) qemu_args: Vec<Text>,
    #[serde(default)]
    pub(super) volume: Vec<Spanned<RawVolume>>,
    pub(super) libvirt: Option<RawLibvirt>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawLibvirt {
    pub(super) xml: Text,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawVolume {
    pub(super) storage: Text,
    pub(super) install_path: Text,
    #[serde(default)]
    pub(super) root: bool,
}
