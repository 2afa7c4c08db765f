//! The host agent: carries out commands of the controller and reports the state of its host.
//!
//! Invariants: QEMU and vhost targets outlive the agent; a ping is answered whatever else is in progress; the state
//! that prevents a second start of a VM is durable before a start; without `insecure` the agent rejects a listener
//! beyond loopback without TLS, and a configuration without authentication.

mod answer;
pub mod config;
pub mod diagnose;
mod handlers;
mod http;
mod tasks;

use std::{future::Future, net::SocketAddr};

use ringfence_drivers::{state_dir::StateDir, tls::agent_server};
use ringfence_messages::{Code, ErrorCode, Result};
use ringfence_service::{listen, token_file::read_token};

use config::{AgentSettings, IN_THE_CLEAR};
use handlers::Handlers;

/// Error of an agent without authentication. It applies on loopback too: every user of the host would be root.
const OPEN_TO_ALL: &str = "the agent has neither [auth] token_file nor [tls], so every client that reaches it would be \
                           root on this host; add [auth] token_file with the token of the controller's \
                           agent_token_file, [tls], or insecure = true on a machine without other users";

/// Runs an agent until `shutdown` resolves. `ready` gets the listen address.
///
/// # Errors
/// One line each, before the first request: no TLS or no authentication, a port in use, a state directory that is
/// unusable or in use, QEMU missing, a token file that others can read.
pub async fn run(
    settings: AgentSettings,
    ready: impl FnOnce(SocketAddr),
    shutdown: impl Future<Output = ()>,
) -> Result<()> {
    if !settings.listen.ip().is_loopback() && settings.tls.is_none() && !settings.insecure {
        let details = format!("`listen` = \"{}\" is beyond loopback, without TLS; {}", settings.listen, IN_THE_CLEAR);
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
    tracing::info!("the agent stops; its VMs and targets keep running");
    Ok(())
}
