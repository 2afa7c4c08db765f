//! The IP addresses of this host, from its kernel.
//!
//! Purpose: the addresses that a storage fence blocks must be addresses of that host.
//! Invariant: an incomplete read is unknown: the empty list.
//! Alternatives considered: `getifaddrs` (unsafe, or one more crate); binding each address (`ip_nonlocal_bind` makes
//! every bind succeed).

use std::{
    fs::File,
    io::Read,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

/// The largest table that is read, 8 MiB. Too low: a host with many routes does not know its addresses. Too high: a
/// router of the whole Internet reads for seconds.
const MAX_TABLE_BYTES: u64 = 8 << 20;

/// All of them but loopback and link-local ones; none if that cannot be told.
pub fn own() -> Vec<IpAddr> {
    let Some(four) = table("/proc/net/fib_trie") else { return Vec::new() };
    // Without IPv6 there is no such file.
    let six = table("/proc/net/if_inet6").unwrap_or_default();
    let mut all: Vec<IpAddr> = locals(&four).map(IpAddr::from).chain(interfaces(&six).map(IpAddr::from)).collect();
    all.sort();
    all.dedup();
    all
}

fn table(path: &str) -> Option<String> {
    let mut text = String::new();
    let read = File::open(path).ok()?.take(MAX_TABLE_BYTES + 1).read_to_string(&mut text).ok()?;
    (read as u64 <= MAX_TABLE_BYTES).then_some(text)
}

/// Of `/proc/net/fib_trie`: a leaf `|-- ADDRESS`, and below it `/32 host LOCAL`.
fn locals(trie: &str) -> impl Iterator<Item = Ipv4Addr> {
    let mut leaf = None;
    trie.lines().filter_map(move |line| {
        let line = line.trim();
        if let Some(address) = line.strip_prefix("|-- ") {
            leaf = address.parse::<Ipv4Addr>().ok();
        }
        let local = line.starts_with("/32") && line.ends_with("host LOCAL");
        leaf.filter(|ip| local && !ip.is_loopback() && !ip.is_link_local())
    })
}

/// Of `/proc/net/if_inet6`: 32 hex digits at the beginning of each line.
fn interfaces(table: &str) -> impl Iterator<Item = Ipv6Addr> {
    let address = |line: &str| {
        let digits = line.split_whitespace().next().filter(|digits| digits.len() == 32)?;
        Some(Ipv6Addr::from(u128::from_str_radix(digits, 16).ok()?))
    };
    table.lines().filter_map(address).filter(|ip| !ip.is_loopback() && !ip.is_unicast_link_local())
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRIE: &str = "Main:
  +-- 0.0.0.0/0 3 0 5
     |-- 0.0.0.0
        /0 universe UNICAST
     +-- 127.0.0.0/8 2 0 2
           |-- 127.0.0.1
              /32 host LOCAL
     +-- 10.77.0.0/24 2 0 2
           |-- 10.77.0.0
              /24 link UNICAST
           |-- 10.77.0.11
              /32 host LOCAL
        |-- 10.77.0.255
           /32 link BROADCAST
Local:
           |-- 10.77.0.11
              /32 host LOCAL
        |-- 10.78.0.11
           /32 host LOCAL
";

    #[test]
    fn own_addresses_exclude_routes_and_broadcasts() {
        assert_eq!(
            locals(TRIE).map(|ip| ip.to_string()).collect::<Vec<_>>(),
            ["10.77.0.11", "10.77.0.11", "10.78.0.11"]
        );
        let six = "00000000000000000000000000000001 01 80 10 80       lo\n\
                   fd000000000000000000000000000002 04 40 00 82     eth0\n\
                   fe8000000000000000fc00fffe000001 04 40 20 80     eth0\nodd\n";
        assert_eq!(interfaces(six).map(|ip| ip.to_string()).collect::<Vec<_>>(), ["fd00::2"]);
    }

    #[test]
    fn what_the_kernel_says_here_has_no_loopback() {
        assert!(own().iter().all(|ip| !ip.is_loopback()), "{:?}", own());
    }
}
