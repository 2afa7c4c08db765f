//! Reads the Rust files of the workspace, for the tests of its form.
#![allow(missing_docs)]

use std::{
    fs,
    path::{Path, PathBuf},
};

pub(crate) const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// The Rust files in a folder and below.
pub(crate) fn sources(dir: &Path) -> Vec<PathBuf> {
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

/// A file without comments and without its tests.
pub(crate) fn code(text: &str) -> String {
    let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
    text.lines().map(|line| line.split("//").next().unwrap_or_default()).collect::<Vec<_>>().join("\n")
}
