//! The controller's HTTP API.
//!
//! ```text
//! GET  /v1/hosts /v1/storages /v1/vms /v1/host-protocol-refs          {"items": [...], "total": N}; ?offset=&limit=
//! GET  /v1/hosts/{name or uuid} /v1/vms/{name or uuid}
//! GET  /v1/events?after=SEQ&limit=N                                   {"items": [...]}
//! GET  /v1/events/stream?after=SEQ                                    SSE; Last-Event-ID resumes
//! GET  /v1/explain/{name or uuid of a VM or host}                     {"items": ["...", ...]}
//! POST /v1/vms/{name or uuid}/actions    {"start": {"host": "..."}} | {"stop": {}}
//!                                        | {"haStart": {"host": "...", "dryRun": true}}
//! POST /v1/hosts/{name or uuid}/actions  {"maintain": {}} | {"drain": {}} | {"activate": {}} | {"ping": {}}
//!                                        | {"confirmFenced": {"by": "..."}}
//! GET  /v1/hooks                                                      hooks and their delivery
//! POST /v1/hooks/{name}/actions          {"test": {}}
//! GET  /v1/inspect /metrics /healthz /openapi.json /
//! ```
//! Invariants: every error is `{"error": ErrorCode}` with a fitting status; bodies are bounded in size and time; a
//! slow reader of the stream is disconnected and can resume; nothing here decides anything, see [`backend`]; every
//! route comes from the attribute that describes it, so that `/openapi.json` is complete. Requests with an effect
//! accept `If-Match` and `Idempotency-Key`; cross-site requests are rejected (`origin_check`). Authorization:
//! [`auth`]. Rate limit: [`limit`].

mod actions;
pub mod auth;
pub mod backend;
mod errors;
mod etag;
mod events;
mod idempotency;
mod inventory;
pub mod limit;
mod origin_check;
mod queries;
mod security;
mod sessions;
mod trace;

use std::sync::Arc;

use axum::{
    Extension, Json, Router,
    extract::State,
    middleware,
    response::{IntoResponse, Response},
};
use futures_util::future::BoxFuture;
use utoipa::OpenApi;
use utoipa_axum::{router::OpenApiRouter, routes};

pub(crate) use actions::{ActionAnswer, carry_out, plan};
use auth::Access;
use backend::Backend;
use errors::Failure;
pub(crate) use errors::status;
pub(crate) use events::stream_place;
use idempotency::Repeats;

type App = State<Arc<dyn Backend>>;
type Answer<T = axum::response::Response> = Result<T, Failure>;

/// Head of the OpenAPI document.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "Ringfence controller",
        description = "Runs every virtual machine on at most one host. Hosts, VMs and hooks are addressed by name or \
                       uuid. Every error is {\"error\": {...}} with a code that never changes its meaning. If the \
                       config file has API tokens, requests present one as a bearer token; each role includes the \
                       roles before it: viewer, operator, admin. Without API tokens, every local user is an admin."
    ),
    tags(
        (name = "inventory", description = "Hosts, storages and VMs with their state"),
        (name = "events", description = "Journal records and hooks"),
        (name = "actions", description = "Actions on VMs, hosts and hooks"),
        (name = "controller", description = "The controller itself"),
    )
)]
struct Document;

/// The routes of the API over a backend, and their description.
fn described() -> OpenApiRouter<Arc<dyn Backend>> {
    let mut described = OpenApiRouter::with_openapi(Document::openapi())
        .routes(routes!(queries::index))
        .routes(routes!(queries::healthz))
        .routes(routes!(queries::metrics))
        .routes(routes!(queries::hosts))
        .routes(routes!(queries::host))
        .routes(routes!(actions::host))
        .routes(routes!(queries::storages))
        .routes(routes!(queries::vms))
        .routes(routes!(queries::vm))
        .routes(routes!(actions::vm))
        .routes(routes!(inventory::show))
        .routes(routes!(inventory::change))
        .routes(routes!(inventory::reload))
        .routes(routes!(queries::refs))
        .routes(routes!(events::list))
        .routes(routes!(events::stream))
        .routes(routes!(queries::explain))
        .routes(routes!(queries::inspect))
        .routes(routes!(queries::hooks))
        .routes(routes!(actions::hook));
    security::describe(described.get_openapi_mut());
    described
}

/// The OpenAPI 3.1 document of `GET /openapi.json`.
pub fn openapi() -> utoipa::openapi::OpenApi {
    described().split_for_parts().1
}

/// The web page, merged into the routes of the API.
pub struct Pages {
    /// Routes under `/ui`.
    pub routes: Router<Arc<dyn Backend>>,
    /// The answer of `/` to a browser.
    pub overview: Overview,
}

/// Renders the overview.
pub type Overview = fn(Arc<dyn Backend>) -> BoxFuture<'static, Response>;

/// The routes of the API and of the page over a backend, with authorization by `access`.
pub fn router(backend: Arc<dyn Backend>, access: Access, pages: Pages) -> Router {
    let (router, document) = described().split_for_parts();
    let repeats = Arc::new(Repeats::default());
    router
        .merge(pages.routes)
        .route("/openapi.json", axum::routing::get(move || std::future::ready(Json(document.clone()).into_response())))
        .fallback(errors::no_such_path)
        .method_not_allowed_fallback(errors::no_such_method)
        .layer(middleware::from_fn_with_state(repeats, idempotency::once))
        .layer(middleware::from_fn_with_state(access.clone(), auth::check))
        .layer(Extension(access))
        .layer(Extension(pages.overview))
        .layer(middleware::from_fn(origin_check::check))
        .layer(middleware::from_fn(trace::trace))
        .with_state(backend)
}
