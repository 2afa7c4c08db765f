//! A vhost target: one `qemu-storage-daemon` per storage, as a process or in a container, exporting volumes as vhost-user-blk sockets.
//!
//! ```text
//! STATE_DIR/vhost/1a2b3c4d/           one folder per storage, named by the beginning of its uuid
//!     admin.sock  target.pid  exports.json  target.log
//!     vm1-0.sock                      what QEMU connects to
//! ```
//! Invariants: at most one daemon per storage; it outlives the agent (it daemonizes); the list of exports is durable
//! before an export is promised, and a daemon that is started again exports all of it under the same paths; healthy
//! means that it answered its control socket within [`HEALTH_TIMEOUT`], for one that was stopped still accepts
//! connections. Rejected: being the daemon's parent (an agent update would kill every disk of the host).

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use ringfence_messages::{
    Code, ErrorCode, Result, StorageId,
    vhost::{CreateVhostBdevCmd, DeployVhostReply},
};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::{process::Command, sync::Mutex, time::Instant};

use super::{
    docker::{Container, Engine},
    io_error, plain_name,
    proc::Process,
    qmp::Qmp,
    socket_path, text,
};
use crate::files::replace_file;

/// How long the control socket may take to answer (domain: 1 s). Too low: a busy target is shot. Too high: a hung
/// one is seen late.
pub const HEALTH_TIMEOUT: Duration = Duration::from_secs(1);

/// How long a daemon may take to start and listen (domain: 40 tries of 0.5 s).
pub const START_TIMEOUT: Duration = Duration::from_secs(20);

/// How long a killed daemon may take to be gone.
pub const KILL_TIMEOUT: Duration = Duration::from_secs(5);

/// Volumes that one target exports at most. Each costs the daemon threads and memory.
pub const MAX_EXPORTS: usize = 4096;

/// One volume that is exported.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Export {
    bdev: String,
    volume: PathBuf,
}

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
    storage: StorageId,
    /// Where volumes lie that name no directory.
    default_volumes: PathBuf,
    dir: PathBuf,
    /// One thing at a time: two deploys would start two daemons.
    busy: Mutex<()>,
}

impl Target {
    /// The target of a storage, in an agent's state directory.
    ///
    /// # Errors
    /// `SYS.1016` if its folder cannot be made; `SYS.1007` if the state directory's path is too long for sockets.
    pub fn new(runner: Runner, state_dir: &Path, storage: StorageId) -> Result<Target> {
        let dir = state_dir.join("vhost").join(short(storage));
        let default_volumes = state_dir.join("volumes").join(short(storage));
        socket_path(&dir, "admin.sock")?;
        std::fs::create_dir_all(&dir).map_err(|e| io_error("make", &dir, &e))?;
        Ok(Target { runner, storage, default_volumes, dir, busy: Mutex::new(()) })
    }

    fn admin(&self) -> PathBuf {
        self.dir.join("admin.sock")
    }

    /// The daemon, if it runs: the process whose arguments name this target's control socket.
    fn process(&self) -> Result<Option<Process>> {
        let admin = self.admin();
        let chardev = chardev(text(&admin)?);
        let ours = |p: &Process| p.argv.contains(&chardev) && p.is_alive();
        let pid = std::fs::read_to_string(self.dir.join("target.pid")).ok().and_then(|text| text.trim().parse().ok());
        if let Some(process) = pid.and_then(Process::read).filter(|process| ours(process)) {
            return Ok(Some(process));
        }
        let found = Process::scan(ours).map_err(|e| io_error("list", Path::new("/proc"), &e))?;
        Ok(found.into_iter().next())
    }

    /// Whether it works: `Ok`, or why not in plain words.
    pub async fn health(&self) -> Result<(), String> {
        let look = async {
            let _guard = self.busy.lock().await;
            self.healthy().await
        };
        match tokio::time::timeout(HEALTH_TIMEOUT + HEALTH_TIMEOUT / 2, look).await {
            Ok(result) => result.map(|_| ()),
            Err(_) => Err("it is being deployed".to_owned()),
        }
    }

    async fn healthy(&self) -> Result<Process, String> {
        let process = self.process().map_err(|e| e.to_string())?;
        let Some(process) = process else { return Err("the target does not run".to_owned()) };
        let admin = self.admin();
        let mut qmp = Qmp::connect(&admin, HEALTH_TIMEOUT).await.map_err(|e| e.details)?;
        let asked = qmp.execute(&admin, "query-block-exports", json!({}), HEALTH_TIMEOUT).await;
        asked.map(|_| process).map_err(|e| e.details)
    }

    /// Makes it run and export everything that it should. On a healthy target this changes nothing. `volume_dir` is
    /// where its volumes lie, if not in the agent's own directory.
    ///
    /// # Errors
    /// `SYS.1006` if what is left of an old daemon cannot be killed, or the new one does not start: its own words.
    pub async fn deploy(&self, volume_dir: Option<&Path>) -> Result<DeployVhostReply> {
        let _guard = self.busy.lock().await;
        let exports = self.exports()?;
        if let Ok(process) = self.healthy().await {
            self.export_missing(&exports).await?;
            return Ok(DeployVhostReply { pid: process.pid, started: false, exports: exports.len() as u32 });
        }
        while let Some(process) = self.process()? {
            process.kill(KILL_TIMEOUT).await?;
        }
        let process = self.start(volume_dir, &exports).await?;
        self.export_missing(&exports).await?;
        Ok(DeployVhostReply { pid: process.pid, started: true, exports: exports.len() as u32 })
    }

    async fn start(&self, volume_dir: Option<&Path>, exports: &[Export]) -> Result<Process> {
        let said = match &self.runner {
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
            match self.healthy().await {
                Ok(process) => return Ok(process),
                Err(why) if Instant::now() >= deadline => {
                    let said = match said {
                        None => tail(&self.dir.join("target.log")),
                        Some(engine) => engine.tail(&self.container()).await,
                    };
                    return Err(ErrorCode::new(Code::OPERATION, format!("the target does not start: {why}; {said}")));
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    }

    async fn start_process(&self, program: &str) -> Result<()> {
        let (admin, pidfile, log) = (self.admin(), self.dir.join("target.pid"), self.dir.join("target.log"));
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
            Err(_) => return Err(failed(format!("it was not ready within {START_TIMEOUT:?}"))),
            Ok(Err(error)) => {
                return Err(failed(format!("{error}: install qemu-utils, or name the program in [vhost] binary")));
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
            [self.dir.as_path(), volumes].into_iter().chain(of_exports).map(Path::to_owned).collect();
        directories.sort();
        directories.dedup();
        let admin = self.admin();
        let arguments =
            ["--chardev", &chardev(text(&admin)?), "--monitor", "chardev=admin"].map(str::to_owned).to_vec();
        engine.run(Container { name: self.container(), image: image.to_owned(), arguments, directories }).await
    }

    fn container(&self) -> String {
        format!("ringfence-vhost-{}", short(self.storage))
    }

    /// Exports a volume and returns its socket. Repeated, it changes nothing.
    ///
    /// # Errors
    /// `SYS.1007` for bad names, `SYS.1003` if the volume is not there, `SYS.1006` if the target does not run.
    pub async fn create_bdev(&self, cmd: &CreateVhostBdevCmd) -> Result<PathBuf> {
        plain_name(&cmd.bdev_name)?;
        plain_name(&cmd.volume)?;
        let socket = socket_path(&self.dir, &format!("{}.sock", cmd.bdev_name))?;
        let dir = cmd.volume_dir.as_deref().map_or(self.default_volumes.as_path(), Path::new);
        let volume = dir.join(format!("{}.raw", cmd.volume));
        if !volume.is_file() {
            let details = format!("volume {} is not on this host: expected it at {}", cmd.volume, volume.display());
            return Err(ErrorCode::new(Code::NOT_FOUND, details));
        }
        let _guard = self.busy.lock().await;
        let mut exports = self.exports()?;
        let export = Export { bdev: cmd.bdev_name.clone(), volume };
        match exports.iter().find(|known| known.bdev == export.bdev) {
            Some(known) if *known == export => {}
            Some(known) => {
                let details = format!("export {} is there already, for {}", known.bdev, known.volume.display());
                return Err(ErrorCode::new(Code::CHANGE_STATE, details));
            }
            None if exports.len() >= MAX_EXPORTS => {
                let details = format!("this target exports {MAX_EXPORTS} volumes already");
                return Err(ErrorCode::new(Code::NOT_READY, details));
            }
            None => {
                exports.push(export);
                self.save(&exports)?;
            }
        }
        self.export_missing(&exports).await?;
        Ok(socket)
    }

    /// Ends an export. Repeated, it changes nothing.
    ///
    /// # Errors
    /// `SYS.1006` if the target does not answer; the export is then forgotten all the same, and ends with it.
    pub async fn delete_bdev(&self, bdev: &str) -> Result<()> {
        let _guard = self.busy.lock().await;
        let mut exports = self.exports()?;
        exports.retain(|export| export.bdev != bdev);
        self.save(&exports)?;
        let admin = self.admin();
        if self.process()?.is_none() {
            return Ok(());
        }
        let mut qmp = Qmp::connect(&admin, HEALTH_TIMEOUT).await?;
        if exported(&mut qmp, &admin).await?.iter().any(|id| id == bdev) {
            qmp.execute(&admin, "block-export-del", json!({ "id": bdev, "mode": "hard" }), START_TIMEOUT).await?;
        }
        Ok(())
    }

    /// Has the daemon export what it does not export yet. An export's id is its name; QEMU limits node names to
    /// 31 characters, so those are numbers.
    async fn export_missing(&self, exports: &[Export]) -> Result<()> {
        let admin = self.admin();
        let mut qmp = Qmp::connect(&admin, HEALTH_TIMEOUT).await?;
        let there = exported(&mut qmp, &admin).await?;
        for export in exports.iter().filter(|export| !there.contains(&export.bdev)) {
            let node = format!("n{:016x}", fnv1a(export.bdev.as_bytes()));
            let blockdev = json!({ "driver": "file", "node-name": node, "filename": text(&export.volume)? });
            if let Err(error) = qmp.execute(&admin, "blockdev-add", blockdev, START_TIMEOUT).await {
                // Left over from an export that was ended: the node stands, its export does not.
                if !error.details.contains("Duplicate node") && !error.details.contains("duplicate") {
                    return Err(error);
                }
            }
            let socket = socket_path(&self.dir, &format!("{}.sock", export.bdev))?;
            let export = json!({
                "type": "vhost-user-blk", "id": export.bdev, "node-name": node, "writable": true,
                "addr": { "type": "unix", "path": text(&socket)? },
            });
            qmp.execute(&admin, "block-export-add", export, START_TIMEOUT).await?;
        }
        Ok(())
    }

    fn exports(&self) -> Result<Vec<Export>> {
        let path = self.dir.join("exports.json");
        match std::fs::read(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(io_error("read", &path, &error)),
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|e| {
                let details =
                    format!("{} is damaged: {e}. Delete it and start the VMs of this host again", path.display());
                ErrorCode::new(Code::IO, details)
            }),
        }
    }

    fn save(&self, exports: &[Export]) -> Result<()> {
        let path = self.dir.join("exports.json");
        let bytes = serde_json::to_vec_pretty(exports).map_err(|e| ErrorCode::new(Code::INTERNAL, e.to_string()))?;
        replace_file(&path, &bytes).map_err(|e| io_error("write", &path, &e))
    }
}

/// The beginning of a storage's uuid: socket paths are short.
pub fn short(storage: StorageId) -> String {
    storage.0.simple().to_string()[..8].to_owned()
}

fn chardev(admin: &str) -> String {
    // A comma in an option's value is written twice.
    format!("socket,id=admin,path={},server=on,wait=off", admin.replace(',', ",,"))
}

async fn exported(qmp: &mut Qmp, admin: &Path) -> Result<Vec<String>> {
    let exports = qmp.execute(admin, "query-block-exports", json!({}), HEALTH_TIMEOUT).await?;
    let ids = exports.as_array().into_iter().flatten().filter_map(|export| export["id"].as_str());
    Ok(ids.map(str::to_owned).collect())
}

fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

/// The last lines of a log, for an error.
pub(super) fn tail(log: &Path) -> String {
    let text = std::fs::read(log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    let last = lines[lines.len().saturating_sub(3)..].join("; ");
    last.chars().take(500).collect()
}
