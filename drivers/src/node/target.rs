//! A vhost target: one `qemu-storage-daemon` per storage, as a process or in a container, which exports volumes as
//! vhost-user-blk sockets.
//!
//! ```text
//! STATE_DIR/vhost/1a2b3c4d/           one folder per storage, named by the beginning of its uuid
//!     admin.sock  target.pid  exports.json  target.log  lock  storage
//!     vm1-0.sock                      QEMU connects here
//! ```
//! Invariants: at most one daemon per storage; it survives the agent (it daemonizes); the list of exports is on disk
//! before the reply, and a new daemon exports the whole list under the same paths, after its guests were reset
//! (`guest`); healthy means that the control socket answered in time and every listed volume is exported. See also
//! [`exports`](super::exports).
//! Alternatives considered: the agent as the parent process. An update of the agent would kill every disk of the host.

use std::{
    io::Write,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use ringfence_messages::{
    Code, ErrorCode, Result, StorageId,
    vhost::{CreateVhostBdevCmd, DeployVhostReply, OnTargetLoss},
};
use tokio::{process::Command, time::Instant};

use super::{
    docker::{Container, Engine},
    exports::{Export, Folder, KILL_TIMEOUT, LOCK_TIMEOUT, chardev},
    guest, io_error,
    lookout::Lookout,
    plain_name,
    proc::Process,
    text,
};

/// How long a daemon may take to start and listen (domain: 40 tries of 0.5 s).
pub const START_TIMEOUT: Duration = Duration::from_secs(20);

/// How long the health of a target waits for a deploy that is under way. Too low: it is called down between two orders.
/// Too high: a health check takes longer than its caller waits.
const HEALTH_LOCK_TIMEOUT: Duration = Duration::from_millis(500);

/// Volumes that one target exports at most. Each costs the daemon threads and memory.
pub const MAX_EXPORTS: usize = 4096;

/// How targets are run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Runner {
    /// As a process of the host: this program.
    Process(String),
    /// In a container of this image, whose entry point is the program. Its processes are the host's processes too, so
    /// that a target is found and killed in the same way.
    Docker(Engine, String),
}

/// The vhost target of one storage on this host.
pub struct Target {
    runner: Runner,
    /// What its folder and its container are called.
    name: String,
    /// Where volumes lie that name no directory.
    default_volumes: PathBuf,
    folder: Folder,
    lookout: Arc<Lookout>,
}

impl Target {
    /// The target of a storage, in an agent's state directory.
    ///
    /// # Errors
    /// `SYS.1016` if its folder cannot be made; `SYS.1007` if the state directory's path is too long for sockets.
    pub fn new(runner: Runner, state_dir: &Path, storage: StorageId, lookout: &Arc<Lookout>) -> Result<Target> {
        let name = folder_name(state_dir, storage)?;
        let folder = Folder(state_dir.join("vhost").join(&name));
        folder.socket("admin")?;
        let default_volumes = state_dir.join("volumes").join(&name);
        Ok(Target { runner, default_volumes, name, folder, lookout: lookout.clone() })
    }

    /// Whether it works and exports all that it should: `Ok`, or why not in plain words.
    pub async fn health(&self) -> Result<(), String> {
        let _lock = self.folder.lock(HEALTH_LOCK_TIMEOUT).await.map_err(|e| e.details)?;
        self.answers().await?;
        let missing = self.missing().await.map_err(|e| e.details)?;
        if missing.is_empty() {
            return Ok(());
        }
        let names: Vec<&str> = missing.iter().map(|export| export.bdev.as_str()).collect();
        Err(format!("the target does not export {}", names.join(", ")))
    }

    async fn answers(&self) -> Result<Process, String> {
        let Some(process) = self.process().await.map_err(|e| e.details)? else {
            return Err("the target does not run".to_owned());
        };
        self.folder.live().await.map(|_| process).map_err(|e| e.details)
    }

    async fn process(&self) -> Result<Option<Process>> {
        Ok(self.folder.process(&self.lookout.look().await?))
    }

    /// What is on the list and not exported.
    async fn missing(&self) -> Result<Vec<Export>> {
        let live = self.folder.live().await?;
        let mut exports = self.folder.load()?;
        exports.retain(|export| live.iter().all(|(id, _)| *id != export.bdev));
        Ok(exports)
    }

    /// Makes it run and export everything that it should. On a healthy target this changes nothing. `volume_dir` is
    /// where its volumes lie, if not in the agent's own directory. Each export is tried; the reply names those that
    /// failed.
    ///
    /// # Errors
    /// `SYS.1006` if what is left of an old daemon cannot be killed, or the new one does not start: its own words.
    pub async fn deploy(&self, volume_dir: Option<&Path>, on_loss: OnTargetLoss) -> Result<DeployVhostReply> {
        let _lock = self.folder.lock(START_TIMEOUT).await?;
        let exports = self.folder.load()?;
        let running = self.answers().await.ok();
        let missing = match &running {
            Some(_) => self.missing().await?,
            None => {
                while let Some(process) = self.process().await? {
                    process.kill(KILL_TIMEOUT).await?;
                }
                exports.clone()
            }
        };
        let mut reply = DeployVhostReply { started: running.is_none(), ..DeployVhostReply::default() };
        // Before anything serves their queues again.
        let missing = self.prepare_guests(missing, on_loss, &mut reply).await?;
        let process = match running {
            Some(process) => process,
            None => self.start(volume_dir, &exports).await?,
        };
        for export in &missing {
            if let Err(error) = self.folder.make(export, START_TIMEOUT).await {
                reply.missing.push(format!("{}: {}", export.bdev, error.details));
            }
        }
        (reply.pid, reply.exports) = (process.pid, (exports.len() - reply.missing.len()) as u32);
        Ok(reply)
    }

    /// Does to the guests of exports that were lost what the policy says. Those that may be exported again come back.
    async fn prepare_guests(
        &self,
        lost: Vec<Export>,
        on_loss: OnTargetLoss,
        reply: &mut DeployVhostReply,
    ) -> Result<Vec<Export>> {
        let looked = self.lookout.look().await?;
        let mut ready = Vec::new();
        let mut seen: Vec<(u32, Option<String>)> = Vec::new();
        for export in lost {
            let Some(qemu) = self.folder.user(&export.bdev, &looked)? else {
                ready.push(export);
                continue;
            };
            // A VM with several disks here is reset once, before the first of them is served.
            let (vm, pid) = (qemu.vm, qemu.process.pid);
            if seen.iter().all(|(known, _)| *known != pid) {
                let trouble = match on_loss {
                    OnTargetLoss::Continue => {
                        reply.continued.push(vm);
                        None
                    }
                    OnTargetLoss::Reset => match guest::reset(qemu).await {
                        Ok(done) => {
                            reply.reset.extend(done.then_some(vm));
                            None
                        }
                        Err(error) => Some(error.details),
                    },
                };
                seen.push((pid, trouble));
            }
            match seen.iter().find(|(known, _)| *known == pid) {
                Some((_, Some(trouble))) => reply.missing.push(format!("{}: not reset: {trouble}", export.bdev)),
                _ => ready.push(export),
            }
        }
        Ok(ready)
    }

    async fn start(&self, volume_dir: Option<&Path>, exports: &[Export]) -> Result<Process> {
        let engine = match &self.runner {
            Runner::Process(program) => {
                self.start_process(program).await?;
                None
            }
            Runner::Docker(engine, image) => {
                self.start_container(engine, image, volume_dir, exports).await?;
                Some(engine)
            }
        };
        let deadline = Instant::now() + START_TIMEOUT;
        loop {
            match self.answers().await {
                Ok(process) => return Ok(process),
                Err(why) if Instant::now() >= deadline => {
                    let output = match engine {
                        None => tail(&self.folder.0.join("target.log")),
                        Some(engine) => engine.tail(&self.container()).await,
                    };
                    return Err(ErrorCode::new(Code::OPERATION, format!("target does not start: {why}; {output}")));
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    }

    async fn start_process(&self, program: &str) -> Result<()> {
        let dir = &self.folder.0;
        let (admin, pidfile, log) = (self.folder.admin(), dir.join("target.pid"), dir.join("target.log"));
        let failed = |why: String| ErrorCode::new(Code::OPERATION, format!("{program} does not start: {why}"));
        let output = std::fs::File::create(&log).map_err(|e| io_error("write", &log, &e))?;
        let errors = output.try_clone().map_err(|e| io_error("write", &log, &e))?;
        let mut command = Command::new(program);
        command
            .args(["--daemonize", "--pidfile", text(&pidfile)?])
            .args(["--chardev", &chardev(text(&admin)?), "--monitor", "chardev=admin"])
            .stdin(std::process::Stdio::null())
            .stdout(output)
            .stderr(errors)
            .current_dir("/")
            .kill_on_drop(true);
        let status = match tokio::time::timeout(START_TIMEOUT, command.status()).await {
            Err(_) => return Err(failed(format!("not ready within {START_TIMEOUT:?}"))),
            Ok(Err(error)) => {
                return Err(failed(format!("{error}; install qemu-utils, or set [vhost] binary")));
            }
            Ok(Ok(status)) => status,
        };
        if status.success() { Ok(()) } else { Err(failed(format!("{status}: {}", tail(&log)))) }
    }

    async fn start_container(
        &self,
        engine: &Engine,
        image: &str,
        volume_dir: Option<&Path>,
        exports: &[Export],
    ) -> Result<()> {
        let volumes = volume_dir.unwrap_or(&self.default_volumes);
        std::fs::create_dir_all(volumes).map_err(|e| io_error("make", volumes, &e))?;
        let of_exports = exports.iter().filter_map(|export| export.volume.parent());
        let mut directories: Vec<PathBuf> =
            [self.folder.0.as_path(), volumes].into_iter().chain(of_exports).map(Path::to_owned).collect();
        directories.sort();
        directories.dedup();
        let admin = self.folder.admin();
        let arguments =
            ["--chardev", &chardev(text(&admin)?), "--monitor", "chardev=admin"].map(str::to_owned).to_vec();
        engine.run(Container { name: self.container(), image: image.to_owned(), arguments, directories }).await
    }

    fn container(&self) -> String {
        format!("ringfence-vhost-{}", self.name)
    }

    /// Exports a volume and returns its socket. One that no QEMU uses is made again: its file may have been replaced.
    ///
    /// # Errors
    /// `SYS.1007` for bad names, `SYS.1003` if the volume is not there, `SYS.1004` if the target does not work,
    /// `SYS.1005` if a VM uses the export for another file.
    pub async fn create_bdev(&self, cmd: &CreateVhostBdevCmd) -> Result<PathBuf> {
        plain_name(&cmd.bdev_name)?;
        plain_name(&cmd.volume)?;
        let socket = self.folder.socket(&cmd.bdev_name)?;
        let dir = cmd.volume_dir.as_deref().map_or(self.default_volumes.as_path(), Path::new);
        let volume = dir.join(format!("{}.raw", cmd.volume));
        if !volume.is_file() {
            let details = format!("volume {} is not on this host: expected it at {}", cmd.volume, volume.display());
            return Err(ErrorCode::new(Code::NOT_FOUND, details));
        }
        let _lock = self.folder.lock(START_TIMEOUT).await?;
        let process = self.answers().await.map_err(|why| ErrorCode::new(Code::NOT_READY, why))?;
        let mut exports = self.folder.load()?;
        let export = Export { bdev: cmd.bdev_name.clone(), volume, vm: cmd.vm_uuid, fresh: true };
        let known = exports.iter().find(|known| known.bdev == export.bdev);
        let looked = self.lookout.look().await?;
        let user = self.folder.user(&export.bdev, &looked)?;
        let live = self.folder.live().await?.iter().any(|(id, _)| *id == export.bdev);
        match (user, known) {
            (Some(_), Some(known)) if live && known.volume == export.volume => return Ok(socket),
            (Some(qemu), _) => {
                let of = known.map_or_else(|| "nothing".to_owned(), |known| known.volume.display().to_string());
                let details = format!("export {} is used by process {}, for {of}", export.bdev, qemu.process.pid);
                return Err(ErrorCode::new(Code::CHANGE_STATE, details));
            }
            (None, _) => {}
        }
        if live {
            self.folder.end(&[&export.bdev], &process).await?;
        }
        exports.retain(|known| known.bdev != export.bdev);
        if exports.len() >= MAX_EXPORTS {
            let details = format!("target has {MAX_EXPORTS} exports, which is the limit");
            return Err(ErrorCode::new(Code::OPERATION, details));
        }
        exports.push(export.clone());
        self.folder.save(&exports)?;
        if let Err(error) = self.folder.make(&export, START_TIMEOUT).await {
            // What was never made is not missed.
            exports.pop();
            self.folder.save(&exports)?;
            return Err(error);
        }
        Ok(socket)
    }

    /// Ends an export. Repeated, it changes nothing.
    ///
    /// # Errors
    /// `SYS.1006` if neither the export nor its target can be ended: it lives.
    pub async fn delete_bdev(&self, bdev: &str) -> Result<()> {
        plain_name(bdev)?;
        let _lock = self.folder.lock(LOCK_TIMEOUT).await?;
        if let Some(process) = self.process().await? {
            self.folder.end(&[bdev], &process).await?;
        }
        let mut exports = self.folder.load()?;
        exports.retain(|export| export.bdev != bdev);
        self.folder.save(&exports)
    }
}

/// What the folder of a storage's target is called: the beginning of the storage's uuid, for socket paths are short;
/// the whole of it if another storage has that folder. Whose it is stands in it.
fn folder_name(state_dir: &Path, storage: StorageId) -> Result<String> {
    let (whole, id) = (storage.0.simple().to_string(), storage.to_string());
    for name in [&whole[..8], &whole] {
        let dir = state_dir.join("vhost").join(name);
        std::fs::create_dir_all(&dir).map_err(|e| io_error("make", &dir, &e))?;
        let path = dir.join("storage");
        match std::fs::File::options().write(true).create_new(true).open(&path) {
            Ok(mut file) => {
                let written = file.write_all(id.as_bytes()).and_then(|()| file.sync_all());
                written.map_err(|e| io_error("write", &path, &e))?;
                return Ok(name.to_owned());
            }
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(io_error("write", &path, &error)),
        }
        let owner = std::fs::read_to_string(&path).map_err(|e| io_error("read", &path, &e))?;
        if owner.trim() == id {
            return Ok(name.to_owned());
        }
    }
    let details = format!("folder {} belongs to another storage", state_dir.join("vhost").join(&whole).display());
    Err(ErrorCode::new(Code::IO, details))
}

/// The last lines of a log, for an error.
pub(super) fn tail(log: &Path) -> String {
    let text = std::fs::read(log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    let last = lines[lines.len().saturating_sub(3)..].join("; ");
    last.chars().take(500).collect()
}
