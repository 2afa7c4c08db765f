//! Expiry of the certificates that a controller presents and trusts, as metrics.
//!
//! Invariants: the values are of the certificates in use: files are read as their users read them, and an unusable
//! file keeps the last value, as it keeps the last certificate; of several (a chain, two authorities during a
//! rotation, all hosts) the earliest expiry counts. Alternative considered: a label for each host, of which there may
//! be ten thousand.

use std::{path::Path, sync::Arc};

use metrics::gauge;
use ringfence_drivers::{
    agent_client::AgentClient,
    tls::{Identity, Role, ServerFiles, TlsFiles, certificates},
};
use ringfence_messages::HostId;

use crate::config::ControllerConfig;

/// Sources of certificates.
pub(crate) struct Certificates {
    api: Option<ServerFiles>,
    own: Option<TlsFiles>,
    agents: Arc<AgentClient>,
}

impl Certificates {
    /// Certificates of a controller and of its agents. Sets the gauges once, so that a certificate that expires
    /// before the first scrape is reported too.
    pub(crate) fn of(config: &ControllerConfig, agents: Arc<AgentClient>) -> Certificates {
        let certificates = Certificates { api: config.tls.clone(), own: config.agent_tls.clone(), agents };
        certificates.measure([]);
        certificates
    }

    /// Sets the gauges.
    pub(crate) fn measure(&self, hosts: impl IntoIterator<Item = HostId>) {
        if let Some(files) = self.api.as_ref().filter(|files| files.check().is_ok()) {
            set_expiry("api", end(&files.cert));
            set_expiry("client-authority", files.client_ca.as_deref().and_then(end));
        }
        if let Some(files) = self.own.as_ref().filter(|files| files.check(&Role::Controller).is_ok()) {
            set_expiry("controller", end(&files.cert));
            set_expiry("authority", end(&files.ca));
        }
        set_expiry("hosts", self.agents.certificates_end(hosts));
    }
}

fn set_expiry(owner: &'static str, end: Option<i64>) {
    if let Some(end) = end {
        gauge!("ringfence_certificate_expiry_timestamp_seconds", "whose" => owner).set(end as f64);
    }
}

/// Earliest expiry of a file's certificates.
fn end(path: &Path) -> Option<i64> {
    let all = certificates("cert", path).ok()?;
    all.iter().filter_map(|der| Identity::of(der).ok()).map(|identity| identity.not_after).min()
}
