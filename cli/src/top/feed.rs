//! Updates for the screen: reads the state once, follows events, and reads the state again after an event.
//!
//! Invariants: every request has a time limit; an unreachable controller is retried forever; only the end of a long
//! journal is read.

use std::time::Duration;

use eventsource_stream::Eventsource;
use futures_util::StreamExt;
use ringfence_actors::ports::Record;
use ringfence_messages::{Code, ErrorCode, Result};
use serde_json::Value;
use tokio::{
    sync::mpsc::{Receiver, Sender},
    time::{Instant, sleep_until, timeout},
};

use super::state::{Data, MAX_RECORDS, Update};
use crate::client::{Client, path_part};

/// Time limit of a request. Too low: a busy controller counts as unreachable. Too high: an unreachable one looks busy.
const PATIENCE: Duration = Duration::from_secs(5);

/// Time between two connection attempts.
const RETRY: Duration = Duration::from_secs(1);

/// Least time between two reads of the state, so that many events cause one.
const REFRESH: Duration = Duration::from_millis(500);

/// Time between two reads of the state without events, because some changes have no event.
const POLL: Duration = Duration::from_secs(5);

/// Runs until the screen closes.
pub(super) async fn run(client: Client, news: Sender<Update>, mut asked: Receiver<String>) {
    while !news.is_closed() {
        let error = match follow(&client, &news, &mut asked).await {
            Err(error) => error,
            Ok(()) => return,
        };
        let _ = news.send(Update::Lost(error.details)).await;
        tokio::time::sleep(RETRY).await;
    }
}

/// Runs until the connection fails, or (`Ok`) the screen closes.
async fn follow(client: &Client, news: &Sender<Update>, asked: &mut Receiver<String>) -> Result<()> {
    let deliver = |update| async { news.send(update).await.is_ok() };
    if !deliver(Update::Data(everything(client).await?)).await {
        return Ok(());
    }
    let after = last(client).await?.saturating_sub(MAX_RECORDS as u64);
    let stream = bounded(client.open(&format!("/v1/events/stream?after={after}"))).await?;
    let mut events = stream.bytes_stream().eventsource();
    let mut looked = Instant::now();
    let mut next = looked + POLL;
    loop {
        tokio::select! {
            event = events.next() => {
                let gone = |why: String| ErrorCode::new(Code::NODE_UNAVAILABLE,
                    format!("the stream of events ended: {why}"));
                let event = event.ok_or_else(|| gone("closed".to_owned()))?.map_err(|e| gone(e.to_string()))?;
                let Ok(record) = serde_json::from_str::<Record>(&event.data) else { continue };
                if !deliver(Update::Record(record)).await {
                    return Ok(());
                }
                next = next.min(looked + REFRESH);
            }
            () = sleep_until(next) => {
                let data = everything(client).await?;
                looked = Instant::now();
                next = looked + POLL;
                if !deliver(Update::Data(data)).await {
                    return Ok(());
                }
            }
            name = asked.recv() => {
                let Some(name) = name else { return Ok(()) };
                let lines = bounded(client.items(&format!("/v1/explain/{}", path_part(&name)))).await;
                if !deliver(Update::Explained(name, lines.unwrap_or_else(|error| vec![error.details]))).await {
                    return Ok(());
                }
            }
        }
    }
}

async fn everything(client: &Client) -> Result<Data> {
    let (hosts, storages, vms) = bounded(async {
        tokio::try_join!(client.items("/v1/hosts"), client.items("/v1/storages"), client.items("/v1/vms"))
    })
    .await?;
    Ok(Data { hosts, storages, vms })
}

/// The number of the newest record, by binary search: numbers have no gaps, so about 40 small requests suffice.
async fn last(client: &Client) -> Result<u64> {
    let beyond = async |seq: u64| {
        let page: Vec<Value> = bounded(client.items(&format!("/v1/events?after={seq}&limit=1"))).await?;
        Ok::<_, ErrorCode>(page.is_empty())
    };
    let (mut below, mut above) = (0, 1_u64);
    while !beyond(above).await? {
        (below, above) = (above, above.saturating_mul(4).min(i64::MAX as u64));
    }
    while below < above {
        let middle = below + (above - below) / 2;
        if beyond(middle).await? { above = middle } else { below = middle + 1 }
    }
    Ok(above)
}

async fn bounded<T>(question: impl Future<Output = Result<T>>) -> Result<T> {
    timeout(PATIENCE, question).await.unwrap_or_else(|_| {
        Err(ErrorCode::new(Code::TIMEOUT, format!("the controller did not answer within {PATIENCE:?}")))
    })
}
