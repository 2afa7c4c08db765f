//! Keeps libvirt from starting, at boot, a VM that Ringfence runs: it may run on another host by then (K9, I1).
//!
//! Purpose: while a host is down its VMs start elsewhere. Where an operator's attestation was the only proof, no
//! storage fence stands, and a domain that libvirt starts at boot writes before the agent answers its first ping.
//! Invariants: runs before libvirt; takes only VMs that this host's agent was ever ordered to run; removes a link and
//! never a file; what cannot be read is an error that names it, and does not keep the rest from being done.
//! Alternatives considered: to wait until the controller returned the host to service (libvirt would start the domain
//! then, beside the VM that moved, and the operator's other domains would wait for a controller); `virsh autostart
//! --disable` (libvirt has started its domains by the time it answers).

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use ringfence_messages::VmId;

use crate::{
    domain_xml,
    files::{read_limited, replace_file},
};

/// The longest domain, and the longest list of guests, that is read. Too low: a large domain is an error. Too high:
/// some other file is read.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// Where libvirt keeps what it starts at boot.
#[derive(Clone, Debug)]
pub struct Libvirt {
    /// Links to the domains with autostart.
    pub autostart: PathBuf,
    /// The guests that ran when the host was shut down: `libvirt-guests` starts them again. One line per URI: the URI,
    /// then UUIDs.
    pub guests: PathBuf,
}

impl Default for Libvirt {
    /// Debian's places.
    fn default() -> Libvirt {
        Libvirt { autostart: "/etc/libvirt/qemu/autostart".into(), guests: "/var/lib/libvirt/libvirt-guests".into() }
    }
}

/// What was done.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// What is not started any more, in words.
    pub held: Vec<String>,
    /// What could not be read or removed, with its path.
    pub errors: Vec<String>,
}

impl Libvirt {
    /// Removes these VMs from what libvirt starts at boot.
    pub fn hold(&self, vms: &BTreeSet<VmId>) -> Held {
        let mut done = Held::default();
        self.hold_links(vms, &mut done);
        if let Err(error) = self.hold_guests(vms, &mut done) {
            done.errors.push(format!("{}: {error}", self.guests.display()));
        }
        done
    }

    fn hold_links(&self, vms: &BTreeSet<VmId>, done: &mut Held) {
        let entries = match fs::read_dir(&self.autostart) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return,
            Err(error) => return done.errors.push(format!("{}: {error}", self.autostart.display())),
        };
        let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        paths.retain(|path| path.extension().is_some_and(|extension| extension == "xml"));
        paths.sort();
        for path in paths {
            match hold_link(&path, vms) {
                Ok(None) => {}
                Ok(Some(held)) => done.held.push(held),
                Err(error) => done.errors.push(format!("{}: {error}", path.display())),
            }
        }
    }

    fn hold_guests(&self, vms: &BTreeSet<VmId>, done: &mut Held) -> Result<(), String> {
        if !self.guests.exists() {
            return Ok(());
        }
        let text = read(&self.guests)?;
        let is_held = |word: &&str| word.parse().is_ok_and(|vm| vms.contains(&vm));
        let held: Vec<&str> = text.split_whitespace().filter(is_held).collect();
        if held.is_empty() {
            return Ok(());
        }
        let rest = |line: &str| line.split_whitespace().filter(|word| !is_held(word)).collect::<Vec<_>>().join(" ");
        let lines: String = text.lines().map(|line| rest(line) + "\n").collect();
        replace_file(&self.guests, lines.as_bytes()).map_err(|error| error.to_string())?;
        done.held.extend(held.iter().map(|vm| format!("VM {vm}, which ran when the host was shut down")));
        Ok(())
    }
}

fn hold_link(path: &Path, vms: &BTreeSet<VmId>) -> Result<Option<String>, String> {
    let domain = domain_xml::read(&read(path)?)?;
    let Some(vm) = domain.uuid.parse().ok().filter(|vm| vms.contains(vm)) else { return Ok(None) };
    let is_link = fs::symlink_metadata(path).is_ok_and(|metadata| metadata.file_type().is_symlink());
    if !is_link {
        return Err(format!(
            "domain {} (VM {vm}) would start at boot, and this is no link: move the file away",
            domain.name
        ));
    }
    fs::remove_file(path).map_err(|error| format!("domain {} (VM {vm}): {error}", domain.name))?;
    Ok(Some(format!("domain {} (VM {vm}), which had autostart", domain.name)))
}

fn read(path: &Path) -> Result<String, String> {
    read_limited(fs::File::open(path).map_err(|error| error.to_string())?, MAX_FILE_BYTES)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    const OURS: &str = "11111111-1111-4111-8111-111111111111";
    const OTHER: &str = "22222222-2222-4222-8222-222222222222";

    fn host() -> (tempfile::TempDir, Libvirt) {
        let dir = tempfile::tempdir().unwrap();
        let files = Libvirt { autostart: dir.path().join("autostart"), guests: dir.path().join("libvirt-guests") };
        fs::create_dir(&files.autostart).unwrap();
        for (name, uuid) in [("ours", OURS), ("other", OTHER)] {
            let file = dir.path().join(format!("{name}.xml"));
            fs::write(&file, format!("<domain type='kvm'><name>{name}</name><uuid>{uuid}</uuid></domain>")).unwrap();
            symlink(&file, files.autostart.join(format!("{name}.xml"))).unwrap();
        }
        fs::write(&files.guests, format!("default {OTHER} {OURS}\nqemu:///session {OURS}\n")).unwrap();
        (dir, files)
    }

    fn ours() -> BTreeSet<VmId> {
        BTreeSet::from([OURS.parse().unwrap()])
    }

    #[test]
    fn libvirt_starts_other_domains_alone() {
        let (dir, files) = host();
        let done = files.hold(&ours());
        assert_eq!((done.held.len(), done.errors.len()), (3, 0), "{done:?}");
        assert!(!files.autostart.join("ours.xml").exists() && dir.path().join("ours.xml").exists(), "the link alone");
        assert!(files.autostart.join("other.xml").exists());
        assert_eq!(fs::read_to_string(&files.guests).unwrap(), format!("default {OTHER}\nqemu:///session\n"));
        assert_eq!(files.hold(&ours()), Held::default(), "a second time there is nothing to do");
    }

    #[test]
    fn unreadable_file_is_reported_and_the_rest_is_done() {
        let (_dir, files) = host();
        fs::write(files.autostart.join("a.xml"), "<domain").unwrap();
        fs::remove_file(files.autostart.join("ours.xml")).unwrap();
        fs::write(files.autostart.join("ours.xml"), format!("<domain><name>o</name><uuid>{OURS}</uuid></domain>"))
            .unwrap();
        let done = files.hold(&ours());
        assert_eq!(done.held.len(), 2, "{done:?}");
        assert!(done.errors[0].contains("a.xml: it is no XML"), "{done:?}");
        assert!(done.errors[1].contains("ours.xml: domain o") && files.autostart.join("ours.xml").exists(), "{done:?}");
    }

    #[test]
    fn a_host_without_libvirt_has_nothing_to_hold() {
        let dir = tempfile::tempdir().unwrap();
        let files = Libvirt { autostart: dir.path().join("none"), guests: dir.path().join("none either") };
        assert_eq!(files.hold(&ours()), Held::default());
    }
}
