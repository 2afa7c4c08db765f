//! Input and output of the VM's core.

use std::sync::Arc;

use ringfence_messages::{
    HostId, Result,
    evidence::Machine,
    ha::TargetReply,
    host::HostStatus,
    vm::{DiskSource, IntruderPhase, ListVmsReply, StartVmCmd, StartVmCmdReply, VmState},
};
use uuid::Uuid;

use crate::fence::{
    StartPermit,
    attempt::{self, FenceRequest},
};

/// Input of the core.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// Start the VM.
    Start(StartRequest),
    /// Stop the VM.
    Stop,
    /// This host is drained: stop the VM if it runs there; its desired state stays.
    Evict(HostId),
    /// The target host and the unreachable hosts where the VM may run; reply to [`Command::FindTarget`].
    TargetFound(Result<Found>),
    /// Event of the attempt in progress.
    Fence(attempt::Event),
    /// This host may run the VM, or the VM is missing on its own host.
    LookFor(Option<HostId>),
    /// The QEMU processes of a host; reply to [`Command::Search`].
    Searched(HostId, Result<ListVmsReply>),
    /// Whether the intent is durable.
    Recorded(Result<()>),
    /// How the volume of this index is opened on the host; reply to [`Command::Export`].
    Exported(usize, Result<DiskSource>),
    /// Result of [`Command::Launch`].
    Launched(Result<StartVmCmdReply>),
    /// Result of [`Command::Halt`]; success means verified gone.
    Halted(Result<()>),
    /// State replayed from the journal; `None` if the VM never ran. Nothing happens before.
    Replayed(Option<ReplayedState>),
    /// A host's status changed.
    HostChanged(HostId, HostStatus),
    /// A host is removed from the inventory, with nothing of the VM left there: it was queried or attested off.
    HostGone(HostId),
}

/// The result of the target query.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Found {
    /// Target host and related hosts.
    pub target: TargetReply,
    /// Hosts where the VM may run that cannot be queried.
    pub places: Vec<UnreachableHost>,
}

/// What the journal has about a host that cannot be queried.
#[derive(Clone, Debug, PartialEq)]
pub struct UnreachableHost {
    /// The host.
    pub host: HostId,
    /// The operator who attested that the host is off, if the attestation holds.
    pub attested_by: Option<String>,
    /// The machine of the host at its last answer.
    pub machine: Machine,
}

/// A request to start the VM.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StartRequest {
    /// Required target; any host of the cluster if `None`.
    pub host: Option<HostId>,
    /// Whether hosts that cannot be queried are fenced.
    pub ha: bool,
    /// Hosts to avoid if another one has room.
    pub soft_avoid: Vec<HostId>,
    /// Id of the fence attempt, if one is needed.
    pub attempt: Uuid,
    /// Reason for readers.
    pub reason: String,
}

/// The newest state of a VM in the journal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplayedState {
    /// Observed state.
    pub state: VmState,
    /// Host of that state.
    pub host: Option<HostId>,
    /// Incarnation.
    pub incarnation: u64,
    /// Whether the desired state is running.
    pub wanted: bool,
    /// Other hosts where the VM may run.
    pub may_run_on: Vec<HostId>,
}

/// Output of the core. A launch is rare: that it is larger than the rest costs nothing.
#[allow(clippy::large_enum_variant)]
#[derive(Clone, Debug, PartialEq)]
pub enum Command {
    /// Query a target host: this one, or any but those.
    FindTarget(Option<HostId>, Vec<HostId>),
    /// Query the QEMU processes of a host, and void every earlier start command of this VM there.
    Search(HostId),
    /// Make the change durable before the act.
    Intend(StateChange),
    /// Export the volume of this index on the host.
    Export(HostId, usize),
    /// Carry out a command of the attempt for this request.
    Fence(Arc<FenceRequest>, attempt::Command),
    /// Start QEMU on the host.
    Launch(HostId, StartPermit, StartVmCmd),
    /// Stop QEMU and the exports of the VM on the host.
    Halt(HostId),
    /// A QEMU runs where it does not belong; [`IntruderPhase::EndIntended`] is durable before the act.
    Intruder(HostId, IntruderPhase, String),
    /// Record and publish a change that has happened.
    Emit(StateChange),
    /// Answer the requester.
    Reply(Result<()>),
}

/// A change of state.
#[derive(Clone, Debug, PartialEq)]
pub struct StateChange {
    /// State before.
    pub old: VmState,
    /// State after.
    pub new: VmState,
    /// Host of the new state.
    pub host: Option<HostId>,
    /// Incarnation.
    pub incarnation: u64,
    /// Whether the desired state is running.
    pub wanted: bool,
    /// Reason for readers.
    pub reason: String,
    /// Other hosts where the VM may run.
    pub may_run_on: Vec<HostId>,
}
