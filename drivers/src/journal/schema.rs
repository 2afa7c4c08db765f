//! The schema of the journal's file, and its migrations.
//!
//! Invariants: a file has exactly the schema of its `user_version`: all migrations run in one transaction with the new
//! version, so that a crash leaves the file unchanged. A file of a later version is rejected. The hashed columns (seq,
//! time, topic, subject, payload) are the same in every version.
//! Alternatives considered: a crate for migrations (this file is all of it); downgrades (an older program rejects the
//! file with a reason).

use rusqlite::Connection;

/// What leads from each version to the next. One that was released is never changed: files out there went through it.
/// A new one is the last, says neither BEGIN nor COMMIT, and needs a journal of its version in
/// `drivers/tests/journals`.
pub(super) const MIGRATIONS: &[&str] = &["
    CREATE TABLE events (
        seq     INTEGER PRIMARY KEY,
        time    TEXT NOT NULL,
        topic   TEXT NOT NULL,
        subject TEXT NOT NULL,
        payload TEXT NOT NULL,
        hash    TEXT NOT NULL
    ) STRICT;
    CREATE INDEX events_latest ON events (topic, subject, seq);
"];

/// The version of the schema. 1: the table `events`.
pub const SCHEMA_VERSION: i64 = MIGRATIONS.len() as i64;

/// Brings a file to the last of these versions; the version that it had. One that is none of them is left as it is.
pub(super) fn migrate(connection: &mut Connection, migrations: &[&str]) -> rusqlite::Result<i64> {
    let version: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
    let missing = usize::try_from(version).ok().and_then(|done| migrations.get(done..)).unwrap_or_default();
    if !missing.is_empty() {
        let transaction = connection.transaction()?;
        for migration in missing {
            transaction.execute_batch(migration)?;
        }
        transaction.pragma_update(None, "user_version", migrations.len() as i64)?;
        transaction.commit()?;
    }
    Ok(version)
}

#[cfg(test)]
mod tests {
    use std::{path::Path, process::Command};

    use super::*;
    use crate::journal::Journal;

    /// A journal of version 1 in this directory.
    fn version_1(dir: &Path) -> u64 {
        let connection = Connection::open(dir.join("journal.db")).unwrap();
        connection.execute_batch(include_str!("../../tests/journals/schema-1.sql")).unwrap();
        drop(connection);
        Journal::open(dir).unwrap().verify().unwrap()
    }

    fn is_as_it_was(dir: &Path, records: u64) {
        let connection = Connection::open(dir.join("journal.db")).unwrap();
        let version: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0)).unwrap();
        let tables = "SELECT count(*) FROM sqlite_schema WHERE type = 'table'";
        let tables: i64 = connection.query_row(tables, [], |row| row.get(0)).unwrap();
        assert_eq!((version, tables), (1, 1), "what the migration began is there");
        drop(connection);
        assert_eq!(Journal::open(dir).unwrap().verify().unwrap(), records);
    }

    #[test]
    fn migration_keeps_records_and_hashes() {
        let dir = tempfile::tempdir().unwrap();
        let records = version_1(dir.path());
        let next = [MIGRATIONS[0], "ALTER TABLE events ADD COLUMN node TEXT", "CREATE TABLE terms (epoch INTEGER)"];
        let mut connection = Connection::open(dir.path().join("journal.db")).unwrap();
        assert_eq!(migrate(&mut connection, &next).unwrap(), 1);
        assert_eq!(migrate(&mut connection, &next).unwrap(), 3, "and again changes nothing");
        drop(connection);
        let error = Journal::open(dir.path()).err().unwrap();
        assert!(error.details.contains("schema version 3, this program supports 1"), "{error}");
        // The program that knows version 3 finds them all.
        let connection = Connection::open(dir.path().join("journal.db")).unwrap();
        connection.pragma_update(None, "user_version", SCHEMA_VERSION).unwrap();
        drop(connection);
        assert_eq!(Journal::open(dir.path()).unwrap().verify().unwrap(), records);
    }

    #[test]
    fn failed_migration_leaves_the_file_unchanged() {
        let dir = tempfile::tempdir().unwrap();
        let records = version_1(dir.path());
        let fails =
            "CREATE TABLE terms (epoch INTEGER); UPDATE events SET payload = '{}'; INSERT INTO nowhere VALUES (1)";
        let mut connection = Connection::open(dir.path().join("journal.db")).unwrap();
        let error = migrate(&mut connection, &[MIGRATIONS[0], "DROP INDEX events_latest", fails]).unwrap_err();
        assert!(error.to_string().contains("nowhere"), "{error}");
        drop(connection);
        is_as_it_was(dir.path(), records);
    }

    #[test]
    fn killed_migration_leaves_the_file_unchanged() {
        const DIR: &str = "RINGFENCE_TEST_MIGRATION";
        if let Some(dir) = std::env::var_os(DIR) {
            // Writes until it is killed.
            let endless = "UPDATE events SET payload = '{}'; CREATE TABLE terms (epoch INTEGER); \
                 WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) INSERT INTO terms SELECT i FROM n";
            let mut connection = Connection::open(Path::new(&dir).join("journal.db")).unwrap();
            migrate(&mut connection, &[MIGRATIONS[0], endless]).unwrap();
        }
        let dir = tempfile::tempdir().unwrap();
        let records = version_1(dir.path());
        let name = "journal::schema::tests::killed_migration_leaves_the_file_unchanged";
        let mut child = Command::new(std::env::current_exe().unwrap());
        let mut child = child.args(["--exact", name]).env(DIR, dir.path()).spawn().unwrap();
        // Until pages that are not committed lie in the log beside the file.
        let log = dir.path().join("journal.db-wal");
        while std::fs::metadata(&log).map_or(0, |log| log.len()) < 1 << 20 {
            assert!(child.try_wait().unwrap().is_none(), "it ended by itself");
            std::thread::yield_now();
        }
        child.kill().unwrap();
        child.wait().unwrap();
        is_as_it_was(dir.path(), records);
    }
}
