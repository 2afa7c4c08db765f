//! Do slow clients of the API delay pings? The ping time that the controller itself measures, side by side: with
//! nobody, and with a thousand clients of which half send their headers byte by byte and half read the stream of events
//! as slowly. Run by `make slow-clients`.
#![allow(missing_docs, clippy::print_stdout)]

use std::time::Duration;

use ringfence_cli::demo::cluster::{Cluster, Plan};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinSet,
    time::{Instant, sleep},
};

const CLIENTS: usize = 1000;
const ROUNDS: usize = 3;
const ROUND: Duration = Duration::from_secs(15);

/// One that never ends what it does. The controller closes it in time; then it comes again.
async fn slow(address: String, reads: bool) {
    loop {
        let Ok(mut stream) = TcpStream::connect(&address).await else {
            sleep(Duration::from_millis(200)).await;
            continue;
        };
        if reads {
            let _ = stream.write_all(b"GET /v1/events/stream HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n").await;
            let mut byte = [0];
            while stream.read(&mut byte).await.is_ok_and(|read| read > 0) {
                sleep(Duration::from_millis(500)).await;
            }
        }
        for byte in b"GET /v1/hosts HTTP/1.1\r\nX-Slow: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa".chunks(1) {
            if stream.write_all(byte).await.is_err() {
                break;
            }
            sleep(Duration::from_millis(500)).await;
        }
    }
}

/// Sum and count of all pings so far.
async fn pings(metrics: &reqwest::Client, server: &str) -> (f64, f64) {
    let end = Instant::now() + Duration::from_secs(30);
    loop {
        // There are places for 24 more connections: who scrapes gets one, sooner or later.
        if let Ok(answer) = metrics.get(format!("{server}/metrics")).timeout(Duration::from_secs(5)).send().await {
            let text = answer.text().await.unwrap_or_default();
            let of = |name: &str| -> Option<f64> {
                text.lines().find_map(|line| line.strip_prefix(name)).and_then(|rest| rest.trim().parse().ok())
            };
            if let (Some(sum), Some(count)) = (of("ringfence_ping_seconds_sum"), of("ringfence_ping_seconds_count")) {
                return (sum, count);
            }
        }
        assert!(Instant::now() < end, "/metrics does not answer");
    }
}

#[tokio::main]
async fn main() {
    let ping = "interval = \"100ms\"\ntimeout = \"2s\"\nmax_failure = 3\nsleep_after_failure = \"200ms\"\n".to_owned();
    let program = std::path::Path::new(env!("CARGO_BIN_EXE_ringfence"));
    let cluster = Cluster::start(program, Plan { ping, ..Plan::default() }).await.unwrap();
    let server = cluster.server().to_owned();
    let address = server.trim_start_matches("http://").to_owned();
    let metrics = ringfence_drivers::tls::plain_client().unwrap().pool_max_idle_per_host(0).build().unwrap();
    println!("{:<24} {:>8} {:>16}", "", "pings", "mean ping");
    let mut means = [0.0; 2];
    for round in 0..ROUNDS * 2 {
        let crowded = round % 2 == 1;
        let mut clients = JoinSet::new();
        if crowded {
            (0..CLIENTS).for_each(|n| drop(clients.spawn(slow(address.clone(), n % 2 == 0))));
            sleep(Duration::from_secs(2)).await;
        }
        let (sum, count) = pings(&metrics, &server).await;
        sleep(ROUND).await;
        let (sum, count) = {
            let after = pings(&metrics, &server).await;
            (after.0 - sum, after.1 - count)
        };
        let who = if crowded { "1,000 slow clients" } else { "nobody" };
        println!("{who:<24} {count:>8} {:>13.3} ms", sum / count * 1e3);
        means[usize::from(crowded)] += sum / count / ROUNDS as f64;
        clients.shutdown().await;
        sleep(Duration::from_secs(1)).await;
    }
    println!("with 1,000 slow clients a ping takes {:.2} times as long", means[1] / means[0]);
}
