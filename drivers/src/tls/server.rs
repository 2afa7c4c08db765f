//! The server end: an agent, which accepts only controllers, and the API.

use std::{path::PathBuf, sync::Arc};

use ringfence_messages::{Code, ErrorCode, HostId, Result};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, ServerConfig, SignatureScheme,
    client::danger::HandshakeSignatureValid,
    pki_types::{CertificateDer, UnixTime},
    server::{
        NoServerSessionStorage, WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
    sign::SingleCertAndKey,
};

use super::{
    VERSIONS, files,
    files::TlsFiles,
    identity::{Identity, Role},
    provider,
    reload::Watched,
};

/// The TLS of a listener, made again when its files change.
pub type ServerTls = Watched<ServerConfig>;

/// Certificate and key of the API, and the authorities of client certificates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerFiles {
    /// The certificate.
    pub cert: PathBuf,
    /// The key, mode 0600.
    pub key: PathBuf,
    /// Authorities of client certificates; `None` if clients need none.
    pub client_ca: Option<PathBuf>,
}

impl ServerFiles {
    /// Reads all files, as the API does; returns the identity in the certificate.
    ///
    /// # Errors
    /// `SYS.1007` with file and remedy.
    pub fn check(&self) -> Result<Identity> {
        self.client_ca.as_deref().map(files::authorities).transpose()?;
        files::own(&self.cert, &self.key, None).map(|(_, identity)| identity)
    }
}

/// The TLS of an agent: with this host's certificate, for clients with a controller's certificate.
///
/// # Errors
/// `SYS.1007` with file and remedy.
pub fn agent_server(files: TlsFiles, host: HostId) -> Result<ServerTls> {
    Watched::new(files.paths(), move || {
        let (own, _) = files::own(&files.cert, &files.key, Some(&Role::Host(host)))?;
        config(own, Some(Arc::new(ControllersOnly(chains(&files.ca)?))))
    })
}

/// The TLS of the API.
///
/// # Errors
/// `SYS.1007` with file and remedy.
pub fn api_server(files: ServerFiles) -> Result<ServerTls> {
    let paths = [Some(&files.cert), Some(&files.key), files.client_ca.as_ref()].into_iter().flatten().cloned();
    Watched::new(paths.collect(), move || {
        let (own, _) = files::own(&files.cert, &files.key, None)?;
        config(own, files.client_ca.as_deref().map(chains).transpose()?)
    })
}

/// A verifier of client certificates of these authorities.
fn chains(ca: &std::path::Path) -> Result<Arc<dyn ClientCertVerifier>> {
    let roots = Arc::new(files::authorities(ca)?);
    WebPkiClientVerifier::builder_with_provider(roots, provider())
        .build()
        .map_err(|e| ErrorCode::new(Code::INVALID_ARGUMENT, format!("ca {}: {e}", ca.display())))
}

fn config(own: Arc<rustls::sign::CertifiedKey>, clients: Option<Arc<dyn ClientCertVerifier>>) -> Result<ServerConfig> {
    let internal = |e: Error| ErrorCode::new(Code::INTERNAL, format!("TLS: {e}"));
    let builder = ServerConfig::builder_with_provider(provider()).with_protocol_versions(VERSIONS).map_err(internal)?;
    let builder = match clients {
        Some(clients) => builder.with_client_cert_verifier(clients),
        None => builder.with_no_client_auth(),
    };
    let mut config = builder.with_cert_resolver(Arc::new(SingleCertAndKey::from(own)));
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

/// Accepts only valid certificates with the role of a controller.
#[derive(Debug)]
struct ControllersOnly(Arc<dyn ClientCertVerifier>);

impl ClientCertVerifier for ControllersOnly {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.0.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> std::result::Result<ClientCertVerified, Error> {
        let verified = self.0.verify_client_cert(end_entity, intermediates, now)?;
        match Identity::of(end_entity) {
            Ok(Identity { role: Some(Role::Controller), .. }) => Ok(verified),
            // The one reason with its own alert, so that the client can report it.
            _ => Err(Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure)),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}
