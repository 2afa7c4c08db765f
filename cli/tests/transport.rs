//! The API over real sockets: by TLS, with certificates of users, and with limits on what one address may ask.
#![allow(missing_docs)]

mod fake;

use std::{
    net::SocketAddr,
    num::NonZeroU32,
    path::{Path, PathBuf},
    process::Output,
};

use fake::{Fake, serve};
use ringfence_cli::pki::{Authority, CertNames, issue};
use ringfence_drivers::tls::{ServerFiles, api_server, plain_client};
use ringfence_server::{
    auth::{Role, Token},
    http::{auth::Access, limit::limited},
    serve::router,
};
use ringfence_service::listen::{self, MAX_HEADER_BYTES, MAX_HEADERS};
use serde_json::Value;
use sha2::{Digest, Sha256};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    process::Command,
};

fn issued(ca: &Path, names: CertNames, out: &str) -> PathBuf {
    let (authority, out) = (Authority::open(ca).unwrap(), ca.with_file_name(out));
    let names = names.at(vec!["127.0.0.1".parse().unwrap()], Vec::new());
    issue(&authority, &names, 30, &out).unwrap();
    out
}

async fn serve_by(files: ServerFiles) -> SocketAddr {
    let listener = listen::bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let address = listener.local_addr().unwrap();
    let app = router(Fake::new(2), Access::default());
    tokio::spawn(listen::serve_over(listener, Some(api_server(files).unwrap()), app, std::future::pending()));
    address
}

/// `ringfence hosts`, as a user has it.
async fn hosts(server: &str, files: &[(&str, &Path)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringfence"));
    command.args(["hosts", "--server", server]);
    for (option, file) in files {
        command.arg(option).arg(file);
    }
    for name in ["RINGFENCE_CA_FILE", "RINGFENCE_CERT_FILE", "RINGFENCE_KEY_FILE", "RINGFENCE_TOKEN_FILE"] {
        command.env_remove(name);
    }
    command.output().await.unwrap()
}

fn refused(what: &str, output: &Output, says: &str) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{what}: {said}");
    assert!(said.contains(says), "{what}: {said}, not {says}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_line_asks_by_tls_and_believes_the_named_authority_alone() {
    let dir = tempfile::tempdir().unwrap();
    let (ca, other) = (dir.path().join("ca"), dir.path().join("other-ca"));
    Authority::init(&ca, 3650).unwrap();
    Authority::init(&other, 3650).unwrap();
    let own = issued(&ca, CertNames::controller(), "controller");
    let files = ServerFiles { cert: own.join("cert.pem"), key: own.join("key.pem"), client_ca: None };
    let address = serve_by(files.clone()).await;
    let (url, ca_file) = (format!("https://{address}"), ca.join("ca.pem"));
    let fine = hosts(&url, &[("--ca-file", &ca_file)]).await;
    assert!(fine.status.success() && String::from_utf8_lossy(&fine.stdout).contains("host-1"), "{fine:?}");
    refused("nobody to believe", &hosts(&url, &[]).await, "--ca-file or RINGFENCE_CA_FILE");
    let foreign = hosts(&url, &[("--ca-file", &other.join("ca.pem"))]).await;
    refused("a foreign authority", &foreign, &format!("not from an authority in {}", other.join("ca.pem").display()));
    let named = hosts(&format!("https://localhost:{}", address.port()), &[("--ca-file", &ca_file)]).await;
    refused("another name", &named, "not for this name or address");
    refused("plain HTTP", &hosts(&format!("http://{address}"), &[]).await, "this port requires TLS; use https://");

    // And where users show certificates too.
    let user = issued(&ca, CertNames::client("ops"), "ops");
    let host = issued(&ca, CertNames::host("host-a", ringfence_messages::HostId::from_name("host-a")), "host-a");
    let stranger = issued(&other, CertNames::client("ops"), "stranger");
    let asks = ServerFiles { client_ca: Some(ca_file.clone()), ..files };
    let url = format!("https://{}", serve_by(asks).await);
    refused("no certificate", &hosts(&url, &[("--ca-file", &ca_file)]).await, "it asks for a certificate");
    let shown = async |own: &Path| {
        let (cert, key) = (own.join("cert.pem"), own.join("key.pem"));
        hosts(&url, &[("--ca-file", &ca_file), ("--cert-file", &cert), ("--key-file", &key)]).await
    };
    assert!(shown(&user).await.status.success());
    refused("a stranger", &shown(&stranger).await, "its authority is not in the `ca` file");
    refused("a host", &shown(&host).await, "not of the role that is accepted there");
}

#[tokio::test]
async fn who_asks_too_often_is_told_when_to_ask_again_and_watching_goes_on() {
    let listener = listen::bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let app = limited(router(Fake::new(2), Access::default()), NonZeroU32::MIN, Access::default());
    tokio::spawn(listen::serve(listener, app, std::future::pending()));
    let http = plain_client().unwrap().build().unwrap();
    let mut answers = Vec::new();
    for _ in 0..20 {
        answers.push(http.get(format!("{url}/v1/hosts")).send().await.unwrap());
    }
    assert!(answers.iter().take(5).all(|answer| answer.status() == 200), "a burst is fine");
    let refused = answers.into_iter().find(|answer| answer.status() == 429).expect("20 at once are too many");
    let wait: u64 = refused.headers()["retry-after"].to_str().unwrap().parse().unwrap();
    assert!((1..=2).contains(&wait), "{wait}");
    assert_eq!(refused.headers()["x-content-type-options"], "nosniff");
    let problem: Value = serde_json::from_str(&refused.text().await.unwrap()).unwrap();
    assert_eq!(problem["error"]["code"], "SYS.1010");
    assert!(problem["error"]["details"].as_str().unwrap().contains("requests_per_second"), "{problem}");
    for path in ["/healthz", "/metrics"] {
        assert_eq!(http.get(format!("{url}{path}")).send().await.unwrap().status(), 200, "{path}");
    }
}

#[tokio::test]
async fn strangers_do_not_use_up_the_measure_of_who_shows_a_token() {
    let listener = listen::bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let url = format!("http://{}/v1/hosts", listener.local_addr().unwrap());
    let token = Token { name: "ops".to_owned(), role: Role::Viewer, sha256: Sha256::digest("known").into() };
    let access = Access::by(vec![token]);
    let app = limited(router(Fake::new(2), access.clone()), NonZeroU32::MIN, access);
    tokio::spawn(listen::serve(listener, app, std::future::pending()));
    let http = plain_client().unwrap().build().unwrap();
    let ask = async |token: &str| http.get(&url).bearer_auth(token).send().await.unwrap().status().as_u16();
    let mut strangers = Vec::new();
    for _ in 0..20 {
        strangers.push(ask("unknown").await);
    }
    assert!(strangers.starts_with(&[401]) && strangers.ends_with(&[429]), "{strangers:?}");
    assert_eq!(ask("known").await, 200);
}

#[tokio::test]
async fn headers_are_bounded_in_number_and_bytes() {
    let address = serve(Fake::new(1)).await;
    let many = |n: usize| (0..n).map(|n| format!("x-{n}: y\r\n")).collect::<String>();
    for (what, headers, status) in [
        ("as many as may be", many(MAX_HEADERS - 2), "200"),
        ("too many", many(MAX_HEADERS + 1), "431"),
        ("too long", format!("x: {}\r\n", "y".repeat(2 * MAX_HEADER_BYTES)), "431"),
    ] {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = format!("GET /healthz HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n{headers}\r\n");
        let _ = stream.write_all(request.as_bytes()).await;
        let mut said = vec![0; 12];
        stream.read_exact(&mut said).await.unwrap();
        assert_eq!(String::from_utf8_lossy(&said), format!("HTTP/1.1 {status}"), "{what}");
    }
}
