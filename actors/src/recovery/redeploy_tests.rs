//! Redeploys that a start needs, and redeploys whose host leaves service (I5).

use std::time::Duration;

use ringfence_messages::{Code, Health, HostId, Protocol, StorageId, host::HostState};

use super::{core::*, core_tests::*};

fn storage() -> StorageId {
    StorageId::from_name("s0")
}

fn redeploy(core: &mut Core) -> Result<Option<Command>, ringfence_messages::ErrorCode> {
    core.redeploy_now(host(0), storage(), Protocol::Vhost)
}

#[test]
fn start_gets_one_redeploy_and_the_backoff_stays() {
    let mut core = well();
    cycle(&mut core, Health::Ok, Health::Failed);
    assert_eq!(redeploy(&mut core), Ok(None), "one is in progress");
    core.on(Event::DeployDone { host: host(0), storage: storage(), protocol: Protocol::Vhost }, Duration::ZERO);
    let skip = core.hosts().refs[1].skip_pings;
    let (host, storage, protocol) = (host(0), storage(), Protocol::Vhost);
    let deploy = Command::Deploy { host, storage, protocol, attempt: 1, skipped_pings: 0 };
    assert_eq!(redeploy(&mut core), Ok(Some(deploy)));
    assert_eq!(core.hosts().refs[1].skip_pings, skip);
    assert_eq!(redeploy(&mut core), Ok(None), "in progress");
    core.on(Event::DeployDone { host, storage, protocol }, Duration::ZERO);
    assert!(core.redeploy_now(host, StorageId::from_name("other"), protocol).unwrap_err().is(&Code::INVALID_ARGUMENT));
}

/// A host out of service gets no redeploy, also if a start requests it, and none that began continues.
#[test]
fn host_out_of_service_gets_no_redeploy_from_a_start() {
    let out: [(&str, Event, bool); 5] = [
        ("quarantine", Event::SetQuarantine { host: host(0), reason: Some("fenced".into()) }, false),
        ("leaving", Event::Withdrawing { host: host(0), begins: true }, false),
        ("maintenance", Event::SetState { host: host(0), state: HostState::Maintenance, draining: false }, false),
        ("missed ping", pinged(0, false), true),
        ("never pinged", Event::Tick, false),
    ];
    for (why, event, continues) in out {
        let mut core = if why == "never pinged" { core(1, 1) } else { well() };
        let due = core.next_wakeup().unwrap();
        core.on(Event::Tick, due);
        core.on(event, due);
        assert!(redeploy(&mut core).unwrap_err().is(&Code::CHANGE_STATE), "{why}");
        assert_eq!(core.continue_redeploy(host(0)).is_ok(), continues, "{why}");
    }
    let mut core = well();
    assert!(core.continue_redeploy(host(0)).is_ok());
    assert!(core.redeploy_now(HostId::from_name("gone"), storage(), Protocol::Vhost).is_err());
}
