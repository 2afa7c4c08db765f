//! The answer to a command, which has the protocol's shape.

use std::sync::Arc;

use axum::{
    body::Body,
    http::{StatusCode, header},
    response::Response,
};
use ringfence_messages::{Code, ErrorCode, agent::AgentAnswer};
use serde_json::Value;

/// An answer, ready to be sent and stored.
#[derive(Clone)]
pub(crate) struct Answer {
    status: StatusCode,
    body: Arc<[u8]>,
}

impl Answer {
    /// The result of a command.
    pub(crate) fn of(status: StatusCode, result: Result<Value, ErrorCode>) -> Answer {
        let answer = match result {
            Ok(reply) => AgentAnswer { success: true, error: None, reply: Some(reply) },
            Err(error) => AgentAnswer { success: false, error: Some(error), reply: None },
        };
        let body = serde_json::to_vec(&answer).expect("an answer is plain JSON");
        Answer { status, body: body.into() }
    }

    /// An error before or instead of a command.
    pub(crate) fn refused(status: StatusCode, code: Code, why: impl Into<String>) -> Answer {
        Answer::of(status, Err(ErrorCode::new(code, why)))
    }

    /// The answer of a command that panicked.
    pub(crate) fn panicked(why: &str) -> Answer {
        Answer::refused(StatusCode::INTERNAL_SERVER_ERROR, Code::INTERNAL, why)
    }

    /// The answer as a response.
    pub(crate) fn into_response(self) -> Response {
        let mut response = Response::new(Body::from(self.body.to_vec()));
        *response.status_mut() = self.status;
        response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
        response
    }
}
