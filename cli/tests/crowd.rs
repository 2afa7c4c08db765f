//! Two thousand connections without a token, on the agent and on the API: who has one is answered in time all the same.
#![allow(missing_docs)]

mod common;
#[allow(dead_code, reason = "as much of it as is needed here")]
mod fake;

use std::{net::SocketAddr, os::unix::fs::PermissionsExt, time::Duration};

use fake::{Fake, serve_for};
use futures_util::future::join_all;
use ringfence_agent::config::AgentSettings;
use ringfence_messages::HostId;
use ringfence_server::{
    auth::{Role, Token},
    http::auth::Access,
};
use serde_json::json;
use sha2::{Digest, Sha256};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::oneshot,
    task::JoinSet,
    time::Instant,
};

const TOKEN: &str = "0123456789abcdef-secret";

/// Connections that say nothing.
const SILENT: usize = 1800;

/// Connections that ask without a token, again and again.
const ASKING: usize = 200;

/// How often each of them asks.
const ASKS_EVERY: Duration = Duration::from_millis(500);

/// How long a controller waits for a ping by default.
const IN_TIME: Duration = Duration::from_secs(2);

/// How often who has the token asks while the crowd is there.
const ROUNDS: usize = 30;

/// Comes again whenever it is sent away; tells each answer's status.
async fn ask(address: SocketAddr, path: &'static str, told: tokio::sync::mpsc::UnboundedSender<String>) {
    let request = format!("POST {path} HTTP/1.1\r\nhost: {address}\r\ncontent-length: 2\r\n\r\n{{}}");
    loop {
        let mut said = String::new();
        if let Ok(mut stream) = TcpStream::connect(address).await
            && stream.write_all(request.as_bytes()).await.is_ok()
            && stream.read_to_string(&mut said).await.is_ok()
        {
            let _ = told.send(said.lines().next().unwrap_or_default().to_owned());
        }
        tokio::time::sleep(ASKS_EVERY).await;
    }
}

/// Brings the crowd, and has `request` answered in time while it is there: on new connections and on one that is kept.
async fn in_a_crowd(
    address: SocketAddr,
    path: &'static str,
    request: impl Fn(&reqwest::Client) -> reqwest::RequestBuilder,
) {
    let kept = ringfence_drivers::tls::plain_client().unwrap().build().unwrap();
    let anew = ringfence_drivers::tls::plain_client().unwrap().pool_max_idle_per_host(0).build().unwrap();
    let (told, mut answers) = tokio::sync::mpsc::unbounded_channel();
    let mut crowd = JoinSet::new();
    for _ in 0..ASKING {
        crowd.spawn(ask(address, path, told.clone()));
    }
    let silent = join_all((0..SILENT).map(|_| TcpStream::connect(address))).await;
    assert!(silent.iter().filter(|stream| stream.is_ok()).count() > SILENT / 2, "the crowd came");
    for round in 0..ROUNDS {
        for client in [&kept, &anew] {
            let began = Instant::now();
            let answer = tokio::time::timeout(IN_TIME, request(client).send()).await;
            let answer = answer.unwrap_or_else(|_| panic!("round {round}: no answer within {IN_TIME:?}")).unwrap();
            assert_eq!(answer.status(), 200, "round {round} after {:?}", began.elapsed());
        }
    }
    // One that was refused is closed: `read_to_string` came to its end.
    // Some were sent away before they were answered: they say nothing.
    let answered = async {
        loop {
            match answers.recv().await.unwrap() {
                nothing if nothing.is_empty() => {}
                answer => break answer,
            }
        }
    };
    let answer = tokio::time::timeout(Duration::from_secs(10), answered).await.expect("some were answered");
    assert_eq!(answer, "HTTP/1.1 401 Unauthorized");
    crowd.shutdown().await;
    drop(silent);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crowd_without_a_token_does_not_take_an_agent_off_the_air() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("token");
    std::fs::write(&file, TOKEN).unwrap();
    std::fs::set_permissions(&file, PermissionsExt::from_mode(0o600)).unwrap();
    let settings =
        AgentSettings { token_file: Some(file), ..common::agent::settings("host-a", &dir.path().join("state")) };
    let (ready, address) = oneshot::channel();
    tokio::spawn(ringfence_agent::run(settings, |address| ready.send(address).unwrap(), std::future::pending()));
    let address = address.await.expect("it serves");
    let body = json!({ "hostUuid": HostId::from_name("host-a") });
    let ping =
        |client: &reqwest::Client| client.post(format!("http://{address}/host/ping")).bearer_auth(TOKEN).json(&body);
    in_a_crowd(address, "/host/ping", ping).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crowd_without_a_token_does_not_keep_operators_out_of_the_api() {
    let sha256 = Sha256::digest(TOKEN).into();
    let access = Access::by(vec![Token { name: "ops".to_owned(), role: Role::Operator, sha256 }]);
    let address = serve_for(Fake::new(2), access).await;
    let hosts = |client: &reqwest::Client| client.get(format!("http://{address}/v1/hosts")).bearer_auth(TOKEN);
    in_a_crowd(address, "/v1/vms/vm1/actions", hosts).await;
}
