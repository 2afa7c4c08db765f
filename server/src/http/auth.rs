//! Authorization: API tokens and roles.
//!
//! Invariants: the config has only the SHA-256 of a token, so its readers cannot use the token; without API tokens
//! every local user is an admin; routes without a token (`/healthz`, `/openapi.json`, the sign-in page) show nothing
//! of the inventory. Hashes are compared instead of tokens, so timing discloses nothing. A token has 256 random bits,
//! so neither salt nor a slow hash is needed. A browser has a session instead of the token: see `sessions.rs`.
//! Alternative considered: users and passwords (scripts have none, and operators should use SSH).

use std::{borrow::Cow, sync::Arc};

use axum::{
    Extension,
    body::Body,
    extract::{Request, State},
    http::{HeaderMap, Method, StatusCode, header},
    middleware::Next,
    response::{IntoResponse, Redirect, Response},
};
use ringfence_messages::{Code, ErrorCode, Result, action::TABLE};
use ringfence_service::{
    listen::{Peer, read_form},
    places::Showing,
};
use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::{
    errors::Failure,
    sessions::{LASTS, Sessions},
};
use crate::auth::{Role, Token};

/// The API tokens and sessions. Without tokens, authentication is disabled.
#[derive(Clone, Debug, Default)]
pub struct Access {
    tokens: Arc<[Token]>,
    sessions: Sessions,
}

/// The cookie with a browser's session.
pub(super) const COOKIE: &str = "ringfence-session";

/// The authenticated sender of a request.
#[derive(Clone, Debug)]
pub(crate) struct Bearer {
    /// Name, for the journal.
    pub(crate) name: String,
    /// Role.
    pub(crate) role: Role,
    /// SHA-256 of the presented token; none if authentication is disabled.
    pub(crate) token: Option<[u8; 32]>,
}

impl Bearer {
    /// Rejects a role below this one.
    ///
    /// # Errors
    /// `SYS.1018`, shown as 403.
    pub(crate) fn require(&self, role: Role) -> Result<()> {
        match self.role >= role {
            true => Ok(()),
            false => {
                let why =
                    format!("this request requires role {}; the token has role {}", role.name(), self.role.name());
                Err(ErrorCode::new(Code::NOT_PERMITTED, why))
            }
        }
    }
}

impl Access {
    /// Access with these tokens.
    pub fn by(tokens: Vec<Token>) -> Access {
        Access { tokens: tokens.into(), sessions: Sessions::default() }
    }

    /// The bearer of a token; none if the token is unknown.
    fn authenticate(&self, token: &str) -> Option<Bearer> {
        self.by_hash(Sha256::digest(token.as_bytes()).into())
    }

    fn by_hash(&self, sha256: [u8; 32]) -> Option<Bearer> {
        let token = self.tokens.iter().find(|token| token.sha256 == sha256)?;
        Some(Bearer { name: token.name.clone(), role: token.role, token: Some(sha256) })
    }

    /// The sender of a request; none without a known token or session.
    pub(super) fn bearer(&self, headers: &HeaderMap) -> Option<Bearer> {
        if self.tokens.is_empty() {
            return Some(Bearer { name: "a local user".to_owned(), role: Role::Admin, token: None });
        }
        let presented = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        match presented.and_then(|value| value.strip_prefix("Bearer ")) {
            Some(token) => self.authenticate(token.trim()),
            None => self.sessions.token(carried(headers)?).and_then(|token| self.by_hash(token)),
        }
    }
}

/// The session in a browser's cookie.
fn carried(headers: &HeaderMap) -> Option<&str> {
    let cookies = headers.get(header::COOKIE)?.to_str().ok()?;
    let mut cookies = cookies.split(';').filter_map(|cookie| cookie.trim().split_once('='));
    cookies.find(|(name, _)| *name == COOKIE).map(|(_, session)| session.trim())
}

/// The role that a route requires; `None` for public routes, which show nothing of the inventory. `security`
/// documents the same.
pub(super) fn required_role(method: &Method, path: &str) -> Option<Role> {
    match path {
        "/healthz" | "/openapi.json" | SIGN_IN => None,
        _ if path.starts_with("/ui/assets/") => None,
        // Any role may sign out.
        SIGN_OUT => Some(Role::Viewer),
        _ if matches!(*method, Method::GET | Method::HEAD) => Some(Role::Viewer),
        _ => Some(Role::Operator),
    }
}

/// An operation that requires more than its route: its handler enforces it, and `security` documents it.
pub(crate) struct ElevatedOperation {
    /// Path of the operation.
    pub(super) path: Cow<'static, str>,
    /// Condition, for the documentation.
    pub(super) what: Cow<'static, str>,
    /// The role that it requires.
    pub(crate) role: Role,
}

/// An operator may use the dry run.
pub(crate) const CHANGE: ElevatedOperation = inventory_operation("/v1/inventory/changes");

/// As [`CHANGE`].
pub(crate) const RELOAD: ElevatedOperation = inventory_operation("/v1/inventory/reload");

const fn inventory_operation(path: &'static str) -> ElevatedOperation {
    ElevatedOperation { path: Cow::Borrowed(path), what: Cow::Borrowed("all but `dryRun=true`"), role: Role::Admin }
}

/// All elevated operations: of the inventory, and the actions that require more than an operator.
pub(super) fn elevated() -> impl Iterator<Item = ElevatedOperation> {
    let actions = TABLE.iter().filter(|facts| facts.role > Role::Operator).map(|facts| ElevatedOperation {
        path: format!("/v1/{}/{{id}}/actions", facts.object.path()).into(),
        what: format!("`{}`", facts.key()).into(),
        role: facts.role,
    });
    actions.chain([CHANGE, RELOAD])
}

tokio::task_local! {
    /// Sender of the current request; the head of every page shows it.
    static ASKING: Option<Bearer>;
}

/// The sender of the current request; none outside of a request, and on public routes.
pub(crate) fn asking() -> Option<Bearer> {
    ASKING.try_with(Clone::clone).ok().flatten()
}

/// Path of the sign-in form.
pub(crate) const SIGN_IN: &str = "/ui/sign-in";

/// Path of the sign-out.
pub(crate) const SIGN_OUT: &str = "/ui/sign-out";

pub(super) async fn check(State(access): State<Access>, mut request: Request, next: Next) -> Response {
    let bearer = access.bearer(request.headers());
    let refuse = |status, why: &str| Failure::with(status, Code::NOT_PERMITTED, why).into_response();
    let required = required_role(request.method(), request.uri().path());
    match bearer {
        Some(bearer) => {
            if required.is_some_and(|role| bearer.role < role) {
                return refuse(
                    StatusCode::FORBIDDEN,
                    "a token with role viewer may not send actions; use one with role operator",
                );
            }
            if let Some(showing) = request.extensions().get::<Showing>() {
                showing.has_shown();
            }
            request.extensions_mut().insert(bearer.clone());
            ASKING.scope(Some(bearer), next.run(request)).await
        }
        None if required.is_none() => next.run(request).await,
        None => {
            let accepts = request.headers().get(header::ACCEPT).and_then(|of| of.to_str().ok()).unwrap_or_default();
            if accepts.contains("text/html") {
                return Redirect::to(SIGN_IN).into_response();
            }
            let why = "missing API token; send `Authorization: Bearer TOKEN`, or set RINGFENCE_TOKEN_FILE for the \
                command line";
            let mut refused = refuse(StatusCode::UNAUTHORIZED, why);
            refused.headers_mut().insert(header::WWW_AUTHENTICATE, header::HeaderValue::from_static("Bearer"));
            refused
        }
    }
}

/// A token in a form.
#[derive(Deserialize)]
struct Presented {
    token: String,
}

/// Starts a session for a token from a form, in a cookie that scripts cannot read and other sites cannot send.
pub(crate) async fn sign_in(
    Extension(access): Extension<Access>,
    peer: Option<Extension<Peer>>,
    body: Body,
) -> Response {
    let presented = read_form::<Presented>(body).await.ok();
    match presented.and_then(|of| access.authenticate(of.token.trim())).and_then(|bearer| bearer.token) {
        Some(token) => {
            let secure = if peer.is_some_and(|peer| peer.secure) { "; Secure" } else { "" };
            let (session, lasts) = (access.sessions.begin(token), LASTS.as_secs());
            let cookie = format!("{COOKIE}={session}; Path=/; HttpOnly; SameSite=Strict; Max-Age={lasts}{secure}");
            ([(header::SET_COOKIE, cookie)], Redirect::to("/")).into_response()
        }
        None => {
            let why = "unknown API token";
            Failure::with(StatusCode::UNAUTHORIZED, Code::NOT_PERMITTED, why).into_response()
        }
    }
}

/// Ends the session of a browser. The token stays valid until it is removed from the config file.
pub(crate) async fn sign_out(Extension(access): Extension<Access>, headers: HeaderMap) -> Response {
    if let Some(session) = carried(&headers) {
        access.sessions.end(session);
    }
    let cookie = format!("{COOKIE}=; Path=/; HttpOnly; SameSite=Strict; Max-Age=0");
    ([(header::SET_COOKIE, cookie)], Redirect::to(SIGN_IN)).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bearer_needs_a_known_token_or_session() {
        let sha256 = Sha256::digest(b"secret").into();
        let access = Access::by(vec![Token { name: "ops".to_owned(), role: Role::Operator, sha256 }]);
        let role = |name: header::HeaderName, value: &str| {
            let headers = HeaderMap::from_iter([(name, value.parse().unwrap())]);
            access.bearer(&headers).map(|bearer| bearer.role)
        };
        assert_eq!(role(header::AUTHORIZATION, "Bearer secret"), Some(Role::Operator));
        let session = access.sessions.begin(sha256);
        assert_eq!(role(header::COOKIE, &format!("a=b; {COOKIE}={session}")), Some(Role::Operator));
        assert_eq!(role(header::COOKIE, &format!("x{COOKIE}={session}")), None);
        assert_eq!(role(header::AUTHORIZATION, &format!("Bearer {session}")), None, "a session is no token");
        let unknown = access.sessions.begin([7; 32]);
        assert_eq!(role(header::COOKIE, &format!("{COOKIE}={unknown}")), None, "its token is unknown");
        for (name, value) in [
            (header::AUTHORIZATION, "Bearer secre"),
            (header::AUTHORIZATION, "Basic secret"),
            (header::COOKIE, "ringfence-session=secret"),
            (header::ACCEPT, "secret"),
        ] {
            assert_eq!(role(name, value), None, "{value}");
        }
        assert_eq!(Access::default().bearer(&HeaderMap::new()).map(|bearer| bearer.role), Some(Role::Admin));
    }
}
