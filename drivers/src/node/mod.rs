//! What runs on a host: hugepages, vhost targets, QEMU.
//!
//! Invariants: nothing runs through a shell; a process is signalled only through a pidfd, after its command line and
//! start time were read again; processes that the agent starts survive the agent.

pub mod addresses;
pub mod autostart;
pub mod cmdline;
pub mod docker;
pub mod exports;
mod folders;
pub mod guard;
mod guest;
pub mod hugepages;
mod libvirt;
pub mod lookout;
mod migration;
pub mod proc;
pub mod qemu;
pub mod qmp;
pub mod scan;
mod script;
pub mod sibling;
pub mod ssh;
pub mod target;
pub mod vms;
pub mod witness;

use std::path::{Path, PathBuf};

use ringfence_messages::{Code, ErrorCode, Result, evidence::Machine, vm::InstallPath};

/// The longest path of a unix socket on Linux (`sun_path` without its final zero).
pub const MAX_SOCKET_PATH: usize = 107;

/// Checks that a text can stand in a path as one name: 1 to 64 of A-Z a-z 0-9 . _ -.
pub(crate) fn plain_name(text: &str) -> Result<()> {
    match format!("vhost://{text}").parse::<InstallPath>() {
        Ok(_) => Ok(()),
        Err(error) => Err(ErrorCode::new(Code::INVALID_ARGUMENT, error.to_string())),
    }
}

/// A socket's path, if Linux can bind it.
pub(crate) fn socket_path(dir: &Path, name: &str) -> Result<PathBuf> {
    let path = dir.join(name);
    let len = path.as_os_str().len();
    if len > MAX_SOCKET_PATH {
        let details = format!(
            "socket path {} has {len} bytes, Linux allows {MAX_SOCKET_PATH}: give the agent a shorter state_dir",
            path.display()
        );
        return Err(ErrorCode::new(Code::INVALID_ARGUMENT, details));
    }
    Ok(path)
}

/// A path as text: what QEMU's options and JSON can carry.
pub(crate) fn text(path: &Path) -> Result<&str> {
    path.to_str().ok_or_else(|| ErrorCode::new(Code::INVALID_ARGUMENT, format!("path {path:?} is not UTF-8")))
}

pub(crate) fn io_error(doing: &str, path: &Path, error: &std::io::Error) -> ErrorCode {
    ErrorCode::new(Code::IO, format!("cannot {doing} {}: {error}", path.display()))
}

/// Which machine this is, and which boot of it; what cannot be read is not known.
pub fn machine() -> Machine {
    let read = |path: &str| std::fs::read_to_string(path).map(|text| text.trim().to_owned()).unwrap_or_default();
    Machine { machine_id: read("/etc/machine-id"), boot_id: read("/proc/sys/kernel/random/boot_id") }
}

#[cfg(test)]
mod tests;
