//! Runs one program on another host over SSH.
//!
//! Invariants: the host's key must be in `known_hosts` (an unknown or changed key is rejected, never learned); output
//! has limits on time and size; every failure has its own reason, and none of them means that anything on that host is
//! dead (I2).
//! Alternatives considered: the program `ssh`. Its exit status 255 has no reason.

use std::{
    borrow::Cow,
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use ringfence_messages::evidence::UnknownReason;
use russh::{
    ChannelMsg, Disconnect, Preferred,
    client::{self, Handle},
    keys::{
        PrivateKey, PrivateKeyWithHashAlg, PublicKeyOrCertificate, known_hosts::known_host_keys_path, load_secret_key,
        parse_public_key_base64,
    },
};

pub use russh::keys::ssh_key::PublicKey;

use crate::files::{open_to_others, trusted};

/// Time limit of connect and authentication; ZStack's SSH probe has 8 s too. A frozen host accepts a connection and
/// sends nothing. Too low: a busy host looks dead. Too high: a fence waits.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(8);

/// Bytes of output, at most. Too low: a valid report fails. Too high: a wrong program fills the memory.
pub const MAX_OUTPUT_BYTES: usize = 64 << 10;

/// Key and known hosts of the SSH client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SshSettings {
    /// User on the other host.
    pub user: String,
    /// Path of the private key, which has no passphrase.
    pub key_file: PathBuf,
    /// Path of the file with the only accepted host keys.
    pub known_hosts_file: PathBuf,
}

/// Why the result of a program on another host is unknown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SshError {
    /// Reason for the decision tables.
    pub reason: UnknownReason,
    /// Text for operators.
    pub details: String,
    /// No answer at all. False for a host that answers but rejects the login, or whose program hangs.
    pub unreachable: bool,
}

impl SshError {
    fn new(reason: UnknownReason, details: impl Into<String>) -> SshError {
        SshError { reason, details: details.into(), unreachable: false }
    }

    fn unreachable(reason: UnknownReason, details: String) -> SshError {
        SshError { reason, details, unreachable: true }
    }
}

/// Accepts only the given host keys.
struct Strict {
    known: Vec<PublicKey>,
    /// The key that was offered instead.
    mismatch: Arc<parking_lot::Mutex<Option<String>>>,
}

impl client::Handler for Strict {
    type Error = russh::Error;

    async fn check_server_key(&mut self, offered: &PublicKeyOrCertificate) -> Result<bool, russh::Error> {
        let PublicKeyOrCertificate::PublicKey { key, .. } = offered else {
            *self.mismatch.lock() = Some("a certificate instead of a key".to_owned());
            return Ok(false);
        };
        let known = self.known.iter().any(|known| known.key_data() == key.key_data());
        if !known {
            *self.mismatch.lock() = Some(key.fingerprint(Default::default()).to_string());
        }
        Ok(known)
    }
}

/// Runs `command` with this standard input; returns its standard output if it exits with 0.
///
/// The login shell reads `command`: it must be a constant, or made of values without characters that a shell
/// interprets.
///
/// # Errors
/// The reason why the result is unknown.
pub async fn run(
    settings: &SshSettings,
    ip: IpAddr,
    port: u16,
    command: &str,
    input: &[u8],
    within: Duration,
) -> Result<String, SshError> {
    let session = match tokio::time::timeout(CONNECT_TIMEOUT, connect(settings, ip, port)).await {
        Ok(connected) => connected?,
        Err(_) => {
            let details = format!("{ip} port {port}: no SSH answer within {CONNECT_TIMEOUT:?}");
            return Err(SshError::unreachable(UnknownReason::Timeout, details));
        }
    };
    let exchange = execute(&session, command, input);
    let done = tokio::time::timeout(within, exchange).await.unwrap_or_else(|_| {
        Err(SshError::new(UnknownReason::Timeout, format!("program on {ip} did not exit within {within:?}")))
    });
    // Best effort: nothing depends on it.
    let bye = session.disconnect(Disconnect::ByApplication, "", "");
    let _ = tokio::time::timeout(Duration::from_secs(1), bye).await;
    done
}

/// The keys of an address in a known_hosts file.
///
/// # Errors
/// What is wrong with the file: then none of its keys is accepted.
pub fn known_keys(file: &Path, ip: IpAddr, port: u16) -> Result<Vec<PublicKey>, String> {
    let odd = |why: String| format!("known hosts {}: {why}", file.display());
    let text = fs::read_to_string(file).map_err(|e| odd(e.to_string()))?;
    // russh differs from OpenSSH: it separates fields only by spaces, and ignores markers.
    if text.replace("\r\n", "\n").contains(|c: char| c.is_control() && c != '\n') {
        return Err(odd("it has tabs or other control characters: separate the fields by spaces".to_owned()));
    }
    let keys = text.lines().map(str::trim).filter(|line| !line.starts_with(['#', '@']));
    // A second blank counts as a field, and the next field as the key.
    if let Some(line) = keys.into_iter().find(|line| line.splitn(4, ' ').take(3).skip(1).any(str::is_empty)) {
        return Err(odd(format!("two blanks between the fields of {line:.40?}: use one")));
    }
    let mut revoked = Vec::new();
    for line in text.lines().map(str::trim_start).filter(|line| line.starts_with('@')) {
        let mut words = line.split_ascii_whitespace();
        match words.next() {
            Some("@cert-authority") => continue,
            Some("@revoked") => {}
            marker => return Err(odd(format!("marker {:.40?} is unknown", marker.unwrap_or_default()))),
        }
        let key = parse_public_key_base64(words.nth(2).unwrap_or_default());
        revoked.push(key.map_err(|e| odd(format!("revoked key is unreadable: {e}")))?);
    }
    let known = known_host_keys_path(&ip.to_string(), port, file).map_err(|e| odd(e.to_string()))?;
    // A revoked key is rejected for every host.
    let valid = |key: &PublicKey| !revoked.iter().any(|revoked| revoked.key_data() == key.key_data());
    Ok(known.into_iter().map(|(_, key)| key).filter(valid).collect())
}

/// The accepted host keys of an address, at least one.
///
/// # Errors
/// The file cannot be read, or has no usable key of the address.
pub fn believed_keys(settings: &SshSettings, ip: IpAddr, port: u16) -> Result<Vec<PublicKey>, SshError> {
    let host_key = |why: String| SshError::new(UnknownReason::HostKeyMismatch, why);
    let file = &settings.known_hosts_file;
    trusted(file).map_err(|why| host_key(format!("known hosts {}: {why}", file.display())))?;
    let mut known = known_keys(file, ip, port).map_err(host_key)?;
    let rsa = known.iter().any(|key| key.algorithm().is_rsa());
    known.retain(|key| !key.algorithm().is_rsa());
    if known.is_empty() && rsa {
        let details = format!(
            "{} has only an RSA key of {ip} port {port}, which is not supported: add another with ssh-keyscan -t \
             ed25519",
            file.display()
        );
        return Err(host_key(details));
    }
    if known.is_empty() {
        return Err(host_key(format!("{} has no key of {ip} port {port}: add it with ssh-keyscan", file.display())));
    }
    Ok(known)
}

/// The private key of this host.
///
/// # Errors
/// The file cannot be read, or is not a private key without passphrase.
pub fn own_key(settings: &SshSettings) -> Result<PrivateKey, SshError> {
    let file = &settings.key_file;
    let odd = |why: String| SshError::new(UnknownReason::AuthFailed, format!("key {}: {why}", file.display()));
    // As OpenSSH does: a user who can read the key can log in to every sibling host.
    if let Some(mode) = open_to_others(&trusted(file).map_err(odd)?) {
        return Err(odd(format!("others may read it (mode {mode}): chmod 600 it")));
    }
    let key = load_secret_key(file, None).map_err(|e| odd(e.to_string()))?;
    match key.algorithm().is_rsa() {
        true => Err(odd("RSA keys are not supported: create another with ssh-keygen -t ed25519".to_owned())),
        false => Ok(key),
    }
}

async fn connect(settings: &SshSettings, ip: IpAddr, port: u16) -> Result<Handle<Strict>, SshError> {
    let host_key = |why: String| SshError::new(UnknownReason::HostKeyMismatch, why);
    let auth = |why: String| SshError::new(UnknownReason::AuthFailed, why);
    let (known, key) = (believed_keys(settings, ip, port)?, own_key(settings)?);
    let mismatch = Arc::default();
    // Only the types of the known keys: a host with several keys then offers one of these.
    let kinds: Vec<_> = known.iter().map(PublicKey::algorithm).collect();
    let config = client::Config {
        preferred: Preferred { key: Cow::Owned(kinds), ..Preferred::default() },
        nodelay: true,
        ..client::Config::default()
    };
    let strict = Strict { known, mismatch: Arc::clone(&mismatch) };
    let connected = client::connect(Arc::new(config), (ip, port), strict).await;
    if let Some(offered) = mismatch.lock().take() {
        return Err(host_key(format!(
            "{ip} offers {offered}, which is not its key in {}",
            settings.known_hosts_file.display()
        )));
    }
    let mut session = connected.map_err(|error| match &error {
        russh::Error::IO(io) => {
            use std::io::ErrorKind;
            let details = format!("{ip} port {port}: {io}");
            match io.kind() {
                ErrorKind::TimedOut => SshError::unreachable(UnknownReason::Timeout, details),
                ErrorKind::ConnectionRefused | ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable => {
                    SshError::unreachable(UnknownReason::Refused, details)
                }
                // The host accepted the connection and broke it: it is reachable.
                _ => SshError::new(UnknownReason::Truncated, details),
            }
        }
        _ => SshError::new(UnknownReason::BadExit, format!("{ip} port {port}: {error}")),
    })?;
    let hash = session.best_supported_rsa_hash().await.ok().flatten().flatten();
    let key = PrivateKeyWithHashAlg::new(Arc::new(key), hash);
    match session.authenticate_publickey(&settings.user, key).await {
        Ok(answer) if answer.success() => Ok(session),
        Ok(_) => Err(auth(format!("{ip} rejects the login of {} with {}", settings.user, settings.key_file.display()))),
        Err(error) => Err(auth(format!("{ip}: {error}"))),
    }
}

async fn execute(session: &Handle<Strict>, command: &str, input: &[u8]) -> Result<String, SshError> {
    let broken = |error: russh::Error| SshError::new(UnknownReason::Truncated, error.to_string());
    let mut channel = session.channel_open_session().await.map_err(broken)?;
    channel.exec(true, command).await.map_err(broken)?;
    channel.data(input).await.map_err(broken)?;
    channel.eof().await.map_err(broken)?;
    let (mut output, mut errors, mut exit) = (Vec::new(), Vec::new(), None);
    while let Some(message) = channel.wait().await {
        match message {
            ChannelMsg::Data { data } => output.extend_from_slice(&data),
            ChannelMsg::ExtendedData { data, .. } => errors.extend_from_slice(&data),
            ChannelMsg::ExitStatus { exit_status } => exit = Some(exit_status),
            _ => {}
        }
        if output.len() + errors.len() > MAX_OUTPUT_BYTES {
            return Err(SshError::new(
                UnknownReason::Unparsable,
                format!("output has more than {MAX_OUTPUT_BYTES} bytes"),
            ));
        }
    }
    let text =
        |bytes: Vec<u8>| String::from_utf8(bytes).map_err(|e| SshError::new(UnknownReason::Unparsable, e.to_string()));
    match exit {
        Some(0) => text(output),
        Some(code) => {
            let stderr = String::from_utf8_lossy(&errors);
            let details = format!("program exited with {code}: {:.300}", stderr.trim());
            Err(SshError::new(UnknownReason::BadExit, details))
        }
        None => Err(SshError::new(UnknownReason::Truncated, "connection ended before the program")),
    }
}

#[cfg(test)]
mod tests {
    use tokio::{io::AsyncWriteExt, net::TcpListener};

    use super::*;

    /// Connects to a listener of this machine that is no SSH server and sends `say`.
    async fn against(say: Option<&'static [u8]>) -> SshError {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let dir = tempfile::tempdir().unwrap();
        let (key, known) = (dir.path().join("key"), dir.path().join("known"));
        let made =
            std::process::Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&key).output();
        assert!(made.unwrap().status.success());
        let public = std::fs::read_to_string(dir.path().join("key.pub")).unwrap();
        std::fs::write(&known, format!("[127.0.0.1]:{port} {public}")).unwrap();
        match say {
            None => drop(listener),
            Some(bytes) => drop(tokio::spawn(async move {
                let (mut stream, _) = listener.accept().await.unwrap();
                let _ = stream.write_all(bytes).await;
            })),
        }
        let settings = SshSettings { user: "root".to_owned(), key_file: key, known_hosts_file: known };
        run(&settings, "127.0.0.1".parse().unwrap(), port, "true", b"", Duration::from_secs(5)).await.unwrap_err()
    }

    #[test]
    fn revoked_and_ambiguous_known_hosts_are_rejected() {
        const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIEXRmvqvCB1phEE6Hj6B5cQbEg6h9v/LwCNbiXBh1yrr";
        let known = |text: String| {
            let file = tempfile::NamedTempFile::new().unwrap();
            fs::write(file.path(), text).unwrap();
            known_keys(file.path(), "10.77.0.11".parse().unwrap(), 22)
        };
        assert_eq!(known(format!("10.77.0.11 {KEY}\n")).unwrap().len(), 1);
        assert_eq!(known(format!("10.77.0.12 {KEY}\n")), Ok(Vec::new()));
        assert_eq!(known(format!("10.77.0.11 {KEY}\n@revoked * {KEY}\n")), Ok(Vec::new()));
        for odd in [
            format!("10.77.0.12,\t10.77.0.11 {KEY}\n"),
            format!("10.77.0.11 {KEY}\n@revoked * ssh-ed25519\n"),
            format!("@x,10.77.0.11 {KEY}\n"),
        ] {
            assert!(known(odd.clone()).is_err(), "{odd}");
        }
    }

    #[tokio::test]
    async fn closed_port_is_unreachable_and_broken_server_is_not() {
        let nobody = against(None).await;
        assert!(nobody.unreachable && nobody.reason == UnknownReason::Refused, "{nobody:?}");
        for say in [&b""[..], b"HTTP/1.1 400 Bad Request\r\n\r\n", b"SSH-2.0-OpenSSH_9.2\r\n"] {
            let trouble = against(Some(say)).await;
            assert!(!trouble.unreachable, "{say:?}: a host that answers was taken for one that does not: {trouble:?}");
        }
    }
}
