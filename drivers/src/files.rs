//! Files that have to be whole, and files that have to be private.
//!
//! Invariants: a file that is replaced holds either the old or the new contents after a crash, whole, and is durable when
//! that returns; what is written is its owner's alone. What replaces several files at once is `pki`'s, by a rename of the folder.

use std::{
    fs::{self, File, Metadata, OpenOptions},
    io::{Result, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

/// The mode of a file that others than its owner may use; `None` if it is private.
pub fn open_to_others(metadata: &Metadata) -> Option<String> {
    let mode = metadata.mode() & 0o777;
    (mode & 0o077 != 0).then(|| format!("{mode:o}"))
}

/// Replaces a file's contents durably: after a crash it holds either the old or the new, whole.
///
/// # Errors
/// Whatever the file system says; the old contents are then still there.
pub fn replace_file(path: &Path, contents: &[u8]) -> Result<()> {
    Draft::write(path, contents)?.replace()
}

/// New contents of a file, durable beside it; dropped, they are gone.
#[derive(Debug)]
pub struct Draft {
    path: PathBuf,
    draft: PathBuf,
    placed: bool,
}

impl Draft {
    /// Writes them to `PATH.new`; what a crash left there is overwritten.
    ///
    /// # Errors
    /// Whatever the file system says; the file is as it was.
    pub fn write(path: &Path, contents: &[u8]) -> Result<Draft> {
        let mut name = path.as_os_str().to_owned();
        name.push(".new");
        let draft = Draft { path: path.to_owned(), draft: name.into(), placed: false };
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&draft.draft)?;
        file.write_all(contents)?;
        file.sync_all()?;
        Ok(draft)
    }

    /// Puts them in the file's place.
    ///
    /// # Errors
    /// Whatever the file system says; the old contents are then still there.
    pub fn replace(mut self) -> Result<()> {
        fs::rename(&self.draft, &self.path)?;
        self.placed = true;
        let above = self.path.parent().filter(|above| !above.as_os_str().is_empty());
        File::open(above.unwrap_or(Path::new(".")))?.sync_all()
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        // Once it is in place, what has its name is somebody else's.
        if !self.placed {
            let _ = fs::remove_file(&self.draft);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_file_is_replaced_whole_or_stays_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let (path, draft) = (dir.path().join("f"), dir.path().join("f.new"));
        fs::write(&draft, "what a crash left, and longer").unwrap();
        replace_file(&path, b"one").unwrap();
        let waits = Draft::write(&path, b"two").unwrap();
        assert_eq!((fs::read(&path).unwrap(), fs::read(&draft).unwrap()), (b"one".to_vec(), b"two".to_vec()));
        drop(waits);
        assert!(!draft.exists() && fs::read(&path).unwrap() == b"one", "given up");
        Draft::write(&path, b"three").unwrap().replace().unwrap();
        assert!(!draft.exists() && fs::read(&path).unwrap() == b"three");
        assert_eq!(open_to_others(&fs::metadata(&path).unwrap()), None);
    }

    #[test]
    fn only_what_its_owner_alone_may_use_is_private() {
        let file = tempfile::NamedTempFile::new().unwrap();
        for (mode, open) in [(0o600, None), (0o700, None), (0o640, Some("640")), (0o602, Some("602"))] {
            fs::set_permissions(file.path(), PermissionsExt::from_mode(mode)).unwrap();
            assert_eq!(open_to_others(&fs::metadata(file.path()).unwrap()).as_deref(), open, "{mode:o}");
        }
    }
}
