//! The shipped fencer: sends a sibling host of the failed host to kill the VM there (fencing level 1).
//!
//! Invariants: a sibling host is one that serves now. They are tried in turn until one has a result, at most
//! [`MAX_SIBLINGS`]. A host is unreachable only if every sibling host that could be queried reports that: a sibling
//! host that is itself cut off must not make a host unreachable. A recent scan is not repeated.

use std::{collections::HashMap, sync::Arc, time::Duration};

use futures_util::future::join_all;
use ringfence::{Accepts, Actor, Address, AsyncReply, Bus, Ctx, Handler, Kind, Promised};
use ringfence_messages::{
    ClusterId, Code, ErrorCode, HostId, Result,
    fence::{SiblingFenceVmCmd, SiblingFenceVmOnHostMsg, SiblingFenceVmOnHostReply},
    ha::{ScanHostCmd, ScanHostCmdReply, ScanHostMsg, ScanHostReply},
    host::QueryServingHostsMsg,
    recovery::RECOVERY,
};
use tokio::time::Instant;

use crate::{
    host::HostActor,
    inventory::{InventoryIndex, SharedInventory},
};

/// Address of the fencer: the SPI. Another fencer is registered here in place of the shipped one.
pub const FENCER: Address = Address::singleton(SiblingFencer::KIND);

/// Sibling hosts that are tried at most. Too low: two broken ones block a fence. Too high: a fence that cannot
/// succeed takes long.
pub const MAX_SIBLINGS: usize = 3;

/// Limit of a fence by a sibling host: its SSH has 8 s to connect and 20 s to kill.
pub const FENCE_TIMEOUT: Duration = Duration::from_secs(30);

/// Limit of a probe by a sibling host. Its own probes have 1.5 s.
pub const SCAN_TIMEOUT: Duration = Duration::from_millis(2500);

/// Validity of a scan. Too high: a host that returned is not probed.
pub const SCAN_FRESH: Duration = Duration::from_secs(4);

/// The shipped fencer.
pub struct SiblingFencer {
    inner: Arc<Inner>,
    /// The last scan of each host that no sibling host reached.
    unseen: HashMap<HostId, (Instant, ScanHostReply)>,
}

struct Inner {
    inventory: SharedInventory,
    bus: Bus,
    cross_cluster: bool,
}

impl SiblingFencer {
    /// A fencer; `cross_cluster` admits hosts of other clusters if none of the own cluster can be queried.
    pub fn new(inventory: SharedInventory, bus: Bus, cross_cluster: bool) -> SiblingFencer {
        SiblingFencer { inner: Arc::new(Inner { inventory, bus, cross_cluster }), unseen: HashMap::new() }
    }
}

impl Inner {
    /// The sibling hosts of a failed host, the best first.
    async fn siblings(&self, failed: HostId, cluster: ClusterId, first: Option<HostId>) -> Result<Vec<HostId>> {
        let inventory = self.inventory.now();
        let others = inventory.clusters.iter().map(|c| c.id).filter(|id| self.cross_cluster && *id != cluster);
        let mut siblings = Vec::new();
        for cluster_uuid in std::iter::once(cluster).chain(others) {
            let ask = QueryServingHostsMsg { cluster_uuid };
            let serving = self.bus.ask(RECOVERY, ask).await?;
            siblings.extend(serving.host_uuids.into_iter().filter(|host| *host != failed));
        }
        siblings.sort_by_key(|host| Some(*host) != first);
        siblings.truncate(MAX_SIBLINGS);
        Ok(siblings)
    }

    async fn fence(&self, message: SiblingFenceVmOnHostMsg) -> Result<SiblingFenceVmOnHostReply> {
        let inventory = self.inventory.now();
        let failed = inventory.host(message.failed_host_uuid)?;
        let cmd = SiblingFenceVmCmd {
            vm_uuid: message.vm_uuid,
            failed_host_ip: failed.management_ip.clone(),
            failed_host_ssh_port: failed.ssh_port,
            failed_host_uuid: failed.id,
            machine: message.machine.clone(),
        };
        let target = message.ha_target_host_uuid;
        let (mut unreachable, mut errors) = (None, Vec::new());
        for sibling in self.siblings(failed.id, message.cluster_uuid, Some(target)).await? {
            let to = Address::new(HostActor::KIND, sibling);
            match self.bus.ask_within(to, cmd.clone(), FENCE_TIMEOUT).await {
                Ok(mut reply) => {
                    reply.executor_host_uuid = Some(sibling);
                    reply.executor_role = Some(if sibling == target { "ha-target" } else { "sibling" }.to_owned());
                    if reply.ssh_reachable {
                        return Ok(reply);
                    }
                    unreachable = Some(reply);
                }
                Err(error) => errors.push((sibling, error)),
            }
        }
        match (unreachable, errors.pop()) {
            (Some(reply), None) => Ok(reply),
            // One sibling host got no answer there, another one had no result: that is not "unreachable".
            (_, Some((sibling, error))) => {
                let details = format!("sibling host {} reported no result", inventory.host_name(sibling));
                let reason = error.opaque.get("reason").cloned();
                let failed = ErrorCode::new(Code::OPERATION, details).caused_by(error);
                Err(match reason {
                    Some(reason) => failed.with("reason", reason),
                    None => failed,
                })
            }
            (None, None) => {
                let details = format!("no sibling host of {} is Connected and in service", failed.name);
                Err(ErrorCode::new(Code::HOST_DISCONNECTED, details))
            }
        }
    }

    async fn scan(&self, host: HostId) -> Result<ScanHostReply> {
        let inventory = self.inventory.now();
        let host = inventory.host(host)?;
        let cmd = ScanHostCmd {
            host_uuid: host.id,
            host_ip: host.management_ip.clone(),
            ssh_port: host.ssh_port,
            agent_port: host.agent_port,
        };
        let siblings = self.siblings(host.id, host.cluster, None).await?;
        let probes = siblings
            .iter()
            .map(|sibling| self.bus.ask_within(Address::new(HostActor::KIND, *sibling), cmd.clone(), SCAN_TIMEOUT));
        let answers = join_all(probes).await;
        Ok(summary(&inventory, siblings.into_iter().zip(answers)))
    }
}

/// The combined result of all sibling hosts. A failed probe counts for nothing.
fn summary(
    inventory: &InventoryIndex,
    answers: impl IntoIterator<Item = (HostId, Result<ScanHostCmdReply>)>,
) -> ScanHostReply {
    let mut reply = ScanHostReply::default();
    let mut reasons = Vec::new();
    for (sibling, answer) in answers {
        let what = match answer {
            Ok(answer) => {
                let seen = answer.ssh || answer.agent;
                if seen { &mut reply.seen_by } else { &mut reply.unseen_by }.push(sibling);
                answer.reason
            }
            Err(error) => format!("probe failed: {error}"),
        };
        reasons.push(format!("{}: {what}", inventory.host_name(sibling)));
    }
    reply.reason = if reasons.is_empty() { "no sibling host can probe".to_owned() } else { reasons.join("; ") };
    reply
}

impl Actor for SiblingFencer {
    const KIND: Kind = Kind::new("fencer");

    fn accepts(accepts: &mut Accepts<Self>) {
        accepts.message::<SiblingFenceVmOnHostMsg>().message::<ScanHostMsg>();
    }
}

impl Handler<SiblingFenceVmOnHostMsg> for SiblingFencer {
    type Answer = AsyncReply<SiblingFenceVmOnHostReply>;

    fn handle(&mut self, message: SiblingFenceVmOnHostMsg, _: &mut Ctx<'_, Self>) -> Self::Answer {
        let fresh = self.unseen.get(&message.failed_host_uuid).filter(|(at, _)| at.elapsed() < SCAN_FRESH);
        let known = fresh.map(|(_, scan)| SiblingFenceVmOnHostReply {
            executor_host_uuid: scan.unseen_by.first().copied(),
            executor_role: Some("sibling".to_owned()),
            reason: scan.reason.clone(),
            ..SiblingFenceVmOnHostReply::default()
        });
        let inner = self.inner.clone();
        AsyncReply::new(async move {
            match known {
                Some(reply) => Ok(reply),
                None => inner.fence(message).await,
            }
        })
    }
}

impl Handler<ScanHostMsg> for SiblingFencer {
    type Answer = Promised<ScanHostMsg>;

    fn handle(&mut self, message: ScanHostMsg, ctx: &mut Ctx<'_, Self>) -> Self::Answer {
        let (promise, answer) = ctx.promise::<ScanHostMsg>();
        let inner = self.inner.clone();
        let scanned = async move { inner.scan(message.host_uuid).await };
        ctx.spawn(scanned, move |this, scan: Result<ScanHostReply>, _| {
            this.unseen.remove(&message.host_uuid);
            if let Ok(scan) = &scan
                && scan.seen_by.is_empty()
                && !scan.unseen_by.is_empty()
            {
                this.unseen.insert(message.host_uuid, (Instant::now(), scan.clone()));
            }
            promise.complete(scan);
        });
        answer
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inventory::Inventory;

    #[test]
    fn failed_probe_counts_for_nothing() {
        let inventory = InventoryIndex::new(Inventory::default());
        let (a, b, c) = (HostId::from_name("a"), HostId::from_name("b"), HostId::from_name("c"));
        let probed = |ssh, agent| Ok(ScanHostCmdReply { ssh, agent, reason: "r".to_owned() });
        let cut_off = Err(ErrorCode::new(Code::TIMEOUT, "no answer"));
        let reply = summary(&inventory, [(a, probed(false, false)), (b, cut_off.clone()), (c, probed(true, false))]);
        assert_eq!((reply.seen_by, reply.unseen_by), (vec![c], vec![a]));
        let reply = summary(&inventory, [(b, cut_off)]);
        assert!(reply.seen_by.is_empty() && reply.unseen_by.is_empty(), "no probe succeeded: {reply:?}");
    }
}
