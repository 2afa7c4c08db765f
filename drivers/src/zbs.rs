//! Client of the MDS agents of ZBS storages.
//!
//! Invariants: a failed call is retried on the next MDS; an MDS that failed [`MAX_BAD_CYCLES`] calls in a row must
//! first answer a cheap probe; an SSH password is added to a request when it is sent, is stored nowhere else, and is
//! removed from the reply.

use std::{collections::HashMap, sync::Arc, time::Duration};

use async_trait::async_trait;
use parking_lot::{Mutex, RwLock};
use ringfence_actors::ports::{Call, MdsPort};
use ringfence_messages::{
    Code, ErrorCode, HostId, Result, StorageId,
    agent::{AgentCommand, Done},
    vhost::CreateVhostBdevReply,
    zbs::{
        CheckHostConnectionCmd, CheckHostConnectionReply, CreateVhostBdevOnHostCmd, DeleteVhostBdevOnHostCmd,
        DeployClientCmd, MdsFactsCmd, UpdateHostDependencyCmd, VhostHostCmd,
    },
};
use secrecy::{ExposeSecret, SecretString};
use serde::Serialize;
use tokio::time::Instant;

use crate::agent_client::{AgentRpc, Peer};

/// Failed calls in a row after which an MDS is probed first; ZStack reconnects after 3 too. Too low: one lost call
/// costs a probe. Too high: a dead MDS delays calls.
pub const MAX_BAD_CYCLES: u32 = 3;

/// Time limit of that probe. Too low: a busy MDS stays excluded. Too high: a dead MDS delays a call.
pub const PROBE_TIMEOUT: Duration = Duration::from_secs(5);

/// The SSH access of the MDS to a host.
pub struct HostAccess {
    /// IP address or name of the host.
    pub ip: String,
    /// SSH port.
    pub ssh_port: u16,
    /// SSH user.
    pub ssh_user: String,
    /// SSH password; `None` if the MDS has its own key.
    pub ssh_password: Option<SecretString>,
}

struct Mds {
    url: String,
    bad_cycles: u32,
}

/// The MDS agents of all ZBS storages.
pub struct ZbsClient {
    rpc: AgentRpc,
    storages: RwLock<HashMap<StorageId, Arc<Mutex<Vec<Mds>>>>>,
    hosts: RwLock<HashMap<HostId, Arc<HostAccess>>>,
}

/// A command with the password beside its fields. The only place where the secret is exposed.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct WithPassword<'a, C> {
    #[serde(flatten)]
    command: &'a C,
    #[serde(skip_serializing_if = "Option::is_none")]
    ssh_password: Option<&'a str>,
}

impl ZbsClient {
    /// A client of these MDS agents, by their base URLs in the sequence of attempts.
    ///
    /// # Errors
    /// `SYS.1000` if the HTTP client cannot be created.
    pub fn new(storages: HashMap<StorageId, Vec<String>>, hosts: HashMap<HostId, HostAccess>) -> Result<ZbsClient> {
        let client = ZbsClient { rpc: AgentRpc::new()?, storages: RwLock::default(), hosts: RwLock::default() };
        client.update(storages, hosts);
        Ok(client)
    }

    /// Adds or replaces storages and hosts.
    pub fn update(&self, storages: HashMap<StorageId, Vec<String>>, hosts: HashMap<HostId, HostAccess>) {
        let mds = |urls: Vec<String>| urls.into_iter().map(|url| Mds { url, bad_cycles: 0 }).collect();
        let storages = storages.into_iter().map(|(id, urls)| (id, Arc::new(Mutex::new(mds(urls)))));
        self.storages.write().extend(storages);
        self.hosts.write().extend(hosts.into_iter().map(|(id, access)| (id, Arc::new(access))));
    }

    fn host(&self, id: HostId) -> Result<Arc<HostAccess>> {
        let known = self.hosts.read().get(&id).cloned();
        known.ok_or_else(|| ErrorCode::new(Code::NOT_FOUND, format!("host {id} has no known SSH access")))
    }

    async fn call<C: AgentCommand>(
        &self,
        storage: StorageId,
        command: C,
        host: Option<&HostAccess>,
        call: Call,
    ) -> Result<C::Reply> {
        let Some(all) = self.storages.read().get(&storage).cloned() else {
            return Err(ErrorCode::new(Code::NOT_FOUND, format!("storage {storage} has no known MDS")));
        };
        let deadline = Instant::now() + call.timeout;
        let password = host.and_then(|host| host.ssh_password.as_ref());
        let body = WithPassword { command: &command, ssh_password: password.map(|password| password.expose_secret()) };
        // The trusted ones first; the others only after a successful probe.
        let mut order: Vec<(String, bool)> =
            all.lock().iter().map(|mds| (mds.url.clone(), mds.bad_cycles < MAX_BAD_CYCLES)).collect();
        order.sort_by_key(|(_, trusted)| !trusted);
        let mut last = ErrorCode::new(Code::OPERATION, format!("storage {storage} has no MDS"));
        let count = order.len() as u32;
        for (n, (url, trusted)) in order.into_iter().enumerate() {
            // Each gets its share of the time, so that a hung one leaves time for the others.
            let left = deadline.saturating_duration_since(Instant::now()) / (count - n as u32);
            if left.is_zero() {
                break;
            }
            if !trusted {
                let probe = Call::within(left.min(PROBE_TIMEOUT));
                if let Err(error) = self.rpc.post::<MdsFactsCmd>(&Peer::at(&url), None, &MdsFactsCmd {}, probe).await {
                    last = error;
                    continue;
                }
            }
            let mds = Peer::at(&url).given(password);
            let result = self.rpc.post::<C>(&mds, None, &body, Call { timeout: left, ..call }).await;
            let good = match &result {
                Ok(_) => true,
                // The MDS answered with an error of the storage: the MDS itself works.
                Err(error) => {
                    !(error.is(&Code::TIMEOUT) || error.is(&Code::HTTP) || error.is(&Code::HOST_DISCONNECTED))
                }
            };
            if let Some(mds) = all.lock().iter_mut().find(|mds| mds.url == url) {
                mds.bad_cycles = if good { 0 } else { mds.bad_cycles.saturating_add(1) };
            }
            match result {
                Err(error) if !good => last = error,
                settled => return settled,
            }
        }
        Err(last)
    }
}

#[async_trait]
impl MdsPort for ZbsClient {
    async fn deploy_client(&self, storage: StorageId, host: HostId, call: Call) -> Result<Done> {
        let host = self.host(host)?;
        let command = DeployClientCmd {
            client_ip: host.ip.clone(),
            ssh_port: host.ssh_port,
            ssh_username: host.ssh_user.clone(),
        };
        self.call(storage, command, Some(&host), call).await
    }

    async fn update_host_dependency(&self, storage: StorageId, host: HostId, call: Call) -> Result<Done> {
        let command = UpdateHostDependencyCmd { client_ip: self.host(host)?.ip.clone() };
        self.call(storage, command, None, call).await
    }

    async fn deploy_vhost(&self, storage: StorageId, host: HostId, call: Call) -> Result<Done> {
        let host = self.host(host)?;
        let command =
            VhostHostCmd { host_ip: host.ip.clone(), ssh_port: host.ssh_port, ssh_username: host.ssh_user.clone() };
        self.call(storage, command, Some(&host), call).await
    }

    async fn check_host_connection(
        &self,
        storage: StorageId,
        host: HostId,
        call: Call,
    ) -> Result<CheckHostConnectionReply> {
        let command = CheckHostConnectionCmd { client_ip: self.host(host)?.ip.clone() };
        self.call(storage, command, None, call).await
    }

    async fn create_vhost_bdev(
        &self,
        storage: StorageId,
        host: HostId,
        pool: &str,
        volume: &str,
        bdev_name: &str,
        call: Call,
    ) -> Result<CreateVhostBdevReply> {
        let host = self.host(host)?;
        let command = CreateVhostBdevOnHostCmd {
            host_ip: host.ip.clone(),
            ssh_port: host.ssh_port,
            ssh_username: host.ssh_user.clone(),
            logical_pool: pool.to_owned(),
            volume: volume.to_owned(),
            bdev_name: bdev_name.to_owned(),
        };
        self.call(storage, command, Some(&host), call).await
    }

    async fn delete_vhost_bdev(&self, storage: StorageId, host: HostId, bdev_name: &str, call: Call) -> Result<Done> {
        let host = self.host(host)?;
        let command = DeleteVhostBdevOnHostCmd {
            host_ip: host.ip.clone(),
            ssh_port: host.ssh_port,
            ssh_username: host.ssh_user.clone(),
            bdev_name: bdev_name.to_owned(),
        };
        self.call(storage, command, Some(&host), call).await
    }
}
