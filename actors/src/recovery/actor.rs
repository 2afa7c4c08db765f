//! The shell of the recovery supervisor: keeps the timer, carries out the core's commands, and returns the results.

use std::{collections::HashMap, sync::Arc, time::Duration};

use ringfence::{Accepts, Actor, Address, Ctx, Handler, Kind, Promise, Promised, Result, TaskHandle};
use ringfence_messages::{
    Code, ErrorCode, Event as _, HostId, Protocol, StorageId,
    agent::Done,
    ha::{HostQuarantineChanged, SetQuarantineMsg},
    host::{
        ChangeHostStateMsg, HostAction, HostIdentified, HostInventory, HostState, HostStateChanged, HostsReply,
        PingHostMsg, PingHostReply, QueryHostsMsg, QueryServingHostsMsg, ServingHostsReply,
    },
    recovery::{ContinueRedeployMsg, RECOVERY, RedeployNowMsg},
    storage::{CheckHostHealthMsg, DeployClientMsg},
};
use tokio::time::Instant;

use super::{
    core::{Command, Core, Event, HostEvent},
    identity::Identities,
};
use crate::{
    audit::Recorder,
    host::HostActor,
    inventory::{PingSettings, SharedInventory},
    ports::JournalPort,
    replay::{REJECTED, REPLAY_RETRY, not_ready, quarantined, rejected},
    storage::{HEALTH_TIMEOUT, StorageActor, flow::DEPLOY_DEADLINE},
};

/// Extra time of a request beyond its work: the way there and back.
const GRACE: Duration = Duration::from_millis(500);

/// The recovery supervisor: one for all hosts.
pub struct RecoveryActor {
    settings: PingSettings,
    inventory: SharedInventory,
    journal: Arc<dyn JournalPort>,
    recorder: Recorder,
    born: Instant,
    /// None until the journal is replayed.
    core: Option<Core>,
    identities: Identities,
    timer: Option<(Duration, TaskHandle)>,
    /// Starts that wait for a redeploy.
    waiting: HashMap<(HostId, StorageId, Protocol), Vec<Promise<Done>>>,
}

impl RecoveryActor {
    /// The supervisor of the hosts of this inventory.
    pub fn new(
        settings: PingSettings,
        inventory: SharedInventory,
        journal: Arc<dyn JournalPort>,
        recorder: Recorder,
    ) -> RecoveryActor {
        let identities = Identities::default();
        RecoveryActor {
            settings,
            inventory,
            journal,
            recorder,
            born: Instant::now(),
            core: None,
            identities,
            timer: None,
            waiting: HashMap::new(),
        }
    }

    /// Before the states of hosts are replayed, no host may be pinged and no target redeployed.
    fn replay(&mut self, ctx: &mut Ctx<'_, Self>) {
        let journal = self.journal.clone();
        ctx.spawn_detached(read_journal(journal), |recovery, replayed, ctx| match replayed {
            Ok((states, quarantined, identities)) => {
                recovery.identities = identities;
                let now = recovery.born.elapsed();
                let core = Core::new(recovery.settings, recovery.inventory.now(), &states, &quarantined, now);
                recovery.core = Some(core);
                recovery.on(Event::Tick, ctx);
            }
            Err(error) => {
                tracing::error!(%error, "cannot read the host states from the journal");
                ctx.after(REPLAY_RETRY, |recovery, ctx| recovery.replay(ctx));
            }
        });
    }

    fn on(&mut self, event: Event, ctx: &mut Ctx<'_, Self>) {
        let now = self.born.elapsed();
        let Some(core) = &mut self.core else { return };
        core.set_inventory(&self.inventory.now(), now);
        let commands = core.on(event, now);
        for command in commands {
            self.carry_out(command, ctx);
        }
        self.set_timer(ctx);
    }

    /// Waits until a change of a host's service is durable: a restart must not return the host to service. A host that
    /// leaves gets nothing meanwhile, for the record may come long before it is known here (I5).
    fn change(
        &mut self,
        host: HostId,
        leaves: bool,
        durable: impl Future<Output = Result<u64>> + 'static,
        ctx: &mut Ctx<'_, Self>,
        then: impl FnOnce(&mut Self, Result<u64>, &mut Ctx<'_, Self>) + Send + 'static,
    ) {
        if leaves {
            self.on(Event::Withdrawing { host, begins: true }, ctx);
        }
        ctx.spawn(durable, move |recovery, result, ctx| {
            then(recovery, result, ctx);
            if leaves {
                recovery.on(Event::Withdrawing { host, begins: false }, ctx);
            }
        });
    }

    fn set_timer(&mut self, ctx: &mut Ctx<'_, Self>) {
        let Some(at) = self.core.as_mut().and_then(Core::next_wakeup) else { return };
        match &self.timer {
            Some((set, _)) if *set <= at => return,
            Some((_, timer)) => timer.cancel(),
            None => {}
        }
        let timer = ctx.after(at.saturating_sub(self.born.elapsed()), |recovery, ctx| {
            recovery.timer = None;
            recovery.on(Event::Tick, ctx);
        });
        self.timer = Some((at, timer));
    }

    fn carry_out(&mut self, command: Command, ctx: &mut Ctx<'_, Self>) {
        match command {
            Command::Ping { host, generation } => {
                let timeout = self.settings.timeout;
                let ask = PingHostMsg { timeout_ms: timeout.as_millis() as u64 };
                let pinged = ctx.bus().ask_within(Address::new(HostActor::KIND, host), ask, timeout + GRACE);
                ctx.spawn_detached(pinged, move |recovery, reply, ctx| {
                    let reply = reply.unwrap_or_else(|error| PingHostReply {
                        connected: false,
                        reason: Some(error.to_string()),
                        boot_id: String::new(),
                        machine: Default::default(),
                    });
                    let name = recovery.inventory.now().host_name(host);
                    let (reply, identified) = recovery.identities.judge(host, &name, reply);
                    if let Some(identified) = identified {
                        ctx.spawn_detached(recovery.recorder.fact(identified), |_, _, _| {});
                        recovery.on(Event::Booted { host }, ctx);
                    }
                    recovery.on(Event::PingDone { host, generation, reply }, ctx);
                });
            }
            Command::CheckHealth { host, generation, storage } => {
                let to = Address::new(StorageActor::KIND, storage);
                let within = HEALTH_TIMEOUT + GRACE;
                let checked = ctx.bus().ask_within(to, CheckHostHealthMsg { host_uuid: host }, within);
                ctx.spawn_detached(checked, move |recovery, result, ctx| {
                    recovery.on(Event::HealthDone { host, generation, storage, result }, ctx);
                });
            }
            Command::Deploy { host, storage, protocol, attempt, skipped_pings } => {
                let ask = DeployClientMsg { host_uuid: host, protocol, attempt, skipped_pings };
                let deployed = ctx.bus().ask_within(Address::new(StorageActor::KIND, storage), ask, DEPLOY_DEADLINE);
                ctx.spawn_detached(deployed, move |recovery, result, ctx| {
                    if let Err(error) = result {
                        tracing::warn!(%error, %host, %storage, %protocol, "redeploy failed");
                    }
                    recovery.on(Event::DeployDone { host, storage, protocol }, ctx);
                    for start in recovery.waiting.remove(&(host, storage, protocol)).into_iter().flatten() {
                        start.complete(Ok(Done {}));
                    }
                });
            }
            Command::Emit(fact) => {
                let recorder = &self.recorder;
                match fact {
                    HostEvent::Suspected(event) => drop(ctx.bus().publish(event)),
                    HostEvent::HostStatus(event) => drop(ctx.spawn_detached(recorder.fact(event), |_, _, _| {})),
                    // Recorded before it came into force; see [`ChangeHostStateMsg`].
                    HostEvent::HostState(event) => drop(ctx.bus().publish(event)),
                    HostEvent::ProtocolStatus(event) => drop(ctx.spawn_detached(recorder.fact(event), |_, _, _| {})),
                    HostEvent::StorageHostStatus(event) => drop(ctx.spawn_detached(recorder.fact(event), |_, _, _| {})),
                }
            }
        }
    }
}

/// Requested states of hosts, reasons of quarantines, and machines of hosts.
type ReplayedState = (HashMap<HostId, HostState>, HashMap<HostId, String>, Identities);

async fn read_journal(journal: Arc<dyn JournalPort>) -> Result<ReplayedState> {
    let mut states = HashMap::new();
    for record in journal.latest(HostStateChanged::TOPIC).await? {
        let event: HostStateChanged = record.event()?;
        states.insert(event.host_uuid, event.new_state);
    }
    let mut identified = Vec::new();
    for record in journal.latest(HostIdentified::TOPIC).await? {
        identified.push(record.event::<HostIdentified>()?);
    }
    // Until HA has quarantined a host that a storage rejects, it gets nothing (K13).
    let rejected = rejected(&*journal).await?.into_iter().map(|host| (host, REJECTED.to_owned()));
    let reasons = quarantined(&*journal).await?.into_iter().map(|(host, (_, why))| (host, why));
    let quarantined = rejected.chain(reasons).collect();
    Ok((states, quarantined, Identities::replayed(identified)))
}

impl Actor for RecoveryActor {
    const KIND: Kind = RECOVERY.kind;

    fn accepts(accepts: &mut Accepts<Self>) {
        accepts
            .message::<QueryHostsMsg>()
            .message::<QueryServingHostsMsg>()
            .message::<ChangeHostStateMsg>()
            .message::<SetQuarantineMsg>()
            .message::<RedeployNowMsg>()
            .message::<ContinueRedeployMsg>();
    }

    fn started(&mut self, ctx: &mut Ctx<'_, Self>) {
        self.replay(ctx);
    }
}

impl Handler<QueryHostsMsg> for RecoveryActor {
    type Answer = Result<HostsReply>;

    fn handle(&mut self, _: QueryHostsMsg, ctx: &mut Ctx<'_, Self>) -> Self::Answer {
        let now = self.born.elapsed();
        if self.core.as_mut().is_some_and(|core| core.set_inventory(&self.inventory.now(), now)) {
            self.on(Event::Tick, ctx);
        }
        self.core.as_ref().map(Core::hosts).ok_or_else(not_ready)
    }
}

impl Handler<QueryServingHostsMsg> for RecoveryActor {
    type Answer = Result<ServingHostsReply>;

    fn handle(&mut self, message: QueryServingHostsMsg, _: &mut Ctx<'_, Self>) -> Self::Answer {
        let core = self.core.as_ref().ok_or_else(not_ready)?;
        Ok(core.serving(message.cluster_uuid))
    }
}

impl Handler<RedeployNowMsg> for RecoveryActor {
    type Answer = Promised<RedeployNowMsg>;

    fn handle(&mut self, message: RedeployNowMsg, ctx: &mut Ctx<'_, Self>) -> Self::Answer {
        let (promise, answer) = ctx.promise::<RedeployNowMsg>();
        let RedeployNowMsg { host_uuid: host, primary_storage_uuid: storage, protocol } = message;
        match self.core.as_mut().ok_or_else(not_ready).and_then(|core| core.redeploy_now(host, storage, protocol)) {
            Err(error) => promise.complete(Err(error)),
            Ok(deploy) => {
                self.waiting.entry((host, storage, protocol)).or_default().push(promise);
                deploy.into_iter().for_each(|deploy| self.carry_out(deploy, ctx));
            }
        }
        answer
    }
}

impl Handler<ContinueRedeployMsg> for RecoveryActor {
    type Answer = Result<Done>;

    fn handle(&mut self, message: ContinueRedeployMsg, _: &mut Ctx<'_, Self>) -> Self::Answer {
        let core = self.core.as_ref().ok_or_else(not_ready)?;
        core.continue_redeploy(message.host_uuid).map(|()| Done {})
    }
}

impl Handler<SetQuarantineMsg> for RecoveryActor {
    type Answer = Promised<SetQuarantineMsg>;

    fn handle(&mut self, message: SetQuarantineMsg, ctx: &mut Ctx<'_, Self>) -> Self::Answer {
        let (promise, answer) = ctx.promise::<SetQuarantineMsg>();
        if self.core.is_none() {
            promise.complete(Err(not_ready()));
            return answer;
        }
        let SetQuarantineMsg { host_uuid: host, quarantined, reason } = message;
        let name = self.inventory.now().host_name(host);
        let change = HostQuarantineChanged { host_uuid: host, host: name, quarantined, reason: reason.clone() };
        let recorder = self.recorder.clone();
        let durable =
            async move { if quarantined { recorder.intent(&change).await } else { recorder.fact(change).await } };
        self.change(host, quarantined, durable, ctx, move |recovery, result, ctx| {
            promise.complete(result.map(|_| {
                recovery.on(Event::SetQuarantine { host, reason: quarantined.then_some(reason) }, ctx);
                Done {}
            }));
        });
        answer
    }
}

impl Handler<ChangeHostStateMsg> for RecoveryActor {
    type Answer = Promised<ChangeHostStateMsg>;

    fn handle(&mut self, message: ChangeHostStateMsg, ctx: &mut Ctx<'_, Self>) -> Self::Answer {
        let (promise, answer) = ctx.promise::<ChangeHostStateMsg>();
        let host = message.host_uuid;
        let before = match (&self.core, self.inventory.now().host(host)) {
            (None, _) => Err(not_ready()),
            (_, Err(error)) => Err(error),
            (Some(core), Ok(_)) => core.host(host).ok_or_else(not_ready),
        };
        let before = match before {
            Ok(before) => before,
            Err(error) => {
                promise.complete(Err(error));
                return answer;
            }
        };
        let draining = message.action == HostAction::Drain;
        let requested = match message.action {
            HostAction::Maintain | HostAction::Drain => HostState::Maintenance,
            HostAction::Activate => HostState::Enabled,
            HostAction::Ping => {
                promise.complete(match before.state {
                    HostState::Enabled => {
                        self.on(Event::PingNow { host }, ctx);
                        Ok(before)
                    }
                    HostState::Maintenance => {
                        let details = format!("{} is in maintenance and is not pinged; activate it first", before.name);
                        Err(ErrorCode::new(Code::CHANGE_STATE, details))
                    }
                });
                return answer;
            }
        };
        let change = HostStateChanged {
            host_uuid: host,
            host: before.name.clone(),
            old_state: before.state,
            new_state: requested,
            draining,
        };
        let recorder = self.recorder.clone();
        // A repeated maintenance changes nothing: a drain continues.
        let changes = draining || before.state != requested;
        let durable = async move { if changes { recorder.intent(&change).await } else { Ok(0) } };
        self.change(host, requested == HostState::Maintenance, durable, ctx, move |recovery, result, ctx| {
            let result: Result<HostInventory> = result.and_then(|_| {
                if before.state == HostState::Maintenance && requested == HostState::Enabled {
                    recovery.identities.forget(host);
                }
                recovery.on(Event::SetState { host, state: requested, draining }, ctx);
                recovery.core.as_ref().and_then(|core| core.host(host)).ok_or_else(not_ready)
            });
            promise.complete(result);
        });
        answer
    }
}
