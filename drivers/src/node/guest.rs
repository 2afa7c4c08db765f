//! Reset of a guest that lost its vhost target, before its queue is served again.
//!
//! Without in-flight tracking a new target does not know which requests the lost one finished: it completes some twice
//! and others never, and the guest reads data that was never written. QEMU cannot report what was negotiated: without
//! its target a device has no information. So a guest is reset unless tracking is proven.
//! Invariants: the guest is reset while its target does not run, and is held from before the reset until after it, so
//! that no earlier request is served; it runs again before the call returns, so that a killed agent leaves a guest that
//! the next deployment resets again.
//! Alternatives considered: a reset after the new target serves. Reads would be answered by then.

use std::{path::Path, time::Duration};

use ringfence_messages::{Code, ErrorCode, Result};
use serde_json::json;
use tokio::time::Instant;

use super::{lookout::Qemu, qmp::Qmp};

/// How long QEMU may take for each word. Too low: a busy QEMU's guest keeps its disk away. Too high: one that hangs
/// delays the others of its target.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);

/// Between looks at a reset.
const POLL: Duration = Duration::from_millis(10);

/// Resets the guest of a QEMU. False if there was nothing to reset: it waits for a migration, or ended.
///
/// # Errors
/// `SYS.1006` or `SYS.1001` if it is not known that it was reset: its queue must not be served.
pub(super) async fn reset(qemu: &Qemu) -> Result<bool> {
    match ask(qemu).await {
        Err(_) if !qemu.process.is_alive() => Ok(false),
        result => result,
    }
}

async fn ask(qemu: &Qemu) -> Result<bool> {
    let pid = qemu.process.pid;
    let Some(path) = &qemu.qmp else {
        let details = format!("QEMU {pid} was not started by the agent and cannot be queried: reset or restart its VM");
        return Err(ErrorCode::new(Code::OPERATION, details));
    };
    let mut qmp = Qmp::connect(path, ANSWER_TIMEOUT).await?;
    if state(&mut qmp, path).await? == "inmigrate" {
        return Ok(false);
    }
    for command in ["stop", "system_reset"] {
        qmp.execute(path, command, json!({}), ANSWER_TIMEOUT).await?;
    }
    let deadline = Instant::now() + ANSWER_TIMEOUT;
    // A guest that is held says so once it was reset.
    loop {
        match state(&mut qmp, path).await?.as_str() {
            "prelaunch" => break,
            other if Instant::now() >= deadline => {
                let details = format!("QEMU {pid} is {other}, not reset, after {ANSWER_TIMEOUT:?}");
                return Err(ErrorCode::new(Code::OPERATION, details));
            }
            _ => tokio::time::sleep(POLL).await,
        }
    }
    qmp.execute(path, "cont", json!({}), ANSWER_TIMEOUT).await?;
    Ok(true)
}

async fn state(qmp: &mut Qmp, path: &Path) -> Result<String> {
    let status = qmp.execute(path, "query-status", json!({}), ANSWER_TIMEOUT).await?;
    Ok(status["status"].as_str().unwrap_or_default().to_owned())
}
