//! The line of `authorized_keys` that docs/security.md tells to write, before a real sshd: the executor's key kills
//! VMs, and does nothing else.

use std::{
    fs,
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use ringfence_drivers::node::{
    sibling,
    ssh::{self, SshSettings},
};
use ringfence_messages::{HostId, VmId, fence::SiblingFenceVmCmd};

use crate::{lines, read};

/// How long sshd may take to listen.
const UP: Duration = Duration::from_secs(20);

const SSHD: &str = "/usr/sbin/sshd";

struct Sshd {
    child: Child,
    port: u16,
}

impl Drop for Sshd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What the page says before the key.
fn options() -> String {
    let page = read("docs/security.md");
    let line = lines::code(&page).into_iter().find(|code| code.text.starts_with("restrict,command="));
    let line = line.expect("docs/security.md has the line").text;
    line.split_once(" ssh-ed25519 ").expect("a key behind it").0.to_owned()
}

fn keygen(path: &Path) -> String {
    let made = Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(path).status().unwrap();
    assert!(made.success());
    fs::read_to_string(path.with_extension("pub")).unwrap()
}

async fn sshd(dir: &Path, settings: &SshSettings) -> Sshd {
    let host_key = keygen(&dir.join("host"));
    let key = keygen(&settings.key_file);
    fs::write(dir.join("authorized_keys"), format!("{} {key}", options())).unwrap();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    fs::write(&settings.known_hosts_file, format!("[127.0.0.1]:{port} {host_key}")).unwrap();
    let program = Path::new(env!("CARGO_BIN_EXE_ringfence")).parent().unwrap();
    let config = format!(
        "ListenAddress 127.0.0.1\nPort {port}\nHostKey {dir}/host\nAuthorizedKeysFile {dir}/authorized_keys\n\
         PidFile none\n\
         StrictModes no\nUsePAM no\nPasswordAuthentication no\nKbdInteractiveAuthentication no\n\
         PermitRootLogin forced-commands-only\nSetEnv PATH={}:/usr/bin:/bin\n",
        program.display(),
        dir = dir.display(),
    );
    fs::write(dir.join("sshd_config"), config).unwrap();
    if rustix::process::geteuid().is_root() {
        fs::create_dir_all("/run/sshd").unwrap(); // sshd insists; where it runs as a service it is there
    }
    let log = fs::File::create(dir.join("log")).unwrap();
    let mut command = Command::new(SSHD);
    command.args(["-D", "-e", "-f"]).arg(dir.join("sshd_config")).stdin(Stdio::null()).stderr(log);
    let mut sshd = Sshd { child: command.spawn().unwrap(), port };
    let listens = async {
        while tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_err() {
            let log = || fs::read_to_string(dir.join("log")).unwrap();
            assert!(sshd.child.try_wait().unwrap().is_none(), "sshd ended: {}", log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(UP, listens).await.expect("sshd listens");
    sshd
}

#[tokio::test]
async fn the_executors_key_kills_vms_and_does_nothing_else() {
    if !Path::new(SSHD).exists() {
        assert!(std::env::var_os("CI").is_none(), "skipped on CI: {SSHD} is missing");
        eprintln!("skipped: {SSHD} is missing; `scripts/setup.sh lab` installs it");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let user = Command::new("id").arg("-un").output().unwrap().stdout;
    let settings = SshSettings {
        user: String::from_utf8(user).unwrap().trim().to_owned(),
        key_file: dir.path().join("key"),
        known_hosts_file: dir.path().join("known"),
    };
    let sshd = sshd(dir.path(), &settings).await;

    // A fence asks for a VM that runs nowhere, and gets the program's answer.
    let cmd = SiblingFenceVmCmd {
        vm_uuid: VmId::from_name("nobody"),
        failed_host_ip: "127.0.0.1".to_owned(),
        failed_host_ssh_port: sshd.port,
        failed_host_uuid: HostId::from_name("here"),
        machine: ringfence_drivers::node::machine(),
    };
    let said = sibling::fence(&settings, &cmd).await;
    match rustix::process::geteuid().is_root() {
        true => {
            let reply = said.unwrap();
            assert!(reply.ssh_reachable && !reply.qemu_found && !reply.alive && reply.reason.is_empty(), "{reply:?}");
        }
        false => assert_eq!(said.unwrap_err().opaque["reason"], "blind", "it does not see everybody's processes"),
    }

    // Whatever else the key is used for is taken for the name of a VM, and refused.
    let mark = dir.path().join("mark");
    for command in
        [format!("touch {}", mark.display()), format!("sh -s -- $(touch {})", mark.display()), "sh".to_owned()]
    {
        let script = format!("touch {}\n", mark.display());
        let run = ssh::run(&settings, "127.0.0.1".parse().unwrap(), sshd.port, &command, script.as_bytes(), UP).await;
        assert!(run.is_err(), "{command}: {run:?}");
        assert!(!mark.exists(), "{command} was run");
    }
}
