//! The right to start one incarnation of a VM on one host (I1).
//!
//! Invariants: only the fence makes one, out of evidence; it names the VM, the host, the incarnation and the epoch that
//! it is good for, and it expires. [`HostAgentPort::start_vm`](crate::ports::HostAgentPort::start_vm) takes one, so that
//! no code can start a VM without. It does not travel: to another process goes the order, which carries incarnation and
//! epoch, and the agent refuses stale ones.
//! Rejected: a permit that can be read from bytes. Whoever can write bytes could then make one.
//!
//! ```compile_fail
//! // Nobody outside the fence makes a permit.
//! let permit = ringfence_actors::fence::StartPermit { ..todo!() };
//! ```

use std::{
    fmt,
    time::{Duration, Instant},
};

use crate::sabotage::{self, Sabotage};
use ringfence_messages::{HostId, VmId, fence::FenceOutcome, vm::StartVmCmd};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de, ser};

/// How long a permit is good for. Too low: a slow export of a volume outlives it. Too high: evidence grows old.
pub const PERMIT_VALIDITY: Duration = Duration::from_secs(30);

/// Why no earlier incarnation of the VM can write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Proof {
    /// It never ran.
    NeverRan,
    /// The agent of the host where it ran last says that it does not run there.
    HostSaysGone(HostId),
    /// It was fenced there; or the policy lets it start without proof, as the outcome says.
    Fenced {
        /// Where it ran.
        host: HostId,
        /// How it was fenced.
        outcome: FenceOutcome,
    },
}

/// The right to start a VM; see the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StartPermit {
    vm: VmId,
    host: HostId,
    incarnation: u64,
    epoch: u64,
    proof: Proof,
    expires: Instant,
}

impl StartPermit {
    pub(in crate::fence) fn new(
        vm: VmId,
        host: HostId,
        incarnation: u64,
        epoch: u64,
        proof: Proof,
        now: Instant,
    ) -> Self {
        StartPermit { vm, host, incarnation, epoch, proof, expires: now + PERMIT_VALIDITY }
    }

    /// Which start of the VM it is for.
    pub fn incarnation(&self) -> u64 {
        self.incarnation
    }

    /// The controller's term of office that it was made in.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Why it was given.
    pub fn proof(&self) -> &Proof {
        &self.proof
    }

    /// How long it is still good; `None` if it expired.
    pub fn left(&self, now: Instant) -> Option<Duration> {
        if sabotage::on(Sabotage::PermitNeverExpires) {
            return Some(PERMIT_VALIDITY);
        }
        self.expires.checked_duration_since(now).filter(|left| !left.is_zero())
    }

    /// Whether it is the permit for this order on this host.
    pub fn covers(&self, host: HostId, cmd: &StartVmCmd) -> bool {
        (self.vm, self.host, self.incarnation, self.epoch) == (cmd.vm_uuid, host, cmd.incarnation, cmd.epoch)
    }

    /// A permit for tests of what needs one.
    #[cfg(any(test, feature = "testkit"))]
    pub fn for_test(host: HostId, cmd: &StartVmCmd, now: Instant) -> StartPermit {
        StartPermit::new(cmd.vm_uuid, host, cmd.incarnation, cmd.epoch, Proof::NeverRan, now)
    }
}

impl fmt::Display for Proof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Proof::NeverRan => f.write_str("it never ran"),
            Proof::HostSaysGone(_) => f.write_str("the host where it ran last says that it does not run there"),
            Proof::Fenced { outcome, .. } => write!(f, "fenced where it ran last: {outcome}"),
        }
    }
}

impl Serialize for StartPermit {
    fn serialize<S: Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
        Err(ser::Error::custom("a start permit does not leave its process"))
    }
}

impl<'de> Deserialize<'de> for StartPermit {
    fn deserialize<D: Deserializer<'de>>(_: D) -> Result<Self, D::Error> {
        Err(de::Error::custom("a start permit is made by the fence, not read"))
    }
}
