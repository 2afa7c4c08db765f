//! The command line: commands, their options, and the dispatch.

mod action;
mod check;
mod follow;
mod hooks;
mod inventory;
mod manual;
mod query;
mod token;

use std::path::{Path, PathBuf};

use clap::{Args, Parser, Subcommand};

use ringfence_drivers::node::{autostart::Libvirt, lookout::Lookout, sibling, vms::ordered};

use ringfence_messages::{Code, ErrorCode, Result, action::Role};

use self::action::{ActionCommand, OfHook, OfHost, OfVm};
use crate::{
    client::Server,
    log,
    sim::{ModelArgs, ScenarioCommand, SimArgs},
};

/// Run every virtual machine on at most one host
#[derive(Debug, Parser)]
#[command(name = "ringfence", version, max_term_width = 100, disable_help_subcommand = true)]
pub struct Cli {
    /// The command.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the demo: a VM whose storage target is killed
    Demo {
        /// Keep the demo running afterwards and print commands to try
        #[arg(long)]
        keep: bool,
    },
    /// Run the controller
    Serve {
        /// Configuration file of the controller
        #[arg(long)]
        config: PathBuf,
        /// Start from a journal restored from a backup, although hosts have seen newer records; no other controller
        /// may run
        #[arg(long)]
        restored: bool,
        /// Format of log lines
        #[arg(long, value_enum, default_value_t)]
        log_format: log::Format,
    },
    /// Run the host agent
    Agent {
        /// Configuration file of the agent
        #[arg(long)]
        config: PathBuf,
        /// Format of log lines
        #[arg(long, value_enum, default_value_t)]
        log_format: log::Format,
    },
    /// Check and summarize a configuration file
    ///
    /// The file is a controller's or an agent's. An error is reported with file and line, and the exit status is 2.
    Check {
        /// Configuration file
        #[arg(long)]
        config: PathBuf,
        /// Also probe agents and Ceph clusters. The only change is a blocklist entry of an address reserved for
        /// documentation, which is removed again
        #[arg(long)]
        live: bool,
    },
    /// Check everything that a fence needs
    ///
    /// The exit status is 1 if a check fails or its result is unknown. The only change is a blocklist entry of an
    /// address reserved for documentation, which is removed again.
    Doctor {
        /// Configuration file of the controller, or of the agent with --agent
        #[arg(long)]
        config: PathBuf,
        /// Check this host only, without a controller
        #[arg(long)]
        agent: bool,
        /// Print the findings as JSON
        #[arg(long)]
        json: bool,
    },
    /// Show hosts, storages and VMs
    Status(ClientArgs),
    /// Watch hosts, storages, VMs, fences and events live
    Top(Server),
    /// Show the hosts
    Hosts(ClientArgs),
    /// Show the storages
    Storages(ClientArgs),
    /// Show the VMs
    Vms(ClientArgs),
    /// Show each protocol of each storage on each host
    Refs(ClientArgs),
    /// Show events of the journal
    Events {
        /// Follow new events
        #[arg(long)]
        follow: bool,
        /// Sequence number after which events are shown
        #[arg(long, default_value_t = 0)]
        after: u64,
        /// Verify the hash chain from the first record to the last; exit status 1 if a record was changed, moved or
        /// removed
        #[arg(long, conflicts_with_all = ["follow", "after"])]
        verify: bool,
        /// Controller connection
        #[command(flatten)]
        args: ClientArgs,
    },
    /// Explain the state of a VM or host, and how to change it
    Explain {
        /// Name or uuid of the VM or host
        name: String,
        /// Controller connection
        #[command(flatten)]
        args: ClientArgs,
    },
    /// Start, stop or fail over a VM
    #[command(subcommand)]
    Vm(ActionCommand<OfVm>),
    /// Start or end maintenance of a host, drain it, or ping it
    #[command(subcommand)]
    Host(ActionCommand<OfHost>),
    /// Show or change the inventory at run time
    #[command(subcommand)]
    Inventory(inventory::InventoryCommand),
    /// Show hooks with their delivery position and last error
    #[command(args_conflicts_with_subcommands = true)]
    Hooks {
        /// Hook action
        #[command(subcommand)]
        order: Option<ActionCommand<OfHook>>,
        /// Controller connection
        #[command(flatten)]
        args: ClientArgs,
    },
    /// Show the actors inside the controller
    Inspect(ClientArgs),
    /// Search for a seed that breaks a rule in the simulator
    Sim(SimArgs),
    /// Check the fence and permit protocol exhaustively
    ///
    /// The model has two controllers, two hosts and one volume, and explores every sequence of events.
    Model(ModelArgs),
    /// Run stories in the simulator
    #[command(subcommand)]
    Scenario(ScenarioCommand),
    /// Create an API token
    ///
    /// Standard output gets the token; standard error gets its table for the controller's file.
    Token {
        /// Name of the token's owner
        name: String,
        /// Role of the token
        #[arg(long, value_parser = token::roles(), default_value = "viewer")]
        role: Role,
    },
    /// Create and renew certificates
    #[command(subcommand)]
    Pki(crate::pki::PkiCommand),
    /// Print shell completions
    Completions {
        /// Shell
        shell: clap_complete::Shell,
    },
    /// Write the manual pages
    Man {
        /// Target directory; created if missing
        #[arg(default_value = ".")]
        dir: PathBuf,
    },
    /// Keep libvirt from starting VMs of Ringfence at boot
    ///
    /// These are the VMs that this host's agent was ever ordered to run. A unit runs this command before libvirt.
    #[command(hide = true)]
    HoldAutostart {
        /// Configuration file of this host's agent
        #[arg(long, default_value = AGENT_FILE)]
        config: PathBuf,
    },
    /// Kill every QEMU of a VM on this host
    ///
    /// The result is one line of JSON. A sibling host runs this command over SSH.
    #[command(hide = true)]
    KillVm {
        /// VM, and the only machine on which to kill it: UUID@MACHINE-ID, or UUID
        victim: sibling::Victim,
        /// Configuration file of this host's agent, which may list more users that run VMs
        #[arg(long, default_value = AGENT_FILE)]
        config: PathBuf,
    },
}

/// The agent's file in the packages.
const AGENT_FILE: &str = "/etc/ringfence/agent.toml";

/// Kills a VM on this host. If the file exists and cannot be read, it is unknown whose processes are VMs: then this
/// fails and prints no evidence.
async fn kill_vm(victim: &sibling::Victim, config: &Path) -> Result<()> {
    let lookout = match config.exists() {
        false => Lookout::new(None, &[], false)?,
        true => {
            let qemu = ringfence_agent::config::load(config)?.settings.qemu;
            Lookout::new(Some(&qemu.binary), &qemu.users, qemu.own)?
        }
    };
    let killed = sibling::kill(victim, &std::sync::Arc::new(lookout)).await?;
    crate::output::print(serde_json::to_string(&killed).unwrap_or_default());
    Ok(())
}

/// An invalid agent's file, or damaged start commands, are errors, so that the unit fails visibly.
fn hold_autostart(config: &Path) -> Result<()> {
    let vms = ordered(&ringfence_agent::config::load(config)?.settings.state_dir)?;
    let done = Libvirt::default().hold(&vms);
    done.held
        .iter()
        .for_each(|held| crate::output::print(format!("autostart of {held} held: Ringfence starts it, not libvirt")));
    match done.errors.is_empty() {
        true => Ok(()),
        false => Err(ErrorCode::new(Code::IO, done.errors.join("; "))),
    }
}

/// Controller connection and output format.
#[derive(Debug, Args)]
pub struct ClientArgs {
    #[command(flatten)]
    server: Server,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Runs a command other than those of `main`. Returns the exit status.
pub async fn run(command: Command) -> u8 {
    let result = match command {
        Command::Check { config, live } => return check::run(&config, live).await,
        Command::Doctor { config, agent, json } => return crate::doctor::run(&config, agent, json).await,
        Command::Top(server) => return crate::top::run(&server).await,
        Command::Status(args) => query::status(&args).await,
        Command::Hosts(args) => query::hosts(&args).await,
        Command::Storages(args) => query::storages(&args).await,
        Command::Vms(args) => query::vms(&args).await,
        Command::Refs(args) => query::refs(&args).await,
        Command::Inspect(args) => query::inspect(&args).await,
        Command::Hooks { order: None, args } => hooks::list(&args).await,
        Command::Hooks { order: Some(action), .. } => action.run().await,
        Command::Events { verify: true, args, .. } => query::verify(&args).await,
        Command::Events { follow: true, after, args, .. } => follow::run(&args, after).await,
        Command::Events { after, args, .. } => query::events(&args, after).await,
        Command::Explain { name, args } => query::explain(&args, &name).await,
        Command::Vm(action) => action.run().await,
        Command::Host(action) => action.run().await,
        Command::Inventory(command) => inventory::run(command).await,
        Command::Token { name, role } => token::make(&name, role),
        Command::Pki(command) => crate::pki::run(command).map(|said| said.iter().for_each(crate::output::print)),
        Command::Completions { shell } => {
            manual::completions(shell);
            Ok(())
        }
        Command::Man { dir } => manual::pages(&dir),
        Command::HoldAutostart { config } => hold_autostart(&config),
        Command::KillVm { victim, config } => kill_vm(&victim, &config).await,
        Command::Demo { .. }
        | Command::Serve { .. }
        | Command::Agent { .. }
        | Command::Sim(_)
        | Command::Model(_)
        | Command::Scenario(_) => unreachable!("run by main"),
    };
    match result {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("{}", crate::output::error(&error));
            1
        }
    }
}
