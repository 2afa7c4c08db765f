//! The shape of the controller's file, as TOML has it. [`controller`](super::controller) checks what it says.

use std::path::PathBuf;

use ringfence_messages::{Protocol, storage::StorageKind, vm::HaMode};
use serde::Deserialize;
use serde_spanned::Spanned;

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
    pub(super) fence: FencePolicy,
    #[serde(default)]
    pub(super) cluster: Vec<Spanned<RawCluster>>,
    #[serde(default)]
    pub(super) host: Vec<Spanned<RawHost>>,
    #[serde(default)]
    pub(super) storage: Vec<Spanned<RawStorage>>,
    #[serde(default)]
    pub(super) vm: Vec<Spanned<RawVm>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawController {
    pub(super) listen: Option<Text>,
    pub(super) state_dir: PathBuf,
    pub(super) agent_token_file: Option<PathBuf>,
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

/// Whether a doubtful case of fencing goes the safe way or ZStack's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Profile {
    /// Nothing starts without proof.
    #[default]
    Safe,
    /// As the original change requests did.
    Zstack,
}

/// How fencing decides. Read and checked now; used by the fence, which a later version brings.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FencePolicy {
    /// Sets the three below at once.
    #[serde(default)]
    pub profile: Profile,
    /// All watchers are the failed host's.
    pub on_watchers: Option<OnWatchers>,
    /// The failed host cannot be reached by SSH.
    pub on_ssh_unreachable: Option<OnSshUnreachable>,
    /// Nobody can fence.
    pub on_no_fencer: Option<OnNoFencer>,
}

/// All watchers are the failed host's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnWatchers {
    /// Fence it.
    Fence,
    /// Refuse the start.
    Block,
}

/// The failed host cannot be reached by SSH.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnSshUnreachable {
    /// Have the storage refuse it.
    StorageFence,
    /// Start all the same.
    Allow,
    /// Refuse the start.
    Block,
}

/// Nobody can fence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnNoFencer {
    /// Refuse the start.
    Block,
    /// Start all the same.
    Allow,
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
    #[serde(default)]
    pub(super) mds: Vec<Text>,
    pub(super) pool: Option<String>,
    pub(super) conf: Option<PathBuf>,
    pub(super) user: Option<String>,
    pub(super) host_conf: Option<Text>,
    pub(super) host_user: Option<String>,
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
