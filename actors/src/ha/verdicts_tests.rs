//! Which hosts fail, may be fenced or attested off, and count for the storm brake.

use ringfence_messages::{ClusterId, Code, host::HostStatus, vm::VmState};

use super::{core::*, core_tests::*};

fn fails(commands: &[Command]) -> bool {
    commands.iter().any(|c| matches!(c, Command::Emit(HaEvent::HostFailed(_)) | Command::Quarantine(..)))
}

/// A fence begins only on a host that is Disconnected and not being reconciled.
#[test]
fn host_that_answers_is_neither_fenced_nor_attested_off() {
    let mut core = core_of(&[], 10);
    assert!(core.may_quarantine(host("a")).unwrap_err().details.contains("a is not Disconnected"));
    assert!(core.may_confirm(host("a")).unwrap_err().is(&Code::CHANGE_STATE));
    core.on(Event::Suspected(host("a")), S);
    assert!(core.may_quarantine(host("a")).is_err() && core.may_confirm(host("a")).is_err(), "suspect is not enough");
    core.on(Event::HostChanged(host("a"), HostStatus::Disconnected), S);
    assert_eq!((core.may_quarantine(host("a")), core.may_confirm(host("a"))), (Ok(false), Ok(())));
    core.on(Event::Quarantined(host("a"), Ok(())), S);
    assert_eq!(core.may_quarantine(host("a")), Ok(true));

    core.on(Event::HostChanged(host("a"), HostStatus::Connecting), 2 * S);
    let commands = core.on(Event::Answering(ClusterId::from_name("c1"), vec![host("a")]), 2 * S);
    assert!(commands.contains(&Command::Reconcile(host("a"))), "{commands:?}");
    core.on(Event::HostChanged(host("a"), HostStatus::Disconnected), 3 * S);
    assert!(core.may_quarantine(host("a")).unwrap_err().details.contains("is being reconciled"));
}

#[test]
fn host_in_maintenance_or_reconciliation_does_not_fail() {
    let mut core = core_of(&[], 10);
    core.on(Event::Maintenance(host("a"), true), S);
    assert!(!fails(&lose(&mut core, "a", S)));
    core.on(Event::Maintenance(host("a"), false), 2 * S);
    assert!(fails(&core.on(scanned("a", &[], &["b"]), 2 * S)));

    core.on(Event::Quarantined(host("a"), Ok(())), 2 * S);
    core.on(Event::HostChanged(host("a"), HostStatus::Connected), 3 * S);
    let commands = core.on(Event::Answering(ClusterId::from_name("c1"), vec![host("a")]), 3 * S);
    assert!(commands.contains(&Command::Reconcile(host("a"))), "{commands:?}");
    assert!(!fails(&lose(&mut core, "a", 4 * S)));
}

/// A probe of sibling hosts that does not miss a Connected host ends the suspicion. So it counts for no storm.
#[test]
fn suspicion_ends_unless_a_sibling_host_misses_the_host() {
    for (seen, unseen, stays) in
        [(&["j"][..], &[][..], false), (&["j"], &["i"], false), (&[], &[], false), (&[], &["i"], true)]
    {
        let mut core = core_of(&[], 10);
        for name in ["a", "b"] {
            core.on(Event::Suspected(host(name)), S);
            core.on(scanned(name, seen, unseen), S);
        }
        core.on(Event::HostChanged(host("c"), HostStatus::Disconnected), S);
        assert_eq!(core.status().braked.len(), usize::from(stays), "{seen:?} {unseen:?}");
    }
}

/// K9: the attestation of a host that does not answer holds, and only an attestation is ended.
#[test]
fn attestation_holds_while_the_host_does_not_answer() {
    let mut core = core_of(&[], 10);
    let ends = |commands: &[Command]| commands.iter().any(|c| matches!(c, Command::EndAttestation(_)));
    core.on(Event::HostChanged(host("a"), HostStatus::Disconnected), S);
    core.on(Event::Confirmed(host("a")), S);
    assert!(!ends(&core.on(Event::HostChanged(host("a"), HostStatus::Disconnected), S)));
    assert!(ends(&core.on(Event::HostChanged(host("a"), HostStatus::Connected), S)));
    assert!(!ends(&core.on(Event::HostChanged(host("a"), HostStatus::Connected), S)), "it is over");
    assert!(!ends(&core.on(Event::HostChanged(host("b"), HostStatus::Connected), S)));
}

#[test]
fn host_that_connects_is_listed_once_and_its_vms_are_searched() {
    let mut core = core_of(&["v1"], 10);
    let commands = core.on(Event::HostChanged(host("a"), HostStatus::Connected), S);
    assert!(!commands.contains(&Command::List(host("a"))), "it was heard: {commands:?}");
    core.on(believed("v1", VmState::Unknown, "a", 1), S);
    let searched = |core: &mut Core| core.on(Event::Tick, S).contains(&Command::LookFor(vm("v1"), None));
    assert!(searched(&mut core) && !searched(&mut core));
    core.on(Event::HostChanged(host("b"), HostStatus::Connected), S);
    assert!(!searched(&mut core), "another host");
    core.on(Event::HostChanged(host("a"), HostStatus::Connected), S);
    assert!(searched(&mut core));
}

/// I8: a failed host counts for [`STORM_WINDOW`] from its failure, however often it is scanned.
#[test]
fn failed_hosts_count_for_the_storm_brake_for_a_while() {
    for (after, braked) in [(STORM_WINDOW - S, 1), (STORM_WINDOW, 0)] {
        let mut core = core_of(&[], 10);
        for name in ["a", "b"] {
            lose(&mut core, name, S);
            core.on(Event::Quarantined(host(name), Ok(())), S);
            core.on(scanned(name, &[], &["j"]), 30 * S);
        }
        assert_eq!(core.status().braked.len(), 0, "2 of 10");
        let commands = lose(&mut core, "c", S + after);
        assert_eq!((core.status().braked.len(), fails(&commands)), (braked, braked == 0), "after {after:?}");
    }
}
