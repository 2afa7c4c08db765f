//! The list of VMs, and the page of one VM.

use axum::extract::{Path, State};
use maud::{Markup, html};
use ringfence_messages::{
    action::{ActionObject, Offered},
    vm::VmState,
};

use super::{
    App, Shown,
    confirm::links,
    events::{last_of_all, timeline},
    fencing_attempts,
    hosts::HISTORY,
    layout::{columns, link, page, state, word},
    phases,
};

/// Topics of a VM's history.
const TOPICS: [&str; 6] =
    ["vm.state-changed", "fence.intent", "ceph.ha.sibling-fence", "ha.vm-started", "ha.vm-blocked", "ha.vm-move"];

pub(super) async fn list(State(backend): App) -> Shown {
    let (live, vms) = (last_of_all(&*backend).await?, backend.vms().await?);
    let body = html! {
        h1 { "VMs" }
        table {
            caption { (vms.len()) " VMs" }
            (columns(["VM", "Cluster", "Observed", "Host", "HA", "Desired", "Starts"]))
            tbody {
                @for vm in &vms {
                    tr #{ "vm-" (vm.uuid) } {
                        th scope="row" { (link("vms", Some(&vm.name))) }
                        td { (vm.cluster) }
                        td { (state(&vm.state)) }
                        td { (link("hosts", vm.host.as_deref())) }
                        td { (word(&vm.ha)) }
                        td { @if vm.wanted { "running" } @else { "stopped" } }
                        td.number { (vm.incarnation) }
                    }
                }
            }
        }
    };
    Ok(page("VMs", "/ui/vms", Some(live), &body))
}

/// Sentences of `explain`: the state first, then the reasons and the remedies.
pub(super) fn reasons(lines: &[String]) -> Markup {
    html! {
        section aria-labelledby="why" {
            h2 #why { "Status" }
            ul { @for line in lines { li { (line.trim_start_matches([' ', '-'])) } } }
        }
    }
}

pub(super) async fn one(State(backend): App, Path(name): Path<String>) -> Shown {
    let live = last_of_all(&*backend).await?;
    let vm = backend.vm(backend.vm_id(&name)?).await?;
    let why = backend.explain(&vm.name).await?;
    let history = backend.newest(Some((&TOPICS, &vm.name)), HISTORY).await?;
    let attempts = fencing_attempts::attempts(&history);
    let mut fences = Vec::new();
    for attempt in attempts.iter().rev() {
        let failed = attempt.ended.as_ref().map(|(_, audit)| audit.failed_host.as_str()).or(vm.host.as_deref());
        let of = |host| backend.newest(Some((&super::hosts::TOPICS, host)), HISTORY);
        let there = match failed {
            Some(host) => of(host).await?,
            None => Vec::new(),
        };
        fences.push(fencing_attempts::shown(attempt, &phases::of(attempt, &history, &there)));
    }
    let runs = vm.state == VmState::Running;
    let offered = |when| when == Offered::Always || (when == Offered::Running) == runs;
    let body = html! {
        h1 { (vm.name) }
        p {
            (state(&vm.state)) " on " (link("hosts", vm.host.as_deref())) " in cluster " (vm.cluster)
            ", start " (vm.incarnation) ", HA " (word(&vm.ha))
        }
        (reasons(&why))
        (links(ActionObject::Vm, &vm.name, offered))
        @if !fences.is_empty() {
            section aria-labelledby="fences" {
                h2 #fences { "Fences" }
                @for fence in &fences { (fence) }
            }
        }
        section aria-labelledby="volumes" {
            h2 #volumes { "Volumes" }
            ul { @for volume in &vm.volumes { li { code { (volume.install_path) }
                @if volume.root { " (boot volume)" } } } }
        }
        section aria-labelledby="history" { h2 #history { "History" } (timeline(&history)) }
    };
    Ok(page(&vm.name, "/ui/vms", Some(live), &body))
}
