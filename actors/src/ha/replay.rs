//! Replays the HA state from the journal.

use std::{collections::BTreeMap, sync::Arc};

use futures_util::future::try_join;
use ringfence_messages::{
    Event as _, HostId, Result,
    ha::{HostConfirmedFenced, HostDrained, HostFailed, VmMoveChanged},
    host::{HostState, HostStateChanged, HostStatusChanged},
    vm::VmStateChanged,
};

use super::{
    core::{ObservedState, ReplayedState},
    drain::Move,
};
use crate::{
    ports::{JournalPort, Record},
    replay::{answered_since, holds, quarantined, rejected, whole_since},
    sabotage::{self, Sabotage},
};

pub(super) async fn read(journal: Arc<dyn JournalPort>) -> Result<ReplayedState> {
    let mut state = ReplayedState::default();
    let (vms, moves) = try_join(journal.latest(VmStateChanged::TOPIC), journal.latest(VmMoveChanged::TOPIC)).await?;
    for record in vms {
        let event: VmStateChanged = record.event()?;
        state.vms.push((event.vm_uuid, ObservedState::from(&event)));
    }
    let whole_since = whole_since(&*journal).await?;
    for (host, (since, _)) in quarantined(&*journal).await? {
        state.quarantined.insert(host);
        state.unproven.extend((since < whole_since).then_some(host));
    }
    state.refused = rejected(&*journal).await?;
    let statuses = journal.latest(HostStatusChanged::TOPIC).await?;
    let status = |record: &Record| statuses.iter().find(|status| status.subject == record.subject);
    for record in journal.latest(HostConfirmedFenced::TOPIC).await? {
        let event: HostConfirmedFenced = record.event()?;
        let holds = holds(&event, record.seq, whole_since, status(&record));
        state.confirmed.extend(holds.then_some(event.host_uuid));
    }
    for record in journal.latest(HostFailed::TOPIC).await? {
        let event: HostFailed = record.event()?;
        state.failed.extend((!answered_since(record.seq, status(&record))).then_some(event.host_uuid));
    }
    let mut drained: BTreeMap<HostId, u64> = BTreeMap::new();
    let (empty, states) = try_join(journal.latest(HostDrained::TOPIC), journal.latest(HostStateChanged::TOPIC)).await?;
    for record in empty {
        drained.insert(record.event::<HostDrained>()?.host_uuid, record.seq);
    }
    for record in states {
        let event: HostStateChanged = record.event()?;
        let host = event.host_uuid;
        if event.new_state == HostState::Maintenance {
            state.maintenance.insert(host);
            state.unproven.extend((record.seq < whole_since).then_some(host));
        }
        if event.draining {
            state.draining.insert(host, drained.get(&host).is_some_and(|seq| *seq > record.seq));
        }
    }
    for record in moves {
        let event: VmMoveChanged = record.event()?;
        if event.moving && !sabotage::on(Sabotage::ForgetMoves) {
            state.moves.insert(event.vm_uuid, Move::replayed(event.from_host_uuid, event.incarnation));
        }
    }
    Ok(state)
}
