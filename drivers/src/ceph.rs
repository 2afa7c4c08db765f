//! A Ceph cluster, as a fence needs it: who watches an image, and which clients it refuses.
//!
//! Speaks through the `ceph` and `rbd` programs: every argument is its own argv entry, every call is bounded and
//! killed when it is given up. librados finds a monitor that answers by itself.
//! Invariants: an answer is taken only if it is exactly of the expected shape; everything else is an error with its
//! reason, for the caller to treat as "not known" (I2). No secret is read here: the programs read the keyring.
//! Rejected: linking librados (a C library that a plain Debian lacks, and that cannot be killed when it hangs).

use std::{collections::BTreeMap, net::IpAddr, path::PathBuf, process::Stdio, time::Duration};

use ringfence_messages::{Code, ErrorCode, Result, fence::UnknownReason};
use serde::{Deserialize, de::DeserializeOwned};
use tokio::process::Command;

/// How long one call may take (domain: `timeout 10 rbd status`). Too low: a busy monitor looks gone. Too high: a
/// fence waits for a cluster that does not answer.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(10);

/// How long the programs themselves wait for a monitor, and for an OSD.
const CONNECT_SECONDS: &str = "3";

/// Bytes of an answer at most. The OSD map of 10,000 OSDs has about 20 MB as JSON.
pub const MAX_ANSWER_BYTES: usize = 64 << 20;

/// A client that has an image open.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Watcher {
    /// `IP:PORT/NONCE`, as Ceph says it.
    pub address: String,
    /// The client's number; a restarted client has another.
    pub client: u64,
    /// The watch's own number.
    pub cookie: u64,
}

impl Watcher {
    /// The address without port and nonce; `None` if Ceph says it in a way that is not known here.
    pub fn ip(&self) -> Option<IpAddr> {
        ip_of(&self.address)
    }
}

/// `10.77.0.11:0/2757791864` or `[fd00::1]:0/1`: the address in front of the port.
fn ip_of(text: &str) -> Option<IpAddr> {
    let (socket, _nonce) = text.split_once('/')?;
    let (ip, port) = socket.rsplit_once(':')?;
    port.parse::<u16>().ok()?;
    match ip.strip_prefix('[') {
        Some(v6) => v6.strip_suffix(']')?.parse().ok().filter(IpAddr::is_ipv6),
        None => ip.parse().ok().filter(IpAddr::is_ipv4),
    }
}

/// What the cluster's OSD map says of clients that are refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blocked {
    /// The map's epoch.
    pub epoch: u64,
    /// Address or range, and until when, both as Ceph says them.
    pub entries: BTreeMap<String, String>,
}

/// One cluster, with one user's rights.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ceph {
    /// `ceph.conf`.
    pub conf: PathBuf,
    /// The user, without `client.`.
    pub user: String,
}

#[derive(Deserialize)]
struct Status {
    watchers: Vec<Watcher>,
}

#[derive(Deserialize)]
struct OsdMap {
    epoch: u64,
    blocklist: BTreeMap<String, String>,
    /// Absent before Ceph knew ranges (16.2.11).
    #[serde(default)]
    range_blocklist: BTreeMap<String, String>,
}

impl Ceph {
    /// Who has an image open. An empty list proves nothing: a client that is cut off leaves it after 30 s and lives on.
    ///
    /// # Errors
    /// `SYS.1003` if there is no such image; otherwise why it is not known, as [`unknown`] tells.
    pub async fn watchers(&self, pool: &str, image: &str) -> Result<Vec<Watcher>> {
        let spec = format!("{pool}/{image}");
        let answer = self.rbd(&["status", &spec, "--format", "json"]).await;
        let answer = answer.map_err(|e| match e.opaque.get(EXIT).map(String::as_str) {
            Some("2") => ErrorCode::new(Code::NOT_FOUND, format!("there is no image {spec} on this cluster")),
            _ => e,
        })?;
        let status: Status = understood("rbd status", &answer)?;
        match status.watchers.iter().find(|watcher| watcher.ip().is_none()) {
            Some(odd) => Err(odd_answer("rbd status", &format!("{:?} is not the address of a watcher", odd.address))),
            None => Ok(status.watchers),
        }
    }

    /// Which clients the cluster refuses.
    ///
    /// # Errors
    /// Why it is not known.
    pub async fn blocked(&self) -> Result<Blocked> {
        let answer = self.ceph(&["osd", "dump", "--format", "json"]).await?;
        let map: OsdMap = understood("ceph osd dump", &answer)?;
        let ranges = map.range_blocklist.into_iter().map(|(range, until)| match range.strip_prefix("cidr:") {
            Some(bare) => (bare.to_owned(), until),
            None => (range, until),
        });
        let entries = map.blocklist.into_iter().chain(ranges).collect();
        Ok(Blocked { epoch: map.epoch, entries })
    }

    /// Has the cluster refuse every client from an address, whatever its port and nonce, for so long; returns what is
    /// read back, in which the entry is.
    ///
    /// # Errors
    /// Why it is not known to be refused: the cluster may have taken the order all the same.
    pub async fn block(&self, ip: IpAddr, lasting: Duration) -> Result<Blocked> {
        let (range, seconds) = (range(ip), lasting.as_secs().max(1).to_string());
        self.ceph(&["osd", "blocklist", "range", "add", &range, &seconds]).await?;
        let blocked = self.blocked().await?;
        if blocked.covers(ip) {
            return Ok(blocked);
        }
        let details =
            format!("{range} was added to the blocklist, but the OSD map of epoch {} lacks it", blocked.epoch);
        Err(ErrorCode::new(Code::OPERATION, details))
    }

    /// Lets an address in again; one that is not refused is fine too.
    ///
    /// # Errors
    /// Why it is not known to be let in. The key `profile rbd` may block but not let in again.
    pub async fn unblock(&self, ip: IpAddr) -> Result<Blocked> {
        self.ceph(&["osd", "blocklist", "range", "rm", &range(ip)]).await?;
        let blocked = self.blocked().await?;
        if blocked.covers(ip) {
            let details = format!("{ip} was taken off the blocklist, but epoch {} still has it", blocked.epoch);
            return Err(ErrorCode::new(Code::OPERATION, details));
        }
        Ok(blocked)
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
                let details = format!("{}: {error}. Install ceph-common on the controller", what());
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
        let said = String::from_utf8_lossy(&output.stderr);
        let last = said.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("it says nothing").trim();
        let details = format!("{}: {}: {last:.300}", what(), output.status);
        // 110 is ETIMEDOUT; `ceph` exits with 1 for that and for much else.
        let timed_out = output.status.code() == Some(110) || said.contains("timed out");
        let code = if timed_out { Code::TIMEOUT } else { Code::OPERATION };
        let exit = output.status.code().map_or("signal".to_owned(), |code| code.to_string());
        Err(ErrorCode::new(code, details).with(EXIT, exit))
    }
}

/// Under this key an error of a program carries its exit status.
const EXIT: &str = "exit";

/// Why something is not known, in the words of evidence.
pub fn unknown(error: &ErrorCode) -> UnknownReason {
    match error.opaque.get(EXIT).map(String::as_str) {
        Some("13") => UnknownReason::AuthFailed,
        _ if error.is(&Code::TIMEOUT) => UnknownReason::Timeout,
        _ if error.is(&Code::HTTP) => UnknownReason::Unparsable,
        _ => UnknownReason::BadExit,
    }
}

impl Blocked {
    /// Whether every client from this address is refused.
    pub fn covers(&self, ip: IpAddr) -> bool {
        // Ceph writes a range as `cidr:IP:0/BITS`.
        let bits = if ip.is_ipv4() { 32 } else { 128 };
        let own = if ip.is_ipv4() { format!("{ip}:0/{bits}") } else { format!("[{ip}]:0/{bits}") };
        self.entries.contains_key(&own)
    }
}

fn range(ip: IpAddr) -> String {
    format!("{ip}/{}", if ip.is_ipv4() { 32 } else { 128 })
}

fn understood<T: DeserializeOwned>(what: &str, answer: &[u8]) -> Result<T> {
    serde_json::from_slice(answer).map_err(|e| {
        let sample: String = String::from_utf8_lossy(answer).chars().take(200).collect();
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
        understood::<Status>("rbd status", json.as_bytes()).map(|status| status.watchers)
    }

    #[test]
    fn watchers_are_read_as_real_ceph_says_them() {
        let real = r#"{"watchers":[{"address":"10.77.0.11:0/2757791864","client":4121,"cookie":139678376267200}]}"#;
        let [watcher] = &status(real).unwrap()[..] else { panic!("one watcher") };
        assert_eq!(watcher.ip(), Some("10.77.0.11".parse().unwrap()));
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
        ] {
            assert_eq!(ip_of(text), ip.map(|ip| ip.parse().unwrap()), "{text}");
        }
    }

    #[test]
    fn only_the_whole_address_counts_as_blocked() {
        let of = |entry: &str| Blocked { epoch: 1, entries: [(entry.to_owned(), "2026".to_owned())].into() };
        let ip: IpAddr = "10.77.0.1".parse().unwrap();
        assert!(of("10.77.0.1:0/32").covers(ip));
        // A single client of it, another address that begins alike, a range around it that may end earlier.
        for entry in ["10.77.0.1:0/77", "10.77.0.11:0/32", "10.77.0.0:0/24"] {
            assert!(!of(entry).covers(ip), "{entry}");
        }
        assert!(of("[fd00::1]:0/128").covers("fd00::1".parse().unwrap()));
    }

    proptest! {
        #[test]
        fn any_text_is_an_answer_or_an_error(text in ".{0,200}") {
            let _ = status(&text);
            let _ = ip_of(&text);
            let _ = understood::<OsdMap>("x", text.as_bytes());
        }
    }
}
