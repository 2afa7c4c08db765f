//! Where a VM is started: on a host with room, spread out, away from where it is not wanted.

use std::cmp::Reverse;

use ringfence_messages::HostId;

use crate::inventory::Vm;

/// What is known of a host that takes work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// The host.
    pub host: HostId,
    /// Memory that it says is available, in MiB; `None` if it does not say.
    pub available_mib: Option<u64>,
    /// Memory of VMs that were just sent there, in MiB: it does not count in `available_mib` yet.
    pub promised_mib: u64,
    /// VMs that are believed to run there.
    pub vms: usize,
}

/// Hosts with room for `need_mib`, the best first, and those without. One that does not say has none (I2).
pub fn rank(candidates: &[Candidate], need_mib: u64, soft_avoid: &[HostId]) -> (Vec<HostId>, Vec<HostId>) {
    let free = |c: &Candidate| c.available_mib.unwrap_or(0).saturating_sub(c.promised_mib);
    let (mut roomy, full): (Vec<&Candidate>, Vec<&Candidate>) = candidates.iter().partition(|c| free(c) >= need_mib);
    // Whole GiB: a host is not better for a few MiB, but for having fewer VMs.
    roomy.sort_by_key(|c| (soft_avoid.contains(&c.host), Reverse(free(c) / 1024), c.vms));
    let hosts = |of: Vec<&Candidate>| of.into_iter().map(|c| c.host).collect();
    (hosts(roomy), hosts(full))
}

/// The host to start on: the one that somebody named, even without room: they know how much fits there. Else home, if it
/// has room and is not to be avoided; else the best.
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

/// Where one of several that are started together goes; the next ones find its memory taken.
pub fn spread(candidates: &mut [Candidate], need_mib: u64) -> Option<HostId> {
    let (roomy, full) = rank(candidates, need_mib, &[]);
    let target = choose((&roomy, &full), None, None, &[])?;
    for taken in candidates.iter_mut().filter(|candidate| candidate.host == target) {
        (taken.promised_mib, taken.vms) = (taken.promised_mib + need_mib, taken.vms + 1);
    }
    Some(target)
}

/// Why a VM can be started on no host, if so many take work.
pub fn nowhere(vm: &Vm, full: u32) -> String {
    match full {
        0 => format!("no host of the cluster of {} is connected and in service", vm.name),
        full => format!(
            "no host has room for {}: {full} connected, none with {} MiB of memory free",
            vm.name, vm.memory_mib
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_roomiest_first_then_the_emptiest_and_never_one_without_room() {
        let of = |name: &str, available_mib, promised_mib, vms| Candidate {
            host: HostId::from_name(name),
            available_mib,
            promised_mib,
            vms,
        };
        let hosts = [
            of("small", Some(4096), 0, 0),
            of("promised", Some(64 << 10), 63 << 10, 0),
            of("big", Some(32 << 10), 0, 9),
            of("silent", None, 0, 0),
            of("big too", Some((32 << 10) + 5), 0, 3),
        ];
        let ids = |names: &[&str]| names.iter().map(|name| HostId::from_name(name)).collect::<Vec<_>>();
        let (roomy, full) = rank(&hosts, 2048, &[]);
        assert_eq!((roomy, full), (ids(&["big too", "big", "small"]), ids(&["promised", "silent"])));
        let (roomy, _) = rank(&hosts, 2048, &ids(&["big too"]));
        assert_eq!(roomy, ids(&["big", "small", "big too"]), "avoided where others will do");
    }

    #[test]
    fn those_that_are_started_together_do_not_all_go_where_one_fits() {
        let of = |name: &str| Candidate {
            host: HostId::from_name(name),
            available_mib: Some(3000),
            promised_mib: 0,
            vms: 0,
        };
        let mut hosts = [of("a"), of("b")];
        let targets: Vec<_> = (0..3).map(|_| spread(&mut hosts, 2000)).collect();
        assert_eq!(targets, [Some(HostId::from_name("a")), Some(HostId::from_name("b")), None]);
    }

    #[test]
    fn home_is_best_unless_avoided_and_a_full_host_is_taken_only_by_name() {
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
