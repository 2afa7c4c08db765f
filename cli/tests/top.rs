//! `ringfence top` on a terminal of its own, in front of a controller of memory.
#![allow(missing_docs)]

mod fake;

use std::{
    fs::File,
    io::{Read, Write},
    os::fd::OwnedFd,
    process::{Child, Command, ExitStatus, Stdio},
    sync::mpsc::{Receiver, channel},
    time::{Duration, Instant},
};

use fake::Fake;
use ringfence_messages::host::HostStatus;
use rustix::{
    process::{Pid, Signal, kill_process},
    pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt},
    termios::{Winsize, tcgetattr, tcsetwinsize},
};

const WITHIN: Duration = Duration::from_secs(30);

/// The program on a terminal of 80 x 24.
struct Top {
    child: Child,
    terminal: File,
    user: OwnedFd,
    said: Receiver<Vec<u8>>,
    screen: vt100::Parser,
}

impl Top {
    fn start(server: &str) -> Top {
        let terminal = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        grantpt(&terminal).unwrap();
        unlockpt(&terminal).unwrap();
        let name = ptsname(&terminal, Vec::new()).unwrap().into_string().unwrap();
        let user: OwnedFd = File::options().read(true).write(true).open(name).unwrap().into();
        tcsetwinsize(&user, Winsize { ws_row: 24, ws_col: 80, ws_xpixel: 0, ws_ypixel: 0 }).unwrap();
        let end = || Stdio::from(user.try_clone().unwrap());
        let mut command = Command::new(env!("CARGO_BIN_EXE_ringfence"));
        command.args(["top", "--server", server]).env("TERM", "xterm");
        let child = command.stdin(end()).stdout(end()).stderr(end()).spawn().unwrap();
        let terminal = File::from(terminal);
        let (mut reader, (tell, said)) = (terminal.try_clone().unwrap(), channel());
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(read @ 1..) = reader.read(&mut buffer) {
                if tell.send(buffer[..read].to_vec()).is_err() {
                    return;
                }
            }
        });
        Top { child, terminal, user, said, screen: vt100::Parser::new(24, 80, 0) }
    }

    /// Reads on until this is on the screen.
    fn until(&mut self, text: &str) {
        self.until_it(text, |screen| screen.contents().contains(text));
    }

    fn until_it(&mut self, what: &str, is: impl Fn(&vt100::Screen) -> bool) {
        let deadline = Instant::now() + WITHIN;
        while !is(self.screen.screen()) {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.said.recv_timeout(left) {
                Ok(bytes) => self.screen.process(&bytes),
                Err(_) => panic!("waited {WITHIN:?} in vain for {what:?}:\n{}", self.screen.screen().contents()),
            }
        }
    }

    fn press(&mut self, keys: &str) {
        self.terminal.write_all(keys.as_bytes()).unwrap();
    }

    fn ended(&mut self) -> ExitStatus {
        self.until_it("the picture of before", |screen| !screen.alternate_screen());
        let deadline = Instant::now() + WITHIN;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                use rustix::termios::LocalModes;
                let modes = tcgetattr(&self.user).unwrap().local_modes;
                assert!(modes.contains(LocalModes::ECHO | LocalModes::ICANON), "the terminal is left raw");
                return status;
            }
            assert!(Instant::now() < deadline, "it does not end");
            std::thread::yield_now();
        }
    }
}

impl Drop for Top {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn it_shows_what_is_and_what_happens_explains_and_gives_the_terminal_back() {
    let fake = Fake::new(5);
    let address = fake::serve(fake.clone()).await;
    tokio::task::block_in_place(|| {
        let mut top = Top::start(&format!("http://{address}"));
        top.until("Disconnected");
        top.until("hosts 4/5 connected");
        top.until("fence.intent");
        // The host that is not well is first, and is explained by the controller.
        top.press("\r");
        top.until("explained.");
        top.press("x");
        top.until_it("the tables again", |screen| !screen.contents().contains("explained."));
        top.press("/host-4\r");
        top.until("Hosts  1-1 of 1");
        // An event has everything asked again.
        fake.hosts.lock()[4].status = HostStatus::Connecting;
        fake.happens(&ringfence_messages::host::HostStateChanged {
            host_uuid: fake.hosts.lock()[4].uuid,
            host: "host-4".to_owned(),
            old_state: ringfence_messages::host::HostState::Enabled,
            new_state: ringfence_messages::host::HostState::Enabled,
            draining: false,
        });
        top.until("Connecting");
        tcsetwinsize(&top.user, Winsize { ws_row: 40, ws_col: 140, ws_xpixel: 0, ws_ypixel: 0 }).unwrap();
        top.screen.screen_mut().set_size(40, 140);
        // Nobody sends a signal of the new size here: the next picture sees it.
        top.until("Fences  none");
        top.press("q");
        assert_eq!(top.ended().code(), Some(0));
    });
}

#[test]
fn a_controller_that_is_away_is_waited_for_and_a_signal_gives_the_terminal_back() {
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut top = Top::start(&format!("http://{nobody}"));
    top.until("not reachable for");
    top.until("refused");
    kill_process(Pid::from_child(&top.child), Signal::TERM).unwrap();
    assert_eq!(top.ended().code(), Some(0));
}

#[test]
fn without_a_terminal_it_says_so_and_does_nothing() {
    let output = Command::new(env!("CARGO_BIN_EXE_ringfence")).arg("top").stdin(Stdio::null()).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("standard output is not a terminal") && said.contains("ringfence status --json"), "{said}");
    assert!(output.stdout.is_empty());
}
