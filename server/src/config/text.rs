//! Parsers of single values of the controller's file, in addition to those of both files.
//!
//! An error is a pair: problem and remedy.

use ringfence_messages::vm::{InstallPath, MAX_NAME_BYTES};
pub(super) use ringfence_service::config_file::text::{Read, absolute, duration, ip, name, socket, suggest};

/// An agent's URL; `https://` only if the file has certificates for it.
pub(super) fn agent_url(text: &str, secure: bool) -> Read<String> {
    match text.strip_prefix("https://") {
        Some(authority) if secure => Ok(url(&format!("http://{authority}"))?.replacen("http", "https", 1)),
        Some(_) => Err((
            format!("{text:?} requires a client certificate, but the file has none"),
            "add [agent_tls] cert, key, ca (`ringfence pki issue --controller` makes them)".into(),
        )),
        None => url(text),
    }
}

/// An `http://` URL without a path.
pub(super) fn url(text: &str) -> Read<String> {
    let odd = |help: &str| Err((format!("{text:?} is not the URL of an agent"), help.to_owned()));
    if text.starts_with("https://") {
        return odd("an MDS has no TLS: write http://ADDRESS:PORT");
    }
    let Some(authority) = text.strip_prefix("http://").map(|rest| rest.trim_end_matches('/')) else {
        return odd("write http://ADDRESS:PORT, such as \"http://10.77.0.11:7070\"");
    };
    let Some((host, port)) = authority.rsplit_once(':') else {
        return odd("add the port: http://ADDRESS:PORT; agents listen on 7070");
    };
    // The HTTP client interprets addresses further than a reader does: 010.0.0.1 is 8.0.0.1 to it.
    let (host, url) = (host.to_ascii_lowercase(), format!("http://{authority}").to_ascii_lowercase());
    let same = reqwest::Url::parse(&url).is_ok_and(|read| {
        let read_port = read.port_or_known_default().unwrap_or_default();
        read.host_str() == Some(host.as_str()) && read_port > 0 && read_port.to_string() == port
    });
    if !same {
        return odd("write http://ADDRESS:PORT without a path, and numbers without leading zeros");
    }
    Ok(url)
}

/// The path of a volume.
pub(super) fn install_path(text: &str) -> Read<InstallPath> {
    text.parse().map_err(|e: ringfence_messages::vm::ParseInstallPathError| {
        (
            e.to_string(),
            format!(
                "write ceph://POOL/IMAGE, zbs://POOL/VOLUME, cbd:PHYSICAL/LOGICAL/VOLUME, vhost://NAME or dir://FILE; \
                 names have at most {MAX_NAME_BYTES} bytes"
            ),
        )
    })
}

/// The port of a URL that [`url`] accepted.
pub(super) fn port(url: &str) -> u16 {
    url.rsplit_once(':').and_then(|(_, port)| port.parse().ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_plain_and_complete() {
        assert_eq!(url("http://10.0.0.1:7070/").unwrap(), "http://10.0.0.1:7070");
        assert_eq!(url("http://[::1]:7070").unwrap(), "http://[::1]:7070");
        for odd in [
            "10.0.0.1:7070",
            "https://a:1",
            "http://a",
            "http://a:b",
            "http://a:1/x",
            "http://u@a:1",
            "http://:1",
            "http://010.0.0.1:7070",
            "http://10.0.1:7070",
            "http://a:+1",
            "http://a:01",
            "http://a:0",
            "http://:::1",
            "http://[]:1",
        ] {
            assert!(url(odd).is_err(), "{odd}");
        }
    }
}
