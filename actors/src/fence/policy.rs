//! How doubtful cases of fencing are decided: two profiles, and each case by itself.

use serde::Deserialize;

/// Whether a doubtful case of fencing goes the safe way or ZStack's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Profile {
    /// Nothing starts without proof; the storage refuses what a sibling cannot kill.
    #[default]
    Safe,
    /// As the original change requests did: no storage fence.
    Zstack,
}

/// All watchers of a volume are the failed host's.
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

/// How fencing decides (design: section 4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Whether the storage fences what a sibling cannot: only in [`Profile::Safe`].
    pub profile: Profile,
    /// All watchers are the failed host's.
    pub on_watchers: OnWatchers,
    /// The failed host cannot be reached by SSH.
    pub on_ssh_unreachable: OnSshUnreachable,
    /// Nobody can fence.
    pub on_no_fencer: OnNoFencer,
}

impl Profile {
    /// What the profile says where nothing else is said.
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
