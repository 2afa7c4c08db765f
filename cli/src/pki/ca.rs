//! The certificate authority: a folder with `ca.pem`, the trusted certificates, and `issuer.pem`, its key and
//! certificate.
//!
//! Invariant: the issuer is one file, so that key and certificate cannot part; it is always among those in `ca.pem`.

use std::path::{Path, PathBuf};

use rand::Rng;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use ringfence_drivers::{
    files::replace_file,
    tls::{Identity, certificates, day},
};
use ringfence_messages::{Code, ErrorCode, Result};
use time::OffsetDateTime;

use super::{
    BACKDATE_SECONDS,
    bundle::{self, PUBLIC, SECRET},
};

/// A certificate authority.
pub struct Authority {
    dir: PathBuf,
    issuer: Issuer<'static, KeyPair>,
    /// Its own certificate, DER.
    own: Vec<u8>,
    not_after: i64,
    /// Those that are trusted, PEM.
    bundle: String,
}

pub(super) fn internal(error: impl std::fmt::Display) -> ErrorCode {
    ErrorCode::new(Code::INTERNAL, format!("certificate: {error}"))
}

/// From a little ago, for so many days.
pub(super) fn life(days: u32) -> Result<(OffsetDateTime, OffsetDateTime)> {
    let now = OffsetDateTime::now_utc();
    let end = now + time::Duration::days(days.into());
    Ok((now - time::Duration::seconds(BACKDATE_SECONDS), end))
}

/// A new authority: its certificate, and what `issuer.pem` holds.
fn make(days: u32) -> Result<(String, String)> {
    let key = KeyPair::generate().map_err(internal)?;
    let mut params = CertificateParams::default();
    let name = format!("Ringfence CA {}", hex::encode(rand::rng().random::<[u8; 4]>()));
    params.distinguished_name.remove(DnType::CommonName);
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    (params.not_before, params.not_after) = life(days)?;
    let certificate = params.self_signed(&key).map_err(internal)?.pem();
    let issuer = format!("{}{certificate}", key.serialize_pem());
    Ok((certificate, issuer))
}

impl Authority {
    /// Makes one in a new folder.
    ///
    /// # Errors
    /// `SYS.1007` if something is there, `SYS.1016` if it cannot be written.
    pub fn init(dir: &Path, days: u32) -> Result<Authority> {
        let (certificate, issuer) = make(days)?;
        bundle::create(dir, &[("ca.pem", &certificate, PUBLIC), ("issuer.pem", &issuer, SECRET)])?;
        Authority::open(dir)
    }

    /// Opens the one in a folder.
    ///
    /// # Errors
    /// `SYS.1007`, naming the file and the fix.
    pub fn open(dir: &Path) -> Result<Authority> {
        let file = dir.join("issuer.pem");
        let odd = |why: String| ErrorCode::new(Code::INVALID_ARGUMENT, format!("{}: {why}", file.display()));
        let text = std::fs::read_to_string(&file)
            .map_err(|e| odd(format!("{e}; create an authority with `ringfence pki init {}`", dir.display())))?;
        let own = certificates("issuer", &file)?.remove(0).to_vec();
        let identity = Identity::of(&own).map_err(odd)?;
        let key = KeyPair::from_pem(&text).map_err(|e| odd(format!("the file has no private key: {e}")))?;
        let issuer = Issuer::from_ca_cert_der(&own.clone().into(), key).map_err(|e| odd(e.to_string()))?;
        let bundle =
            std::fs::read_to_string(dir.join("ca.pem")).map_err(|e| bundle::odd(&dir.join("ca.pem"), "read it", e))?;
        let authority = Authority { dir: dir.to_owned(), issuer, own, not_after: identity.not_after, bundle };
        if !authority.trusted()?.contains(&authority.own) {
            return Err(odd(
                "its certificate is not in ca.pem; add it there, or restore the folder from a backup".to_owned()
            ));
        }
        Ok(authority)
    }

    /// Expiry.
    pub fn until(&self) -> String {
        day(self.not_after)
    }

    pub(super) fn not_after(&self) -> i64 {
        self.not_after
    }

    pub(super) fn issuer(&self) -> &Issuer<'static, KeyPair> {
        &self.issuer
    }

    pub(super) fn bundle(&self) -> &str {
        &self.bundle
    }

    /// The trusted certificates, DER.
    pub(super) fn trusted(&self) -> Result<Vec<Vec<u8>>> {
        Ok(certificates("ca", &self.dir.join("ca.pem"))?.iter().map(|of| of.to_vec()).collect())
    }

    /// Replaces the authority; the old one stays trusted.
    ///
    /// # Errors
    /// `SYS.1005` if an old authority is already trusted.
    pub fn replace(self, days: u32) -> Result<Authority> {
        if self.trusted()?.len() > 1 {
            let details = format!(
                "{} still contains an old authority; finish that rotation first with `ringfence pki rotate --ca {} \
                 --drop-old-ca`",
                self.dir.join("ca.pem").display(),
                self.dir.display()
            );
            return Err(ErrorCode::new(Code::CHANGE_STATE, details));
        }
        let (certificate, issuer) = make(days)?;
        // In this sequence a crash leaves one more trusted authority, whose key does not exist.
        self.publish(&format!("{certificate}{}", self.bundle))?;
        let file = self.dir.join("issuer.pem");
        replace_file(&file, issuer.as_bytes()).map_err(|e| bundle::odd(&file, "replace it", e))?;
        Authority::open(&self.dir)
    }

    /// Removes old authorities from the trusted ones. Returns their number.
    ///
    /// # Errors
    /// `SYS.1005` if there is no old authority.
    pub fn drop_old(self) -> Result<usize> {
        let trusted = self.trusted()?;
        let Some(old) = trusted.len().checked_sub(1).filter(|old| *old > 0) else {
            let details = format!(
                "{} contains a single authority; create its successor with --replace-ca first",
                self.dir.join("ca.pem").display()
            );
            return Err(ErrorCode::new(Code::CHANGE_STATE, details));
        };
        let file = self.dir.join("issuer.pem");
        let text = std::fs::read_to_string(&file).map_err(|e| bundle::odd(&file, "read it", e))?;
        // The certificate follows the key.
        let at = text
            .find("-----BEGIN CERTIFICATE-----")
            .ok_or_else(|| bundle::odd(&file, "read it", "the file has no certificate"))?;
        self.publish(&text[at..])?;
        Ok(old)
    }

    fn publish(&self, bundle: &str) -> Result<()> {
        use std::os::unix::fs::PermissionsExt;
        let file = self.dir.join("ca.pem");
        replace_file(&file, bundle.as_bytes())
            .and_then(|()| std::fs::set_permissions(&file, PermissionsExt::from_mode(PUBLIC)))
            .map_err(|e| bundle::odd(&file, "replace it", e))
    }
}
