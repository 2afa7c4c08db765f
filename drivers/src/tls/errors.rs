//! Why a handshake failed, as people read it: who refused whom, why, and the fix.

use std::{error::Error as StdError, path::Path};

use rustls::{AlertDescription, CertificateError, Error, pki_types::UnixTime};

use super::identity::day;

/// The TLS error beneath an error, if there is one.
fn beneath<'a>(error: &'a (dyn StdError + 'static)) -> Option<&'a Error> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref::<Error>() {
            return Some(found);
        }
        // What an I/O error wraps is not its source, but its source's parent.
        let wrapped = error.downcast_ref::<std::io::Error>().and_then(|io| io.get_ref());
        next = match wrapped {
            Some(wrapped) => Some(wrapped as &(dyn StdError + 'static)),
            None => error.source(),
        };
    }
    None
}

/// Why we, who asked, did not come together with who listens. `cert` and `ca` are our own files.
pub fn refused_server(error: &(dyn StdError + 'static), cert: Option<&Path>, ca: Option<&Path>) -> Option<String> {
    let file = |path: Option<&Path>| path.map_or("none".to_owned(), |path| path.display().to_string());
    let ours = || format!("it refuses our certificate {}", file(cert));
    Some(match beneath(error)? {
        Error::InvalidCertificate(why) => certificate(why, &file(ca)),
        Error::InvalidMessage(_) => {
            "it does not speak TLS there: give it a certificate, or ask it by http://".to_owned()
        }
        Error::AlertReceived(alert) => match alert {
            AlertDescription::CertificateExpired => {
                format!("{}: it ended, or a clock is wrong; `ringfence pki rotate` makes its successor", ours())
            }
            AlertDescription::UnknownCA | AlertDescription::DecryptError => {
                format!("{}: its authority is not in the `ca` file of the other end", ours())
            }
            AlertDescription::AccessDenied | AlertDescription::UnsupportedCertificate => {
                format!("{}: it is not of the role that is heard there; `ringfence pki issue` makes one", ours())
            }
            AlertDescription::CertificateRequired => {
                "it asks for a certificate and was shown none: `ringfence pki issue` makes one".to_owned()
            }
            AlertDescription::ProtocolVersion => "it does not speak TLS 1.3".to_owned(),
            other => format!("{}: {other:?}; its log says why", ours()),
        },
        other => format!("TLS: {other}"),
    })
}

/// Why we, who listen, refused somebody.
pub fn refused_client(error: &(dyn StdError + 'static)) -> String {
    match beneath(error) {
        Some(Error::NoCertificatesPresented) => {
            "it shows no certificate: `ringfence pki issue --controller` makes the controller's".to_owned()
        }
        Some(Error::InvalidCertificate(why)) => certificate(why, "our `ca` file"),
        Some(Error::AlertReceived(alert)) => format!("it refuses our certificate: {alert:?}; its own log says why"),
        Some(other) => format!("TLS: {other}"),
        None => error.to_string(),
    }
}

/// What is wrong with the other end's certificate.
fn certificate(why: &CertificateError, ca: &str) -> String {
    let time = |of: &UnixTime| day(of.as_secs() as i64);
    match why {
        CertificateError::Expired => "its certificate ended: `ringfence pki rotate` makes its successor".to_owned(),
        CertificateError::ExpiredContext { not_after, .. } => {
            format!("its certificate ended on {}: `ringfence pki rotate` makes its successor", time(not_after))
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "its certificate has not begun: is a clock wrong, here or there?".to_owned()
        }
        CertificateError::UnknownIssuer | CertificateError::BadSignature => {
            format!("its certificate is of no authority in {ca}: issue it with that one, or add its own there")
        }
        CertificateError::ApplicationVerificationFailure
        | CertificateError::InvalidPurpose
        | CertificateError::InvalidPurposeContext { .. } => {
            "its certificate is not of the role that is heard here (a host's orders nobody): a controller's is made by \
             `ringfence pki issue --controller`, a user's of the API by `--client NAME`"
                .to_owned()
        }
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            "its certificate is not for this name or address: issue it with --dns or --ip".to_owned()
        }
        CertificateError::Other(other) => other.to_string(),
        other => format!("its certificate: {other}"),
    }
}
