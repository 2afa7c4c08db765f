//! Who watches a volume, and whether a fence of the VM's host would reach that watcher.
//!
//! Purpose: `check --live` and the doctor report in advance what a fence would find. Invariants: pure; a watcher on a
//! host other than the VM's host never passes, because a fence of the VM's host would not block it.

use std::net::IpAddr;

use ringfence_actors::inventory::Host;
use ringfence_messages::{Code, ErrorCode, Result, ceph::Watcher};

/// Judges the watchers of a volume. `runs_on`: the host that reports the VM; `owner`: the host that reports an address;
/// `allowed`: `watchers_allowed` of the storage.
pub(super) fn judge(
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
                    "watched by {at}, which is in storage_ips of {}, but the VM runs on {}: a fence of {1} would block \
                     the wrong host; correct storage_ips in [[host]] {0:?} and {1:?}",
                    named.name, runs.name
                ));
            }
            (Some(_), _) => {}
            (None, _) => {
                let host = owner(watcher.ip).and_then(|n| hosts.get(n)).or(runs_on);
                return wrong(match host {
                    Some(host) => format!(
                        "watched by {at}, which is in no host's storage_ips: a fence would not block it; add {} to \
                         storage_ips in [[host]] {:?}",
                        watcher.ip, host.name
                    ),
                    None => format!(
                        "watched by {at}, which is in no host's storage_ips: a fence would not block it; add the \
                         address to its host, or to watchers_allowed of the storage if it never writes (rbd-mirror)"
                    ),
                });
            }
        }
    }
    let list = |all: &[&Watcher]| all.iter().map(|of| of.address.as_str()).collect::<Vec<_>>().join(", ");
    Ok(match (counted.is_empty(), aside.is_empty()) {
        (true, true) => "no watchers".to_owned(),
        (true, false) => format!("watched by {}, listed in watchers_allowed", list(&aside)),
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
    fn watcher_at_wrong_host_names_both_hosts() {
        let watch = case(r#"{"watchers": [{"address": "10.1.0.11:0/25", "client": 4, "cookie": 1}]}"#);
        let swapped = [host("host-a", "10.1.0.12"), host("host-b", "10.1.0.11")];
        let error = judge(&watch, Some(&swapped[0]), &swapped, |_| None, &[]).unwrap_err();
        assert_eq!(
            error.details,
            "watched by 10.1.0.11:0/25, which is in storage_ips of host-b, but the VM runs on host-a: a fence of \
             host-a would block the wrong host; correct storage_ips in [[host]] \"host-b\" and \"host-a\""
        );
        let right = [host("host-a", "10.1.0.11"), host("host-b", "10.1.0.12")];
        assert_eq!(judge(&watch, Some(&right[0]), &right, |_| None, &[]).unwrap(), "watched by 10.1.0.11:0/25");
        assert!(judge(&watch, None, &swapped, |_| None, &[]).is_ok(), "no host reports the VM");
    }

    #[test]
    fn watcher_at_unlisted_interface_names_the_host() {
        let watch = case(include_str!("../../tests/cases/ceph/watchers.own-other-nic.json"));
        let hosts = [host("host-a", "10.9.0.21"), host("host-b", "10.9.0.22")];
        for error in [
            judge(&watch, Some(&hosts[0]), &hosts, |_| None, &[]).unwrap_err(),
            judge(&watch, None, &hosts, |_| Some(0), &[]).unwrap_err(),
        ] {
            assert!(error.details.contains("add 10.8.0.21 to storage_ips in [[host]] \"host-a\""), "{error}");
        }
        let nobody = judge(&watch, None, &hosts, |_| None, &[]).unwrap_err();
        assert!(nobody.details.contains("watchers_allowed"), "{nobody}");
    }

    #[test]
    fn allowed_mirror_passes() {
        let watch = case(include_str!("../../tests/cases/ceph/watchers.rbd-mirror.json"));
        let hosts = [host("host-a", "10.9.0.21")];
        let mirror = ["10.9.0.99".parse().unwrap()];
        assert!(judge(&watch, None, &hosts, |_| None, &[]).is_err());
        assert!(judge(&watch, None, &hosts, |_| None, &mirror).unwrap().contains("listed in watchers_allowed"));
    }
}
