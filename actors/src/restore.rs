//! Going on from a journal that was restored from a backup, because a human said so.
//!
//! Invariants: the new journal is above all that hosts have heard of, in generation and term of office; no order of the records
//! that are missing can be carried out any more when it is recorded. Rejected: taking the furthest witness for what happened. It says how
//! far the journal was, not what stood in it; who runs where is asked of the hosts.

use std::time::Duration;

use futures_util::{StreamExt, stream};
use ringfence_messages::{
    Code, ErrorCode, Event, HostId, Result,
    host::HostPingReply,
    journal::{ControllerRestored, JournalHead},
};
use uuid::Uuid;

use crate::{
    fence::PERMIT_VALIDITY,
    ports::{Call, NewRecord, Ports},
};

/// How long a host may take to say what it has heard, before a restored journal is gone on from. Too low: one that is slow is
/// not heard. Too high: hosts that are off delay the start.
pub const WITNESS_TIMEOUT: Duration = Duration::from_secs(3);

/// Hosts that are asked at once. Too low: a thousand hosts take long. Too high: as many sockets.
const WITNESSES_AT_ONCE: usize = 100;

/// Declares that the work goes on from this journal: hosts are asked what they have heard, then what is on its way of the former
/// controller's orders may come to its end, then it is recorded. To be called before [`Assembly::start`].
///
/// [`Assembly::start`]: crate::assembly::Assembly::start
///
/// # Errors
/// `SYS.1016` if the journal cannot be read or written.
pub async fn restore(ports: &Ports, hosts: Vec<(HostId, String)>) -> Result<ControllerRestored> {
    let ask = |(host, name): (HostId, String)| async move {
        match ports.agents.ping(host, None, Call::within(WITNESS_TIMEOUT)).await {
            Ok(HostPingReply { host_uuid, witness, .. }) if host_uuid == host => Ok(witness),
            _ => Err(name),
        }
    };
    let answers: Vec<_> = stream::iter(hosts).map(ask).buffered(WITNESSES_AT_ONCE).collect().await;
    let silent: Vec<String> = answers.iter().filter_map(|answer| answer.clone().err()).collect();
    let heard = u32::try_from(answers.len() - silent.len()).unwrap_or(u32::MAX);
    let witnesses: Vec<JournalHead> = answers.into_iter().flatten().flatten().collect();
    let own = ports.journal.latest(ControllerRestored::TOPIC).await?.pop();
    let own = own.map(|of| of.event::<ControllerRestored>()).transpose()?.map_or(0, |of| of.generation);
    let restored = ControllerRestored {
        journal_id: Uuid::new_v4().to_string(),
        generation: witnesses.iter().map(|of| of.generation).fold(own, u64::max) + 1,
        epoch: witnesses.iter().map(|of| of.epoch).max().unwrap_or_default(),
        witness: witnesses.into_iter().max_by_key(|of| (of.generation, of.epoch, of.seq)),
        heard,
        silent,
    };
    // Nobody remembers the orders of the records that are missing. No host obeys one after its permit's time.
    tokio::time::sleep(PERMIT_VALIDITY).await;
    let payload = serde_json::to_value(&restored).map_err(|e| ErrorCode::new(Code::INTERNAL, e.to_string()))?;
    let (topic, subject) = (ControllerRestored::TOPIC.to_owned(), restored.subject());
    ports.journal.append(vec![NewRecord { topic, subject, payload, waited: Duration::ZERO }]).await?;
    Ok(restored)
}
