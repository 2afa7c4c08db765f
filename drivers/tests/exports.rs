//! Exports of a real storage daemon, used by real QEMUs: made, lost, made again, and ended for certain.
#![allow(missing_docs)]

use std::{
    fs::File,
    os::unix::fs::FileExt,
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::Arc,
    time::Duration,
};

use ringfence_drivers::node::{
    exports::Exports,
    lookout::Lookout,
    proc::Process,
    qmp::Qmp,
    sibling::{self, Victim},
    target::{Runner, Target},
};
use ringfence_messages::{
    StorageId, VmId,
    vhost::{CreateVhostBdevCmd, OnTargetLoss},
    vm::WriterKind,
};
use serde_json::{Value, json};

const SECOND: Duration = Duration::from_secs(1);

/// One storage on one host. Everything that it started ends with it.
struct Host {
    dir: tempfile::TempDir,
    target: Target,
    lookout: Arc<Lookout>,
    exports: Exports,
    qemus: Vec<Child>,
}

impl Host {
    fn new() -> Host {
        // On a disk: a tmpfs may refuse direct I/O.
        let dir = tempfile::Builder::new().prefix("rf-exports-").tempdir_in("/var/tmp").unwrap();
        let runner = Runner::Process("qemu-storage-daemon".to_owned());
        std::fs::create_dir(dir.path().join("v")).unwrap();
        let lookout = Arc::new(Lookout::new(None, &[], false).unwrap());
        let target = Target::new(runner, dir.path(), StorageId::from_name("s"), &lookout).unwrap();
        let exports = Exports::new(Some(dir.path()), &lookout);
        Host { dir, target, lookout, exports, qemus: Vec::new() }
    }

    fn volumes(&self) -> PathBuf {
        self.dir.path().join("v")
    }

    /// A volume whose first byte is this.
    fn volume(&self, name: &str, byte: u8) {
        let path = self.volumes().join(format!("{name}.raw"));
        let _ = std::fs::remove_file(&path);
        let file = File::create(path).unwrap();
        file.set_len(1 << 20).unwrap();
        file.write_all_at(&[byte], 0).unwrap();
    }

    fn cmd(&self, vm: &str) -> CreateVhostBdevCmd {
        CreateVhostBdevCmd {
            primary_storage_uuid: StorageId::from_name("s"),
            logical_pool: String::new(),
            volume: vm.to_owned(),
            bdev_name: format!("{vm}-0"),
            volume_dir: Some(self.volumes().display().to_string()),
            vm_uuid: Some(VmId::from_name(vm)),
        }
    }

    async fn deploy(&self, on_loss: OnTargetLoss) -> ringfence_messages::vhost::DeployVhostReply {
        self.target.deploy(Some(&self.volumes()), on_loss).await.unwrap()
    }

    fn folder(&self) -> PathBuf {
        let mut entries = std::fs::read_dir(self.dir.path().join("vhost")).unwrap();
        entries.next().unwrap().unwrap().path()
    }

    /// What the daemon itself says: exports, and the files that it has open.
    async fn open(&self) -> (Vec<String>, Vec<String>) {
        let admin = self.folder().join("admin.sock");
        let mut qmp = Qmp::connect(&admin, SECOND).await.unwrap();
        let exports = qmp.execute(&admin, "query-block-exports", json!({}), SECOND).await.unwrap();
        let nodes = qmp.execute(&admin, "query-named-block-nodes", json!({}), SECOND).await.unwrap();
        let words = |of: &Value, key: &str| {
            of.as_array().unwrap().iter().map(|e| e[key].as_str().unwrap().to_owned()).collect::<Vec<_>>()
        };
        (words(&exports, "id"), words(&nodes, "file"))
    }

    fn pid(&self) -> u32 {
        std::fs::read_to_string(self.folder().join("target.pid")).unwrap().trim().parse().unwrap()
    }

    /// A QEMU with this VM's disk. Its firmware writes to `VM.boots` each time it starts.
    async fn qemu(&mut self, vm: &str) {
        let at = |name: &str| self.dir.path().join(format!("{vm}.{name}")).display().to_string();
        let socket = self.folder().join(format!("{vm}-0.sock"));
        let child = Command::new("qemu-system-x86_64")
            .args([
                "-uuid",
                &VmId::from_name(vm).to_string(),
                "-machine",
                "pc,accel=tcg,memory-backend=mem",
                "-m",
                "32",
            ])
            .args(["-object", "memory-backend-memfd,id=mem,size=32M,share=on", "-display", "none", "-nodefaults"])
            .args(["-qmp", &format!("unix:{},server=on,wait=off", at("qmp"))])
            .args(["-chardev", &format!("file,id=boots,path={}", at("boots"))])
            .args(["-device", "isa-debugcon,iobase=0x402,chardev=boots"])
            .args(["-chardev", &format!("socket,id=disk0,path={},reconnect=1", socket.display())])
            .args(["-device", "vhost-user-blk-pci,chardev=disk0,bootindex=1"])
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        self.qemus.push(child);
        self.until("it boots", || self.boots(vm) >= 1).await;
    }

    fn boots(&self, vm: &str) -> usize {
        let said = std::fs::read(self.dir.path().join(format!("{vm}.boots"))).unwrap_or_default();
        String::from_utf8_lossy(&said).matches("BUILD: ").count()
    }

    async fn until(&self, what: &str, is: impl Fn() -> bool) {
        let wait = async {
            while !is() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(60 * SECOND, wait).await.unwrap_or_else(|_| panic!("not in time: {what}"));
    }

    /// What no QEMU uses any more, of this agent.
    async fn idle(&self) -> Vec<(VmId, WriterKind, u32)> {
        let idle = self.exports.idle(&self.lookout.look().await.unwrap()).await.unwrap();
        idle.iter().filter(|vm| !vm.other_agent).map(|vm| (vm.vm_uuid, vm.kind, vm.pid)).collect()
    }

    async fn fence(&self, vm: VmId) -> ringfence_messages::Result<sibling::Killed> {
        sibling::kill(&Victim { vm, machine: None }, &self.lookout).await
    }

    async fn kill_target(&self) {
        Process::read(self.pid()).unwrap().kill(5 * SECOND).await.unwrap();
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        for qemu in &mut self.qemus {
            let _ = qemu.kill();
            let _ = qemu.wait();
        }
        if let Ok(pid) = std::fs::read_to_string(self.folder().join("target.pid")) {
            let _ = Command::new("kill").args(["-9", pid.trim()]).stderr(Stdio::null()).status();
        }
    }
}

#[tokio::test]
async fn export_is_a_writer_until_its_node_is_closed() {
    let mut host = Host::new();
    let (vm1, vm2) = (VmId::from_name("vm1"), VmId::from_name("vm2"));
    host.volume("vm1", 1);
    host.volume("vm2", 2);
    host.deploy(OnTargetLoss::Reset).await;
    for vm in ["vm1", "vm2"] {
        host.target.create_bdev(&host.cmd(vm)).await.unwrap();
    }
    host.qemu("vm2").await;
    assert_eq!(host.idle().await, [], "what no QEMU ever had holds nothing");
    for vm in [vm1, vm2] {
        host.exports.join(vm, &host.lookout.look().await.unwrap()).await.unwrap();
    }
    assert_eq!(host.idle().await, [(vm1, WriterKind::Export, host.pid())], "the other has its QEMU");

    assert!(host.exports.end(vm1).await.unwrap().found);
    let (live, files) = host.open().await;
    assert_eq!(live, ["vm2-0"]);
    assert!(files.len() == 1 && files[0].ends_with("vm2.raw"), "the file is closed: {files:?}");
    assert!(!host.exports.end(vm1).await.unwrap().found, "repeated, it changes nothing");
    assert!(!Exports::new(None, &host.lookout).end(vm2).await.unwrap().found, "an export in use is left alone");
    host.target.health().await.unwrap();
}

#[tokio::test]
async fn fence_removes_exports_and_kills_a_hung_target() {
    let mut host = Host::new();
    // A name of its own: the fence looks at the whole machine.
    let vm = VmId::from_name("fenced");
    host.volume("fenced", 1);
    host.deploy(OnTargetLoss::Reset).await;
    host.target.create_bdev(&host.cmd("fenced")).await.unwrap();
    host.qemu("fenced").await;
    let pid = host.pid();
    let target = Process::read(pid).unwrap();
    assert!(Command::new("kill").args(["-STOP", &pid.to_string()]).status().unwrap().success());
    let killed = host.fence(vm).await.unwrap();
    assert!(killed.found && killed.killed && !killed.alive, "{killed:?}");
    assert!(killed.reason.contains(&format!("killed target {pid}")), "{}", killed.reason);
    assert!(!target.is_alive());
    let again = host.fence(vm).await.unwrap();
    assert!(!again.found && !again.alive, "{again:?}");
    assert_eq!(host.deploy(OnTargetLoss::Reset).await.exports, 0, "it does not come back with the target");
}

#[tokio::test]
async fn a_volume_that_was_made_again_is_the_new_file() {
    let host = Host::new();
    host.volume("vm1", 1);
    host.deploy(OnTargetLoss::Reset).await;
    host.target.create_bdev(&host.cmd("vm1")).await.unwrap();
    // As `rm` and `truncate` do: the path is the same, the file is another.
    host.volume("vm1", 7);
    host.target.create_bdev(&host.cmd("vm1")).await.unwrap();
    let fds = std::fs::read_dir(format!("/proc/{}/fd", host.pid())).unwrap();
    let open: Vec<PathBuf> = fds.flatten().filter_map(|fd| std::fs::read_link(fd.path()).ok()).collect();
    let volumes: Vec<_> = open.iter().filter(|path| path.to_string_lossy().contains("vm1.raw")).collect();
    assert!(!volumes.is_empty() && volumes.iter().all(|path| path.ends_with("vm1.raw")), "{volumes:?}");

    // The name for another file, too, while nobody uses it.
    host.volume("vm9", 9);
    let other = CreateVhostBdevCmd { volume: "vm9".to_owned(), ..host.cmd("vm1") };
    host.target.create_bdev(&other).await.unwrap();
    let (live, files) = host.open().await;
    assert!(live == ["vm1-0"] && files.len() == 1 && files[0].ends_with("vm9.raw"), "{files:?}");
}

#[tokio::test]
async fn one_bad_volume_is_named_and_stops_no_other() {
    let host = Host::new();
    for vm in ["vm1", "vm2"] {
        host.volume(vm, 1);
    }
    host.deploy(OnTargetLoss::Reset).await;
    for vm in ["vm1", "vm2"] {
        host.target.create_bdev(&host.cmd(vm)).await.unwrap();
    }
    host.kill_target().await;
    std::fs::remove_file(host.volumes().join("vm1.raw")).unwrap();
    let reply = host.deploy(OnTargetLoss::Reset).await;
    assert!(reply.started && reply.exports == 1 && reply.missing.len() == 1, "{reply:?}");
    assert!(reply.missing[0].starts_with("vm1-0: "), "{reply:?}");
    assert_eq!(host.open().await.0, ["vm2-0"]);
    assert_eq!(host.target.health().await.unwrap_err(), "the target does not export vm1-0");
    host.volume("vm1", 1);
    let reply = host.deploy(OnTargetLoss::Reset).await;
    assert!(!reply.started && reply.missing.is_empty(), "{reply:?}");
    host.target.health().await.unwrap();
}

#[tokio::test]
async fn guest_without_target_is_reset_or_continues_by_policy() {
    let mut host = Host::new();
    host.volume("vm1", 1);
    host.deploy(OnTargetLoss::Reset).await;
    host.target.create_bdev(&host.cmd("vm1")).await.unwrap();
    host.qemu("vm1").await;
    assert_eq!(host.boots("vm1"), 1);

    host.kill_target().await;
    let reply = host.deploy(OnTargetLoss::Continue).await;
    assert!(reply.continued == [VmId::from_name("vm1")] && reply.reset.is_empty(), "{reply:?}");
    assert_eq!(host.boots("vm1"), 1, "it goes on");

    host.kill_target().await;
    let reply = host.deploy(OnTargetLoss::Reset).await;
    assert!(reply.reset == [VmId::from_name("vm1")] && reply.missing.is_empty(), "{reply:?}");
    host.until("it boots again", || host.boots("vm1") == 2).await;
    assert!(!host.deploy(OnTargetLoss::Reset).await.started, "a healthy one is left alone");
    assert_eq!(host.boots("vm1"), 2);

    // One that cannot be asked is not served again, and that is said.
    host.kill_target().await;
    let pid = host.qemus[0].id().to_string();
    assert!(Command::new("kill").args(["-STOP", &pid]).status().unwrap().success());
    let reply = host.deploy(OnTargetLoss::Reset).await;
    assert!(reply.reset.is_empty() && reply.missing[0].contains("vm1-0: not reset"), "{reply:?}");
    assert_eq!(host.open().await.0, Vec::<String>::new());
    assert!(Command::new("kill").args(["-CONT", &pid]).status().unwrap().success());
}

#[tokio::test]
async fn storages_with_similar_ids_have_separate_folders() {
    let dir = tempfile::tempdir().unwrap();
    let id = |text: &str| text.parse::<StorageId>().unwrap();
    let (one, two) = (id("0190a0b0-0000-7000-8000-000000000001"), id("0190a0b0-0000-7000-8000-000000000002"));
    let runner = || Runner::Process("qemu-storage-daemon".to_owned());
    let lookout = Arc::new(Lookout::new(None, &[], false).unwrap());
    for storage in [one, two, one, two] {
        Target::new(runner(), dir.path(), storage, &lookout).unwrap();
    }
    let mut names: Vec<_> =
        std::fs::read_dir(dir.path().join("vhost")).unwrap().flatten().map(|e| e.file_name()).collect();
    names.sort();
    assert_eq!(names, ["0190a0b0", "0190a0b0000070008000000000000002"]);
}
