//! `ringfence sim`, `model` and `scenario` as somebody calls them.
#![allow(missing_docs)]

use std::process::{Command, Output};

fn ringfence(arguments: &[&str]) -> Output {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
    Command::new(env!("CARGO_BIN_EXE_ringfence")).args(arguments).current_dir(root).output().unwrap()
}

fn said(output: &Output) -> (String, String) {
    (String::from_utf8_lossy(&output.stdout).into_owned(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn a_campaign_says_what_it_ran_and_ends_with_its_counts() {
    let output = ringfence(&["sim", "--seeds", "1..3", "--hours", "2", "--hosts", "4"]);
    let (out, err) = said(&output);
    assert!(output.status.success(), "{out}{err}");
    assert!(out.starts_with("seeds 1..3, 2 hours, 4 hosts, 8 VMs, all faults"), "{out}");
    assert!(out.contains("simulated seconds per second and core"), "{out}");
    assert!(out.ends_with("3 passed, 0 failed\n"), "{out}");
}

#[test]
fn a_seed_is_traced_with_some_of_its_faults() {
    let of =
        |steps: &str| ringfence(&["sim", "--seed", "2", "--hours", "3", "--hosts", "4", "--trace", "--steps", steps]);
    let faults =
        |output: &Output| said(output).0.matches(" fault: ").count() + said(output).0.matches("operator: ").count();
    let (one, three) = (of("0"), of("0,1,2"));
    assert!(one.status.success() && three.status.success());
    assert_eq!(faults(&three), faults(&one) + 2);
}

#[test]
fn stories_are_listed_and_played_and_a_wrong_one_says_where() {
    let (out, _) = said(&ringfence(&["scenario", "list"]));
    assert!(out.lines().count() >= 40 && out.contains("row-01-power-loss.toml"), "{out}");
    let (out, _) = said(&ringfence(&["scenario", "run", "examples/scenarios/row-01-power-loss.toml"]));
    assert!(out.ends_with("1 passed, 0 failed\n"), "{out}");

    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("wrong.toml");
    for (text, says) in [
        ("title = 'x'\nlasting = 60\nhostz = 3\n", "unknown field `hostz`"),
        ("title = 'x'\nlasting = 60\n[[vm]]\nhost = 'host-9'\n", "host host-9 does not exist"),
        ("title = 'x'\nlasting = 60\n[[step]]\nat = 70\n", "step at 70 needs either `fault` or `act`"),
        ("title = 'x'\nlasting = 60\n[[step]]\nat = 7\nfault = { kind = 'fire' }\n", "unknown variant `fire`"),
        ("title = 'x'\nlasting = 60\n[[expect]]\nvm = 'vm-0'\n", "expectation needs either"),
    ] {
        std::fs::write(&file, text).unwrap();
        let output = ringfence(&["scenario", "run", file.to_str().unwrap()]);
        let (_, err) = said(&output);
        assert!(output.status.code() == Some(2) && err.contains(says) && err.contains("wrong.toml"), "{text}: {err}");
    }
    // One that does not go as it expects.
    std::fs::write(&file, "title = 'x'\nlasting = 60\n[[vm]]\nhost = 'host-0'\n[[expect]]\nlog = ['fire']\n").unwrap();
    let output = ringfence(&["scenario", "run", file.to_str().unwrap()]);
    let (out, _) = said(&output);
    assert!(output.status.code() == Some(1) && out.ends_with("0 passed, 1 failed\n"), "{out}");
    assert_eq!(ringfence(&["sim", "--seeds", "9..1"]).status.code(), Some(2));
}

#[test]
fn the_model_says_how_many_states_it_saw() {
    let output = ringfence(&["model", "--depth", "8"]);
    let (out, _) = said(&output);
    assert!(output.status.success() && out.contains("states, every one that 8 actions lead to"), "{out}");
}
