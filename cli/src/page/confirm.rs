//! Orders: what one would do is shown first, and is done when that is confirmed.

use axum::{
    Extension,
    body::Body,
    extract::{Path, State},
    http::StatusCode,
    response::Redirect,
};
use maud::{Markup, html};
use ringfence_messages::{Code, ErrorCode, host::HostAction};
use serde::Deserialize;

use super::{
    App, ErrorPage, Shown,
    layout::{link, page},
};
use crate::{
    http::auth::{Bearer, CONFIRM_FENCED},
    listen::read_form,
};

fn no_such(order: &str) -> ErrorPage {
    ErrorPage(StatusCode::NOT_FOUND, ErrorCode::new(Code::NOT_FOUND, format!("there is no order {order:.40?}")))
}

/// What an order does, in words.
fn meaning(kind: &str, order: &str, name: &str) -> Shown<String> {
    Ok(match (kind, order) {
        ("vms", "start") => {
            format!("Starts {name}, if where it ran last says that it does not run there. Never fences.")
        }
        ("vms", "stop") => format!("Stops {name}: QEMU is asked to quit, then killed; it is not brought back."),
        ("vms", "ha-start") => format!("Brings {name} back: what it would do now is below."),
        ("hosts", "maintain") => {
            format!("Takes {name} out of service: not pinged, not healed, nothing is started there. Its VMs run on.")
        }
        ("hosts", "drain") => format!(
            "Takes {name} out of service and moves its VMs: each is stopped, verified gone, and started on another host, a few \
             at a time. One that has nowhere to go is not stopped. What it would do now is below."
        ),
        ("hosts", "activate") => format!("Puts {name} back into service. A drain ends; what was moved stays."),
        ("hosts", "ping") => format!("Pings {name} now, instead of when its turn has come."),
        ("hosts", "confirm-fenced") => format!(
            "You attest that you have seen {name} powered off. Its VMs are then started elsewhere without any other proof: if \
             one of them still writes, its disk is destroyed."
        ),
        _ => return Err(no_such(order)),
    })
}

fn confirmation(kind: &str, order: &str, name: &str, more: &Markup) -> Shown {
    let meaning = meaning(kind, order, name)?;
    let body = html! {
        h1 { (order) " " (name) "?" }
        p { (meaning) }
        (more)
        form method="post" {
            @if order == "confirm-fenced" {
                p { label { "Who attests it: " input name="by" required maxlength="100" autocomplete="name"; } }
            }
            button { "Yes, " (order) " " (name) }
            " " a href={ "/ui/" (kind) "/" (name) } { "No, back" }
        }
    };
    Ok(page(order, &format!("/ui/{kind}"), None, &body))
}

pub(super) async fn ask_vm(State(backend): App, Path((name, order)): Path<(String, String)>) -> Shown {
    let vm = backend.vm(backend.vm_id(&name)?).await?;
    let more = match order.as_str() {
        "ha-start" => {
            let plan = backend.plan_ha_start(vm.uuid, None).await?;
            html! {
                h2 { "What is known" }
                ul { @for line in &plan.evidence { li { (line) } } }
                h2 { "What would be done" }
                ol { @for line in &plan.steps { li { (line) } } }
                @if !plan.feasible { p.trouble { "As things are now, that does not end in a start." } }
            }
        }
        _ => html! {},
    };
    confirmation("vms", &order, &vm.name, &more)
}

pub(super) async fn vm(State(backend): App, Path((name, order)): Path<(String, String)>) -> Shown<Redirect> {
    let vm = backend.vm_id(&name)?;
    match order.as_str() {
        "start" => backend.start_vm(vm, None).await?,
        "stop" => backend.stop_vm(vm).await?,
        "ha-start" => backend.ha_start_vm(vm, None).await?,
        _ => return Err(no_such(&order)),
    };
    Ok(Redirect::to(&format!("/ui/vms/{}", backend.vm(vm).await?.name)))
}

pub(super) async fn ask_host(State(backend): App, Path((name, order)): Path<(String, String)>) -> Shown {
    let host = backend.host(backend.host_id(&name)?).await?;
    let more = match order.as_str() {
        "drain" => {
            let plan = backend.plan_drain(host.uuid).await?;
            html! {
                h2 { "What would be done" }
                @if plan.vms.is_empty() { p { "Nothing runs there." } }
                ul { @for step in &plan.vms { li { (link("vms", Some(&step.vm))) ": " (step.what) } } }
                @if !plan.feasible { p.trouble { "As things are now, not every VM can leave." } }
            }
        }
        _ => html! {},
    };
    confirmation("hosts", &order, &host.name, &more)
}

/// What the form of an order carries.
#[derive(Debug, Deserialize)]
pub(super) struct Attested {
    #[serde(default)]
    by: String,
}

pub(super) async fn host(
    State(backend): App,
    Path((name, order)): Path<(String, String)>,
    Extension(bearer): Extension<Bearer>,
    body: Body,
) -> Shown<Redirect> {
    let host = backend.host_id(&name)?;
    let wrong = |status, why: String| ErrorPage(status, ErrorCode::new(Code::INVALID_ARGUMENT, why));
    let Attested { by } = read_form(body).await.map_err(|(status, why)| wrong(status, why))?;
    let action = match order.as_str() {
        "maintain" => Some(HostAction::Maintain),
        "drain" => Some(HostAction::Drain),
        "activate" => Some(HostAction::Activate),
        "ping" => Some(HostAction::Ping),
        "confirm-fenced" => None,
        _ => return Err(no_such(&order)),
    };
    let host = match action {
        Some(action) => backend.host_action(host, action).await?,
        None => {
            bearer.require(CONFIRM_FENCED.role)?;
            backend.confirm_fenced(host, crate::http::attester(by)?).await?
        }
    };
    Ok(Redirect::to(&format!("/ui/hosts/{}", host.name)))
}
