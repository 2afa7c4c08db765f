//! Reads name, uuid and writable disks from a libvirt domain.
//!
//! Purpose: the check of a config file and the start of a VM read a domain in the same way.
//! Invariants: pure; a disk that may be writable counts as writable; comments, metadata and elements of the same name
//! elsewhere in the document are ignored.
//! Alternatives considered: a search for `<uuid>` in the text (comments have one too); libvirt itself (it is not
//! installed where the check runs).
//! Not read: `nvram` and `filesystem`, which are files of the host and no volumes, and the cluster of the hosts of an
//! RBD source.

use std::fmt;

use roxmltree::{Document, Node};

use crate::qemu_disks;

/// What a domain says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Domain {
    /// Its `name`.
    pub name: String,
    /// Its `uuid`; empty if it has none: libvirt would make one up.
    pub uuid: String,
    /// Everything that it may write to, in the order of the document.
    pub disks: Vec<Disk>,
}

/// A disk that a domain may write to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disk {
    /// How the domain calls it: `vda`.
    pub target: String,
    /// What it lies on.
    pub source: Source,
}

/// What a disk lies on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// An RBD image.
    Rbd {
        /// Its pool.
        pool: String,
        /// Its name.
        image: String,
    },
    /// A file or a device of the host.
    Path(String),
    /// The socket of a vhost target.
    Socket(String),
    /// Something that no volume can be.
    Other(String),
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::Rbd { pool, image } => write!(f, "the RBD image {pool}/{image}"),
            Source::Path(path) => write!(f, "{path}"),
            Source::Socket(path) => write!(f, "the socket {path}"),
            Source::Other(what) => f.write_str(what),
        }
    }
}

impl fmt::Display for Disk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "disk {} ({})", self.target, self.source)
    }
}

/// Reads a domain.
///
/// # Errors
/// It is no XML, or no domain; in words, with line and column.
pub fn read(xml: &str) -> Result<Domain, String> {
    let document = Document::parse(xml).map_err(|error| format!("it is no XML: {error}"))?;
    let domain = document.root_element();
    if domain.tag_name().name() != "domain" {
        return Err(format!("it is a <{}>, not a <domain>", domain.tag_name().name()));
    }
    let text = |name| child(domain, name).and_then(|of| of.text()).unwrap_or_default().trim().to_owned();
    let devices = || domain.children().filter(|of| of.has_tag_name("devices"));
    let mut disks: Vec<Disk> =
        devices().flat_map(|of| of.children()).filter(|of| of.has_tag_name("disk")).flat_map(writable).collect();
    let passed = devices().flat_map(|of| of.children()).filter(|of| of.has_tag_name("hostdev"));
    disks.extend(passed.filter_map(|of| {
        let kind = of.attribute("type").unwrap_or_default();
        let what = Source::Other(format!("a {kind} device of the host"));
        matches!(kind, "scsi" | "scsi_host" | "storage").then(|| Disk { target: "hostdev".to_owned(), source: what })
    }));
    // In a namespace of QEMU's own; whatever it is called, it ends in the command line.
    let lines = domain.children().filter(|of| of.tag_name().name() == "commandline");
    let args: Vec<&str> = lines.flat_map(|of| of.children()).filter_map(|of| of.attribute("value")).collect();
    disks.extend(
        qemu_disks::find(&args)
            .into_iter()
            .map(|found| Disk { target: "in qemu:commandline".to_owned(), source: Source::Other(found.what) }),
    );
    Ok(Domain { name: text("name"), uuid: text("uuid").to_ascii_lowercase(), disks })
}

fn child<'a, 'i>(of: Node<'a, 'i>, name: &str) -> Option<Node<'a, 'i>> {
    of.children().find(|child| child.has_tag_name(name))
}

/// What is written to by a `<disk>`: nothing, itself, or more than itself.
fn writable(disk: Node<'_, '_>) -> Vec<Disk> {
    let device = disk.attribute("device").unwrap_or("disk");
    if device == "cdrom" || child(disk, "readonly").is_some() {
        return Vec::new();
    }
    let target = child(disk, "target").and_then(|of| of.attribute("dev")).unwrap_or("without a target").to_owned();
    let named = |source| Disk { target: target.clone(), source };
    let mut disks = vec![named(source(disk))];
    // A copy that is being written beside it, and a file that holds its data elsewhere.
    let beside = disk.descendants().filter(|of| of.has_tag_name("mirror") || of.has_tag_name("dataStore"));
    disks.extend(beside.map(|of| named(Source::Other(format!("a <{}> beside it", of.tag_name().name())))));
    disks
}

fn source(disk: Node<'_, '_>) -> Source {
    let kind = disk.attribute("type").unwrap_or("file");
    let source = child(disk, "source");
    let attribute = |name| source.and_then(|of| of.attribute(name));
    let other = || Source::Other(format!("a source of type {kind}"));
    match kind {
        "file" => attribute("file").map(|path| Source::Path(path.to_owned())),
        "block" => attribute("dev").map(|path| Source::Path(path.to_owned())),
        "vhostuser" => attribute("path").map(|path| Source::Socket(path.to_owned())),
        "network" => match (attribute("protocol"), attribute("name")) {
            (Some("rbd"), Some(name)) => {
                name.split_once('/').map(|(pool, image)| Source::Rbd { pool: pool.to_owned(), image: image.to_owned() })
            }
            (protocol, name) => Some(Source::Other(format!(
                "{} of protocol {}",
                name.unwrap_or("a volume"),
                protocol.unwrap_or("none")
            ))),
        },
        _ => None,
    }
    .unwrap_or_else(other)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn domain(devices: &str) -> Domain {
        read(&format!("<domain type='kvm'><name>v</name><uuid>U-1</uuid>{devices}</domain>")).unwrap()
    }

    fn sources(devices: &str) -> Vec<String> {
        domain(&format!("<devices>{devices}</devices>")).disks.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn name_and_uuid_are_the_domains_own() {
        let of = read(
            "<domain><!-- <uuid>a</uuid> --><metadata><uuid>b</uuid></metadata><name> v \
             </name><uuid>C1</uuid></domain>",
        )
        .unwrap();
        assert_eq!((of.name.as_str(), of.uuid.as_str()), ("v", "c1"));
        assert_eq!(read("<domain><!-- <uuid>a</uuid> --><name>v</name></domain>").unwrap().uuid, "");
    }

    #[test]
    fn every_writable_disk_is_told_with_its_source() {
        for (xml, says) in [
            ("<disk type='file'><source file='/a.qcow2'/><target dev='vda'/></disk>", "disk vda (/a.qcow2)"),
            (
                "<disk type='block' device='lun'><source dev='/dev/sdb'/><target dev='sda'/></disk>",
                "disk sda (/dev/sdb)",
            ),
            (
                "<disk type='network'><source protocol='rbd' name='p/i'/><target dev='vda'/></disk>",
                "disk vda (the RBD image p/i)",
            ),
            (
                "<disk type='vhostuser'><source type='unix' path='/r/v-0.sock'/><target dev='vda'/></disk>",
                "disk vda (the socket /r/v-0.sock)",
            ),
            (
                "<disk type='network'><source protocol='iscsi' name='iqn/1'/><target dev='vda'/></disk>",
                "disk vda (iqn/1 of protocol iscsi)",
            ),
            (
                "<disk type='volume'><source pool='a' volume='b'/><target dev='vda'/></disk>",
                "disk vda (a source of type volume)",
            ),
            ("<disk type='file' device='floppy'><source file='/f'/><target dev='fda'/></disk>", "disk fda (/f)"),
            ("<hostdev mode='subsystem' type='scsi'/>", "disk hostdev (a scsi device of the host)"),
        ] {
            assert_eq!(sources(xml), [says], "{xml}");
        }
        let mirrored =
            "<disk type='file'><source file='/a'/><mirror><source file='/b'/></mirror><target dev='vda'/></disk>";
        assert_eq!(sources(mirrored), ["disk vda (/a)", "disk vda (a <mirror> beside it)"]);
    }

    #[test]
    fn what_is_only_read_is_no_disk_of_a_writer() {
        for xml in [
            "<disk type='file' device='cdrom'><source file='/a.iso'/><target dev='hdc'/></disk>",
            "<disk type='file'><source file='/a'/><readonly/><target dev='vdb'/></disk>",
            "<!-- <disk type='file'><source file='/a'/><target dev='vdb'/></disk> -->",
            "<hostdev mode='subsystem' type='pci'/>",
        ] {
            assert!(sources(xml).is_empty(), "{xml}");
        }
    }

    #[test]
    fn a_disk_on_qemus_command_line_is_one() {
        let of = domain(
            "<q:commandline xmlns:q='http://libvirt.org/schemas/domain/qemu/1.0'><q:arg value='-drive'/>\
             <q:arg value='file=/x'/><q:arg value='-fw_cfg'/><q:arg value='name=opt/a,string=b'/></q:commandline>",
        );
        assert_eq!(of.disks.len(), 1, "{:?}", of.disks);
    }

    #[test]
    fn what_is_no_domain_is_refused_in_words() {
        assert!(read("<domain>").unwrap_err().starts_with("it is no XML"));
        assert_eq!(read("<network/>").unwrap_err(), "it is a <network>, not a <domain>");
        let bomb = "<!DOCTYPE d [<!ENTITY a 'aaaa'>]><domain><name>&a;</name></domain>";
        assert!(read(bomb).is_err(), "no document type is wanted");
    }
}
