//! Controller and agents by TLS, over real sockets: who is heard, who is refused in which words, and what a rotation
//! does to a pair that runs.
#![allow(missing_docs)]

mod common;

use std::{
    collections::HashMap,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
};

use parking_lot::Mutex;
use ringfence_actors::ports::{Call, HostAgentPort};
use ringfence_agent::config::AgentSettings;
use ringfence_cli::pki::{Authority, CertNames, issue, issue_for, renew};
use ringfence_drivers::{
    agent_client::AgentClient,
    tls::{Identity, TlsFiles, api_client, certificates, refused_server},
};
use ringfence_messages::{HostId, Result};
use rustls::{
    ClientConfig, RootCertStore,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
};
use time::{Duration, OffsetDateTime};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::oneshot,
    task::JoinHandle,
};
use tokio_rustls::client::TlsStream;

const WITHIN: std::time::Duration = std::time::Duration::from_secs(20);

fn host(name: &str) -> HostId {
    HostId::from_name(name)
}

fn folder(dir: &Path) -> TlsFiles {
    TlsFiles { cert: dir.join("cert.pem"), key: dir.join("key.pem"), ca: dir.join("ca.pem") }
}

/// What this process has logged.
fn log() -> &'static Mutex<Vec<u8>> {
    static LOG: OnceLock<Mutex<Vec<u8>>> = OnceLock::new();
    LOG.get_or_init(|| {
        struct Into;
        impl std::io::Write for Into {
            fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
                log().lock().extend_from_slice(bytes);
                Ok(bytes.len())
            }
            fn flush(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }
        let _ = tracing_subscriber::fmt().with_ansi(false).with_writer(|| Into).try_init();
        Mutex::default()
    })
}

/// Waits until the log says this.
async fn logged(what: &str) {
    let said = async {
        loop {
            let all = String::from_utf8_lossy(&log().lock()).into_owned();
            if all.contains(what) {
                return;
            }
            tokio::task::yield_now().await;
        }
    };
    if tokio::time::timeout(WITHIN, said).await.is_err() {
        panic!("{what:?} was not logged: {}", String::from_utf8_lossy(&log().lock()));
    }
}

/// An authority, with folders made by it.
struct Pki {
    root: PathBuf,
    ca: PathBuf,
}

impl Pki {
    fn new(root: &Path, name: &str) -> Pki {
        let ca = root.join(name);
        Authority::init(&ca, 3650).unwrap();
        Pki { root: root.to_owned(), ca }
    }

    fn authority(&self) -> Authority {
        Authority::open(&self.ca).unwrap()
    }

    fn issue(&self, names: CertNames, out: &str) -> TlsFiles {
        let out = self.root.join(out);
        let names = names.at(vec!["127.0.0.1".parse().unwrap()], Vec::new());
        issue(&self.authority(), &names, 30, &out).unwrap();
        folder(&out)
    }

    /// One that ended an hour ago.
    fn ended(&self, names: CertNames, out: &str) -> TlsFiles {
        let (out, now) = (self.root.join(out), OffsetDateTime::now_utc());
        let life = (now - Duration::hours(2), now - Duration::hours(1));
        issue_for(&self.authority(), &names, life, &out).unwrap();
        folder(&out)
    }
}

struct Agent {
    address: SocketAddr,
    end: Option<oneshot::Sender<()>>,
    running: JoinHandle<()>,
}

impl Agent {
    async fn start(root: &Path, tls: Option<TlsFiles>) -> Agent {
        log();
        let (ready, address) = oneshot::channel();
        let (end, ended) = oneshot::channel::<()>();
        let settings = settings(root, tls);
        let running = tokio::spawn(async move {
            let ended = async { ended.await.unwrap_or(()) };
            ringfence_agent::run(settings, |address| ready.send(address).unwrap(), ended).await.unwrap();
        });
        Agent { address: address.await.expect("it serves"), end: Some(end), running }
    }

    /// A ping of a host that is said to be there.
    async fn ping(&self, scheme: &str, name: &str, files: Option<&TlsFiles>) -> Result<()> {
        ping(&client(self.address, scheme, name, files)?, name).await
    }

    async fn stop(mut self) {
        drop(self.end.take());
        self.running.await.unwrap();
    }
}

fn settings(root: &Path, tls: Option<TlsFiles>) -> AgentSettings {
    AgentSettings { tls, ..common::agent::settings("host-a", &root.join("state")) }
}

fn client(address: SocketAddr, scheme: &str, name: &str, files: Option<&TlsFiles>) -> Result<AgentClient> {
    let urls = HashMap::from([(host(name), format!("{scheme}://{address}"))]);
    AgentClient::with_tls(urls, None, files.cloned())
}

async fn ping(client: &AgentClient, name: &str) -> Result<()> {
    client.ping(host(name), None, Call::within(WITHIN)).await.map(|reply| assert_eq!(reply.host_uuid, host(name)))
}

fn roots(ca: &Path) -> RootCertStore {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(certificates("ca", ca).unwrap());
    roots
}

/// A connection by hand, with a certificate that our own client would not take.
async fn connect(agent: &Agent, ca: &Path, own: Option<&TlsFiles>) -> TlsStream<TcpStream> {
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let config = config.with_safe_default_protocol_versions().unwrap().with_root_certificates(roots(ca));
    let config = match own {
        None => config.with_no_client_auth(),
        Some(files) => {
            let key = PrivateKeyDer::from_pem_file(&files.key).unwrap();
            config.with_client_auth_cert(certificates("cert", &files.cert).unwrap(), key).unwrap()
        }
    };
    let stream = TcpStream::connect(agent.address).await.unwrap();
    let name = ServerName::try_from("127.0.0.1").unwrap();
    tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap()
}

/// How such a connection ends, and whom it met.
async fn by_hand(agent: &Agent, ca: &Path, own: Option<&TlsFiles>) -> (Option<String>, CertificateDer<'static>) {
    let mut stream = connect(agent, ca, own).await;
    let met = stream.get_ref().1.peer_certificates().unwrap()[0].clone().into_owned();
    let _ = stream.write_all(b"POST /host/ping HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
    let mut said = Vec::new();
    let read = tokio::time::timeout(WITHIN, stream.read_to_end(&mut said)).await.expect("it ends");
    let refused = read.err().map(|error| {
        assert!(said.is_empty(), "refused, and answered: {}", String::from_utf8_lossy(&said));
        let file = own.map(|files| &*files.cert);
        refused_server(&error, file, None).unwrap_or_else(|| format!("no alert came: {error}"))
    });
    (refused, met)
}

/// One request on a connection that stays open; the head of its answer.
async fn ask(stream: &mut TlsStream<TcpStream>) -> String {
    stream.write_all(b"POST /host/ping HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n").await.unwrap();
    let mut said = vec![0; 4096];
    let read = tokio::time::timeout(WITHIN, stream.read(&mut said)).await.expect("it answers").unwrap();
    String::from_utf8_lossy(&said[..read]).to_lowercase()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_right_pair_is_heard_and_every_other_is_refused_in_words() {
    let dir = tempfile::tempdir().unwrap();
    let (ours, theirs) = (Pki::new(dir.path(), "ca"), Pki::new(dir.path(), "other-ca"));
    let of_a = ours.issue(CertNames::host("host-a", host("host-a")), "host-a");
    let of_b = ours.issue(CertNames::host("host-b", host("host-b")), "host-b");
    let controller = ours.issue(CertNames::controller(), "controller");
    let user = ours.issue(CertNames::client("ops"), "ops");
    let foreign = theirs.issue(CertNames::controller(), "foreign");
    let agent = Agent::start(dir.path(), Some(of_a.clone())).await;
    agent.ping("https", "host-a", Some(&controller)).await.unwrap();
    assert_eq!(by_hand(&agent, &of_a.ca, Some(&controller)).await.0, None);

    let mixed = |cert: &TlsFiles, ca: &TlsFiles| TlsFiles { ca: ca.ca.clone(), ..cert.clone() };
    let refused = |what, result: Result<()>, says: Vec<String>| {
        let error = result.expect_err(what);
        for says in says {
            assert!(error.details.contains(&says), "{what}: {error}, not {says}");
        }
    };
    let path = |path: &Path| path.display().to_string();
    let result = agent.ping("https", "host-a", Some(&mixed(&foreign, &of_a))).await;
    refused("a foreign controller", result, vec![path(&foreign.cert), "its authority is not in the `ca`".into()]);
    logged("its certificate is not from an authority in our `ca` file").await;
    let result = agent.ping("https", "host-a", Some(&mixed(&controller, &foreign))).await;
    let no_authority = format!("is not from an authority in {}", path(&foreign.ca));
    refused("a foreign agent", result, vec![agent.address.to_string(), no_authority]);
    let result = agent.ping("https", "host-b", Some(&controller)).await;
    let stranger = format!("that of host {} (host-a), not that of host {}", host("host-a"), host("host-b"));
    refused("another host's agent", result, vec![agent.address.to_string(), stranger]);
    let result = agent.ping("https", "host-a", Some(&of_b)).await;
    refused("a host's certificate", result, vec![path(&of_b.cert), "not a controller's: `ringfence pki issue".into()]);
    let result = agent.ping("http", "host-a", Some(&controller)).await;
    refused("plain HTTP", result, vec!["this port requires TLS; use https://".into()]);
    logged("plain HTTP on a TLS port").await;
    let result = agent.ping("https", "host-a", None).await;
    refused("no certificate", result, vec!["add [agent_tls] cert, key, ca".into()]);

    // Who does not use our client: the agent alone refuses these.
    for (what, own, says, log) in [
        ("a host", Some(&of_b), "it is not of the role", "not of the role that is accepted here (a host's"),
        ("a user", Some(&user), "it is not of the role", "not of the role that is accepted here (a host's"),
        ("nobody", None, "got none", "it sends no certificate"),
        ("too late", Some(&ours.ended(CertNames::controller(), "late")), "it ended", "its certificate ended on 2"),
    ] {
        log_is_empty();
        let (refused, _) = by_hand(&agent, &of_a.ca, own).await;
        let refused = refused.unwrap_or_else(|| panic!("{what} is heard"));
        assert!(refused.contains(says), "{what}: {refused}");
        logged(log).await;
        logged("address=127.0.0.1:").await;
    }
    agent.ping("https", "host-a", Some(&controller)).await.unwrap();
    agent.stop().await;
}

fn log_is_empty() {
    log().lock().clear();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_ended_is_refused_by_who_has_it_and_by_who_sees_it() {
    let dir = tempfile::tempdir().unwrap();
    let pki = Pki::new(dir.path(), "ca");
    let ended = pki.ended(CertNames::host("host-a", host("host-a")), "host-a");
    let controller = pki.issue(CertNames::controller(), "controller");
    let error = ringfence_agent::run(settings(dir.path(), Some(ended.clone())), |_| {}, std::future::ready(()))
        .await
        .unwrap_err();
    let says = format!("cert {}: it ended on 2", ended.cert.display());
    assert!(error.details.contains(&says) && error.details.contains("`ringfence pki rotate`"), "{error}");

    // A listener that does not look at its own.
    let key = PrivateKeyDer::from_pem_file(&ended.key).unwrap();
    let config = rustls::ServerConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let config = config.with_safe_default_protocol_versions().unwrap().with_no_client_auth();
    let config = config.with_single_cert(certificates("cert", &ended.cert).unwrap(), key).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let serving = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        tokio_rustls::TlsAcceptor::from(Arc::new(config)).accept(stream).await.is_ok()
    });
    let error = ping(&client(address, "https", "host-a", Some(&controller)).unwrap(), "host-a").await.unwrap_err();
    assert!(error.details.contains(&address.to_string()), "{error}");
    assert!(error.details.contains("its certificate ended on 2"), "{error}");
    assert!(!serving.await.unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_in_the_clear_is_not_taken_for_one_by_tls() {
    let dir = tempfile::tempdir().unwrap();
    let controller = Pki::new(dir.path(), "ca").issue(CertNames::controller(), "controller");
    let agent = Agent::start(dir.path(), None).await;
    let error = agent.ping("https", "host-a", Some(&controller)).await.unwrap_err();
    assert!(error.details.contains("it does not speak TLS"), "{error}");
    agent.ping("http", "host-a", Some(&controller)).await.unwrap();
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_pair_goes_on_while_certificates_and_authority_are_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let pki = Pki::new(dir.path(), "ca");
    let of_a = pki.issue(CertNames::host("host-a", host("host-a")), "host-a");
    let controller = pki.issue(CertNames::controller(), "controller");
    let agent = Agent::start(dir.path(), Some(of_a.clone())).await;
    let client = client(agent.address, "https", "host-a", Some(&controller)).unwrap();
    let goes_on = async || {
        for _ in 0..3 {
            ping(&client, "host-a").await.unwrap();
        }
    };
    let met = async || by_hand(&agent, &pki.ca.join("ca.pem"), Some(&controller)).await;
    let rotate = |files: &TlsFiles| renew(&pki.authority(), 30, files.cert.parent().unwrap()).unwrap();
    let publish = || {
        for files in [&of_a, &controller] {
            std::fs::copy(pki.ca.join("ca.pem"), &files.ca).unwrap();
        }
    };
    goes_on().await;
    let first = met().await.1;

    // A new key for each end.
    rotate(&of_a);
    goes_on().await;
    let (refused, second) = met().await;
    assert_eq!(refused, None);
    assert_ne!(first, second, "the new certificate is shown");
    assert_eq!(second, certificates("cert", &of_a.cert).unwrap()[0]);
    rotate(&controller);
    goes_on().await;

    // Half a copy: what was in use stays in use, and whole files mend it.
    let whole = std::fs::read(&of_a.cert).unwrap();
    std::fs::write(&of_a.cert, &whole[..whole.len() / 2]).unwrap();
    goes_on().await;
    assert_eq!(met().await.1, second);
    logged("changed files are not taken up").await;
    std::fs::write(&of_a.cert, &whole).unwrap();
    goes_on().await;

    // A new authority, by the five steps of `pki rotate --help`.
    let before = dir.path().join("before");
    std::fs::create_dir(&before).unwrap();
    let old = folder(&before);
    for (from, to) in [(&controller.cert, &old.cert), (&controller.key, &old.key), (&controller.ca, &old.ca)] {
        std::fs::copy(from, to).unwrap();
    }
    pki.authority().replace(3650).unwrap();
    goes_on().await;
    publish();
    goes_on().await;
    rotate(&of_a);
    goes_on().await;
    rotate(&controller);
    goes_on().await;
    assert_eq!(by_hand(&agent, &pki.ca.join("ca.pem"), Some(&old)).await.0, None, "both authorities are trusted");
    let mut open = connect(&agent, &pki.ca.join("ca.pem"), Some(&old)).await;
    assert!(!ask(&mut open).await.contains("connection: close"));
    pki.authority().drop_old().unwrap();
    publish();
    assert!(ask(&mut open).await.contains("connection: close"), "what was open ends with its next answer");
    let ended = tokio::time::timeout(WITHIN, open.read(&mut [0])).await.expect("it is closed");
    assert!(matches!(ended, Ok(0) | Err(_)), "{ended:?}");
    goes_on().await;
    let (refused, _) = by_hand(&agent, &pki.ca.join("ca.pem"), Some(&old)).await;
    assert!(
        refused.is_some_and(|why| why.contains("its authority is not in the `ca` file")),
        "the old one is worth nothing"
    );
    agent.stop().await;
}

/// When the certificate of a file ends.
fn end(file: &str) -> i64 {
    Identity::of(&certificates("cert", Path::new(file)).unwrap()[0]).unwrap().not_after
}

/// A program that runs until this is dropped; the address that it says it listens on.
async fn program(arguments: &[&str]) -> (tokio::process::Child, SocketAddr) {
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_ringfence"));
    let mut child = command.args(arguments).stdout(std::process::Stdio::piped()).kill_on_drop(true).spawn().unwrap();
    let mut said = tokio::io::AsyncBufReadExt::lines(tokio::io::BufReader::new(child.stdout.take().unwrap()));
    let line = tokio::time::timeout(WITHIN, said.next_line()).await.unwrap().unwrap().expect("it serves");
    (child, line.rsplit(' ').next().unwrap().parse().unwrap())
}

async fn ringfence(arguments: &[&str]) -> (Option<i32>, String) {
    let output = tokio::process::Command::new(env!("CARGO_BIN_EXE_ringfence")).args(arguments).output().await.unwrap();
    let said = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8_lossy(&said).into_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn both_programs_come_together_by_their_files_and_stay_so_over_a_rotation() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).display().to_string();
    let (ca, a, c) = (at("ca"), at("host-a"), at("controller"));
    for arguments in [
        vec!["pki", "init", &ca],
        vec!["pki", "issue", "--ca", &ca, "--host", "host-a", "--ip", "127.0.0.1", "--out", &a],
        vec!["pki", "issue", "--ca", &ca, "--controller", "--ip", "127.0.0.1", "--out", &c],
    ] {
        let (code, said) = ringfence(&arguments).await;
        assert_eq!(code, Some(0), "{arguments:?}: {said}");
    }
    let tls = |of: &str| format!("cert = \"{of}/cert.pem\"\nkey = \"{of}/key.pem\"\n");
    let agent_file = at("agent.toml");
    let text = "host = \"host-a\"\nlisten = \"127.0.0.1:0\"\nstate_dir = \"agent-state\"\n[tls]\n";
    std::fs::write(&agent_file, format!("{text}{}ca = \"{a}/ca.pem\"\n", tls(&a))).unwrap();
    let (_agent, agent) = program(&["agent", "--config", &agent_file]).await;
    let file = at("controller.toml");
    let text = format!(
        "[controller]\nlisten = \"127.0.0.1:0\"\nstate_dir = \"state\"\n[controller.tls]\n{}[agent_tls]\n\
         {}ca = \"{c}/ca.pem\"\n\
         [ping]\ninterval = \"200ms\"\n[[cluster]]\nname = \"c1\"\n[[host]]\nname = \"host-a\"\ncluster = \"c1\"\n\
         management_ip = \"127.0.0.1\"\nagent = \"https://{agent}\"\n",
        tls(&c),
        tls(&c)
    );
    std::fs::write(&file, text).unwrap();
    let (code, said) = ringfence(&["check", "--live", "--config", &file]).await;
    assert!(code == Some(0) && said.contains("ok    agent of host-a"), "{said}");
    assert!(said.contains("to agents   TLS, certificate a controller's (controller), expires 2"), "{said}");

    let (_controller, api) = program(&["serve", "--config", &file]).await;
    let (server, ca_file) = (format!("https://{api}"), format!("{ca}/ca.pem"));
    let ask = ["--json", "--server", &server, "--ca-file", &ca_file];
    let connected = async || {
        let asking = async {
            loop {
                let (code, said) = ringfence(&[&["hosts"][..], &ask].concat()).await;
                assert_eq!(code, Some(0), "{said}");
                if said.contains("\"Connected\"") {
                    return;
                }
            }
        };
        tokio::time::timeout(WITHIN, asking).await.expect("host-a is connected");
    };
    connected().await;
    let told = async |whose: &str| {
        let client = api_client(Path::new(&ca_file), None).unwrap().build().unwrap();
        let metrics = client.get(format!("{server}/metrics")).send().await.unwrap().text().await.unwrap();
        let name = format!("ringfence_certificate_expiry_timestamp_seconds{{whose=\"{whose}\"}} ");
        metrics.lines().find_map(|line| line.strip_prefix(&name)?.parse::<i64>().ok())
    };
    for (folder, days, changed) in [(&a, "7", &["hosts"][..]), (&c, "9", &["controller", "api"])] {
        let (code, said) = ringfence(&["pki", "rotate", folder, "--ca", &ca, "--days", days]).await;
        assert_eq!(code, Some(0), "{said}");
        let (code, said) = ringfence(&[&["host", "ping", "host-a"][..], &ask].concat()).await;
        assert_eq!(code, Some(0), "{said}");
        connected().await;
        for whose in changed {
            let end = Some(end(&format!("{folder}/cert.pem")));
            // A host shows its new one with the next connection.
            let follows = async { while told(whose).await != end {} };
            tokio::time::timeout(WITHIN, follows).await.unwrap_or_else(|_| panic!("{whose} follows its renewal"));
        }
    }
    assert_eq!(told("authority").await, Some(end(&ca_file)));
    assert!(told("hosts").await < told("api").await && told("client-authority").await.is_none());
    let (_, said) = ringfence(&["doctor", "--config", &file]).await;
    assert!(said.contains("certificate") && said.contains("expires on 2"), "{said}");

    // Who does not come in is counted.
    assert!(ringfence(&["hosts", "--server", &format!("http://{api}")]).await.1.contains("this port requires TLS"));
    let client = api_client(Path::new(&ca_file), None).unwrap().build().unwrap();
    let metrics = client.get(format!("{server}/metrics")).send().await.unwrap().text().await.unwrap();
    assert!(metrics.contains("ringfence_tls_refused_total{why=\"plain-http\"} 1\n"), "{metrics}");

    // What cannot be used is not what is in use.
    let (cert, before) = (format!("{c}/cert.pem"), told("controller").await);
    let whole = std::fs::read(&cert).unwrap();
    std::fs::copy(format!("{a}/cert.pem"), &cert).unwrap();
    assert_eq!(told("controller").await, before);
    std::fs::write(&cert, whole).unwrap();

    // The mistakes that a copy to the wrong machine makes, before anything runs.
    std::fs::write(&agent_file, std::fs::read_to_string(&agent_file).unwrap().replace(&a, &c)).unwrap();
    let (code, said) = ringfence(&["check", "--config", &agent_file]).await;
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("it is a controller's (controller), not that of host"), "{said}");
}
