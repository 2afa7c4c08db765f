//! A directory that only one process uses at a time.
//!
//! An exclusive `flock` on `DIR/lock`: the kernel releases it when the process dies, so that no stale lock remains.
//! Alternatives considered: a pid file (stale after a crash, and pids are reused).

use std::{
    fs::{self, File, OpenOptions},
    io::{Read, Seek, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use ringfence_messages::{Code, ErrorCode, Result};
use rustix::fs::{FlockOperation, flock};

use crate::files::not_ours;

/// A locked state directory. The lock is held until this is dropped or the process ends.
#[derive(Debug)]
pub struct StateDir {
    path: PathBuf,
    _lock: File,
}

impl StateDir {
    /// Creates the directory (mode 0700) if it is missing, and locks it.
    ///
    /// # Errors
    /// `SYS.1016` if the directory cannot be created or written; `SYS.1007` if another user owns or may write it;
    /// `SYS.1005` if another process has the lock. Each error has a remedy.
    pub fn open(path: &Path) -> Result<StateDir> {
        let odd = |doing: &str, error: std::io::Error| {
            let details = format!(
                "state_dir {}: cannot {doing}: {error}; set `state_dir` to a directory that this user may write",
                path.display()
            );
            ErrorCode::new(Code::IO, details)
        };
        fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(|e| odd("create it", e))?;
        let found = fs::metadata(path).map_err(|e| odd("inspect it", e))?;
        if let Some(why) = not_ours(&found) {
            let details = format!("state_dir {}: {why}; other users could plant files in it", path.display());
            return Err(ErrorCode::new(Code::INVALID_ARGUMENT, details));
        }
        let lock = path.join("lock");
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&lock)
            .map_err(|e| odd("write in it", e))?;
        if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            let mut holder = String::new();
            let _ = (&file).take(32).read_to_string(&mut holder);
            let details = format!(
                "state_dir {} is in use by process {}: stop that process, or set another `state_dir`",
                path.display(),
                holder.trim()
            );
            return Err(ErrorCode::new(Code::CHANGE_STATE, details));
        }
        file.set_len(0).and_then(|()| file.rewind()).map_err(|e| odd("write in it", e))?;
        writeln!(file, "{}", std::process::id()).map_err(|e| odd("write in it", e))?;
        // Absolute: what is started from here has other working directories.
        let path = path.canonicalize().map_err(|e| odd("find it", e))?;
        Ok(StateDir { path, _lock: file })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn second_process_is_rejected_with_the_first_ones_pid() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        let first = StateDir::open(&path).unwrap();
        let error = StateDir::open(&path).unwrap_err();
        assert_eq!(error.code, Code::CHANGE_STATE);
        assert!(error.details.contains(&format!("process {}", std::process::id())), "{error}");
        drop(first);
        StateDir::open(&path).unwrap();
    }

    #[test]
    fn a_directory_that_others_may_write_is_refused() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o777)).unwrap();
        let error = StateDir::open(dir.path()).unwrap_err();
        assert!(error.details.contains("others may write it (mode 777)"), "{error}");
        assert!(!dir.path().join("lock").exists(), "nothing was made in it");
        fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o755)).unwrap();
        StateDir::open(dir.path()).unwrap();
    }

    #[test]
    fn a_path_that_cannot_be_a_directory_is_named() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = StateDir::open(&file.path().join("state")).unwrap_err();
        assert!(error.details.contains(file.path().to_str().unwrap()), "{error}");
    }
}
