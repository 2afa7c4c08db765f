//! The web page in a real browser: every view, what is live, a thousand hosts, and what a screen reader would miss.
//!
//! Headless Chromium is driven by WebDriver; the controller behind the page is one of memory.
//! `RINGFENCE_SCREENSHOTS=DIR` keeps a picture of every view.
#![allow(missing_docs)]

mod fake;

use std::{
    io::{BufRead, BufReader},
    os::unix::process::CommandExt,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use fake::{Fake, serve, serve_for};
use fantoccini::{Client, ClientBuilder, Locator};
use ringfence_messages::{HostId, VmId, ha::VmHaStarted, vm::VmState};
use ringfence_server::{
    auth::{Role, Token},
    http::auth::Access,
};
use rustix::process::{Pid, Signal, kill_process_group};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// A browser. Chromium is in the group of its driver, and ends with it.
struct Browser {
    driver: Child,
    client: Client,
    _profile: tempfile::TempDir,
}

impl Drop for Browser {
    fn drop(&mut self) {
        if let Some(group) = Pid::from_raw(self.driver.id().cast_signed()) {
            let _ = kill_process_group(group, Signal::KILL);
        }
        let _ = self.driver.wait();
    }
}

impl Browser {
    /// None where there is no Chromium; on CI there is one.
    async fn start() -> Option<Browser> {
        let driver = Command::new("chromedriver")
            .arg("--port=0")
            .process_group(0)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn();
        let Ok(mut driver) = driver else {
            assert!(std::env::var_os("CI").is_none(), "skipped on CI: chromedriver is missing");
            eprintln!("skipped: chromedriver is missing; `scripts/setup.sh test` installs it");
            return None;
        };
        let lines = BufReader::new(driver.stdout.take().unwrap()).lines();
        let port = lines
            .map_while(std::result::Result::ok)
            .find_map(|line| line.strip_suffix('.')?.rsplit_once("on port ").map(|(_, port)| port.to_owned()))
            .expect("chromedriver says its port");
        let profile = tempfile::tempdir().unwrap();
        let data = format!("--user-data-dir={}", profile.path().display());
        let arguments = json!([
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--disable-dev-shm-usage",
            "--window-size=1280,900",
            data,
        ]);
        let capabilities = json!({ "goog:chromeOptions": { "binary": "/usr/bin/chromium", "args": arguments } });
        let Value::Object(capabilities) = capabilities else { unreachable!() };
        let mut builder = ClientBuilder::new(hyper_util::client::legacy::connect::HttpConnector::new());
        let client = builder.capabilities(capabilities).connect(&format!("http://127.0.0.1:{port}")).await.unwrap();
        Some(Browser { driver, client, _profile: profile })
    }

    async fn text(&self, css: &str) -> String {
        match self.client.find(Locator::Css(css)).await {
            Ok(element) => element.text().await.unwrap_or_default(),
            Err(_) => String::new(),
        }
    }

    /// Waits until an element says so; how long it took.
    async fn until(&self, css: &str, says: &str) -> Duration {
        let began = Instant::now();
        loop {
            let text = self.text(css).await;
            if text.contains(says) {
                return began.elapsed();
            }
            assert!(began.elapsed() < Duration::from_secs(20), "{css} never said {says:?}, but {text:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// What axe finds that is serious or critical, of all its rules or of these.
    async fn serious(&self, only: &str) -> Vec<String> {
        let axe = std::fs::read_to_string(axe()).unwrap();
        self.client.execute(&axe, Vec::new()).await.unwrap();
        let run = format!(
            "const done = arguments[arguments.length - 1];
             axe.run({only}).then(found => done(found.violations), error => done(String(error)));"
        );
        let found = self.client.execute_async(&run, Vec::new()).await.unwrap();
        let of = found.as_array().unwrap_or_else(|| panic!("axe: {found}")).iter();
        let serious = of.filter(|of| matches!(of["impact"].as_str(), Some("serious" | "critical")));
        serious.map(|of| format!("{}: {} at {}", of["id"], of["help"], of["nodes"][0]["html"])).collect()
    }

    async fn picture(&self, name: &str) {
        if let Some(dir) = std::env::var_os("RINGFENCE_SCREENSHOTS") {
            std::fs::write(PathBuf::from(dir).join(format!("{name}.png")), self.client.screenshot().await.unwrap())
                .unwrap();
        }
    }
}

/// `scripts/setup.sh test` puts it there.
fn axe() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../target/tools/axe.min.js"))
}

#[tokio::test]
async fn every_view_shows_what_is_and_nothing_serious_is_hidden_from_anybody() {
    let Some(browser) = Browser::start().await else { return };
    let fake = Fake::new(4);
    let address = serve(fake.clone()).await;
    fake.cluster_in_file("c2");
    for (name, path, says) in [
        ("overview", "/", "it may still write"),
        ("hosts", "/ui/hosts", "no answer within 2s"),
        ("host", "/ui/hosts/host-1", "host-1 is explained."),
        ("storages", "/ui/storages", "redeployed 3 times, next after 7 pings"),
        ("vms", "/ui/vms", "NeverStop"),
        ("vm", "/ui/vms/vm1", "failed-unreachable"),
        ("fence", "/ui/vms/vm2", "Start elsewhere"),
        ("events", "/ui/events", "failed-unreachable"),
        ("inventory", "/ui/inventory", "the config file"),
        ("inventory-change", "/ui/inventory/change?kind=host&name=host-0", "management_ip = \"10.0.0.1\""),
        ("inventory-reload", "/ui/inventory/reload", "+ cluster c2"),
        ("hooks", "/ui/hooks", "exit status: 75"),
        ("sign-in", "/ui/sign-in", "requires a token"),
        ("ha-start", "/ui/vms/vm1/ha-start", "quarantine host-1"),
        ("drain", "/ui/hosts/host-1/drain", "no host has room for vm1"),
        ("confirm-fenced", "/ui/hosts/host-1/confirm-fenced", "its disk is destroyed"),
        ("missing", "/ui/vms/nothing", "there is no VM"),
    ] {
        for (scheme, rules) in [("light", ""), ("dark", "{ runOnly: ['color-contrast'] }")] {
            browser.client.goto(&format!("http://{address}{path}")).await.unwrap();
            browser.until("main", says).await;
            let set = format!("document.documentElement.style.colorScheme = '{scheme}'");
            browser.client.execute(&set, Vec::new()).await.unwrap();
            browser.picture(&format!("{name}-{scheme}")).await;
            assert_eq!(browser.serious(rules).await, [""; 0], "{path} in {scheme}");
        }
        let outside = "return performance.getEntriesByType('resource').map(of => of.name)";
        let fetched = browser.client.execute(outside, Vec::new()).await.unwrap();
        for url in fetched.as_array().unwrap() {
            assert!(url.as_str().unwrap().starts_with(&format!("http://{address}/")), "fetched from elsewhere: {url}");
        }
    }
    // The ladder says what was tried, with the evidence, as text: nothing of it is taken for HTML.
    browser.client.goto(&format!("http://{address}/ui/vms/vm1")).await.unwrap();
    let ladder = browser.text(".ladder").await;
    for says in ["Kill over SSH by a sibling host", "host unreachable", "Storage fence of the host", "<b>bold</b>"] {
        assert!(ladder.contains(says), "{ladder}");
    }
}

#[tokio::test]
async fn what_happens_is_shown_within_a_second_and_the_focus_stays() {
    let Some(browser) = Browser::start().await else { return };
    let fake = Fake::new(4);
    let address = serve(fake.clone()).await;
    browser.client.goto(&format!("http://{address}/")).await.unwrap();
    browser.until("#live", "live").await;
    browser.client.execute("document.querySelector('.counts a').focus()", Vec::new()).await.unwrap();

    let mut slowest = Duration::ZERO;
    for n in 0..5 {
        fake.vms.lock()[1].state = VmState::Running;
        let event = VmHaStarted {
            vm_uuid: VmId::from_name("vm1"),
            vm: "vm1".to_owned(),
            from_host: None,
            host_uuid: HostId::from_name("host-0"),
            host: "host-0".to_owned(),
            reason: format!("brought back for the {n}th time"),
        };
        fake.happens(&event);
        slowest = slowest.max(browser.until("main", &event.reason).await);
        if n == 0 {
            browser.until(".counts", "4 of 4 desired").await;
        }
    }
    assert!(slowest < Duration::from_secs(1), "{slowest:?} from an event to the page");
    let focused = browser.client.execute("return document.activeElement.textContent", Vec::new()).await.unwrap();
    assert_eq!(focused, "Hosts connected", "the focus was lost when the page was renewed");
}

#[tokio::test]
async fn an_order_is_shown_before_it_is_done_and_another_sites_page_cannot_give_one() {
    let Some(browser) = Browser::start().await else { return };
    let fake = Fake::new(4);
    let address = serve(fake.clone()).await;
    let click = async |text: &str| {
        let xpath = format!("//a[contains(., '{text}')] | //button[contains(., '{text}')]");
        browser.client.find(Locator::XPath(&xpath)).await.unwrap().click().await.unwrap();
    };
    browser.client.goto(&format!("http://{address}/ui/vms/vm1")).await.unwrap();
    click("Fail over").await;
    browser.until("main", "start the VM on host-0").await;
    assert!(fake.orders.lock().is_empty(), "nothing is done before it is confirmed");
    click("Fail over vm1").await;
    browser.until("h1", "vm1").await;
    assert_eq!(*fake.orders.lock(), ["ha-start"]);

    browser.client.goto(&format!("http://{address}/ui/hosts/host-1/confirm-fenced")).await.unwrap();
    let by = browser.client.find(Locator::Css("input[name=by]")).await.unwrap();
    by.send_keys("Ada").await.unwrap();
    click("Confirm that this host is off: host-1").await;
    browser.until("h1", "host-1").await;
    assert_eq!(fake.orders.lock().last().unwrap(), "confirm-fenced by Ada");

    // The same server under another port is another site.
    let other = serve(fake.clone()).await;
    browser.client.goto(&format!("http://{other}/")).await.unwrap();
    let attack = format!(
        "const done = arguments[arguments.length - 1];
         fetch('http://{address}/ui/vms/vm1/stop', {{ method: 'POST', mode: 'no-cors' }}).then(() => done('sent'), () \
         => done('refused'))"
    );
    // Its policy keeps even our own page from asking elsewhere; a page of somebody else has no such policy.
    assert_eq!(browser.client.execute_async(&attack, Vec::new()).await.unwrap(), "refused");
    let status = ringfence_drivers::tls::plain_client().unwrap().build().unwrap();
    let sent = status.post(format!("http://{address}/ui/vms/vm1/stop")).header("origin", "http://evil.example");
    assert_eq!(sent.send().await.unwrap().status(), 403);
    assert_eq!(fake.orders.lock().len(), 2, "nobody else's order was carried out");
}

#[tokio::test]
async fn charts_say_as_a_table_what_they_draw() {
    let Some(browser) = Browser::start().await else { return };
    let address = serve(Fake::new(4)).await;
    let count = async |css: &str| browser.client.find_all(Locator::Css(css)).await.unwrap().len();
    browser.client.goto(&format!("http://{address}/ui/vms/vm2")).await.unwrap();
    let table = browser.text(".chart table").await;
    // One record follows the other after 740 ms.
    for says in ["Detection by sibling hosts", "Checks before the fence", "Storage fence", "Start elsewhere"] {
        assert!(table.lines().any(|line| line.starts_with(says) && line.ends_with("0.740 s")), "{says}: {table}");
    }
    assert_eq!((count(".chart rect.bar").await, count(".chart tbody tr").await), (5, 5));
    // It ended in no start: nothing is drawn of one.
    browser.client.goto(&format!("http://{address}/ui/vms/vm1")).await.unwrap();
    assert!(!browser.text(".chart table").await.contains("Start elsewhere"));
    browser.client.goto(&format!("http://{address}/ui/hosts/host-0")).await.unwrap();
    assert_eq!((count(".chart rect.bar").await, count(".chart .lost").await), (54, 6));
    assert!(browser.text(".chart table").await.contains("54 6"), "{}", browser.text(".chart").await);
    assert_eq!(count(".chart details tbody tr").await, 60);
}

#[tokio::test]
async fn the_inventory_is_changed_only_as_it_was_shown() {
    let Some(browser) = Browser::start().await else { return };
    let fake = Fake::new(4);
    let address = serve(fake.clone()).await;
    let click = async |text: &str| {
        let xpath = format!("//main//a[contains(., '{text}')] | //main//button[contains(., '{text}')]");
        browser.client.find(Locator::XPath(&xpath)).await.unwrap().click().await.unwrap();
    };
    let done = || fake.orders.lock().iter().filter(|order| order.contains("dry run false")).count();
    browser.client.goto(&format!("http://{address}/ui/inventory")).await.unwrap();
    click("Add or replace").await;
    let write = async |text: &str| {
        let area = browser.client.find(Locator::Css("textarea")).await.unwrap();
        area.clear().await.unwrap();
        area.send_keys(text).await.unwrap();
        click("Preview").await;
    };
    // What is wrong is told where it was written, and stays written.
    write("[[cluster]]\nname = 7").await;
    browser.until(".trouble", "name").await;
    assert!(browser.text("textarea").await.contains("name = 7"));
    write("[[host]]\nname = 'h9'\ncluster = 'c1'\nmanagement_ip = '10.0.0.9'\nagent = 'http://10.0.0.9:7070'").await;
    browser.until("main", "+ host h9").await;
    browser.picture("inventory-difference").await;
    assert_eq!(done(), 0, "it was shown only");
    click("Apply").await;
    browser.until("#hosts ~ table", "the API").await;
    assert_eq!(done(), 1);

    // The file changes between the look and the yes: it is shown again.
    browser.client.goto(&format!("http://{address}/ui/inventory/reload")).await.unwrap();
    browser.until("main", "No changes").await;
    fake.cluster_in_file("c2");
    click("Apply").await;
    browser.until(".trouble", "check it again").await;
    assert_eq!(done(), 1);
    click("Apply").await;
    browser.until("h1", "Inventory").await;
    assert_eq!(done(), 2);

    browser.client.goto(&format!("http://{address}/ui/inventory")).await.unwrap();
    click("Remove h9").await;
    browser.until("main", "- host h9").await;
    click("Apply").await;
    browser.until("h1", "Inventory").await;
    assert!(!browser.text("main").await.contains("h9"));

    browser.client.goto(&format!("http://{address}/ui/hooks")).await.unwrap();
    click("Test").await;
    browser.until("main", "exit status: 0").await;
    assert_eq!(fake.orders.lock().last().unwrap(), "test pager");
}

#[tokio::test]
async fn who_signed_in_is_shown_and_signs_out() {
    let Some(browser) = Browser::start().await else { return };
    let sha256 = Sha256::digest(b"secret").into();
    let token = Token { name: "Grace".to_owned(), role: Role::Viewer, sha256 };
    let address = serve_for(Fake::new(2), Access::by(vec![token])).await;
    browser.client.goto(&format!("http://{address}/ui/vms")).await.unwrap();
    let field = browser.client.find(Locator::Css("input[name=token]")).await.unwrap();
    field.send_keys("secret\n").await.unwrap();
    browser.until(".who", "Grace (viewer)").await;
    assert_eq!(browser.serious("").await, [""; 0]);
    browser.picture("signed-in").await;
    browser.client.find(Locator::Css(".who button")).await.unwrap().click().await.unwrap();
    browser.until("h1", "Sign in").await;
    browser.client.goto(&format!("http://{address}/ui/vms")).await.unwrap();
    browser.until("h1", "Sign in").await;
}

#[tokio::test]
async fn a_thousand_hosts_are_painted_within_two_seconds() {
    let Some(browser) = Browser::start().await else { return };
    let address = serve(Fake::new(1000)).await;
    for path in ["/", "/ui/hosts", "/ui/storages", "/ui/vms"] {
        browser.client.goto(&format!("http://{address}{path}")).await.unwrap();
        let painted = "const done = arguments[arguments.length - 1];
            new PerformanceObserver((list) => done(list.getEntriesByName('first-contentful-paint')[0].startTime))
                .observe({ type: 'paint', buffered: true });";
        let painted = browser.client.execute_async(painted, Vec::new()).await.unwrap().as_f64().unwrap();
        eprintln!("{path}: painted after {painted} ms");
        assert!(painted < 2000.0, "{path}: {painted} ms");
    }
}
