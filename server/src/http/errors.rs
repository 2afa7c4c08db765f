//! Errors as HTTP answers.

use axum::{
    Json,
    http::{Method, StatusCode, Uri},
    response::{IntoResponse, Response},
};
use ringfence_messages::{Code, ErrorCode};
use serde::Serialize;
use utoipa::ToSchema;

/// Shape of every error.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Problem {
    /// The error.
    error: ErrorCode,
}

/// An error with its status.
pub(super) struct Failure {
    status: StatusCode,
    error: ErrorCode,
}

impl Failure {
    pub(super) fn with(status: StatusCode, code: Code, details: impl Into<String>) -> Failure {
        Failure { status, error: ErrorCode::new(code, details) }
    }
}

/// The status of an error.
pub(crate) fn status(error: &ErrorCode) -> StatusCode {
    match error.code.as_str() {
        "SYS.1001" => StatusCode::GATEWAY_TIMEOUT,
        "SYS.1003" | "SYS.1009" => StatusCode::NOT_FOUND,
        "SYS.1005" | "HOST.1005" | "HOST.1010" => StatusCode::CONFLICT,
        "SYS.1007" => StatusCode::BAD_REQUEST,
        "SYS.1018" => StatusCode::FORBIDDEN,
        "SYS.1010" | "SYS.1012" | "SYS.1016" => StatusCode::SERVICE_UNAVAILABLE,
        "SYS.1006" | "SYS.1015" | "HOST.1011" => StatusCode::BAD_GATEWAY,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

impl From<ErrorCode> for Failure {
    fn from(error: ErrorCode) -> Failure {
        Failure { status: status(&error), error }
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        (self.status, Json(Problem { error: self.error })).into_response()
    }
}

pub(super) async fn no_such_path(uri: Uri) -> Failure {
    let details = format!("unknown path {:.100}; GET / lists the paths", uri.path());
    Failure::with(StatusCode::NOT_FOUND, Code::NOT_FOUND, details)
}

pub(super) async fn no_such_method(method: Method, uri: Uri) -> Failure {
    let details = format!("{:.100} does not accept {method}; GET / lists the methods", uri.path());
    Failure::with(StatusCode::METHOD_NOT_ALLOWED, Code::INVALID_ARGUMENT, details)
}
