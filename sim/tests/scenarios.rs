//! The stories of `examples/scenarios`, one or more for each row of the fault matrix, and that they are the same on
//! every run.
#![allow(missing_docs)]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::PathBuf,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use ringfence_sim::scenario::Scenario;

fn stories() -> Vec<(String, Scenario)> {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../examples/scenarios");
    let mut files: Vec<PathBuf> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let name = |file: &PathBuf| file.file_stem().unwrap().to_str().unwrap().to_owned();
    let read = |file: &PathBuf| Scenario::parse(&fs::read_to_string(file).unwrap()).unwrap();
    files.iter().map(|file| (name(file), read(file))).collect()
}

/// Rows of the fault matrix that no story of the simulated world can show: they are about a real
/// target's queue, and a redeploy's parts.
const ELSEWHERE: [u32; 2] = [45, 51];

/// Lines of a golden log: what a reader wants first, not all of 200 VMs.
const GOLDEN_LINES: usize = 120;

/// Each story twice, on all processors: what failed, and both logs.
fn played(stories: &[(String, Scenario)]) -> Vec<(Vec<String>, [Vec<String>; 2])> {
    let (next, done) = (AtomicUsize::new(0), Mutex::new(BTreeMap::new()));
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    let work = || {
        while let Some((nth, (_, story))) =
            Some(next.fetch_add(1, Relaxed)).and_then(|nth| Some((nth, stories.get(nth)?)))
        {
            let (one, other) = (story.play(), story.play());
            done.lock().unwrap().insert(nth, (one.failures, [one.outcome.log, other.outcome.log]));
        }
    };
    std::thread::scope(|scope| (0..workers).for_each(|_| drop(scope.spawn(work))));
    done.into_inner().unwrap().into_values().collect()
}

/// One test, so that each is played no more than twice.
#[test]
fn every_story_passes_and_is_deterministic() {
    let stories = stories();
    let (mut wrong, mut rows) = (Vec::new(), BTreeSet::new());
    let mut goldens = Vec::new();
    for ((name, story), (failures, [one, other])) in stories.iter().zip(played(&stories)) {
        rows.extend(story.row);
        assert_eq!(one, other, "{name}: two runs of one seed differ");
        wrong.extend(failures.iter().map(|failure| format!("{name}: {failure}")));
        goldens.push((name, one));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(rows, (1..=56).filter(|row| !ELSEWHERE.contains(row)).collect(), "a row without a story");
    for (name, log) in goldens {
        let protocols = |line: &&String| !line.contains("storage.host-status") && !line.contains("protocol-status");
        let golden: Vec<&str> = log.iter().filter(protocols).take(GOLDEN_LINES).map(String::as_str).collect();
        insta::with_settings!({ prepend_module_to_snapshot => false, omit_expression => true }, {
            insta::assert_snapshot!(name.as_str(), golden.join("\n"));
        });
    }
}
