//! The rules of docs/STYLE.md that a machine can check, and names of code in the docs.

use std::{fs, path::Path};

use crate::{pages, read, root};

/// Crates and folders with code.
const CODE: [&str; 13] = [
    "src", "messages", "actors", "drivers", "sim", "service", "agent", "server", "cli", "tests", "examples", "benches",
    "fuzz/src",
];

/// Files that docs/extending.md invents for its walkthroughs.
const INVENTED: [&str; 3] =
    ["drivers/src/power.rs", "sim/src/world/power.rs", "cli/tests/broken/controller-nfs-without-dir.toml"];

/// Settings of other products that docs/comparison.md names.
const FOREIGN: [&str; 2] = ["skip_if_connectivity_broken", "skip_if_sd_active"];

/// Longest line outside tables and code blocks.
const MAX_COLUMNS: usize = 120;

fn texts() -> Vec<(String, String)> {
    let mut paths = pages();
    paths.extend(["CHANGELOG.md".to_owned(), "SECURITY.md".to_owned()]);
    paths.into_iter().map(|path| (path.clone(), read(&path))).collect()
}

/// The first column of the table of banned phrases.
fn banned() -> Vec<String> {
    let text = read("docs/STYLE.md");
    let table = text.split("<!-- begin: banned -->").nth(1).unwrap().split("<!-- end: banned -->").next().unwrap();
    let cells = table.lines().filter_map(|line| line.strip_prefix("| ")?.split(" | ").next());
    let phrases: Vec<String> = cells.skip(1).map(str::to_lowercase).collect();
    assert!(phrases.len() > 20, "the table of banned phrases was not found: {phrases:?}");
    phrases
}

/// Whether a phrase stands in a line as words of its own.
fn has(line: &str, phrase: &str) -> bool {
    let is_word = |c: Option<char>| c.is_some_and(char::is_alphanumeric);
    line.match_indices(phrase)
        .any(|(at, _)| !is_word(line[..at].chars().next_back()) && !is_word(line[at + phrase.len()..].chars().next()))
}

#[test]
fn no_page_has_a_banned_phrase() {
    let phrases = banned();
    let mut found = Vec::new();
    for (path, text) in texts().iter().filter(|(path, _)| path != "docs/STYLE.md") {
        for (line, number) in text.to_lowercase().lines().zip(1..) {
            let phrases = phrases.iter().filter(|phrase| has(line, phrase));
            found.extend(phrases.map(|phrase| format!("{path}:{number}: {phrase}")));
        }
    }
    assert!(found.is_empty(), "docs/STYLE.md names the word to write instead:\n{}", found.join("\n"));
    assert!(has("started anew, again", "anew") && !has("renewed", "anew") && !has("anewer", "anew"));
}

/// Tables, code and links cannot be wrapped.
#[test]
fn lines_of_prose_are_at_most_120_columns() {
    let mut long = Vec::new();
    for (path, text) in texts().iter().filter(|(path, _)| !["docs/cli.md", "docs/api.md"].contains(&path.as_str())) {
        let mut in_code = false;
        for (line, number) in text.lines().zip(1..) {
            in_code ^= line.trim_start().starts_with("```");
            let wraps = !in_code && !line.trim_start().starts_with('|') && !line.contains("](");
            if wraps && line.chars().count() > MAX_COLUMNS {
                long.push(format!("{path}:{number}: {} columns", line.chars().count()));
            }
        }
    }
    assert!(long.is_empty(), "{}", long.join("\n"));
}

/// Everything that is code in a line of prose, word by word.
fn words_of_code(text: &str) -> impl Iterator<Item = &str> {
    let inline = text.lines().flat_map(|line| line.split('`').skip(1).step_by(2));
    inline.flat_map(|code| code.split([' ', ',', '(', ')', '{', '}', ':']))
}

fn code(folder: &Path, text: &mut String) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && path.file_name().is_some_and(|name| name != "target") {
            code(&path, text);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            *text += &fs::read_to_string(&path).unwrap();
        }
    }
}

/// A file that was moved, or a test that was renamed, is renamed in the docs too.
#[test]
fn files_and_tests_that_the_docs_name_exist() {
    let mut all = String::new();
    CODE.iter().for_each(|folder| code(&root().join(folder), &mut all));
    let mut missing = Vec::new();
    for (path, text) in texts() {
        for word in words_of_code(&text) {
            let is_file =
                word.contains('/') && [".rs", ".sh", ".toml", ".py", ".service"].iter().any(|end| word.ends_with(end));
            let in_a_folder =
                CODE.iter().chain(&["lab", "scripts", "deploy"]).any(|folder| word.starts_with(&format!("{folder}/")));
            if is_file
                && in_a_folder
                && !word.contains('*')
                && !word.contains("NAME")
                && !INVENTED.contains(&word)
                && !root().join(word).exists()
            {
                missing.push(format!("{path}: file {word}"));
            }
            let name = word.trim_end_matches("...");
            let is_test =
                name.matches('_').count() >= 3 && name.chars().all(|c| matches!(c, 'a'..='z' | '0'..='9' | '_'));
            if is_test && !FOREIGN.contains(&name) && !all.contains(name) {
                missing.push(format!("{path}: test {name}"));
            }
        }
    }
    assert!(missing.is_empty(), "{}", missing.join("\n"));
    assert_eq!(words_of_code("a `b c_d` e `f`").collect::<Vec<_>>(), ["b", "c_d", "f"]);
}
