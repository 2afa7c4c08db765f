//! The second story: a host loses power, and its VM fails over. On the lab: real Ceph, three hosts in namespaces. It
//! needs root, Ceph's programs and the lab's scripts; without them the story is skipped with a message.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use ringfence_actors::ports::Record;
use ringfence_messages::{
    Code, ErrorCode, Event, Result,
    fence::SiblingFenceAudited,
    ha::{HostFailed, HostQuarantineChanged, VmHaStarted},
};
use serde::de::DeserializeOwned;
use tokio::{process::Command, time::Instant};

use super::timeline::Timeline;

/// The scripts, in the source tree of this program.
const SCRIPTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../lab");

/// Time limit of one step.
const STEP_TIMEOUT: Duration = Duration::from_secs(60);

const HOST: &str = "host-a";
const VM: &str = "vm1";

/// The reason why the story cannot run here, if any.
pub(super) fn missing() -> Option<&'static str> {
    let programs = ["ceph-mon", "ceph-osd", "rbd", "sshd", "nft"];
    let found = |name: &&str| ["/usr/bin", "/usr/sbin"].iter().any(|dir| Path::new(dir).join(name).exists());
    if !rustix::process::geteuid().is_root() {
        Some("hosts in namespaces need root")
    } else if !Path::new(SCRIPTS).join("up.sh").exists() {
        Some("the lab's scripts are not in the source tree of this program")
    } else if !programs.iter().all(found) {
        Some("Ceph, sshd or nft are not installed: `make demo` as root installs them")
    } else {
        None
    }
}

/// The demo's own lab; dropping it takes it down.
struct Lab {
    dir: PathBuf,
    id: String,
    program: PathBuf,
}

impl Lab {
    fn script(&self, name: &str, arguments: &[&str]) -> std::process::Command {
        let mut command = std::process::Command::new("bash");
        command.arg(Path::new(SCRIPTS).join(name)).args(arguments).stdin(Stdio::null());
        command.env("TB", &self.dir).env("TB_ID", &self.id).env("RINGFENCE", &self.program);
        command
    }

    async fn run(&self, name: &str, arguments: &[&str]) -> Result<String> {
        let output = Command::from(self.script(name, arguments)).output().await;
        said(name, output)
    }

    async fn ask(&self, arguments: &[&str]) -> Result<Vec<u8>> {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &format!("{}-net", self.id)]).arg(&self.program).args(arguments);
        command.env_remove("RINGFENCE_SERVER").stdin(Stdio::null());
        said("ringfence", command.output().await).map(String::into_bytes)
    }

    async fn events(&self, after: u64) -> Result<Vec<Record>> {
        let said = self.ask(&["events", "--json", "--after", &after.to_string()]).await?;
        serde_json::from_slice(&said).map_err(|e| ErrorCode::new(Code::IO, e.to_string()))
    }

    /// Waits for an event of one type.
    async fn heard<E: Event + DeserializeOwned>(&self, after: u64, is: impl Fn(&E) -> bool) -> Result<E> {
        let end = Instant::now() + STEP_TIMEOUT;
        loop {
            let records = self.events(after).await.unwrap_or_default();
            let of_topic = records.iter().filter(|record| record.topic == E::TOPIC);
            if let Some(event) = of_topic.filter_map(|record| record.event::<E>().ok()).find(|event| is(event)) {
                return Ok(event);
            }
            if Instant::now() > end {
                return Err(ErrorCode::new(Code::TIMEOUT, format!("no {} within {STEP_TIMEOUT:?}", E::TOPIC)));
            }
        }
    }

    /// Output of the guest's serial line on a host.
    async fn serial(&self, host: &str) -> String {
        self.run("host-exec.sh", &[host, "cat", &format!("/run/{VM}.serial")]).await.unwrap_or_default()
    }

    async fn writes(&self, host: &str) -> Result<usize> {
        let end = Instant::now() + STEP_TIMEOUT;
        loop {
            let serial = self.serial(host).await;
            if serial.contains('S') {
                let details = format!("another writer on the disk of {VM}: {serial}");
                return Err(ErrorCode::new(Code::INTERNAL, details));
            }
            match serial.matches('.').count() {
                count if count >= 5 => return Ok(count),
                _ if Instant::now() > end => {
                    return Err(ErrorCode::new(Code::TIMEOUT, format!("{VM} does not write on {host}")));
                }
                _ => {}
            }
        }
    }
}

fn said(what: &str, output: std::io::Result<std::process::Output>) -> Result<String> {
    let output = output.map_err(|e| ErrorCode::new(Code::IO, format!("{what}: {e}")))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let errors = String::from_utf8_lossy(&output.stderr);
    Err(ErrorCode::new(Code::OPERATION, format!("{what}: {}: {:.300}", output.status, errors.trim())))
}

impl Drop for Lab {
    fn drop(&mut self) {
        let down = self.script("all-down.sh", &[]).output();
        if !down.is_ok_and(|output| output.status.success()) {
            tracing::warn!(lab = self.id, "the lab was not taken down completely");
        }
    }
}

/// Runs the story.
pub(super) async fn tell(timeline: &mut Timeline, program: &Path) -> Result<()> {
    let id = format!("d{}", std::process::id());
    let dir = std::env::temp_dir().join(format!("ringfence-lab-{id}"));
    let lab = Lab { dir, id, program: program.to_owned() };
    timeline
        .step("a lab: real Ceph, three hosts", lab.run("up.sh", &[]), |_| {
            "second story: real Ceph, three hosts with agents, a controller, three VMs that must never stop".to_owned()
        })
        .await?;
    timeline.step("the guest's first writes", lab.writes(HOST), |_| format!("{VM} runs and writes on {HOST}")).await?;
    let after = lab.events(0).await?.last().map_or(0, |record| record.seq);
    let pulled = Instant::now();
    lab.run("host-down.sh", &[HOST]).await?;
    timeline.note(&format!("the plug of {HOST} is pulled"));
    let since = || format!("{:.1} s after the plug", pulled.elapsed().as_secs_f64());
    let failed = lab.heard(after, |event: &HostFailed| event.host == HOST);
    timeline
        .step("the host to fail", failed, |event| {
            format!("{HOST} failed: neither the controller nor {} reaches it, {}", event.unseen_by.join(", "), since())
        })
        .await?;
    let fenced = lab.heard(after, |event: &SiblingFenceAudited| event.vm == VM);
    let fenced = timeline
        .step("the fence", fenced, |event| format!("{VM} is fenced: {}: {}", event.outcome, last_found(event)))
        .await?;
    if !fenced.outcome.as_str().starts_with("success") {
        return Err(ErrorCode::new(Code::OPERATION, format!("the fence did not succeed: {}", fenced.reason)));
    }
    let started = lab.heard(after, |event: &VmHaStarted| event.vm == VM);
    let started =
        timeline.step("the VM elsewhere", started, |event| format!("only then it starts on {}", event.host)).await?;
    timeline
        .step("the guest to write there", lab.writes(&started.host), |_| {
            format!("its guest writes on {}, {}", started.host, since())
        })
        .await?;
    let back = async {
        lab.run("host-up.sh", &[HOST]).await?;
        lab.run("agent-up.sh", &[HOST]).await?;
        lab.heard(after, |event: &HostQuarantineChanged| event.host == HOST && !event.quarantined).await
    };
    timeline
        .step("the host to come back", back, |event| format!("{HOST} returned to service: {}", event.reason))
        .await?;
    let alone = async {
        let count = lab.writes(&started.host).await?;
        let verified = lab.ask(&["events", "--verify"]).await?;
        Ok((count, String::from_utf8_lossy(&verified).trim().to_owned()))
    };
    timeline
        .step("the check for other writers", alone, |(_, verified)| {
            format!(
                "no other writer on its disk; the journal: {}",
                verified.split(", last hash").next().unwrap_or_default()
            )
        })
        .await?;
    Ok(())
}

/// The last finding, or the reason of a record without evidence.
fn last_found(audit: &SiblingFenceAudited) -> &str {
    audit.evidence.last().map_or(&audit.reason, |of| &of.said)
}
