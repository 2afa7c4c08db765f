//! Follows the journal until interrupted; a controller that goes away is waited for, and nothing is missed.

use std::time::Duration;

use eventsource_stream::Eventsource;
use futures_util::StreamExt;
use ringfence_actors::ports::Record;
use ringfence_messages::Result;

use super::ClientArgs;
use crate::output::{event_line, print};

/// Between tries to reach a controller that went away.
const RETRY: Duration = Duration::from_secs(1);

pub(super) async fn run(args: &ClientArgs, mut after: u64) -> Result<()> {
    let client = args.server.client()?;
    // The first time an error is the answer; later it is worth waiting for.
    let mut stream = Some(client.open(&path(after)).await?);
    let follow = async {
        loop {
            let response = match stream.take() {
                Some(response) => response,
                None => match client.open(&path(after)).await {
                    Ok(response) => response,
                    Err(error) => {
                        tracing::debug!(%error, "waiting for the controller");
                        tokio::time::sleep(RETRY).await;
                        continue;
                    }
                },
            };
            let mut events = response.bytes_stream().eventsource();
            while let Some(Ok(event)) = events.next().await {
                let Ok(record) = serde_json::from_str::<Record>(&event.data) else { continue };
                after = record.seq;
                match args.json {
                    true => print(&event.data),
                    false => print(event_line(&record)),
                }
            }
            eprintln!("the controller went away; waiting for it");
            tokio::time::sleep(RETRY).await;
        }
    };
    tokio::select! {
        () = follow => {}
        () = crate::listen::shutdown_signal() => {}
    }
    Ok(())
}

fn path(after: u64) -> String {
    format!("/v1/events/stream?after={after}")
}
