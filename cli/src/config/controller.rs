//! The controller's file: what it looks after, and how.

use std::{
    collections::HashMap,
    net::SocketAddr,
    num::NonZeroU32,
    ops::Range,
    path::{Path, PathBuf},
};

use ringfence_actors::{
    fence::Policy,
    inventory::{CephHostAccess, Cluster, HaSettings, Host, Inventory, PingSettings, Settings, Storage, Vm, Volume},
};
use ringfence_drivers::{
    ceph::Ceph,
    node::qemu,
    tls::{ServerFiles, TlsFiles},
};
use ringfence_messages::{
    ClusterId, HostId, Protocol, StorageId, VmId, storage::StorageKind, vhost::DEFAULT_HUGEPAGES, vm::InstallPath,
};
use serde_spanned::Spanned;

use crate::http::{access::Token, limit::REQUESTS_PER_SECOND};

use super::{
    Checker, HookConfig, Problems, Source, TelemetryConfig,
    raw::{Raw, RawFence, RawFencer, RawHa, RawHost, RawManaged, RawPing, RawRecovery, RawStorage, RawVm, Text},
    text,
};

/// The longest name of a VM: its exports' names are made of it and must fit a socket's path.
const MAX_VM_NAME: usize = 48;

/// How a host's agent is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentAccess {
    /// The agent's base URL.
    pub url: String,
    /// SSH user, for an MDS that installs things there.
    pub ssh_user: String,
    /// SSH port.
    pub ssh_port: u16,
    /// File with the SSH password.
    pub ssh_password_file: Option<PathBuf>,
}

/// The MDS agents of a ZBS storage, by URL.
pub type MdsAccess = Vec<String>;

/// The controller's own access to a Ceph storage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CephAccess {
    /// The cluster and the user.
    pub cluster: Ceph,
    /// The pool of the volumes.
    pub pool: String,
}

/// A controller's file, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControllerConfig {
    /// What it was read from.
    pub source: Source,
    /// Where the API listens.
    pub listen: SocketAddr,
    /// Its durable state; one controller at a time.
    pub state_dir: PathBuf,
    /// File with the token that agents want to see.
    pub agent_token_file: Option<PathBuf>,
    /// The certificate that it shows to agents, and whom it believes.
    pub agent_tls: Option<TlsFiles>,
    /// The API's certificate; `None`: plain HTTP.
    pub tls: Option<ServerFiles>,
    /// How many requests an address may make of the API.
    pub requests_per_second: NonZeroU32,
    /// Who may use the API; everybody on this machine while there are none.
    pub api_tokens: Vec<Token>,
    /// Whom it tells what happened.
    pub hooks: Vec<HookConfig>,
    /// Where traces go.
    pub telemetry: Option<TelemetryConfig>,
    /// The actors' settings.
    pub settings: Settings,
    /// What it looks after.
    pub inventory: Inventory,
    /// How the hosts' agents are reached.
    pub agents: HashMap<HostId, AgentAccess>,
    /// How the ZBS storages are reached.
    pub mds: HashMap<StorageId, MdsAccess>,
    /// How the Ceph storages are reached.
    pub ceph: HashMap<StorageId, CephAccess>,
}

/// Things of one kind by name, and where they stand.
struct Names<Id> {
    kind: &'static str,
    ids: Vec<(String, Id)>,
}

impl<Id: Copy + PartialEq> Names<Id> {
    fn of(kind: &'static str) -> Names<Id> {
        Names { kind, ids: Vec::new() }
    }

    /// Takes a thing's name and id in; both must be new.
    fn add(
        &mut self,
        checker: &mut Checker,
        name: &Text,
        uuid: Option<&Text>,
        longest: usize,
        parse: impl Fn(&str) -> Result<Id, String>,
        derive: impl Fn(&str) -> Id,
    ) -> Id {
        checker.ok(name.span(), text::name(name.get_ref(), longest));
        let mut id = derive(name.get_ref());
        if let Some(uuid) = uuid {
            let help = "leave uuid away to have it derived from the name".to_owned();
            id = checker.ok(uuid.span(), parse(uuid.get_ref()).map_err(|e| (e, help))).unwrap_or(id);
        }
        if self.ids.iter().any(|(known, _)| known == name.get_ref()) {
            let message = format!("there are two {}s named {:?}", self.kind, name.get_ref());
            checker.wrong(name.span(), message, "give one of them another name");
        } else if self.ids.iter().any(|(_, known)| *known == id) {
            let at = uuid.map_or(name.span(), Spanned::span);
            checker.wrong(
                at,
                format!("there are two {}s with this uuid", self.kind),
                "a uuid names one thing: remove or change it",
            );
        }
        self.ids.push((name.get_ref().clone(), id));
        id
    }

    /// The thing that a text names.
    fn find(&self, checker: &mut Checker, name: &Text) -> Option<Id> {
        let found = self.ids.iter().find(|(known, _)| known == name.get_ref());
        if found.is_none() {
            let known: Vec<&str> = self.ids.iter().map(|(known, _)| known.as_str()).collect();
            let message = format!("there is no {} named {:?}", self.kind, name.get_ref());
            checker.wrong(name.span(), message, text::suggest(name.get_ref(), known));
        }
        found.map(|(_, id)| *id)
    }
}

pub(super) fn parse(source: Source) -> Result<ControllerConfig, Problems> {
    let path = source.path.as_path();
    let mut checker = Checker::new(path, source.text.clone()).and(&source.managed_path, &source.managed);
    let (Some(mut raw), Some(more)) = (checker.parse::<Raw>(0), checker.parse::<RawManaged>(1)) else {
        return checker.finish(None);
    };
    raw.cluster.extend(more.cluster);
    raw.host.extend(more.host);
    raw.storage.extend(more.storage);
    raw.vm.extend(more.vm);

    let base = path.parent().unwrap_or(Path::new("."));
    let c = &mut checker;

    let listen = match &raw.controller.listen {
        Some(listen) => c.ok(listen.span(), text::socket(listen.get_ref())),
        None => Some(SocketAddr::from(([127, 0, 0, 1], 7080))),
    };
    let tls = raw.controller.tls.as_ref().map(|tls| tls.files(base));
    if let (Some(address), Some(at)) = (listen, &raw.controller.listen) {
        exposed(c, address, at, tls.as_ref(), &raw);
    }
    let settings = Settings {
        ping: ping(c, &raw.ping),
        fence: policy(&raw.fence),
        cross_cluster_siblings: raw.fence.cross_cluster_siblings,
        sibling_fencer: raw.fence.fencer == RawFencer::Sibling,
        ha: ha(c, &raw.ha),
        hugepages: hugepages(c, &raw.recovery),
    };

    let mut clusters = Names::<ClusterId>::of("cluster");
    let mut inventory = Inventory::default();
    for table in &raw.cluster {
        let of = table.get_ref();
        let id = clusters.add(c, &of.name, of.uuid.as_ref(), 64, parse_id, ClusterId::from_name);
        inventory.clusters.push(Cluster { id, name: of.name.get_ref().clone() });
    }
    let agent_tls = raw.agent_tls.as_ref().map(|tls| tls.files(base));
    let (agents, host_tables) = hosts(c, &raw.host, &clusters, base, agent_tls.is_some(), &mut inventory);
    let mut storages = Names::<StorageId>::of("storage");
    let mut mds = HashMap::new();
    for table in &raw.storage {
        storage(c, table.get_ref(), table.span(), &clusters, &mut storages, &mut mds, &mut inventory);
    }
    let ceph = ceph_access(&raw.storage, &storages, base);
    vms(c, &raw.vm, &clusters, &storages, &ceph, base, &mut inventory);
    if host_tables == 0 {
        c.wrong(0..1, "the file names no host", "add a [[host]] table with name, cluster, management_ip and agent");
    }
    let api_tokens = super::tokens::tokens(c, &raw.api_token);
    let hooks = super::hooks::hooks(c, &raw.webhook, &raw.command_hook, base);
    let telemetry = raw.telemetry.as_ref().and_then(|of| of.check(c, base));
    let config = listen.map(|listen| ControllerConfig {
        source: source.clone(),
        listen,
        requests_per_second: requests(c, raw.controller.requests_per_second.as_ref()),
        tls,
        agent_tls,
        api_tokens,
        hooks,
        telemetry,
        state_dir: base.join(&raw.controller.state_dir),
        agent_token_file: raw.controller.agent_token_file.as_ref().map(|file| base.join(file)),
        settings,
        inventory,
        agents,
        mds,
        ceph,
    });
    checker.finish(config)
}

fn requests(c: &mut Checker, raw: Option<&Spanned<u32>>) -> NonZeroU32 {
    let wanted = raw.map_or(REQUESTS_PER_SECOND, |raw| *raw.get_ref());
    if let Some(raw) = raw.filter(|_| !(1..=1_000_000).contains(&wanted)) {
        let message = format!("{wanted} requests a second cannot be");
        c.wrong(raw.span(), message, format!("write 1 to 1000000; {REQUESTS_PER_SECOND} is a good value"));
    }
    NonZeroU32::new(wanted).unwrap_or(NonZeroU32::MIN)
}

/// Beyond loopback the API is neither in the clear nor open to everybody, unless told so.
fn exposed(c: &mut Checker, address: SocketAddr, at: &Text, tls: Option<&ServerFiles>, raw: &Raw) {
    if address.ip().is_loopback() || raw.controller.insecure {
        return;
    }
    let Some(tls) = tls else {
        c.wrong(
            at.span(),
            format!("{address} is beyond loopback, in the clear"),
            "add [controller.tls] cert, key (`ringfence pki issue --controller` makes them), listen on 127.0.0.1 and reach it \
             through SSH, or set insecure = true if the network is trusted",
        );
        return;
    };
    if raw.api_token.is_empty() && tls.client_ca.is_none() {
        c.wrong(
            at.span(),
            format!("{address} is beyond loopback, and whoever reaches it may order everything"),
            "add [[api_token]] (`ringfence token NAME`), client_ca to [controller.tls], or insecure = true",
        );
    }
}

fn parse_id<Id: std::str::FromStr<Err = ringfence_messages::ParseIdError>>(text: &str) -> Result<Id, String> {
    text.parse().map_err(|e: ringfence_messages::ParseIdError| e.to_string())
}

fn ping(c: &mut Checker, raw: &RawPing) -> PingSettings {
    let mut ping = PingSettings::default();
    let mut time = |field: &Option<Text>, into: &mut std::time::Duration, may_be_zero: bool| {
        let Some(field) = field else { return };
        let Some(read) = c.ok(field.span(), text::duration(field.get_ref())) else { return };
        if read.is_zero() && !may_be_zero {
            c.wrong(field.span(), "it must be longer than nothing", "write at least \"10ms\"; \"1s\" is a good value");
        }
        *into = read;
    };
    time(&raw.interval, &mut ping.interval, false);
    time(&raw.timeout, &mut ping.timeout, false);
    time(&raw.sleep_after_failure, &mut ping.sleep_after_failure, true);
    if let Some(max) = &raw.max_failure {
        ping.max_failure = *max.get_ref();
        if ping.max_failure == 0 {
            c.wrong(max.span(), "with 0 failures every host is failed at once", "write at least 1; 3 is a good value");
        }
    }
    if let Some(parallelism) = &raw.parallelism {
        ping.parallelism = *parallelism.get_ref();
        if !(1..=10_000).contains(&ping.parallelism) {
            let message = format!("parallelism {} cannot be", ping.parallelism);
            c.wrong(parallelism.span(), message, "write 1 to 10000; 100 is a good value");
        }
    }
    ping
}

fn policy(raw: &RawFence) -> Policy {
    let profile = raw.profile.policy();
    Policy {
        on_watchers: raw.on_watchers.unwrap_or(profile.on_watchers),
        on_ssh_unreachable: raw.on_ssh_unreachable.unwrap_or(profile.on_ssh_unreachable),
        on_no_fencer: raw.on_no_fencer.unwrap_or(profile.on_no_fencer),
        ..profile
    }
}

fn ha(c: &mut Checker, raw: &RawHa) -> HaSettings {
    let mut ha = HaSettings::default();
    if let Some(starts) = &raw.parallel_starts {
        ha.parallelism = *starts.get_ref();
        if !(1..=1000).contains(&ha.parallelism) {
            let message = format!("{} VMs cannot be started at once", ha.parallelism);
            c.wrong(starts.span(), message, "write 1 to 1000; 10 is a good value");
        }
    }
    if let Some(percent) = &raw.storm_brake_percent {
        ha.storm_brake_percent = *percent.get_ref();
        if !(1..=100).contains(&ha.storm_brake_percent) {
            let message = format!("{} percent of the hosts cannot be", ha.storm_brake_percent);
            c.wrong(percent.span(), message, "write 1 to 100; 30 is a good value");
        }
    }
    ha
}

fn hugepages(c: &mut Checker, raw: &RawRecovery) -> u64 {
    let Some(pages) = &raw.hugepages else { return DEFAULT_HUGEPAGES };
    let most = ringfence_drivers::node::hugepages::MAX_PAGES;
    if *pages.get_ref() > most {
        let message = format!("{} hugepages of 2 MiB are more than 1 TiB", pages.get_ref());
        c.wrong(pages.span(), message, "the number is of pages of 2 MiB: 1024 are 2 GiB");
    }
    *pages.get_ref()
}

fn hosts(
    c: &mut Checker,
    tables: &[Spanned<RawHost>],
    clusters: &Names<ClusterId>,
    base: &Path,
    secure: bool,
    inventory: &mut Inventory,
) -> (HashMap<HostId, AgentAccess>, usize) {
    let mut names = Names::<HostId>::of("host");
    let mut agents = HashMap::new();
    let mut taken: Vec<(String, String, String)> = Vec::new();
    for table in tables {
        let of = table.get_ref();
        let id = names.add(c, &of.name, of.uuid.as_ref(), 64, parse_id, HostId::from_name);
        let cluster = clusters.find(c, &of.cluster);
        let management = c.ok(of.management_ip.span(), text::ip(of.management_ip.get_ref()));
        let storage_ips = of.storage_ips.iter().filter_map(|ip| c.ok(ip.span(), text::ip(ip.get_ref()))).collect();
        let url = c.ok(of.agent.span(), text::agent_url(of.agent.get_ref(), secure));
        let (Some(cluster), Some(management), Some(url)) = (cluster, management, url) else { continue };
        if let Some((other, _, _)) = taken.iter().find(|(_, _, known)| *known == url) {
            let message = format!("{} has the agent of {other}", of.name.get_ref());
            c.wrong(of.agent.span(), message, "each host has an agent of its own: correct the address or the port");
        }
        taken.push((of.name.get_ref().clone(), management.to_string(), url.clone()));
        let access = AgentAccess {
            url,
            ssh_user: of.ssh_user.clone().unwrap_or_else(|| "root".to_owned()),
            ssh_port: of.ssh_port.unwrap_or(22),
            ssh_password_file: of.ssh_password_file.as_ref().map(|file| base.join(file)),
        };
        let (name, ssh_port) = (of.name.get_ref().clone(), of.ssh_port.unwrap_or(22));
        let agent_port = text::port(&access.url);
        agents.insert(id, access);
        let management_ip = management.to_string();
        inventory.hosts.push(Host { id, name, cluster, management_ip, agent_port, ssh_port, storage_ips });
    }
    (agents, tables.len())
}

#[allow(clippy::too_many_arguments)]
fn storage(
    c: &mut Checker,
    of: &RawStorage,
    at: Range<usize>,
    clusters: &Names<ClusterId>,
    names: &mut Names<StorageId>,
    mds: &mut HashMap<StorageId, MdsAccess>,
    inventory: &mut Inventory,
) {
    let id = names.add(c, &of.name, of.uuid.as_ref(), 64, parse_id, StorageId::from_name);
    let of_clusters: Vec<ClusterId> = of.clusters.iter().filter_map(|name| clusters.find(c, name)).collect();
    if of.clusters.is_empty() {
        c.wrong(at.clone(), "no cluster uses this storage", "name its clusters: clusters = [\"NAME\"]");
    }
    let (allowed, by_default): (&[Protocol], &[Protocol]) = match of.kind {
        StorageKind::Vhost => (&[Protocol::Vhost], &[Protocol::Vhost]),
        StorageKind::Zbs => (&[Protocol::Cbd, Protocol::Vhost], &[Protocol::Cbd, Protocol::Vhost]),
        StorageKind::Ceph | StorageKind::Dir => (&[], &[]),
    };
    let mut protocols = Vec::new();
    for protocol in of.protocols.iter().flatten() {
        let (p, kind) = (*protocol.get_ref(), of.kind);
        if !allowed.contains(&p) {
            let known: Vec<_> = allowed.iter().map(|p| format!("\"{p}\"")).collect();
            let help =
                if known.is_empty() { "leave protocols away".into() } else { format!("write {}", known.join(" or ")) };
            c.wrong(protocol.span(), format!("a storage of kind {kind:?} has no protocol {p}"), help);
        } else if protocols.contains(&p) {
            c.wrong(protocol.span(), format!("{p} stands here twice"), "keep one of the two");
        }
        protocols.push(p);
    }
    if of.protocols.is_none() {
        protocols = by_default.to_vec();
    }
    let volume_dir = of.dir.as_ref().and_then(|dir| c.ok(dir.span(), text::absolute(dir.get_ref())));
    let mut urls = Vec::new();
    for url in &of.mds {
        urls.extend(c.ok(url.span(), text::url(url.get_ref())));
    }
    let host_conf = of.host_conf.as_ref().and_then(|conf| c.ok(conf.span(), text::absolute(conf.get_ref())));
    let mut ceph = None;
    match of.kind {
        StorageKind::Dir if of.dir.is_none() => {
            c.wrong(at, "a storage of kind \"dir\" needs a directory", "add dir = \"/PATH\", the same on every host");
        }
        StorageKind::Zbs if of.mds.is_empty() => {
            c.wrong(at, "a storage of kind \"zbs\" needs its MDS agents", "add mds = [\"http://ADDRESS:7763\"]");
        }
        StorageKind::Ceph => {
            let missing: Vec<&str> =
                [("pool", of.pool.is_none()), ("conf", of.conf.is_none()), ("user", of.user.is_none())]
                    .into_iter()
                    .filter_map(|(key, missing)| missing.then_some(key))
                    .collect();
            if !missing.is_empty() {
                let message = format!("a storage of kind \"ceph\" needs {}", missing.join(", "));
                c.wrong(at, message, "add pool, and conf and user of the controller's own access");
            }
            ceph = Some(CephHostAccess {
                conf: host_conf.unwrap_or_else(|| "/etc/ceph/ceph.conf".to_owned()),
                user: of.host_user.clone().unwrap_or_else(|| "compute".to_owned()),
            });
        }
        _ => {}
    }
    if let Some(on_loss) = of.on_target_loss.as_ref().filter(|_| of.kind != StorageKind::Vhost) {
        let message = "on_target_loss is for storages of kind \"vhost\": no other has a target that the agent deploys";
        c.wrong(on_loss.span(), message, "remove on_target_loss");
    }
    let on_target_loss = of.on_target_loss.as_ref().map(|on_loss| *on_loss.get_ref()).unwrap_or_default();
    if !urls.is_empty() {
        mds.insert(id, urls);
    }
    let name = of.name.get_ref().clone();
    let (kind, clusters) = (of.kind, of_clusters);
    inventory.storages.push(Storage { id, name, kind, clusters, protocols, volume_dir, on_target_loss, ceph });
}

fn vms(
    c: &mut Checker,
    tables: &[Spanned<RawVm>],
    clusters: &Names<ClusterId>,
    storages: &Names<StorageId>,
    ceph: &HashMap<StorageId, CephAccess>,
    base: &Path,
    inventory: &mut Inventory,
) {
    let mut names = Names::<VmId>::of("VM");
    let mut taken = HashMap::<(StorageId, InstallPath), String>::new();
    for table in tables {
        let of = table.get_ref();
        let id = names.add(c, &of.name, of.uuid.as_ref(), MAX_VM_NAME, parse_id, VmId::from_name);
        let cluster = clusters.find(c, &of.cluster);
        if !qemu::MEMORY_MIB.contains(of.memory_mib.get_ref()) {
            let message = format!("{} MiB of memory cannot be", of.memory_mib.get_ref());
            c.wrong(of.memory_mib.span(), message, "memory_mib is in MiB: 1024 are 1 GiB; at least 1");
        }
        let libvirt_xml = of.libvirt.as_ref().and_then(|libvirt| {
            let read = domain(&base.join(libvirt.xml.get_ref()), id, of.name.get_ref());
            c.ok(libvirt.xml.span(), read)
        });
        for arg in of.qemu_args.iter().filter(|arg| qemu::reserved(arg.get_ref())) {
            c.wrong(arg.span(), format!("{} is set by the agent itself", arg.get_ref()), "remove it and its value");
        }
        let mut volumes = Vec::new();
        for table in &of.volume {
            let volume = table.get_ref();
            let storage = storages.find(c, &volume.storage);
            let path = c.ok(volume.install_path.span(), text::install_path(volume.install_path.get_ref()));
            let (Some(storage), Some(install_path)) = (storage, path) else { continue };
            let kind = inventory.storages.iter().find(|s| s.id == storage);
            if let Some(kind) = kind {
                if !fits(kind.kind, &install_path) {
                    let message = format!("{install_path} does not lie on a storage of kind {:?}", kind.kind);
                    let help = format!("write {}, or name another storage", form(kind.kind));
                    c.wrong(volume.install_path.span(), message, help);
                }
                if let (InstallPath::Ceph { pool, .. }, Some(CephAccess { pool: of_storage, .. })) =
                    (&install_path, ceph.get(&storage))
                    && pool != of_storage
                {
                    let message =
                        format!("{install_path} does not lie in {:?}, the pool of {:?}", of_storage, kind.name);
                    c.wrong(volume.install_path.span(), message, format!("write ceph://{of_storage}/IMAGE"));
                }
                if let Some(cluster) = cluster
                    && !kind.clusters.contains(&cluster)
                {
                    let message =
                        format!("storage {:?} is not attached to cluster {:?}", kind.name, of.cluster.get_ref());
                    c.wrong(volume.storage.span(), message, "add the cluster to the storage's clusters");
                }
            }
            if let Some(other) = taken.insert((storage, install_path.clone()), of.name.get_ref().clone()) {
                let message = format!("{install_path} is a volume of {other} already");
                c.wrong(volume.install_path.span(), message, "a disk has one writer: name another volume");
            }
            volumes.push(Volume { storage, install_path, root: volume.root });
        }
        match of.volume.iter().filter(|volume| volume.get_ref().root).count() {
            _ if of.volume.is_empty() => {
                c.wrong(of.name.span(), "it has no volume", "add a [[vm.volume]] table with root = true")
            }
            0 => c.wrong(
                of.name.span(),
                "none of its volumes is the root volume",
                "add root = true to the one it boots from",
            ),
            1 => {}
            n => c.wrong(
                of.name.span(),
                format!("{n} of its volumes are root volumes"),
                "keep root = true on one of them",
            ),
        }
        let Some(cluster) = cluster else { continue };
        volumes.sort_by_key(|volume| !volume.root);
        inventory.vms.push(Vm {
            id,
            name: of.name.get_ref().clone(),
            cluster,
            ha: of.ha,
            memory_mib: *of.memory_mib.get_ref(),
            qemu_args: of.qemu_args.iter().map(|arg| arg.get_ref().clone()).collect(),
            libvirt_xml,
            volumes,
        });
    }
}

/// The largest domain file: real ones have some KiB.
const MAX_DOMAIN_BYTES: u64 = 256 << 10;

/// A libvirt domain that is this VM: it is found on a host by its uuid.
fn domain(path: &Path, id: VmId, name: &str) -> Result<String, (String, String)> {
    let shown = path.display();
    let failed = |why: String| (format!("{shown}: {why}"), "name a file with a libvirt <domain>".to_owned());
    let found = std::fs::metadata(path).map_err(|e| failed(e.to_string()))?;
    if !found.is_file() {
        return Err(failed("it is not a file".to_owned()));
    }
    if found.len() > MAX_DOMAIN_BYTES {
        return Err(failed(format!("{} bytes are no domain, at most {MAX_DOMAIN_BYTES} are read", found.len())));
    }
    let xml = std::fs::read_to_string(path).map_err(|e| failed(e.to_string()))?;
    for (what, wanted) in [("name", name.to_owned()), ("uuid", id.to_string())] {
        let exact = [
            format!("<{what}>{wanted}</{what}>"),
            format!("<{what}>{{{}}}</{what}>", if what == "name" { "vm" } else { what }),
        ];
        if !exact.iter().any(|exact| xml.contains(exact)) {
            let help =
                format!("write {} or {} in the domain, or give the VM the domain's own {what}", exact[0], exact[1]);
            return Err((format!("{shown} is not the domain of {name}: its {what} is not {wanted}"), help));
        }
    }
    Ok(xml)
}

fn ceph_access(
    tables: &[Spanned<RawStorage>],
    names: &Names<StorageId>,
    base: &Path,
) -> HashMap<StorageId, CephAccess> {
    let access = |of: &RawStorage| {
        let (_, id) = names.ids.iter().find(|(name, _)| name == of.name.get_ref())?;
        let cluster = Ceph { conf: base.join(of.conf.as_ref()?), user: of.user.clone()? };
        Some((*id, CephAccess { cluster, pool: of.pool.clone()? }))
    };
    tables.iter().filter_map(|table| access(table.get_ref())).collect()
}

fn fits(kind: StorageKind, path: &InstallPath) -> bool {
    matches!(
        (kind, path),
        (StorageKind::Ceph, InstallPath::Ceph { .. })
            | (StorageKind::Zbs, InstallPath::Zbs { .. } | InstallPath::Cbd { .. })
            | (StorageKind::Vhost, InstallPath::Vhost { .. })
            | (StorageKind::Dir, InstallPath::Dir { .. })
    )
}

fn form(kind: StorageKind) -> &'static str {
    match kind {
        StorageKind::Ceph => "ceph://POOL/IMAGE",
        StorageKind::Zbs => "zbs://POOL/VOLUME or cbd:PHYSICAL/LOGICAL/VOLUME",
        StorageKind::Vhost => "vhost://NAME",
        StorageKind::Dir => "dir://FILE",
    }
}
