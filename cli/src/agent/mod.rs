//! The host agent: does on its host what a controller asks, and answers what is true there.
//!
//! Invariants: what it starts (QEMU, vhost targets) outlives it; a ping is answered whatever else it is doing;
//! orders that guard against starting a VM twice are durable before they are carried out; it refuses to listen
//! beyond loopback in the clear, or to obey everybody, unless told so.

mod http;
mod service;
mod tasks;

use std::{future::Future, net::SocketAddr, path::PathBuf};

use ringfence_drivers::{
    files::read_private,
    node::{docker::Engine, ssh::SshSettings, target::Runner, vms::QemuSettings},
    state_dir::StateDir,
    tls::{TlsFiles, agent_server},
};
use ringfence_messages::{Code, ErrorCode, HostId, Result};
use secrecy::SecretString;

use crate::listen;
use service::Service;

/// What an agent is told.
#[derive(Clone, Debug)]
pub struct AgentSettings {
    /// The host that it is.
    pub host: HostId,
    /// Where it listens.
    pub listen: SocketAddr,
    /// Its durable state; one agent at a time.
    pub state_dir: PathBuf,
    /// Listen beyond loopback without TLS; ask nobody for a token.
    pub insecure: bool,
    /// How QEMU is run.
    pub qemu: QemuSettings,
    /// How the vhost targets are run that this agent deploys.
    pub target: Runner,
    /// The engine of the host, if vhost targets run in containers: preparing the host includes it then.
    pub docker: Option<Engine>,
    /// How it reaches a failed sibling; `None`: it cannot.
    pub ssh: Option<SshSettings>,
    /// Its certificate and key, and the authorities whose controllers it hears; `None`: plain HTTP.
    pub tls: Option<TlsFiles>,
    /// A file with the token that every caller must show; mode 0600.
    pub token_file: Option<PathBuf>,
}

/// What to do about an agent that listens in the clear.
pub(crate) const IN_THE_CLEAR: &str = "add [tls] cert, key, ca (`ringfence pki issue --host NAME` makes them), listen on 127.0.0.1, or set \
                                       insecure = true if the network is trusted";

/// What to do about an agent that asks nobody who he is. On loopback too: every user of the host would be root on it.
const OPEN_TO_ALL: &str = "the agent has neither [auth] token_file nor [tls]: whoever reaches it would be root on this host. Add \
                           [auth] token_file with the line that the controller has in agent_token_file, [tls], or insecure = true on \
                           a machine that only you use";

/// The least length of a token. 16 characters of base64 are 96 bits.
pub const MIN_TOKEN_CHARS: usize = 16;

/// The largest file with a token or a password. Too low: a long one is refused. Too high: some other file is read.
const MAX_TOKEN_FILE_BYTES: u64 = 64 << 10;

/// Runs an agent until `shutdown` resolves. `ready` is told the address that it listens on.
///
/// # Errors
/// One line each, before anything is served: listening in the clear or to everybody, a port in use, a state directory that cannot
/// be used or is in use, QEMU missing, a token file that others can read.
pub async fn run(
    settings: AgentSettings,
    ready: impl FnOnce(SocketAddr),
    shutdown: impl Future<Output = ()>,
) -> Result<()> {
    if !settings.listen.ip().is_loopback() && settings.tls.is_none() && !settings.insecure {
        let details = format!("listen = \"{}\" is beyond loopback in the clear: {}", settings.listen, IN_THE_CLEAR);
        return Err(ErrorCode::new(Code::INVALID_ARGUMENT, details));
    }
    if settings.token_file.is_none() && settings.tls.is_none() && !settings.insecure {
        return Err(ErrorCode::new(Code::INVALID_ARGUMENT, OPEN_TO_ALL));
    }
    let tls = settings.tls.clone().map(|files| agent_server(files, settings.host)).transpose()?;
    let token = settings.token_file.as_deref().map(read_token).transpose()?;
    let state = StateDir::open(&settings.state_dir)?;
    let listener = listen::bind(settings.listen).await?;
    let address = listener.local_addr().map_err(|e| ErrorCode::new(Code::IO, e.to_string()))?;
    let service = Service::open(&settings, state).await?;
    tracing::info!(%address, host = %settings.host, tls = tls.is_some(), "the agent serves");
    ready(address);
    listen::serve_over(listener, tls, http::router(service, token), shutdown).await;
    tracing::info!("the agent ends; its VMs and targets run on");
    Ok(())
}

/// Reads a token that only its owner may read.
///
/// # Errors
/// `SYS.1007`, naming the file and the fix.
pub fn read_token(path: &std::path::Path) -> Result<SecretString> {
    let odd = |why: String| ErrorCode::new(Code::INVALID_ARGUMENT, format!("token file {}: {why}", path.display()));
    let text = read_private(path, MAX_TOKEN_FILE_BYTES).map_err(odd)?;
    let token = text.trim();
    if token.len() < MIN_TOKEN_CHARS || !token.chars().all(|c| c.is_ascii_graphic()) {
        return Err(odd(format!("it must hold one line of at least {MIN_TOKEN_CHARS} printable ASCII characters")));
    }
    Ok(SecretString::from(token.to_owned()))
}
