//! Who may what: tokens with roles.
//!
//! Invariants: a token is known here only by its SHA-256, so that nobody who reads the config can use it; without
//! any token in the config everybody who reaches the loopback is an admin, as before there were tokens; what needs none (`/healthz`,
//! the description, the sign-in page) shows nothing of the inventory. Hashes are compared, not tokens: how long that takes says
//! nothing. A token has 256 random bits: neither salt nor a slow hash would add anything to what nobody can guess.
//! A browser carries a session instead of the token: see `sessions.rs`.
//! Rejected: users and passwords. Scripts have none, and people should come by SSH.

use std::sync::Arc;

use axum::{
    Extension,
    body::Body,
    extract::{Request, State},
    http::{HeaderMap, Method, StatusCode, header},
    middleware::Next,
    response::{IntoResponse, Redirect, Response},
};
use ringfence_messages::{Code, ErrorCode, Result};
use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::{
    errors::Failure,
    sessions::{LASTS, Sessions},
};
use crate::{
    auth::{Role, Token},
    listen::{Peer, read_form},
    places::Showing,
};

/// Who may what; nobody is asked while there are no tokens.
#[derive(Clone, Debug, Default)]
pub struct Access {
    tokens: Arc<[Token]>,
    sessions: Sessions,
}

/// The cookie that a browser carries its session in.
pub(super) const COOKIE: &str = "ringfence-session";

/// Whose request it is, as far as [`Access`] told.
#[derive(Clone, Debug)]
pub(crate) struct Bearer {
    /// Who they are, for the journal.
    pub(crate) name: String,
    /// What they may do.
    pub(crate) role: Role,
    /// The SHA-256 of the token that they presented; none where none is asked for.
    pub(crate) token: Option<[u8; 32]>,
}

impl Bearer {
    /// Refuses who may not as much.
    ///
    /// # Errors
    /// `SYS.1018`, shown as 403.
    pub(crate) fn require(&self, role: Role) -> Result<()> {
        match self.role >= role {
            true => Ok(()),
            false => {
                let why = format!("the role {role:?} may do this, the token's is {:?}", self.role);
                Err(ErrorCode::new(Code::NOT_PERMITTED, why))
            }
        }
    }
}

impl Access {
    /// Access by these tokens.
    pub fn by(tokens: Vec<Token>) -> Access {
        Access { tokens: tokens.into(), sessions: Sessions::default() }
    }

    /// Whose a token is; nobody's if it is not known.
    fn authenticate(&self, token: &str) -> Option<Bearer> {
        self.by_hash(Sha256::digest(token.as_bytes()).into())
    }

    fn by_hash(&self, is: [u8; 32]) -> Option<Bearer> {
        let of = self.tokens.iter().find(|of| of.sha256 == is)?;
        Some(Bearer { name: of.name.clone(), role: of.role, token: Some(is) })
    }

    /// Whose request this is; nobody's without a token or session that is known.
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

/// The session that a browser carries.
fn carried(headers: &HeaderMap) -> Option<&str> {
    let cookies = headers.get(header::COOKIE)?.to_str().ok()?;
    let mut cookies = cookies.split(';').filter_map(|cookie| cookie.trim().split_once('='));
    cookies.find(|(name, _)| *name == COOKIE).map(|(_, session)| session.trim())
}

/// The role that a route takes; `None` for what anybody may see: nothing of the inventory. The description says the same.
pub(super) fn required_role(method: &Method, path: &str) -> Option<Role> {
    match path {
        "/healthz" | "/openapi.json" | SIGN_IN => None,
        _ if path.starts_with("/ui/assets/") => None,
        // Whoever signed in may sign out.
        SIGN_OUT => Some(Role::Viewer),
        _ if matches!(*method, Method::GET | Method::HEAD) => Some(Role::Viewer),
        _ => Some(Role::Operator),
    }
}

/// What takes more than its route does: asked by whoever carries it out, and told by the description.
pub(crate) struct ElevatedOperation {
    /// The operation's path.
    pub(super) path: &'static str,
    /// What of it.
    pub(super) what: &'static str,
    /// The role that it requires.
    pub(crate) role: Role,
}

/// Nothing else proves then that a host is off.
pub(crate) const CONFIRM_FENCED: ElevatedOperation =
    ElevatedOperation { path: "/v1/hosts/{id}/actions", what: "`confirmFenced`", role: Role::Admin };

/// Who may order may look what would be.
pub(crate) const CHANGE: ElevatedOperation =
    ElevatedOperation { path: "/v1/inventory/changes", what: "all but `dryRun=true`", role: Role::Admin };

/// As [`CHANGE`].
pub(crate) const RELOAD: ElevatedOperation =
    ElevatedOperation { path: "/v1/inventory/reload", what: "all but `dryRun=true`", role: Role::Admin };

/// All of them.
pub(super) const ELEVATED: [ElevatedOperation; 3] = [CONFIRM_FENCED, CHANGE, RELOAD];

tokio::task_local! {
    /// Whose request is being answered: the head of every page shows it.
    static ASKING: Option<Bearer>;
}

/// Whose request is being answered; nobody's outside of one, and where none was let in.
pub(crate) fn asking() -> Option<Bearer> {
    ASKING.try_with(Clone::clone).ok().flatten()
}

/// Where a browser's user presents a token.
pub(crate) const SIGN_IN: &str = "/ui/sign-in";

/// Where they have their browser forget it.
pub(crate) const SIGN_OUT: &str = "/ui/sign-out";

pub(super) async fn check(State(access): State<Access>, mut request: Request, next: Next) -> Response {
    let bearer = access.bearer(request.headers());
    let refuse = |status, why: &str| Failure::with(status, Code::NOT_PERMITTED, why).into_response();
    let required = required_role(request.method(), request.uri().path());
    match bearer {
        Some(bearer) => {
            if required.is_some_and(|role| bearer.role < role) {
                return refuse(StatusCode::FORBIDDEN, "this token is a viewer's: it may look, and order nothing");
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
            let why = "a token is needed: send `Authorization: Bearer TOKEN`, or set RINGFENCE_TOKEN_FILE for the command line";
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

/// Begins a session for a token from a form, in a cookie that scripts cannot read and other sites cannot send.
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
            let why = "nobody knows this token";
            Failure::with(StatusCode::UNAUTHORIZED, Code::NOT_PERMITTED, why).into_response()
        }
    }
}

/// Ends the session of a browser. The token itself stays good until it is taken out of the config.
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
    fn a_bearer_is_known_by_the_hash_of_a_token_or_by_a_session_and_by_nothing_else() {
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
        assert_eq!(role(header::COOKIE, &format!("{COOKIE}={unknown}")), None, "its token is known no more");
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
