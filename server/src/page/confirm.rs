//! Actions: the effect is shown first; the action is carried out when it is confirmed.

use axum::{
    Extension,
    body::Body,
    extract::{Path, State},
    http::StatusCode,
    response::Redirect,
};
use maud::{Markup, html};
use ringfence_messages::{Code, ErrorCode, host::HostAction};
use ringfence_service::listen::read_form;
use serde::Deserialize;

use super::{
    App, ErrorPage, Shown,
    layout::{link, page},
};
use crate::http::auth::{Bearer, CONFIRM_FENCED};

fn no_such(order: &str) -> ErrorPage {
    ErrorPage(StatusCode::NOT_FOUND, ErrorCode::new(Code::NOT_FOUND, format!("unknown action {order:.40?}")))
}

/// The button of an action.
fn verb(order: &str) -> &'static str {
    match order {
        "start" => "Start",
        "stop" => "Stop",
        "ha-start" => "Fail over",
        "maintain" => "Start maintenance of",
        "drain" => "Drain",
        "activate" => "Return to service:",
        "ping" => "Ping",
        _ => "Confirm that this host is off:",
    }
}

/// The effect of an action.
fn meaning(kind: &str, order: &str, name: &str) -> Shown<String> {
    Ok(match (kind, order) {
        ("vms", "start") => {
            format!("Starts {name} if its last host reports that the VM does not run there. Never fences.")
        }
        ("vms", "stop") => {
            format!("Stops {name}: QEMU gets a quit request, then is killed. The VM does not fail over.")
        }
        ("vms", "ha-start") => {
            format!("Fences {name} on its last host, then starts it on another host. The plan is below.")
        }
        ("hosts", "maintain") => {
            format!("Puts {name} into maintenance: no pings, redeploys or placement. Its VMs keep running.")
        }
        ("hosts", "drain") => format!(
            "Puts {name} into maintenance and moves its VMs: each is stopped, verified and started on another host, \
             two at a time. A VM without a target host is not stopped. The plan is below."
        ),
        ("hosts", "activate") => format!("Returns {name} to service. A drain ends; moved VMs stay where they are."),
        ("hosts", "ping") => format!("Pings {name} now."),
        ("hosts", "confirm-fenced") => format!(
            "You attest that you have seen {name} powered off. Its VMs then start elsewhere without further proof. If \
             one of them still writes, its disk is destroyed."
        ),
        _ => return Err(no_such(order)),
    })
}

fn confirmation(kind: &str, order: &str, name: &str, more: &Markup) -> Shown {
    let meaning = meaning(kind, order, name)?;
    let action = format!("{} {name}", verb(order));
    let body = html! {
        h1 { (action) "?" }
        p { (meaning) }
        (more)
        form method="post" {
            @if order == "confirm-fenced" {
                p { label { "Your name: " input name="by" required maxlength="100" autocomplete="name"; } }
            }
            button { (action) }
            " " a href={ "/ui/" (kind) "/" (name) } { "Cancel" }
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
                h2 { "Evidence" }
                ul { @for line in &plan.evidence { li { (line) } } }
                h2 { "Plan" }
                ol { @for line in &plan.steps { li { (line) } } }
                @if !plan.feasible { p.trouble { "The VM would not start now." } }
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
                h2 { "Plan" }
                @if plan.vms.is_empty() { p { "No VMs." } }
                ul { @for step in &plan.vms { li { (link("vms", Some(&step.vm))) ": " (step.what) } } }
                @if !plan.feasible { p.trouble { "Not every VM has a target host now." } }
            }
        }
        _ => html! {},
    };
    confirmation("hosts", &order, &host.name, &more)
}

/// The form of an action.
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
