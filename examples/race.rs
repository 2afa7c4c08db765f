//! The race that Ringfence exists for: a VM whose watch on its volume is gone, and which still lives.
//!
//! A host loses its storage for half a minute, and the controller loses the host. Ceph says "nobody watches vm-0", which
//! naive HA takes for "vm-0 is dead": it starts a second one, the storage comes back, and two QEMUs write one disk.
//!
//! `cargo run --example race`

mod story;

use story::{Moment, tell};

const STORY: &str = r#"
title = "nobody watches vm-0's volume, and it is alive"
lasting = 300

[[vm]]                          # three hosts; it runs on the first, its volume is on Ceph
host = "host-0"

[[step]]                        # its storage is out of reach: the watch runs out, writes hang in the guest
at = 30
lasting = 100
fault = { kind = "cut", from = "host-0", to = "ceph" }

[[step]]                        # and the controller alone does not reach it; its siblings do
at = 31
lasting = 150
fault = { kind = "cut", from = "controller", to = "host-0" }

[[expect]]                      # it runs elsewhere, long before the storage is back
at = 100
vm = "vm-0"
on = "not host-0"
"#;

fn main() -> Result<(), String> {
    tell(
        STORY,
        &[
            Moment(&["vm-0", "writes no more"], "a cut, not a death: QEMU waits, and would go on writing"),
            Moment(&["host.status-changed host-0 Disconnected"], "three tries in a row; it may be us"),
            Moment(&["vm.state-changed vm-0 Unknown"], "not Stopped: nobody knows, and nothing is started"),
            Moment(&["ha.host-quarantine host-0", "quarantined=true"], "out of service before anything is done there"),
            Moment(&["fence.intent vm-0 sibling"], "on disk before a sibling is sent"),
            Moment(&["host-0: QEMU of vm-0 ends"], "a sibling killed it over SSH, by its exact uuid"),
            Moment(&["ceph.ha.sibling-fence vm-0 success-killed"], "verified gone, and audited: now there is proof"),
            Moment(&["vm.state-changed vm-0 Starting"], "a permit, good for half a minute, names this proof"),
            Moment(&["incarnation 2", "writes"], "one writer at a time"),
            Moment(&["over: Cut", "ceph"], "the storage is back: there is nobody left to write twice"),
            Moment(&["ha.host-quarantine host-0", "quarantined=false"], "asked what it runs, clean, in service again"),
        ],
    )
}
