//! The client end: the controller, which accepts only the certificate of the addressed host, and the command line.
//!
//! A host is identified by its id, not by its address: a request goes to `ID.host.ringfence`, a name that only
//! [`Addresses`] resolves, so that the verifier knows the expected host, and no two hosts share a connection.
//! Alternatives considered: one client per host (100,000 pools); the address as the name (the owner of an address would
//! be every host that ever had it).

use std::{collections::HashMap, fmt, path::PathBuf, sync::Arc};

use parking_lot::Mutex;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use ringfence_messages::{Code, ErrorCode, HostId, Result};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, OtherError, RootCertStore, SignatureScheme,
    client::{
        Resumption, WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_cert_signed_by_trust_anchor,
    },
    crypto::WebPkiSupportedAlgorithms,
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::ParsedCertificate,
    sign::{CertifiedKey, SingleCertAndKey},
};

use super::{
    VERSIONS, files,
    files::TlsFiles,
    identity::{Identity, Role},
    provider,
};

/// What follows a host's id in the name that stands for it.
const SUFFIX: &str = ".host.ringfence";

/// When the certificates end that hosts showed last, in seconds of the Unix epoch.
pub(crate) type Ends = Arc<Mutex<HashMap<HostId, i64>>>;

/// The name that stands for a host.
pub(crate) fn alias(host: HostId) -> String {
    format!("{host}{SUFFIX}")
}

/// A builder of clients that trust nobody: for plain HTTP.
///
/// # Errors
/// `SYS.1000` if the cryptography does not fit, which it does.
pub fn plain_client() -> Result<reqwest::ClientBuilder> {
    let nobody = Arc::new(TheVeryHost::of(RootCertStore::empty(), Ends::default()));
    Ok(reqwest::Client::builder().tls_backend_preconfigured(config(nobody, None)?).no_proxy())
}

/// A builder of clients for agents. `addresses` are those of the [`alias`]es; `ends` is told of each certificate that
/// is believed.
///
/// # Errors
/// `SYS.1007`, naming the file and the fix.
pub(crate) fn agents_client(
    files: &TlsFiles,
    addresses: HashMap<String, String>,
    ends: Ends,
) -> Result<reqwest::ClientBuilder> {
    let verifier = TheVeryHost::of(files::authorities(&files.ca)?, ends);
    let (own, _) = files::own(&files.cert, &files.key, Some(&Role::Controller))?;
    let client = reqwest::Client::builder().tls_backend_preconfigured(config(Arc::new(verifier), Some(own))?);
    Ok(client.no_proxy().dns_resolver(Arc::new(Addresses(addresses))))
}

/// A builder of clients for a controller whose certificate comes from these authorities, with a certificate of one's
/// own if it asks for one.
///
/// # Errors
/// `SYS.1007`, naming the file and the fix.
pub fn api_client(ca: &std::path::Path, own: Option<(PathBuf, PathBuf)>) -> Result<reqwest::ClientBuilder> {
    let roots = Arc::new(files::authorities(ca)?);
    let verifier = WebPkiServerVerifier::builder_with_provider(roots, provider()).build();
    let verifier = verifier.map_err(|e| ErrorCode::new(Code::INVALID_ARGUMENT, format!("ca {}: {e}", ca.display())))?;
    let own = own.map(|(cert, key)| files::own(&cert, &key, None)).transpose()?.map(|(own, _)| own);
    Ok(reqwest::Client::builder().tls_backend_preconfigured(config(verifier, own)?).no_proxy())
}

fn config(verifier: Arc<dyn ServerCertVerifier>, own: Option<Arc<CertifiedKey>>) -> Result<ClientConfig> {
    let internal = |e: Error| ErrorCode::new(Code::INTERNAL, format!("TLS: {e}"));
    let builder = ClientConfig::builder_with_provider(provider()).with_protocol_versions(VERSIONS).map_err(internal)?;
    let builder = builder.dangerous().with_custom_certificate_verifier(verifier);
    let mut config = match own {
        Some(own) => builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(own))),
        None => builder.with_no_client_auth(),
    };
    config.resumption = Resumption::disabled();
    Ok(config)
}

/// Where the hosts behind the aliases listen.
struct Addresses(HashMap<String, String>);

impl Resolve for Addresses {
    fn resolve(&self, name: Name) -> Resolving {
        let host = self.0.get(name.as_str()).cloned().unwrap_or_else(|| name.as_str().to_owned());
        Box::pin(async move {
            let bare = host.trim_start_matches('[').trim_end_matches(']').to_owned();
            let found: Vec<_> = tokio::net::lookup_host((bare, 0)).await?.collect();
            Ok(Box::new(found.into_iter()) as Addrs)
        })
    }
}

/// Another one's certificate than that of the host that was asked.
#[derive(Debug)]
struct Stranger(String);

impl fmt::Display for Stranger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Stranger {}

/// Believes the certificate of the very host that is asked.
#[derive(Debug)]
struct TheVeryHost {
    roots: RootCertStore,
    algorithms: WebPkiSupportedAlgorithms,
    ends: Ends,
}

impl TheVeryHost {
    fn of(roots: RootCertStore, ends: Ends) -> TheVeryHost {
        TheVeryHost { roots, algorithms: provider().signature_verification_algorithms, ends }
    }
}

impl ServerCertVerifier for TheVeryHost {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> std::result::Result<ServerCertVerified, Error> {
        let parsed = ParsedCertificate::try_from(end_entity)?;
        verify_server_cert_signed_by_trust_anchor(&parsed, &self.roots, intermediates, now, self.algorithms.all)?;
        let name = server_name.to_str();
        let asked = name.strip_suffix(SUFFIX).and_then(|id| id.parse().ok()).map(Role::Host);
        let refused = |why| Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(Stranger(why)))));
        let identity = Identity::of(end_entity).map_err(refused)?;
        if let Some(Role::Host(host)) = asked
            && asked == identity.role
        {
            self.ends.lock().insert(host, identity.not_after);
            return Ok(ServerCertVerified::assertion());
        }
        let asked = asked.map_or("that of a host of this controller's file".to_owned(), |role| role.to_string());
        let owner = identity.whose();
        Err(refused(format!(
            "its certificate is {owner}, not {asked}: `ringfence pki issue --host NAME` creates the right one"
        )))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
