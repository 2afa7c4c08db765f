//! Whether a QEMU that was started for a migration still waits for it.
//!
//! Invariants: `-incoming` stays in the command line, so that only QEMU itself or libvirt can distinguish a waiting
//! QEMU from a running one. Each query has a short time limit; without an answer the QEMU counts as waiting: it is not
//! killed and never counts as dead.
//! Alternatives considered: `query-migrate`. On the target its last answer does not show which side runs.

use std::{process::Stdio, time::Duration};

use serde_json::{Value, json};
use tokio::process::Command;

use super::{lookout::Qemu, qmp::Qmp};

/// How long QEMU or libvirt may take to say what a VM does. Too low: on a busy host one that came by a migration cannot
/// be stopped. Too high: one libvirtd that hangs holds up the answer about every VM.
const ASK_TIMEOUT: Duration = Duration::from_secs(1);

/// What QEMU says of a VM that may still wait, or was not let go on yet by whoever migrates it.
const WAITS: [&str; 5] = ["inmigrate", "paused", "prelaunch", "finish-migrate", "restore-vm"];

/// Whether it waits for a migration, or nobody can tell.
pub(super) async fn waits(qemu: &Qemu) -> bool {
    if !qemu.incoming {
        return false;
    }
    let runs = match &qemu.qmp {
        Some(path) => match Qmp::connect(path, ASK_TIMEOUT).await {
            Ok(mut qmp) => {
                let status = qmp.execute(path, "query-status", json!({}), ASK_TIMEOUT).await;
                status.is_ok_and(|said| {
                    said.get("status").and_then(Value::as_str).is_some_and(|now| !WAITS.contains(&now))
                })
            }
            Err(_) => false,
        },
        None => {
            let mut virsh = Command::new("virsh");
            virsh.args(["--connect", "qemu:///system", "domstate", &qemu.vm.to_string()]);
            virsh.env("LC_ALL", "C").stdin(Stdio::null()).kill_on_drop(true);
            let output = tokio::time::timeout(ASK_TIMEOUT, virsh.output()).await;
            output.is_ok_and(|output| {
                output.is_ok_and(|virsh| virsh.status.success() && virsh.stdout.trim_ascii() == b"running")
            })
        }
    };
    !runs
}

/// Whether each of these waits; all are queried at the same time.
pub(super) async fn all_wait<'a>(qemus: impl IntoIterator<Item = &'a Qemu>) -> Vec<bool> {
    futures_util::future::join_all(qemus.into_iter().map(waits)).await
}

#[cfg(test)]
mod tests {
    use ringfence_messages::VmId;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::node::proc::Process;

    /// A QEMU of which this is known; at its socket somebody says that it is in this state.
    async fn asked(state: Option<&'static str>) -> bool {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("qmp");
        if let Some(state) = state {
            let listener = tokio::net::UnixListener::bind(&path).unwrap();
            tokio::spawn(async move {
                let (mut stream, _) = listener.accept().await.unwrap();
                stream.write_all(b"{\"QMP\":{}}\n{\"return\":{}}\n").await.unwrap();
                stream.write_all(format!("{{\"return\":{{\"status\":\"{state}\"}}}}\n").as_bytes()).await.unwrap();
                let _ = stream.read_to_end(&mut Vec::new()).await;
            });
        }
        let process = Process { pid: 1, start: 1, argv: vec![] };
        let vm = VmId::from_name("vm1");
        waits(&Qemu { process, vm, incoming: true, pidfile: None, qmp: Some(path), stranger: None }).await
    }

    #[tokio::test]
    async fn running_qemu_is_a_vm_and_unanswering_one_waits() {
        for (state, waits) in [
            (Some("running"), false),
            (Some("io-error"), false),
            (Some("inmigrate"), true),
            (Some("paused"), true),
            (None, true),
        ] {
            assert_eq!(asked(state).await, waits, "{state:?}");
        }
    }
}
