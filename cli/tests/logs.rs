//! Logs as JSON: every line is one object, down to the last words; a secret is in none of them, however much is logged.
#![allow(missing_docs)]

use std::{
    fs,
    io::{BufRead, BufReader},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

const TOKEN: &str = "0123456789abcdef-secret";
const WITHIN: Duration = Duration::from_secs(60);

/// A program that logs as JSON into a file.
struct Program {
    child: Child,
    log: PathBuf,
}

impl Program {
    fn start(what: &str, config: &Path) -> Program {
        let log = config.with_extension("log");
        let mut command = Command::new(env!("CARGO_BIN_EXE_ringfence"));
        command.args([what, "--log-format", "json", "--config"]).arg(config).env("RUST_LOG", "trace");
        let stderr = fs::File::create(&log).unwrap();
        Program { child: command.stdout(Stdio::piped()).stderr(stderr).spawn().unwrap(), log }
    }

    /// Where it listens, once it does.
    fn address(&mut self) -> String {
        let mut line = String::new();
        BufReader::new(self.child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        line.trim().rsplit(' ').next().unwrap_or_default().to_owned()
    }

    fn lines(&self) -> Vec<Value> {
        let text = fs::read_to_string(&self.log).unwrap();
        assert!(!text.contains(TOKEN), "the token is in the log");
        // The last one may be on its way.
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        let object = |line: &str| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"));
        whole.lines().map(object).collect()
    }

    fn end(mut self) -> (Option<i32>, Vec<Value>) {
        let _ = kill_process(Pid::from_child(&self.child), Signal::TERM);
        let code = self.child.wait().unwrap().code();
        (code, self.lines())
    }
}

fn says(line: &Value, words: &str) -> bool {
    line["fields"]["message"].as_str().is_some_and(|message| message.contains(words))
}

#[test]
fn every_line_is_an_object_and_no_secret_is_in_any() {
    let dir = tempfile::tempdir().unwrap();
    let token = dir.path().join("token");
    fs::write(&token, TOKEN).unwrap();
    fs::set_permissions(&token, fs::Permissions::from_mode(0o600)).unwrap();
    let write = |name: &str, text: String| {
        fs::write(dir.path().join(name), text).unwrap();
        dir.path().join(name)
    };
    let agent = "host = \"host-a\"\nlisten = \"127.0.0.1:0\"\nstate_dir = \"agent\"\n[auth]\ntoken_file = \"token\"\n";
    let mut agent = Program::start("agent", &write("agent.toml", agent.to_owned()));
    let at = agent.address();
    let controller = format!(
        "[controller]\nlisten = \"127.0.0.1:0\"\nstate_dir = \"state\"\nagent_token_file = \"token\"\n[ping]\n\
         interval = \"100ms\"\n\
         [[cluster]]\nname = \"c1\"\n[[host]]\nname = \"host-a\"\ncluster = \"c1\"\nmanagement_ip = \"127.0.0.1\"\n\
         agent = \"http://{at}\"\n"
    );
    let mut controller = Program::start("serve", &write("controller.toml", controller));
    let server = format!("http://{}", controller.address());
    // Once it is connected, the token went over the wire, and was the right one.
    let deadline = Instant::now() + WITHIN;
    loop {
        let hosts =
            Command::new(env!("CARGO_BIN_EXE_ringfence")).args(["hosts", "--json", "--server", &server]).output();
        let hosts: Value = serde_json::from_slice(&hosts.unwrap().stdout).unwrap_or_default();
        if hosts[0]["status"] == "Connected" {
            break;
        }
        assert!(Instant::now() < deadline, "waited {WITHIN:?} in vain until the host is connected: {hosts}");
    }
    for (program, first) in [(controller, "the controller serves"), (agent, "the agent serves")] {
        let (code, lines) = program.end();
        assert_eq!(code, Some(0));
        assert!(lines.iter().any(|line| says(line, first)), "{first}");
        for line in &lines {
            for key in ["timestamp", "level", "target"] {
                assert!(line[key].is_string(), "{key}: {line}");
            }
            assert!(line["fields"].is_object(), "{line}");
        }
    }
}

#[test]
fn last_words_are_an_object_too() {
    let dir = tempfile::tempdir().unwrap();
    for (name, text, code, words) in [
        ("odd.toml", "[controller]\nstate_dir = 7\n".to_owned(), 2, "odd.toml:2"),
        (
            "no-token.toml",
            "[controller]\nstate_dir = \"s\"\nlisten = \"127.0.0.1:0\"\nagent_token_file = \"none\"\n[[cluster]]\n\
             name = \"c\"\n\
             [[host]]\nname = \"a\"\ncluster = \"c\"\nmanagement_ip = \"127.0.0.1\"\nagent = \"http://127.0.0.1:1\"\n"
                .to_owned(),
            1,
            "token file",
        ),
    ] {
        let config = dir.path().join(name);
        fs::write(&config, text).unwrap();
        let mut program = Program::start("serve", &config);
        assert_eq!(program.child.wait().unwrap().code(), Some(code), "{name}");
        assert!(
            program.lines().iter().any(|line| line["level"] == "ERROR" && says(line, words)),
            "{:?}",
            program.lines()
        );
    }
}
