//! The stories of `examples/scenarios`, one or more for each row of the fault matrix, and that they are the same on
//! every run.
#![allow(missing_docs)]

use std::{collections::BTreeSet, fs, path::PathBuf};

use ringfence_sim::scenario::Scenario;

fn stories() -> Vec<(String, Scenario)> {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../examples/scenarios");
    let mut files: Vec<PathBuf> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let name = |file: &PathBuf| file.file_stem().unwrap().to_str().unwrap().to_owned();
    let read = |file: &PathBuf| Scenario::parse(&fs::read_to_string(file).unwrap()).unwrap();
    files.iter().map(|file| (name(file), read(file))).collect()
}

#[test]
fn every_row_of_the_fault_matrix_passes() {
    let mut failures = Vec::new();
    let mut rows = BTreeSet::new();
    for (name, story) in stories() {
        rows.extend(story.row);
        let played = story.play();
        failures.extend(played.failures.iter().map(|failure| format!("{name}: {failure}")));
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    assert_eq!(rows, (1..=40).collect(), "a row without a story");
}

/// Lines of a golden log: what a reader wants first, not all of 200 VMs.
const GOLDEN_LINES: usize = 120;

#[test]
fn a_story_is_the_same_to_the_byte_on_every_run() {
    for (name, story) in stories() {
        let (one, other) = (story.play().outcome.log, story.play().outcome.log);
        assert_eq!(one, other, "{name}: two runs of one seed differ");
        let protocols = |line: &&String| !line.contains("storage.host-status") && !line.contains("protocol-status");
        let golden: Vec<&str> = one.iter().filter(protocols).take(GOLDEN_LINES).map(String::as_str).collect();
        insta::with_settings!({ prepend_module_to_snapshot => false, omit_expression => true }, {
            insta::assert_snapshot!(name, golden.join("\n"));
        });
    }
}
