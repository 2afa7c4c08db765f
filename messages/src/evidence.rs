//! Evidence as a value: which machine was looked at, who looked, with what sight, and what follows (I2).
//!
//! Invariants: evidence is [`Verdict::Dead`], [`Verdict::Alive`] or [`Verdict::Unknown`]; "not there" counts only from
//! who could have seen it ([`Sight::is_full`]) on the machine that is meant ([`Machine::is`]). Words are for readers:
//! no decision reads them. Rejected: flags beside a text, which every reader combines in a way of its own.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{HostId, fence::UnknownReason};

/// A machine, and which boot of it: an address says only who answers there now.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct Machine {
    /// `/etc/machine-id`: 32 hex digits. Empty if it is not known.
    #[serde(default)]
    pub machine_id: String,
    /// `/proc/sys/kernel/random/boot_id`: nothing of one boot lives in the next. Empty if it is not known.
    #[serde(default)]
    pub boot_id: String,
}

impl Machine {
    /// Whether both are known and name one machine. A machine that is not known is no machine (I2).
    pub fn is(&self, other: &Machine) -> bool {
        !self.machine_id.is_empty() && self.machine_id == other.machine_id
    }

    /// Whether it is the same machine after another boot: everything of the former boot is dead.
    pub fn is_another_boot_of(&self, former: &Machine) -> bool {
        let known = !self.boot_id.is_empty() && !former.boot_id.is_empty();
        self.is(former) && known && self.boot_id != former.boot_id
    }
}

/// With what sight somebody looked for the processes of a host. The default is blind.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct Sight {
    /// The effective user id of who looked. Only root sees everybody's processes whole.
    #[serde(default = "nobody")]
    pub euid: u32,
    /// The PID namespace of who looked is the host's.
    #[serde(default)]
    pub host_pids: bool,
    /// `/proc` hides the processes of others (`hidepid`).
    #[serde(default)]
    pub hidepid: bool,
    /// Processes whose command line could not be read.
    #[serde(default)]
    pub unreadable: u32,
    /// Processes that look like QEMU and name no VM, so that they may be any.
    #[serde(default)]
    pub unnamed: u32,
}

fn nobody() -> u32 {
    65534
}

impl Sight {
    /// Somebody who sees everything.
    pub const fn full() -> Sight {
        Sight { euid: 0, host_pids: true, hidepid: false, unreadable: 0, unnamed: 0 }
    }

    /// Whether every process was seen: only then does "not there" mean that it is not there.
    pub fn is_full(&self) -> bool {
        *self == Sight::full()
    }
}

impl fmt::Display for Sight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_full() {
            return f.write_str("full sight");
        }
        let mut why = Vec::new();
        if self.euid != 0 {
            why.push(format!("looked as user {}, not as root", self.euid));
        }
        if !self.host_pids {
            why.push("looked from a PID namespace that is not the host's".to_owned());
        }
        if self.hidepid {
            why.push("/proc is mounted with hidepid".to_owned());
        }
        if self.unreadable > 0 {
            why.push(format!("{} processes could not be read", self.unreadable));
        }
        if self.unnamed > 0 {
            why.push(format!("{} processes look like QEMU and name no VM", self.unnamed));
        }
        f.write_str(&why.join(", "))
    }
}

/// Whether something may still write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// It cannot write.
    Dead,
    /// It can.
    Alive,
    /// Nobody can tell.
    Unknown,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Verdict::Dead => "dead",
            Verdict::Alive => "alive",
            Verdict::Unknown => "unknown",
        })
    }
}

/// Who looked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Source {
    /// The agent of the host itself.
    Agent,
    /// Who watches the volumes, as their storage says.
    Watchers,
    /// A sibling host, over SSH.
    Sibling,
    /// The storage, which refuses the host.
    Storage,
    /// A human who attested that the host is off.
    Human,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Source::Agent => "agent",
            Source::Watchers => "watchers",
            Source::Sibling => "sibling",
            Source::Storage => "storage",
            Source::Human => "human",
        })
    }
}

/// What one look at one place found.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct Evidence {
    /// The host that it is about.
    pub host_uuid: HostId,
    /// Who looked.
    pub source: Source,
    /// What follows.
    pub verdict: Verdict,
    /// Why nothing follows, where that has a name.
    #[serde(default)]
    pub unknown: Option<UnknownReason>,
    /// The host that looked, or the name of the human.
    #[serde(default)]
    pub by: Option<String>,
    /// The machine that was looked at, as it said itself.
    #[serde(default)]
    pub machine: Option<Machine>,
    /// With what sight, where processes were looked for.
    #[serde(default)]
    pub sight: Option<Sight>,
    /// Milliseconds since the attempt began.
    #[serde(default)]
    pub after_ms: u64,
    /// What was found, in plain words: for readers, never for decisions.
    pub said: String,
}

impl fmt::Display for Evidence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.source, self.said)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_that_is_not_known_is_no_machine() {
        let of = |machine: &str, boot: &str| Machine { machine_id: machine.into(), boot_id: boot.into() };
        assert!(of("a", "1").is(&of("a", "2")) && !of("a", "1").is(&of("b", "1")));
        assert!(!Machine::default().is(&Machine::default()), "two that say nothing are not one");
        assert!(of("a", "2").is_another_boot_of(&of("a", "1")));
        for (now, former) in [(of("a", "1"), of("a", "1")), (of("b", "2"), of("a", "1")), (of("a", ""), of("a", "1"))] {
            assert!(!now.is_another_boot_of(&former), "{now:?} {former:?}");
        }
    }

    #[test]
    fn who_does_not_say_how_they_looked_is_blind() {
        let said: Sight = serde_json::from_str("{}").unwrap();
        assert!(!said.is_full() && !Sight::default().is_full() && Sight::full().is_full());
        let half = Sight { hidepid: true, unnamed: 2, ..Sight::full() };
        assert_eq!(half.to_string(), "/proc is mounted with hidepid, 2 processes look like QEMU and name no VM");
    }
}
