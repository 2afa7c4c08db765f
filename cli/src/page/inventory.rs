//! The inventory: where what is looked after is defined, and changes of it.
//!
//! Invariants: a change is shown as the difference that it makes before it is made, and is made only if it still makes that one;
//! who may make it is as for the API, whose orders these are.

use axum::{
    Extension,
    body::Body,
    extract::{Path, Query, State},
    http::StatusCode,
    response::{IntoResponse, Redirect, Response},
};
use maud::{Markup, html};
use ringfence_messages::{Code, ErrorCode, Result};
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
    listen::read_long_form,
};

/// The largest form of a change: as much as the API takes, 64 KiB, each byte of which a form may write as three, and what was
/// shown of it.
const MAX_CHANGE_BYTES: usize = 256 << 10;

/// Kinds of things: in the inventory, in a file, and to read.
const KINDS: [(&str, &str, &str); 4] = [
    ("clusters", "cluster", "Clusters"),
    ("hosts", "host", "Hosts"),
    ("storages", "storage", "Storages"),
    ("vms", "vm", "VMs"),
];

const EXAMPLE: &str =
    "[[host]]\nname = \"host-d\"\ncluster = \"c1\"\nmanagement_ip = \"10.0.0.14\"\nagent = \"http://10.0.0.14:7070\"\n";

/// A thing's table, as a file has it.
fn written(kind: &str, definition: &Value) -> String {
    toml_of(&json!({ kind: [definition] })).and_then(|of| toml::to_string(&of).ok()).unwrap_or_default()
}

pub(super) async fn list(State(backend): App) -> Shown {
    let all = backend.inventory(Order::Show, String::new(), false).await?;
    let body = html! {
        h1 { "Inventory" }
        nav.orders aria-label="What may be done" {
            a.order href="/ui/inventory/change" { "Add or replace something" }
            a.order href="/ui/inventory/reload" { "Read the config file again" }
        }
        p { "What stands in the config file is changed there, and read again. What was added here or by the API is changed here." }
        @for (plural, kind, title) in KINDS {
            @let things = all[plural].as_array().map(Vec::as_slice).unwrap_or_default();
            section aria-labelledby=(plural) {
                h2 id=(plural) { (title) }
                @if things.is_empty() { p { "None." } }
                @else {
                    table {
                        caption { (things.len()) " defined" }
                        (columns(["Name", "Defined by", "Definition", "What may be done"]))
                        tbody {
                            @for thing in things {
                                @let name = thing["definition"]["name"].as_str().unwrap_or("-");
                                @let managed = thing["managed"] == true;
                                tr {
                                    th scope="row" { (name) }
                                    td { @if managed { "the API" } @else { "the config file" } }
                                    td { details { summary { "Show " (name) } pre { (written(kind, &thing["definition"])) } } }
                                    td {
                                        @if managed {
                                            a href={ "/ui/inventory/change?kind=" (kind) "&name=" (name) } { "Change " (name) } " "
                                            a href={ "/ui/inventory/remove/" (kind) "/" (name) } { "Take out " (name) }
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

/// What a form of a change carries.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Written {
    /// Tables, in TOML.
    #[serde(default)]
    text: String,
    /// The difference that was shown and confirmed.
    shown: Option<String>,
}

/// Which thing's table is to be written anew.
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
                label for="text" { "Tables as the config file has them. What is there under the same name is replaced." }
                textarea #text name="text" rows="14" required spellcheck="false" placeholder=(EXAMPLE) { (text) }
            }
            button { "Show the difference" } " " a href="/ui/inventory" { "No, back" }
        }
    }
}

/// The order that tables in TOML are.
fn edit(text: &str) -> Result<Edit> {
    let bad = |why: String| ErrorCode::new(Code::INVALID_ARGUMENT, why.trim_end().to_owned());
    let tables: toml::Table = text.parse().map_err(|why: toml::de::Error| bad(why.to_string()))?;
    let mut put = serde_json::Map::new();
    for (key, value) in tables {
        let kind = KINDS.iter().find(|(_, kind, _)| *kind == key);
        let (plural, ..) = kind.ok_or_else(|| bad(format!("[[{key:.40}]] is none of cluster, host, storage, vm")))?;
        put.insert((*plural).to_owned(), serde_json::to_value(value).map_err(|why| bad(why.to_string()))?);
    }
    serde_json::from_value(json!({ "put": put })).map_err(|why| bad(format!("write [[host]], not [host]: {why}")))
}

async fn outcome(backend: &dyn Backend, order: Order, bearer: &Bearer, dry_run: bool) -> Result<Outcome> {
    let outcome = backend.inventory(order, bearer.name.clone(), dry_run).await?;
    serde_json::from_value(outcome).map_err(|why| ErrorCode::new(Code::INTERNAL, why.to_string()))
}

/// The difference in one text: what is confirmed.
fn shown(outcome: &Outcome) -> String {
    outcome.changes.iter().chain(&outcome.need_restart).map(|line| format!("{line}\n")).collect()
}

/// The difference, and the form that makes it.
fn preview(title: &str, outcome: &Outcome, text: Option<&str>, moved: bool) -> Markup {
    let body = html! {
        h1 { (title) }
        @if moved { p.trouble role="alert" { "Something changed since this was shown: look again." } }
        @if outcome.changes.is_empty() { p { "Nothing is another." } }
        @else { ul.difference { @for line in &outcome.changes { li class=(kind(line)) { code { (line) } } } } }
        @for table in &outcome.need_restart { p { code { (table) } " counts from the next start of the controller on." } }
        form method="post" {
            @if let Some(text) = text { input type="hidden" name="text" value=(text); }
            input type="hidden" name="shown" value=(shown(outcome));
            @if !outcome.changes.is_empty() || text.is_none() { button { "Yes, do it" } " " }
            a href="/ui/inventory" { "No, back" }
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

/// Makes a change whose difference was confirmed and is still that; shows it otherwise.
async fn make(
    backend: &dyn Backend,
    order: Order,
    bearer: &Bearer,
    title: &str,
    written: &Written,
    text: Option<&str>,
) -> Shown<Response> {
    let would = outcome(backend, order.clone(), bearer, true).await?;
    // A browser sends line ends in its own way.
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
    // What is wrong is mended where it was written.
    made.or_else(|ErrorPage(status, error)| {
        let body = html! { h1 { "Change the inventory" } (form(&written.text, Some(&error.to_string()))) };
        Ok((status, page("Change", "/ui/inventory", None, &body)).into_response())
    })
}

fn removal(kind: &str, name: &str) -> Shown<Order> {
    let of = KINDS.iter().find(|(_, of, _)| *of == kind);
    let (plural, ..) =
        of.ok_or_else(|| ErrorCode::new(Code::NOT_FOUND, format!("there is no kind {kind:.40?} of things")))?;
    let edit = serde_json::from_value(json!({ "remove": { *plural: [name] } }));
    Ok(Order::Edit(edit.map_err(|why| ErrorCode::new(Code::INTERNAL, why.to_string()))?))
}

pub(super) async fn ask_remove(
    State(backend): App,
    Path((kind, name)): Path<(String, String)>,
    Extension(bearer): Extension<Bearer>,
) -> Shown<Response> {
    bearer.require(Role::Operator)?;
    make(&*backend, removal(&kind, &name)?, &bearer, &format!("Take out {name}?"), &Written::default(), None).await
}

pub(super) async fn remove(
    State(backend): App,
    Path((kind, name)): Path<(String, String)>,
    Extension(bearer): Extension<Bearer>,
    body: Body,
) -> Shown<Response> {
    let written = read(body).await?;
    make(&*backend, removal(&kind, &name)?, &bearer, &format!("Take out {name}?"), &written, None).await
}

pub(super) async fn ask_reload(State(backend): App, Extension(bearer): Extension<Bearer>) -> Shown<Response> {
    bearer.require(Role::Operator)?;
    make(&*backend, Order::Reload, &bearer, "Read the config file again?", &Written::default(), None).await
}

pub(super) async fn reload(State(backend): App, Extension(bearer): Extension<Bearer>, body: Body) -> Shown<Response> {
    let written = read(body).await?;
    make(&*backend, Order::Reload, &bearer, "Read the config file again?", &written, None).await
}
