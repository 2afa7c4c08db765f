//! Actions on VMs, hosts and hooks.

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
use ringfence_service::listen::read_body;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;
use utoipa::{IntoParams, ToSchema};

use super::{
    Answer, App,
    auth::{Bearer, CONFIRM_FENCED},
    errors::{Failure, Problem},
    etag::matches,
};
use crate::notify::HookTest;

/// The largest body of an action, 64 KiB. Too low: a large inventory change is rejected. Too high: memory for hostile
/// clients.
pub(super) const MAX_BODY_BYTES: usize = 64 << 10;

/// `{}`: an action without parameters. Keys are errors.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Empty {}

/// Action on a VM.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) enum VmOrder {
    /// Start the VM.
    Start(StartOrder),
    /// Stop the VM.
    Stop(Empty),
    /// Fail over the VM: fence it on its last host, then start it.
    HaStart(HaStartOrder),
}

/// Parameters of a start.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct StartOrder {
    /// Name or uuid of the target host; chosen automatically if omitted.
    host: Option<String>,
}

/// Parameters of a failover.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct HaStartOrder {
    /// Name or uuid of the target host; chosen automatically if omitted.
    host: Option<String>,
    /// Return the plan without carrying it out.
    #[serde(default)]
    dry_run: bool,
}

/// Parameters of a drain.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct DrainOrder {
    /// Return the plan without carrying it out.
    #[serde(default)]
    dry_run: bool,
}

/// An operator's attestation.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Confirmation {
    /// Name of the operator.
    #[serde(default = "someone")]
    by: String,
}

fn someone() -> String {
    "an operator".to_owned()
}

/// The longest name of an attesting operator.
const MAX_BY_CHARS: usize = 100;

/// Checks the name of an attesting operator.
///
/// # Errors
/// `SYS.1007` if it is empty, too long, or more than one line.
pub(crate) fn attester(by: String) -> Result<String> {
    match by.chars().count() > MAX_BY_CHARS || by.trim().is_empty() || by.chars().any(char::is_control) {
        false => Ok(by),
        true => {
            let why = format!("`by` is not one line of 1 to {MAX_BY_CHARS} characters");
            Err(ErrorCode::new(Code::INVALID_ARGUMENT, why))
        }
    }
}

/// Action on a host.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) enum HostOrder {
    /// Put the host into maintenance.
    Maintain(Empty),
    /// Put the host into maintenance and move its VMs to other hosts, two at a time.
    Drain(DrainOrder),
    /// Return the host to service. Ends a drain.
    Activate(Empty),
    /// Ping the host now.
    Ping(Empty),
    /// Attest that the host is off.
    ConfirmFenced(Confirmation),
}

/// Action on a hook.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) enum HookOrder {
    /// Send a signed test event and return the response.
    Test(Empty),
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

/// Send a test event through a hook
///
/// The test event does not wait for earlier events. A rejection by the receiver is not an error of this request: see
/// `delivered`.
#[utoipa::path(post, path = "/v1/hooks/{id}/actions", tag = "actions", request_body = HookOrder,
    params(("id" = String, Path, description = "Name"), Key),
    responses((status = 200, body = HookTest), (status = "default", body = Problem)))]
pub(super) async fn hook(State(backend): App, Path(id): Path<String>, body: Body) -> Answer<Json<HookTest>> {
    let HookOrder::Test(_) = read::<HookOrder>(body).await?;
    Ok(Json(backend.test_hook(&id).await?))
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
#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
pub(super) enum VmAnswer {
    /// The VM.
    Vm(VmInventory),
    /// The plan of a dry run.
    Plan(HaStartPlan),
}

/// Answer to an action on a host.
#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
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
