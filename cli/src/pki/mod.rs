//! Certificates for controller, hosts and users: `ringfence pki`.
//!
//! Invariants: a private key is written with mode 0600 from its first byte on and never leaves its folder; folders appear
//! whole or not at all, and none is overwritten; nothing is issued that outlives its authority; a certificate is
//! renewed only if one of the authorities in use made it. Rejected: `openssl` by hand (twenty options, and a name forgotten in
//! one of them), an authority that must be up (nothing here needs a server).

mod bundle;
mod ca;
mod cert;

use std::{net::IpAddr, path::PathBuf};

use clap::{Args, Subcommand};
use ringfence_messages::{Code, ErrorCode, HostId, Result};

pub use ca::Authority;
pub use cert::{Names, issue, issue_for, renew};

/// How long a certificate lasts unless told: a year.
pub const LEAF_DAYS: u32 = 365;

/// How long an authority lasts unless told: ten years. Replacing one touches every machine.
pub const AUTHORITY_DAYS: u32 = 3650;

/// How far back lives begin: clocks of machines differ.
const BACKDATE_SECONDS: i64 = 300;

const REPLACE_HELP: &str = "Renew a certificate: `ringfence pki rotate DIR --ca CADIR` makes a new key and a certificate of the same names, \
and swaps the folder at once. Copy it to its machine; what runs there takes it up with the next connection, without restart.

Replace the authority, without anything being refused meanwhile:
  1. ringfence pki rotate --ca CADIR --replace-ca     CADIR/ca.pem now holds the new and the old one
  2. copy CADIR/ca.pem over every `ca` and `client_ca` file, and to users (--ca-file)
  3. ringfence pki rotate DIR --ca CADIR              for every certificate; copy each folder to its machine
  4. ringfence pki rotate --ca CADIR --drop-old-ca    CADIR/ca.pem now holds the new one alone
  5. copy CADIR/ca.pem once more over every `ca` and `client_ca` file: the old one is worth nothing now";

/// What may be done with certificates.
#[derive(Debug, Subcommand)]
pub enum PkiCommand {
    /// Make an authority in a new folder: ca.pem for everybody, issuer.pem (with its key) for nobody
    Init {
        /// The folder; must be empty or not there
        dir: PathBuf,
        /// How long it lasts
        #[arg(long, default_value_t = AUTHORITY_DAYS, value_parser = clap::value_parser!(u32).range(1..=36500))]
        days: u32,
    },
    /// Make a key and certificate in a new folder: cert.pem, key.pem, ca.pem
    Issue(IssueArgs),
    /// Renew a certificate, or replace the authority step by step
    #[command(after_long_help = REPLACE_HELP)]
    Rotate(RotateArgs),
}

/// What is issued, and by whom.
#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("whose").required(true).args(["host", "controller", "client"]))]
pub struct IssueArgs {
    /// Folder of the authority
    #[arg(long)]
    ca: PathBuf,
    /// For the agent of this host, by its name in the controller's file
    #[arg(long)]
    host: Option<String>,
    /// The host's uuid, if the controller's file gives it one
    #[arg(long, requires = "host")]
    uuid: Option<HostId>,
    /// For the controller: towards agents, and for its API
    #[arg(long)]
    controller: bool,
    /// For somebody who uses the API of a controller with client_ca
    #[arg(long)]
    client: Option<String>,
    /// An address at which it is asked
    #[arg(long)]
    ip: Vec<IpAddr>,
    /// A DNS name by which it is asked
    #[arg(long)]
    dns: Vec<String>,
    /// The folder for it; must be empty or not there
    #[arg(long)]
    out: PathBuf,
    /// How long it lasts
    #[arg(long, default_value_t = LEAF_DAYS, value_parser = clap::value_parser!(u32).range(1..=3650))]
    days: u32,
}

/// What is made anew.
#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("what").required(true).args(["dir", "replace_ca", "drop_old_ca"]))]
pub struct RotateArgs {
    /// Folder of the certificate that is renewed, as `issue` made it
    dir: Option<PathBuf>,
    /// Folder of the authority
    #[arg(long)]
    ca: PathBuf,
    /// Make a new authority beside the old one, which stays trusted
    #[arg(long)]
    replace_ca: bool,
    /// Trust the new authority alone
    #[arg(long)]
    drop_old_ca: bool,
    /// How long the new one lasts; a year, an authority ten
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=36500))]
    days: Option<u32>,
}

/// Does it, and says what was done and what follows.
///
/// # Errors
/// `SYS.1007` and `SYS.1016`, naming the file or folder and the fix.
pub fn run(command: PkiCommand) -> Result<Vec<String>> {
    match command {
        PkiCommand::Init { dir, days } => {
            let authority = Authority::init(&dir, days)?;
            Ok(vec![
                format!("{}: an authority until {}", dir.display(), authority.until()),
                format!(
                    "{}: keep it to yourself; whoever has it may order every host about",
                    dir.join("issuer.pem").display()
                ),
            ])
        }
        PkiCommand::Issue(args) => {
            let names = names(&args)?;
            let identity = issue(&Authority::open(&args.ca)?, &names, args.days, &args.out)?;
            Ok(vec![cert::told(&args.out, &identity)])
        }
        PkiCommand::Rotate(RotateArgs { ca, dir: Some(dir), days, .. }) => {
            let identity = renew(&Authority::open(&ca)?, days.unwrap_or(LEAF_DAYS), &dir)?;
            Ok(vec![
                cert::told(&dir, &identity),
                "copy the folder to its machine: it is taken up without restart".to_owned(),
            ])
        }
        PkiCommand::Rotate(RotateArgs { ca, replace_ca: true, days, .. }) => {
            let authority = Authority::open(&ca)?.replace(days.unwrap_or(AUTHORITY_DAYS))?;
            let bundle = ca.join("ca.pem").display().to_string();
            Ok(vec![
                format!(
                    "{}: a new authority until {}; {bundle} holds the old one too",
                    ca.display(),
                    authority.until()
                ),
                format!(
                    "next: copy {bundle} over every `ca` and `client_ca`, then `ringfence pki rotate DIR --ca {}` for each certificate",
                    ca.display()
                ),
            ])
        }
        PkiCommand::Rotate(RotateArgs { ca, .. }) => {
            let dropped = Authority::open(&ca)?.drop_old()?;
            Ok(vec![format!(
                "{}: {dropped} dropped; copy it over every `ca` and `client_ca`",
                ca.join("ca.pem").display()
            )])
        }
    }
}

fn names(args: &IssueArgs) -> Result<Names> {
    let fits = |name: &str| {
        crate::config::token_name(name)
            .map_err(|(what, fix)| ErrorCode::new(Code::INVALID_ARGUMENT, format!("{what}: {fix}")))
    };
    for dns in &args.dns {
        if !is_dns_name(dns) {
            let details = format!("--dns {dns:?} is no DNS name: give addresses by --ip");
            return Err(ErrorCode::new(Code::INVALID_ARGUMENT, details));
        }
    }
    if let Some(name) = args.host.as_ref().or(args.client.as_ref()) {
        fits(name)?;
    }
    let names = match (&args.host, &args.client) {
        (Some(name), _) => Names::host(name, args.uuid.unwrap_or_else(|| HostId::from_name(name))),
        (None, Some(name)) => Names::client(name),
        (None, None) => Names::controller(),
    };
    Ok(names.at(args.ip.clone(), args.dns.clone()))
}

fn is_dns_name(text: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    text.len() <= 253 && text.split('.').all(label) && text.parse::<IpAddr>().is_err()
}
