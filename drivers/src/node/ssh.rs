//! Runs one program on another host over SSH.
//!
//! Invariants: the host's key must be the one in `known_hosts` (an unknown or changed one is refused, never learned);
//! what comes back is bounded in time and size; everything that can go wrong has its own reason, and none of them
//! means that anything on that host is dead (I2). Rejected: the `ssh` program (its exit 255 says "something").

use std::{
    borrow::Cow,
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use ringfence_messages::fence::UnknownReason;
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

/// How long a connection may take until the other side is authenticated (domain: SSH probe 8 s). To a frozen host a
/// connection opens and nothing follows.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(8);

/// Bytes of output at most; more is not the program that was meant.
pub const MAX_OUTPUT_BYTES: usize = 64 << 10;

/// With which key and which known hosts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SshSettings {
    /// The user there.
    pub user: String,
    /// The private key; without a passphrase.
    pub key_file: PathBuf,
    /// The only host keys that are believed.
    pub known_hosts_file: PathBuf,
}

/// Why it is not known what a program on another host did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SshError {
    /// For the tables of decisions.
    pub reason: UnknownReason,
    /// For people.
    pub details: String,
    /// Nothing at all answered there. A host that answers and lets nobody in, or whose program hangs, is another matter.
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

/// Believes the host keys that it was given, and no other.
struct Strict {
    known: Vec<PublicKey>,
    /// What was offered instead.
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

/// Runs `command` with this standard input; its standard output if it exited with 0.
///
/// `command` goes through the login shell there: it must be a constant, or made of values that cannot hold anything
/// that a shell would read.
///
/// # Errors
/// Why it is not known what happened.
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
            let details = format!("{ip} port {port} did not speak SSH within {CONNECT_TIMEOUT:?}");
            return Err(SshError::unreachable(UnknownReason::Timeout, details));
        }
    };
    let exchange = execute(&session, command, input);
    let done = tokio::time::timeout(within, exchange).await.unwrap_or_else(|_| {
        Err(SshError::new(UnknownReason::Timeout, format!("the program on {ip} did not end within {within:?}")))
    });
    // Politely, but nothing depends on it.
    let bye = session.disconnect(Disconnect::ByApplication, "", "");
    let _ = tokio::time::timeout(Duration::from_secs(1), bye).await;
    done
}

/// The keys that a file of known hosts has for an address.
///
/// # Errors
/// What is wrong with the file: then none of it is believed.
pub fn known_keys(file: &Path, ip: IpAddr, port: u16) -> Result<Vec<PublicKey>, String> {
    let odd = |why: String| format!("known hosts {}: {why}", file.display());
    let text = fs::read_to_string(file).map_err(|e| odd(e.to_string()))?;
    // What russh reads in another way than OpenSSH does: between words it knows spaces only, and it passes markers over.
    if text.replace("\r\n", "\n").contains(|c: char| c.is_control() && c != '\n') {
        return Err(odd("it has tabs or other control characters: put spaces between the words".to_owned()));
    }
    let keys = text.lines().map(str::trim).filter(|line| !line.starts_with(['#', '@']));
    // And it counts a blank too many as a word of its own: the next one is then taken for the key.
    if let Some(line) = keys.into_iter().find(|line| line.splitn(4, ' ').take(3).skip(1).any(str::is_empty)) {
        return Err(odd(format!("two blanks between the words of {line:.40?}: put one")));
    }
    let mut revoked = Vec::new();
    for line in text.lines().map(str::trim_start).filter(|line| line.starts_with('@')) {
        let mut words = line.split_ascii_whitespace();
        match words.next() {
            Some("@cert-authority") => continue,
            Some("@revoked") => {}
            marker => return Err(odd(format!("marker {:.40?} is not known", marker.unwrap_or_default()))),
        }
        let key = parse_public_key_base64(words.nth(2).unwrap_or_default());
        revoked.push(key.map_err(|e| odd(format!("a revoked key cannot be read: {e}")))?);
    }
    let known = known_host_keys_path(&ip.to_string(), port, file).map_err(|e| odd(e.to_string()))?;
    // Whatever host it was revoked for: nobody is to have it any more.
    let stands = |key: &PublicKey| !revoked.iter().any(|revoked| revoked.key_data() == key.key_data());
    Ok(known.into_iter().map(|(_, key)| key).filter(stands).collect())
}

/// The host keys that are believed of an address, at least one.
///
/// # Errors
/// The file cannot be read, or has none of it.
pub fn believed_keys(settings: &SshSettings, ip: IpAddr, port: u16) -> Result<Vec<PublicKey>, SshError> {
    let host_key = |why: String| SshError::new(UnknownReason::HostKeyMismatch, why);
    let file = &settings.known_hosts_file;
    trusted(file).map_err(|why| host_key(format!("known hosts {}: {why}", file.display())))?;
    let mut known = known_keys(file, ip, port).map_err(host_key)?;
    let rsa = known.iter().any(|key| key.algorithm().is_rsa());
    known.retain(|key| !key.algorithm().is_rsa());
    if known.is_empty() && rsa {
        let details = format!(
            "{} has an RSA key alone of {ip} port {port}, which this program cannot check: add another by ssh-keyscan -t ed25519",
            file.display()
        );
        return Err(host_key(details));
    }
    if known.is_empty() {
        return Err(host_key(format!("{} has no key of {ip} port {port}: add it with ssh-keyscan", file.display())));
    }
    Ok(known)
}

/// The key with which this host shows itself to others.
///
/// # Errors
/// The file cannot be read, or is no private key without a passphrase.
pub fn own_key(settings: &SshSettings) -> Result<PrivateKey, SshError> {
    let file = &settings.key_file;
    let odd = |why: String| SshError::new(UnknownReason::AuthFailed, format!("key {}: {why}", file.display()));
    // As OpenSSH does: a key that others can read opens every sibling to them.
    if let Some(mode) = open_to_others(&trusted(file).map_err(odd)?) {
        return Err(odd(format!("others may use it too (mode {mode}): chmod 600 it")));
    }
    let key = load_secret_key(file, None).map_err(|e| odd(e.to_string()))?;
    match key.algorithm().is_rsa() {
        true => Err(odd(
            "it is an RSA key, with which this program cannot sign: ssh-keygen -t ed25519 makes another".to_owned()
        )),
        false => Ok(key),
    }
}

async fn connect(settings: &SshSettings, ip: IpAddr, port: u16) -> Result<Handle<Strict>, SshError> {
    let host_key = |why: String| SshError::new(UnknownReason::HostKeyMismatch, why);
    let auth = |why: String| SshError::new(UnknownReason::AuthFailed, why);
    let (known, key) = (believed_keys(settings, ip, port)?, own_key(settings)?);
    let mismatch = Arc::default();
    // Only the kinds of keys that are known: a host that has several offers one of these.
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
            "{ip} offers {offered}, which {} does not have for it",
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
                // Somebody took the connection and broke it: not the same as nobody being there.
                _ => SshError::new(UnknownReason::Truncated, details),
            }
        }
        _ => SshError::new(UnknownReason::BadExit, format!("{ip} port {port}: {error}")),
    })?;
    let hash = session.best_supported_rsa_hash().await.ok().flatten().flatten();
    let key = PrivateKeyWithHashAlg::new(Arc::new(key), hash);
    match session.authenticate_publickey(&settings.user, key).await {
        Ok(answer) if answer.success() => Ok(session),
        Ok(_) => Err(auth(format!("{ip} does not let {} in with {}", settings.user, settings.key_file.display()))),
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
                format!("more than {MAX_OUTPUT_BYTES} bytes came back"),
            ));
        }
    }
    let text =
        |bytes: Vec<u8>| String::from_utf8(bytes).map_err(|e| SshError::new(UnknownReason::Unparsable, e.to_string()));
    match exit {
        Some(0) => text(output),
        Some(code) => {
            let said = String::from_utf8_lossy(&errors);
            let details = format!("the program exited with {code}: {:.300}", said.trim());
            Err(SshError::new(UnknownReason::BadExit, details))
        }
        None => Err(SshError::new(UnknownReason::Truncated, "the connection ended before the program did")),
    }
}

#[cfg(test)]
mod tests {
    use tokio::{io::AsyncWriteExt, net::TcpListener};

    use super::*;

    /// Against something that listens on a port of this machine and is no SSH server; `say` is what it says.
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
    fn a_revoked_key_is_not_believed_and_what_openssh_reads_otherwise_is_refused() {
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
    async fn nobody_there_is_told_from_somebody_who_hangs_up_or_talks_nonsense() {
        let nobody = against(None).await;
        assert!(nobody.unreachable && nobody.reason == UnknownReason::Refused, "{nobody:?}");
        for say in [&b""[..], b"HTTP/1.1 400 Bad Request\r\n\r\n", b"SSH-2.0-OpenSSH_9.2\r\n"] {
            let trouble = against(Some(say)).await;
            assert!(!trouble.unreachable, "{say:?}: a host that answers was taken for one that does not: {trouble:?}");
        }
    }
}
