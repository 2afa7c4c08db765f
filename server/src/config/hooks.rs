//! `[[webhook]]` and `[[command_hook]]`: the receivers of events.

use std::{
    fmt,
    net::IpAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use axum::http::Uri;
use ringfence::Glob;
use ringfence_messages::topics::RECORDED;
use serde_spanned::Spanned;

use super::{
    Checker,
    raw::{RawCommandHook, RawWebhook, Text},
    text::{self, Read},
};
use crate::{https::authorities, signer::Signer};

/// Default time limit of a delivery. Too low: a slow receiver gets an event twice. Too high: one delivery delays
/// later events.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);

/// Largest time limit of a delivery. `ringfence hooks test` waits for it.
const MAX_TIMEOUT: Duration = Duration::from_secs(120);

/// The longest URL.
const MAX_URL_BYTES: usize = 2048;

/// Largest number of hooks: each reads the journal and writes its own position. Too high: the disk of the controller
/// is busy with positions; a message broker serves more receivers better.
const MAX_HOOKS: usize = 64;

/// A hook, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HookConfig {
    /// Name of the hook, and of the file with its position in the journal.
    pub name: String,
    /// Topics of its events.
    pub topics: Topics,
    /// Time limit of one delivery.
    pub timeout: Duration,
    /// Transport of its events.
    pub transport: HookTransport,
}

/// Transport of a hook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HookTransport {
    /// A signed POST request.
    Webhook(WebhookAccess),
    /// A program with these arguments.
    Command(Vec<String>),
}

/// Access to a receiver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WebhookAccess {
    /// URL of the receiver.
    pub url: HookUrl,
    /// File with the secret for signatures.
    pub secret_file: PathBuf,
    /// File with the certificate authorities of the receiver; the system's if unset.
    pub ca_file: Option<PathBuf>,
}

/// A receiver's URL. Only its origin is shown, because path and query are often secret.
#[derive(Clone, PartialEq, Eq)]
pub struct HookUrl {
    uri: Uri,
    origin: String,
}

impl HookUrl {
    /// Scheme, host and port.
    pub fn origin(&self) -> String {
        self.origin.clone()
    }

    /// Whether the connection is not encrypted.
    pub fn is_plain(&self) -> bool {
        self.uri.scheme_str() != Some("https")
    }

    /// Whether other machines could read the connection.
    pub fn is_exposed(&self) -> bool {
        let host = self.uri.host().unwrap_or_default();
        let literal = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
        self.is_plain() && !literal.is_ok_and(|ip| ip.is_loopback())
    }

    /// The whole URL.
    pub(crate) fn uri(&self) -> Uri {
        self.uri.clone()
    }
}

impl fmt::Debug for HookUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.origin)
    }
}

/// Globs over topics.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Topics(Vec<(String, Glob)>);

impl Topics {
    /// Whether one of the globs matches this topic.
    pub fn matches(&self, topic: &str) -> bool {
        self.0.iter().any(|(_, glob)| glob.matches(topic))
    }

    /// The globs as written.
    pub fn texts(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|(text, _)| text.as_str())
    }
}

/// The hooks of the file, with unique names.
pub(super) fn hooks(
    c: &mut Checker,
    webhooks: &[Spanned<RawWebhook>],
    commands: &[Spanned<RawCommandHook>],
    base: &Path,
) -> Vec<HookConfig> {
    let mut hooks: Vec<HookConfig> = Vec::new();
    let mut take =
        |c: &mut Checker, name: &Text, topics: &[Text], wait: Option<&Text>, transport: Option<HookTransport>| {
            c.ok(name.span(), text::name(name.get_ref(), 64));
            if hooks.iter().any(|known| known.name == *name.get_ref()) {
                let message = format!("there are two hooks named {:?}", name.get_ref());
                c.wrong(name.span(), message, "rename one of them: the name identifies the position in the journal");
            }
            let topics = globs(c, name, topics);
            let timeout = wait.map_or(Some(DEFAULT_TIMEOUT), |wait| c.ok(wait.span(), timeout(wait.get_ref())));
            if let (Some(timeout), Some(transport)) = (timeout, transport) {
                hooks.push(HookConfig { name: name.get_ref().clone(), topics, timeout, transport });
            }
        };
    for table in webhooks {
        let of = table.get_ref();
        let transport = webhook(c, of, base);
        take(c, &of.name, &of.topics, of.timeout.as_ref(), transport);
    }
    for table in commands {
        let of = table.get_ref();
        let transport = argv(c, of);
        take(c, &of.name, &of.topics, of.timeout.as_ref(), transport);
    }
    if let Some(name) =
        webhooks.iter().map(|of| &of.get_ref().name).chain(commands.iter().map(|of| &of.get_ref().name)).nth(MAX_HOOKS)
    {
        c.wrong(
            name.span(),
            format!("there are more than {MAX_HOOKS} hooks"),
            "let one receiver forward events to others",
        );
    }
    hooks
}

fn globs(c: &mut Checker, name: &Text, topics: &[Text]) -> Topics {
    if topics.is_empty() {
        c.wrong(name.span(), "the hook has no topics", "set topics = [\"ha.*\"], or [\"*\"] for all");
    }
    Topics(topics.iter().filter_map(|of| Some((of.get_ref().clone(), c.ok(of.span(), glob(of.get_ref()))?))).collect())
}

/// A glob that matches at least one topic.
fn glob(text: &str) -> Read<Glob> {
    let glob = Glob::new(text).map_err(|e| (e.details, "write a topic, with * for any text: \"ha.*\"".to_owned()))?;
    match RECORDED.iter().any(|topic| glob.matches(topic)) {
        true => Ok(glob),
        false => Err((format!("unknown topic {text:?}: no event matches it"), text::suggest(text, RECORDED))),
    }
}

fn timeout(text: &str) -> Read<Duration> {
    let timeout = text::duration(text)?;
    match timeout.is_zero() || timeout > MAX_TIMEOUT {
        false => Ok(timeout),
        true => Err((
            format!("`timeout` = {text:?} is out of range (1ms to {}s)", MAX_TIMEOUT.as_secs()),
            "\"10s\" is a good value".to_owned(),
        )),
    }
}

fn webhook(c: &mut Checker, of: &RawWebhook, base: &Path) -> Option<HookTransport> {
    let url = c.ok(of.url.span(), url(of.url.get_ref()));
    if let (Some(exposed), false) = (url.as_ref().filter(|url| url.is_exposed()), of.insecure) {
        let message = format!("events to {} would be sent without encryption", exposed.origin());
        let help = "write an https:// URL (ca_file for a private certificate authority), 127.0.0.1 for this machine, \
                    or insecure = true if the network is trusted";
        c.wrong(of.url.span(), message, help);
    }
    let secret_file = base.join(of.secret_file.get_ref());
    let signer = c.ok(of.secret_file.span(), Signer::read(&secret_file));
    let ca_file = ca_file(c, of.ca_file.as_ref(), url.as_ref().is_some_and(HookUrl::is_plain), base);
    signer?;
    Some(HookTransport::Webhook(WebhookAccess { url: url?, secret_file, ca_file }))
}

/// The file with certificate authorities. `plain`: the URL is `http://`.
pub(super) fn ca_file(c: &mut Checker, file: Option<&Spanned<PathBuf>>, plain: bool, base: &Path) -> Option<PathBuf> {
    let file = file?;
    let (path, at) = (base.join(file.get_ref()), file.span());
    c.ok(at.clone(), authorities(&path).map_err(|(why, fix)| (format!("{}: {why}", path.display()), fix)));
    if plain {
        c.wrong(at, "ca_file has no effect with http://", "write an https:// URL, or remove ca_file");
    }
    Some(path)
}

/// A URL for POST requests.
fn url(text: &str) -> Read<HookUrl> {
    // The message never contains the text, a part of which may be secret; the diagnostic shows its place in the file.
    let odd = |what: &str| {
        (what.to_owned(), "write https://HOST/PATH or, on a trusted network, http://HOST:PORT/PATH".to_owned())
    };
    let url = reqwest::Url::parse(text).map_err(|e| odd(&format!("not a URL: {e}")))?;
    if !matches!(url.scheme(), "http" | "https") || text.len() > MAX_URL_BYTES {
        return Err(odd("not the URL of a receiver"));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(odd("a URL must not contain a user or password: messages are signed instead"));
    }
    if url.fragment().is_some() {
        return Err(odd("a URL must not contain a fragment (#), which is never sent"));
    }
    let uri = url.as_str().parse().map_err(|_| odd("this URL does not accept POST requests"))?;
    Ok(HookUrl { uri, origin: url.origin().ascii_serialization() })
}

fn argv(c: &mut Checker, of: &RawCommandHook) -> Option<HookTransport> {
    let Some(program) = of.argv.first() else {
        c.wrong(of.name.span(), "the hook has no program", "add argv = [\"/PATH/PROGRAM\", \"ARGUMENT\", ...]");
        return None;
    };
    // No lookup in PATH: the program must not depend on the environment of the controller.
    c.ok(program.span(), text::absolute(program.get_ref()))?;
    for argument in of.argv.iter().filter(|argument| argument.get_ref().contains('\0')) {
        c.wrong(argument.span(), "an argument must not contain a zero byte", "remove it");
    }
    Some(HookTransport::Command(of.argv.iter().map(|argument| argument.get_ref().clone()).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn url_shows_only_its_origin() {
        let good = url("https://hooks.example:8443/services/T0KEN?key=s3cret").unwrap();
        assert_eq!(format!("{good:?}"), "https://hooks.example:8443");
        assert_eq!(good.uri().to_string(), "https://hooks.example:8443/services/T0KEN?key=s3cret");
        assert_eq!(url("http://[::1]:9/").unwrap().origin(), "http://[::1]:9");
        for (text, exposed) in [
            ("http://10.0.0.1/", true),
            ("http://localhost/", true),
            ("http://127.0.0.2:9/", false),
            ("http://[::1]:9/", false),
            ("https://hooks.example/", false),
        ] {
            assert_eq!(url(text).unwrap().is_exposed(), exposed, "{text}");
        }
        for odd in
            ["", "hooks.example", "ftp://a/", "https://", "https://u:s3cret@a/", "https://a/#b", "file:///etc/passwd"]
        {
            let (why, _) = url(odd).unwrap_err();
            assert!(!why.contains("s3cret"), "{why}");
        }
    }

    #[test]
    fn glob_matches_known_topics_only() {
        for good in ["ha.*", "*", "ceph.ha.sibling-fence", "{kind}.state-changed"] {
            glob(good).unwrap();
        }
        assert!(glob("ha.vm-startet").unwrap_err().1.contains("did you mean \"ha.vm-started\"?"));
        for topic in RECORDED {
            glob(topic).unwrap();
        }
        assert!(glob("inventory.changed").is_ok() && glob("").is_err());
        // These are events that the journal does not record.
        for never in ["journal.recorded", "host.suspected"] {
            let (_, remedy) = glob(never).unwrap_err();
            assert!(remedy.contains("use one of") || remedy.contains("did you mean"), "{never}: {remedy}");
        }
    }
}
