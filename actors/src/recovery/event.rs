//! Input and output of the recovery core.

use ringfence_messages::{
    HostId, Protocol, Result, StorageId,
    ha::HostSuspected,
    host::{HostState, HostStateChanged, HostStatusChanged, PingHostReply},
    storage::{CheckHostHealthReply, ProtocolStatusChanged, StorageHostStatusChanged},
};

/// Input of the core.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// The time of [`Core::next_wakeup`](super::core::Core::next_wakeup) has come.
    Tick,
    /// A ping ended.
    PingDone {
        /// The host.
        host: HostId,
        /// As in the command.
        generation: u32,
        /// Result; a ping that could not be sent is a failed one.
        reply: PingHostReply,
    },
    /// A health check ended.
    HealthDone {
        /// The host.
        host: HostId,
        /// As in the command.
        generation: u32,
        /// The storage.
        storage: StorageId,
        /// Result, or why the check failed.
        result: Result<CheckHostHealthReply>,
    },
    /// A redeploy ended, successful or not.
    DeployDone {
        /// The host.
        host: HostId,
        /// The storage.
        storage: StorageId,
        /// The protocol.
        protocol: Protocol,
    },
    /// An operator requested this state of a host.
    SetState {
        /// The host.
        host: HostId,
        /// The requested state.
        state: HostState,
        /// HA moves its VMs elsewhere; the recovery core only passes it on.
        draining: bool,
    },
    /// Begins or ends the quarantine of a host.
    SetQuarantine {
        /// The host.
        host: HostId,
        /// The reason; `None` ends it.
        reason: Option<String>,
    },
    /// A change that takes a host out of service is being recorded, or its record is durable or has failed.
    Withdrawing {
        /// The host.
        host: HostId,
        /// Whether it begins or ends.
        begins: bool,
    },
    /// A host rebooted, or its machine was replaced: its earlier failures no longer count.
    Booted {
        /// The host.
        host: HostId,
    },
    /// An operator requested a ping.
    PingNow {
        /// The host.
        host: HostId,
    },
}

/// Output of the core.
#[derive(Clone, Debug, PartialEq)]
pub enum Command {
    /// Ping the host once and report [`Event::PingDone`].
    Ping {
        /// The host.
        host: HostId,
        /// Returned with the result.
        generation: u32,
    },
    /// Check the storage's health on the host and report [`Event::HealthDone`].
    CheckHealth {
        /// The host.
        host: HostId,
        /// Returned with the result.
        generation: u32,
        /// The storage.
        storage: StorageId,
    },
    /// Redeploy the protocol on the host and report [`Event::DeployDone`].
    Deploy {
        /// The host.
        host: HostId,
        /// The storage.
        storage: StorageId,
        /// The protocol.
        protocol: Protocol,
        /// Number of the redeploy in this outage, from 1.
        attempt: u32,
        /// Pings skipped since the previous one.
        skipped_pings: u32,
    },
    /// Record and publish an event.
    Emit(HostEvent),
}

/// An event for the journal and the bus.
#[derive(Clone, Debug, PartialEq)]
pub enum HostEvent {
    /// A ping of a host failed after a success.
    Suspected(HostSuspected),
    /// A host's status.
    HostStatus(HostStatusChanged),
    /// The requested state of a host.
    HostState(HostStateChanged),
    /// The status of one protocol.
    ProtocolStatus(ProtocolStatusChanged),
    /// The status of a storage on a host.
    StorageHostStatus(StorageHostStatusChanged),
}
