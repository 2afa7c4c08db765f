//! Carries out a drain: queries targets, records intents, stops VMs, and plans a drain.

use futures_util::future::try_join_all;
use ringfence::{Actor, Address, Ctx, Handler, Promised};
use ringfence_messages::{
    ha::{FindTargetMsg, PLACEMENT, PlanDrainMsg, QueryCandidatesMsg},
    vm::VacateVmMsg,
};

use super::{
    HaActor,
    core::{Command, Event, ObservedState},
};
use crate::{
    replay::not_ready,
    vm::{VM_TIMEOUT, VmActor},
};

impl HaActor {
    pub(super) fn move_vm(&mut self, command: Command, ctx: &mut Ctx<'_, Self>) {
        let (bus, recorder) = (ctx.bus().clone(), self.recorder.clone());
        match command {
            Command::Place(vm) => {
                let what = self.core.as_ref().ok_or_else(not_ready).and_then(|core| core.place_of(vm));
                let placed = async move {
                    let (from, cluster_uuid, memory_mib) = what?;
                    let ask = FindTargetMsg {
                        vm_uuid: vm,
                        cluster_uuid,
                        memory_mib,
                        host_uuid: None,
                        last_host_uuid: Some(from),
                        place_host_uuids: vec![from],
                        soft_avoid_host_uuids: vec![from],
                        may_have_moved: false,
                        dry_run: false,
                    };
                    bus.ask(PLACEMENT, ask).await
                };
                ctx.spawn_detached(placed, move |ha, found, ctx| ha.on(Event::Placed(vm, found), ctx));
            }
            Command::IntendMove(event) => {
                let vm = event.vm_uuid;
                ctx.spawn_detached(async move { recorder.intent(&event).await }, move |ha, result, ctx| {
                    ha.on(Event::MoveIntended(vm, result.map(|_| ())), ctx);
                });
            }
            Command::Evict(vm, host_uuid) => {
                // The intent, the stop, and a query of the host if the outcome is unknown.
                let (to, within) = (Address::new(VmActor::KIND, vm), 3 * VM_TIMEOUT);
                let evicted = async move { bus.ask_within(to, VacateVmMsg { host_uuid }, within).await };
                ctx.spawn_detached(evicted, move |ha, result, ctx| {
                    ha.on(Event::Evicted(vm, result.map(|vm| ObservedState::from(&vm))), ctx);
                });
            }
            _ => {}
        }
    }
}

impl Handler<PlanDrainMsg> for HaActor {
    type Answer = Promised<PlanDrainMsg>;

    fn handle(&mut self, message: PlanDrainMsg, ctx: &mut Ctx<'_, Self>) -> Self::Answer {
        let (promise, answer) = ctx.promise::<PlanDrainMsg>();
        let host = message.host_uuid;
        let clusters = match (&self.core, self.inventory.now().host(host)) {
            (None, _) => Err(not_ready()),
            (_, Err(error)) => Err(error),
            (Some(core), Ok(_)) => Ok(core.clusters_on(host)),
        };
        let clusters = match clusters {
            Ok(clusters) => clusters,
            Err(error) => {
                promise.complete(Err(error));
                return answer;
            }
        };
        let candidates = |cluster_uuid| {
            let bus = ctx.bus().clone();
            async move {
                let reply = bus.ask(PLACEMENT, QueryCandidatesMsg { cluster_uuid }).await?;
                Ok((cluster_uuid, reply.candidates))
            }
        };
        let candidates: Vec<_> = clusters.into_iter().map(candidates).collect();
        ctx.spawn_detached(try_join_all(candidates), move |ha, found, _| {
            let plan = found.and_then(|found| {
                let candidates = found.into_iter().collect();
                ha.core.as_ref().map(|core| core.plan_drain(host, candidates)).ok_or_else(not_ready)
            });
            promise.complete(plan);
        });
        answer
    }
}
