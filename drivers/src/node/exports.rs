//! Exports of vhost targets: the writers of a VM beside its QEMU.
//!
//! ```text
//! made (its VM is recorded) -> verified (QMP lists it) -> ended -> verified ended (not in QMP's list, its node is
//! closed)
//! ```
//! Invariants (I1): an export without a QEMU is ended, which means that its node was closed: QEMU closes a node only
//! without requests in flight. A target that does not close it in time is killed through its pidfd; one that does not
//! die is an error, and its exports count as alive. An export is a writer from the moment that a QEMU may connect;
//! before that it holds nothing. Targets are found by their command line, so that `ringfence kill-vm`, which reads no
//! agent's config, finds them too. A file lock guards the list of exports, because agent and `kill-vm` are two
//! processes. A record is removed after its export, never before.
//! Alternatives considered: removing an export by name while a QEMU uses it.

use std::{
    fs::File,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use ringfence_messages::{
    Code, ErrorCode, Result, VmId,
    vm::{RunningVm, WriterKind},
};
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::{
    io_error,
    lookout::{Lookout, Qemu, Seen},
    proc::Process,
    qmp::Qmp,
    socket_path, text,
};
use crate::files::replace_file;

/// How long the control socket may take to answer (domain: 1 s). Too low: a busy target is shot. Too high: a hung
/// one is seen late.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);

/// How long what is in flight may take until an export is ended; then the target is killed. Too low: the other VMs of a
/// slow storage lose their target. Too high: a fence waits for a storage that hangs.
pub const END_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a killed target may take to be gone. D state lasts longer, and is then said.
pub const KILL_TIMEOUT: Duration = Duration::from_secs(5);

/// How long somebody else may hold the list of exports. Too low: an order fails because of a deploy beside it. Too
/// high: a fence waits for an agent that hangs.
pub const LOCK_TIMEOUT: Duration = Duration::from_secs(5);

/// Between looks at a lock or at an export that is being ended.
const POLL: Duration = Duration::from_millis(20);

/// One volume that is exported.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Export {
    /// Its name: the id of the export and the name of its socket.
    pub bdev: String,
    /// The file.
    pub volume: PathBuf,
    /// The VM that writes through it; `None` if that is not known: the list is from before it was kept.
    #[serde(default)]
    pub vm: Option<VmId>,
    /// No QEMU has had it yet.
    #[serde(default)]
    pub fresh: bool,
}

/// The folder of one target: its control socket and its list of exports.
#[derive(Clone, Debug)]
pub(super) struct Folder(pub PathBuf);

impl Folder {
    pub(super) fn admin(&self) -> PathBuf {
        self.0.join("admin.sock")
    }

    pub(super) fn socket(&self, bdev: &str) -> Result<PathBuf> {
        socket_path(&self.0, &format!("{bdev}.sock"))
    }

    /// Nobody else deploys, makes or ends exports until the file is dropped.
    pub(super) async fn lock(&self, within: Duration) -> Result<File> {
        let path = self.0.join("lock");
        let file = File::options().create(true).truncate(false).write(true).open(&path);
        let file = file.map_err(|e| io_error("open", &path, &e))?;
        let deadline = Instant::now() + within;
        loop {
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(file),
                Err(rustix::io::Errno::WOULDBLOCK) if Instant::now() < deadline => tokio::time::sleep(POLL).await,
                Err(rustix::io::Errno::WOULDBLOCK) => {
                    let details = format!("target {}: deployment in progress", self.0.display());
                    return Err(ErrorCode::new(Code::TIMEOUT, details));
                }
                Err(error) => return Err(io_error("lock", &path, &error.into())),
            }
        }
    }

    pub(super) fn load(&self) -> Result<Vec<Export>> {
        let path = self.0.join("exports.json");
        match std::fs::read(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(io_error("read", &path, &error)),
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|e| {
                let details =
                    format!("{} is damaged: {e}; delete it and start the VMs of this host again", path.display());
                ErrorCode::new(Code::IO, details)
            }),
        }
    }

    pub(super) fn save(&self, exports: &[Export]) -> Result<()> {
        let path = self.0.join("exports.json");
        let bytes = serde_json::to_vec_pretty(exports).map_err(|e| ErrorCode::new(Code::INTERNAL, e.to_string()))?;
        replace_file(&path, &bytes).map_err(|e| io_error("write", &path, &e))
    }

    /// The target's process, if it was seen.
    pub(super) fn process(&self, seen: &Seen) -> Option<Process> {
        targets(seen).find(|(folder, _)| folder.0 == self.0).map(|(_, process)| process)
    }

    /// The QEMU of this host that is joined to this export: its command line names the socket.
    pub(super) fn user<'a>(&self, bdev: &str, seen: &'a Seen) -> Result<Option<&'a Qemu>> {
        let socket = self.socket(bdev)?;
        let socket = text(&socket)?;
        let mut qemus = seen.qemus.iter().filter(|qemu| qemu.stranger.is_none());
        Ok(qemus.find(|qemu| qemu.process.argv.iter().any(|arg| names(arg, socket))))
    }

    /// The exports that the target has now, by name, each with its node.
    pub(super) async fn live(&self) -> Result<Vec<(String, String)>> {
        let admin = self.admin();
        let mut qmp = Qmp::connect(&admin, ANSWER_TIMEOUT).await?;
        live(&mut qmp, &admin).await
    }

    /// Has the target export a volume. QEMU limits node names to 31 characters, and a name is used once only: what is
    /// left of an export by this name may be another file.
    pub(super) async fn make(&self, export: &Export, within: Duration) -> Result<()> {
        let admin = self.admin();
        let mut qmp = Qmp::connect(&admin, ANSWER_TIMEOUT).await?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let node = format!("n{:x}", now.as_nanos());
        let blockdev = json!({
            "driver": "file", "node-name": node, "filename": text(&export.volume)?, "cache": { "direct": true },
        });
        qmp.execute(&admin, "blockdev-add", blockdev, within).await.map_err(|e| explained(e, &export.volume))?;
        let socket = self.socket(&export.bdev)?;
        let add = json!({
            "type": "vhost-user-blk", "id": export.bdev, "node-name": node, "writable": true,
            "addr": { "type": "unix", "path": text(&socket)? },
        });
        let made = qmp.execute(&admin, "block-export-add", add, within).await;
        if made.is_err() {
            let _ = qmp.execute(&admin, "blockdev-del", json!({ "node-name": node }), within).await;
        }
        made.map(|_| ())
    }

    /// Ends exports of a target that runs: by QMP, or with the target. What was done, in words.
    ///
    /// # Errors
    /// `SYS.1006` if the target cannot be killed: its exports live.
    pub(super) async fn end(&self, bdevs: &[&str], process: &Process) -> Result<String> {
        let asked = async {
            let admin = self.admin();
            let mut qmp = Qmp::connect(&admin, ANSWER_TIMEOUT).await?;
            for bdev in bdevs {
                end_one(&mut qmp, &admin, bdev).await?;
            }
            Ok::<_, ErrorCode>(())
        };
        match asked.await {
            Ok(()) => Ok(format!("removed {}", bdevs.join(", "))),
            Err(why) => {
                process.kill(KILL_TIMEOUT).await?;
                Ok(format!("killed target {}, which did not remove {}: {}", process.pid, bdevs.join(", "), why.details))
            }
        }
    }
}

/// Ends one export; then its node, which is refused while anything of it is in flight.
async fn end_one(qmp: &mut Qmp, admin: &Path, bdev: &str) -> Result<()> {
    let Some((_, node)) = live(qmp, admin).await?.into_iter().find(|(id, _)| id == bdev) else { return Ok(()) };
    let deadline = Instant::now() + END_TIMEOUT;
    let hard = json!({ "id": bdev, "mode": "hard" });
    let removed = qmp.execute(admin, "block-export-del", hard, END_TIMEOUT).await;
    loop {
        let gone = live(qmp, admin).await?.iter().all(|(id, _)| id != bdev);
        let closed = if gone {
            qmp.execute(admin, "blockdev-del", json!({ "node-name": node }), END_TIMEOUT).await.map(|_| ())
        } else {
            let why =
                removed.as_ref().err().map(|e| e.details.clone()).unwrap_or_else(|| "it is still there".to_owned());
            Err(ErrorCode::new(Code::OPERATION, format!("export {bdev}: {why}")))
        };
        match closed {
            Ok(()) => return Ok(()),
            Err(error) if Instant::now() >= deadline => return Err(error),
            Err(_) => tokio::time::sleep(POLL).await,
        }
    }
}

/// What ending the exports of a VM did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ended {
    /// There was one that lived.
    pub found: bool,
    /// What was done, one sentence each.
    pub said: Vec<String>,
}

/// The exports of this host.
#[derive(Clone, Debug)]
pub struct Exports {
    of: Option<PathBuf>,
    lookout: Arc<Lookout>,
}

impl Exports {
    /// Those of the agent with this state directory; without one, as for a fence, those of all agents of this host.
    pub fn new(of: Option<&Path>, lookout: &Arc<Lookout>) -> Exports {
        Exports { of: of.map(Path::to_owned), lookout: lookout.clone() }
    }

    /// Ends every export of a VM that none of its QEMUs uses.
    ///
    /// # Errors
    /// Why it is not known that they are all ended: some may live.
    pub async fn end(&self, vm: VmId) -> Result<Ended> {
        let mut ended = Ended::default();
        for folder in self.folders(&self.lookout.look().await?)? {
            // Most targets do not know the VM: no lock for them.
            if !folder.load()?.iter().any(|export| export.vm == Some(vm)) {
                continue;
            }
            let _lock = folder.lock(LOCK_TIMEOUT).await?;
            let (mut exports, seen) = (folder.load()?, self.lookout.look().await?);
            let mut idle = Vec::new();
            for export in exports.iter().filter(|export| export.vm == Some(vm)) {
                if folder.user(&export.bdev, &seen)?.is_none() {
                    idle.push(export.bdev.clone());
                }
            }
            if idle.is_empty() {
                continue;
            }
            if let Some(process) = folder.process(&seen).filter(Process::is_alive) {
                let names: Vec<&str> = idle.iter().map(String::as_str).collect();
                ended.said.push(folder.end(&names, &process).await?);
                ended.found = true;
            }
            exports.retain(|export| !idle.contains(&export.bdev));
            folder.save(&exports)?;
        }
        Ok(ended)
    }

    /// Exports that live though no QEMU uses them any more, as writers of their VMs. One of a target that does not
    /// answer counts.
    ///
    /// # Errors
    /// If that cannot be known: then nothing is known of any VM.
    pub async fn idle(&self, seen: &Seen) -> Result<Vec<RunningVm>> {
        let mut found = Vec::new();
        for (folder, process) in targets(seen) {
            let mut unused = Vec::new();
            for export in folder.load()?.into_iter().filter(|export| export.vm.is_some() && !export.fresh) {
                if folder.user(&export.bdev, seen)?.is_none() {
                    unused.push(export);
                }
            }
            if unused.is_empty() {
                continue;
            }
            if let Ok(live) = folder.live().await {
                unused.retain(|export| live.iter().any(|(id, _)| *id == export.bdev));
            }
            if !process.is_alive() {
                continue;
            }
            let other_agent = self.of.as_ref().is_some_and(|of| !folder.0.starts_with(of));
            for vm in unused.into_iter().filter_map(|export| export.vm) {
                found.push(RunningVm { kind: WriterKind::Export, other_agent, ..RunningVm::qemu(vm, process.pid) });
            }
        }
        found.sort_by_key(|vm| (vm.vm_uuid, vm.pid));
        found.dedup_by_key(|vm| (vm.vm_uuid, vm.pid));
        Ok(found)
    }

    /// A QEMU of this VM is about to join its exports: from now on they write for it.
    ///
    /// # Errors
    /// If a list cannot be read or written: then it must not be started.
    pub async fn join(&self, vm: VmId, seen: &Seen) -> Result<()> {
        let of_it = |export: &Export| export.vm == Some(vm) && export.fresh;
        self.change(seen, of_it, |_, export, _| {
            export.fresh = false;
            Ok(())
        })
        .await
    }

    /// Lists from before owners were kept: the VM of an export is the one whose QEMU uses it. To be done before that
    /// QEMU is ended.
    ///
    /// # Errors
    /// If a list cannot be read or written.
    pub async fn adopt(&self) -> Result<()> {
        let unknown = |export: &Export| export.vm.is_none();
        self.change(&self.lookout.look().await?, unknown, |folder, export, seen| {
            export.vm = folder.user(&export.bdev, seen)?.map(|qemu| qemu.vm);
            Ok(())
        })
        .await
    }

    /// Changes the records that `is` picks, under the lock of their list.
    async fn change(
        &self,
        seen: &Seen,
        is: impl Fn(&Export) -> bool,
        to: impl Fn(&Folder, &mut Export, &Seen) -> Result<()>,
    ) -> Result<()> {
        for folder in self.folders(seen)? {
            if !folder.load()?.iter().any(&is) {
                continue;
            }
            let _lock = folder.lock(LOCK_TIMEOUT).await?;
            let (mut exports, seen) = (folder.load()?, self.lookout.look().await?);
            for export in exports.iter_mut().filter(|export| is(export)) {
                to(&folder, export, &seen)?;
            }
            folder.save(&exports)?;
        }
        Ok(())
    }

    /// The folders of targets: all that run; of one agent, also those whose target does not run.
    fn folders(&self, seen: &Seen) -> Result<Vec<Folder>> {
        let running = targets(seen).map(|(folder, _)| folder);
        let mut all: Vec<Folder> =
            running.filter(|folder| self.of.as_ref().is_none_or(|of| folder.0.starts_with(of))).collect();
        let Some(of) = &self.of else { return Ok(all) };
        let dir = of.join("vhost");
        match std::fs::read_dir(&dir) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(io_error("list", &dir, &error)),
            Ok(entries) => {
                for entry in entries {
                    let path = entry.map_err(|e| io_error("list", &dir, &e))?.path();
                    if path.is_dir() && all.iter().all(|folder| folder.0 != path) {
                        all.push(Folder(path));
                    }
                }
            }
        }
        Ok(all)
    }
}

/// The targets that were seen, by the control socket that their command lines name.
fn targets(seen: &Seen) -> impl Iterator<Item = (Folder, Process)> {
    let folder = |process: &Process| Some(Folder(admin_of(process)?.parent()?.to_owned()));
    seen.targets.iter().filter_map(move |process| Some((folder(process)?, process.clone())))
}

/// The option that gives a target its control socket, and by which it is found.
pub(super) fn chardev(admin: &str) -> String {
    // A comma in an option's value is written twice.
    format!("socket,id=admin,path={},server=on,wait=off", admin.replace(',', ",,"))
}

/// The control socket of a target; `None` for whatever is none.
pub(super) fn admin_of(process: &Process) -> Option<PathBuf> {
    let option = process.argv.windows(2).find(|pair| pair[0] == "--chardev")?;
    let rest = option[1].strip_prefix("socket,id=admin,path=")?;
    Some(rest.strip_suffix(",server=on,wait=off")?.replace(",,", ",").into())
}

/// Whether an argument names a socket, as an option (`path=/a/b.sock,reconnect=1`) or in JSON: whole, not as a part.
fn names(arg: &str, socket: &str) -> bool {
    let ends =
        |rest: &str| rest.is_empty() || rest.starts_with('"') || (rest.starts_with(',') && !rest.starts_with(",,"));
    let begins = |before: &str| before.is_empty() || before.ends_with(['=', '"', ':']);
    let written = socket.replace(',', ",,");
    [socket, written.as_str()]
        .iter()
        .any(|socket| arg.match_indices(socket).any(|(at, _)| begins(&arg[..at]) && ends(&arg[at + socket.len()..])))
}

async fn live(qmp: &mut Qmp, admin: &Path) -> Result<Vec<(String, String)>> {
    let exports = qmp.execute(admin, "query-block-exports", json!({}), ANSWER_TIMEOUT).await?;
    let word = |export: &Value, key: &str| export[key].as_str().unwrap_or_default().to_owned();
    Ok(exports.as_array().into_iter().flatten().map(|e| (word(e, "id"), word(e, "node-name"))).collect())
}

/// QEMU says that O_DIRECT does not work; the reader wants to know where, and what to do.
fn explained(error: ErrorCode, volume: &Path) -> ErrorCode {
    if !error.details.contains("O_DIRECT") {
        return error;
    }
    let kind = match rustix::fs::statfs(volume) {
        Ok(fs) if fs.f_type == 0x0102_1994 => "tmpfs".to_owned(),
        Ok(fs) => format!("a file system of type {:#x}", fs.f_type),
        Err(error) => format!("a file system of unknown type ({error})"),
    };
    let details = format!(
        "volume {} lies on {kind}, which refuses O_DIRECT: move it to a file system that allows it. Through a cache a \
         write could come after its VM was ended ({})",
        volume.display(),
        error.details
    );
    ErrorCode::new(error.code, details)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_is_named_whole_or_not_at_all() {
        for arg in ["socket,id=disk0,path=/v/a.sock,reconnect=1", "socket,path=/v/a.sock", r#"{"path":"/v/a.sock"}"#] {
            assert!(names(arg, "/v/a.sock"), "{arg}");
        }
        for arg in ["path=/v/a.sock2", "path=/x/v/a.sock", "path=/v/a.sock,,b", "/v/a"] {
            assert!(!names(arg, "/v/a.sock"), "{arg}");
        }
        assert!(names("socket,path=/v/a,,b.sock,reconnect=1", "/v/a,b.sock"));
    }

    #[test]
    fn a_target_is_known_by_its_control_socket() {
        let with = |argv: &[&str]| Process { pid: 1, start: 1, argv: argv.iter().map(|s| (*s).to_owned()).collect() };
        let target = with(&["qemu-storage-daemon", "--chardev", &chardev("/s/a,b/admin.sock"), "--monitor", "x"]);
        assert_eq!(admin_of(&target), Some("/s/a,b/admin.sock".into()));
        assert_eq!(admin_of(&with(&["qsd", "--chardev", "socket,id=other,path=/s,server=on,wait=off"])), None);
    }

    #[test]
    fn a_list_without_owners_is_read() {
        let old: Vec<Export> = serde_json::from_str(r#"[{"bdev":"vm1-0","volume":"/v/vm1.raw"}]"#).unwrap();
        assert_eq!(old, [Export { bdev: "vm1-0".into(), volume: "/v/vm1.raw".into(), vm: None, fresh: false }]);
    }
}
