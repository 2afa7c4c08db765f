//! Says in plain words what state a VM or host is in, why, on which evidence, and what would change it.
//!
//! Pure: what is known comes in, sentences go out.

use ringfence_messages::{
    evidence::{Evidence, Source, Verdict},
    fence::{FenceOutcome, SiblingFenceAudited},
    ha::HaReply,
    host::{HostInventory, HostState, HostStatus},
    vm::{HaMode, VmInventory, VmState},
};

/// What there is to say of a VM. `host` is where it runs or ran last, `fence` the last fence and when it ended.
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
        VmState::Starting => format!("{} is being started on {place}, start {}.", vm.name, vm.incarnation),
        VmState::Stopping => format!("{} is being stopped on {place}.", vm.name),
        VmState::Unknown => format!(
            "Whether {} runs is not known: it ran on {place}, start {}, and {place} cannot be asked.",
            vm.name, vm.incarnation
        ),
    }];
    lines.push(match (vm.ha, vm.wanted) {
        (HaMode::NeverStop, true) => "It is to run and is brought back by itself (ha = NeverStop).".to_owned(),
        (HaMode::NeverStop, false) => "It is not to run: nobody started it, or somebody stopped it.".to_owned(),
        (HaMode::None, _) => "It is not brought back by itself (ha = None).".to_owned(),
    });
    let Some(host) = host else { return lines };
    if vm.state == VmState::Running {
        lines.extend(thoughts(host, ha));
        return lines;
    }
    lines.extend(standing(host, ha));
    let why = ha.vms.iter().find(|of| of.vm_uuid == vm.uuid).map(|of| of.why.clone());
    lines.extend(why.map(|why| format!("Now: {why}")));
    if braked {
        lines.push(
            "The storm brake holds: so many hosts of the cluster are away at once that it is rather the controller's \
             own network. It is released when some are back, or when `ringfence host confirm-fenced NAME` says which \
             are off."
                .to_owned(),
        );
    }
    if let Some((time, audit)) = fence {
        let last = format!("Last fence, on {} at {time}: {}", audit.failed_host, audit.outcome);
        match audit.evidence.is_empty() {
            // Written by a version that knew no evidence.
            true => lines.push(format!("{last}: {}", audit.reason)),
            false => lines.push(format!("{last}. What was found:")),
        }
        lines.extend(audit.evidence.iter().map(found));
        lines.extend(unblocks(audit, vm));
    } else if vm.state == VmState::Unknown && vm.ha == HaMode::None {
        lines.push(format!("`ringfence vm ha-start {}` fences it on {place} and starts it elsewhere.", vm.name));
    }
    lines
}

/// What one look found, as a line.
fn found(of: &Evidence) -> String {
    let by = of.by.as_ref().map(|by| format!(", {by}")).unwrap_or_default();
    format!("  - {} ({}{by}): {}", of.verdict, of.source, of.said)
}

/// What would let a VM start whose fence failed.
fn unblocks(audit: &SiblingFenceAudited, vm: &VmInventory) -> Vec<String> {
    if audit.outcome.as_str().starts_with("success") || vm.state == VmState::Stopped {
        return Vec::new();
    }
    let host = &audit.failed_host;
    let mut ways = vec![format!("{host} answers again (it is then asked)")];
    match audit.outcome {
        FenceOutcome::SkippedNoFencer => ways.push("a fencer is registered ([fence] fencer = \"sibling\")".to_owned()),
        _ if is_watched(audit) => ways.push("whoever has the volume open closes it".to_owned()),
        _ => {
            ways.push(format!("a sibling reaches {host} by SSH and finds the VM gone, or kills it"));
            ways.push(
                "Ceph confirms that it refuses the host (`ringfence check --live` says whether it may)".to_owned(),
            );
            ways.push(format!("you see that {host} is off, and say so: `ringfence host confirm-fenced {host}`"));
        }
    }
    let ways = ways.iter().map(|way| format!("  - {way}"));
    std::iter::once("Any of these unblocks it; it is tried again by itself:".to_owned()).chain(ways).collect()
}

/// Whether somebody has a volume open, as its storage says.
fn is_watched(audit: &SiblingFenceAudited) -> bool {
    audit.evidence.iter().any(|of| of.source == Source::Watchers && of.verdict == Verdict::Alive)
}

/// What there is to say of a host. `vms` are those that run there or ran there last.
pub(crate) fn host(host: &HostInventory, ha: &HaReply, vms: &[VmInventory]) -> Vec<String> {
    let mut lines: Vec<String> = standing(host, ha).collect();
    let (here, unknown): (Vec<_>, Vec<_>) = vms.iter().partition(|vm| vm.state == VmState::Running);
    let names = |of: &[&VmInventory]| of.iter().map(|vm| vm.name.as_str()).collect::<Vec<_>>().join(", ");
    if !here.is_empty() {
        lines.push(format!("These VMs run there: {}.", names(&here)));
    }
    let unknown: Vec<_> = unknown.into_iter().filter(|vm| vm.state == VmState::Unknown).collect();
    if !unknown.is_empty() {
        lines.push(format!("These VMs may run there, nobody can tell: {}.", names(&unknown)));
    }
    if ha.hosts.iter().any(|of| of.host_uuid == host.uuid) && host.status == HostStatus::Disconnected {
        let name = &host.name;
        lines.push(format!("If you see that it is off: `ringfence host confirm-fenced {name}`."));
    }
    lines
}

fn standing<'a>(host: &'a HostInventory, ha: &'a HaReply) -> impl Iterator<Item = String> + 'a {
    let reason = host.reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default();
    let service = match host.state {
        HostState::Enabled => "",
        HostState::Maintenance => ", in maintenance",
    };
    let first = format!("{} is {:?}{service}{reason}.", host.name, host.status);
    std::iter::once(first).chain(thoughts(host, ha))
}

/// What HA thinks of a host with which something is.
fn thoughts<'a>(host: &'a HostInventory, ha: &'a HaReply) -> impl Iterator<Item = String> + 'a {
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
    fn a_blocked_vm_says_why_on_which_evidence_and_what_would_unblock_it() {
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

        // With evidence it is a line for each look, and words decide nothing.
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
        let told = vm(&inventory, Some(&a), &ha, Some(&(time.clone(), audit.clone())), false).join("\n");
        assert!(told.contains(&format!("\n  - unknown (sibling, host-b): {said}\n")), "{told}");
        assert!(told.contains("confirm-fenced") && !told.contains("closes it"), "{told}");
        audit.evidence.push(of(Source::Watchers, Verdict::Alive, "10.0.0.9 has it open"));
        let told = vm(&inventory, Some(&a), &ha, Some(&(time, audit)), false).join("\n");
        assert!(told.contains("whoever has the volume open closes it"), "{told}");
    }
}
