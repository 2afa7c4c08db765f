//! The agent's file.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
};

use ringfence_drivers::{
    node::{
        docker::{DEFAULT_SOCKET, Engine},
        ssh::SshSettings,
        target::Runner,
        vms::QemuSettings,
    },
    tls::TlsFiles,
};
use ringfence_messages::HostId;
use ringfence_service::config_file::{Checker, Problems, RawTls, ours, read, text};
use serde::Deserialize;
use serde_spanned::Spanned;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    host: Option<Spanned<String>>,
    uuid: Option<Spanned<String>>,
    listen: Spanned<String>,
    state_dir: PathBuf,
    #[serde(default)]
    insecure: bool,
    #[serde(default)]
    qemu: RawQemu,
    #[serde(default)]
    vhost: RawVhost,
    #[serde(default)]
    docker: RawDocker,
    ssh: Option<RawSsh>,
    #[serde(default)]
    auth: RawAuth,
    tls: Option<RawTls>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawQemu {
    binary: Option<String>,
    #[serde(default)]
    accel: Accel,
    #[serde(default)]
    memory: Memory,
    #[serde(default)]
    users: Vec<Spanned<String>>,
    #[serde(default)]
    sight: Whose,
}

#[derive(Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Whose {
    #[default]
    Host,
    Own,
}

#[derive(Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Accel {
    #[default]
    Auto,
    Kvm,
    Tcg,
}

#[derive(Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Memory {
    #[default]
    Auto,
    Hugepages,
    Memfd,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawVhost {
    #[serde(default)]
    target: Target,
    runner: Option<Spanned<RunnerKind>>,
    binary: Option<Spanned<String>>,
    image: Option<Spanned<String>>,
}

#[derive(Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum RunnerKind {
    #[default]
    Process,
    Docker,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawDocker {
    socket: Option<Spanned<String>>,
}

#[derive(Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Target {
    #[default]
    Qsd,
    Zbsadm,
}

/// SSH access of this agent to a failed sibling host.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawSsh {
    user: Option<Spanned<String>>,
    key_file: PathBuf,
    known_hosts_file: PathBuf,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawAuth {
    token_file: Option<PathBuf>,
}

/// Settings of an agent.
#[derive(Clone, Debug)]
pub struct AgentSettings {
    /// The host of this agent.
    pub host: HostId,
    /// Listen address.
    pub listen: SocketAddr,
    /// Directory of its durable state; one agent at a time.
    pub state_dir: PathBuf,
    /// Permit a listener beyond loopback without TLS, and no authentication.
    pub insecure: bool,
    /// Settings of QEMU.
    pub qemu: QemuSettings,
    /// Runner of the vhost targets that this agent deploys.
    pub target: Runner,
    /// Docker engine, if vhost targets run in containers; the agent prepares it with the host.
    pub docker: Option<Engine>,
    /// SSH access to a failed sibling host; `None`: no access.
    pub ssh: Option<SshSettings>,
    /// Certificate, key, and the certificate authorities of controllers; `None`: plain HTTP.
    pub tls: Option<TlsFiles>,
    /// File with the token that every request must present; mode 0600.
    pub token_file: Option<PathBuf>,
}

/// Remedy for an agent that listens beyond loopback without TLS.
pub(crate) const IN_THE_CLEAR: &str = "add [tls] cert, key, ca (`ringfence pki issue --host NAME` creates them), \
                                       listen on 127.0.0.1, or set insecure = true if the network is trusted";

/// An agent's file, checked.
#[derive(Debug)]
pub struct AgentConfig {
    /// The agent's settings.
    pub settings: AgentSettings,
}

/// Reads an agent's file.
///
/// # Errors
/// All errors of the file.
pub fn load(path: &Path) -> Result<AgentConfig, Problems> {
    ours(path)?;
    parse(path, read(path)?)
}

/// Parses the text of an agent's file; relative paths are relative to the folder of `path`.
///
/// # Errors
/// All errors of the file.
pub fn parse(path: &Path, content: String) -> Result<AgentConfig, Problems> {
    let mut checker = Checker::new(path, content);
    let Some(raw) = checker.parse::<Raw>(0) else { return checker.finish(None) };
    let base = path.parent().unwrap_or(Path::new("."));
    let listen: Option<SocketAddr> = checker.ok(raw.listen.span(), text::socket(raw.listen.get_ref()));
    if let Some(address) = listen
        && !address.ip().is_loopback()
        && !raw.insecure
        && raw.tls.is_none()
    {
        checker.wrong(raw.listen.span(), format!("{address} is beyond loopback, without TLS"), IN_THE_CLEAR);
    }
    let host = match (&raw.uuid, &raw.host) {
        (Some(uuid), _) => {
            let parsed = uuid
                .get_ref()
                .parse::<HostId>()
                .map_err(|e| (e.to_string(), "copy it from the controller's file".into()));
            checker.ok(uuid.span(), parsed)
        }
        (None, Some(host)) => {
            checker.ok(host.span(), text::name(host.get_ref(), 64)).map(|()| HostId::from_name(host.get_ref()))
        }
        (None, None) => {
            checker.wrong(0..1, "the file does not set the host", "add host = \"NAME\" as in the controller's file");
            None
        }
    };
    let socket = match &raw.docker.socket {
        Some(socket) => checker.ok(socket.span(), text::absolute(socket.get_ref())),
        None => Some(DEFAULT_SOCKET.to_owned()),
    };
    let engine = Engine::at(socket.unwrap_or_default());
    let target = runner(&mut checker, &raw.vhost, &engine);
    let docker = matches!(target, Runner::Docker(..)) || matches!(raw.vhost.target, Target::Zbsadm);
    let ssh = raw.ssh.as_ref().map(|ssh| {
        if let Some(user) = &ssh.user {
            checker.ok(user.span(), text::name(user.get_ref(), 32));
        }
        SshSettings {
            user: ssh.user.as_ref().map_or("root", |user| user.get_ref()).to_owned(),
            key_file: base.join(&ssh.key_file),
            known_hosts_file: base.join(&ssh.known_hosts_file),
        }
    });
    for user in &raw.qemu.users {
        checker.ok(user.span(), text::name(user.get_ref(), 32));
    }
    let named = |name: &str, value: bool| value.then(|| name.to_owned());
    let settings = listen.zip(host).map(|(listen, host)| AgentSettings {
        host,
        listen,
        state_dir: base.join(&raw.state_dir),
        insecure: raw.insecure,
        qemu: QemuSettings {
            binary: raw.qemu.binary.clone().unwrap_or_else(|| "qemu-system-x86_64".to_owned()),
            accel: named("kvm", matches!(raw.qemu.accel, Accel::Kvm))
                .or(named("tcg", matches!(raw.qemu.accel, Accel::Tcg))),
            memory: named("hugepages", matches!(raw.qemu.memory, Memory::Hugepages))
                .or(named("memfd", matches!(raw.qemu.memory, Memory::Memfd))),
            users: raw.qemu.users.iter().map(|user| user.get_ref().clone()).collect(),
            own: matches!(raw.qemu.sight, Whose::Own),
        },
        target,
        docker: docker.then_some(engine),
        ssh,
        tls: raw.tls.as_ref().map(|tls| tls.files(base)),
        token_file: raw.auth.token_file.as_ref().map(|file| base.join(file)),
    });
    checker.finish(settings.map(|settings| AgentConfig { settings }))
}

fn runner(c: &mut Checker, raw: &RawVhost, engine: &Engine) -> Runner {
    let in_docker = raw.runner.as_ref().filter(|runner| matches!(runner.get_ref(), RunnerKind::Docker));
    let Some(runner) = in_docker else {
        if let Some(image) = &raw.image {
            c.wrong(image.span(), "`image` requires runner = \"docker\"", "add runner = \"docker\", or remove `image`");
        }
        let program = raw.binary.as_ref().map_or("qemu-storage-daemon", |binary| binary.get_ref());
        return Runner::Process(program.to_owned());
    };
    if raw.image.is_none() {
        let help = "add image = \"NAME:TAG\", an image on this host whose entry point is qemu-storage-daemon";
        c.wrong(runner.span(), "runner = \"docker\" requires `image`", help);
    }
    if let Some(binary) = &raw.binary {
        c.wrong(
            binary.span(),
            "`binary` has no effect with runner = \"docker\"",
            "remove `binary`, or remove runner = \"docker\"",
        );
    }
    Runner::Docker(engine.clone(), raw.image.as_ref().map_or(String::new(), |image| image.get_ref().clone()))
}
