//! The Ceph cluster: watchers, blocklist, epochs of the OSD map.
//!
//! Seen on real Ceph (lab/README.md): an entry rejects every client of the address, also a new one; OSDs get it a
//! moment after the monitors, but before they serve a client that has the newer map; a survivor writes again as soon as
//! an entry ends, and is never listed as a watcher again.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use ringfence_actors::ports::{CephMap, CephPort};
use ringfence_messages::{Code, ErrorCode, Result, StorageId, ceph::Watcher};

use super::{End, State, World, links::Node};
use crate::fault::CephFault;

/// How long a question may take before the driver gives up (domain).
const BOUND: Duration = Duration::from_secs(10);

/// An address that is refused.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Entry {
    until: Duration,
    /// OSDs act on it from then on, at the latest.
    in_force: Duration,
}

/// The cluster.
#[derive(Debug, Default)]
pub(crate) struct Ceph {
    pub(crate) epoch: u64,
    pub(crate) entries: BTreeMap<IpAddr, Entry>,
    /// Watches of QEMUs that ended: VM, host, until when.
    pub(crate) ghosts: Vec<(usize, usize, Duration)>,
    /// Watches of clients that are no QEMU of ours: VM and host.
    pub(crate) foreign_watchers: Vec<(u64, (usize, usize))>,
    pub(crate) trouble: Vec<(u64, CephFault)>,
}

impl Ceph {
    /// Whether OSDs refuse a client from any of these addresses.
    pub(crate) fn refuses(&self, ips: &[IpAddr], now: Duration) -> bool {
        let refused = |entry: &Entry| entry.in_force <= now && now < entry.until;
        ips.iter().any(|ip| self.entries.get(ip).is_some_and(refused))
    }

    pub(crate) fn blocked(&self, now: Duration) -> BTreeSet<IpAddr> {
        self.entries.iter().filter(|(_, entry)| now < entry.until).map(|(ip, _)| *ip).collect()
    }

    fn has(&self, trouble: CephFault) -> bool {
        self.trouble.iter().any(|(_, is)| *is == trouble)
    }
}

impl State {
    /// A client that has the newest map is served: no OSD that serves it has an older one.
    pub(crate) fn newest_map_spreads(&mut self) {
        let now = self.now;
        let mut spread = false;
        for entry in self.ceph.entries.values_mut().filter(|entry| entry.in_force > now) {
            entry.in_force = now;
            spread = true;
        }
        if spread {
            self.settle_all();
        }
    }
}

impl World {
    /// Has everything be looked at again at a time.
    pub(crate) fn settle_at(self: &Arc<Self>, at: Duration) {
        let world = self.clone();
        tokio::spawn(async move {
            tokio::time::sleep_until(world.born + at).await;
            world.state().settle_all();
        });
    }
}

impl End {
    /// A question to the monitors: they answer, or not within the driver's bound.
    async fn ask<T>(&self, what: impl FnOnce(&mut State) -> Result<T>) -> Result<T> {
        let dies = self.dies();
        let (silent, latency) = {
            let mut state = self.world.state();
            let open = state.links.both_ways(Node::Controller, Node::Ceph);
            (!open || state.ceph.has(CephFault::NoQuorum), state.some(5..120))
        };
        if silent {
            tokio::time::sleep(BOUND).await;
            return Err(ErrorCode::new(Code::TIMEOUT, format!("no monitor answered within {BOUND:?}")));
        }
        tokio::time::sleep(latency).await;
        let result = what(&mut self.world.state());
        if dies {
            return self.die().await;
        }
        let back = self.world.state().some(1..40);
        tokio::time::sleep(back).await;
        if !self.world.state().links.open(Node::Ceph, Node::Controller) {
            tokio::time::sleep(BOUND).await;
            return Err(ErrorCode::new(Code::TIMEOUT, format!("no monitor answered within {BOUND:?}")));
        }
        result
    }
}

fn odd(state: &State) -> Result<()> {
    match state.ceph.has(CephFault::OddJson) {
        true => Err(ErrorCode::new(Code::HTTP, "the answer is not what `rbd status` says: expected `,`")),
        false => Ok(()),
    }
}

fn may_change(state: &State) -> Result<()> {
    match state.ceph.has(CephFault::Denied) {
        true => Err(ErrorCode::new(Code::OPERATION, "osd blocklist: access denied")),
        false => Ok(()),
    }
}

#[async_trait]
impl CephPort for End {
    async fn watchers(&self, _: StorageId, _: &str, image: &str) -> Result<Vec<Watcher>> {
        // `vm-3` and `vm-3-data` are volumes of vm-3.
        let vm = self.world.vm_named(image.trim_end_matches("-data"));
        self.ask(|state| {
            odd(state)?;
            let now = state.now;
            let watched = |until: Option<Duration>| until.is_none_or(|until| now < until);
            state.ceph.ghosts.retain(|(_, _, until)| now < *until);
            let ghosts = state.ceph.ghosts.iter().filter(|(of, _, _)| Some(*of) == vm).map(|(_, host, _)| *host);
            let foreign_watchers = state.ceph.foreign_watchers.iter().filter(|(_, (of, _))| Some(*of) == vm);
            let mut hosts: Vec<usize> = ghosts.chain(foreign_watchers.map(|(_, (_, host))| *host)).collect();
            for (host, machine) in state.machines.iter().enumerate() {
                let holds = machine.processes.iter().any(|p| Some(p.vm) == vm && !p.incoming && watched(p.watch_until));
                hosts.extend(holds.then_some(host));
            }
            hosts.sort_unstable();
            hosts.dedup();
            let of = |host: usize| {
                let ip = state.machines[host].storage_ips[0];
                Watcher { address: format!("{ip}:0/{host}"), ip }
            };
            Ok(hosts.into_iter().map(of).collect())
        })
        .await
    }

    async fn map(&self, _: StorageId) -> Result<CephMap> {
        self.ask(|state| {
            odd(state)?;
            let daemons = vec![("mon.a".to_owned(), crate::plan::MONITOR.parse().expect("an address"))];
            let (epoch, blocked) = (state.ceph.epoch, state.ceph.blocked(state.now));
            Ok(CephMap { epoch, blocked, daemons, ..CephMap::default() })
        })
        .await
    }

    async fn block(&self, _: StorageId, ip: IpAddr, lasting: Duration) -> Result<u64> {
        let world = self.world.clone();
        self.ask(move |state| {
            may_change(state)?;
            let lag = state.some(0..2000);
            let (now, until) = (state.now, state.now + lasting);
            state.blocks(ip);
            let in_force = state.ceph.entries.get(&ip).filter(|entry| now < entry.until);
            let in_force = in_force.map_or(now + lag, |entry| entry.in_force);
            let epoch = state.refuse(ip, until, in_force);
            state.log(format_args!("ceph: rejects {ip} in epoch {epoch}"));
            world.settle_at(in_force);
            world.settle_at(until);
            Ok(epoch)
        })
        .await
    }

    async fn unblock(&self, _: StorageId, ip: IpAddr) -> Result<u64> {
        self.ask(|state| {
            may_change(state)?;
            state.unblock(ip, "the controller removes the fence");
            Ok(state.ceph.epoch)
        })
        .await
    }
}

impl State {
    /// The map's epoch from which on it refuses an address.
    pub(crate) fn refuse(&mut self, ip: IpAddr, until: Duration, in_force: Duration) -> u64 {
        self.ceph.entries.insert(ip, Entry { until, in_force });
        self.ceph.epoch += 1;
        self.ceph.epoch
    }

    pub(crate) fn unblock(&mut self, ip: IpAddr, why: &str) {
        if self.ceph.entries.remove(&ip).is_some() {
            self.ceph.epoch += 1;
            let epoch = self.ceph.epoch;
            self.log(format_args!("ceph: accepts {ip} again in epoch {epoch}: {why}"));
            self.settle_all();
        }
    }
}
