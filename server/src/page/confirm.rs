//! Actions: the effect is shown first; the action is carried out when it is confirmed.

use axum::{
    Extension,
    body::Body,
    extract::{Path, State},
    http::StatusCode,
    response::Redirect,
};
use maud::{Markup, html};
use ringfence_messages::{
    Code, ErrorCode,
    action::{Action, ActionFacts, ActionObject, ActionParameter, ActionParameters, Offered},
};
use ringfence_service::listen::read_form;
use serde::Deserialize;

use super::{
    App, ErrorPage, Shown,
    layout::{link, page},
};
use crate::http::{ActionAnswer, auth::Bearer, backend::Backend, carry_out, plan};

/// The action of this name that the page offers for this kind of object.
fn facts(object: ActionObject, verb: &str) -> Shown<&'static ActionFacts> {
    let offered = |facts: &&ActionFacts| facts.verb == verb && !facts.link.is_empty();
    Action::on(object).find(offered).ok_or_else(|| {
        ErrorPage(StatusCode::NOT_FOUND, ErrorCode::new(Code::NOT_FOUND, format!("unknown action {verb:.40?}")))
    })
}

/// Links to the actions on an object, those that are offered now.
pub(super) fn links(object: ActionObject, name: &str, offered: impl Fn(Offered) -> bool) -> Markup {
    html! {
        nav.orders aria-label="Actions" {
            @for facts in Action::on(object).filter(|facts| !facts.link.is_empty() && offered(facts.offered)) {
                a.order href={ "/ui/" (object.path()) "/" (name) "/" (facts.verb) } { (facts.link) }
            }
        }
    }
}

fn confirmation(facts: &ActionFacts, name: &str, more: &Markup) -> Markup {
    let action = format!("{} {name}", facts.button);
    let list = format!("/ui/{}", facts.object.path());
    let body = html! {
        h1 { (action) "?" }
        p { (facts.effect.replace("{name}", name)) }
        (more)
        form method="post" {
            @if facts.takes(ActionParameter::By) {
                p { label { "Your name: " input name="by" required maxlength="100" autocomplete="name"; } }
            }
            button { (action) }
            " " a href={ (list) "/" (name) } { "Cancel" }
        }
    };
    page(facts.verb, &list, None, &body)
}

/// What an action would do, if it has a plan.
fn planned(answer: Option<ActionAnswer>) -> Markup {
    match answer {
        Some(ActionAnswer::HaStartPlan(plan)) => html! {
            h2 { "Evidence" }
            ul { @for line in &plan.evidence { li { (line) } } }
            h2 { "Plan" }
            ol { @for line in &plan.steps { li { (line) } } }
            @if !plan.feasible { p.trouble { "The VM would not start now." } }
        },
        Some(ActionAnswer::DrainPlan(plan)) => html! {
            h2 { "Plan" }
            @if plan.vms.is_empty() { p { "No VMs." } }
            ul { @for step in &plan.vms { li { (link("vms", Some(&step.vm))) ": " (step.what) } } }
            @if !plan.feasible { p.trouble { "Not every VM has a target host now." } }
        },
        _ => html! {},
    }
}

async fn ask(backend: &dyn Backend, object: ActionObject, id: &str, verb: &str) -> Shown {
    let name = match object {
        ActionObject::Vm => backend.vm(backend.vm_id(id)?).await?.name,
        ActionObject::Host => backend.host(backend.host_id(id)?).await?.name,
        ActionObject::Hook => id.to_owned(),
    };
    let facts = facts(object, verb)?;
    let plan = plan(backend, facts.action, &name, &ActionParameters::default()).await?;
    Ok(confirmation(facts, &name, &planned(plan)))
}

pub(super) async fn ask_vm(State(backend): App, Path((name, order)): Path<(String, String)>) -> Shown {
    ask(&*backend, ActionObject::Vm, &name, &order).await
}

pub(super) async fn ask_host(State(backend): App, Path((name, order)): Path<(String, String)>) -> Shown {
    ask(&*backend, ActionObject::Host, &name, &order).await
}

/// The form of an action.
#[derive(Debug, Deserialize)]
struct Attested {
    by: Option<String>,
}

async fn act(
    backend: &dyn Backend,
    bearer: &Bearer,
    object: ActionObject,
    id: &str,
    verb: &str,
    body: Body,
) -> Shown<Redirect> {
    let facts = facts(object, verb)?;
    let wrong = |status, why: String| ErrorPage(status, ErrorCode::new(Code::INVALID_ARGUMENT, why));
    let Attested { by } = read_form(body).await.map_err(|(status, why)| wrong(status, why))?;
    // A form without a name is no attestation.
    let by = facts.takes(ActionParameter::By).then(|| by.unwrap_or_default());
    let parameters = ActionParameters { by, ..ActionParameters::default() };
    let name = match carry_out(backend, bearer, facts.action, id, parameters).await? {
        ActionAnswer::Vm(vm) => vm.name,
        ActionAnswer::Host(host) => host.name,
        _ => id.to_owned(),
    };
    Ok(Redirect::to(&format!("/ui/{}/{name}", object.path())))
}

pub(super) async fn vm(
    State(backend): App,
    Path((name, order)): Path<(String, String)>,
    Extension(bearer): Extension<Bearer>,
    body: Body,
) -> Shown<Redirect> {
    act(&*backend, &bearer, ActionObject::Vm, &name, &order, body).await
}

pub(super) async fn host(
    State(backend): App,
    Path((name, order)): Path<(String, String)>,
    Extension(bearer): Extension<Bearer>,
    body: Body,
) -> Shown<Redirect> {
    act(&*backend, &bearer, ActionObject::Host, &name, &order, body).await
}
