//! Orders with an `Idempotency-Key`: sent again, they are not carried out again.
//!
//! Invariants: one key stands for one order; the answer of the first one is given to every later one for [`KEPT`]; while
//! that one is under way the second is refused, not queued. Bounded: the oldest answers are forgotten first. In memory: after
//! a restart of the controller a repeated order is a new one, which `If-Match` guards against.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    body::{Body, Bytes},
    extract::{Request, State},
    http::{HeaderMap, StatusCode, Uri, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use http_body_util::BodyExt;
use parking_lot::Mutex;
use ringfence_messages::Code;

use super::{actions::MAX_BODY_BYTES, errors::Failure};
use crate::listen::read_body;

/// How long an answer is kept. Too low: a client that tries again after a break does it twice.
const KEPT: Duration = Duration::from_secs(24 * 3600);

/// Answers that are kept at most: with bodies of a few hundred bytes, a few MiB.
const MAX_KEPT: usize = 10_000;

/// The longest key.
const MAX_KEY_BYTES: usize = 100;

/// The orders that were named.
#[derive(Default)]
pub(super) struct Repeats(Mutex<HashMap<String, Order>>);

struct Order {
    at: Instant,
    path: Uri,
    body: Vec<u8>,
    /// None while it is under way.
    answer: Option<(StatusCode, HeaderMap, Bytes)>,
}

/// What to do with an order.
enum First {
    Yes,
    Answered(Response),
}

impl Repeats {
    fn begin(&self, key: &str, path: &Uri, body: &[u8]) -> Result<First, Failure> {
        let refuse = |why: &str| Err(Failure::with(StatusCode::CONFLICT, Code::CHANGE_STATE, why));
        let mut orders = self.0.lock();
        orders.retain(|_, order| order.at.elapsed() < KEPT);
        match orders.get(key) {
            Some(order) if order.path != *path || order.body != body => {
                refuse("this Idempotency-Key names another order")
            }
            Some(Order { answer: None, .. }) => refuse("the order of this Idempotency-Key is under way"),
            Some(Order { answer: Some((status, headers, bytes)), .. }) => {
                Ok(First::Answered((*status, headers.clone(), bytes.clone()).into_response()))
            }
            None => {
                if orders.len() >= MAX_KEPT {
                    let oldest =
                        orders.iter().filter(|(_, order)| order.answer.is_some()).min_by_key(|(_, order)| order.at);
                    let Some(oldest) = oldest.map(|(key, _)| key.clone()) else {
                        return refuse("too many orders are under way");
                    };
                    orders.remove(&oldest);
                }
                let order = Order { at: Instant::now(), path: path.clone(), body: body.to_vec(), answer: None };
                orders.insert(key.to_owned(), order);
                Ok(First::Yes)
            }
        }
    }

    fn end(&self, key: &str, answer: Option<(StatusCode, HeaderMap, Bytes)>) {
        let mut orders = self.0.lock();
        match answer {
            Some(answer) => orders.get_mut(key).into_iter().for_each(|order| order.answer = Some(answer.clone())),
            None => drop(orders.remove(key)),
        }
    }
}

/// Forgets an order whose sender went away before it was answered: what came of it nobody knows here.
struct UnderWay<'a>(&'a Repeats, &'a str, bool);

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        if self.2 {
            self.0.end(self.1, None);
        }
    }
}

pub(super) async fn once(State(repeats): State<Arc<Repeats>>, request: Request, next: Next) -> Response {
    let key = request.headers().get("idempotency-key").map(|key| String::from_utf8_lossy(key.as_bytes()).into_owned());
    let Some(key) = key.filter(|_| request.method() == axum::http::Method::POST) else {
        return next.run(request).await;
    };
    let bad = |status, why: String| Failure::with(status, Code::INVALID_ARGUMENT, why).into_response();
    if key.is_empty() || key.len() > MAX_KEY_BYTES {
        return bad(StatusCode::BAD_REQUEST, format!("Idempotency-Key takes 1 to {MAX_KEY_BYTES} bytes"));
    }
    let (parts, body) = request.into_parts();
    let body = match read_body(body, MAX_BODY_BYTES).await {
        Ok(body) => body,
        Err(why) => return bad(why.status(), why.to_string()),
    };
    match repeats.begin(&key, &parts.uri, &body) {
        Err(refused) => return refused.into_response(),
        Ok(First::Answered(answer)) => return answer,
        Ok(First::Yes) => {}
    }
    let mut under_way = UnderWay(&repeats, &key, true);
    let (parts, body) = next.run(Request::from_parts(parts, Body::from(body))).await.into_parts();
    let bytes = body.collect().await.map(|collected| collected.to_bytes()).unwrap_or_default();
    // A failure of ours may be over when it is tried again; a refusal stays one.
    if !parts.status.is_server_error() {
        let mut headers = HeaderMap::new();
        headers.extend(parts.headers.get(header::CONTENT_TYPE).map(|of| (header::CONTENT_TYPE, of.clone())));
        repeats.end(&key, Some((parts.status, headers, bytes.clone())));
        under_way.2 = false;
    }
    drop(under_way);
    Response::from_parts(parts, Body::from(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_names_one_order_and_its_answer_is_kept() {
        let (repeats, path) = (Repeats::default(), Uri::from_static("/v1/vms/vm1/actions"));
        assert!(matches!(repeats.begin("k", &path, b"{}"), Ok(First::Yes)));
        assert!(repeats.begin("k", &path, b"{}").is_err(), "under way");
        repeats.end("k", Some((StatusCode::OK, HeaderMap::new(), Bytes::from_static(b"done"))));
        assert!(matches!(repeats.begin("k", &path, b"{}"), Ok(First::Answered(_))));
        assert!(repeats.begin("k", &path, b"other").is_err(), "another order");
        assert!(repeats.begin("k", &Uri::from_static("/v1/vms/vm2/actions"), b"{}").is_err(), "another VM");
        repeats.begin("gone", &path, b"{}").ok();
        drop(UnderWay(&repeats, "gone", true));
        assert!(matches!(repeats.begin("gone", &path, b"{}"), Ok(First::Yes)), "its sender went away");
    }

    #[test]
    fn the_oldest_answer_is_forgotten_first() {
        let (repeats, path) = (Repeats::default(), Uri::from_static("/"));
        for n in 0..=MAX_KEPT {
            assert!(matches!(repeats.begin(&n.to_string(), &path, b""), Ok(First::Yes)));
            repeats.end(&n.to_string(), Some((StatusCode::OK, HeaderMap::new(), Bytes::new())));
        }
        assert_eq!(repeats.0.lock().len(), MAX_KEPT);
        assert!(matches!(repeats.begin("1", &path, b""), Ok(First::Answered(_))));
        assert!(matches!(repeats.begin("0", &path, b""), Ok(First::Yes)), "forgotten");
    }
}
