//! Every command that a page tells somebody to run exists, with its options; so does every script and every `make`
//! target.

use clap::{Command, CommandFactory, Parser, error::ErrorKind};
use ringfence_cli::commands::Cli;

use crate::{lines, page, pages, read, root};

/// What a shell runs after this is another program's.
const ENDS: [&str; 9] = ["|", "||", "&&", "&", ";", ">", ">>", "<", "2>/dev/null"];

/// The words of a line up to where another program begins; nothing for a line that no shell takes.
fn words(line: &str) -> Vec<String> {
    let line = line.trim().trim_start_matches("$ ").trim_start_matches("sudo ");
    let words = shlex::split(line).unwrap_or_else(|| line.split_whitespace().map(str::to_owned).collect());
    words.into_iter().take_while(|word| !ENDS.contains(&word.as_str()) && !word.starts_with('#')).collect()
}

/// Subcommands and long options, without a look at values.
fn exists(words: &[String]) -> Result<(), String> {
    let mut command = Cli::command();
    command.build();
    for word in &words[1..] {
        if let Some(option) = word.strip_prefix("--") {
            let long = option.split('=').next().unwrap_or_default();
            let known = command.get_arguments().any(|arg| arg.get_long() == Some(long)) || long == "help";
            if !known {
                return Err(format!("`{}` has no --{long}", command.get_bin_name().unwrap_or_default()));
            }
        } else if command.has_subcommands() {
            let Some(inner) = command.find_subcommand(word).cloned() else {
                return Err(format!("`{}` has no {word}", command.get_bin_name().unwrap_or_default()));
            };
            command = inner;
        }
    }
    Ok(())
}

/// A line that is to be pasted parses to the last value.
fn parses(words: &[String]) -> Result<(), String> {
    match Cli::try_parse_from(words) {
        Err(error) if !matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) => {
            Err(error.to_string())
        }
        _ => Ok(()),
    }
}

fn make_targets() -> Vec<String> {
    let makefile = read("Makefile");
    let rules = makefile.lines().filter(|line| line.contains("##"));
    rules.filter_map(|line| line.split_once(':')).map(|(target, _)| target.to_owned()).collect()
}

/// Why a piece of code is not what the program or the repository has.
fn wrong(code: &lines::Code, targets: &[String]) -> Option<String> {
    let pasted = match code.block.as_deref() {
        Some("sh" | "bash") => true,
        Some("") if code.text.starts_with("$ ") => true,
        Some(_) => return None,
        None => false,
    };
    let words = words(&code.text);
    let program = words.first()?;
    if program == "ringfence" && words.len() > 1 {
        return exists(&words).and_then(|()| if pasted { parses(&words) } else { Ok(()) }).err();
    }
    if program == "make" {
        let named = words[1..].iter().find(|word| !word.contains('=') && !word.starts_with('-'))?;
        return (!targets.contains(named)).then(|| format!("there is no `make {named}`"));
    }
    let ours = ["lab/", "scripts/", "examples/", "deploy/"].iter().any(|dir| program.starts_with(dir));
    let literal = !program.contains(['*', '{', 'N']);
    (ours && literal && !root().join(program).exists()).then(|| format!("there is no {program}"))
}

#[test]
fn what_pages_tell_to_run_exists() {
    let targets = make_targets();
    let (mut problems, mut commands) = (Vec::new(), 0);
    for path in pages() {
        for code in lines::code(&read(&path)) {
            commands += usize::from(words(&code.text).first().is_some_and(|program| program == "ringfence"));
            if let Some(why) = wrong(&code, &targets) {
                problems.push(format!("{path}:{}: {}: {why}", code.line, code.text.trim()));
            }
        }
    }
    assert!(problems.is_empty(), "{}", problems.join("\n"));
    assert!(commands > 50, "only {commands} commands were looked at");
}

#[test]
fn what_does_not_exist_is_found() {
    let targets = make_targets();
    let wrong = |block: Option<&str>, text: &str| {
        let code = lines::Code { line: 1, block: block.map(str::to_owned), text: text.to_owned() };
        wrong(&code, &targets).is_some()
    };
    for fine in
        ["ringfence vm start vm1 --host host-a   # there", "ringfence status | less", "make demo DEMO_FLAGS=--keep"]
    {
        assert!(!wrong(Some("sh"), fine) && !wrong(None, fine), "{fine}");
    }
    assert!(!wrong(None, "ringfence explain VM"));
    assert!(!wrong(None, "ringfence sim --seeds A..B"), "a value that stands for others");
    for bad in [
        "ringfence vm begin vm1",
        "ringfence status --jason",
        "make it-so",
        "lab/nothing.sh",
        "sudo ringfence host off host-a",
    ] {
        assert!(wrong(Some("sh"), bad) && wrong(None, bad), "{bad}");
    }
    assert!(wrong(Some("sh"), "ringfence sim --seeds A..B"), "nobody can paste that");
    assert!(wrong(Some(""), "$ ringfence vm"), "half a command");
}

/// What `--help` says of a command, and of those within it.
fn help(command: &mut Command, text: &mut String) {
    let name = command.get_bin_name().unwrap_or_else(|| command.get_name()).to_owned();
    let says = command.render_long_help().to_string();
    let says: Vec<&str> = says.trim().lines().map(str::trim_end).collect();
    *text += &format!("## {name}\n\n```text\n{}\n```\n\n", says.join("\n"));
    let names: Vec<String> = command
        .get_subcommands()
        .filter(|inner| !inner.is_hide_set())
        .map(|inner| inner.get_name().to_owned())
        .collect();
    for inner in names {
        help(command.find_subcommand_mut(&inner).expect("it was just listed"), text);
    }
}

#[test]
fn the_page_of_commands_is_what_help_says() {
    let mut command = Cli::command();
    command.build();
    let mut text = String::new();
    help(&mut command, &mut text);
    // The program's own page is above its parts'.
    let text = format!(
        "# Commands\n\nWhat `--help` says of each command. This page is made from the program; a test fails where they \
         differ.\n\n\
         Exit codes: 0 fine, 1 failed, 2 usage or config. Logs go to standard error; `RUST_LOG` chooses what of \
         them.\n\n{}\n",
        text.trim_end()
    );
    page("docs/cli.md", &text);
}
