//! Listing, killing and the script agree about real processes, in every spelling that QEMU accepts.

use std::{
    fs,
    io::Write,
    os::unix::process::CommandExt,
    path::Path,
    process::{Child, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use ringfence_messages::VmId;

use super::{
    lookout::Lookout,
    proc::Process,
    script,
    sibling::{self, Killed, Victim},
};

/// How long a process may take to become what it is started as, or to be gone.
const SOON: Duration = Duration::from_secs(20);

/// A program of a name that waits, and has these arguments.
struct Fake(Child);

impl Fake {
    /// A copy of the shell, which reads a line that never comes. `uid`: as that user.
    fn start(dir: &Path, name: &str, arguments: &[&str], uid: Option<u32>) -> Fake {
        let program = dir.join(name);
        if !program.exists() {
            fs::copy(fs::canonicalize("/bin/dash").unwrap(), &program).unwrap();
        }
        let mut command = Command::new(&program);
        command.args(["-c", "read line", "q"]).args(arguments).stdin(Stdio::piped());
        if let Some(uid) = uid {
            command.uid(uid);
        }
        let fake = Fake(command.spawn().unwrap());
        until("it is what it was started as", || fake.process().is_some_and(|process| process.program() == name));
        fake
    }

    fn process(&self) -> Option<Process> {
        Process::read(self.0.id())
    }

    fn lives(&self) -> bool {
        self.process().is_some_and(|process| process.is_alive())
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn until(what: &str, is: impl Fn() -> bool) {
    let deadline = Instant::now() + SOON;
    while !is() {
        assert!(Instant::now() < deadline, "waited {SOON:?} in vain until {what}");
        std::thread::yield_now();
    }
}

/// What the script says of a VM, on a host without the program.
fn by_script(vm: VmId) -> Killed {
    let mut shell = Command::new("sh");
    shell.args(["-s", "--", &vm.to_string()]).env("PATH", "/usr/bin:/bin").stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut shell = shell.spawn().unwrap();
    shell.stdin.take().unwrap().write_all(script::text().as_bytes()).unwrap();
    let output = shell.wait_with_output().unwrap();
    sibling::parse_reply(&String::from_utf8(output.stdout).unwrap()).unwrap()
}

/// A VM of this test run alone: agents and labs may be up beside it.
fn vm(name: &str) -> VmId {
    VmId::from_name(&format!("{name} of {}", std::process::id()))
}

fn lookout() -> Arc<Lookout> {
    Arc::new(Lookout::new(None, &[], true).unwrap())
}

/// Ways to say which VM it is.
fn spellings(vm: VmId) -> Vec<(&'static str, Vec<String>)> {
    let (uuid, name) = (vm.to_string(), "qemu-system-x86_64");
    let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
    vec![
        (name, words(&["-uuid", &uuid])),
        (name, words(&["--uuid", &uuid.to_uppercase()])),
        ("qemu-kvm", words(&["-name", "a", "-uuid", &uuid.replace('-', "")])),
        ("kvm", words(&["-id", "100", "-smbios", &format!("type=1,uuid={uuid}")])),
        (".qemu-system-x86_64-wrapped", words(&["-S", "-uuid", &format!("{{{uuid}}}")])),
        ("qemu-9.2-prod", words(&["disk.raw", "-uuid", &uuid])),
        ("renamed", words(&["-nodefaults", "-m", "16", "-uuid", &uuid])),
    ]
}

#[tokio::test]
async fn what_is_seen_is_killed_in_every_spelling() {
    let (dir, lookout) = (tempfile::tempdir().unwrap(), lookout());
    for (n, (name, _)) in spellings(vm("x")).into_iter().enumerate() {
        let vm = vm(&format!("spelled {n}"));
        let arguments = spellings(vm).swap_remove(n).1;
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let fake = Fake::start(dir.path(), name, &arguments, None);
        let pids: Vec<u32> = lookout.look().await.unwrap().of(vm).map(|qemu| qemu.process.pid).collect();
        assert_eq!(pids, [fake.0.id()], "{name} {arguments:?} is not seen");
        let killed = sibling::kill(&Victim { vm, machine: None }, &lookout).await.unwrap();
        assert!(killed.found && killed.killed && !killed.alive && !fake.lives(), "{name} {arguments:?}: {killed:?}");
        assert!(lookout.look().await.unwrap().of(vm).next().is_none());
    }
}

#[test]
fn the_script_kills_what_the_program_would() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: the script believes root's processes only");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let vm = vm("by script");
    let fakes: Vec<Fake> = spellings(vm)
        .iter()
        .map(|(name, arguments)| {
            let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
            Fake::start(dir.path(), name, &arguments, None)
        })
        .collect();
    let other = Fake::start(dir.path(), "qemu-kvm", &["-uuid", &self::vm("another").to_string()], None);
    let bystander = Fake::start(dir.path(), "bystander", &["-uuid", &vm.to_string()], None);
    let killed = by_script(vm);
    assert!(killed.found && killed.killed && !killed.alive, "{killed:?}");
    let left: Vec<_> = fakes.iter().filter(|fake| fake.lives()).filter_map(Fake::process).collect();
    assert!(left.is_empty(), "{left:?}");
    assert!(other.lives() && bystander.lives(), "a bystander was killed");
    assert!(!by_script(vm).found);
}

#[tokio::test]
async fn a_qemu_that_names_no_vm_makes_the_sight_less() {
    // Of a user of its own, where that can be: agents of other tests would lose sight by it.
    let user = rustix::process::geteuid().is_root().then_some(64_999);
    let lookout = match user {
        Some(user) => Arc::new(Lookout::new(None, &[user.to_string()], false).unwrap()),
        None => lookout(),
    };
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let fake = Fake::start(dir.path(), "qemu-system-x86_64", &["-m", "16"], user);
    assert!(lookout.look().await.unwrap().sight.unnamed > 0);
    assert!(by_script(vm("nobody")).sight.unnamed > 0, "the script has no better sight than the program");
    let killed = sibling::kill(&Victim { vm: vm("nobody"), machine: None }, &lookout).await.unwrap();
    assert!(!killed.sight.is_full() && !killed.killed && fake.lives(), "{killed:?}");
}

#[tokio::test]
async fn local_users_program_is_a_stranger() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: only root starts processes of others");
        return;
    }
    const NOBODY: u32 = 65534;
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let vm = vm("claimed");
    let uuid = vm.to_string();
    let fake = Fake::start(dir.path(), "qemu-system-fake", &["-uuid", &uuid, "-incoming", "defer"], Some(NOBODY));
    let lookout = Arc::new(Lookout::new(None, &[], false).unwrap());
    let seen = lookout.look().await.unwrap();
    assert_eq!(seen.of(vm).count(), 0, "it counts as a VM");
    let said: Vec<&str> = seen.strangers(vm).collect();
    assert_eq!(said, [format!("process {} is of user nobody ({NOBODY})", fake.0.id())]);
    let killed = sibling::kill(&Victim { vm, machine: None }, &lookout).await.unwrap();
    assert!(!killed.found && !killed.alive && killed.reason.contains("nobody (65534)"), "{killed:?}");
    assert!(fake.lives(), "a stranger was killed");
    // The script does not know whom the agent's file names: it cannot say that this is no VM.
    let said = by_script(vm);
    assert!(!said.killed && said.sight.unnamed > 0 && fake.lives(), "{said:?}");
    // Named in the agent's file, it is one.
    let lookout = Lookout::new(None, &["nobody".to_owned()], false).unwrap();
    assert_eq!(lookout.look_now(None).unwrap().of(vm).count(), 1);
    assert!(Lookout::new(None, &["no-such-user".to_owned()], false).is_err());
}
