//! The timeline of events, and a stream of its lines.

use std::{convert::Infallible, time::Duration};

use axum::{
    extract::{Query, State},
    response::{
        IntoResponse, Response,
        sse::{Event, KeepAlive, Sse},
    },
};
use futures_util::StreamExt;
use maud::{Markup, html};
use ringfence_actors::ports::Record;
use ringfence_messages::Result;
use serde::Deserialize;

use super::{App, Shown, layout::page};
use crate::http::{backend::Backend, stream_place};
use crate::times::clock;

/// Events of one page.
const PER_PAGE: usize = 200;

/// A page of the timeline.
#[derive(Debug, Deserialize)]
pub(super) struct Before {
    /// Sequence number before which events are shown.
    before: Option<u64>,
}

/// The sequence number of the newest record.
pub(super) async fn last_of_all(backend: &dyn Backend) -> Result<u64> {
    Ok(backend.newest(None, 1).await?.last().map_or(0, |record| record.seq))
}

pub(super) async fn list(State(backend): App, Query(Before { before }): Query<Before>) -> Shown {
    let (records, live) = match before {
        None => {
            let newest = backend.newest(None, PER_PAGE).await?;
            let last = newest.last().map_or(0, |record| record.seq);
            (newest, Some(last))
        }
        Some(before) => {
            let after = before.saturating_sub(PER_PAGE as u64 + 1);
            (backend.events(after, usize::try_from(before - after).unwrap_or(1).saturating_sub(1)).await?, None)
        }
    };
    let older = records.first().map(|record| record.seq).filter(|seq| *seq > 1);
    let body = html! {
        h1 { "Events" }
        (timeline(&records))
        @if let Some(older) = older { p { a href={ "/ui/events?before=" (older) } { "Older" } } }
        @if before.is_some() { p { a href="/ui/events" { "Newest" } } }
    };
    Ok(page("Events", "/ui/events", live, &body))
}

/// Records, the newest first.
pub(super) fn timeline(records: &[Record]) -> Markup {
    html! {
        @if records.is_empty() { p { "No events." } }
        ol.timeline { @for record in records.iter().rev() { (line(record)) } }
    }
}

fn line(record: &Record) -> Markup {
    let time = clock(&record.time);
    let kind = match record.topic.as_str() {
        "ceph.ha.sibling-fence" | "fence.intent" | "ceph.storage-fence" => "fence",
        "ha.host-failed" | "ha.vm-blocked" | "ha.storm-brake" => "bad",
        "ha.vm-started" => "good",
        _ => "",
    };
    html! {
        li #{ "event-" (record.seq) } class=(kind) {
            time datetime=(record.time) title=(record.time) { (time) }
            " " code { (record.topic) } " " strong { (record.subject) } " " (summary(record))
        }
    }
}

/// The main fields of a record.
fn summary(record: &Record) -> String {
    let text = |key: &str| record.payload[key].as_str().filter(|text| !text.is_empty());
    let place = text("host").filter(|host| !record.subject.contains(host));
    let states = match (text("oldState").or(text("oldStatus")), text("newState").or(text("newStatus"))) {
        (Some(old), Some(new)) => Some(format!("{old} to {new}")),
        _ => None,
    };
    let quarantined =
        record.payload["quarantined"].as_bool().map(|is| if is { "quarantined" } else { "returned to service" });
    let words = [states.as_deref(), place, text("phase"), text("level"), text("outcome"), quarantined, text("reason")];
    words.into_iter().flatten().collect::<Vec<_>>().join(", ")
}

/// A line for every event after `after`. A reader that is too slow is disconnected and reconnects.
pub(super) async fn stream(State(backend): App, Query(After { after }): Query<After>) -> Shown<Response> {
    let place = stream_place()?;
    let live = backend.live().await?;
    let past = backend.events(after, ringfence_actors::ports::MAX_READ).await?;
    let records = futures_util::stream::iter(past).chain(live).inspect(move |_| _ = &place);
    let lines = records.scan(after, |last, record| {
        let is_new = record.seq > *last;
        *last = record.seq.max(*last);
        let line = line(&record).into_string();
        let event = Event::default().id(record.seq.to_string()).data(line);
        std::future::ready(Some(is_new.then_some(Ok::<_, Infallible>(event))))
    });
    let lines = lines.filter_map(std::future::ready);
    Ok(Sse::new(lines).keep_alive(KeepAlive::new().interval(Duration::from_secs(15))).into_response())
}

/// Sequence number after which the stream starts.
#[derive(Debug, Deserialize)]
pub(super) struct After {
    #[serde(default)]
    after: u64,
}
