//! Checks of a service's files: its state directory, the disk below, and its token.

use std::path::Path;

use ringfence_drivers::files::not_ours;
use ringfence_messages::doctor::{Finding, Verdict};
use rustix::fs::{Access, StatVfs, access, statvfs};

use super::{Check, of, quoted};
use crate::token_file::read_token;

/// Free space below which a disk counts as full. Too low: the next intent does not fit. Too high: false alarms.
const LEAST_FREE: u64 = 64 << 20;

/// Free space below which a disk gets a warning. Too low: no time to react. Too high: small disks never pass.
const LITTLE_FREE: u64 = 1 << 30;

/// Free inodes below which a disk counts as full.
const LEAST_INODES: u64 = 1000;

const WHY_STATE: &str = "every command is written there before it is carried out; without it, nothing is carried out";
const WHY_DISK: &str = "an intent that does not fit on the disk blocks the fence or start that it precedes";

/// The consequence of a token that others can read.
pub const WHY_TOKEN: &str =
    "a user that reads it may command every host; a file that others may read is rejected at the next start";

/// A state directory and its disk. `owner` is "agent" or "controller".
pub fn state(dir: &Path, owner: &str) -> Vec<Finding> {
    let check = || of("state-dir", WHY_STATE).about(dir.display());
    let metadata = match std::fs::metadata(dir) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let fix = format!("start the {owner} once, which creates it, or correct state_dir in its file");
            let nearest = dir.ancestors().skip(1).find(|above| above.is_dir()).unwrap_or(Path::new("/"));
            return vec![check().warn("it does not exist yet", fix), disk(nearest)];
        }
        Err(error) => return vec![check().unknown(error.to_string(), "run the doctor as the user of the service")],
    };
    let judged = if !metadata.is_dir() {
        check().fail("it is not a directory", "set state_dir to a directory")
    } else if let Err(error) = access(dir, Access::WRITE_OK | Access::EXEC_OK) {
        check().fail(format!("this user may not write it: {error}"), format!("chown \"$USER\" {}", quoted(dir)))
    } else if let Some(why) = not_ours(&metadata) {
        check().fail(why, format!("chown \"$USER\" {0}; chmod 700 {0}", quoted(dir)))
    } else {
        check().ok("writable")
    };
    vec![judged, disk(dir)]
}

fn disk(dir: &Path) -> Finding {
    let check = of("disk", WHY_DISK).about(dir.display());
    match statvfs(dir) {
        Ok(found) => room(check, dir, &found),
        Err(error) => {
            check.unknown(format!("its file system does not report free space: {error}"), format!("df {}", quoted(dir)))
        }
    }
}

fn room(check: Check, dir: &Path, of: &StatVfs) -> Finding {
    let (free, inodes) = (of.f_bavail.saturating_mul(of.f_frsize), of.f_favail);
    let found = format!("{} MiB free", free >> 20);
    let remedy = format!("du -xhd1 {} | sort -h; free some space", quoted(dir));
    match (judge_room(free), of.f_files) {
        // Some file systems allocate inodes on demand and report none.
        (_, files) if files > 0 && inodes < LEAST_INODES => {
            check.fail(format!("{found}, only {inodes} free inodes"), remedy)
        }
        (Verdict::Ok, _) => check.ok(found),
        (Verdict::Warn, _) => check.warn(found, remedy),
        _ => check.fail(found, remedy),
    }
}

fn judge_room(free: u64) -> Verdict {
    match free {
        free if free < LEAST_FREE => Verdict::Fail,
        free if free < LITTLE_FREE => Verdict::Warn,
        _ => Verdict::Ok,
    }
}

/// A token file, which only its owner may read.
pub fn token_file(file: &Path) -> Finding {
    let check = of("token", WHY_TOKEN).about(file.display());
    match read_token(file) {
        Ok(_) => check.ok("only its owner may read it"),
        Err(error) => check.fail(error.details, format!("chmod 600 {0}; head -c 40 {0}", quoted(file))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disk_verdict_depends_on_free_space() {
        assert_eq!(judge_room(0), Verdict::Fail);
        assert_eq!(judge_room(LEAST_FREE - 1), Verdict::Fail);
        assert_eq!(judge_room(LEAST_FREE), Verdict::Warn);
        assert_eq!(judge_room(LITTLE_FREE), Verdict::Ok);
    }
}
