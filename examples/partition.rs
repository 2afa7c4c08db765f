//! A host is cut off from everything, including SSH: no sibling host can kill its VM, so the storage must reject the
//! host.
//!
//! `cargo run --example partition`

mod story;

use story::{Moment, tell};

const STORY: &str = r#"
title = "host-0 is cut off from everything for two minutes, and its VM continues to run"
lasting = 300

[[vm]]
host = "host-0"

[[step]]
at = 30
lasting = 120
fault = { kind = "cut", from = "host-0", to = "everything" }

[[expect]]
at = 80
vm = "vm-0"
on = "not host-0"
"#;

fn main() -> Result<(), String> {
    tell(
        STORY,
        &[
            Moment(&["ha.host-failed host-0"], "two sibling hosts probed it and reached neither sshd nor agent"),
            Moment(&["fence.intent vm-0 sibling"], "level 1: a sibling host over SSH"),
            Moment(
                &["fence.intent vm-0 storage"],
                "no SSH: level 2. Whether the VM runs is unknown, and does not matter",
            ),
            Moment(
                &["ceph.storage-fence host-0", "intended"],
                "on disk first, so that a later controller removes the entry",
            ),
            Moment(&["ceph: rejects"], "Ceph rejects writes from that address"),
            Moment(&["ceph.ha.sibling-fence vm-0 success-storage-fenced"], "read back from the OSD map, then audited"),
            Moment(&["incarnation 2 on", "writes"], "the VM writes again, on another host"),
            Moment(&["all faults are over"], "the old QEMU reaches its network again, and Ceph rejects it"),
            Moment(&["host-0: QEMU of vm-0 ends"], "the host answers: leftover VMs are killed first"),
            Moment(&["ceph: accepts", "again"], "only then is the entry removed"),
            Moment(&["ha.host-quarantine host-0", "quarantined=false"], "and the host returns to service"),
        ],
    )
}
