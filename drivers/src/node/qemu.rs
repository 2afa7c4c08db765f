//! QEMU's command line for a VM, and the capabilities of this host's QEMU.
//!
//! A pure function builds a list of arguments; no shell reads it.

use std::path::Path;

use ringfence_messages::{
    Code, ErrorCode, Result,
    vm::{DiskSource, StartVmCmd},
};

use crate::{domain_xml, qemu_disks};

/// The least and the most memory of a VM, in MiB. The most is 16 TiB: more is a mistake.
pub const MEMORY_MIB: std::ops::RangeInclusive<u64> = 1..=16 * 1024 * 1024;

/// Disks of a VM at most; more do not fit the PCI bus of machine `pc`.
pub const MAX_DISKS: usize = 24;

/// Arguments of the user's own at most, and bytes of each.
pub const MAX_EXTRA_ARGS: usize = 256;

/// What guest memory is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Memory {
    /// The 2 MiB hugepages mounted here.
    Hugepages(std::path::PathBuf),
    /// Anonymous shared memory.
    Memfd,
    /// QEMU's own: nobody shares it.
    Private,
}

impl Memory {
    /// Its name in replies and logs.
    pub fn name(&self) -> &'static str {
        match self {
            Memory::Hugepages(_) => "hugepages",
            Memory::Memfd => "memfd",
            Memory::Private => "private",
        }
    }
}

/// A version of QEMU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub u32, pub u32, pub u32);

impl Version {
    /// Reads the first line of `qemu-system-x86_64 --version`.
    pub fn parse(text: &str) -> Option<Version> {
        let rest = text.split("version ").nth(1)?;
        let number: String = rest.chars().take_while(|c| c.is_ascii_digit() || *c == '.').collect();
        let mut parts = number.split('.').map(str::parse);
        Some(Version(parts.next()?.ok()?, parts.next()?.ok()?, parts.next().and_then(Result::ok).unwrap_or(0)))
    }

    /// The option of a socket chardev that reconnects each second. `reconnect` was deprecated in 9.2 and is gone
    /// in later ones.
    fn reconnect(self) -> &'static str {
        if self >= Version(9, 2, 0) { "reconnect-ms=1000" } else { "reconnect=1" }
    }
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}.{}", self.0, self.1, self.2)
    }
}

/// Where a VM's own files lie.
pub struct VmFiles<'a> {
    /// Its control socket.
    pub qmp: &'a Path,
    /// Its pid, written by QEMU.
    pub pid: &'a Path,
    /// QEMU's log.
    pub log: &'a Path,
}

/// Options that the agent sets itself, or that would hide the VM from it. QEMU takes them with one dash or two.
const RESERVED: [&str; 5] = ["uuid", "daemonize", "pidfile", "incoming", "qmp"];

/// Whether an argument is not the user's to give.
pub fn reserved(arg: &str) -> bool {
    let option = arg.strip_prefix("--").or_else(|| arg.strip_prefix('-'));
    option.is_some_and(|option| RESERVED.contains(&option))
}

/// Refuses what QEMU should not even be asked for.
///
/// # Errors
/// `SYS.1007` naming what is odd.
pub fn check(cmd: &StartVmCmd) -> Result<()> {
    super::plain_name(&cmd.name)?;
    let odd = |what: String| Err(ErrorCode::new(Code::INVALID_ARGUMENT, format!("VM {}: {what}", cmd.name)));
    if !MEMORY_MIB.contains(&cmd.memory_mib) {
        return odd(format!(
            "memory of {} MiB is out of range ({} to {})",
            cmd.memory_mib,
            MEMORY_MIB.start(),
            MEMORY_MIB.end()
        ));
    }
    if cmd.disks.is_empty() || cmd.disks.len() > MAX_DISKS {
        return odd(format!("{} disks are out of range (1 to {MAX_DISKS})", cmd.disks.len()));
    }
    if cmd.qemu_args.len() > MAX_EXTRA_ARGS || cmd.qemu_args.iter().any(|arg| arg.len() > 4096 || arg.contains('\0')) {
        return odd(format!(
            "`qemu_args` exceeds the limit: {MAX_EXTRA_ARGS} arguments of 4096 bytes, without zero bytes"
        ));
    }
    if let Some(arg) = cmd.qemu_args.iter().find(|arg| reserved(arg)) {
        return odd(format!("`qemu_args` has {arg}, which the agent sets"));
    }
    if let Some(disk) = qemu_disks::find(&cmd.qemu_args).first() {
        return odd(format!("qemu_args: `{}` may open a disk that nothing watches and nothing fences", disk.what));
    }
    if let Some(xml) = &cmd.libvirt_xml {
        let domain = match domain_xml::read(xml) {
            Ok(domain) => domain,
            Err(why) => return odd(format!("its libvirt domain: {why}")),
        };
        if (&domain.name, domain.uuid.parse().ok()) != (&cmd.name, Some(cmd.vm_uuid)) {
            return odd(format!("its libvirt domain is {:.60} with uuid {:.60}", domain.name, domain.uuid));
        }
        if domain.disks.len() != cmd.disks.len() {
            let (disks, volumes) = (domain.disks.len(), cmd.disks.len());
            return odd(format!("its libvirt domain writes to {disks} disks, but the VM has {volumes} volumes"));
        }
    }
    for disk in &cmd.disks {
        let paths: &[&String] = match &disk.source {
            DiskSource::VhostUser { socket_path } => &[socket_path],
            DiskSource::File { path } => &[path],
            DiskSource::Rbd { conf, .. } => &[conf],
        };
        if let Some(path) = paths.iter().find(|path| !path.starts_with('/')) {
            return odd(format!("disk path {path:?} is not absolute"));
        }
    }
    Ok(())
}

/// The arguments of QEMU for this VM. `accel` is `kvm` or `tcg`.
///
/// # Errors
/// `SYS.1007` if a path is not UTF-8.
pub fn arguments(
    cmd: &StartVmCmd,
    files: &VmFiles<'_>,
    accel: &str,
    memory: &Memory,
    version: Version,
) -> Result<Vec<String>> {
    let mut args: Vec<String> = Vec::new();
    let mut add = |option: &str, value: String| {
        args.push(option.to_owned());
        args.push(value);
    };
    add("-name", format!("guest={}", cmd.name));
    add("-uuid", cmd.vm_uuid.to_string());
    let size = format!("id=mem,size={}M,share=on", cmd.memory_mib);
    match memory {
        Memory::Private => add("-machine", format!("pc,accel={accel}")),
        Memory::Memfd | Memory::Hugepages(_) => {
            add("-machine", format!("pc,accel={accel},memory-backend=mem"));
            add(
                "-object",
                match memory {
                    Memory::Hugepages(mount) => {
                        format!("memory-backend-file,mem-path={},{size}", quote(super::text(mount)?))
                    }
                    _ => format!("memory-backend-memfd,{size}"),
                },
            );
        }
    }
    add("-m", cmd.memory_mib.to_string());
    add("-display", "none".to_owned());
    add("-qmp", format!("unix:{},server=on,wait=off", quote(super::text(files.qmp)?)));
    add("-pidfile", super::text(files.pid)?.to_owned());
    add("-D", super::text(files.log)?.to_owned());
    let mut others = 2;
    for (n, disk) in cmd.disks.iter().enumerate() {
        let bootindex = if disk.root {
            1
        } else {
            others += 1;
            others - 1
        };
        match &disk.source {
            DiskSource::VhostUser { socket_path } => {
                add("-chardev", format!("socket,id=disk{n},path={},{}", quote(socket_path), version.reconnect()));
                // As many as the target serves; otherwise QEMU wants one for each processor.
                add("-device", format!("vhost-user-blk-pci,chardev=disk{n},num-queues=1,bootindex={bootindex}"));
            }
            DiskSource::File { path } => {
                add("-blockdev", format!("driver=file,node-name=disk{n},filename={},cache.direct=on", quote(path)));
                add("-device", virtio(n, bootindex));
            }
            DiskSource::Rbd { pool, image, conf, user } => {
                let (pool, image, conf, user) = (quote(pool), quote(image), quote(conf), quote(user));
                add(
                    "-blockdev",
                    format!(
                        "driver=rbd,node-name=disk{n},pool={pool},image={image},user={user},conf={conf},cache.direct=on"
                    ),
                );
                add("-device", virtio(n, bootindex));
            }
        }
    }
    args.push("-nodefaults".to_owned());
    args.push("-daemonize".to_owned());
    args.extend(cmd.qemu_args.iter().cloned());
    Ok(args)
}

/// Errors go to the guest: a fenced writer must see them, not hang.
fn virtio(n: usize, bootindex: u32) -> String {
    format!("virtio-blk-pci,drive=disk{n},bootindex={bootindex},werror=report,rerror=report")
}

/// A comma in an option's value is written twice.
fn quote(value: &str) -> String {
    value.replace(',', ",,")
}

#[cfg(test)]
mod tests {
    use ringfence_messages::{VmId, vm::DiskSpec};

    use super::*;

    fn cmd(disks: Vec<DiskSpec>) -> StartVmCmd {
        StartVmCmd {
            not_after_ms: 0,
            vm_uuid: VmId::from_name("vm1"),
            name: "vm1".into(),
            incarnation: 1,
            epoch: 1,
            memory_mib: 16,
            disks,
            libvirt_xml: None,
            head: None,
            qemu_args: vec!["-serial".into(), "file:/tmp/a b; rm -rf /".into()],
        }
    }

    fn vhost(path: &str, root: bool) -> DiskSpec {
        DiskSpec { source: DiskSource::VhostUser { socket_path: path.into() }, root }
    }

    fn lines(cmd: &StartVmCmd, memory: &Memory, version: Version) -> String {
        let files = VmFiles { qmp: Path::new("/s/qmp"), pid: Path::new("/s/pid"), log: Path::new("/s/log") };
        let args = arguments(cmd, &files, "tcg", memory, version).unwrap();
        args.join("\n").replace("\n-", "\n\n-").replace("\n\n", "\0").replace('\n', " ").replace('\0', "\n")
    }

    #[test]
    fn a_vhost_disk_needs_shared_memory_and_reconnects() {
        insta::assert_snapshot!(lines(&cmd(vec![vhost("/v/a,b.sock", true)]), &Memory::Memfd, Version(7, 2, 0)));
    }

    #[test]
    fn later_versions_hugepages_and_other_disks() {
        let rbd = DiskSource::Rbd {
            pool: "rbd".into(),
            image: "vm1".into(),
            conf: "/etc/ceph/ceph.conf".into(),
            user: "compute".into(),
        };
        let disks = vec![
            DiskSpec { source: DiskSource::File { path: "/d/data.raw".into() }, root: false },
            vhost("/v/root.sock", true),
            DiskSpec { source: rbd, root: false },
        ];
        insta::assert_snapshot!(lines(&cmd(disks), &Memory::Hugepages("/dev/hugepages".into()), Version(10, 0, 2)));
    }

    #[test]
    fn versions_are_read_from_what_qemu_says() {
        let parse = |text| Version::parse(text).map(|v| v.to_string());
        assert_eq!(parse("QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7)"), Some("7.2.22".into()));
        assert_eq!(parse("QEMU emulator version 10.1\n"), Some("10.1.0".into()));
        assert_eq!(parse("no such thing"), None);
    }

    #[test]
    fn unsupported_vms_are_rejected_with_the_reason() {
        let good = cmd(vec![vhost("/v/s", true)]);
        assert_eq!(check(&good), Ok(()));
        let domain = |name: &str, disks: &str| {
            let uuid = good.vm_uuid;
            let xml = format!("<domain><name>{name}</name><uuid>{uuid}</uuid><devices>{disks}</devices></domain>");
            StartVmCmd { libvirt_xml: Some(xml), ..good.clone() }
        };
        let disk = "<disk type='file' device='disk'><source file='/v/1'/><target dev='vda'/></disk>";
        assert_eq!(check(&domain(&good.name, disk)), Ok(()));
        let cases: [(&str, StartVmCmd); 10] = [
            ("may open a disk", StartVmCmd { qemu_args: vec!["-drive".into(), "file=/v/2".into()], ..good.clone() }),
            ("is no XML", StartVmCmd { libvirt_xml: Some("<domain>".into()), ..good.clone() }),
            ("domain is other", domain("other", disk)),
            ("writes to 2 disks", domain(&good.name, &disk.repeat(2))),
            ("memory of 0 MiB", StartVmCmd { memory_mib: 0, ..good.clone() }),
            ("0 disks", StartVmCmd { disks: vec![], ..good.clone() }),
            ("\"-x\" in", StartVmCmd { name: "-x".into(), ..good.clone() }),
            ("not absolute", StartVmCmd { disks: vec![vhost("v/s", true)], ..good.clone() }),
            ("has -uuid", StartVmCmd { qemu_args: vec!["-uuid".into()], ..good.clone() }),
            ("without zero bytes", StartVmCmd { qemu_args: vec!["a\0b".into()], ..good.clone() }),
        ];
        for (says, cmd) in cases {
            let error = check(&cmd).unwrap_err();
            assert!(error.details.contains(says), "{says}: {error}");
        }
    }
}
