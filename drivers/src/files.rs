//! Atomic and private files.
//!
//! Invariants: after a crash a replaced file has either the old or the new content, whole, and the new content is on
//! disk when the call returns; a written file is accessible only to its owner. `pki` replaces several files at once by
//! a rename of their folder.

use std::{
    fs::{self, File, Metadata, OpenOptions},
    io::{Read, Result, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

/// The mode of a file that others than its owner may use; `None` if it is private.
pub fn open_to_others(metadata: &Metadata) -> Option<String> {
    let mode = metadata.mode() & 0o777;
    (mode & 0o077 != 0).then(|| format!("{mode:o}"))
}

/// Why what stands in a file or directory may be somebody else's word: another user owns it or may write it. `None` if
/// it is this user's, or root's.
pub fn not_ours(metadata: &Metadata) -> Option<String> {
    let (own, owner, mode) = (rustix::process::geteuid().as_raw(), metadata.uid(), metadata.mode() & 0o777);
    if owner != 0 && owner != own {
        return Some(format!("it belongs to user {owner}: chown it to the user of this process ({own}) or to root"));
    }
    (mode & 0o022 != 0).then(|| format!("others may write it (mode {mode:o}): chmod go-w it"))
}

/// Refuses a file that others may have written. What is no file is refused too, without opening it.
///
/// # Errors
/// Why, and the fix.
pub fn trusted(path: &Path) -> std::result::Result<Metadata, String> {
    let metadata = fs::metadata(path).map_err(|error| error.to_string())?;
    if !metadata.is_file() {
        return Err("it is no file".to_owned());
    }
    match not_ours(&metadata) {
        Some(why) => Err(why),
        None => Ok(metadata),
    }
}

/// Reads a secret: a file of at most `limit` bytes that this user or root owns, and nobody else may use. Nothing that
/// would wait is opened, such as a named pipe.
///
/// # Errors
/// Why, and the fix.
pub fn read_private(path: &Path, limit: u64) -> std::result::Result<String, String> {
    let flags = rustix::fs::OFlags::NONBLOCK.bits();
    let opened = OpenOptions::new().read(true).custom_flags(flags.cast_signed()).open(path);
    let file = opened.map_err(|error| error.to_string())?;
    // Of what is open: the name may lead elsewhere by now.
    let metadata = file.metadata().map_err(|error| error.to_string())?;
    if !metadata.is_file() {
        return Err("it is no file".to_owned());
    }
    if let Some(mode) = open_to_others(&metadata) {
        return Err(format!("others may read it (mode {mode}): chmod 600 it"));
    }
    if let Some(why) = not_ours(&metadata) {
        return Err(why);
    }
    read_limited(file, limit)
}

/// Reads a text of at most `limit` bytes to its end.
///
/// # Errors
/// It cannot be read, is longer, or is not UTF-8; in words.
pub fn read_limited(from: impl Read, limit: u64) -> std::result::Result<String, String> {
    let mut text = String::new();
    from.take(limit + 1).read_to_string(&mut text).map_err(|error| error.to_string())?;
    match text.len() as u64 > limit {
        true => Err(format!("it has more than {limit} bytes")),
        false => Ok(text),
    }
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
    fn secret_file_must_be_private_and_regular() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        fs::write(&path, "secret").unwrap();
        let with = |mode| fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
        with(0o600);
        assert_eq!(read_private(&path, 6).as_deref(), Ok("secret"));
        assert!(read_private(&path, 5).unwrap_err().contains("more than 5 bytes"));
        with(0o640);
        assert_eq!(read_private(&path, 6).unwrap_err(), "others may read it (mode 640): chmod 600 it");
        assert!(trusted(&path).is_ok(), "read by others, written by none");
        with(0o622);
        assert_eq!(trusted(&path).unwrap_err(), "others may write it (mode 622): chmod go-w it");
        let pipe = dir.path().join("pipe");
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
        assert_eq!(read_private(&pipe, 6).unwrap_err(), "it is no file");
        assert_eq!(trusted(&pipe).unwrap_err(), "it is no file");
        // Only root can give a file away.
        if rustix::process::geteuid().is_root() {
            with(0o600);
            std::os::unix::fs::chown(&path, Some(65534), None).unwrap();
            assert!(read_private(&path, 6).unwrap_err().starts_with("it belongs to user 65534"));
            assert!(trusted(&path).unwrap_err().starts_with("it belongs to user 65534"));
        }
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
