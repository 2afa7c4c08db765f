//! The shell of a storage: queries hosts and MDS agents, records intents and outcomes.

use std::sync::Arc;

use ringfence::{Accepts, Actor, Address, AsyncReply, Bus, Ctx, Handler, Kind};
use ringfence_messages::{
    Code, ErrorCode, Health, HostId, Protocol, Result, StorageId, VmId,
    agent::Done,
    inventory::RetireMsg,
    recovery::{BestEffortStepFailed, ContinueRedeployMsg, ProtocolRedeploy, RECOVERY, RedeployNowMsg, RedeployPhase},
    storage::{
        ActivateVolumeMsg, CheckHostHealthMsg, CheckHostHealthReply, DeactivateVolumeMsg, DeployClientMsg,
        DeployClientReply, ProtocolHealth, StorageKind,
    },
    vhost::{
        CreateVhostBdevCmd, CreateVhostBdevReply, DeployVhostCmd, DeployVhostReply, PrepareVhostTargetEnvCmd,
        VhostTargetHealthCmd,
    },
    vm::{DiskSource, InstallPath},
    zbs,
};
use tracing::Instrument;

use super::flow::{DEPLOY_DEADLINE, Flow, Next, Step};
use crate::{
    audit::Recorder,
    host::HostActor,
    inventory::{InventoryIndex, SharedInventory, Storage},
    ports::{Call, MdsPort},
    span, spans,
};

/// Limit of the health check of one protocol on one host. Must exceed the limit of the probe (the control socket
/// connects within 1 s). Too high: an outage is noticed late.
pub const HEALTH_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(5);

/// One primary storage's actor.
pub struct StorageActor {
    id: StorageId,
    inventory: SharedInventory,
    hugepages: u64,
    mds: Arc<dyn MdsPort>,
    bus: Bus,
}

/// Context of one flow.
struct Inner {
    storage: Storage,
    inventory: Arc<InventoryIndex>,
    hugepages: u64,
    mds: Arc<dyn MdsPort>,
    bus: Bus,
    recorder: Recorder,
}

impl StorageActor {
    /// The actor of this storage; `hugepages` is the number that hosts are prepared with.
    pub fn new(id: StorageId, inventory: SharedInventory, hugepages: u64, mds: Arc<dyn MdsPort>, bus: Bus) -> Self {
        StorageActor { id, inventory, hugepages, mds, bus }
    }

    /// Runs a flow on the current inventory.
    fn run<T, F>(&self, flow: impl FnOnce(Inner) -> F + 'static) -> AsyncReply<T>
    where
        F: Future<Output = Result<T>>,
    {
        let inventory = self.inventory.now();
        let storage = inventory.storage(self.id).cloned();
        let (hugepages, mds, bus) = (self.hugepages, self.mds.clone(), self.bus.clone());
        AsyncReply::new(async move {
            let recorder = Recorder::new(bus.clone());
            flow(Inner { storage: storage?, inventory, hugepages, mds, bus, recorder }).await
        })
    }
}

impl Actor for StorageActor {
    const KIND: Kind = Kind::new("storage");

    fn accepts(accepts: &mut Accepts<Self>) {
        accepts
            .message::<CheckHostHealthMsg>()
            .message::<DeployClientMsg>()
            .message::<ActivateVolumeMsg>()
            .message::<DeactivateVolumeMsg>()
            .message::<RetireMsg>();
    }
}

impl Handler<CheckHostHealthMsg> for StorageActor {
    type Answer = AsyncReply<CheckHostHealthReply>;

    fn handle(&mut self, message: CheckHostHealthMsg, _: &mut Ctx<'_, Self>) -> Self::Answer {
        self.run(async move |inner| {
            // In parallel: a probe that hangs or fails hides no other.
            let probes = inner.storage.protocols.iter().map(|protocol| inner.health(message.host_uuid, *protocol));
            let mut reply = CheckHostHealthReply::default();
            for probed in futures_util::future::join_all(probes).await {
                match probed {
                    Ok(health) => reply.protocols.push(health),
                    Err(error) => reply.errors.push(error),
                }
            }
            match reply.errors.first() {
                Some(error) if reply.protocols.is_empty() => Err(error.clone()),
                _ => Ok(reply),
            }
        })
    }
}

impl Handler<DeployClientMsg> for StorageActor {
    type Answer = AsyncReply<DeployClientReply>;

    fn handle(&mut self, message: DeployClientMsg, _: &mut Ctx<'_, Self>) -> Self::Answer {
        self.run(async move |inner| inner.deploy(message).await)
    }
}

impl Handler<ActivateVolumeMsg> for StorageActor {
    type Answer = AsyncReply<DiskSource>;

    fn handle(&mut self, message: ActivateVolumeMsg, _: &mut Ctx<'_, Self>) -> Self::Answer {
        self.run(async move |inner| inner.activate(message).await)
    }
}

impl Handler<DeactivateVolumeMsg> for StorageActor {
    type Answer = AsyncReply<Done>;

    fn handle(&mut self, message: DeactivateVolumeMsg, _: &mut Ctx<'_, Self>) -> Self::Answer {
        self.run(async move |inner| {
            let call = Call::within(Step::DeployVhostTarget.timeout());
            inner.mds.delete_vhost_bdev(inner.storage.id, message.host_uuid, &message.bdev_name, call).await
        })
    }
}

impl Handler<RetireMsg> for StorageActor {
    type Answer = Result<Done>;

    fn handle(&mut self, _: RetireMsg, ctx: &mut Ctx<'_, Self>) -> Self::Answer {
        ctx.stop();
        Ok(Done {})
    }
}

impl Inner {
    /// The health of one protocol on one host. An error means unknown; the statuses then stay.
    async fn health(&self, host: HostId, protocol: Protocol) -> Result<ProtocolHealth> {
        let (ok, reason) = match (self.storage.kind, protocol) {
            (StorageKind::Vhost | StorageKind::Zbs, Protocol::Vhost) => {
                let zbs = self.storage.kind == StorageKind::Zbs;
                let cmd = VhostTargetHealthCmd {
                    primary_storage_uuid: self.storage.id,
                    container_name: zbs
                        .then(|| self.inventory.host(host).map(|h| zbs::container_name(&h.management_ip)))
                        .transpose()?,
                    control_sock: zbs.then(|| zbs::CONTROL_SOCKET.to_owned()),
                };
                let reply = self.bus.ask_within(Address::new(HostActor::KIND, host), cmd, HEALTH_TIMEOUT).await?;
                (reply.target_running, reply.reason)
            }
            (StorageKind::Zbs, Protocol::Cbd) => {
                let call = Call::within(HEALTH_TIMEOUT);
                let reply = self.mds.check_host_connection(self.storage.id, host, call).await?;
                (reply.connected, reply.reason)
            }
            (kind, protocol) => {
                let details = format!("{protocol} of a {kind:?} storage has no health probe");
                return Err(ErrorCode::new(Code::INVALID_ARGUMENT, details));
            }
        };
        Ok(match ok {
            true => ProtocolHealth { protocol, health: Health::Ok, reason: None },
            false => {
                let reason = reason.unwrap_or_else(|| "the probe returned no reason".to_owned());
                ProtocolHealth { protocol, health: Health::Failed, reason: Some(reason) }
            }
        })
    }

    async fn deploy(&self, message: DeployClientMsg) -> Result<DeployClientReply> {
        let span = span!(
            "redeploy",
            host.name = self.inventory.host_name(message.host_uuid),
            ringfence.storage = self.storage.name,
            ringfence.protocol = %message.protocol,
            ringfence.attempt = message.attempt,
        );
        let result = self.redeploy(message).instrument(span.clone()).await;
        match &result {
            Ok((_, RedeployPhase::Done)) => spans::well(&span, "done"),
            Ok((reply, _)) => match reply.steps.iter().rev().find_map(|step| step.error.as_ref()) {
                Some(error) => spans::failed(&span, "failed", error),
                None => spans::well(&span, "failed"),
            },
            Err(error) => spans::failed(&span, "failed", error),
        }
        result.map(|(reply, _)| reply)
    }

    /// Records the intent, runs the steps, records the outcome. Without a durable intent nothing runs (I4).
    async fn redeploy(&self, message: DeployClientMsg) -> Result<(DeployClientReply, RedeployPhase)> {
        let host = self.inventory.host(message.host_uuid)?.name.clone();
        let mut record = ProtocolRedeploy {
            host_uuid: message.host_uuid,
            host,
            primary_storage_uuid: self.storage.id,
            storage: self.storage.name.clone(),
            protocol: message.protocol,
            phase: RedeployPhase::Intent,
            attempt: message.attempt,
            skipped_pings: message.skipped_pings,
            steps: Vec::new(),
        };
        self.recorder.intent(&record).await?;
        let mut flow = Flow::new(self.storage.kind, message.protocol);
        let phase = loop {
            match flow.next() {
                Next::Finished(phase) => break phase,
                Next::Run(step) => {
                    let span = span!("redeploy.step", otel.name = step.name());
                    let result = spans::within(span, self.run_in_service(step, message.host_uuid)).await;
                    if let Some(step) = flow.ended(step, result) {
                        self.warn(&record, step).await;
                    }
                }
            }
        };
        record.phase = phase;
        record.steps = flow.into_steps();
        let steps = record.steps.clone();
        let outcome = match phase {
            RedeployPhase::Done => "done",
            RedeployPhase::Failed | RedeployPhase::Intent => "failed",
        };
        metrics::counter!("ringfence_redeploys_total", "outcome" => outcome).increment(1);
        // The redeploy has happened; a late journal is reported by the audit.
        let _ = self.recorder.fact(record).await;
        Ok((DeployClientReply { steps }, phase))
    }

    async fn warn(&self, redeploy: &ProtocolRedeploy, step: ringfence_messages::storage::DeployStep) {
        let (host, storage) = (&redeploy.host, &redeploy.storage);
        tracing::warn!(host, storage, step = step.name, error = ?step.error, "best-effort step failed");
        let event = BestEffortStepFailed {
            host_uuid: redeploy.host_uuid,
            host: redeploy.host.clone(),
            primary_storage_uuid: redeploy.primary_storage_uuid,
            storage: redeploy.storage.clone(),
            step,
        };
        let _ = self.recorder.fact(event).await;
    }

    /// Runs a step unless the host left service since the redeploy began (I5).
    async fn run_in_service(&self, step: Step, host: HostId) -> Result<String> {
        self.bus.ask(RECOVERY, ContinueRedeployMsg { host_uuid: host }).await?;
        self.run(step, host).await
    }

    async fn run(&self, step: Step, host: HostId) -> Result<String> {
        let (storage, call) = (self.storage.id, Call::within(step.timeout()));
        let to = Address::new(HostActor::KIND, host);
        match (step, self.storage.kind) {
            (Step::DeployClient, _) => self.mds.deploy_client(storage, host, call).await.map(|_| String::new()),
            (Step::UpdateHostDependency, _) => {
                self.mds.update_host_dependency(storage, host, call).await.map(|_| String::new())
            }
            (Step::PrepareVhostTargetEnv, _) => {
                let cmd = PrepareVhostTargetEnvCmd { hugepages: self.hugepages };
                self.bus.ask_within(to, cmd, step.timeout()).await.map(|reply| reply.notes.join("; "))
            }
            (Step::DeployVhostTarget, StorageKind::Zbs) => {
                self.mds.deploy_vhost(storage, host, call).await.map(|_| String::new())
            }
            (Step::DeployVhostTarget, _) => {
                let cmd = DeployVhostCmd {
                    primary_storage_uuid: storage,
                    storage: self.storage.name.clone(),
                    volume_dir: self.storage.volume_dir.clone(),
                    on_target_loss: self.storage.on_target_loss,
                };
                let reply = self.bus.ask_within(to, cmd, step.timeout()).await?;
                metrics::counter!("ringfence_guests_reset_total").increment(reply.reset.len() as u64);
                metrics::counter!("ringfence_guests_continued_total").increment(reply.continued.len() as u64);
                self.deployed(&reply)
            }
        }
    }

    /// Result of a deploy for readers. A deploy that left a volume without its export has failed.
    fn deployed(&self, reply: &DeployVhostReply) -> Result<String> {
        let verb = if reply.started { "started" } else { "was running" };
        let mut summary = format!("{verb}, pid {}, {} exports", reply.pid, reply.exports);
        let vms =
            |vms_reset: &[VmId]| vms_reset.iter().map(|vm| self.inventory.vm_name(*vm)).collect::<Vec<_>>().join(", ");
        if !reply.reset.is_empty() {
            summary += &format!("; guests reset: {}", vms(&reply.reset));
        }
        if !reply.continued.is_empty() {
            summary += &format!("; guests that continued and may have lost requests: {}", vms(&reply.continued));
        }
        match reply.missing.as_slice() {
            [] => Ok(summary),
            missing => Err(ErrorCode::new(Code::OPERATION, format!("not exported: {}; {summary}", missing.join("; ")))),
        }
    }

    /// A start does not wait for the backoff of a target that is down: the target is redeployed at once, once.
    async fn create_bdev(&self, host: HostId, cmd: CreateVhostBdevCmd) -> Result<CreateVhostBdevReply> {
        let to = Address::new(HostActor::KIND, host);
        match self.bus.ask(to, cmd.clone()).await {
            Err(error) if error.is(&Code::NOT_READY) => {
                let (primary_storage_uuid, protocol) = (self.storage.id, Protocol::Vhost);
                // Missing volumes of other VMs do not fail this start: the second attempt decides.
                let redeploy = RedeployNowMsg { host_uuid: host, primary_storage_uuid, protocol };
                self.bus.ask_within(RECOVERY, redeploy, DEPLOY_DEADLINE).await?;
                self.bus.ask(to, cmd).await
            }
            settled => settled,
        }
    }

    async fn activate(&self, message: ActivateVolumeMsg) -> Result<DiskSource> {
        let ActivateVolumeMsg { host_uuid: host, install_path, bdev_name, vm_uuid } = message;
        let storage = &self.storage;
        let reply = match (storage.kind, install_path) {
            (StorageKind::Dir, InstallPath::Dir { file }) => {
                let Some(dir) = &storage.volume_dir else {
                    return Err(ErrorCode::new(
                        Code::INVALID_ARGUMENT,
                        format!("storage {} has no `dir`", storage.name),
                    ));
                };
                return Ok(DiskSource::File { path: format!("{dir}/{file}") });
            }
            (StorageKind::Ceph, InstallPath::Ceph { pool, image }) => {
                let Some(access) = storage.ceph.clone() else {
                    let details = format!("storage {} has no `host_conf` and `host_user`", storage.name);
                    return Err(ErrorCode::new(Code::INVALID_ARGUMENT, details));
                };
                return Ok(DiskSource::Rbd { pool, image, conf: access.conf, user: access.user });
            }
            (StorageKind::Vhost, InstallPath::Vhost { name }) => {
                let cmd = CreateVhostBdevCmd {
                    primary_storage_uuid: storage.id,
                    logical_pool: String::new(),
                    volume: name,
                    bdev_name,
                    volume_dir: storage.volume_dir.clone(),
                    vm_uuid: Some(vm_uuid),
                };
                self.create_bdev(host, cmd).await?
            }
            (
                StorageKind::Zbs,
                InstallPath::Zbs { pool, volume, snapshot: None }
                | InstallPath::Cbd { pool, volume, snapshot: None, .. },
            ) => {
                let call = Call::within(Step::DeployVhostTarget.timeout());
                self.mds.create_vhost_bdev(storage.id, host, &pool, &volume, &bdev_name, call).await?
            }
            (kind, path) => {
                let details = format!("{path} cannot be opened for writing on {}, a {kind:?} storage", storage.name);
                return Err(ErrorCode::new(Code::INVALID_ARGUMENT, details));
            }
        };
        Ok(DiskSource::VhostUser { socket_path: reply.socket_path })
    }
}
