//! Certificates and keys in files: checks of their content, with errors that have a remedy.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use ringfence_messages::{Code, ErrorCode, Result};
use rustls::{
    RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    sign::CertifiedKey,
};
use secrecy::{ExposeSecret, SecretSlice};

use crate::files::open_to_others;

use super::{
    identity::{Identity, Role, day},
    provider,
};

/// The largest file that is read: a system's bundle of all public authorities has a quarter of it. A larger one is some
/// other file.
pub const MAX_PEM_BYTES: u64 = 1 << 20;

/// One end's certificate and key, and the authorities whose certificates it believes; PEM files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// The certificate, with those between it and the authority behind it.
    pub cert: PathBuf,
    /// Its private key, mode 0600.
    pub key: PathBuf,
    /// The authorities; while one replaces another, both.
    pub ca: PathBuf,
}

impl TlsFiles {
    pub(crate) fn paths(&self) -> Vec<PathBuf> {
        vec![self.cert.clone(), self.key.clone(), self.ca.clone()]
    }

    /// Reads them all, as whoever uses them does; what the certificate says.
    ///
    /// # Errors
    /// `SYS.1007`, naming the file and the fix.
    pub fn check(&self, role: &Role) -> Result<Identity> {
        authorities(&self.ca)?;
        own(&self.cert, &self.key, Some(role)).map(|(_, identity)| identity)
    }
}

fn odd(what: &str, path: &Path, why: impl std::fmt::Display) -> ErrorCode {
    ErrorCode::new(Code::INVALID_ARGUMENT, format!("{what} {}: {why}", path.display()))
}

/// Reads a file of at most [`MAX_PEM_BYTES`].
fn read(what: &str, path: &Path, private: bool) -> Result<SecretSlice<u8>> {
    let metadata = std::fs::metadata(path).map_err(|e| odd(what, path, e))?;
    if metadata.len() > MAX_PEM_BYTES || !metadata.is_file() {
        return Err(odd(what, path, format!("not a PEM file of at most {MAX_PEM_BYTES} bytes")));
    }
    if let (true, Some(mode)) = (private, open_to_others(&metadata)) {
        return Err(odd(what, path, format!("others may read it (mode {mode}): chmod 600 it")));
    }
    std::fs::read(path).map(SecretSlice::from).map_err(|e| odd(what, path, e))
}

/// The certificates of a PEM file, in their order; at least one.
///
/// # Errors
/// `SYS.1007`, naming the file and the fix.
pub fn certificates(what: &str, path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let bytes = read(what, path, false)?;
    let all: std::result::Result<Vec<_>, _> = CertificateDer::pem_slice_iter(bytes.expose_secret()).collect();
    let all = all.map_err(|e| odd(what, path, format!("it is not PEM: {e}")))?;
    if all.is_empty() {
        let why = "it has no certificate (-----BEGIN CERTIFICATE-----): `ringfence pki issue` creates one";
        return Err(odd(what, path, why));
    }
    Ok(all)
}

/// The authorities of a file.
pub(super) fn authorities(path: &Path) -> Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates("ca", path)? {
        if !Identity::is_authority(&certificate) {
            let why = "a certificate in it is not an authority's: use the ca.pem of `ringfence pki init`";
            return Err(odd("ca", path, why));
        }
        roots.add(certificate).map_err(|e| odd("ca", path, e))?;
    }
    Ok(roots)
}

/// A certificate of our own with its key, fit for use now, and of the role if one is asked for.
pub(super) fn own(cert: &Path, key: &Path, role: Option<&Role>) -> Result<(Arc<CertifiedKey>, Identity)> {
    let chain = certificates("cert", cert)?;
    let identity = Identity::of(&chain[0]).map_err(|why| odd("cert", cert, why))?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() as i64);
    if now > identity.not_after {
        let why = format!("it ended on {}: `ringfence pki rotate` renews it", day(identity.not_after));
        return Err(odd("cert", cert, why));
    }
    if now < identity.not_before {
        let why = format!("it is valid from {}: check the clock of this machine", day(identity.not_before));
        return Err(odd("cert", cert, why));
    }
    if let Some(role) = role.filter(|role| identity.role.as_ref() != Some(role)) {
        let fix = match role {
            Role::Controller => "--controller",
            Role::Host(_) => "--host NAME",
            Role::Client(_) => "--client NAME",
        };
        let why = format!("it is {}, not {role}: `ringfence pki issue {fix}` creates one", identity.whose());
        return Err(odd("cert", cert, why));
    }
    let bytes = read("key", key, true)?;
    let secret = PrivateKeyDer::from_pem_slice(bytes.expose_secret())
        .map_err(|e| odd("key", key, format!("no private key is in it: {e}")))?;
    let certified = CertifiedKey::from_der(chain, secret, &provider());
    let certified = certified.map_err(|e| match e {
        rustls::Error::InconsistentKeys(_) => odd(
            "key",
            key,
            format!("it is not the key of {}: take both from one folder of `ringfence pki`", cert.display()),
        ),
        other => odd("key", key, other),
    })?;
    Ok((Arc::new(certified), identity))
}
