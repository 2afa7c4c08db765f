//! Finds disks in QEMU arguments: a disk that is not declared as a volume is neither watched nor fenced.
//!
//! Invariants: pure; an option that may open a disk for writing is found in every spelling (one dash or two, escaped
//! commas, a file without an option). Read-only disks are allowed: a CD-ROM, or a drive or node with `readonly=on`. Not
//! found: the writes of a passed-through device (`vfio-pci`), which no other host can write too.
//! Alternatives considered: a list of allowed arguments. It would repeat QEMU's manual and reject serial ports.

/// Options that open a disk whatever is behind them, or take more options from elsewhere.
const DISKS: [&str; 12] =
    ["hda", "hdb", "hdc", "hdd", "fda", "fdb", "sd", "mtdblock", "pflash", "readconfig", "add-fd", "incoming"];

/// Options that change what another one opened, or open it later.
const CHANGES: [&str; 3] = ["set", "loadvm", "global"];

/// Options that take no value: a bare word behind one of them is a disk.
const FLAGS: [&str; 22] = [
    "S",
    "s",
    "nographic",
    "no-reboot",
    "no-shutdown",
    "no-user-config",
    "nodefaults",
    "usb",
    "full-screen",
    "enable-kvm",
    "snapshot",
    "no-acpi",
    "no-hpet",
    "no-fd-bootchk",
    "preconfig",
    "only-migratable",
    "mem-prealloc",
    "semihosting",
    "win2k-hack",
    "rtc-td-hack",
    "singlestep",
    "curses",
];

/// Devices that bring a disk of their own, from a process or the host.
const DISK_DEVICES: [&str; 5] = ["vhost-user-blk", "vhost-user-scsi", "vhost-scsi", "vhost-vdpa", "vdpa-blk"];

/// Devices that only read what they are given.
const READERS: [&str; 2] = ["scsi-cd", "ide-cd"];

/// A disk among the arguments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The argument, counted from 0.
    pub at: usize,
    /// What it is, as it stands there.
    pub what: String,
}

/// All disks among some arguments.
pub fn find<T: AsRef<str>>(args: &[T]) -> Vec<Found> {
    let mut found = Vec::new();
    let mut at = 0;
    while let Some(arg) = args.get(at).map(AsRef::as_ref) {
        let begin = at;
        at += 1;
        let Some(option) = arg.strip_prefix("--").or_else(|| arg.strip_prefix('-')) else {
            found.push(Found { at: begin, what: format!("{arg}, a disk without an option") });
            continue;
        };
        if FLAGS.contains(&option) {
            continue;
        }
        let value = args.get(at).map(AsRef::as_ref).unwrap_or_default();
        at += 1;
        if writes(option, value) {
            found.push(Found { at: begin, what: format!("{arg} {value}").trim_end().to_owned() });
        }
    }
    found
}

fn writes(option: &str, value: &str) -> bool {
    match option {
        "drive" => !read_only(value) || changed_later(value),
        "blockdev" => !read_only(value),
        "device" => device(value),
        "object" => value.starts_with("x-remote") || value.contains("vhost-user-blk-server"),
        "chardev" => value.contains("vhost-user"),
        option => DISKS.contains(&option) || (CHANGES.contains(&option) && changes_a_disk(option, value)),
    }
}

/// `-global` and `-set` are used for harmless things, too.
fn changes_a_disk(option: &str, value: &str) -> bool {
    match option {
        "set" => value.starts_with("drive.") || value.contains(".drive="),
        "global" => value.contains(".drive=") || value.contains("property=drive"),
        _ => true,
    }
}

fn changed_later(value: &str) -> bool {
    settings(value).iter().any(|(key, value)| matches!(key.as_str(), "readonly" | "read-only") && value == "off")
}

fn read_only(value: &str) -> bool {
    if value.trim_start().starts_with('{') {
        let node: serde_json::Value = serde_json::from_str(value).unwrap_or_default();
        return node["read-only"] == serde_json::Value::Bool(true);
    }
    settings(value).iter().any(|(key, value)| match key.as_str() {
        "media" => value == "cdrom",
        "readonly" | "read-only" => value == "on",
        _ => false,
    })
}

fn device(value: &str) -> bool {
    if value.trim_start().starts_with('{') {
        let device: serde_json::Value = serde_json::from_str(value).unwrap_or_default();
        let driver = device["driver"].as_str().unwrap_or_default();
        return brings_disk(driver) || (!device["drive"].is_null() && !READERS.contains(&driver));
    }
    let settings = settings(value);
    let driver = settings.iter().find(|(key, _)| key == "driver").map_or("", |(_, driver)| driver.as_str());
    brings_disk(driver) || (settings.iter().any(|(key, _)| key == "drive") && !READERS.contains(&driver))
}

fn brings_disk(driver: &str) -> bool {
    DISK_DEVICES.iter().any(|device| driver.starts_with(device))
}

/// `a=b,c=d`: a comma in a value is written twice, the first word without a key is the driver.
fn settings(value: &str) -> Vec<(String, String)> {
    let mut parts = vec![String::new()];
    let mut chars = value.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            ',' if chars.next_if_eq(&',').is_some() => parts.last_mut().into_iter().for_each(|part| part.push(',')),
            ',' => parts.push(String::new()),
            c => parts.last_mut().into_iter().for_each(|part| part.push(c)),
        }
    }
    let split = |(n, part): (usize, String)| match part.split_once('=') {
        Some((key, value)) => (key.to_owned(), value.to_owned()),
        None if n == 0 => ("driver".to_owned(), part),
        None => (part, "on".to_owned()),
    };
    parts.into_iter().enumerate().map(split).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(args: &[&str]) -> Vec<usize> {
        find(args).into_iter().map(|found| found.at).collect()
    }

    #[test]
    fn a_disk_is_found_however_it_is_spelt() {
        for args in [
            &["-drive", "file=rbd:rbd/data7,if=virtio"][..],
            &["--drive", "file=/x,readonly=off"],
            &["-drive", "file=/x,,readonly=on"],
            &["-drive", "file=/x,media=cdrom,readonly=off"],
            &["-blockdev", "driver=rbd,pool=p,image=i,node-name=n"],
            &["-blockdev", r#"{"driver":"file","filename":"/x","node-name":"n"}"#],
            &["-device", "virtio-blk,drive=n"],
            &["-device", "vhost-user-blk-pci,chardev=c"],
            &["-device", r#"{"driver":"vhost-user-blk-pci","chardev":"c"}"#],
            &["-hda", "/x"],
            &["-pflash", "/x"],
            &["-readconfig", "/etc/x.cfg"],
            &["-add-fd", "fd=3,set=1"],
            &["-incoming", "defer"],
            &["-chardev", "socket,id=vhost-user-blk0,path=/s"],
            &["-set", "drive.a.file=/x"],
            &["-global", "virtio-blk-pci.drive=n"],
            &["/x.img"],
            &["-hdd"],
        ] {
            assert_eq!(at(args), [0], "{args:?}");
        }
        assert_eq!(at(&["-nographic", "/x.img"]), [1]);
        assert_eq!(at(&["-serial", "stdio", "-drive", "file=/x", "-hda", "/y"]), [2, 4]);
    }

    #[test]
    fn what_writes_no_disk_is_let_through() {
        for args in [
            &["-fw_cfg", "name=opt/tb,string={host}", "-serial", "file:/run/vm/{vm}.serial"][..],
            &["-cdrom", "/x.iso"],
            &["-drive", "file=/x.iso,media=cdrom"],
            &["-drive", "if=pflash,file=/code.fd,readonly=on"],
            &["-blockdev", "driver=file,filename=/x,node-name=n,read-only=on"],
            &["-blockdev", r#"{"driver":"file","filename":"/x","read-only":true}"#],
            &["-device", "scsi-cd,drive=n"],
            &["-device", "virtio-net-pci,netdev=n", "-netdev", "tap,id=n"],
            &["-chardev", "socket,path=/run/qga.sock,id=qga,server=on,wait=off"],
            &["-global", "kvm-pit.lost_tick_policy=delay"],
            &["-global", "driver=kvm-pit,property=lost_tick_policy,value=delay"],
            &["-nographic", "-S", "-append", "root=/dev/vda -drive"],
            &["-append", "-drive"],
        ] {
            assert!(at(args).is_empty(), "{args:?}: {:?}", find(args));
        }
    }
}
