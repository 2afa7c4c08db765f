//! Manages the current inventory: reload, edits, and their application to the running actors.
//!
//! Invariants: one change at a time; a change is checked as a whole, and is applied together with its file or not at
//! all. It runs on the actors' thread, which starts new actors.

use std::{collections::HashMap, sync::Arc};

use ringfence_actors::{assembly::Assembly, diff::InventoryDiff};
use ringfence_drivers::{
    agent_client::AgentClient,
    ceph::Clusters,
    zbs::{HostAccess, ZbsClient},
};
use ringfence_messages::{Code, ErrorCode, HostId, Result};
use ringfence_service::token_file::read_token;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::{mpsc, oneshot};
use utoipa::ToSchema;

use crate::config::{self, ControllerConfig, Source, managed::Edit};

/// Largest number of queued changes. Too low: concurrent clients are rejected. Too high: clients have timed out
/// before their change is applied.
const MAX_WAITING: usize = 16;

/// A request to the inventory manager.
#[derive(Clone, Debug)]
pub enum Order {
    /// Return the current inventory, and which items the API may change.
    Show,
    /// Reload the files.
    Reload,
    /// Add, replace and remove items.
    Edit(Edit),
}

/// Result of a change.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Outcome {
    /// Whether the change is applied; false for a dry run.
    pub applied: bool,
    /// The changes, one line each: `+ host host-d`, `~ VM vm1: memory_mib: 512 -> 1024`, `- storage old`.
    pub changes: Vec<String>,
    /// Changed tables of the config file that take effect after a restart.
    pub need_restart: Vec<String>,
}

struct Asked {
    order: Order,
    by: String,
    dry_run: bool,
    reply: oneshot::Sender<Result<Value>>,
}

/// Handle of the inventory manager.
#[derive(Clone)]
pub(crate) struct Inventory(mpsc::Sender<Asked>);

impl Inventory {
    /// Carries out a request.
    ///
    /// # Errors
    /// The reason for a rejection; nothing was changed.
    pub(crate) async fn ask(&self, order: Order, by: String, dry_run: bool) -> Result<Value> {
        let (reply, answer) = oneshot::channel();
        let busy = |_| ErrorCode::new(Code::NOT_READY, format!("{MAX_WAITING} changes are waiting; retry later"));
        self.0.try_send(Asked { order, by, dry_run, reply }).map_err(busy)?;
        answer.await.unwrap_or_else(|_| Err(ErrorCode::new(Code::NODE_UNAVAILABLE, "the controller is shutting down")))
    }
}

/// The drivers that know addresses of the inventory.
#[derive(Clone)]
pub(crate) struct Endpoints {
    pub(crate) agents: Arc<AgentClient>,
    pub(crate) mds: Arc<ZbsClient>,
    pub(crate) ceph: Arc<Clusters>,
}

impl Endpoints {
    /// Drivers for this config.
    ///
    /// # Errors
    /// A token or password file that cannot be read.
    pub(crate) fn of(config: &ControllerConfig) -> Result<Endpoints> {
        let clusters = config.ceph.iter().map(|(id, access)| (*id, access.cluster.clone())).collect();
        Ok(Endpoints {
            agents: Arc::new(agents(config)?),
            mds: Arc::new(ZbsClient::new(config.mds.clone(), hosts(config)?)?),
            ceph: Arc::new(Clusters::new(clusters)),
        })
    }

    /// Adds and changes addresses by this config.
    fn update(&self, config: &ControllerConfig) -> Result<()> {
        let hosts = hosts(config)?;
        self.agents.update(urls(config))?;
        self.mds.update(config.mds.clone(), hosts);
        self.ceph.update(config.ceph.iter().map(|(id, access)| (*id, access.cluster.clone())));
        Ok(())
    }
}

/// The client of all agents.
///
/// # Errors
/// A token, key or certificate file that cannot be used.
pub(crate) fn agents(config: &ControllerConfig) -> Result<AgentClient> {
    let token = config.agent_token_file.as_deref().map(read_token).transpose()?;
    AgentClient::with_tls(urls(config).collect(), token, config.agent_tls.clone())
}

fn urls(config: &ControllerConfig) -> impl Iterator<Item = (HostId, String)> {
    config.agents.iter().map(|(id, access)| (*id, access.url.clone()))
}

fn hosts(config: &ControllerConfig) -> Result<HashMap<HostId, HostAccess>> {
    let mut hosts = HashMap::new();
    for host in &config.inventory.hosts {
        let Some(access) = config.agents.get(&host.id) else { continue };
        let ssh_password = access.ssh_password_file.as_deref().map(read_token).transpose()?;
        let (ssh_port, ssh_user) = (access.ssh_port, access.ssh_user.clone());
        hosts.insert(host.id, HostAccess { ip: host.management_ip.clone(), ssh_port, ssh_user, ssh_password });
    }
    Ok(hosts)
}

/// Applies changes of the inventory.
struct InventoryManager {
    /// The files at the start of the controller, which reads settings only then.
    on_start: Source,
    /// The current config.
    config: ControllerConfig,
    assembly: Assembly,
    endpoints: Endpoints,
}

/// Starts the inventory manager of an assembly; it runs until its handles are dropped. Must be called inside the
/// actors' system.
pub(crate) fn spawn(config: ControllerConfig, assembly: Assembly, endpoints: Endpoints) -> Inventory {
    let (sender, mut asked) = mpsc::channel::<Asked>(MAX_WAITING);
    actix::spawn(async move {
        let mut manager = InventoryManager { on_start: config.source.clone(), config, assembly, endpoints };
        while let Some(Asked { order, by, dry_run, reply }) = asked.recv().await {
            // A client that has timed out no longer expects its change.
            if !reply.is_closed() {
                let _ = reply.send(manager.carry_out(order, &by, dry_run).await);
            }
        }
    });
    Inventory(sender)
}

impl InventoryManager {
    async fn carry_out(&mut self, order: Order, by: &str, dry_run: bool) -> Result<Value> {
        let source = &self.config.source;
        let new = match order {
            Order::Show => return source.shown(),
            Order::Reload => config::load(&source.path)?,
            Order::Edit(edit) => source.edited(&edit)?.config()?,
        };
        if new.source.managed_path != source.managed_path {
            let why = "`state_dir` changed; stop the controller, move the directory, then start it again";
            return Err(ErrorCode::new(Code::CHANGE_STATE, why));
        }
        let need_restart = self.on_start.need_restart(&new.source);
        // Before any address changes: the plan queries agents at their current addresses.
        let change = self.assembly.plan(&new.inventory).await?;
        if !dry_run {
            self.apply(&change, new, by).await?;
        }
        let outcome = Outcome { applied: !dry_run, changes: change.lines(), need_restart };
        serde_json::to_value(outcome).map_err(|why| ErrorCode::new(Code::INTERNAL, why.to_string()))
    }

    async fn apply(&mut self, change: &InventoryDiff, new: ControllerConfig, by: &str) -> Result<()> {
        let written = (new.source.managed != self.config.source.managed).then(|| new.source.write()).transpose()?;
        let changed = match self.endpoints.update(&new) {
            Ok(()) => self.assembly.change(change, new.inventory.clone(), by).await,
            Err(error) => Err(error),
        };
        if let Err(error) = changed {
            self.endpoints.update(&self.config)?;
            return Err(error);
        }
        written.map(|written| written.replace()).transpose()?;
        self.config = new;
        Ok(())
    }
}
