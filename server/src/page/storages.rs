//! The storages, each as a grid of hosts and protocols.

use std::collections::HashMap;

use axum::extract::State;
use maud::{Markup, html};
use ringfence_messages::{
    HostId, Protocol,
    storage::{HostProtocolRef, StorageInventory},
};

use super::{
    App, Shown,
    events::last_of_all,
    layout::{link, page, state, word},
};

pub(super) async fn list(State(backend): App) -> Shown {
    let (live, storages, refs) = (last_of_all(&*backend).await?, backend.storages().await?, backend.refs().await?);
    let body = html! {
        h1 { "Storages" }
        @for storage in &storages {
            @let of: HashMap<(HostId, Protocol), &HostProtocolRef> = refs
                .iter()
                .filter(|of| of.primary_storage_uuid == storage.uuid)
                .map(|of| ((of.host_uuid, of.protocol), of))
                .collect();
            (grid(storage, &of))
        }
    };
    Ok(page("Storages", "/ui/storages", Some(live), &body))
}

fn grid(storage: &StorageInventory, refs: &HashMap<(HostId, Protocol), &HostProtocolRef>) -> Markup {
    html! {
        section aria-labelledby=(storage.name) {
            h2 id=(storage.name) { (storage.name) }
            p { "Kind " (word(&storage.kind)) ", for " (storage.clusters.join(", ")) "." }
            @if storage.protocols.is_empty() { p { "No protocols: hosts need no preparation." } }
            @else {
                table {
                    caption { "Connection of each host to " (storage.name) }
                    thead {
                        tr { th scope="col" { "Host" } th scope="col" { "Overall" }
                            @for protocol in &storage.protocols { th scope="col" { (protocol) } } }
                    }
                    tbody {
                        @for host in &storage.hosts {
                            tr {
                                th scope="row" { (link("hosts", Some(&host.host))) }
                                td { (host.status.map_or_else(|| html! { "unknown" }, |status| state(&status))) }
                                @for protocol in &storage.protocols {
                                    td { (cell(refs.get(&(host.host_uuid, *protocol)).copied())) }
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

fn cell(of: Option<&HostProtocolRef>) -> Markup {
    let Some(of) = of else { return html! { "-" } };
    html! {
        (of.status.map_or_else(|| html! { "unknown" }, |status| state(&status)))
        @if let Some(reason) = &of.reason { " " small { (reason) } }
        @if of.redeploys > 0 { " " small { "redeployed " (of.redeploys) " times, next after " (of.skip_pings)
            " pings" } }
    }
}
