//! What an inventory change keeps, and what it forgets.

use std::{collections::HashMap, sync::Arc, time::Duration};

use ringfence_messages::{
    ClusterId, Health, HostId, ProtocolStatus,
    host::{HostState, HostStatus},
};

use super::{core::*, core_tests::*};
use crate::inventory::{Inventory, InventoryIndex};

/// The statuses of the storages of a host, by name.
fn storages_of(core: &Core, n: usize) -> Vec<(String, Option<ProtocolStatus>)> {
    let storages = core.hosts().storages.into_iter().filter(|of| of.host_uuid == host(n));
    storages.map(|of| (of.storage, of.status)).collect()
}

#[test]
fn inventory_change_keeps_statuses_by_id() {
    let mut core = core(2, 2);
    core.on(Event::Tick, 5 * S);
    core.on(pinged(0, true), 5 * S);
    core.on(health(0, Health::Ok, Health::Failed), 5 * S);
    let s0 = ("s0".to_owned(), Some(ProtocolStatus::Connected));
    assert_eq!(storages_of(&core, 0), [s0.clone(), ("s1".to_owned(), None)]);
    let before = core.hosts().refs;

    let mut changed = Inventory::clone(&inventory(2, 4));
    changed.hosts.reverse();
    changed.storages[2].clusters = vec![ClusterId::from_name("other")];
    changed.storages[3].protocols.clear();
    changed.storages.reverse();
    let changed = Arc::new(InventoryIndex::new(changed));
    assert!(core.set_inventory(&changed, 6 * S));
    assert!(!core.set_inventory(&changed, 6 * S), "the same one");
    assert_eq!(storages_of(&core, 0), [("s1".to_owned(), None), s0], "only storages of its cluster, with protocols");
    let after = core.hosts().refs;
    assert_eq!(after.len(), before.len());
    for key in before {
        let same = after.iter().find(|of| {
            (of.host_uuid, of.primary_storage_uuid, of.protocol)
                == (key.host_uuid, key.primary_storage_uuid, key.protocol)
        });
        let same = same.unwrap();
        assert_eq!((same.status, same.redeploys, same.skip_pings), (key.status, key.redeploys, key.skip_pings));
    }
    assert_eq!(core.host(host(0)).unwrap().status, HostStatus::Connected);
    assert_eq!(core.next_wakeup(), Some(10 * S), "the first ping of host 0 was at 0 s");
}

#[test]
fn removed_host_keeps_request_and_quarantine_but_no_answers() {
    let quarantined = HashMap::from([(host(0), "it failed".to_owned())]);
    let mut core = Core::new(settings(), inventory(2, 1), &HashMap::new(), &quarantined, Duration::ZERO);
    core.on(Event::Tick, 5 * S);
    core.on(Event::SetState { host: host(1), state: HostState::Maintenance, draining: false }, 5 * S);
    core.set_inventory(&inventory(0, 1), 6 * S);
    assert_eq!((core.on(Event::Tick, 60 * S), core.hosts().hosts.len()), (vec![], 0));
    core.set_inventory(&inventory(2, 1), 60 * S);
    assert_eq!(core.host(host(1)).unwrap().state, HostState::Maintenance);
    let pings = core.on(Event::Tick, 60 * S);
    let [Command::Ping { host: at, generation }] = pings[..] else { panic!("{pings:?}") };
    assert_eq!(at, host(0));
    assert_eq!(core.on(pinged(0, true), 60 * S), [], "an answer from before");
    core.on(Event::PingDone { host: host(0), generation, reply: pong(true) }, 60 * S);
    assert_eq!(core.host(host(0)).unwrap().reason.as_deref(), Some("quarantined: it failed"));
}

#[test]
fn first_pings_of_new_hosts_are_spread_over_the_interval() {
    let mut core = core(1, 0);
    core.on(Event::Tick, Duration::ZERO);
    core.on(pinged(0, true), Duration::ZERO);
    core.set_inventory(&inventory(3, 0), S);
    let pinged_at = |core: &mut Core, at| -> Vec<HostId> {
        let id = |command| if let Command::Ping { host, .. } = command { Some(host) } else { None };
        core.on(Event::Tick, at).into_iter().filter_map(id).collect()
    };
    assert_eq!(pinged_at(&mut core, S), [host(1)]);
    assert_eq!(core.next_wakeup(), Some(6 * S));
    assert_eq!(pinged_at(&mut core, 6 * S), [host(2)]);
    assert_eq!(pinged_at(&mut core, 10 * S), [host(0)]);
}
