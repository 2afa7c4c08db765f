//! Rules about the crates: allowed dependencies, forbidden words, and the size of files.
#![allow(missing_docs)]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// Each crate and the crates that it may use: dependencies point one way.
const ALLOWED: [(&str, &[&str]); 8] = [
    ("messages", &[]),
    (".", &["ringfence-messages"]),
    ("actors", &["ringfence", "ringfence-messages"]),
    ("drivers", &["ringfence-actors", "ringfence-messages"]),
    ("sim", &["ringfence", "ringfence-actors", "ringfence-messages"]),
    ("cli", &["ringfence", "ringfence-actors", "ringfence-drivers", "ringfence-messages", "ringfence-sim"]),
    ("benches", &["ringfence", "ringfence-actors", "ringfence-messages"]),
    ("fuzz", &["ringfence-cli", "ringfence-drivers", "ringfence-messages", "ringfence-sim"]),
];

/// The names under `[dependencies]` of a crate's manifest; dev-dependencies are not restricted.
fn dependencies(krate: &str) -> BTreeSet<String> {
    let manifest = fs::read_to_string(Path::new(ROOT).join(krate).join("Cargo.toml")).unwrap();
    let lines = manifest.lines().skip_while(|line| *line != "[dependencies]").skip(1);
    let names = lines.take_while(|line| !line.starts_with('[')).filter_map(|line| line.split(['.', ' ', '=']).next());
    let names: BTreeSet<String> = names.filter(|name| !name.is_empty()).map(str::to_owned).collect();
    assert!(!names.is_empty(), "{krate}: no dependencies were found; did the form of the manifest change?");
    names
}

fn sources(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            found.push(path);
        }
    }
    found
}

#[test]
fn dependencies_point_one_way() {
    for (krate, allowed_crates) in ALLOWED {
        let ours =
            dependencies(krate).into_iter().filter(|name| name.starts_with("ringfence")).collect::<BTreeSet<_>>();
        let allowed = allowed_crates.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
        assert!(ours.is_subset(&allowed), "{krate} uses {:?}", ours.difference(&allowed));
    }
    let manifest = fs::read_to_string(Path::new(ROOT).join("Cargo.toml")).unwrap();
    let members = manifest.lines().find_map(|line| line.strip_prefix("members = ")).unwrap();
    let members: BTreeSet<&str> = members.split('"').skip(1).step_by(2).collect();
    assert_eq!(
        members,
        ALLOWED.iter().map(|(krate, _)| *krate).collect(),
        "a crate without a rule, or a rule without a crate"
    );
}

#[test]
fn messages_need_no_runtime() {
    // utoipa is optional and runs nothing.
    let expected = ["bincode", "serde", "utoipa", "uuid"].map(str::to_owned).into_iter().collect();
    assert_eq!(dependencies("messages"), expected);
    let manifest = fs::read_to_string(Path::new(ROOT).join("messages/Cargo.toml")).unwrap();
    assert!(manifest.contains("\nutoipa = { workspace = true, optional = true }\n"));
}

/// The bus is for embedding: it has no words of the domain.
#[test]
fn bus_has_no_domain_words() {
    const WORDS: [&str; 12] =
        ["vm", "vms", "host", "hosts", "storage", "disk", "volume", "ceph", "qemu", "vhost", "fence", "hypervisor"];
    let mut found_words = BTreeMap::new();
    for path in sources(&Path::new(ROOT).join("src")) {
        let text = fs::read_to_string(&path).unwrap();
        for (n, line) in text.lines().enumerate() {
            let words = line.split(|c: char| !c.is_ascii_alphanumeric()).map(str::to_lowercase);
            if let Some(word) = words.into_iter().find(|word| WORDS.contains(&word.as_str())) {
                found_words.insert(format!("{}:{}", path.display(), n + 1), word);
            }
        }
    }
    assert!(found_words.is_empty(), "domain words in the bus: {found_words:#?}");
}

/// Decisions run without a runtime: in tests, in the simulator, in a model checker.
#[test]
fn cores_have_no_runtime_clock_or_randomness() {
    const CORES: [&str; 11] = [
        "core.rs",
        "backoff.rs",
        "schedule.rs",
        "flow.rs",
        "failovers.rs",
        "start.rs",
        "guard.rs",
        "verdicts.rs",
        "placement.rs",
        "attempt.rs",
        "tables.rs",
    ];
    let mut cores = 0;
    for path in sources(&Path::new(ROOT).join("actors/src")) {
        let is_core = path.file_name().is_some_and(|name| CORES.iter().any(|core| name == *core));
        if !is_core {
            continue;
        }
        cores += 1;
        let text = fs::read_to_string(&path).unwrap();
        for banned in
            ["tokio", "actix", "async ", ".await", "Instant::now", "SystemTime::now", "HashSet<", "thread_rng"]
        {
            assert!(
                !text.contains(banned),
                "{} has {banned:?}: a core has no runtime, clock or randomness",
                path.display()
            );
        }
    }
    assert!(cores >= 14, "only {cores} cores were found");
}

/// The simulated world implements the ports and judges the actors, so it must not use them.
#[test]
fn simulated_world_uses_ports_and_no_actors() {
    const KNOWN: [&str; 6] = ["ports", "inventory", "fence", "host", "sabotage", "texts"];
    for path in sources(&Path::new(ROOT).join("sim/src/world")) {
        let text = fs::read_to_string(&path).unwrap();
        let mut rest = text.as_str();
        while let Some(at) = rest.find("ringfence_actors::") {
            rest = &rest[at + "ringfence_actors::".len()..];
            let names = rest.split(';').next().unwrap_or_default();
            let names = names.strip_prefix('{').unwrap_or(names);
            let first = names.split(|c: char| !c.is_ascii_alphanumeric()).find(|name| !name.is_empty()).unwrap();
            assert!(KNOWN.contains(&first), "{} uses {first} of the actors", path.display());
        }
        assert!(!text.contains("Actor::") && !text.contains("HostActor"), "{} uses an actor", path.display());
    }
}

/// One noun per file.
#[test]
fn files_have_at_most_600_lines() {
    const MAX_LINES: usize = 600;
    let crates = [
        "src",
        "messages/src",
        "actors/src",
        "drivers/src",
        "sim/src",
        "cli/src",
        "tests",
        "benches",
        "examples",
        "fuzz",
    ];
    for path in crates.iter().flat_map(|krate| sources(&Path::new(ROOT).join(krate))) {
        let lines = fs::read_to_string(&path).unwrap().lines().count();
        assert!(
            lines <= MAX_LINES,
            "{} has {lines} lines, more than {MAX_LINES}: which two nouns does it hold?",
            path.display()
        );
    }
}
