//! Hooks against real receivers on loopback: signed, in order, at least once, over a controller's death.
#![allow(missing_docs)]

use std::{
    net::SocketAddr,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Command, Output, Stdio},
    sync::Arc,
    time::Duration,
};

use axum::{
    Router,
    body::Bytes,
    extract::State,
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Response},
    routing::post,
};
use base64::{Engine, prelude::BASE64_STANDARD};
use parking_lot::Mutex;
use ringfence::Bus;
use ringfence_actors::ports::{JournalPort, NewRecord, Record};
use ringfence_cli::demo::cluster::{Cluster, Plan};
use ringfence_drivers::journal::Journal;
use ringfence_messages::{Event, audit::EventRecorded, topics::RECORDED};
use ringfence_server::{
    config::HookConfig,
    notify::{HookInventory, MAX_REFUSALS, Notifier, RetryPolicy},
};
use ringfence_service::{config_file::Problems, listen};
use serde_json::{Value, json};
use tokio::{sync::oneshot, task::JoinHandle, time::Instant};

const SECRET: &str = "whsec_c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0";
const PATH: &str = "/services/PATH-THAT-IS-SECRET";
const WITHIN: Duration = Duration::from_secs(60);

/// Quick, so that a test does not wait for what is tested as a plain decision.
const PACE: RetryPolicy = RetryPolicy { first: Duration::from_millis(10), ceiling: Duration::from_millis(50) };

fn secret(dir: &Path) -> String {
    let path = dir.join("secret");
    std::fs::write(&path, SECRET).unwrap();
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
    path.display().to_string()
}

fn webhook(dir: &Path, name: &str, to: &str, more: &str) -> String {
    let secret = secret(dir);
    format!("[[webhook]]\nname = {name:?}\nurl = \"{to}{PATH}\"\nsecret_file = {secret:?}\n{more}\n")
}

/// What came in.
#[derive(Clone, Debug)]
struct Told {
    headers: HeaderMap,
    body: Bytes,
}

impl Told {
    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    fn seq(&self) -> u64 {
        self.json()["seq"].as_u64().unwrap()
    }

    fn id(&self) -> String {
        self.headers["webhook-id"].to_str().unwrap().to_owned()
    }
}

type Answers = dyn Fn(&Told, usize) -> Option<Response> + Send + Sync;

#[derive(Clone)]
struct Receiver {
    told: Arc<Mutex<Vec<Told>>>,
    answers: Arc<Answers>,
}

async fn take(State(of): State<Receiver>, headers: HeaderMap, body: Bytes) -> Response {
    let told = Told { headers, body };
    let n = {
        let mut all = of.told.lock();
        all.push(told.clone());
        all.len()
    };
    match (of.answers)(&told, n) {
        Some(answer) => answer,
        None => std::future::pending().await,
    }
}

/// A receiver that answers the nth message, from 1; without an answer it holds the request.
struct Serving {
    address: SocketAddr,
    told: Arc<Mutex<Vec<Told>>>,
    serving: JoinHandle<()>,
    end: Option<oneshot::Sender<()>>,
}

impl Serving {
    async fn on(
        address: SocketAddr,
        answers: impl Fn(&Told, usize) -> Option<Response> + Send + Sync + 'static,
    ) -> Serving {
        let receiver = Receiver { told: Arc::default(), answers: Arc::new(answers) };
        let told = receiver.told.clone();
        let app = Router::new().route(PATH, post(take)).with_state(receiver);
        let listener = listen::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (end, ended) = oneshot::channel();
        let serving = tokio::spawn(async move {
            tokio::select! {
                () = listen::serve(listener, app, std::future::pending()) => {}
                _ = ended => {}
            }
        });
        Serving { address, told, serving, end: Some(end) }
    }

    async fn new(answers: impl Fn(&Told, usize) -> Option<Response> + Send + Sync + 'static) -> Serving {
        Serving::on("127.0.0.1:0".parse().unwrap(), answers).await
    }

    fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    fn told(&self) -> Vec<Told> {
        self.told.lock().clone()
    }

    fn seqs(&self) -> Vec<u64> {
        self.told.lock().iter().map(Told::seq).collect()
    }

    /// Nobody is there any more: connections are cut, new ones refused.
    async fn gone(mut self) -> Vec<Told> {
        drop(self.end.take());
        (&mut self.serving).await.unwrap();
        self.told()
    }
}

fn well(_: &Told, _: usize) -> Option<Response> {
    Some(StatusCode::NO_CONTENT.into_response())
}

async fn until(what: &str, mut is: impl FnMut() -> bool) {
    let deadline = Instant::now() + WITHIN;
    while !is() {
        assert!(Instant::now() < deadline, "waited {WITHIN:?} in vain until {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Hooks over a journal of their own, and who records into it.
struct Bench {
    _dir: tempfile::TempDir,
    journal: Journal,
    bus: Bus,
    notifier: Arc<Notifier>,
    running: JoinHandle<()>,
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.running.abort();
    }
}

/// The hooks that these tables describe, as a controller reads them.
fn configured(dir: &Path, tables: &str) -> Result<Vec<HookConfig>, Problems> {
    let head = "[controller]\nstate_dir = \"state\"\n[[cluster]]\nname = \"c1\"\n[[host]]\nname = \"host-a\"\n\
                cluster = \"c1\"\nmanagement_ip = \"127.0.0.1\"\nagent = \"http://127.0.0.1:1\"\n";
    let path = dir.join("controller.toml");
    std::fs::write(&path, format!("{head}{tables}")).unwrap();
    let config = ringfence_server::config::load(&path)?;
    assert!(!format!("{config:?}").contains("SECRET"), "the path of a URL shows: {config:?}");
    Ok(config.hooks)
}

impl Bench {
    async fn start(dir: tempfile::TempDir, tables: &str) -> Bench {
        let hooks = configured(dir.path(), tables).unwrap_or_else(|problems| panic!("{problems}"));
        let journal = Journal::open(dir.path()).unwrap();
        let bus = Bus::new();
        let port: Arc<dyn JournalPort> = Arc::new(journal.clone());
        let notifier = Arc::new(Notifier::open(&hooks, dir.path(), port, PACE).await.unwrap());
        let running = tokio::spawn(notifier.clone().run(bus.subscribe(EventRecorded::TOPIC).unwrap()));
        Bench { _dir: dir, journal, bus, notifier, running }
    }

    async fn record(&self, topic: &str, subject: &str) -> Record {
        let new = NewRecord {
            topic: topic.to_owned(),
            subject: subject.to_owned(),
            payload: json!({ "host": subject }),
            waited: Duration::ZERO,
        };
        let record = self.journal.append(vec![new]).await.unwrap().remove(0);
        let (seq, time, payload) = (record.seq, record.time.clone(), record.payload.to_string());
        let (topic, subject, hash) = (record.topic.clone(), record.subject.clone(), record.hash.clone());
        self.bus.publish(EventRecorded { seq, time, topic, subject, payload, hash }).unwrap();
        record
    }

    fn hook(&self, name: &str) -> HookInventory {
        self.notifier.list().into_iter().find(|hook| hook.name == name).unwrap()
    }
}

const ALL: &str = "topics = [\"*\"]";

/// The lines of the documentation, run by another language's own HMAC.
fn verify_as_documented(secret: &str, told: &Told) -> Output {
    let docs = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/notifications.md")).unwrap();
    let lines = docs.split_once("```python\n").unwrap().1.split_once("```").unwrap().0;
    let script = format!(
        "{lines}\nimport json, sys\nd = json.load(sys.stdin)\nverify(d['secret'], d['headers'], d['body'].encode())\n"
    );
    let headers: serde_json::Map<_, _> =
        told.headers.iter().map(|(name, value)| (name.to_string(), json!(value.to_str().unwrap()))).collect();
    let input = json!({ "secret": secret, "headers": headers, "body": String::from_utf8_lossy(&told.body) });
    let mut python = Command::new("python3")
        .args(["-c", &script])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("python3 (scripts/setup.sh test installs it)");
    serde_json::to_writer(python.stdin.take().unwrap(), &input).unwrap();
    python.wait_with_output().unwrap()
}

#[tokio::test]
async fn a_message_is_what_the_journal_says_signed_as_the_documentation_verifies_it() {
    let (dir, receiver) = (tempfile::tempdir().unwrap(), Serving::new(well).await);
    let tables = webhook(dir.path(), "ops", &receiver.url(), ALL);
    let bench = Bench::start(dir, &tables).await;
    let record = bench.record("ha.host-failed", "host-a").await;
    until("it is told", || !receiver.told().is_empty()).await;
    let told = receiver.told().remove(0);
    let mut body = told.json();
    let about = body.as_object_mut().unwrap().remove("webhook").unwrap();
    assert_eq!(body, serde_json::to_value(&record).unwrap());
    assert_eq!(about, json!({ "id": told.id(), "name": "ops", "test": false }));
    assert_eq!(told.headers["content-type"], "application/json");

    let output = verify_as_documented(SECRET, &told);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let other = format!("whsec_{}", BASE64_STANDARD.encode([0; 32]));
    let mut changed = told.clone();
    changed.body = String::from_utf8_lossy(&told.body).replace("host-a", "host-b").into();
    let mut again_later = told.clone();
    again_later.headers.insert("webhook-timestamp", "1614265330".parse().unwrap());
    for (secret, told, what) in [
        (&*other, &told, "another secret"),
        (SECRET, &changed, "a changed body"),
        (SECRET, &again_later, "another time"),
    ] {
        let output = verify_as_documented(secret, told);
        assert!(String::from_utf8_lossy(&output.stderr).contains("not signed with this secret"), "{what}");
    }
}

#[tokio::test]
async fn what_fails_for_a_while_is_told_once_it_works_in_order_and_nothing_of_no_interest() {
    let dir = tempfile::tempdir().unwrap();
    let receiver = Serving::new(|_, n| match n {
        1 => Some(StatusCode::INTERNAL_SERVER_ERROR.into_response()),
        2 => Some((StatusCode::SERVICE_UNAVAILABLE, [("retry-after", "1")]).into_response()),
        _ => Some(StatusCode::OK.into_response()),
    })
    .await;
    let tables = webhook(dir.path(), "ops", &receiver.url(), "topics = [\"ha.*\", \"ceph.ha.sibling-fence\"]");
    let bench = Bench::start(dir, &tables).await;
    for topic in ["ha.host-failed", "host.suspected", "ceph.ha.sibling-fence", "vm.state-changed", "ha.vm-started"] {
        bench.record(topic, "x").await;
    }
    let began = Instant::now();
    until("all are told", || bench.hook("ops").lag == 0 && receiver.told().len() >= 5).await;
    assert_eq!(receiver.seqs(), [1, 1, 1, 3, 5]);
    let ids: Vec<String> = receiver.told().iter().map(Told::id).collect();
    assert!(ids[0] == ids[1] && ids[1] == ids[2] && ids[2] != ids[3] && ids[3] != ids[4], "{ids:?}");
    assert!(began.elapsed() >= Duration::from_millis(900), "Retry-After was not honoured");
    let hook = bench.hook("ops");
    assert_eq!((hook.delivered, hook.given_up, hook.tries, hook.cursor), (3, 0, 0, 5));
    assert!(hook.last_error.unwrap().starts_with("503"));
    assert_eq!(hook.target, receiver.url(), "no more than the origin");
}

#[tokio::test]
async fn what_is_refused_is_given_up_after_a_while_and_the_next_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let receiver = Serving::new(|told, _| {
        let status = if told.seq() == 1 { StatusCode::BAD_REQUEST } else { StatusCode::OK };
        Some((status, "no <such>\nthing").into_response())
    })
    .await;
    let tables = webhook(dir.path(), "ops", &receiver.url(), ALL);
    let bench = Bench::start(dir, &tables).await;
    bench.record("ha.host-failed", "x").await;
    bench.record("ha.vm-started", "x").await;
    until("both are done with", || bench.hook("ops").cursor == 2).await;
    let seqs = receiver.seqs();
    assert_eq!(seqs.iter().filter(|seq| **seq == 1).count(), MAX_REFUSALS as usize);
    assert_eq!(seqs.last(), Some(&2));
    let hook = bench.hook("ops");
    assert_eq!((hook.delivered, hook.given_up), (1, 1));
    assert_eq!(hook.last_error.unwrap(), "400 Bad Request: no <such> thing");
}

#[tokio::test]
async fn a_redirect_is_not_followed() {
    let dir = tempfile::tempdir().unwrap();
    let elsewhere = Serving::new(well).await;
    let to = format!("{}{PATH}", elsewhere.url());
    let receiver =
        Serving::new(move |_, _| Some((StatusCode::TEMPORARY_REDIRECT, [("location", to.clone())]).into_response()))
            .await;
    let tables = webhook(dir.path(), "ops", &receiver.url(), ALL);
    let bench = Bench::start(dir, &tables).await;
    bench.record("ha.host-failed", "x").await;
    until("it is given up", || bench.hook("ops").given_up == 1).await;
    assert!(elsewhere.told().is_empty());
    assert!(bench.hook("ops").last_error.unwrap().contains("redirects are not followed"));
}

#[tokio::test]
async fn a_receiver_that_never_answers_delays_no_other_hook() {
    let dir = tempfile::tempdir().unwrap();
    let (slow, quick) = (Serving::new(|_, _| None).await, Serving::new(well).await);
    let tables = webhook(dir.path(), "slow", &slow.url(), &format!("{ALL}\ntimeout = \"120s\""))
        + &webhook(dir.path(), "quick", &quick.url(), ALL);
    let bench = Bench::start(dir, &tables).await;
    for _ in 0..120 {
        bench.record("vm.state-changed", "x").await;
    }
    until("the quick one has all", || bench.hook("quick").delivered == 120).await;
    assert_eq!(quick.seqs(), (1..=120).collect::<Vec<_>>());
    let hook = bench.hook("slow");
    assert_eq!((slow.told().len(), hook.cursor, hook.lag), (1, 0, 120));
    // A test event does not wait for earlier events, and is marked.
    let test = bench.notifier.test("quick").await.unwrap();
    assert!(test.delivered && test.says == "204 No Content", "{test:?}");
    let told = quick.told().pop().unwrap();
    assert_eq!((told.id(), &told.json()["webhook"]["test"]), (test.id, &json!(true)));
    assert!(verify_as_documented(SECRET, &told).status.success());
    assert_eq!(bench.notifier.test("nobody").await.unwrap_err().code.as_str(), "SYS.1003");
}

#[tokio::test]
async fn a_program_is_told_on_standard_input_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("told");
    let script = "cat >>\"$1\"; echo \" $RINGFENCE_SEQ $RINGFENCE_TOPIC $RINGFENCE_SUBJECT\" >>\"$1\"; test \
        \"$RINGFENCE_SEQ\" != 2";
    let argv = json!(["/bin/sh", "-c", script, "sh", file]);
    let tables = format!("[[command_hook]]\nname = \"pager\"\nargv = {argv}\n{ALL}\n");
    let bench = Bench::start(dir, &tables).await;
    for subject in ["a", "b;$(touch /tmp/x)", "c"] {
        bench.record("ha.host-failed", subject).await;
    }
    until("all are done with", || bench.hook("pager").cursor == 3).await;
    let text = std::fs::read_to_string(&file).unwrap();
    let lines: Vec<(Value, &str)> = text
        .lines()
        .map(|line| {
            line.rsplit_once("} ").map(|(json, rest)| (serde_json::from_str(&format!("{json}}}")).unwrap(), rest))
        })
        .map(Option::unwrap)
        .collect();
    assert_eq!(lines.iter().filter(|(json, _)| json["seq"] == 2).count(), MAX_REFUSALS as usize, "{text}");
    assert_eq!(lines[0].1, "1 ha.host-failed a");
    assert_eq!(lines[1].1, "2 ha.host-failed b;$(touch /tmp/x)");
    assert_eq!(lines.last().unwrap().0["webhook"]["name"], "pager");
    let hook = bench.hook("pager");
    assert_eq!((hook.delivered, hook.given_up, hook.target.as_str()), (2, 1, "/bin/sh"));
}

/// A receiver behind TLS is believed if the file of authorities vouches for it, and only then.
#[tokio::test]
async fn over_tls_the_authorities_of_the_file_are_believed_and_no_others() {
    let dir = tempfile::tempdir().unwrap();
    let own = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    let other = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    let file = |name: &str, pem: String| {
        let path = dir.path().join(name);
        std::fs::write(&path, pem).unwrap();
        path.display().to_string()
    };
    let (right, wrong) = (file("right.pem", own.cert.pem()), file("wrong.pem", other.cert.pem()));
    let key = rustls::pki_types::PrivateKeyDer::Pkcs8(own.signing_key.serialize_der().into());
    let tls = rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![own.cert.der().clone()], key)
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(tls));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://{}", listener.local_addr().unwrap());
    let serving = tokio::spawn(async move {
        loop {
            let (tcp, _) = listener.accept().await.unwrap();
            let Ok(mut stream) = acceptor.accept(tcp).await else { continue };
            let (mut head, mut buffer) = (Vec::new(), [0; 4096]);
            while !head.windows(4).any(|end| end == b"\r\n\r\n") {
                match tokio::io::AsyncReadExt::read(&mut stream, &mut buffer).await {
                    Ok(n @ 1..) => head.extend_from_slice(&buffer[..n]),
                    _ => break,
                }
            }
            let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
            let _ = tokio::io::AsyncWriteExt::write_all(&mut stream, answer).await;
            let _ = tokio::io::AsyncWriteExt::shutdown(&mut stream).await;
        }
    });
    let tables = webhook(dir.path(), "right", &url, &format!("{ALL}\nca_file = {right:?}"))
        + &webhook(dir.path(), "wrong", &url, &format!("{ALL}\nca_file = {wrong:?}"));
    let bench = Bench::start(dir, &tables).await;
    let test = bench.notifier.test("right").await.unwrap();
    assert!(test.delivered, "{test:?}");
    let test = bench.notifier.test("wrong").await.unwrap();
    assert!(!test.delivered && test.says.contains("certificate"), "{test:?}");
    serving.abort();
}

#[test]
fn the_documentation_names_every_topic() {
    let docs = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/notifications.md")).unwrap();
    let missing: Vec<_> = RECORDED.iter().filter(|topic| !docs.contains(&format!("`{topic}`"))).collect();
    assert!(missing.is_empty(), "{missing:?}");
}

#[test]
fn a_secret_that_others_may_read_is_refused_with_the_line_and_the_fix() {
    let dir = tempfile::tempdir().unwrap();
    let tables = webhook(dir.path(), "ops", "https://127.0.0.1:1", ALL);
    configured(dir.path(), &tables).unwrap();
    std::fs::set_permissions(dir.path().join("secret"), PermissionsExt::from_mode(0o644)).unwrap();
    let says = configured(dir.path(), &tables).unwrap_err().to_string();
    assert!(says.contains("controller.toml:13:") && says.contains("others may read it (mode 644)"), "{says}");
    assert!(says.contains("chmod 600 it"), "{says}");
}

async fn toggled(cluster: &Cluster, times: usize) {
    for _ in 0..times {
        for action in ["maintain", "activate"] {
            // A controller that was started a moment ago still reads its journal.
            let order = json!({ action: {} });
            let ordered = async || cluster.client().post("/v1/hosts/host-a/actions", &order).await.map(Some);
            let _: Value = cluster.until("the host is ordered about", WITHIN, ordered).await.unwrap();
        }
    }
}

/// The journal's records of the hook's topics, by number.
async fn wanted(cluster: &Cluster) -> Vec<u64> {
    let records = cluster.events(0).await.unwrap();
    records.iter().filter(|record| record.topic.starts_with("host.")).map(|record| record.seq).collect()
}

/// Killed at any moment, and with the receiver down meanwhile, it tells everything, in order, skips none, and what it
/// tells again has the id that it had.
#[tokio::test(flavor = "multi_thread")]
async fn over_kills_of_the_controller_and_a_receiver_that_was_away_all_is_told_and_none_skipped() {
    let dir = tempfile::tempdir().unwrap();
    let receiver = Serving::new(well).await;
    let address = receiver.address;
    let plan = Plan {
        hosts: vec!["host-a".to_owned()],
        tables: webhook(dir.path(), "ops", &receiver.url(), "topics = [\"host.*\"]"),
        ..Plan::default()
    };
    let program = Path::new(env!("CARGO_BIN_EXE_ringfence"));
    let mut cluster = Cluster::start(program, plan).await.unwrap();
    toggled(&cluster, 3).await;
    let before = wanted(&cluster).await;
    until("what was before is told", || receiver.seqs().len() >= before.len()).await;
    let mut told = receiver.gone().await;

    // Nobody is there, it happens on, and the controller dies while it tries again.
    toggled(&cluster, 2).await;
    let waits = async || {
        let hooks: Vec<HookInventory> = cluster.client().items("/v1/hooks").await?;
        Ok((hooks[0].lag > 0 && hooks[0].next_try.is_some()).then_some(()))
    };
    cluster.until("the hook waits", WITHIN, waits).await.unwrap();
    let mut said = cluster.log("controller");
    assert!(said.contains("hook delivery failed; retrying"), "{said}");
    cluster.kill("controller").unwrap();
    cluster.restart("controller").await.unwrap();
    toggled(&cluster, 1).await;

    // It is back, takes one, and says nothing: the controller dies in mid-delivery.
    let holding = Serving::on(address, |_, _| None).await;
    until("one is under way", || !holding.told().is_empty()).await;
    said += &cluster.log("controller");
    cluster.kill("controller").unwrap();
    let held = holding.gone().await;
    let receiver = Serving::on(address, well).await;
    cluster.restart("controller").await.unwrap();
    toggled(&cluster, 1).await;
    let all = wanted(&cluster).await;
    until("the last is told", || receiver.seqs().last() >= all.last()).await;
    assert_eq!(receiver.told()[0].id(), held[0].id(), "told again, as the same");

    told.extend(held);
    told.extend(receiver.told());
    let mut once = std::collections::HashSet::new();
    told.retain(|of| once.insert(of.id()));
    let seqs: Vec<u64> = told.iter().map(Told::seq).collect();
    assert_eq!(seqs[..all.len()], all, "each once by its id, in order, none skipped");
    told.iter().for_each(|of| assert_eq!(of.json()["webhook"]["name"], "ops"));

    // The command line, and that nothing of what is secret comes out.
    let run = |arguments: &[&str]| {
        let output = Command::new(program).args(arguments).env("RINGFENCE_SERVER", cluster.server()).output().unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap())
    };
    let (code, list, _) = run(&["hooks"]);
    assert!(code == Some(0) && list.contains(&format!("http://{address} ")) && list.contains("host.*"), "{list}");
    let (code, tested, _) = run(&["hooks", "test", "ops"]);
    assert!(code == Some(0) && tested.contains("was accepted") && tested.contains("204"), "{tested}");
    receiver.gone().await;
    let (code, _, failed) = run(&["hooks", "test", "ops", "--json"]);
    assert!(code == Some(1) && failed.contains("did not deliver: Connection refused"), "{failed}");
    assert_eq!(run(&["hooks", "test", "nobody"]).0, Some(1));

    let http = ringfence_drivers::tls::plain_client().unwrap().build().unwrap();
    said += &format!("{list}{tested}{failed}{}", cluster.log("controller"));
    for path in ["/v1/hooks", "/v1/inspect", "/metrics"] {
        said += &http.get(format!("{}{path}", cluster.server())).send().await.unwrap().text().await.unwrap();
    }
    for metric in ["delivered_total", "given_up_total", "retries_total", "lag_records", "waiting_seconds"] {
        assert!(said.contains(&format!("ringfence_hook_{metric}{{hook=\"ops\"}}")), "{metric} is not measured");
    }
    for secret in [SECRET.trim_start_matches("whsec_"), "secret-secret", "PATH-THAT-IS-SECRET"] {
        assert!(!said.contains(secret), "{secret} came out");
    }
}
