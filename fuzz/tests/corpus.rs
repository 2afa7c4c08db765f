//! Every kept input, through the same functions that `make fuzz` searches with.
#![allow(missing_docs)]

use std::{collections::BTreeSet, fs, panic, path::Path};

use ringfence_fuzz::{TARGETS, target};

/// Bytes of all kept inputs at most: they are in every clone.
const MAX_CORPUS_BYTES: u64 = 1 << 20;

#[test]
fn every_kept_input_holds() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    let (mut bytes, mut failed) = (0, Vec::new());
    for target in TARGETS {
        let inputs = fs::read_dir(corpus.join(target.name)).unwrap_or_else(|e| panic!("{}: {e}", target.name));
        let inputs: Vec<_> = inputs.map(|input| input.unwrap().path()).collect();
        assert!(inputs.len() > 1, "{} has no inputs", target.name);
        for path in inputs {
            let input = fs::read(&path).unwrap();
            bytes += input.len() as u64;
            if panic::catch_unwind(|| (target.run)(&input)).is_err() {
                failed.push(format!("cargo run -p ringfence-fuzz -- {} {}", target.name, path.display()));
            }
        }
    }
    assert!(failed.is_empty(), "replay with:\n{}", failed.join("\n"));
    assert!(bytes <= MAX_CORPUS_BYTES, "{bytes} bytes: minimize it with `make fuzz-keep`");
}

#[test]
fn every_folder_is_of_a_target() {
    for kind in ["corpus", "dictionaries"] {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(kind);
        let names = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        let names: BTreeSet<String> =
            names.map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned()).collect();
        let strangers: Vec<_> = names.iter().filter(|name| target(name).is_none()).collect();
        assert!(strangers.is_empty(), "{kind}: {strangers:?}");
    }
}
