//! A whole cluster on this machine: host agents and a controller as child processes on loopback, in their own
//! directory. The demo and the end-to-end tests use it.
//!
//! ```text
//! DIR/controller.toml  controller.log  controller.pid  state/       the controller
//!     host-a.toml      host-a.log      host-a.pid      host-a/      an agent, its targets and VMs
//!     volumes/vm1.raw                                               what the guest writes to
//! ```
//! Invariants: the kernel chooses every port, so two clusters never collide; everything is stopped at the end, also
//! on a panic: children by their handles, QEMU and targets (which outlive agents by design) by the directory in their
//! arguments.

use std::{
    fs::{self, File},
    net::SocketAddr,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use ringfence_actors::ports::{MAX_READ, Record};
use ringfence_drivers::node::proc::Process;
use ringfence_messages::{
    Code, ErrorCode, Result, StorageId,
    host::{HostInventory, HostStatus},
    storage::HostProtocolRef,
};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio::time::Instant;
use uuid::Uuid;

use super::guest;
use crate::client::Client;

/// Time limit of the start or end of a child, generous for machines that are building.
pub const CHILD_TIMEOUT: Duration = Duration::from_secs(30);

/// Time between two probes of a condition.
pub const POLL: Duration = Duration::from_millis(20);

/// Name of the storage.
pub const STORAGE: &str = "vhost-1";

/// Name of the VM.
pub const VM: &str = "vm1";

/// Plan of a cluster.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Names of the hosts.
    pub hosts: Vec<String>,
    /// Hugepages of 2 MiB that each host is prepared with.
    pub hugepages: u64,
    /// The vhost target's program; `None` for the usual one.
    pub target_binary: Option<PathBuf>,
    /// Lines of `[ping]` in the controller's file.
    pub ping: String,
    /// More lines for `[controller]`.
    pub controller: String,
    /// More lines for every `[[host]]`.
    pub host: String,
    /// More tables at the end of the controller's file.
    pub tables: String,
    /// More tables at the end of every agent's file.
    pub agent: String,
}

impl Default for Plan {
    fn default() -> Self {
        Plan {
            hosts: vec!["host-a".to_owned(), "host-b".to_owned()],
            hugepages: 16,
            target_binary: None,
            ping: "interval = \"1s\"\ntimeout = \"2s\"\nmax_failure = 3\nsleep_after_failure = \"200ms\"\n".to_owned(),
            controller: String::new(),
            host: String::new(),
            tables: String::new(),
            agent: String::new(),
        }
    }
}

struct Node {
    name: String,
    child: Child,
}

/// A running cluster; dropping it stops it.
pub struct Cluster {
    dir: Option<TempDir>,
    path: PathBuf,
    program: PathBuf,
    plan: Plan,
    /// Random: a uuid derived from the name would be the same in other clusters, and agents on one machine see all of
    /// its processes.
    vm: Uuid,
    nodes: Vec<Node>,
    client: Client,
    server: String,
}

impl Cluster {
    /// Starts agents and controller and waits until each serves. `program` is the `ringfence` binary.
    ///
    /// # Errors
    /// `SYS.1016` if files cannot be created or the program cannot run, `SYS.1006` with its output if it ends.
    pub async fn start(program: &Path, plan: Plan) -> Result<Cluster> {
        let dir = tempfile::Builder::new().prefix("ringfence-").tempdir().map_err(io("make a directory"))?;
        let path = dir.path().canonicalize().map_err(io("find the directory"))?;
        fs::create_dir(path.join("volumes")).map_err(io("make the volume directory"))?;
        guest::make_disk(&path.join("volumes").join(format!("{VM}.raw"))).map_err(io("make the guest's disk"))?;
        let mut cluster = Cluster {
            dir: Some(dir),
            path,
            program: program.to_owned(),
            plan,
            vm: Uuid::new_v4(),
            nodes: Vec::new(),
            client: Client::new("http://127.0.0.1:0")?,
            server: String::new(),
        };
        let mut agents = Vec::new();
        for host in cluster.plan.hosts.clone() {
            cluster.write_agent(&host, "127.0.0.1:0")?;
            let address = cluster.run("agent", &host).await?;
            // The agent keeps this port after a restart.
            cluster.write_agent(&host, &address.to_string())?;
            agents.push((host, address));
        }
        cluster.write_controller(&agents, "127.0.0.1:0")?;
        let address = cluster.run("serve", "controller").await?;
        cluster.write_controller(&agents, &address.to_string())?;
        cluster.server = format!("http://{address}");
        cluster.client = Client::new(&cluster.server)?;
        Ok(cluster)
    }

    /// The controller's URL.
    pub fn server(&self) -> &str {
        &self.server
    }

    /// Client of the controller.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Directory of the cluster.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The file that the guest writes to.
    pub fn volume(&self) -> PathBuf {
        self.path.join("volumes").join(format!("{VM}.raw"))
    }

    /// The guest's counter; 0 before its first write.
    ///
    /// # Errors
    /// `SYS.1016` if its disk cannot be read.
    pub fn counter(&self) -> Result<u32> {
        guest::counter(&self.volume()).map(Option::unwrap_or_default).map_err(io("read the guest's disk"))
    }

    /// The vhost target on a host, if it runs.
    pub fn target(&self, host: &str) -> Option<Process> {
        self.started_by(host, "qemu-storage-daemon").into_iter().next()
    }

    /// The QEMU processes on a host.
    pub fn qemus(&self, host: &str) -> Vec<Process> {
        self.started_by(host, "qemu-system")
    }

    fn started_by(&self, host: &str, program: &str) -> Vec<Process> {
        let dir = format!("{}/", self.path.join(host).display());
        let ours = |process: &Process| {
            process.program().starts_with(program)
                && process.argv.iter().any(|arg| arg.contains(&dir))
                && process.is_alive()
        };
        Process::scan(ours).unwrap_or_default()
    }

    /// Kills a node with SIGKILL.
    ///
    /// # Errors
    /// `SYS.1003` if the name is unknown.
    pub fn kill(&mut self, name: &str) -> Result<()> {
        let at = self.nodes.iter().position(|node| node.name == name);
        let mut node = self.nodes.remove(at.ok_or_else(|| ErrorCode::new(Code::NOT_FOUND, name))?);
        node.child.kill().and_then(|()| node.child.wait()).map_err(io("kill a child"))?;
        Ok(())
    }

    /// Stops a node with SIGTERM and returns its exit status.
    ///
    /// # Errors
    /// `SYS.1003` if the name is unknown, `SYS.1001` if it does not end within [`CHILD_TIMEOUT`].
    pub async fn stop(&mut self, name: &str) -> Result<Option<i32>> {
        let at = self.nodes.iter().position(|node| node.name == name);
        let mut node = self.nodes.remove(at.ok_or_else(|| ErrorCode::new(Code::NOT_FOUND, name))?);
        let _ = Pid::from_raw(node.child.id() as i32).map(|pid| kill_process(pid, Signal::TERM));
        let ended = async || node.child.try_wait().map_err(io("wait for a child"));
        let ended = self.until(&format!("{name} ends"), CHILD_TIMEOUT, ended).await;
        if ended.is_err() {
            let _ = node.child.kill();
        }
        ended.map(|status| status.code())
    }

    /// Restarts a node after [`kill`](Cluster::kill).
    ///
    /// # Errors
    /// As [`start`](Cluster::start)'s.
    pub async fn restart(&mut self, name: &str) -> Result<()> {
        let command = if name == "controller" { "serve" } else { "agent" };
        self.run(command, name).await.map(|_| ())
    }

    /// Waits until all hosts and their protocols are Connected.
    ///
    /// # Errors
    /// `SYS.1001` after `within`, with the last state.
    pub async fn connected(&self, within: Duration) -> Result<()> {
        self.until("all hosts and protocols are Connected", within, async || {
            let hosts: Vec<HostInventory> = self.client.items("/v1/hosts").await?;
            let refs: Vec<HostProtocolRef> = self.client.items("/v1/host-protocol-refs").await?;
            let connected = hosts.iter().all(|host| host.status == HostStatus::Connected)
                && refs.iter().all(|r| r.status == Some(ringfence_messages::ProtocolStatus::Connected));
            Ok(connected.then_some(()))
        })
        .await
    }

    /// Waits until a probe returns a value.
    ///
    /// # Errors
    /// `SYS.1001` after `within`, with `what` and the last error; an error of the probe alone does not end the wait.
    pub async fn until<T>(
        &self,
        what: &str,
        within: Duration,
        mut look: impl AsyncFnMut() -> Result<Option<T>>,
    ) -> Result<T> {
        let deadline = Instant::now() + within;
        loop {
            let error = match look().await {
                Ok(Some(seen)) => return Ok(seen),
                Ok(None) => None,
                Err(error) => Some(error),
            };
            if Instant::now() >= deadline {
                let timeout = ErrorCode::new(Code::TIMEOUT, format!("waited {within:?} in vain until {what}"));
                return Err(match error {
                    Some(error) => timeout.caused_by(error),
                    None => timeout,
                });
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// All records after a sequence number.
    ///
    /// # Errors
    /// The controller's error.
    pub async fn events(&self, mut after: u64) -> Result<Vec<Record>> {
        let mut all = Vec::new();
        loop {
            let page: Vec<Record> = self.client.items(&format!("/v1/events?after={after}&limit={MAX_READ}")).await?;
            let Some(last) = page.last() else { return Ok(all) };
            after = last.seq;
            all.extend(page);
        }
    }

    /// Waits for the first record after `after` that `is` picks.
    ///
    /// # Errors
    /// `SYS.1001` after `within`.
    pub async fn event(
        &self,
        what: &str,
        after: u64,
        within: Duration,
        is: impl Fn(&Record) -> bool,
    ) -> Result<Record> {
        self.until(what, within, async || Ok(self.events(after).await?.into_iter().find(|record| is(record)))).await
    }

    /// Log of a node.
    pub fn log(&self, name: &str) -> String {
        fs::read_to_string(self.path.join(format!("{name}.log"))).unwrap_or_default()
    }

    /// Keeps everything running. Returns the command that stops it.
    pub fn keep(mut self) -> String {
        self.nodes.clear();
        if let Some(dir) = self.dir.take() {
            let _ = dir.keep();
        }
        let dir = self.path.display();
        format!("kill -9 $(cat {dir}/*.pid {dir}/*/vhost/*/target.pid {dir}/*/vm/*/pid); rm -r {dir}")
    }

    fn write_agent(&self, host: &str, listen: &str) -> Result<()> {
        let vhost = match &self.plan.target_binary {
            Some(binary) => format!("[vhost]\nbinary = {:?}\n", binary.display().to_string()),
            None => String::new(),
        };
        self.write(
            host,
            // Its VMs run as this user beside the agents, also in a container and without root.
            &format!(
                "host = {host:?}\nlisten = {listen:?}\nstate_dir = {host:?}\ninsecure = true\n[qemu]\nsight = \"own\"\n\
                 {vhost}{}",
                self.plan.agent
            ),
        )
    }

    fn write_controller(&self, agents: &[(String, SocketAddr)], listen: &str) -> Result<()> {
        let Plan { ping, hugepages, controller, host: more, tables, .. } = &self.plan;
        let serial = format!("file:{}/{{vm}}.serial", self.path.display());
        let volumes = self.path.join("volumes").display().to_string();
        let vm = self.vm;
        let mut text = format!(
            "[controller]\nlisten = {listen:?}\nstate_dir = \"state\"\n{controller}[ping]\n{ping}\
             [recovery]\nhugepages = {hugepages}\n[[cluster]]\nname = \"c1\"\n"
        );
        for (host, address) in agents {
            text.push_str(&format!(
                "[[host]]\nname = {host:?}\ncluster = \"c1\"\nmanagement_ip = \"127.0.0.1\"\n\
                 agent = \"http://{address}\"\n{more}"
            ));
        }
        text.push_str(&format!(
            "[[storage]]\nname = {STORAGE:?}\nkind = \"vhost\"\nclusters = [\"c1\"]\ndir = {volumes:?}\n\
             [[vm]]\nname = {VM:?}\nuuid = \"{vm}\"\ncluster = \"c1\"\nmemory_mib = 16\n\
             qemu_args = [\"-fw_cfg\", \"name=opt/tb,string={{host}}\", \"-serial\", {serial:?}]\n\
             [[vm.volume]]\nstorage = {STORAGE:?}\ninstall_path = \"vhost://{VM}\"\nroot = true\n{tables}"
        ));
        self.write("controller", &text)
    }

    fn write(&self, name: &str, text: &str) -> Result<()> {
        fs::write(self.path.join(format!("{name}.toml")), text).map_err(io("write a config"))
    }

    /// Starts a child and waits for its listen address.
    async fn run(&mut self, command: &str, name: &str) -> Result<SocketAddr> {
        let file = |ending: &str| self.path.join(format!("{name}.{ending}"));
        let log = File::create(file("log")).map_err(io("write a log"))?;
        let mut child = Command::new(&self.program)
            .args([command, "--config"])
            .arg(file("toml"))
            .process_group(0) // Ctrl-C is for the owner, who takes it down in order
            .stdin(Stdio::null())
            .stdout(log.try_clone().map_err(io("write a log"))?)
            .stderr(log)
            .spawn()
            .map_err(io("run this program"))?;
        fs::write(file("pid"), format!("{}\n", child.id())).map_err(io("write a pid file"))?;
        let deadline = Instant::now() + CHILD_TIMEOUT;
        let address = loop {
            let said = fs::read_to_string(file("log")).unwrap_or_default();
            if let Some(address) = said.lines().find_map(|line| line.split_once(" listens on ")?.1.parse().ok()) {
                break Ok(address);
            }
            let ended = child.try_wait().map_err(io("wait for a child"))?;
            if ended.is_some() || Instant::now() >= deadline {
                break Err(ErrorCode::new(Code::OPERATION, format!("{name} does not serve: {}", said.trim())));
            }
            tokio::time::sleep(POLL).await;
        };
        self.nodes.push(Node { name: name.to_owned(), child });
        address
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if self.dir.is_none() {
            return;
        }
        // The controller first, so that it redeploys nothing.
        for node in self.nodes.iter_mut().rev() {
            end(&mut node.child);
        }
        for host in &self.plan.hosts {
            for process in self.qemus(host).into_iter().chain(self.started_by(host, "qemu-storage-daemon")) {
                let _ = Pid::from_raw(process.pid as i32).map(|pid| kill_process(pid, Signal::KILL));
            }
        }
    }
}

/// Stops a child with SIGTERM, then SIGKILL. It is not reaped before, so its pid is not reused.
fn end(child: &mut Child) {
    let _ = Pid::from_raw(child.id() as i32).map(|pid| kill_process(pid, Signal::TERM));
    let deadline = std::time::Instant::now() + CHILD_TIMEOUT;
    while matches!(child.try_wait(), Ok(None)) {
        if std::time::Instant::now() >= deadline {
            let _ = child.kill();
            let _ = child.wait();
            return;
        }
        std::thread::park_timeout(POLL);
    }
}

/// The id of the storage, as both files derive it.
pub fn storage_id() -> StorageId {
    StorageId::from_name(STORAGE)
}

fn io(doing: &'static str) -> impl Fn(std::io::Error) -> ErrorCode {
    move |error| ErrorCode::new(Code::IO, format!("cannot {doing}: {error}"))
}
