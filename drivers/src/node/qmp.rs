//! A QMP exchange with QEMU or its storage daemon: one command, one reply, with limits on time and size.

use std::{path::Path, time::Duration};

use ringfence_messages::{Code, ErrorCode, Result};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::UnixStream,
};

/// The longest answer, 1 MiB. Ours are a few hundred bytes.
const MAX_ANSWER_BYTES: u64 = 1 << 20;

/// An open conversation.
pub struct Qmp {
    stream: BufReader<tokio::io::Take<UnixStream>>,
}

impl Qmp {
    /// Connects, reads the greeting and negotiates. A peer that was stopped accepts the connection and says
    /// nothing: that ends with `within`.
    ///
    /// # Errors
    /// `SYS.1006` if nobody listens or what answers is not QMP; `SYS.1001` if nothing comes in time.
    pub async fn connect(path: &Path, within: Duration) -> Result<Qmp> {
        bounded(path, within, async {
            let stream = UnixStream::connect(path).await.map_err(|e| odd(path, format!("no listener: {e}")))?;
            let mut qmp = Qmp { stream: BufReader::new(stream.take(MAX_ANSWER_BYTES)) };
            let greeting = qmp.read(path).await?;
            if greeting.get("QMP").is_none() {
                return Err(odd(path, "the greeting is not QMP's".into()));
            }
            qmp.exchange(path, "qmp_capabilities", json!({})).await?;
            Ok(qmp)
        })
        .await
    }

    /// Runs one command.
    ///
    /// # Errors
    /// `SYS.1006` with QEMU's own words, `SYS.1001` if no answer comes in time.
    pub async fn execute(&mut self, path: &Path, command: &str, arguments: Value, within: Duration) -> Result<Value> {
        bounded(path, within, self.exchange(path, command, arguments)).await
    }

    async fn exchange(&mut self, path: &Path, command: &str, arguments: Value) -> Result<Value> {
        let mut line = json!({ "execute": command, "arguments": arguments }).to_string();
        line.push('\n');
        let socket = self.stream.get_mut().get_mut();
        socket.write_all(line.as_bytes()).await.map_err(|e| odd(path, format!("{command}: {e}")))?;
        loop {
            let mut answer = self.read(path).await?;
            if let Some(value) = answer.get_mut("return") {
                return Ok(value.take());
            }
            if let Some(error) = answer.get("error") {
                let words = error.get("desc").and_then(Value::as_str).unwrap_or("error without description");
                return Err(odd(path, format!("{command}: {words}")));
            }
            // An event; not what was asked for.
        }
    }

    async fn read(&mut self, path: &Path) -> Result<Value> {
        self.stream.get_mut().set_limit(MAX_ANSWER_BYTES);
        let mut line = Vec::new();
        let read = self.stream.read_until(b'\n', &mut line).await.map_err(|e| odd(path, e.to_string()))?;
        if read == 0 || line.last() != Some(&b'\n') {
            return Err(odd(path, "the reply is truncated".into()));
        }
        serde_json::from_slice(&line).map_err(|e| odd(path, format!("the reply is not JSON: {e}")))
    }
}

async fn bounded<T>(path: &Path, within: Duration, work: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::time::timeout(within, work).await.unwrap_or_else(|_| {
        Err(ErrorCode::new(Code::TIMEOUT, format!("control socket {}: no answer within {within:?}", path.display())))
    })
}

fn odd(path: &Path, what: String) -> ErrorCode {
    ErrorCode::new(Code::OPERATION, format!("control socket {}: {what}", path.display()))
}

#[cfg(test)]
mod tests {
    use tokio::net::UnixListener;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// A peer that says these lines, whatever it is asked, and then waits.
    async fn peer(lines: &'static str) -> (tempfile::TempDir, std::path::PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let listener = UnixListener::bind(&path).unwrap();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.write_all(lines.as_bytes()).await.unwrap();
            if !lines.ends_with('!') {
                std::future::pending::<()>().await;
            }
        });
        (dir, path)
    }

    #[tokio::test]
    async fn events_are_skipped_and_errors_quoted() {
        let lines = "{\"QMP\":{}}\n{\"return\":{}}\n{\"event\":\"STOP\"}\n{\"return\":7}\n\
            {\"error\":{\"desc\":\"no such node\"}}\n";
        let (_dir, path) = peer(lines).await;
        let mut qmp = Qmp::connect(&path, SECOND).await.unwrap();
        assert_eq!(qmp.execute(&path, "a", json!({}), SECOND).await, Ok(json!(7)));
        assert!(qmp.execute(&path, "b", json!({}), SECOND).await.unwrap_err().details.ends_with("b: no such node"));
    }

    #[tokio::test]
    async fn qmp_failures_have_distinct_errors() {
        let cases = [
            ("", Code::TIMEOUT, "no answer within"),
            ("{\"QMP\":{}}\n", Code::TIMEOUT, "no answer within"),
            ("SSH-2.0\n", Code::OPERATION, "not JSON"),
            ("{\"hello\":1}\n", Code::OPERATION, "not QMP's"),
            ("{\"QMP\":{}!", Code::OPERATION, "is truncated"),
        ];
        for (lines, code, says) in cases {
            let (_dir, path) = peer(lines).await;
            let error = Qmp::connect(&path, Duration::from_millis(200)).await.err().expect(lines);
            assert!(error.code == code && error.details.contains(says), "{lines:?}: {error}");
        }
        let error = Qmp::connect(Path::new("/nowhere/s"), SECOND).await.err().unwrap();
        assert!(error.details.contains("no listener"), "{error}");
    }
}
