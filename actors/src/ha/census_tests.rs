//! Which hosts must list their processes before a start, and which were never heard (K7).

use ringfence_messages::{
    ClusterId, Code, ErrorCode,
    evidence::Sight,
    host::HostStatus,
    vm::{ListVmsReply, VmState},
};

use super::{core::*, core_tests::*};
use crate::{inventory::HaSettings, testkit::list};

const ALL: [&str; 10] = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j"];

/// A new leader that has heard every host but `a`, which is Connected; `v1` should run and does not.
fn all_but_a_heard() -> Core {
    let stopped = ObservedState { state: VmState::Stopped, host: Some(host("a")), incarnation: 1, wanted: true };
    let memory = ReplayedState { vms: vec![(vm("v1"), stopped)], ..ReplayedState::default() };
    let mut core = Core::new(HaSettings::default(), S, core_of(&["v1"], 1).inventory.clone(), memory);
    for name in ALL {
        core.on(Event::HostChanged(host(name), HostStatus::Connected), S);
        if name != "a" {
            core.on(Event::Listed(host(name), Ok(list(vec![]))), S);
        }
    }
    core
}

fn cluster() -> ClusterId {
    ClusterId::from_name("c1")
}

/// A list made without full sight does not prove what runs there. The host would list no more if it were queried
/// again at once.
#[test]
fn list_without_sight_leaves_the_host_unheard() {
    let mut core = all_but_a_heard();
    assert_eq!((core.unsettled(cluster()), core.unheard(cluster())), (vec![host("a")], vec![]));
    let blind = ListVmsReply { sight: Sight { euid: 1000, ..Sight::full() }, ..list(vec![]) };
    core.on(Event::Listed(host("a"), Ok(blind)), 2 * S);
    assert_eq!((core.unsettled(cluster()), core.unheard(cluster())), (vec![], vec![host("a")]));
    core.on(Event::Listed(host("a"), Ok(list(vec![]))), 3 * S);
    assert_eq!((core.unsettled(cluster()), core.unheard(cluster())), (vec![], vec![]));
}

#[test]
fn controller_that_heard_no_host_starts_nothing() {
    let stopped = ObservedState { state: VmState::Stopped, host: Some(host("a")), incarnation: 1, wanted: true };
    let memory = ReplayedState { vms: vec![(vm("v1"), stopped)], ..ReplayedState::default() };
    let mut core = Core::new(HaSettings::default(), S, core_of(&["v1"], 1).inventory.clone(), memory);
    for now in 1..5 {
        assert_eq!(starts(&core.on(Event::Tick, now * S)), []);
        assert_eq!(core.unsettled(cluster()), ALL.map(host));
    }
}

/// K12: another program may move a VM to a host in maintenance; a host that cannot list its processes is no help.
#[test]
fn hosts_in_maintenance_are_searched_while_they_answer() {
    let mut core = all_but_a_heard();
    assert_eq!(core.census(cluster()).searched_host_uuids, []);
    core.on(Event::Maintenance(host("a"), true), S);
    assert_eq!(core.census(cluster()).searched_host_uuids, [host("a")]);
    for _ in 0..MAX_DEAF {
        assert_eq!(core.census(cluster()).searched_host_uuids, [host("a")]);
        core.on(Event::Listed(host("a"), Err(ErrorCode::new(Code::TIMEOUT, "no answer"))), S);
    }
    assert_eq!(core.census(cluster()).searched_host_uuids, []);
    core.on(Event::Listed(host("a"), Ok(list(vec![]))), S);
    assert_eq!(core.census(cluster()).searched_host_uuids, [host("a")]);
    core.on(Event::Maintenance(host("a"), false), S);
    assert_eq!(core.census(cluster()).searched_host_uuids, []);
}
