//! Keeps the inventory that is in force: reads it anew, edits it, and has the assembly look after what comes of it.
//!
//! Invariants: one change at a time; a change is checked as a whole, shown as a difference, and in force with its file, or
//! neither is. It runs where the actors live: they are started there.

use std::{collections::HashMap, sync::Arc};

use ringfence_actors::{assembly::Assembly, change::Change};
use ringfence_drivers::{
    agent_client::AgentClient,
    ceph::Clusters,
    zbs::{HostAccess, ZbsClient},
};
use ringfence_messages::{Code, ErrorCode, HostId, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::{mpsc, oneshot};
use utoipa::ToSchema;

use crate::{
    auth::read_token,
    config::{ControllerConfig, Source, load_controller, managed::Edit},
};

/// Changes that wait for their turn. Too high: who waits has given up long since.
const MAX_WAITING: usize = 16;

/// What may be asked of the keeper.
#[derive(Clone, Debug)]
pub enum Order {
    /// Show everything that is in force, and what of it the API may change.
    Show,
    /// Read the files again.
    Reload,
    /// Add, replace and take out.
    Edit(Edit),
}

/// What came of a change.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Outcome {
    /// Whether it is in force; false for a dry run.
    pub applied: bool,
    /// What is another, a line each: `+ host host-d`, `~ VM vm1: memory_mib: 512 -> 1024`, `- storage old`.
    pub changes: Vec<String>,
    /// Tables of the config file that are others and count from the next start on.
    pub need_restart: Vec<String>,
}

struct Asked {
    order: Order,
    by: String,
    dry_run: bool,
    reply: oneshot::Sender<Result<Value>>,
}

/// The way to the keeper.
#[derive(Clone)]
pub(crate) struct Inventory(mpsc::Sender<Asked>);

impl Inventory {
    /// Has an order carried out.
    ///
    /// # Errors
    /// Why it is refused; nothing was changed then.
    pub(crate) async fn ask(&self, order: Order, by: String, dry_run: bool) -> Result<Value> {
        let (reply, answer) = oneshot::channel();
        let busy = |_| ErrorCode::new(Code::NOT_READY, format!("{MAX_WAITING} changes wait already: try again"));
        self.0.try_send(Asked { order, by, dry_run, reply }).map_err(busy)?;
        answer.await.unwrap_or_else(|_| Err(ErrorCode::new(Code::NODE_UNAVAILABLE, "the controller is ending")))
    }
}

/// The drivers that have to know where things are.
#[derive(Clone)]
pub(crate) struct Endpoints {
    pub(crate) agents: Arc<AgentClient>,
    pub(crate) mds: Arc<ZbsClient>,
    pub(crate) ceph: Arc<Clusters>,
}

impl Endpoints {
    /// Drivers that reach what this config names.
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

    /// Reaches what this config names too, or elsewhere than before.
    fn update(&self, config: &ControllerConfig) -> Result<()> {
        let hosts = hosts(config)?;
        self.agents.reach(urls(config))?;
        self.mds.reach(config.mds.clone(), hosts);
        self.ceph.reach(config.ceph.iter().map(|(id, access)| (*id, access.cluster.clone())));
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

/// Who changes the inventory.
struct InventoryManager {
    /// What the controller was started with: settings are read then.
    on_start: Source,
    /// What is in force.
    config: ControllerConfig,
    assembly: Assembly,
    endpoints: Endpoints,
}

/// Keeps the inventory of an assembly until nobody can ask any more. Must be called inside the actors' system.
pub(crate) fn spawn(config: ControllerConfig, assembly: Assembly, endpoints: Endpoints) -> Inventory {
    let (sender, mut asked) = mpsc::channel::<Asked>(MAX_WAITING);
    actix::spawn(async move {
        let mut manager = InventoryManager { on_start: config.source.clone(), config, assembly, endpoints };
        while let Some(Asked { order, by, dry_run, reply }) = asked.recv().await {
            // Who gave up meanwhile does not want it any more.
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
            Order::Reload => load_controller(&source.path)?,
            Order::Edit(edit) => source.edited(&edit)?.config()?,
        };
        if new.source.managed_path != source.managed_path {
            let why = "state_dir is another: stop the controller, move the directory, and start it again";
            return Err(ErrorCode::new(Code::CHANGE_STATE, why));
        }
        let need_restart = self.on_start.need_restart(&new.source);
        // Before anything is reached elsewhere: an agent that moved is asked where it is now.
        let change = self.assembly.plan(&new.inventory).await?;
        if !dry_run {
            self.apply(&change, new, by).await?;
        }
        let outcome = Outcome { applied: !dry_run, changes: change.lines(), need_restart };
        serde_json::to_value(outcome).map_err(|why| ErrorCode::new(Code::INTERNAL, why.to_string()))
    }

    async fn apply(&mut self, change: &Change, new: ControllerConfig, by: &str) -> Result<()> {
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
