//! Commands that send one request each and print the answer as a table or as JSON.

use ringfence_actors::ports::{MAX_READ, Record};
use ringfence_drivers::journal::{GENESIS, follows};
use ringfence_messages::{
    Code, ErrorCode, Result,
    host::HostInventory,
    storage::{HostProtocolRef, StorageInventory},
    vm::VmInventory,
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

use super::ClientArgs;
use crate::{
    client::{Client, path_part},
    output::{event_line, harmless, print, state, table},
};

pub(super) fn client(args: &ClientArgs) -> Result<Client> {
    args.server.client()
}

pub(super) fn show<T: Serialize + DeserializeOwned>(
    args: &ClientArgs,
    answer: &T,
    as_table: impl FnOnce(&T) -> String,
) {
    if args.json {
        print(serde_json::to_string_pretty(answer).unwrap_or_default());
    } else {
        print(as_table(harmless(answer).as_ref().unwrap_or(answer)).trim_end());
    }
}

pub(super) fn word(value: &impl Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(Value::String(word)) => word,
        _ => "-".to_owned(),
    }
}

pub(super) fn or_dash(text: Option<&str>) -> &str {
    text.unwrap_or("-")
}

fn hosts_table(hosts: &Vec<HostInventory>) -> String {
    let mut table = table(&["HOST", "CLUSTER", "ADDRESS", "STATE", "STATUS", "REASON"]);
    for host in hosts {
        let (wanted, status) = (state(&word(&host.state)), state(&word(&host.status)));
        let reason = or_dash(host.reason.as_deref()).into();
        table.add_row(vec![
            (&host.name).into(),
            (&host.cluster).into(),
            (&host.management_ip).into(),
            wanted,
            status,
            reason,
        ]);
    }
    table.to_string()
}

fn storages_table(storages: &Vec<StorageInventory>) -> String {
    let mut table = table(&["STORAGE", "KIND", "CLUSTERS", "PROTOCOLS", "HOSTS CONNECTED"]);
    for storage in storages {
        let protocols: Vec<String> = storage.protocols.iter().map(ToString::to_string).collect();
        let connected = storage.hosts.iter().filter(|host| word(&host.status) == "Connected").count();
        let hosts =
            if storage.hosts.is_empty() { "-".to_owned() } else { format!("{connected}/{}", storage.hosts.len()) };
        table.add_row([
            storage.name.clone(),
            word(&storage.kind),
            storage.clusters.join(","),
            if protocols.is_empty() { "-".into() } else { protocols.join(",") },
            hosts,
        ]);
    }
    table.to_string()
}

fn vms_table(vms: &Vec<VmInventory>) -> String {
    let mut table = table(&["VM", "CLUSTER", "HA", "STATE", "HOST", "STARTS"]);
    for vm in vms {
        let host = or_dash(vm.host.as_deref()).into();
        table.add_row(vec![
            (&vm.name).into(),
            (&vm.cluster).into(),
            word(&vm.ha).into(),
            state(&word(&vm.state)),
            host,
            vm.incarnation.into(),
        ]);
    }
    table.to_string()
}

fn refs_table(refs: &Vec<HostProtocolRef>) -> String {
    let mut table = table(&["HOST", "STORAGE", "PROTOCOL", "STATUS", "REDEPLOYS", "PINGS TO SKIP", "REASON"]);
    for r in refs {
        let status = state(&r.status.map_or("not checked yet".to_owned(), |status| status.to_string()));
        let reason = or_dash(r.reason.as_deref()).into();
        table.add_row(vec![
            (&r.host).into(),
            (&r.storage).into(),
            r.protocol.as_str().into(),
            status,
            r.redeploys.into(),
            r.skip_pings.into(),
            reason,
        ]);
    }
    table.to_string()
}

pub(super) async fn hosts(args: &ClientArgs) -> Result<()> {
    let hosts = client(args)?.items("/v1/hosts").await?;
    show(args, &hosts, hosts_table);
    Ok(())
}

pub(super) async fn storages(args: &ClientArgs) -> Result<()> {
    let storages = client(args)?.items("/v1/storages").await?;
    show(args, &storages, storages_table);
    Ok(())
}

pub(super) async fn vms(args: &ClientArgs) -> Result<()> {
    let vms = client(args)?.items("/v1/vms").await?;
    show(args, &vms, vms_table);
    Ok(())
}

pub(super) async fn refs(args: &ClientArgs) -> Result<()> {
    let refs = client(args)?.items("/v1/host-protocol-refs").await?;
    show(args, &refs, refs_table);
    Ok(())
}

pub(super) async fn status(args: &ClientArgs) -> Result<()> {
    let client = client(args)?;
    let hosts: Vec<HostInventory> = client.items("/v1/hosts").await?;
    let storages: Vec<StorageInventory> = client.items("/v1/storages").await?;
    let vms: Vec<VmInventory> = client.items("/v1/vms").await?;
    // The reason why the controller cannot act is printed first.
    let trouble = client.get::<Value>("/healthz").await.err().map(|error| error.details);
    if args.json {
        let all = json!({ "trouble": trouble, "hosts": hosts, "storages": storages, "vms": vms });
        print(serde_json::to_string_pretty(&all).unwrap_or_default());
        return Ok(());
    }
    if let Some(trouble) = trouble {
        print(format!("NOT HEALTHY: {trouble}\n"));
    }
    print(hosts_table(&hosts));
    print("");
    print(storages_table(&storages));
    if !vms.is_empty() {
        print("");
        print(vms_table(&vms));
    }
    Ok(())
}

pub(super) async fn events(args: &ClientArgs, mut after: u64) -> Result<()> {
    let client = client(args)?;
    let mut all: Vec<Record> = Vec::new();
    loop {
        let page: Vec<Record> = client.items(&format!("/v1/events?after={after}&limit={MAX_READ}")).await?;
        let Some(last) = page.last() else { break };
        after = last.seq;
        match args.json {
            true => all.extend(page),
            false => page.iter().for_each(|record| print(event_line(record))),
        }
    }
    if args.json {
        print(serde_json::to_string_pretty(&all).unwrap_or_default());
    }
    Ok(())
}

pub(super) async fn inspect(args: &ClientArgs) -> Result<()> {
    let snapshot: Value = client(args)?.get("/v1/inspect").await?;
    show(args, &snapshot, |snapshot| {
        let mut table = table(&["ACTOR", "ID", "QUEUED", "HANDLED", "PANICKED", "RESTARTS", "STATE"]);
        for actor in snapshot["actors"].as_array().into_iter().flatten() {
            let queued: u64 =
                actor["lanes"].as_array().into_iter().flatten().filter_map(|lane| lane["depth"].as_u64()).sum();
            let text = |key: &str| actor[key].as_str().map_or(actor[key].to_string(), str::to_owned);
            let state = if actor["state"].is_null() { "-".to_owned() } else { actor["state"].to_string() };
            table.add_row([
                text("kind"),
                text("id"),
                queued.to_string(),
                text("handled"),
                text("failed"),
                text("restarts"),
                state,
            ]);
        }
        table.to_string()
    });
    Ok(())
}

pub(super) async fn explain(args: &ClientArgs, name: &str) -> Result<()> {
    let lines: Vec<String> = client(args)?.items(&format!("/v1/explain/{}", path_part(name))).await?;
    show(args, &lines, |lines| lines.join("\n"));
    Ok(())
}

/// Reads the whole journal and verifies its hash chain.
pub(super) async fn verify(args: &ClientArgs) -> Result<()> {
    let client = client(args)?;
    let (mut seq, mut hash) = (0, GENESIS.to_owned());
    loop {
        let page: Vec<Record> = client.items(&format!("/v1/events?after={seq}&limit={MAX_READ}")).await?;
        if page.is_empty() {
            break;
        }
        for record in page {
            if record.seq != seq + 1 || !follows(&hash, &record) {
                let details = format!(
                    "record {} does not follow record {seq}: one of them was changed, moved or removed",
                    record.seq
                );
                return Err(ErrorCode::new(Code::IO, details));
            }
            (seq, hash) = (record.seq, record.hash);
        }
    }
    show(args, &json!({ "records": seq, "hash": hash }), |_| {
        format!("{seq} records, hash chain verified, last hash {hash}")
    });
    Ok(())
}
