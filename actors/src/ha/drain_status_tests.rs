//! What a drain reports: its progress, its plan, and that it is complete.

use std::collections::{BTreeMap, BTreeSet};

use ringfence_messages::{
    ClusterId, HostId,
    ha::Candidate,
    vm::{RunningVm, VmState},
};

use super::{core::*, drain_tests::*};
use crate::testkit::list;

fn standing(core: &Core, name: &str) -> String {
    let hosts = core.status().hosts;
    hosts.into_iter().find(|of| of.host_uuid == host(name)).map_or_else(String::new, |of| of.standing)
}

#[test]
fn progress_lists_each_vm_once() {
    let mut core = running_on_a(&["v1", "v2", "v3", "plain"]);
    core.on(believed("plain", VmState::Unknown, "a", 1), S);
    let commands = drain(&mut core, "a", S);
    drain(&mut core, "b", S);
    let text = standing(&core, "a");
    let waits = ["v1", "v2", "v3"].into_iter().find(|name| !commands.contains(&Command::Place(vm(name)))).unwrap();
    for name in ["v1", "v2", "v3"].into_iter().filter(|name| *name != waits) {
        assert_eq!(text.matches(&format!("{name} is being moved")).count(), 1, "{text}");
    }
    assert!(text.contains(&format!("{waits} waits for its turn")), "{text}");
    assert!(text.contains("plain: its state is unknown"), "{text}");
    assert_eq!(standing(&core, "b"), "draining: no VM is known to run there; the host is being queried");
    core.on(Event::Listed(host("b"), Ok(list(vec![]))), S);
    assert_eq!(standing(&core, "b"), "drained: the host reports that nothing runs there");
}

#[test]
fn progress_lists_ten_vms_at_most() {
    for (count, more) in [(10, None), (11, Some("; 1 more"))] {
        let names: Vec<String> = (0..count).map(|n| format!("m{n}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let mut core = running_on_a(&names);
        drain(&mut core, "a", S);
        let text = standing(&core, "a");
        assert_eq!(text.split("; ").count(), 10 + usize::from(more.is_some()), "{text}");
        assert!(more.is_none_or(|more| text.ends_with(more)), "{text}");
    }
}

/// Processes of another controller's agent, or of VMs outside the inventory, are not moved.
#[test]
fn processes_of_others_do_not_keep_a_host_from_being_drained() {
    let process = |name: &str| RunningVm::qemu(vm(name), 9);
    let drained = |core: &mut Core, process| {
        let commands = core.on(Event::Listed(host("a"), Ok(list(vec![process]))), S);
        commands.iter().any(|command| matches!(command, Command::Emit(HaEvent::Drained(_))))
    };
    for (of, expected) in [
        (process("v1"), false),
        (RunningVm { other_agent: true, ..process("v1") }, true),
        (process("unknown"), true),
        (RunningVm { other_agent: true, ..process("unknown") }, true),
    ] {
        let mut core = core_with(&["v1"], ReplayedState::default());
        drain(&mut core, "a", S);
        assert_eq!(drained(&mut core, of.clone()), expected, "{of:?}");
    }
}

#[test]
fn plan_stops_an_unwanted_vm_without_a_target() {
    let mut core = running_on_a(&["v1"]);
    core.on(Event::Vm(vm("v1"), ObservedState { wanted: false, ..observed(VmState::Running, "a", 1) }), S);
    let of = |name: &str| Candidate { host_uuid: host(name), available_mib: Some(1500), reserved_mib: 0, vms: 0 };
    let cluster = ClusterId::from_name("c1");
    let plan = core.plan_drain(host("a"), BTreeMap::from([(cluster, vec![of("b")])]));
    let [step] = &plan.vms[..] else { panic!("{plan:?}") };
    assert_eq!((step.target.as_deref(), &*step.what), (None, "its desired state is stopped: the VM is stopped"));
    let clusters: fn(&Core, HostId) -> BTreeSet<ClusterId> = Core::clusters_on;
    assert_eq!((clusters(&core, host("a")), clusters(&core, host("b"))), ([cluster].into(), [].into()));
}
