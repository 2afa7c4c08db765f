//! Entity tags: `If-None-Match` saves unchanged answers, `If-Match` rejects actions on changed objects.

use std::future::Future;

use axum::{
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use ringfence_messages::{Code, Result};
use serde::Serialize;
use sha2::{Digest, Sha256};

use super::{Answer, errors::Failure};

/// The tag of a body.
fn tag(body: &[u8]) -> String {
    format!("\"{}\"", hex::encode(&Sha256::digest(body)[..16]))
}

/// An answer with its tag; 304 if the client has this tag.
pub(super) fn tagged(answer: &impl Serialize, headers: &HeaderMap) -> Response {
    let body = serde_json::to_vec(answer).unwrap_or_default();
    let tag = tag(&body);
    let known = headers.get(header::IF_NONE_MATCH).is_some_and(|known| known.as_bytes() == tag.as_bytes());
    let Ok(value) = HeaderValue::from_str(&tag) else { return body.into_response() };
    let tag = [(header::ETAG, value)];
    match known {
        true => (StatusCode::NOT_MODIFIED, tag).into_response(),
        false => (tag, [(header::CONTENT_TYPE, "application/json")], body).into_response(),
    }
}

/// Rejects a request whose `If-Match` differs from the object's tag. Without that header the object is not read.
pub(super) async fn matches<T: Serialize>(headers: &HeaderMap, thing: impl Future<Output = Result<T>>) -> Answer<()> {
    let Some(required) = headers.get(header::IF_MATCH) else { return Ok(()) };
    let current = tag(&serde_json::to_vec(&thing.await?).unwrap_or_default());
    if required.as_bytes() == b"*" || required.as_bytes() == current.as_bytes() {
        return Ok(());
    }
    let why = format!(
        "the object changed: If-Match is {:.80}, ETag is {current}",
        String::from_utf8_lossy(required.as_bytes())
    );
    Err(Failure::with(StatusCode::PRECONDITION_FAILED, Code::CHANGE_STATE, why))
}
