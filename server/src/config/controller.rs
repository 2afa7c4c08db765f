//! The controller's file.

use std::{
    collections::HashMap,
    fmt::Display,
    net::SocketAddr,
    num::NonZeroU32,
    ops::Range,
    path::{Path, PathBuf},
};

use ringfence_actors::{
    fence::Policy,
    inventory::{Cluster, HaSettings, Inventory, PingSettings, Settings},
};
use ringfence_drivers::tls::{ServerFiles, TlsFiles};
use ringfence_messages::{ClusterId, HostId, StorageId, storage::StorageKind, vhost::DEFAULT_HUGEPAGES};
use serde_spanned::Spanned;

use crate::auth::Token;

use super::{
    AgentAccess, CephAccess, Checker, HookConfig, MdsAccess, Problems, Source, TelemetryConfig,
    raw::{Raw, RawFence, RawFencer, RawHa, RawManaged, RawPing, RawRecovery, Text},
    text,
};

/// Default of `requests_per_second`. Too low: a large page together with scripts is slowed down. Too high: one client
/// keeps the API's thread busy.
const REQUESTS_PER_SECOND: u32 = 200;

/// A controller's file, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControllerConfig {
    /// The texts of the files.
    pub source: Source,
    /// Where the API listens.
    pub listen: SocketAddr,
    /// Its durable state; one controller at a time.
    pub state_dir: PathBuf,
    /// File with the token for agents.
    pub agent_token_file: Option<PathBuf>,
    /// Certificate for agents, and trusted certificate authorities.
    pub agent_tls: Option<TlsFiles>,
    /// The API's certificate; `None`: plain HTTP.
    pub tls: Option<ServerFiles>,
    /// Rate limit of API requests from one address.
    pub requests_per_second: NonZeroU32,
    /// Tokens of the API; without tokens every local user is an admin.
    pub api_tokens: Vec<Token>,
    /// Receivers of events.
    pub hooks: Vec<HookConfig>,
    /// Collector of traces.
    pub telemetry: Option<TelemetryConfig>,
    /// The actors' settings.
    pub settings: Settings,
    /// The inventory.
    pub inventory: Inventory,
    /// Access to the agents of hosts.
    pub agents: HashMap<HostId, AgentAccess>,
    /// Access to ZBS storages.
    pub mds: HashMap<StorageId, MdsAccess>,
    /// Access to Ceph storages.
    pub ceph: HashMap<StorageId, CephAccess>,
}

/// Names and ids of the items of one kind.
pub(super) struct Names<Id> {
    kind: &'static str,
    pub(super) ids: Vec<(String, Id)>,
}

impl<Id: Copy + PartialEq> Names<Id> {
    pub(super) fn of(kind: &'static str) -> Names<Id> {
        Names { kind, ids: Vec::new() }
    }

    /// Adds an item; its name and id must be new.
    pub(super) fn add(
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
            let help = "omit `uuid` to derive it from the name".to_owned();
            id = checker.ok(uuid.span(), parse(uuid.get_ref()).map_err(|e| (e, help))).unwrap_or(id);
        }
        if self.ids.iter().any(|(known, _)| known == name.get_ref()) {
            let message = format!("there are two {}s named {:?}", self.kind, name.get_ref());
            checker.wrong(name.span(), message, "rename one of them");
        } else if self.ids.iter().any(|(_, known)| *known == id) {
            let at = uuid.map_or(name.span(), Spanned::span);
            checker.wrong(at, format!("there are two {}s with this uuid", self.kind), "remove or change one of them");
        }
        self.ids.push((name.get_ref().clone(), id));
        id
    }

    /// The id of a name.
    pub(super) fn known(&self, name: &str) -> Option<Id> {
        self.ids.iter().find(|(known, _)| known == name).map(|(_, id)| *id)
    }

    /// The id of a name; an unknown name is an error.
    pub(super) fn find(&self, checker: &mut Checker, name: &Text) -> Option<Id> {
        let found = self.known(name.get_ref());
        if found.is_none() {
            let known: Vec<&str> = self.ids.iter().map(|(known, _)| known.as_str()).collect();
            let message = format!("there is no {} named {:?}", self.kind, name.get_ref());
            checker.wrong(name.span(), message, text::suggest(name.get_ref(), known));
        }
        found
    }
}

impl<Id: Copy + PartialEq + Display> Names<Id> {
    /// Rejects uuids with the same first digits, which name an item's folder on a host: two items must not share a
    /// folder.
    pub(super) fn check_folders(&self, c: &mut Checker, digits: usize, at: impl Fn(usize) -> Range<usize>) {
        let folder = |id: Id| id.to_string().chars().filter(|c| *c != '-').take(digits).collect::<String>();
        let mut folders = HashMap::<String, usize>::new();
        for (n, (_, id)) in self.ids.iter().enumerate() {
            let first = *folders.entry(folder(*id)).or_insert(n);
            let (other, known) = &self.ids[first];
            if known != id {
                let message = format!(
                    "the uuid has the same first {digits} digits as {} {other} ({}), so both would share a folder on a \
                     host",
                    self.kind,
                    c.place(&at(first))
                );
                c.wrong(at(n), message, "omit `uuid` to derive it from the name, or write a random one (uuidgen)");
            }
        }
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
    let (agents, host_tables) = super::hosts::hosts(c, &raw.host, &clusters, base, agent_tls.is_some(), &mut inventory);
    let mut storages = Names::<StorageId>::of("storage");
    let mut mds = HashMap::new();
    for table in &raw.storage {
        super::storages::storage(c, table.get_ref(), table.span(), &clusters, &mut storages, &mut mds, &mut inventory);
    }
    storages.check_folders(c, super::storages::FOLDER_DIGITS, |n| {
        let of = raw.storage[n].get_ref();
        of.uuid.as_ref().unwrap_or(&of.name).span()
    });
    let on_ceph =
        |cluster| inventory.storages.iter().any(|of| of.kind == StorageKind::Ceph && of.clusters.contains(&cluster));
    super::hosts::no_loopback(c, &raw.host, &clusters, on_ceph);
    let ceph = super::storages::ceph_access(&raw.storage, &storages, base);
    let known = super::vms::Known { clusters: &clusters, storages: &storages, ceph: &ceph, mds: &mds, base };
    super::vms::vms(c, &raw.vm, &known, &mut inventory);
    if host_tables == 0 {
        c.wrong(0..1, "the file has no host", "add a [[host]] table with name, cluster, management_ip and agent");
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
    let value = raw.map_or(REQUESTS_PER_SECOND, |raw| *raw.get_ref());
    if let Some(raw) = raw.filter(|_| !(1..=1_000_000).contains(&value)) {
        let message = format!("`requests_per_second` = {value} is out of range (1 to 1000000)");
        c.wrong(raw.span(), message, format!("{REQUESTS_PER_SECOND} is a good value"));
    }
    NonZeroU32::new(value).unwrap_or(NonZeroU32::MIN)
}

/// Rejects an API beyond loopback without TLS or without authentication, unless `insecure` is set.
fn exposed(c: &mut Checker, address: SocketAddr, at: &Text, tls: Option<&ServerFiles>, raw: &Raw) {
    if address.ip().is_loopback() || raw.controller.insecure {
        return;
    }
    let Some(tls) = tls else {
        c.wrong(
            at.span(),
            format!("{address} is beyond loopback, without TLS"),
            "add [controller.tls] cert, key (`ringfence pki issue --controller` creates them), listen on 127.0.0.1 and \
             reach it through SSH, or set insecure = true if the network is trusted",
        );
        return;
    };
    if raw.api_token.is_empty() && tls.client_ca.is_none() {
        c.wrong(
            at.span(),
            format!("{address} is beyond loopback, without authentication"),
            "add [[api_token]] (`ringfence token NAME`), client_ca to [controller.tls], or insecure = true",
        );
    }
}

pub(super) fn parse_id<Id: std::str::FromStr<Err = ringfence_messages::ParseIdError>>(
    text: &str,
) -> Result<Id, String> {
    text.parse().map_err(|e: ringfence_messages::ParseIdError| e.to_string())
}

fn ping(c: &mut Checker, raw: &RawPing) -> PingSettings {
    let mut ping = PingSettings::default();
    let mut time = |field: &Option<Text>, into: &mut std::time::Duration, may_be_zero: bool| {
        let Some(field) = field else { return };
        let Some(read) = c.ok(field.span(), text::duration(field.get_ref())) else { return };
        if read.is_zero() && !may_be_zero {
            c.wrong(field.span(), "the duration must not be 0", "write at least \"10ms\"; \"1s\" is a good value");
        }
        *into = read;
    };
    time(&raw.interval, &mut ping.interval, false);
    time(&raw.timeout, &mut ping.timeout, false);
    time(&raw.sleep_after_failure, &mut ping.sleep_after_failure, true);
    if let Some(max) = &raw.max_failure {
        ping.max_failure = *max.get_ref();
        if ping.max_failure == 0 {
            c.wrong(max.span(), "`max_failure` = 0 is out of range (at least 1)", "3 is a good value");
        }
    }
    if let Some(parallelism) = &raw.parallelism {
        ping.parallelism = *parallelism.get_ref();
        if !(1..=10_000).contains(&ping.parallelism) {
            let message = format!("`parallelism` = {} is out of range (1 to 10000)", ping.parallelism);
            c.wrong(parallelism.span(), message, "100 is a good value");
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
            let message = format!("`parallel_starts` = {} is out of range (1 to 1000)", ha.parallelism);
            c.wrong(starts.span(), message, "10 is a good value");
        }
    }
    if let Some(percent) = &raw.storm_brake_percent {
        ha.storm_brake_percent = *percent.get_ref();
        if !(1..=100).contains(&ha.storm_brake_percent) {
            let message = format!("`storm_brake_percent` = {} is out of range (1 to 100)", ha.storm_brake_percent);
            c.wrong(percent.span(), message, "30 is a good value");
        }
    }
    ha
}

fn hugepages(c: &mut Checker, raw: &RawRecovery) -> u64 {
    let Some(pages) = &raw.hugepages else { return DEFAULT_HUGEPAGES };
    let most = ringfence_drivers::node::hugepages::MAX_PAGES;
    if *pages.get_ref() > most {
        let message = format!("`hugepages` = {} is out of range (at most {most}, 1 TiB)", pages.get_ref());
        c.wrong(pages.span(), message, "the unit is pages of 2 MiB: 1024 are 2 GiB");
    }
    *pages.get_ref()
}
