//! The VMs of a host: start, stop and search of their QEMU processes.
//!
//! Invariants (I1): a start is rejected if its incarnation is not above the highest seen for its VM, or its epoch is
//! below the highest seen, also after a restart of the agent: both are on disk before QEMU starts. A VM whose QEMU runs
//! is not started. The list of VMs is that of `/proc`, regardless of what started them, with the sight of the search.
//! After a start with an unknown result a missing VM is unknown, never absent. A VM is stopped when its exports are
//! ended too.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Stdio,
    sync::Arc,
    time::Duration,
};

use parking_lot::RwLock;
use ringfence_actors::fence::FencingGuard;
use ringfence_messages::{
    Code, ErrorCode, Result, VmId,
    vm::{DiskSource, ListVmsCmd, ListVmsReply, RunningVm, StartVmCmd, StartVmCmdReply, StopVmCmd},
};
use serde_json::json;
use tokio::{process::Command, sync::Mutex, time::Instant};

use super::{
    exports::Exports,
    folders::{self, Files, Folders},
    hugepages::Hugepages,
    io_error, libvirt,
    lookout::{LOOK_TIMEOUT, Lookout, Qemu, Seen, off_the_runtime},
    migration,
    proc::Process,
    qemu::{self, Memory, Version, VmFiles},
    qmp::Qmp,
    target,
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
    /// Users beside root, libvirt's and the agent's whose processes may be VMs, by name or number.
    pub users: Vec<String>,
    /// All VMs of this host run as the agent's own user, where it sees them: for an agent that is not the host's root.
    pub own: bool,
}

/// Strangers that are listed at most. Too low: an operator does not see who else claims a VM. Too high: a local user
/// makes the list longer than an answer may be.
const MAX_STRANGERS: usize = 64;

/// The VMs of this host.
pub struct Vms {
    qemu: QemuSettings,
    version: Version,
    folders: Folders,
    lookout: Arc<Lookout>,
    exports: Exports,
    /// What it starts is found by its own look; if not, nothing that it does not find is known not to be there.
    sees_its_own: bool,
    orders: Arc<Mutex<FencingGuard>>,
    /// What `orders` hold, for the guard.
    held: RwLock<BTreeMap<VmId, u64>>,
    libvirt: libvirt::Outstanding,
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
        let orders = read_orders(&dir)?;
        let lookout = Arc::new(Lookout::new(Some(&qemu.binary), &qemu.users, qemu.own)?);
        let sees_its_own = sees_what_it_starts(&qemu.binary, &lookout).await;
        if !sees_its_own {
            tracing::error!(
                binary = qemu.binary,
                "trial QEMU was not found among the processes of this host: unlisted VMs count as unknown; set [qemu] \
                 binary to QEMU itself, not to a script that starts it elsewhere"
            );
        }
        let held = RwLock::new(orders.held().clone());
        let (orders, libvirt) = (Arc::new(Mutex::new(orders)), libvirt::Outstanding::default());
        let (folders, exports) = (Folders::in_dir(dir), Exports::new(Some(state_dir), &lookout));
        if let Err(error) = exports.adopt().await {
            tracing::warn!(%error, "cannot assign every export to its VM");
        }
        Ok(Vms { qemu, version, folders, lookout, exports, sees_its_own, orders, held, libvirt })
    }

    /// How processes are looked at here.
    pub fn lookout(&self) -> &Arc<Lookout> {
        &self.lookout
    }

    /// Whether nothing is held: then nothing has to be looked for.
    pub(super) fn holds_nothing(&self) -> bool {
        self.held.read().is_empty()
    }

    /// Whether nothing of this VM may run here.
    pub(super) fn is_held(&self, vm: VmId) -> bool {
        self.held.read().contains_key(&vm)
    }

    /// Whether another agent of this machine started it.
    pub(super) fn is_of_another_agent(&self, qemu: &Qemu) -> bool {
        let own = |file: &PathBuf| !self.folders.is_own(file, qemu.vm) && folders::is_an_agents(file, qemu.vm);
        qemu.pidfile.as_ref().is_some_and(own)
    }

    /// All processes, and what else says that more may be here than they show.
    async fn look(&self) -> Result<Seen> {
        let (lookout, folders) = (self.lookout.clone(), self.folders.clone());
        let looked = off_the_runtime("look at the processes of this host", LOOK_TIMEOUT, move || {
            let mut seen = lookout.look_now(None)?;
            let known: Vec<_> = seen
                .qemus
                .iter()
                .filter(|qemu| qemu.stranger.is_none())
                .filter_map(|qemu| qemu.pidfile.clone())
                .collect();
            // QEMU holds a lock on its pid file for life: one that is held by nobody who was seen is a VM that was not.
            seen.sight.unnamed += folders.locked()?.iter().filter(|file| !known.contains(file)).count() as u32;
            Ok(seen)
        });
        let mut seen = looked.await?.map_err(|e: std::io::Error| io_error("list", Path::new("/proc"), &e))?;
        seen.sight.unnamed += u32::from(!self.sees_its_own) + self.libvirt.count();
        Ok(seen)
    }

    async fn running(&self, vm: VmId) -> Result<Vec<Qemu>> {
        Ok(self.look().await?.of(vm).cloned().collect())
    }

    /// QEMU's version.
    pub fn version(&self) -> Version {
        self.version
    }

    /// `kvm` or `tcg`: what the next VM will run with.
    pub fn accel(&self) -> String {
        self.qemu.accel()
    }

    /// The QEMU processes of this host, by VM. A start that is under way is waited for; orders that are void from now
    /// on are so durably.
    ///
    /// # Errors
    /// `SYS.1016` if `/proc` cannot be listed or that cannot be recorded, `SYS.1001` if it does not answer, `SYS.1005`
    /// for a controller that is not in office any more.
    pub async fn list(&self, cmd: &ListVmsCmd) -> Result<ListVmsReply> {
        let orders = {
            let mut orders = self.orders.lock().await;
            let next = orders.observe_epoch(cmd.epoch, cmd.void)?;
            self.remember(&mut orders, next)?;
            orders.clone()
        };
        let seen = self.look().await?;
        let waits = migration::all_wait(&seen.qemus).await;
        let mut strangers = 0;
        let mut vms = Vec::new();
        for (qemu, incoming) in seen.qemus.iter().zip(waits) {
            strangers += usize::from(qemu.stranger.is_some());
            if qemu.stranger.is_some() && strangers > MAX_STRANGERS {
                continue;
            }
            let ours =
                qemu.stranger.is_none() && qemu.pidfile.as_ref().is_some_and(|file| self.folders.is_own(file, qemu.vm));
            vms.push(RunningVm {
                incarnation: if ours { orders.incarnation(qemu.vm) } else { None },
                other_agent: self.is_of_another_agent(qemu),
                incoming,
                stranger: qemu.stranger.clone(),
                ..RunningVm::qemu(qemu.vm, qemu.process.pid)
            });
        }
        vms.extend(self.exports.idle(&seen).await?);
        Ok(ListVmsReply { vms, clock_ms: clock_ms(), sight: seen.sight, machine: super::machine() })
    }

    /// Makes orders durable, and then what is known.
    fn remember(&self, orders: &mut FencingGuard, next: FencingGuard) -> Result<()> {
        if next != *orders {
            self.save(&next)?;
            *orders = next;
        }
        Ok(())
    }

    /// Starts a VM, not after `by`.
    ///
    /// # Errors
    /// `SYS.1007` for a malformed command; `SYS.1005` for a stale or late one, or if the VM runs; `HOST.1005` with
    /// QEMU's message if QEMU does not start. After `SYS.1001` the VM may run: query [`list`](Vms::list).
    pub async fn start(&self, cmd: &StartVmCmd, by: Instant) -> Result<StartVmCmdReply> {
        qemu::check(cmd)?;
        let mut orders = self.orders.lock().await;
        if self.libvirt.has(cmd.vm_uuid) {
            let details = format!("VM {} is not started: libvirt has not yet answered an earlier command", cmd.name);
            return Err(ErrorCode::new(Code::CHANGE_STATE, details));
        }
        let seen = self.look().await?;
        let runs_as = seen.of(cmd.vm_uuid).next().map(|qemu| qemu.process.pid);
        let next = orders.admit(cmd, runs_as, is_late(cmd, by))?;
        self.remember(&mut orders, next)?;
        *self.held.write() = orders.held().clone();
        self.exports.join(cmd.vm_uuid, &seen).await?;
        if let Some(xml) = &cmd.libvirt_xml {
            let files = self.folders.make(cmd.vm_uuid)?;
            let begun =
                self.libvirt.create(cmd, xml, &files.dir.join("domain.xml"), by, &self.orders, &self.lookout)?;
            // Without the lock: libvirt may be slow, and the command's validity is checked again afterwards.
            drop(orders);
            return begun.await;
        }
        // The lock is held until QEMU runs: a second command finds the VM running.
        self.launch(cmd).await
    }

    async fn launch(&self, cmd: &StartVmCmd) -> Result<StartVmCmdReply> {
        let files = self.folders.make(cmd.vm_uuid)?;
        for disk in &cmd.disks {
            if let DiskSource::VhostUser { socket_path } = &disk.source
                && !Path::new(socket_path).exists()
            {
                let details = format!("VM {}: vhost socket {socket_path} does not exist", cmd.name);
                return Err(ErrorCode::new(Code::HOST_START_VM, details));
            }
        }
        let (accel, memory) = (self.accel(), self.memory(cmd)?);
        let paths = VmFiles { qmp: &files.qmp, pid: &files.pid, log: &files.log };
        let arguments = qemu::arguments(cmd, &paths, &accel, &memory, self.version)?;
        let output = fs::File::create(&files.output).map_err(|e| io_error("write", &files.output, &e))?;
        let errors = output.try_clone().map_err(|e| io_error("write", &files.output, &e))?;
        let mut command = Command::new(&self.qemu.binary);
        command.args(&arguments).stdin(Stdio::null()).stdout(output).stderr(errors).current_dir("/");
        // A start that timed out must not succeed later.
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
        let pid = self.started(cmd, &files).await.map_err(|why| {
            let details = format!("VM {}: {why}; it may run: {}", cmd.name, target::tail(&files.log));
            ErrorCode::new(Code::TIMEOUT, details)
        })?;
        Ok(StartVmCmdReply { pid, accel, memory: memory.name().to_owned() })
    }

    /// The process of a VM whose QEMU says that it runs in the background now: that of its own pid file.
    async fn started(&self, cmd: &StartVmCmd, files: &Files) -> Result<u32, String> {
        let running = self.running(cmd.vm_uuid).await.map_err(|e| e.details)?;
        let wrote = files.pid();
        match running.iter().find(|qemu| Some(qemu.process.pid) == wrote).or(running.first()) {
            Some(qemu) => Ok(qemu.process.pid),
            None => Err(match wrote.and_then(Process::read) {
                Some(process) => {
                    format!("QEMU daemonized as process {}, which is not found as this VM's", process.pid)
                }
                None => "QEMU daemonized and is not found".to_owned(),
            }),
        }
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

    /// Stops a VM: asks QEMU to quit, then kills it, then ends its exports; success means that no QEMU and no export of
    /// it is left. The target of a migration is left alone.
    ///
    /// # Errors
    /// `SYS.1006` if a process cannot be killed, is still there, or is the target of a migration; `SYS.1005` for a
    /// controller that is not in office any more.
    pub async fn stop(&self, cmd: &StopVmCmd) -> Result<()> {
        let mut orders = self.orders.lock().await;
        let next = orders.stop(cmd.epoch, cmd.vm_uuid, cmd.incarnation)?;
        self.remember(&mut orders, next)?;
        let adopted = self.exports.adopt().await;
        let mut stopped = self.end(cmd.vm_uuid).await.and(adopted);
        if stopped.is_ok() {
            // What its targets hold would be written after it.
            stopped = self.exports.end(cmd.vm_uuid).await.map(drop);
        }
        // Only now: the guard would kill what was asked to quit.
        *self.held.write() = orders.held().clone();
        stopped
    }

    async fn end(&self, vm: VmId) -> Result<()> {
        let running = self.running(vm).await?;
        let waits = migration::all_wait(&running).await;
        let quits = running.iter().zip(waits).filter(|(_, waits)| !waits).map(async |(qemu, _)| {
            let Some(path) = &qemu.qmp else { return };
            if let Ok(mut qmp) = Qmp::connect(path, QUIT_TIMEOUT).await {
                let _ = qmp.execute(path, "quit", json!({}), QUIT_TIMEOUT).await;
                let deadline = Instant::now() + QUIT_TIMEOUT;
                while qemu.process.is_alive() && Instant::now() < deadline {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            }
        });
        futures_util::future::join_all(quits).await;
        // Twice: something may have started it again in between.
        for _ in 0..2 {
            for qemu in self.running(vm).await? {
                if !migration::waits(&qemu).await {
                    qemu.process.kill(KILL_TIMEOUT).await?;
                }
            }
        }
        if self.libvirt.has(vm) {
            let details = format!("VM {vm}: libvirt has not yet answered a start command; a late start will be killed");
            return Err(ErrorCode::new(Code::TIMEOUT, details));
        }
        match self.running(vm).await?.first() {
            None => Ok(()),
            Some(qemu) if migration::waits(qemu).await => {
                let details = format!("VM {vm}: process {} waits for a migration and is not killed", qemu.process.pid);
                Err(ErrorCode::new(Code::OPERATION, details))
            }
            Some(qemu) => {
                let details = format!("VM {vm} runs again as process {}: something restarts it", qemu.process.pid);
                Err(ErrorCode::new(Code::OPERATION, details))
            }
        }
    }

    fn save(&self, orders: &FencingGuard) -> Result<()> {
        let path = self.folders.dir().join("orders.json");
        let bytes = serde_json::to_vec_pretty(orders).map_err(|e| ErrorCode::new(Code::INTERNAL, e.to_string()))?;
        replace_file(&path, &bytes).map_err(|e| io_error("write", &path, &e))
    }
}

/// Every VM that this agent was ever ordered to run, stop or hold.
///
/// # Errors
/// `SYS.1016` if the orders cannot be read, with the fix.
pub fn ordered(state_dir: &Path) -> Result<BTreeSet<VmId>> {
    Ok(read_orders(&state_dir.join("vm"))?.vms())
}

fn read_orders(dir: &Path) -> Result<FencingGuard> {
    let path = dir.join("orders.json");
    match fs::read(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(FencingGuard::default()),
        Err(error) => Err(io_error("read", &path, &error)),
        Ok(bytes) => serde_json::from_slice(&bytes).map_err(|e| {
            let details = format!(
                "{} is damaged: {e}; the file prevents a second start of a VM: restore it from a backup, or verify \
                 that no VM of this host runs anywhere and delete it",
                path.display()
            );
            ErrorCode::new(Code::IO, details)
        }),
    }
}

/// Whether an order's time is over.
pub(super) fn is_late(cmd: &StartVmCmd, by: Instant) -> bool {
    (cmd.not_after_ms != 0 && clock_ms() >= cmd.not_after_ms) || Instant::now() >= by
}

/// Whether a QEMU that is started here as a trial is found. It has no machine, and ends with this.
async fn sees_what_it_starts(binary: &str, lookout: &Arc<Lookout>) -> bool {
    let vm = VmId::from_name(&format!("trial of {} at {}", std::process::id(), clock_ms()));
    let mut command = Command::new(binary);
    command.args(["-uuid", &vm.to_string(), "-machine", "none", "-nodefaults", "-display", "none", "-S"]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
    let Ok(mut child) = command.spawn() else { return false };
    let deadline = Instant::now() + START_TIMEOUT;
    let mut seen = false;
    while !seen && Instant::now() < deadline && matches!(child.try_wait(), Ok(None)) {
        seen = lookout.look().await.is_ok_and(|seen| seen.of(vm).next().is_some());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let _ = child.kill().await;
    seen
}

/// This host's clock since it booted. It goes on while the host is suspended and does not jump when somebody sets the
/// time.
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
        let details = format!("QEMU {binary:?} does not run: {why}; install qemu-system-x86, or set [qemu] binary");
        ErrorCode::new(Code::OPERATION, details)
    };
    let asked = Command::new(binary).arg("--version").stdin(Stdio::null()).kill_on_drop(true).output();
    let output = tokio::time::timeout(START_TIMEOUT, asked).await;
    let output = output
        .map_err(|_| missing(format!("no answer within {START_TIMEOUT:?}")))?
        .map_err(|e| missing(e.to_string()))?;
    let stdout = String::from_utf8_lossy(&output.stdout);
    let line = stdout.lines().next().unwrap_or_default();
    Version::parse(line).ok_or_else(|| missing(format!("its version is not readable: {line:.80?}")))
}
