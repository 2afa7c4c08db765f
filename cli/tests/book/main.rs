//! What the book says of the program is what the program says of itself.
//!
//! Pages, or parts of pages, that repeat the code are rendered from it and compared; `UPDATE_EXPECT=1 cargo nextest run
//! --test book` writes them anew. Commands and paths in all pages have to exist. Rejected: pages that are rendered when
//! the book is built. They would not be there to read in the repository, nor in a review.
#![allow(missing_docs)]

mod api;
mod commands;
mod configs;
mod executor;
mod lines;
mod stories;
mod style;
mod tables;

use std::{
    fmt::Write,
    fs,
    path::{Path, PathBuf},
};

/// The repository.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Compares a page with what it is to say.
fn page(path: &str, wanted: &str) {
    expect_test::expect_file![root().join(path)].assert_eq(wanted);
}

/// Compares the part of a page between two marks with what it is to say.
fn part(path: &str, name: &str, wanted: &str) {
    let text = read(path);
    let (begin, end) = (format!("<!-- from the code: {name} -->\n"), format!("<!-- end: {name} -->"));
    let missing = || panic!("{path} lacks a part between {begin}and {end}");
    let (before, rest) = text.split_once(&begin).unwrap_or_else(missing);
    let (_, after) = rest.split_once(&end).unwrap_or_else(missing);
    page(path, &format!("{before}{begin}\n{}\n\n{end}{after}", wanted.trim()));
}

/// A table. What would end a cell is escaped.
fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let line = |cells: &mut dyn Iterator<Item = String>| format!("| {} |\n", cells.collect::<Vec<_>>().join(" | "));
    let cell = |text: &String| text.split_whitespace().collect::<Vec<_>>().join(" ").replace('|', "\\|");
    let mut text = line(&mut head.iter().map(|cell| (*cell).to_owned()));
    let _ = writeln!(text, "|{}", "---|".repeat(head.len()));
    for row in rows {
        assert_eq!(row.len(), head.len(), "{row:?}");
        text += &line(&mut row.iter().map(cell));
    }
    text
}

/// All pages of the book, and what else is written for people; relative to the repository.
fn pages() -> Vec<String> {
    let mut found = vec!["README.md".to_owned(), "CONTRIBUTING.md".to_owned(), "lab/README.md".to_owned()];
    for dir in ["docs", "docs/adr"] {
        for entry in fs::read_dir(root().join(dir)).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            if name.ends_with(".md") {
                found.push(format!("{dir}/{name}"));
            }
        }
    }
    found.sort();
    found
}

/// A page that is in no list is a page that nobody finds.
#[test]
fn every_page_is_in_the_book_once() {
    let summary = read("docs/SUMMARY.md");
    for path in pages().iter().filter_map(|path| path.strip_prefix("docs/")).filter(|path| *path != "SUMMARY.md") {
        assert_eq!(summary.matches(&format!("]({path})")).count(), 1, "docs/{path} in docs/SUMMARY.md");
    }
}

/// What is read on a repository's own page, outside of the book whose links `make book` checks.
#[test]
fn links_from_outside_the_book_lead_somewhere() {
    for path in pages().iter().filter(|path| !path.starts_with("docs/")) {
        let dir = root().join(path).parent().unwrap().to_owned();
        for link in lines::links(&read(path)).iter().filter(|link| !link.contains("://")) {
            let file = link.split('#').next().unwrap();
            assert!(dir.join(file).exists(), "{path} links to {link}");
        }
    }
}
