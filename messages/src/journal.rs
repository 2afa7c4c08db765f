//! How far a journal has come, as hosts remember it; and what follows when one is behind.
//!
//! Purpose: a journal that was restored from a backup does not know what its controller did since. Hosts were told with every
//! ping and every order how far the journal was, so that they are witnesses of what is missing. Invariant: what a host
//! remembers never goes back. Rejected: comparing clocks, which a restored machine has wrong as well.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{HostId, event};

/// The longest name of a journal that a host remembers. Too low: a SHA-256 in hex does not fit. Too high: a caller fills its disk.
pub const MAX_JOURNAL_ID: usize = 64;

/// How far a journal has come.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct JournalHead {
    /// Names the journal. A copy of it has the same name; a new one, or one that was declared restored, has another.
    pub journal_id: String,
    /// How often somebody declared that the work goes on from a backup. Above all others it decides which journal counts.
    pub generation: u64,
    /// Its newest record.
    pub seq: u64,
    /// The term of office in which that was told.
    pub epoch: u64,
}

impl JournalHead {
    /// Whether a host has heard of something that this journal does not know: of a later generation, of another journal, of a
    /// later record, of a later term of office.
    pub fn is_behind(&self, witness: &JournalHead) -> bool {
        match self.generation.cmp(&witness.generation) {
            std::cmp::Ordering::Less => true,
            // A journal of an earlier generation counts no more, but its terms of office were: hosts refuse orders of former ones.
            std::cmp::Ordering::Greater => witness.epoch > self.epoch,
            std::cmp::Ordering::Equal => {
                self.journal_id != witness.journal_id || witness.seq > self.seq || witness.epoch > self.epoch
            }
        }
    }

    /// What a host remembers that has heard this, and `before` until now.
    pub fn heard_after(self, before: Option<&JournalHead>) -> JournalHead {
        match before {
            Some(before) if self.is_behind(before) => before.clone(),
            _ => self,
        }
    }

    /// Whether it is what a controller may say.
    pub fn is_sound(&self) -> bool {
        let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'-';
        !self.journal_id.is_empty() && self.journal_id.len() <= MAX_JOURNAL_ID && self.journal_id.bytes().all(plain)
    }
}

impl fmt::Display for JournalHead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let JournalHead { journal_id, generation, seq, epoch } = self;
        write!(f, "record {seq} of journal {journal_id:.8} (generation {generation}, epoch {epoch})")
    }
}

/// A controller found that its journal is behind what a host has heard. It does nothing any more that cannot be undone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ControllerBehind {
    /// The host that has heard more.
    pub host_uuid: HostId,
    /// Its name.
    pub host: String,
    /// What it has heard.
    pub witness: JournalHead,
    /// How far this journal was.
    pub head: JournalHead,
}
event!(ControllerBehind, "controller.behind", 1, |_e| "controller".to_owned());

impl fmt::Display for ControllerBehind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ControllerBehind { host, witness, head, .. } = self;
        write!(
            f,
            "the journal is behind: host {host} has heard of {witness}, this one is at {head}. It was restored from a backup, or \
             another controller works on. Nothing is started, stopped, fenced or redeployed. Make sure that no other \
             controller runs, then start this one once with `ringfence serve --restored`"
        )
    }
}

/// Somebody declared that the work goes on from this journal, though hosts may have heard of more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ControllerRestored {
    /// The journal's new name.
    pub journal_id: String,
    /// Its generation: above all that were heard of.
    pub generation: u64,
    /// The highest term of office that was heard of. The next one is above it.
    pub epoch: u64,
    /// The furthest that was heard of; `None` if no host remembers a journal.
    pub witness: Option<JournalHead>,
    /// How many hosts answered.
    pub heard: u32,
    /// The names of those that did not: what they remember is not known.
    pub silent: Vec<String>,
}
event!(ControllerRestored, "controller.restored", 1, |_e| "controller".to_owned());

#[cfg(test)]
mod tests {
    use super::*;

    fn head(id: &str, generation: u64, seq: u64, epoch: u64) -> JournalHead {
        JournalHead { journal_id: id.to_owned(), generation, seq, epoch }
    }

    #[test]
    fn a_journal_is_behind_whoever_has_heard_more() {
        let own = head("a", 1, 10, 3);
        for (witness, behind) in [
            (head("a", 1, 10, 3), false),
            (head("a", 1, 9, 3), false),
            (head("a", 1, 11, 3), true),
            (head("b", 1, 5, 3), true),
            (head("b", 2, 1, 1), true),
            (head("b", 0, 99, 3), false),
            (head("b", 0, 99, 4), true),
            (head("a", 1, 10, 4), true),
        ] {
            assert_eq!(own.is_behind(&witness), behind, "{witness}");
            let kept = own.clone().heard_after(Some(&witness));
            assert_eq!(kept, if behind { witness } else { own.clone() });
        }
        assert_eq!(own.clone().heard_after(None), own);
    }

    #[test]
    fn a_name_that_no_journal_has_is_not_sound() {
        assert!(head(&"f".repeat(MAX_JOURNAL_ID), 0, 1, 1).is_sound());
        for id in ["", "a\nb", "a b", &"f".repeat(MAX_JOURNAL_ID + 1)] {
            assert!(!head(id, 0, 1, 1).is_sound(), "{id:?}");
        }
    }
}
