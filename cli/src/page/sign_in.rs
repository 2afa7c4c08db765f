//! Where a browser presents its token.

use maud::{Markup, html};

use super::layout::page;

pub(super) async fn form() -> Markup {
    let body = html! {
        h1 { "Sign in" }
        p { "This controller asks for a token. Whoever looks after it makes one with " code { "ringfence token NAME" } "." }
        form method="post" {
            p { label { "Token: " input type="password" name="token" required autocomplete="current-password"; } }
            button { "Sign in" }
        }
    };
    page("Sign in", "", None, &body)
}
