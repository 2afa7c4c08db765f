//! A controller of memory behind the real HTTP routes.

use std::{net::SocketAddr, sync::Arc};

use async_trait::async_trait;
use futures_util::{
    StreamExt,
    stream::{self, BoxStream},
};
use parking_lot::Mutex;
use ringfence_actors::{diff::InventoryDiff, inventory::SharedInventory, ports::Record};
use ringfence_messages::{
    ClusterId, Event, HostId, Protocol, ProtocolStatus, Result, StorageId, VmId,
    evidence::{Evidence, Source as Looked, Verdict},
    fence::{FenceIntended, FenceLevel, FenceOutcome, SiblingFenceAudited},
    ha::{DrainPlan, DrainStep, HaReply, HaStartPlan, HostFailed, VmHa, VmHaStarted},
    host::{HostAction, HostInventory, HostState, HostStatus, HostStatusChanged, Pinged},
    storage::{HostProtocolRef, StorageHostRef, StorageInventory, StorageKind},
    vm::{HaMode, VmInventory, VmState, VolumeInventory},
};
use ringfence_server::{
    config::Source,
    errors::not_found,
    http::{auth::Access, backend::Backend},
    inventory::Order,
    notify::{HookInventory, HookKind, HookTest},
    serve::router,
};
use ringfence_service::listen;
use serde_json::{Value, json};
use tokio::sync::broadcast;

/// A controller of memory.
pub(crate) struct Fake {
    pub(crate) hosts: Mutex<Vec<HostInventory>>,
    pub(crate) vms: Mutex<Vec<VmInventory>>,
    records: Mutex<Vec<Record>>,
    live: broadcast::Sender<Record>,
    pub(crate) orders: Mutex<Vec<String>>,
    source: Mutex<Source>,
    /// What stands in the config file by now.
    file: Mutex<String>,
}

const CONFIG: &str = "controller.state_dir = 'state'\ncontroller.api_may = ['plain_agents']\n\
    cluster = [{ name = 'c1' }]\n\
    host = [{ name = 'host-0', cluster = 'c1', management_ip = '10.0.0.1', agent = 'http://10.0.0.1:7070' }]\n";

impl Fake {
    /// So many hosts with a VM each; the second host is down, and its VM was fenced.
    pub(crate) fn new(count: usize) -> Arc<Fake> {
        let host = |n: usize| HostInventory {
            uuid: HostId::from_name(&format!("host-{n}")),
            name: format!("host-{n}"),
            cluster: "c1".to_owned(),
            management_ip: format!("10.77.{}.{}", n / 250, n % 250 + 1),
            state: HostState::Enabled,
            status: if n == 1 { HostStatus::Disconnected } else { HostStatus::Connected },
            reason: (n == 1).then(|| "no answer within 2s".to_owned()),
        };
        let hosts: Vec<HostInventory> = (0..count).map(host).collect();
        let vm = |(n, host): (usize, &HostInventory)| VmInventory {
            uuid: VmId::from_name(&format!("vm{n}")),
            name: format!("vm{n}"),
            cluster: "c1".to_owned(),
            ha: HaMode::NeverStop,
            state: if n == 1 { VmState::Unknown } else { VmState::Running },
            host_uuid: Some(host.uuid),
            host: Some(host.name.clone()),
            last_host_uuid: Some(host.uuid),
            incarnation: 1,
            wanted: true,
            volumes: vec![VolumeInventory {
                primary_storage_uuid: StorageId::from_name("ceph-1"),
                install_path: format!("ceph://rbd/vm{n}"),
                root: true,
            }],
        };
        let vms = hosts.iter().enumerate().map(vm).collect();
        let fake = Arc::new(Fake {
            hosts: Mutex::new(hosts),
            vms: Mutex::new(vms),
            records: Mutex::default(),
            live: broadcast::channel(64).0,
            orders: Mutex::default(),
            file: Mutex::new(CONFIG.to_owned()),
            source: Mutex::new(Source {
                path: "/etc/controller.toml".into(),
                text: CONFIG.to_owned(),
                managed_path: "/state/inventory.toml".into(),
                managed: String::new(),
            }),
        });
        let down = fake.hosts.lock().get(1).cloned();
        if let Some(inventory) = down {
            let (host_uuid, host) = (inventory.uuid, inventory.name.clone());
            let (old_status, new_status) = (HostStatus::Connected, HostStatus::Disconnected);
            let reason = inventory.reason.clone();
            fake.happens(&HostStatusChanged { host_uuid, old_status, new_status, reason, inventory });
            let reason = "no sibling sees it".to_owned();
            fake.happens(&HostFailed { host_uuid, host, unseen_by: vec!["host-0".to_owned()], reason });
        }
        fake.fenced(
            "vm2",
            FenceOutcome::SuccessSshUnreachable,
            "host unreachable (host-0: ssh false)",
            "rejects 10.77.0.2 since OSD map epoch 11",
        );
        fake.happens(&VmHaStarted {
            vm_uuid: VmId::from_name("vm2"),
            vm: "vm2".to_owned(),
            from_host: Some("host-1".to_owned()),
            host_uuid: HostId::from_name("host-2"),
            host: "host-2".to_owned(),
            reason: "host-1 failed".to_owned(),
        });
        fake.fenced(
            "vm1",
            FenceOutcome::FailedUnreachable,
            "host unreachable (host-0: ssh false)",
            "not fenced: no quorum <b>bold</b>",
        );
        fake
    }

    /// Somebody writes a cluster into the config file.
    #[allow(dead_code)]
    pub(crate) fn cluster_in_file(&self, name: &str) {
        *self.file.lock() = CONFIG.replacen("}]", &format!("}}, {{ name = '{name}' }}]"), 1);
    }

    /// A VM of host-1 climbs two rungs of the ladder.
    fn fenced(&self, vm: &str, outcome: FenceOutcome, sibling: &str, storage: &str) {
        let refused = if outcome.as_str().starts_with("success") { Verdict::Dead } else { Verdict::Unknown };
        let found = |source, verdict, said: &str| Evidence {
            host_uuid: HostId::from_name("host-1"),
            source,
            verdict,
            unknown: None,
            by: None,
            machine: None,
            sight: None,
            after_ms: 10,
            said: said.to_owned(),
        };
        let (attempt, failed) = (VmId::from_name(&format!("attempt {vm}")).0, HostId::from_name("host-1"));
        for level in [FenceLevel::Sibling, FenceLevel::Storage] {
            self.happens(&FenceIntended {
                attempt,
                vm_uuid: VmId::from_name(vm),
                vm: vm.to_owned(),
                failed_host_uuid: failed,
                cluster_uuid: ClusterId::from_name("c1"),
                ha_target_host_uuid: HostId::from_name("host-0"),
                level,
            });
        }
        self.happens(&SiblingFenceAudited {
            attempt,
            vm_uuid: VmId::from_name(vm),
            vm: vm.to_owned(),
            failed_host_uuid: failed,
            failed_host: "host-1".to_owned(),
            cluster_uuid: ClusterId::from_name("c1"),
            ha_target_host_uuid: HostId::from_name("host-0"),
            outcome,
            executor_host_uuid: None,
            reason: format!("sibling: {sibling}; storage: {storage}"),
            evidence: vec![found(Looked::Sibling, Verdict::Unknown, sibling), found(Looked::Storage, refused, storage)],
        });
    }

    pub(crate) fn happens<E: Event>(&self, event: &E) {
        let mut records = self.records.lock();
        let seq = records.len() as u64 + 1;
        // Each later than the one before.
        let millis = seq * 740;
        let record = Record {
            seq,
            time: format!("2026-11-21T10:{:02}:{:02}.{:03}Z", millis / 60_000 % 60, millis / 1000 % 60, millis % 1000),
            topic: E::TOPIC.to_owned(),
            subject: event.subject(),
            payload: serde_json::to_value(event).unwrap(),
            hash: String::new(),
        };
        records.push(record.clone());
        let _ = self.live.send(record);
    }

    fn ordered(&self, what: impl Into<String>) {
        self.orders.lock().push(what.into());
    }
}

#[async_trait]
impl Backend for Fake {
    async fn healthy(&self) -> Result<()> {
        Ok(())
    }

    async fn metrics(&self) -> String {
        String::new()
    }

    async fn hosts(&self) -> Result<Vec<HostInventory>> {
        Ok(self.hosts.lock().clone())
    }

    async fn host(&self, id: HostId) -> Result<HostInventory> {
        Ok(self.hosts.lock().iter().find(|host| host.uuid == id).unwrap().clone())
    }

    async fn pings(&self, id: HostId) -> Result<Vec<Pinged>> {
        // One in ten is lost; those of a host that is down since it is.
        let down = id == HostId::from_name("host-1");
        let ping = |n: u32| Pinged {
            ago_s: 59 - n,
            took_us: 800 + n * 7919 % 2600,
            answered: if down { n < 50 } else { n % 10 != 7 },
        };
        Ok((0..60).map(ping).collect())
    }

    async fn storages(&self) -> Result<Vec<StorageInventory>> {
        let of = |host: &HostInventory| StorageHostRef {
            host_uuid: host.uuid,
            host: host.name.clone(),
            primary_storage_uuid: StorageId::from_name("vhost-1"),
            storage: "vhost-1".to_owned(),
            status: Some(ProtocolStatus::Connected),
            reason: None,
            check_error: None,
        };
        Ok(vec![StorageInventory {
            uuid: StorageId::from_name("vhost-1"),
            name: "vhost-1".to_owned(),
            kind: StorageKind::Vhost,
            clusters: vec!["c1".to_owned()],
            protocols: vec![Protocol::Vhost],
            hosts: self.hosts.lock().iter().map(of).collect(),
        }])
    }

    async fn vms(&self) -> Result<Vec<VmInventory>> {
        Ok(self.vms.lock().clone())
    }

    async fn vm(&self, id: VmId) -> Result<VmInventory> {
        Ok(self.vms.lock().iter().find(|vm| vm.uuid == id).unwrap().clone())
    }

    async fn refs(&self) -> Result<Vec<HostProtocolRef>> {
        let of = |host: &HostInventory| HostProtocolRef {
            id: 1,
            host_uuid: host.uuid,
            host: host.name.clone(),
            primary_storage_uuid: StorageId::from_name("vhost-1"),
            storage: "vhost-1".to_owned(),
            protocol: Protocol::Vhost,
            status: Some(ProtocolStatus::Disconnected),
            reason: Some("the target does not run".to_owned()),
            redeploys: 3,
            skip_pings: 7,
        };
        Ok(self.hosts.lock().iter().take(1).map(of).collect())
    }

    async fn events(&self, after: u64, limit: usize) -> Result<Vec<Record>> {
        Ok(self.records.lock().iter().filter(|record| record.seq > after).take(limit).cloned().collect())
    }

    async fn newest(&self, of: Option<(&[&str], &str)>, limit: usize) -> Result<Vec<Record>> {
        let records = self.records.lock();
        let wanted = records.iter().filter(|record| {
            of.is_none_or(|(topics, subject)| record.subject == subject && topics.contains(&record.topic.as_str()))
        });
        let wanted: Vec<Record> = wanted.cloned().collect();
        Ok(wanted[wanted.len().saturating_sub(limit)..].to_vec())
    }

    async fn live(&self) -> Result<BoxStream<'static, Record>> {
        let live = self.live.subscribe();
        Ok(stream::unfold(live, |mut live| async { live.recv().await.ok().map(|record| (record, live)) }).boxed())
    }

    async fn inspect(&self) -> Value {
        json!({})
    }

    async fn start_vm(&self, vm: VmId, _: Option<HostId>) -> Result<VmInventory> {
        self.ordered("start");
        self.vm(vm).await
    }

    async fn stop_vm(&self, vm: VmId) -> Result<VmInventory> {
        self.ordered("stop");
        self.vm(vm).await
    }

    async fn ha_start_vm(&self, vm: VmId, _: Option<HostId>) -> Result<VmInventory> {
        self.ordered("ha-start");
        self.vm(vm).await
    }

    async fn plan_ha_start(&self, _: VmId, _: Option<HostId>) -> Result<HaStartPlan> {
        let steps = vec!["quarantine host-1".to_owned(), "start the VM on host-0".to_owned()];
        Ok(HaStartPlan {
            vm: "vm1".to_owned(),
            feasible: true,
            evidence: vec!["ceph://rbd/vm1: no watchers".to_owned()],
            steps,
        })
    }

    async fn confirm_fenced(&self, host: HostId, by: String) -> Result<HostInventory> {
        self.ordered(format!("confirm-fenced by {by}"));
        self.host(host).await
    }

    async fn explain(&self, name: &str) -> Result<Vec<String>> {
        Ok(vec![format!("{name} is explained."), "  - it would be unblocked by this".to_owned()])
    }

    async fn ha_status(&self) -> Result<HaReply> {
        let vms = vec![VmHa { vm_uuid: VmId::from_name("vm1"), why: "it may still write".to_owned() }];
        Ok(HaReply { hosts: Vec::new(), vms, braked: Vec::new() })
    }

    async fn plan_drain(&self, _: HostId) -> Result<DrainPlan> {
        let stays = "it keeps running on its host: no host has room for vm1".to_owned();
        let vms = vec![DrainStep { vm: "vm1".to_owned(), target: None, what: stays }];
        Ok(DrainPlan { host: "host-1".to_owned(), feasible: false, vms })
    }

    async fn host_action(&self, host: HostId, action: HostAction) -> Result<HostInventory> {
        self.ordered(format!("{action:?}"));
        self.host(host).await
    }

    async fn inventory(&self, order: Order, by: String, dry_run: bool) -> Result<Value> {
        let mut source = self.source.lock();
        let new = match order {
            Order::Show => return source.shown(),
            Order::Reload => Source { text: self.file.lock().clone(), ..source.clone() },
            Order::Edit(edit) => source.edited(&edit)?,
        };
        let was = SharedInventory::new(source.clone().config()?.inventory);
        let changes = InventoryDiff::between(&was.now(), &new.clone().config()?.inventory).lines();
        self.ordered(format!("inventory by {by}, dry run {dry_run}"));
        if !dry_run {
            *source = new;
        }
        Ok(json!({ "applied": !dry_run, "changes": changes, "needRestart": [] }))
    }

    async fn hooks(&self) -> Result<Vec<HookInventory>> {
        Ok(vec![HookInventory {
            name: "pager".to_owned(),
            kind: HookKind::Command,
            target: "/usr/local/bin/page-me".to_owned(),
            topics: vec!["ha.*".to_owned()],
            cursor: 41,
            lag: 1,
            delivered: 7,
            given_up: 0,
            tries: 2,
            last_delivered: Some("2026-11-21T10:00:00.000Z".to_owned()),
            last_error: Some("exit status: 75".to_owned()),
            next_try: Some("2026-11-21T10:00:04.000Z".to_owned()),
        }])
    }

    async fn test_hook(&self, name: &str) -> Result<HookTest> {
        self.ordered(format!("test {name}"));
        Ok(HookTest { id: "msg_1".to_owned(), delivered: true, says: "exit status: 0".to_owned(), millis: 3 })
    }

    fn host_id(&self, text: &str) -> Result<HostId> {
        let hosts = self.hosts.lock();
        hosts.iter().find(|host| host.name == text).map(|host| host.uuid).ok_or_else(|| not_found("host", text))
    }

    fn vm_id(&self, text: &str) -> Result<VmId> {
        let vms = self.vms.lock();
        vms.iter().find(|vm| vm.name == text).map(|vm| vm.uuid).ok_or_else(|| not_found("VM", text))
    }
}

/// Serves it; the address.
pub(crate) async fn serve(fake: Arc<Fake>) -> SocketAddr {
    serve_for(fake, Access::default()).await
}

/// Serves it to whom `access` lets in.
pub(crate) async fn serve_for(fake: Arc<Fake>, access: Access) -> SocketAddr {
    let listener = listen::bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(listen::serve(listener, router(fake, access), std::future::pending()));
    address
}
