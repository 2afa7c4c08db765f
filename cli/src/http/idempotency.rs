//! Orders with an `Idempotency-Key`: sent again, they are not carried out again.
//!
//! Invariants: one key of one bearer stands for one order; the answer of the first one is given to every later one for [`KEPT`];
//! while that one is under way the second is refused, not queued. Kept only for who was let in, and bounded for each bearer, of
//! whom there are as many as the config names: nobody makes the controller grow, or forget an order of somebody else. The oldest
//! answers are forgotten first. Of an order no more is kept than its digest. In memory: after a restart of the controller a
//! repeated order is a new one, which `If-Match` guards against.

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
use sha2::{Digest, Sha256};

use super::{actions::MAX_BODY_BYTES, auth::Bearer, errors::Failure};
use crate::listen::read_body;

/// How long an answer is kept. Too low: a client that tries again after a break does it twice.
const KEPT: Duration = Duration::from_secs(24 * 3600);

/// Answers that are kept for one bearer. Too low: a script that orders a lot and tries again later does it twice. Too high: time
/// to look through them.
const MAX_KEPT: usize = 5_000;

/// Bytes of the answers that are kept for one bearer. Too low: as with [`MAX_KEPT`]. Too high: memory.
const MAX_KEPT_BYTES: usize = 8 << 20;

/// The longest key.
const MAX_KEY_BYTES: usize = 100;

/// Whose order it is, by the digest of their token; none where none is asked for.
type Whose = Option<[u8; 32]>;

/// The orders that were named.
#[derive(Default)]
pub(super) struct Repeats(Mutex<HashMap<Whose, HashMap<String, Order>>>);

struct Order {
    at: Instant,
    /// Of its path and body.
    digest: [u8; 32],
    /// None while it is under way.
    answer: Option<Answer>,
}

type Answer = (StatusCode, HeaderMap, Bytes);

/// What to do with an order.
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

/// Forgets the oldest answer; whether there was one.
fn forget_oldest(orders: &mut HashMap<String, Order>) -> bool {
    let oldest = orders.iter().filter(|(_, order)| order.answer.is_some()).min_by_key(|(_, order)| order.at);
    let oldest = oldest.map(|(key, _)| key.clone());
    oldest.is_some_and(|key| orders.remove(&key).is_some())
}

impl Repeats {
    fn begin(&self, whose: Whose, key: &str, digest: [u8; 32]) -> Result<First, Failure> {
        let refuse = |why: &str| Err(Failure::with(StatusCode::CONFLICT, Code::CHANGE_STATE, why));
        let mut all = self.0.lock();
        let orders = all.entry(whose).or_default();
        orders.retain(|_, order| order.at.elapsed() < KEPT);
        match orders.get(key) {
            Some(order) if order.digest != digest => refuse("this Idempotency-Key names another order"),
            Some(Order { answer: None, .. }) => refuse("the order of this Idempotency-Key is under way"),
            Some(Order { answer: Some((status, headers, bytes)), .. }) => {
                Ok(First::Answered((*status, headers.clone(), bytes.clone()).into_response()))
            }
            None => {
                if orders.len() >= MAX_KEPT && !forget_oldest(orders) {
                    return refuse("too many orders are under way");
                }
                orders.insert(key.to_owned(), Order { at: Instant::now(), digest, answer: None });
                Ok(First::Yes)
            }
        }
    }

    fn end(&self, whose: Whose, key: &str, answer: Option<Answer>) {
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

/// Forgets an order whose sender went away before it was answered: what came of it nobody knows here.
struct UnderWay<'a>(&'a Repeats, Whose, &'a str, bool);

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
        return bad(StatusCode::BAD_REQUEST, format!("Idempotency-Key takes 1 to {MAX_KEY_BYTES} bytes"));
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
    // A failure of ours may be over when it is tried again; a refusal stays one.
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

    const OPS: Whose = Some([1; 32]);

    fn order(path: &'static str, body: &[u8]) -> [u8; 32] {
        digest(&Uri::from_static(path), body)
    }

    fn done(bytes: usize) -> Option<Answer> {
        Some((StatusCode::OK, HeaderMap::new(), Bytes::from(vec![b'x'; bytes])))
    }

    #[test]
    fn a_key_names_one_order_of_one_bearer_and_its_answer_is_kept() {
        let (repeats, stop) = (Repeats::default(), order("/v1/vms/vm1/actions", b"{}"));
        assert!(matches!(repeats.begin(OPS, "k", stop), Ok(First::Yes)));
        assert!(repeats.begin(OPS, "k", stop).is_err(), "under way");
        repeats.end(OPS, "k", done(4));
        assert!(matches!(repeats.begin(OPS, "k", stop), Ok(First::Answered(_))));
        assert!(repeats.begin(OPS, "k", order("/v1/vms/vm1/actions", b"other")).is_err(), "another order");
        assert!(repeats.begin(OPS, "k", order("/v1/vms/vm2/actions", b"{}")).is_err(), "another VM");
        let others = repeats.begin(Some([2; 32]), "k", order("/v1/vms/vm2/actions", b"{}"));
        assert!(matches!(others, Ok(First::Yes)), "somebody else's key is another");
        repeats.begin(OPS, "gone", stop).ok();
        drop(UnderWay(&repeats, OPS, "gone", true));
        assert!(matches!(repeats.begin(OPS, "gone", stop), Ok(First::Yes)), "its sender went away");
    }

    #[test]
    fn the_oldest_answer_is_forgotten_first_and_nobody_elses() {
        let (repeats, stop) = (Repeats::default(), order("/", b""));
        let once = |whose: Whose, key: &str, bytes: usize| {
            assert!(matches!(repeats.begin(whose, key, stop), Ok(First::Yes)), "{key}");
            repeats.end(whose, key, done(bytes));
        };
        once(None, "0", 0);
        for n in 0..=MAX_KEPT {
            once(OPS, &n.to_string(), 0);
        }
        let is_kept = |whose: Whose, key: &str| matches!(repeats.begin(whose, key, stop), Ok(First::Answered(_)));
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
