//! Whether each host is one machine, and the right one: finds cloned images and swapped addresses.
//!
//! Purpose: a sibling host that inspects the wrong machine reports "no such QEMU", and a storage fence of the wrong
//! address blocks a healthy host. Invariants: pure; a fact that a host does not report is unknown, never ok. In a lab
//! on one machine (every management address is loopback) all hosts are one machine by intent.

use std::net::IpAddr;

use ringfence_actors::inventory::Host;
use ringfence_messages::{doctor::Finding, evidence::Machine};
use ringfence_service::checks::of;

const WHY_MACHINE: &str = "evidence from a machine counts for a host only if no other host is that machine";
const WHY_OWN: &str =
    "a storage fence blocks them: a wrong address blocks a healthy host while the failed host keeps writing";

/// The identity that a host reports; the default reports nothing.
#[derive(Clone, Debug, Default)]
pub(super) struct Itself {
    /// Machine id and boot id.
    pub(super) machine: Machine,
    /// The host's addresses.
    pub(super) addresses: Vec<IpAddr>,
}

/// Whether every host is this machine.
pub(super) fn lab(hosts: &[Host]) -> bool {
    hosts.iter().all(|host| host.management_ip.parse().is_ok_and(|ip: IpAddr| ip.is_loopback()))
}

/// Checks that a host that answered is its own machine.
pub(super) fn machine(hosts: &[Host], all: &[Option<Itself>], n: usize) -> Option<Finding> {
    let own = all.get(n)?.as_ref()?;
    let check = of("machine-id", WHY_MACHINE);
    let remedy = "rm /etc/machine-id /var/lib/dbus/machine-id; systemd-machine-id-setup; reboot";
    if lab(hosts) {
        return Some(check.ok("a lab on one machine"));
    }
    if own.machine.machine_id.is_empty() {
        return Some(check.unknown("it does not report a machine id", "systemd-machine-id-setup on the host"));
    }
    let twin = |(m, other): (usize, &Option<Itself>)| {
        (m != n && other.as_ref().is_some_and(|other| other.machine.is(&own.machine))).then_some(m)
    };
    let twin = all.iter().enumerate().find_map(twin);
    let Some(twin) = twin.and_then(|m| Some((hosts.get(m)?, all.get(m)?.as_ref()?))) else {
        return Some(check.ok(own.machine.machine_id.clone()));
    };
    let (other, its) = (&twin.0.name, twin.1);
    let id = &own.machine.machine_id;
    Some(match !own.machine.boot_id.is_empty() && own.machine.boot_id == its.machine.boot_id {
        true => check.fail(
            format!("it is the same machine as {other} ({id}, same boot): two agents on it, or a wrong address"),
            "correct management_ip and agent of the two hosts: a host is never its own sibling host",
        ),
        false => check.fail(format!("{other} has the same machine id {id}: a cloned image"), remedy),
    })
}

/// Checks that the addresses of a storage fence are the host's own.
pub(super) fn own_addresses(hosts: &[Host], all: &[Option<Itself>], n: usize) -> Option<Finding> {
    let (host, own) = (hosts.get(n)?, all.get(n)?.as_ref()?);
    if host.storage_ips.is_empty() || lab(hosts) {
        return None;
    }
    let check = of("own-addresses", WHY_OWN);
    if own.addresses.is_empty() {
        return Some(check.unknown("it does not report its addresses", format!("on {}: ip -br addr", host.name)));
    }
    let Some(foreign) = host.storage_ips.iter().find(|ip| !own.addresses.contains(ip)) else {
        return Some(check.ok("storage_ips are the host's own"));
    };
    let has = |other: &Option<Itself>| other.as_ref().is_some_and(|other| other.addresses.contains(foreign));
    let owner = all.iter().position(has).and_then(|m| hosts.get(m));
    let owner = owner.map(|other| format!(" but of {}", other.name)).unwrap_or_default();
    let addresses = own.addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    Some(check.fail(
        format!("{foreign} of its storage_ips is not an address of {}{owner}; it has {addresses}", host.name),
        format!("correct storage_ips in [[host]] {:?}", host.name),
    ))
}

#[cfg(test)]
mod tests {
    use ringfence_messages::{ClusterId, HostId, doctor::Verdict};

    use super::*;

    fn host(name: &str, management: &str, storage: &str) -> Host {
        Host {
            id: HostId::from_name(name),
            name: name.to_owned(),
            cluster: ClusterId::from_name("c1"),
            management_ip: management.to_owned(),
            agent_port: 7070,
            ssh_port: 22,
            storage_ips: vec![storage.parse().unwrap()],
        }
    }

    fn says(machine_id: &str, boot_id: &str, addresses: &[&str]) -> Option<Itself> {
        let machine = Machine { machine_id: machine_id.to_owned(), boot_id: boot_id.to_owned() };
        Some(Itself { machine, addresses: addresses.iter().map(|ip| ip.parse().unwrap()).collect() })
    }

    #[test]
    fn cloned_machine_fails_and_silent_machine_is_unknown() {
        let hosts = [host("a", "10.0.0.1", "10.1.0.1"), host("b", "10.0.0.2", "10.1.0.2")];
        let judge = |all: &[Option<Itself>]| {
            let of = machine(&hosts, all, 0).unwrap();
            (of.verdict, of.found)
        };
        assert_eq!(judge(&[says("m1", "x", &[]), says("m2", "y", &[])]).0, Verdict::Ok);
        let (verdict, found) = judge(&[says("m1", "x", &[]), says("m1", "y", &[])]);
        assert_eq!((verdict, found.as_str()), (Verdict::Fail, "b has the same machine id m1: a cloned image"));
        let (verdict, found) = judge(&[says("m1", "x", &[]), says("m1", "x", &[])]);
        assert!(verdict == Verdict::Fail && found.contains("it is the same machine as b"), "{found}");
        assert_eq!(judge(&[says("", "x", &[]), says("", "x", &[])]).0, Verdict::Unknown);
        assert_eq!(judge(&[says("m1", "x", &[]), None]).0, Verdict::Ok);
        assert_eq!(machine(&hosts, &[None, None], 0), None);
        let lab = [host("a", "127.0.0.1", "10.1.0.1"), host("b", "127.0.0.1", "10.1.0.2")];
        let same = [says("m1", "x", &[]), says("m1", "x", &[])];
        assert_eq!(machine(&lab, &same, 0).unwrap().verdict, Verdict::Ok);
    }

    #[test]
    fn swapped_storage_addresses_are_found() {
        let hosts = [host("a", "10.0.0.11", "10.1.0.12"), host("b", "10.0.0.12", "10.1.0.11")];
        let all = [says("1", "x", &["10.0.0.11", "10.1.0.11"]), says("2", "y", &["10.0.0.12", "10.1.0.12"])];
        let found = own_addresses(&hosts, &all, 0).unwrap();
        assert_eq!(found.verdict, Verdict::Fail);
        assert_eq!(
            found.found,
            "10.1.0.12 of its storage_ips is not an address of a but of b; it has 10.0.0.11, 10.1.0.11"
        );
        assert_eq!(found.mend.unwrap(), "correct storage_ips in [[host]] \"a\"");
        let right = [host("a", "10.0.0.11", "10.1.0.11"), host("b", "10.0.0.12", "10.1.0.12")];
        assert_eq!(own_addresses(&right, &all, 0).unwrap().verdict, Verdict::Ok);
        let silent = [says("1", "x", &[]), None];
        assert_eq!(own_addresses(&right, &silent, 0).unwrap().verdict, Verdict::Unknown);
        assert_eq!(own_addresses(&right, &silent, 1), None);
    }
}
