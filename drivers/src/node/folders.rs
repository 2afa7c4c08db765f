//! The folders of VMs on a host: one folder per VM, named by its uuid.
//!
//! Invariants: two VMs never share a folder (K21): where a socket's path has room only for a short name, the folder has
//! the whole uuid in it, and a folder of another VM is rejected. Pid files in folders of both kinds of names are found,
//! so that a newer agent finds the QEMUs of an older one.
//! Alternatives considered: short names only. Version 7 uuids of one moment have equal beginnings.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use ringfence_messages::{Code, ErrorCode, Result, VmId};
use rustix::process::{Flock, FlockType, fcntl_getlk};

use super::{MAX_SOCKET_PATH, io_error, socket_path};
use crate::files::replace_file;

/// Digits of the uuid in a short name, which is also what earlier versions named every folder by.
const SHORT: usize = 12;

/// The file that says whose a folder is.
const WHOSE: &str = "uuid";

/// The folders of one agent's VMs.
#[derive(Clone, Debug)]
pub(super) struct Folders {
    dir: PathBuf,
}

/// One VM's files.
#[derive(Clone, Debug)]
pub(super) struct Files {
    pub(super) dir: PathBuf,
    pub(super) qmp: PathBuf,
    pub(super) pid: PathBuf,
    pub(super) log: PathBuf,
    pub(super) output: PathBuf,
}

impl Files {
    /// What QEMU wrote into its pid file.
    pub(super) fn pid(&self) -> Option<u32> {
        fs::read_to_string(&self.pid).ok()?.trim().parse().ok()
    }
}

impl Folders {
    pub(super) fn in_dir(dir: PathBuf) -> Folders {
        Folders { dir }
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// The files of a VM that is about to be started; its folder is made.
    ///
    /// # Errors
    /// `SYS.1005` if the folder is another VM's, `SYS.1007` if no socket fits below it, `SYS.1016` if it cannot be
    /// made.
    pub(super) fn make(&self, vm: VmId) -> Result<Files> {
        let digits = vm.0.simple().to_string();
        let whole = self.dir.join(&digits);
        let dir = match whole.join("qmp").as_os_str().len() <= MAX_SOCKET_PATH {
            true => whole,
            false => self.dir.join(&digits[..SHORT]),
        };
        let qmp = socket_path(&dir, "qmp")?;
        fs::create_dir_all(&dir).map_err(|e| io_error("make", &dir, &e))?;
        let whose = dir.join(WHOSE);
        match fs::read_to_string(&whose) {
            Ok(text) if text.trim() == vm.to_string() => {}
            Ok(text) => {
                let details = format!(
                    "VM {vm}: its folder {} is VM {:.60}'s, whose uuid begins alike: give the agent a shorter \
                     state_dir",
                    dir.display(),
                    text.trim()
                );
                return Err(ErrorCode::new(Code::CHANGE_STATE, details));
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                replace_file(&whose, vm.to_string().as_bytes()).map_err(|e| io_error("write", &whose, &e))?;
            }
            Err(error) => return Err(io_error("read", &whose, &error)),
        }
        Ok(Files { qmp, pid: dir.join("pid"), log: dir.join("log"), output: dir.join("output"), dir })
    }

    /// Whether this is the pid file of a VM that this agent started.
    pub(super) fn is_own(&self, file: &Path, vm: VmId) -> bool {
        file.starts_with(&self.dir) && is_an_agents(file, vm)
    }

    /// The pid files here that somebody holds a lock on: QEMU does, as long as it lives.
    ///
    /// # Errors
    /// A file or the folder cannot be read: then nobody knows which are locked (I2).
    pub(super) fn locked(&self) -> io::Result<Vec<PathBuf>> {
        let mut locked = Vec::new();
        let folders = match fs::read_dir(&self.dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(locked),
            folders => folders?,
        };
        for folder in folders {
            let file = folder?.path().join("pid");
            if is_locked(&file)? {
                locked.push(file);
            }
        }
        Ok(locked)
    }
}

/// Whether this is where an agent of this machine has QEMU write the pid of this VM: `vm/UUID/pid`.
pub(super) fn is_an_agents(file: &Path, vm: VmId) -> bool {
    let digits = vm.0.simple().to_string();
    [&digits[..], &digits[..SHORT]].iter().any(|name| file.ends_with(Path::new("vm").join(name).join("pid")))
}

fn is_locked(file: &Path) -> io::Result<bool> {
    match fs::OpenOptions::new().read(true).write(true).open(file) {
        Ok(file) => Ok(fcntl_getlk(&file, &Flock::from(FlockType::WriteLock))?.is_some()),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vm(text: &str) -> VmId {
        text.parse().unwrap()
    }

    #[test]
    fn vms_with_similar_uuids_never_share_a_folder() {
        let dir = tempfile::tempdir().unwrap();
        let (one, two) = (vm("019ab0c0-1111-7aaa-8000-000000000001"), vm("019ab0c0-1111-7bbb-8000-000000000002"));
        let folders = Folders::in_dir(dir.path().join("vm"));
        assert_ne!(folders.make(one).unwrap().dir, folders.make(two).unwrap().dir);
        assert_eq!(folders.make(one).unwrap().pid, folders.make(one).unwrap().pid);

        let room = MAX_SOCKET_PATH - "/qmp".len() - "/vm/".len() - SHORT;
        let deep = dir.path().join("x".repeat(room - dir.path().as_os_str().len() - 1)).join("vm");
        let folders = Folders::in_dir(deep);
        assert!(folders.make(one).unwrap().dir.ends_with("019ab0c01111"));
        let refused = folders.make(two).unwrap_err().details;
        assert!(refused.contains(&one.to_string()) && refused.contains(&two.to_string()), "{refused}");
    }

    /// I2: a pid file that cannot be read is not an unlocked one.
    #[test]
    fn unreadable_pid_file_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let folders = Folders::in_dir(dir.path().join("vm"));
        assert_eq!(folders.locked().unwrap(), Vec::<PathBuf>::new(), "no VM ever ran here");
        let pid = folders.make(vm("019ab0c0-1111-7aaa-8000-000000000001")).unwrap().pid;
        fs::write(folders.dir.join("a note"), "").unwrap();
        fs::write(&pid, "1").unwrap();
        assert_eq!(folders.locked().unwrap(), Vec::<PathBuf>::new());
        fs::remove_file(&pid).unwrap();
        fs::create_dir(&pid).unwrap();
        assert!(folders.locked().is_err());
    }

    #[test]
    fn pid_files_of_older_versions_are_found() {
        let folders = Folders::in_dir("/s/vm".into());
        let one = vm("019ab0c0-1111-7aaa-8000-000000000001");
        for (file, own, an_agents) in [
            ("/s/vm/019ab0c011117aaa8000000000000001/pid", true, true),
            ("/s/vm/019ab0c01111/pid", true, true),
            ("/other/vm/019ab0c01111/pid", false, true),
            ("/s/vm/019ab0c02222/pid", false, false),
            ("/var/run/qemu-server/100.pid", false, false),
        ] {
            let file = Path::new(file);
            assert_eq!((folders.is_own(file, one), is_an_agents(file, one)), (own, an_agents), "{file:?}");
        }
    }
}
