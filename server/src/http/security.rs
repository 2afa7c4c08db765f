//! Tokens and roles in the OpenAPI document.
//!
//! Invariant: the document uses the functions and constants with which [`auth`](super::auth) enforces roles;
//! `cli/tests/http.rs` tries every documented operation with every role.

use axum::http::Method;
use utoipa::openapi::{
    OpenApi,
    extensions::Extensions,
    path::Operation,
    security::{ApiKey, ApiKeyValue, Http, HttpAuthScheme, SecurityRequirement, SecurityScheme},
};

use super::auth::{COOKIE, elevated, required_role};
use crate::auth::Role;

/// Extension with the least role of an operation.
const REQUIRED_ROLE: &str = "x-required-role";

/// Adds the security schemes and the role of each operation.
pub(super) fn describe(document: &mut OpenApi) {
    let components = document.components.get_or_insert_default();
    components.add_security_scheme("bearer", SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer)));
    let cookie = "Cookie of the page's sign-in";
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
            let more = elevated().filter(|more| more.path == path);
            let more: String = more.map(|more| format!(", and {} for {}", more.role.name(), more.what)).collect();
            format!("Needs the role {}{more}.", role.name())
        }
    };
    let text = operation.description.take().filter(|text| !text.is_empty());
    operation.description = Some(text.map_or_else(|| needs.clone(), |text| format!("{}\n\n{needs}", text.trim_end())));
    // An empty list is explicit too, for generated clients.
    let of = |scheme| SecurityRequirement::new::<_, [&str; 0], _>(scheme, []);
    operation.security = Some(required.map_or_else(Vec::new, |_| vec![of("bearer"), of("cookie")]));
    if let Some(role) = required {
        let of = operation.extensions.get_or_insert_with(Extensions::default);
        of.insert(REQUIRED_ROLE.to_owned(), role.name().into());
    }
}
