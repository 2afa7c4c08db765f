//! The form of the sources: length of functions, width of lines, and type names that several crates have.
//!
//! Each list of exceptions has a reason per entry, and may only shrink: an entry that is no longer needed fails the
//! test.
#![allow(missing_docs)]

mod sources;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use sources::{ROOT, code, sources};

/// Lines of a function, at most, from its name to its closing brace. A longer one does not fit on a screen.
const MAX_LINES: usize = 70;

/// Columns of a line, at most. rustfmt keeps code within them; it leaves strings, comments and macros alone.
const MAX_COLUMNS: usize = 120;

/// Functions that are longer than [`MAX_LINES`]: end of the path, name, reason.
const LONG: [(&str, &str, &str); 18] = [
    ("vm/core.rs", "on", "the table of the state machine: one arm for each pair of event and operation"),
    ("world/faults.rs", "change", "one arm for each fault: its begin and its end are read together"),
    ("sim/src/rates.rs", "extra_fault_steps", "one arm for each fault"),
    ("config/storages.rs", "storage", "one check for each key of the table, in the sequence of the file"),
    ("config/controller.rs", "parse", "one check for each table, in the sequence of the file"),
    ("agent/src/config.rs", "parse", "one check for each table, in the sequence of the file"),
    ("serve.rs", "run", "the start of the controller: each part needs the ones before"),
    ("page/overview.rs", "overview", "one page: markup in the sequence of the screen"),
    ("messages/tests/golden.rs", "every_message_keeps_its_wire_form", "one line for each message"),
    (
        "recovery/core_tests.rs",
        "no_interleaving_breaks_the_rules",
        "one property over all events: a model and its rules",
    ),
    ("tests/fake/mod.rs", "new", "one field for each part of a controller"),
    ("tests/api.rs", "the_api_and_the_command_line_say_what_is_and_never_a_secret", "one controller for all queries"),
    (
        "tests/doctor.rs",
        "each_thing_that_would_make_a_fence_fail_is_found_with_its_mend",
        "one setup, then one fault each",
    ),
    (
        "tests/tls.rs",
        "both_programs_come_together_by_their_files_and_stay_so_over_a_rotation",
        "one pair over a rotation",
    ),
    (
        "tests/tls.rs",
        "a_running_pair_goes_on_while_certificates_and_authority_are_replaced",
        "one pair over a rotation",
    ),
    (
        "tests/lab.rs",
        "a_sibling_kills_over_ssh_and_calls_nothing_dead_that_it_did_not_see_dead",
        "one lab for all cases",
    ),
    (
        "tests/restored.rs",
        "a_restored_journal_is_noticed_and_nothing_is_done_until_somebody_says_so",
        "one restore, step by step",
    ),
    (
        "tests/notify.rs",
        "over_kills_of_the_controller_and_a_receiver_that_was_away_all_is_told_and_none_skipped",
        "one journal over several kills",
    ),
];

/// Public types of one name in several crates, with the reason. In one file two of them would need a path.
const SHARED_NAMES: [(&str, &str); 19] = [
    ("Action", "of an operator, in messages; and a step that the model checker explores"),
    ("Cluster", "of the inventory; and the demo's, a cluster of processes, which only the demo sees"),
    ("Command", "every core returns its commands under this name, qualified by its room; and those of the program"),
    ("Event", "every core takes its events under this name, qualified by its room; the trait is that of messages"),
    ("Found", "the result of a search: of a VM's target, and of the disks in QEMU's arguments"),
    ("How", "a private way to do one thing: of the client's inventory command, and of the model"),
    ("Kind", "of an actor, in the bus; of an item and of a metric, inside the program"),
    ("Outcome", "of a simulated run; of an inventory change and of a delivery, inside the program"),
    ("Peer", "a library that a bench compares; and the other end of a connection"),
    ("Plan", "of a simulated run; and of the demo's cluster"),
    ("Probe", "of the bus's test kit; and an expectation of a story"),
    ("Protocol", "of a storage; and the protocol that the model checker explores"),
    ("Role", "of a token in the API; and of a certificate"),
    ("Source", "of evidence; of a disk in a libvirt domain; of an item of the inventory"),
    ("Step", "of a deploy; of a plan of the simulator; of a retry"),
    ("Target", "the storage target of a host; and what a fuzzer runs"),
    ("Verdict", "on evidence; of a check of the doctor; of an interceptor of the bus"),
    ("Watched", "what the watchers of a volume mean; and a file that is reloaded when it changes"),
    ("World", "the simulated one; and that of the bus's test kit, which knows no host"),
];

/// Each folder with Rust files of the workspace: the members, and what belongs to the root package.
fn folders() -> Vec<String> {
    let manifest = fs::read_to_string(Path::new(ROOT).join("Cargo.toml")).unwrap();
    let members = manifest.lines().find_map(|line| line.strip_prefix("members = ")).unwrap();
    let members = members.split('"').skip(1).step_by(2).filter(|member| *member != ".").map(str::to_owned);
    let folders: Vec<String> = members.chain(["src", "tests", "examples"].map(str::to_owned)).collect();
    assert!(folders.len() > 7, "only {folders:?}");
    folders
}

/// Every Rust file, by its path from the root.
fn files() -> BTreeMap<String, String> {
    let all = folders().into_iter().flat_map(|folder| sources(&Path::new(ROOT).join(folder)));
    let all = all.filter(|path| !path.iter().any(|part| part == "target"));
    let read = |path: std::path::PathBuf| {
        let text = fs::read_to_string(&path).unwrap();
        (path.strip_prefix(ROOT).unwrap().to_str().unwrap().to_owned(), text)
    };
    all.map(read).collect()
}

/// The functions of a file with their lines. rustfmt puts the closing brace of an item under its beginning.
fn functions(text: &str) -> Vec<(String, usize)> {
    let lines: Vec<&str> = text.lines().collect();
    let mut found = Vec::new();
    for (first, line) in lines.iter().enumerate() {
        let begin = line.trim_start();
        let indent = &line[..line.len() - begin.len()];
        let words: Vec<&str> = begin.split(' ').take_while(|word| !word.starts_with("fn(")).collect();
        let Some(at) = words.iter().position(|word| *word == "fn") else { continue };
        let qualifier = |word: &&str| {
            word.starts_with("pub")
                || ["const", "async", "unsafe", "extern", "\"C\"", "in"].contains(word)
                || word.ends_with(')')
        };
        if !words[..at].iter().all(qualifier) {
            continue;
        }
        let Some(name) = words.get(at + 1) else { continue };
        let name: String = name.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
        let closes = |line: &&str| {
            *line == format!("{indent}}}")
                || (line.starts_with(indent) && line.trim_end().ends_with(';') && line[indent.len()..].starts_with(')'))
        };
        let one_line = line.ends_with('}') || line.ends_with(';');
        let length = if one_line { 1 } else { lines[first..].iter().position(closes).map_or(1, |n| n + 1) };
        found.push((name, length));
    }
    found
}

#[test]
fn functions_fit_on_a_screen() {
    let (mut count, mut used) = (0, BTreeSet::new());
    for (path, text) in files() {
        for (name, lines) in functions(&text) {
            count += 1;
            if lines <= MAX_LINES {
                continue;
            }
            let listed = LONG.iter().position(|(end, of, _)| path.ends_with(end) && *of == name);
            used.insert(listed.unwrap_or_else(|| {
                panic!("{path}: {name} has {lines} lines, more than {MAX_LINES}: split it, or list it with a reason")
            }));
        }
    }
    assert!(count > 3000, "only {count} functions found: did their form change?");
    let unused: Vec<_> = LONG.iter().enumerate().filter(|(n, _)| !used.contains(n)).map(|(_, long)| long).collect();
    assert!(unused.is_empty(), "no longer too long: {unused:?}");
}

#[test]
fn lines_fit_into_the_columns() {
    let mut wide = Vec::new();
    for (path, text) in files() {
        let over = text.lines().enumerate().filter(|(_, line)| line.chars().count() > MAX_COLUMNS);
        wide.extend(over.map(|(n, line)| format!("{path}:{}: {} columns", n + 1, line.chars().count())));
    }
    assert!(wide.is_empty(), "more than {MAX_COLUMNS} columns: {wide:#?}");
}

#[test]
fn crates_share_no_type_name_without_a_reason() {
    let mut crates_of: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (path, text) in files() {
        let name = path.split('/').next().unwrap().to_owned();
        let is_source = name == "src" || path.split('/').nth(1) == Some("src");
        if !is_source || path.ends_with("_tests.rs") {
            continue;
        }
        for line in code(&text).lines() {
            let item = line.strip_prefix("pub ").and_then(|item| item.split_once(' '));
            let Some((_, rest)) = item.filter(|(kind, _)| ["struct", "enum", "trait", "type"].contains(kind)) else {
                continue;
            };
            let of: String = rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
            crates_of.entry(of).or_default().insert(name.clone());
        }
    }
    assert!(crates_of.len() > 300, "only {} public types found", crates_of.len());
    let shared: BTreeMap<&str, &BTreeSet<String>> =
        crates_of.iter().filter(|(_, of)| of.len() > 1).map(|(name, of)| (name.as_str(), of)).collect();
    let listed: BTreeSet<&str> = SHARED_NAMES.iter().map(|(name, _)| *name).collect();
    let new: Vec<_> = shared.iter().filter(|(name, _)| !listed.contains(**name)).collect();
    assert!(new.is_empty(), "several crates have a public type of this name; rename it, or list it: {new:?}");
    let unused: Vec<_> = listed.iter().filter(|name| !shared.contains_key(**name)).collect();
    assert!(unused.is_empty(), "no longer shared: {unused:?}");
}

/// The rules above see what they judge.
#[test]
fn functions_are_found_in_every_form() {
    let text = "pub(in crate::fence) fn a() {\n    1\n}\n    async fn b(\n        x: u8,\n    ) -> u8 \
        {\n        x\n    }\n\
                fn c() {}\ntrait T {\n    fn d(\n        &self,\n    ) -> u8;\n}\nlet fn_name = 1; // fn e() {\n";
    let found: Vec<_> = functions(text);
    let found: Vec<(&str, usize)> = found.iter().map(|(name, lines)| (name.as_str(), *lines)).collect();
    assert_eq!(found, [("a", 3), ("b", 5), ("c", 1), ("d", 3)]);
}
