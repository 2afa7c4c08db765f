//! The right to start one incarnation of a VM on one host (I1).
//!
//! Invariants: only the fence makes one, out of evidence; it holds the evidence of every place that may run the VM, the
//! target among them, and the last look at its watchers; it names the VM, the host, the incarnation and the epoch that
//! it is good for, and it expires. [`HostAgentPort::start_vm`](crate::ports::HostAgentPort::start_vm) takes one, so that
//! no code can start a VM without. It does not travel: to another process goes the order, which carries incarnation and
//! epoch, and the agent refuses stale ones.
//! Rejected: a permit that can be read from bytes (whoever can write bytes could then make one), and one that holds the
//! proof of the last place alone (a claim of some other host would take the first place out of sight).
//!
//! ```compile_fail
//! // Nobody outside the fence makes a permit.
//! let permit = ringfence_actors::fence::StartPermit { ..todo!() };
//! ```
//! ```compile_fail
//! // Nobody outside the fence says that a place is clear.
//! let cleared = ringfence_actors::fence::Cleared { ..todo!() };
//! ```

use std::{
    fmt,
    time::{Duration, Instant},
};

use crate::sabotage::{self, Sabotage};
use ringfence_messages::{
    Code, ErrorCode, HostId, Result, VmId,
    evidence::{Evidence, Source, Verdict},
    fence::{FenceOutcome, UnknownReason},
    vm::{ListVmsReply, StartVmCmd},
};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de, ser};

/// How long a permit is good for. Too low: a slow export of a volume outlives it. Too high: evidence grows old.
pub const PERMIT_VALIDITY: Duration = Duration::from_secs(30);

/// Why nothing of an earlier incarnation can write on one place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Proof {
    /// It never ran anywhere.
    NeverRan,
    /// The host's agent, which sees everything there, says that it does not run there.
    HostSaysGone(HostId),
    /// It was fenced there; or the policy lets it start without proof, as the outcome says.
    Fenced {
        /// Where it ran.
        host: HostId,
        /// How it was fenced.
        outcome: FenceOutcome,
    },
}

/// One place on which nothing of a VM's earlier incarnations can write, and the evidence for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cleared {
    vm: VmId,
    host: HostId,
    proof: Proof,
    evidence: Vec<Evidence>,
}

impl Cleared {
    pub(in crate::fence) fn new(vm: VmId, host: HostId, proof: Proof, evidence: Vec<Evidence>) -> Cleared {
        Cleared { vm, host, proof, evidence }
    }

    /// What a host's own agent said, which voided every order given so far before it looked.
    ///
    /// # Errors
    /// `SYS.1006` with the reason `blind` if it could not have seen everything, and for a list that has the VM.
    pub fn by_listing(vm: VmId, host: HostId, reply: &ListVmsReply) -> Result<Cleared> {
        let word = |reason: UnknownReason| serde_json::to_value(reason).unwrap_or_default();
        if let Some(there) = reply.vms.iter().find(|writer| writer.vm_uuid == vm && writer.stranger.is_none()) {
            return Err(ErrorCode::new(Code::CHANGE_STATE, format!("process {} of it is there", there.pid)));
        }
        if !reply.sight.is_full() && !sabotage::on(Sabotage::BlindIsFull) {
            let details = format!("its agent does not see everything there: {}", reply.sight);
            let blind = word(UnknownReason::Blind);
            return Err(ErrorCode::new(Code::OPERATION, details).with("reason", blind.as_str().unwrap_or_default()));
        }
        let evidence = Evidence {
            host_uuid: host,
            source: Source::Agent,
            verdict: Verdict::Dead,
            unknown: None,
            by: None,
            machine: Some(reply.machine.clone()),
            sight: Some(reply.sight.clone()),
            after_ms: 0,
            said: "it does not run here, and orders to start it are void".to_owned(),
        };
        Ok(Cleared { vm, host, proof: Proof::HostSaysGone(host), evidence: vec![evidence] })
    }

    /// The place.
    pub fn host(&self) -> HostId {
        self.host
    }
}

/// That an attempt ended well: nobody else has a volume open, and its place, if it had one, is clear.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Passed {
    pub(in crate::fence) vm: VmId,
    pub(in crate::fence) cleared: Option<Cleared>,
}

/// Which start a permit is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Start {
    /// The VM.
    pub vm: VmId,
    /// Where it is to be started.
    pub target: HostId,
    /// Which start it is.
    pub incarnation: u64,
    /// The controller's term of office.
    pub epoch: u64,
}

/// The right to start a VM; see the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StartPermit {
    vm: VmId,
    host: HostId,
    incarnation: u64,
    epoch: u64,
    proofs: Vec<Proof>,
    evidence: Vec<Evidence>,
    expires: Instant,
}

impl StartPermit {
    /// The permit for a start, once every place that may run the VM is clear.
    ///
    /// # Errors
    /// `HOST.1005` naming the first place that nothing proves clear, or if nobody looked at the watchers.
    pub fn earned(
        start: Start,
        places: &[HostId],
        cleared: Vec<Cleared>,
        passed: Vec<Passed>,
        now: Instant,
    ) -> Result<StartPermit> {
        let Start { vm, target, incarnation, epoch } = start;
        let looked = passed.iter().any(|passed| passed.vm == vm);
        let cleared: Vec<Cleared> =
            cleared.into_iter().chain(passed.into_iter().filter_map(|passed| passed.cleared)).collect();
        let is_clear = |host: &HostId| cleared.iter().any(|of| of.vm == vm && of.host == *host);
        let unproven = places.iter().chain([&target]).find(|host| !is_clear(host));
        if !looked {
            return Err(ErrorCode::new(Code::HOST_START_VM, "nobody looked who has its volumes open"));
        }
        if let Some(host) = unproven.filter(|_| !sabotage::on(Sabotage::SilentIsClear)) {
            let details = format!("nothing proves that it does not run on {host}");
            return Err(ErrorCode::new(Code::HOST_START_VM, details));
        }
        // The target is a place, too; where the VM ran says more about why it may start.
        let mut proofs: Vec<Proof> =
            cleared.iter().filter(|of| places.contains(&of.host)).map(|of| of.proof.clone()).collect();
        if places.is_empty() {
            proofs.push(Proof::NeverRan);
        }
        proofs.sort_by_key(|proof| !matches!(proof, Proof::Fenced { .. }));
        let evidence = cleared.into_iter().flat_map(|of| of.evidence).collect();
        let expires = now + PERMIT_VALIDITY;
        Ok(StartPermit { vm, host: target, incarnation, epoch, proofs, evidence, expires })
    }

    /// Which start of the VM it is for.
    pub fn incarnation(&self) -> u64 {
        self.incarnation
    }

    /// The controller's term of office that it was made in.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Why it was given, place by place; fenced places first.
    pub fn proofs(&self) -> &[Proof] {
        &self.proofs
    }

    /// What was found, look by look, on every place.
    pub fn evidence(&self) -> &[Evidence] {
        &self.evidence
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
        let StartVmCmd { vm_uuid: vm, incarnation, epoch, .. } = *cmd;
        let (proofs, evidence) = (vec![Proof::NeverRan], Vec::new());
        StartPermit { vm, host, incarnation, epoch, proofs, evidence, expires: now + PERMIT_VALIDITY }
    }
}

impl Proof {
    /// The host that was fenced, if one was.
    pub fn fenced(&self) -> Option<HostId> {
        if let Proof::Fenced { host, .. } = self { Some(*host) } else { None }
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
