//! The dry run of an HA start: the VM's own decisions, taken by a copy of its core, up to the first act.
//!
//! Invariants: the queries of a start are made, but no start command is voided. The first act is reported and ends
//! the rehearsal. A rehearsal rejects what a start rejects, with the same text: it is the same code (K15).
//! Alternatives considered: a separate description of the fencing levels. It planned starts that were then rejected.

use std::{collections::VecDeque, time::Instant};

use futures_util::FutureExt;
use ringfence::{Actor, Address, Bus};
use ringfence_messages::{
    HostId, Result,
    ceph::QueryWatchersMsg,
    ha::{FindTargetMsg, HA, HaStartPlan, QueryHaMsg},
    vm::{InstallPath, ListVmsCmd, VmState},
};

use super::{
    VmActor,
    actor::{SEARCH_TIMEOUT, to},
    core::{Command, Core, Event, Found, StartRequest},
};
use crate::{
    fence::attempt::{self, FenceRequest, LastHost},
    fencers::ceph::CephActor,
};

impl VmActor {
    /// The plan of an HA start now. Changes nothing.
    pub(super) fn rehearse(&self, host_uuid: Option<HostId>) -> impl Future<Output = Result<HaStartPlan>> + use<> {
        let request = StartRequest { host: host_uuid, ha: true, ..StartRequest::default() };
        let found = self.target(FindTargetMsg { host_uuid, dry_run: true, ..self.find_target() });
        let plan = HaStartPlan { vm: self.core.vm.name.clone(), ..HaStartPlan::default() };
        let mut rehearsal = Rehearsal { core: self.core.clone(), bus: self.bus.clone(), plan };
        if rehearsal.core.sets_aside() {
            rehearsal.found("an operation is in progress: this plan is for the time after it".to_owned());
        }
        rehearsal.of(request, found)
    }
}

struct Rehearsal {
    core: Core,
    bus: Bus,
    plan: HaStartPlan,
}

impl Rehearsal {
    async fn of(mut self, request: StartRequest, found: impl Future<Output = Result<Found>>) -> Result<HaStartPlan> {
        let last_host = self.core.place().map_or("none".to_owned(), |host| self.core.inventory.host_name(host));
        self.found(format!("journal: {:?}, last host {last_host}", self.core.state()));
        // A start that finds its VM gone asks for a target again.
        let found = found.shared();
        let mut next: VecDeque<Command> = self.core.on(Event::Start(request), Instant::now()).into();
        while let Some(command) = next.pop_front() {
            let event = match command {
                Command::FindTarget(..) => self.targets(found.clone().await),
                Command::Search(host) => self.search(host).await,
                Command::Fence(_, attempt::Command::Watch(volume)) => self.watchers(volume).await,
                Command::Fence(fence_request, attempt::Command::Intend(_)) => return self.fence(&fence_request).await,
                Command::Fence(fence_request, attempt::Command::Wait(_)) => {
                    self.does("wait until the VM's own watch ends".to_owned());
                    return Ok(self.starts(fence_request.target));
                }
                Command::Intend(change) => match change.host.filter(|_| change.new == VmState::Starting) {
                    Some(host) => return Ok(self.starts(host)),
                    None => return Ok(self.ends(true, change.reason)),
                },
                Command::Reply(Ok(())) => return Ok(self.ends(false, "nothing: the VM runs".to_owned())),
                Command::Reply(Err(error)) => return Ok(self.ends(false, error.to_string())),
                Command::Emit(change) => {
                    self.found(change.reason);
                    continue;
                }
                _ => continue,
            };
            next.extend(self.core.on(event, Instant::now()));
        }
        Ok(self.ends(false, "nothing yet: the VM is being searched".to_owned()))
    }

    fn targets(&mut self, found: Result<Found>) -> Event {
        for place in found.iter().flat_map(|found| found.places.clone()) {
            let name = self.core.inventory.host_name(place.host);
            self.found(format!("agent of {name}: does not answer pings"));
            if let Some(by) = place.attested_by {
                self.found(format!("{by} attested that {name} is off"));
            }
        }
        Event::TargetFound(found)
    }

    async fn search(&mut self, host: HostId) -> Event {
        let listed = self.bus.ask_within(to(host), ListVmsCmd::default(), SEARCH_TIMEOUT).await;
        let name = self.core.inventory.host_name(host);
        let lists_vm = |reply: &ringfence_messages::vm::ListVmsReply| {
            reply.vms.iter().any(|running| running.vm_uuid == self.core.vm.id && running.stranger.is_none())
        };
        self.found(match &listed {
            Ok(reply) if lists_vm(reply) => format!("agent of {name}: the VM runs there"),
            Ok(_) => format!("agent of {name}: the VM does not run there"),
            Err(error) => format!("agent of {name}: {error}"),
        });
        Event::Searched(host, listed)
    }

    async fn watchers(&mut self, index: usize) -> Event {
        let volume = self.core.vm.volumes[index].clone();
        let ask = QueryWatchersMsg { install_path: volume.install_path.clone() };
        let watchers = self.bus.ask(Address::new(CephActor::KIND, volume.storage), ask).await;
        let watchers = watchers.map(|reply| reply.watchers);
        self.found(match &watchers {
            Ok(watchers) if watchers.is_empty() => format!("{}: no watchers", volume.install_path),
            Ok(watchers) => {
                let all: Vec<_> = watchers.iter().map(|watcher| watcher.address.as_str()).collect();
                format!("{}: watched by {}", volume.install_path, all.join(", "))
            }
            Err(error) => format!("{}: watchers unknown: {error}", volume.install_path),
        });
        Event::Fence(attempt::Event::Watched(index, watchers))
    }

    /// The fencing levels, from the first act on.
    async fn fence(mut self, fence_request: &FenceRequest) -> Result<HaStartPlan> {
        let LastHost::Unreachable(failed) = fence_request.place else { return Ok(self.starts(fence_request.target)) };
        let brakes = self.bus.ask(HA, QueryHaMsg {}).await?.braked;
        if brakes.contains(&fence_request.cluster) && fence_request.attested_by.is_none() {
            let why = self.core.inventory.cluster(fence_request.cluster)?.braked();
            return Ok(self.ends(false, why));
        }
        let (name, vm) = (self.core.inventory.host_name(failed), self.core.vm.name.clone());
        self.does(format!("quarantine {name}"));
        self.does(format!("a sibling host kills {vm} on {name} over SSH, by exact uuid, verified"));
        match fence_request.volumes.iter().find(|(_, path)| !matches!(path, InstallPath::Ceph { .. })) {
            None => {
                let ips: Vec<_> = fence_request.addresses.iter().map(ToString::to_string).collect();
                self.does(format!("if that fails: Ceph rejects {}, verified by reading back", ips.join(", ")));
            }
            Some((_, path)) => {
                self.found(format!("{path}: not on Ceph, no watchers, no storage fence"));
            }
        }
        self.does("read the watchers again".to_owned());
        Ok(self.starts(fence_request.target))
    }

    fn found(&mut self, evidence: String) {
        self.plan.evidence.push(evidence);
    }

    fn does(&mut self, step: String) {
        self.plan.steps.push(step);
    }

    fn starts(self, host: HostId) -> HaStartPlan {
        let step = format!("start the VM on {}", self.core.inventory.host_name(host));
        self.ends(true, step)
    }

    fn ends(mut self, feasible: bool, last: String) -> HaStartPlan {
        self.plan.feasible = feasible;
        self.does(last);
        self.plan
    }
}
