//! A value made of files, which is made again when they change.
//!
//! Invariants: files are checked when the value is requested, not by a watcher that could miss a change; if the value
//! cannot be made, the last good one stays, with one log message per change.
//! Alternatives considered: SIGHUP. An operator can forget it, and half of a copied pair would be used.

use std::{
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use parking_lot::Mutex;
use ringfence_messages::Result;

/// Identifies a version of a file: inode, both times to the nanosecond, size.
type Stamp = (u64, (i64, i64), (i64, i64), u64);

/// A value made of files.
pub struct Watched<T> {
    paths: Vec<PathBuf>,
    make: Box<dyn Fn() -> Result<T> + Send + Sync>,
    state: Mutex<(Vec<Option<Stamp>>, Arc<T>)>,
}

impl<T> Watched<T> {
    /// Makes the first value.
    ///
    /// # Errors
    /// Those of `make`.
    pub fn new(paths: Vec<PathBuf>, make: impl Fn() -> Result<T> + Send + Sync + 'static) -> Result<Watched<T>> {
        let seen = stamps(&paths);
        let value = Arc::new(make()?);
        Ok(Watched { paths, make: Box::new(make), state: Mutex::new((seen, value)) })
    }

    /// The value of the present files, or the last good one.
    pub fn current(&self) -> Arc<T> {
        // Before the files are read: the next call sees a change during the read.
        let now = stamps(&self.paths);
        let mut state = self.state.lock();
        if state.0 != now {
            state.0 = now;
            match (self.make)() {
                Ok(value) => {
                    tracing::info!(files = ?self.paths, "changed files loaded");
                    state.1 = Arc::new(value);
                }
                Err(error) => {
                    tracing::warn!(why = %error.details,
                        "changed files are not taken up: the previous ones stay in use")
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
    let file = std::fs::metadata(path).ok()?;
    Some((file.ino(), (file.mtime(), file.mtime_nsec()), (file.ctime(), file.ctime_nsec()), file.size()))
}

#[cfg(test)]
mod tests {
    use ringfence_messages::{Code, ErrorCode};

    use super::*;

    #[test]
    fn changed_files_are_loaded_and_unusable_ones_are_not() {
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
