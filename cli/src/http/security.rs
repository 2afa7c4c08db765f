//! What the description says of tokens and roles.
//!
//! Invariant: it is what [`auth`](super::auth) enforces, made of the same functions and constants; `cli/tests/http.rs`
//! tries every operation that is described with every role.

use axum::http::Method;
use utoipa::openapi::{
    OpenApi,
    extensions::Extensions,
    path::Operation,
    security::{ApiKey, ApiKeyValue, Http, HttpAuthScheme, SecurityRequirement, SecurityScheme},
};

use super::auth::{COOKIE, ELEVATED, required_role};
use crate::auth::Role;

/// Under which an operation says the least role that it requires.
const REQUIRED_ROLE: &str = "x-required-role";

/// Adds how a token is presented, and what role each operation requires.
pub(super) fn describe(document: &mut OpenApi) {
    let components = document.components.get_or_insert_default();
    components.add_security_scheme("bearer", SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer)));
    let cookie = "What the page's sign-in sets";
    let cookie = ApiKey::Cookie(ApiKeyValue::with_description(COOKIE, cookie));
    components.add_security_scheme("cookie", SecurityScheme::ApiKey(cookie));
    for (path, item) in &mut document.paths.paths {
        let of = [(Method::GET, &mut item.get), (Method::POST, &mut item.post)];
        for (method, operation) in of {
            operation
                .as_mut()
                .into_iter()
                .for_each(|operation| describe_roles(operation, path, required_role(&method, path)));
        }
    }
}

fn describe_roles(operation: &mut Operation, path: &str, required: Option<Role>) {
    let needs = match required {
        None => "Needs no token.".to_owned(),
        Some(role) => {
            let more = ELEVATED.iter().filter(|more| more.path == path);
            let more: String = more.map(|more| format!(", and {} for {}", more.role.name(), more.what)).collect();
            format!("Needs the role {}{more}.", role.name())
        }
    };
    let says = operation.description.take().filter(|says| !says.is_empty());
    operation.description = Some(says.map_or_else(|| needs.clone(), |says| format!("{}\n\n{needs}", says.trim_end())));
    // None at all is said too: it is what a generated client goes by.
    let of = |scheme| SecurityRequirement::new::<_, [&str; 0], _>(scheme, []);
    operation.security = Some(required.map_or_else(Vec::new, |_| vec![of("bearer"), of("cookie")]));
    if let Some(role) = required {
        let of = operation.extensions.get_or_insert_with(Extensions::default);
        of.insert(REQUIRED_ROLE.to_owned(), role.name().into());
    }
}
