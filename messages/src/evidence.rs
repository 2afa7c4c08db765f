//! Evidence: the observed machine, the observer, its sight, and the verdict (I2).
//!
//! Invariants: a verdict is [`Verdict::Dead`], [`Verdict::Alive`] or [`Verdict::Unknown`]; absence counts only with
//! full sight ([`Sight::is_full`]) on the right machine ([`Machine::is`]); no decision reads a text.
//! Alternatives considered: flags beside a text. Each reader would combine them differently.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::HostId;

/// A machine and its boot. An IP address identifies neither.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct Machine {
    /// `/etc/machine-id`: 32 hex digits. Empty if unknown.
    #[serde(default)]
    pub machine_id: String,
    /// `/proc/sys/kernel/random/boot_id`: no process survives a boot. Empty if unknown.
    #[serde(default)]
    pub boot_id: String,
}

impl Machine {
    /// Whether both machine ids are known and equal. An unknown machine equals no machine (I2).
    pub fn is(&self, other: &Machine) -> bool {
        !self.machine_id.is_empty() && self.machine_id == other.machine_id
    }

    /// Whether this is the same machine after another boot: all processes of the former boot are dead.
    pub fn is_another_boot_of(&self, former: &Machine) -> bool {
        let known = !self.boot_id.is_empty() && !former.boot_id.is_empty();
        self.is(former) && known && self.boot_id != former.boot_id
    }
}

/// How much of a host's processes an observer could see. The default is blind.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct Sight {
    /// Effective user id of the observer. Only root sees all processes completely.
    #[serde(default = "nobody")]
    pub euid: u32,
    /// The observer is in the host's PID namespace.
    #[serde(default)]
    pub host_pids: bool,
    /// `/proc` is mounted with `hidepid`: it hides processes of other users.
    #[serde(default)]
    pub hidepid: bool,
    /// Number of processes whose command line could not be read.
    #[serde(default)]
    pub unreadable: u32,
    /// Number of processes that look like QEMU and have no uuid: each may be any VM.
    #[serde(default)]
    pub unnamed: u32,
}

fn nobody() -> u32 {
    65534
}

impl Sight {
    /// The sight of an observer that sees every process.
    pub const fn full() -> Sight {
        Sight { euid: 0, host_pids: true, hidepid: false, unreadable: 0, unnamed: 0 }
    }

    /// Whether the observer saw every process: only then does a missing VM count as absent.
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

/// Whether a VM or host may still write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// It is proven that it cannot write.
    Dead,
    /// It can write.
    Alive,
    /// Neither is proven. Never counts as dead.
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

/// Why evidence is unknown (I2). Each reason has its own remedy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
pub enum UnknownReason {
    /// No reply within the time limit.
    Timeout,
    /// The peer refused the connection.
    Refused,
    /// The peer rejected the SSH key.
    AuthFailed,
    /// The peer's host key differs from the known one.
    HostKeyMismatch,
    /// The command exited without a usable result (ssh's 255, a signal).
    BadExit,
    /// The output is truncated.
    Truncated,
    /// The output could not be parsed.
    Unparsable,
    /// Another machine answered at the address.
    OtherMachine,
    /// The observer did not have full sight.
    Blind,
    /// The evidence contradicts other evidence or itself.
    Contradicted,
}

/// The source of evidence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Source {
    /// The agent of the observed host.
    Agent,
    /// The watchers of the volumes, as the storage lists them.
    Watchers,
    /// A sibling host, over SSH.
    Sibling,
    /// The storage that rejects the host.
    Storage,
    /// An operator's attestation that the host is off.
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

/// One observation of one host.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct Evidence {
    /// The observed host.
    pub host_uuid: HostId,
    /// The source of the observation.
    pub source: Source,
    /// The conclusion.
    pub verdict: Verdict,
    /// Reason of [`Verdict::Unknown`], where one of the list applies.
    #[serde(default)]
    pub unknown: Option<UnknownReason>,
    /// Name of the observing host or of the operator.
    #[serde(default)]
    pub by: Option<String>,
    /// The observed machine, as it identified itself.
    #[serde(default)]
    pub machine: Option<Machine>,
    /// Sight of the observer, if it searched processes.
    #[serde(default)]
    pub sight: Option<Sight>,
    /// Milliseconds since the attempt began.
    #[serde(default)]
    pub after_ms: u64,
    /// The observation as text for operators. No decision reads it.
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
    fn unknown_machine_equals_no_machine() {
        let of = |machine: &str, boot: &str| Machine { machine_id: machine.into(), boot_id: boot.into() };
        assert!(of("a", "1").is(&of("a", "2")) && !of("a", "1").is(&of("b", "1")));
        assert!(!Machine::default().is(&Machine::default()), "two unknown machines are not equal");
        assert!(of("a", "2").is_another_boot_of(&of("a", "1")));
        for (now, former) in [(of("a", "1"), of("a", "1")), (of("b", "2"), of("a", "1")), (of("a", ""), of("a", "1"))] {
            assert!(!now.is_another_boot_of(&former), "{now:?} {former:?}");
        }
    }

    #[test]
    fn missing_sight_is_blind() {
        let missing: Sight = serde_json::from_str("{}").unwrap();
        assert!(!missing.is_full() && !Sight::default().is_full() && Sight::full().is_full());
        let half = Sight { hidepid: true, unnamed: 2, ..Sight::full() };
        assert_eq!(half.to_string(), "/proc is mounted with hidepid, 2 processes look like QEMU and name no VM");
    }
}
