//! `ringfence check`: validates a configuration file and prints a summary.

use std::path::Path;

use ringfence_drivers::tls::{Identity, Role, ServerFiles, day};
use ringfence_messages::{Result, vhost::OnTargetLoss};
use ringfence_server::{
    config::{ControllerConfig, HookTransport},
    doctor::probe,
};
use ringfence_service::config_file::report;

use crate::{
    config::{self, Config},
    output::{print, table},
};

pub(super) async fn run(path: &Path, is_live: bool) -> u8 {
    match config::load(path) {
        Err(problems) => {
            report(&problems);
            2
        }
        Ok(Config::Agent(agent)) => {
            let settings = agent.settings;
            let tls = settings.tls.as_ref().map(|tls| tls.check(&Role::Host(settings.host))).transpose();
            print(format!("{}: agent configuration OK", path.display()));
            print(format!("  host        {}", settings.host));
            print(format!("  listens on  {}", settings.listen));
            print(format!("  state dir   {}", settings.state_dir.display()));
            print(format!(
                "  token       {}",
                settings.token_file.map_or("none: every client that reaches the agent may send commands".into(), |f| f
                    .display()
                    .to_string())
            ));
            certified("TLS", tls)
        }
        Ok(Config::Controller(controller)) => {
            print(format!("{}: controller configuration OK", path.display()));
            explain(&controller);
            let agents = controller.agent_tls.as_ref().map(|tls| tls.check(&Role::Controller)).transpose();
            let api = controller.tls.as_ref().map(ServerFiles::check).transpose();
            let wrong = certified("to agents", agents).max(certified("API", api));
            if wrong > 0 {
                return wrong;
            }
            if is_live { live(&controller).await } else { 0 }
        }
    }
}

/// Prints owner and expiry of a certificate, or the error. Returns the exit status.
fn certified(what: &str, found: Result<Option<Identity>>) -> u8 {
    match found {
        Ok(None) => 0,
        Ok(Some(identity)) => {
            print(format!("  {what:<11} TLS, certificate {}, expires {}", identity.whose(), day(identity.not_after)));
            0
        }
        Err(error) => {
            eprintln!("{}", crate::output::error(&error));
            2
        }
    }
}

/// Runs and prints the probes of the doctor. Returns the exit status: 0 if all pass, else 1.
async fn live(config: &ControllerConfig) -> u8 {
    let findings = probe(config).await;
    let wrong = findings.iter().filter(|(_, found)| found.is_err()).count();
    print("\nlive");
    for (what, found) in &findings {
        match found {
            Ok(result) => print(format!("  ok    {what}: {result}")),
            Err(error) => print(format!("  FAIL  {what}: {}", error.details)),
        }
    }
    match wrong {
        0 => {
            print(format!("{} checks passed", findings.len()));
            0
        }
        wrong => {
            print(format!("{} checks, {wrong} failed", findings.len()));
            1
        }
    }
}

fn explain(config: &ControllerConfig) {
    let ping = config.settings.ping;
    let tries = ping.max_failure.saturating_sub(1);
    let noticed = ping.interval + ping.timeout * ping.max_failure + ping.sleep_after_failure * tries;
    let inventory = &config.inventory;
    print(format!("  API on      {}", config.listen));
    print(format!("  state dir   {}", config.state_dir.display()));
    print(format!(
        "  pings       every {:?}, {} attempts of {:?} with {:?} between: a dead host is detected within {:?}",
        ping.interval, ping.max_failure, ping.timeout, ping.sleep_after_failure, noticed
    ));
    for storage in inventory.storages.iter().filter(|storage| storage.on_target_loss == OnTargetLoss::Continue) {
        print(format!(
            "  WARNING     storage {}: on_target_loss = \"continue\": after the loss of its target, a guest with more \
             than one request in flight may read data that was never written",
            storage.name
        ));
    }
    if let Some(telemetry) = &config.telemetry {
        print(format!("  traces to   {} as {}", telemetry.endpoint(), telemetry.service_name));
    }
    print(format!("  hugepages   {} of 2 MiB on each host with a vhost target\n", config.settings.hugepages));
    let mut hosts = table(&["HOST", "ADDRESS", "AGENT"]);
    for host in &inventory.hosts {
        let agent = config.agents.get(&host.id).map_or("-", |access| access.url.as_str());
        hosts.add_row([host.name.as_str(), host.management_ip.as_str(), agent]);
    }
    print(hosts);
    let mut storages = table(&["STORAGE", "KIND", "PROTOCOLS"]);
    for storage in &inventory.storages {
        let protocols: Vec<&str> = storage.protocols.iter().map(|p| p.as_str()).collect();
        storages.add_row([storage.name.clone(), format!("{:?}", storage.kind).to_lowercase(), protocols.join(",")]);
    }
    if !inventory.storages.is_empty() {
        print(format!("\n{storages}"));
    }
    let mut hooks = table(&["HOOK", "RECEIVER", "TOPICS"]);
    for hook in &config.hooks {
        let receiver = match &hook.transport {
            HookTransport::Webhook(access) if access.url.is_exposed() => {
                format!("{} (signed, not encrypted)", access.url.origin())
            }
            HookTransport::Webhook(access) => access.url.origin(),
            HookTransport::Command(argv) => argv.join(" "),
        };
        hooks.add_row([hook.name.clone(), receiver, hook.topics.texts().collect::<Vec<_>>().join(" ")]);
    }
    let mut vms = table(&["VM", "HA", "MEMORY", "VOLUMES"]);
    for vm in &inventory.vms {
        let volumes: Vec<String> = vm.volumes.iter().map(|v| v.install_path.to_string()).collect();
        vms.add_row([vm.name.clone(), format!("{:?}", vm.ha), format!("{} MiB", vm.memory_mib), volumes.join(" ")]);
    }
    if !inventory.vms.is_empty() {
        print(format!("\n{vms}"));
    }
    if !config.hooks.is_empty() {
        print(format!("\n{hooks}"));
    }
}
