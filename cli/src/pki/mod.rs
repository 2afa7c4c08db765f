//! `ringfence pki`: certificates for controller, hosts and users.
//!
//! Invariants: a private key has mode 0600 from its first byte and never leaves its folder; folders are created
//! atomically and never overwritten; no certificate outlives its authority; a certificate is renewed only if a
//! current authority issued it. Alternatives considered: `openssl` by hand (many options, easy to forget a name), an
//! online authority (a server to run).

mod bundle;
mod ca;
mod cert;

use std::{net::IpAddr, path::PathBuf};

use clap::{Args, Subcommand};
use ringfence_messages::{Code, ErrorCode, HostId, Result};

pub use ca::Authority;
pub use cert::{CertNames, issue, issue_for, renew};

/// Default life of a certificate: a year.
pub const LEAF_DAYS: u32 = 365;

/// Default life of an authority: ten years. Replacing one touches every machine.
pub const AUTHORITY_DAYS: u32 = 3650;

/// Backdating of certificates, because clocks differ.
const BACKDATE_SECONDS: i64 = 300;

const REPLACE_HELP: &str = "Renew a certificate: `ringfence pki rotate DIR --ca CADIR` creates a new key and a \
certificate with the same names, and replaces the folder atomically. Copy it to its machine; the programs there use it \
from the next connection, without restart.

Replace the authority without an outage:
  1. ringfence pki rotate --ca CADIR --replace-ca     CADIR/ca.pem now holds the new and the old one
  2. copy CADIR/ca.pem over every `ca` and `client_ca` file, and to users (--ca-file)
  3. ringfence pki rotate DIR --ca CADIR              for every certificate; copy each folder to its machine
  4. ringfence pki rotate --ca CADIR --drop-old-ca    CADIR/ca.pem now holds the new one alone
  5. copy CADIR/ca.pem again over every `ca` and `client_ca` file; the old authority is no longer trusted";

/// Actions on certificates.
#[derive(Debug, Subcommand)]
pub enum PkiCommand {
    /// Create a certificate authority in a new folder
    ///
    /// Distribute ca.pem; keep issuer.pem, which contains the key, secret.
    Init {
        /// New or empty folder
        dir: PathBuf,
        /// Life in days
        #[arg(long, default_value_t = AUTHORITY_DAYS, value_parser = clap::value_parser!(u32).range(1..=36500))]
        days: u32,
    },
    /// Issue a key and certificate in a new folder
    ///
    /// The folder gets cert.pem, key.pem and ca.pem.
    Issue(IssueArgs),
    /// Renew a certificate, or replace the authority
    #[command(after_long_help = REPLACE_HELP)]
    Rotate(RotateArgs),
}

/// Options of a certificate.
#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("whose").required(true).args(["host", "controller", "client"]))]
pub struct IssueArgs {
    /// Folder of the certificate authority
    #[arg(long)]
    ca: PathBuf,
    /// Host whose agent gets the certificate, by its name in the controller's file
    #[arg(long)]
    host: Option<String>,
    /// Uuid of the host, if the controller's file sets it
    #[arg(long, requires = "host")]
    uuid: Option<HostId>,
    /// Issue for the controller: towards agents, and for its API
    #[arg(long)]
    controller: bool,
    /// User of an API with client_ca
    #[arg(long)]
    client: Option<String>,
    /// IP address of the certificate's owner; may be repeated
    #[arg(long)]
    ip: Vec<IpAddr>,
    /// DNS name of the certificate's owner; may be repeated
    #[arg(long)]
    dns: Vec<String>,
    /// New or empty folder for the files
    #[arg(long)]
    out: PathBuf,
    /// Life in days
    #[arg(long, default_value_t = LEAF_DAYS, value_parser = clap::value_parser!(u32).range(1..=3650))]
    days: u32,
}

/// Options of a rotation.
#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("what").required(true).args(["dir", "replace_ca", "drop_old_ca"]))]
pub struct RotateArgs {
    /// Folder of the certificate to renew
    dir: Option<PathBuf>,
    /// Folder of the certificate authority
    #[arg(long)]
    ca: PathBuf,
    /// Create a new authority; the old one stays trusted
    #[arg(long)]
    replace_ca: bool,
    /// Trust the new authority alone
    #[arg(long)]
    drop_old_ca: bool,
    /// Life in days; a year by default, ten for an authority
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=36500))]
    days: Option<u32>,
}

/// Carries out an action. Returns lines about the result and the next steps.
///
/// # Errors
/// `SYS.1007` and `SYS.1016`, with the file or folder and the remedy.
pub fn run(command: PkiCommand) -> Result<Vec<String>> {
    match command {
        PkiCommand::Init { dir, days } => {
            let authority = Authority::init(&dir, days)?;
            Ok(vec![
                format!("{}: certificate authority, expires {}", dir.display(), authority.until()),
                format!(
                    "{}: keep this file secret; any holder may command every host",
                    dir.join("issuer.pem").display()
                ),
            ])
        }
        PkiCommand::Issue(args) => {
            let names = names(&args)?;
            let identity = issue(&Authority::open(&args.ca)?, &names, args.days, &args.out)?;
            Ok(vec![cert::summary(&args.out, &identity)])
        }
        PkiCommand::Rotate(RotateArgs { ca, dir: Some(dir), days, .. }) => {
            let identity = renew(&Authority::open(&ca)?, days.unwrap_or(LEAF_DAYS), &dir)?;
            Ok(vec![
                cert::summary(&dir, &identity),
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
                    "next: copy {bundle} over every `ca` and `client_ca`, then `ringfence pki rotate DIR --ca {}` for \
                     each certificate",
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

fn names(args: &IssueArgs) -> Result<CertNames> {
    let fits = |name: &str| {
        ringfence_server::config::token_name(name)
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
        (Some(name), _) => CertNames::host(name, args.uuid.unwrap_or_else(|| HostId::from_name(name))),
        (None, Some(name)) => CertNames::client(name),
        (None, None) => CertNames::controller(),
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
