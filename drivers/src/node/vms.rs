//! The VMs of a host: starting, stopping and finding their QEMU processes.
//!
//! Invariants (I1): a start whose incarnation is not above the highest seen for its VM, or whose epoch is below the
//! highest seen, is refused, also after a restart of the agent: both are durable before QEMU is started. A VM whose
//! QEMU runs is not started. What is found on the host is what `/proc` says, whoever started it.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use ringfence_actors::fence::Orders;
use ringfence_messages::{
    Code, ErrorCode, Result, VmId,
    evidence::Sight,
    vm::{DiskSource, ListVmsCmd, ListVmsReply, RunningVm, StartVmCmd, StartVmCmdReply, StopVmCmd, VoidOrders},
};
use serde_json::json;
use tokio::{process::Command, sync::Mutex, time::Instant};

use super::{
    hugepages::Hugepages,
    io_error, libvirt,
    proc::Process,
    qemu::{self, Memory, Version, VmFiles},
    qmp::Qmp,
    socket_path, target,
};
use crate::files::replace_file;

/// How long QEMU may take to daemonize.
pub const START_TIMEOUT: Duration = Duration::from_secs(25);

/// How long QEMU may take to quit when asked, before it is killed.
pub const QUIT_TIMEOUT: Duration = Duration::from_secs(3);

/// How long a killed QEMU may take to be gone. D state lasts longer, and is then said.
pub const KILL_TIMEOUT: Duration = Duration::from_secs(10);

/// How QEMU is run on this host.
#[derive(Clone, Debug)]
pub struct QemuSettings {
    /// The program.
    pub binary: String,
    /// `kvm` or `tcg`; `None` for whichever works.
    pub accel: Option<String>,
    /// `hugepages` or `memfd` for shared memory; `None` for whichever works.
    pub memory: Option<String>,
}

/// The VMs of this host.
pub struct Vms {
    qemu: QemuSettings,
    version: Version,
    dir: PathBuf,
    orders: Mutex<Orders>,
}

impl QemuSettings {
    /// `kvm` or `tcg`: what the next VM will run with.
    pub fn accel(&self) -> String {
        match &self.accel {
            Some(accel) => accel.clone(),
            None => if kvm_is_usable() { "kvm" } else { "tcg" }.to_owned(),
        }
    }
}

/// Whether this process may use the kernel's virtualisation.
pub fn kvm_is_usable() -> bool {
    fs::OpenOptions::new().read(true).write(true).open("/dev/kvm").is_ok()
}

impl Vms {
    /// Looks at this host's QEMU and at what was ordered before.
    ///
    /// # Errors
    /// `SYS.1006` if QEMU is missing or does not run, `SYS.1016` if the orders cannot be read; each with the fix.
    pub async fn open(qemu: QemuSettings, state_dir: &Path) -> Result<Vms> {
        let version = version(&qemu.binary).await?;
        let dir = state_dir.join("vm");
        fs::create_dir_all(&dir).map_err(|e| io_error("make", &dir, &e))?;
        let path = dir.join("orders.json");
        let orders = match fs::read(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Orders::default(),
            Err(error) => return Err(io_error("read", &path, &error)),
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|e| {
                let details = format!(
                    "{} is damaged: {e}. It guards against starting a VM twice: restore it from a backup, or make sure \
                     that no VM of this host runs anywhere and delete it",
                    path.display()
                );
                ErrorCode::new(Code::IO, details)
            })?,
        };
        Ok(Vms { qemu, version, dir, orders: Mutex::new(orders) })
    }

    /// QEMU's version.
    pub fn version(&self) -> Version {
        self.version
    }

    /// `kvm` or `tcg`: what the next VM will run with.
    pub fn accel(&self) -> String {
        self.qemu.accel()
    }

    /// The QEMU processes of this host, by VM. A start that is under way is waited for; orders that are void from now on
    /// are so durably.
    ///
    /// # Errors
    /// `SYS.1016` if `/proc` cannot be listed or that cannot be recorded, `SYS.1005` for a controller that is not in
    /// office any more.
    pub async fn list(&self, cmd: &ListVmsCmd) -> Result<ListVmsReply> {
        let orders = {
            let mut orders = self.orders.lock().await;
            self.hear(&mut orders, cmd.epoch, cmd.void)?;
            orders.clone()
        };
        let mut vms: Vec<RunningVm> = processes()?
            .into_iter()
            .filter_map(|process| {
                let vm_uuid: VmId = process.option("-uuid")?.parse().ok()?;
                let (pidfile, own) = (process.option("-pidfile"), self.files(vm_uuid).ok()?.pid);
                let ours = pidfile == own.to_str();
                // An agent's pid file ends like ours: `vm/UUID/pid`.
                let tail = own.strip_prefix(self.dir.parent()?).ok()?;
                let other_agent = !ours && pidfile.is_some_and(|file| Path::new(file).ends_with(tail));
                let incarnation = if ours { orders.incarnation(vm_uuid) } else { None };
                let incoming = is_incoming(&process);
                Some(RunningVm { incarnation, other_agent, incoming, ..RunningVm::qemu(vm_uuid, process.pid) })
            })
            .collect();
        vms.sort_by_key(|vm| (vm.vm_uuid, vm.pid));
        Ok(ListVmsReply { vms, clock_ms: clock_ms(), sight: Sight::full(), machine: super::machine() })
    }

    fn hear(&self, orders: &mut Orders, epoch: u64, void: Option<VoidOrders>) -> Result<()> {
        let next = orders.hear(epoch, void)?;
        if next != *orders {
            self.save(&next)?;
            *orders = next;
        }
        Ok(())
    }

    /// Starts a VM, not after `by`.
    ///
    /// # Errors
    /// `SYS.1007` for an odd order, `SYS.1005` for a stale one, one that came too late, or if the VM runs, `HOST.1005`
    /// if QEMU does not start: its own words. After `SYS.1001` it may run; [`list`](Vms::list) tells.
    pub async fn start(&self, cmd: &StartVmCmd, by: Instant) -> Result<StartVmCmdReply> {
        qemu::check(cmd)?;
        let mut orders = self.orders.lock().await;
        let runs_as = running(cmd.vm_uuid)?.first().map(|process| process.pid);
        let void = cmd.not_after_ms != 0 && clock_ms() >= cmd.not_after_ms;
        let next = orders.admit(cmd, runs_as, void || Instant::now() >= by)?;
        self.save(&next)?;
        *orders = next;
        // The lock is held until QEMU is up: a second order finds it running.
        self.launch(cmd).await
    }

    async fn launch(&self, cmd: &StartVmCmd) -> Result<StartVmCmdReply> {
        let files = self.files(cmd.vm_uuid)?;
        fs::create_dir_all(&files.dir).map_err(|e| io_error("make", &files.dir, &e))?;
        for disk in &cmd.disks {
            if let DiskSource::VhostUser { socket_path } = &disk.source
                && !Path::new(socket_path).exists()
            {
                let details = format!("VM {}: vhost socket {socket_path} is not there", cmd.name);
                return Err(ErrorCode::new(Code::HOST_START_VM, details));
            }
        }
        if let Some(xml) = &cmd.libvirt_xml {
            return libvirt::create(cmd, xml, &files.dir.join("domain.xml")).await;
        }
        let (accel, memory) = (self.accel(), self.memory(cmd)?);
        let paths = VmFiles { qmp: &files.qmp, pid: &files.pid, log: &files.log };
        let arguments = qemu::arguments(cmd, &paths, &accel, &memory, self.version)?;
        let output = fs::File::create(&files.output).map_err(|e| io_error("write", &files.output, &e))?;
        let errors = output.try_clone().map_err(|e| io_error("write", &files.output, &e))?;
        let mut command = Command::new(&self.qemu.binary);
        command.args(&arguments).stdin(Stdio::null()).stdout(output).stderr(errors).current_dir("/");
        // A start that was given up must not come up later.
        command.kill_on_drop(true);
        let failed =
            |why: String| ErrorCode::new(Code::HOST_START_VM, format!("VM {}: QEMU does not start: {why}", cmd.name));
        match tokio::time::timeout(START_TIMEOUT, command.status()).await {
            Err(_) => {
                let details =
                    format!("VM {}: QEMU was not ready within {START_TIMEOUT:?}; it may still come up", cmd.name);
                return Err(ErrorCode::new(Code::TIMEOUT, details));
            }
            Ok(Err(error)) => return Err(failed(error.to_string())),
            Ok(Ok(status)) if !status.success() => {
                return Err(failed(format!("{status}: {}", target::tail(&files.output))));
            }
            Ok(Ok(_)) => {}
        }
        let Some(process) = running(cmd.vm_uuid)?.into_iter().next() else {
            return Err(failed(format!("it ended at once: {}", target::tail(&files.log))));
        };
        Ok(StartVmCmdReply { pid: process.pid, accel, memory: memory.name().to_owned() })
    }

    fn memory(&self, cmd: &StartVmCmd) -> Result<Memory> {
        let shared = cmd.disks.iter().any(|disk| matches!(disk.source, DiskSource::VhostUser { .. }));
        if !shared {
            return Ok(Memory::Private);
        }
        let hugepages = Hugepages::default();
        let enough = hugepages.free().is_ok_and(|free| free * 2 >= cmd.memory_mib);
        match (self.qemu.memory.as_deref(), hugepages.mount()) {
            (Some("memfd"), _) => Ok(Memory::Memfd),
            (Some("hugepages"), Ok(Some(mount))) => Ok(Memory::Hugepages(mount)),
            (Some("hugepages"), _) => {
                let details = format!("VM {}: [qemu] memory = \"hugepages\", but hugetlbfs is not mounted", cmd.name);
                Err(ErrorCode::new(Code::HOST_START_VM, details))
            }
            (_, Ok(Some(mount))) if enough && rustix::fs::access(&mount, rustix::fs::Access::WRITE_OK).is_ok() => {
                Ok(Memory::Hugepages(mount))
            }
            _ => Ok(Memory::Memfd),
        }
    }

    /// Stops a VM: asks QEMU to quit, then kills it; success means that no QEMU of it is left. The target
    /// of a migration is left alone.
    ///
    /// # Errors
    /// `SYS.1006` if a process cannot be killed, is still there, or is the target of a migration; `SYS.1005` for a
    /// controller that is not in office any more.
    pub async fn stop(&self, cmd: &StopVmCmd) -> Result<()> {
        let vm = cmd.vm_uuid;
        let mut orders = self.orders.lock().await;
        self.hear(&mut orders, cmd.epoch, None)?;
        let qmp_path = self.files(vm)?.qmp;
        if running(vm)?.is_empty() {
            return Ok(());
        }
        if let Ok(mut qmp) = Qmp::connect(&qmp_path, QUIT_TIMEOUT).await {
            let _ = qmp.execute(&qmp_path, "quit", json!({}), QUIT_TIMEOUT).await;
            let gone = async {
                while running(vm).is_ok_and(|left| !left.is_empty()) {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            };
            let _ = tokio::time::timeout(QUIT_TIMEOUT, gone).await;
        }
        // Twice: something may have started it again in between.
        for _ in 0..2 {
            for process in running(vm)?.iter().filter(|process| !is_incoming(process)) {
                process.kill(KILL_TIMEOUT).await?;
            }
        }
        match running(vm)?.first() {
            None => Ok(()),
            Some(process) if is_incoming(process) => {
                let details = format!("VM {vm}: process {} is the target of a migration and left alone", process.pid);
                Err(ErrorCode::new(Code::OPERATION, details))
            }
            Some(process) => {
                let details = format!("VM {vm} is there again as process {}: something restarts it", process.pid);
                Err(ErrorCode::new(Code::OPERATION, details))
            }
        }
    }

    fn files(&self, vm: VmId) -> Result<Files> {
        let dir = self.dir.join(&vm.0.simple().to_string()[..12]);
        Ok(Files {
            qmp: socket_path(&dir, "qmp")?,
            pid: dir.join("pid"),
            log: dir.join("log"),
            output: dir.join("output"),
            dir,
        })
    }

    fn save(&self, orders: &Orders) -> Result<()> {
        let path = self.dir.join("orders.json");
        let bytes = serde_json::to_vec_pretty(orders).map_err(|e| ErrorCode::new(Code::INTERNAL, e.to_string()))?;
        replace_file(&path, &bytes).map_err(|e| io_error("write", &path, &e))
    }
}

struct Files {
    dir: PathBuf,
    qmp: PathBuf,
    pid: PathBuf,
    log: PathBuf,
    output: PathBuf,
}

/// Every QEMU of this host, under the names that distributions give it.
pub(super) fn processes() -> Result<Vec<Process>> {
    let qemu = |process: &Process| {
        process.option("-uuid").is_some() && process.is_alive() && {
            let program = process.program();
            program.starts_with("qemu-system") || program == "qemu-kvm"
        }
    };
    Process::scan(qemu).map_err(|e| io_error("list", Path::new("/proc"), &e))
}

/// The QEMU processes of a VM.
pub(crate) fn running(vm: VmId) -> Result<Vec<Process>> {
    let uuid = vm.to_string();
    let mut found = processes()?;
    found.retain(|process| process.has_option("-uuid", &uuid));
    Ok(found)
}

/// Whether it waits for a migration, or came by one: its arguments stay the same. It is never killed by mistake, and
/// never taken for dead.
pub(crate) fn is_incoming(process: &Process) -> bool {
    process.argv.iter().any(|arg| arg == "-incoming")
}

/// This host's clock since it booted. It goes on while the host is suspended and does not jump when somebody sets the time.
fn clock_ms() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    u64::try_from(now.tv_sec).unwrap_or_default() * 1000 + u64::try_from(now.tv_nsec).unwrap_or_default() / 1_000_000
}

/// The version of a program of QEMU's.
///
/// # Errors
/// `SYS.1006` if it is missing or does not run, with the fix.
pub async fn version(binary: &str) -> Result<Version> {
    let missing = |why: String| {
        let details =
            format!("QEMU {binary:?} does not run: {why}. Install qemu-system-x86, or name it in [qemu] binary");
        ErrorCode::new(Code::OPERATION, details)
    };
    let asked = Command::new(binary).arg("--version").stdin(Stdio::null()).kill_on_drop(true).output();
    let output = tokio::time::timeout(START_TIMEOUT, asked).await;
    let output = output
        .map_err(|_| missing(format!("no answer within {START_TIMEOUT:?}")))?
        .map_err(|e| missing(e.to_string()))?;
    let said = String::from_utf8_lossy(&output.stdout);
    let line = said.lines().next().unwrap_or_default();
    Version::parse(line).ok_or_else(|| missing(format!("it does not say its version but {line:.80?}")))
}
