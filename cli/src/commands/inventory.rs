//! `ringfence inventory`: shows, changes and reloads the inventory.

use std::path::{Path, PathBuf};

use clap::{Subcommand, ValueEnum};
use ringfence_messages::{Code, ErrorCode, Result};
use ringfence_server::inventory::Outcome;
use ringfence_service::config_file;
use serde_json::{Value, json};

use super::ClientArgs;
use crate::output::{print, table};

/// Actions on the inventory.
#[derive(Debug, Subcommand)]
pub enum InventoryCommand {
    /// Show the inventory and where each item is defined
    Show(ClientArgs),
    /// Add or replace items of the inventory from a file
    ///
    /// The file is TOML with the tables of the configuration file. The command shows pending changes; --yes applies
    /// them.
    Apply {
        /// TOML file
        file: PathBuf,
        /// Options of the change
        #[command(flatten)]
        how: How,
    },
    /// Remove an item that `apply`, the API or the web page added
    ///
    /// The command shows pending changes; --yes applies them.
    Remove {
        /// Kind of the item
        kind: Kind,
        /// Name of the item
        name: String,
        /// Options of the change
        #[command(flatten)]
        how: How,
    },
    /// Reload the controller's configuration file
    ///
    /// The command shows pending changes; --yes applies them without a restart.
    Reload(How),
}

/// Options of a change.
#[derive(Debug, clap::Args)]
pub struct How {
    /// Apply the changes; without it they are only shown
    #[arg(long)]
    yes: bool,
    #[command(flatten)]
    args: ClientArgs,
}

/// A kind of item.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Kind {
    /// A cluster
    Cluster,
    /// A host
    Host,
    /// A storage
    Storage,
    /// A VM
    Vm,
}

impl Kind {
    fn plural(self) -> &'static str {
        match self {
            Kind::Cluster => "clusters",
            Kind::Host => "hosts",
            Kind::Storage => "storages",
            Kind::Vm => "vms",
        }
    }
}

pub(super) async fn run(command: InventoryCommand) -> Result<()> {
    match command {
        InventoryCommand::Show(args) => show(&args).await,
        InventoryCommand::Apply { file, how } => {
            let tables = read(&file)?;
            change(&how, "changes", &json!({ "put": tables })).await
        }
        InventoryCommand::Remove { kind, name, how } => {
            let mut names = serde_json::Map::new();
            names.insert(kind.plural().to_owned(), json!([name]));
            change(&how, "changes", &json!({ "remove": names })).await
        }
        InventoryCommand::Reload(how) => change(&how, "reload", &json!({})).await,
    }
}

async fn show(args: &ClientArgs) -> Result<()> {
    let all: Value = args.server.client()?.get("/v1/inventory").await?;
    if args.json {
        print(serde_json::to_string_pretty(&all).unwrap_or_default());
        return Ok(());
    }
    let mut shown = table(&["KIND", "NAME", "DEFINED BY"]);
    for kind in [Kind::Cluster, Kind::Host, Kind::Storage, Kind::Vm] {
        for of in all[kind.plural()].as_array().into_iter().flatten() {
            let by = if of["managed"] == true { "the API" } else { "the config file" };
            let name = of["definition"]["name"].as_str().unwrap_or("-");
            shown.add_row([format!("{kind:?}").to_lowercase().as_str(), name, by]);
        }
    }
    print(shown);
    Ok(())
}

async fn change(how: &How, what: &str, order: &Value) -> Result<()> {
    let path = format!("/v1/inventory/{what}?dryRun={}", !how.yes);
    let outcome: Outcome = how.args.server.client()?.post(&path, order).await?;
    if how.args.json {
        print(serde_json::to_string_pretty(&outcome).unwrap_or_default());
        return Ok(());
    }
    outcome.changes.iter().for_each(print);
    for table in &outcome.need_restart {
        print(format!("! {table} takes effect after the controller restarts"));
    }
    print(match (outcome.changes.is_empty(), outcome.applied) {
        (true, _) => "no changes",
        (false, true) => "applied",
        (false, false) => "nothing applied yet: add --yes",
    });
    Ok(())
}

/// The tables of a file, by kind, as the API takes them.
fn read(file: &Path) -> Result<Value> {
    let bad = |why: String| ErrorCode::new(Code::INVALID_ARGUMENT, why);
    let text = config_file::read(file).map_err(|why| bad(why.to_string().trim_end().to_owned()))?;
    let tables: toml::Table = text
        .parse()
        .map_err(|why: toml::de::Error| bad(format!("{}: {}", file.display(), why.to_string().trim_end())))?;
    let mut by_kind = serde_json::Map::new();
    for (key, value) in tables {
        let kind = Kind::value_variants().iter().find(|kind| format!("{kind:?}").to_lowercase() == key);
        let kind = kind.ok_or_else(|| {
            bad(format!("{}: unknown table {key:?}; use [[cluster]], [[host]], [[storage]] or [[vm]]", file.display()))
        })?;
        let value = serde_json::to_value(value).map_err(|why| bad(why.to_string()))?;
        by_kind.insert(kind.plural().to_owned(), value);
    }
    Ok(Value::Object(by_kind))
}
