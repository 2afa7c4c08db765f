//! The content of a certificate: role, names, end of validity.
//!
//! Invariant: the role is one URI among the certificate's names, in its exact shape; a certificate with two of them has
//! no role.

use std::{fmt, net::IpAddr};

use ringfence_messages::HostId;
use x509_parser::{
    certificate::X509Certificate,
    extensions::GeneralName,
    prelude::{FromDer, X509Version},
};

/// How every role's URI begins.
const SCHEME: &str = "ringfence:";

/// Whose a certificate is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Role {
    /// The controller: it may order agents.
    Controller,
    /// A host's agent.
    Host(HostId),
    /// Somebody who uses the API.
    Client(String),
}

impl Role {
    /// The URI that stands for it in a certificate.
    pub fn uri(&self) -> String {
        match self {
            Role::Controller => format!("{SCHEME}controller"),
            Role::Host(id) => format!("{SCHEME}host:{id}"),
            Role::Client(name) => format!("{SCHEME}client:{name}"),
        }
    }

    fn of(uri: &str) -> Option<Role> {
        let role = match uri.strip_prefix(SCHEME)?.split_once(':') {
            None => Role::Controller,
            Some(("host", id)) => Role::Host(id.parse().ok()?),
            Some(("client", name)) => Role::Client(name.to_owned()),
            Some(_) => return None,
        };
        (role.uri() == uri).then_some(role)
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Role::Controller => f.write_str("a controller's"),
            Role::Host(id) => write!(f, "that of host {id}"),
            Role::Client(name) => write!(f, "that of client {name:.64}"),
        }
    }
}

/// What a certificate says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Whose it is; `None`: nobody's that Ringfence knows.
    pub role: Option<Role>,
    /// Its common name.
    pub name: String,
    /// The DNS names that it is good for.
    pub dns: Vec<String>,
    /// The addresses that it is good for.
    pub ips: Vec<IpAddr>,
    /// The first second of its life, of the Unix epoch.
    pub not_before: i64,
    /// The last one.
    pub not_after: i64,
}

impl Identity {
    /// What the certificate in this DER says.
    ///
    /// # Errors
    /// Why it is no such certificate.
    pub fn of(der: &[u8]) -> Result<Identity, String> {
        let certificate = parse(der)?;
        let names = certificate.subject_alternative_name().map_err(|e| e.to_string())?;
        let (mut uris, mut dns, mut ips) = (Vec::new(), Vec::new(), Vec::new());
        for name in names.iter().flat_map(|names| &names.value.general_names) {
            match name {
                GeneralName::URI(uri) => uris.extend(uri.starts_with(SCHEME).then_some(*uri)),
                GeneralName::DNSName(name) => dns.push((*name).to_owned()),
                GeneralName::IPAddress(bytes) => ips.extend(address(bytes)),
                _ => {}
            }
        }
        let common = certificate.subject().iter_common_name().next().and_then(|name| name.as_str().ok());
        let validity = certificate.validity();
        Ok(Identity {
            role: if let [uri] = uris[..] { Role::of(uri) } else { None },
            name: common.unwrap_or_default().to_owned(),
            dns,
            ips,
            not_before: validity.not_before.timestamp(),
            not_after: validity.not_after.timestamp(),
        })
    }

    /// Whose it is, in words.
    pub fn whose(&self) -> String {
        let name = Some(&self.name).filter(|name| !name.is_empty()).map(|name| format!(" ({name:.64})"));
        let role = self.role.as_ref().map_or("nobody's that Ringfence knows".to_owned(), Role::to_string);
        format!("{role}{}", name.unwrap_or_default())
    }

    /// Whether this certificate was signed by that one's key, whenever that was.
    pub fn is_signed(der: &[u8], by: &[u8]) -> bool {
        let (Ok(certificate), Ok(issuer)) = (parse(der), parse(by)) else { return false };
        issuer.is_ca() && certificate.verify_signature(Some(issuer.public_key())).is_ok()
    }

    /// Whether this certificate is an authority's.
    pub fn is_authority(der: &[u8]) -> bool {
        parse(der).is_ok_and(|certificate| certificate.is_ca())
    }
}

fn parse(der: &[u8]) -> Result<X509Certificate<'_>, String> {
    match X509Certificate::from_der(der) {
        Ok(([], certificate)) if certificate.version() == X509Version::V3 => Ok(certificate),
        Ok(([], _)) => Err("not a certificate of version 3".to_owned()),
        Ok(_) => Err("data follows the certificate".to_owned()),
        Err(error) => Err(format!("not a certificate: {error}")),
    }
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    v4.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from)).ok()
}

/// A time of the Unix epoch as people read it.
pub fn day(seconds: i64) -> String {
    jiff::Timestamp::from_second(seconds).map_or_else(|_| format!("second {seconds}"), |time| time.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_role_is_read_in_its_exact_shape_alone() {
        let host = HostId::from_name("host-a");
        for role in [Role::Controller, Role::Host(host), Role::Client("ops".to_owned())] {
            assert_eq!(Role::of(&role.uri()), Some(role));
        }
        let undashed = Role::Host(host).uri().replace('-', "");
        for odd in
            ["ringfence:", "ringfence:controller2", "ringfence:host:", "ringfence:host:x", "x:controller", &undashed]
        {
            assert_eq!(Role::of(odd), None, "{odd}");
        }
    }
}
