//! Ports in memory: hosts and a journal that a test arranges and inspects.
//!
//! They keep the ports' promises (a repeated task is carried out once, a stale command is rejected) but have no
//! faults beyond those that a test arranges. The simulator's world is in `sim`.

use std::{
    collections::{BTreeMap, HashMap},
    net::{IpAddr, Ipv4Addr},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use async_trait::async_trait;
use parking_lot::Mutex;
use ringfence_messages::{
    ClusterId, Code, ErrorCode, HostId, Protocol, Result, StorageId, VmId,
    agent::Done,
    ceph::Watcher,
    evidence::{Machine, Sight},
    fence::{SiblingFenceVmCmd, SiblingFenceVmOnHostReply},
    ha::{ScanHostCmd, ScanHostCmdReply},
    host::{HostFactsCmd, HostFactsReply, HostPingReply},
    journal::JournalHead,
    storage::StorageKind,
    vhost::{
        CreateVhostBdevCmd, CreateVhostBdevReply, DeleteVhostBdevCmd, DeployVhostCmd, DeployVhostReply,
        PrepareVhostTargetEnvCmd, PrepareVhostTargetEnvReply, VhostTargetHealthCmd, VhostTargetHealthReply,
    },
    vm::{HaMode, ListVmsCmd, ListVmsReply, RunningVm, StartVmCmd, StartVmCmdReply, StopVmCmd},
    zbs::CheckHostConnectionReply,
};

use crate::{
    fence::StartPermit,
    host::AGENT_VERSION,
    inventory::{CephHostAccess, Cluster, Host, Inventory, Storage, Vm, Volume},
    ports::{
        Call, CephMap, CephPort, HostAgentPort, JournalPort, LeadershipPort, MAX_READ, MdsPort, NewRecord, Ports,
        Record,
    },
};

/// The cluster `c1` with these hosts at 10.0.0.1, 10.0.0.2 and so on, without storages or VMs.
pub fn cluster_of<'a>(hosts: impl IntoIterator<Item = &'a str>) -> Inventory {
    let cluster = Cluster { id: ClusterId::from_name("c1"), name: "c1".to_owned() };
    let host = |name: &str| Host {
        id: HostId::from_name(name),
        name: name.to_owned(),
        cluster: cluster.id,
        management_ip: String::new(),
        agent_port: 7070,
        ssh_port: 22,
        storage_ips: Vec::new(),
    };
    let mut hosts: Vec<Host> = hosts.into_iter().map(host).collect();
    for (i, host) in hosts.iter_mut().enumerate() {
        let ip = Ipv4Addr::from(0x0a00_0001 + i as u32);
        (host.management_ip, host.storage_ips) = (ip.to_string(), vec![ip.into()]);
    }
    Inventory { clusters: vec![cluster], hosts, ..Inventory::default() }
}

/// The storage of this name and kind, with these protocols, for the cluster `c1`.
pub fn storage_of(name: &str, kind: StorageKind, protocols: &[Protocol]) -> Storage {
    Storage {
        id: StorageId::from_name(name),
        name: name.to_owned(),
        kind,
        clusters: vec![ClusterId::from_name("c1")],
        protocols: protocols.to_vec(),
        volume_dir: None,
        on_target_loss: Default::default(),
        ceph: None,
        watchers_allowed: Vec::new(),
    }
}

/// The Ceph storage of this name, for the cluster `c1`.
pub fn ceph_of(name: &str) -> Storage {
    let access = CephHostAccess { conf: "/c".to_owned(), user: "u".to_owned() };
    Storage { ceph: Some(access), ..storage_of(name, StorageKind::Ceph, &[]) }
}

/// A VM of this name in cluster `c1`: `NeverStop`, 512 MiB, on the image `rbd/NAME` of the storage `s`.
///
/// # Panics
/// If the name is no valid image name.
pub fn vm_of(name: &str) -> Vm {
    let volume = Volume {
        storage: StorageId::from_name("s"),
        install_path: format!("ceph://rbd/{name}").parse().expect("an image's name"),
        root: true,
    };
    Vm {
        id: VmId::from_name(name),
        name: name.to_owned(),
        cluster: ClusterId::from_name("c1"),
        ha: HaMode::NeverStop,
        memory_mib: 512,
        qemu_args: Vec::new(),
        libvirt_xml: None,
        volumes: vec![volume],
    }
}

/// What a test arranges of one host.
#[derive(Clone, Debug)]
pub struct FakeHost {
    /// Its agent answers.
    pub answers: bool,
    /// Its SSH answers sibling hosts.
    pub ssh: bool,
    /// Reported available memory, in MiB.
    pub available_mib: u64,
    /// Its vhost target runs; a deploy starts it.
    pub target: bool,
    /// Error of a deploy of the target, if it fails.
    pub deploy_error: Option<ErrorCode>,
    /// Error of the preparation of the host, if it fails.
    pub prepare_error: Option<ErrorCode>,
    /// Time that the preparation of the host takes.
    pub prepare_takes: Duration,
    /// Error of the health check, if it fails.
    pub health_error: Option<ErrorCode>,
    /// Error of a VM's start, if it fails.
    pub start_error: Option<ErrorCode>,
    /// Error of the end of an export by the MDS, if it fails.
    pub export_error: Option<ErrorCode>,
    /// The QEMU of this VM does not end, and its stop fails with this error.
    pub stop_error: Option<(VmId, ErrorCode)>,
    /// The QEMU processes, by VM.
    pub vms: BTreeMap<VmId, RunningVm>,
    /// The furthest journal head that it has heard.
    pub witness: Option<JournalHead>,
}

impl Default for FakeHost {
    /// A host that answers and runs nothing.
    fn default() -> Self {
        FakeHost {
            answers: true,
            ssh: true,
            available_mib: 4096,
            target: false,
            deploy_error: None,
            prepare_error: None,
            prepare_takes: Duration::ZERO,
            health_error: None,
            start_error: None,
            export_error: None,
            stop_error: None,
            vms: BTreeMap::new(),
            witness: None,
        }
    }
}

/// Hosts, MDS and journal in memory.
#[derive(Default)]
pub struct FakeWorld {
    hosts: Mutex<HashMap<HostId, FakeHost>>,
    calls: Mutex<Vec<(HostId, &'static str)>>,
    /// The Ceph cluster, one for all Ceph storages.
    pub ceph: Mutex<FakeCeph>,
    epoch: AtomicU64,
    /// Another controller is the leader.
    pub stale_leader: AtomicBool,
    /// Pings, answered or not.
    pub pings: AtomicU64,
    /// Health checks of protocols.
    pub health_checks: AtomicU64,
    /// The journal.
    pub journal: Arc<MemoryJournal>,
}

impl FakeWorld {
    /// A world of these hosts, as in [`FakeHost::default`].
    pub fn new(hosts: impl IntoIterator<Item = HostId>) -> Arc<FakeWorld> {
        let hosts = hosts.into_iter().map(|id| (id, FakeHost::default())).collect();
        Arc::new(FakeWorld { hosts: Mutex::new(hosts), ..FakeWorld::default() })
    }

    /// The ports of this world.
    pub fn ports(self: &Arc<Self>) -> Ports {
        Ports {
            agents: self.clone(),
            mds: self.clone(),
            ceph: self.clone(),
            leadership: self.clone(),
            journal: self.journal.clone(),
        }
    }

    /// Changes or inspects a host.
    ///
    /// # Panics
    /// If there is no such host.
    pub fn host<T>(&self, id: HostId, change: impl FnOnce(&mut FakeHost) -> T) -> T {
        change(self.hosts.lock().get_mut(&id).expect("a host of this world"))
    }

    /// The calls since the last query, without pings and health checks.
    pub fn take_calls(&self) -> Vec<(HostId, &'static str)> {
        std::mem::take(&mut self.calls.lock())
    }

    fn reach<T>(&self, id: HostId, call: &'static str, ask: impl FnOnce(&mut FakeHost) -> Result<T>) -> Result<T> {
        if !call.is_empty() {
            self.calls.lock().push((id, call));
        }
        let mut hosts = self.hosts.lock();
        let host = hosts.get_mut(&id).ok_or_else(|| ErrorCode::new(Code::NOT_FOUND, "no such host"))?;
        if !host.answers {
            return Err(ErrorCode::new(Code::HOST_DISCONNECTED, "cannot reach the agent: no route to host"));
        }
        ask(host)
    }
}

/// A list of processes with full sight.
pub fn list(vms: Vec<RunningVm>) -> ListVmsReply {
    ListVmsReply { vms, sight: Sight::full(), ..ListVmsReply::default() }
}

/// The machine of a host in this world.
pub fn machine(host: HostId) -> Machine {
    Machine { machine_id: host.0.simple().to_string(), boot_id: "boot".to_owned() }
}

fn unless(error: &Option<ErrorCode>) -> Result<()> {
    error.clone().map_or(Ok(()), Err)
}

#[async_trait]
impl HostAgentPort for FakeWorld {
    async fn ping(&self, host: HostId, head: Option<JournalHead>, _: Call) -> Result<HostPingReply> {
        self.pings.fetch_add(1, Relaxed);
        let version = AGENT_VERSION.to_owned();
        self.reach(host, "", |fake_host| {
            fake_host.witness =
                head.map(|head| head.heard_after(fake_host.witness.as_ref())).or(fake_host.witness.take());
            let (boot_id, machine, witness) = ("boot".to_owned(), machine(host), fake_host.witness.clone());
            Ok(HostPingReply { host_uuid: host, version, boot_id, machine, witness })
        })
    }

    async fn facts(&self, host: HostId, _: HostFactsCmd, _: Call) -> Result<HostFactsReply> {
        self.reach(host, "facts", |host_facts| {
            Ok(HostFactsReply {
                host_uuid: host,
                version: AGENT_VERSION.to_owned(),
                hostname: "fake".to_owned(),
                accel: "tcg".to_owned(),
                qemu_version: "7.2.0".to_owned(),
                memory_mib: 4096,
                available_mib: host_facts.available_mib,
                cpus: 4,
                free_hugepages: 0,
                addresses: Vec::new(),
            })
        })
    }

    async fn prepare_vhost_target_env(
        &self,
        host: HostId,
        _: PrepareVhostTargetEnvCmd,
        _: Call,
    ) -> Result<PrepareVhostTargetEnvReply> {
        tokio::time::sleep(self.host(host, |host| host.prepare_takes)).await;
        self.reach(host, "prepare", |host| unless(&host.prepare_error).map(|()| PrepareVhostTargetEnvReply::default()))
    }

    async fn deploy_vhost(&self, host: HostId, _: DeployVhostCmd, _: Call) -> Result<DeployVhostReply> {
        self.reach(host, "deploy", |host| {
            unless(&host.deploy_error)?;
            let started = !std::mem::replace(&mut host.target, true);
            Ok(DeployVhostReply { pid: 7, started, ..DeployVhostReply::default() })
        })
    }

    async fn vhost_health(&self, host: HostId, _: VhostTargetHealthCmd, _: Call) -> Result<VhostTargetHealthReply> {
        self.health_checks.fetch_add(1, Relaxed);
        self.reach(host, "", |host| {
            unless(&host.health_error)?;
            let reason = (!host.target).then(|| "the target does not run".to_owned());
            Ok(VhostTargetHealthReply { target_running: host.target, reason })
        })
    }

    async fn create_vhost_bdev(&self, host: HostId, cmd: CreateVhostBdevCmd, _: Call) -> Result<CreateVhostBdevReply> {
        self.reach(host, "export", |host| {
            if host.target {
                Ok(CreateVhostBdevReply { socket_path: format!("/run/{}.sock", cmd.bdev_name) })
            } else {
                Err(ErrorCode::new(Code::NOT_READY, "the target does not run"))
            }
        })
    }

    async fn delete_vhost_bdev(&self, host: HostId, _: DeleteVhostBdevCmd, _: Call) -> Result<Done> {
        self.reach(host, "unexport", |_| Ok(Done {}))
    }

    async fn start_vm(&self, host: HostId, permit: &StartPermit, cmd: StartVmCmd, _: Call) -> Result<StartVmCmdReply> {
        assert!(permit.covers(host, &cmd), "started without a permit for it");
        self.reach(host, "start", |host| {
            unless(&host.start_error)?;
            let running = RunningVm { incarnation: Some(cmd.incarnation), ..RunningVm::qemu(cmd.vm_uuid, 42) };
            if host.vms.contains_key(&cmd.vm_uuid) {
                return Err(ErrorCode::new(Code::CHANGE_STATE, "it runs already"));
            }
            host.vms.insert(cmd.vm_uuid, running);
            Ok(StartVmCmdReply { pid: 42, accel: "tcg".to_owned(), memory: "memfd".to_owned() })
        })
    }

    async fn stop_vm(&self, host: HostId, cmd: StopVmCmd, _: Call) -> Result<Done> {
        self.reach(host, "stop", |host| {
            if let Some((_, error)) = host.stop_error.as_ref().filter(|(vm, _)| *vm == cmd.vm_uuid) {
                return Err(error.clone());
            }
            host.vms.remove(&cmd.vm_uuid);
            Ok(Done {})
        })
    }

    async fn list_vms(&self, host: HostId, _: ListVmsCmd, _: Call) -> Result<ListVmsReply> {
        let machine = machine(host);
        self.reach(host, "", |host| {
            Ok(ListVmsReply { vms: host.vms.values().cloned().collect(), clock_ms: 0, sight: Sight::full(), machine })
        })
    }

    /// The failed host is reached if its SSH answers; the VM there is killed.
    async fn sibling_fence(&self, host: HostId, cmd: SiblingFenceVmCmd, _: Call) -> Result<SiblingFenceVmOnHostReply> {
        self.reach(host, "sibling fence", |_| Ok(()))?;
        let (ssh_reachable, found) = self
            .host(cmd.failed_host_uuid, |failed| (failed.ssh, failed.ssh && failed.vms.remove(&cmd.vm_uuid).is_some()));
        Ok(SiblingFenceVmOnHostReply {
            alive: !ssh_reachable,
            killed: found,
            ssh_reachable,
            qemu_found: found,
            executor_host_uuid: Some(host),
            machine: ssh_reachable.then(|| machine(cmd.failed_host_uuid)),
            sight: ssh_reachable.then(Sight::full),
            ..SiblingFenceVmOnHostReply::default()
        })
    }

    async fn scan_host(&self, host: HostId, cmd: ScanHostCmd, _: Call) -> Result<ScanHostCmdReply> {
        self.reach(host, "", |_| Ok(()))?;
        let (ssh, agent) = self.host(cmd.host_uuid, |other| (other.ssh, other.answers));
        Ok(ScanHostCmdReply { ssh, agent, reason: "looked".to_owned() })
    }
}

/// What a test arranges of the Ceph cluster.
#[derive(Clone, Debug, Default)]
pub struct FakeCeph {
    /// Watchers of each image.
    pub watchers: BTreeMap<String, Vec<IpAddr>>,
    /// Daemons and rejected addresses.
    pub map: CephMap,
    /// Error of every call, if it fails.
    pub error: Option<ErrorCode>,
}

#[async_trait]
impl CephPort for FakeWorld {
    async fn watchers(&self, _: StorageId, _: &str, image: &str) -> Result<Vec<Watcher>> {
        let ceph = self.ceph.lock();
        unless(&ceph.error)?;
        let ips = ceph.watchers.get(image).cloned().unwrap_or_default();
        Ok(ips.into_iter().map(|ip| Watcher { address: format!("{ip}:0/1"), ip }).collect())
    }

    async fn map(&self, _: StorageId) -> Result<CephMap> {
        let ceph = self.ceph.lock();
        unless(&ceph.error).map(|()| ceph.map.clone())
    }

    /// A rejected client loses its watch.
    async fn block(&self, _: StorageId, ip: IpAddr, _: Duration) -> Result<u64> {
        let mut ceph = self.ceph.lock();
        unless(&ceph.error)?;
        ceph.watchers.values_mut().for_each(|watchers| watchers.retain(|watcher| *watcher != ip));
        ceph.map.blocked.insert(ip);
        ceph.map.epoch += 1;
        Ok(ceph.map.epoch)
    }

    async fn unblock(&self, _: StorageId, ip: IpAddr) -> Result<u64> {
        let mut ceph = self.ceph.lock();
        unless(&ceph.error)?;
        ceph.map.blocked.remove(&ip);
        ceph.map.epoch += 1;
        Ok(ceph.map.epoch)
    }
}

#[async_trait]
impl LeadershipPort for FakeWorld {
    async fn acquire(&self, above: u64) -> Result<u64> {
        let epoch = self.epoch.load(Relaxed).max(above) + 1;
        self.epoch.store(epoch, Relaxed);
        Ok(epoch)
    }

    fn leads(&self) -> bool {
        !self.stale_leader.load(Relaxed)
    }
}

#[async_trait]
impl MdsPort for FakeWorld {
    async fn deploy_client(&self, _: StorageId, host: HostId, _: Call) -> Result<Done> {
        self.reach(host, "deploy client", |_| Ok(Done {}))
    }

    async fn update_host_dependency(&self, _: StorageId, host: HostId, _: Call) -> Result<Done> {
        self.reach(host, "update dependency", |_| Ok(Done {}))
    }

    async fn deploy_vhost(&self, _: StorageId, host: HostId, _: Call) -> Result<Done> {
        self.reach(host, "deploy", |host| {
            unless(&host.deploy_error)?;
            host.target = true;
            Ok(Done {})
        })
    }

    async fn check_host_connection(&self, _: StorageId, host: HostId, _: Call) -> Result<CheckHostConnectionReply> {
        self.health_checks.fetch_add(1, Relaxed);
        self.reach(host, "", |_| Ok(CheckHostConnectionReply { connected: true, reason: None }))
    }

    async fn create_vhost_bdev(
        &self,
        _: StorageId,
        host: HostId,
        _: &str,
        _: &str,
        bdev_name: &str,
        _: Call,
    ) -> Result<CreateVhostBdevReply> {
        self.reach(host, "export", |_| Ok(CreateVhostBdevReply { socket_path: format!("/run/{bdev_name}.sock") }))
    }

    /// The MDS reaches the host by SSH: its agent need not answer.
    async fn delete_vhost_bdev(&self, _: StorageId, host: HostId, _: &str, _: Call) -> Result<Done> {
        self.calls.lock().push((host, "end export"));
        self.host(host, |host| unless(&host.export_error)).map(|()| Done {})
    }
}

/// A journal in memory.
#[derive(Default)]
pub struct MemoryJournal {
    records: Mutex<Vec<Record>>,
    broken: Mutex<Option<ErrorCode>>,
}

impl MemoryJournal {
    /// Fails every append with this error; `None` ends that.
    pub fn set_broken(&self, error: Option<ErrorCode>) {
        *self.broken.lock() = error;
    }

    /// The records so far.
    pub fn records(&self) -> Vec<Record> {
        self.records.lock().clone()
    }

    /// The records of one topic so far, decoded.
    ///
    /// # Panics
    /// If one is not such an event.
    pub fn events<E: ringfence_messages::Event>(&self) -> Vec<E> {
        let records = self.records.lock();
        let of_topic = records.iter().filter(|record| record.topic == E::TOPIC);
        of_topic.map(|record| record.event().expect("the topic's own event")).collect()
    }
}

#[async_trait]
impl JournalPort for MemoryJournal {
    async fn append(&self, new: Vec<NewRecord>) -> Result<Vec<Record>> {
        unless(&self.broken.lock())?;
        let mut records = self.records.lock();
        let mut appended = Vec::with_capacity(new.len());
        for NewRecord { topic, subject, payload, waited: _ } in new {
            let seq = records.len() as u64 + 1;
            let record = Record { seq, time: String::new(), topic, subject, payload, hash: String::new() };
            records.push(record.clone());
            appended.push(record);
        }
        Ok(appended)
    }

    async fn read(&self, after: u64, limit: usize) -> Result<Vec<Record>> {
        let records = self.records.lock();
        Ok(records.iter().skip(after as usize).take(limit.min(MAX_READ)).cloned().collect())
    }

    async fn latest(&self, topic: &str) -> Result<Vec<Record>> {
        let mut latest = BTreeMap::new();
        for record in self.records.lock().iter().filter(|record| record.topic == topic) {
            latest.insert(record.subject.clone(), record.clone());
        }
        let mut latest: Vec<Record> = latest.into_values().collect();
        latest.sort_by_key(|record| record.seq);
        Ok(latest)
    }
}
