//! Starts a VM as a libvirt domain.
//!
//! Invariants (I1): a command to libvirtd cannot be cancelled and may be carried out long after its timeout. So a
//! domain is created paused and resumed only under the lock of the commands, while its command is valid; a later one is
//! killed. Until virsh has returned the command is outstanding, and a search has less than full sight. `/proc` shows
//! whether the VM runs, and it is killed through a pidfd like any other QEMU: no fence depends on libvirtd. The domain
//! is transient (`virsh create`), so that libvirt does not start it when the host boots.
//! Alternatives considered: linking libvirt. It is a C library that a plain Debian lacks, and its calls hang with
//! libvirtd.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    process::{Output, Stdio},
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex as Quick;
use ringfence_actors::fence::FencingGuard;
use ringfence_messages::{
    Code, ErrorCode, Result, VmId,
    vm::{StartVmCmd, StartVmCmdReply},
};
use tokio::{process::Command, sync::Mutex, time::Instant};

use super::{
    io_error,
    lookout::Lookout,
    vms::{KILL_TIMEOUT, START_TIMEOUT, is_late},
};
use crate::files::replace_file;

/// How long libvirtd may take to let a domain go on. Too low: a busy one's VM is killed that would have run. Too high:
/// other orders of this host wait for one that hangs.
const RESUME_TIMEOUT: Duration = Duration::from_secs(5);

/// The orders that libvirtd was given and has not answered.
#[derive(Clone, Default)]
pub(super) struct Outstanding {
    vms: Arc<Quick<BTreeSet<VmId>>>,
}

/// One of them; it is answered when this is dropped.
struct Order {
    of: Outstanding,
    vm: VmId,
}

impl Drop for Order {
    fn drop(&mut self) {
        self.of.vms.lock().remove(&self.vm);
    }
}

/// What one creation needs: it goes on when its caller has given up.
struct Creation {
    cmd: StartVmCmd,
    file: PathBuf,
    by: Instant,
    orders: Arc<Mutex<FencingGuard>>,
    lookout: Arc<Lookout>,
    _order: Order,
}

impl Outstanding {
    pub(super) fn has(&self, vm: VmId) -> bool {
        self.vms.lock().contains(&vm)
    }

    pub(super) fn count(&self) -> u32 {
        self.vms.lock().len() as u32
    }

    /// Has a domain created, and waits for it not longer than `by`.
    ///
    /// # Errors
    /// At once: `SYS.1016` if its description cannot be written. Later: `HOST.1005` with libvirt's own words,
    /// `SYS.1001` if it does not answer: what it still creates is paused, and killed.
    pub(super) fn create(
        &self,
        cmd: &StartVmCmd,
        xml: &str,
        file: &Path,
        by: Instant,
        orders: &Arc<Mutex<FencingGuard>>,
        lookout: &Arc<Lookout>,
    ) -> Result<impl Future<Output = Result<StartVmCmdReply>> + use<>> {
        replace_file(file, xml.as_bytes()).map_err(|e| io_error("write", file, &e))?;
        let by = by.min(Instant::now() + START_TIMEOUT);
        self.vms.lock().insert(cmd.vm_uuid);
        let creation = Creation {
            cmd: cmd.clone(),
            file: file.to_owned(),
            by,
            orders: orders.clone(),
            lookout: lookout.clone(),
            _order: Order { of: self.clone(), vm: cmd.vm_uuid },
        };
        let name = cmd.name.clone();
        let begun = tokio::spawn(creation.carried_out());
        Ok(async move {
            match tokio::time::timeout_at(by, begun).await {
                Ok(Ok(done)) => done,
                Ok(Err(panic)) => Err(ErrorCode::new(Code::INTERNAL, panic.to_string())),
                Err(_) => {
                    let details = format!(
                        "VM {name}: libvirt did not answer within {START_TIMEOUT:?}; what it still creates is paused \
                         and is killed"
                    );
                    Err(ErrorCode::new(Code::TIMEOUT, details))
                }
            }
        })
    }
}

impl Creation {
    async fn carried_out(self) -> Result<StartVmCmdReply> {
        let vm = self.cmd.vm_uuid;
        let file = self.file.as_os_str();
        let created = virsh(["create".as_ref(), "--paused".as_ref(), "--file".as_ref(), file]).output().await;
        let created = created.map_err(|e| self.failed(format!("virsh: {e}; install libvirt-clients on this host")))?;
        if !created.status.success() {
            return Err(self.failed(words(&created)));
        }
        // From here nobody gives another order, and nobody declares this one void.
        let orders = self.orders.lock().await;
        if is_late(&self.cmd, self.by) || !orders.is_current(&self.cmd) {
            self.end().await;
            let details =
                format!("VM {}: libvirt created it after its command expired: killed before it ran", self.cmd.name);
            return Err(ErrorCode::new(Code::CHANGE_STATE, details));
        }
        let uuid = vm.to_string();
        let resumed = virsh(["resume".as_ref(), uuid.as_ref()]).output();
        let why = match tokio::time::timeout(RESUME_TIMEOUT, resumed).await {
            Ok(Ok(said)) if said.status.success() => match self.lookout.look().await {
                Err(error) => {
                    return Err(ErrorCode::new(Code::TIMEOUT, format!("VM {}: it may run: {error}", self.cmd.name)));
                }
                Ok(seen) => match seen.of(vm).next() {
                    Some(qemu) => {
                        let (accel, memory) = ("libvirt".to_owned(), "its domain's".to_owned());
                        return Ok(StartVmCmdReply { pid: qemu.process.pid, accel, memory });
                    }
                    None => {
                        let details = format!(
                            "VM {}: libvirt says that it goes on, and it is not seen; it may run",
                            self.cmd.name
                        );
                        return Err(ErrorCode::new(Code::TIMEOUT, details));
                    }
                },
            },
            Ok(Ok(said)) => words(&said),
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no answer within {RESUME_TIMEOUT:?}"),
        };
        // A QEMU that is gone cannot be let go on later.
        self.end().await;
        Err(self.failed(format!("created, but not resumed: {why}")))
    }

    /// Kills the created domain. A search finds a domain that survives.
    async fn end(&self) {
        let Ok(seen) = self.lookout.look().await else { return };
        for qemu in seen.of(self.cmd.vm_uuid) {
            if let Err(error) = qemu.process.kill(KILL_TIMEOUT).await {
                tracing::error!(vm = self.cmd.name, %error,
                    "a domain that libvirt created too late still exists, paused");
            }
        }
    }

    fn failed(&self, why: String) -> ErrorCode {
        ErrorCode::new(Code::HOST_START_VM, format!("VM {}: libvirt does not start it: {why}", self.cmd.name))
    }
}

fn virsh<const N: usize>(arguments: [&std::ffi::OsStr; N]) -> Command {
    let mut virsh = Command::new("virsh");
    virsh.args(["--connect", "qemu:///system"]).args(arguments).stdin(Stdio::null());
    virsh
}

fn words(output: &Output) -> String {
    format!("{}: {:.500}", output.status, String::from_utf8_lossy(&output.stderr).trim())
}
