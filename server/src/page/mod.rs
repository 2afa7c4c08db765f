//! The web page: views of the API, and actions with a confirmation.
//!
//! ```text
//! GET  /                                overview: problems and recent events
//! GET  /ui/hosts /ui/storages /ui/vms /ui/events
//! GET  /ui/hosts/{name} /ui/vms/{name}  one host or VM: status, fences, actions
//! GET  /ui/{hosts,vms}/{name}/{order}   the effect of an action, to be confirmed
//! POST /ui/{hosts,vms}/{name}/{order}   the action
//! GET  /ui/inventory                    the inventory, and where each item is defined
//! POST /ui/inventory/change             shows a change; applies it if the form carries the change that was shown
//! GET  /ui/inventory/remove/{kind}/{name} /ui/inventory/reload   shows a change; POST applies it
//! GET  /ui/hooks                        the hooks and their delivery
//! POST /ui/hooks/{name}/test            sends a test event
//! POST /ui/sign-out                     ends the session
//! GET  /ui/sign-in                      the form for a token
//! GET  /ui/stream?after=SEQ             new events, as lines of the page
//! ```
//! Invariants: everything is rendered here and works without JavaScript; the script only reloads `<main>` after an
//! event. Nothing is fetched from other sites. An action goes through [`Backend`] and the same checks as the API's
//! actions. A state is a word, and a colour in addition. Alternative considered: an application in the browser (two
//! programs that must agree).

mod assets;
mod chart;
mod confirm;
mod events;
mod fencing_attempts;
mod hooks;
mod hosts;
mod inventory;
mod layout;
mod overview;
mod phases;
mod sign_in;
mod storages;
mod vms;

use std::sync::Arc;

use axum::{
    Router,
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::get,
};
use maud::html;
use ringfence_messages::ErrorCode;

use crate::http::{
    Overview, Pages,
    auth::{self, SIGN_IN, SIGN_OUT},
    backend::Backend,
    status,
};

type App = State<Arc<dyn Backend>>;

/// The page's routes; `/` is shared with the API.
pub(crate) fn pages() -> Pages {
    let overview: Overview = |backend| Box::pin(async { overview::overview(State(backend)).await.into_response() });
    Pages { routes: routes(), overview }
}

fn routes() -> Router<Arc<dyn Backend>> {
    Router::new()
        .route("/ui/hosts", get(hosts::list))
        .route("/ui/hosts/{name}", get(hosts::one))
        .route("/ui/hosts/{name}/{order}", get(confirm::ask_host).post(confirm::host))
        .route("/ui/storages", get(storages::list))
        .route("/ui/vms", get(vms::list))
        .route("/ui/vms/{name}", get(vms::one))
        .route("/ui/vms/{name}/{order}", get(confirm::ask_vm).post(confirm::vm))
        .route("/ui/events", get(events::list))
        .route("/ui/inventory", get(inventory::list))
        .route("/ui/inventory/change", get(inventory::write).post(inventory::change))
        .route("/ui/inventory/remove/{kind}/{name}", get(inventory::ask_remove).post(inventory::remove))
        .route("/ui/inventory/reload", get(inventory::ask_reload).post(inventory::reload))
        .route("/ui/hooks", get(hooks::list))
        .route("/ui/hooks/{name}/test", axum::routing::post(hooks::test))
        .route(SIGN_OUT, axum::routing::post(auth::sign_out))
        .route(SIGN_IN, get(sign_in::form).post(auth::sign_in))
        .route("/ui/stream", get(events::stream))
        .route("/ui/assets/{file}", get(assets::file))
}

/// An error as a page.
pub(crate) struct ErrorPage(StatusCode, ErrorCode);

impl From<ErrorCode> for ErrorPage {
    fn from(error: ErrorCode) -> ErrorPage {
        ErrorPage(status(&error), error)
    }
}

impl IntoResponse for ErrorPage {
    fn into_response(self) -> Response {
        let ErrorPage(status, error) = self;
        let body = html! {
            h1 { "Request failed" }
            p.trouble role="alert" { (error.to_string()) }
            p { a href="/" { "Back to the overview" } }
        };
        (status, layout::page("Error", "", None, &body)).into_response()
    }
}

type Shown<T = maud::Markup> = Result<T, ErrorPage>;
