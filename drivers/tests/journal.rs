//! The journal survives what happens to files: kill -9, a full disk, other hands, later versions.
#![allow(missing_docs)]

use std::{
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use ringfence_actors::ports::{JournalPort, MAX_PAYLOAD_BYTES, NewRecord};
use ringfence_drivers::journal::{Journal, SCHEMA_VERSION};
use ringfence_messages::Code;
use rusqlite::Connection;
use serde_json::json;

fn record(topic: &str, subject: &str, n: u64) -> NewRecord {
    NewRecord {
        topic: topic.to_owned(),
        subject: subject.to_owned(),
        payload: json!({ "n": n }),
        waited: Duration::ZERO,
    }
}

async fn filled(dir: &Path, count: u64) -> Journal {
    let journal = Journal::open(dir).unwrap();
    for n in 1..=count {
        journal.append(vec![record("t", "s", n)]).await.unwrap();
    }
    journal
}

#[tokio::test]
async fn appended_records_survive_a_reopen_in_sequence() {
    let dir = tempfile::tempdir().unwrap();
    let journal = Journal::open(dir.path()).unwrap();
    let batch = vec![record("host", "a", 1), record("host", "b", 2), record("vm", "a", 3)];
    let appended = journal.append(batch).await.unwrap();
    assert_eq!(appended.iter().map(|record| record.seq).collect::<Vec<_>>(), [1, 2, 3]);
    journal.append(vec![record("host", "a", 4)]).await.unwrap();
    drop(journal);

    let journal = Journal::open(dir.path()).unwrap();
    assert_eq!(journal.verify().unwrap(), 4);
    let all = journal.read(0, 100).await.unwrap();
    assert_eq!(all[..3], appended[..], "read as it was appended");
    assert_eq!(journal.read(2, 1).await.unwrap().iter().map(|r| r.seq).collect::<Vec<_>>(), [3]);
    let latest: Vec<_> = journal.latest("host").await.unwrap().into_iter().map(|r| (r.subject, r.seq)).collect();
    assert_eq!(latest, [("b".to_owned(), 2), ("a".to_owned(), 4)]);
    assert_eq!(journal.latest_of("host", "a").await.unwrap().unwrap().payload, json!({ "n": 4 }));
    assert_eq!(journal.latest_of("host", "nobody").await.unwrap(), None);
    let newest =
        async |of, limit| -> Vec<u64> { journal.newest(of, limit).await.unwrap().iter().map(|r| r.seq).collect() };
    assert_eq!(newest(None, 2).await, [3, 4], "the newest, the oldest of them first");
    assert_eq!(newest(Some((&["host", "vm"], "a")), 10).await, [1, 3, 4]);
    assert_eq!(newest(Some((&["host"], "a")), 1).await, [4]);
    assert_eq!(newest(Some((&["nothing"], "a")), 10).await, [0; 0]);
    let next = journal.append(vec![record("t", "s", 5)]).await.unwrap();
    assert_eq!(next[0].seq, 5);
    assert_eq!(journal.verify().unwrap(), 5);
}

/// Whatever is done to the file by other hands, the first record that does not fit is named.
#[tokio::test]
async fn every_tampering_is_found_and_named() {
    for (what, sql, first_bad) in [
        ("a payload changed", "UPDATE events SET payload = '{\"n\":99}' WHERE seq = 3", 3),
        ("a time changed", "UPDATE events SET time = '2020-01-01T00:00:00.000Z' WHERE seq = 2", 2),
        ("a topic changed", "UPDATE events SET topic = 'other' WHERE seq = 5", 5),
        ("a record dropped", "DELETE FROM events WHERE seq = 4", 5),
        ("the first record dropped", "DELETE FROM events WHERE seq = 1", 2),
        (
            "a record slipped in",
            "INSERT INTO events SELECT 6, time, topic, subject, payload, hash FROM events WHERE seq = 5",
            6,
        ),
        (
            "two records exchanged",
            "UPDATE events SET payload = (SELECT payload FROM events e WHERE e.seq = 7 - events.seq) WHERE seq IN (3, \
             4)",
            3,
        ),
        (
            "a hash of one's own",
            "UPDATE events SET hash = iif(substr(hash, 1, 1) = 'f', '0', 'f') || substr(hash, 2) WHERE seq = 1",
            1,
        ),
    ] {
        let dir = tempfile::tempdir().unwrap();
        drop(filled(dir.path(), 5).await);
        Connection::open(dir.path().join("journal.db")).unwrap().execute(sql, []).unwrap();
        let error = Journal::open(dir.path()).unwrap().verify();
        let error = error.expect_err(what);
        assert!(error.details.contains(&format!("record {first_bad} does not follow")), "{what}: {error}");
    }
}

/// Appends until it is killed, a line for each record that is durable.
async fn append_until_killed(dir: &Path) -> ! {
    let journal = Journal::open(dir).unwrap();
    let mut n = journal.read(0, 1000).await.unwrap().len() as u64;
    loop {
        // Single ones and batches.
        let batch = (0..1 + n % 3).map(|more| record("t", "s", n + more + 1)).collect();
        n = journal.append(batch).await.unwrap().last().unwrap().seq;
        let mut out = std::io::stdout().lock();
        writeln!(out, "durable {n}").and_then(|()| out.flush()).unwrap();
    }
}

#[tokio::test]
async fn kill_minus_9_loses_nothing_that_was_durable() {
    const DIR: &str = "RINGFENCE_TEST_JOURNAL";
    if let Some(dir) = std::env::var_os(DIR) {
        append_until_killed(Path::new(&dir)).await;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut durable = 0;
    for round in 1..=8 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "kill_minus_9_loses_nothing_that_was_durable", "--nocapture"])
            .env(DIR, dir.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let told = lines.map_while(Result::ok).filter_map(|line| line.strip_prefix("durable ")?.parse::<u64>().ok());
        // Killed in the middle of whatever comes next.
        durable = told.take(5 * round).last().expect("the writer writes");
        child.kill().unwrap();
        child.wait().unwrap();
        let journal = Journal::open(dir.path()).unwrap();
        let there = journal.verify().unwrap();
        assert!(there >= durable, "record {durable} was durable, only {there} are there");
        let records = journal.read(0, 1000).await.unwrap();
        assert!(records.iter().enumerate().all(|(i, r)| r.payload == json!({ "n": i as u64 + 1 })), "all in order");
    }
    assert!(durable > 100, "only {durable} records were written");
}

#[tokio::test]
#[ignore = "needs root: a small tmpfs is mounted"]
async fn full_disk_is_an_error_until_there_is_room() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path();
    rustix::mount::mount("tmpfs", at, "tmpfs", rustix::mount::MountFlags::empty(), c"size=1m").unwrap();
    struct Unmount<'a>(&'a Path);
    impl Drop for Unmount<'_> {
        fn drop(&mut self) {
            let _ = rustix::mount::unmount(self.0, rustix::mount::UnmountFlags::DETACH);
        }
    }
    let _unmount = Unmount(at);
    let journal = filled(at, 3).await;
    let ballast = at.join("ballast");
    // Until nothing fits any more.
    let mut file = std::fs::File::create(&ballast).unwrap();
    while file.write_all(&[0; 4096]).is_ok() {}
    let mut appended = 3;
    let large = || NewRecord { payload: json!({ "text": "x".repeat(20_000) }), ..record("t", "s", 0) };
    let error = loop {
        match journal.append(vec![large()]).await {
            Ok(records) => appended = records[0].seq,
            Err(error) => break error,
        }
        assert!(appended < 100, "the disk does not fill up");
    };
    assert!(error.is(&Code::IO) && error.details.contains("the disk is full: make room"), "{error}");
    assert_eq!(journal.read(0, 1000).await.unwrap().last().unwrap().seq, appended, "reading goes on");
    drop(file);
    std::fs::remove_file(&ballast).unwrap();
    let next = journal.append(vec![large()]).await.unwrap();
    assert_eq!((next[0].seq, journal.verify().unwrap()), (appended + 1, appended + 1));
}

#[tokio::test]
async fn foreign_files_are_rejected_with_the_remedy() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("journal.db"), "this is not a database, but long enough to look like one").unwrap();
    let error = Journal::open(dir.path()).err().unwrap();
    assert!(error.details.contains("journal.db") && error.details.contains("damaged"), "{error}");

    let dir = tempfile::tempdir().unwrap();
    drop(filled(dir.path(), 1).await);
    let connection = Connection::open(dir.path().join("journal.db")).unwrap();
    connection.pragma_update(None, "user_version", SCHEMA_VERSION + 1).unwrap();
    drop(connection);
    let error = Journal::open(dir.path()).err().unwrap();
    assert!(error.details.contains("written by a later version"), "{error}");

    let error = Journal::open(&dir.path().join("missing")).err().unwrap();
    assert!(error.details.contains("check that the directory exists"), "{error}");
}

#[tokio::test]
async fn too_large_record_is_rejected_without_a_trace() {
    let dir = tempfile::tempdir().unwrap();
    let journal = filled(dir.path(), 1).await;
    let huge = NewRecord { payload: json!("x".repeat(MAX_PAYLOAD_BYTES)), ..record("t", "s", 3) };
    let error = journal.append(vec![record("t", "s", 2), huge]).await.unwrap_err();
    assert!(error.is(&Code::INVALID_ARGUMENT), "{error}");
    assert_eq!(journal.verify().unwrap(), 1, "all or none");
}

#[tokio::test]
async fn delayed_fact_keeps_its_own_time() {
    let dir = tempfile::tempdir().unwrap();
    let journal = Journal::open(dir.path()).unwrap();
    let waited = Duration::from_secs(600);
    let both = vec![NewRecord { waited, ..record("t", "s", 1) }, record("t", "s", 2)];
    let times = journal.append(both).await.unwrap().into_iter().map(|record| record.time.parse::<jiff::Timestamp>());
    let [then, now] = times.collect::<Result<Vec<_>, _>>().unwrap()[..] else { panic!("two") };
    assert_eq!(now.duration_since(then).unsigned_abs(), waited);
}

/// What a doctor looks at: beside a controller that runs, and when none does.
#[tokio::test]
async fn head_is_read_only_and_detects_alteration() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(Journal::head(dir.path()).unwrap(), None);
    let journal = filled(dir.path(), 3).await;
    let (seq, hash) = Journal::head(dir.path()).unwrap().unwrap();
    assert_eq!((seq, &hash), (3, &journal.read(2, 1).await.unwrap()[0].hash));
    drop(journal);
    let files = || {
        let names = std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name());
        names.collect::<std::collections::BTreeSet<_>>()
    };
    let before = files();
    assert_eq!(Journal::head(dir.path()).unwrap().unwrap().0, 3);
    assert_eq!(files(), before, "reading left a file behind");
    let connection = Connection::open(dir.path().join("journal.db")).unwrap();
    connection.execute("UPDATE events SET payload = '{}' WHERE seq = 3", []).unwrap();
    drop(connection);
    let error = Journal::head(dir.path()).unwrap_err();
    assert!(error.details.contains("record 3 does not follow from record 2"), "{error}");
    std::fs::write(dir.path().join("journal.db"), "no database at all").unwrap();
    assert_eq!(Journal::head(dir.path()).unwrap_err().code, Code::IO);
}
