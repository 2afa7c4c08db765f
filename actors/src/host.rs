//! One host: every command to its agent passes through its actor.
//!
//! Purpose: one place where commands to a host are tapped, counted and intercepted, and the last one that stops a
//! stale leader.
//! Invariants: commands that act on the host are sent only by the leader, with its epoch. A ping is Connected only if
//! the right host answered in time. A command's timeout is what remains of its sender's deadline. The history of
//! pings is bounded. There is no `core.rs`: the one decision is [`judge_ping`], a function.

use std::{collections::VecDeque, future::Future, sync::Arc, time::Duration};

use parking_lot::Mutex;
use ringfence::{Accepts, Actor, AsyncReply, Ctx, Handler, Kind};
use ringfence_messages::{
    Code, ErrorCode, HostId, Message, Result,
    agent::Done,
    evidence::Machine,
    fence::SiblingFenceVmCmd,
    ha::ScanHostCmd,
    host::{HostFactsCmd, HostPingReply, PingHostMsg, PingHostReply, Pinged, PingsReply, QueryPingsMsg},
    inventory::RetireMsg,
    message,
    vhost::{CreateVhostBdevCmd, DeleteVhostBdevCmd, DeployVhostCmd, PrepareVhostTargetEnvCmd, VhostTargetHealthCmd},
    vm::{ListVmsCmd, StartVmCmd, StartVmCmdReply, StopVmCmd},
};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::{
    audit::Recorder,
    fence::StartPermit,
    invariant,
    leader::LeaderStatus,
    ports::{Call, HostAgentPort, LeadershipPort},
    sabotage::{self, Sabotage},
};

/// Starts the QEMU of a VM on the host: the command, and the permit for it (I1).
#[derive(Debug, Serialize, Deserialize)]
pub struct LaunchVmMsg {
    /// The permit. It keeps this message in its process.
    pub permit: StartPermit,
    /// The command.
    pub cmd: StartVmCmd,
}
message!(LaunchVmMsg, 1 => StartVmCmdReply);

/// Pings kept of each host. Too low: too short a history. Too high: at 12 bytes each, 100,000 hosts need 80 MB.
pub const PINGS_KEPT: usize = 60;

/// One ping: when it ended since the start of the actor, its duration and its result.
#[derive(Clone, Copy)]
struct Past {
    at_s: u32,
    took_us: u32,
    answered: bool,
}

/// The last pings of a host.
struct Pings {
    began: Instant,
    past: Mutex<VecDeque<Past>>,
}

impl Pings {
    fn since(&self) -> u32 {
        u32::try_from(self.began.elapsed().as_secs()).unwrap_or(u32::MAX)
    }

    fn record(&self, took: Duration, answered: bool) {
        let took_us = u32::try_from(took.as_micros()).unwrap_or(u32::MAX);
        let mut past = self.past.lock();
        if past.len() == PINGS_KEPT {
            past.pop_front();
        }
        past.push_back(Past { at_s: self.since(), took_us, answered });
    }

    fn history(&self) -> Vec<Pinged> {
        let now = self.since();
        let pinged = |ping: &Past| Pinged { ago_s: now - ping.at_s, took_us: ping.took_us, answered: ping.answered };
        self.past.lock().iter().map(pinged).collect()
    }
}

/// One host's actor.
pub struct HostActor {
    id: HostId,
    agents: Arc<dyn HostAgentPort>,
    leadership: Arc<dyn LeadershipPort>,
    leader_status: LeaderStatus,
    epoch: u64,
    pings: Arc<Pings>,
}

impl HostActor {
    /// The actor of this host; `epoch` is the epoch of this controller.
    pub fn new(
        id: HostId,
        agents: Arc<dyn HostAgentPort>,
        leadership: Arc<dyn LeadershipPort>,
        leader_status: LeaderStatus,
        epoch: u64,
    ) -> HostActor {
        let pings = Arc::new(Pings { began: Instant::now(), past: Mutex::default() });
        HostActor { id, agents, leadership, leader_status, epoch, pings }
    }

    /// Checked right before each act on the host: another controller may have become the leader since the decision.
    fn check_leadership(&self) -> Result<()> {
        if !self.leadership.leads() && !sabotage::on(Sabotage::DeposedActs) {
            return Err(ErrorCode::new(Code::CHANGE_STATE, "this controller is not the leader any more"));
        }
        self.leader_status.may_act()
    }

    fn post<M, F>(
        &self,
        ctx: &Ctx<'_, Self>,
        call: impl FnOnce(Arc<dyn HostAgentPort>, HostId, Call) -> F,
    ) -> AsyncReply<M::Reply>
    where
        M: Message,
        F: Future<Output = Result<M::Reply>> + Send + 'static,
    {
        let left = ctx
            .deadline()
            .map_or(ringfence::DEFAULT_DEADLINE, |at| at.saturating_duration_since(tokio::time::Instant::now()));
        AsyncReply::new(call(self.agents.clone(), self.id, Call::within(left)))
    }
}

impl Actor for HostActor {
    const KIND: Kind = Kind::new("host");

    fn accepts(accepts: &mut Accepts<Self>) {
        accepts
            .message::<PingHostMsg>()
            .message::<QueryPingsMsg>()
            .message::<HostFactsCmd>()
            .message::<PrepareVhostTargetEnvCmd>()
            .message::<DeployVhostCmd>()
            .message::<VhostTargetHealthCmd>()
            .message::<CreateVhostBdevCmd>()
            .message::<DeleteVhostBdevCmd>()
            .message::<LaunchVmMsg>()
            .message::<StopVmCmd>()
            .message::<ListVmsCmd>()
            .message::<SiblingFenceVmCmd>()
            .message::<ScanHostCmd>()
            .message::<RetireMsg>();
    }
}

impl Handler<PingHostMsg> for HostActor {
    type Answer = AsyncReply<PingHostReply>;

    fn handle(&mut self, message: PingHostMsg, ctx: &mut Ctx<'_, Self>) -> Self::Answer {
        let (agents, host, pings) = (self.agents.clone(), self.id, self.pings.clone());
        let call = Call::within(Duration::from_millis(message.timeout_ms));
        let (leader_status, leadership) = (self.leader_status.clone(), self.leadership.clone());
        let recorder = Recorder::new(ctx.bus().clone());
        AsyncReply::new(async move {
            let began = Instant::now();
            let answer = agents.ping(host, leader_status.head(), call).await;
            let took = began.elapsed();
            // Before any actor learns that the host answers. For a stale leader a witness that is ahead is normal.
            if let Ok(HostPingReply { host_uuid, witness: Some(witness), .. }) = &answer
                && (*host_uuid == host && leadership.leads())
                && let Some(behind) = leader_status.heard(host, witness).await
            {
                // Not awaited: the journal itself may fail. The log has it in any case.
                drop(recorder.fact(behind));
            }
            metrics::histogram!("ringfence_ping_seconds").record(took);
            let judged = judge_ping(host, answer);
            pings.record(took, judged.connected);
            Ok(judged)
        })
    }
}

impl Handler<QueryPingsMsg> for HostActor {
    type Answer = Result<PingsReply>;

    fn handle(&mut self, _: QueryPingsMsg, _: &mut Ctx<'_, Self>) -> Self::Answer {
        Ok(PingsReply { pings: self.pings.history() })
    }
}

impl Handler<RetireMsg> for HostActor {
    type Answer = Result<Done>;

    fn handle(&mut self, _: RetireMsg, ctx: &mut Ctx<'_, Self>) -> Self::Answer {
        ctx.stop();
        Ok(Done {})
    }
}

/// Judges one answer to a ping, or the lack of one.
pub fn judge_ping(host: HostId, answer: Result<HostPingReply>) -> PingHostReply {
    let failed = |reason: String| PingHostReply {
        connected: false,
        reason: Some(reason),
        boot_id: String::new(),
        machine: Machine::default(),
    };
    match answer {
        Ok(reply) if reply.host_uuid == host && reply.version == AGENT_VERSION => {
            PingHostReply { connected: true, reason: None, boot_id: reply.boot_id, machine: reply.machine }
        }
        Ok(reply) if reply.host_uuid == host => failed(format!(
            "agent version {:.40} differs from the controller's version {AGENT_VERSION}; install the same \
             version on both",
            reply.version
        )),
        Ok(reply) => failed(format!("another host answered: {} instead of {host}", reply.host_uuid)),
        Err(error) => failed(error.to_string()),
    }
}

/// The version that an agent must have: the controller's own. Both are built and installed together.
pub const AGENT_VERSION: &str = env!("CARGO_PKG_VERSION");

/// `asks` commands need no leadership, `acts` commands do; `stamped` commands carry the epoch.
macro_rules! posts {
    ($($kind:ident $command:ty => $method:ident;)*) => {$(
        impl Handler<$command> for HostActor {
            type Answer = AsyncReply<<$command as Message>::Reply>;

            #[allow(unused_mut)]
            fn handle(&mut self, mut command: $command, ctx: &mut Ctx<'_, Self>) -> Self::Answer {
                let may = posts!(@$kind self, command);
                self.post::<$command, _>(ctx, |agents, host, call| async move {
                    may?;
                    agents.$method(host, command, call).await
                })
            }
        }
    )*};
    (@asks $host:ident, $command:ident) => { Ok::<(), ErrorCode>(()) };
    (@acts $host:ident, $command:ident) => { $host.check_leadership() };
    (@asks_stamped $host:ident, $command:ident) => {{
        $command.epoch = $host.epoch;
        Ok::<(), ErrorCode>(())
    }};
    (@acts_stamped $host:ident, $command:ident) => {{
        $command.epoch = $host.epoch;
        $host.check_leadership()
    }};
}

posts! {
    asks HostFactsCmd => facts;
    asks VhostTargetHealthCmd => vhost_health;
    asks ScanHostCmd => scan_host;
    asks_stamped ListVmsCmd => list_vms;
    acts PrepareVhostTargetEnvCmd => prepare_vhost_target_env;
    acts DeployVhostCmd => deploy_vhost;
    acts CreateVhostBdevCmd => create_vhost_bdev;
    acts DeleteVhostBdevCmd => delete_vhost_bdev;
    acts SiblingFenceVmCmd => sibling_fence;
    acts_stamped StopVmCmd => stop_vm;
}

impl Handler<LaunchVmMsg> for HostActor {
    type Answer = AsyncReply<StartVmCmdReply>;

    fn handle(&mut self, LaunchVmMsg { permit, mut cmd }: LaunchVmMsg, ctx: &mut Ctx<'_, Self>) -> Self::Answer {
        let covers = invariant!("I1", permit.covers(self.id, &cmd), "{permit:?} is not for {cmd:?}");
        let may = self.check_leadership();
        cmd.head = self.leader_status.head();
        self.post::<LaunchVmMsg, _>(ctx, move |agents, host, mut call| async move {
            may?;
            // The agent must not act on an expired permit: the rest of its validity bounds the call.
            let left = permit.left(Instant::now().into_std()).filter(|_| covers).ok_or_else(|| {
                let details = format!("the start permit of {} has expired; retry", cmd.name);
                ErrorCode::new(Code::CHANGE_STATE, details)
            })?;
            call.timeout = call.timeout.min(left);
            agents.start_vm(host, &permit, cmd, call).await
        })
    }
}

#[cfg(test)]
mod tests {
    use ringfence_messages::{Code, ErrorCode};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn ping_history_is_bounded() {
        let pings = Pings { began: Instant::now(), past: Mutex::default() };
        for n in 0..PINGS_KEPT as u64 + 5 {
            tokio::time::advance(Duration::from_secs(1)).await;
            pings.record(Duration::from_micros(n), n % 2 == 0);
        }
        let history = pings.history();
        assert_eq!(history.len(), PINGS_KEPT);
        assert_eq!(history[0], Pinged { ago_s: PINGS_KEPT as u32 - 1, took_us: 5, answered: false });
        assert_eq!(history[PINGS_KEPT - 1], Pinged { ago_s: 0, took_us: 64, answered: true });
    }

    fn reply(host: &str, version: &str) -> HostPingReply {
        HostPingReply {
            host_uuid: HostId::from_name(host),
            version: version.into(),
            boot_id: "b1".into(),
            machine: Machine::default(),
            witness: None,
        }
    }

    #[test]
    fn only_right_host_and_version_are_connected() {
        let judge = |answer| judge_ping(HostId::from_name("a"), answer);
        let good = judge(Ok(reply("a", AGENT_VERSION)));
        assert_eq!(
            good,
            PingHostReply { connected: true, reason: None, boot_id: "b1".into(), machine: Machine::default() }
        );
        for (answer, expected) in [
            (Ok(reply("b", AGENT_VERSION)), "another host answered"),
            (Ok(reply("a", "9.9.9")), "agent version 9.9.9 differs"),
            (Err(ErrorCode::new(Code::TIMEOUT, "no answer in 2s")), "no answer in 2s"),
        ] {
            let PingHostReply { connected, reason, .. } = judge(answer);
            assert!(
                !connected && reason.as_ref().is_some_and(|r| r.contains(expected)),
                "{reason:?} lacks {expected:?}"
            );
        }
    }
}
