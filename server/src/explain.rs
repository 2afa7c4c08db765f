//! Explains the state of a VM or host: reasons, evidence and remedies.
//!
//! Pure: state in, sentences out.

use ringfence_messages::{
    evidence::{Evidence, Source, Verdict},
    fence::{FenceOutcome, SiblingFenceAudited},
    ha::HaReply,
    host::{HostInventory, HostState, HostStatus},
    vm::{HaMode, VmInventory, VmState},
};

/// Explains a VM. `host` is its current or last host, `fence` the end and the audit record of its last fence.
pub(crate) fn vm(
    vm: &VmInventory,
    host: Option<&HostInventory>,
    ha: &HaReply,
    fence: Option<&(String, SiblingFenceAudited)>,
    braked: bool,
) -> Vec<String> {
    let place = host.map_or("nowhere", |host| host.name.as_str());
    let mut lines = vec![match vm.state {
        VmState::Running => format!("{} runs on {place}, start {}.", vm.name, vm.incarnation),
        VmState::Stopped if vm.incarnation == 0 => format!("{} is stopped; it never ran.", vm.name),
        VmState::Stopped => format!("{} is stopped; it ran on {place} last, start {}.", vm.name, vm.incarnation),
        VmState::Starting => format!("{} is starting on {place}, start {}.", vm.name, vm.incarnation),
        VmState::Stopping => format!("{} is stopping on {place}.", vm.name),
        VmState::Unknown => format!(
            "The state of {} is unknown: its last host is {place}, start {}, and {place} cannot be queried.",
            vm.name, vm.incarnation
        ),
    }];
    lines.push(match (vm.ha, vm.wanted) {
        (HaMode::NeverStop, true) => "Desired state: running, with automatic failover (ha = NeverStop).".to_owned(),
        (HaMode::NeverStop, false) => "Desired state: stopped (never started, or stopped by an operator).".to_owned(),
        (HaMode::None, _) => "No automatic failover (ha = None).".to_owned(),
    });
    let Some(host) = host else { return lines };
    if vm.state == VmState::Running {
        lines.extend(ha_status(host, ha));
        return lines;
    }
    lines.extend(host_status(host, ha));
    let why = ha.vms.iter().find(|of| of.vm_uuid == vm.uuid).map(|of| of.why.clone());
    lines.extend(why.map(|why| format!("Now: {why}")));
    if braked {
        lines.push(
            "Fencing is suspended (storm brake): too many hosts of the cluster are unreachable at the same time, so \
             the controller's own network is the likelier cause. Fencing resumes when hosts return, or after \
             `ringfence host confirm-fenced NAME` for hosts that are off."
                .to_owned(),
        );
    }
    if let Some((time, audit)) = fence {
        let last = format!("Last fence, on {} at {time}: {}", audit.failed_host, audit.outcome);
        match audit.evidence.is_empty() {
            // A record of a version without evidence.
            true => lines.push(format!("{last}: {}", audit.reason)),
            false => lines.push(format!("{last}. Evidence:")),
        }
        lines.extend(audit.evidence.iter().map(found));
        lines.extend(unblocks(audit, vm));
    } else if vm.state == VmState::Unknown && vm.ha == HaMode::None {
        lines.push(format!("`ringfence vm ha-start {}` fences it on {place} and starts it on another host.", vm.name));
    }
    lines
}

/// One piece of evidence as a line.
fn found(of: &Evidence) -> String {
    let by = of.by.as_ref().map(|by| format!(", {by}")).unwrap_or_default();
    format!("  - {} ({}{by}): {}", of.verdict, of.source, of.said)
}

/// Remedies for a VM whose fence failed.
fn unblocks(audit: &SiblingFenceAudited, vm: &VmInventory) -> Vec<String> {
    if audit.outcome.as_str().starts_with("success") || vm.state == VmState::Stopped {
        return Vec::new();
    }
    let host = &audit.failed_host;
    let mut ways = vec![format!("{host} answers again and reports that the VM does not run there")];
    match audit.outcome {
        FenceOutcome::SkippedNoFencer => {
            ways.push("the operator configures a fencer ([fence] fencer = \"sibling\")".to_owned())
        }
        _ if is_watched(audit) => ways.push("the client that watches the volume closes it".to_owned()),
        _ => {
            ways.push(format!("a sibling host reaches {host} by SSH and finds the VM gone, or kills it"));
            ways.push(
                "Ceph confirms the storage fence of the host (`ringfence check --live` checks the rights)".to_owned(),
            );
            ways.push(format!(
                "an operator sees that {host} is off and attests it: `ringfence host confirm-fenced {host}`"
            ));
        }
    }
    let ways = ways.iter().map(|way| format!("  - {way}"));
    std::iter::once("Any of these unblocks the VM; Ringfence retries automatically:".to_owned()).chain(ways).collect()
}

/// Whether a client watches a volume, by the storage's report.
fn is_watched(audit: &SiblingFenceAudited) -> bool {
    audit.evidence.iter().any(|of| of.source == Source::Watchers && of.verdict == Verdict::Alive)
}

/// Explains a host. `vms` are the VMs that run there or ran there last.
pub(crate) fn host(host: &HostInventory, ha: &HaReply, vms: &[VmInventory]) -> Vec<String> {
    let mut lines: Vec<String> = host_status(host, ha).collect();
    let (here, unknown): (Vec<_>, Vec<_>) = vms.iter().partition(|vm| vm.state == VmState::Running);
    let names = |of: &[&VmInventory]| of.iter().map(|vm| vm.name.as_str()).collect::<Vec<_>>().join(", ");
    if !here.is_empty() {
        lines.push(format!("VMs that run there: {}.", names(&here)));
    }
    let unknown: Vec<_> = unknown.into_iter().filter(|vm| vm.state == VmState::Unknown).collect();
    if !unknown.is_empty() {
        lines.push(format!("VMs in unknown state that may run there: {}.", names(&unknown)));
    }
    if ha.hosts.iter().any(|of| of.host_uuid == host.uuid) && host.status == HostStatus::Disconnected {
        let name = &host.name;
        lines.push(format!("If you have seen that {name} is off: `ringfence host confirm-fenced {name}`."));
    }
    lines
}

fn host_status<'a>(host: &'a HostInventory, ha: &'a HaReply) -> impl Iterator<Item = String> + 'a {
    let reason = host.reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default();
    let service = match host.state {
        HostState::Enabled => "",
        HostState::Maintenance => ", in maintenance",
    };
    let first = format!("{} is {:?}{service}{reason}.", host.name, host.status);
    std::iter::once(first).chain(ha_status(host, ha))
}

/// HA status of a host with a problem.
fn ha_status<'a>(host: &'a HostInventory, ha: &'a HaReply) -> impl Iterator<Item = String> + 'a {
    let of_it = ha.hosts.iter().filter(|of| of.host_uuid == host.uuid);
    of_it.map(|of| format!("HA: {}.", of.standing))
}

#[cfg(test)]
mod tests {
    use ringfence_messages::{
        ClusterId, HostId, VmId,
        ha::{HostHa, VmHa},
    };

    use super::*;

    #[test]
    fn blocked_vm_is_explained_with_evidence_and_remedies() {
        let a = HostInventory {
            uuid: HostId::from_name("host-a"),
            name: "host-a".to_owned(),
            cluster: "c1".to_owned(),
            management_ip: "10.77.0.11".to_owned(),
            state: HostState::Enabled,
            status: HostStatus::Disconnected,
            reason: Some("no answer in 2s".to_owned()),
        };
        let inventory = VmInventory {
            uuid: VmId::from_name("vm1"),
            name: "vm1".to_owned(),
            cluster: "c1".to_owned(),
            ha: HaMode::NeverStop,
            state: VmState::Unknown,
            host_uuid: Some(a.uuid),
            host: Some(a.name.clone()),
            last_host_uuid: Some(a.uuid),
            incarnation: 3,
            wanted: true,
            volumes: Vec::new(),
        };
        let audit = SiblingFenceAudited {
            attempt: VmId::from_name("x").0,
            vm_uuid: inventory.uuid,
            vm: "vm1".to_owned(),
            failed_host_uuid: a.uuid,
            failed_host: "host-a".to_owned(),
            cluster_uuid: ClusterId::from_name("c1"),
            ha_target_host_uuid: HostId::from_name("host-b"),
            outcome: FenceOutcome::FailedUnreachable,
            executor_host_uuid: None,
            reason: "sibling: cannot reach it; storage: not fenced: quorum lost".to_owned(),
            evidence: Vec::new(),
        };
        let ha = HaReply {
            hosts: vec![HostHa { host_uuid: a.uuid, standing: "quarantined: it does not answer".to_owned() }],
            vms: vec![VmHa { vm_uuid: inventory.uuid, why: "vm1 is not started".to_owned() }],
            braked: Vec::new(),
        };
        let fence = ("2026-11-21T10:00:00.000Z".to_owned(), audit);
        insta::assert_snapshot!(vm(&inventory, Some(&a), &ha, Some(&fence), true).join("\n"));
        insta::assert_snapshot!(host(&a, &ha, std::slice::from_ref(&inventory)).join("\n"));

        // Each piece of evidence is one line, and its text decides nothing.
        let of = |source, verdict, said: &str| Evidence {
            host_uuid: a.uuid,
            source,
            verdict,
            unknown: None,
            by: (source == Source::Sibling).then(|| "host-b".to_owned()),
            machine: None,
            sight: None,
            after_ms: 1,
            said: said.to_owned(),
        };
        let (time, mut audit) = fence;
        let said = "not there; storage: refuses it; a volume is in use";
        audit.evidence = vec![of(Source::Sibling, Verdict::Unknown, said)];
        let text = vm(&inventory, Some(&a), &ha, Some(&(time.clone(), audit.clone())), false).join("\n");
        assert!(text.contains(&format!("\n  - unknown (sibling, host-b): {said}\n")), "{text}");
        assert!(text.contains("confirm-fenced") && !text.contains("closes it"), "{text}");
        audit.evidence.push(of(Source::Watchers, Verdict::Alive, "10.0.0.9 has it open"));
        let text = vm(&inventory, Some(&a), &ha, Some(&(time, audit)), false).join("\n");
        assert!(text.contains("the client that watches the volume closes it"), "{text}");
    }
}
