//! What the `ceph` and `rbd` programs answer.
//!
//! Properties: "nobody watches" and "it is refused" were said in so many words; an address is read as it is written.

use std::net::{IpAddr, SocketAddr};

use ringfence_drivers::ceph::{mon_map, osd_map, unknown, watchers_of};
use ringfence_messages::{ErrorCode, evidence::UnknownReason};
use serde::de::IgnoredAny;
use serde_json::Value;

/// `IP:PORT/NONCE`, read by the standard library.
fn address(text: &str) -> Option<IpAddr> {
    let (socket, nonce) = text.split_once('/')?;
    let plain = !nonce.is_empty() && nonce.bytes().all(|byte| byte.is_ascii_digit());
    socket.parse().ok().filter(|_| plain).map(|socket: SocketAddr| socket.ip())
}

fn odd(error: &ErrorCode) {
    assert_eq!(unknown(error), UnknownReason::Unparsable, "{error}");
}

/// What was understood; nothing where a number that nobody asks for is too large for this reader.
fn json(bytes: &[u8]) -> Option<Value> {
    serde_json::from_slice::<IgnoredAny>(bytes).expect("what was understood is JSON");
    serde_json::from_slice(bytes).ok()
}

fn watchers(bytes: &[u8]) {
    match watchers_of(bytes) {
        Ok(watchers) => {
            let Some(said) = json(bytes) else { return };
            let list = said["watchers"].as_array().unwrap_or_else(|| panic!("no list of watchers: {said}"));
            assert_eq!(list.len(), watchers.len(), "{said}");
            for (said, watcher) in list.iter().zip(&watchers) {
                assert_eq!(said["address"], watcher.address, "{said}");
                assert_eq!(address(&watcher.address), Some(watcher.ip), "{said}");
            }
        }
        Err(error) => odd(&error),
    }
}

fn osds(bytes: &[u8]) {
    match osd_map(bytes) {
        Ok(map) => {
            let Some(said) = json(bytes) else { return };
            assert_eq!(said["epoch"], map.epoch, "{said}");
            let ranges = said.get("range_blocklist").and_then(Value::as_object);
            let entries: Vec<&String> = said["blocklist"]
                .as_object()
                .expect("a blocklist")
                .keys()
                .chain(ranges.into_iter().flat_map(|r| r.keys()))
                .collect();
            for ip in &map.blocked {
                let bits = if ip.is_ipv4() { 32 } else { 128 };
                let whole = |entry: &&String| {
                    let range = entry.strip_prefix("cidr:").filter(|range| range.ends_with(&format!(":0/{bits}")));
                    range.and_then(address) == Some(*ip)
                };
                assert!(entries.iter().any(whole), "{ip} is not refused: {said}");
            }
            let count = |osd: &Value, key: &str| osd[key]["addrvec"].as_array().expect("addresses").len();
            let osds = said["osds"].as_array().expect("osds");
            let daemons: usize = osds.iter().map(|osd| count(osd, "public_addrs") + count(osd, "cluster_addrs")).sum();
            assert_eq!(daemons, map.daemons.len(), "a daemon was passed over: {said}");
        }
        Err(error) => odd(&error),
    }
}

fn mons(bytes: &[u8]) {
    match mon_map(bytes) {
        Ok(daemons) => {
            let Some(said) = json(bytes) else { return };
            let mons = said["mons"].as_array().expect("mons").iter();
            let count: usize =
                mons.map(|mon| mon["public_addrs"]["addrvec"].as_array().expect("addresses").len()).sum();
            assert_eq!(count, daemons.len(), "a daemon was passed over: {said}");
        }
        Err(error) => odd(&error),
    }
}

/// An answer: the first byte says to which question, `w`atchers, `o`sds or `m`onitors.
pub(crate) fn ceph(bytes: &[u8]) {
    let Some((first, answer)) = super::chosen(bytes) else { return };
    match first {
        0x77 => watchers(answer),
        0x6f => osds(answer),
        _ => mons(answer),
    }
}
