//! The binary: `ringfence serve`, `agent`, `demo`, the simulator, and the client commands.

use std::{future::Future, path::Path, process::ExitCode};

use clap::Parser;
use ringfence_cli::{
    commands::{self, Cli, Command},
    demo,
    log::{Format, is_verbose},
    output, sim, systemd,
};
use ringfence_messages::{ErrorCode, Result};
use ringfence_server::{config::TelemetryConfig, serve, telemetry::Telemetry};
use ringfence_service::{
    config_file::{Problems, report},
    listen::shutdown_signal,
};

fn main() -> ExitCode {
    let cli = Cli::parse();
    let code = match cli.command {
        Command::Serve { config, restored, log_format } => serve(&config, restored, log_format),
        Command::Agent { config, log_format } => agent(&config, log_format),
        Command::Demo { keep } => runtime(demo::run(keep)),
        Command::Sim(args) => sim::simulate(&args),
        Command::Model(args) => sim::check_model(&args),
        Command::Scenario(command) => sim::scenario(&command),
        command => runtime(commands::run(command)),
    };
    ExitCode::from(code)
}

fn serve(path: &Path, restored: bool, log: Format) -> u8 {
    let config = match ringfence_server::config::load(path) {
        Ok(config) => config,
        Err(problems) => {
            log.init(None);
            return invalid(&problems, log);
        }
    };
    traced(config.telemetry.clone(), log, || {
        let system = actix::System::new();
        system
            .block_on(async { ended(serve::run(config, restored, ready("controller"), shutdown_signal()).await, log) })
    })
}

fn agent(path: &Path, log: Format) -> u8 {
    log.init(None);
    let config = match ringfence_agent::config::load(path) {
        Ok(config) => config,
        Err(problems) => return invalid(&problems, log),
    };
    runtime(async { ended(ringfence_agent::run(config.settings, ready("agent"), shutdown_signal()).await, log) })
}

/// Runs work and sends its spans, if the file has a collector.
fn traced(config: Option<TelemetryConfig>, log: Format, work: impl FnOnce() -> u8) -> u8 {
    match config.map(|config| Telemetry::begin(&config, is_verbose())).transpose() {
        Ok(None) => {
            log.init(None);
            work()
        }
        Ok(Some((spans, telemetry))) => {
            log.init(Some(spans));
            let code = work();
            telemetry.end();
            code
        }
        Err(error) => {
            log.init(None);
            ended(Err(error), log)
        }
    }
}

fn runtime<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.expect("threads for the runtime").block_on(work)
}

/// Reports the listen address on standard output, and readiness to systemd.
fn ready(who: &'static str) -> impl FnOnce(std::net::SocketAddr) {
    move |address| {
        output::print(format!("{who} listens on {address}"));
        systemd::notify_ready();
    }
}

fn ended(result: Result<(), ErrorCode>, log: Format) -> u8 {
    match result {
        Ok(()) => 0,
        Err(error) => {
            log.report_fatal(&error);
            1
        }
    }
}

fn invalid(problems: &Problems, log: Format) -> u8 {
    match log {
        Format::Text => report(problems),
        Format::Json => tracing::error!("{problems}"),
    }
    2
}
