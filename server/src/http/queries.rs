//! Queries: the inventory with its state.

use axum::{
    Extension, Json,
    extract::{Path, Query, State, rejection::QueryRejection},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use ringfence_messages::{
    Code,
    action::{Action, ActionFacts, ActionObject, ActionParameter},
    host::HostInventory,
    storage::{HostProtocolRef, StorageInventory},
    vm::VmInventory,
};
use serde::{Deserialize, Serialize};
use serde_json::json;
use utoipa::{IntoParams, ToSchema};

use crate::notify::HookInventory;

use super::{
    Answer, App, Overview,
    errors::{Failure, Problem},
    etag::tagged,
};

/// A page of a list.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Page {
    /// Number of items to skip.
    #[serde(default)]
    #[param(default = 0)]
    offset: usize,
    /// Largest number of items; all if omitted.
    #[param(minimum = 1)]
    limit: Option<usize>,
}

/// A list, or a page of a list, in the order of the inventory.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct List<T> {
    /// The items.
    items: Vec<T>,
    /// Number of items in the whole list.
    total: usize,
}

/// Lines of plain text.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Lines {
    /// One sentence each.
    items: Vec<String>,
}

fn paginate<T: Serialize>(all: Vec<T>, query: Result<Query<Page>, QueryRejection>, headers: &HeaderMap) -> Answer {
    let bad = |why: String| Failure::with(StatusCode::BAD_REQUEST, Code::INVALID_ARGUMENT, why);
    let Query(page) =
        query.map_err(|e| bad(format!("`offset` and `limit` must be whole numbers: {}", e.body_text())))?;
    if page.limit == Some(0) {
        return Err(bad("`limit` = 0 is out of range (at least 1)".to_owned()));
    }
    let total = all.len();
    let items = all.into_iter().skip(page.offset).take(page.limit.unwrap_or(usize::MAX)).collect();
    Ok(tagged(&List { items, total }, headers))
}

/// Overview of the API in plain text; with `Accept: text/html` the web page
#[utoipa::path(get, path = "/", tag = "controller",
    responses((status = 200, body = String, content_type = "text/plain")))]
pub(super) async fn index(
    State(backend): App,
    Extension(overview): Extension<Overview>,
    headers: HeaderMap,
) -> Response {
    let accepts = headers.get(header::ACCEPT).map(|accepts| String::from_utf8_lossy(accepts.as_bytes()));
    // The page's script accepts any type, and sends its own header.
    match accepts.is_some_and(|accepts| accepts.contains("text/html")) || headers.contains_key("hx-request") {
        true => overview(backend).await,
        false => INDEX.replace("ACTIONS", &actions()).into_response(),
    }
}

/// One line for each kind of object, with a body of each of its actions.
fn actions() -> String {
    let parameter = |of: &ActionParameter| match of.is_flag() {
        true => format!("\"{}\":BOOL", of.key()),
        false => format!("\"{}\":\"NAME\"", of.key()),
    };
    let action = |facts: &ActionFacts| {
        let parameters: Vec<String> = facts.body.parameters().iter().map(parameter).collect();
        format!("  {{\"{}\":{{{}}}}}", facts.key(), parameters.join(","))
    };
    let line = |object: ActionObject| {
        let actions: String = Action::on(object).map(action).collect();
        format!("POST /v1/{}/NAME/actions{actions}\n", object.path())
    };
    ActionObject::ALL.map(line).concat()
}

const INDEX: &str = "Ringfence controller\n\
     \n\
     GET  /v1/hosts  /v1/storages  /v1/vms  /v1/host-protocol-refs\n\
     GET  /v1/events?after=SEQ&limit=N   /v1/events/stream\n\
     ACTIONS\
     GET  /v1/inventory    POST /v1/inventory/changes  /v1/inventory/reload  (?dryRun=true)\n\
     GET  /v1/hooks  /v1/explain/NAME  /v1/inspect  /metrics  /healthz  /openapi.json\n\
     A browser gets the web page at /\n";

/// Health: whether the journal and the actors answer
#[utoipa::path(get, path = "/healthz", tag = "controller",
    responses((status = 200, body = Value), (status = "default", body = Problem)))]
pub(super) async fn healthz(State(backend): App) -> Answer {
    backend.healthy().await?;
    Ok(Json(json!({ "status": "ok" })).into_response())
}

/// Metrics in Prometheus' text format
#[utoipa::path(get, path = "/metrics", tag = "controller",
    responses((status = 200, body = String, content_type = "text/plain; version=0.0.4; charset=utf-8")))]
pub(super) async fn metrics(State(backend): App) -> Response {
    let text = [(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")];
    (text, backend.metrics().await).into_response()
}

/// The hosts
#[utoipa::path(get, path = "/v1/hosts", tag = "inventory", params(Page),
    responses((status = 200, body = List<HostInventory>), (status = "default", body = Problem)))]
pub(super) async fn hosts(
    State(backend): App,
    query: Result<Query<Page>, QueryRejection>,
    headers: HeaderMap,
) -> Answer {
    paginate(backend.hosts().await?, query, &headers)
}

/// One host
#[utoipa::path(get, path = "/v1/hosts/{id}", tag = "inventory",
    params(("id" = String, Path, description = "Name or uuid")),
    responses((status = 200, body = HostInventory), (status = "default", body = Problem)))]
pub(super) async fn host(State(backend): App, Path(id): Path<String>, headers: HeaderMap) -> Answer {
    Ok(tagged(&backend.host(backend.host_id(&id)?).await?, &headers))
}

/// The storages with the connection of each host
#[utoipa::path(get, path = "/v1/storages", tag = "inventory", params(Page),
    responses((status = 200, body = List<StorageInventory>), (status = "default", body = Problem)))]
pub(super) async fn storages(
    State(backend): App,
    query: Result<Query<Page>, QueryRejection>,
    headers: HeaderMap,
) -> Answer {
    paginate(backend.storages().await?, query, &headers)
}

/// The VMs
#[utoipa::path(get, path = "/v1/vms", tag = "inventory", params(Page),
    responses((status = 200, body = List<VmInventory>), (status = "default", body = Problem)))]
pub(super) async fn vms(State(backend): App, query: Result<Query<Page>, QueryRejection>, headers: HeaderMap) -> Answer {
    paginate(backend.vms().await?, query, &headers)
}

/// One VM
#[utoipa::path(get, path = "/v1/vms/{id}", tag = "inventory",
    params(("id" = String, Path, description = "Name or uuid")),
    responses((status = 200, body = VmInventory), (status = "default", body = Problem)))]
pub(super) async fn vm(State(backend): App, Path(id): Path<String>, headers: HeaderMap) -> Answer {
    Ok(tagged(&backend.vm(backend.vm_id(&id)?).await?, &headers))
}

/// Each protocol of each storage on each host
#[utoipa::path(get, path = "/v1/host-protocol-refs", tag = "inventory", params(Page),
    responses((status = 200, body = List<HostProtocolRef>), (status = "default", body = Problem)))]
pub(super) async fn refs(
    State(backend): App,
    query: Result<Query<Page>, QueryRejection>,
    headers: HeaderMap,
) -> Answer {
    paginate(backend.refs().await?, query, &headers)
}

/// Explain the state of a VM or host, and how to change it
#[utoipa::path(get, path = "/v1/explain/{id}", tag = "inventory",
    params(("id" = String, Path, description = "Name or uuid")),
    responses((status = 200, body = Lines), (status = "default", body = Problem)))]
pub(super) async fn explain(State(backend): App, Path(id): Path<String>) -> Answer<Json<Lines>> {
    Ok(Json(Lines { items: backend.explain(&id).await? }))
}

/// The hooks with their delivery position and last error
#[utoipa::path(get, path = "/v1/hooks", tag = "events", params(Page),
    responses((status = 200, body = List<HookInventory>), (status = "default", body = Problem)))]
pub(super) async fn hooks(
    State(backend): App,
    query: Result<Query<Page>, QueryRejection>,
    headers: HeaderMap,
) -> Answer {
    paginate(backend.hooks().await?, query, &headers)
}

/// The state of all actors
#[utoipa::path(get, path = "/v1/inspect", tag = "controller", responses((status = 200, body = Value)))]
pub(super) async fn inspect(State(backend): App) -> Response {
    Json(backend.inspect().await).into_response()
}
