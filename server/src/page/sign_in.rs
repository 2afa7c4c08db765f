//! The sign-in form.

use maud::{Markup, html};

use super::layout::page;

pub(super) async fn form() -> Markup {
    let body = html! {
        h1 { "Sign in" }
        p { "This controller requires a token. An administrator creates one with " code { "ringfence token NAME" } "." }
        form method="post" {
            p { label { "Token: " input type="password" name="token" required autocomplete="current-password"; } }
            button { "Sign in" }
        }
    };
    page("Sign in", "", None, &body)
}
