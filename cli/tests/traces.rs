//! Traces by OTLP: what belongs together arrives as one trace; whatever a collector does, the controller does its work.
#![allow(missing_docs)]

use std::{
    net::{SocketAddr, TcpListener as Listener},
    path::Path,
    sync::Arc,
    time::Duration,
};

use axum::{Router, body::Bytes, extract::State, http::HeaderMap, routing::post};
use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest,
    common::v1::{KeyValue, any_value::Value as Any},
    trace::v1::{Span, span::SpanKind, status::StatusCode},
};
use parking_lot::Mutex;
use prost::Message;
use ringfence_cli::{
    demo::cluster::{Cluster, Plan, STORAGE, VM},
    pki::{Authority, CertNames, issue},
};
use ringfence_drivers::tls::{ServerFiles, api_server};
use ringfence_messages::{
    Event,
    agent::AgentCommand as _,
    recovery::{ProtocolRedeploy, RedeployPhase},
    vhost::{DeployVhostCmd, PrepareVhostTargetEnvCmd},
    vm::StartVmCmd,
};
use ringfence_service::listen;
use serde_json::json;
use tokio::net::TcpListener;

const HOST: &str = "host-a";
const WITHIN: Duration = Duration::from_secs(60);
const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const PARENT: &str = "b7ad6b7169203331";

fn http() -> reqwest::Client {
    ringfence_drivers::tls::plain_client().unwrap().build().unwrap()
}

fn program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_ringfence"))
}

/// A collector that keeps what it is told.
#[derive(Clone, Default)]
struct Collector(Arc<Mutex<Vec<Span>>>);

impl Collector {
    async fn start() -> (Collector, SocketAddr) {
        let collector = Collector::default();
        let app = Router::new().route("/v1/traces", post(Collector::take)).with_state(collector.clone());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move { axum::serve(listener, app).await });
        (collector, address)
    }

    async fn take(State(collector): State<Collector>, headers: HeaderMap, body: Bytes) {
        assert_eq!(headers["content-type"], "application/x-protobuf");
        for of in ExportTraceServiceRequest::decode(body).unwrap().resource_spans {
            let resource = of.resource.unwrap().attributes;
            assert_eq!(text(&resource, "service.name"), "ringfence-here");
            collector.0.lock().extend(of.scope_spans.into_iter().flat_map(|of| of.spans));
        }
    }

    fn named(&self, name: &str) -> Vec<Span> {
        self.0.lock().iter().filter(|span| span.name == name).cloned().collect()
    }

    /// The only span of this name in a trace.
    fn one(&self, trace: &[u8], name: &str) -> Option<Span> {
        let mut all: Vec<Span> = self.named(name).into_iter().filter(|span| span.trace_id == trace).collect();
        assert!(all.len() <= 1, "{name} is there {} times", all.len());
        all.pop()
    }
}

fn text(attributes: &[KeyValue], key: &str) -> String {
    let value = attributes.iter().find(|of| of.key == key).and_then(|of| of.value.clone()?.value);
    match value {
        Some(Any::StringValue(text)) => text,
        Some(Any::IntValue(number)) => number.to_string(),
        other => format!("{other:?}"),
    }
}

fn failed(span: &Span) -> bool {
    span.status.as_ref().is_some_and(|status| status.code() == StatusCode::Error)
}

fn to(collector: SocketAddr) -> Plan {
    let tables = format!("[telemetry]\notlp_endpoint = \"http://{collector}\"\nservice_name = \"ringfence-here\"\n");
    Plan { tables, ..Plan::default() }
}

async fn connected(plan: Plan) -> Cluster {
    let cluster = Cluster::start(program(), plan).await.unwrap();
    cluster.connected(WITHIN).await.unwrap();
    cluster
}

/// Has a redeploy happen after an outage.
async fn redeployed(cluster: &Cluster) {
    let before = cluster.events(0).await.unwrap().last().unwrap().seq;
    cluster.target(HOST).unwrap().kill(WITHIN).await.unwrap();
    let done = |record: &ringfence_actors::ports::Record| {
        let of = || serde_json::from_value::<ProtocolRedeploy>(record.payload.clone()).unwrap();
        record.topic == ProtocolRedeploy::TOPIC && of().phase == RedeployPhase::Done
    };
    cluster.event("the target is redeployed", before, WITHIN, done).await.unwrap();
}

#[tokio::test]
async fn a_redeploy_is_one_trace_with_its_steps_and_their_calls() {
    let (collector, address) = Collector::start().await;
    let cluster = connected(to(address)).await;
    redeployed(&cluster).await;
    // The first ones were deployed when the controller found them missing.
    let redeploys = || collector.named("redeploy");
    let ours = async || Ok(redeploys().into_iter().find(|of| text(&of.attributes, "host.name") == HOST));
    let redeploy = cluster.until("the redeploy arrives", WITHIN, ours).await.unwrap();
    assert!(redeploy.parent_span_id.is_empty(), "nothing is above it");
    for (key, value) in [
        ("ringfence.storage", STORAGE),
        ("ringfence.protocol", "Vhost"),
        ("ringfence.attempt", "1"),
        ("outcome", "done"),
    ] {
        assert_eq!(text(&redeploy.attributes, key), value, "{key}");
    }
    for (step, path) in
        [("prepare-vhost-target-env", PrepareVhostTargetEnvCmd::PATH), ("deploy-vhost-target", DeployVhostCmd::PATH)]
    {
        let step = collector.one(&redeploy.trace_id, step).unwrap();
        assert_eq!(step.parent_span_id, redeploy.span_id, "{}", step.name);
        let call = collector.one(&redeploy.trace_id, path).unwrap();
        assert_eq!(call.parent_span_id, step.span_id, "{path}");
        assert_eq!((call.kind(), text(&call.attributes, "outcome")), (SpanKind::Client, "ok".to_owned()));
        assert!(redeploy.start_time_unix_nano <= step.start_time_unix_nano);
        assert!(call.end_time_unix_nano <= step.end_time_unix_nano);
        assert!(step.end_time_unix_nano <= redeploy.end_time_unix_nano);
    }
    // What goes well all the time is not sent: not a ping, not a probe.
    let all = collector.0.lock().clone();
    let calls = all.iter().filter(|of| of.kind() == SpanKind::Client && of.parent_span_id.is_empty());
    assert!(calls.clone().all(failed), "{:?}", calls.map(|of| &of.name).collect::<Vec<_>>());
}

#[tokio::test]
async fn an_order_goes_on_in_the_trace_of_who_gave_it() {
    let (collector, address) = Collector::start().await;
    let cluster = connected(to(address)).await;
    let order = http().post(format!("{}/v1/vms/{VM}/actions", cluster.server()));
    let order =
        order.header("traceparent", format!("00-{TRACE}-{PARENT}-01")).json(&json!({ "start": { "host": HOST } }));
    assert_eq!(order.send().await.unwrap().status(), 200);
    let trace = hex::decode(TRACE).unwrap();
    let arrived = async || Ok(collector.one(&trace, "POST /v1/vms/{id}/actions"));
    let request = cluster.until("the order arrives", WITHIN, arrived).await.unwrap();
    assert_eq!((request.parent_span_id.clone(), request.kind()), (hex::decode(PARENT).unwrap(), SpanKind::Server));
    assert_eq!(text(&request.attributes, "http.route"), "/v1/vms/{id}/actions");
    assert_eq!(text(&request.attributes, "http.response.status_code"), "200");
    let start = collector.one(&trace, StartVmCmd::PATH).unwrap();
    assert_eq!(start.parent_span_id, request.span_id, "through three actors");
}

#[tokio::test]
async fn an_agent_is_told_whose_trace_a_call_belongs_to() {
    let (_collector, address) = Collector::start().await;
    let heard = Arc::new(Mutex::new(Vec::new()));
    let hear = {
        let heard = heard.clone();
        move |headers: HeaderMap| {
            let trace = headers.get("traceparent").map(|of| of.to_str().unwrap().to_owned());
            heard.lock().extend(trace);
            std::future::ready("no agent")
        }
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let agent = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, Router::new().fallback(hear)).await });
    let host = format!(
        "[[host]]\nname = {HOST:?}\ncluster = \"c1\"\nmanagement_ip = \"127.0.0.1\"\nagent = \"http://{agent}\"\n"
    );
    let plan = to(address);
    let plan = Plan { hosts: Vec::new(), tables: host + &plan.tables, ..plan };
    let cluster = Cluster::start(program(), plan).await.unwrap();
    let told = async || {
        // One that is under way already is somebody else's.
        let ping = http().post(format!("{}/v1/hosts/{HOST}/actions", cluster.server())).json(&json!({ "ping": {} }));
        ping.header("traceparent", format!("00-{TRACE}-{PARENT}-01")).send().await.unwrap();
        Ok(heard.lock().iter().find(|trace| trace.starts_with(&format!("00-{TRACE}-"))).cloned())
    };
    let told = cluster.until("a ping belongs to the trace", WITHIN, told).await.unwrap();
    assert!(!told.contains(PARENT), "the call itself is the agent's parent: {told}");
}

/// A collector behind TLS, whose certificate is of this authority.
async fn secure(collector: Collector, ca: &Path) -> SocketAddr {
    let out = ca.with_file_name("collector");
    let names = CertNames::controller().at(vec!["127.0.0.1".parse().unwrap()], Vec::new());
    issue(&Authority::open(ca).unwrap(), &names, 30, &out).unwrap();
    let files = ServerFiles { cert: out.join("cert.pem"), key: out.join("key.pem"), client_ca: None };
    let app = Router::new().route("/v1/traces", post(Collector::take)).with_state(collector);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(listen::serve_over(listener, Some(api_server(files).unwrap()), app, std::future::pending()));
    address
}

fn to_secure(collector: SocketAddr, ca: &Path) -> Plan {
    let ca_file = ca.join("ca.pem");
    let Plan { tables, .. } = to(collector);
    let tables = tables.replace("http://", "https://") + &format!("ca_file = {ca_file:?}\n");
    Plan { tables, ..Plan::default() }
}

#[tokio::test]
async fn a_collector_by_tls_is_believed_by_the_authority_of_the_file_and_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let (ca, other) = (dir.path().join("ca"), dir.path().join("other-ca"));
    for ca in [&ca, &other] {
        Authority::init(ca, 3650).unwrap();
    }
    let collector = Collector::default();
    let address = secure(collector.clone(), &ca).await;
    let cluster = connected(to_secure(address, &ca)).await;
    redeployed(&cluster).await;
    let arrived = async || Ok(collector.named("redeploy").pop());
    cluster.until("the redeploy arrives", WITHIN, arrived).await.unwrap();
    drop(cluster);

    // Somebody else's certificate, for the right address.
    collector.0.lock().clear();
    let mut cluster = connected(to_secure(address, &other)).await;
    redeployed(&cluster).await;
    dropped(&cluster).await;
    assert_eq!(cluster.stop("controller").await.unwrap(), Some(0));
    assert!(collector.0.lock().is_empty(), "a stranger is told nothing");
    let log = cluster.log("controller");
    let complaint = log.lines().find(|line| line.contains("spans were dropped")).expect("it is told");
    assert!(
        complaint.contains(&address.to_string()) && complaint.contains("its certificate is not from an authority in"),
        "{complaint}"
    );
}

#[tokio::test]
async fn a_collector_that_never_answers_delays_nothing() {
    let hung = Listener::bind("127.0.0.1:0").unwrap();
    let mut cluster = connected(to(hung.local_addr().unwrap())).await;
    redeployed(&cluster).await;
    dropped(&cluster).await;
    assert_eq!(cluster.stop("controller").await.unwrap(), Some(0));
    let log = cluster.log("controller");
    assert!(log.contains("the last traces were not sent in time timeout=1s"), "{log}");
}

#[tokio::test]
async fn what_no_collector_takes_is_counted_and_complained_of_once() {
    let nobody = Listener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut cluster = connected(to(nobody)).await;
    redeployed(&cluster).await;
    let first = dropped(&cluster).await;
    let more = async || Ok(Some(count(&cluster).await).filter(|count| *count > first));
    cluster.until("more are dropped", WITHIN, more).await.unwrap();
    assert_eq!(cluster.stop("controller").await.unwrap(), Some(0));
    assert_eq!(cluster.log("controller").matches("spans were dropped").count(), 1);
}

/// Spans that a collector did not take, once there are any.
async fn dropped(cluster: &Cluster) -> u64 {
    let look = async || Ok(Some(count(cluster).await).filter(|count| *count > 0));
    cluster.until("spans are dropped", WITHIN, look).await.unwrap()
}

async fn count(cluster: &Cluster) -> u64 {
    let metrics = http().get(format!("{}/metrics", cluster.server())).send().await.unwrap().text().await.unwrap();
    let of = metrics.lines().find_map(|l| l.strip_prefix("ringfence_otlp_spans_dropped_total{why=\"collector\"} "));
    of.map_or(0, |count| count.parse().unwrap())
}
