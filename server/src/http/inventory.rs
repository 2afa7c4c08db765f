//! The inventory of the config file and the API: show, change, reload.

use axum::{
    Extension, Json,
    body::Body,
    extract::{Query, State, rejection::QueryRejection},
    http::{HeaderMap, StatusCode},
    response::Response,
};
use ringfence_messages::Code;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::{IntoParams, ToSchema};

use crate::{
    auth::Role,
    config::managed::Edit,
    inventory::{Order, Outcome},
};

use super::{
    Answer, App,
    actions::{Conditions, read},
    auth::{Bearer, CHANGE, RELOAD},
    errors::{Failure, Problem},
    etag::{matches, tagged},
};

/// Mode of a change.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub(super) struct How {
    /// Return the changes without applying them.
    dry_run: bool,
}

/// One table of the inventory.
#[derive(Debug, Serialize, ToSchema)]
#[allow(dead_code)]
struct Shown {
    /// Whether the API may change the item; otherwise the config file defines it.
    managed: bool,
    /// The table of the config file, with JSON keys.
    definition: Map<String, Value>,
}

/// The current inventory.
#[derive(Debug, Serialize, ToSchema)]
#[allow(dead_code)]
struct Everything {
    clusters: Vec<Shown>,
    hosts: Vec<Shown>,
    storages: Vec<Shown>,
    vms: Vec<Shown>,
}

/// The inventory as defined
#[utoipa::path(get, path = "/v1/inventory", tag = "inventory",
    responses((status = 200, body = Everything), (status = "default", body = Problem)))]
pub(super) async fn show(State(backend): App, headers: HeaderMap) -> Answer<Response> {
    let shown = backend.inventory(Order::Show, String::new(), false).await?;
    Ok(tagged(&shown, &headers))
}

/// Add, replace and remove clusters, hosts, storages and VMs, all or nothing
///
/// An item that may still write to a disk cannot be removed: VMs must be stopped, hosts must be in maintenance and
/// answer, or be attested to be off. Items of the config file are changed there.
#[utoipa::path(post, path = "/v1/inventory/changes", tag = "inventory", request_body = Edit, params(How, Conditions),
    responses((status = 200, body = Outcome), (status = "default", body = Problem)))]
pub(super) async fn change(
    State(backend): App,
    Extension(bearer): Extension<Bearer>,
    query: Result<Query<How>, QueryRejection>,
    headers: HeaderMap,
    body: Body,
) -> Answer<Json<Value>> {
    let How { dry_run } = how(query)?;
    let edit = read::<Edit>(body).await?;
    bearer.require(if dry_run { Role::Operator } else { CHANGE.role })?;
    matches(&headers, backend.inventory(Order::Show, String::new(), false)).await?;
    Ok(Json(backend.inventory(Order::Edit(edit), bearer.name, dry_run).await?))
}

/// Reload the config file
///
/// Changes of clusters, hosts, storages and VMs apply at once, changes of other tables after a restart.
#[utoipa::path(post, path = "/v1/inventory/reload", tag = "inventory", params(How),
    responses((status = 200, body = Outcome), (status = "default", body = Problem)))]
pub(super) async fn reload(
    State(backend): App,
    Extension(bearer): Extension<Bearer>,
    query: Result<Query<How>, QueryRejection>,
) -> Answer<Json<Value>> {
    let How { dry_run } = how(query)?;
    bearer.require(if dry_run { Role::Operator } else { RELOAD.role })?;
    Ok(Json(backend.inventory(Order::Reload, bearer.name, dry_run).await?))
}

fn how(query: Result<Query<How>, QueryRejection>) -> Answer<How> {
    let bad = |why: QueryRejection| {
        let why = format!("`dryRun` must be true or false: {}", why.body_text());
        Failure::with(StatusCode::BAD_REQUEST, Code::INVALID_ARGUMENT, why)
    };
    query.map(|Query(how)| how).map_err(bad)
}
