//! Processes of this host, identified by start time and command line, and signalled through a pidfd.
//!
//! Invariants: a pid alone identifies nothing, because pids are reused; a zombie with running threads and a process in
//! uninterruptible sleep count as alive.
//! Alternatives considered: `pgrep` and `pkill`. Substrings match other processes, such as a shell with the uuid in its
//! arguments.

use std::{
    fs, io,
    path::Path,
    time::{Duration, Instant},
};

use ringfence_messages::{Code, ErrorCode, Result};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// Between looks at a process that was killed.
const POLL: Duration = Duration::from_millis(10);

/// How much longer than a kill itself its reads of `/proc` may take. Too low: a busy host's kill counts as failed. Too
/// high: who waits for it learns late that `/proc` hangs.
const HANGS_AFTER: Duration = Duration::from_secs(2);

/// What a look at one pid found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Look {
    /// Nothing that could write.
    Nothing,
    /// This process.
    There(Process),
    /// A process whose command line may not be read.
    Unreadable,
}

/// One process, as it was when it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    /// Its id.
    pub pid: u32,
    /// When it started, in clock ticks since boot: with the pid it names a process for good.
    pub start: u64,
    /// Its arguments.
    pub argv: Vec<String>,
}

impl Process {
    /// Reads a process. `None` if there is none, or none with arguments (a kernel thread, a zombie without threads).
    pub fn read(pid: u32) -> Option<Process> {
        let start = stat(pid)?.start;
        let cmdline = fs::read(format!("{}/cmdline", image(pid))).ok()?;
        // Read again: were both of the same process?
        let same = stat(pid)?.start == start;
        let argv = arguments(&cmdline);
        (same && !argv.is_empty()).then_some(Process { pid, start, argv })
    }

    /// Looks at a process, and tells one that is not there from one that may not be read. A kernel thread and a zombie
    /// without threads count as not there: neither writes.
    pub fn look(pid: u32) -> Look {
        match Process::read(pid) {
            Some(process) => Look::There(process),
            None => match fs::read(format!("{}/cmdline", image(pid))) {
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Look::Unreadable,
                _ => Look::Nothing,
            },
        }
    }

    /// All processes that this user can see and `is` picks, by pid.
    ///
    /// # Errors
    /// If `/proc` cannot be listed. Without it nothing can be said of any process.
    pub fn scan(is: impl Fn(&Process) -> bool) -> io::Result<Vec<Process>> {
        Ok(pids()?.into_iter().filter_map(Process::read).filter(|process| is(process)).collect())
    }

    /// The real, the effective and the saved user of it; `None` if it is gone.
    pub fn users(&self) -> Option<[u32; 3]> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid)).ok()?;
        parse_users(&status)
    }

    /// The name of its program: of the file it runs, or of its first argument where that may not be read.
    pub fn program(&self) -> String {
        let exe = fs::read_link(format!("{}/exe", image(self.pid))).ok();
        let path = exe.as_deref().unwrap_or(Path::new(&self.argv[0]));
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        name.strip_suffix(" (deleted)").map(str::to_owned).unwrap_or(name)
    }

    /// Whether an option of the command line has exactly this value: `["-uuid", X]`.
    pub fn has_option(&self, option: &str, value: &str) -> bool {
        self.argv.windows(2).any(|pair| pair[0] == option && pair[1] == value)
    }

    /// Whether it still lives: not gone, not replaced, not a zombie without threads.
    pub fn is_alive(&self) -> bool {
        match stat(self.pid) {
            Some(stat) if stat.start == self.start => match stat.state {
                'Z' | 'X' => live_thread(self.pid).is_some(),
                _ => true,
            },
            _ => false,
        }
    }

    /// Kills it and waits until it is gone. What `/proc` makes wait holds up a thread of its own, not the runtime.
    ///
    /// # Errors
    /// `SYS.1006` if it may not be signalled, or is still there after `within`; its state is then named.
    pub async fn kill(&self, within: Duration) -> Result<()> {
        let this = self.clone();
        let killing = tokio::task::spawn_blocking(move || this.kill_and_wait(within));
        match tokio::time::timeout(within + HANGS_AFTER, killing).await {
            Ok(Ok(killed)) => killed,
            Ok(Err(panic)) => Err(ErrorCode::new(Code::INTERNAL, panic.to_string())),
            Err(_) => Err(self.not_killed(format!("/proc/{} does not answer", self.pid))),
        }
    }

    fn not_killed(&self, why: String) -> ErrorCode {
        ErrorCode::new(Code::OPERATION, format!("cannot kill process {}: {why}", self.pid))
    }

    fn kill_and_wait(&self, within: Duration) -> Result<()> {
        if !self.is_alive() {
            return Ok(());
        }
        let pid = Pid::from_raw(self.pid as i32).ok_or_else(|| self.not_killed("0 is no process".into()))?;
        match pidfd_open(pid, PidfdFlags::empty()) {
            Err(rustix::io::Errno::SRCH) => return Ok(()),
            Err(error) => return Err(self.not_killed(error.to_string())),
            Ok(pidfd) => {
                // The pidfd holds one process; is it the one that was meant?
                match Process::read(self.pid) {
                    Some(now) if now == *self => {}
                    Some(_) => return Ok(()),
                    None if !self.is_alive() => return Ok(()),
                    None => {}
                }
                match pidfd_send_signal(pidfd, Signal::KILL) {
                    Ok(()) | Err(rustix::io::Errno::SRCH) => {}
                    Err(error) => return Err(self.not_killed(error.to_string())),
                }
            }
        }
        let deadline = Instant::now() + within;
        while self.is_alive() {
            if Instant::now() >= deadline {
                let state = stat(self.pid).map_or('?', |stat| stat.state);
                return Err(self.not_killed(format!("it is still there {within:?} after SIGKILL, in state {state}")));
            }
            // Bounded by the deadline, on a thread of its own.
            #[allow(clippy::disallowed_methods)]
            std::thread::sleep(POLL);
        }
        Ok(())
    }
}

/// The ids of all processes that this user can see, in order.
///
/// # Errors
/// If `/proc` cannot be listed. Without it nothing can be said of any process.
pub fn pids() -> io::Result<Vec<u32>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        found.extend(entry?.file_name().to_str().and_then(|name| name.parse::<u32>().ok()));
    }
    found.sort_unstable();
    Ok(found)
}

/// The arguments in what `/proc/PID/cmdline` holds: each ends with a zero.
pub fn arguments(cmdline: &[u8]) -> Vec<String> {
    let mut argv: Vec<String> =
        cmdline.split(|b| *b == 0).map(|arg| String::from_utf8_lossy(arg).into_owned()).collect();
    argv.pop();
    argv
}

/// What of `/proc/PID/stat` matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stat {
    /// `R`, `S`, `D`, `Z`...
    pub state: char,
    /// Clock ticks from the boot to its start.
    pub start: u64,
}

/// The first three of field `Uid:` of `/proc/PID/status`.
pub fn parse_users(status: &str) -> Option<[u32; 3]> {
    let line = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    let mut users = line.split_ascii_whitespace().map(str::parse);
    Some([users.next()?.ok()?, users.next()?.ok()?, users.next()?.ok()?])
}

fn stat(pid: u32) -> Option<Stat> {
    parse_stat(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// Fields 3 (state) and 22 (starttime) of proc(5). The second field is the program's name in parentheses and
/// may itself hold spaces and parentheses.
pub fn parse_stat(text: &str) -> Option<Stat> {
    let (_, rest) = text.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    let start = fields.nth(18)?.parse().ok()?;
    Some(Stat { state, start })
}

/// A thread other than the leader that is not dead.
fn live_thread(pid: u32) -> Option<String> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).ok()?;
    let live = |task: &fs::DirEntry| {
        let stat = fs::read_to_string(task.path().join("stat")).ok().and_then(|text| parse_stat(&text));
        stat.is_some_and(|stat| !matches!(stat.state, 'Z' | 'X'))
    };
    Some(tasks.flatten().find(live)?.path().display().to_string())
}

/// Where in `/proc` the arguments and the program of a process can be read. A leader that ended while its threads live
/// on has none itself, and they write on.
fn image(pid: u32) -> String {
    match stat(pid) {
        Some(Stat { state: 'Z' | 'X', .. }) => live_thread(pid),
        _ => None,
    }
    .unwrap_or_else(|| format!("/proc/{pid}"))
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command};

    use super::*;

    struct Sleeper(Child);

    impl Sleeper {
        fn start() -> Sleeper {
            Sleeper(Command::new("sleep").arg("1000").spawn().unwrap())
        }

        fn process(&self) -> Process {
            // Until it has become `sleep`.
            loop {
                match Process::read(self.0.id()) {
                    Some(process) if process.argv[0] == "sleep" => return process,
                    _ => std::thread::yield_now(),
                }
            }
        }
    }

    impl Drop for Sleeper {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    #[test]
    fn a_name_with_spaces_and_parentheses_does_not_shift_the_fields() {
        let text = "77 (a) R (b) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4242 20";
        let stat = parse_stat(text).unwrap();
        assert_eq!((stat.state, stat.start), ('S', 4242));
        assert!(parse_stat("77 (a").is_none() && parse_stat("77 (a) S 1").is_none());
    }

    #[test]
    fn options_match_whole_tokens_only() {
        let process = |args: &[&str]| Process { pid: 1, start: 1, argv: args.iter().map(|s| s.to_string()).collect() };
        assert!(process(&["qemu", "-uuid", "abc"]).has_option("-uuid", "abc"));
        for argv in [&["sh", "-c", "qemu -uuid abc"][..], &["qemu", "-uuid", "abcd"], &["qemu", "abc", "-uuid"]] {
            assert!(!process(argv).has_option("-uuid", "abc"), "{argv:?}");
        }
    }

    #[tokio::test]
    async fn killed_process_is_gone_before_it_is_reaped() {
        let sleeper = Sleeper::start();
        let process = sleeper.process();
        assert!(process.is_alive());
        process.kill(Duration::from_secs(5)).await.unwrap();
        assert!(!process.is_alive(), "a zombie without threads is dead");
        process.kill(Duration::from_secs(5)).await.unwrap();
    }

    /// Fault 9: the main thread ended, another one goes on. Its arguments are found, and it is alive until it is
    /// killed.
    #[tokio::test]
    async fn zombie_leader_with_live_threads_is_killed() {
        // 60 is exit(2) of the calling thread alone.
        const PROGRAM: &str = "use threads; threads->create(sub { sleep 1000 }); syscall(60, 0)";
        let perl = Sleeper(Command::new("perl").args(["-e", PROGRAM, "--", "-uuid", "abc"]).spawn().unwrap());
        let pid = perl.0.id();
        while stat(pid).is_none_or(|stat| stat.state != 'Z') {
            tokio::time::sleep(POLL).await;
        }
        let process = Process::read(pid).expect("it is found by its arguments");
        assert!(process.has_option("-uuid", "abc") && process.is_alive(), "{process:?}");
        assert_eq!(process.program(), "perl");
        process.kill(Duration::from_secs(5)).await.unwrap();
        assert!(!process.is_alive() && Process::read(pid).is_none());
    }

    #[tokio::test]
    async fn other_process_with_the_same_pid_is_not_killed() {
        let sleeper = Sleeper::start();
        let real = sleeper.process();
        let other_start = Process { start: real.start + 1, ..real.clone() };
        let other_argv = Process { argv: vec!["sleep".into(), "7".into()], ..real.clone() };
        for meant in [other_start, other_argv] {
            meant.kill(Duration::from_secs(1)).await.unwrap();
            assert!(real.is_alive(), "a bystander was killed for {meant:?}");
        }
    }

    #[test]
    fn scan_finds_only_matching_processes() {
        let sleeper = Sleeper::start();
        let process = sleeper.process();
        let found = Process::scan(|p| p.pid == process.pid && p.has_option("sleep", "1000")).unwrap();
        assert_eq!((found.as_slice(), found[0].program().as_str()), (&[process][..], "sleep"));
    }
}
