//! The rules of the HTTP API: parts of lists, tags, repeated orders, other sites, and its own description.
#![allow(missing_docs)]

mod fake;

use fake::{Fake, serve, serve_for};
use reqwest::{Client, Response};
use ringfence_server::{
    auth::{Role, Token},
    http::auth::Access,
};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

fn client() -> Client {
    ringfence_drivers::tls::plain_client().unwrap().build().unwrap()
}

async fn body(response: Response) -> Value {
    serde_json::from_str(&response.text().await.unwrap()).unwrap()
}

#[tokio::test]
async fn a_list_comes_in_parts_with_its_total() {
    let url = format!("http://{}/v1/hosts", serve(Fake::new(5)).await);
    for (query, names) in [
        ("", vec!["host-0", "host-1", "host-2", "host-3", "host-4"]),
        ("?offset=1&limit=2", vec!["host-1", "host-2"]),
        ("?offset=4&limit=99", vec!["host-4"]),
        ("?offset=99", vec![]),
    ] {
        let list = body(client().get(format!("{url}{query}")).send().await.unwrap()).await;
        let found: Vec<&str> =
            list["items"].as_array().unwrap().iter().map(|of| of["name"].as_str().unwrap()).collect();
        assert_eq!((found, &list["total"]), (names, &json!(5)), "{query}");
    }
    for query in ["?limit=0", "?limit=x", "?offset=-1", "?page=2"] {
        let refused = client().get(format!("{url}{query}")).send().await.unwrap();
        assert_eq!(refused.status(), 400, "{query}");
        assert_eq!(body(refused).await["error"]["code"], "SYS.1007");
    }
}

#[tokio::test]
async fn what_did_not_change_is_not_sent_and_what_changed_is_not_ordered_about() {
    let fake = Fake::new(3);
    let url = format!("http://{}/v1/vms/vm1", serve(fake.clone()).await);
    let first = client().get(&url).send().await.unwrap();
    let tag = first.headers()["etag"].to_str().unwrap().to_owned();
    let order = async |tag: &str| {
        let of = client().post(format!("{url}/actions")).header("if-match", tag).body(r#"{"stop":{}}"#);
        of.send().await.unwrap().status().as_u16()
    };
    let again = async || client().get(&url).header("if-none-match", &tag).send().await.unwrap();
    assert_eq!(again().await.status(), 304);
    assert_eq!((order(&tag).await, order("*").await), (200, 200));
    fake.vms.lock()[1].incarnation += 1;
    assert_eq!(again().await.status(), 200, "it changed");
    assert_eq!(order(&tag).await, 412);
    assert_eq!(fake.orders.lock().len(), 2);
}

#[tokio::test]
async fn an_order_that_is_sent_again_under_its_key_is_carried_out_once() {
    let fake = Fake::new(3);
    let url = format!("http://{}/v1/vms/vm1/actions", serve(fake.clone()).await);
    let send = async |key: &str, order: &'static str| {
        let answer = client().post(&url).header("idempotency-key", key).body(order).send().await.unwrap();
        (answer.status().as_u16(), answer.text().await.unwrap())
    };
    let first = send("a", r#"{"start":{}}"#).await;
    assert_eq!(first.0, 200);
    assert_eq!(send("a", r#"{"start":{}}"#).await, first);
    assert_eq!(send("a", r#"{"stop":{}}"#).await.0, 409, "the key names another order");
    assert_eq!(send("b", r#"{"start":{}}"#).await.0, 200);
    assert_eq!(send(&"k".repeat(101), r#"{"start":{}}"#).await.0, 400);
    assert_eq!(*fake.orders.lock(), ["start", "start"]);
    // A refusal is kept too.
    let refused = send("c", r#"{"reboot":{}}"#).await;
    assert_eq!(refused.0, 400);
    assert_eq!(send("c", r#"{"reboot":{}}"#).await, refused);
}

#[tokio::test]
async fn other_sites_are_refused_and_every_answer_says_what_a_browser_may_do_with_it() {
    let fake = Fake::new(3);
    let address = serve(fake.clone()).await;
    let url = format!("http://{address}/v1/vms/vm1/actions");
    for (header, value) in
        [("origin", "http://evil.example"), ("sec-fetch-site", "cross-site"), ("host", "rebound.example")]
    {
        let refused = client().post(&url).header(header, value).body(r#"{"stop":{}}"#).send().await.unwrap();
        assert_eq!(refused.status(), 403, "{header}: {value}");
    }
    assert!(fake.orders.lock().is_empty());
    for path in ["/", "/v1/vms", "/nothing", "/ui/vms", "/ui/assets/page.js"] {
        let answer = client().get(format!("http://{address}{path}")).send().await.unwrap();
        let header = |name: &str| answer.headers()[name].to_str().unwrap().to_owned();
        assert_eq!((header("x-content-type-options"), header("x-frame-options")), ("nosniff".into(), "DENY".into()));
        assert!(header("content-security-policy").starts_with("default-src 'self'"), "{path}");
    }
}

/// Three tokens, one of each role, named by it.
fn three_tokens() -> Access {
    let token = |(name, role): (&str, Role)| Token {
        name: name.to_owned(),
        role,
        sha256: Sha256::digest(name.as_bytes()).into(),
    };
    Access::by([("viewer", Role::Viewer), ("operator", Role::Operator), ("admin", Role::Admin)].map(token).to_vec())
}

#[tokio::test]
async fn every_role_may_what_it_may_and_nobody_without_a_token_sees_anything() {
    let fake = Fake::new(3);
    let address = serve_for(fake.clone(), three_tokens()).await;
    let send = async |method: &str, path: &str, body: &'static str, token: &str| {
        let request = client().request(method.parse().unwrap(), format!("http://{address}{path}")).body(body);
        let request = if token.is_empty() { request } else { request.bearer_auth(token) };
        request.send().await.unwrap().status().as_u16()
    };
    let (vm, host) = ("/v1/vms/vm1/actions", "/v1/hosts/host-1/actions");
    let confirm = r#"{"confirmFenced":{"by":"me"}}"#;
    // Status without a token, with a wrong one, and for each role.
    for (method, path, body, wanted) in [
        ("GET", "/v1/vms", "", [401, 401, 200, 200, 200]),
        ("GET", "/metrics", "", [401, 401, 200, 200, 200]),
        ("GET", "/v1/nothing", "", [401, 401, 404, 404, 404]),
        ("POST", vm, r#"{"stop":{}}"#, [401, 401, 403, 200, 200]),
        ("POST", host, r#"{"maintain":{}}"#, [401, 401, 403, 200, 200]),
        ("POST", host, r#"{"drain":{}}"#, [401, 401, 403, 200, 200]),
        ("POST", host, r#"{"drain":{"dryRun":true}}"#, [401, 401, 403, 200, 200]),
        ("POST", host, confirm, [401, 401, 403, 403, 200]),
        ("GET", "/v1/hooks", "", [401, 401, 200, 200, 200]),
        ("POST", "/v1/hooks/pager/actions", r#"{"test":{}}"#, [401, 401, 403, 200, 200]),
        ("POST", "/ui/vms/vm1/stop", "", [401, 401, 403, 200, 200]),
        ("POST", "/ui/hosts/host-1/drain", "", [401, 401, 403, 200, 200]),
        ("POST", "/ui/hosts/host-1/confirm-fenced", "by=me", [401, 401, 403, 403, 200]),
        ("POST", "/ui/hooks/pager/test", "", [401, 401, 403, 200, 200]),
        ("GET", "/ui/inventory/reload", "", [401, 401, 403, 200, 200]),
        ("POST", "/ui/inventory/reload", "shown=", [401, 401, 403, 403, 200]),
        ("GET", "/healthz", "", [200; 5]),
        ("GET", "/openapi.json", "", [200; 5]),
        ("GET", "/ui/assets/page.css", "", [200; 5]),
    ] {
        let tokens = ["", "wrong", "viewer", "operator", "admin"];
        for (token, wanted) in tokens.into_iter().zip(wanted) {
            assert_eq!(send(method, path, body, token).await, wanted, "{method} {path} with {token:?}");
        }
    }
    let orders = fake.orders.lock().clone();
    let admins = orders.iter().filter(|order| order.contains("confirm-fenced")).count();
    assert_eq!((orders.len(), admins), (21, 2), "{orders:?}");

    // A browser is sent to where it can sign in, and gets a cookie that no script can read.
    let browser =
        ringfence_drivers::tls::plain_client().unwrap().redirect(reqwest::redirect::Policy::none()).build().unwrap();
    let sent = browser.get(format!("http://{address}/")).header("accept", "text/html").send().await.unwrap();
    assert_eq!((sent.status().as_u16(), sent.headers()["location"].to_str().unwrap()), (303, "/ui/sign-in"));
    let sign_in = async |token: &'static str| {
        browser.post(format!("http://{address}/ui/sign-in")).body(format!("token={token}")).send().await.unwrap()
    };
    assert_eq!(sign_in("wrong").await.status(), 401);
    let cookie = sign_in("viewer").await.headers()["set-cookie"].to_str().unwrap().to_owned();
    assert!(cookie.contains("HttpOnly") && cookie.contains("SameSite=Strict"), "{cookie}");
    assert!(!cookie.contains("viewer"), "the token is in the cookie: {cookie}");
    let carried = cookie.split(';').next().unwrap();
    let page = async || {
        let page = browser.get(format!("http://{address}/")).header("accept", "text/html").header("cookie", carried);
        page.send().await.unwrap()
    };
    let shown = page().await;
    assert_eq!((shown.status().as_u16(), shown.headers()["cache-control"].to_str().unwrap()), (200, "no-store"));
    // Who took the cookie has nothing of it once its owner signed out.
    let out = browser.post(format!("http://{address}/ui/sign-out")).header("cookie", carried).send().await.unwrap();
    assert_eq!(out.headers()["location"], "/ui/sign-in");
    assert_eq!(page().await.status(), 303);
}

#[test]
fn a_token_is_made_with_the_table_that_knows_it() {
    let made = |arguments: &[&str]| {
        std::process::Command::new(env!("CARGO_BIN_EXE_ringfence")).arg("token").args(arguments).output().unwrap()
    };
    let output = made(&["ops", "--role", "operator"]);
    let token = String::from_utf8(output.stdout).unwrap().trim().to_owned();
    let table = String::from_utf8(output.stderr).unwrap();
    let hash: String = Sha256::digest(token.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(table, format!("[[api_token]]\nname = \"ops\"\nrole = \"operator\"\nsha256 = \"{hash}\"\n"));
    assert_eq!(token.len(), 64);
    assert_ne!(made(&["ops"]).stdout, made(&["ops"]).stdout);
    assert_eq!(made(&["o\"ps"]).status.code(), Some(1));
}

/// The description is made of what is enforced, and this tries whether that is so.
#[tokio::test]
async fn every_operation_takes_the_role_that_its_description_says() {
    let address = serve_for(Fake::new(3), three_tokens()).await;
    let document = serde_json::to_value(ringfence_server::http::openapi()).unwrap();
    let roles = ["viewer", "operator", "admin"];
    let mut open = Vec::new();
    for (path, methods) in document["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            let url =
                path.replace("/vms/{id}", "/vms/vm1").replace("/hooks/{id}", "/hooks/pager").replace("{id}", "host-1");
            let send = async |token: &str| {
                let method = method.to_uppercase().parse().unwrap();
                let request = client().request(method, format!("http://{address}{url}")).bearer_auth(token);
                // Of a stream the head is enough.
                request.send().await.unwrap().status().as_u16()
            };
            let Some(needed) = operation["x-required-role"].as_str() else {
                assert_eq!((send("nobody's").await, &operation["security"]), (200, &json!([])), "{path}");
                open.push(path.as_str());
                continue;
            };
            assert_eq!(operation["security"], json!([{ "bearer": [] }, { "cookie": [] }]), "{path}");
            assert_eq!(send("nobody's").await, 401, "{path}");
            let more = operation["description"].as_str().unwrap().contains("admin for all but `dryRun=true`");
            let needed = if more { "admin" } else { needed };
            let needed = roles.iter().position(|role| *role == needed).unwrap();
            for (n, role) in roles.iter().enumerate() {
                // Without a body the order cannot be understood: that is told to whom it is not refused.
                let refused = send(role).await == 403;
                let early = path.ends_with("/changes") && n == 1;
                assert_eq!(refused, n < needed && !early, "{method} {path} as {role}");
            }
        }
    }
    assert_eq!(open, ["/healthz"]);
}

/// A change here is a change for everybody who scripts against the API: it belongs into the CHANGELOG.
#[tokio::test]
async fn the_description_is_complete_and_keeps_its_form() {
    let address = serve(Fake::new(3)).await;
    let document = body(client().get(format!("http://{address}/openapi.json")).send().await.unwrap()).await;
    insta::assert_json_snapshot!(document);
    for (path, methods) in document["paths"].as_object().unwrap() {
        if path.ends_with("/stream") {
            continue; // it has no end
        }
        let path = path.replace("/vms/{id}", "/vms/vm1").replace("{id}", "host-1");
        let get = client().get(format!("http://{address}{path}")).send().await.unwrap();
        assert_eq!(get.status(), if methods["get"].is_object() { 200 } else { 405 }, "{path}");
    }
}

#[tokio::test]
async fn the_inventory_is_shown_with_its_tag_and_changed_by_an_admin_only_if_it_is_still_that() {
    let token = |name: &str, role| Token { name: name.to_owned(), role, sha256: Sha256::digest(name).into() };
    let access = Access::by(vec![token("ops", Role::Operator), token("root", Role::Admin)]);
    let fake = Fake::new(1);
    let url = format!("http://{}/v1/inventory", serve_for(fake.clone(), access).await);
    let get = async || client().get(&url).bearer_auth("ops").send().await.unwrap();
    let first = get().await;
    let tag = first.headers()["etag"].to_str().unwrap().to_owned();
    assert_eq!(body(first).await["hosts"][0]["managed"], false);
    let change = async |who: &str, query: &str, tag: &str, order: Value| {
        let order =
            client().post(format!("{url}/changes{query}")).bearer_auth(who).header("if-match", tag).json(&order);
        let answer = order.send().await.unwrap();
        (answer.status().as_u16(), body(answer).await)
    };
    let order = || json!({ "put": { "clusters": [{ "name": "c2" }] } });
    assert_eq!(change("ops", "?dryRun=true", "*", order()).await.0, 200, "who may order may look what would be");
    assert_eq!(change("ops", "", "*", order()).await.0, 403);
    assert_eq!(
        change("root", "", &tag, order()).await,
        (200, json!({ "applied": true, "changes": ["+ cluster c2"], "needRestart": [] }))
    );
    assert_eq!(change("root", "", &tag, order()).await.0, 412, "it changed since");
    assert_eq!(body(get().await).await["clusters"][1], json!({ "managed": true, "definition": { "name": "c2" } }));
    assert_eq!(*fake.orders.lock(), ["inventory by ops, dry run true", "inventory by root, dry run false"]);
    let (status, said) =
        change("root", "", "*", json!({ "put": { "hosts": [{ "name": "h", "cluster": "c9" }] } })).await;
    assert_eq!((status, &said["error"]["code"]), (400, &json!("SYS.1007")), "{said}");
    for wrong in
        [json!({ "put": { "disks": [] } }), json!({ "put": { "hosts": {} } }), json!({ "clusters": {} }), json!([])]
    {
        assert_eq!(change("root", "", "*", wrong.clone()).await.0, 400, "{wrong}");
    }
}

#[tokio::test]
async fn streams_are_bounded_and_one_that_ends_makes_room() {
    let address = serve(Fake::new(2)).await;
    let open = async || client().get(format!("http://{address}/v1/events/stream?after=0")).send().await.unwrap();
    let mut streams = Vec::new();
    let refused = loop {
        let stream = open().await;
        match stream.status().as_u16() {
            200 => streams.push(stream),
            _ => break stream,
        }
        assert!(streams.len() <= 1000, "streams without end");
    };
    assert_eq!((refused.status().as_u16(), streams.len()), (503, 64));
    assert!(refused.text().await.unwrap().contains("event streams are in use"));
    streams.clear();
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
    while open().await.status() != 200 {
        assert!(std::time::Instant::now() < deadline, "no place is free again");
    }
}
