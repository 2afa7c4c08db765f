//! 2 MiB hugepages: their mount, and enough of them free.
//!
//! Reads the per-size folder of sysfs: /proc/meminfo has only the default size, which may be another.
//! All paths are below one root, so that tests use a folder of files.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use ringfence_messages::{Code, ErrorCode, Result};

const POOL: &str = "sys/kernel/mm/hugepages/hugepages-2048kB";

/// Where hugetlbfs is mounted if it is nowhere yet.
pub const DEFAULT_MOUNT: &str = "/dev/hugepages2m";

/// Hugepages that may be asked for at most: 1 TiB. More is a mistake in the config.
pub const MAX_PAGES: u64 = 512 * 1024;

/// The hugepages of a host whose `/proc`, `/sys` and `/dev` lie under a root.
pub struct Hugepages {
    root: PathBuf,
}

impl Default for Hugepages {
    fn default() -> Self {
        Hugepages::at(Path::new("/"))
    }
}

impl Hugepages {
    /// Of a host whose root is here.
    pub fn at(root: &Path) -> Hugepages {
        Hugepages { root: root.to_owned() }
    }

    /// Free pages.
    ///
    /// # Errors
    /// `SYS.1016` if the kernel has no 2 MiB hugepages.
    pub fn free(&self) -> Result<u64> {
        self.number("free_hugepages")
    }

    /// Makes sure that `wanted` pages are free; returns how many are, and what was done.
    ///
    /// If there are too few: caches are dropped and memory compacted, so that the kernel finds whole pages, then the
    /// pool is grown by what is missing, then counted again.
    ///
    /// # Errors
    /// `SYS.1007` for more than [`MAX_PAGES`]; `SYS.1016` if the pool cannot be read or grown (not root);
    /// `SYS.1006` if it grew too little, with both numbers.
    pub fn ensure(&self, wanted: u64) -> Result<(u64, String)> {
        if wanted > MAX_PAGES {
            let details = format!("hugepages = {wanted} is out of range (at most {MAX_PAGES}: 1 TiB)");
            return Err(ErrorCode::new(Code::INVALID_ARGUMENT, details));
        }
        let free = self.free()?;
        if free >= wanted {
            return Ok((free, format!("{free} hugepages are free, {wanted} required")));
        }
        // Best effort: they only help the kernel to find whole pages.
        for (file, value) in [("proc/sys/vm/drop_caches", "3"), ("proc/sys/vm/compact_memory", "1")] {
            if let Err(error) = fs::write(self.root.join(file), value) {
                tracing::debug!(file, %error, "memory is not compacted");
            }
        }
        let total = self.number("nr_hugepages")? + (wanted - free);
        let pool = self.root.join(POOL).join("nr_hugepages");
        fs::write(&pool, total.to_string()).map_err(|e| {
            let details = format!(
                "cannot grow {} to {total}: {e}; run the agent as root, or set the pool at boot",
                pool.display()
            );
            ErrorCode::new(Code::IO, details)
        })?;
        let now = self.free()?;
        if now < wanted {
            let details = format!(
                "only {now} of {wanted} hugepages of 2 MiB are free after growing the pool: memory is short or in \
                 pieces"
            );
            return Err(ErrorCode::new(Code::OPERATION, details));
        }
        Ok((now, format!("grew the pool to {total}: {now} hugepages are free, {wanted} required")))
    }

    /// Where hugetlbfs with 2 MiB pages is mounted, if it is.
    ///
    /// # Errors
    /// `SYS.1016` if the mounts cannot be read.
    pub fn mount(&self) -> Result<Option<PathBuf>> {
        let path = self.root.join("proc/self/mountinfo");
        let mounts = fs::read_to_string(&path).map_err(|e| super::io_error("read", &path, &e))?;
        Ok(mounts.lines().find_map(|line| two_mib_mount(line, self.default_is_two_mib())).map(PathBuf::from))
    }

    /// As [`mount`](Hugepages::mount), mounting it if need be.
    ///
    /// # Errors
    /// `SYS.1016` if it cannot be mounted (not root).
    pub fn ensure_mount(&self) -> Result<PathBuf> {
        if let Some(mount) = self.mount()? {
            return Ok(mount);
        }
        let target = Path::new(DEFAULT_MOUNT);
        let mounted = fs::create_dir_all(target).and_then(|()| {
            use rustix::mount::{MountFlags, mount};
            mount("none", target, "hugetlbfs", MountFlags::empty(), c"pagesize=2M").map_err(io::Error::from)
        });
        mounted.map_err(|e| {
            let details =
                format!("cannot mount hugetlbfs on {DEFAULT_MOUNT}: {e}; run the agent as root, or mount it at boot");
            ErrorCode::new(Code::IO, details)
        })?;
        Ok(target.to_owned())
    }

    fn default_is_two_mib(&self) -> bool {
        let meminfo = fs::read_to_string(self.root.join("proc/meminfo")).unwrap_or_default();
        meminfo.lines().any(|line| line.starts_with("Hugepagesize:") && line.contains(" 2048 kB"))
    }

    fn number(&self, file: &str) -> Result<u64> {
        let path = self.root.join(POOL).join(file);
        let text = fs::read_to_string(&path).map_err(|e| super::io_error("read", &path, &e))?;
        text.trim()
            .parse()
            .map_err(|_| ErrorCode::new(Code::IO, format!("{} has {text:?}, expected a number", path.display())))
    }
}

/// The mount point of a line of mountinfo that is a hugetlbfs of 2 MiB pages; without `pagesize=` it has the
/// kernel's default size.
fn two_mib_mount(line: &str, default_is_two_mib: bool) -> Option<&str> {
    let (before, after) = line.split_once(" - ")?;
    let mut after = after.split(' ');
    let (kind, options) = (after.next()?, after.nth(1)?);
    let size = options.split(',').find_map(|option| option.strip_prefix("pagesize="));
    let fits = size.map_or(default_is_two_mib, |size| matches!(size, "2M" | "2048K" | "2097152"));
    (kind == "hugetlbfs" && fits).then(|| before.split(' ').nth(4)).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(free: u64, total: u64) -> (tempfile::TempDir, Hugepages) {
        let root = tempfile::tempdir().unwrap();
        for dir in [POOL, "proc/sys/vm", "proc/self"] {
            fs::create_dir_all(root.path().join(dir)).unwrap();
        }
        let put = |file: &str, text: String| fs::write(root.path().join(file), text).unwrap();
        put(&format!("{POOL}/free_hugepages"), format!("{free}\n"));
        put(&format!("{POOL}/nr_hugepages"), format!("{total}\n"));
        let hugepages = Hugepages::at(root.path());
        (root, hugepages)
    }

    #[test]
    fn enough_free_pages_are_left_as_they_are() {
        let (root, hugepages) = host(1024, 1500);
        assert_eq!(hugepages.ensure(1024).unwrap().0, 1024);
        assert_eq!(fs::read_to_string(root.path().join(POOL).join("nr_hugepages")).unwrap(), "1500\n");
    }

    #[test]
    fn pool_grows_by_the_missing_pages_and_reports_a_shortfall() {
        // The files do not grow by themselves, as a kernel without memory would not.
        let (root, hugepages) = host(24, 100);
        let error = hugepages.ensure(64).unwrap_err();
        assert_eq!(fs::read_to_string(root.path().join(POOL).join("nr_hugepages")).unwrap(), "140");
        assert!(error.details.contains("only 24 of 64"), "{error}");
        assert_eq!(fs::read_to_string(root.path().join("proc/sys/vm/compact_memory")).unwrap(), "1");
    }

    #[test]
    fn odd_hosts_and_odd_wishes_are_errors() {
        let (root, hugepages) = host(1, 1);
        assert_eq!(hugepages.ensure(MAX_PAGES + 1).unwrap_err().code, Code::INVALID_ARGUMENT);
        fs::write(root.path().join(POOL).join("free_hugepages"), "many").unwrap();
        assert!(hugepages.free().unwrap_err().details.contains("\"many\""));
        assert_eq!(Hugepages::at(Path::new("/nowhere")).free().unwrap_err().code, Code::IO);
    }

    #[test]
    fn mounts_are_told_by_their_page_size() {
        let line = |options: &str| format!("40 25 0:30 / /dev/huge rw,relatime shared:16 - hugetlbfs none rw{options}");
        assert_eq!(two_mib_mount(&line(",pagesize=2M"), false), Some("/dev/huge"));
        assert_eq!(two_mib_mount(&line(",pagesize=1024M"), true), None);
        assert_eq!(two_mib_mount(&line(""), true), Some("/dev/huge"));
        assert_eq!(two_mib_mount(&line(""), false), None);
        assert_eq!(two_mib_mount("41 25 0:31 / /tmp rw - tmpfs tmpfs rw,pagesize=2M", true), None);
        assert_eq!(two_mib_mount("junk", true), None);
    }
}
