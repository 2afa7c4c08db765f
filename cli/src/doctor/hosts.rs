//! Asks the agents of all hosts: who they are, what their clocks say, what they find on themselves and on the way to
//! their siblings.
//!
//! Invariant: an agent that is not the right one is asked nothing more, and what it alone could tell is unknown.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures_util::{StreamExt, stream};
use ringfence_actors::{
    inventory::{Host, Storage},
    ports::{Call, HostAgentPort},
};
use ringfence_drivers::{agent_client::AgentClient, tls::day};
use ringfence_messages::{
    Code, ErrorCode, HostId, Protocol,
    doctor::{DiagnoseHostCmd, Finding, HostNeeds, SiblingAddress},
    storage::StorageKind,
};
use tokio::time::Instant;

use super::{probes, twins};
use crate::{
    agent::diagnose::{Check, of, siblings::MAX_SIBLINGS},
    config::ControllerConfig,
};

/// How long an agent may take to look around: its logins take up to 13 s each, all at once. Too low: one sibling that
/// hangs hides all the others. Too high: the doctor waits for an agent that is lost.
const DIAGNOSE_TIMEOUT: Duration = Duration::from_secs(30);

/// Agents that are asked at once. Too low: a thousand hosts take long. Too high: the controller's own sockets run out.
const PARALLEL: usize = 64;

/// Beyond this, records of two hosts are read in the wrong order. Too low: every wide network is warned of.
const ODD_SKEW_MS: i64 = 1000;

/// Beyond this Ceph's tickets, which are valid for an hour, are refused sooner or later.
const BAD_SKEW_MS: i64 = 600_000;

/// A certificate that ends so soon is warned of, as the alert `RingfenceCertificateEndsSoon` does. Too low: nobody is there in
/// time. Too high: nobody listens any more.
const SOON_SECONDS: i64 = 14 * 86_400;

const WHY_AGENT: &str = "a host whose agent does not answer can neither fence others nor take their VMs";
const WHY_CLOCK: &str = "orders do not depend on it, but Ceph's tickets do, and whoever reads what happened tonight";
const WHY_CERTIFICATE: &str = "when it has ended its agent is refused, and the host looks down";
const WHY_IPS: &str = "they are what a storage fence blocks: an address that is missing goes on writing";
const WHY_LOOK: &str = "only the host itself can tell whether it could fence others";

/// What was found of one host.
pub(super) struct HostLook {
    pub(super) host: HostId,
    pub(super) findings: Vec<Finding>,
}

/// Asks all hosts, in the order of the file.
pub(super) async fn look(config: &ControllerConfig, seen: &[Result<probes::Seen, ErrorCode>]) -> Vec<HostLook> {
    let client = probes::client(config);
    let hosts = config.inventory.hosts.iter().zip(seen);
    let looks = hosts.map(|(host, seen)| one(config, client.as_ref(), host, seen));
    let mut looks: Vec<HostLook> = stream::iter(looks).buffered(PARALLEL).collect().await;
    let itself = probes::itself(seen);
    for (n, look) in looks.iter_mut().enumerate() {
        let hosts = &config.inventory.hosts;
        let told = [twins::machine(hosts, &itself, n), twins::own_addresses(hosts, &itself, n)];
        look.findings.extend(told.into_iter().flatten());
    }
    looks
}

async fn one(
    config: &ControllerConfig,
    client: Result<&AgentClient, &ErrorCode>,
    host: &Host,
    seen: &Result<probes::Seen, ErrorCode>,
) -> HostLook {
    let mut findings = vec![addresses(config, host)];
    match client {
        Ok(client) => findings.extend(asked(config, client, host, seen).await),
        Err(error) => {
            let mend = "mend the controller's token first";
            findings.push(of("agent", WHY_AGENT).unknown(format!("not asked: {}", error.details), mend));
        }
    }
    HostLook { host: host.id, findings }
}

fn storages<'a>(config: &'a ControllerConfig, host: &Host) -> impl Iterator<Item = &'a Storage> {
    let cluster = host.cluster;
    config.inventory.storages.iter().filter(move |storage| storage.clusters.contains(&cluster))
}

fn addresses(config: &ControllerConfig, host: &Host) -> Finding {
    let check = of("storage-ips", WHY_IPS);
    let on_ceph = storages(config, host).any(|storage| storage.kind == StorageKind::Ceph);
    let list: Vec<String> = host.storage_ips.iter().map(ToString::to_string).collect();
    match (on_ceph, list.is_empty()) {
        (false, _) => check.ok("not needed: no storage of its cluster is on Ceph"),
        (true, false) => check.ok(list.join(", ")),
        (true, true) => check.fail(
            "none is known, and a storage of its cluster is on Ceph",
            format!(
                "storage_ips = [\"{}\"] in [[host]] {:?}: every address from which it reaches Ceph (ip -br addr)",
                host.management_ip, host.name
            ),
        ),
    }
}

async fn asked(
    config: &ControllerConfig,
    client: &AgentClient,
    host: &Host,
    seen: &Result<probes::Seen, ErrorCode>,
) -> Vec<Finding> {
    let url = config.agents.get(&host.id).map_or("", |access| access.url.as_str());
    let check = of("agent", WHY_AGENT).about(url);
    let mut findings = match seen {
        Ok(seen) => vec![check.ok(seen.text.clone())],
        Err(error) => {
            let mend = match error.is(&Code::INVALID_ARGUMENT) {
                true => "the same token in [auth] token_file of the agent and in agent_token_file here; restart both"
                    .to_owned(),
                false => format!(
                    "on {}: systemctl status ringfence-agent; ringfence --version; host = {:?} in its agent.toml",
                    host.name, host.name
                ),
            };
            let not_asked =
                of("look", WHY_LOOK).unknown("not asked: its agent is not the right one", "mend agent first");
            return vec![check.fail(error.details.clone(), mend), not_asked];
        }
    };
    let began = Instant::now();
    let _ = client.ping(host.id, None, Call::within(probes::AGENT_TIMEOUT)).await;
    let half_way = (began.elapsed() / 2).as_millis();
    let cmd = DiagnoseHostCmd { host_uuid: host.id, siblings: siblings(config, host), needs: needs(config, host) };
    let sent = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() + half_way;
    match client.diagnose(host.id, cmd, Call::within(DIAGNOSE_TIMEOUT)).await {
        Ok(reply) if reply.host_uuid == host.id => {
            let skew = i64::try_from(reply.unix_ms).unwrap_or(i64::MAX).saturating_sub_unsigned(sent as u64);
            findings.push(clock(of("clock", WHY_CLOCK), skew));
            findings.extend(reply.findings);
        }
        Ok(reply) => {
            let found = format!("it looked at host {}", reply.host_uuid);
            findings.push(of("look", WHY_LOOK).unknown(found, "mend agent first"));
        }
        Err(error) => {
            let mend =
                format!("on {}: install this version and restart its agent; journalctl -u ringfence-agent", host.name);
            findings.push(of("look", WHY_LOOK).unknown(format!("it did not look: {}", error.details), mend));
        }
    }
    // Shown with the look: the first words to it over this client.
    findings.extend(client.certificates_end([host.id]).map(|end| certificate(&host.name, end)));
    findings
}

/// When the certificate ends that its agent has just shown.
fn certificate(host: &str, end: i64) -> Finding {
    let check = of("certificate", WHY_CERTIFICATE);
    let left = end.saturating_sub(jiff::Timestamp::now().as_second());
    let found = format!("it ends on {}", day(end));
    match left < SOON_SECONDS {
        true => check.warn(found, format!("ringfence pki rotate DIR --ca CADIR, and copy the folder to {host}")),
        false => check.ok(found),
    }
}

/// How far a host's clock is from ours.
fn clock(check: Check, skew_ms: i64) -> Finding {
    let side = if skew_ms < 0 { "behind" } else { "ahead" };
    let found = format!("{} ms {side}", skew_ms.unsigned_abs());
    let mend = "on the host: timedatectl set-ntp true; chronyc makestep";
    match skew_ms.saturating_abs() {
        ms if ms < ODD_SKEW_MS => check.ok(found),
        ms if ms < BAD_SKEW_MS => check.warn(found, mend),
        _ => check.fail(found, mend),
    }
}

/// Whom a host is to try: those that follow it in the file, so that each is tried by as many as try.
fn siblings(config: &ControllerConfig, host: &Host) -> Vec<SiblingAddress> {
    let hosts = &config.inventory.hosts;
    let at = hosts.iter().position(|of| of.id == host.id).unwrap_or_default();
    let across = config.settings.cross_cluster_siblings;
    let after = hosts.iter().cycle().skip(at + 1).take(hosts.len().saturating_sub(1));
    let siblings = after.filter(|of| across || of.cluster == host.cluster).take(MAX_SIBLINGS);
    siblings
        .map(|of| SiblingAddress {
            host_uuid: of.id,
            host: of.name.clone(),
            ip: of.management_ip.clone(),
            ssh_port: of.ssh_port,
        })
        .collect()
}

fn needs(config: &ControllerConfig, host: &Host) -> HostNeeds {
    let mut needs = HostNeeds::default();
    for storage in storages(config, host) {
        match storage.kind {
            StorageKind::Vhost => needs.vhost_target = true,
            StorageKind::Zbs => needs.containers = true,
            StorageKind::Ceph | StorageKind::Dir => {}
        }
        if storage.protocols.contains(&Protocol::Vhost) {
            needs.hugepages = config.settings.hugepages;
        }
        needs.paths.extend(storage.volume_dir.clone());
        needs.paths.extend(storage.ceph.as_ref().map(|access| access.conf.clone()));
    }
    needs.paths.sort();
    needs.paths.dedup();
    needs
}

#[cfg(test)]
mod tests {
    use ringfence_messages::doctor::Verdict;

    use super::*;

    #[test]
    fn a_clock_is_judged_in_both_directions() {
        let judge = |skew| {
            let finding = clock(of("clock", ""), skew);
            (finding.verdict, finding.found)
        };
        assert_eq!(judge(3), (Verdict::Ok, "3 ms ahead".to_owned()));
        assert_eq!(judge(-5000), (Verdict::Warn, "5000 ms behind".to_owned()));
        assert_eq!(judge(5000), (Verdict::Warn, "5000 ms ahead".to_owned()));
        assert_eq!(judge(-BAD_SKEW_MS).0, Verdict::Fail);
        assert_eq!(judge(i64::MIN).0, Verdict::Fail);
    }
}
