//! The ZBS storage against a double of its MDS agent that holds the contract to the letter: paths, fields, nothing
//! more.
#![allow(missing_docs)]

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    Json, Router,
    extract::{Path, State},
};
use parking_lot::Mutex;
use ringfence::Bus;
use ringfence_actors::{
    assembly::Assembly,
    inventory::{Inventory, PingSettings, Settings},
    ports::{Call, MdsPort, Ports},
    testkit::{FakeWorld, cluster_of, storage_of},
};
use ringfence_drivers::zbs::{HostAccess, MAX_BAD_CYCLES, ZbsClient};
use ringfence_messages::{
    Code, HostId, Protocol, StorageId,
    recovery::{ProtocolRedeploy, RedeployPhase},
    storage::StorageKind,
};
use secrecy::SecretString;
use serde_json::{Value, json};

const PASSWORD: &str = "hunter2-of-the-host";

/// How an MDS agent behaves.
#[derive(Clone, Debug, Default)]
struct Behaviour {
    /// It takes requests and never answers.
    hangs: bool,
    /// It answers HTML with status 502, as a proxy would.
    proxy: bool,
    /// It answers success false.
    refuses: bool,
    /// It says what it was told: the whole request, and the password in two parts, in base64 and in a URL.
    babbles: bool,
    /// It answers the request itself.
    echoes: bool,
    /// The vhost target cannot be deployed.
    vhost_broken: bool,
}

#[derive(Default)]
struct Mds {
    behaviour: Mutex<Behaviour>,
    seen: Mutex<Vec<(String, Value)>>,
    violations: Mutex<Vec<String>>,
}

/// The fields of each path: name, kind, and whether it may be missing.
fn contract(path: &str) -> Option<&'static [(&'static str, &'static str)]> {
    Some(match path {
        "client/deploy" => {
            &[("clientIp", "text"), ("sshPort", "number"), ("sshUsername", "text"), ("sshPassword", "text")]
        }
        "host/updatedependency" | "check/host/connection" => &[("clientIp", "text")],
        "vhost/deploy" => {
            &[("hostIp", "text"), ("sshPort", "number"), ("sshUsername", "text"), ("sshPassword", "text")]
        }
        "vhost/bdev/create" => &[
            ("hostIp", "text"),
            ("sshPort", "number"),
            ("sshUsername", "text"),
            ("sshPassword", "text"),
            ("logicalPool", "text"),
            ("volume", "text"),
            ("bdevName", "text"),
        ],
        "vhost/bdev/delete" => &[
            ("hostIp", "text"),
            ("sshPort", "number"),
            ("sshUsername", "text"),
            ("sshPassword", "text"),
            ("bdevName", "text"),
        ],
        "facts" => &[],
        _ => return None,
    })
}

impl Mds {
    async fn serve() -> (Arc<Mds>, String) {
        let mds = Arc::new(Mds::default());
        let app =
            Router::new().route("/zbs/primarystorage/{*path}", axum::routing::post(answer)).with_state(mds.clone());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, app).await });
        (mds, url)
    }

    fn be(&self, change: impl FnOnce(&mut Behaviour)) {
        change(&mut self.behaviour.lock());
    }

    fn take_paths(&self) -> Vec<String> {
        self.seen.lock().drain(..).map(|(path, _)| path).collect()
    }

    fn check(&self, path: &str, body: &Value) {
        let wrong = |what: String| self.violations.lock().push(format!("{path}: {what}"));
        let Some(fields) = contract(path) else { return wrong("no such path".to_owned()) };
        let Some(body) = body.as_object() else { return wrong("not an object".to_owned()) };
        for (name, kind) in fields {
            let fits = match *kind {
                "text" => body.get(*name).is_some_and(|value| value.as_str().is_some_and(|text| !text.is_empty())),
                _ => body.get(*name).is_some_and(Value::is_u64),
            };
            if !fits {
                wrong(format!("{name} is not a {kind}: {:?}", body.get(*name)));
            }
        }
        for name in body.keys().filter(|name| !fields.iter().any(|(known, _)| known == name)) {
            wrong(format!("unknown field {name}"));
        }
    }
}

async fn answer(
    State(mds): State<Arc<Mds>>,
    Path(path): Path<String>,
    Json(body): Json<Value>,
) -> Result<Json<Value>, (axum::http::StatusCode, &'static str)> {
    mds.check(&path, &body);
    mds.seen.lock().push((path.clone(), body.clone()));
    let behaviour = mds.behaviour.lock().clone();
    if behaviour.hangs {
        std::future::pending::<()>().await;
    }
    if behaviour.proxy {
        return Err((axum::http::StatusCode::BAD_GATEWAY, "<html>bad gateway</html>"));
    }
    if behaviour.echoes {
        return Ok(Json(body));
    }
    if behaviour.babbles {
        let details = format!(
            "cannot log in with {body} by sshpass -p {} {} or Basic aHVudGVyMi1vZi10aGUtaG9zdA== at \
             ssh://zbs:hunter2%2Dof%2Dthe%2Dhost@h",
            &PASSWORD[..9],
            &PASSWORD[9..]
        );
        let details = format!("\u{1b}[31m{details}\r\n{}", "x".repeat(70_000));
        return Ok(Json(
            json!({ "success": false, "error": { "code": "ZBS.1", "description": PASSWORD, "details": details } }),
        ));
    }
    if behaviour.refuses || behaviour.vhost_broken && path == "vhost/deploy" {
        let error = json!({ "code": "ZBS.1", "description": "operation failed", "details": "zbsadm: exit 1" });
        return Ok(Json(json!({ "success": false, "error": error })));
    }
    Ok(Json(match path.as_str() {
        "check/host/connection" => json!({ "success": true, "connected": true }),
        "facts" => json!({ "success": true, "version": "1.6.1" }),
        "vhost/bdev/create" => {
            let name = body["bdevName"].as_str().unwrap_or_default();
            json!({ "success": true, "socketPath": format!("/var/zbsvhost/sockets/{name}") })
        }
        _ => json!({ "success": true }),
    }))
}

fn storage() -> StorageId {
    StorageId::from_name("zbs-1")
}

fn host() -> HostId {
    HostId::from_name("host-a")
}

fn client(urls: &[&str]) -> ZbsClient {
    let access = HostAccess {
        ip: "10.0.0.11".to_owned(),
        ssh_port: 2222,
        ssh_user: "zbs".to_owned(),
        ssh_password: Some(SecretString::from(PASSWORD.to_owned())),
    };
    let urls = urls.iter().map(|url| (*url).to_owned()).collect();
    ZbsClient::new(HashMap::from([(storage(), urls)]), HashMap::from([(host(), access)])).unwrap()
}

fn call(seconds: u64) -> Call {
    Call::within(Duration::from_secs(seconds))
}

#[tokio::test]
async fn every_call_keeps_the_contract() {
    let (mds, url) = Mds::serve().await;
    let zbs = client(&[&url]);
    zbs.deploy_client(storage(), host(), call(5)).await.unwrap();
    zbs.update_host_dependency(storage(), host(), call(5)).await.unwrap();
    zbs.deploy_vhost(storage(), host(), call(5)).await.unwrap();
    assert!(zbs.check_host_connection(storage(), host(), call(5)).await.unwrap().connected);
    let bdev = zbs.create_vhost_bdev(storage(), host(), "pool", "volume", "vm1-0", call(5)).await.unwrap();
    assert_eq!(bdev.socket_path, "/var/zbsvhost/sockets/vm1-0");
    zbs.delete_vhost_bdev(storage(), host(), "vm1-0", call(5)).await.unwrap();
    assert_eq!(mds.violations.lock()[..], [] as [String; 0]);
    let seen = mds.seen.lock();
    assert_eq!(seen.len(), 6);
    assert_eq!(
        seen[2].1,
        json!({ "hostIp": "10.0.0.11", "sshPort": 2222, "sshUsername": "zbs", "sshPassword": PASSWORD })
    );
}

/// Its words go into the journal, to the API and to webhooks.
#[tokio::test]
async fn the_password_is_taken_out_of_what_an_mds_says_and_its_words_are_bounded() {
    let (mds, url) = Mds::serve().await;
    mds.be(|b| b.babbles = true);
    let error = client(&[&url]).deploy_vhost(storage(), host(), call(5)).await.unwrap_err();
    let told = format!("{error:?}");
    for part in [PASSWORD, "hunter", "the-host", "aHVudGVy", "hunter2%2D", "\\u{1b}", "\\r"] {
        assert!(!told.contains(part), "{part:?} is in {told}");
    }
    assert!(error.details.contains("cannot log in with {") && error.details.contains("[secret]"), "{told}");
    assert!(told.len() < 4096, "{} bytes", told.len());
    // An answer that is none is repeated too, in part.
    mds.be(|b| *b = Behaviour { echoes: true, ..Behaviour::default() });
    let error = client(&[&url]).deploy_vhost(storage(), host(), call(5)).await.unwrap_err();
    assert!(error.details.contains("sshUsername") && !error.details.contains("hunter"), "{error}");
}

#[tokio::test]
async fn a_call_goes_to_the_next_mds_when_one_does_not_answer_in_time_or_in_kind() {
    let (first, url) = Mds::serve().await;
    let (second, other) = Mds::serve().await;
    for change in [(|b| b.proxy = true) as fn(&mut Behaviour), |b| b.hangs = true] {
        first.be(|b| *b = Behaviour::default());
        first.be(change);
        let zbs = client(&[&url, &other]);
        zbs.deploy_vhost(storage(), host(), call(4)).await.unwrap();
        assert_eq!((first.take_paths().len(), second.take_paths().len()), (1, 1));
    }
    // One that says no has answered: asking the other would do the work twice.
    first.be(|b| *b = Behaviour { refuses: true, ..Behaviour::default() });
    let error = client(&[&url, &other]).deploy_vhost(storage(), host(), call(4)).await.unwrap_err();
    assert!(error.details.contains("zbsadm: exit 1"), "{error}");
    assert_eq!((first.take_paths().len(), second.take_paths().len()), (1, 0));
}

#[tokio::test]
async fn after_three_bad_cycles_an_mds_must_prove_itself_first() {
    let (first, url) = Mds::serve().await;
    let (second, other) = Mds::serve().await;
    let zbs = client(&[&url, &other]);
    first.be(|b| b.proxy = true);
    for _ in 0..MAX_BAD_CYCLES {
        zbs.deploy_vhost(storage(), host(), call(5)).await.unwrap();
    }
    assert_eq!(first.take_paths().len(), MAX_BAD_CYCLES as usize);
    // No longer trusted: the other comes first.
    zbs.deploy_vhost(storage(), host(), call(5)).await.unwrap();
    assert!(first.take_paths().is_empty());
    // The other fails too: the first is asked for a sign of life before it is given work.
    second.be(|b| b.proxy = true);
    zbs.deploy_vhost(storage(), host(), call(5)).await.unwrap_err();
    assert_eq!(first.take_paths(), ["facts"], "no work for one that does not answer");
    first.be(|b| b.proxy = false);
    zbs.deploy_vhost(storage(), host(), call(5)).await.unwrap();
    assert_eq!(first.take_paths(), ["facts", "vhost/deploy"]);
}

#[tokio::test]
async fn no_mds_at_all_is_an_error_within_the_callers_time() {
    let (mds, url) = Mds::serve().await;
    mds.be(|b| b.hangs = true);
    let began = Instant::now();
    let error = client(&[&url, &url]).check_host_connection(storage(), host(), call(1)).await.unwrap_err();
    assert!(
        error.is(&Code::TIMEOUT) && began.elapsed() < Duration::from_secs(5),
        "{error} after {:?}",
        began.elapsed()
    );
    assert!(!format!("{error:?}").contains(PASSWORD));
}

/// From the ping to the MDS and back: both protocols, the whole deploy flow, and an outage that backs off.
#[test]
fn zbs_storage_is_redeployed_through_mds() {
    actix::System::new().block_on(async {
        let (mds, url) = Mds::serve().await;
        let world = FakeWorld::new([host()]);
        let ports = Ports { mds: Arc::new(client(&[&url])), ..world.ports() };
        let storage = storage_of("zbs-1", StorageKind::Zbs, &[Protocol::Cbd, Protocol::Vhost]);
        let inventory = Inventory { storages: vec![storage], ..cluster_of(["host-a"]) };
        let ping = PingSettings { interval: Duration::from_millis(50), ..PingSettings::default() };
        let bus = Bus::new();
        let settings = Settings { ping, ..Settings::default() };
        Assembly::start(bus.clone(), inventory, settings, ports).await.unwrap();
        let done = || {
            let redeploys = world.journal.events::<ProtocolRedeploy>();
            redeploys.into_iter().filter(|redeploy| redeploy.phase != RedeployPhase::Intent).collect::<Vec<_>>()
        };
        let deadline = Instant::now() + Duration::from_secs(30);
        while done().len() < 3 {
            assert!(Instant::now() < deadline, "redeploys: {:?}", done());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        // The MDS does its part; that the container runs is the host agent's to say, and it says no.
        let steps: Vec<_> = done()[0].steps.iter().map(|step| (step.name.clone(), step.error.is_none())).collect();
        let names =
            ["deploy-client", "update-host-client-dependency", "prepare-vhost-target-env", "deploy-vhost-target"];
        assert_eq!(steps, names.map(|name| (name.to_owned(), true)));
        assert_eq!(done().iter().map(|redeploy| redeploy.skipped_pings).collect::<Vec<_>>()[..3], [0, 2, 4]);
        assert!(done().iter().all(|redeploy| redeploy.protocol == Protocol::Vhost), "CBD was well all the time");
        assert_eq!(mds.violations.lock()[..], [] as [String; 0]);
        let secret = world.journal.records().iter().any(|record| record.payload.to_string().contains(PASSWORD));
        assert!(!secret, "the password is in the journal");
        bus.stop_all();
    });
}
