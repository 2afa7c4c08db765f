//! The writers of each volume, present and past: the basis of the rules.
//!
//! A guest writes as long as its QEMU runs and its storage accepts writes. So the history of a volume is a list of
//! spans: this QEMU wrote from one time to another.
//! Invariant: spans follow from the state of the world, never from what an actor observed.

use std::{collections::BTreeMap, time::Duration};

use ringfence_actors::inventory::Vm;
use ringfence_messages::{StorageId, vm::InstallPath};

use super::{State, links::Node, machine::WATCH_TIMEOUT};

/// Everything that was written, by VM: its volumes are written together.
#[derive(Debug)]
pub(crate) struct Disks {
    volumes: BTreeMap<usize, Vec<Span>>,
    /// The storage whose target a VM writes through; `None` for a VM that writes to Ceph.
    vhost: Vec<Option<StorageId>>,
}

/// One QEMU wrote for so long.
#[derive(Clone, Debug)]
struct Span {
    uid: u64,
    who: String,
    from: Duration,
    to: Option<Duration>,
}

impl Disks {
    /// Disks of these VMs, on which nothing was written yet.
    pub(crate) fn new(vms: &[Vm]) -> Disks {
        let vhost_of = |vm: &Vm| {
            let volume = &vm.volumes[0];
            (!matches!(volume.install_path, InstallPath::Ceph { .. })).then_some(volume.storage)
        };
        Disks { volumes: BTreeMap::new(), vhost: vms.iter().map(vhost_of).collect() }
    }

    /// The storage whose target a VM writes through, if it does not write to Ceph.
    pub(crate) fn vhost_of(&self, vm: usize) -> Option<StorageId> {
        self.vhost[vm]
    }

    /// A QEMU begins to write; what is wrong with that, if something is.
    pub(crate) fn writes(&mut self, vm: usize, uid: u64, who: String, now: Duration) -> Option<String> {
        let spans = self.volumes.entry(vm).or_default();
        let wrong = match spans.last() {
            Some(last) if last.uid != uid && last.to.is_none() => {
                Some(format!("two write on the disk of vm-{vm}: {} and {who}", last.who))
            }
            Some(last) if last.uid != uid && spans.iter().any(|span| span.uid == uid) => {
                Some(format!("{who} writes again on the disk of vm-{vm}, on which {} has written since", last.who))
            }
            _ => None,
        };
        spans.push(Span { uid, who, from: now, to: None });
        // Long runs: only the newest spans can matter, and the first of each writer.
        if spans.len() > 64 {
            let newest = spans.split_off(32);
            spans.retain(|span| span.to.is_none());
            spans.extend(newest);
        }
        wrong
    }

    pub(crate) fn stops(&mut self, uid: u64, now: Duration) {
        for span in self.volumes.values_mut().flatten().filter(|span| span.uid == uid && span.to.is_none()) {
            span.to = Some(now.max(span.from));
        }
    }
}

impl State {
    /// Updates the writers on a host after a change.
    pub(crate) fn settle(&mut self, host: usize) {
        let now = self.now;
        let machine = &self.machines[host];
        let live = machine.answers();
        let reach = live && self.links.open(Node::Host(host), Node::Ceph);
        let refused = self.ceph.refuses(&machine.storage_ips, now);
        let contact = reach && now >= machine.contact_from;
        let targets = machine.targets.clone();
        let name = machine.name.clone();
        let mut changes = Vec::new();
        self.machines[host].contact = contact;
        if live {
            self.exports_land(host, now);
        }
        let machine = &mut self.machines[host];
        for process in &mut machine.processes {
            let vhost = self.disks.vhost_of(process.vm);
            // Watches: kept in contact, lost 30 s after, dropped at once where refused.
            match (contact, refused) {
                (true, true) => (process.watch_until, process.unwatched) = (Some(now), true),
                (true, false) if !process.unwatched => process.watch_until = None,
                (false, _) if process.watch_until.is_none() => process.watch_until = Some(now + WATCH_TIMEOUT),
                _ => {}
            }
            let can = live
                && contact
                && !process.incoming
                && !process.paused
                && process.claim.is_none()
                && now >= process.writes_from
                && match vhost {
                    Some(storage) => targets.get(&storage).copied().unwrap_or(false),
                    None => !refused,
                };
            if can != process.writes {
                process.writes = can;
                if let Some(export) = machine.exports.get_mut(&process.vm).filter(|of| of.uid == process.uid) {
                    export.held = !can && live && !contact && targets.get(&export.storage) == Some(&true);
                }
                changes.push((process.uid, process.vm, process.pid, process.incarnation, can));
            }
        }
        for (uid, vm, pid, incarnation, can) in changes {
            if can {
                let who = format!("incarnation {incarnation} on {name} (pid {pid})");
                self.log(format_args!("vm-{vm}: {who} writes"));
                if let Some(wrong) = self.disks.writes(vm, uid, who, now) {
                    self.violation("I1", wrong);
                }
            } else {
                self.log(format_args!("vm-{vm}: incarnation {incarnation} on {name} (pid {pid}) writes no more"));
                self.disks.stops(uid, now);
            }
        }
    }

    pub(crate) fn settle_all(&mut self) {
        (0..self.machines.len()).for_each(|host| self.settle(host));
    }
}
