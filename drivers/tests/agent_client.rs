//! What a peer may answer: everything. The client takes the protocol's answers and names the rest.
#![allow(missing_docs)]

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use ringfence_actors::ports::{Call, HostAgentPort};
use ringfence_drivers::agent_client::AgentClient;
use ringfence_messages::{Code, HostId, agent::MAX_BODY_BYTES, ha::ScanHostCmd, words::MAX_WORDS};
use secrecy::SecretString;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    sync::oneshot,
};

const TOKEN: &str = "a-token-that-nobody-may-see";

fn host() -> HostId {
    HostId::from_name("host-a")
}

/// A server that reads one request, answers these bytes and keeps the connection for so long.
async fn serving(answer: Vec<u8>, keep: Duration) -> (AgentClient, oneshot::Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let (seen, request) = oneshot::channel();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut bytes = vec![0; 65536];
        let len = stream.read(&mut bytes).await.unwrap();
        let _ = seen.send(String::from_utf8_lossy(&bytes[..len]).into_owned());
        let _ = stream.write_all(&answer).await;
        tokio::time::sleep(keep).await;
    });
    let token = Some(SecretString::from(TOKEN.to_owned()));
    (AgentClient::new(HashMap::from([(host(), url)]), token).unwrap(), request)
}

fn http(status: &str, body: &str) -> Vec<u8> {
    format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

fn call(ms: u64) -> Call {
    Call::within(Duration::from_millis(ms))
}

#[tokio::test]
async fn request_has_task_deadline_and_token() {
    let body = format!(r#"{{"success":true,"hostUuid":"{}","version":"1","bootId":"b"}}"#, host());
    let (client, request) = serving(http("200 OK", &body), Duration::ZERO).await;
    let call = call(5000);
    let reply = client.ping(host(), None, call).await.unwrap();
    assert_eq!((reply.host_uuid, reply.boot_id.as_str()), (host(), "b"));
    let request = request.await.unwrap();
    for part in [
        "POST /host/ping HTTP/1.1".to_owned(),
        format!("taskuuid: {}", call.task.simple()),
        "deadline-ms: 5000".to_owned(),
        format!("authorization: Bearer {TOKEN}"),
        format!(r#"{{"hostUuid":"{}","head":null}}"#, host()),
    ] {
        assert!(request.contains(&part), "{part:?} is missing in {request}");
    }
}

#[tokio::test]
async fn agent_texts_are_bounded_clean_and_without_the_token() {
    let odd = format!("\u{1b}[2K\u{1b}]0;t\u{7}\r\nFORGED {TOKEN} {}", "x".repeat(70_000));
    let error = serde_json::json!({ "code": odd, "description": odd, "details": odd, "opaque": { odd.clone(): odd } });
    let error = serde_json::json!({ "code": "C", "description": "", "details": odd, "cause": error });
    let body = serde_json::json!({ "success": false, "error": error }).to_string();
    let (client, _) = serving(http("200 OK", &body), Duration::ZERO).await;
    let error = client.ping(host(), None, call(5000)).await.unwrap_err();
    let told = serde_json::to_string(&error).unwrap();
    assert!(error.details.contains("FORGED") && error.details.ends_with("bytes)"), "{}", error.details);
    assert!(told.len() < 8192 && !told.contains(TOKEN) && !told.contains("\\u00") && !told.contains("\\r"), "{told}");

    // And of a sibling, whose reason goes into the audit of a fence.
    let scan = serde_json::json!({ "success": true, "ssh": true, "agent": false, "reason": odd });
    let (client, _) = serving(http("200 OK", &scan.to_string()), Duration::ZERO).await;
    let cmd = ScanHostCmd { host_uuid: host(), host_ip: "127.0.0.1".to_owned(), ssh_port: 22, agent_port: 7070 };
    let reason = client.scan_host(host(), cmd, call(5000)).await.unwrap().reason;
    assert!(reason.len() <= MAX_WORDS && reason.contains("FORGED") && !reason.contains(char::is_control), "{reason:?}");
}

#[tokio::test]
async fn malformed_reply_is_an_error_with_a_sample() {
    let ping = format!(r#""hostUuid":"{}","version":"1","bootId":"b""#, host());
    let nested = "[".repeat(100_000);
    for (what, answer, code, says) in [
        (
            "an error of the agent's",
            http("200 OK", r#"{"success":false,"error":{"code":"SYS.1006","description":"d","details":"no room"}}"#),
            Code::OPERATION,
            "no room",
        ),
        (
            "HTML",
            http("502 Bad Gateway", "<html>nginx</html>"),
            Code::HTTP,
            "502 Bad Gateway with no reply of an agent",
        ),
        ("nothing", http("200 OK", ""), Code::HTTP, "no reply of an agent"),
        ("a number", http("200 OK", "7"), Code::HTTP, "no reply of an agent"),
        ("deep nesting", http("200 OK", &nested), Code::HTTP, "no reply of an agent"),
        ("another shape", http("200 OK", r#"{"success":true,"hostUuid":7}"#), Code::HTTP, "a reply of another shape"),
        (
            "a uuid that is none",
            http("200 OK", r#"{"success":true,"hostUuid":"x","version":"1","bootId":"b"}"#),
            Code::HTTP,
            "another shape",
        ),
        (
            "success and failure",
            http(
                "200 OK",
                &format!(r#"{{"success":true,"error":{{"code":"C","description":"","details":""}},{ping}}}"#),
            ),
            Code::HTTP,
            "success and failure at once",
        ),
        (
            "success with status 500",
            http("500 Oops", &format!(r#"{{"success":true,{ping}}}"#)),
            Code::HTTP,
            "success and failure at once",
        ),
        (
            "a failure without an error",
            http("200 OK", r#"{"success":false}"#),
            Code::HTTP,
            "a failure without an error",
        ),
        (
            "a redirect",
            b"HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n".to_vec(),
            Code::HTTP,
            "302",
        ),
        (
            "a body cut short",
            format!("HTTP/1.1 200 OK\r\ncontent-length: 900\r\n\r\n{{\"success\":true,{ping}}}").into_bytes(),
            Code::HOST_DISCONNECTED,
            "cannot reach",
        ),
        ("no HTTP", b"SSH-2.0-OpenSSH_9.2\r\n".to_vec(), Code::HOST_DISCONNECTED, "cannot reach"),
        ("a hang-up", Vec::new(), Code::HOST_DISCONNECTED, "cannot reach"),
        ("too much", http("200 OK", &"x".repeat(MAX_BODY_BYTES + 1)), Code::HTTP, "more than 1048576 bytes"),
    ] {
        let (client, _) = serving(answer, Duration::ZERO).await;
        let error = client.ping(host(), None, call(5000)).await.unwrap_err();
        assert!(error.is(&code) && error.details.contains(says), "{what}: {error}");
        assert!(error.details.len() < 600, "{what}: an error is no dump: {} bytes", error.details.len());
        assert!(!error.to_string().contains(TOKEN), "{what}: the token leaked: {error}");
    }
}

#[tokio::test]
async fn hung_peer_costs_only_the_timeout() {
    let endless = b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{".to_vec();
    for answer in [Vec::new(), endless] {
        let (client, _) = serving(answer, Duration::from_secs(60)).await;
        let began = Instant::now();
        let error = client.ping(host(), None, call(300)).await.unwrap_err();
        assert!(error.is(&Code::TIMEOUT), "{error}");
        assert!(began.elapsed() < Duration::from_secs(5), "it took {:?}", began.elapsed());
    }
}

#[tokio::test]
async fn nobody_there_and_nobody_known_are_told_apart() {
    let port = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let client = AgentClient::new(HashMap::from([(host(), format!("http://{port}"))]), None).unwrap();
    let error = client.ping(host(), None, call(5000)).await.unwrap_err();
    assert!(error.is(&Code::HOST_DISCONNECTED) && error.details.contains("refused"), "{error}");
    let error = client.ping(HostId::from_name("stranger"), None, call(5000)).await.unwrap_err();
    assert!(error.is(&Code::NOT_FOUND), "{error}");
}

/// K1: two machines may have one address.
#[tokio::test]
async fn an_answer_of_another_host_is_none() {
    let body = format!(r#"{{"success":true,"hostUuid":"{}","version":"1","bootId":"b"}}"#, host());
    let from = |of: HostId| {
        let head = format!("HTTP/1.1 200 OK\r\nhost-uuid: {of}\r\ncontent-length: {}\r\n\r\n", body.len());
        (head + &body).into_bytes()
    };
    let (client, request) = serving(from(host()), Duration::ZERO).await;
    assert!(client.ping(host(), None, call(5000)).await.is_ok());
    assert!(request.await.unwrap().contains(&format!("host-uuid: {}", host())), "the command names its host");
    let other = HostId::from_name("host-b");
    let (client, _request) = serving(from(other), Duration::ZERO).await;
    let error = client.ping(host(), None, call(5000)).await.unwrap_err();
    assert!(error.code == Code::HTTP && error.details.contains(&other.to_string()), "{error}");
}
