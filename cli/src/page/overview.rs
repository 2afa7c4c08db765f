//! The first page: what needs attention, and what happened.

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

/// Lines of the timeline on the first page.
const RECENT: usize = 30;

pub(crate) async fn overview(State(backend): App) -> Shown {
    let recent = backend.newest(None, RECENT).await?;
    let (hosts, storages, vms) = (backend.hosts().await?, backend.storages().await?, backend.vms().await?);
    let ha = backend.thoughts().await?;
    let why = |vm: &VmInventory| ha.vms.iter().find(|of| of.vm_uuid == vm.uuid).map(|of| of.why.as_str());
    let last = |vm: &VmInventory| {
        hosts.iter().find(|host| Some(host.uuid) == vm.last_host_uuid).map(|host| host.name.as_str())
    };
    let away: Vec<&HostInventory> =
        hosts.iter().filter(|host| host.status != HostStatus::Connected || host.state != HostState::Enabled).collect();
    let lost: Vec<&VmInventory> = vms.iter().filter(|vm| vm.wanted && vm.state != VmState::Running).collect();
    let down: Vec<(&StorageInventory, usize)> =
        storages.iter().map(|of| (of, of.hosts.len() - connected(of))).filter(|(_, down)| *down > 0).collect();
    let body = html! {
        h1 { "Overview" }
        (counts(&hosts, &storages, &vms))
        section aria-labelledby="attention" {
            h2 #attention { "Needs attention" }
            @if away.is_empty() && lost.is_empty() && down.is_empty() && ha.braked.is_empty() {
                p { "Nothing: every host serves, every storage is reached, every VM that is to run does." }
            }
            @if !ha.braked.is_empty() {
                p.trouble role="alert" {
                    "The storm brake holds: so many hosts are away at once that it is rather the controller's own network. "
                    "Nothing is fenced meanwhile."
                }
            }
            @if !lost.is_empty() {
                table {
                    caption { "VMs that are to run and do not" }
                    (columns(["VM", "State", "Last host", "Why"]))
                    tbody {
                        @for vm in &lost {
                            tr {
                                th scope="row" { (link("vms", Some(&vm.name))) }
                                td { (state(&vm.state)) }
                                td { (link("hosts", last(vm))) }
                                td { (why(vm).unwrap_or("not looked after: ha = None")) }
                            }
                        }
                    }
                }
            }
            @if !away.is_empty() {
                table {
                    caption { "Hosts that do not serve" }
                    (columns(["Host", "Status", "Wanted", "Why"]))
                    tbody {
                        @for host in &away {
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
                        li { a href={ "/ui/storages#" (storage.name) } { (storage.name) } ": " (down) " of " (storage.hosts.len()) " hosts do not reach it" }
                    }
                }
            }
        }
        section aria-labelledby="recent" {
            h2 #recent { "What happened" }
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
    let wanted = vms.iter().filter(|vm| vm.wanted).count();
    html! {
        dl.counts {
            div { dt { a href="/ui/hosts" { "Hosts connected" } } dd { (serving) " of " (hosts.len()) } }
            div { dt { a href="/ui/storages" { "Storages reached by all" } } dd { (reached) " of " (storages.len()) } }
            div { dt { a href="/ui/vms" { "VMs running" } } dd { (running) " of " (wanted) " wanted" } }
        }
    }
}
