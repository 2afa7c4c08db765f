//! Continues from a journal that was restored from a backup, on request of an operator.
//!
//! Invariants: generation and epoch of the new journal are above all that hosts have heard. No command of the missing
//! records can still be carried out when the restore is recorded.
//! Alternatives considered: trust the furthest witness. It proves how far the journal was, not what it contained; the
//! hosts list what runs.

use std::time::Duration;

use futures_util::{StreamExt, stream};
use ringfence_messages::{
    Event, HostId, Result,
    host::HostPingReply,
    journal::{ControllerRestored, JournalHead},
};
use uuid::Uuid;

use crate::{
    fence::PERMIT_VALIDITY,
    ports::{Call, NewRecord, Ports},
};

/// Time limit of one host's answer before the controller continues from a restored journal. Too low: a slow host is
/// not heard. Too high: hosts that are off delay the start.
pub const WITNESS_TIMEOUT: Duration = Duration::from_secs(3);

/// Hosts queried at the same time. Too low: a thousand hosts take long. Too high: as many sockets.
const WITNESSES_AT_ONCE: usize = 100;

/// Declares this journal restored: queries all hosts for what they have heard, waits until no command of the former
/// controller can still be carried out, then records the restore. Call it before [`Assembly::start`].
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
    let own = own.map(|record| record.event::<ControllerRestored>()).transpose()?.map_or(0, |event| event.generation);
    let restored = ControllerRestored {
        journal_id: Uuid::new_v4().to_string(),
        generation: witnesses.iter().map(|head| head.generation).fold(own, u64::max) + 1,
        epoch: witnesses.iter().map(|head| head.epoch).max().unwrap_or_default(),
        witness: witnesses.into_iter().max_by_key(|head| (head.generation, head.epoch, head.seq)),
        heard,
        silent,
    };
    // The commands of the missing records are unknown. No host carries one out after its permit has expired.
    tokio::time::sleep(PERMIT_VALIDITY).await;
    ports.journal.append(vec![NewRecord::of(&restored)?]).await?;
    Ok(restored)
}
