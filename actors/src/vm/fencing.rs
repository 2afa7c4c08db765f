//! Carries out the commands of a fence attempt.

use std::collections::BTreeSet;

use ringfence::{Actor, Address, Ctx};
use ringfence_messages::{
    ErrorCode, HostId, Result,
    ceph::{FenceHostOnStorageMsg, QueryWatchersMsg},
    evidence::{Evidence, Source},
    fence::{FenceIntended, FenceLevel, FenceOutcome, SiblingFenceAudited, SiblingFenceVmOnHostMsg},
    ha::{FindTargetMsg, HA, HostConfirmedFenced, PLACEMENT, QuarantineHostMsg},
};

use tracing::Span;
use uuid::Uuid;

use super::{
    VmActor,
    core::{Event, Found, UnreachableHost},
    exports,
};
use crate::{
    fence::attempt::{self, FenceRequest, LastHost},
    fencers::{FENCER, ceph::CephActor},
    replay, span, spans,
};

/// Trace of the attempt in progress.
#[derive(Default)]
pub(super) struct Fencing {
    span: Option<(Uuid, Span)>,
    audited: Option<FenceOutcome>,
}

impl Fencing {
    /// Span of one fencing level, under the span of the attempt.
    fn level(&mut self, fence_request: &FenceRequest, vm: &str, failed: String, level: &'static str) -> Span {
        if self.span.as_ref().is_none_or(|(attempt, _)| *attempt != fence_request.attempt) {
            let span = span!(
                "fence",
                ringfence.vm = vm,
                ringfence.failed_host = failed,
                ringfence.fence.attempt = %fence_request.attempt,
            );
            *self = Fencing { span: Some((fence_request.attempt, span)), audited: None };
        }
        let attempt_span = self.span.as_ref().map(|(_, span)| span.clone()).unwrap_or_else(Span::none);
        attempt_span.in_scope(|| span!("fence.level", otel.name = level, ringfence.reason = tracing::field::Empty))
    }

    /// Ends the span of the attempt, if there is one; with an error nothing starts.
    pub(super) fn end(&mut self, error: Option<&ErrorCode>) {
        let Fencing { span: Some((_, span)), audited } = std::mem::take(self) else { return };
        match (error, audited) {
            (Some(error), outcome) => spans::failed(&span, outcome.map_or("refused", FenceOutcome::as_str), error),
            (None, Some(outcome)) => spans::well(&span, outcome.as_str()),
            (None, None) => spans::well(&span, "ok"),
        }
    }
}

/// Limit of level 1: three sibling hosts at most.
const FENCER_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(100);

impl VmActor {
    /// The placement query of the VM: any host.
    pub(super) fn find_target(&self) -> FindTargetMsg {
        FindTargetMsg {
            vm_uuid: self.core.vm.id,
            cluster_uuid: self.core.vm.cluster,
            memory_mib: self.core.vm.memory_mib,
            host_uuid: None,
            last_host_uuid: self.core.place(),
            place_host_uuids: self.core.places(),
            soft_avoid_host_uuids: Vec::new(),
            dry_run: false,
            may_have_moved: self.core.may_have_moved(),
        }
    }

    /// The target host, and what the journal has about the hosts that cannot be queried.
    pub(super) fn target(&self, ask: FindTargetMsg) -> impl Future<Output = Result<Found>> + use<> {
        let (bus, journal) = (self.bus.clone(), self.ports.journal.clone());
        let inventory = self.core.inventory.clone();
        async move {
            let target = bus.ask(PLACEMENT, ask).await?;
            let silent = target.silent_host_uuids.iter().chain(&target.unheard_host_uuids);
            let silent: BTreeSet<HostId> = silent.copied().collect();
            let mut places = Vec::with_capacity(silent.len());
            if silent.is_empty() {
                return Ok(Found { target, places });
            }
            let machines = replay::Machines::read(&*journal).await?;
            for host in silent {
                let attested_by = replay::attested_off(&*journal, &inventory.host_name(host)).await?;
                places.push(UnreachableHost { host, attested_by, machine: machines.of(host) });
            }
            Ok(Found { target, places })
        }
    }

    pub(super) fn fence(&mut self, fence_request: &FenceRequest, command: attempt::Command, ctx: &mut Ctx<'_, Self>) {
        if let attempt::Command::Wait(time) = command {
            ctx.spawn(tokio::time::sleep(time), |vm, (), ctx| vm.on(Event::Fence(attempt::Event::Waited), ctx));
            return;
        }
        let LastHost::Unreachable(failed) = fence_request.place else { return self.watch(command, Span::none(), ctx) };
        let (bus, recorder) = (self.bus.clone(), self.recorder.clone());
        let intent = |level| FenceIntended {
            attempt: fence_request.attempt,
            vm_uuid: fence_request.vm,
            vm: self.core.vm.name.clone(),
            failed_host_uuid: failed,
            cluster_uuid: fence_request.cluster,
            ha_target_host_uuid: fence_request.target,
            level,
        };
        match command {
            attempt::Command::Intend(level) => {
                let reason = format!("{} is being fenced there", self.core.vm.name);
                let intent = intent(level);
                let span = self.level(fence_request, failed, "fence.intent");
                let intended = async move {
                    let quarantine = QuarantineHostMsg { host_uuid: failed, reason };
                    bus.ask(HA, quarantine).await?;
                    recorder.intent(&intent).await.map(|_| ())
                };
                let intended = spans::within(span, intended);
                ctx.spawn(intended, |vm, result, ctx| vm.on(Event::Fence(attempt::Event::Intended(result)), ctx));
            }
            attempt::Command::AskFencer => {
                let ask = SiblingFenceVmOnHostMsg {
                    failed_host_uuid: failed,
                    vm_uuid: fence_request.vm,
                    cluster_uuid: fence_request.cluster,
                    ha_target_host_uuid: fence_request.target,
                    machine: fence_request.machine.clone(),
                };
                let span = self.level(fence_request, failed, "fence.sibling");
                let ended = self.end_exports(failed);
                let report = spans::within(span, async move {
                    let report = bus.ask_within(FENCER, ask, FENCER_TIMEOUT).await?;
                    Span::current().record("ringfence.reason", &report.reason);
                    if exports::is_gone(&report) {
                        ended.await?;
                    }
                    Ok(report)
                });
                ctx.spawn(report, |vm, report, ctx| vm.on(Event::Fence(attempt::Event::Reported(report)), ctx));
            }
            attempt::Command::Block(storage) => {
                let ask =
                    FenceHostOnStorageMsg { host_uuid: failed, reason: format!("fence of {}", self.core.vm.name) };
                let span = self.level(fence_request, failed, "fence.storage");
                let blocked = async move { bus.ask(Address::new(CephActor::KIND, storage), ask).await };
                let blocked = spans::within(span, blocked);
                ctx.spawn(blocked, move |vm, result, ctx| {
                    vm.on(Event::Fence(attempt::Event::Blocked(storage, result)), ctx);
                });
            }
            attempt::Command::Audit { outcome, executor, evidence } => {
                self.audit(&intent(FenceLevel::Sibling), outcome, executor, evidence, ctx);
            }
            watch @ attempt::Command::Watch(_) => {
                let span = self.level(fence_request, failed, "fence.watchers");
                self.watch(watch, span, ctx);
            }
            attempt::Command::EndAttestation(host) => self.end_attestation(host, ctx),
            attempt::Command::Wait(_) | attempt::Command::Done(_) => {}
        }
    }

    /// Records the audit of an attempt (I7).
    fn audit(
        &mut self,
        intent: &FenceIntended,
        outcome: FenceOutcome,
        executor: Option<HostId>,
        mut evidence: Vec<Evidence>,
        ctx: &mut Ctx<'_, Self>,
    ) {
        self.fencing.audited = Some(outcome);
        for item in evidence.iter_mut().filter(|item| item.source == Source::Sibling) {
            let host = item.by.as_ref().and_then(|by| by.parse().ok());
            item.by = host.map(|host| self.core.inventory.host_name(host)).or(item.by.take());
        }
        let reason = attempt::evidence_text(&evidence);
        let audit = self.audited(intent, outcome, executor, reason, evidence);
        ctx.spawn_detached(self.recorder.fact(audit), |_, _, _| {});
    }

    /// Records that an attestation no longer holds: VMs that were started on it may run twice.
    fn end_attestation(&self, host: HostId, ctx: &mut Ctx<'_, Self>) {
        let name = self.core.inventory.host_name(host);
        metrics::counter!("ringfence_attestations_contradicted_total").increment(1);
        tracing::error!(host = name, "attestation contradicted by newer evidence");
        let by = "newer evidence contradicts it".to_owned();
        let over = HostConfirmedFenced { host_uuid: host, host: name, confirmed: false, by };
        ctx.spawn_detached(self.recorder.fact(over), |_, _, _| {});
    }

    fn level(&mut self, fence_request: &FenceRequest, failed: HostId, level: &'static str) -> Span {
        self.fencing.level(fence_request, &self.core.vm.name, self.core.inventory.host_name(failed), level)
    }

    fn watch(&mut self, command: attempt::Command, span: Span, ctx: &mut Ctx<'_, Self>) {
        let attempt::Command::Watch(index) = command else { return };
        let Some(volume) = self.core.vm.volumes.get(index) else { return };
        let ask = QueryWatchersMsg { install_path: volume.install_path.clone() };
        let (bus, to) = (self.bus.clone(), Address::new(CephActor::KIND, volume.storage));
        let watched = async move { bus.ask(to, ask).await.map(|reply| reply.watchers) };
        ctx.spawn(spans::within(span, watched), move |vm, watchers, ctx| {
            vm.on(Event::Fence(attempt::Event::Watched(index, watchers)), ctx);
        });
    }

    pub(super) fn audited(
        &self,
        intent: &FenceIntended,
        outcome: FenceOutcome,
        executor: Option<HostId>,
        reason: String,
        evidence: Vec<Evidence>,
    ) -> SiblingFenceAudited {
        metrics::counter!("ringfence_fences_total", "outcome" => outcome.as_str()).increment(1);
        SiblingFenceAudited {
            attempt: intent.attempt,
            vm_uuid: intent.vm_uuid,
            vm: intent.vm.clone(),
            failed_host_uuid: intent.failed_host_uuid,
            failed_host: self.core.inventory.host_name(intent.failed_host_uuid),
            cluster_uuid: intent.cluster_uuid,
            ha_target_host_uuid: intent.ha_target_host_uuid,
            outcome,
            executor_host_uuid: executor,
            reason,
            evidence,
        }
    }
}
