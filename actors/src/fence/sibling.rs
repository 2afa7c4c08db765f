//! The shipped fencer: sends a sibling of the failed host to kill the VM there (level 1 of the ladder).
//!
//! Invariants: a sibling is one that takes work now; they are tried in turn until one can tell, at most
//! [`MAX_SIBLINGS`]. "Nothing answers there" is said only if every sibling that could be asked says so: one that is cut
//! off itself must not make a host unreachable. What siblings saw a moment ago is not asked again.

use std::{collections::HashMap, sync::Arc, time::Duration};

use futures_util::future::join_all;
use ringfence::{Accepts, Actor, Address, AsyncReply, Bus, Ctx, Handler, Kind, Promised};
use ringfence_messages::{
    ClusterId, Code, ErrorCode, HostId, Result,
    fence::{SiblingFenceVmCmd, SiblingFenceVmOnHostMsg, SiblingFenceVmOnHostReply},
    ha::{ScanHostCmd, ScanHostCmdReply, ScanHostMsg, ScanHostReply},
    host::QueryServingHostsMsg,
};
use tokio::time::Instant;

use crate::{
    host::HostActor,
    inventory::{Catalog, Directory},
    recovery::RecoveryActor,
};

/// Where a fencer is registered: the SPI. Another fencer lives here in place of the shipped one.
pub const FENCER: Address = Address::singleton(SiblingFencer::KIND);

/// Siblings that are asked at most. Too low: two bad ones block a fence. Too high: a fence that cannot succeed takes long.
pub const MAX_SIBLINGS: usize = 3;

/// How long a sibling may take to fence: its SSH has 8 s to connect and 20 s to kill (domain).
pub const FENCE_TIMEOUT: Duration = Duration::from_secs(30);

/// How long a sibling may take to look for a host. Its own probes have 1.5 s.
pub const SCAN_TIMEOUT: Duration = Duration::from_millis(2500);

/// For so long what siblings saw stands for what they would see. Too high: a host that is back is not asked.
pub const SCAN_FRESH: Duration = Duration::from_secs(4);

/// The shipped fencer.
pub struct SiblingFencer {
    inner: Arc<Inner>,
    /// The last look at a host that nobody saw.
    unseen: HashMap<HostId, (Instant, ScanHostReply)>,
}

struct Inner {
    catalog: Catalog,
    bus: Bus,
    cross_cluster: bool,
}

impl SiblingFencer {
    /// A fencer; `cross_cluster` lets hosts of other clusters stand in where none of the own can be asked.
    pub fn new(catalog: Catalog, bus: Bus, cross_cluster: bool) -> SiblingFencer {
        SiblingFencer { inner: Arc::new(Inner { catalog, bus, cross_cluster }), unseen: HashMap::new() }
    }
}

impl Inner {
    /// The hosts that can be sent to a failed one, the best first.
    async fn siblings(&self, failed: HostId, cluster: ClusterId, first: Option<HostId>) -> Result<Vec<HostId>> {
        let directory = self.catalog.now();
        let others = directory.clusters.iter().map(|c| c.id).filter(|id| self.cross_cluster && *id != cluster);
        let mut siblings = Vec::new();
        for cluster_uuid in std::iter::once(cluster).chain(others) {
            let ask = QueryServingHostsMsg { cluster_uuid };
            let serving = self.bus.ask(Address::singleton(RecoveryActor::KIND), ask).await?;
            siblings.extend(serving.host_uuids.into_iter().filter(|host| *host != failed));
        }
        siblings.sort_by_key(|host| Some(*host) != first);
        siblings.truncate(MAX_SIBLINGS);
        Ok(siblings)
    }

    async fn fence(&self, message: SiblingFenceVmOnHostMsg) -> Result<SiblingFenceVmOnHostReply> {
        let directory = self.catalog.now();
        let failed = directory.host(message.failed_host_uuid)?;
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
            // One got no answer there, another one could not tell: that is not "unreachable".
            (_, Some((sibling, error))) => {
                let details = format!("{} could not tell", directory.host_name(sibling));
                let reason = error.opaque.get("reason").cloned();
                let failed = ErrorCode::new(Code::OPERATION, details).caused_by(error);
                Err(match reason {
                    Some(reason) => failed.with("reason", reason),
                    None => failed,
                })
            }
            (None, None) => {
                let details = format!("no sibling of {} is connected and in service", failed.name);
                Err(ErrorCode::new(Code::HOST_DISCONNECTED, details))
            }
        }
    }

    async fn scan(&self, host: HostId) -> Result<ScanHostReply> {
        let directory = self.catalog.now();
        let host = directory.host(host)?;
        let cmd = ScanHostCmd {
            host_uuid: host.id,
            host_ip: host.management_ip.clone(),
            ssh_port: host.ssh_port,
            agent_port: host.agent_port,
        };
        let siblings = self.siblings(host.id, host.cluster, None).await?;
        let asked = siblings
            .iter()
            .map(|sibling| self.bus.ask_within(Address::new(HostActor::KIND, *sibling), cmd.clone(), SCAN_TIMEOUT));
        let answers = join_all(asked).await;
        Ok(summary(&directory, siblings.into_iter().zip(answers)))
    }
}

/// What siblings say together. One that could not look says nothing.
fn summary(
    directory: &Directory,
    answers: impl IntoIterator<Item = (HostId, Result<ScanHostCmdReply>)>,
) -> ScanHostReply {
    let mut reply = ScanHostReply::default();
    let mut said = Vec::new();
    for (sibling, answer) in answers {
        let what = match answer {
            Ok(answer) => {
                let seen = answer.ssh || answer.agent;
                if seen { &mut reply.seen_by } else { &mut reply.unseen_by }.push(sibling);
                answer.reason
            }
            Err(error) => format!("could not look: {error}"),
        };
        said.push(format!("{}: {what}", directory.host_name(sibling)));
    }
    reply.reason = if said.is_empty() { "there is no sibling that could look".to_owned() } else { said.join("; ") };
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
    fn a_sibling_that_could_not_look_says_nothing() {
        let directory = Directory::new(Inventory::default());
        let (a, b, c) = (HostId::from_name("a"), HostId::from_name("b"), HostId::from_name("c"));
        let says = |ssh, agent| Ok(ScanHostCmdReply { ssh, agent, reason: "r".to_owned() });
        let cut_off = Err(ErrorCode::new(Code::TIMEOUT, "no answer"));
        let reply = summary(&directory, [(a, says(false, false)), (b, cut_off.clone()), (c, says(true, false))]);
        assert_eq!((reply.seen_by, reply.unseen_by), (vec![c], vec![a]));
        let reply = summary(&directory, [(b, cut_off)]);
        assert!(reply.seen_by.is_empty() && reply.unseen_by.is_empty(), "nobody looked: {reply:?}");
    }
}
