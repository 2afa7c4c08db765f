//! The agents of all hosts, as the controller reaches them: with latency, loss, doubles, and hosts that stand still.
//!
//! A request waits in the socket of a host or agent that stands still, and is served when that goes on, whether or not
//! anybody waits for the answer. A QEMU that is being started comes up though the agent dies meanwhile.

use std::{future::Future, sync::Arc, time::Duration};

use async_trait::async_trait;
use ringfence_actors::{
    fence::StartPermit,
    host::AGENT_VERSION,
    ports::{Call, HostAgentPort},
};
use ringfence_messages::{
    Code, ErrorCode, HostId, Result, VmId,
    agent::Done,
    evidence::Sight,
    fence::{SiblingFenceVmCmd, SiblingFenceVmOnHostReply},
    ha::{ScanHostCmd, ScanHostCmdReply},
    host::{HostFactsCmd, HostFactsReply, HostPingReply},
    vhost::{
        CreateVhostBdevCmd, CreateVhostBdevReply, DeleteVhostBdevCmd, DeployVhostCmd, DeployVhostReply,
        PrepareVhostTargetEnvCmd, PrepareVhostTargetEnvReply, VhostTargetHealthCmd, VhostTargetHealthReply,
    },
    vm::{ListVmsCmd, ListVmsReply, StartVmCmd, StartVmCmdReply, StopVmCmd},
};
use tokio::{sync::oneshot, time::Instant};
use uuid::Uuid;

use super::{End, State, World, links::Node};
use crate::fault::{Lie, SshTrouble};

/// How long QEMU may take to come up (the agent's).
const START_TIMEOUT: Duration = Duration::from_secs(25);

/// How long SSH may take to connect, and its command to end (domain).
const SSH_CONNECT: Duration = Duration::from_secs(8);
const SSH_COMMAND: Duration = Duration::from_secs(20);

/// How long a sibling probes another host.
const PROBE: Duration = Duration::from_millis(1500);

/// A request at an agent.
#[derive(Clone)]
struct At {
    world: Arc<World>,
    host: usize,
    boot: u32,
    life: u32,
    /// The agent acts on it until then, counted from when it read it.
    by: Instant,
}

fn reset() -> ErrorCode {
    ErrorCode::new(Code::HOST_DISCONNECTED, "cannot reach the agent: connection reset")
}

fn no_answer(within: Duration) -> ErrorCode {
    ErrorCode::new(Code::TIMEOUT, format!("no answer within {within:?}"))
}

impl At {
    /// Something takes so long on the host, longer if that stands still; an error if the agent is gone then.
    async fn work(&self, time: Duration) -> Result<()> {
        tokio::time::sleep(time).await;
        self.goes_on(true).await
    }

    /// The same for what goes on without the agent: an error only if the host is gone.
    async fn work_on_host(&self, time: Duration) -> Result<()> {
        tokio::time::sleep(time).await;
        self.goes_on(false).await
    }

    async fn goes_on(&self, agent: bool) -> Result<()> {
        let of = self;
        let gone = move |state: &State| {
            let machine = &state.machines[of.host];
            !machine.on || machine.boot != of.boot || (agent && (!machine.agent_up || machine.agent_life != of.life))
        };
        let stands = move |state: &State| {
            let machine = &state.machines[of.host];
            machine.freezes > 0 || (agent && machine.agent_freezes > 0)
        };
        if stands(&self.world.state()) {
            self.world.until(|state| gone(state) || !stands(state)).await;
        }
        if gone(&self.world.state()) { Err(reset()) } else { Ok(()) }
    }

    fn state(&self) -> parking_lot::MutexGuard<'_, State> {
        self.world.state()
    }

    fn vm(&self, id: VmId) -> Result<usize> {
        self.world.vm(id)
    }
}

/// What comes back: an answer, or nothing ever.
type Back<T> = Option<Result<T>>;

impl End {
    /// One exchange with an agent.
    async fn call<T, F, S>(&self, host: HostId, call: Call, serve: F) -> Result<T>
    where
        T: Send + 'static,
        S: Future<Output = Result<T>> + Send + 'static,
        F: Fn(At) -> S + Clone + Send + Sync + 'static,
    {
        let dies = self.dies();
        let to = self.world.host(host)?;
        let (fate, boot) = {
            let mut state = self.world.state();
            (state.send(Node::Controller, Node::Host(to)), state.machines[to].boot)
        };
        let answer = match fate.after {
            None => None,
            Some(after) => {
                let (tell, answer) = oneshot::channel();
                let exchange = exchange(self.world.clone(), (to, boot), after, call, serve.clone());
                tokio::spawn(async move {
                    let _ = tell.send(exchange.await);
                });
                if fate.twice {
                    let late = after + self.world.state().some(1..3000);
                    tokio::spawn(exchange_again(self.world.clone(), (to, boot), late, call, serve));
                }
                Some(answer)
            }
        };
        if dies {
            // The request is on its way.
            tokio::time::sleep(Duration::from_millis(20)).await;
            return self.die().await;
        }
        let until = Instant::now() + call.timeout;
        if let Some(answer) = answer
            && let Ok(Ok(Some(answer))) = tokio::time::timeout_at(until, answer).await
        {
            return answer;
        }
        tokio::time::sleep_until(until).await;
        Err(no_answer(call.timeout))
    }
}

async fn exchange_again<T, F, S>(world: Arc<World>, to: (usize, u32), after: Duration, call: Call, serve: F)
where
    S: Future<Output = Result<T>> + Send + 'static,
    F: Fn(At) -> S,
{
    let _ = exchange(world, to, after, call, serve).await;
}

async fn exchange<T, F, S>(
    world: Arc<World>,
    (to, boot): (usize, u32),
    after: Duration,
    call: Call,
    serve: F,
) -> Back<T>
where
    S: Future<Output = Result<T>>,
    F: Fn(At) -> S,
{
    tokio::time::sleep(after).await;
    let at = {
        let mut state = world.state();
        // A connection does not outlive the boot that it was made to.
        let there = state.machines[to].on && state.machines[to].boot == boot;
        if !there || !state.links.open(Node::Controller, Node::Host(to)) {
            return None;
        }
        let machine = &mut state.machines[to];
        if machine.freezes == 0 && !machine.agent_up {
            return Some(Err(ErrorCode::new(Code::HOST_DISCONNECTED, "cannot reach the agent: connection refused")));
        }
        At { world: world.clone(), host: to, boot: machine.boot, life: machine.agent_life, by: Instant::now() }
    };
    let result = served(at, call.task, call.timeout, serve).await;
    let back = world.state().send(Node::Host(to), Node::Controller).after?;
    tokio::time::sleep(back).await;
    let open = world.state().links.open(Node::Host(to), Node::Controller);
    open.then_some(result)
}

async fn served<T, F, S>(mut at: At, task: Uuid, timeout: Duration, serve: F) -> Result<T>
where
    S: Future<Output = Result<T>>,
    F: Fn(At) -> S,
{
    at.goes_on(true).await?;
    let slow = {
        let mut state = at.state();
        let now = state.now;
        let machine = &mut state.machines[at.host];
        if machine.done.len() > 64 {
            machine.done.retain(|_, at| now.saturating_sub(*at) < Duration::from_secs(600));
        }
        if machine.done.insert(task, now).is_some() {
            return Err(ErrorCode::new(Code::CHANGE_STATE, "this task is being done already"));
        }
        let slow = machine.slow.iter().map(|(_, millis)| *millis).max().unwrap_or(0);
        if slow > 0 { state.some(0..slow) } else { Duration::ZERO }
    };
    // `deadline-ms` counts from when the agent read it.
    at.by = Instant::now() + timeout;
    if !slow.is_zero() {
        at.work(slow).await?;
    }
    serve(at).await
}

#[async_trait]
impl HostAgentPort for End {
    async fn ping(&self, host: HostId, call: Call) -> Result<HostPingReply> {
        self.call(host, call, |at| async move {
            let state = at.state();
            let machine = &state.machines[at.host];
            let boot_id = format!("{}-{}", machine.name, machine.boot);
            let (version, identity) = (AGENT_VERSION.to_owned(), machine.identity());
            let mut reply = HostPingReply { host_uuid: machine.id, version, boot_id, machine: identity };
            match machine.lies.first() {
                Some((_, Lie::OtherUuid)) => reply.host_uuid = HostId::from_name("somebody else"),
                Some((_, Lie::OtherVersion)) => reply.version = "9.9.9".to_owned(),
                Some((_, Lie::Junk)) => {
                    return Err(ErrorCode::new(Code::HTTP, "the agent's answer is longer than 1 MiB"));
                }
                None => {}
            }
            Ok(reply)
        })
        .await
    }

    async fn facts(&self, host: HostId, _: HostFactsCmd, call: Call) -> Result<HostFactsReply> {
        self.call(host, call, |at| async move {
            let state = at.state();
            let machine = &state.machines[at.host];
            let taken: u64 = machine.processes.iter().map(|p| at.world.inventory.vms[p.vm].memory_mib).sum();
            Ok(HostFactsReply {
                host_uuid: machine.id,
                version: AGENT_VERSION.to_owned(),
                hostname: machine.name.clone(),
                accel: "kvm".to_owned(),
                qemu_version: "7.2.0".to_owned(),
                memory_mib: machine.memory_mib,
                available_mib: machine.memory_mib.saturating_sub(taken),
                cpus: 16,
                free_hugepages: 1024,
            })
        })
        .await
    }

    async fn prepare_vhost_target_env(
        &self,
        host: HostId,
        _: PrepareVhostTargetEnvCmd,
        call: Call,
    ) -> Result<PrepareVhostTargetEnvReply> {
        self.call(host, call, |at| async move {
            let time = at.state().some(50..800);
            at.work(time).await?;
            if at.state().machines[at.host].prepare_fails > 0 {
                return Err(ErrorCode::new(Code::HOST_OPERATION, "0 of 1024 hugepages could be reserved"));
            }
            Ok(PrepareVhostTargetEnvReply::default())
        })
        .await
    }

    async fn deploy_vhost(&self, host: HostId, cmd: DeployVhostCmd, call: Call) -> Result<DeployVhostReply> {
        let storage = cmd.primary_storage_uuid;
        self.call(host, call, move |at| async move {
            let time = at.state().some(200..4000);
            at.work(time).await?;
            let mut state = at.state();
            let started = state.deploy(at.host, storage)?;
            Ok(DeployVhostReply { pid: 7, started, ..DeployVhostReply::default() })
        })
        .await
    }

    async fn vhost_health(
        &self,
        host: HostId,
        cmd: VhostTargetHealthCmd,
        call: Call,
    ) -> Result<VhostTargetHealthReply> {
        let storage = cmd.primary_storage_uuid;
        self.call(host, call, move |at| async move {
            let runs = at.state().machines[at.host].targets.get(&storage).copied().unwrap_or(false);
            let reason = (!runs).then(|| "the target does not run".to_owned());
            Ok(VhostTargetHealthReply { target_running: runs, reason })
        })
        .await
    }

    async fn create_vhost_bdev(
        &self,
        host: HostId,
        cmd: CreateVhostBdevCmd,
        call: Call,
    ) -> Result<CreateVhostBdevReply> {
        self.call(host, call, move |at| {
            let cmd = cmd.clone();
            async move {
                at.work(Duration::from_millis(20)).await?;
                let exported = at.state().export(at.host, cmd.primary_storage_uuid);
                exported.map_err(|error| ErrorCode::new(Code::NOT_READY, error.details))?;
                Ok(CreateVhostBdevReply { socket_path: format!("/run/{}.sock", cmd.bdev_name) })
            }
        })
        .await
    }

    async fn delete_vhost_bdev(&self, host: HostId, _: DeleteVhostBdevCmd, call: Call) -> Result<Done> {
        self.call(host, call, |_| async { Ok(Done {}) }).await
    }

    async fn start_vm(
        &self,
        host: HostId,
        permit: &StartPermit,
        cmd: StartVmCmd,
        call: Call,
    ) -> Result<StartVmCmdReply> {
        {
            let mut state = self.world.state();
            let covers = permit.covers(host, &cmd) && permit.left(Instant::now().into_std()).is_some();
            if !covers {
                state.violation("I1", format!("{} is ordered on {host} without a good permit", cmd.name));
            }
            state.starts(&cmd.name, cmd.incarnation);
        }
        self.call(host, call, move |at| start(at, cmd.clone())).await
    }

    async fn stop_vm(&self, host: HostId, cmd: StopVmCmd, call: Call) -> Result<Done> {
        let at = self.world.host(host)?;
        if let Ok(vm) = self.world.vm(cmd.vm_uuid).map(|vm| &self.world.inventory.vms[vm]) {
            self.world.state().stops(at, &vm.name);
        }
        self.call(host, call, move |at| async move {
            let lock = at.state().machines[at.host].busy.clone();
            let _order = lock.lock().await;
            at.goes_on(true).await?;
            at.state().machines[at.host].hear(cmd.epoch, None)?;
            let vm = at.vm(cmd.vm_uuid)?;
            let (_, _, alive, why) = kill(&at, vm, true).await?;
            match alive {
                true => Err(ErrorCode::new(Code::OPERATION, why)),
                false => Ok(Done {}),
            }
        })
        .await
    }

    async fn list_vms(&self, host: HostId, cmd: ListVmsCmd, call: Call) -> Result<ListVmsReply> {
        self.call(host, call, move |at| async move {
            // A start that is under way is waited for.
            let lock = at.state().machines[at.host].busy.clone();
            let _order = lock.lock().await;
            at.goes_on(true).await?;
            let mut state = at.state();
            let now = state.now;
            let machine = &mut state.machines[at.host];
            machine.hear(cmd.epoch, cmd.void)?;
            Ok(ListVmsReply {
                vms: machine.running(&at.world.inventory),
                clock_ms: machine.clock_ms(now),
                sight: Sight::full(),
                machine: machine.identity(),
            })
        })
        .await
    }

    async fn sibling_fence(
        &self,
        host: HostId,
        cmd: SiblingFenceVmCmd,
        call: Call,
    ) -> Result<SiblingFenceVmOnHostReply> {
        let failed = self.world.host(cmd.failed_host_uuid)?;
        if let Ok(vm) = self.world.vm(cmd.vm_uuid).map(|vm| &self.world.inventory.vms[vm]) {
            self.world.state().sibling_fences(failed, &vm.name);
        }
        self.call(host, call, move |at| async move {
            let vm = at.vm(cmd.vm_uuid)?;
            over_ssh(&at, failed, vm).await
        })
        .await
    }

    async fn scan_host(&self, host: HostId, cmd: ScanHostCmd, call: Call) -> Result<ScanHostCmdReply> {
        let other = self.world.host(cmd.host_uuid)?;
        self.call(host, call, move |at| async move {
            let (ssh, agent) = {
                let state = at.state();
                let (there, here) = (Node::Host(other), Node::Host(at.host));
                let open = state.links.both_ways(here, there);
                let machine = &state.machines[other];
                let mute = machine.ssh.iter().any(|(_, how)| matches!(how, SshTrouble::Refused | SshTrouble::Hangs));
                let reach = open && machine.answers();
                (reach && !mute, reach && machine.agent_up && machine.agent_freezes == 0)
            };
            let took = if ssh || agent { Duration::from_millis(30) } else { PROBE };
            at.work(took).await?;
            Ok(ScanHostCmdReply { ssh, agent, reason: format!("ssh {ssh}, agent {agent}") })
        })
        .await
    }
}

/// The agent starts a VM: as `drivers` does it, with the very same judgement of the order.
async fn start(at: At, cmd: StartVmCmd) -> Result<StartVmCmdReply> {
    let lock = at.state().machines[at.host].busy.clone();
    let order = lock.lock_owned().await;
    at.goes_on(true).await?;
    let vm = at.vm(cmd.vm_uuid)?;
    {
        let mut state = at.state();
        let now = state.now;
        let machine = &mut state.machines[at.host];
        let void = cmd.not_after_ms != 0 && machine.clock_ms(now) >= cmd.not_after_ms;
        let runs_as = machine.processes.iter().find(|process| process.vm == vm).map(|process| process.pid);
        let next = machine.orders.admit(&cmd, runs_as, void || Instant::now() >= at.by)?;
        if machine.disk_full > 0 {
            return Err(ErrorCode::new(Code::IO, "orders.json cannot be written: disk full"));
        }
        machine.orders = next;
    }
    // From here on it goes on without the agent; the order is in QEMU's hands.
    let (tell, told) = oneshot::channel();
    let there = at.clone();
    tokio::spawn(async move {
        let result = launch(&there, vm, cmd.incarnation).await;
        drop(order);
        let _ = tell.send(result);
    });
    told.await.unwrap_or_else(|_| Err(reset()))
}

async fn launch(at: &At, vm: usize, incarnation: u64) -> Result<StartVmCmdReply> {
    let failed = |why: &str| Err(ErrorCode::new(Code::HOST_START_VM, format!("QEMU does not start: {why}")));
    let time = at.state().some(200..1500);
    at.work_on_host(time).await?;
    let (reach, until) = {
        let state = at.state();
        (state.machines[at.host].contact, Instant::now() + START_TIMEOUT)
    };
    if !reach {
        // It hangs in opening its disk until the storage is back or somebody loses patience.
        let back = at.world.until(|state| {
            let machine = &state.machines[at.host];
            machine.contact || !machine.on || machine.boot != at.boot
        });
        if tokio::time::timeout_at(until, back).await.is_err() {
            return Err(ErrorCode::new(Code::TIMEOUT, format!("QEMU was not ready within {START_TIMEOUT:?}")));
        }
        at.work_on_host(Duration::from_millis(5)).await?;
    }
    let mut state = at.state();
    // It has the newest map: from now on no OSD knows less.
    state.newest_map_spreads();
    let (now, ips) = (state.now, state.machines[at.host].storage_ips.clone());
    if state.checks.vhost_of(vm).is_none() && state.ceph.refuses(&ips, now) {
        return failed("the storage refuses this host");
    }
    let pid = state.spawn(at.host, vm, incarnation, false);
    Ok(StartVmCmdReply { pid, accel: "kvm".to_owned(), memory: "memfd".to_owned() })
}

/// Kills every QEMU of a VM on a host and looks for what comes back: found, killed, alive, why.
async fn kill(at: &At, vm: usize, by_agent: bool) -> Result<(bool, bool, bool, String)> {
    let (mut found, mut killed) = (false, false);
    let mut said = String::new();
    for round in 0..3 {
        let (there, incoming, stuck) = {
            let state = at.state();
            let of: Vec<_> = state.machines[at.host].processes.iter().filter(|p| p.vm == vm).collect();
            (!of.is_empty(), of.iter().any(|p| p.incoming), of.iter().any(|p| p.unkillable > 0))
        };
        if !there {
            break;
        }
        found = true;
        if incoming {
            return Ok((true, killed, true, "it is the target of a migration and left alone".to_owned()));
        }
        if stuck {
            at.work_on_host(Duration::from_secs(10)).await?;
            return Ok((true, killed, true, "it is still there after SIGKILL (D state)".to_owned()));
        }
        if round == 2 {
            return Ok((true, killed, true, "something starts it again".to_owned()));
        }
        {
            let mut state = at.state();
            let ended = state.end(at.host, "killed", |process| process.vm == vm && process.unkillable == 0);
            if let Some(process) = ended.first()
                && state.machines[at.host].respawns.contains_key(&vm)
            {
                let (world, host, boot, incarnation) = (at.world.clone(), at.host, at.boot, process.incarnation);
                let after = state.some(50..400);
                tokio::spawn(respawn(world, host, boot, vm, incarnation, after));
            }
        }
        killed = true;
        said = "killed, verified gone".to_owned();
        // The search for one that comes back.
        if by_agent {
            at.work(Duration::from_millis(100)).await?;
        } else {
            at.work_on_host(Duration::from_millis(500)).await?;
        }
    }
    Ok((found, killed, false, said))
}

async fn respawn(world: Arc<World>, host: usize, boot: u32, vm: usize, incarnation: u64, after: Duration) {
    tokio::time::sleep(after).await;
    let mut state = world.state();
    let machine = &state.machines[host];
    let wanted = machine.on && machine.boot == boot && machine.respawns.contains_key(&vm);
    if wanted && machine.processes.iter().all(|process| process.vm != vm) {
        state.spawn(host, vm, incarnation, false);
    }
}

/// A sibling goes to a failed host by SSH.
async fn over_ssh(at: &At, failed: usize, vm: usize) -> Result<SiblingFenceVmOnHostReply> {
    let unknown = |reason: &str| {
        let details = format!("whether vm-{vm} runs there is not known: {reason}");
        Err(ErrorCode::new(Code::OPERATION, details).with("reason", reason))
    };
    let (there, here) = (Node::Host(failed), Node::Host(at.host));
    let (reach, refused, frozen, boot) = {
        let state = at.state();
        let open = state.links.both_ways(here, there);
        let machine = &state.machines[failed];
        let closed = machine.ssh.iter().any(|(_, how)| *how == SshTrouble::Refused);
        (open && machine.on, closed, machine.freezes > 0, machine.boot)
    };
    let nobody = |reason: &str| {
        Ok(SiblingFenceVmOnHostReply { reason: reason.to_owned(), ..SiblingFenceVmOnHostReply::default() })
    };
    if !reach {
        at.work(SSH_CONNECT).await?;
        return nobody("no route to it");
    }
    at.work(Duration::from_millis(40)).await?;
    if frozen {
        at.work(SSH_CONNECT).await?;
        return unknown("timeout");
    }
    if refused {
        return nobody("connection refused");
    }
    let trouble = at.state().machines[failed].ssh.first().map(|(_, how)| *how);
    match trouble {
        Some(SshTrouble::Hangs) => {
            at.work(SSH_CONNECT).await?;
            return unknown("timeout");
        }
        Some(SshTrouble::Auth) => return unknown("auth-failed"),
        Some(SshTrouble::HostKey) => return unknown("host-key-mismatch"),
        Some(SshTrouble::Exit255) => return unknown("bad-exit"),
        _ => {}
    }
    let on_failed = At { world: at.world.clone(), host: failed, boot, life: 0, by: at.by };
    // What runs there goes on though the connection breaks.
    let (tell, told) = oneshot::channel();
    tokio::spawn(async move {
        let _ = tell.send(kill(&on_failed, vm, false).await);
    });
    let said = tokio::time::timeout(SSH_COMMAND, told).await;
    at.goes_on(true).await?;
    let open = {
        let state = at.state();
        state.links.both_ways(here, there)
    };
    match said {
        Ok(Ok(Ok((found, killed, alive, reason)))) if open => {
            if trouble == Some(SshTrouble::Truncated) {
                return unknown("truncated");
            }
            Ok(SiblingFenceVmOnHostReply {
                alive,
                killed,
                ssh_reachable: true,
                qemu_found: found,
                executor_host_uuid: None,
                executor_role: None,
                reason,
                machine: Some(at.state().machines[failed].identity()),
                sight: Some(Sight::full()),
            })
        }
        _ => unknown("timeout"),
    }
}
