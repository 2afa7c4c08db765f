//! Certificates of hosts, controllers and users: issue and renew.

use std::{net::IpAddr, path::Path};

use rand::Rng;
use rcgen::{
    CertificateParams, DnType, ExtendedKeyUsagePurpose, KeyPair, KeyUsagePurpose, SanType, SerialNumber,
    string::Ia5String,
};
use ringfence_drivers::tls::{Identity, Role, certificates, day};
use ringfence_messages::{Code, ErrorCode, HostId, Result};
use time::OffsetDateTime;

use super::{
    bundle::{self, Entry, PUBLIC, SECRET},
    ca::{Authority, internal, life},
};

/// Owner and addresses of a certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertNames {
    role: Role,
    name: String,
    dns: Vec<String>,
    ips: Vec<IpAddr>,
}

impl CertNames {
    /// For a host.
    pub fn host(name: &str, id: HostId) -> CertNames {
        CertNames { role: Role::Host(id), name: name.to_owned(), dns: Vec::new(), ips: Vec::new() }
    }

    /// For the controller.
    pub fn controller() -> CertNames {
        CertNames { role: Role::Controller, name: "controller".to_owned(), dns: Vec::new(), ips: Vec::new() }
    }

    /// For a user of the API.
    pub fn client(name: &str) -> CertNames {
        CertNames { role: Role::Client(name.to_owned()), name: name.to_owned(), dns: Vec::new(), ips: Vec::new() }
    }

    /// Adds addresses and DNS names.
    #[must_use]
    pub fn at(self, ips: Vec<IpAddr>, dns: Vec<String>) -> CertNames {
        CertNames { ips, dns, ..self }
    }

    /// Key usages. A host is only a server: its certificate gives no access to agents.
    fn usages(&self) -> Vec<ExtendedKeyUsagePurpose> {
        match self.role {
            Role::Host(_) => vec![ExtendedKeyUsagePurpose::ServerAuth],
            Role::Controller => vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth],
            Role::Client(_) => vec![ExtendedKeyUsagePurpose::ClientAuth],
        }
    }
}

/// Issues a key and a certificate in a new folder. Returns the identity in the certificate.
///
/// # Errors
/// `SYS.1007` if the folder is not empty or the authority ends before, `SYS.1016` if it cannot be written.
pub fn issue(authority: &Authority, names: &CertNames, days: u32, out: &Path) -> Result<Identity> {
    issue_for(authority, names, life(days)?, out)
}

/// As [`issue`], with explicit start and end.
///
/// # Errors
/// As [`issue`].
pub fn issue_for(
    authority: &Authority,
    names: &CertNames,
    life: (OffsetDateTime, OffsetDateTime),
    out: &Path,
) -> Result<Identity> {
    let (cert, key) = make(authority, names, life)?;
    bundle::create(out, &entries(&cert, &key, authority))?;
    said(out)
}

/// Replaces the key and the certificate of a folder, with the same names. Returns the identity in the certificate.
///
/// # Errors
/// `SYS.1007` if the certificate is of another authority or unreadable, `SYS.1016` if the folder cannot be written.
pub fn renew(authority: &Authority, days: u32, dir: &Path) -> Result<Identity> {
    let file = dir.join("cert.pem");
    let odd = |why: String| ErrorCode::new(Code::INVALID_ARGUMENT, format!("{}: {why}", file.display()));
    let old = certificates("cert", &file)?.remove(0);
    if !authority.trusted()?.iter().any(|ca| Identity::is_signed(&old, ca)) {
        return Err(odd("not a certificate of this authority; issue a new one with `ringfence pki issue`".to_owned()));
    }
    let identity = Identity::of(&old).map_err(odd)?;
    let Some(role) = identity.role else {
        return Err(odd(
            "the certificate has no role of Ringfence; issue a new one with `ringfence pki issue`".to_owned()
        ));
    };
    let names = CertNames { role, name: identity.name, dns: identity.dns, ips: identity.ips };
    let (cert, key) = make(authority, &names, life(days)?)?;
    bundle::swap(dir, &entries(&cert, &key, authority))?;
    said(dir)
}

fn entries<'a>(cert: &'a str, key: &'a str, authority: &'a Authority) -> [Entry<'a>; 3] {
    [("cert.pem", cert, PUBLIC), ("key.pem", key, SECRET), ("ca.pem", authority.bundle(), PUBLIC)]
}

fn said(dir: &Path) -> Result<Identity> {
    let file = dir.join("cert.pem");
    let odd = |why: String| ErrorCode::new(Code::INTERNAL, format!("{}: {why}", file.display()));
    Identity::of(&certificates("cert", &file)?[0]).map_err(odd)
}

/// Summary of a folder, one line.
pub(super) fn summary(dir: &Path, identity: &Identity) -> String {
    let places: Vec<_> = identity.ips.iter().map(IpAddr::to_string).chain(identity.dns.iter().cloned()).collect();
    let at = if places.is_empty() { String::new() } else { format!(", at {}", places.join(", ")) };
    format!("{}: certificate, {}{at}, expires {}", dir.display(), identity.whose(), day(identity.not_after))
}

/// A certificate and its key, PEM.
fn make(
    authority: &Authority,
    names: &CertNames,
    (from, until): (OffsetDateTime, OffsetDateTime),
) -> Result<(String, String)> {
    if until.unix_timestamp() > authority.not_after() {
        let details = format!(
            "the certificate would outlive its authority (until {}); use fewer --days, or `ringfence pki rotate \
             --replace-ca`",
            authority.until()
        );
        return Err(ErrorCode::new(Code::INVALID_ARGUMENT, details));
    }
    let key = KeyPair::generate().map_err(internal)?;
    let text = |text: &str| Ia5String::try_from(text).map_err(internal);
    let mut params = CertificateParams::default();
    params.distinguished_name.remove(DnType::CommonName);
    params.distinguished_name.push(DnType::CommonName, names.name.as_str());
    params.subject_alt_names.push(SanType::URI(text(&names.role.uri())?));
    for dns in &names.dns {
        params.subject_alt_names.push(SanType::DnsName(text(dns)?));
    }
    params.subject_alt_names.extend(names.ips.iter().copied().map(SanType::IpAddress));
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = names.usages();
    params.use_authority_key_identifier_extension = true;
    params.serial_number = Some(SerialNumber::from_slice(&rand::rng().random::<[u8; 16]>()));
    (params.not_before, params.not_after) = (from, until);
    let certificate = params.signed_by(&key, authority.issuer()).map_err(internal)?;
    Ok((certificate.pem(), key.serialize_pem()))
}
