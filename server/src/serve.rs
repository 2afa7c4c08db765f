//! The controller: all actors over real drivers, and the HTTP API in front of them.
//!
//! Invariant: the actors run on this thread's actix system; the API and the hooks run on their own thread and reach
//! the actors only through the bus, so slow clients do not delay the actors.

use std::{future::Future, net::SocketAddr, sync::Arc};

use async_trait::async_trait;
use futures_util::{StreamExt, stream::BoxStream};
use metrics_exporter_prometheus::PrometheusHandle;
use ringfence::{Actor, Address, Bus};
use ringfence_actors::{
    assembly::Assembly,
    fence::PERMIT_VALIDITY,
    ha::HaActor,
    host::HostActor,
    ports::{JournalPort, Ports, Record},
    restore,
    vm::VmActor,
};
use ringfence_drivers::{journal::Journal, leadership::Embedded, state_dir::StateDir, tls::api_server};
use ringfence_messages::{
    Code, ErrorCode, Event as _, HostId, Result, VmId,
    audit::EventRecorded,
    fence::SiblingFenceAudited,
    ha::{
        ConfirmHostFencedMsg, DrainPlan, HaReply, HaStartPlan, HaStartVmInstanceMsg, PlanDrainMsg, PlanHaStartMsg,
        QueryHaMsg,
    },
    host::{ChangeHostStateMsg, HostAction, HostInventory, HostsReply, Pinged, QueryHostsMsg, QueryPingsMsg},
    storage::{HostProtocolRef, StorageInventory},
    vm::{QueryVmMsg, StartVmMsg, StopVmMsg, VmInventory},
};
use ringfence_service::listen;
use serde_json::Value;

use crate::{
    certificates::Certificates,
    config::ControllerConfig,
    errors::not_found,
    explain,
    http::{self, auth::Access, backend::Backend},
    inventory::{self, Endpoints, Inventory, Order},
    metrics,
    notify::{HookInventory, HookTest, Notifier, RetryPolicy},
    page,
};

/// Time limit of a start or stop: search, journal, export, launch, verification. Too low: slow starts fail.
const VM_DEADLINE: std::time::Duration = std::time::Duration::from_secs(120);

/// Longest wait for the actors to replay the journal before the controller reports readiness, and the time between
/// two checks. A replay takes milliseconds; a failed one is retried after a second.
const REPLAY_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(3);
const REPLAY_POLL: std::time::Duration = std::time::Duration::from_millis(5);

/// Runs a controller until `shutdown` resolves. `restored` continues from this journal although hosts have seen newer
/// records. `ready` gets the address of the API. Must run inside an actix system.
///
/// # Errors
/// One line each, before any action: a port in use, a state directory that is unusable or in use, a journal that
/// cannot be opened, an unusable token, password, secret, key or certificate file.
pub async fn run(
    config: ControllerConfig,
    restored: bool,
    ready: impl FnOnce(SocketAddr),
    shutdown: impl Future<Output = ()>,
) -> Result<()> {
    let tls = config.tls.clone().map(api_server).transpose()?;
    let state = StateDir::open(&config.state_dir)?;
    let listener = listen::bind(config.listen).await?;
    let address = listener.local_addr().map_err(|e| ErrorCode::new(Code::IO, e.to_string()))?;
    let journal = Journal::open(state.path())?;
    let records = journal.verify()?;
    tracing::info!(records, "journal hash chain verified");
    let endpoints = Endpoints::of(&config)?;
    let journal: Arc<dyn JournalPort> = Arc::new(journal);
    let notifier = Notifier::open(&config.hooks, state.path(), journal.clone(), RetryPolicy::default()).await?;
    let notifier = Arc::new(notifier);
    let ports = Ports {
        agents: endpoints.agents.clone(),
        mds: endpoints.mds.clone(),
        ceph: endpoints.ceph.clone(),
        leadership: Arc::new(Embedded::new(state)),
        journal,
    };
    let recorder = metrics::recorder().map_err(|e| ErrorCode::new(Code::INTERNAL, e.to_string()))?;
    let handle = recorder.handle();
    // A second controller in this process (a test) keeps the first recorder.
    let _ = ::metrics::set_global_recorder(recorder);
    metrics::describe();

    if restored {
        accept_restored_journal(&config, &ports).await?;
    }
    let bus = Bus::with_timing();
    let recorded = bus.subscribe(EventRecorded::TOPIC)?;
    let assembly = Assembly::start(bus.clone(), config.inventory.clone(), config.settings, ports).await?;
    // Clients send requests as soon as the controller reports readiness. `/healthz` reports a hanging disk.
    let _ = tokio::time::timeout(REPLAY_TIMEOUT, replayed(&assembly)).await;
    tracing::info!(%address, epoch = assembly.epoch, "the controller serves");
    ready(address);

    let access = Access::by(config.api_tokens.clone());
    let per_second = config.requests_per_second;
    let certificates = Certificates::of(&config, endpoints.agents.clone());
    let inventory = inventory::spawn(config, assembly.clone(), endpoints);
    let controller = Controller { assembly, inventory, metrics: handle, notifier: notifier.clone(), certificates };
    let app = router(Arc::new(controller), access.clone());
    let app = http::limit::limited(app, per_second, access);
    let (end, ended) = tokio::sync::oneshot::channel::<()>();
    let listener = listener.into_std().map_err(|e| ErrorCode::new(Code::IO, e.to_string()))?;
    let api = std::thread::Builder::new().name("api".to_owned()).spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let served = runtime.block_on(async {
            let listener = tokio::net::TcpListener::from_std(listener)?;
            let notifying = tokio::spawn(notifier.run(recorded));
            listen::serve_over(listener, tls, app, async { ended.await.unwrap_or(()) }).await;
            // The next controller repeats the current deliveries.
            notifying.abort();
            Ok::<(), std::io::Error>(())
        });
        // A DNS lookup of a webhook cannot be interrupted.
        runtime.shutdown_timeout(listen::DRAIN_TIMEOUT);
        served
    });
    let api = api.map_err(|e| ErrorCode::new(Code::IO, format!("cannot start a thread for the API: {e}")))?;
    shutdown.await;
    drop(end);
    let joined = tokio::task::spawn_blocking(move || api.join()).await;
    if !matches!(joined, Ok(Ok(Ok(())))) {
        tracing::warn!("API server did not shut down cleanly");
    }
    bus.stop_all();
    Ok(())
}

/// The routes of the API and of the page over a backend, with authorization by `access`.
pub fn router(backend: Arc<dyn Backend>, access: Access) -> axum::Router {
    http::router(backend, access, page::pages())
}

/// Logs the newest record that hosts have seen, and records the decision to continue from this journal.
async fn accept_restored_journal(config: &ControllerConfig, ports: &Ports) -> Result<()> {
    let hosts: Vec<_> = config.inventory.hosts.iter().map(|host| (host.id, host.name.clone())).collect();
    let seconds = PERMIT_VALIDITY.as_secs();
    tracing::warn!(
        "--restored: querying hosts for the newest record that they have seen, then waiting {seconds} s for commands \
         in flight"
    );
    let restored = restore::restore(ports, hosts).await?;
    let witness = restored.witness.as_ref().map_or_else(|| "none".to_owned(), ToString::to_string);
    tracing::warn!(hosts = restored.heard, unreachable = ?restored.silent, newest = witness,
        "--restored: newest record that hosts have seen");
    Ok(())
}

/// Resolves when the actors have replayed the journal.
async fn replayed(assembly: &Assembly) {
    let not_ready = async || {
        let hosts = assembly.bus.ask(assembly.recovery(), QueryHostsMsg {}).await.err();
        let ha = assembly.bus.ask(Address::singleton(HaActor::KIND), QueryHaMsg {}).await.err();
        hosts.into_iter().chain(ha).any(|error| error.is(&Code::NOT_READY))
    };
    while not_ready().await {
        tokio::time::sleep(REPLAY_POLL).await;
    }
}

/// The API's view of the assembly.
struct Controller {
    assembly: Assembly,
    inventory: Inventory,
    metrics: PrometheusHandle,
    notifier: Arc<Notifier>,
    certificates: Certificates,
}

impl Controller {
    async fn known(&self) -> Result<HostsReply> {
        self.assembly.bus.ask(self.assembly.recovery(), QueryHostsMsg {}).await
    }

    fn vm(id: VmId) -> Address {
        Address::new(VmActor::KIND, id)
    }
}

#[async_trait]
impl Backend for Controller {
    async fn healthy(&self) -> Result<()> {
        if let Some(behind) = self.assembly.leader_status.behind() {
            return Err(ErrorCode::new(Code::NOT_READY, behind.to_string()));
        }
        self.assembly.ports.journal.read(0, 1).await?;
        self.known().await.map(|_| ())
    }

    async fn metrics(&self) -> String {
        ringfence::export_metrics();
        if let (Ok(known), Ok(vms)) = (self.known().await, self.vms().await) {
            metrics::update_gauges(
                &known.hosts,
                &vms,
                &known.storages,
                &known.refs,
                self.ha_status().await.ok().as_ref(),
            );
        }
        self.notifier.measure();
        self.certificates.measure(self.assembly.inventory.now().hosts.iter().map(|host| host.id));
        self.metrics.run_upkeep();
        self.metrics.render()
    }

    async fn hosts(&self) -> Result<Vec<HostInventory>> {
        Ok(self.known().await?.hosts)
    }

    async fn host(&self, id: HostId) -> Result<HostInventory> {
        let host = self.known().await?.hosts.into_iter().find(|known| known.uuid == id);
        host.ok_or_else(|| not_found("host", &id.to_string()))
    }

    async fn pings(&self, id: HostId) -> Result<Vec<Pinged>> {
        Ok(self.assembly.bus.ask(Address::new(HostActor::KIND, id), QueryPingsMsg {}).await?.pings)
    }

    async fn storages(&self) -> Result<Vec<StorageInventory>> {
        let known = self.known().await?;
        let directory = self.assembly.inventory.now();
        let inventory = |of: &ringfence_actors::inventory::Storage| StorageInventory {
            uuid: of.id,
            name: of.name.clone(),
            kind: of.kind,
            clusters: of.clusters.iter().filter_map(|id| directory.cluster(*id).ok()).map(|c| c.name.clone()).collect(),
            protocols: of.protocols.clone(),
            hosts: known.storages.iter().filter(|host| host.primary_storage_uuid == of.id).cloned().collect(),
        };
        Ok(directory.storages.iter().map(inventory).collect())
    }

    async fn vms(&self) -> Result<Vec<VmInventory>> {
        let queries: Vec<_> = self
            .assembly
            .inventory
            .now()
            .vms
            .iter()
            .map(|vm| self.assembly.bus.ask(Self::vm(vm.id), QueryVmMsg {}))
            .collect();
        futures_util::future::try_join_all(queries).await
    }

    async fn vm(&self, id: VmId) -> Result<VmInventory> {
        self.assembly.bus.ask(Self::vm(id), QueryVmMsg {}).await
    }

    async fn refs(&self) -> Result<Vec<HostProtocolRef>> {
        Ok(self.known().await?.refs)
    }

    async fn events(&self, after: u64, limit: usize) -> Result<Vec<Record>> {
        self.assembly.ports.journal.read(after, limit).await
    }

    async fn newest(&self, of: Option<(&[&str], &str)>, limit: usize) -> Result<Vec<Record>> {
        self.assembly.ports.journal.newest(of, limit).await
    }

    async fn live(&self) -> Result<BoxStream<'static, Record>> {
        let recorded = self.assembly.bus.subscribe("journal.recorded")?;
        let record = |event: ringfence::AnyEvent| {
            let event: &EventRecorded = event.downcast_ref()?;
            Some(Record {
                seq: event.seq,
                time: event.time.clone(),
                topic: event.topic.clone(),
                subject: event.subject.clone(),
                payload: serde_json::from_str(&event.payload).ok()?,
                hash: event.hash.clone(),
            })
        };
        Ok(recorded.filter_map(move |event| std::future::ready(record(event))).boxed())
    }

    async fn inspect(&self) -> Value {
        serde_json::to_value(self.assembly.bus.inspect().await).unwrap_or_default()
    }

    async fn start_vm(&self, vm: VmId, host: Option<HostId>) -> Result<VmInventory> {
        self.assembly.bus.ask_within(Self::vm(vm), StartVmMsg { host_uuid: host }, VM_DEADLINE).await
    }

    async fn stop_vm(&self, vm: VmId) -> Result<VmInventory> {
        self.assembly.bus.ask_within(Self::vm(vm), StopVmMsg {}, VM_DEADLINE).await
    }

    async fn ha_start_vm(&self, vm: VmId, host: Option<HostId>) -> Result<VmInventory> {
        let order = HaStartVmInstanceMsg {
            vm_instance_uuid: vm,
            judger_class_name: "Operator".to_owned(),
            soft_avoid_host_uuids: Vec::new(),
            host_uuid: host,
            ha_reason: "requested by an operator".to_owned(),
        };
        self.assembly.bus.ask_within(Address::singleton(HaActor::KIND), order, VM_DEADLINE).await?;
        self.vm(vm).await
    }

    async fn plan_ha_start(&self, vm: VmId, host: Option<HostId>) -> Result<HaStartPlan> {
        self.assembly.bus.ask(Self::vm(vm), PlanHaStartMsg { host_uuid: host }).await
    }

    async fn confirm_fenced(&self, host: HostId, by: String) -> Result<HostInventory> {
        let confirm = ConfirmHostFencedMsg { host_uuid: host, by };
        self.assembly.bus.ask(Address::singleton(HaActor::KIND), confirm).await?;
        self.host(host).await
    }

    async fn explain(&self, name: &str) -> Result<Vec<String>> {
        let ha = self.ha_status().await?;
        let hosts = self.known().await?.hosts;
        let Ok(id) = self.vm_id(name) else {
            let id = self.host_id(name).map_err(|_| not_found("VM or host", name))?;
            let vms: Vec<_> = self.vms().await?.into_iter().filter(|vm| vm.last_host_uuid == Some(id)).collect();
            let host = hosts.iter().find(|host| host.uuid == id).ok_or_else(|| not_found("host", name))?;
            return Ok(explain::host(host, &ha, &vms));
        };
        let vm = self.vm(id).await?;
        let fence = self.assembly.ports.journal.latest_of(SiblingFenceAudited::TOPIC, &vm.name).await?;
        let fence = fence.map(|record| Ok::<_, ErrorCode>((record.time.clone(), record.event()?))).transpose()?;
        let host = hosts.iter().find(|host| Some(host.uuid) == vm.last_host_uuid);
        let braked = self.assembly.inventory.now().vms.iter().any(|of| of.id == id && ha.braked.contains(&of.cluster));
        Ok(explain::vm(&vm, host, &ha, fence.as_ref(), braked))
    }

    async fn ha_status(&self) -> Result<HaReply> {
        self.assembly.bus.ask(Address::singleton(HaActor::KIND), QueryHaMsg {}).await
    }

    async fn plan_drain(&self, host: HostId) -> Result<DrainPlan> {
        self.assembly.bus.ask(Address::singleton(HaActor::KIND), PlanDrainMsg { host_uuid: host }).await
    }

    async fn host_action(&self, host: HostId, action: HostAction) -> Result<HostInventory> {
        self.assembly.bus.ask(self.assembly.recovery(), ChangeHostStateMsg { host_uuid: host, action }).await
    }

    async fn inventory(&self, order: Order, by: String, dry_run: bool) -> Result<Value> {
        self.inventory.ask(order, by, dry_run).await
    }

    async fn hooks(&self) -> Result<Vec<HookInventory>> {
        Ok(self.notifier.list())
    }

    async fn test_hook(&self, name: &str) -> Result<HookTest> {
        self.notifier.test(name).await
    }

    fn host_id(&self, text: &str) -> Result<HostId> {
        let directory = self.assembly.inventory.now();
        let mut all = directory.hosts.iter();
        let found = all.find(|host| host.name == text || text.parse() == Ok(host.id));
        found.map(|host| host.id).ok_or_else(|| not_found("host", text))
    }

    fn vm_id(&self, text: &str) -> Result<VmId> {
        let directory = self.assembly.inventory.now();
        let mut all = directory.vms.iter();
        let found = all.find(|vm| vm.name == text || text.parse() == Ok(vm.id));
        found.map(|vm| vm.id).ok_or_else(|| not_found("VM", text))
    }
}
