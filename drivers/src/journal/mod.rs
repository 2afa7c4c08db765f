//! The journal: an append-only, hash-chained SQLite table, synced to disk with every append.
//!
//! Invariants: an append is one transaction, on disk when the call returns; `seq` has no gaps; the hash of a record
//! covers the record before, so that [`Journal::verify`] detects every changed, removed or inserted record.
//! Alternatives considered: an own file format (SQLite handles crashes already); hashes of JSON values (one value has
//! several spellings): the stored text is hashed.

mod chain;
#[cfg(debug_assertions)]
pub mod crash;
mod schema;

use std::{
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::Arc,
};

use async_trait::async_trait;
use parking_lot::Mutex;
use ringfence_actors::ports::{JournalPort, MAX_PAYLOAD_BYTES, MAX_READ, NewRecord, Record};
use ringfence_messages::{Code, ErrorCode, Result};
use rusqlite::{Connection, OpenFlags, Row, params};

pub use chain::GENESIS;
pub use schema::SCHEMA_VERSION;

/// The longest topic or subject, in bytes. Names are at most 64; a subject joins three of them.
pub const MAX_LABEL_BYTES: usize = 512;

const COLUMNS: &str = "seq, time, topic, subject, payload, hash";

/// The journal of one controller.
#[derive(Clone)]
pub struct Journal {
    path: Arc<PathBuf>,
    writer: Arc<Mutex<Writer>>,
    reader: Arc<Mutex<Connection>>,
}

struct Writer {
    connection: Connection,
    last: (u64, String),
}

/// Makes the file if it is missing, and its owner's alone if it is not: what SQLite puts beside it takes its mode from
/// it.
fn private(path: &Path) -> std::io::Result<()> {
    let file = std::fs::OpenOptions::new().append(true).create(true).mode(0o600).open(path)?;
    match crate::files::open_to_others(&file.metadata()?) {
        Some(_) => file.set_permissions(std::fs::Permissions::from_mode(0o600)),
        None => Ok(()),
    }
}

impl Journal {
    /// Opens `journal.db` in a directory, making it if it is missing and migrating it if it is of an earlier version.
    ///
    /// # Errors
    /// `SYS.1016`, naming the file and the fix: not readable or writable, not a journal, of a later version.
    pub fn open(dir: &Path) -> Result<Journal> {
        let path = dir.join("journal.db");
        // Where that fails opening it fails too, and says why.
        let _ = private(&path);
        let open = || -> rusqlite::Result<std::result::Result<(Writer, Connection), i64>> {
            let mut connection = Connection::open(&path)?;
            let version = schema::migrate(&mut connection, schema::MIGRATIONS)?;
            if !(0..=SCHEMA_VERSION).contains(&version) {
                return Ok(Err(version));
            }
            connection.pragma_update(None, "journal_mode", "WAL")?;
            connection.pragma_update(None, "synchronous", "FULL")?;
            let last = last(&connection)?;
            let reader = Connection::open_with_flags(&path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
            Ok(Ok((Writer { connection, last }, reader)))
        };
        let opened = open().map_err(|e| explain(&path, "open", &e))?;
        let (writer, reader) = opened.map_err(|version| {
            let details = format!(
                "{} has schema version {version}, this program supports {SCHEMA_VERSION}: the file was written by a \
                 later version; run that version",
                path.display()
            );
            ErrorCode::new(Code::IO, details)
        })?;
        Ok(Journal { path: Arc::new(path), writer: Arc::new(Mutex::new(writer)), reader: Arc::new(Mutex::new(reader)) })
    }

    /// Sequence number and hash of the last record of a directory's journal, if it follows from the record before;
    /// `None` for a missing or empty journal. Only reads, also beside a running controller.
    ///
    /// # Errors
    /// `SYS.1016` if it cannot be read; `SYS.1000` if the last record was altered.
    pub fn head(dir: &Path) -> Result<Option<(u64, String)>> {
        let path = dir.join("journal.db");
        if !path.try_exists().map_err(|e| ErrorCode::new(Code::IO, format!("{}: {e}", path.display())))? {
            return Ok(None);
        }
        let read = || -> rusqlite::Result<Vec<Stored>> {
            let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI;
            let connection = Connection::open_with_flags(unchanged(&path), flags)?;
            let mut statement =
                connection.prepare(&format!("SELECT {COLUMNS} FROM events ORDER BY seq DESC LIMIT 2"))?;
            statement.query_map([], Stored::read)?.collect()
        };
        let newest = read().map_err(|e| explain(&path, "read", &e))?;
        let Some(last) = newest.first() else { return Ok(None) };
        let (before, hash) = newest.get(1).map_or((0, GENESIS), |before| (before.seq, before.hash.as_str()));
        if last.seq != before + 1 || last.hash_after(hash) != last.hash {
            let details = format!(
                "{}: record {} does not follow from record {before}: the journal was altered",
                path.display(),
                last.seq
            );
            return Err(ErrorCode::new(Code::INTERNAL, details));
        }
        Ok(Some((last.seq, last.hash.clone())))
    }

    /// The newest record of each subject of a topic in a directory's journal; none if there is no journal. Only reads,
    /// also beside a running controller.
    ///
    /// # Errors
    /// `SYS.1016` if it cannot be read.
    pub fn latest_in(dir: &Path, topic: &str) -> Result<Vec<Record>> {
        let path = dir.join("journal.db");
        if !path.try_exists().map_err(|e| ErrorCode::new(Code::IO, format!("{}: {e}", path.display())))? {
            return Ok(Vec::new());
        }
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI;
        let connection =
            Connection::open_with_flags(unchanged(&path), flags).map_err(|e| explain(&path, "read", &e))?;
        collect(&connection, &newest_of_each(), params![topic]).map_err(|e| explain(&path, "read", &e))
    }

    /// Verifies the whole hash chain and returns the number of records.
    ///
    /// # Errors
    /// `SYS.1000` with the first record that was changed, removed or inserted; `SYS.1016` if the journal cannot be
    /// read.
    pub fn verify(&self) -> Result<u64> {
        let connection = self.reader.lock();
        let (mut seq, mut hash) = (0, GENESIS.to_owned());
        let mut walk = || -> rusqlite::Result<Option<u64>> {
            let mut statement = connection.prepare(&format!("SELECT {COLUMNS} FROM events ORDER BY seq"))?;
            let mut rows = statement.query([])?;
            while let Some(row) = rows.next()? {
                let stored = Stored::read(row)?;
                if stored.seq != seq + 1 || stored.hash != stored.hash_after(&hash) {
                    return Ok(Some(stored.seq));
                }
                (seq, hash) = (stored.seq, stored.hash);
            }
            Ok(None)
        };
        match walk().map_err(|e| explain(&self.path, "read", &e))? {
            None => Ok(seq),
            Some(bad) => {
                let details = format!(
                    "{}: record {bad} does not follow from record {seq}: the journal was altered",
                    self.path.display()
                );
                Err(ErrorCode::new(Code::INTERNAL, details))
            }
        }
    }

    async fn read_with<T: Send + 'static>(
        &self,
        query: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T> {
        let (reader, path) = (self.reader.clone(), self.path.clone());
        let read = tokio::task::spawn_blocking(move || query(&reader.lock()).map_err(|e| explain(&path, "read", &e)));
        read.await.map_err(|e| ErrorCode::new(Code::INTERNAL, format!("journal reader failed: {e}")))?
    }
}

#[async_trait]
impl JournalPort for Journal {
    async fn append(&self, records: Vec<NewRecord>) -> Result<Vec<Record>> {
        records.iter().try_for_each(fits)?;
        let (writer, path) = (self.writer.clone(), self.path.clone());
        #[cfg(debug_assertions)]
        let crash_after = {
            if crash::wanted("before", &records) {
                crash::crash();
            }
            crash::wanted("after", &records)
        };
        let write = tokio::task::spawn_blocking(move || {
            let appended = writer.lock().append(records).map_err(|e| explain(&path, "write", &e));
            #[cfg(debug_assertions)]
            if crash_after {
                crash::crash();
            }
            appended
        });
        write.await.map_err(|e| ErrorCode::new(Code::INTERNAL, format!("journal writer failed: {e}")))?
    }

    async fn read(&self, after: u64, limit: usize) -> Result<Vec<Record>> {
        let limit = limit.min(MAX_READ) as i64;
        let after = i64::try_from(after).unwrap_or(i64::MAX);
        self.read_with(move |connection| {
            let sql = format!("SELECT {COLUMNS} FROM events WHERE seq > ?1 ORDER BY seq LIMIT ?2");
            collect(connection, &sql, params![after, limit])
        })
        .await
    }

    async fn latest(&self, topic: &str) -> Result<Vec<Record>> {
        let topic = topic.to_owned();
        self.read_with(move |connection| collect(connection, &newest_of_each(), params![topic])).await
    }

    async fn latest_of(&self, topic: &str, subject: &str) -> Result<Option<Record>> {
        let (topic, subject) = (topic.to_owned(), subject.to_owned());
        let mut found = self
            .read_with(move |connection| {
                let sql =
                    format!("SELECT {COLUMNS} FROM events WHERE topic = ?1 AND subject = ?2 ORDER BY seq DESC LIMIT 1");
                collect(connection, &sql, params![topic, subject])
            })
            .await?;
        Ok(found.pop())
    }

    async fn ends(&self) -> Result<Option<(String, u64)>> {
        self.read_with(move |connection| {
            let sql = "SELECT hash, (SELECT max(seq) FROM events) FROM events ORDER BY seq LIMIT 1";
            match connection.query_row(sql, [], |row| Ok((row.get(0)?, row.get::<_, i64>(1)? as u64))) {
                Err(rusqlite::Error::QueryReturnedNoRows) => Ok(None),
                ends => ends.map(Some),
            }
        })
        .await
    }

    async fn newest(&self, of: Option<(&[&str], &str)>, limit: usize) -> Result<Vec<Record>> {
        let limit = limit.min(MAX_READ) as i64;
        let of = of.map(|(topics, subject)| (serde_json::json!(topics).to_string(), subject.to_owned()));
        let mut newest = self
            .read_with(move |connection| match &of {
                None => {
                    let sql = format!("SELECT {COLUMNS} FROM events ORDER BY seq DESC LIMIT ?1");
                    collect(connection, &sql, params![limit])
                }
                Some((topics, subject)) => {
                    let sql = format!(
                        "SELECT {COLUMNS} FROM events WHERE topic IN (SELECT value FROM json_each(?1)) AND subject = \
                         ?2 ORDER BY seq DESC LIMIT ?3"
                    );
                    collect(connection, &sql, params![topics, subject, limit])
                }
            })
            .await?;
        newest.reverse();
        Ok(newest)
    }
}

impl Writer {
    fn append(&mut self, records: Vec<NewRecord>) -> rusqlite::Result<Vec<Record>> {
        let transaction = self.connection.transaction()?;
        let (mut seq, mut hash) = self.last.clone();
        let (mut appended, now) = (Vec::with_capacity(records.len()), jiff::Timestamp::now());
        {
            let sql = format!("INSERT INTO events ({COLUMNS}) VALUES (?1, ?2, ?3, ?4, ?5, ?6)");
            let mut insert = transaction.prepare_cached(&sql)?;
            for record in records {
                seq += 1;
                // A wait beyond what the calendar can tell is none of ours.
                let time = now.checked_sub(record.waited).unwrap_or(now);
                let mut stored = Stored {
                    seq,
                    time: format!("{time:.3}"),
                    topic: record.topic,
                    subject: record.subject,
                    payload: record.payload.to_string(),
                    hash: String::new(),
                };
                stored.hash = stored.hash_after(&hash);
                let Stored { seq, time, topic, subject, payload, hash: next } = &stored;
                insert.execute(params![*seq as i64, time, topic, subject, payload, next])?;
                hash.clone_from(next);
                appended.push(stored.with_payload(record.payload));
            }
        }
        transaction.commit()?;
        self.last = (seq, hash);
        Ok(appended)
    }
}

/// A record as it is stored: the payload is text.
struct Stored {
    seq: u64,
    time: String,
    topic: String,
    subject: String,
    payload: String,
    hash: String,
}

/// How SQLite is to open a journal so that it leaves no file behind: without a log beside it nobody has it open, and it
/// does not change while it is read.
fn unchanged(path: &Path) -> String {
    let log = PathBuf::from(format!("{}-wal", path.display()));
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'/' | b'.' | b'_' | b'-');
    let encoded = path.as_os_str().as_encoded_bytes().iter();
    let encoded: String =
        encoded.map(|b| if plain(*b) { char::from(*b).to_string() } else { format!("%{b:02X}") }).collect();
    format!("file:{encoded}{}", if log.exists() { "" } else { "?immutable=1" })
}

/// Whether a record follows the one with this hash ([`GENESIS`] before the first), unchanged.
pub fn follows(previous: &str, record: &Record) -> bool {
    let fields = [record.time.as_str(), &record.topic, &record.subject, &record.payload.to_string()];
    chain::hash(previous, record.seq, fields) == record.hash
}

impl Stored {
    fn read(row: &Row<'_>) -> rusqlite::Result<Stored> {
        Ok(Stored {
            seq: row.get::<_, i64>(0)?.try_into().unwrap_or(0),
            time: row.get(1)?,
            topic: row.get(2)?,
            subject: row.get(3)?,
            payload: row.get(4)?,
            hash: row.get(5)?,
        })
    }

    fn hash_after(&self, previous: &str) -> String {
        chain::hash(previous, self.seq, [&self.time, &self.topic, &self.subject, &self.payload])
    }

    fn with_payload(self, payload: serde_json::Value) -> Record {
        Record { seq: self.seq, time: self.time, topic: self.topic, subject: self.subject, payload, hash: self.hash }
    }
}

/// The newest record of each subject of a topic.
fn newest_of_each() -> String {
    format!(
        "SELECT {COLUMNS} FROM events WHERE seq IN (SELECT max(seq) FROM events WHERE topic = ?1 GROUP BY subject) \
         ORDER BY seq"
    )
}

fn collect(connection: &Connection, sql: &str, params: impl rusqlite::Params) -> rusqlite::Result<Vec<Record>> {
    let mut statement = connection.prepare_cached(sql)?;
    let rows = statement.query_map(params, |row| {
        let stored = Stored::read(row)?;
        let payload = serde_json::from_str(&stored.payload)
            .map_err(|e| rusqlite::Error::FromSqlConversionFailure(4, rusqlite::types::Type::Text, Box::new(e)))?;
        Ok(stored.with_payload(payload))
    })?;
    rows.collect()
}

fn last(connection: &Connection) -> rusqlite::Result<(u64, String)> {
    let sql = "SELECT seq, hash FROM events ORDER BY seq DESC LIMIT 1";
    match connection.query_row(sql, [], |row| Ok((row.get::<_, i64>(0)? as u64, row.get(1)?))) {
        Err(rusqlite::Error::QueryReturnedNoRows) => Ok((0, GENESIS.to_owned())),
        last => last,
    }
}

fn fits(record: &NewRecord) -> Result<()> {
    let payload = record.payload.to_string().len();
    if payload > MAX_PAYLOAD_BYTES || record.topic.len() > MAX_LABEL_BYTES || record.subject.len() > MAX_LABEL_BYTES {
        let details = format!(
            "record of topic {:.40} is too large: payload {payload} bytes (limit {MAX_PAYLOAD_BYTES}), subject {} \
             bytes (limit {MAX_LABEL_BYTES})",
            record.topic,
            record.subject.len()
        );
        return Err(ErrorCode::new(Code::INVALID_ARGUMENT, details));
    }
    Ok(())
}

fn explain(path: &Path, doing: &str, error: &rusqlite::Error) -> ErrorCode {
    use rusqlite::ErrorCode as Sqlite;
    let fix = match error.sqlite_error_code() {
        Some(Sqlite::DiskFull) => "the disk is full: make room, then the journal continues automatically",
        Some(Sqlite::ReadOnly | Sqlite::PermissionDenied | Sqlite::CannotOpen) => {
            "check that the directory exists and that this user may write it"
        }
        Some(Sqlite::NotADatabase | Sqlite::DatabaseCorrupt) => {
            "the file is damaged: keep it for inspection, and start with another `state_dir` or a backup"
        }
        Some(Sqlite::DatabaseBusy | Sqlite::DatabaseLocked) => "another program has the file open: stop it",
        _ => "fix the cause",
    };
    ErrorCode::new(Code::IO, format!("cannot {doing} journal {}: {error}; {fix}", path.display()))
}
