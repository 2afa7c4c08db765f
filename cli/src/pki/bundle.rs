//! Folders of keys and certificates with atomic changes.
//!
//! Invariant: at any moment the folder has all old files or all new files. New files are written beside it and moved
//! by one rename, which fails for a folder that is not empty; a renewal exchanges the two folders.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::Write,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use ringfence_messages::{Code, ErrorCode, Result};
use rustix::fs::{CWD, RenameFlags, renameat_with};

/// A file: name, content and mode.
pub(super) type Entry<'a> = (&'a str, &'a str, u32);

/// Mode of secret files.
pub(super) const SECRET: u32 = 0o600;

/// Mode of public files.
pub(super) const PUBLIC: u32 = 0o644;

pub(super) fn odd(path: &Path, doing: &str, error: impl std::fmt::Display) -> ErrorCode {
    ErrorCode::new(Code::IO, format!("{}: cannot {doing}: {error}", path.display()))
}

/// Creates a folder with these files; it must be new or empty.
pub(super) fn create(dir: &Path, entries: &[Entry<'_>]) -> Result<()> {
    let draft = draft(dir, entries)?;
    fs::rename(&draft, dir).map_err(|error| {
        let _ = fs::remove_dir_all(&draft);
        match error.kind() {
            std::io::ErrorKind::DirectoryNotEmpty | std::io::ErrorKind::AlreadyExists => {
                let details = format!(
                    "{} is not empty; use a new folder, or renew its certificate with `ringfence pki rotate`",
                    dir.display()
                );
                ErrorCode::new(Code::INVALID_ARGUMENT, details)
            }
            _ => odd(dir, "make this folder", error),
        }
    })?;
    durable(dir)
}

/// Replaces the files of a folder atomically. The folder must have no other files, which would be lost.
pub(super) fn swap(dir: &Path, entries: &[Entry<'_>]) -> Result<()> {
    for found in fs::read_dir(dir).map_err(|e| odd(dir, "read it", e))? {
        let name = found.map_err(|e| odd(dir, "read it", e))?.file_name();
        if !entries.iter().any(|(known, ..)| name == *known) {
            let details = format!("{} contains the foreign file {}; move it elsewhere", dir.display(), name.display());
            return Err(ErrorCode::new(Code::INVALID_ARGUMENT, details));
        }
    }
    let draft = draft(dir, entries)?;
    let swapped = renameat_with(CWD, &draft, CWD, dir, RenameFlags::EXCHANGE);
    let removed = fs::remove_dir_all(&draft);
    swapped.map_err(|e| odd(dir, "put the new files in its place", e))?;
    removed.map_err(|e| odd(&draft, "remove the files from before", e))?;
    durable(dir)
}

/// Writes the files into a draft folder beside the target.
fn draft(dir: &Path, entries: &[Entry<'_>]) -> Result<PathBuf> {
    let Some(name) = dir.file_name() else {
        return Err(ErrorCode::new(Code::INVALID_ARGUMENT, format!("{:?} is not the name of a folder", dir.display())));
    };
    let mut beside = name.to_owned();
    beside.push(".new");
    let draft = dir.with_file_name(beside);
    let doing = "write the new files there";
    // Left by a crash, and unused.
    match fs::remove_dir_all(&draft) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(odd(&draft, doing, error)),
        _ => {}
    }
    DirBuilder::new().recursive(true).mode(0o700).create(&draft).map_err(|e| odd(&draft, doing, e))?;
    for (name, contents, mode) in entries {
        let path = draft.join(name);
        let write = || -> std::io::Result<()> {
            let mut file = OpenOptions::new().write(true).create_new(true).mode(*mode).open(&path)?;
            file.write_all(contents.as_bytes())?;
            file.sync_all()
        };
        write().map_err(|e| odd(&path, "write it", e))?;
    }
    durable(&draft)?;
    Ok(draft)
}

/// Syncs a folder and its parent.
fn durable(dir: &Path) -> Result<()> {
    let above = dir.parent().filter(|above| !above.as_os_str().is_empty()).unwrap_or(Path::new("."));
    for folder in [dir, above] {
        File::open(folder).and_then(|file| file.sync_all()).map_err(|e| odd(folder, "make it durable", e))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(dir: &Path, name: &str) -> String {
        fs::read_to_string(dir.join(name)).unwrap()
    }

    #[test]
    fn a_folder_appears_whole_and_is_never_overwritten() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("a/b");
        // A crash left half a draft.
        fs::create_dir_all(root.path().join("a/b.new")).unwrap();
        fs::write(root.path().join("a/b.new/key.pem"), "half").unwrap();
        create(&dir, &[("key.pem", "one", SECRET)]).unwrap();
        assert_eq!(read(&dir, "key.pem"), "one");
        let error = create(&dir, &[("key.pem", "two", SECRET)]).unwrap_err();
        assert!(error.details.contains("is not empty"), "{error}");
        assert_eq!(read(&dir, "key.pem"), "one");
        swap(&dir, &[("key.pem", "three", SECRET)]).unwrap();
        assert_eq!(read(&dir, "key.pem"), "three");
        fs::write(dir.join("notes"), "mine").unwrap();
        let error = swap(&dir, &[("key.pem", "four", SECRET)]).unwrap_err();
        assert!(error.details.contains("notes"), "{error}");
        assert_eq!((read(&dir, "key.pem"), read(&dir, "notes")), ("three".into(), "mine".into()));
        let left: Vec<_> = fs::read_dir(root.path().join("a")).unwrap().map(|of| of.unwrap().file_name()).collect();
        assert_eq!(left, ["b"], "drafts are gone");
    }
}
