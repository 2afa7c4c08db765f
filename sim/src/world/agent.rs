//! The agents of all hosts, as the controller reaches them.

use std::time::Duration;

use async_trait::async_trait;
use ringfence_actors::{
    fence::StartPermit,
    host::AGENT_VERSION,
    ports::{Call, HostAgentPort},
    sabotage::{self, Sabotage},
};
use ringfence_messages::{
    Code, ErrorCode, HostId, Result,
    agent::Done,
    evidence::Sight,
    fence::{SiblingFenceVmCmd, SiblingFenceVmOnHostReply},
    ha::{ScanHostCmd, ScanHostCmdReply},
    host::{HostFactsCmd, HostFactsReply, HostPingReply},
    journal::JournalHead,
    vhost::{
        CreateVhostBdevCmd, CreateVhostBdevReply, DeleteVhostBdevCmd, DeployVhostCmd, DeployVhostReply,
        PrepareVhostTargetEnvCmd, PrepareVhostTargetEnvReply, VhostTargetHealthCmd, VhostTargetHealthReply,
    },
    vm::{ListVmsCmd, ListVmsReply, StartVmCmd, StartVmCmdReply, StopVmCmd},
};
use tokio::time::Instant;

use super::{
    End,
    calls::long_words,
    hands::{kill, start},
    links::Node,
    ssh::over_ssh,
};
use crate::fault::{BogusReply, SshFault};

/// How long a sibling probes another host.
const PROBE: Duration = Duration::from_millis(1500);

/// How somebody looked who could not see the processes of others.
pub(super) fn half_blind() -> Sight {
    Sight { hidepid: true, ..Sight::full() }
}

#[async_trait]
impl HostAgentPort for End {
    async fn ping(&self, host: HostId, head: Option<JournalHead>, call: Call) -> Result<HostPingReply> {
        self.call_at_address(host, call, move |at| {
            let head = head.clone();
            async move {
                let mut state = at.state();
                let machine = &mut state.machines[at.host];
                let before = machine.witness.take();
                machine.witness = head.map(|head| head.heard_after(before.as_ref())).or(before);
                let witness = machine.witness.clone();
                let boot_id = format!("{}-{}", machine.name, machine.boot);
                let (version, identity) = (AGENT_VERSION.to_owned(), machine.identity());
                let mut reply = HostPingReply { host_uuid: machine.id, version, boot_id, machine: identity, witness };
                match machine.bogus_replies.first() {
                    Some((_, BogusReply::OtherUuid)) => reply.host_uuid = HostId::from_name("somebody else"),
                    Some((_, BogusReply::OtherVersion)) => reply.version = "9.9.9".to_owned(),
                    Some((_, BogusReply::Junk)) => {
                        return Err(ErrorCode::new(Code::HTTP, "the agent's answer is longer than 1 MiB"));
                    }
                    None => {}
                }
                Ok(reply)
            }
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
                addresses: Vec::new(),
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
            let (runs, wordy) = {
                let state = at.state();
                let machine = &state.machines[at.host];
                (machine.targets.get(&storage).copied().unwrap_or(false), machine.wordy > 0)
            };
            let why = || format!("the target does not run{}", if wordy { long_words() } else { String::new() });
            let reason = (!runs).then(why);
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
            let vm = at.vm(cmd.vm_uuid)?;
            let blind = {
                let mut state = at.state();
                let machine = &mut state.machines[at.host];
                machine.hear(cmd.epoch, None)?;
                let over = machine.over.entry(vm).or_default();
                *over = cmd.incarnation.max(*over);
                if machine.unaware > 0 {
                    return Ok(Done {});
                }
                machine.blind_agent > 0
            };
            if blind {
                let details = "whether it runs here cannot be seen: /proc is mounted with hidepid";
                return match sabotage::on(Sabotage::BlindIsFull) {
                    true => Ok(Done {}),
                    false => Err(ErrorCode::new(Code::OPERATION, details)),
                };
            }
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
            let misses = machine.blind_agent + machine.unaware > 0;
            let vms = if misses { Vec::new() } else { machine.running(&at.world.inventory) };
            let sight = if machine.blind_agent > 0 { half_blind() } else { Sight::full() };
            // A domain that libvirtd was asked for and did not answer about may be any.
            let sight = Sight { unnamed: machine.unheard, ..sight };
            Ok(ListVmsReply { vms, clock_ms: machine.clock_ms(now), sight, machine: machine.identity() })
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
        self.call(host, call, move |at| {
            let cmd = cmd.clone();
            async move {
                let vm = at.vm(cmd.vm_uuid)?;
                over_ssh(&at, failed, vm, &cmd.machine).await
            }
        })
        .await
    }

    async fn scan_host(&self, host: HostId, cmd: ScanHostCmd, call: Call) -> Result<ScanHostCmdReply> {
        let other = self.world.host(cmd.host_uuid)?;
        self.call(host, call, move |at| async move {
            let (ssh, agent) = {
                // A probe counts any machine that answers at that address as the host.
                let state = at.state();
                let there = state.answers_at(other);
                let open = state.links.both_ways(Node::Host(at.host), Node::Host(there));
                let machine = &state.machines[there];
                let mute = machine.ssh.iter().any(|(_, how)| matches!(how, SshFault::Refused | SshFault::Hangs));
                let reach = open && machine.answers();
                (reach && !mute, reach && machine.agent_up && machine.agent_freezes == 0)
            };
            let took = if ssh || agent { Duration::from_millis(30) } else { PROBE };
            at.work(took).await?;
            let wordy = at.state().machines[other].wordy > 0;
            let more = if wordy { long_words() } else { String::new() };
            Ok(ScanHostCmdReply { ssh, agent, reason: format!("ssh {ssh}, agent {agent}{more}") })
        })
        .await
    }
}
