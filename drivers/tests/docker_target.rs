//! A vhost target in a container, on a Docker engine of the test's own: deployed, killed, deployed again with its
//! exports, and refused in clear words.
#![allow(missing_docs)]

use std::{
    fs::File,
    path::Path,
    process::{Child, Command, Stdio},
    sync::Arc,
    time::Duration,
};

use ringfence_drivers::node::{
    docker::Engine,
    lookout::Lookout,
    proc::Process,
    target::{Runner, Target},
};
use ringfence_messages::{
    StorageId,
    vhost::{CreateVhostBdevCmd, OnTargetLoss},
};

const IMAGE: &str = "ringfence-test-target:1";

fn lookout() -> Arc<Lookout> {
    Arc::new(Lookout::new(None, &[], false).unwrap())
}

struct Dockerd {
    child: Child,
    dir: tempfile::TempDir,
}

impl Dockerd {
    async fn start() -> Dockerd {
        let dir = tempfile::Builder::new().prefix("ringfence-docker-").tempdir().unwrap();
        let at = |name: &str| dir.path().join(name).display().to_string();
        let log = File::create(at("log")).unwrap();
        let child = Command::new("dockerd")
            .args(["--data-root", &at("data"), "--exec-root", &at("exec"), "--pidfile", &at("pid")])
            .args(["-H", &format!("unix://{}", at("docker.sock")), "--storage-driver", "vfs"])
            .args(["--iptables=false", "--ip6tables=false", "--bridge=none"])
            .args(["--exec-opt", "native.cgroupdriver=cgroupfs"])
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let docker = Dockerd { child, dir };
        let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
        while docker.engine().is_running("nobody").await.err().is_none_or(|e| e.details.contains("no Docker engine")) {
            let log = std::fs::read_to_string(docker.dir.path().join("log")).unwrap();
            assert!(tokio::time::Instant::now() < deadline, "dockerd does not come up: {log}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        docker
    }

    fn socket(&self) -> String {
        self.dir.path().join("docker.sock").display().to_string()
    }

    fn engine(&self) -> Engine {
        Engine::at(self.socket())
    }

    /// An image of this host's storage daemon and the libraries it needs; no registry is asked.
    fn import(&self) {
        let script = "set -e; bin=$(command -v qemu-storage-daemon); \
            libs=$(ldd \"$bin\" | awk '/=> \\//{print $3} /ld-linux/{print $1}' | sort -u); \
            tar -chf - \"$bin\" $libs 2>/dev/null | docker -H \"unix://$1\" import -c \"ENTRYPOINT [\\\"$bin\\\"]\" - \
            \"$2\"";
        let output = Command::new("sh").args(["-c", script, "sh", &self.socket(), IMAGE]).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    fn containers(&self) -> String {
        let output = Command::new("docker").args(["-H", &format!("unix://{}", self.socket()), "ps", "-aq"]).output();
        String::from_utf8(output.unwrap().stdout).unwrap()
    }
}

impl Drop for Dockerd {
    fn drop(&mut self) {
        for container in self.containers().lines() {
            let _ = Command::new("docker")
                .args(["-H", &format!("unix://{}", self.socket()), "rm", "-f", container])
                .output();
        }
        let pid = rustix::process::Pid::from_raw(self.child.id() as i32).unwrap();
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        let _ = self.child.wait();
    }
}

fn bdev(storage: StorageId, volumes: &Path) -> CreateVhostBdevCmd {
    CreateVhostBdevCmd {
        primary_storage_uuid: storage,
        logical_pool: String::new(),
        volume: "vm1".to_owned(),
        bdev_name: "vm1-0".to_owned(),
        volume_dir: Some(volumes.display().to_string()),
        vm_uuid: None,
    }
}

#[tokio::test]
#[ignore = "needs root: a Docker engine"]
async fn container_target_is_redeployed_with_its_exports() {
    let docker = Dockerd::start().await;
    let dir = tempfile::Builder::new().prefix("ringfence-").tempdir().unwrap();
    let (state, volumes) = (dir.path().join("state"), dir.path().join("volumes"));
    std::fs::create_dir_all(&volumes).unwrap();
    File::create(volumes.join("vm1.raw")).unwrap().set_len(1 << 20).unwrap();
    let storage = StorageId::from_name("s");
    assert_eq!(docker.engine().ensure().await.unwrap(), "docker answers");

    // The image is not there: nothing is pulled, and the error names it.
    let target = Target::new(Runner::Docker(docker.engine(), IMAGE.to_owned()), &state, storage, &lookout()).unwrap();
    let error = target.deploy(Some(&volumes), OnTargetLoss::Reset).await.unwrap_err();
    assert!(error.details.contains(IMAGE), "{error}");
    docker.import();

    let first = target.deploy(Some(&volumes), OnTargetLoss::Reset).await.unwrap();
    assert!(first.started);
    target.health().await.unwrap();
    let container = format!("ringfence-vhost-{}", &storage.0.simple().to_string()[..8]);
    assert!(docker.engine().is_running(&container).await.unwrap());
    let socket = target.create_bdev(&bdev(storage, &volumes)).await.unwrap();
    assert!(socket.exists(), "{} is seen from the host", socket.display());
    assert!(!target.deploy(Some(&volumes), OnTargetLoss::Reset).await.unwrap().started, "a healthy one is left alone");

    // Killed from outside; then the agent restarts too, and knows it only by what is on disk.
    Process::read(first.pid).unwrap().kill(Duration::from_secs(10)).await.unwrap();
    assert_eq!(target.health().await.unwrap_err(), "the target does not run");
    std::fs::remove_file(&socket).unwrap();
    let target = Target::new(Runner::Docker(docker.engine(), IMAGE.to_owned()), &state, storage, &lookout()).unwrap();
    let second = target.deploy(Some(&volumes), OnTargetLoss::Reset).await.unwrap();
    assert!(second.started && second.pid != first.pid && second.exports == 1, "{second:?}");
    assert!(socket.exists(), "exported again under the same path");
    target.health().await.unwrap();
    assert_eq!(docker.containers().lines().count(), 1, "what was left of the first is gone");
}

#[tokio::test]
async fn no_engine_is_an_error_with_the_fix() {
    let error = Engine::at("/no/such.sock").ensure().await.unwrap_err();
    assert!(error.details.contains("/no/such.sock") && error.details.contains("Install docker.io"), "{error}");
}
