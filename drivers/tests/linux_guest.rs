//! A real Linux guest with 24 requests in flight, on a disk that takes 0-60 ms for each, whose vhost target is killed
//! again and again. What it reads is checked to the bit by its own process 1 (`guest/init.rs`).
#![allow(missing_docs)]

use std::{
    fs::File,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
    time::Duration,
};

use ringfence_drivers::node::{
    lookout::Lookout,
    proc::Process,
    target::{Runner, Target},
};
use ringfence_messages::{
    StorageId, VmId,
    vhost::{CreateVhostBdevCmd, OnTargetLoss},
};

/// How often the target is killed: `KILLS=20 cargo nextest run --workspace --test linux_guest`, as `make test-all`
/// does.
fn kills() -> u32 {
    std::env::var("KILLS").map_or(5, |kills| kills.parse().expect("KILLS is a number"))
}

/// In the order in which the guest loads them.
const MODULES: [&str; 6] =
    ["virtio_ring", "virtio", "virtio_pci_legacy_dev", "virtio_pci_modern_dev", "virtio_pci", "virtio_blk"];

/// The kernel that `scripts/setup.sh test` unpacks.
fn kernel() -> Option<PathBuf> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/tools/guest");
    if dir.join("vmlinuz").is_file() {
        return Some(dir);
    }
    assert!(std::env::var_os("CI").is_none(), "skipped on CI: no kernel");
    eprintln!("skipped: no kernel in {}: scripts/setup.sh test", dir.display());
    None
}

fn build(command: &mut Command) {
    let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// An archive as the kernel reads it (`Documentation/driver-api/early-userspace/buffer-format.rst`).
fn initramfs(files: &[(String, u32, Vec<u8>)]) -> Vec<u8> {
    let mut archive = Vec::new();
    let end = ("TRAILER!!!".to_owned(), 0, Vec::new());
    for (inode, (name, mode, data)) in files.iter().chain([&end]).enumerate() {
        let fields = [inode as u32, *mode, 0, 0, 1, 0, data.len() as u32, 0, 0, 0, 0, name.len() as u32 + 1, 0];
        archive.extend(b"070701");
        fields.iter().for_each(|field| archive.extend(format!("{field:08x}").bytes()));
        archive.extend(name.bytes());
        archive.push(0);
        archive.resize(archive.len().next_multiple_of(4), 0);
        archive.extend(data);
        archive.resize(archive.len().next_multiple_of(4), 0);
    }
    archive
}

struct Guest {
    dir: tempfile::TempDir,
    target: Target,
    qemu: Option<Child>,
}

impl Guest {
    async fn start(kernel: &Path) -> Guest {
        // On a disk: a tmpfs may refuse direct I/O.
        let dir = tempfile::Builder::new().prefix("rf-guest-").tempdir_in("/var/tmp").unwrap();
        let at = |name: &str| dir.path().join(name).display().to_string();
        let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/guest");
        build(
            Command::new("rustc")
                .args([
                    "--edition",
                    "2024",
                    "-O",
                    "-C",
                    "target-feature=+crt-static",
                    "-C",
                    "strip=symbols",
                    "-o",
                    &at("init"),
                ])
                .arg(sources.join("init.rs")),
        );
        build(Command::new("cc").args(["-O1", "-shared", "-fPIC", "-o", &at("slow.so")]).arg(sources.join("slow.c")));
        let daemon = format!("#!/bin/sh\nLD_PRELOAD={} exec qemu-storage-daemon \"$@\"\n", at("slow.so"));
        std::fs::write(at("daemon"), daemon).unwrap();
        std::fs::set_permissions(at("daemon"), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();

        let mut files = vec![
            ("dev".to_owned(), 0o040_755, Vec::new()),
            ("modules".to_owned(), 0o040_755, Vec::new()),
            ("init".to_owned(), 0o100_755, std::fs::read(at("init")).unwrap()),
        ];
        for (n, module) in MODULES.iter().enumerate() {
            let bytes = std::fs::read(kernel.join(format!("{module}.ko"))).unwrap();
            files.push((format!("modules/{n}-{module}.ko"), 0o100_644, bytes));
        }
        std::fs::write(at("initramfs"), initramfs(&files)).unwrap();

        std::fs::create_dir(at("v")).unwrap();
        File::create(at("v/vm.raw")).unwrap().set_len(4 << 20).unwrap();
        let lookout = Arc::new(Lookout::new(None, &[], false).unwrap());
        let storage = StorageId::from_name("s");
        let target = Target::new(Runner::Process(at("daemon")), dir.path(), storage, &lookout).unwrap();
        target.deploy(None, OnTargetLoss::Reset).await.unwrap();
        let cmd = CreateVhostBdevCmd {
            primary_storage_uuid: storage,
            logical_pool: String::new(),
            volume: "vm".to_owned(),
            bdev_name: "vm-0".to_owned(),
            volume_dir: Some(at("v")),
            vm_uuid: Some(vm()),
        };
        let socket = target.create_bdev(&cmd).await.unwrap().display().to_string();
        let qemu = Command::new("qemu-system-x86_64")
            .args(["-uuid", &vm().to_string(), "-machine", "pc,accel=tcg,memory-backend=mem"])
            .args(["-object", "memory-backend-memfd,id=mem,size=256M,share=on", "-m", "256", "-smp", "2"])
            .args(["-display", "none", "-nodefaults", "-serial", &format!("file:{}", at("serial"))])
            .args(["-qmp", &format!("unix:{},server=on,wait=off", at("qmp"))])
            .args(["-kernel", &kernel.join("vmlinuz").display().to_string(), "-initrd", &at("initramfs")])
            .args(["-append", "console=ttyS0 quiet panic=-1 mitigations=off"])
            .args(["-chardev", &format!("socket,id=disk0,path={socket},reconnect=1")])
            .args(["-device", "vhost-user-blk-pci,chardev=disk0,num-queues=1"])
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        Guest { dir, target, qemu: Some(qemu) }
    }

    fn serial(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(self.dir.path().join("serial")).unwrap_or_default()).into_owned()
    }

    /// Every whole line of this kind, as numbers.
    fn lines(&self, word: &str) -> Vec<Vec<u64>> {
        let serial = self.serial();
        let whole = serial.rfind('\n').map_or("", |end| &serial[..end]);
        let lines = whole.lines().filter_map(|line| line.trim().strip_prefix(word)?.strip_prefix(' '));
        let numbers = |line: &str| line.split(' ').map(|n| n.parse().unwrap()).collect();
        lines.map(numbers).collect()
    }

    fn damage(&self) -> Option<String> {
        let wrong = |line: &&str| ["DAMAGE", "ERROR", "not a head", "panic"].iter().any(|word| line.contains(word));
        self.serial().lines().find(wrong).map(str::to_owned)
    }

    /// Waits until every thread got this many answers more than it had.
    ///
    /// # Errors
    /// What was damaged, or that a thread got none.
    async fn goes_on(&self, by: u64) -> Result<(), String> {
        let before = self.lines("ack").pop();
        let wait = async {
            loop {
                if let Some(damage) = self.damage() {
                    return Err(damage);
                }
                let now = self.lines("ack").pop();
                let more = |(n, now): (usize, &u64)| before.as_ref().is_none_or(|before| *now >= before[n] + by);
                if now.is_some_and(|now| now.iter().enumerate().all(more)) {
                    return Ok(());
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let late = |_| Err(format!("stuck: {:?}, before {before:?}", self.lines("ack").pop()));
        tokio::time::timeout(Duration::from_secs(120), wait).await.unwrap_or_else(late)
    }

    /// Kills the target with everything in flight, and has it deployed again. Whether the guest was reset.
    async fn lose_target(&self, policy: OnTargetLoss) -> bool {
        let mut folders = std::fs::read_dir(self.dir.path().join("vhost")).unwrap();
        let pidfile = folders.next().unwrap().unwrap().path().join("target.pid");
        let pid: u32 = std::fs::read_to_string(pidfile).unwrap().trim().parse().unwrap();
        Process::read(pid).unwrap().kill(Duration::from_secs(5)).await.unwrap();
        let reply = self.target.deploy(None, policy).await.unwrap();
        assert!(reply.started && reply.missing.is_empty(), "{reply:?}");
        assert_eq!(reply.reset.len() + reply.continued.len(), 1, "{reply:?}");
        reply.reset == [vm()]
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        if let Some(mut qemu) = self.qemu.take() {
            let _ = qemu.kill();
            let _ = qemu.wait();
        }
        for folder in std::fs::read_dir(self.dir.path().join("vhost")).into_iter().flatten().flatten() {
            if let Ok(pid) = std::fs::read_to_string(folder.path().join("target.pid")) {
                let _ = Command::new("kill").args(["-9", pid.trim()]).stderr(Stdio::null()).status();
            }
        }
    }
}

fn vm() -> VmId {
    VmId::from_name(&format!("guest of {}", std::process::id()))
}

#[tokio::test]
async fn lost_targets_damage_nothing_of_a_guest_that_is_reset() {
    let Some(kernel) = kernel() else { return };
    let guest = Guest::start(&kernel).await;
    for kill in 0..kills() {
        guest.goes_on(1 + u64::from(kill % 5)).await.unwrap_or_else(|why| panic!("before kill {kill}: {why}"));
        let boots = guest.lines("found").len();
        assert!(guest.lose_target(OnTargetLoss::Reset).await);
        let acked = guest.lines("ack").pop().unwrap();
        guest.goes_on(0).await.unwrap_or_else(|why| panic!("after kill {kill}: {why}"));
        let wait = async {
            while guest.lines("found").len() == boots {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(120), wait).await.expect("it boots again");
        let found = guest.lines("found").pop().unwrap();
        // What was answered is there, and of the rest no more than what each thread had in flight.
        for (thread, (found, acked)) in found.iter().zip(&acked).enumerate() {
            assert!(found >= acked, "kill {kill}, thread {thread}: write {acked} was answered, {found} is there");
        }
    }
    guest.goes_on(3).await.unwrap();
    assert_eq!(guest.lines("found").len(), kills() as usize + 1, "one boot each");
}

/// Why the policy is what it is, and that the guest would see it.
#[tokio::test]
async fn a_guest_that_goes_on_with_a_new_target_is_damaged() {
    let Some(kernel) = kernel() else { return };
    let guest = Guest::start(&kernel).await;
    guest.goes_on(2).await.expect("nothing was lost yet");
    for _ in 0..kills() {
        assert!(!guest.lose_target(OnTargetLoss::Continue).await);
        if guest.goes_on(2).await.is_err() {
            return;
        }
    }
    panic!("{} lost targets did no harm to 24 requests in flight: on_target_loss could be gentler", kills());
}
