//! The narrow traits through which the actors reach the world. `drivers` and `sim` implement them.
//!
//! Invariants: every call is bounded by its [`Call::timeout`]. A timeout, a rejection and a malformed answer are
//! errors with their reason, never a made-up answer. A call repeated with the same [`Call::task`] is carried out
//! once.
//! Alternatives considered: one `post(path, json)` method. It would move the protocol's types into every
//! implementation.

use std::{
    collections::{BTreeSet, VecDeque},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use ringfence_messages::{
    Code, ErrorCode, Event, HostId, Result, StorageId,
    agent::Done,
    ceph::Watcher,
    fence::{SiblingFenceVmCmd, SiblingFenceVmOnHostReply},
    ha::{ScanHostCmd, ScanHostCmdReply},
    host::{HostFactsCmd, HostFactsReply, HostPingReply},
    journal::JournalHead,
    vhost::{
        CreateVhostBdevCmd, CreateVhostBdevReply, DeleteVhostBdevCmd, DeployVhostCmd, DeployVhostReply,
        PrepareVhostTargetEnvCmd, PrepareVhostTargetEnvReply, VhostTargetHealthCmd, VhostTargetHealthReply,
    },
    vm::{ListVmsCmd, ListVmsReply, StartVmCmd, StartVmCmdReply, StopVmCmd},
    zbs::CheckHostConnectionReply,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use uuid::Uuid;

use crate::fence::StartPermit;

/// Task id and time limit of one call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Call {
    /// Id of the task, so that a repeat is recognised.
    pub task: Uuid,
    /// Time limit; the call then fails with `SYS.1001`.
    pub timeout: Duration,
}

impl Call {
    /// A new task that takes at most `timeout`.
    pub fn within(timeout: Duration) -> Call {
        Call { task: Uuid::new_v4(), timeout }
    }
}

/// The agents of all hosts. Every method fails with `SYS.1001` (timeout), `HOST.1010` (not reachable), `SYS.1015` (a
/// malformed answer) or the agent's own error.
#[async_trait]
pub trait HostAgentPort: Send + Sync {
    /// Pings the agent and reports how far the journal is. The caller compares the uuid in the reply.
    async fn ping(&self, host: HostId, head: Option<JournalHead>, call: Call) -> Result<HostPingReply>;
    /// Capacity of the host.
    async fn facts(&self, host: HostId, cmd: HostFactsCmd, call: Call) -> Result<HostFactsReply>;
    /// Prepares hugepages and docker.
    async fn prepare_vhost_target_env(
        &self,
        host: HostId,
        cmd: PrepareVhostTargetEnvCmd,
        call: Call,
    ) -> Result<PrepareVhostTargetEnvReply>;
    /// Starts or restarts the vhost target.
    async fn deploy_vhost(&self, host: HostId, cmd: DeployVhostCmd, call: Call) -> Result<DeployVhostReply>;
    /// Whether the vhost target runs.
    async fn vhost_health(&self, host: HostId, cmd: VhostTargetHealthCmd, call: Call)
    -> Result<VhostTargetHealthReply>;
    /// Exports a volume.
    async fn create_vhost_bdev(
        &self,
        host: HostId,
        cmd: CreateVhostBdevCmd,
        call: Call,
    ) -> Result<CreateVhostBdevReply>;
    /// Ends an export.
    async fn delete_vhost_bdev(&self, host: HostId, cmd: DeleteVhostBdevCmd, call: Call) -> Result<Done>;
    /// Starts a VM, with a permit that covers the command (I1).
    async fn start_vm(
        &self,
        host: HostId,
        permit: &StartPermit,
        cmd: StartVmCmd,
        call: Call,
    ) -> Result<StartVmCmdReply>;
    /// Stops a VM; success means verified gone.
    async fn stop_vm(&self, host: HostId, cmd: StopVmCmd, call: Call) -> Result<Done>;
    /// Lists the QEMU processes of the host.
    async fn list_vms(&self, host: HostId, cmd: ListVmsCmd, call: Call) -> Result<ListVmsReply>;
    /// Makes this host verify over SSH that a VM does not run on a failed sibling host, and kill it there if it does.
    async fn sibling_fence(
        &self,
        host: HostId,
        cmd: SiblingFenceVmCmd,
        call: Call,
    ) -> Result<SiblingFenceVmOnHostReply>;
    /// Makes this host probe another one.
    async fn scan_host(&self, host: HostId, cmd: ScanHostCmd, call: Call) -> Result<ScanHostCmdReply>;
}

/// The Ceph clusters of all Ceph storages. Every call has its own time limit; an error means "unknown".
#[async_trait]
pub trait CephPort: Send + Sync {
    /// The clients that have an image open.
    async fn watchers(&self, storage: StorageId, pool: &str, image: &str) -> Result<Vec<Watcher>>;
    /// The daemons of the cluster, and the addresses that it rejects.
    async fn map(&self, storage: StorageId) -> Result<CephMap>;
    /// Makes the cluster reject every client of an address for this time. Returns the epoch of the OSD map in which
    /// the entry was read back.
    async fn block(&self, storage: StorageId, ip: IpAddr, lasting: Duration) -> Result<u64>;
    /// Removes the blocklist entry of an address. Returns the epoch in which the removal was read back.
    async fn unblock(&self, storage: StorageId, ip: IpAddr) -> Result<u64>;
}

/// The state of a cluster that a fence needs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CephMap {
    /// Epoch of the OSD map.
    pub epoch: u64,
    /// Addresses of which every client is rejected.
    pub blocked: BTreeSet<IpAddr>,
    /// Addresses rejected by an entry of another form than a fence's; such an entry expires on its own.
    pub blocked_otherwise: BTreeSet<IpAddr>,
    /// The addresses of the daemons, such as `("osd.0", 10.77.0.2)`.
    pub daemons: Vec<(String, IpAddr)>,
}

/// Leadership. One controller at a time has the highest epoch; agents reject commands of a lower one.
#[async_trait]
pub trait LeadershipPort: Send + Sync {
    /// Becomes the leader: an epoch above every earlier one and above `above`, durable when it returns.
    ///
    /// # Errors
    /// Another controller is the leader, or the epoch cannot be made durable: this controller must then send no
    /// command.
    async fn acquire(&self, above: u64) -> Result<u64>;
    /// Whether this controller is still the leader. Checked before every permit.
    fn leads(&self) -> bool;
}

/// The MDS agents of all ZBS storages. The implementation fails over between the MDS agents of a storage and has the
/// SSH credentials of the hosts, which are therefore no arguments. Errors as in [`HostAgentPort`].
#[async_trait]
pub trait MdsPort: Send + Sync {
    /// Installs the ZBS client on a host.
    async fn deploy_client(&self, storage: StorageId, host: HostId, call: Call) -> Result<Done>;
    /// Updates the dependencies of the client on the host.
    async fn update_host_dependency(&self, storage: StorageId, host: HostId, call: Call) -> Result<Done>;
    /// Puts a vhost target on the host.
    async fn deploy_vhost(&self, storage: StorageId, host: HostId, call: Call) -> Result<Done>;
    /// Whether the host reaches the storage by CBD.
    async fn check_host_connection(
        &self,
        storage: StorageId,
        host: HostId,
        call: Call,
    ) -> Result<CheckHostConnectionReply>;
    /// Exports `pool/volume` as `bdev_name` through the host's target.
    async fn create_vhost_bdev(
        &self,
        storage: StorageId,
        host: HostId,
        pool: &str,
        volume: &str,
        bdev_name: &str,
        call: Call,
    ) -> Result<CreateVhostBdevReply>;
    /// Ends the export `bdev_name` of the host's target.
    async fn delete_vhost_bdev(&self, storage: StorageId, host: HostId, bdev_name: &str, call: Call) -> Result<Done>;
}

/// A record to append.
#[derive(Clone, Debug, PartialEq)]
pub struct NewRecord {
    /// The event's topic.
    pub topic: String,
    /// The item that the event is about.
    pub subject: String,
    /// The event as a JSON object.
    pub payload: Value,
    /// How long ago it happened: an event that waited for a full disk keeps its own time.
    pub waited: Duration,
}

impl NewRecord {
    /// The record of an event that happens now.
    ///
    /// # Errors
    /// `SYS.1000` if the event does not encode as JSON.
    pub fn of<E: Event>(event: &E) -> Result<NewRecord> {
        let encoded = serde_json::to_value(event);
        let payload = encoded
            .map_err(|e| ErrorCode::new(Code::INTERNAL, format!("{} does not encode as JSON: {e}", E::TOPIC)))?;
        let (topic, subject) = (E::TOPIC.to_owned(), event.subject());
        Ok(NewRecord { topic, subject, payload, waited: Duration::ZERO })
    }
}

/// A record of the journal.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct Record {
    /// From 1, without gaps.
    pub seq: u64,
    /// When it happened, not when it could be written: RFC 3339 in UTC with milliseconds.
    pub time: String,
    /// The event's topic.
    pub topic: String,
    /// What it is about.
    pub subject: String,
    /// The event as a JSON object.
    pub payload: Value,
    /// SHA-256 over the previous record's hash and this record, in hex.
    pub hash: String,
}

impl Record {
    /// Decodes the event.
    ///
    /// # Errors
    /// `SYS.1016` if the payload is not such an event: another version wrote it, or it is damaged.
    pub fn event<E: Event>(&self) -> Result<E> {
        E::deserialize(&self.payload).map_err(|e| {
            ErrorCode::new(Code::IO, format!("journal record {} is not a valid {} event: {e}", self.seq, E::TOPIC))
        })
    }
}

/// Most records of one [`JournalPort::read`]. Too low: many round trips. Too high: one reader holds that much memory.
pub const MAX_READ: usize = 1000;

/// The largest payload of a record as JSON text, 64 KiB. Too low: a deploy's steps do not fit. Too high: one
/// event fills the memory of every reader.
pub const MAX_PAYLOAD_BYTES: usize = 64 << 10;

/// The durable, hash-chained log of intents and events.
#[async_trait]
pub trait JournalPort: Send + Sync {
    /// Appends in order, all or none. Durable (synced to disk) when it returns. Only the audit appends, one append at
    /// a time.
    ///
    /// # Errors
    /// `SYS.1016` if it cannot be written; nothing was recorded.
    async fn append(&self, records: Vec<NewRecord>) -> Result<Vec<Record>>;
    /// The records after `after` in order, at most `limit` and [`MAX_READ`].
    async fn read(&self, after: u64, limit: usize) -> Result<Vec<Record>>;
    /// The newest record of each subject of a topic, ordered by `seq`: the current state of the topic.
    async fn latest(&self, topic: &str) -> Result<Vec<Record>>;
    /// The hash of the first record, and the newest one's `seq`; `None` if there are none.
    async fn ends(&self) -> Result<Option<(String, u64)>> {
        let first = self.read(0, 1).await?.pop();
        let newest = self.newest(None, 1).await?.pop();
        Ok(first.zip(newest).map(|(first, newest)| (first.hash, newest.seq)))
    }
    /// The newest record of one subject of a topic.
    async fn latest_of(&self, topic: &str, subject: &str) -> Result<Option<Record>> {
        Ok(self.latest(topic).await?.into_iter().find(|record| record.subject == subject))
    }
    /// The newest records, the oldest of them first, at most `limit` and [`MAX_READ`]: of these topics about one
    /// subject, or of all. Unless overridden it reads everything.
    async fn newest(&self, filter: Option<(&[&str], &str)>, limit: usize) -> Result<Vec<Record>> {
        let (limit, mut after, mut newest) = (limit.min(MAX_READ), 0, VecDeque::new());
        loop {
            let page = self.read(after, MAX_READ).await?;
            let (last, more) = (page.last().map_or(after, |record| record.seq), page.len() == MAX_READ);
            let wanted = |record: &Record| {
                filter.is_none_or(|(topics, subject)| {
                    record.subject == subject && topics.contains(&record.topic.as_str())
                })
            };
            newest.extend(page.into_iter().filter(wanted));
            newest.drain(..newest.len().saturating_sub(limit));
            if !more {
                return Ok(newest.into());
            }
            after = last;
        }
    }
}

/// Every way out of the actors.
#[derive(Clone)]
pub struct Ports {
    /// The host agents.
    pub agents: Arc<dyn HostAgentPort>,
    /// The ZBS MDS agents.
    pub mds: Arc<dyn MdsPort>,
    /// The Ceph clusters.
    pub ceph: Arc<dyn CephPort>,
    /// Leadership.
    pub leadership: Arc<dyn LeadershipPort>,
    /// The journal.
    pub journal: Arc<dyn JournalPort>,
}
