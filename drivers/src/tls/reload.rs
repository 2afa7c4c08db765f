//! A value made of files, made anew when they change.
//!
//! Invariants: files are looked at when the value is asked for, not by a watcher that could miss something; what cannot be
//! made leaves the last good value, and is said once for each change. Rejected: SIGHUP. Whoever copies a file can forget it,
//! and half a pair that is copied would be taken as it is.

use std::{
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use parking_lot::Mutex;
use ringfence_messages::Result;

/// What tells a changed file from the same: inode, both times to the nanosecond, size.
type Stamp = (u64, (i64, i64), (i64, i64), u64);

/// A value made of files.
pub struct Watched<T> {
    paths: Vec<PathBuf>,
    make: Box<dyn Fn() -> Result<T> + Send + Sync>,
    state: Mutex<(Vec<Option<Stamp>>, Arc<T>)>,
}

impl<T> Watched<T> {
    /// Makes the value for the first time.
    ///
    /// # Errors
    /// Those of `make`.
    pub fn new(paths: Vec<PathBuf>, make: impl Fn() -> Result<T> + Send + Sync + 'static) -> Result<Watched<T>> {
        let seen = stamps(&paths);
        let value = Arc::new(make()?);
        Ok(Watched { paths, make: Box::new(make), state: Mutex::new((seen, value)) })
    }

    /// The value of the files as they are, or the last good one.
    pub fn current(&self) -> Arc<T> {
        // Before they are read: a change while they are is seen by the next call.
        let now = stamps(&self.paths);
        let mut state = self.state.lock();
        if state.0 != now {
            state.0 = now;
            match (self.make)() {
                Ok(value) => {
                    tracing::info!(files = ?self.paths, "changed files were taken up");
                    state.1 = Arc::new(value);
                }
                Err(error) => {
                    tracing::warn!(why = %error.details, "changed files are not taken up: those before stay in use")
                }
            }
        }
        state.1.clone()
    }
}

impl<T> std::fmt::Debug for Watched<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Watched").field(&self.paths).finish()
    }
}

fn stamps(paths: &[PathBuf]) -> Vec<Option<Stamp>> {
    paths.iter().map(|path| stamp(path)).collect()
}

fn stamp(path: &Path) -> Option<Stamp> {
    let of = std::fs::metadata(path).ok()?;
    Some((of.ino(), (of.mtime(), of.mtime_nsec()), (of.ctime(), of.ctime_nsec()), of.size()))
}

#[cfg(test)]
mod tests {
    use ringfence_messages::{Code, ErrorCode};

    use super::*;

    #[test]
    fn a_change_is_taken_up_and_one_that_cannot_be_used_leaves_the_last_good() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("number");
        let read = {
            let file = file.clone();
            move || {
                let odd = |_| ErrorCode::new(Code::IO, "no number");
                std::fs::read_to_string(&file).unwrap_or_default().parse::<u32>().map_err(odd)
            }
        };
        assert!(Watched::new(vec![file.clone()], read.clone()).is_err());
        std::fs::write(&file, "1").unwrap();
        let watched = Watched::new(vec![file.clone()], read).unwrap();
        let one = watched.current();
        assert!(Arc::ptr_eq(&one, &watched.current()), "unchanged: the same");
        std::fs::write(&file, "junk").unwrap();
        assert!(Arc::ptr_eq(&one, &watched.current()));
        std::fs::remove_file(&file).unwrap();
        assert!(Arc::ptr_eq(&one, &watched.current()));
        std::fs::write(&file, "2").unwrap();
        assert_eq!((*watched.current(), *one), (2, 1));
    }
}
