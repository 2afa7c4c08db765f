//! Broken files are refused in words that name file, line and fix; whatever else is in them, nothing panics.
#![allow(missing_docs)]

use std::{
    path::{Path, PathBuf},
    process::{Command, Output},
};

use proptest::prelude::*;
use ringfence_cli::config;

const TESTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests");

/// As a user would run it, with the file named as seen from here.
fn run(command: &str, file: &str) -> Output {
    let mut ringfence = Command::new(env!("CARGO_BIN_EXE_ringfence"));
    ringfence.current_dir(TESTS).args([command, "--config", file]).env("NO_COLOR", "1").output().unwrap()
}

fn broken() -> Vec<PathBuf> {
    let mut files: Vec<_> =
        std::fs::read_dir(Path::new(TESTS).join("broken")).unwrap().map(|f| f.unwrap().path()).collect();
    files.sort();
    files
}

#[test]
fn every_broken_file_is_refused_with_its_line_and_the_fix() {
    let files = broken();
    assert!(files.len() >= 30, "{} broken files", files.len());
    for file in files {
        let stem = file.file_stem().unwrap().to_str().unwrap().to_owned();
        let name = format!("broken/{stem}.toml");
        let output = run("check", &name);
        let says = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{name}: {says}");
        assert!(output.stdout.is_empty(), "{name}: a mistake belongs on standard error");
        assert!(says.contains(&format!("{name}:")) && says.contains("help: "), "{name} lacks place or fix: {says}");
        insta::assert_snapshot!(stem, says);
    }
}

#[test]
fn what_runs_refuses_the_same_files_in_the_same_words_before_it_does_anything() {
    for (command, file) in [("serve", "broken/controller-unknown-key.toml"), ("agent", "broken/agent-no-host.toml")] {
        let (run, check) = (run(command, file), run("check", file));
        assert_eq!((run.status.code(), run.stderr), (Some(2), check.stderr), "{command}");
    }
    assert!(!Path::new(TESTS).join("broken/state").exists());
}

#[test]
fn good_files_are_explained() {
    for file in ["good-controller.toml", "good-agent.toml"] {
        let output = run("check", file);
        assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
        insta::assert_snapshot!(file.trim_end_matches(".toml"), String::from_utf8(output.stdout).unwrap());
    }
}

#[test]
fn a_missing_file_is_a_mistake_of_one_line() {
    let output = run("check", "no-such.toml");
    let says = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(says.starts_with("no-such.toml:1: cannot read the file: No such file"), "{says}");
}

#[test]
fn several_mistakes_are_told_at_once() {
    let text = std::fs::read_to_string(Path::new(TESTS).join("good-controller.toml")).unwrap();
    let text =
        text.replace("max_failure = 3", "max_failure = 0").replace("10.77.0.12", "nowhere").replace("vhost://vm1", "x");
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    assert_eq!(ringfence_server::config::load(file.path()).unwrap_err().count(), 3);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Any damage to a good file gives a config or mistakes with places inside the file, never a panic.
    #[test]
    fn damaged_files_never_panic(
        controller in any::<bool>(), at in any::<prop::sample::Index>(), cut in 0usize..60, junk in ".{0,12}",
    ) {
        let name = if controller { "good-controller.toml" } else { "good-agent.toml" };
        let text = std::fs::read_to_string(Path::new(TESTS).join(name)).unwrap();
        let start = at.index(text.len());
        let end = (start + cut).min(text.len());
        let damaged = format!("{}{junk}{}", &text[..start], &text[end..]);
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), damaged).unwrap();
        if let Err(problems) = config::load(file.path()) {
            prop_assert!(problems.count() > 0);
            prop_assert!(problems.render(false, 100).contains("help: "));
        }
    }
}
