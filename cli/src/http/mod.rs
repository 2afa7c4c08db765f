//! The controller's HTTP API.
//!
//! ```text
//! GET  /v1/hosts /v1/storages /v1/vms /v1/host-protocol-refs          {"items": [...]}
//! GET  /v1/hosts/{name or uuid} /v1/vms/{name or uuid}
//! GET  /v1/events?after=SEQ&limit=N                                   {"items": [...]}
//! GET  /v1/events/stream?after=SEQ                                    SSE; Last-Event-ID resumes
//! GET  /v1/explain/{name or uuid of a VM or host}                     {"items": ["...", ...]}
//! POST /v1/vms/{name or uuid}/actions    {"start": {"host": "..."}} | {"stop": {}} | {"haStart": {"host": "...", "dryRun": true}}
//! POST /v1/hosts/{name or uuid}/actions  {"maintain": {}} | {"activate": {}} | {"ping": {}} | {"confirmFenced": {"by": "..."}}
//! GET  /v1/inspect /metrics /healthz /
//! ```
//! Invariants: every error is `{"error": ErrorCode}` with a fitting status; bodies are bounded in size and time; a
//! reader of the stream who is slow is cut off and can resume; nothing here decides anything: see [`backend`].

mod actions;
pub mod backend;
mod errors;
mod events;

use std::sync::Arc;

use axum::{
    Json, Router,
    extract::{Path, State},
    http::header,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use serde_json::json;

use backend::Backend;
use errors::Failure;

type App = State<Arc<dyn Backend>>;
type Answer<T = Response> = Result<T, Failure>;

/// The routes of the API over a backend.
pub fn router(backend: Arc<dyn Backend>) -> Router {
    Router::new()
        .route("/", get(index))
        .route("/healthz", get(healthz))
        .route("/metrics", get(metrics))
        .route("/v1/hosts", get(hosts))
        .route("/v1/hosts/{id}", get(host))
        .route("/v1/hosts/{id}/actions", post(actions::host))
        .route("/v1/storages", get(storages))
        .route("/v1/vms", get(vms))
        .route("/v1/vms/{id}", get(vm))
        .route("/v1/vms/{id}/actions", post(actions::vm))
        .route("/v1/host-protocol-refs", get(refs))
        .route("/v1/events", get(events::list))
        .route("/v1/events/stream", get(events::stream))
        .route("/v1/explain/{id}", get(explain))
        .route("/v1/inspect", get(inspect))
        .fallback(errors::no_such_path)
        .method_not_allowed_fallback(errors::no_such_method)
        .with_state(backend)
}

fn items(items: impl serde::Serialize) -> Response {
    Json(json!({ "items": items })).into_response()
}

async fn index() -> &'static str {
    "Ringfence controller\n\
     \n\
     GET  /v1/hosts  /v1/storages  /v1/vms  /v1/host-protocol-refs\n\
     GET  /v1/events?after=SEQ&limit=N   /v1/events/stream\n\
     POST /v1/vms/NAME/actions    {\"start\":{}}  {\"start\":{\"host\":\"NAME\"}}  {\"stop\":{}}  {\"haStart\":{\"dryRun\":true}}\n\
     POST /v1/hosts/NAME/actions  {\"maintain\":{}}  {\"activate\":{}}  {\"ping\":{}}  {\"confirmFenced\":{\"by\":\"WHO\"}}\n\
     GET  /v1/explain/NAME  /v1/inspect  /metrics  /healthz\n"
}

async fn healthz(State(backend): App) -> Answer {
    backend.healthy().await?;
    Ok(Json(json!({ "status": "ok" })).into_response())
}

async fn metrics(State(backend): App) -> Response {
    let text = [(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")];
    (text, backend.metrics().await).into_response()
}

async fn hosts(State(backend): App) -> Answer {
    Ok(items(backend.hosts().await?))
}

async fn host(State(backend): App, Path(id): Path<String>) -> Answer {
    let wanted = backend.host_id(&id)?;
    let host = backend.hosts().await?.into_iter().find(|host| host.uuid == wanted);
    Ok(Json(host.ok_or_else(|| backend::missing("host", &id))?).into_response())
}

async fn storages(State(backend): App) -> Answer {
    Ok(items(backend.storages().await?))
}

async fn vms(State(backend): App) -> Answer {
    Ok(items(backend.vms().await?))
}

async fn vm(State(backend): App, Path(id): Path<String>) -> Answer {
    Ok(Json(backend.vm(backend.vm_id(&id)?).await?).into_response())
}

async fn refs(State(backend): App) -> Answer {
    Ok(items(backend.refs().await?))
}

async fn explain(State(backend): App, Path(id): Path<String>) -> Answer {
    Ok(items(backend.explain(&id).await?))
}

async fn inspect(State(backend): App) -> Answer {
    Ok(Json(backend.inspect().await).into_response())
}
