//! A host is cut off from everything, SSH too: nobody can kill what runs there, so its storage must refuse it.
//!
//! `cargo run --example partition`

mod story;

use story::{Moment, tell};

const STORY: &str = r#"
title = "host-0 is cut off from everything for two minutes, its VM lives on"
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
            Moment(&["ha.host-failed host-0"], "two siblings looked for it, and saw neither sshd nor agent"),
            Moment(&["fence.intent vm-0 sibling"], "level 1: a sibling over SSH"),
            Moment(
                &["fence.intent vm-0 storage"],
                "no SSH: level 2. Whether it lives is not known, nor does it matter",
            ),
            Moment(
                &["ceph.storage-fence host-0", "intended"],
                "on disk first: an entry that is forgotten is never lifted",
            ),
            Moment(&["ceph: refuses"], "Ceph takes no more writes from that address"),
            Moment(&["ceph.ha.sibling-fence vm-0 success-storage-fenced"], "read back from the OSD map, then audited"),
            Moment(&["incarnation 2 on", "writes"], "the VM writes again, on another host"),
            Moment(&["everything that was broken is mended"], "the old QEMU finds its network again, and is refused"),
            Moment(&["host-0: QEMU of vm-0 ends"], "the host answers: what is left on it is killed first"),
            Moment(&["ceph: lets", "in again"], "only then is the entry lifted"),
            Moment(&["ha.host-quarantine host-0", "quarantined=false"], "and the host let in"),
        ],
    )
}
