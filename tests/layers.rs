//! Allowed dependencies between crates and between modules, words that a crate must not contain, and file sizes.
#![allow(missing_docs)]

mod sources;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use sources::{ROOT, code, sources};

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

/// The names under `[dependencies]` of a manifest; dev-dependencies are free.
fn dependencies(folder: &str) -> BTreeSet<String> {
    let manifest = fs::read_to_string(Path::new(ROOT).join(folder).join("Cargo.toml")).unwrap();
    let lines = manifest.lines().skip_while(|line| *line != "[dependencies]").skip(1);
    let names = lines.take_while(|line| !line.starts_with('[')).filter_map(|line| line.split(['.', ' ', '=']).next());
    let names: BTreeSet<String> = names.filter(|name| !name.is_empty()).map(str::to_owned).collect();
    assert!(!names.is_empty(), "{folder}: no dependencies found; did the form of the manifest change?");
    names
}

#[test]
fn dependencies_point_one_way() {
    for (folder, allowed) in ALLOWED {
        let used: BTreeSet<_> = dependencies(folder).into_iter().filter(|name| name.starts_with("ringfence")).collect();
        let allowed = allowed.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
        assert!(used.is_subset(&allowed), "{folder} uses {:?}", used.difference(&allowed));
    }
    let manifest = fs::read_to_string(Path::new(ROOT).join("Cargo.toml")).unwrap();
    let members = manifest.lines().find_map(|line| line.strip_prefix("members = ")).unwrap();
    let members: BTreeSet<&str> = members.split('"').skip(1).step_by(2).collect();
    assert_eq!(members, ALLOWED.iter().map(|(folder, _)| *folder).collect(), "each crate needs one rule");
}

#[test]
fn messages_need_no_runtime() {
    // utoipa describes types behind a feature, and runs nothing.
    let expected = ["bincode", "serde", "utoipa", "uuid"].map(str::to_owned).into_iter().collect();
    assert_eq!(dependencies("messages"), expected);
    let manifest = fs::read_to_string(Path::new(ROOT).join("messages/Cargo.toml")).unwrap();
    assert!(manifest.contains("\nutoipa = { workspace = true, optional = true }\n"));
}

/// The bus is for embedding: no domain word occurs in it.
#[test]
fn bus_has_no_domain_words() {
    const WORDS: [&str; 12] =
        ["vm", "vms", "host", "hosts", "storage", "disk", "volume", "ceph", "qemu", "vhost", "fence", "hypervisor"];
    let mut found = BTreeMap::new();
    for path in sources(&Path::new(ROOT).join("src")) {
        let text = fs::read_to_string(&path).unwrap();
        for (n, line) in text.lines().enumerate() {
            let words = line.split(|c: char| !c.is_ascii_alphanumeric()).map(str::to_lowercase);
            if let Some(word) = words.into_iter().find(|word| WORDS.contains(&word.as_str())) {
                found.insert(format!("{}:{}", path.display(), n + 1), word);
            }
        }
    }
    assert!(found.is_empty(), "domain words in the bus: {found:#?}");
}

/// Circles that remain between the top-level modules of a crate, each with the reason. This list may only shrink: a
/// module that leaves its circle leaves the list in the same commit.
const CIRCLES: [(&str, &[&str]); 1] = [
    // The types of the bus are generic over each other: an actor names its context, which names the bus.
    (".", &["actor", "bus", "context", "envelope", "event", "mailbox", "mailbox_loop", "registry"]),
];

/// A crate's top-level modules, each with the modules that it uses; tests and comments do not count.
struct Modules(BTreeMap<String, BTreeSet<String>>);

impl Modules {
    fn of(folder: &str) -> Modules {
        let src = Path::new(ROOT).join(folder).join("src");
        let path_of = |file: &Path| -> Vec<String> {
            let inside = file.strip_prefix(&src).unwrap().with_extension("");
            let mut path: Vec<String> = inside.iter().map(|part| part.to_str().unwrap().to_owned()).collect();
            if path.last().is_some_and(|name| name == "mod") {
                path.pop();
            }
            path
        };
        let files: Vec<(Vec<String>, String)> = sources(&src)
            .iter()
            .map(|file| (path_of(file), code(&fs::read_to_string(file).unwrap())))
            .filter(|(path, _)| path.last().is_none_or(|name| name != "tests" && !name.ends_with("_tests")))
            .collect();
        let root = files.iter().find(|(path, _)| *path == ["lib"]).map_or("", |(_, text)| text);
        let tops: BTreeSet<String> = files.iter().map(|(path, _)| path[0].clone()).collect();
        // `pub use actor::Actor` in lib.rs: a use of `crate::Actor` is a use of `actor`.
        let exported: BTreeMap<String, String> = paths_of_uses(root)
            .into_iter()
            .filter(|path| path.len() > 1 && tops.contains(&path[0]))
            .map(|path| (path[path.len() - 1].clone(), path[0].clone()))
            .collect();
        let mut used: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for (path, text) in files.iter().filter(|(path, _)| path[0] != "lib" && path[0] != "main") {
            let names = used_of_root(path, text).into_iter();
            let tops =
                names.filter_map(|name| if tops.contains(&name) { Some(name) } else { exported.get(&name).cloned() });
            let of_module = used.entry(path[0].clone()).or_default();
            of_module.extend(tops.filter(|name| *name != path[0] && name != "lib" && name != "main"));
        }
        Modules(used)
    }

    fn edges(&self) -> usize {
        self.0.values().map(BTreeSet::len).sum()
    }

    /// Everything that a module reaches over one or more uses.
    fn reached(&self, from: &str) -> BTreeSet<&str> {
        let (mut reached, mut todo) = (BTreeSet::new(), vec![from]);
        while let Some(module) = todo.pop() {
            for used in self.0.get(module).into_iter().flatten() {
                if reached.insert(used.as_str()) {
                    todo.push(used);
                }
            }
        }
        reached
    }

    /// The strongly connected components of more than one module.
    fn circles(&self) -> BTreeSet<Vec<&str>> {
        let reached: BTreeMap<&str, BTreeSet<&str>> =
            self.0.keys().map(|module| (module.as_str(), self.reached(module))).collect();
        let circle = |module: &&str| -> Vec<&str> {
            let back = |other: &&&str| reached.get(**other).is_some_and(|reached| reached.contains(module));
            reached[module].iter().filter(back).copied().collect()
        };
        reached.keys().map(circle).filter(|circle| circle.len() > 1).collect()
    }
}

/// The paths of all `use` items, with their groups unfolded.
fn paths_of_uses(code: &str) -> Vec<Vec<String>> {
    let items = code.split("use ").skip(1).filter_map(|rest| rest.split_once(';')).map(|(tree, _)| tree);
    let mut paths = Vec::new();
    for tree in items {
        unfold(&[], tree, &mut paths);
    }
    paths
}

fn unfold(prefix: &[String], tree: &str, paths: &mut Vec<Vec<String>>) {
    let (mut depth, mut begin) = (0, 0);
    let mut parts = Vec::new();
    for (at, c) in tree.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(&tree[begin..at]);
                begin = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&tree[begin..]);
    for part in parts.into_iter().map(str::trim).filter(|part| !part.is_empty()) {
        let (head, group) = part.split_once('{').map_or((part, None), |(head, group)| (head, Some(group)));
        let names = head.split("::").map(|name| name.trim().split(' ').next().unwrap_or_default().to_owned());
        let path: Vec<String> = prefix.iter().cloned().chain(names.filter(|name| !name.is_empty())).collect();
        match group {
            Some(group) => unfold(&path, group.trim_end().strip_suffix('}').unwrap_or(group), paths),
            None => paths.push(path),
        }
    }
}

/// The names of the crate root that a file at this module path uses: by `crate::`, or by as many `super::` as lead
/// there.
fn used_of_root(module: &[String], code: &str) -> BTreeSet<String> {
    let absolute = |path: &[String]| -> Option<String> {
        let ups = path.iter().take_while(|name| *name == "super").count();
        match path.first()?.as_str() {
            "crate" => path.get(1).cloned(),
            "super" if ups == module.len() => path.get(ups).cloned(),
            _ => None,
        }
    };
    let mut used: BTreeSet<String> = paths_of_uses(code).iter().filter_map(|path| absolute(path)).collect();
    // Paths in the code itself, `crate::texts::each(..)`.
    let words: Vec<&str> = code.split(|c: char| !c.is_ascii_alphanumeric() && c != '_' && c != ':').collect();
    for word in words {
        let path: Vec<String> = word.split("::").map(str::to_owned).collect();
        used.extend(absolute(&path).filter(|_| path.len() > 1));
    }
    used.remove("");
    used
}

/// Modules can be read, tested and moved one by one only if their uses point one way.
#[test]
fn no_circle_between_modules_of_a_crate() {
    let mut found = BTreeSet::new();
    for (folder, _) in ALLOWED.iter().filter(|(folder, _)| Path::new(ROOT).join(folder).join("src").is_dir()) {
        let modules = Modules::of(folder);
        let circles = modules.circles();
        eprintln!("{folder}: {} modules, {} uses, {} circles", modules.0.len(), modules.edges(), circles.len());
        for circle in circles {
            eprintln!("  {}", circle.join(" "));
            for module in &circle {
                let inside = modules.0[*module].iter().filter(|used| circle.contains(&used.as_str()));
                eprintln!("    {module} -> {}", inside.cloned().collect::<Vec<_>>().join(" "));
            }
            found.insert((*folder, circle.iter().map(|module| (*module).to_owned()).collect::<Vec<_>>()));
        }
    }
    let listed: BTreeSet<(&str, Vec<String>)> = CIRCLES
        .iter()
        .map(|(folder, modules)| (*folder, modules.iter().map(|name| (*name).to_owned()).collect()))
        .collect();
    for (folder, circle) in &found {
        let of_folder = listed.iter().filter(|(of, _)| of == folder);
        let is_listed = of_folder.into_iter().any(|(_, listed)| circle.iter().all(|name| listed.contains(name)));
        assert!(is_listed, "{folder} has a new circle between modules: {circle:?}");
    }
    assert_eq!(found, listed, "a circle has shrunk: shorten the list of circles too");
}

/// The rule above finds a circle of three over all ways to name a module.
#[test]
fn circles_are_found_over_every_form_of_a_path() {
    let used = |module: &[&str], text: &str| {
        let module: Vec<String> = module.iter().map(|name| (*name).to_owned()).collect();
        used_of_root(&module, &code(text)).into_iter().collect::<Vec<_>>().join(" ")
    };
    assert_eq!(used(&["a"], "use crate::{b::{self, X}, c::Y as Z};"), "b c");
    assert_eq!(used(&["a", "inner"], "use super::super::b::X;\nuse super::own::Y;"), "b");
    assert_eq!(used(&["a"], "fn f() { crate::b::g(super::c::h()) } // crate::d::x"), "b c");
    assert_eq!(used(&["a"], "#[cfg(test)]\nmod tests {\n use crate::b; }"), "");
    let uses = [("a", "b"), ("b", "c"), ("c", "a"), ("d", "a")];
    let modules = Modules(uses.iter().map(|(a, b)| ((*a).to_owned(), BTreeSet::from([(*b).to_owned()]))).collect());
    assert_eq!(modules.circles(), BTreeSet::from([vec!["a", "b", "c"]]));
}

/// The rooms of `actors` with decisions, each with its shells: the files that carry decisions out. Every other file of
/// a room is a core, a new one too.
const ROOMS: [(&str, &[&str]); 7] = [
    ("audit", &["actor.rs", "recorder.rs"]),
    ("fence", &[]),
    ("ha", &["actor.rs", "moves.rs", "reconciliation.rs", "replay.rs"]),
    ("placement", &["actor.rs"]),
    ("recovery", &["actor.rs"]),
    ("storage", &["actor.rs"]),
    ("vm", &["actor.rs", "fencing.rs", "rehearsal.rs"]),
];

/// What a core must not use, and why.
const BANNED: [(&str, &[&str]); 5] = [
    ("a runtime", &["tokio", "actix", "async", "await", "spawn"]),
    ("the bus", &["Bus", "Ctx", "Handler", "Promise"]),
    ("a clock", &["Instant::now", "SystemTime"]),
    ("randomness", &["rand", "thread_rng", "new_v4", "HashSet"]),
    ("a port", &["Ports", "HostAgentPort", "CephPort", "MdsPort", "JournalPort", "LeadershipPort"]),
];

/// The banned names in a core, each with what it stands for.
fn not_pure(text: &str) -> Vec<String> {
    let code = code(text);
    let mut words: BTreeSet<&str> = code.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').collect();
    let paths = ["Instant::now"];
    words.extend(paths.iter().filter(|path| code.contains(**path)));
    let banned = BANNED.iter().flat_map(|(what, names)| names.iter().map(move |name| (*what, *name)));
    let mut found: Vec<String> =
        banned.filter(|(_, name)| words.contains(name)).map(|(what, name)| format!("{name}: {what}")).collect();
    // `HostActor::KIND`, or an item of the shell beside the core.
    found.extend(words.iter().filter(|word| word.ends_with("Actor")).map(|word| format!("{word}: a shell")));
    let shell = |path: &Vec<String>| path.iter().any(|part| part == "actor");
    found.extend(
        paths_of_uses(&code).iter().filter(|path| shell(path)).map(|path| format!("{}: a shell", path.join("::"))),
    );
    found
}

/// Decisions run without a runtime: in tests, in the simulator, in a model checker.
#[test]
fn cores_use_no_runtime_bus_clock_randomness_or_port() {
    let mut cores = 0;
    for (room, shells) in ROOMS {
        let folder = Path::new(ROOT).join("actors/src").join(room);
        for shell in shells {
            assert!(folder.join(shell).is_file(), "{room}/{shell} is listed and does not exist");
        }
        for path in sources(&folder) {
            let name = path.file_name().unwrap().to_str().unwrap();
            if name == "mod.rs" || name.ends_with("_tests.rs") || shells.contains(&name) {
                continue;
            }
            cores += 1;
            let found = not_pure(&fs::read_to_string(&path).unwrap());
            assert!(found.is_empty(), "{room}/{name} is a core and uses {found:?}");
        }
    }
    assert!(cores >= 24, "only {cores} cores found");
    let rooms: BTreeSet<&str> = ROOMS.iter().map(|(room, _)| *room).collect();
    for entry in fs::read_dir(Path::new(ROOT).join("actors/src")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        let has_core = path.is_dir() && path.join("core.rs").is_file();
        assert!(!has_core || rooms.contains(name), "{name} has a core and is not listed as a room");
    }
}

/// The rule above finds every way to name a runtime, and no other word.
#[test]
fn impure_core_is_found() {
    for text in [
        "use ringfence::{Actor, Ctx};",
        "async fn f() {}",
        "let now = Instant::now();",
        "let id = Uuid::new_v4();",
        "use crate::host::HostActor;",
        "use super::{actor::SEARCH_TIMEOUT, core::Core};",
        "fn f(ports: &dyn JournalPort) {}",
        "tokio::spawn(work)",
    ] {
        assert!(!not_pure(text).is_empty(), "{text:?} is not found");
    }
    for text in ["struct Busy; // tokio", "use std::time::Instant;", "fn f(now: Instant) {}", "let actors = 1;"] {
        assert_eq!(not_pure(text), Vec::<String>::new(), "{text:?}");
    }
}

/// The simulated world is the far end of the ports: it judges the actors, so it must not use them.
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
fn files_are_at_most_600_lines() {
    const MAX_LINES: usize = 600;
    let folders = [
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
    for path in folders.iter().flat_map(|folder| sources(&Path::new(ROOT).join(folder))) {
        let lines = fs::read_to_string(&path).unwrap().lines().count();
        assert!(
            lines <= MAX_LINES,
            "{} has {lines} lines, more than {MAX_LINES}: split it by its two nouns",
            path.display()
        );
    }
}
