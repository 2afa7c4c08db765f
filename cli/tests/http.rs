//! The rules of the HTTP API: parts of lists, tags, repeated orders, other sites, and its own description.
#![allow(missing_docs)]

mod fake;

use fake::{Fake, serve};
use reqwest::{Client, Response};
use serde_json::{Value, json};

fn client() -> Client {
    Client::builder().no_proxy().build().unwrap()
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
