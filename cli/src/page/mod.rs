//! The web page: what the API says, to be looked at, and the orders, to be confirmed.
//!
//! ```text
//! GET  /                                overview: what needs attention, what happened
//! GET  /ui/hosts /ui/storages /ui/vms /ui/events
//! GET  /ui/hosts/{name} /ui/vms/{name}  one thing: why it is so, its fences, what may be done
//! GET  /ui/{hosts,vms}/{name}/{order}   what an order would do, to be confirmed
//! POST /ui/{hosts,vms}/{name}/{order}   the order
//! GET  /ui/inventory                    what is looked after, and where it is defined
//! POST /ui/inventory/change             what a change would be; with what was shown of it, it is made
//! GET  /ui/inventory/remove/{kind}/{name} /ui/inventory/reload   the same, to be confirmed; POST does it
//! GET  /ui/hooks                        whom it tells what happened, and what holds that up
//! POST /ui/hooks/{name}/test            a test message, and what came back
//! POST /ui/sign-out                     the browser forgets its token
//! GET  /ui/sign-in                      where a token is asked for, if the config has some
//! GET  /ui/stream?after=SEQ             what happens, as lines of the page
//! ```
//! Invariants: everything is rendered here and works without JavaScript; the script only renews `<main>` when something
//! happened. Nothing is fetched from elsewhere. An order goes through [`Backend`], as the API's do, and through the same guard.
//! State is told by a word, and a colour besides. Rejected: an application in the browser. Two programs that must agree.

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

/// The page; `/` itself is shared with the API.
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
            h1 { "That did not work" }
            p.trouble role="alert" { (error.to_string()) }
            p { a href="/" { "Back to the overview" } }
        };
        (status, layout::page("Error", "", None, &body)).into_response()
    }
}

type Shown<T = maud::Markup> = Result<T, ErrorPage>;
