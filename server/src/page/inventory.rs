//! The inventory, and its changes.
//!
//! Invariants: a change is shown as a difference before it is applied, and is applied only if that difference still
//! holds; the roles are those of the API.

use axum::{
    Extension,
    body::Body,
    extract::{Path, Query, State},
    http::StatusCode,
    response::{IntoResponse, Redirect, Response},
};
use maud::{Markup, html};
use ringfence_messages::{Code, ErrorCode, Result};
use ringfence_service::listen::read_long_form;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    App, ErrorPage, Shown,
    layout::{columns, page},
};
use crate::{
    auth::Role,
    config::managed::{Edit, toml_of},
    http::{
        auth::{Bearer, CHANGE, RELOAD},
        backend::Backend,
    },
    inventory::{Order, Outcome},
};

/// The largest form of a change: 64 KiB as in the API, with three bytes in the form for one, and the difference shown
/// before.
const MAX_CHANGE_BYTES: usize = 256 << 10;

/// Kinds of items: key in the inventory, key in a file, and heading.
const KINDS: [(&str, &str, &str); 4] = [
    ("clusters", "cluster", "Clusters"),
    ("hosts", "host", "Hosts"),
    ("storages", "storage", "Storages"),
    ("vms", "vm", "VMs"),
];

const EXAMPLE: &str =
    "[[host]]\nname = \"host-d\"\ncluster = \"c1\"\nmanagement_ip = \"10.0.0.14\"\nagent = \"http://10.0.0.14:7070\"\n";

/// An item's table, as a file has it.
fn written(kind: &str, definition: &Value) -> String {
    toml_of(&json!({ kind: [definition] })).and_then(|of| toml::to_string(&of).ok()).unwrap_or_default()
}

pub(super) async fn list(State(backend): App) -> Shown {
    let all = backend.inventory(Order::Show, String::new(), false).await?;
    let body = html! {
        h1 { "Inventory" }
        nav.orders aria-label="Actions" {
            a.order href="/ui/inventory/change" { "Add or replace" }
            a.order href="/ui/inventory/reload" { "Reload config file" }
        }
        p { "To change an item of the config file, edit the file and reload it. Items that this page or the API added \
            are changed here." }
        @for (plural, kind, title) in KINDS {
            @let things = all[plural].as_array().map(Vec::as_slice).unwrap_or_default();
            section aria-labelledby=(plural) {
                h2 id=(plural) { (title) }
                @if things.is_empty() { p { "No " (title) "." } }
                @else {
                    table {
                        caption { (things.len()) " defined" }
                        (columns(["Name", "Defined by", "Definition", "Actions"]))
                        tbody {
                            @for thing in things {
                                @let name = thing["definition"]["name"].as_str().unwrap_or("-");
                                @let managed = thing["managed"] == true;
                                tr {
                                    th scope="row" { (name) }
                                    td { @if managed { "the API" } @else { "the config file" } }
                                    td { details { summary { "Show " (name) }
                                        pre { (written(kind, &thing["definition"])) } } }
                                    td {
                                        @if managed {
                                            a href={ "/ui/inventory/change?kind=" (kind) "&name=" (name) } { "Change "
                                                (name) } " "
                                            a href={ "/ui/inventory/remove/" (kind) "/" (name) } { "Remove " (name) }
                                        } @else { "-" }
                                    }
                                }
                            }
                        }
                    }
                }
            }
        }
    };
    Ok(page("Inventory", "/ui/inventory", None, &body))
}

/// The form of a change.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Written {
    /// Tables, in TOML.
    #[serde(default)]
    text: String,
    /// The difference that was shown and confirmed.
    shown: Option<String>,
}

/// The item whose table the form shows.
#[derive(Debug, Deserialize)]
pub(super) struct Which {
    kind: Option<String>,
    name: Option<String>,
}

pub(super) async fn write(State(backend): App, Query(Which { kind, name }): Query<Which>) -> Shown {
    let all = backend.inventory(Order::Show, String::new(), false).await?;
    let of = KINDS.iter().find(|(_, of, _)| Some(*of) == kind.as_deref());
    let there = of.and_then(|(plural, kind, _)| {
        let thing =
            all[*plural].as_array()?.iter().find(|thing| thing["definition"]["name"].as_str() == name.as_deref())?;
        Some(written(kind, &thing["definition"]))
    });
    Ok(page(
        "Change",
        "/ui/inventory",
        None,
        &html! { h1 { "Change the inventory" } (form(&there.unwrap_or_default(), None)) },
    ))
}

fn form(text: &str, problem: Option<&str>) -> Markup {
    html! {
        @if let Some(problem) = problem { p.trouble role="alert" { (problem) } }
        form method="post" action="/ui/inventory/change" {
            p {
                label for="text" { "Tables as in the config file. An item with the same name is replaced." }
                textarea #text name="text" rows="14" required spellcheck="false" placeholder=(EXAMPLE) { (text) }
            }
            button { "Preview" } " " a href="/ui/inventory" { "Cancel" }
        }
    }
}

/// The edit that tables in TOML describe.
fn edit(text: &str) -> Result<Edit> {
    let bad = |why: String| ErrorCode::new(Code::INVALID_ARGUMENT, why.trim_end().to_owned());
    let tables: toml::Table = text.parse().map_err(|why: toml::de::Error| bad(why.to_string()))?;
    let mut put = serde_json::Map::new();
    for (key, value) in tables {
        let kind = KINDS.iter().find(|(_, kind, _)| *kind == key);
        let (plural, ..) =
            kind.ok_or_else(|| bad(format!("unknown table [[{key:.40}]]; use cluster, host, storage or vm")))?;
        put.insert((*plural).to_owned(), serde_json::to_value(value).map_err(|why| bad(why.to_string()))?);
    }
    serde_json::from_value(json!({ "put": put }))
        .map_err(|why| bad(format!("not an array of tables: {why}; write [[host]], not [host]")))
}

async fn outcome(backend: &dyn Backend, order: Order, bearer: &Bearer, dry_run: bool) -> Result<Outcome> {
    let outcome = backend.inventory(order, bearer.name.clone(), dry_run).await?;
    serde_json::from_value(outcome).map_err(|why| ErrorCode::new(Code::INTERNAL, why.to_string()))
}

/// The difference as one text, which the form sends back.
fn shown(outcome: &Outcome) -> String {
    outcome.changes.iter().chain(&outcome.need_restart).map(|line| format!("{line}\n")).collect()
}

/// The difference, and the form that applies it.
fn preview(title: &str, outcome: &Outcome, text: Option<&str>, moved: bool) -> Markup {
    let body = html! {
        h1 { (title) }
        @if moved { p.trouble role="alert" { "The change differs from the one shown before; check it again." } }
        @if outcome.changes.is_empty() { p { "No changes." } }
        @else { ul.difference { @for line in &outcome.changes { li class=(kind(line)) { code { (line) } } } } }
        @for table in &outcome.need_restart { p { code { (table) } " takes effect after the controller restarts." } }
        form method="post" {
            @if let Some(text) = text { input type="hidden" name="text" value=(text); }
            input type="hidden" name="shown" value=(shown(outcome));
            @if !outcome.changes.is_empty() || text.is_none() { button { "Apply" } " " }
            a href="/ui/inventory" { "Cancel" }
        }
    };
    page(title, "/ui/inventory", None, &body)
}

fn kind(line: &str) -> &'static str {
    match line.as_bytes().first() {
        Some(b'+') => "good",
        Some(b'-') => "bad",
        _ => "busy",
    }
}

/// Applies a change if its difference is still the confirmed one; shows it otherwise.
async fn make(
    backend: &dyn Backend,
    order: Order,
    bearer: &Bearer,
    title: &str,
    written: &Written,
    text: Option<&str>,
) -> Shown<Response> {
    let would = outcome(backend, order.clone(), bearer, true).await?;
    // Browsers change line ends.
    match written.shown.as_deref().map(|of| of.replace('\r', "")) {
        Some(confirmed) if confirmed == shown(&would) => {
            bearer.require(if matches!(order, Order::Reload) { RELOAD.role } else { CHANGE.role })?;
            outcome(backend, order, bearer, false).await?;
            Ok(Redirect::to("/ui/inventory").into_response())
        }
        confirmed => Ok(preview(title, &would, text, confirmed.is_some()).into_response()),
    }
}

async fn read(body: Body) -> Shown<Written> {
    let wrong = |(status, why): (StatusCode, String)| ErrorPage(status, ErrorCode::new(Code::INVALID_ARGUMENT, why));
    read_long_form(body, MAX_CHANGE_BYTES).await.map_err(wrong)
}

pub(super) async fn change(State(backend): App, Extension(bearer): Extension<Bearer>, body: Body) -> Shown<Response> {
    bearer.require(Role::Operator)?;
    let written = read(body).await?;
    let made = match edit(&written.text) {
        Ok(edit) => {
            make(&*backend, Order::Edit(edit), &bearer, "Change the inventory?", &written, Some(&written.text)).await
        }
        Err(error) => Err(error.into()),
    };
    // An error is shown above the text that caused it.
    made.or_else(|ErrorPage(status, error)| {
        let body = html! { h1 { "Change the inventory" } (form(&written.text, Some(&error.to_string()))) };
        Ok((status, page("Change", "/ui/inventory", None, &body)).into_response())
    })
}

fn removal(kind: &str, name: &str) -> Shown<Order> {
    let of = KINDS.iter().find(|(_, of, _)| *of == kind);
    let (plural, ..) = of.ok_or_else(|| ErrorCode::new(Code::NOT_FOUND, format!("unknown kind {kind:.40?}")))?;
    let edit = serde_json::from_value(json!({ "remove": { *plural: [name] } }));
    Ok(Order::Edit(edit.map_err(|why| ErrorCode::new(Code::INTERNAL, why.to_string()))?))
}

pub(super) async fn ask_remove(
    State(backend): App,
    Path((kind, name)): Path<(String, String)>,
    Extension(bearer): Extension<Bearer>,
) -> Shown<Response> {
    bearer.require(Role::Operator)?;
    make(&*backend, removal(&kind, &name)?, &bearer, &format!("Remove {name}?"), &Written::default(), None).await
}

pub(super) async fn remove(
    State(backend): App,
    Path((kind, name)): Path<(String, String)>,
    Extension(bearer): Extension<Bearer>,
    body: Body,
) -> Shown<Response> {
    let written = read(body).await?;
    make(&*backend, removal(&kind, &name)?, &bearer, &format!("Remove {name}?"), &written, None).await
}

pub(super) async fn ask_reload(State(backend): App, Extension(bearer): Extension<Bearer>) -> Shown<Response> {
    bearer.require(Role::Operator)?;
    make(&*backend, Order::Reload, &bearer, "Reload the config file?", &Written::default(), None).await
}

pub(super) async fn reload(State(backend): App, Extension(bearer): Extension<Bearer>, body: Body) -> Shown<Response> {
    let written = read(body).await?;
    make(&*backend, Order::Reload, &bearer, "Reload the config file?", &written, None).await
}
