//! Requests with an `Idempotency-Key`: a retry is not carried out again.
//!
//! Invariants: one key of one bearer is one request; retries get the answer of the first request for [`KEPT`]; a
//! retry during the first request is rejected, not queued. Answers are stored only for authenticated bearers and
//! bounded for each of them, so no client can exhaust memory or evict answers of another client. The oldest answers
//! are evicted first. Of a request only the digest is stored. Storage is in memory: after a restart of the controller
//! a retry is a new request; `If-Match` guards against that.

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
use ringfence_service::listen::read_body;
use sha2::{Digest, Sha256};

use super::{actions::MAX_BODY_BYTES, auth::Bearer, errors::Failure};

/// Life of a stored answer. Too low: a client that retries after a break repeats the request. Too high: memory.
const KEPT: Duration = Duration::from_secs(24 * 3600);

/// Stored answers of one bearer. Too low: a script with many requests that retries later repeats some. Too high: slow
/// search.
const MAX_KEPT: usize = 5_000;

/// Bytes of the stored answers of one bearer. Too low: as with [`MAX_KEPT`]. Too high: memory.
const MAX_KEPT_BYTES: usize = 8 << 20;

/// The longest key.
const MAX_KEY_BYTES: usize = 100;

/// Sender of a request, by the digest of its token; none if authentication is disabled.
type Sender = Option<[u8; 32]>;

/// The requests with a key.
#[derive(Default)]
pub(super) struct Repeats(Mutex<HashMap<Sender, HashMap<String, Order>>>);

struct Order {
    at: Instant,
    /// Digest of path and body.
    digest: [u8; 32],
    /// None while the request is in progress.
    answer: Option<Answer>,
}

type Answer = (StatusCode, HeaderMap, Bytes);

/// What to do with a request.
enum First {
    Yes,
    Answered(Response),
}

fn digest(path: &Uri, body: &[u8]) -> [u8; 32] {
    // A path has no line break.
    Sha256::new().chain_update(path.to_string()).chain_update("\n").chain_update(body).finalize().into()
}

fn bytes(orders: &HashMap<String, Order>) -> usize {
    orders.values().filter_map(|order| order.answer.as_ref()).map(|(_, _, bytes)| bytes.len()).sum()
}

/// Evicts the oldest answer. Returns false if there is none.
fn forget_oldest(orders: &mut HashMap<String, Order>) -> bool {
    let oldest = orders.iter().filter(|(_, order)| order.answer.is_some()).min_by_key(|(_, order)| order.at);
    let oldest = oldest.map(|(key, _)| key.clone());
    oldest.is_some_and(|key| orders.remove(&key).is_some())
}

impl Repeats {
    fn begin(&self, whose: Sender, key: &str, digest: [u8; 32]) -> Result<First, Failure> {
        let refuse = |why: &str| Err(Failure::with(StatusCode::CONFLICT, Code::CHANGE_STATE, why));
        let mut all = self.0.lock();
        let orders = all.entry(whose).or_default();
        orders.retain(|_, order| order.at.elapsed() < KEPT);
        match orders.get(key) {
            Some(order) if order.digest != digest => refuse("this Idempotency-Key was used for a different request"),
            Some(Order { answer: None, .. }) => refuse("the request with this Idempotency-Key is in progress"),
            Some(Order { answer: Some((status, headers, bytes)), .. }) => {
                Ok(First::Answered((*status, headers.clone(), bytes.clone()).into_response()))
            }
            None => {
                if orders.len() >= MAX_KEPT && !forget_oldest(orders) {
                    return refuse("too many requests with an Idempotency-Key are in progress");
                }
                orders.insert(key.to_owned(), Order { at: Instant::now(), digest, answer: None });
                Ok(First::Yes)
            }
        }
    }

    fn end(&self, whose: Sender, key: &str, answer: Option<Answer>) {
        let mut all = self.0.lock();
        let Some(orders) = all.get_mut(&whose) else { return };
        let Some(answer) = answer else {
            orders.remove(key);
            return;
        };
        while bytes(orders) + answer.2.len() > MAX_KEPT_BYTES && forget_oldest(orders) {}
        if let Some(order) = orders.get_mut(key) {
            order.answer = Some(answer);
        }
    }
}

/// Removes a request whose client disconnected before the answer, because its result is unknown here.
struct UnderWay<'a>(&'a Repeats, Sender, &'a str, bool);

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        if self.3 {
            self.0.end(self.1, self.2, None);
        }
    }
}

pub(super) async fn once(State(repeats): State<Arc<Repeats>>, request: Request, next: Next) -> Response {
    let key = request.headers().get("idempotency-key").map(|key| String::from_utf8_lossy(key.as_bytes()).into_owned());
    let whose = request.extensions().get::<Bearer>().map(|bearer| bearer.token);
    let (Some(key), Some(whose), true) = (key, whose, request.method() == axum::http::Method::POST) else {
        return next.run(request).await;
    };
    let bad = |status, why: String| Failure::with(status, Code::INVALID_ARGUMENT, why).into_response();
    if key.is_empty() || key.len() > MAX_KEY_BYTES {
        return bad(StatusCode::BAD_REQUEST, format!("`Idempotency-Key` must have 1 to {MAX_KEY_BYTES} bytes"));
    }
    let (parts, body) = request.into_parts();
    let body = match read_body(body, MAX_BODY_BYTES).await {
        Ok(body) => body,
        Err(why) => return bad(why.status(), why.to_string()),
    };
    match repeats.begin(whose, &key, digest(&parts.uri, &body)) {
        Err(refused) => return refused.into_response(),
        Ok(First::Answered(answer)) => return answer,
        Ok(First::Yes) => {}
    }
    let mut under_way = UnderWay(&repeats, whose, &key, true);
    let (parts, body) = next.run(Request::from_parts(parts, Body::from(body))).await.into_parts();
    let bytes = body.collect().await.map(|collected| collected.to_bytes()).unwrap_or_default();
    // A server error may be temporary, so a retry is carried out again; every other answer is stored.
    if !parts.status.is_server_error() {
        let mut headers = HeaderMap::new();
        headers.extend(parts.headers.get(header::CONTENT_TYPE).map(|of| (header::CONTENT_TYPE, of.clone())));
        repeats.end(whose, &key, Some((parts.status, headers, bytes.clone())));
        under_way.3 = false;
    }
    drop(under_way);
    Response::from_parts(parts, Body::from(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    const OPS: Sender = Some([1; 32]);

    fn order(path: &'static str, body: &[u8]) -> [u8; 32] {
        digest(&Uri::from_static(path), body)
    }

    fn done(bytes: usize) -> Option<Answer> {
        Some((StatusCode::OK, HeaderMap::new(), Bytes::from(vec![b'x'; bytes])))
    }

    #[test]
    fn retry_of_one_bearer_gets_the_first_answer() {
        let (repeats, stop) = (Repeats::default(), order("/v1/vms/vm1/actions", b"{}"));
        assert!(matches!(repeats.begin(OPS, "k", stop), Ok(First::Yes)));
        assert!(repeats.begin(OPS, "k", stop).is_err(), "under way");
        repeats.end(OPS, "k", done(4));
        assert!(matches!(repeats.begin(OPS, "k", stop), Ok(First::Answered(_))));
        assert!(repeats.begin(OPS, "k", order("/v1/vms/vm1/actions", b"other")).is_err(), "another order");
        assert!(repeats.begin(OPS, "k", order("/v1/vms/vm2/actions", b"{}")).is_err(), "another VM");
        let others = repeats.begin(Some([2; 32]), "k", order("/v1/vms/vm2/actions", b"{}"));
        assert!(matches!(others, Ok(First::Yes)), "keys of different senders are independent");
        repeats.begin(OPS, "gone", stop).ok();
        drop(UnderWay(&repeats, OPS, "gone", true));
        assert!(matches!(repeats.begin(OPS, "gone", stop), Ok(First::Yes)), "its client disconnected");
    }

    #[test]
    fn oldest_answer_of_the_same_bearer_is_evicted() {
        let (repeats, stop) = (Repeats::default(), order("/", b""));
        let once = |whose: Sender, key: &str, bytes: usize| {
            assert!(matches!(repeats.begin(whose, key, stop), Ok(First::Yes)), "{key}");
            repeats.end(whose, key, done(bytes));
        };
        once(None, "0", 0);
        for n in 0..=MAX_KEPT {
            once(OPS, &n.to_string(), 0);
        }
        let is_kept = |whose: Sender, key: &str| matches!(repeats.begin(whose, key, stop), Ok(First::Answered(_)));
        assert_eq!(repeats.0.lock()[&OPS].len(), MAX_KEPT);
        assert!(is_kept(OPS, "1") && is_kept(None, "0"));
        assert!(!is_kept(OPS, "0"), "forgotten");
    }

    #[test]
    fn answers_are_bounded_in_bytes() {
        let (repeats, stop) = (Repeats::default(), order("/", b""));
        for n in 0..20 {
            repeats.begin(OPS, &n.to_string(), stop).ok();
            repeats.end(OPS, &n.to_string(), done(1 << 20));
            assert!(bytes(&repeats.0.lock()[&OPS]) <= MAX_KEPT_BYTES);
        }
        assert!(matches!(repeats.begin(OPS, "19", stop), Ok(First::Answered(_))), "the newest one is kept");
    }
}
