//! The race that Ringfence prevents: a VM whose watcher on its volume is gone, and which still runs.
//!
//! A host loses its storage for half a minute, and the controller loses the host. Ceph lists no watcher of vm-0. Naive
//! HA concludes that vm-0 is dead and starts a second QEMU; the storage returns, and two QEMUs write one disk.
//!
//! `cargo run --example race`

mod story;

use story::{Moment, tell};

const STORY: &str = r#"
title = "vm-0's volume has no watcher, and vm-0 runs"
lasting = 300

[[vm]]                          # three hosts; the VM runs on the first, its volume is on Ceph
host = "host-0"

[[step]]                        # its storage is unreachable: the watcher expires, writes hang in the guest
at = 30
lasting = 100
fault = { kind = "cut", from = "host-0", to = "ceph" }

[[step]]                        # and only the controller does not reach it; sibling hosts do
at = 31
lasting = 150
fault = { kind = "cut", from = "controller", to = "host-0" }

[[expect]]                      # it runs elsewhere, long before the storage returns
at = 100
vm = "vm-0"
on = "not host-0"
"#;

fn main() -> Result<(), String> {
    tell(
        STORY,
        &[
            Moment(&["vm-0", "writes no more"], "a cut, not a death: QEMU waits, and would continue to write"),
            Moment(
                &["host.status-changed host-0 Disconnected"],
                "three attempts in a row; the cause may be the controller's network",
            ),
            Moment(&["vm.state-changed vm-0 Unknown"], "not Stopped: the state is unknown, and nothing is started"),
            Moment(&["ha.host-quarantine host-0", "quarantined=true"], "out of service before any act on the host"),
            Moment(&["fence.intent vm-0 sibling"], "on disk before a sibling host acts"),
            Moment(&["host-0: QEMU of vm-0 ends"], "a sibling host killed it over SSH, by its exact uuid"),
            Moment(&["ceph.ha.sibling-fence vm-0 success-killed"], "absence verified and audited: now there is proof"),
            Moment(&["vm.state-changed vm-0 Starting"], "a start permit, valid for 30 s, refers to this proof"),
            Moment(&["incarnation 2", "writes"], "one writer at a time"),
            Moment(&["over: Cut", "ceph"], "the storage returns: no second writer is left"),
            Moment(
                &["ha.host-quarantine host-0", "quarantined=false"],
                "its processes listed, reconciled, in service again",
            ),
        ],
    )
}
