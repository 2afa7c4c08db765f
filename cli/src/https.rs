//! Outgoing connections of hooks and traces, and the certificate authorities that they trust.

use std::{path::Path, sync::Arc, time::Duration};

use hyper_rustls::{ConfigBuilderExt, HttpsConnector};
use hyper_util::client::legacy::connect::HttpConnector;
use ringfence_messages::{Code, ErrorCode, Result};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, pem::PemObject},
};

/// How long a TCP connection may take. Too low: a far receiver looks dead. Too high: a dead one takes the try's time.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a connection is kept for the next record.
pub(crate) const IDLE_TIMEOUT: Duration = Duration::from_secs(5);

/// The deepest reason is the one that helps.
pub(crate) fn reason(error: &dyn std::error::Error) -> String {
    let mut why = error;
    while let Some(deeper) = why.source() {
        why = deeper;
    }
    why.to_string()
}

/// Connections to a receiver, whom the authorities of the file vouch for, else the system's. Nobody vouches unless `secure`.
///
/// # Errors
/// `SYS.1007` naming what cannot be used, and the fix.
pub(crate) fn connector(ca_file: Option<&Path>, secure: bool) -> Result<HttpsConnector<HttpConnector>> {
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_connect_timeout(Some(CONNECT_TIMEOUT));
    let connector = hyper_rustls::HttpsConnectorBuilder::new().with_tls_config(tls(ca_file, secure)?);
    Ok(connector.https_or_http().enable_http1().wrap_connector(tcp))
}

/// Whom to believe: the authorities of the file, else the system's.
fn tls(ca_file: Option<&Path>, used: bool) -> Result<ClientConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let builder = builder.map_err(|e| ErrorCode::new(Code::INTERNAL, format!("TLS: {e}")))?;
    let odd = |why: String| ErrorCode::new(Code::INVALID_ARGUMENT, why);
    let builder = match ca_file {
        Some(path) => builder.with_root_certificates(
            authorities(path).map_err(|(why, fix)| odd(format!("{}: {why}; {fix}", path.display())))?,
        ),
        None if used => builder.with_native_roots().map_err(|e| {
            odd(format!("no certificate authorities of the system: {e}. Install ca-certificates, or set ca_file"))
        })?,
        None => builder.with_root_certificates(RootCertStore::empty()),
    };
    Ok(builder.with_no_client_auth())
}

/// The certificates of a file.
///
/// # Errors
/// What is wrong with it, and the fix.
pub(crate) fn authorities(path: &Path) -> Result<RootCertStore, (String, String)> {
    let odd = |why: String| (why, "name a file with one or more certificates in PEM".to_owned());
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(path).map_err(|e| odd(e.to_string()))? {
        let certificate = certificate.map_err(|e| odd(e.to_string()))?;
        roots.add(certificate).map_err(|e| odd(e.to_string()))?;
    }
    if roots.is_empty() { Err(odd("no certificate is in it".to_owned())) } else { Ok(roots) }
}
