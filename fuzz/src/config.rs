//! The files of a controller and of an agent.
//!
//! Properties: every mistake points into the file and can be shown; what is accepted is consistent, and means to the
//! HTTP client what it says.

use std::{collections::BTreeSet, path::Path};

use reqwest::Url;
use ringfence_cli::config::{self, Config};
use ringfence_server::config::ControllerConfig;
use ringfence_service::config_file::{MAX_FILE_BYTES, Problems};

/// Relative paths in the file are from here; it does not exist.
const PLACE: &str = "/nowhere/ringfence.toml";

fn read(bytes: &[u8]) -> Option<Config> {
    let text = std::str::from_utf8(bytes).ok().filter(|text| text.len() as u64 <= MAX_FILE_BYTES)?;
    match config::parse(Path::new(PLACE), text.to_owned()) {
        Ok(config) => Some(config),
        Err(problems) => {
            shown(&problems, text);
            None
        }
    }
}

/// Each mistake is somewhere in the file, and the report says so.
fn shown(problems: &Problems, text: &str) {
    assert!(problems.count() > 0, "a file is refused without a reason");
    for place in problems.places() {
        assert!(text.get(place.clone()).is_some(), "a mistake at {place:?} of {} bytes", text.len());
    }
    let report = problems.render(false, 120);
    assert!(!report.contains("Failed to read contents"), "a mistake cannot be shown: {report}");
    if problems.places().next().is_some() {
        assert!(report.contains("ringfence.toml:"), "the report names no place: {report}");
    }
}

/// A URL that was accepted leads where a person reads that it leads.
fn plain_url(url: &str) {
    let parsed = Url::parse(url).unwrap_or_else(|e| panic!("{url:?} was accepted and is no URL: {e}"));
    let (host, port) = (parsed.host_str().expect("a host"), parsed.port_or_known_default().expect("a port"));
    assert_eq!(format!("http://{host}:{port}"), url, "the HTTP client reads another address than what is written");
}

fn consistent(config: &ControllerConfig) {
    let inventory = &config.inventory;
    let clusters: BTreeSet<_> = inventory.clusters.iter().map(|cluster| cluster.id).collect();
    let storages: BTreeSet<_> = inventory.storages.iter().map(|storage| storage.id).collect();
    assert_eq!(clusters.len(), inventory.clusters.len(), "two clusters of one id");
    assert_eq!(storages.len(), inventory.storages.len(), "two storages of one id");
    let hosts: BTreeSet<_> = inventory.hosts.iter().map(|host| host.id).collect();
    assert_eq!((hosts.len(), hosts.len()), (inventory.hosts.len(), config.agents.len()), "a host, an agent");
    assert!(!hosts.is_empty() && inventory.hosts.iter().all(|host| clusters.contains(&host.cluster)));
    let urls: BTreeSet<_> = config.agents.values().map(|agent| agent.url.as_str()).collect();
    assert_eq!(urls.len(), config.agents.len(), "two hosts have one agent");
    urls.into_iter().chain(config.mds.values().flatten().map(String::as_str)).for_each(plain_url);
    for storage in &inventory.storages {
        assert!(!storage.clusters.is_empty() && storage.clusters.iter().all(|id| clusters.contains(id)));
        assert!(storage.volume_dir.as_deref().is_none_or(|dir| dir.starts_with('/')), "{:?}", storage.volume_dir);
        assert!(storage.ceph.as_ref().is_none_or(|ceph| ceph.conf.starts_with('/')), "{:?}", storage.ceph);
    }
    let mut disks = BTreeSet::new();
    for vm in &inventory.vms {
        assert!(clusters.contains(&vm.cluster));
        assert_eq!(vm.volumes.iter().filter(|volume| volume.root).count(), 1, "{}", vm.name);
        for volume in &vm.volumes {
            let text = volume.install_path.to_string();
            assert_eq!(
                text.parse().as_ref(),
                Ok(&volume.install_path),
                "an install path does not read as it is written"
            );
            assert!(storages.contains(&volume.storage));
            assert!(disks.insert((volume.storage, text)), "a disk of two VMs");
        }
    }
    let ping = &config.settings.ping;
    assert!(!ping.interval.is_zero() && !ping.timeout.is_zero() && ping.max_failure > 0 && ping.parallelism > 0);
    assert!(config.listen.ip().is_loopback(), "the API is open to the network");
}

/// A file that is a controller's.
pub(crate) fn controller(bytes: &[u8]) {
    if let Some(Config::Controller(config)) = read(bytes) {
        consistent(&config);
    }
}

/// A file that is an agent's.
pub(crate) fn agent(bytes: &[u8]) {
    if let Some(Config::Agent(config)) = read(bytes) {
        let settings = &config.settings;
        assert!(settings.insecure || settings.listen.ip().is_loopback(), "in the clear beyond loopback, unasked");
    }
}
