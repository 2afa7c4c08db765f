//! The stories that are marked `lab = true`, on the real lab, from the same files.
#![allow(missing_docs)]

use std::{path::Path, process::Command};

use ringfence_sim::scenario::Scenario;

macro_rules! stories {
    ($($name:ident = $file:literal;)*) => {
        const STORIES: &[&str] = &[$($file),*];
        $(#[test] #[ignore = "needs root: a lab of network namespaces"] fn $name() { play($file) })*
    };
}

stories! {
    power_loss = "row-01-power-loss.toml";
    management_cut = "row-03-management-cut.toml";
    storage_cut = "row-04-storage-cut.toml";
    partition = "row-05-partition.toml";
    it_is_us = "row-20-it-is-us.toml";
    flapping = "row-21-flapping.toml";
}

fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

fn play(file: &str) {
    let story = format!("examples/scenarios/{file}");
    let output = Command::new(env!("CARGO_BIN_EXE_ringfence"))
        .args(["scenario", "run", "--lab", &story])
        .current_dir(root())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn every_story_that_is_marked_is_played_here() {
    let all = std::fs::read_dir(root().join("examples/scenarios")).unwrap();
    let mut marked: Vec<String> = all
        .map(|entry| entry.unwrap().path())
        .filter(|path| Scenario::parse(&std::fs::read_to_string(path).unwrap()).unwrap().lab)
        .map(|path| path.file_name().unwrap().to_string_lossy().into_owned())
        .collect();
    marked.sort();
    assert_eq!(marked, STORIES);
}
