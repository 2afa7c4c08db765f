//! The items that the API added: tables in the controller's own file, read as if they were at the end of its config
//! file.
//!
//! Purpose: the API adds and removes hosts, storages and VMs without changes of the config file. Invariants: each
//! item is in one of the two files, and is changed there; the file is replaced atomically; the code that checks the
//! config file checks it too. Alternative considered: writing into the config file (it may be under version control,
//! and the service may not write it).

use std::{
    fmt,
    path::{Path, PathBuf},
};

use ringfence_drivers::files::Draft;
use ringfence_messages::{Code, ErrorCode, Result};
use ringfence_service::config_file::MAX_FILE_BYTES;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::{ControllerConfig, Problems, controller, raw::ApiMay, read};

/// The file in the state directory.
const FILE: &str = "inventory.toml";

const HEAD: &str = "# Written by the controller: `ringfence inventory` changes it.\n\n";

/// The texts of a controller's configuration.
#[derive(Clone, PartialEq, Eq)]
pub struct Source {
    /// The config file.
    pub path: PathBuf,
    /// Its text.
    pub text: String,
    /// The file of the items that the API added.
    pub managed_path: PathBuf,
    /// Its text; empty if the file is missing.
    pub managed: String,
}

/// The paths only: a webhook's URL may be a secret.
impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Source({}, {})", self.path.display(), self.managed_path.display())
    }
}

/// Tables of the inventory by kind, as in the config file; keys may be in JSON style (`managementIp`).
#[derive(Clone, Debug, Default, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Tables {
    /// `[[cluster]]`.
    pub clusters: Vec<Map<String, Value>>,
    /// `[[host]]`.
    pub hosts: Vec<Map<String, Value>>,
    /// `[[storage]]`.
    pub storages: Vec<Map<String, Value>>,
    /// `[[vm]]`.
    pub vms: Vec<Map<String, Value>>,
}

/// Names by kind.
#[derive(Clone, Debug, Default, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Names {
    /// Names of clusters.
    pub clusters: Vec<String>,
    /// Names of hosts.
    pub hosts: Vec<String>,
    /// Names of storages.
    pub storages: Vec<String>,
    /// Names of VMs.
    pub vms: Vec<String>,
}

/// A change of the inventory, applied as a whole or not at all.
#[derive(Clone, Debug, Default, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Edit {
    /// Items to add, or to replace by name.
    pub put: Tables,
    /// Items to remove.
    pub remove: Names,
}

/// Kinds of tables: key in JSON and key in TOML.
const KINDS: [(&str, &str); 4] = [("clusters", "cluster"), ("hosts", "host"), ("storages", "storage"), ("vms", "vm")];

impl Source {
    /// Reads the file of the API beside a config file.
    ///
    /// # Errors
    /// The file of the items that the API added cannot be read.
    pub(super) fn read(path: &Path, text: String) -> Result<Source, Problems> {
        #[derive(Deserialize)]
        struct Head {
            controller: Controller,
        }
        #[derive(Deserialize)]
        struct Controller {
            state_dir: PathBuf,
        }
        // The parser of the whole file reports a file that this one cannot parse.
        let state_dir = toml::from_str::<Head>(&text).map(|head| head.controller.state_dir).unwrap_or_default();
        let managed_path = path.parent().unwrap_or(Path::new(".")).join(state_dir).join(FILE);
        let managed = if managed_path.exists() { read(&managed_path)? } else { String::new() };
        Ok(Source { path: path.to_owned(), text, managed_path, managed })
    }

    /// The configuration of both files together.
    ///
    /// # Errors
    /// `SYS.1007`, all errors.
    pub fn config(self) -> Result<ControllerConfig> {
        Ok(controller::parse(self)?)
    }

    /// The same with an edit of the items that the API added.
    ///
    /// # Errors
    /// `SYS.1007`: a table without a name, an item of the config file, or an unknown item.
    pub fn edited(&self, edit: &Edit) -> Result<Source> {
        let bad = |why: String| ErrorCode::new(Code::INVALID_ARGUMENT, why);
        let (config, mut managed) = (tables(&self.text)?, tables(&self.managed)?);
        let may = self.api_may();
        let Edit { put, remove } = edit;
        let put = [&put.clusters, &put.hosts, &put.storages, &put.vms];
        let remove = [&remove.clusters, &remove.hosts, &remove.storages, &remove.vms];
        for (((_, kind), put), remove) in KINDS.iter().zip(put).zip(remove) {
            let elsewhere = |name: &str| {
                let there = array(&config, kind).iter().any(|of| name_of(of) == Some(name));
                let why =
                    || format!("{kind} {name} is defined in {}; change it there, then reload", self.path.display());
                if there { Err(bad(why())) } else { Ok(()) }
            };
            let mut all = array(&managed, kind).to_vec();
            for name in remove {
                elsewhere(name)?;
                let at = all.iter().position(|of| name_of(of) == Some(name));
                all.remove(
                    at.ok_or_else(|| ErrorCode::new(Code::NOT_FOUND, format!("there is no {kind} {name:.80}")))?,
                );
            }
            for table in put {
                let table = toml_of(&Value::Object(table.clone())).unwrap_or(toml::Value::Table(toml::Table::new()));
                let name = name_of(&table).ok_or_else(|| bad(format!("a {kind} has no name; add name = \"NAME\"")))?;
                elsewhere(name)?;
                let before = all.iter().find(|of| name_of(of) == Some(name));
                self.may(&may, kind, &table, before)?;
                match all.iter().position(|of| name_of(of) == Some(name)) {
                    Some(at) => all[at] = table,
                    None => all.push(table),
                }
            }
            match all.is_empty() {
                true => managed.remove(*kind),
                false => managed.insert((*kind).to_owned(), toml::Value::Array(all)),
            };
        }
        let written = toml::to_string(&managed).map_err(|why| bad(why.to_string()))?;
        let managed = if written.is_empty() { written } else { format!("{HEAD}{written}") };
        if managed.len() as u64 > MAX_FILE_BYTES {
            return Err(bad(format!("the inventory would have {} bytes (at most {MAX_FILE_BYTES})", managed.len())));
        }
        Ok(Source { managed, ..self.clone() })
    }

    /// `api_may` of the config file; empty if the file is invalid.
    fn api_may(&self) -> Vec<ApiMay> {
        #[derive(Deserialize)]
        struct Head {
            controller: Controller,
        }
        #[derive(Deserialize)]
        struct Controller {
            #[serde(default)]
            api_may: Vec<ApiMay>,
        }
        toml::from_str::<Head>(&self.text).map(|head| head.controller.api_may).unwrap_or_default()
    }

    /// Rejects a changed key that `api_may` of the config file does not permit.
    fn may(&self, may: &[ApiMay], kind: &str, table: &toml::Value, before: Option<&toml::Value>) -> Result<()> {
        for (of, key, permission, word) in ApiMay::KEYS {
            let value =
                table.get(key).filter(|value| of == kind && permission.concerns(value) && !may.contains(&permission));
            if value.is_some() && value != before.and_then(|before| before.get(key)) {
                let why = format!(
                    "{kind} {}: the API may not set {key}, which gives root on hosts or reads files of the controller; \
                     write it into {}, or add {word:?} to api_may in [controller] there and reload",
                    name_of(table).unwrap_or_default(),
                    self.path.display()
                );
                return Err(ErrorCode::new(Code::INVALID_ARGUMENT, why));
            }
        }
        Ok(())
    }

    /// Changed tables of the config file that are read at the start only, such as `[ping]`.
    pub fn need_restart(&self, new: &Source) -> Vec<String> {
        let (Ok(old), Ok(new)) = (tables(&self.text), tables(&new.text)) else { return Vec::new() };
        let mut keys: Vec<&String> = old.keys().chain(new.keys()).collect();
        keys.sort();
        keys.dedup();
        let inventory = |key: &str| KINDS.iter().any(|(_, kind)| *kind == key);
        let others = keys.into_iter().filter(|key| !inventory(key) && old.get(*key) != new.get(*key));
        others.map(|key| format!("[{key}]")).collect()
    }

    /// The inventory of both files as JSON; `managed` marks the items that the API may change.
    ///
    /// # Errors
    /// `SYS.1007` if one of the files is invalid.
    pub fn shown(&self) -> Result<Value> {
        let mut shown = Map::new();
        let both = [(tables(&self.text)?, false), (tables(&self.managed)?, true)];
        for (plural, kind) in KINDS {
            let of = |(tables, managed): &(toml::Table, bool)| {
                let item = |of: &toml::Value| serde_json::json!({ "managed": managed, "definition": json_of(of) });
                array(tables, kind).iter().map(item).collect::<Vec<_>>()
            };
            shown.insert(plural.to_owned(), both.iter().flat_map(of).collect());
        }
        Ok(Value::Object(shown))
    }

    /// Writes a draft of the file of the API; `Written::replace` replaces the file with it.
    ///
    /// # Errors
    /// `SYS.1016`: nothing was changed.
    pub fn write(&self) -> Result<Written<'_>> {
        let failed = |why: std::io::Error| {
            ErrorCode::new(Code::IO, format!("{}: {why}; nothing was changed", self.managed_path.display()))
        };
        let draft = Draft::write(&self.managed_path, self.managed.as_bytes()).map_err(failed)?;
        Ok(Written { draft, path: &self.managed_path })
    }
}

/// A draft of the file; dropping it removes the draft.
pub struct Written<'a> {
    draft: Draft,
    path: &'a Path,
}

impl Written<'_> {
    /// Replaces the file.
    ///
    /// # Errors
    /// `SYS.1016`.
    pub fn replace(self) -> Result<()> {
        let failed = |why: std::io::Error| ErrorCode::new(Code::IO, format!("{}: {why}", self.path.display()));
        self.draft.replace().map_err(failed)
    }
}

fn tables(text: &str) -> Result<toml::Table> {
    text.parse().map_err(|why: toml::de::Error| ErrorCode::new(Code::INVALID_ARGUMENT, why.to_string()))
}

fn array<'a>(tables: &'a toml::Table, kind: &str) -> &'a [toml::Value] {
    tables.get(kind).and_then(toml::Value::as_array).map(Vec::as_slice).unwrap_or_default()
}

fn name_of(table: &toml::Value) -> Option<&str> {
    table.get("name")?.as_str()
}

/// As TOML, with TOML keys; null values are omitted.
pub(crate) fn toml_of(value: &Value) -> Option<toml::Value> {
    Some(match value {
        Value::Null => return None,
        Value::Bool(is) => (*is).into(),
        Value::Number(n) => n.as_i64().map_or_else(|| n.as_f64().unwrap_or(f64::NAN).into(), toml::Value::from),
        Value::String(text) => text.as_str().into(),
        Value::Array(all) => toml::Value::Array(all.iter().filter_map(toml_of).collect()),
        Value::Object(all) => {
            toml::Value::Table(all.iter().filter_map(|(key, of)| Some((snake(key), toml_of(of)?))).collect())
        }
    })
}

/// As JSON, with JSON keys.
fn json_of(value: &toml::Value) -> Value {
    match value {
        toml::Value::Table(all) => Value::Object(all.iter().map(|(key, of)| (camel(key), json_of(of))).collect()),
        toml::Value::Array(all) => all.iter().map(json_of).collect(),
        other => serde_json::to_value(other).unwrap_or_default(),
    }
}

/// `managementIp` as `management_ip`.
fn snake(key: &str) -> String {
    let mut snake = String::with_capacity(key.len() + 2);
    for c in key.chars() {
        if c.is_ascii_uppercase() {
            snake.push('_');
        }
        snake.push(c.to_ascii_lowercase());
    }
    snake
}

/// `management_ip` as `managementIp`.
fn camel(key: &str) -> String {
    let mut words = key.split('_');
    let first = words.next().unwrap_or_default().to_owned();
    words.fold(first, |mut camel, word| {
        let mut chars = word.chars();
        camel.extend(chars.next().map(|c| c.to_ascii_uppercase()));
        camel.push_str(chars.as_str());
        camel
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const CONFIG: &str = "\
[controller]
state_dir = \"state\"
api_may = [\"plain_agents\"]
[[cluster]]
name = \"c1\"
[[host]]
name = \"a\"
cluster = \"c1\"
management_ip = \"10.0.0.1\"
agent = \"http://10.0.0.1:7070\"
[[storage]]
name = \"v\"
kind = \"vhost\"
clusters = [\"c1\"]
dir = \"/srv\"
";

    fn source() -> Source {
        Source {
            path: "/etc/c.toml".into(),
            text: CONFIG.into(),
            managed_path: "/s/inventory.toml".into(),
            managed: String::new(),
        }
    }

    fn edit(edit: Value) -> Edit {
        serde_json::from_value(edit).unwrap()
    }

    fn vm(name: &str) -> Value {
        let volume = json!({ "storage": "v", "installPath": format!("vhost://{name}"), "root": true });
        json!({ "name": name, "cluster": "c1", "memoryMib": 64, "ha": "NeverStop", "volume": [volume], "uuid": null })
    }

    #[test]
    fn items_of_the_api_are_read_with_the_config() {
        let host = json!({ "name": "b", "cluster": "c1", "managementIp": "10.0.0.2", "agent": "http://10.0.0.2:7070" });
        let both = edit(json!({ "put": { "hosts": [host], "vms": [vm("vm1"), vm("vm2")] } }));
        let source = source().edited(&both).unwrap();
        let config = source.clone().config().unwrap();
        assert_eq!(config.inventory.hosts.iter().map(|of| of.name.as_str()).collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(config.inventory.vms[1].memory_mib, 64);
        // Replaced in place, and removed.
        let mut other = vm("vm1");
        other["memoryMib"] = json!(128);
        let source = source.edited(&edit(json!({ "put": { "vms": [other] }, "remove": { "vms": ["vm2"] } }))).unwrap();
        let config = source.clone().config().unwrap();
        assert_eq!((config.inventory.vms.len(), config.inventory.vms[0].memory_mib), (1, 128));
        let shown = source.shown().unwrap();
        assert_eq!((&shown["hosts"][0]["managed"], &shown["hosts"][1]["managed"]), (&json!(false), &json!(true)));
        assert_eq!(shown["vms"][0]["definition"]["volume"][0]["installPath"], "vhost://vm1");
        let all = edit(json!({ "remove": { "hosts": ["b"], "vms": ["vm1"] } }));
        assert_eq!(source.edited(&all).unwrap().managed, "", "the file is empty");
    }

    #[test]
    fn error_has_its_line_and_config_items_are_not_edited() {
        for (change, says) in [
            (
                json!({ "put": { "hosts": [{ "name": "a" }] } }),
                "host a is defined in /etc/c.toml; change it there, then reload",
            ),
            (json!({ "remove": { "hosts": ["a"] } }), "host a is defined in /etc/c.toml"),
            (json!({ "remove": { "vms": ["x"] } }), "there is no vm x"),
            (json!({ "put": { "vms": [{ "cluster": "c1" }] } }), "a vm has no name"),
        ] {
            let error = source().edited(&edit(change.clone())).unwrap_err();
            assert!(error.details.contains(says), "{change}: {error}");
        }
        let mut wrong = vm("vm1");
        (wrong["cluster"], wrong["memoryMIB"]) = (json!("c9"), json!(1));
        let error = source().edited(&edit(json!({ "put": { "vms": [wrong] } }))).unwrap().config().unwrap_err();
        assert!(error.details.contains("memory_m_i_b = 1: unknown"), "{error}");
        let mut wrong = vm("vm1");
        wrong["cluster"] = json!("c9");
        let error = source().edited(&edit(json!({ "put": { "vms": [wrong] } }))).unwrap().config().unwrap_err();
        assert!(error.details.contains("cluster = \"c9\": there is no cluster named \"c9\""), "{error}");
    }

    #[test]
    fn privileged_keys_need_api_may() {
        let with = |may: &str| Source { text: CONFIG.replace("\"plain_agents\"", may), ..source() };
        let armed = |key: &str, value: Value| {
            let mut vm = vm("vm1");
            vm[key] = value;
            edit(json!({ "put": { "vms": [vm] } }))
        };
        let host = |key: &str, value: &str| {
            let mut host =
                json!({ "name": "b", "cluster": "c1", "managementIp": "10.0.0.2", "agent": "http://127.0.0.1:1" });
            host[key] = json!(value);
            edit(json!({ "put": { "hosts": [host] } }))
        };
        let storage = |key: &str| {
            let storage =
                json!({ "name": "s", "kind": "ceph", "clusters": ["c1"], "pool": "p", "user": "u", key: "/x" });
            edit(json!({ "put": { "storages": [storage] } }))
        };
        for (change, word) in [
            (armed("qemuArgs", json!(["-netdev", "tap,script=/x"])), "qemu_args"),
            (armed("libvirt", json!({ "xml": "/etc/shadow" })), "libvirt"),
            (host("sshPasswordFile", "/etc/shadow"), "ssh_password_file"),
            (host("agent", "http://10.0.0.2:7070"), "plain_agents"),
            (storage("conf"), "conf"),
            (storage("hostConf"), "conf"),
        ] {
            let error = with("").edited(&change).unwrap_err();
            assert!(error.details.contains(&format!("add {word:?} to api_may")), "{error}");
            with(&format!("{word:?}")).edited(&change).unwrap();
        }
        with("").edited(&host("agent", "http://127.0.0.1:7070")).unwrap();
        with("").edited(&armed("qemuArgs", json!([]))).unwrap();
        // An unchanged value stays.
        let there = with("\"qemu_args\"").edited(&armed("qemuArgs", json!(["-S"]))).unwrap();
        let later = Source { text: with("").text, ..there };
        later.edited(&armed("qemuArgs", json!(["-S"]))).unwrap();
        assert!(later.edited(&armed("qemuArgs", json!(["-s"]))).is_err());
    }

    #[test]
    fn tables_that_need_a_restart_are_listed() {
        let mut new = source();
        new.text = format!("{CONFIG}[ping]\ninterval = \"1s\"\n").replace("/srv", "/other");
        assert_eq!(source().need_restart(&new), ["[ping]"], "the storage is part of the inventory");
    }
}
