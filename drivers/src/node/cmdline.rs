//! The one parser of QEMU command lines: is the process a QEMU, of which VM, and does it wait for a migration.
//!
//! Invariants: pure; listing, starting, stopping and killing all use it, and the script for hosts without this program
//! is generated from the same lists. A QEMU under an unknown name is found by the shape of its arguments. A QEMU
//! without a uuid is [`Named::Nobody`]: it may be any VM, and is reported (I2).
//! Alternatives considered: names of programs only (distributions and operators rename QEMU); substrings (a shell with
//! the uuid in an argument is no QEMU); the union of all uuids of a line (QEMU takes the last, and so must the kill).

use ringfence_messages::VmId;

/// Options that only QEMU has, among tools whose arguments have this shape. One of them must be there before a program
/// of an unknown name is taken for a QEMU.
pub const ONLY_QEMUS: [&str; 13] = [
    "accel",
    "enable-kvm",
    "fw_cfg",
    "incoming",
    "machine",
    "M",
    "no-shutdown",
    "no-user-config",
    "nodefaults",
    "qmp",
    "readconfig",
    "smbios",
    "uuid",
];

/// More options that a virtual machine is made of. Those that a storage daemon has too are not among them.
pub const OF_A_MACHINE: [&str; 28] = [
    "S",
    "bios",
    "boot",
    "cdrom",
    "cpu",
    "device",
    "display",
    "drive",
    "global",
    "hda",
    "initrd",
    "kernel",
    "m",
    "mon",
    "msg",
    "name",
    "netdev",
    "nic",
    "nographic",
    "overcommit",
    "rtc",
    "sandbox",
    "serial",
    "smp",
    "spice",
    "vga",
    "virtfs",
    "vnc",
];

/// How many different options of the two lists make the shape. Too low: a tool that has one by chance leaves its host
/// without sight. Too high: a renamed QEMU with a short command line is invisible.
pub const SHAPE_OPTIONS: usize = 2;

/// Programs whose arguments may hold a whole command line of QEMU, and that are none: shells, wrappers, tools of
/// QEMU's.
pub const NOT_QEMU: [&str; 55] = [
    "ash",
    "awk",
    "bash",
    "busybox",
    "cgexec",
    "chroot",
    "chrt",
    "dash",
    "doas",
    "docker",
    "env",
    "fish",
    "flock",
    "gawk",
    "gdb",
    "grep",
    "ionice",
    "ip",
    "ltrace",
    "machinectl",
    "mawk",
    "nice",
    "nohup",
    "nsenter",
    "numactl",
    "perl",
    "podman",
    "prlimit",
    "qemu-bridge-helper",
    "qemu-ga",
    "qemu-img",
    "qemu-io",
    "qemu-nbd",
    "qemu-pr-helper",
    "qemu-storage-daemon",
    "ringfence",
    "runuser",
    "screen",
    "setsid",
    "sh",
    "ssh",
    "sshd",
    "stdbuf",
    "strace",
    "su",
    "sudo",
    "systemd-nspawn",
    "systemd-run",
    "taskset",
    "timeout",
    "tmux",
    "unshare",
    "virsh",
    "watch",
    "zsh",
];

/// Options that list what there is, and end, where their value is `help`.
const TAKE_HELP: [&str; 8] = ["M", "accel", "chardev", "cpu", "device", "machine", "netdev", "object"];

/// Which VM a QEMU names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Named {
    /// This one.
    Vm(VmId),
    /// None that can be read here: it may be any.
    Nobody,
}

/// What a QEMU's command line says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reading {
    /// The VM.
    pub named: Named,
    /// It waited for a migration when it began. The arguments stay as they are for life.
    pub incoming: bool,
    /// Where it writes its pid.
    pub pidfile: Option<String>,
    /// Its control socket, where that is named by a path.
    pub qmp: Option<String>,
}

/// Reads a process. `program` is the name of the file that it runs, `own` are the names under which QEMU is known on
/// this host besides the usual ones. `None` for what is no VM's QEMU.
pub fn read(program: &str, argv: &[String], own: &[String]) -> Option<Reading> {
    let known = is_qemus(program) || own.iter().any(|name| name == program);
    let has_its_shape = has_shape(argv) && !is_another(program);
    if !known && !has_its_shape {
        return None;
    }
    let (mut uuid, mut smbios, mut machine) = (None, None, None);
    let mut reading = Reading { named: Named::Nobody, incoming: false, pidfile: None, qmp: None };
    for (at, name) in options(argv) {
        let value = argv.get(at + 1).map(String::as_str);
        match name {
            // It says something and ends: no VM.
            "version" | "help" | "h" | "audio-help" => return None,
            "uuid" => uuid = Some(value.and_then(vm)),
            "smbios" => smbios = value.and_then(of_smbios).or(smbios),
            "machine" | "M" => machine = value,
            "incoming" => reading.incoming = true,
            "pidfile" => reading.pidfile = value.map(str::to_owned),
            "qmp" => reading.qmp = value.and_then(unix_path).or(reading.qmp),
            _ => {}
        }
        if matches!(value, Some("help" | "?")) && TAKE_HELP.contains(&name) {
            return None;
        }
    }
    let named = match uuid {
        Some(named) => named,
        None => smbios,
    };
    // What libvirt and others try a QEMU with: a machine without anything has no guest that could write.
    let none = machine.is_some_and(|machine| machine == "none" || machine.starts_with("none,"));
    match named {
        Some(vm) => reading.named = Named::Vm(vm),
        None if none && uuid.is_none() => return None,
        None => {}
    }
    Some(reading)
}

/// Whether a file of this name is a QEMU, as distributions call it: `qemu-system-x86_64`, `qemu-kvm`, `kvm`,
/// `.qemu-system-x86_64-wrapped`, `qemu-9.2-prod`. User-mode emulators (`qemu-aarch64`) run no VM.
pub fn is_qemus(program: &str) -> bool {
    let name = program.trim_start_matches('.').to_ascii_lowercase();
    let name = name.strip_suffix("-wrapped").unwrap_or(&name);
    let version = name.strip_prefix("qemu-").is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()));
    version
        || ["qemu-system", "qemu-kvm", "kvm-"].iter().any(|known| name.starts_with(known))
        || matches!(name, "kvm" | "qemu")
}

fn is_another(program: &str) -> bool {
    NOT_QEMU.contains(&program) || program.starts_with("python")
}

fn has_shape(argv: &[String]) -> bool {
    let mut found: Vec<&str> = options(argv).map(|(_, name)| name).collect();
    found.retain(|name| ONLY_QEMUS.contains(name) || OF_A_MACHINE.contains(name));
    found.sort_unstable();
    found.dedup();
    found.len() >= SHAPE_OPTIONS && found.iter().any(|name| ONLY_QEMUS.contains(name))
}

/// The options with their places. QEMU takes each with one dash or two, and its value as the next argument only.
fn options(argv: &[String]) -> impl Iterator<Item = (usize, &str)> {
    argv.iter().enumerate().skip(1).filter_map(|(at, arg)| {
        let name = arg.strip_prefix('-')?;
        Some((at, name.strip_prefix('-').unwrap_or(name)))
    })
}

/// A uuid in capitals or not, with or without dashes and braces.
fn vm(text: &str) -> Option<VmId> {
    text.trim().parse().ok()
}

/// The uuid in `type=1,...,uuid=X`, which a guest takes for its machine's.
fn of_smbios(value: &str) -> Option<VmId> {
    let (mut system, mut uuid) = (false, None);
    for (key, value) in value.split(',').filter_map(|part| part.split_once('=')) {
        match key {
            "type" => system = value.trim_start_matches("0x").trim_start_matches('0') == "1",
            "uuid" => uuid = vm(value),
            _ => {}
        }
    }
    uuid.filter(|_| system)
}

/// The path in `unix:PATH,server=on`, in which a comma is written twice.
fn unix_path(value: &str) -> Option<String> {
    let rest = value.strip_prefix("unix:")?.replace(",,", "\0");
    Some(rest.split(',').next()?.replace('\0', ","))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const UUID: &str = "5d1f0c9e-7a34-4a7c-9b1e-0c1de0a11c01";

    fn this() -> Named {
        Named::Vm(UUID.parse().unwrap())
    }

    fn argv(line: &str) -> Vec<String> {
        line.replace('U', UUID).split(' ').map(str::to_owned).collect()
    }

    fn named(program: &str, line: &str) -> Option<Named> {
        read(program, &argv(line), &[]).map(|reading| reading.named)
    }

    /// Command lines as they were seen on hosts of others.
    #[test]
    fn lines_from_other_peoples_hosts_name_their_vm() {
        for (program, text) in [
            ("qemu-system-x86_64", include_str!("argv/double-dash.argv")),
            (".qemu-system-x86_64-wrapped", include_str!("argv/nixos-wrapped.argv")),
            ("qemu-system-x86_64", include_str!("argv/uppercase.argv")),
            ("kvm", include_str!("argv/proxmox.argv")),
            ("an-unknown-name", include_str!("argv/proxmox.argv")),
        ] {
            let argv: Vec<String> = text.lines().map(str::to_owned).collect();
            assert_eq!(read(program, &argv, &[]).map(|reading| reading.named), Some(this()), "{program}: {argv:?}");
        }
    }

    #[test]
    fn every_spelling_names_the_vm() {
        for line in [
            "q -uuid U",
            "q --uuid U",
            "q -uuid 5D1F0C9E-7A34-4A7C-9B1E-0C1DE0A11C01",
            "q -uuid {5d1f0c9e-7a34-4a7c-9b1e-0c1de0a11c01}",
            "q -uuid 5d1f0c9e7a344a7c9b1e0c1de0a11c01",
            "q -smbios type=1,uuid=U",
            "q --smbios type=1,manufacturer=x,uuid=U,serial=y",
            "q -smbios type=1,uuid=U -smbios type=2,serial=1",
            "q disk.raw -uuid U",
            "q -uuid 00000000-0000-0000-0000-000000000001 -uuid U",
            "q -uuid U -smbios type=1,uuid=00000000-0000-0000-0000-000000000001",
            "q -machine none -uuid U",
        ] {
            assert_eq!(named("qemu-system-x86_64", line), Some(this()), "{line}");
        }
    }

    #[test]
    fn qemu_without_uuid_may_be_any_vm() {
        for line in [
            "q",
            "q -m 16",
            "q -uuid",
            "q -uuid nonsense",
            "q -uuid=U",
            "q -smbios type=2,uuid=U",
            "q -smbios uuid=U",
            "q -readconfig vm.cfg",
            "q -machine none -uuid x",
        ] {
            assert_eq!(named("qemu-system-x86_64", line), Some(Named::Nobody), "{line}");
        }
        for line in
            ["q --version", "q -machine help", "q -device ?", "q -S -no-user-config -nodefaults -M none,accel=kvm"]
        {
            assert_eq!(named("qemu-system-x86_64", line), None, "{line} runs no guest");
        }
    }

    #[test]
    fn a_qemu_is_known_by_its_name_or_by_its_shape() {
        for program in
            ["qemu-system-aarch64", "qemu-kvm", "kvm", ".qemu-system-x86_64-wrapped", "qemu-9.2-prod", "qemu"]
        {
            assert_eq!(named(program, "q -uuid U"), Some(this()), "{program}");
        }
        assert_eq!(
            read("vmm", &argv("x -uuid U"), &["vmm".to_owned()]).map(|r| r.named),
            Some(this()),
            "as configured"
        );
        assert_eq!(named("vmm", "x -name a -uuid U -m 16"), Some(this()), "by its shape");
        assert_eq!(named("vmm", "x -nodefaults -m 16"), Some(Named::Nobody), "by its shape, unnamed");
        for (program, line) in [
            ("sh", "sh -c qemu-system-x86_64 -name a -uuid U"),
            ("sudo", "sudo qemu-system-x86_64 -name a -uuid U"),
            ("ssh", "ssh h qemu-system-x86_64 -name a -uuid U"),
            ("qemu-storage-daemon", "qsd --blockdev x --chardev y --export z --daemonize --pidfile p"),
            ("renamed-qsd", "qsd --blockdev x --chardev y --export z --daemonize --pidfile p"),
            ("cryptsetup", "cryptsetup --uuid U open"),
            ("qemu-aarch64", "qemu-aarch64 /bin/prog -uuid U"),
            ("sleep", "sleep 1000"),
        ] {
            assert_eq!(named(program, line), None, "{line}");
        }
    }

    #[test]
    fn incoming_pid_file_and_control_socket_are_read() {
        let line = "q -uuid U --incoming defer -pidfile /a -qmp unix:/s/a,,b,server=on,wait=off";
        let reading = read("qemu-kvm", &argv(line), &[]).unwrap();
        assert!(reading.incoming);
        assert_eq!((reading.pidfile.as_deref(), reading.qmp.as_deref()), (Some("/a"), Some("/s/a,b")));
        assert!(!read("qemu-kvm", &argv("q -uuid U -name incoming"), &[]).unwrap().incoming);
    }

    proptest! {
        /// Whatever stands around it, and however it is written: the VM is named, and never another one.
        #[test]
        fn the_uuid_is_found_among_anything(
            before in prop::collection::vec("[a-z/=.,0-9]{1,12}", 0..6),
            after in prop::collection::vec("[a-z/=.,0-9]{1,12}", 0..6),
            upper in any::<bool>(), double in any::<bool>(), plain in any::<bool>(),
        ) {
            let mut uuid = UUID.to_owned();
            if upper { uuid = uuid.to_uppercase() }
            if plain { uuid = uuid.replace('-', "") }
            let mut argv = vec!["qemu".to_owned()];
            argv.extend(before);
            argv.extend([if double { "--uuid" } else { "-uuid" }.to_owned(), uuid]);
            argv.extend(after);
            prop_assert_eq!(read("qemu-kvm", &argv, &[]).map(|r| r.named), Some(this()));
        }

        /// Any arguments at all: no panic, and a VM is only named whose digits stand there.
        #[test]
        fn only_what_is_written_is_named(
            argv in prop::collection::vec("(-{0,2}(uuid|smbios|machine|name|M))|[ -~]{0,40}", 0..12)
        ) {
            if let Some(Reading { named: Named::Vm(vm), .. }) = read("qemu-kvm", &argv, &[]) {
                let digits = vm.0.simple().to_string();
                let plain = |arg: &String| arg.to_lowercase().replace('-', "").contains(&digits);
                prop_assert!(argv.iter().any(plain), "{} of {:?}", vm, argv);
            }
        }
    }
}
