//! The right to start one incarnation of a VM on one host (I1).
//!
//! Invariants: only the fence makes one, from evidence. It has the evidence of every host that may run the VM, the
//! target included, and of the last check of its watchers. It is valid for one VM, host, incarnation and epoch, and
//! it expires. [`HostAgentPort::start_vm`](crate::ports::HostAgentPort::start_vm) takes one, so no code can start a
//! VM without it. It never leaves the process: the command that is sent carries incarnation and epoch, and the agent
//! rejects stale ones.
//! Alternatives considered: a permit that can be decoded from bytes (any client that can write bytes could make one),
//! and one with the proof of the last host alone (a claim of another host would hide the first one).
//!
//! ```compile_fail
//! // Code outside the fence cannot make a permit.
//! let permit = ringfence_actors::fence::StartPermit { ..todo!() };
//! ```
//! ```compile_fail
//! // Code outside the fence cannot declare a host clear.
//! let cleared = ringfence_actors::fence::Cleared { ..todo!() };
//! ```

use std::{
    fmt,
    time::{Duration, Instant},
};

use crate::sabotage::{self, Sabotage};
use ringfence_messages::{
    Code, ErrorCode, HostId, Result, VmId,
    evidence::{Evidence, Source, UnknownReason, Verdict},
    fence::FenceOutcome,
    vm::{ListVmsReply, StartVmCmd},
};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de, ser};

/// Validity of a permit. Too low: a slow export of a volume outlives it. Too high: evidence grows old.
pub const PERMIT_VALIDITY: Duration = Duration::from_secs(30);

/// Why no earlier incarnation can write on one host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Proof {
    /// The VM never ran.
    NeverRan,
    /// The host's agent, with full sight, reports that the VM does not run there.
    HostSaysGone(HostId),
    /// Fenced there; or the policy permits a start without proof, as the outcome shows.
    Fenced {
        /// The fenced host.
        host: HostId,
        /// Outcome of the fence.
        outcome: FenceOutcome,
    },
}

/// One host on which no earlier incarnation of a VM can write, with the evidence.
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

    /// Reads the list of a host's own agent, which voided every earlier start command before it was made.
    ///
    /// # Errors
    /// `SYS.1006` with the reason `blind` if the list was made without full sight, and for a list with the VM.
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
            said: "the VM does not run here; earlier start commands are void".to_owned(),
        };
        Ok(Cleared { vm, host, proof: Proof::HostSaysGone(host), evidence: vec![evidence] })
    }

    /// The cleared host.
    pub fn host(&self) -> HostId {
        self.host
    }
}

/// Proof that an attempt passed: no other client has a volume open, and its host, if it had one, is clear.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Passed {
    pub(in crate::fence) vm: VmId,
    pub(in crate::fence) cleared: Option<Cleared>,
}

/// The start that a permit is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Start {
    /// The VM.
    pub vm: VmId,
    /// Target host.
    pub target: HostId,
    /// Incarnation of the start.
    pub incarnation: u64,
    /// Epoch of the controller.
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
    /// The permit for a start, once every host that may run the VM is clear.
    ///
    /// # Errors
    /// `HOST.1005` with the first host that is not proven clear, or if the watchers were not checked.
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
        let is_clear = |host: &HostId| cleared.iter().any(|proven| proven.vm == vm && proven.host == *host);
        let unproven = places.iter().chain([&target]).find(|host| !is_clear(host));
        if !looked {
            return Err(ErrorCode::new(Code::HOST_START_VM, "the watchers of its volumes were not checked"));
        }
        if let Some(host) = unproven.filter(|_| !sabotage::on(Sabotage::SilentIsClear)) {
            let details = format!("no evidence proves that the VM does not run on {host}");
            return Err(ErrorCode::new(Code::HOST_START_VM, details));
        }
        // The target may run the VM too; the proof of its last host explains more.
        let mut proofs: Vec<Proof> =
            cleared.iter().filter(|proven| places.contains(&proven.host)).map(|proven| proven.proof.clone()).collect();
        if places.is_empty() {
            proofs.push(Proof::NeverRan);
        }
        proofs.sort_by_key(|proof| !matches!(proof, Proof::Fenced { .. }));
        let evidence = cleared.into_iter().flat_map(|proven| proven.evidence).collect();
        let expires = now + PERMIT_VALIDITY;
        Ok(StartPermit { vm, host: target, incarnation, epoch, proofs, evidence, expires })
    }

    /// Incarnation of the start.
    pub fn incarnation(&self) -> u64 {
        self.incarnation
    }

    /// Epoch of the controller that made it.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// One proof for each host; fenced hosts first.
    pub fn proofs(&self) -> &[Proof] {
        &self.proofs
    }

    /// All evidence of all hosts.
    pub fn evidence(&self) -> &[Evidence] {
        &self.evidence
    }

    /// Remaining validity; `None` after expiry.
    pub fn left(&self, now: Instant) -> Option<Duration> {
        if sabotage::on(Sabotage::PermitNeverExpires) {
            return Some(PERMIT_VALIDITY);
        }
        self.expires.checked_duration_since(now).filter(|left| !left.is_zero())
    }

    /// Whether it permits this command on this host.
    pub fn covers(&self, host: HostId, cmd: &StartVmCmd) -> bool {
        (self.vm, self.host, self.incarnation, self.epoch) == (cmd.vm_uuid, host, cmd.incarnation, cmd.epoch)
    }

    /// A permit for tests.
    #[cfg(any(test, feature = "testkit"))]
    pub fn for_test(host: HostId, cmd: &StartVmCmd, now: Instant) -> StartPermit {
        let StartVmCmd { vm_uuid: vm, incarnation, epoch, .. } = *cmd;
        let (proofs, evidence) = (vec![Proof::NeverRan], Vec::new());
        StartPermit { vm, host, incarnation, epoch, proofs, evidence, expires: now + PERMIT_VALIDITY }
    }
}

impl Proof {
    /// The fenced host, if one was fenced.
    pub fn fenced(&self) -> Option<HostId> {
        if let Proof::Fenced { host, .. } = self { Some(*host) } else { None }
    }
}

impl fmt::Display for Proof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Proof::NeverRan => f.write_str("the VM never ran"),
            Proof::HostSaysGone(_) => f.write_str("its last host reports that it does not run there"),
            Proof::Fenced { outcome, .. } => write!(f, "fenced on its last host: {outcome}"),
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

#[cfg(test)]
mod tests {
    use ringfence_messages::{evidence::Sight, vm::RunningVm};

    use super::*;
    use crate::testkit::list;

    fn host(name: &str) -> HostId {
        HostId::from_name(name)
    }

    fn vm(name: &str) -> VmId {
        VmId::from_name(name)
    }

    /// The start of `vm1` on `b`.
    fn start() -> Start {
        Start { vm: vm("vm1"), target: host("b"), incarnation: 2, epoch: 7 }
    }

    /// The host lists no process of the VM.
    fn clear(of: &str, at: &str) -> Cleared {
        Cleared::by_listing(vm(of), host(at), &list(Vec::new())).unwrap()
    }

    /// The watchers of the VM's volumes were checked, after a fence of this host if there is one.
    fn passed(of: &str, fenced: Option<&str>) -> Passed {
        let cleared = fenced.map(|at| {
            let proof = Proof::Fenced { host: host(at), outcome: FenceOutcome::SuccessKilled };
            Cleared::new(vm(of), host(at), proof, Vec::new())
        });
        Passed { vm: vm(of), cleared }
    }

    #[test]
    fn list_with_the_vm_clears_nothing() {
        let of = |vms| Cleared::by_listing(vm("vm1"), host("a"), &list(vms));
        let process = |name: &str| RunningVm::qemu(vm(name), 9);
        assert!(of(vec![process("vm2"), process("vm1")]).unwrap_err().details.contains("process 9 of it is there"));
        let stranger = RunningVm { stranger: Some("of user nobody".to_owned()), ..process("vm1") };
        assert_eq!(of(vec![process("vm2"), stranger]).unwrap().host(), host("a"));
        let blind = ListVmsReply { sight: Sight { euid: 1000, ..Sight::full() }, ..list(Vec::new()) };
        let refused = Cleared::by_listing(vm("vm1"), host("a"), &blind).unwrap_err();
        assert_eq!(refused.opaque.get("reason").map(String::as_str), Some("blind"));
    }

    /// I1: evidence of another VM or another host is none.
    #[test]
    fn permit_needs_evidence_of_this_vm_from_every_host() {
        let now = Instant::now();
        let earned = |cleared: Vec<Cleared>, passed| {
            StartPermit::earned(start(), &[host("a"), host("c")], cleared, passed, now).map_err(|error| error.details)
        };
        let checked = || vec![passed("vm1", None)];
        let all = || ["a", "b", "c"].map(|at| clear("vm1", at)).to_vec();
        assert!(earned(all(), checked()).is_ok());
        for (missing, name) in ["a", "b", "c"].into_iter().enumerate() {
            for instead in [vec![], vec![clear("vm2", name)], vec![clear("vm1", "d")]] {
                let mut cleared = all();
                cleared.splice(missing..=missing, instead);
                let expected = format!("no evidence proves that the VM does not run on {}", host(name));
                assert_eq!(earned(cleared, checked()), Err(expected));
            }
        }
        for unchecked in [Vec::new(), vec![passed("vm2", None)]] {
            let expected = "the watchers of its volumes were not checked".to_owned();
            assert_eq!(earned(all(), unchecked), Err(expected));
        }
    }

    #[test]
    fn permit_lists_fenced_hosts_first_and_all_evidence() {
        let cleared = vec![clear("vm1", "a"), clear("vm1", "b")];
        let passed = vec![passed("vm1", Some("c"))];
        let permit = StartPermit::earned(start(), &[host("a"), host("c")], cleared, passed, Instant::now()).unwrap();
        let fenced = Proof::Fenced { host: host("c"), outcome: FenceOutcome::SuccessKilled };
        assert_eq!(permit.proofs(), [fenced, Proof::HostSaysGone(host("a"))]);
        let fenced: Vec<_> = permit.proofs().iter().map(Proof::fenced).collect();
        assert_eq!(fenced, [Some(host("c")), None]);
        let evidence: Vec<_> = permit.evidence().iter().map(|of| (of.host_uuid, of.verdict)).collect();
        assert_eq!(evidence, [(host("a"), Verdict::Dead), (host("b"), Verdict::Dead)]);
    }

    #[test]
    fn permit_covers_one_start_until_it_expires() {
        let now = Instant::now();
        let permit =
            StartPermit::earned(start(), &[], vec![clear("vm1", "b")], vec![passed("vm1", None)], now).unwrap();
        assert_eq!(permit.proofs(), [Proof::NeverRan]);
        assert_eq!((permit.incarnation(), permit.epoch()), (2, 7));
        let cmd = StartVmCmd {
            vm_uuid: vm("vm1"),
            name: "vm1".to_owned(),
            incarnation: 2,
            epoch: 7,
            not_after_ms: 0,
            memory_mib: 16,
            disks: Vec::new(),
            qemu_args: Vec::new(),
            libvirt_xml: None,
            head: None,
        };
        assert!(permit.covers(host("b"), &cmd));
        assert!(!permit.covers(host("a"), &cmd));
        for other in [
            StartVmCmd { vm_uuid: vm("vm2"), ..cmd.clone() },
            StartVmCmd { incarnation: 3, ..cmd.clone() },
            StartVmCmd { epoch: 8, ..cmd },
        ] {
            assert!(!permit.covers(host("b"), &other), "{other:?}");
        }
        assert_eq!(permit.left(now + Duration::from_secs(29)), Some(Duration::from_secs(1)));
        assert_eq!(permit.left(now + PERMIT_VALIDITY), None);
    }
}
