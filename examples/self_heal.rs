//! A vhost target dies and cannot be brought back for a while: redeploys back off, and begin anew after a recovery.
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
            Moment(&["vhost-1@host-0/Vhost Disconnected"], "the host answers pings, its target does not run"),
            Moment(INTENT, "the first redeploy, at once; the host is prepared before"),
            Moment(&["vhost-1@host-0/Vhost failed"], "it failed: two pings are skipped"),
            Moment(INTENT, "the second, and then four are skipped"),
            Moment(INTENT, "the third, and then eight; 64 at most, for as long as it takes"),
            Moment(&["over: TargetBroken"], "it could be deployed from now on"),
            Moment(INTENT, "the next try comes when its turn has come"),
            Moment(&["vhost-1@host-0/Vhost Connected"], "healed: the count of failures is zero again"),
            Moment(&["fault: TargetCrash"], "it dies once more"),
            Moment(&["vhost-1@host-0/Vhost Disconnected"], "the next ping sees it"),
            Moment(INTENT, "at once: what was is forgotten"),
            Moment(&["vhost-1@host-0/Vhost Connected"], "healed"),
        ],
    )
}
