//! Folders of keys and certificates that appear, and change, as a whole.
//!
//! Invariant: whatever happens at whatever moment, under the folder's name are all of the old files or all of the new ones. They
//! are written beside it and put in its place by one rename, which refuses what is not empty; a renewal swaps the two.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::Write,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use ringfence_messages::{Code, ErrorCode, Result};
use rustix::fs::{CWD, RenameFlags, renameat_with};

/// A file of a folder: its name, what is in it, and its mode.
pub(super) type Entry<'a> = (&'a str, &'a str, u32);

/// Mode of what is secret.
pub(super) const SECRET: u32 = 0o600;

/// Mode of what everybody may read.
pub(super) const PUBLIC: u32 = 0o644;

pub(super) fn odd(path: &Path, doing: &str, error: impl std::fmt::Display) -> ErrorCode {
    ErrorCode::new(Code::IO, format!("{}: cannot {doing}: {error}", path.display()))
}

/// Makes a folder of these files; it must be empty or not there.
pub(super) fn create(dir: &Path, entries: &[Entry<'_>]) -> Result<()> {
    let draft = draft(dir, entries)?;
    fs::rename(&draft, dir).map_err(|error| {
        let _ = fs::remove_dir_all(&draft);
        match error.kind() {
            std::io::ErrorKind::DirectoryNotEmpty | std::io::ErrorKind::AlreadyExists => {
                let details = format!(
                    "{} is not empty and nothing is overwritten: name a new folder, or renew what is there with `ringfence pki rotate`",
                    dir.display()
                );
                ErrorCode::new(Code::INVALID_ARGUMENT, details)
            }
            _ => odd(dir, "make this folder", error),
        }
    })?;
    durable(dir)
}

/// Puts these files in the place of a folder's, all at once. The folder must hold no others: they would be lost.
pub(super) fn swap(dir: &Path, entries: &[Entry<'_>]) -> Result<()> {
    for found in fs::read_dir(dir).map_err(|e| odd(dir, "read it", e))? {
        let name = found.map_err(|e| odd(dir, "read it", e))?.file_name();
        if !entries.iter().any(|(known, ..)| name == *known) {
            let details =
                format!("{} holds {}, which is none of ours: move it elsewhere", dir.display(), name.display());
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

/// Writes the files into a folder beside the one that they are for.
fn draft(dir: &Path, entries: &[Entry<'_>]) -> Result<PathBuf> {
    let Some(name) = dir.file_name() else {
        return Err(ErrorCode::new(Code::INVALID_ARGUMENT, format!("{:?} is no name of a folder", dir.display())));
    };
    let mut beside = name.to_owned();
    beside.push(".new");
    let draft = dir.with_file_name(beside);
    let doing = "write the new files there";
    // What a crash left; nobody uses it.
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

/// Makes sure that a folder, and its name in the one above, survive a crash of the machine.
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
        assert!(error.details.contains("nothing is overwritten"), "{error}");
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
