//! Outgoing connections of hooks and traces, with their certificate authorities.

use std::{path::Path, sync::Arc, time::Duration};

use hyper_rustls::{ConfigBuilderExt, HttpsConnector};
use hyper_util::client::legacy::connect::HttpConnector;
use ringfence_messages::{Code, ErrorCode, Result};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, pem::PemObject},
};

/// Time limit of a TCP connection. Too low: a distant receiver counts as down. Too high: a dead one uses up the time
/// of an attempt.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Time for which an idle connection is kept.
pub(crate) const IDLE_TIMEOUT: Duration = Duration::from_secs(5);

/// The innermost cause of an error.
pub(crate) fn reason(error: &dyn std::error::Error) -> String {
    let mut why = error;
    while let Some(deeper) = why.source() {
        why = deeper;
    }
    why.to_string()
}

/// Connections to a receiver. With `secure`, its certificate is verified with the authorities of the file, or the
/// system's.
///
/// # Errors
/// `SYS.1007` with the unusable file and the remedy.
pub(crate) fn connector(ca_file: Option<&Path>, secure: bool) -> Result<HttpsConnector<HttpConnector>> {
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_connect_timeout(Some(CONNECT_TIMEOUT));
    let connector = hyper_rustls::HttpsConnectorBuilder::new().with_tls_config(tls(ca_file, secure)?);
    Ok(connector.https_or_http().enable_http1().wrap_connector(tcp))
}

/// TLS with the authorities of the file, or the system's.
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
            odd(format!("no certificate authorities of the system: {e}; install ca-certificates, or set ca_file"))
        })?,
        None => builder.with_root_certificates(RootCertStore::empty()),
    };
    Ok(builder.with_no_client_auth())
}

/// The certificate authorities of a file.
///
/// # Errors
/// Problem and remedy.
pub(crate) fn authorities(path: &Path) -> Result<RootCertStore, (String, String)> {
    let odd = |why: String| (why, "use a file with one or more certificates in PEM".to_owned());
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(path).map_err(|e| odd(e.to_string()))? {
        let certificate = certificate.map_err(|e| odd(e.to_string()))?;
        roots.add(certificate).map_err(|e| odd(e.to_string()))?;
    }
    if roots.is_empty() { Err(odd("the file has no certificate".to_owned())) } else { Ok(roots) }
}
