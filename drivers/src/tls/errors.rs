//! Texts for failed handshakes: which side rejected which, the reason and the remedy.

use std::{error::Error as StdError, path::Path};

use rustls::{AlertDescription, CertificateError, Error, pki_types::UnixTime};

use super::identity::day;

/// The TLS error among an error and its causes.
fn beneath<'a>(error: &'a (dyn StdError + 'static)) -> Option<&'a Error> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref::<Error>() {
            return Some(found);
        }
        // The error in an I/O error is not its source, but the parent of its source.
        let wrapped = error.downcast_ref::<std::io::Error>().and_then(|io| io.get_ref());
        next = match wrapped {
            Some(wrapped) => Some(wrapped as &(dyn StdError + 'static)),
            None => error.source(),
        };
    }
    None
}

/// Why a handshake with a server failed, for the client's operator. `cert` and `ca` are the client's files.
pub fn refused_server(error: &(dyn StdError + 'static), cert: Option<&Path>, ca: Option<&Path>) -> Option<String> {
    let file = |path: Option<&Path>| path.map_or("none".to_owned(), |path| path.display().to_string());
    let ours = || format!("it rejects our certificate {}", file(cert));
    Some(match beneath(error)? {
        Error::InvalidCertificate(why) => certificate(why, &file(ca)),
        Error::InvalidMessage(_) => "it does not speak TLS: give it a certificate, or use http://".to_owned(),
        Error::AlertReceived(alert) => match alert {
            AlertDescription::CertificateExpired => {
                format!("{}: it ended, or a clock is wrong; `ringfence pki rotate` renews it", ours())
            }
            AlertDescription::UnknownCA | AlertDescription::DecryptError => {
                format!("{}: its authority is not in the `ca` file of the other end", ours())
            }
            AlertDescription::AccessDenied | AlertDescription::UnsupportedCertificate => {
                format!("{}: it is not of the role that is accepted there; `ringfence pki issue` creates one", ours())
            }
            AlertDescription::CertificateRequired => {
                "it asks for a certificate and got none: `ringfence pki issue` creates one".to_owned()
            }
            AlertDescription::ProtocolVersion => "it does not speak TLS 1.3".to_owned(),
            other => format!("{}: {other:?}; see its log", ours()),
        },
        other => format!("TLS: {other}"),
    })
}

/// Why a handshake with a client failed, for the server's operator.
pub fn refused_client(error: &(dyn StdError + 'static)) -> String {
    match beneath(error) {
        Some(Error::NoCertificatesPresented) => {
            "it sends no certificate: `ringfence pki issue --controller` creates the controller's".to_owned()
        }
        Some(Error::InvalidCertificate(why)) => certificate(why, "our `ca` file"),
        Some(Error::AlertReceived(alert)) => format!("it rejects our certificate: {alert:?}; see its log"),
        Some(other) => format!("TLS: {other}"),
        None => error.to_string(),
    }
}

/// The problem of the peer's certificate.
fn certificate(why: &CertificateError, ca: &str) -> String {
    let time = |of: &UnixTime| day(of.as_secs() as i64);
    match why {
        CertificateError::Expired => "its certificate ended: `ringfence pki rotate` renews it".to_owned(),
        CertificateError::ExpiredContext { not_after, .. } => {
            format!("its certificate ended on {}: `ringfence pki rotate` renews it", time(not_after))
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "its certificate is not valid yet: check the clocks of both ends".to_owned()
        }
        CertificateError::UnknownIssuer | CertificateError::BadSignature => {
            format!(
                "its certificate is not from an authority in {ca}: issue it with that authority, or add its own to \
                 the file"
            )
        }
        CertificateError::ApplicationVerificationFailure
        | CertificateError::InvalidPurpose
        | CertificateError::InvalidPurposeContext { .. } => {
            "its certificate is not of the role that is accepted here (a host's permits no commands): create a \
             controller's with `ringfence pki issue --controller`, an API user's with `--client NAME`"
                .to_owned()
        }
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            "its certificate is not for this name or address: issue it with --dns or --ip".to_owned()
        }
        CertificateError::Other(other) => other.to_string(),
        other => format!("its certificate: {other}"),
    }
}
