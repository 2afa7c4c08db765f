//! `ringfence events --follow`: prints events until interrupted. If the controller stops, it waits and resumes
//! without a gap.

use std::time::Duration;

use eventsource_stream::Eventsource;
use futures_util::StreamExt;
use ringfence_actors::ports::Record;
use ringfence_messages::Result;

use super::ClientArgs;
use crate::output::{event_line, print};

/// Time between two connection attempts. Too low: a controller that restarts gets needless requests. Too high: events
/// are printed late.
const RETRY: Duration = Duration::from_secs(1);

pub(super) async fn run(args: &ClientArgs, mut after: u64) -> Result<()> {
    let client = args.server.client()?;
    // A failure of the first connection ends the command; later ones are retried.
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
            eprintln!("lost the connection to the controller; retrying");
            tokio::time::sleep(RETRY).await;
        }
    };
    tokio::select! {
        () = follow => {}
        () = ringfence_service::listen::shutdown_signal() => {}
    }
    Ok(())
}

fn path(after: u64) -> String {
    format!("/v1/events/stream?after={after}")
}
