//! What an agent of a test is told.

use std::path::Path;

use ringfence_agent::config::AgentSettings;
use ringfence_drivers::node::{target::Runner, vms::QemuSettings};
use ringfence_messages::HostId;

/// An agent of this host, in the clear on a port of loopback, for everybody, with neither token nor SSH.
pub fn settings(name: &str, state: &Path) -> AgentSettings {
    AgentSettings {
        host: HostId::from_name(name),
        listen: "127.0.0.1:0".parse().unwrap(),
        state_dir: state.to_owned(),
        insecure: true,
        qemu: QemuSettings {
            binary: "qemu-system-x86_64".to_owned(),
            accel: Some("tcg".to_owned()),
            memory: Some("memfd".to_owned()),
            users: Vec::new(),
            own: true,
        },
        target: Runner::Process("qemu-storage-daemon".to_owned()),
        docker: None,
        ssh: None,
        tls: None,
        token_file: None,
    }
}
