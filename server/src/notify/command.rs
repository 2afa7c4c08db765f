//! Delivery to a program: the event on standard input; the exit status is the result.
//!
//! Invariants: no shell; the environment has only `PATH` and `RINGFENCE_*`; the program leads its own process group,
//! which is killed as a whole after its end, on time-out, or with the controller, before the leader is reaped, so
//! that the group's number is not reused. Alternative considered: killing the program alone (its children would hold
//! the pipes and keep running).

use std::{os::fd::OwnedFd, process::Stdio, time::Duration};

use axum::body::Bytes;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::retry_on_intr,
    process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt},
    process::{Child, Command},
};

use super::{MAX_SAID_CHARS, notice::Notice, one_line, retry::Outcome};

/// Bytes of standard output and of standard error that are kept for the log; the rest is discarded.
const MAX_OUTPUT_BYTES: usize = 4096;

/// Exit status for a retry: `EX_TEMPFAIL` of sysexits.h.
const TRY_LATER: i32 = 75;

/// Time limit for the end of a killed program and its pipes. A program that is stuck in the kernel, or a child that
/// left the group, is not waited for any longer.
const GRACE: Duration = Duration::from_secs(1);

/// A program.
pub(super) struct Program {
    hook: String,
    argv: Vec<String>,
    timeout: Duration,
}

/// A process group, killed on drop. Its leader must not be reaped before.
struct Group(Pid);

impl Drop for Group {
    fn drop(&mut self) {
        // The group may have ended.
        let _ = kill_process_group(self.0, Signal::KILL);
    }
}

impl Program {
    /// The program of a hook, with its arguments.
    pub(super) fn new(hook: &str, argv: &[String], timeout: Duration) -> Program {
        Program { hook: hook.to_owned(), argv: argv.to_vec(), timeout }
    }

    /// One attempt.
    pub(super) async fn run(&self, notice: &Notice) -> Outcome {
        let Some((program, arguments)) = self.argv.split_first() else {
            return Outcome::Refused("no program is configured".to_owned());
        };
        let mut command = Command::new(program);
        command
            .args(arguments)
            .env_clear()
            .envs(std::env::var_os("PATH").map(|path| ("PATH", path)))
            .env("RINGFENCE_TOPIC", &notice.topic)
            .env("RINGFENCE_SUBJECT", notice.subject.replace('\0', ""))
            .env("RINGFENCE_SEQ", notice.seq.to_string())
            .current_dir("/")
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        // A missing program or a lack of processes can be fixed, so it is retried.
        let run = async { self.communicate(command.spawn()?, notice.body.clone()).await };
        run.await.unwrap_or_else(|error: std::io::Error| Outcome::Later(format!("cannot run {program}: {error}"), None))
    }

    async fn communicate(&self, mut child: Child, body: Bytes) -> std::io::Result<Outcome> {
        let pid = child.id().and_then(|pid| Pid::from_raw(pid.cast_signed()));
        let pid = pid.ok_or_else(|| std::io::Error::other("the program has no pid"))?;
        let group = Group(pid);
        let mut ended = tokio::task::spawn_blocking({
            let (pidfd, bound) = (pidfd_open(pid, PidfdFlags::empty())?, self.timeout + GRACE);
            move || until_ended(&pidfd, bound)
        });
        let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let tell = async {
            if let Some(mut stdin) = stdin {
                // The program may ignore its input.
                let _ = stdin.write_all(&body).await;
            }
        };
        let mut talk = std::pin::pin!(async { tokio::join!(tell, capture(stdout), capture(stderr)) });
        let mut said = None;
        let in_time = tokio::time::timeout(self.timeout, async {
            tokio::select! {
                all = &mut talk => {
                    said = Some(all);
                    (&mut ended).await
                }
                ended = &mut ended => ended,
            }
        });
        let in_time = in_time.await;
        drop(group);
        let status = tokio::time::timeout(GRACE, child.wait()).await;
        let said = match said {
            Some(said) => Some(said),
            None => tokio::time::timeout(GRACE, talk).await.ok(),
        };
        let said = said.map_or_else(Vec::new, |((), out, err)| [out, err].concat());
        let all = one_line(&said, 2 * MAX_OUTPUT_BYTES);
        tracing::info!(hook = self.hook, pid = pid.as_raw_nonzero(), said = all, "hook command ended");
        let said = one_line(&said, MAX_SAID_CHARS);
        let says = |what: String| if said.is_empty() { what } else { format!("{what}: {said}") };
        let status = match (in_time, status) {
            (Err(_), _) => {
                return Ok(Outcome::Later(says(format!("killed after {:?}", self.timeout)), None));
            }
            (Ok(_), Err(_)) => {
                return Ok(Outcome::Later(says("the program ended but was not reaped".to_owned()), None));
            }
            (Ok(_), Ok(status)) => status?,
        };
        Ok(match status.code() {
            Some(0) => Outcome::Delivered(says(status.to_string())),
            Some(TRY_LATER) => Outcome::Later(says(status.to_string()), None),
            _ => Outcome::Refused(says(status.to_string())),
        })
    }
}

/// Waits for the end of a process by its pidfd, without reaping it, at most `bound`.
fn until_ended(pidfd: &OwnedFd, bound: Duration) {
    let bound = Timespec::try_from(bound).ok();
    let _ = retry_on_intr(|| poll(&mut [PollFd::new(pidfd, PollFlags::IN)], bound.as_ref()));
}

/// Reads to the end and keeps the beginning.
async fn capture(from: Option<impl AsyncRead + Unpin>) -> Vec<u8> {
    let (mut kept, mut buffer) = (Vec::new(), [0; 4096]);
    let Some(mut from) = from else { return kept };
    while let Ok(n @ 1..) = from.read(&mut buffer).await {
        kept.extend_from_slice(&buffer[..n.min(MAX_OUTPUT_BYTES - kept.len())]);
    }
    kept
}

#[cfg(test)]
mod tests {
    use std::{path::Path, time::Instant};

    use ringfence_drivers::node::proc::Process;

    use super::*;

    async fn sh(script: &str, timeout: Duration) -> Outcome {
        let argv = ["/bin/sh", "-c", script, "sh"].map(str::to_owned);
        Program::new("ops", &argv, timeout).run(&Notice::test("ops")).await
    }

    const LONG: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn the_exit_status_is_the_answer_and_output_is_kept_up_to_a_limit() {
        for (script, wanted) in [
            ("exit 0", Outcome::Delivered("exit status: 0".to_owned())),
            ("echo a; echo b >&2", Outcome::Delivered("exit status: 0: a b".to_owned())),
            ("exit 75", Outcome::Later("exit status: 75".to_owned(), None)),
            ("echo no; exit 3", Outcome::Refused("exit status: 3: no".to_owned())),
        ] {
            assert_eq!(sh(script, LONG).await, wanted, "{script}");
        }
        let Outcome::Delivered(says) = sh("yes | head -c 10000000", LONG).await else { panic!() };
        assert!(says.len() < 2 * MAX_OUTPUT_BYTES);
        let missing = Program::new("ops", &["/no/such".to_owned()], LONG).run(&Notice::test("ops")).await;
        assert!(matches!(missing, Outcome::Later(why, None) if why.contains("/no/such")));
    }

    #[tokio::test]
    async fn it_sees_the_message_and_nothing_of_our_environment() {
        let Outcome::Delivered(says) = sh("cat", LONG).await else { panic!() };
        assert!(says.contains(r#""topic":"ringfence.test""#), "{says}");
        let Outcome::Delivered(says) = sh("env | cut -d= -f1 | sort", LONG).await else { panic!() };
        let names: Vec<&str> = says.split(' ').skip_while(|word| *word != "0:").skip(1).collect();
        // What the shell itself adds is PWD and the like.
        let known = ["PATH", "PWD", "OLDPWD", "SHLVL", "_", "RINGFENCE_SEQ", "RINGFENCE_SUBJECT", "RINGFENCE_TOPIC"];
        assert!(names.iter().all(|name| known.contains(name)), "{names:?}");
        assert!(["PATH", "RINGFENCE_SEQ", "RINGFENCE_TOPIC"].iter().all(|name| names.contains(name)), "{names:?}");
    }

    /// The number that a script wrote into a file, once it has.
    async fn pid_in(file: &Path) -> u32 {
        loop {
            let text = std::fs::read_to_string(file).unwrap_or_default();
            if let Some(pid) = text.strip_suffix('\n').and_then(|text| text.parse().ok()) {
                return pid;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn until_gone(pid: u32) {
        let deadline = Instant::now() + Duration::from_secs(10);
        while Process::read(pid).is_some_and(|process| process.is_alive()) {
            assert!(Instant::now() < deadline, "{pid} lives");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    #[tokio::test]
    async fn what_takes_too_long_is_killed_with_everything_that_it_started() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("pid");
        let script = format!("(sleep 1000 & echo $! >{}; wait) & wait", file.display());
        let (outcome, grandchild) = tokio::join!(sh(&script, Duration::from_secs(3)), pid_in(&file));
        assert!(matches!(&outcome, Outcome::Later(why, None) if why.starts_with("killed")), "{outcome:?}");
        until_gone(grandchild).await;
    }

    #[tokio::test]
    async fn what_a_program_leaves_behind_is_killed_when_it_ends_and_holds_up_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("pid");
        let script = format!("sleep 1000 & echo $! >{}", file.display());
        let outcome = sh(&script, LONG).await;
        assert!(matches!(outcome, Outcome::Delivered(_)), "{outcome:?}");
        until_gone(pid_in(&file).await).await;
    }

    #[tokio::test]
    async fn a_controller_that_ends_takes_it_along() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("pid");
        let script = format!("sleep 1000 & echo $! >{}; wait", file.display());
        let grandchild = tokio::select! {
            outcome = sh(&script, LONG) => panic!("{outcome:?}"),
            grandchild = pid_in(&file) => grandchild,
        };
        until_gone(grandchild).await;
    }
}
