//! The command line: what may be asked, and of whom.

mod check;
mod follow;
mod hooks;
mod inventory;
mod live;
mod manual;
mod query;
mod token;

use std::path::{Path, PathBuf};

use clap::{Args, Parser, Subcommand};

use ringfence_drivers::node::{autostart::Libvirt, lookout::Lookout, sibling, vms::ordered};

use ringfence_messages::{Code, ErrorCode, Result};

use crate::{
    auth::Role,
    client::Server,
    log,
    sim::{ModelArgs, ScenarioCommand, SimArgs},
};

/// Keeps every virtual machine running on at most one host.
#[derive(Debug, Parser)]
#[command(name = "ringfence", version, max_term_width = 100, disable_help_subcommand = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What the program can do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Tell the whole story on this machine: a VM, its storage target killed, healed
    Demo {
        /// Leave it running afterwards, and say how to play with it
        #[arg(long)]
        keep: bool,
    },
    /// Run the controller
    Serve {
        /// The controller's file
        #[arg(long)]
        config: PathBuf,
        /// Go on from this journal though hosts have heard of more: it was restored from a backup, and no other controller runs
        #[arg(long)]
        restored: bool,
        /// How a line of the log looks
        #[arg(long, value_enum, default_value_t)]
        log_format: log::Format,
    },
    /// Run the host agent
    Agent {
        /// The agent's file
        #[arg(long)]
        config: PathBuf,
        /// How a line of the log looks
        #[arg(long, value_enum, default_value_t)]
        log_format: log::Format,
    },
    /// Check a controller's or an agent's file and explain it; exit 2 with file and line on a mistake
    Check {
        /// The file
        #[arg(long)]
        config: PathBuf,
        /// Ask agents and clusters too: what would fail tonight? Changes nothing but one blocklist entry of a
        /// documentation address, which is taken away again
        #[arg(long)]
        live: bool,
    },
    /// Say what is missing, and what would make a fence fail tonight; exit 1 if something would, or is not known.
    /// Changes nothing but one blocklist entry of a documentation address, which is taken away again
    Doctor {
        /// The controller's file; with --agent the agent's
        #[arg(long)]
        config: PathBuf,
        /// Look at this host alone, without a controller
        #[arg(long)]
        agent: bool,
        /// Print the findings as JSON
        #[arg(long)]
        json: bool,
    },
    /// Show hosts, storages and VMs at a glance
    Status(ClientArgs),
    /// Watch it live: hosts, storages, VMs that are not as wanted, fences and events
    Top(Server),
    /// Show the hosts
    Hosts(ClientArgs),
    /// Show the storages
    Storages(ClientArgs),
    /// Show the VMs
    Vms(ClientArgs),
    /// Show each protocol of each storage on each host
    Refs(ClientArgs),
    /// Show what happened
    Events {
        /// Wait for more
        #[arg(long)]
        follow: bool,
        /// Only what came after this sequence number
        #[arg(long, default_value_t = 0)]
        after: u64,
        /// Check the hash chain from the first record to the last: exit 1 if one was changed, moved or taken out
        #[arg(long, conflicts_with_all = ["follow", "after"])]
        verify: bool,
        /// Whom to ask
        #[command(flatten)]
        args: ClientArgs,
    },
    /// Say in plain words what state a VM or host is in, why, and what would change it
    Explain {
        /// Name or uuid of the VM or host
        name: String,
        /// Whom to ask
        #[command(flatten)]
        args: ClientArgs,
    },
    /// Start or stop a VM, or bring it back
    #[command(subcommand)]
    Vm(VmCommand),
    /// Take a host out of service or back, move its VMs away, or ping it
    #[command(subcommand)]
    Host(HostCommand),
    /// Show or change what is looked after, while the controller runs
    #[command(subcommand)]
    Inventory(inventory::InventoryCommand),
    /// Show whom the controller tells what happened, how far each hook has come, and what holds it up
    #[command(args_conflicts_with_subcommands = true)]
    Hooks {
        /// Something other than to look
        #[command(subcommand)]
        order: Option<HookCommand>,
        /// Whom to ask
        #[command(flatten)]
        args: ClientArgs,
    },
    /// Show the actors inside the controller
    Inspect(ClientArgs),
    /// Search the simulated world for a broken rule: seed after seed, with every fault there is
    Sim(SimArgs),
    /// Check the fence and permit protocol exhaustively: two controllers, two hosts, one volume, everything in any order
    Model(ModelArgs),
    /// Play stories in the simulated world
    #[command(subcommand)]
    Scenario(ScenarioCommand),
    /// Make a token for the API: its table for the controller's file on standard error, the token on standard output
    Token {
        /// Whose it is
        name: String,
        /// What its bearer may do: look, order, or attest too that a host is off
        #[arg(long, value_enum, default_value = "viewer")]
        role: Role,
    },
    /// Make and renew the certificates of controller, hosts and users
    #[command(subcommand)]
    Pki(crate::pki::PkiCommand),
    /// Print what a shell needs to complete this program's words
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Write the manual pages into a folder
    Man {
        /// The folder; it is made if it is not there
        #[arg(default_value = ".")]
        dir: PathBuf,
    },
    /// Keep libvirt from starting at boot any VM that this host's agent was ever ordered to run. A unit runs it before libvirt
    #[command(hide = true)]
    HoldAutostart {
        /// The agent's file of this host
        #[arg(long, default_value = AGENT_FILE)]
        config: PathBuf,
    },
    /// Kill every QEMU of a VM on this host; says in one line of JSON what was found. A sibling runs it over SSH
    #[command(hide = true)]
    KillVm {
        /// The VM, and the machine on which alone it is to be killed: UUID@MACHINE-ID, or UUID
        victim: sibling::Victim,
        /// The agent's file of this host, which may name more users whose processes are VMs
        #[arg(long, default_value = AGENT_FILE)]
        config: PathBuf,
    },
}

/// Where an agent's file is, as packaged.
const AGENT_FILE: &str = "/etc/ringfence/agent.toml";

/// Kills a VM here. A file that is there and cannot be read leaves it open whose processes are VMs: nothing is said then.
async fn kill_vm(victim: &sibling::Victim, config: &Path) -> Result<()> {
    let lookout = match config.exists() {
        false => Lookout::new(None, &[], false)?,
        true => {
            let qemu = crate::config::load_agent(config)?.settings.qemu;
            Lookout::new(Some(&qemu.binary), &qemu.users, qemu.own)?
        }
    };
    let killed = sibling::kill(victim, &std::sync::Arc::new(lookout)).await?;
    crate::output::print(serde_json::to_string(&killed).unwrap_or_default());
    Ok(())
}

/// An agent's file with mistakes, or damaged orders, are errors: the unit fails, and is seen to.
fn hold_autostart(config: &Path) -> Result<()> {
    let vms = ordered(&crate::config::load_agent(config)?.settings.state_dir)?;
    let done = Libvirt::default().hold(&vms);
    done.held.iter().for_each(|held| crate::output::print(format!("libvirt does not start {held}: Ringfence does")));
    match done.errors.is_empty() {
        true => Ok(()),
        false => Err(ErrorCode::new(Code::IO, done.errors.join("; "))),
    }
}

/// Whom to ask, and how to show the answer.
#[derive(Debug, Args)]
pub struct ClientArgs {
    #[command(flatten)]
    server: Server,
    /// Print the answer as JSON
    #[arg(long)]
    json: bool,
}

/// Orders about a VM.
#[derive(Debug, Subcommand)]
pub enum VmCommand {
    /// Start it
    Start {
        /// Its name or uuid
        name: String,
        /// On this host; one is chosen otherwise
        #[arg(long)]
        host: Option<String>,
        /// Whom to ask
        #[command(flatten)]
        args: ClientArgs,
    },
    /// Bring it back: fence it where it ran last, then start it
    HaStart {
        /// Its name or uuid
        name: String,
        /// On this host; one is chosen otherwise
        #[arg(long)]
        host: Option<String>,
        /// Say what would be done and on which evidence, and change nothing; exit 1 if it could not be tried
        #[arg(long)]
        dry_run: bool,
        /// Whom to ask
        #[command(flatten)]
        args: ClientArgs,
    },
    /// Stop it
    Stop {
        /// Its name or uuid
        name: String,
        /// Whom to ask
        #[command(flatten)]
        args: ClientArgs,
    },
}

/// Orders about a host.
#[derive(Debug, Subcommand)]
pub enum HostCommand {
    /// Take it out of service: it is neither pinged nor healed
    Maintain(HostArgs),
    /// Take it out of service, and move its VMs to other hosts: each is stopped, and started where there is room
    Drain {
        /// Say which VM would go where, and which has nowhere to go and why, and change nothing; exit 1 if one has not
        #[arg(long)]
        dry_run: bool,
        /// Which host
        #[command(flatten)]
        host: HostArgs,
    },
    /// Put it back into service; a drain that is under way ends
    Activate(HostArgs),
    /// Ping it now
    Ping(HostArgs),
    /// Attest that a host that does not answer is off: its VMs cannot write any more
    ConfirmFenced(HostArgs),
}

/// Orders about a hook.
#[derive(Debug, Subcommand)]
pub enum HookCommand {
    /// Send a signed message that tells of nothing, and say what came back; exit 1 if it was not taken
    Test {
        /// Its name
        name: String,
        /// Whom to ask
        #[command(flatten)]
        args: ClientArgs,
    },
}

/// Which host.
#[derive(Debug, Args)]
pub struct HostArgs {
    /// Its name or uuid
    name: String,
    #[command(flatten)]
    args: ClientArgs,
}

/// Runs a command that asks a controller or checks a file; the exit code.
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
        Command::Hooks { order: Some(HookCommand::Test { name, args }), .. } => hooks::test(&args, &name).await,
        Command::Events { verify: true, args, .. } => query::verify(&args).await,
        Command::Events { follow: true, after, args, .. } => follow::run(&args, after).await,
        Command::Events { after, args, .. } => query::events(&args, after).await,
        Command::Explain { name, args } => query::explain(&args, &name).await,
        Command::Vm(VmCommand::Start { name, host, args }) => {
            let start = host.map_or(serde_json::json!({}), |host| serde_json::json!({ "host": host }));
            query::vm_action(&args, &name, serde_json::json!({ "start": start })).await
        }
        Command::Vm(VmCommand::HaStart { name, host, dry_run: true, args }) => {
            query::plan(&args, &name, host.as_deref()).await
        }
        Command::Vm(VmCommand::HaStart { name, host, args, .. }) => {
            query::vm_action(&args, &name, serde_json::json!({ "haStart": { "host": host } })).await
        }
        Command::Vm(VmCommand::Stop { name, args }) => {
            query::vm_action(&args, &name, serde_json::json!({ "stop": {} })).await
        }
        Command::Host(HostCommand::Maintain(host)) => query::host_action(&host, "maintain").await,
        Command::Host(HostCommand::Drain { dry_run: true, host }) => query::plan_drain(&host).await,
        Command::Host(HostCommand::Drain { host, .. }) => query::drain(&host).await,
        Command::Host(HostCommand::Activate(host)) => query::host_action(&host, "activate").await,
        Command::Host(HostCommand::Ping(host)) => query::host_action(&host, "ping").await,
        Command::Host(HostCommand::ConfirmFenced(host)) => query::confirm_fenced(&host).await,
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
