//! Leadership of a single controller: the holder of the lock on the state directory is the leader.
//!
//! Invariants: an epoch is used once, and is on disk before any caller gets it. The lock is that of [`StateDir`]: while
//! it is held, no second controller opens the directory. A clustered controller has another implementation; actors see
//! only the port.

use async_trait::async_trait;
use ringfence_actors::ports::LeadershipPort;
use ringfence_messages::{Code, ErrorCode, Result};

use crate::{files::replace_file, state_dir::StateDir};

/// A controller that is alone with its state directory.
pub struct Embedded {
    state: StateDir,
}

impl Embedded {
    /// The leader while the lock on the directory is held.
    pub fn new(state: StateDir) -> Embedded {
        Embedded { state }
    }
}

#[async_trait]
impl LeadershipPort for Embedded {
    async fn acquire(&self, above: u64) -> Result<u64> {
        let path = self.state.path().join("epoch");
        let failed = |why: String| {
            let details = format!(
                "{}: {why}; the file protects against commands of an earlier controller: write a number into it that \
                 is above every epoch of the journal",
                path.display()
            );
            ErrorCode::new(Code::IO, details)
        };
        let last = match std::fs::read_to_string(&path) {
            Ok(text) => text.trim().parse::<u64>().map_err(|e| failed(format!("{text:.40?} is not an epoch: {e}")))?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => 0,
            Err(error) => return Err(failed(error.to_string())),
        };
        let epoch = last.max(above) + 1;
        replace_file(&path, format!("{epoch}\n").as_bytes()).map_err(|e| failed(e.to_string()))?;
        Ok(epoch)
    }

    /// The lock is the kernel's, and held until this process ends.
    fn leads(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn each_term_has_a_higher_epoch_also_after_a_restore() {
        let dir = tempfile::tempdir().unwrap();
        let office = || Embedded::new(StateDir::open(dir.path()).unwrap());
        assert_eq!(office().acquire(0).await.unwrap(), 1);
        assert_eq!(office().acquire(0).await.unwrap(), 2);
        assert_eq!(office().acquire(40).await.unwrap(), 41, "the journal knows of a higher one");
        assert_eq!(office().acquire(40).await.unwrap(), 42);
        std::fs::write(dir.path().join("epoch"), "4x").unwrap();
        let error = office().acquire(40).await.unwrap_err();
        assert!(error.is(&Code::IO) && error.details.contains("4x"), "{error}");
    }
}
