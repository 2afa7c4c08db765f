//! A vhost target dies and cannot be redeployed for a while: the backoff grows, and is reset by the recovery.
//!
//! `cargo run --example self_heal`

mod story;

use story::{Moment, tell};

const STORY: &str = r#"
title = "the vhost target of host-0 is broken for ten minutes"
lasting = 1200

[[vm]]
host = "host-1"
vhost = true

[[step]]
at = 30
lasting = 600
fault = { kind = "target-broken", host = "host-0" }

[[step]]                        # later it dies once more
at = 1000
lasting = 1
fault = { kind = "target-crash", host = "host-0" }
"#;

fn main() -> Result<(), String> {
    const INTENT: &[&str] = &["storage.protocol-redeploy vhost-1@host-0/Vhost intent"];
    tell(
        STORY,
        &[
            Moment(&["vhost-1@host-0/Vhost Disconnected"], "the host answers pings, but its target does not run"),
            Moment(INTENT, "the first redeploy, at once, after the host is prepared"),
            Moment(&["vhost-1@host-0/Vhost failed"], "failed: the backoff skips two pings"),
            Moment(INTENT, "the second redeploy; then four pings are skipped"),
            Moment(INTENT, "the third redeploy; then eight pings are skipped, later at most 64"),
            Moment(&["over: TargetBroken"], "from now on a redeploy would succeed"),
            Moment(INTENT, "the next redeploy waits for its turn"),
            Moment(&["vhost-1@host-0/Vhost Connected"], "healthy: the backoff is reset"),
            Moment(&["fault: TargetCrash"], "the target dies again"),
            Moment(&["vhost-1@host-0/Vhost Disconnected"], "the next ping detects it"),
            Moment(INTENT, "redeployed at once: the backoff was reset"),
            Moment(&["vhost-1@host-0/Vhost Connected"], "healthy"),
        ],
    )
}
