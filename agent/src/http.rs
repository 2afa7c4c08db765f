//! The agent's HTTP server: authentication, limits and deadlines; every answer has the protocol's shape.

use std::{sync::Arc, time::Duration};

use axum::{
    Router,
    extract::{Request, State},
    http::{HeaderMap, Method, StatusCode, header},
    response::Response,
};
use ringfence_messages::{
    Code, HostId,
    agent::{DEADLINE_HEADER, HOST_HEADER, MAX_BODY_BYTES, TASK_HEADER},
};
use ringfence_service::{
    listen::{BodyError, read_body},
    places::Showing,
};
use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};
use tokio::time::Instant;
use uuid::Uuid;

use crate::{answer::Answer, handlers::Handlers, tasks::Tasks};

/// Default and largest deadline of a command. Too low: a slow start is aborted. Too high: abandoned work stays in
/// memory.
pub(crate) const MAX_DEADLINE: Duration = Duration::from_secs(600);

struct AgentServer {
    handlers: Arc<Handlers>,
    /// Digest of the token: digests are compared, so that timing discloses nothing of the token.
    token_digest: Option<[u8; 32]>,
    tasks: Tasks,
}

/// The agent's routes, with authentication by a token if configured.
pub(crate) fn router(handlers: Handlers, token: Option<SecretString>) -> Router {
    let digest = |token: SecretString| Sha256::digest(token.expose_secret()).into();
    let server = AgentServer { handlers: Arc::new(handlers), token_digest: token.map(digest), tasks: Tasks::default() };
    Router::new().fallback(handle).with_state(Arc::new(server))
}

async fn handle(State(server): State<Arc<AgentServer>>, request: Request) -> Response {
    let mut response = server.answer(request).await.unwrap_or_else(|refused| refused).into_response();
    // On rejections too, so that a client that reached the wrong host learns which one.
    if let Ok(host) = header::HeaderValue::from_str(&server.handlers.host().to_string()) {
        response.headers_mut().insert(HOST_HEADER, host);
    }
    response
}

impl AgentServer {
    async fn answer(&self, request: Request) -> Result<Answer, Answer> {
        let (parts, body) = request.into_parts();
        let path = parts.uri.path().to_owned();
        self.admit(&parts.headers)?;
        if let Some(showing) = parts.extensions.get::<Showing>() {
            showing.has_shown();
        }
        if !Handlers::knows(&path) {
            let why = format!("unknown endpoint {path:.100}");
            return Err(Answer::refused(StatusCode::NOT_FOUND, Code::NOT_FOUND, why));
        }
        if parts.method != Method::POST {
            let why = format!("{path} accepts POST, not {}", parts.method);
            return Err(Answer::refused(StatusCode::METHOD_NOT_ALLOWED, Code::INVALID_ARGUMENT, why));
        }
        self.is_for_us(&parts.headers)?;
        let number = |name: &str| {
            header_text(&parts.headers, name)?.map(str::parse::<u64>).transpose().map_err(|_| bad_header(name))
        };
        let deadline = number(DEADLINE_HEADER)?.map_or(MAX_DEADLINE, Duration::from_millis).min(MAX_DEADLINE);
        // From here, so that time in which this machine sleeps counts.
        let by = Instant::now() + deadline;
        let task = match header_text(&parts.headers, TASK_HEADER)? {
            Some(text) => Uuid::parse_str(text).map_err(|_| bad_header(TASK_HEADER))?,
            None => Uuid::new_v4(),
        };
        let body = read_body(body, MAX_BODY_BYTES).await;
        let body = body.map_err(|why| {
            let code = if why == BodyError::TooSlow { Code::TIMEOUT } else { Code::INVALID_ARGUMENT };
            Answer::refused(why.status(), code, why.to_string())
        })?;
        let digest = Sha256::new().chain_update(&path).chain_update([0]).chain_update(&body).finalize().into();
        let handlers = self.handlers.clone();
        let work = async move {
            match tokio::time::timeout_at(by, handlers.dispatch(&path, &body, by)).await {
                Ok(Err(error)) if error.is(&Code::INVALID_ARGUMENT) => Answer::of(StatusCode::BAD_REQUEST, Err(error)),
                Ok(result) => Answer::of(StatusCode::OK, result),
                Err(_) => {
                    let why = format!("{path} exceeded the caller's deadline of {deadline:?}");
                    Answer::refused(StatusCode::OK, Code::TIMEOUT, why)
                }
            }
        };
        Ok(self.tasks.once((task, digest), work).await)
    }

    /// Rejects a command for another host, because an address may have moved. A command without a host is from a
    /// controller of the previous version.
    fn is_for_us(&self, headers: &HeaderMap) -> Result<(), Answer> {
        let Some(text) = header_text(headers, HOST_HEADER)? else { return Ok(()) };
        let meant: HostId = text.parse().map_err(|_| bad_header(HOST_HEADER))?;
        let host = self.handlers.host();
        if meant == host {
            return Ok(());
        }
        let why = format!(
            "this is host {host}, but the command is for host {meant}; correct the agent's address of that host"
        );
        Err(Answer::refused(StatusCode::MISDIRECTED_REQUEST, Code::INVALID_ARGUMENT, why))
    }

    fn admit(&self, headers: &HeaderMap) -> Result<(), Answer> {
        // Only browsers send these headers, and no web page may command an agent.
        if let Some(name) = ["origin", "sec-fetch-site"].into_iter().find(|name| headers.contains_key(*name)) {
            let why = format!("requests of browsers are rejected: the request has the header {name}");
            return Err(Answer::refused(StatusCode::FORBIDDEN, Code::INVALID_ARGUMENT, why));
        }
        let Some(digest) = &self.token_digest else { return Ok(()) };
        let shown = header_text(headers, "authorization")?.and_then(|text| text.strip_prefix("Bearer "));
        match shown {
            Some(token) if Sha256::digest(token)[..] == digest[..] => Ok(()),
            Some(_) => Err(unauthorized("wrong token for this agent")),
            None => Err(unauthorized("missing token; send Authorization: Bearer TOKEN")),
        }
    }
}

fn header_text<'a>(headers: &'a HeaderMap, name: &str) -> Result<Option<&'a str>, Answer> {
    headers.get(name).map(|value| value.to_str().map_err(|_| bad_header(name))).transpose()
}

fn bad_header(name: &str) -> Answer {
    Answer::refused(StatusCode::BAD_REQUEST, Code::INVALID_ARGUMENT, format!("header {name} is malformed"))
}

fn unauthorized(why: &str) -> Answer {
    Answer::refused(StatusCode::UNAUTHORIZED, Code::INVALID_ARGUMENT, why)
}
