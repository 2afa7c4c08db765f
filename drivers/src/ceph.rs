//! Client of a Ceph cluster: watchers of images, and the blocklist.
//!
//! Runs the programs `ceph` and `rbd`: each argument is its own argv entry; each call has a time limit and is killed at
//! the limit. librados finds a working monitor.
//! Invariants: a reply is accepted only in its exact shape; everything else is an error with a reason, which the caller
//! treats as unknown (I2); no secret is read here: the programs read the keyring.
//! Alternatives considered: linking librados. It is a C library that a plain Debian lacks, and a hung call cannot be
//! killed.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    process::Stdio,
    time::Duration,
};

use async_trait::async_trait;
use parking_lot::RwLock;
use ringfence_actors::ports::{CephMap, CephPort};
use ringfence_messages::{Code, ErrorCode, Result, StorageId, ceph::Watcher, evidence::UnknownReason, words};
use serde::{Deserialize, de::DeserializeOwned};
use tokio::process::Command;

use crate::strict_json::Object;

/// Time limit of one call; ZStack uses `timeout 10 rbd status`. Too low: a busy monitor looks dead. Too high: a fence
/// waits for a cluster that does not answer.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(10);

/// Seconds that the programs wait for a monitor, and for an OSD. Too low: a busy cluster fails. Too high: a call
/// reaches
/// [`CALL_TIMEOUT`] without a reason.
const CONNECT_SECONDS: &str = "3";

/// Bytes of a reply, at most. Too low: the OSD map of a large cluster fails (10,000 OSDs: about 20 MB of JSON). Too
/// high: memory.
pub const MAX_ANSWER_BYTES: usize = 64 << 20;

/// A watcher, as Ceph lists it.
#[derive(Deserialize)]
struct RawWatcher {
    address: String,
    #[serde(rename = "client")]
    _client: u64,
    #[serde(rename = "cookie")]
    _cookie: u64,
}

/// `10.77.0.11:0/2757791864` or `[fd00::1]:0/1`: the address in front of the port.
fn ip_of(text: &str) -> Option<IpAddr> {
    let (socket, nonce) = text.split_once('/')?;
    if nonce.is_empty() || !nonce.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    match socket.parse().ok()? {
        SocketAddr::V6(v6) if v6.scope_id() != 0 => None,
        address => Some(address.ip()),
    }
}

/// One cluster, with one user's capabilities.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ceph {
    /// Path of `ceph.conf`.
    pub conf: PathBuf,
    /// Name of the user, without `client.`.
    pub user: String,
}

#[derive(Deserialize)]
struct Status {
    watchers: Vec<Object<RawWatcher>>,
}

#[derive(Deserialize)]
struct OsdMap {
    epoch: u64,
    blocklist: BTreeMap<String, String>,
    /// Absent before Ceph knew ranges (16.2.11).
    #[serde(default)]
    range_blocklist: BTreeMap<String, String>,
    osds: Vec<Object<RawOsd>>,
}

#[derive(Deserialize)]
struct RawOsd {
    osd: u64,
    public_addrs: Object<RawAddresses>,
    cluster_addrs: Object<RawAddresses>,
}

#[derive(Deserialize)]
struct MonMap {
    mons: Vec<Object<RawMon>>,
}

#[derive(Deserialize)]
struct RawMon {
    name: String,
    public_addrs: Object<RawAddresses>,
}

#[derive(Deserialize)]
struct RawAddresses {
    addrvec: Vec<Object<RawAddress>>,
}

/// `IP:PORT`.
#[derive(Deserialize)]
struct RawAddress {
    addr: String,
}

impl Ceph {
    /// The watchers of an image. An empty list is no proof: a client without connection leaves it after 30 s and may
    /// run.
    ///
    /// # Errors
    /// `SYS.1003` if the image does not exist; every other error means unknown, with the reason of [`unknown`].
    pub async fn watchers(&self, pool: &str, image: &str) -> Result<Vec<Watcher>> {
        let spec = format!("{pool}/{image}");
        let answer = self.rbd(&["status", &spec, "--format", "json"]).await;
        let answer = answer.map_err(|e| match e.opaque.get(EXIT).map(String::as_str) {
            Some("2") => ErrorCode::new(Code::NOT_FOUND, format!("image {spec} does not exist on this cluster")),
            _ => e,
        })?;
        watchers_of(&answer)
    }

    /// The rejected addresses, and the addresses of the cluster's daemons.
    ///
    /// # Errors
    /// The reason why they are unknown.
    pub async fn map(&self) -> Result<CephMap> {
        let (osds, mons) = tokio::join!(
            self.ceph(&["osd", "dump", "--format", "json"]),
            self.ceph(&["mon", "dump", "--format", "json"])
        );
        let mut map = osd_map(&osds?)?;
        map.daemons.extend(mon_map(&mons?)?);
        Ok(map)
    }

    /// The rejected addresses.
    async fn blocklist(&self) -> Result<CephMap> {
        osd_map(&self.ceph(&["osd", "dump", "--format", "json"]).await?)
    }

    /// Makes the cluster reject every client at an address for this time; returns the epoch of the OSD map in which the
    /// entry was read back.
    ///
    /// # Errors
    /// The reason why the entry was not read back. The cluster may have accepted it.
    pub async fn block(&self, ip: IpAddr, lasting: Duration) -> Result<u64> {
        let (range, seconds) = (range(ip), lasting.as_secs().max(1).to_string());
        self.ceph(&["osd", "blocklist", "range", "add", &range, &seconds]).await?;
        let map = self.blocklist().await?;
        if map.blocked.contains(&ip) {
            return Ok(map.epoch);
        }
        let details = format!("blocklist lacks {range} in OSD map epoch {} after it was added", map.epoch);
        Err(ErrorCode::new(Code::OPERATION, details))
    }

    /// Removes an address from the blocklist. Does nothing if it is not listed.
    ///
    /// # Errors
    /// The reason why the removal was not read back. A key with `profile rbd` may add entries but not remove them.
    pub async fn unblock(&self, ip: IpAddr) -> Result<u64> {
        self.ceph(&["osd", "blocklist", "range", "rm", &range(ip)]).await?;
        let mut map = self.blocklist().await?;
        // An operator adds such an entry; it must not keep out a host that returns to service.
        if map.blocked_otherwise.contains(&ip) {
            self.ceph(&["osd", "blocklist", "rm", &all_clients(ip)]).await?;
            map = self.blocklist().await?;
        }
        if map.blocked.contains(&ip) || map.blocked_otherwise.contains(&ip) {
            let details = format!("blocklist has {ip} in OSD map epoch {} after it was removed", map.epoch);
            return Err(ErrorCode::new(Code::OPERATION, details));
        }
        Ok(map.epoch)
    }

    async fn ceph(&self, arguments: &[&str]) -> Result<Vec<u8>> {
        self.run("ceph", &["--connect-timeout", CONNECT_SECONDS], arguments).await
    }

    async fn rbd(&self, arguments: &[&str]) -> Result<Vec<u8>> {
        let bounds = ["--client-mount-timeout", CONNECT_SECONDS, "--rados-osd-op-timeout", CONNECT_SECONDS];
        self.run("rbd", &bounds, arguments).await
    }

    async fn run(&self, program: &str, bounds: &[&str], arguments: &[&str]) -> Result<Vec<u8>> {
        let what = || format!("{program} {} as client.{}", arguments[..2.min(arguments.len())].join(" "), self.user);
        let mut command = Command::new(program);
        command
            .arg("--conf")
            .arg(&self.conf)
            .args(["--id", &self.user])
            .args(bounds)
            .args(arguments)
            .stdin(Stdio::null())
            .env_remove("CEPH_ARGS")
            .kill_on_drop(true);
        let output = match tokio::time::timeout(CALL_TIMEOUT, command.output()).await {
            Err(_) => {
                return Err(ErrorCode::new(Code::TIMEOUT, format!("{}: no answer within {CALL_TIMEOUT:?}", what())));
            }
            Ok(Err(error)) => {
                let details = format!("{}: {error}; install ceph-common on the controller", what());
                return Err(ErrorCode::new(Code::IO, details));
            }
            Ok(Ok(output)) => output,
        };
        if output.stdout.len() > MAX_ANSWER_BYTES {
            return Err(odd_answer(program, &format!("{} bytes", output.stdout.len())));
        }
        if output.status.success() {
            return Ok(output.stdout);
        }
        let stderr = String::from_utf8_lossy(&output.stderr);
        let last = stderr.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("no message").trim();
        let details = words::bounded(&format!("{}: {}: {last:.300}", what(), output.status));
        // 110 is ETIMEDOUT; `ceph` exits with 1 for that and for much else.
        let timed_out = output.status.code() == Some(110) || stderr.contains("timed out");
        let code = if timed_out { Code::TIMEOUT } else { Code::OPERATION };
        let exit = output.status.code().map_or("signal".to_owned(), |code| code.to_string());
        Err(ErrorCode::new(code, details).with(EXIT, exit))
    }
}

/// Key of the exit status in [`ErrorCode::opaque`].
const EXIT: &str = "exit";

/// The reason of unknown evidence for an error.
pub fn unknown(error: &ErrorCode) -> UnknownReason {
    match error.opaque.get(EXIT).map(String::as_str) {
        Some("13") => UnknownReason::AuthFailed,
        _ if error.is(&Code::TIMEOUT) => UnknownReason::Timeout,
        _ if error.is(&Code::HTTP) => UnknownReason::Unparsable,
        _ => UnknownReason::BadExit,
    }
}

/// Parses `rbd status --format json`.
///
/// # Errors
/// `SYS.1015` for any other shape: an unreadable list is not an empty one.
pub fn watchers_of(answer: &[u8]) -> Result<Vec<Watcher>> {
    let status: Status = parse_reply("rbd status", answer)?;
    let watcher = |Object(RawWatcher { address, .. })| match ip_of(&address) {
        Some(ip) => Ok(Watcher { address, ip }),
        None => Err(odd_answer("rbd status", &format!("{address:?} is not the address of a watcher"))),
    };
    status.watchers.into_iter().map(watcher).collect()
}

/// Parses `ceph osd dump --format json`: blocklist and addresses of OSDs.
///
/// # Errors
/// `SYS.1015` for any other shape.
pub fn osd_map(answer: &[u8]) -> Result<CephMap> {
    let map: OsdMap = parse_reply("ceph osd dump", answer)?;
    let mut daemons = Vec::new();
    for Object(osd) in map.osds {
        let name = format!("osd.{}", osd.osd);
        for Object(RawAddress { addr }) in osd.public_addrs.0.addrvec.into_iter().chain(osd.cluster_addrs.0.addrvec) {
            daemons.push((name.clone(), daemon_ip("ceph osd dump", &addr)?));
        }
    }
    let entries = map.blocklist.keys().chain(map.range_blocklist.keys());
    let blocked = entries.filter_map(|entry| whole_address(entry)).collect();
    // A client entry without port and nonce is for all clients of the address.
    let of_all = |entry: &String| ip_of(entry).filter(|ip| *entry == all_clients(*ip));
    let blocked_otherwise = map.blocklist.keys().filter_map(of_all).collect();
    Ok(CephMap { epoch: map.epoch, blocked, blocked_otherwise, daemons })
}

/// Parses `ceph mon dump --format json`: addresses of monitors.
///
/// # Errors
/// `SYS.1015` for any other shape.
pub fn mon_map(answer: &[u8]) -> Result<Vec<(String, IpAddr)>> {
    let map: MonMap = parse_reply("ceph mon dump", answer)?;
    let mut daemons = Vec::new();
    for Object(mon) in map.mons {
        for Object(RawAddress { addr }) in mon.public_addrs.0.addrvec {
            daemons.push((format!("mon.{}", mon.name), daemon_ip("ceph mon dump", &addr)?));
        }
    }
    Ok(daemons)
}

fn daemon_ip(what: &str, addr: &str) -> Result<IpAddr> {
    // Without a nonce here.
    ip_of(&format!("{addr}/0")).ok_or_else(|| odd_answer(what, &format!("{addr:?} is not the address of a daemon")))
}

/// The address whose clients this entry rejects as a whole. Ceph writes a range as `cidr:IP:0/BITS`. A single client
/// (`IP:0/NONCE`) and a wider range, which may expire earlier, do not count.
fn whole_address(entry: &str) -> Option<IpAddr> {
    let ip = ip_of(entry.strip_prefix("cidr:")?)?;
    let bits = if ip.is_ipv4() { ":0/32" } else { ":0/128" };
    entry.ends_with(bits).then_some(ip)
}

/// The Ceph clusters of a controller's storages.
pub struct Clusters(RwLock<BTreeMap<StorageId, Ceph>>);

impl Clusters {
    /// A client of these clusters, by storage.
    pub fn new(clusters: BTreeMap<StorageId, Ceph>) -> Clusters {
        Clusters(RwLock::new(clusters))
    }

    /// Adds or replaces clusters.
    pub fn update(&self, clusters: impl IntoIterator<Item = (StorageId, Ceph)>) {
        self.0.write().extend(clusters);
    }

    fn of(&self, storage: StorageId) -> Result<Ceph> {
        self.0
            .read()
            .get(&storage)
            .cloned()
            .ok_or_else(|| ErrorCode::new(Code::NOT_FOUND, format!("storage {storage} has no known Ceph cluster")))
    }
}

#[async_trait]
impl CephPort for Clusters {
    async fn watchers(&self, storage: StorageId, pool: &str, image: &str) -> Result<Vec<Watcher>> {
        self.of(storage)?.watchers(pool, image).await
    }

    async fn map(&self, storage: StorageId) -> Result<CephMap> {
        self.of(storage)?.map().await
    }

    async fn block(&self, storage: StorageId, ip: IpAddr, lasting: Duration) -> Result<u64> {
        self.of(storage)?.block(ip, lasting).await
    }

    async fn unblock(&self, storage: StorageId, ip: IpAddr) -> Result<u64> {
        self.of(storage)?.unblock(ip).await
    }
}

fn range(ip: IpAddr) -> String {
    format!("{ip}/{}", if ip.is_ipv4() { 32 } else { 128 })
}

fn all_clients(ip: IpAddr) -> String {
    format!("{}/0", SocketAddr::new(ip, 0))
}

fn parse_reply<T: DeserializeOwned>(what: &str, answer: &[u8]) -> Result<T> {
    // Also for ignored parts: a reply of Ceph is UTF-8 everywhere.
    let answer = std::str::from_utf8(answer).map_err(|e| odd_answer(what, &e.to_string()))?;
    serde_json::from_str(answer).map(|Object(reply)| reply).map_err(|e| {
        let sample: String = answer.chars().take(200).collect();
        odd_answer(what, &format!("{e}: {sample:?}"))
    })
}

fn odd_answer(what: &str, why: &str) -> ErrorCode {
    ErrorCode::new(Code::HTTP, format!("{what} answered in a way that is not known here: {why}"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn status(json: &str) -> Result<Vec<Watcher>> {
        watchers_of(json.as_bytes())
    }

    #[test]
    fn watchers_are_read_as_real_ceph_says_them() {
        let real = r#"{"watchers":[{"address":"10.77.0.11:0/2757791864","client":4121,"cookie":139678376267200}]}"#;
        let [watcher] = &status(real).unwrap()[..] else { panic!("one watcher") };
        assert_eq!(watcher.ip, "10.77.0.11".parse::<IpAddr>().unwrap());
        assert_eq!(status(r#"{"watchers":[]}"#).unwrap(), []);
    }

    /// Nothing but the very shape is taken for an answer: an odd one must not become "nobody watches".
    #[test]
    fn odd_answers_are_not_taken_for_an_empty_list() {
        for odd in [
            "",
            "{}",
            "[]",
            "null",
            r#"{"watchers":null}"#,
            r#"{"watchers":{}}"#,
            r#"{"watchers":[{}]}"#,
            r#"{"watchers":[{"address":7,"client":1,"cookie":1}]}"#,
            r#"{"watchers":["#,
            r#"{"watchers":[]}{"watchers":[]}"#,
            r#"{"Watchers":[]}"#,
            "[[]]",
            r#"{"watchers":[["10.77.0.11:0/1",1,1]]}"#,
        ] {
            let error = status(odd).unwrap_err();
            assert_eq!(unknown(&error), UnknownReason::Unparsable, "{odd}: {error}");
        }
    }

    #[test]
    fn addresses_are_read_whole_or_not_at_all() {
        for (text, ip) in [
            ("10.77.0.11:0/27", Some("10.77.0.11")),
            ("[fd00::1]:0/1", Some("fd00::1")),
            ("10.77.0.11:0", None),
            ("10.77.0.11/3", None),
            ("fd00::1:0/1", None),
            ("host-a:0/1", None),
            ("-", None),
            ("[10.0.0.1]:0/1", None),
            ("10.0.0.1:+0/1", None),
            ("10.0.0.1:0/", None),
            ("[fe80::1%2]:0/1", None),
        ] {
            assert_eq!(ip_of(text), ip.map(|ip| ip.parse().unwrap()), "{text}");
        }
    }

    #[test]
    fn only_the_whole_address_counts_as_blocked() {
        for (entry, ip) in [
            ("cidr:10.77.0.1:0/32", Some("10.77.0.1")),
            ("cidr:[fd00::1]:0/128", Some("fd00::1")),
            // One client of it whose nonce looks like bits, and ranges around it that may end earlier.
            ("10.77.0.1:0/32", None),
            ("10.77.0.1:0/77", None),
            ("cidr:10.77.0.0:0/24", None),
            ("cidr:[fd00::]:0/64", None),
        ] {
            assert_eq!(whole_address(entry), ip.map(|ip| ip.parse().unwrap()), "{entry}");
        }
    }

    #[test]
    fn daemons_are_read_as_real_ceph_says_them() {
        let osds = r#"{"epoch": 12, "blocklist": {"10.77.0.13:0/7": "2026"},
            "range_blocklist": {"cidr:10.77.0.12:0/32": "2026"},
            "osds": [{"osd": 0, "public_addrs": {"addrvec": [{"type": "v2", "addr": "10.77.0.2:6800", "nonce": 7}]},
                      "cluster_addrs": {"addrvec": [{"type": "v2", "addr": "[fd00::2]:6802", "nonce": 7}]}}]}"#;
        let map = osd_map(osds.as_bytes()).unwrap();
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        assert_eq!(map.daemons, [("osd.0".to_owned(), ip("10.77.0.2")), ("osd.0".to_owned(), ip("fd00::2"))]);
        assert_eq!((map.epoch, map.blocked), (12, [ip("10.77.0.12")].into()));
        let mons = r#"{"mons": [{"name": "a", "public_addrs": {"addrvec": [{"addr": "10.77.0.2:3300"}]}}]}"#;
        assert_eq!(mon_map(mons.as_bytes()).unwrap(), [("mon.a".to_owned(), ip("10.77.0.2"))]);
        // One daemon that is not understood: then it is not known whom a block would hit.
        for odd in
            [r#"{"mons": [{"name": "a", "public_addrs": {"addrvec": [{"addr": "x"}]}}]}"#, "{}", r#"{"mons": [{}]}"#]
        {
            assert!(mon_map(odd.as_bytes()).is_err(), "{odd}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_an_answer_or_an_error(text in ".{0,200}") {
            let _ = status(&text);
            let _ = ip_of(&text);
            let _ = parse_reply::<OsdMap>("x", text.as_bytes());
        }
    }
}
