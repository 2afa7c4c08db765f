//! What the core of self-heal hears, orders and tells.

use ringfence_messages::{
    HostId, Protocol, Result, StorageId,
    ha::HostSuspected,
    host::{HostState, HostStateChanged, HostStatusChanged, PingHostReply},
    storage::{CheckHostHealthReply, ProtocolStatusChanged, StorageHostStatusChanged},
};

/// What happens.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// The time that [`Core::next_wakeup`](super::core::Core::next_wakeup) gave has come.
    Tick,
    /// A ping ended.
    PingDone {
        /// The host.
        host: HostId,
        /// As in the command.
        generation: u32,
        /// What came of it; a ping that could not be sent is one that failed.
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
        /// What it found, or why it could not look.
        result: Result<CheckHostHealthReply>,
    },
    /// A redeploy ended, however.
    DeployDone {
        /// The host.
        host: HostId,
        /// The storage.
        storage: StorageId,
        /// The protocol.
        protocol: Protocol,
    },
    /// An operator wants this of a host.
    SetState {
        /// The host.
        host: HostId,
        /// What is wanted.
        state: HostState,
        /// Its VMs are to be moved elsewhere: nothing of that is done here, HA is told.
        draining: bool,
    },
    /// A host is quarantined for this reason, or not any more.
    SetQuarantine {
        /// The host.
        host: HostId,
        /// Why; `None` ends it.
        reason: Option<String>,
    },
    /// A host rebooted, or its machine was replaced: its failures were those of before.
    Booted {
        /// The host.
        host: HostId,
    },
    /// An operator wants a host pinged now.
    PingNow {
        /// The host.
        host: HostId,
    },
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq)]
pub enum Command {
    /// Ping the host once and report [`Event::PingDone`].
    Ping {
        /// The host.
        host: HostId,
        /// To be given back.
        generation: u32,
    },
    /// Check the storage's health on the host and report [`Event::HealthDone`].
    CheckHealth {
        /// The host.
        host: HostId,
        /// To be given back.
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
        /// Which redeploy of this outage, from 1.
        attempt: u32,
        /// Pings skipped since the one before.
        skipped_pings: u32,
    },
    /// Record and publish.
    Tell(Fact),
}

/// What changed.
#[derive(Clone, Debug, PartialEq)]
pub enum Fact {
    /// A try of a host's ping failed after ones that did not.
    Suspected(HostSuspected),
    /// A host's status.
    HostStatus(HostStatusChanged),
    /// What is wanted of a host.
    HostState(HostStateChanged),
    /// The status of one protocol.
    ProtocolStatus(ProtocolStatusChanged),
    /// The status of a storage on a host.
    StorageHostStatus(StorageHostStatusChanged),
}
