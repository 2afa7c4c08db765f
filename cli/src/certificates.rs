//! When the certificates end that a controller shows and believes, for who watches it.
//!
//! Invariants: what is told is what is in use: files are read as those read them that use them, and files that cannot be used
//! leave the last value, as they leave the last certificate; of several (a chain, two authorities while one replaces the
//! other, all hosts) the first to end is told. Rejected: a label for each host, of which there may be ten thousand.

use std::{path::Path, sync::Arc};

use metrics::gauge;
use ringfence_drivers::{
    agent_client::AgentClient,
    tls::{Identity, Role, ServerFiles, TlsFiles, certificates},
};
use ringfence_messages::HostId;

use crate::config::ControllerConfig;

/// Whose certificates end.
pub(crate) struct Certificates {
    api: Option<ServerFiles>,
    own: Option<TlsFiles>,
    agents: Arc<AgentClient>,
}

impl Certificates {
    /// Those of a controller and of the agents that it asks; told for the first time, so that one that ends before
    /// anybody asks is told too.
    pub(crate) fn of(config: &ControllerConfig, agents: Arc<AgentClient>) -> Certificates {
        let certificates = Certificates { api: config.tls.clone(), own: config.agent_tls.clone(), agents };
        certificates.measure([]);
        certificates
    }

    /// Sets the gauges of when they end.
    pub(crate) fn measure(&self, hosts: impl IntoIterator<Item = HostId>) {
        if let Some(files) = self.api.as_ref().filter(|files| files.check().is_ok()) {
            tell("api", end(&files.cert));
            tell("client-authority", files.client_ca.as_deref().and_then(end));
        }
        if let Some(files) = self.own.as_ref().filter(|files| files.check(&Role::Controller).is_ok()) {
            tell("controller", end(&files.cert));
            tell("authority", end(&files.ca));
        }
        tell("hosts", self.agents.certificates_end(hosts));
    }
}

fn tell(whose: &'static str, end: Option<i64>) {
    if let Some(end) = end {
        gauge!("ringfence_certificate_expiry_timestamp_seconds", "whose" => whose).set(end as f64);
    }
}

/// When the first of a file's certificates ends.
fn end(path: &Path) -> Option<i64> {
    let all = certificates("cert", path).ok()?;
    all.iter().filter_map(|der| Identity::of(der).ok()).map(|identity| identity.not_after).min()
}
