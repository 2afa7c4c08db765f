//! `[[host]]`: the hosts and their addresses.
//!
//! Invariants: no two hosts share an address, and an address by which a storage cannot identify a host is rejected. A
//! fence of the wrong machine proves nothing, and a storage fence of a shared address blocks a healthy host.
//! Alternative considered: hosts that differ only in their SSH port. Beyond loopback one address is one machine, or a
//! forwarding that may change; on loopback it is a lab on one machine, where everything is shared.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr},
    ops::Range,
    path::{Path, PathBuf},
};

use ringfence_actors::inventory::{Host, Inventory};
use ringfence_messages::{ClusterId, HostId};
use serde_spanned::Spanned;

use super::{
    Checker,
    controller::{Names, parse_id},
    raw::{RawHost, Text},
    text,
};

/// Access to a host's agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentAccess {
    /// The agent's base URL.
    pub url: String,
    /// SSH user with which an MDS installs its parts.
    pub ssh_user: String,
    /// SSH port.
    pub ssh_port: u16,
    /// File with the SSH password.
    pub ssh_password_file: Option<PathBuf>,
}

/// An address in the file, with its host and place.
struct Placed {
    host: String,
    ip: IpAddr,
    ssh_port: u16,
    at: Range<usize>,
}

/// Reads the hosts. Also returns the number of tables.
pub(super) fn hosts(
    c: &mut Checker,
    tables: &[Spanned<RawHost>],
    clusters: &Names<ClusterId>,
    base: &Path,
    secure: bool,
    inventory: &mut Inventory,
) -> (HashMap<HostId, AgentAccess>, usize) {
    let mut names = Names::<HostId>::of("host");
    let mut agents = HashMap::new();
    let mut urls: Vec<(String, String, Range<usize>)> = Vec::new();
    let (mut management_ips, mut all_storage_ips): (Vec<Placed>, Vec<Placed>) = Default::default();
    for table in tables {
        let of = table.get_ref();
        let (host, ssh_port) = (of.name.get_ref().clone(), of.ssh_port.unwrap_or(22));
        let placed = |ip, at| Placed { host: host.clone(), ip, ssh_port, at };
        let id = names.add(c, &of.name, of.uuid.as_ref(), 64, parse_id, HostId::from_name);
        let cluster = clusters.find(c, &of.cluster);
        let management = c.ok(of.management_ip.span(), text::ip(of.management_ip.get_ref()));
        let management = management.and_then(|ip| c.ok(of.management_ip.span(), of_one_host(ip)));
        management_ips.extend(management.map(|ip| placed(ip, of.management_ip.span())));
        let mut storage_ips = Vec::with_capacity(of.storage_ips.len());
        for text in &of.storage_ips {
            let ip = c.ok(text.span(), text::ip(text.get_ref()));
            let Some(ip) = ip.and_then(|ip| c.ok(text.span(), of_one_host(ip))) else { continue };
            storage_ips.push(ip);
            all_storage_ips.push(placed(ip, text.span()));
        }
        let url = c.ok(of.agent.span(), text::agent_url(of.agent.get_ref(), secure));
        let (Some(cluster), Some(management), Some(url)) = (cluster, management, url) else { continue };
        let address = url.split_once("://").map_or(url.as_str(), |(_, address)| address).to_owned();
        if let Some((other, _, first)) = urls.iter().find(|(_, known, _)| *known == address) {
            let message = format!("{host} has the agent of {other} ({})", c.place(first));
            c.wrong(of.agent.span(), message, "each host has its own agent: correct the address or the port");
        }
        urls.push((host.clone(), address, of.agent.span()));
        let access = AgentAccess {
            url,
            ssh_user: of.ssh_user.clone().unwrap_or_else(|| "root".to_owned()),
            ssh_port,
            ssh_password_file: of.ssh_password_file.as_ref().map(|file| base.join(file)),
        };
        let agent_port = text::port(&access.url);
        agents.insert(id, access);
        let management_ip = management.to_string();
        inventory.hosts.push(Host { id, name: host, cluster, management_ip, agent_port, ssh_port, storage_ips });
    }
    each_its_own(c, &management_ips, &all_storage_ips);
    (agents, tables.len())
}

/// An address that can identify one machine.
pub(super) fn of_one_host(ip: IpAddr) -> text::Read<IpAddr> {
    let link_local = match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    let (why, help) = match ip {
        IpAddr::V6(six) if six.to_ipv4_mapped().is_some() => {
            let four = six.to_ipv4_mapped().unwrap_or(Ipv4Addr::UNSPECIFIED);
            ("is an IPv4-mapped IPv6 address, which no storage reports for its clients", format!("write {four}"))
        }
        ip if ip.is_unspecified() => ("is the unspecified address", "write the host's own address".to_owned()),
        ip if ip.is_multicast() => ("is a multicast address", "write the host's own address".to_owned()),
        IpAddr::V4(Ipv4Addr::BROADCAST) => ("is the broadcast address", "write the host's own address".to_owned()),
        _ if link_local => {
            ("is link-local, so it identifies a machine on one link only", "write a routed address".to_owned())
        }
        ip => return Ok(ip),
    };
    Err((format!("{ip} {why}"), help))
}

/// Rejects addresses that two hosts share, and loopback addresses beside others.
fn each_its_own(c: &mut Checker, management: &[Placed], storage: &[Placed]) {
    // A lab on one machine: all hosts have the machine's addresses, and differ by their agents.
    let lab = management.iter().all(|of| of.ip.is_loopback());
    for (n, of) in management.iter().enumerate() {
        if lab {
            break;
        }
        if of.ip.is_loopback() {
            let message = format!("{} is loopback: a sibling host that fences {} would reach itself", of.ip, of.host);
            c.wrong(of.at.clone(), message, "write the address at which other hosts reach it");
        } else if let Some(other) =
            management[..n].iter().find(|other| (other.ip, other.ssh_port) == (of.ip, of.ssh_port))
        {
            let message =
                format!("{} is also the management address of {} ({})", of.ip, other.host, c.place(&other.at));
            let help = "a fence would inspect the wrong machine: correct one of them";
            c.wrong(of.at.clone(), message, help);
        }
    }
    for (n, of) in storage.iter().enumerate() {
        if of.ip.is_loopback() {
            continue;
        }
        let twice = |other: &&Placed| other.ip == of.ip;
        let help = "a storage fence of one host would block the other: give each host its own addresses";
        if let Some(other) = storage[..n].iter().find(twice) {
            let message = match other.host == of.host {
                true => format!("{} is listed twice", of.ip),
                false => format!("{} is also in storage_ips of {} ({})", of.ip, other.host, c.place(&other.at)),
            };
            c.wrong(of.at.clone(), message, help);
        } else if let Some(other) = management.iter().filter(|other| other.host != of.host).find(twice) {
            let message = format!("{} is the management address of {} ({})", of.ip, other.host, c.place(&other.at));
            c.wrong(of.at.clone(), message, help);
        }
    }
}

/// Rejects loopback in `storage_ips`. A lab on one machine may have it in clusters without storage fences: `fencing`
/// tells whether a cluster uses a Ceph storage.
pub(super) fn no_loopback(
    c: &mut Checker,
    tables: &[Spanned<RawHost>],
    clusters: &Names<ClusterId>,
    fencing: impl Fn(ClusterId) -> bool,
) {
    let loopback = |text: &Text| text.get_ref().parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
    let lab = tables.iter().all(|of| loopback(&of.get_ref().management_ip));
    for of in tables.iter().map(Spanned::get_ref) {
        let fenced = clusters.known(of.cluster.get_ref()).is_some_and(&fencing);
        for text in of.storage_ips.iter().filter(|text| loopback(text) && (fenced || !lab)) {
            let message = format!("{} is loopback: a storage cannot fence a host by it", text.get_ref());
            c.wrong(text.span(), message, "write the address that the host uses towards its storage (ip -br addr)");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ambiguous_address_is_rejected_with_remedy() {
        for (text, help) in [
            ("0.0.0.0", "own address"),
            ("::", "own address"),
            ("::ffff:10.77.0.11", "write 10.77.0.11"),
            ("fe80::1", "routed"),
            ("169.254.1.2", "routed"),
            ("224.0.0.1", "own address"),
            ("ff02::1", "own address"),
            ("255.255.255.255", "own address"),
        ] {
            let (message, fix) = of_one_host(text.parse().unwrap()).unwrap_err();
            assert!(message.starts_with(text) && fix.contains(help), "{message}: {fix}");
        }
        for fine in ["10.77.0.11", "fd00::1", "2001:db8::1", "127.0.0.1"] {
            assert_eq!(of_one_host(fine.parse().unwrap()), Ok(fine.parse().unwrap()));
        }
    }
}
