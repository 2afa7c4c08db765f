//! Checks through the agents of all hosts: identity, clock, the host itself, and the SSH paths to its sibling hosts.
//!
//! Invariant: a wrong agent gets no further request, and everything that only the right agent could report is unknown.

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
use ringfence_service::checks::{Check, MAX_SIBLINGS, of};
use tokio::time::Instant;

use super::{probes, twins};
use crate::config::ControllerConfig;

/// Time limit of one agent's checks: its SSH logins run concurrently and take up to 13 s each. Too low: one sibling
/// host that hangs hides the results of all others. Too high: the doctor waits long for a lost agent.
const DIAGNOSE_TIMEOUT: Duration = Duration::from_secs(30);

/// Agents that are queried at the same time. Too low: a thousand hosts take long. Too high: the controller runs out
/// of sockets.
const PARALLEL: usize = 64;

/// Skew beyond which log lines of two hosts appear in the wrong order. Too low: every wide network gets a warning.
const ODD_SKEW_MS: i64 = 1000;

/// Skew beyond which Ceph will reject tickets, which are valid for an hour.
const BAD_SKEW_MS: i64 = 600_000;

/// Remaining life of a certificate that causes a warning, the same as in the alert `RingfenceCertificateEndsSoon`.
/// Too low: no time to react. Too high: operators ignore the warning.
const SOON_SECONDS: i64 = 14 * 86_400;

const WHY_AGENT: &str = "a host without a reachable agent can neither fence other hosts nor run their VMs";
const WHY_CLOCK: &str = "Ceph rejects tickets of a host with a wrong clock, and its log lines are hard to correlate";
const WHY_CERTIFICATE: &str = "after it expires, the controller rejects the agent and treats the host as unreachable";
const WHY_IPS: &str = "a storage fence blocks these addresses: a client at an unlisted address keeps writing";
const WHY_LOOK: &str = "only the host itself can check whether it could fence other hosts";

/// The findings of one host.
pub struct HostLook {
    /// The host.
    pub host: HostId,
    /// Its findings.
    pub findings: Vec<Finding>,
}

/// Checks all hosts, in the order of the file.
pub(super) async fn look(config: &ControllerConfig, seen: &[Result<probes::Seen, ErrorCode>]) -> Vec<HostLook> {
    let client = probes::client(config);
    let hosts = config.inventory.hosts.iter().zip(seen);
    let looks = hosts.map(|(host, seen)| one(config, client.as_ref(), host, seen));
    let mut looks: Vec<HostLook> = stream::iter(looks).buffered(PARALLEL).collect().await;
    let itself = probes::itself(seen);
    for (n, look) in looks.iter_mut().enumerate() {
        let hosts = &config.inventory.hosts;
        let findings = [twins::machine(hosts, &itself, n), twins::own_addresses(hosts, &itself, n)];
        look.findings.extend(findings.into_iter().flatten());
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
            let remedy = "fix the controller's token first";
            findings.push(of("agent", WHY_AGENT).unknown(format!("not checked: {}", error.details), remedy));
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
        (false, _) => check.ok("not needed: its cluster uses no Ceph storage"),
        (true, false) => check.ok(list.join(", ")),
        (true, true) => check.fail(
            "none is configured, and its cluster uses a Ceph storage",
            format!(
                "set storage_ips = [\"{}\"] in [[host]] {:?}: every address that it uses towards Ceph (ip -br addr)",
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
            let remedy = match error.is(&Code::INVALID_ARGUMENT) {
                true => {
                    "use the same token in [auth] token_file of the agent and in agent_token_file here; restart both"
                        .to_owned()
                }
                false => format!(
                    "on {}: systemctl status ringfence-agent; ringfence --version; host = {:?} in its agent.toml",
                    host.name, host.name
                ),
            };
            let not_asked = of("look", WHY_LOOK).unknown("not checked: its agent is not usable", "fix agent first");
            return vec![check.fail(error.details.clone(), remedy), not_asked];
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
            let found = format!("the agent reports for host {}", reply.host_uuid);
            findings.push(of("look", WHY_LOOK).unknown(found, "fix agent first"));
        }
        Err(error) => {
            let remedy =
                format!("on {}: install this version and restart its agent; journalctl -u ringfence-agent", host.name);
            findings.push(of("look", WHY_LOOK).unknown(format!("its check failed: {}", error.details), remedy));
        }
    }
    // The TLS handshake of the requests above has stored it in this client.
    findings.extend(client.certificates_end([host.id]).map(|end| certificate(&host.name, end)));
    findings
}

/// Expiry of the certificate that the agent presented.
fn certificate(host: &str, end: i64) -> Finding {
    let check = of("certificate", WHY_CERTIFICATE);
    let left = end.saturating_sub(jiff::Timestamp::now().as_second());
    let found = format!("expires on {}", day(end));
    match left < SOON_SECONDS {
        true => check.warn(found, format!("ringfence pki rotate DIR --ca CADIR; copy the folder to {host}")),
        false => check.ok(found),
    }
}

/// Skew between a host's clock and the controller's.
fn clock(check: Check, skew_ms: i64) -> Finding {
    let side = if skew_ms < 0 { "behind" } else { "ahead" };
    let found = format!("{} ms {side}", skew_ms.unsigned_abs());
    let remedy = "on the host: timedatectl set-ntp true; chronyc makestep";
    match skew_ms.saturating_abs() {
        ms if ms < ODD_SKEW_MS => check.ok(found),
        ms if ms < BAD_SKEW_MS => check.warn(found, remedy),
        _ => check.fail(found, remedy),
    }
}

/// The sibling hosts that a host checks: the next ones in the file, so that each is checked by the same number of
/// hosts.
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
