//! The journal over HTTP: in pages, and as a live stream.

use std::{convert::Infallible, time::Duration};

use axum::{
    Json,
    extract::{Query, State, rejection::QueryRejection},
    http::{HeaderMap, StatusCode},
    response::{
        IntoResponse,
        sse::{Event, KeepAlive, Sse},
    },
};
use futures_util::{Stream, StreamExt, stream};
use ringfence_actors::ports::{MAX_READ, Record};
use ringfence_messages::{Code, ErrorCode};
use serde::{Deserialize, Serialize};
use tokio::sync::{Semaphore, SemaphorePermit};
use utoipa::{IntoParams, ToSchema};

use super::{
    Answer, App,
    errors::{Failure, Problem},
};

/// Default size of a page.
const DEFAULT_LIMIT: usize = 100;

/// Time between keep-alive comments on an idle stream.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// Largest number of concurrent streams, including those of the page. Too low: users with several tabs block each
/// other. Too high: readers that do not read hold memory, [`MAX_READ`] records each.
const MAX_STREAMS: usize = 64;

static STREAMS: Semaphore = Semaphore::const_new(MAX_STREAMS);

/// A permit for one stream; dropping it frees the place.
///
/// # Errors
/// `SYS.1010` if all places are taken.
pub(crate) fn stream_place() -> ringfence_messages::Result<SemaphorePermit<'static>> {
    STREAMS.try_acquire().map_err(|_| {
        let why = format!("all {MAX_STREAMS} event streams are in use; close one, or read /v1/events?after=SEQ");
        ErrorCode::new(Code::NOT_READY, why)
    })
}

/// A page of records.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Page {
    /// Sequence number after which records are returned.
    #[serde(default)]
    #[param(default = 0, maximum = 9223372036854775807i64)]
    after: u64,
    /// Largest number of records; 100 if omitted.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<usize>,
}

/// Records of the journal, the oldest first.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Records {
    /// Without gaps.
    items: Vec<Record>,
}

fn page(query: Result<Query<Page>, QueryRejection>) -> Answer<Page> {
    let bad = |why: String| Failure::with(StatusCode::BAD_REQUEST, Code::INVALID_ARGUMENT, why);
    let Query(page) =
        query.map_err(|e| bad(format!("`after` and `limit` must be whole numbers: {}", e.body_text())))?;
    if i64::try_from(page.after).is_err() {
        return Err(bad(format!("`after` = {} is out of range (at most {})", page.after, i64::MAX)));
    }
    if page.limit.is_some_and(|limit| !(1..=MAX_READ).contains(&limit)) {
        return Err(bad(format!("`limit` is out of range (1 to {MAX_READ})")));
    }
    Ok(page)
}

/// Records of the journal
#[utoipa::path(get, path = "/v1/events", tag = "events", params(Page),
    responses((status = 200, body = Records), (status = "default", body = Problem)))]
pub(super) async fn list(State(backend): App, query: Result<Query<Page>, QueryRejection>) -> Answer<Json<Records>> {
    let page = page(query)?;
    let items = backend.events(page.after, page.limit.unwrap_or(DEFAULT_LIMIT)).await?;
    Ok(Json(Records { items }))
}

/// Records of the journal as an endless stream of server-sent events
#[utoipa::path(get, path = "/v1/events/stream", tag = "events",
    params(Page,
        ("last-event-id" = Option<u64>, Header, description = "Sequence number after which the stream resumes")),
    responses((status = 200, body = String, content_type = "text/event-stream"), (status = "default", body = Problem)))]
pub(super) async fn stream(
    State(backend): App,
    headers: HeaderMap,
    query: Result<Query<Page>, QueryRejection>,
) -> Answer {
    let mut after = page(query)?.after;
    if let Some(last) = headers.get("last-event-id") {
        let number = last.to_str().ok().and_then(|text| text.parse().ok());
        after = number.ok_or_else(|| {
            Failure::with(StatusCode::BAD_REQUEST, Code::INVALID_ARGUMENT, "`Last-Event-ID` must be a sequence number")
        })?;
    }
    let place = stream_place()?;
    // Subscribe first, then read the past: records in between come twice and are deduplicated by their number.
    let live = backend.live().await?;
    let past = stream::try_unfold((backend, after, true), |(backend, after, more)| async move {
        if !more {
            return Ok::<_, ringfence_messages::ErrorCode>(None);
        }
        let records = backend.events(after, MAX_READ).await?;
        let (last, more) = (records.last().map_or(after, |record| record.seq), records.len() == MAX_READ);
        Ok(Some((stream::iter(records).map(Ok), (backend, last, more))))
    });
    let past = past.map(|page| match page {
        Ok(records) => records.left_stream(),
        Err(error) => stream::once(async move { Err(error) }).right_stream(),
    });
    let records = past.flatten().chain(live.map(Ok)).inspect(move |_| _ = &place);
    Ok(Sse::new(deduplicated(records, after)).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)).into_response())
}

/// Each record once, in sequence. The stream ends at a gap, and the reader resumes.
fn deduplicated(
    records: impl Stream<Item = ringfence_messages::Result<Record>> + Send + 'static,
    after: u64,
) -> impl Stream<Item = Result<Event, Infallible>> + Send {
    records
        .scan(after, |last, record| {
            let event = match record {
                Ok(record) if record.seq <= *last => Some(None),
                Ok(record) if record.seq == *last + 1 => {
                    *last = record.seq;
                    let data = serde_json::to_string(&record).unwrap_or_default();
                    Some(Some(Ok(Event::default().id(record.seq.to_string()).event(record.topic).data(data))))
                }
                _ => None,
            };
            std::future::ready(event)
        })
        .filter_map(std::future::ready)
}
