//! Actions on VMs, hosts and hooks.

use axum::{
    Extension, Json,
    body::Body,
    extract::{Path, State},
    http::{HeaderMap, StatusCode},
};
use ringfence_messages::{
    Code, ErrorCode, Result,
    action::{Action, ActionBody, ActionFacts, ActionObject, ActionParameter, ActionParameters},
    ha::{DrainPlan, HaStartPlan},
    host::{HostAction, HostInventory},
    vm::VmInventory,
};
use ringfence_service::listen::read_body;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;
use utoipa::{
    IntoParams, PartialSchema, ToSchema,
    openapi::{
        RefOr, Schema,
        schema::{AdditionalProperties, ObjectBuilder, OneOfBuilder, RefBuilder, SchemaType, Type},
    },
};

use super::{
    Answer, App,
    auth::Bearer,
    backend::Backend,
    errors::{Failure, Problem},
    etag::matches,
};
use crate::notify::HookTest;

/// The largest body of an action, 64 KiB. Too low: a large inventory change is rejected. Too high: memory for hostile
/// clients.
pub(super) const MAX_BODY_BYTES: usize = 64 << 10;

/// The body of an action on a VM.
pub(super) struct VmOrder;

/// The body of an action on a host.
pub(super) struct HostOrder;

/// The body of an action on a hook.
pub(super) struct HookOrder;

/// Describes a body from the table of actions.
macro_rules! described {
    ($($order:ident $object:ident $meaning:literal;)*) => {$(
        impl PartialSchema for $order {
            fn schema() -> RefOr<Schema> {
                order_schema(ActionObject::$object, $meaning)
            }
        }

        impl ToSchema for $order {
            fn schemas(schemas: &mut Vec<(String, RefOr<Schema>)>) {
                let bodies = Action::on(ActionObject::$object).map(|facts| facts.body);
                schemas.extend(bodies.map(|body| (body.name().0.to_owned(), body_schema(body))));
            }
        }
    )*};
}

described! {
    VmOrder Vm "Action on a VM.";
    HostOrder Host "Action on a host.";
    HookOrder Hook "Action on a hook.";
}

/// One of the actions on a kind of object.
fn order_schema(object: ActionObject, meaning: &str) -> RefOr<Schema> {
    let one = |facts: &ActionFacts| {
        let body =
            RefBuilder::new().ref_location_from_schema_name(facts.body.name().0).description(Some(facts.meaning));
        ObjectBuilder::new()
            .schema_type(Type::Object)
            .description(Some(facts.meaning))
            .property(facts.key(), body)
            .required(facts.key())
    };
    let any = Action::on(object).fold(OneOfBuilder::new(), |any, facts| any.item(one(facts)));
    any.description(Some(meaning)).into()
}

fn body_schema(body: ActionBody) -> RefOr<Schema> {
    let schema = ObjectBuilder::new()
        .schema_type(Type::Object)
        .description(Some(body.name().1))
        .additional_properties(Some(AdditionalProperties::FreeForm(false)));
    let schema = body.parameters().iter().fold(schema, |schema, parameter| {
        let text = match parameter {
            ActionParameter::By => SchemaType::Type(Type::String),
            _ => SchemaType::from_iter([Type::String, Type::Null]),
        };
        let kind = if parameter.is_flag() { SchemaType::Type(Type::Boolean) } else { text };
        let value = ObjectBuilder::new().schema_type(kind).description(Some(parameter.meaning()));
        schema.property(parameter.key(), value)
    });
    schema.into()
}

/// The longest name of an attesting operator.
const MAX_BY_CHARS: usize = 100;

/// Checks the name of an attesting operator.
///
/// # Errors
/// `SYS.1007` if it is empty, too long, or more than one line.
fn attester(by: String) -> Result<String> {
    match by.chars().count() > MAX_BY_CHARS || by.trim().is_empty() || by.chars().any(char::is_control) {
        false => Ok(by),
        true => {
            let why = format!("`by` is not one line of 1 to {MAX_BY_CHARS} characters");
            Err(ErrorCode::new(Code::INVALID_ARGUMENT, why))
        }
    }
}

/// The answer to an action. [`VmAnswer`] and [`HostAnswer`] describe it.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub(crate) enum ActionAnswer {
    Vm(VmInventory),
    Host(HostInventory),
    Hook(HookTest),
    HaStartPlan(HaStartPlan),
    DrainPlan(DrainPlan),
}

/// Carries out an action of this sender on the object of this name or uuid: for the API and for the page.
///
/// # Errors
/// `SYS.1018` if the sender's role is below the action's, and every error of the action.
pub(crate) async fn carry_out(
    backend: &dyn Backend,
    bearer: &Bearer,
    action: Action,
    name: &str,
    parameters: ActionParameters,
) -> Result<ActionAnswer> {
    bearer.require(action.facts().role)?;
    if parameters.dry_run
        && let Some(plan) = plan(backend, action, name, &parameters).await?
    {
        return Ok(plan);
    }
    let host = parameters.host.as_deref().map(|host| backend.host_id(host)).transpose()?;
    let on_host = async |action| backend.host_action(backend.host_id(name)?, action).await.map(ActionAnswer::Host);
    match action {
        Action::StartVm => backend.start_vm(backend.vm_id(name)?, host).await.map(ActionAnswer::Vm),
        Action::HaStartVm => backend.ha_start_vm(backend.vm_id(name)?, host).await.map(ActionAnswer::Vm),
        Action::StopVm => backend.stop_vm(backend.vm_id(name)?).await.map(ActionAnswer::Vm),
        Action::Maintain => on_host(HostAction::Maintain).await,
        Action::Drain => on_host(HostAction::Drain).await,
        Action::Activate => on_host(HostAction::Activate).await,
        Action::Ping => on_host(HostAction::Ping).await,
        Action::ConfirmFenced => {
            let by = attester(parameters.by.unwrap_or_else(|| "an operator".to_owned()))?;
            backend.confirm_fenced(backend.host_id(name)?, by).await.map(ActionAnswer::Host)
        }
        Action::TestHook => backend.test_hook(name).await.map(ActionAnswer::Hook),
    }
}

/// The plan of an action, without changes; `None` for an action without a plan.
///
/// # Errors
/// Every error of the plan.
pub(crate) async fn plan(
    backend: &dyn Backend,
    action: Action,
    name: &str,
    parameters: &ActionParameters,
) -> Result<Option<ActionAnswer>> {
    let host = parameters.host.as_deref().map(|host| backend.host_id(host)).transpose()?;
    Ok(match action {
        Action::HaStartVm => Some(ActionAnswer::HaStartPlan(backend.plan_ha_start(backend.vm_id(name)?, host).await?)),
        Action::Drain => Some(ActionAnswer::DrainPlan(backend.plan_drain(backend.host_id(name)?).await?)),
        _ => None,
    })
}

/// Reads the body of an action on a kind of object.
async fn order(object: ActionObject, body: Body) -> Answer<(Action, ActionParameters)> {
    let bad = |why: String| {
        let why = format!("the body is not a valid action: {why}");
        Failure::with(StatusCode::BAD_REQUEST, Code::INVALID_ARGUMENT, why)
    };
    let mut order: serde_json::Map<String, Value> = read(body).await?;
    let (Some(key), 1) = (order.keys().next().cloned(), order.len()) else {
        return Err(bad(format!("{} actions; send one", order.len())));
    };
    let Some(facts) = Action::on(object).find(|facts| facts.key() == key) else {
        let known: Vec<_> = Action::on(object).map(ActionFacts::key).collect();
        return Err(bad(format!("unknown action `{key:.40}`; use one of: {}", known.join(", "))));
    };
    let values = order.remove(&key).unwrap_or_default();
    let mut given = values.as_object().into_iter().flat_map(|values| values.keys());
    let takes = |key: &str| facts.body.parameters().iter().any(|parameter| parameter.key() == key);
    if let Some(unknown) = given.find(|key| !takes(key)) {
        let known: Vec<_> = facts.body.parameters().iter().map(|parameter| parameter.key()).collect();
        let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
        return Err(bad(format!("unknown parameter `{unknown:.40}` of `{key}`; it takes: {known}")));
    }
    let parameters = serde_json::from_value(values).map_err(|e| bad(e.to_string()))?;
    Ok((facts.action, parameters))
}

/// Start, stop or fail over a VM
///
/// `haStart` with `dryRun` returns a plan.
#[utoipa::path(post, path = "/v1/vms/{id}/actions", tag = "actions", request_body = VmOrder,
    params(("id" = String, Path, description = "Name or uuid"), Conditions),
    responses((status = 200, body = VmAnswer), (status = "default", body = Problem)))]
pub(super) async fn vm(
    State(backend): App,
    Path(id): Path<String>,
    Extension(bearer): Extension<Bearer>,
    headers: HeaderMap,
    body: Body,
) -> Answer<Json<ActionAnswer>> {
    let vm = backend.vm_id(&id)?;
    let (action, parameters) = order(ActionObject::Vm, body).await?;
    matches(&headers, backend.vm(vm)).await?;
    Ok(Json(carry_out(&*backend, &bearer, action, &id, parameters).await?))
}

/// Start or end maintenance of a host, drain it, ping it, or attest that it is off
///
/// `drain` returns once the drain is durable and has started; with `dryRun` it returns a plan.
#[utoipa::path(post, path = "/v1/hosts/{id}/actions", tag = "actions", request_body = HostOrder,
    params(("id" = String, Path, description = "Name or uuid"), Conditions),
    responses((status = 200, body = HostAnswer), (status = "default", body = Problem)))]
pub(super) async fn host(
    State(backend): App,
    Path(id): Path<String>,
    Extension(bearer): Extension<Bearer>,
    headers: HeaderMap,
    body: Body,
) -> Answer<Json<ActionAnswer>> {
    let host = backend.host_id(&id)?;
    let (action, parameters) = order(ActionObject::Host, body).await?;
    matches(&headers, backend.host(host)).await?;
    Ok(Json(carry_out(&*backend, &bearer, action, &id, parameters).await?))
}

/// Send a test event through a hook
///
/// The test event does not wait for earlier events. A rejection by the receiver is not an error of this request: see
/// `delivered`.
#[utoipa::path(post, path = "/v1/hooks/{id}/actions", tag = "actions", request_body = HookOrder,
    params(("id" = String, Path, description = "Name"), Key),
    responses((status = 200, body = HookTest), (status = "default", body = Problem)))]
pub(super) async fn hook(
    State(backend): App,
    Path(id): Path<String>,
    Extension(bearer): Extension<Bearer>,
    body: Body,
) -> Answer<Json<ActionAnswer>> {
    let (action, parameters) = order(ActionObject::Hook, body).await?;
    Ok(Json(carry_out(&*backend, &bearer, action, &id, parameters).await?))
}

/// Idempotency key of a request.
#[derive(IntoParams)]
#[into_params(parameter_in = Header)]
#[allow(dead_code)]
struct Key {
    /// Idempotency key: a retry is not carried out again and gets the first answer
    #[param(rename = "idempotency-key", max_length = 100)]
    idempotency_key: Option<String>,
}

/// Preconditions of a request.
#[derive(IntoParams)]
#[into_params(parameter_in = Header)]
#[allow(dead_code)]
pub(super) struct Conditions {
    /// Required `ETag` of the object
    #[param(rename = "if-match")]
    if_match: Option<String>,
    /// Idempotency key: a retry is not carried out again and gets the first answer
    #[param(rename = "idempotency-key", max_length = 100)]
    idempotency_key: Option<String>,
}

/// Answer to an action on a VM.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
#[allow(dead_code)]
pub(super) enum VmAnswer {
    /// The VM.
    Vm(VmInventory),
    /// The plan of a dry run.
    Plan(HaStartPlan),
}

/// Answer to an action on a host.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
#[allow(dead_code)]
pub(super) enum HostAnswer {
    /// The host.
    Host(HostInventory),
    /// The plan of a dry run.
    Plan(DrainPlan),
}

/// Reads an action: an object of objects.
pub(super) async fn read<T: DeserializeOwned>(body: Body) -> Answer<T> {
    let bad = |status, why: String| Failure::with(status, Code::INVALID_ARGUMENT, why);
    let bytes = read_body(body, MAX_BODY_BYTES).await.map_err(|why| bad(why.status(), why.to_string()))?;
    let bad = |why: String| bad(StatusCode::BAD_REQUEST, format!("the body is not a valid action: {why}"));
    let order: Value = serde_json::from_slice(&bytes).map_err(|e| bad(e.to_string()))?;
    // serde takes an array for a struct; the API does not.
    if !order.as_object().is_some_and(|order| order.values().all(Value::is_object)) {
        return Err(bad("send an object such as {\"start\": {}}".to_owned()));
    }
    serde_json::from_value(order).map_err(|e| bad(e.to_string()))
}
