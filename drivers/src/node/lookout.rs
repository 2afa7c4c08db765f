//! Finds the QEMUs of this host, distinguishes VMs from strangers, and reports the sight of the search.
//!
//! Invariants (I2): sight is measured; listing, starting, stopping and killing use this one search; a process counts as
//! a VM only if its users are root, the agent's own, libvirt's, or listed in the agent's config, because any user may
//! start a program that is called like QEMU. A process of these users in a container counts too, in any PID namespace:
//! it may hold the disk. A read of `/proc` that blocks does not block the runtime.
//! Alternatives considered: the owner of `/proc/PID`. It is root for every process that may not be traced.

use std::{
    collections::BTreeSet,
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use ringfence_messages::{Code, ErrorCode, Result, VmId, evidence::Sight};
use tokio::sync::Semaphore;

use super::{
    cmdline::{self, Named},
    exports,
    proc::{self, Look, Process},
};

/// How long a look may take. Too low: a host with thousands of processes is never seen. Too high: who asked waits while
/// one process's memory is locked and its command line cannot be read.
pub const LOOK_TIMEOUT: Duration = Duration::from_secs(5);

/// Looks at once; more wait. Too low: one that hangs holds up others early. Too high: a `/proc` that hangs takes all
/// threads.
const LOOKS: usize = 4;

static LOOKING: Semaphore = Semaphore::const_new(LOOKS);

/// The inode of the PID namespace of a kernel's first process.
const FIRST_PID_NAMESPACE: &str = "pid:[4026531836]";

/// Says that a PID namespace is a whole host, for hosts that are containers themselves: root's, written by nobody else,
/// and what `readlink /proc/self/ns/pid` says there.
pub const NAMESPACE_MARK: &str = "/etc/ringfence/pid-namespace";

/// The users that libvirt runs QEMU as, where its packages made them.
const OF_LIBVIRT: [&str; 2] = ["libvirt-qemu", "qemu"];

/// One process that is a VM's QEMU, or looks like it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Qemu {
    /// The process.
    pub process: Process,
    /// The VM that it names.
    pub vm: VmId,
    /// It waited for a migration when it began.
    pub incoming: bool,
    /// Where it writes its pid.
    pub pidfile: Option<PathBuf>,
    /// Its control socket.
    pub qmp: Option<PathBuf>,
    /// Why it is not believed to be a VM.
    pub stranger: Option<String>,
}

/// What one look found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// By VM and pid.
    pub qemus: Vec<Qemu>,
    /// Vhost targets, of the same users.
    pub targets: Vec<Process>,
    /// With what sight.
    pub sight: Sight,
}

impl Seen {
    /// What is believed to be this VM.
    pub fn of(&self, vm: VmId) -> impl Iterator<Item = &Qemu> {
        self.qemus.iter().filter(move |qemu| qemu.vm == vm && qemu.stranger.is_none())
    }

    /// What only looks like this VM.
    pub fn strangers(&self, vm: VmId) -> impl Iterator<Item = &str> {
        self.qemus.iter().filter(move |qemu| qemu.vm == vm).filter_map(|qemu| qemu.stranger.as_deref())
    }
}

/// What tells this host's VMs from everything else.
#[derive(Clone, Debug)]
pub struct Lookout {
    /// Names of QEMU's program here, beside the usual ones.
    names: Vec<String>,
    users: BTreeSet<u32>,
    own: bool,
}

impl Lookout {
    /// `binary` is the program that the agent starts, `users` are those beside root, libvirt's and this process's own
    /// whose processes may be VMs, by name or number. `own`: all VMs of this host run as this process's user, where it
    /// sees them.
    ///
    /// # Errors
    /// `SYS.1007` for a user that this host does not have.
    pub fn new(binary: Option<&str>, users: &[String], own: bool) -> Result<Lookout> {
        let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
        let mut known = BTreeSet::from([rustix::process::geteuid().as_raw()]);
        if !own {
            known.insert(0);
            known.extend(OF_LIBVIRT.iter().filter_map(|name| uid(&passwd, name)));
            for user in users {
                let id = user.parse().ok().or_else(|| uid(&passwd, user));
                known.insert(id.ok_or_else(|| {
                    let details =
                        format!("[qemu] users has {user:.60?}, which /etc/passwd lacks: use the number of the user");
                    ErrorCode::new(Code::INVALID_ARGUMENT, details)
                })?);
            }
        }
        Ok(Lookout { names: binary.map_or_else(Vec::new, names), users: known, own })
    }

    /// Looks at all processes, on a thread of its own, bounded.
    ///
    /// # Errors
    /// `SYS.1016` if `/proc` cannot be listed, `SYS.1001` if it does not answer in time: nothing is known then.
    pub async fn look(self: &Arc<Self>) -> Result<Seen> {
        self.look_at(None).await
    }

    /// Looks at these processes only.
    ///
    /// # Errors
    /// As [`look`](Lookout::look)'s.
    pub async fn look_at(self: &Arc<Self>, pids: Option<Vec<u32>>) -> Result<Seen> {
        let this = self.clone();
        off_the_runtime("look at the processes of this host", LOOK_TIMEOUT, move || this.look_now(pids))
            .await?
            .map_err(|e| super::io_error("list", Path::new("/proc"), &e))
    }

    /// Looks at all processes, or these.
    ///
    /// # Errors
    /// If `/proc` cannot be listed.
    pub fn look_now(&self, pids: Option<Vec<u32>>) -> io::Result<Seen> {
        let mut seen = Seen { sight: self.sight(), ..Seen::default() };
        for pid in pids.map_or_else(proc::pids, Ok)? {
            match Process::look(pid) {
                Look::Nothing => {}
                Look::Unreadable if self.own => {}
                Look::Unreadable => seen.sight.unreadable += 1,
                Look::There(process) => self.judge(process, &mut seen),
            }
        }
        seen.qemus.sort_by_key(|qemu| (qemu.vm, qemu.process.pid));
        Ok(seen)
    }

    fn judge(&self, process: Process, seen: &mut Seen) {
        if exports::admin_of(&process).is_some() {
            let ours = process.users().is_some_and(|users| self.stranger(process.pid, users).is_none());
            return if ours && process.is_alive() {
                seen.targets.push(process)
            };
        }
        let Some(reading) = cmdline::read(&process.program(), &process.argv, &self.names) else { return };
        let users = process.users();
        if !process.is_alive() {
            return;
        }
        let stranger = users.and_then(|users| self.stranger(process.pid, users));
        match reading.named {
            Named::Nobody if stranger.is_some() => {}
            Named::Nobody => seen.sight.unnamed += 1,
            Named::Vm(vm) => seen.qemus.push(Qemu {
                vm,
                incoming: reading.incoming,
                pidfile: reading.pidfile.map(PathBuf::from),
                qmp: reading.qmp.map(PathBuf::from),
                stranger,
                process,
            }),
        }
    }

    /// Why a process of these users is no VM.
    fn stranger(&self, pid: u32, users: [u32; 3]) -> Option<String> {
        let other = users.into_iter().find(|user| !self.users.contains(user))?;
        let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
        let name = passwd.lines().map(|line| line.split(':')).find_map(|mut words| {
            let (name, uid) = (words.next()?, words.nth(1)?);
            (uid.parse() == Ok(other)).then(|| format!("{name} ({other})"))
        });
        Some(format!("process {pid} is of user {}", name.unwrap_or_else(|| other.to_string())))
    }

    fn sight(&self) -> Sight {
        if self.own {
            // Its file says that nobody else runs VMs here, and one's own processes are never hidden.
            return Sight::full();
        }
        Sight {
            euid: rustix::process::geteuid().as_raw(),
            host_pids: sees_the_hosts_pids(),
            hidepid: fs::read_to_string("/proc/self/mounts").map_or(true, |mounts| hides(&mounts)),
            unreadable: 0,
            unnamed: 0,
        }
    }
}

/// Runs what may hang on a thread of its own, bounded in time and in how many hang at once.
///
/// # Errors
/// `SYS.1001` if it does not end in time, `SYS.1000` if it panics.
pub(super) async fn off_the_runtime<T: Send + 'static>(
    doing: &str,
    within: Duration,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T> {
    let done = async {
        let place = LOOKING.acquire().await.map_err(|e| ErrorCode::new(Code::INTERNAL, e.to_string()))?;
        let work = move || (work(), drop(place)).0;
        tokio::task::spawn_blocking(work).await.map_err(|e| ErrorCode::new(Code::INTERNAL, e.to_string()))
    };
    tokio::time::timeout(within, done).await.unwrap_or_else(|_| {
        let details = format!("cannot {doing}: /proc did not answer within {within:?}, so nothing is known of them");
        Err(ErrorCode::new(Code::TIMEOUT, details))
    })
}

/// The names that a program is seen under: its own, and that of the file that it is a link to.
fn names(binary: &str) -> Vec<String> {
    let path = Path::new(binary);
    let found = match path.components().count() {
        1 => std::env::var_os("PATH")
            .and_then(|dirs| std::env::split_paths(&dirs).map(|dir| dir.join(path)).find(|program| program.is_file())),
        _ => Some(path.to_owned()),
    };
    let real = found.and_then(|program| program.canonicalize().ok());
    let mut names: Vec<String> = [Some(path), real.as_deref()]
        .into_iter()
        .flatten()
        .filter_map(Path::file_name)
        .map(|n| n.to_string_lossy().into_owned())
        .collect();
    // A script that starts QEMU runs in a shell, and every shell would be one.
    names.retain(|name| !cmdline::NOT_QEMU.contains(&name.as_str()));
    names
}

/// A user's number, by `/etc/passwd`.
fn uid(passwd: &str, name: &str) -> Option<u32> {
    let words = passwd.lines().map(|line| line.split(':')).find(|words| words.clone().next() == Some(name));
    words?.nth(2)?.parse().ok()
}

/// Whether `/proc` shows the host's processes: its own namespace is the first one, or a file of root's says that it is
/// one.
fn sees_the_hosts_pids() -> bool {
    let link = |path: &str| fs::read_link(path).ok().and_then(|target| target.to_str().map(str::to_owned));
    let Some(namespace) = link("/proc/self/ns/pid") else { return false };
    // A `/proc` of another namespace that is mounted here names nobody by our pid.
    if link("/proc/self").and_then(|pid| pid.parse().ok()) != Some(std::process::id()) {
        return false;
    }
    namespace == FIRST_PID_NAMESPACE || marked(Path::new(NAMESPACE_MARK), &namespace)
}

fn marked(mark: &Path, namespace: &str) -> bool {
    let roots = fs::symlink_metadata(mark).is_ok_and(|of| of.is_file() && of.uid() == 0 && of.mode() & 0o022 == 0);
    roots && fs::read_to_string(mark).is_ok_and(|text| text.trim() == namespace)
}

/// Whether `/proc` is mounted so that it hides processes.
fn hides(mounts: &str) -> bool {
    let mut proc =
        mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>()).filter(|words| words.get(1) == Some(&"/proc"));
    let options = proc.next_back().and_then(|words| words.get(3).copied());
    options.is_none_or(|options| {
        options.split(',').any(|option| option.strip_prefix("hidepid=").is_some_and(|how| how != "0" && how != "off"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hidepid_and_users_are_read_from_the_system() {
        let mounts = |options: &str| format!("none / x rw 0 0\nproc /proc proc {options} 0 0\n");
        for (options, hidden) in
            [("rw,relatime", false), ("rw,hidepid=0", false), ("rw,hidepid=2", true), ("rw,hidepid=invisible", true)]
        {
            assert_eq!(hides(&mounts(options)), hidden, "{options}");
        }
        assert!(hides("none / x rw 0 0\n"), "without /proc nobody sees anything");
        let passwd = "root:x:0:0::/:/bin/sh\nlibvirt-qemu:x:64055:109::/:/bin/false\n";
        assert_eq!((uid(passwd, "libvirt-qemu"), uid(passwd, "libvirt")), (Some(64055), None));
    }

    #[test]
    fn only_roots_own_mark_makes_a_namespace_a_host() {
        let dir = tempfile::tempdir().unwrap();
        let mark = dir.path().join("mark");
        assert!(!marked(&mark, "pid:[1]"));
        fs::write(&mark, "pid:[1]\n").unwrap();
        fs::set_permissions(&mark, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
        let root = rustix::process::geteuid().is_root();
        assert_eq!((marked(&mark, "pid:[1]"), marked(&mark, "pid:[2]")), (root, false));
        fs::set_permissions(&mark, std::os::unix::fs::PermissionsExt::from_mode(0o666)).unwrap();
        assert!(!marked(&mark, "pid:[1]"), "others may have written it");
    }

    #[tokio::test]
    async fn hung_read_times_out_and_the_runtime_continues() {
        let (let_go, hangs) = std::sync::mpsc::channel::<()>();
        let error = off_the_runtime("look", Duration::from_millis(50), move || hangs.recv()).await.unwrap_err();
        assert!(error.is(&Code::TIMEOUT) && error.details.contains("nothing is known"), "{error}");
        drop(let_go);
        assert_eq!(off_the_runtime("look", LOOK_TIMEOUT, || 7).await, Ok(7));
    }
}
