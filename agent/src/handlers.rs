//! The handler of each endpoint of the agent.

use std::{
    collections::HashMap,
    path::Path,
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use parking_lot::Mutex;
use ringfence_actors::AGENT_VERSION;
use ringfence_drivers::{
    node::{
        self,
        docker::{DEFAULT_SOCKET, Engine},
        guard,
        hugepages::Hugepages,
        scan, sibling,
        target::Target,
        vms::Vms,
        witness::Witness,
    },
    state_dir::StateDir,
};
use ringfence_messages::{
    Code, ErrorCode, HostId, Result, StorageId,
    agent::{AgentCommand, Done},
    doctor::{DiagnoseHostCmd, DiagnoseHostReply},
    fence::{SiblingFenceVmCmd, SiblingFenceVmOnHostReply},
    ha::{ScanHostCmd, ScanHostCmdReply},
    host::{HostFactsCmd, HostFactsReply, HostPingCmd, HostPingReply},
    vhost::{
        CreateVhostBdevCmd, CreateVhostBdevReply, DeleteVhostBdevCmd, DeployVhostCmd, DeployVhostReply,
        PrepareVhostTargetEnvCmd, PrepareVhostTargetEnvReply, VhostTargetHealthCmd, VhostTargetHealthReply,
    },
    vm::{ListVmsCmd, ListVmsReply, StartVmCmd, StartVmCmdReply, StopVmCmd},
};
use ringfence_service::checks::MAX_SIBLINGS;
use serde_json::Value;
use tokio::time::Instant;
use uuid::Uuid;

use crate::{
    config::AgentSettings,
    diagnose::{local, siblings},
};

/// Time limit for a connection to a ZBS target's control socket. Too low: a busy target counts as down.
const CONTROL_SOCKET_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(1);

/// The agent's commands on this host.
pub(crate) struct Handlers {
    host: HostId,
    boot_id: String,
    settings: AgentSettings,
    state: StateDir,
    vms: Arc<Vms>,
    witness: Witness,
    targets: Mutex<HashMap<StorageId, Arc<Target>>>,
}

/// One line for each endpoint: the command and its method.
macro_rules! paths {
    ($($command:ty => $method:ident;)*) => {
        /// Whether this is an endpoint of an agent.
        pub(crate) fn knows(path: &str) -> bool {
            path == StartVmCmd::PATH || [$(<$command>::PATH),*].contains(&path)
        }

        /// Carries out the command of an endpoint.
        pub(crate) async fn dispatch(&self, path: &str, body: &[u8], by: Instant) -> Result<Value> {
            match path {
                StartVmCmd::PATH => reply(self.start_vm(&command(body)?, by).await?),
                $(<$command>::PATH => reply(self.$method(command::<$command>(body)?).await?),)*
                _ => Err(ErrorCode::new(Code::NOT_FOUND, "unknown endpoint")),
            }
        }
    };
}

impl Handlers {
    // Starting a VM is an endpoint too; only that command needs the deadline.
    paths! {
        HostPingCmd => ping;
        HostFactsCmd => facts;
        DiagnoseHostCmd => diagnose;
        PrepareVhostTargetEnvCmd => prepare_env;
        DeployVhostCmd => deploy;
        VhostTargetHealthCmd => health;
        CreateVhostBdevCmd => create_bdev;
        DeleteVhostBdevCmd => delete_bdev;
        StopVmCmd => stop_vm;
        ListVmsCmd => list_vms;
        SiblingFenceVmCmd => sibling_fence;
        ScanHostCmd => scan_host;
    }

    /// Opens the state of this host.
    pub(crate) async fn open(settings: &AgentSettings, state: StateDir) -> Result<Handlers> {
        let vms = Arc::new(Vms::open(settings.qemu.clone(), state.path()).await?);
        // Ends with the handlers.
        tokio::spawn(guard::guard(Arc::downgrade(&vms)));
        Ok(Handlers {
            host: settings.host,
            boot_id: Uuid::new_v4().to_string(),
            vms,
            witness: Witness::open(state.path())?,
            settings: settings.clone(),
            targets: Mutex::default(),
            state,
        })
    }

    /// The host of this agent.
    pub(crate) fn host(&self) -> HostId {
        self.host
    }

    async fn ping(&self, cmd: HostPingCmd) -> Result<HostPingReply> {
        let (version, boot_id) = (AGENT_VERSION.to_owned(), self.boot_id.clone());
        let witness = self.witness.hear(cmd.head)?;
        Ok(HostPingReply { host_uuid: self.host, version, boot_id, machine: node::machine(), witness })
    }

    async fn facts(&self, _: HostFactsCmd) -> Result<HostFactsReply> {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let meminfo = read("/proc/meminfo");
        let mib = |key: &str| {
            let line = meminfo.lines().find_map(|line| line.strip_prefix(key));
            line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0) / 1024
        };
        Ok(HostFactsReply {
            host_uuid: self.host,
            version: AGENT_VERSION.to_owned(),
            hostname: read("/proc/sys/kernel/hostname").trim().to_owned(),
            accel: self.vms.accel(),
            qemu_version: self.vms.version().to_string(),
            memory_mib: mib("MemTotal:"),
            available_mib: mib("MemAvailable:"),
            cpus: std::thread::available_parallelism().map_or(0, |n| n.get() as u32),
            free_hugepages: Hugepages::default().free().unwrap_or(0),
            addresses: node::addresses::own(),
        })
    }

    async fn diagnose(&self, cmd: DiagnoseHostCmd) -> Result<DiagnoseHostReply> {
        // Read the clock first: the checks take time.
        let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        if cmd.siblings.len() > MAX_SIBLINGS {
            let details = format!("{} sibling hosts are too many (at most {})", cmd.siblings.len(), MAX_SIBLINGS);
            return Err(ErrorCode::new(Code::INVALID_ARGUMENT, details));
        }
        let (mut findings, paths) = tokio::join!(
            local::look(&self.settings, &cmd.needs),
            siblings::look(self.settings.ssh.as_ref(), &cmd.siblings)
        );
        findings.extend(paths);
        let unix_ms = u64::try_from(unix.as_millis()).unwrap_or_default();
        Ok(DiagnoseHostReply { host_uuid: self.host, unix_ms, findings })
    }

    /// Prepares docker and hugepages. Both are tried; the first error is returned.
    async fn prepare_env(&self, cmd: PrepareVhostTargetEnvCmd) -> Result<PrepareVhostTargetEnvReply> {
        let mut notes = Vec::new();
        let docker = match &self.settings.docker {
            Some(engine) => engine.ensure().await.map(|note| notes.push(note)),
            None => {
                notes.push("docker is not needed: targets run as processes".to_owned());
                Ok(())
            }
        };
        // Growing the pool compacts memory, which is slow: not on the thread that answers pings.
        let hugepages = tokio::task::spawn_blocking(move || {
            let hugepages = Hugepages::default();
            let (free, note) = hugepages.ensure(cmd.hugepages)?;
            Ok::<_, ErrorCode>((free, note, hugepages.ensure_mount()?))
        });
        let (free_hugepages, note, mount) =
            hugepages.await.map_err(|e| ErrorCode::new(Code::INTERNAL, e.to_string()))??;
        docker?;
        notes.push(note);
        Ok(PrepareVhostTargetEnvReply { free_hugepages, hugepage_mount: mount.display().to_string(), notes })
    }

    async fn deploy(&self, cmd: DeployVhostCmd) -> Result<DeployVhostReply> {
        let volumes = cmd.volume_dir.as_deref().map(Path::new);
        self.target(cmd.primary_storage_uuid)?.deploy(volumes, cmd.on_target_loss).await
    }

    async fn health(&self, cmd: VhostTargetHealthCmd) -> Result<VhostTargetHealthReply> {
        let result = match (&cmd.container_name, &cmd.control_sock) {
            (Some(container), Some(socket)) => {
                let engine = self.settings.docker.clone().unwrap_or_else(|| Engine::at(DEFAULT_SOCKET));
                zbs_health(&engine, container, Path::new(socket)).await
            }
            _ => self.target(cmd.primary_storage_uuid)?.health().await,
        };
        Ok(VhostTargetHealthReply { target_running: result.is_ok(), reason: result.err() })
    }

    async fn create_bdev(&self, cmd: CreateVhostBdevCmd) -> Result<CreateVhostBdevReply> {
        let socket = self.target(cmd.primary_storage_uuid)?.create_bdev(&cmd).await?;
        Ok(CreateVhostBdevReply { socket_path: socket.display().to_string() })
    }

    async fn delete_bdev(&self, cmd: DeleteVhostBdevCmd) -> Result<Done> {
        self.target(cmd.primary_storage_uuid)?.delete_bdev(&cmd.bdev_name).await.map(|()| Done {})
    }

    async fn start_vm(&self, cmd: &StartVmCmd, by: Instant) -> Result<StartVmCmdReply> {
        self.witness.admit(cmd.head.clone())?;
        self.vms.start(cmd, by).await
    }

    async fn stop_vm(&self, cmd: StopVmCmd) -> Result<Done> {
        self.vms.stop(&cmd).await.map(|()| Done {})
    }

    async fn list_vms(&self, cmd: ListVmsCmd) -> Result<ListVmsReply> {
        self.vms.list(&cmd).await
    }

    async fn sibling_fence(&self, cmd: SiblingFenceVmCmd) -> Result<SiblingFenceVmOnHostReply> {
        if cmd.failed_host_uuid == self.host {
            let details = "a host cannot fence itself";
            return Err(ErrorCode::new(Code::INVALID_ARGUMENT, details));
        }
        let Some(ssh) = &self.settings.ssh else {
            let details = "this agent's file has no [ssh], so it cannot reach a sibling host";
            return Err(ErrorCode::new(Code::OPERATION, details));
        };
        let reply = sibling::fence(ssh, &cmd).await?;
        Ok(SiblingFenceVmOnHostReply { executor_host_uuid: Some(self.host), ..reply })
    }

    async fn scan_host(&self, cmd: ScanHostCmd) -> Result<ScanHostCmdReply> {
        if cmd.host_uuid == self.host {
            return Err(ErrorCode::new(Code::INVALID_ARGUMENT, "a host cannot probe itself"));
        }
        scan::look(&cmd).await
    }

    fn target(&self, storage: StorageId) -> Result<Arc<Target>> {
        let mut targets = self.targets.lock();
        if let Some(target) = targets.get(&storage) {
            return Ok(target.clone());
        }
        let target =
            Arc::new(Target::new(self.settings.target.clone(), self.state.path(), storage, self.vms.lookout())?);
        targets.insert(storage, target.clone());
        Ok(target)
    }
}

fn command<C: AgentCommand>(body: &[u8]) -> Result<C> {
    serde_json::from_slice(body)
        .map_err(|e| ErrorCode::new(Code::INVALID_ARGUMENT, format!("invalid body of {}: {e}", C::PATH)))
}

fn reply(reply: impl serde::Serialize) -> Result<Value> {
    serde_json::to_value(reply).map_err(|e| ErrorCode::new(Code::INTERNAL, e.to_string()))
}

/// Healthy: the container runs, and its control socket accepts within 1 s. A failed probe counts as unhealthy.
async fn zbs_health(engine: &Engine, container: &str, socket: &Path) -> Result<(), String> {
    if !engine.is_running(container).await.map_err(|e| e.details)? {
        return Err(format!("container {container} is not running"));
    }
    let connect = tokio::net::UnixStream::connect(socket);
    match tokio::time::timeout(CONTROL_SOCKET_TIMEOUT, connect).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(format!("control socket {}: {error}", socket.display())),
        Err(_) => Err(format!("control socket {} does not accept", socket.display())),
    }
}
