//! Ranks the hosts that can take a VM: a host with room, spread over hosts, not one to avoid.

use std::cmp::Reverse;

use ringfence_messages::{HostId, ha::Candidate};

use crate::inventory::Vm;

/// Hosts with room for `need_mib`, the best first, and hosts without. A host with unknown memory has none (I2).
pub fn rank(candidates: &[Candidate], need_mib: u64, soft_avoid: &[HostId]) -> (Vec<HostId>, Vec<HostId>) {
    let free = |c: &Candidate| c.available_mib.unwrap_or(0).saturating_sub(c.reserved_mib);
    let (mut roomy, full): (Vec<&Candidate>, Vec<&Candidate>) = candidates.iter().partition(|c| free(c) >= need_mib);
    // Whole GiB: the number of VMs decides between hosts of about equal memory.
    roomy.sort_by_key(|c| (soft_avoid.contains(&c.host_uuid), Reverse(free(c) / 1024), c.vms));
    let hosts = |candidates: Vec<&Candidate>| candidates.into_iter().map(|c| c.host_uuid).collect();
    (hosts(roomy), hosts(full))
}

/// The target host. A requested host is taken even without room: the operator decides. Else the last host if it has
/// room and is not to be avoided; else the best one.
pub fn choose(
    (roomy, full): (&[HostId], &[HostId]),
    named: Option<HostId>,
    home: Option<HostId>,
    soft_avoid: &[HostId],
) -> Option<HostId> {
    match named {
        Some(named) => roomy.iter().chain(full).copied().find(|host| *host == named),
        None => {
            let at_home = home.filter(|home| roomy.contains(home) && !soft_avoid.contains(home));
            at_home.or(roomy.first().copied())
        }
    }
}

/// The target of one of several VMs; reduces the room for the next ones.
pub fn spread(candidates: &mut [Candidate], need_mib: u64) -> Option<HostId> {
    let (roomy, full) = rank(candidates, need_mib, &[]);
    let target = choose((&roomy, &full), None, None, &[])?;
    for taken in candidates.iter_mut().filter(|candidate| candidate.host_uuid == target) {
        taken.reserved_mib += need_mib;
        taken.vms += 1;
    }
    Some(target)
}

/// Why no host can take a VM; `full` is the number of hosts without room.
pub fn nowhere(vm: &Vm, full: u32) -> String {
    match full {
        0 => format!("no host in the cluster of {} is Connected and in service", vm.name),
        full => format!(
            "no host has room for {}: {full} Connected, none with {} MiB of memory free",
            vm.name, vm.memory_mib
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranking_is_by_memory_then_vms_and_needs_room() {
        let candidate = |name: &str, available_mib, reserved_mib, vms| Candidate {
            host_uuid: HostId::from_name(name),
            available_mib,
            reserved_mib,
            vms,
        };
        let hosts = [
            candidate("small", Some(4096), 0, 0),
            candidate("reserved", Some(64 << 10), 63 << 10, 0),
            candidate("big", Some((32 << 10) + 5), 0, 9),
            candidate("silent", None, 0, 0),
            candidate("big too", Some(32 << 10), 0, 3),
        ];
        let ids = |names: &[&str]| names.iter().map(|name| HostId::from_name(name)).collect::<Vec<_>>();
        let (roomy, full) = rank(&hosts, 2048, &[]);
        assert_eq!((roomy, full), (ids(&["big too", "big", "small"]), ids(&["reserved", "silent"])));
        let (roomy, _) = rank(&hosts, 2048, &ids(&["big too"]));
        assert_eq!(roomy, ids(&["big", "small", "big too"]), "avoided where others will do");
    }

    #[test]
    fn simultaneous_starts_are_spread() {
        let candidate = |name: &str| Candidate {
            host_uuid: HostId::from_name(name),
            available_mib: Some(3000),
            reserved_mib: 0,
            vms: 0,
        };
        let mut hosts = [candidate("a"), candidate("b")];
        let targets: Vec<_> = (0..3).map(|_| spread(&mut hosts, 2000)).collect();
        assert_eq!(targets, [Some(HostId::from_name("a")), Some(HostId::from_name("b")), None]);
        // About equal memory remains: their number decides.
        let mut hosts = [candidate("a"), candidate("b")];
        let targets: Vec<_> = (0..4).filter_map(|_| spread(&mut hosts, 1)).collect();
        assert_eq!(targets, ["a", "b", "a", "b"].map(HostId::from_name));
    }

    #[test]
    fn last_host_is_preferred_and_full_host_only_on_request() {
        let ids = |names: &[&str]| names.iter().map(|name| HostId::from_name(name)).collect::<Vec<_>>();
        let choose = |roomy: &[&str], named: Option<&str>, soft_avoid: &[&str]| {
            let home = Some(HostId::from_name("home"));
            choose((&ids(roomy), &ids(&["full"])), named.map(HostId::from_name), home, &ids(soft_avoid))
        };
        let host = |name| Some(HostId::from_name(name));
        assert_eq!(choose(&["a", "home"], None, &[]), host("home"));
        assert_eq!(choose(&["a", "home"], None, &["home"]), host("a"));
        assert_eq!(choose(&["a", "b"], None, &[]), host("a"));
        assert_eq!(choose(&["a"], Some("full"), &[]), host("full"));
        assert_eq!(choose(&["a"], Some("gone"), &[]), None);
        assert_eq!(choose(&[], None, &[]), None);
    }
}
