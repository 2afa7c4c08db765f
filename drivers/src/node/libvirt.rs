//! Starts a VM as a libvirt domain, for who has it described as one.
//!
//! Invariants: libvirt only starts it. Whether it runs is what `/proc` says, and it is ended through a pidfd like any
//! other QEMU: no fence depends on libvirtd answering. The domain is transient (`virsh create`), so that libvirt does
//! not start it again by itself when the host boots.
//! Rejected: linking libvirt (a C library that a plain Debian lacks, and whose calls hang with libvirtd).

use std::{path::Path, process::Stdio};

use ringfence_messages::{
    Code, ErrorCode, Result,
    vm::{StartVmCmd, StartVmCmdReply},
};
use tokio::process::Command;

use super::{
    io_error,
    vms::{START_TIMEOUT, running},
};
use crate::files::replace_file;

/// Creates the domain.
///
/// # Errors
/// `HOST.1005` with libvirt's own words, `SYS.1001` if it does not answer: it may then still come up.
pub(super) async fn create(cmd: &StartVmCmd, xml: &str, file: &Path) -> Result<StartVmCmdReply> {
    replace_file(file, xml.as_bytes()).map_err(|e| io_error("write", file, &e))?;
    let failed =
        |why: String| ErrorCode::new(Code::HOST_START_VM, format!("VM {}: libvirt does not start it: {why}", cmd.name));
    let mut virsh = Command::new("virsh");
    virsh.args(["--connect", "qemu:///system", "create", "--file"]).arg(file).stdin(Stdio::null()).kill_on_drop(true);
    let output = match tokio::time::timeout(START_TIMEOUT, virsh.output()).await {
        Err(_) => {
            let details =
                format!("VM {}: libvirt did not answer within {START_TIMEOUT:?}; it may still come up", cmd.name);
            return Err(ErrorCode::new(Code::TIMEOUT, details));
        }
        Ok(Err(error)) => return Err(failed(format!("virsh: {error}. Install libvirt-clients on this host"))),
        Ok(Ok(output)) => output,
    };
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(failed(format!("{}: {:.500}", output.status, said.trim())));
    }
    match running(cmd.vm_uuid)?.first() {
        Some(process) => {
            Ok(StartVmCmdReply { pid: process.pid, accel: "libvirt".to_owned(), memory: "its domain's".to_owned() })
        }
        None => Err(failed("it ended at once".to_owned())),
    }
}
