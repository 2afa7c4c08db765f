//! Who watches a volume, and whether a fence of the host where its VM runs would reach that.
//!
//! Purpose: `check --live` and the doctor say the night before what a fence would find. Invariants: pure; a watch that is not
//! from the host where the VM runs is never fine, for a fence of that host would leave it alone.

use std::net::IpAddr;

use ringfence_actors::inventory::Host;
use ringfence_messages::{Code, ErrorCode, Result, ceph::Watcher};

/// Judges the watchers of a volume. `runs_on`: the host that says the VM runs on it, if one does; `owner`: the host that says
/// an address is its own; `allowed`: addresses that are no user of a volume.
pub(crate) fn judge(
    watchers: &[Watcher],
    runs_on: Option<&Host>,
    hosts: &[Host],
    owner: impl Fn(IpAddr) -> Option<usize>,
    allowed: &[IpAddr],
) -> Result<String> {
    let wrong = |details: String| Err(ErrorCode::new(Code::INVALID_ARGUMENT, details));
    let (counted, aside): (Vec<_>, Vec<_>) = watchers.iter().partition(|watcher| !allowed.contains(&watcher.ip));
    for watcher in &counted {
        let at = &watcher.address;
        let named = hosts.iter().find(|host| host.storage_ips.contains(&watcher.ip));
        match (named, runs_on) {
            (Some(named), Some(runs)) if named.id != runs.id => {
                return wrong(format!(
                    "watched by {at}, which is in storage_ips of {}, and the VM runs on {}: a fence of {1} would block \
                     another host. Correct storage_ips in [[host]] {0:?} and {1:?}",
                    named.name, runs.name
                ));
            }
            (Some(_), _) => {}
            (None, _) => {
                let whose = owner(watcher.ip).and_then(|n| hosts.get(n)).or(runs_on);
                return wrong(match whose {
                    Some(host) => format!(
                        "watched by {at}, which is in no host's storage_ips: a fence would not reach it. Add {} to storage_ips \
                         in [[host]] {:?}",
                        watcher.ip, host.name
                    ),
                    None => format!(
                        "watched by {at}, which is in no host's storage_ips: a fence would not reach it. Add the address to \
                         its host, or to watchers_allowed of the storage if it only looks on (rbd-mirror)"
                    ),
                });
            }
        }
    }
    let list = |all: &[&Watcher]| all.iter().map(|of| of.address.as_str()).collect::<Vec<_>>().join(", ");
    Ok(match (counted.is_empty(), aside.is_empty()) {
        (true, true) => "nobody watches it".to_owned(),
        (true, false) => format!("watched by {}, which watchers_allowed names", list(&aside)),
        (false, _) => format!("watched by {}", list(&counted)),
    })
}

#[cfg(test)]
mod tests {
    use ringfence_drivers::ceph::watchers_of;
    use ringfence_messages::{ClusterId, HostId};

    use super::*;

    fn host(name: &str, storage: &str) -> Host {
        Host {
            id: HostId::from_name(name),
            name: name.to_owned(),
            cluster: ClusterId::from_name("c1"),
            management_ip: "10.0.0.1".to_owned(),
            agent_port: 7070,
            ssh_port: 22,
            storage_ips: vec![storage.parse().unwrap()],
        }
    }

    fn case(json: &str) -> Vec<Watcher> {
        watchers_of(json.as_bytes()).unwrap()
    }

    #[test]
    fn a_watch_from_another_hosts_address_names_both_hosts_and_the_key() {
        let watch = case(r#"{"watchers": [{"address": "10.1.0.11:0/25", "client": 4, "cookie": 1}]}"#);
        let swapped = [host("host-a", "10.1.0.12"), host("host-b", "10.1.0.11")];
        let error = judge(&watch, Some(&swapped[0]), &swapped, |_| None, &[]).unwrap_err();
        assert_eq!(
            error.details,
            "watched by 10.1.0.11:0/25, which is in storage_ips of host-b, and the VM runs on host-a: a fence of host-a would \
             block another host. Correct storage_ips in [[host]] \"host-b\" and \"host-a\""
        );
        let right = [host("host-a", "10.1.0.11"), host("host-b", "10.1.0.12")];
        assert_eq!(judge(&watch, Some(&right[0]), &right, |_| None, &[]).unwrap(), "watched by 10.1.0.11:0/25");
        assert!(judge(&watch, None, &swapped, |_| None, &[]).is_ok(), "nobody says where it runs");
    }

    #[test]
    fn a_hosts_other_interface_is_named_with_the_host() {
        let watch = case(include_str!("../../tests/cases/ceph/watchers.own-other-nic.json"));
        let hosts = [host("host-a", "10.9.0.21"), host("host-b", "10.9.0.22")];
        for error in [
            judge(&watch, Some(&hosts[0]), &hosts, |_| None, &[]).unwrap_err(),
            judge(&watch, None, &hosts, |_| Some(0), &[]).unwrap_err(),
        ] {
            assert!(error.details.contains("Add 10.8.0.21 to storage_ips in [[host]] \"host-a\""), "{error}");
        }
        let nobody = judge(&watch, None, &hosts, |_| None, &[]).unwrap_err();
        assert!(nobody.details.contains("watchers_allowed"), "{nobody}");
    }

    #[test]
    fn a_mirror_that_only_looks_on_is_no_user() {
        let watch = case(include_str!("../../tests/cases/ceph/watchers.rbd-mirror.json"));
        let hosts = [host("host-a", "10.9.0.21")];
        let mirror = ["10.9.0.99".parse().unwrap()];
        assert!(judge(&watch, None, &hosts, |_| None, &[]).is_err());
        assert!(judge(&watch, None, &hosts, |_| None, &mirror).unwrap().contains("watchers_allowed names"));
    }
}
