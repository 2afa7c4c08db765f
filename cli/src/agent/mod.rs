//! The host agent: does on its host what a controller asks, and answers what is true there.
//!
//! Invariants: what it starts (QEMU, vhost targets) outlives it; a ping is answered whatever else it is doing;
//! orders that guard against starting a VM twice are durable before they are carried out; it refuses to listen
//! beyond loopback in the clear, or to obey everybody, unless told so.

pub(crate) mod diagnose;
mod handlers;
mod http;
mod tasks;

use std::{future::Future, net::SocketAddr};

use ringfence_drivers::{state_dir::StateDir, tls::agent_server};
use ringfence_messages::{Code, ErrorCode, Result};

use crate::{
    auth::read_token,
    config::{AgentSettings, IN_THE_CLEAR},
    listen,
};
use handlers::Handlers;

/// What to do about an agent that asks nobody who he is. On loopback too: every user of the host would be root on it.
const OPEN_TO_ALL: &str = "the agent has neither [auth] token_file nor [tls]: whoever reaches it would be root on this host. Add \
                           [auth] token_file with the line that the controller has in agent_token_file, [tls], or insecure = true on \
                           a machine that only you use";

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
    let handlers = Handlers::open(&settings, state).await?;
    tracing::info!(%address, host = %settings.host, tls = tls.is_some(), "the agent serves");
    ready(address);
    listen::serve_over(listener, tls, http::router(handlers, token), shutdown).await;
    tracing::info!("the agent ends; its VMs and targets run on");
    Ok(())
}
