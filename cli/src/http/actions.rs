//! Orders: start and stop VMs, take hosts out of service and back.

use axum::{
    Json,
    body::Body,
    extract::{Path, State},
    http::StatusCode,
    response::{IntoResponse, Response},
};
use ringfence_messages::{Code, host::HostAction};
use serde::{Deserialize, de::DeserializeOwned};

use super::{Answer, App, errors::Failure};
use crate::listen::read_body;

/// The largest body of an order, 64 KiB. They are a few dozen bytes.
const MAX_BODY_BYTES: usize = 64 << 10;

/// `{}`: an order without particulars. Keys in it are mistakes.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Empty {}

/// What may be ordered of a VM.
#[derive(Debug, Deserialize)]
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
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct StartOrder {
    /// Name or uuid of a host; one is chosen where it is absent.
    host: Option<String>,
}

/// How a VM is to be brought back.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct HaStartOrder {
    /// Name or uuid of a host; one is chosen where it is absent.
    host: Option<String>,
    /// Say what would be done, and do nothing.
    #[serde(default)]
    dry_run: bool,
}

/// What a human attests.
#[derive(Debug, Deserialize)]
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

/// What may be ordered of a host.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum HostOrder {
    /// Take it out of service.
    Maintain(Empty),
    /// Put it back.
    Activate(Empty),
    /// Ping it now.
    Ping(Empty),
    /// Attest that it is off.
    ConfirmFenced(Confirmation),
}

pub(super) async fn vm(State(backend): App, Path(id): Path<String>, body: Body) -> Answer<Response> {
    let vm = backend.vm_id(&id)?;
    let done = match read::<VmOrder>(body).await? {
        VmOrder::Start(order) => {
            let host = order.host.as_deref().map(|host| backend.host_id(host)).transpose()?;
            backend.start_vm(vm, host).await?
        }
        VmOrder::Stop(_) => backend.stop_vm(vm).await?,
        VmOrder::HaStart(order) => {
            let host = order.host.as_deref().map(|host| backend.host_id(host)).transpose()?;
            if order.dry_run {
                return Ok(Json(backend.plan_ha_start(vm, host).await?).into_response());
            }
            backend.ha_start_vm(vm, host).await?
        }
    };
    Ok(Json(done).into_response())
}

pub(super) async fn host(State(backend): App, Path(id): Path<String>, body: Body) -> Answer<Response> {
    let host = backend.host_id(&id)?;
    let action = match read::<HostOrder>(body).await? {
        HostOrder::Maintain(_) => HostAction::Maintain,
        HostOrder::Activate(_) => HostAction::Activate,
        HostOrder::Ping(_) => HostAction::Ping,
        HostOrder::ConfirmFenced(Confirmation { by }) => {
            if by.chars().count() > MAX_BY_CHARS || by.trim().is_empty() || by.chars().any(char::is_control) {
                let why = format!("\"by\" takes 1 to {MAX_BY_CHARS} characters in one line");
                return Err(Failure::with(StatusCode::BAD_REQUEST, Code::INVALID_ARGUMENT, why));
            }
            return Ok(Json(backend.confirm_fenced(host, by).await?).into_response());
        }
    };
    Ok(Json(backend.host_action(host, action).await?).into_response())
}

async fn read<T: DeserializeOwned>(body: Body) -> Answer<T> {
    let bad = |status, why: String| Failure::with(status, Code::INVALID_ARGUMENT, why);
    let bytes = read_body(body, MAX_BODY_BYTES).await.map_err(|why| bad(why.status(), why.to_string()))?;
    serde_json::from_slice(&bytes).map_err(|e| bad(StatusCode::BAD_REQUEST, format!("the body is not an order: {e}")))
}
