//! Entity tags: what did not change is not sent again, and what changed is not ordered about by mistake.

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

/// An answer with its tag; nothing but the tag for who has it already.
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

/// Refuses an order whose `If-Match` names another tag than the thing's; without that header the thing is not asked for.
pub(super) async fn matches<T: Serialize>(headers: &HeaderMap, thing: impl Future<Output = Result<T>>) -> Answer<()> {
    let Some(wanted) = headers.get(header::IF_MATCH) else { return Ok(()) };
    let is = tag(&serde_json::to_vec(&thing.await?).unwrap_or_default());
    if wanted.as_bytes() == b"*" || wanted.as_bytes() == is.as_bytes() {
        return Ok(());
    }
    let why =
        format!("it changed since: If-Match is {:.80}, it is {is} now", String::from_utf8_lossy(wanted.as_bytes()));
    Err(Failure::with(StatusCode::PRECONDITION_FAILED, Code::CHANGE_STATE, why))
}
