//! The first page: problems and recent events.

use axum::extract::State;
use maud::{Markup, html};
use ringfence_messages::{
    host::{HostInventory, HostState, HostStatus},
    storage::StorageInventory,
    vm::{VmInventory, VmState},
};

use super::{
    App, Shown,
    events::timeline,
    layout::{columns, link, page, state},
};

/// Events on the first page.
const RECENT: usize = 30;

pub(crate) async fn overview(State(backend): App) -> Shown {
    let recent = backend.newest(None, RECENT).await?;
    let (hosts, storages, vms) = (backend.hosts().await?, backend.storages().await?, backend.vms().await?);
    let ha = backend.ha_status().await?;
    let why = |vm: &VmInventory| ha.vms.iter().find(|of| of.vm_uuid == vm.uuid).map(|of| of.why.as_str());
    let last = |vm: &VmInventory| {
        hosts.iter().find(|host| Some(host.uuid) == vm.last_host_uuid).map(|host| host.name.as_str())
    };
    let out_of_service: Vec<&HostInventory> =
        hosts.iter().filter(|host| host.status != HostStatus::Connected || host.state != HostState::Enabled).collect();
    let lost: Vec<&VmInventory> = vms.iter().filter(|vm| vm.wanted && vm.state != VmState::Running).collect();
    let down: Vec<(&StorageInventory, usize)> =
        storages.iter().map(|of| (of, of.hosts.len() - connected(of))).filter(|(_, down)| *down > 0).collect();
    let body = html! {
        h1 { "Overview" }
        (counts(&hosts, &storages, &vms))
        section aria-labelledby="attention" {
            h2 #attention { "Needs attention" }
            @if out_of_service.is_empty() && lost.is_empty() && down.is_empty() && ha.braked.is_empty() {
                p { "No problems." }
            }
            @if !ha.braked.is_empty() {
                p.trouble role="alert" {
                    "Fencing is suspended (storm brake) in " (ha.braked.len()) " cluster(s): too many hosts are \
                     unreachable at the same time, so the "
                    "controller's own network is the likelier cause."
                }
            }
            @if !lost.is_empty() {
                table {
                    caption { "VMs that should be running but are not" }
                    (columns(["VM", "Observed", "Last host", "Reason"]))
                    tbody {
                        @for vm in &lost {
                            tr {
                                th scope="row" { (link("vms", Some(&vm.name))) }
                                td { (state(&vm.state)) }
                                td { (link("hosts", last(vm))) }
                                td { (why(vm).unwrap_or("no failover: ha = None")) }
                            }
                        }
                    }
                }
            }
            @if !out_of_service.is_empty() {
                table {
                    caption { "Hosts out of service" }
                    (columns(["Host", "Status", "State", "Reason"]))
                    tbody {
                        @for host in &out_of_service {
                            tr {
                                th scope="row" { (link("hosts", Some(&host.name))) }
                                td { (state(&host.status)) }
                                td { (state(&host.state)) }
                                td { (host.reason.as_deref().unwrap_or("-")) }
                            }
                        }
                    }
                }
            }
            @if !down.is_empty() {
                ul {
                    @for (storage, down) in &down {
                        li { a href={ "/ui/storages#" (storage.name) } { (storage.name) } ": " (down) " of "
                            (storage.hosts.len()) " hosts are disconnected" }
                    }
                }
            }
        }
        section aria-labelledby="recent" {
            h2 #recent { "Recent events" }
            (timeline(&recent))
        }
    };
    Ok(page("Overview", "/", Some(recent.last().map_or(0, |record| record.seq)), &body))
}

fn connected(storage: &StorageInventory) -> usize {
    use ringfence_messages::ProtocolStatus::Disconnected;
    storage.hosts.iter().filter(|host| host.status != Some(Disconnected)).count()
}

fn counts(hosts: &[HostInventory], storages: &[StorageInventory], vms: &[VmInventory]) -> Markup {
    let serving = hosts.iter().filter(|host| host.status == HostStatus::Connected).count();
    let reached = storages.iter().filter(|of| connected(of) == of.hosts.len()).count();
    let running = vms.iter().filter(|vm| vm.state == VmState::Running).count();
    let desired = vms.iter().filter(|vm| vm.wanted).count();
    html! {
        dl.counts {
            div { dt { a href="/ui/hosts" { "Hosts connected" } } dd { (serving) " of " (hosts.len()) } }
            div { dt { a href="/ui/storages" { "Storages connected to all hosts" } }
                dd { (reached) " of " (storages.len()) } }
            div { dt { a href="/ui/vms" { "VMs running" } } dd { (running) " of " (desired) " desired" } }
        }
    }
}
