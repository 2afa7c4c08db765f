//! Checks a file and says what was understood.

use std::path::Path;

use ringfence_drivers::tls::{Identity, Role, ServerFiles, day};
use ringfence_messages::{Result, vhost::OnTargetLoss};

use super::live;
use crate::{
    config::{self, Config, ControllerConfig, HookTransport, report},
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
            print(format!("{}: an agent's file, fine", path.display()));
            print(format!("  host        {}", settings.host));
            print(format!("  listens on  {}", settings.listen));
            print(format!("  state in    {}", settings.state_dir.display()));
            print(format!(
                "  token       {}",
                settings
                    .token_file
                    .map_or("none: whoever reaches it may command it".into(), |f| f.display().to_string())
            ));
            certified("TLS", tls)
        }
        Ok(Config::Controller(controller)) => {
            print(format!("{}: a controller's file, fine", path.display()));
            explain(&controller);
            let agents = controller.agent_tls.as_ref().map(|tls| tls.check(&Role::Controller)).transpose();
            let api = controller.tls.as_ref().map(ServerFiles::check).transpose();
            let wrong = certified("to agents", agents).max(certified("API", api));
            if wrong > 0 {
                return wrong;
            }
            if is_live { live::run(&controller).await } else { 0 }
        }
    }
}

/// Says of a certificate whose it is and until when, or what is wrong; the exit code.
fn certified(what: &str, found: Result<Option<Identity>>) -> u8 {
    match found {
        Ok(None) => 0,
        Ok(Some(identity)) => {
            print(format!(
                "  {what:<11} TLS, the certificate is {}, until {}",
                identity.whose(),
                day(identity.not_after)
            ));
            0
        }
        Err(error) => {
            eprintln!("{}", crate::output::error(&error));
            2
        }
    }
}

fn explain(config: &ControllerConfig) {
    let ping = config.settings.ping;
    let tries = ping.max_failure.saturating_sub(1);
    let noticed = ping.interval + ping.timeout * ping.max_failure + ping.sleep_after_failure * tries;
    let inventory = &config.inventory;
    print(format!("  API on      {}", config.listen));
    print(format!("  state in    {}", config.state_dir.display()));
    print(format!(
        "  pings       every {:?}, {} tries of {:?} with {:?} between: a dead host is noticed after at most {:?}",
        ping.interval, ping.max_failure, ping.timeout, ping.sleep_after_failure, noticed
    ));
    for storage in inventory.storages.iter().filter(|storage| storage.on_target_loss == OnTargetLoss::Continue) {
        print(format!(
            "  WARNING     storage {}: on_target_loss = \"continue\": a guest with more than one request in flight may \
             read what was never written, once its target was lost",
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
    let mut hooks = table(&["HOOK", "TELLS", "OF"]);
    for hook in &config.hooks {
        let tells = match &hook.transport {
            HookTransport::Webhook(access) if access.url.is_exposed() => {
                format!("{} (signed, readable on its way)", access.url.origin())
            }
            HookTransport::Webhook(access) => access.url.origin(),
            HookTransport::Command(argv) => argv.join(" "),
        };
        hooks.add_row([hook.name.clone(), tells, hook.topics.texts().collect::<Vec<_>>().join(" ")]);
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
