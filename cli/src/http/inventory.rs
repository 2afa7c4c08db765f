//! The inventory, as the config and the API made it: shown, changed, read again.

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

/// Whether anything is done.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub(super) struct How {
    /// Say what would be another, and change nothing.
    dry_run: bool,
}

/// One table of the inventory.
#[derive(Debug, Serialize, ToSchema)]
#[allow(dead_code)]
struct Shown {
    /// Whether the API may change it; else it stands in the config file.
    managed: bool,
    /// The table, as the config has it, with the keys of JSON.
    definition: Map<String, Value>,
}

/// The inventory that is in force.
#[derive(Debug, Serialize, ToSchema)]
#[allow(dead_code)]
struct Everything {
    clusters: Vec<Shown>,
    hosts: Vec<Shown>,
    storages: Vec<Shown>,
    vms: Vec<Shown>,
}

/// What is looked after, as it was defined
#[utoipa::path(get, path = "/v1/inventory", tag = "inventory",
    responses((status = 200, body = Everything), (status = "default", body = Problem)))]
pub(super) async fn show(State(backend): App, headers: HeaderMap) -> Answer<Response> {
    let shown = backend.inventory(Order::Show, String::new(), false).await?;
    Ok(tagged(&shown, &headers))
}

/// Add, replace and take out clusters, hosts, storages and VMs: all of it or nothing
///
/// What may write to a disk does not leave: VMs have to be stopped, hosts in maintenance and asked, or attested to be off. What
/// stands in the config file is changed there.
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

/// Read the config file again
///
/// Clusters, hosts, storages and VMs count at once, other tables from the next start on.
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
        let why = format!("dryRun is true or false: {}", why.body_text());
        Failure::with(StatusCode::BAD_REQUEST, Code::INVALID_ARGUMENT, why)
    };
    query.map(|Query(how)| how).map_err(bad)
}
