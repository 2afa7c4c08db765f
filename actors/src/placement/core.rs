//! Decides the target host of each request, and how long a request waits for the census.
//!
//! Invariants: a start waits until the HA supervisor has the process list of every host of the cluster that it needs
//! (K7), at most [`CENSUS_PATIENCE`]; an unknown census counts as an incomplete one (I2). The census is read after the
//! hosts were queried. A VM that may have moved waits until every host that should answer has listed its processes
//! after the request: a list that failed, or is older, does not show that the VM is not there (K12). A host with
//! unknown memory takes no VM. Memory is reserved until the host reports it, so that simultaneous starts do not
//! overfill a host.
//! Alternatives considered: one round of queries per request. A hundred starts in a cluster of a thousand hosts would
//! need a hundred thousand queries; requests that arrive while the hosts are queried share the answers.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use ringfence_messages::{
    ClusterId, Code, ErrorCode, HostId, Result, VmId,
    ha::{Candidate, CandidatesReply, CensusReply, FindTargetMsg, TargetReply},
    host::ServingHostsReply,
};

use super::rank::{choose, rank};
use crate::inventory::InventoryIndex;

/// Validity of a host's memory and processes. Too high: a VM that another program just started is missed; watchers
/// and the fence do not depend on it.
pub const SNAPSHOT_FRESH: Duration = Duration::from_secs(2);

/// Longest wait of a request for the hosts of its cluster to list their processes. Too low: a request right after the
/// start of the controller is rejected. Too high: the answer comes after its deadline.
pub const CENSUS_PATIENCE: Duration = Duration::from_secs(20);

/// Between two rounds for VMs that may have moved: each round queries every host of the cluster. Too low: a hundred
/// starts in a cluster of a thousand hosts make a hundred thousand queries. Too high: a start that comes right after
/// another one waits.
pub const ROUND_SPACING: Duration = Duration::from_secs(1);

/// Between two rounds while requests wait for the census.
const CENSUS_POLL: Duration = Duration::from_millis(250);

/// Validity of a reservation. After that the memory shows in the report of the host.
pub const RESERVED_FOR: Duration = Duration::from_secs(10);

/// Id of a pending reply; chosen by the shell.
pub(crate) type Token = u64;

/// Input of the core.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// A VM needs a target host.
    Find(Token, FindTargetMsg),
    /// A plan needs the hosts of a cluster that can take VMs.
    Candidates(Token, ClusterId),
    /// Reply to [`Command::Query`].
    Queried(ClusterId, Result<Round>),
    /// The time of a [`Command::Wait`] has passed.
    Waited(ClusterId),
}

/// Output of the core.
#[derive(Clone, Debug, PartialEq)]
pub enum Command {
    /// Query the hosts of this cluster, except these: their snapshots are fresh.
    Query(ClusterId, BTreeSet<HostId>),
    /// Report [`Event::Waited`] after this time.
    Wait(ClusterId, Duration),
    /// Answer [`Event::Find`].
    Target(Token, Result<TargetReply>),
    /// Answer [`Event::Candidates`].
    List(Token, Result<CandidatesReply>),
}

/// The hosts of a cluster, as just queried.
#[derive(Clone, Debug, PartialEq)]
pub struct Round {
    /// The hosts that serve, and those that answer pings.
    pub serving: ServingHostsReply,
    /// Hosts that have a snapshot: the serving ones, and others where a VM may run.
    pub queried: BTreeSet<HostId>,
    /// The new snapshots.
    pub snapshots: Vec<(HostId, HostSnapshot)>,
    /// The census after the snapshots; an error if it is unknown.
    pub census: Result<CensusReply>,
}

/// Memory and QEMU processes of a host as just reported: a hint, not a proof.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostSnapshot {
    /// When the host was queried.
    pub asked: Duration,
    /// Available memory in MiB; `None` if unknown.
    pub available_mib: Option<u64>,
    /// Whether `vms` is complete: the host answered, with full sight.
    pub listed_all: bool,
    /// VMs with a QEMU there.
    pub vms: Vec<VmId>,
}

/// A request that waits for a round.
#[derive(Debug)]
enum Waiting {
    /// A request for a target host, and when it came.
    Target(Token, FindTargetMsg, Duration),
    Candidates(Token),
}

/// Memory reserved for a VM whose start is in progress.
#[derive(Debug)]
struct Reservation {
    at: Duration,
    host: HostId,
    vm: VmId,
    mib: u64,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Core {
    inventory: Arc<InventoryIndex>,
    snapshots: BTreeMap<HostId, HostSnapshot>,
    /// Requests that wait for the hosts of a cluster.
    waiting: BTreeMap<ClusterId, Vec<Waiting>>,
    reservations: Vec<Reservation>,
    /// Since when starts in a cluster wait for the census.
    census_since: BTreeMap<ClusterId, Duration>,
    /// When the newest round of a cluster began.
    began: BTreeMap<ClusterId, Duration>,
}

impl Core {
    /// Takes a new inventory.
    pub fn set_inventory(&mut self, inventory: &Arc<InventoryIndex>) {
        self.inventory = inventory.clone();
    }

    /// Handles one event. `now` is monotonic.
    pub fn on(&mut self, event: Event, now: Duration) -> Vec<Command> {
        match event {
            Event::Find(token, ask) => self.waits(ask.cluster_uuid, Waiting::Target(token, ask, now), now),
            Event::Candidates(token, cluster) => self.waits(cluster, Waiting::Candidates(token), now),
            Event::Queried(cluster, Err(error)) => {
                let waiting = self.waiting.remove(&cluster).unwrap_or_default();
                waiting.into_iter().map(|waiting| waiting.failed(error.clone())).collect()
            }
            Event::Queried(cluster, Ok(round)) => self.queried(cluster, round, now),
            Event::Waited(cluster) => vec![self.query(cluster, now)],
        }
    }

    /// Number of requests that wait, and of reservations, for readers.
    pub fn load(&self) -> (usize, usize) {
        (self.waiting.values().map(Vec::len).sum(), self.reservations.len())
    }

    fn waits(&mut self, cluster: ClusterId, request: Waiting, now: Duration) -> Vec<Command> {
        let spacing = self.spacing(cluster, now).filter(|_| request.needs_lists_since().is_some());
        let waiting = self.waiting.entry(cluster).or_default();
        waiting.push(request);
        match (waiting.len(), spacing) {
            (1, Some(spacing)) => vec![Command::Wait(cluster, spacing)],
            (1, None) => vec![self.query(cluster, now)],
            _ => Vec::new(),
        }
    }

    /// Time until the next round that queries every host of the cluster.
    fn spacing(&self, cluster: ClusterId, now: Duration) -> Option<Duration> {
        let next = *self.began.get(&cluster)? + ROUND_SPACING;
        next.checked_sub(now).filter(|spacing| !spacing.is_zero())
    }

    fn query(&mut self, cluster: ClusterId, now: Duration) -> Command {
        let waiting = self.waiting.get(&cluster).into_iter().flatten();
        let since = waiting.filter_map(Waiting::needs_lists_since).max();
        let fresh = |host: &HostId, snapshot: &HostSnapshot| {
            now.saturating_sub(snapshot.asked) < SNAPSHOT_FRESH
                && since.is_none_or(|since| self.listed_since(*host, since))
        };
        let fresh = self.snapshots.iter().filter(|(host, snapshot)| fresh(host, snapshot));
        let fresh = fresh.map(|(host, _)| *host).collect();
        self.began.insert(cluster, now);
        Command::Query(cluster, fresh)
    }

    /// Answers every request that waited for the round, unless it must wait for the census.
    fn queried(&mut self, cluster: ClusterId, mut round: Round, now: Duration) -> Vec<Command> {
        self.snapshots.extend(std::mem::take(&mut round.snapshots));
        let unsettled = match &round.census {
            Ok(census) => census.unsettled_host_uuids.first().map(|host| self.not_heard(*host)),
            Err(error) => Some(error.clone()),
        };
        if unsettled.is_none() {
            self.census_since.remove(&cluster);
        }
        let since = unsettled.as_ref().map(|_| *self.census_since.entry(cluster).or_insert(now));
        let waits = since.is_some_and(|since| now.saturating_sub(since) < CENSUS_PATIENCE);
        let (mut commands, mut later) = (Vec::new(), Vec::new());
        for waiting in self.waiting.remove(&cluster).unwrap_or_default() {
            let starts = matches!(&waiting, Waiting::Target(_, ask, _) if !ask.dry_run);
            match (&unsettled, &round.census) {
                (Some(_), _) if starts && waits => later.push(waiting),
                (Some(error), _) if starts => commands.push(waiting.failed(error.clone())),
                (_, Err(error)) => commands.push(waiting.failed(error.clone())),
                (_, Ok(census)) => match self.unlisted(cluster, &waiting, census) {
                    Some((_, came)) if now.saturating_sub(came) < CENSUS_PATIENCE => later.push(waiting),
                    Some((host, _)) => commands.push(waiting.failed(self.not_listed(host))),
                    None => commands.push(self.answer(waiting, &round, census, now)),
                },
            }
        }
        if !later.is_empty() {
            let moved = later.iter().any(|waiting| waiting.needs_lists_since().is_some());
            let spacing = self.spacing(cluster, now).filter(|_| moved).unwrap_or(CENSUS_POLL);
            self.waiting.insert(cluster, later);
            commands.push(Command::Wait(cluster, spacing));
        }
        commands
    }

    fn answer(&mut self, waiting: Waiting, round: &Round, census: &CensusReply, now: Duration) -> Command {
        match waiting {
            Waiting::Target(token, ask, _) => Command::Target(token, Ok(self.target(&ask, round, census, now))),
            Waiting::Candidates(token) => {
                let candidates = self.candidates(&round.serving, census, now);
                Command::List(token, Ok(CandidatesReply { candidates }))
            }
        }
    }

    fn not_heard(&self, host: HostId) -> ErrorCode {
        let name = self.inventory.host_name(host);
        let details =
            format!("{name} has not listed its processes since this controller became the leader; retry in a moment");
        ErrorCode::new(Code::NOT_READY, details)
    }

    /// A host that the request still waits for, and when the request came.
    fn unlisted(&self, cluster: ClusterId, waiting: &Waiting, census: &CensusReply) -> Option<(HostId, Duration)> {
        let since = waiting.needs_lists_since()?;
        let answers = |host: &HostId| {
            let maintained = census.maintained_host_uuids.contains(host) && !census.searched_host_uuids.contains(host);
            !maintained && !census.disconnected_host_uuids.contains(host)
        };
        let hosts = self.inventory.hosts.iter().filter(|host| host.cluster == cluster).map(|host| host.id);
        let unlisted = hosts.filter(answers).find(|host| !self.listed_since(*host, since));
        unlisted.map(|host| (host, since))
    }

    fn listed_since(&self, host: HostId, since: Duration) -> bool {
        self.snapshots.get(&host).is_some_and(|snapshot| snapshot.listed_all && snapshot.asked >= since)
    }

    fn not_listed(&self, host: HostId) -> ErrorCode {
        let name = self.inventory.host_name(host);
        let details = format!(
            "{name} does not list its processes, and another program may have moved the VM there; retry in a moment, \
             or run `ringfence host maintain {name}` if its agent cannot be repaired and nothing runs there"
        );
        ErrorCode::new(Code::NOT_READY, details)
    }

    /// The hosts that can take VMs.
    fn candidates(&self, serving: &ServingHostsReply, census: &CensusReply, now: Duration) -> Vec<Candidate> {
        let mut reserved: BTreeMap<HostId, (u64, usize)> = BTreeMap::new();
        for reservation in self.reservations.iter().filter(|reservation| reservation.holds(now)) {
            let (mib, vms) = reserved.entry(reservation.host).or_default();
            (*mib, *vms) = (*mib + reservation.mib, *vms + 1);
        }
        let occupied: BTreeMap<HostId, usize> = census.occupied.iter().copied().collect();
        let candidate = |host: &HostId| {
            let (reserved_mib, reserved_vms) = reserved.get(host).copied().unwrap_or_default();
            let vms = occupied.get(host).copied().unwrap_or_default() + reserved_vms;
            let available_mib = self.snapshots.get(host).and_then(|snapshot| snapshot.available_mib);
            Candidate { host_uuid: *host, available_mib, reserved_mib, vms }
        };
        serving.host_uuids.iter().map(candidate).collect()
    }

    fn target(&mut self, ask: &FindTargetMsg, round: &Round, census: &CensusReply, now: Duration) -> TargetReply {
        let Round { serving, queried, .. } = round;
        // An earlier reservation of the VM is its own: a drain queries before the stop, and the start queries again.
        self.reservations.retain(|reservation| reservation.holds(now) && reservation.vm != ask.vm_uuid);
        let candidates = self.candidates(serving, census, now);
        let (roomy, full) = rank(&candidates, ask.memory_mib, &ask.soft_avoid_host_uuids);
        let target = choose((&roomy, &full), ask.host_uuid, ask.last_host_uuid, &ask.soft_avoid_host_uuids);
        let reservation = |host| Reservation { at: now, host, vm: ask.vm_uuid, mib: ask.memory_mib };
        self.reservations.extend(target.filter(|_| !ask.dry_run).map(reservation));
        let not_pinged = |place: HostId| {
            let elsewhere = self.inventory.host(place).is_ok_and(|host| host.cluster != ask.cluster_uuid);
            elsewhere || census.maintained_host_uuids.contains(&place)
        };
        let answers = |place: HostId| serving.answering_host_uuids.contains(&place) || not_pinged(place);
        let silent = ask.place_host_uuids.iter().copied().filter(|place| !answers(*place)).collect();
        let lists_vm =
            |host: &&HostId| self.snapshots.get(host).is_some_and(|snapshot| snapshot.vms.contains(&ask.vm_uuid));
        let unreachable = census.unreachable_host_uuids.iter().filter(|_| ask.may_have_moved);
        let unheard: BTreeSet<HostId> = census.unheard_host_uuids.iter().chain(unreachable).copied().collect();
        let claims = census.claims.iter().filter(|(vm, _)| *vm == ask.vm_uuid).map(|(_, host)| *host);
        TargetReply {
            host_uuid: target,
            full: u32::try_from(full.len()).unwrap_or(u32::MAX),
            silent_host_uuids: silent,
            unheard_host_uuids: unheard.into_iter().collect(),
            seen_host_uuids: queried.iter().filter(lists_vm).copied().chain(claims).collect(),
        }
    }
}

impl Waiting {
    /// Since when every host must have listed its processes, if that is needed.
    fn needs_lists_since(&self) -> Option<Duration> {
        match self {
            Waiting::Target(_, ask, came) => ask.may_have_moved.then_some(*came),
            Waiting::Candidates(_) => None,
        }
    }

    fn failed(self, error: ErrorCode) -> Command {
        match self {
            Waiting::Target(token, ..) => Command::Target(token, Err(error)),
            Waiting::Candidates(token) => Command::List(token, Err(error)),
        }
    }
}

impl Reservation {
    fn holds(&self, now: Duration) -> bool {
        now.saturating_sub(self.at) < RESERVED_FOR
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    fn host(name: &str) -> HostId {
        HostId::from_name(name)
    }

    fn cluster() -> ClusterId {
        ClusterId::from_name("c1")
    }

    fn find(vm: &str) -> FindTargetMsg {
        FindTargetMsg {
            vm_uuid: VmId::from_name(vm),
            cluster_uuid: cluster(),
            memory_mib: 1000,
            host_uuid: None,
            last_host_uuid: None,
            place_host_uuids: vec![host("a")],
            soft_avoid_host_uuids: Vec::new(),
            dry_run: false,
            may_have_moved: false,
        }
    }

    /// Hosts `a` and `b` serve, each with room for one VM; the report of a round.
    fn round(now: Duration, census: Result<CensusReply>) -> Event {
        let hosts = vec![host("a"), host("b")];
        let snapshot = HostSnapshot { asked: now, available_mib: Some(1500), listed_all: true, vms: Vec::new() };
        let snapshots = hosts.iter().map(|host| (*host, snapshot.clone())).collect();
        let queried = hosts.iter().copied().collect();
        let serving = ServingHostsReply {
            host_uuids: hosts.clone(),
            answering_host_uuids: hosts,
            ..ServingHostsReply::default()
        };
        Event::Queried(cluster(), Ok(Round { serving, queried, snapshots, census }))
    }

    fn open(unsettled: &str) -> CensusReply {
        CensusReply { unsettled_host_uuids: vec![host(unsettled)], ..CensusReply::default() }
    }

    fn target(command: &Command) -> Option<HostId> {
        let Command::Target(_, Ok(reply)) = command else { panic!("{command:?}") };
        reply.host_uuid
    }

    #[test]
    fn start_waits_for_census_and_plan_does_not() {
        let mut core = Core::default();
        let query = [Command::Query(cluster(), BTreeSet::new())];
        assert_eq!(core.on(Event::Find(1, find("v1")), S), query);
        assert_eq!(core.on(Event::Find(2, FindTargetMsg { dry_run: true, ..find("v2") }), S), []);
        assert_eq!(core.on(Event::Candidates(3, cluster()), S), []);
        let commands = core.on(round(S, Ok(open("c"))), S);
        assert!(target(&commands[0]).is_some(), "the dry run");
        assert!(matches!(&commands[1], Command::List(3, Ok(list)) if list.candidates.len() == 2), "{commands:?}");
        assert_eq!(commands[2..], [Command::Wait(cluster(), CENSUS_POLL)]);
        let fresh = BTreeSet::from([host("a"), host("b")]);
        assert_eq!(core.on(Event::Waited(cluster()), S), [Command::Query(cluster(), fresh)]);
        let commands = core.on(round(S, Ok(CensusReply::default())), S);
        assert!(matches!(&commands[..], [Command::Target(1, Ok(reply))] if reply.host_uuid.is_some()), "{commands:?}");
    }

    /// I2: an unknown census is not a complete one, and nothing is planned without it.
    #[test]
    fn unknown_census_holds_starts_until_patience_ends() {
        let unknown = || Err(ErrorCode::new(Code::NOT_READY, "the journal is being read"));
        let mut core = Core::default();
        core.on(Event::Find(1, find("v1")), S);
        core.on(Event::Find(2, FindTargetMsg { dry_run: true, ..find("v2") }), S);
        let commands = core.on(round(S, unknown()), S);
        assert!(matches!(&commands[..], [Command::Target(2, Err(_)), Command::Wait(..)]), "{commands:?}");
        let almost = S + CENSUS_PATIENCE - Duration::from_millis(1);
        assert_eq!(core.on(round(almost, unknown()), almost), [Command::Wait(cluster(), CENSUS_POLL)]);
        let end = S + CENSUS_PATIENCE;
        let commands = core.on(round(end, Ok(open("c"))), end);
        let Command::Target(1, Err(error)) = &commands[0] else { panic!("{commands:?}") };
        assert!(error.details.contains("has not listed its processes"), "{error}");
        // A new request waits again only after the census was complete.
        core.on(Event::Find(3, find("v3")), end);
        assert!(matches!(core.on(round(end, unknown()), end)[..], [Command::Target(3, Err(_))]));
    }

    #[test]
    fn reservation_holds_room_and_belongs_to_its_vm() {
        let mut core = Core::default();
        let mut find_target = |token, vm, now| {
            core.on(Event::Find(token, find(vm)), now);
            target(&core.on(round(now, Ok(CensusReply::default())), now)[0])
        };
        assert_eq!(find_target(1, "v1", S), Some(host("a")));
        assert_eq!(find_target(2, "v2", S), Some(host("b")));
        assert_eq!(find_target(3, "v3", S), None);
        assert_eq!(find_target(4, "v1", S), Some(host("a")), "its own reservation");
        assert_eq!(find_target(5, "v3", S + RESERVED_FOR), Some(host("a")), "expired");
    }

    #[test]
    fn hosts_to_search_come_from_snapshots_claims_and_census() {
        let vm = VmId::from_name("v1");
        let census = CensusReply {
            unheard_host_uuids: vec![host("u")],
            maintained_host_uuids: vec![host("m")],
            claims: vec![(vm, host("far")), (VmId::from_name("v2"), host("other"))],
            ..CensusReply::default()
        };
        let mut core = Core::default();
        let places = ["a", "m", "gone"].map(host).to_vec();
        core.on(Event::Find(1, FindTargetMsg { place_host_uuids: places, ..find("v1") }), S);
        let Event::Queried(cluster, Ok(mut round)) = round(S, Ok(census)) else { unreachable!() };
        round.snapshots[1].1.vms = vec![vm];
        let commands = core.on(Event::Queried(cluster, Ok(round)), S);
        let Command::Target(1, Ok(reply)) = &commands[0] else { panic!("{commands:?}") };
        assert_eq!(reply.seen_host_uuids, [host("b"), host("far")]);
        assert_eq!((&reply.silent_host_uuids, &reply.unheard_host_uuids), (&vec![host("gone")], &vec![host("u")]));
    }

    /// K12: the VM may be on the host that does not list its processes, and an older list may miss it.
    #[test]
    fn vm_that_may_have_moved_waits_for_a_list_of_every_host() {
        let may_have_moved = || FindTargetMsg { may_have_moved: true, ..find("v1") };
        let listed = |names: &[&str], at: Duration| {
            let Event::Queried(cluster, Ok(mut round)) = round(at, Ok(CensusReply::default())) else { unreachable!() };
            for (host, snapshot) in &mut round.snapshots {
                snapshot.listed_all = names.iter().any(|name| *host == self::host(name));
            }
            Event::Queried(cluster, Ok(round))
        };
        let mut core = Core::default();
        core.set_inventory(&Arc::new(InventoryIndex::new(crate::testkit::cluster_of(["a", "b"]))));
        core.on(Event::Find(1, may_have_moved()), S);
        let waits = [Command::Wait(cluster(), ROUND_SPACING)];
        assert_eq!(core.on(listed(&["a", "b"], S - Duration::from_millis(1)), S), waits, "older");
        assert_eq!(core.on(Event::Waited(cluster()), S), [Command::Query(cluster(), BTreeSet::new())]);
        assert_eq!(core.on(listed(&["a"], S), S), waits, "b did not list");
        let only_b = Command::Query(cluster(), BTreeSet::from([host("a")]));
        assert_eq!(core.on(Event::Waited(cluster()), S), [only_b]);
        assert!(target(&core.on(listed(&["a", "b"], S), S)[0]).is_some());
        let soon = S + Duration::from_millis(400);
        assert_eq!(core.on(Event::Find(9, may_have_moved()), soon), [Command::Wait(cluster(), ROUND_SPACING * 6 / 10)]);
        core.on(Event::Waited(cluster()), 2 * S);
        assert!(target(&core.on(listed(&["a", "b"], 2 * S), 2 * S)[0]).is_some());

        let (now, end) = (10 * S, 10 * S + CENSUS_PATIENCE);
        core.on(Event::Find(2, may_have_moved()), now);
        let commands = core.on(listed(&["a"], end), end);
        let Command::Target(2, Err(error)) = &commands[0] else { panic!("{commands:?}") };
        assert!(error.is(&Code::NOT_READY) && error.details.contains("b does not list its processes"), "{error}");
        core.on(Event::Find(3, find("v2")), end);
        assert!(matches!(core.on(listed(&["a"], end), end)[..], [Command::Target(3, Ok(_))]), "the watchers show it");
    }

    /// A host that is Disconnected cannot list: the VM may run there, unless an operator attested that it is off.
    #[test]
    fn disconnected_host_is_not_waited_for_and_may_run_a_vm_that_may_have_moved() {
        let census = |maintained: &[&str]| CensusReply {
            unheard_host_uuids: vec![host("u")],
            disconnected_host_uuids: vec![host("c"), host("off")],
            unreachable_host_uuids: vec![host("c"), host("u")],
            maintained_host_uuids: maintained.iter().map(|name| host(name)).collect(),
            searched_host_uuids: maintained.iter().filter(|name| **name == "s").map(|name| host(name)).collect(),
            ..CensusReply::default()
        };
        let mut core = Core::default();
        let all = crate::testkit::cluster_of(["a", "b", "c", "off", "m", "s"]);
        core.set_inventory(&Arc::new(InventoryIndex::new(all)));
        core.on(Event::Find(1, FindTargetMsg { may_have_moved: true, ..find("v1") }), S);
        let waits = core.on(round(S, Ok(census(&["m", "s"]))), S);
        assert_eq!(waits, [Command::Wait(cluster(), ROUND_SPACING)], "s is in maintenance and answers");
        core.inventory = Arc::new(InventoryIndex::new(crate::testkit::cluster_of(["a", "b", "c", "off", "m"])));
        core.on(Event::Find(2, find("v1")), S);
        let commands = core.on(round(S, Ok(census(&["m"]))), S);
        let unheard = |command: &Command| {
            let Command::Target(_, Ok(reply)) = command else { panic!("{command:?}") };
            reply.unheard_host_uuids.iter().copied().collect::<BTreeSet<_>>()
        };
        assert_eq!(unheard(&commands[0]), BTreeSet::from([host("c"), host("u")]));
        assert_eq!(unheard(&commands[1]), BTreeSet::from([host("u")]), "it did not move");
    }

    #[test]
    fn failed_round_answers_every_request() {
        let mut core = Core::default();
        core.on(Event::Find(1, find("v1")), S);
        core.on(Event::Candidates(2, cluster()), S);
        let error = ErrorCode::new(Code::TIMEOUT, "no answer");
        let commands = core.on(Event::Queried(cluster(), Err(error.clone())), S);
        assert_eq!(commands, [Command::Target(1, Err(error.clone())), Command::List(2, Err(error))]);
        assert_eq!(core.load(), (0, 0));
    }
}
