//! What systemd hears from a controller and an agent that it started.
#![allow(missing_docs)]

use std::{
    fs,
    net::TcpStream,
    os::unix::net::UnixDatagram,
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

/// How long systemd, played here, waits for a word. Far above what a busy machine needs.
const PATIENCE: Duration = Duration::from_secs(60);

struct Ends(Child);

impl Drop for Ends {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A port that was free a moment ago.
fn port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn hears(dir: &Path, role: &str, port: u16, watchdog: bool) {
    let socket = UnixDatagram::bind(dir.join("notify")).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringfence"));
    command.args([role, "--config"]).arg(dir.join("config.toml"));
    command.env("NOTIFY_SOCKET", dir.join("notify")).env_remove("WATCHDOG_PID").env_remove("WATCHDOG_USEC");
    if watchdog {
        command.env("WATCHDOG_USEC", "200000");
    }
    let mut program = Ends(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
    let hear = || {
        let mut word = [0; 256];
        let length = socket.recv(&mut word).expect("it says something");
        String::from_utf8_lossy(&word[..length]).trim().to_owned()
    };
    assert_eq!(hear(), "READY=1", "{role}");
    TcpStream::connect(("127.0.0.1", port)).expect("it listens when it says so");
    if watchdog {
        assert_eq!([hear(), hear(), hear()], ["WATCHDOG=1"; 3], "{role}");
    } else {
        socket.set_nonblocking(true).unwrap();
        assert!(socket.recv(&mut [0; 16]).is_err(), "nobody asked it to");
    }
    assert!(program.0.try_wait().unwrap().is_none());
}

#[test]
fn a_controller_says_that_it_serves_and_lives() {
    for watchdog in [true, false] {
        let (dir, port) = (tempfile::tempdir().unwrap(), port());
        let config = format!(
            "[controller]\nlisten = \"127.0.0.1:{port}\"\nstate_dir = \"state\"\n[[cluster]]\nname = \"c1\"\n[[host]]\n\
             name = \"a\"\ncluster = \"c1\"\nmanagement_ip = \"127.0.0.1\"\nagent = \"http://127.0.0.1:1\"\n"
        );
        fs::write(dir.path().join("config.toml"), config).unwrap();
        hears(dir.path(), "serve", port, watchdog);
    }
}

#[test]
fn an_agent_says_that_it_serves_and_lives() {
    let (dir, port) = (tempfile::tempdir().unwrap(), port());
    let config = format!("host = \"a\"\nlisten = \"127.0.0.1:{port}\"\nstate_dir = \"state\"\ninsecure = true\n");
    fs::write(dir.path().join("config.toml"), config).unwrap();
    hears(dir.path(), "agent", port, true);
}
