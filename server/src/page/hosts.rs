//! The list of hosts, and the page of one host.

use axum::extract::{Path, State};
use maud::html;
use ringfence_messages::{
    action::{ActionObject, Offered},
    host::HostState,
    vm::VmInventory,
};

use super::{
    App, Shown,
    confirm::links,
    events::{last_of_all, timeline},
    layout::{columns, link, page, state},
};

/// Topics of a host's history.
pub(super) const TOPICS: [&str; 6] = [
    "host.status-changed",
    "host.state-changed",
    "ha.host-drained",
    "ha.host-failed",
    "ha.host-quarantine",
    "ha.host-confirmed-fenced",
];

/// Records of the history on the page of a host or VM.
pub(super) const HISTORY: usize = 50;

pub(super) async fn list(State(backend): App) -> Shown {
    let (live, hosts, vms) = (last_of_all(&*backend).await?, backend.hosts().await?, backend.vms().await?);
    let mut running = std::collections::HashMap::new();
    for host in vms.iter().filter_map(|vm| vm.host_uuid) {
        *running.entry(host).or_insert(0) += 1;
    }
    let body = html! {
        h1 { "Hosts" }
        table {
            caption { (hosts.len()) " hosts" }
            (columns(["Host", "Cluster", "Status", "State", "VMs", "Address", "Reason"]))
            tbody {
                @for host in &hosts {
                    tr #{ "host-" (host.uuid) } {
                        th scope="row" { (link("hosts", Some(&host.name))) }
                        td { (host.cluster) }
                        td { (state(&host.status)) }
                        td { (state(&host.state)) }
                        td.number { (running.get(&host.uuid).copied().unwrap_or(0)) }
                        td { (host.management_ip) }
                        td { (host.reason.as_deref().unwrap_or("")) }
                    }
                }
            }
        }
    };
    Ok(page("Hosts", "/ui/hosts", Some(live), &body))
}

pub(super) async fn one(State(backend): App, Path(name): Path<String>) -> Shown {
    let live = last_of_all(&*backend).await?;
    let host = backend.host(backend.host_id(&name)?).await?;
    let why = backend.explain(&host.name).await?;
    let here: Vec<VmInventory> =
        backend.vms().await?.into_iter().filter(|vm| vm.last_host_uuid == Some(host.uuid)).collect();
    let history = backend.newest(Some((&TOPICS, &host.name)), HISTORY).await?;
    let in_service = host.state == HostState::Enabled;
    let offered = |when| when == Offered::Always || (when == Offered::InService) == in_service;
    let body = html! {
        h1 { (host.name) }
        p { (state(&host.status)) " " (state(&host.state)) " in cluster " (host.cluster) ", " (host.management_ip) }
        (super::vms::reasons(&why))
        (links(ActionObject::Host, &host.name, offered))
        section aria-labelledby="pings" {
            h2 #pings { "Pings" }
            (super::chart::pings(&backend.pings(host.uuid).await?))
        }
        section aria-labelledby="vms" {
            h2 #vms { "VMs that run here or ran here last" }
            @if here.is_empty() { p { "No VMs." } }
            ul { @for vm in &here { li { (link("vms", Some(&vm.name))) " " (state(&vm.state)) } } }
        }
        section aria-labelledby="history" { h2 #history { "History" } (timeline(&history)) }
    };
    Ok(page(&host.name, "/ui/hosts", Some(live), &body))
}
