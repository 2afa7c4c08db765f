//! Orders: start and stop VMs, take hosts out of service and back.

use axum::{
    Extension, Json,
    body::Body,
    extract::{Path, State},
    http::{HeaderMap, StatusCode},
};
use ringfence_messages::{
    Code, ErrorCode, Result,
    ha::{DrainPlan, HaStartPlan},
    host::{HostAction, HostInventory},
    vm::VmInventory,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;
use utoipa::{IntoParams, ToSchema};

use super::{
    Answer, App,
    auth::{Bearer, CONFIRM_FENCED},
    errors::{Failure, Problem},
    etag::matches,
};
use crate::{listen::read_body, notify::HookTest};

/// The largest body of an order, 64 KiB. They are a few dozen bytes.
pub(super) const MAX_BODY_BYTES: usize = 64 << 10;

/// `{}`: an order without particulars. Keys in it are mistakes.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Empty {}

/// What may be ordered of a VM.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) enum VmOrder {
    /// Start it.
    Start(StartOrder),
    /// Stop it.
    Stop(Empty),
    /// Bring it back: fence it where it ran last, then start it.
    HaStart(HaStartOrder),
}

/// How a VM is to be started.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct StartOrder {
    /// Name or uuid of a host; one is chosen where it is absent.
    host: Option<String>,
}

/// How a VM is to be brought back.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct HaStartOrder {
    /// Name or uuid of a host; one is chosen where it is absent.
    host: Option<String>,
    /// Say what would be done, and do nothing.
    #[serde(default)]
    dry_run: bool,
}

/// How a host is to be emptied.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct DrainOrder {
    /// Say what would be done, and do nothing.
    #[serde(default)]
    dry_run: bool,
}

/// What a human attests.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Confirmation {
    /// Who.
    #[serde(default = "someone")]
    by: String,
}

fn someone() -> String {
    "an operator".to_owned()
}

/// The longest name of who attests.
const MAX_BY_CHARS: usize = 100;

/// Checks the name of who attests.
///
/// # Errors
/// `SYS.1007` if it is empty, too long, or more than a line.
pub(crate) fn attester(by: String) -> Result<String> {
    match by.chars().count() > MAX_BY_CHARS || by.trim().is_empty() || by.chars().any(char::is_control) {
        false => Ok(by),
        true => {
            let why = format!("\"by\" takes 1 to {MAX_BY_CHARS} characters in one line");
            Err(ErrorCode::new(Code::INVALID_ARGUMENT, why))
        }
    }
}

/// What may be ordered of a host.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) enum HostOrder {
    /// Take it out of service.
    Maintain(Empty),
    /// Take it out of service, and move its VMs to other hosts, a few at a time.
    Drain(DrainOrder),
    /// Put it back. A drain that is under way ends.
    Activate(Empty),
    /// Ping it now.
    Ping(Empty),
    /// Attest that it is off.
    ConfirmFenced(Confirmation),
}

/// What may be ordered of a hook.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) enum HookOrder {
    /// Send a signed message that tells of nothing, and say what came back.
    Test(Empty),
}

/// Start or stop a VM, or bring it back
///
/// `haStart` with `dryRun` answers with a plan.
#[utoipa::path(post, path = "/v1/vms/{id}/actions", tag = "actions", request_body = VmOrder,
    params(("id" = String, Path, description = "Name or uuid"), Conditions),
    responses((status = 200, body = VmAnswer), (status = "default", body = Problem)))]
pub(super) async fn vm(
    State(backend): App,
    Path(id): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Answer<Json<VmAnswer>> {
    let vm = backend.vm_id(&id)?;
    let order = read::<VmOrder>(body).await?;
    matches(&headers, backend.vm(vm)).await?;
    let done = match order {
        VmOrder::Start(order) => {
            let host = order.host.as_deref().map(|host| backend.host_id(host)).transpose()?;
            backend.start_vm(vm, host).await?
        }
        VmOrder::Stop(_) => backend.stop_vm(vm).await?,
        VmOrder::HaStart(order) => {
            let host = order.host.as_deref().map(|host| backend.host_id(host)).transpose()?;
            if order.dry_run {
                return Ok(Json(VmAnswer::Plan(backend.plan_ha_start(vm, host).await?)));
            }
            backend.ha_start_vm(vm, host).await?
        }
    };
    Ok(Json(VmAnswer::Vm(done)))
}

/// Take a host out of service or back, move its VMs away, ping it, or attest that it is off
///
/// `drain` is answered when it is durable and has begun, `drain` with `dryRun` with a plan.
#[utoipa::path(post, path = "/v1/hosts/{id}/actions", tag = "actions", request_body = HostOrder,
    params(("id" = String, Path, description = "Name or uuid"), Conditions),
    responses((status = 200, body = HostAnswer), (status = "default", body = Problem)))]
pub(super) async fn host(
    State(backend): App,
    Path(id): Path<String>,
    Extension(bearer): Extension<Bearer>,
    headers: HeaderMap,
    body: Body,
) -> Answer<Json<HostAnswer>> {
    let host = backend.host_id(&id)?;
    let order = read::<HostOrder>(body).await?;
    matches(&headers, backend.host(host)).await?;
    let action = match order {
        HostOrder::Maintain(_) => HostAction::Maintain,
        HostOrder::Drain(DrainOrder { dry_run: true }) => {
            return Ok(Json(HostAnswer::Plan(backend.plan_drain(host).await?)));
        }
        HostOrder::Drain(_) => HostAction::Drain,
        HostOrder::Activate(_) => HostAction::Activate,
        HostOrder::Ping(_) => HostAction::Ping,
        HostOrder::ConfirmFenced(Confirmation { by }) => {
            bearer.require(CONFIRM_FENCED.role)?;
            return Ok(Json(HostAnswer::Host(backend.confirm_fenced(host, attester(by)?).await?)));
        }
    };
    Ok(Json(HostAnswer::Host(backend.host_action(host, action).await?)))
}

/// Send a test message by a hook, past what waits
///
/// Its receiver's refusal is no error of this request: see `delivered`.
#[utoipa::path(post, path = "/v1/hooks/{id}/actions", tag = "actions", request_body = HookOrder,
    params(("id" = String, Path, description = "Name"), Key),
    responses((status = 200, body = HookTest), (status = "default", body = Problem)))]
pub(super) async fn hook(State(backend): App, Path(id): Path<String>, body: Body) -> Answer<Json<HookTest>> {
    let HookOrder::Test(_) = read::<HookOrder>(body).await?;
    Ok(Json(backend.test_hook(&id).await?))
}

/// What names an order.
#[derive(IntoParams)]
#[into_params(parameter_in = Header)]
#[allow(dead_code)]
struct Key {
    /// Names this order: sent again it is not carried out again, but answered as it was the first time
    #[param(rename = "idempotency-key", max_length = 100)]
    idempotency_key: Option<String>,
}

/// What an order may be tied to.
#[derive(IntoParams)]
#[into_params(parameter_in = Header)]
#[allow(dead_code)]
pub(super) struct Conditions {
    /// Only if the thing is still as this `ETag` says
    #[param(rename = "if-match")]
    if_match: Option<String>,
    /// Names this order: sent again it is not carried out again, but answered as it was the first time
    #[param(rename = "idempotency-key", max_length = 100)]
    idempotency_key: Option<String>,
}

/// What comes of an order about a VM.
#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
pub(super) enum VmAnswer {
    /// The VM as it is now.
    Vm(VmInventory),
    /// What would be done.
    Plan(HaStartPlan),
}

/// What comes of an order about a host.
#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
pub(super) enum HostAnswer {
    /// The host as it is now.
    Host(HostInventory),
    /// What would be done.
    Plan(DrainPlan),
}

/// Reads an order: an object of objects.
pub(super) async fn read<T: DeserializeOwned>(body: Body) -> Answer<T> {
    let bad = |status, why: String| Failure::with(status, Code::INVALID_ARGUMENT, why);
    let bytes = read_body(body, MAX_BODY_BYTES).await.map_err(|why| bad(why.status(), why.to_string()))?;
    let bad = |why: String| bad(StatusCode::BAD_REQUEST, format!("the body is not an order: {why}"));
    let order: Value = serde_json::from_slice(&bytes).map_err(|e| bad(e.to_string()))?;
    // serde takes an array for a struct; the API does not.
    if !order.as_object().is_some_and(|order| order.values().all(Value::is_object)) {
        return Err(bad("it is an object such as {\"start\": {}}".to_owned()));
    }
    serde_json::from_value(order).map_err(|e| bad(e.to_string()))
}
