//! What an HA start would do now: the VM's own decisions, taken by a copy of its core, up to the first act.
//!
//! Invariants: what a start asks is asked, and no order is declared void for it; what a start would do is said, and ends the
//! rehearsal. What the order refuses the rehearsal refuses, in the same words: it is the same code (K15).
//! Rejected: a description of the ladder beside the ladder. It planned starts that were refused.

use std::{collections::VecDeque, time::Instant};

use ringfence::{Actor, Address, Bus};
use ringfence_messages::{
    HostId, Result,
    ceph::QueryWatchersMsg,
    ha::{FindTargetMsg, HaStartPlan, QueryHaMsg},
    vm::{InstallPath, ListVmsCmd, VmState},
};

use super::{
    VmActor,
    actor::{SEARCH_TIMEOUT, to},
    core::{Command, Core, Event, Found, Order},
};
use crate::{
    fence::{
        attempt::{self, Case, Place},
        ceph::CephActor,
    },
    ha::{HaActor, braked},
};

impl VmActor {
    /// What an HA start would do now: everything is asked, nothing is changed.
    pub(super) fn rehearse(&self, host_uuid: Option<HostId>) -> impl Future<Output = Result<HaStartPlan>> + use<> {
        let order = Order { host: host_uuid, ha: true, ..Order::default() };
        let found = self.target(FindTargetMsg { host_uuid, dry_run: true, ..self.find_target() });
        let plan = HaStartPlan { vm: self.core.vm.name.clone(), ..HaStartPlan::default() };
        let mut rehearsal = Rehearsal { core: self.core.clone(), bus: self.bus.clone(), plan };
        if rehearsal.core.sets_aside() {
            rehearsal
                .found("it is being started, stopped or looked for right now: this is what comes after".to_owned());
        }
        rehearsal.of(order, found)
    }
}

struct Rehearsal {
    core: Core,
    bus: Bus,
    plan: HaStartPlan,
}

impl Rehearsal {
    async fn of(mut self, order: Order, found: impl Future<Output = Result<Found>>) -> Result<HaStartPlan> {
        let believed = self.core.place().map_or("nowhere".to_owned(), |host| self.core.directory.host_name(host));
        self.found(format!("the journal: {:?}, last on {believed}", self.core.state()));
        let mut found = std::pin::pin!(found);
        let mut next: VecDeque<Command> = self.core.on(Event::Start(order), Instant::now()).into();
        while let Some(command) = next.pop_front() {
            let event = match command {
                Command::FindTarget(..) => self.targets(found.as_mut().await),
                Command::Search(host) => self.search(host).await,
                Command::Fence(_, attempt::Command::Watch(volume)) => self.watchers(volume).await,
                Command::Fence(case, attempt::Command::Intend(_)) => return self.fence(&case).await,
                Command::Fence(case, attempt::Command::Wait(_)) => {
                    self.does("waits for a watch of its own to end".to_owned());
                    return Ok(self.starts(case.target));
                }
                Command::Intend(change) => match change.host.filter(|_| change.new == VmState::Starting) {
                    Some(host) => return Ok(self.starts(host)),
                    None => return Ok(self.ends(true, change.reason)),
                },
                Command::Reply(Ok(())) => return Ok(self.ends(false, "nothing: it runs".to_owned())),
                Command::Reply(Err(error)) => return Ok(self.ends(false, error.to_string())),
                Command::Tell(change) => {
                    self.found(change.reason);
                    continue;
                }
                _ => continue,
            };
            next.extend(self.core.on(event, Instant::now()));
        }
        Ok(self.ends(false, "nothing yet: it is being looked for right now".to_owned()))
    }

    fn targets(&mut self, found: Result<Found>) -> Event {
        for place in found.iter().flat_map(|found| found.places.clone()) {
            let name = self.core.directory.host_name(place.host);
            self.found(format!("agent of {name}: does not answer pings"));
            if let Some(by) = place.human {
                self.found(format!("{by} attested that {name} is off"));
            }
        }
        Event::TargetFound(found)
    }

    async fn search(&mut self, host: HostId) -> Event {
        let listed = self.bus.ask_within(to(host), ListVmsCmd::default(), SEARCH_TIMEOUT).await;
        let name = self.core.directory.host_name(host);
        let is_it = |reply: &ringfence_messages::vm::ListVmsReply| {
            reply.vms.iter().any(|running| running.vm_uuid == self.core.vm.id && running.stranger.is_none())
        };
        self.found(match &listed {
            Ok(reply) if is_it(reply) => format!("agent of {name}: it runs there"),
            Ok(_) => format!("agent of {name}: it does not run there"),
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
            Ok(watchers) if watchers.is_empty() => format!("{}: nobody watches it", volume.install_path),
            Ok(watchers) => {
                let all: Vec<_> = watchers.iter().map(|watcher| watcher.address.as_str()).collect();
                format!("{}: watched by {}", volume.install_path, all.join(", "))
            }
            Err(error) => format!("{}: watchers not known: {error}", volume.install_path),
        });
        Event::Fence(attempt::Event::Watched(index, watchers))
    }

    /// The ladder, from its first act on.
    async fn fence(mut self, case: &Case) -> Result<HaStartPlan> {
        let Place::Silent(failed) = case.place else { return Ok(self.starts(case.target)) };
        let brakes = self.bus.ask(Address::singleton(HaActor::KIND), QueryHaMsg {}).await?.braked;
        if brakes.contains(&case.cluster) && case.human.is_none() {
            let why = braked(self.core.directory.cluster(case.cluster)?);
            return Ok(self.ends(false, why));
        }
        let (name, vm) = (self.core.directory.host_name(failed), self.core.vm.name.clone());
        self.does(format!("quarantine {name}"));
        self.does(format!("a sibling kills {vm} on {name} over SSH, by exact uuid, verified"));
        match case.volumes.iter().find(|(_, path)| !matches!(path, InstallPath::Ceph { .. })) {
            None => {
                let ips: Vec<_> = case.addresses.iter().map(ToString::to_string).collect();
                self.does(format!("where it cannot: Ceph refuses {}, read back", ips.join(", ")));
            }
            Some((_, path)) => {
                self.found(format!("{path}: not on Ceph, no watchers, no storage fence"));
            }
        }
        self.does("watchers are read again".to_owned());
        Ok(self.starts(case.target))
    }

    fn found(&mut self, evidence: String) {
        self.plan.evidence.push(evidence);
    }

    fn does(&mut self, step: String) {
        self.plan.steps.push(step);
    }

    fn starts(self, host: HostId) -> HaStartPlan {
        let step = format!("start it on {}", self.core.directory.host_name(host));
        self.ends(true, step)
    }

    fn ends(mut self, feasible: bool, last: String) -> HaStartPlan {
        self.plan.feasible = feasible;
        self.does(last);
        self.plan
    }
}
