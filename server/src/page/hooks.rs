//! The hooks, with delivery position and last error, and the test of one hook.

use axum::extract::{Path, State};
use maud::html;

use super::{
    App, Shown,
    layout::{columns, page, word},
};
use crate::times::clock;

pub(super) async fn list(State(backend): App) -> Shown {
    let (live, hooks) = (super::events::last_of_all(&*backend).await?, backend.hooks().await?);
    let body = html! {
        h1 { "Hooks" }
        @if hooks.is_empty() {
            p { "No hooks. Add " code { "[[webhook]]" } " or " code { "[[command_hook]]" } " to the config file." }
        } @else {
            table {
                caption { "Receivers of events, at least once and in sequence" }
                (columns(["Hook", "Receiver", "Topics", "Status", "Lag", "Delivered", "Dropped", "Last error",
                    "Action"]))
                tbody {
                    @for hook in &hooks {
                        tr {
                            th scope="row" { (hook.name) }
                            td { (word(&hook.kind)) " " code { (hook.target) } }
                            td { @for topic in &hook.topics { code { (topic) } " " } }
                            td {
                                @if hook.tries > 0 {
                                    span class="state bad" { "retrying" } " " small { (hook.tries) " failed attempts" }
                                    @if let Some(next) = &hook.next_try { br;
                                        small { "next at " time datetime=(next) { (clock(next)) } } }
                                } @else { span class="state good" { "ok" } }
                            }
                            td.number { (hook.lag) }
                            td.number {
                                (hook.delivered)
                                @if let Some(last) = &hook.last_delivered { br;
                                    small { "last at " time datetime=(last) { (clock(last)) } } }
                            }
                            td.number { (hook.given_up) }
                            td { (hook.last_error.as_deref().unwrap_or("-")) }
                            td { form method="post" action={ "/ui/hooks/" (hook.name) "/test" } {
                                button aria-label={ "Test " (hook.name) } { "Test" } } }
                        }
                    }
                }
            }
            p { small { "Lag counts all records of the journal behind the hook, whatever their topic. A test event \
                does not wait for earlier events." } }
        }
    };
    Ok(page("Hooks", "/ui/hooks", Some(live), &body))
}

pub(super) async fn test(State(backend): App, Path(name): Path<String>) -> Shown {
    let test = backend.test_hook(&name).await?;
    let body = html! {
        h1 { "Test of " (name) }
        p {
            @if test.delivered { span class="state good" { "delivered" } }
                @else { span class="state bad" { "not delivered" } }
            " after " (test.millis) " ms, message " code { (test.id) }
        }
        p { "Response: " (test.says) }
        p { a href="/ui/hooks" { "Back to the hooks" } }
    };
    Ok(page("Test of a hook", "/ui/hooks", None, &body))
}
