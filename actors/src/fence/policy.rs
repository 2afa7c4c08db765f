//! How doubtful cases of fencing are decided: two profiles, and each case on its own.

use serde::Deserialize;

/// The defaults of all doubtful cases: safe, or ZStack's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Profile {
    /// No start without proof; the storage rejects a host on which no sibling host can kill the VM.
    #[default]
    Safe,
    /// As the original change requests: no storage fence.
    Zstack,
}

/// All watchers of a volume are on the failed host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnWatchers {
    /// Fence the host.
    Fence,
    /// Reject the start.
    Block,
}

/// The failed host is unreachable by SSH.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnSshUnreachable {
    /// Make the storage reject the host.
    StorageFence,
    /// Start without proof.
    Allow,
    /// Reject the start.
    Block,
}

/// No fencer is registered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnNoFencer {
    /// Reject the start.
    Block,
    /// Start without proof.
    Allow,
}

/// How fencing decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Whether the storage fences a host on which no sibling host can kill the VM: only in [`Profile::Safe`].
    pub profile: Profile,
    /// All watchers are on the failed host.
    pub on_watchers: OnWatchers,
    /// The failed host is unreachable by SSH.
    pub on_ssh_unreachable: OnSshUnreachable,
    /// No fencer is registered.
    pub on_no_fencer: OnNoFencer,
}

impl Profile {
    /// The defaults of the profile.
    pub const fn policy(self) -> Policy {
        match self {
            Profile::Safe => Policy {
                profile: self,
                on_watchers: OnWatchers::Fence,
                on_ssh_unreachable: OnSshUnreachable::StorageFence,
                on_no_fencer: OnNoFencer::Block,
            },
            Profile::Zstack => Policy {
                profile: self,
                on_watchers: OnWatchers::Block,
                on_ssh_unreachable: OnSshUnreachable::Allow,
                on_no_fencer: OnNoFencer::Allow,
            },
        }
    }
}

impl Default for Policy {
    fn default() -> Self {
        Profile::Safe.policy()
    }
}
