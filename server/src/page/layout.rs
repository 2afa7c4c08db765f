//! Parts of all pages: head, navigation, states, links, tables.

use maud::{DOCTYPE, Markup, html};
use serde::Serialize;

use crate::http::auth::{SIGN_OUT, asking};

const PAGES: [(&str, &str); 7] = [
    ("/", "Overview"),
    ("/ui/hosts", "Hosts"),
    ("/ui/storages", "Storages"),
    ("/ui/vms", "VMs"),
    ("/ui/events", "Events"),
    ("/ui/inventory", "Inventory"),
    ("/ui/hooks", "Hooks"),
];

/// A page. `at` is its entry in the navigation; `live` is the last record that it shows, after which it reloads
/// automatically.
pub(super) fn page(title: &str, at: &str, live: Option<u64>, body: &Markup) -> Markup {
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                meta name="htmx-config"
                    content=r#"{"includeIndicatorStyles":false,"allowEval":false,"selfRequestsOnly":true}"#;
                title { (title) " - Ringfence" }
                link rel="icon" href="data:,";
                link rel="stylesheet" href="/ui/assets/page.css";
                script src="/ui/assets/htmx.min.js" defer {}
                script src="/ui/assets/idiomorph-ext.min.js" defer {}
                script src="/ui/assets/page.js" defer {}
            }
            body hx-ext="morph" data-after=[live] {
                a.skip href="#main" { "Skip to content" }
                header {
                    strong { "Ringfence" }
                    nav aria-label="Pages" {
                        @for (href, name) in PAGES {
                            a href=(href) aria-current=[(href == at).then_some("page")] { (name) }
                        }
                    }
                    span #live role="status" { @if live.is_some() { "connecting" } @else { "" } }
                    @if let Some(bearer) = asking() {
                        form.who method="post" action=(SIGN_OUT) {
                            span { strong { (bearer.name) } " (" (bearer.role.name()) ")" }
                            @if bearer.token.is_some() { " " button { "Sign out" } }
                        }
                    }
                }
                main #main tabindex="-1" hx-trigger="renew" hx-get="" hx-select="#main"
                    hx-swap="morph:outerHTML" { (body) }
            }
        }
    }
}

/// The JSON string of a value.
pub(super) fn word(value: &impl Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(word)) => word,
        _ => "unknown".to_owned(),
    }
}

/// A state: a word with a shape and a colour.
pub(super) fn state(value: &impl Serialize) -> Markup {
    let word = word(value);
    let kind = match word.as_str() {
        "Connected" | "Running" | "Enabled" => "good",
        "Disconnected" | "Unknown" => "bad",
        "Maintenance" | "Starting" | "Stopping" | "Connecting" => "busy",
        _ => "idle",
    };
    html! { span class={ "state " (kind) } { (word) } }
}

/// The head of a table.
pub(super) fn columns<'a>(names: impl IntoIterator<Item = &'a str>) -> Markup {
    html! { thead { tr { @for name in names { th scope="col" { (name) } } } } }
}

/// A link to a host or VM, or a dash.
pub(super) fn link(kind: &str, name: Option<&str>) -> Markup {
    html! {
        @match name {
            Some(name) => a href={ "/ui/" (kind) "/" (name) } { (name) },
            None => "-",
        }
    }
}
