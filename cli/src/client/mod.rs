//! The client of the controller's API.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use clap::Args;
use reqwest::{Method, Response};
use ringfence_drivers::{agent_client::IDLE_TIMEOUT, tls};
use ringfence_messages::{Code, ErrorCode, Result};
use ringfence_service::token_file::read_token;
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;

/// Time limit of a request: as long as a VM's start. Too low: a start that succeeds is reported as failed.
const TIMEOUT: Duration = Duration::from_secs(130);

/// Time limit of a connection attempt. Too low: a busy controller counts as down.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A connection to one controller.
pub struct Client {
    token: Option<SecretString>,
    base: String,
    http: reqwest::Client,
    files: Files,
}

/// TLS files for a controller with an `https://` URL.
#[derive(Clone, Debug, Default)]
pub struct Files {
    /// Certificate authorities that may have issued the controller's certificate.
    pub ca: Option<PathBuf>,
    /// Client certificate and key, if the controller requires one.
    pub own: Option<(PathBuf, PathBuf)>,
}

/// Controller connection.
#[derive(Debug, Args)]
pub struct Server {
    /// URL of the controller
    #[arg(long, env = "RINGFENCE_SERVER", default_value = "http://127.0.0.1:7080")]
    server: String,
    /// File with the API token, mode 0600
    #[arg(long, env = "RINGFENCE_TOKEN_FILE")]
    token_file: Option<PathBuf>,
    /// File with the certificate authorities of an https:// controller
    #[arg(long, env = "RINGFENCE_CA_FILE")]
    ca_file: Option<PathBuf>,
    /// File with the client certificate, if the controller requires one
    #[arg(long, env = "RINGFENCE_CERT_FILE", requires = "key_file")]
    cert_file: Option<PathBuf>,
    /// File with the key of the client certificate, mode 0600
    #[arg(long, env = "RINGFENCE_KEY_FILE", requires = "cert_file")]
    key_file: Option<PathBuf>,
}

impl Server {
    pub(crate) fn url(&self) -> &str {
        &self.server
    }

    pub(crate) fn client(&self) -> Result<Client> {
        let files = Files { ca: self.ca_file.clone(), own: self.cert_file.clone().zip(self.key_file.clone()) };
        Client::with_files(&self.server, files)?.with_token_file(self.token_file.as_deref())
    }
}

#[derive(Deserialize)]
struct Items<T> {
    items: Vec<T>,
}

#[derive(Deserialize)]
struct Refusal {
    error: ErrorCode,
}

impl Client {
    /// A client of the controller at this `http://` URL.
    ///
    /// # Errors
    /// `SYS.1007` if it is `https://`.
    pub fn new(base: &str) -> Result<Client> {
        Client::with_files(base, Files::default())
    }

    /// A client of the controller at this URL, with these files if it is `https://`.
    ///
    /// # Errors
    /// `SYS.1007` if `https://` has no certificate authority, or a file cannot be used.
    pub fn with_files(base: &str, files: Files) -> Result<Client> {
        let http = match (base.starts_with("https://"), &files.ca) {
            (false, _) => tls::plain_client()?,
            (true, Some(ca)) => tls::api_client(ca, files.own.clone())?,
            (true, None) => {
                let details = format!(
                    "no certificate authority for {base}: set --ca-file or RINGFENCE_CA_FILE to the ca.pem of \
                     `ringfence pki init`"
                );
                return Err(ErrorCode::new(Code::INVALID_ARGUMENT, details));
            }
        };
        let http = http.connect_timeout(CONNECT_TIMEOUT).pool_idle_timeout(IDLE_TIMEOUT).build();
        let http = http.map_err(|e| ErrorCode::new(Code::INTERNAL, e.to_string()))?;
        Ok(Client { token: None, base: base.trim_end_matches('/').to_owned(), http, files })
    }

    /// Adds the token of this file.
    ///
    /// # Errors
    /// `SYS.1007`, naming the file and the fix.
    pub fn with_token_file(mut self, file: Option<&Path>) -> Result<Client> {
        self.token = file.map(read_token).transpose()?;
        Ok(self)
    }

    /// The items of a listing.
    ///
    /// # Errors
    /// The controller's error, or the reason why the request failed.
    pub async fn items<T: DeserializeOwned>(&self, path: &str) -> Result<Vec<T>> {
        self.get::<Items<T>>(path).await.map(|items| items.items)
    }

    /// The answer to a GET request.
    ///
    /// # Errors
    /// The controller's error, or the reason why the request failed.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        let response = self.send(Method::GET, path, None, Some(TIMEOUT)).await?;
        self.read(response).await
    }

    /// The answer to a POST request.
    ///
    /// # Errors
    /// The controller's error, or the reason why the request failed.
    pub async fn post<T: DeserializeOwned>(&self, path: &str, body: &Value) -> Result<T> {
        let response = self.send(Method::POST, path, Some(body), Some(TIMEOUT)).await?;
        self.read(response).await
    }

    /// Opens an endless stream.
    pub(crate) async fn open(&self, path: &str) -> Result<Response> {
        self.send(Method::GET, path, None, None).await
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
        timeout: Option<Duration>,
    ) -> Result<Response> {
        let mut request = self.http.request(method, format!("{}{path}", self.base));
        if let Some(timeout) = timeout {
            request = request.timeout(timeout);
        }
        if let Some(body) = body {
            request = request.json(body);
        }
        if let Some(token) = &self.token {
            request = request.bearer_auth(token.expose_secret());
        }
        let response = request.send().await.map_err(|e| self.unreachable(&e))?;
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status();
        let body = response.bytes().await.map_err(|e| self.unreachable(&e))?;
        Err(match serde_json::from_slice::<Refusal>(&body) {
            Ok(refusal) => refusal.error,
            Err(_) => ErrorCode::new(
                Code::HTTP,
                format!("{} answered {status}; check that --server is a Ringfence controller", self.base),
            ),
        })
    }

    async fn read<T: DeserializeOwned>(&self, response: Response) -> Result<T> {
        let body = response.bytes().await.map_err(|e| self.unreachable(&e))?;
        serde_json::from_slice(&body).map_err(|e| {
            let details = format!(
                "unknown answer of {}: {e}; use the same version of ringfence for client and controller",
                self.base
            );
            ErrorCode::new(Code::HTTP, details)
        })
    }

    fn unreachable(&self, error: &reqwest::Error) -> ErrorCode {
        let own = self.files.own.as_ref().map(|(cert, _)| &**cert);
        if let Some(why) = tls::refused_server(error, own, self.files.ca.as_deref()) {
            return ErrorCode::new(Code::NODE_UNAVAILABLE, format!("cannot reach {}: {why}", self.base));
        }
        let mut why: &dyn std::error::Error = error;
        while let Some(deeper) = why.source() {
            why = deeper;
        }
        let details =
            format!("no controller answers at {}: {why}; start one with `ringfence serve`, or set --server", self.base);
        ErrorCode::new(Code::NODE_UNAVAILABLE, details)
    }
}

/// A name as one segment of a path, percent-encoded.
pub(crate) fn path_part(name: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    name.bytes().map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}
