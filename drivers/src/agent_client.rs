//! Client of host agents: POST of JSON, with limits on time and size.
//!
//! Invariants: a reply larger than [`MAX_BODY_BYTES`] is not read to its end; a reply that is not of the protocol, or
//! from another host, is `SYS.1015` with the beginning of that reply; texts in a reply are bounded and clean
//! (`words.rs` of the messages) and have no secret that the request had (`secrets.rs`); no body and no token is logged;
//! an `https://` agent gets nothing, not even the token, before its certificate is verified (see [`tls`]).

use std::{collections::HashMap, sync::Arc, time::Duration};

use async_trait::async_trait;
use parking_lot::RwLock;
use reqwest::{Client, ClientBuilder, StatusCode, redirect};
use ringfence_actors::{
    fence::StartPermit,
    ports::{Call, HostAgentPort},
    span, spans,
};
use ringfence_messages::{
    Code, ErrorCode, HostId, Result,
    agent::{AgentAnswer, AgentCommand, DEADLINE_HEADER, Done, HOST_HEADER, MAX_BODY_BYTES, TASK_HEADER},
    doctor::{DiagnoseHostCmd, DiagnoseHostReply},
    fence::{SiblingFenceVmCmd, SiblingFenceVmOnHostReply},
    ha::{ScanHostCmd, ScanHostCmdReply},
    host::{HostFactsCmd, HostFactsReply, HostPingCmd, HostPingReply},
    journal::JournalHead,
    vhost::{
        CreateVhostBdevCmd, CreateVhostBdevReply, DeleteVhostBdevCmd, DeployVhostCmd, DeployVhostReply,
        PrepareVhostTargetEnvCmd, PrepareVhostTargetEnvReply, VhostTargetHealthCmd, VhostTargetHealthReply,
    },
    vm::{ListVmsCmd, ListVmsReply, StartVmCmd, StartVmCmdReply, StopVmCmd},
    words,
};
use secrecy::{ExposeSecret, SecretString};
use serde::{Serialize, de::DeserializeOwned};

use tracing::Span;

use crate::{
    secrets::Secrets,
    strict_json,
    tls::{self, TlsFiles, Watched},
    trace_context::{self, TRACEPARENT},
};

/// Time limit of a TCP connect. Too low: a busy network looks dead. Too high: a dead host occupies a ping for that
/// long.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// Idle time after which a connection is closed. Must be less than the agents' limit (10 s): a call on a connection
/// that is being closed fails. Too low: every call connects again.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(5);

/// The scheme of agents that use TLS.
const SECURE: &str = "https://";

/// Characters of a malformed reply in an error.
const SAMPLE_CHARS: usize = 200;

/// Posts commands to one kind of peer, host agents or MDS agents, and reads the replies.
pub(crate) struct AgentRpc {
    client: Watched<Client>,
    tls: Option<TlsFiles>,
}

/// A peer: the URL of requests, and the URL in errors.
pub(crate) struct Peer {
    request_url: String,
    display_url: String,
    /// The secret in its commands, which is removed from its replies.
    secret: Option<SecretString>,
    /// The expected host; `None` for an MDS agent.
    host: Option<HostId>,
}

impl Peer {
    /// A peer with one URL for requests and errors.
    pub(crate) fn at(url: &str) -> Peer {
        Peer { request_url: url.to_owned(), display_url: url.to_owned(), secret: None, host: None }
    }

    /// Sets the secret in the commands to this peer.
    pub(crate) fn given(self, secret: Option<&SecretString>) -> Peer {
        Peer { secret: secret.cloned(), ..self }
    }

    fn of(host: HostId, request_url: String, display_url: &str) -> Peer {
        Peer { request_url, display_url: display_url.to_owned(), secret: None, host: Some(host) }
    }
}

impl AgentRpc {
    pub(crate) fn new() -> Result<AgentRpc> {
        Ok(AgentRpc { client: Watched::new(Vec::new(), || built(tls::plain_client()?))?, tls: None })
    }

    /// A client with TLS. `addresses` are the addresses of the hosts' aliases.
    fn secure(files: TlsFiles, addresses: HashMap<String, String>, ends: tls::Ends) -> Result<AgentRpc> {
        let tls_files = files.clone();
        let make = move || built(tls::agents_client(&tls_files, addresses.clone(), ends.clone())?);
        Ok(AgentRpc { client: Watched::new(files.paths(), make)?, tls: Some(files) })
    }

    pub(crate) async fn post<C: AgentCommand>(
        &self,
        peer: &Peer,
        token: Option<&SecretString>,
        body: &impl Serialize,
        call: Call,
    ) -> Result<C::Reply> {
        let at = |base: &str| format!("{}{}", base.trim_end_matches('/'), C::PATH);
        let url = at(&peer.display_url);
        // A new client after a change of files: connections with the old certificates end with the old client.
        let client: Arc<Client> = self.client.current();
        let mut request = client
            .post(at(&peer.request_url))
            .header(TASK_HEADER, call.task.simple().to_string())
            .header(DEADLINE_HEADER, call.timeout.as_millis().to_string())
            .json(body);
        if let Some(host) = peer.host {
            request = request.header(HOST_HEADER, host.to_string());
        }
        if let Some(trace) = trace_context::outgoing(&Span::current()) {
            request = request.header(TRACEPARENT, trace);
        }
        if let Some(token) = token {
            request = request.bearer_auth(token.expose_secret());
        }
        let exchange = async {
            let response = request.send().await.map_err(|e| self.unreachable(&url, &e))?;
            let status = response.status();
            is_of(peer.host, &url, response.headers())?;
            Ok((status, self.read_bounded(&url, response).await?))
        };
        let Ok(answer) = tokio::time::timeout(call.timeout, exchange).await else {
            let details = format!("{url} did not answer within {:?}", call.timeout);
            return Err(ErrorCode::new(Code::TIMEOUT, details));
        };
        let (status, body) = answer?;
        let given = token.into_iter().chain(&peer.secret);
        parse_reply_redacted::<C::Reply>(&Secrets::of(given), &url, status, &body)
    }

    async fn read_bounded(&self, url: &str, mut response: reqwest::Response) -> Result<Vec<u8>> {
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|e| self.unreachable(url, &e))? {
            if body.len() + chunk.len() > MAX_BODY_BYTES {
                return Err(ErrorCode::new(Code::HTTP, format!("reply of {url} has more than {MAX_BODY_BYTES} bytes")));
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body)
    }

    fn unreachable(&self, url: &str, error: &reqwest::Error) -> ErrorCode {
        let files = self.tls.as_ref();
        let refused = tls::refused_server(error, files.map(|of| &*of.cert), files.map(|of| &*of.ca));
        let why = refused.unwrap_or_else(|| {
            let mut deepest: &dyn std::error::Error = error;
            while let Some(deeper) = deepest.source() {
                deepest = deeper;
            }
            deepest.to_string()
        });
        ErrorCode::new(Code::HOST_DISCONNECTED, format!("cannot reach {url}: {why}"))
    }
}

/// Rejects a reply of another host. An agent of the previous version sends no host uuid.
fn is_of(host: Option<HostId>, url: &str, headers: &reqwest::header::HeaderMap) -> Result<()> {
    let (Some(host), Some(header)) = (host, headers.get(HOST_HEADER)) else { return Ok(()) };
    let replied = header.to_str().unwrap_or("?");
    if replied.parse() == Ok(host) {
        return Ok(());
    }
    let details = format!(
        "{url} is answered by host {replied:.60}, not by host {host}: fix the agent's address in the controller's \
         config"
    );
    Err(ErrorCode::new(Code::HTTP, details))
}

fn built(client: ClientBuilder) -> Result<Client> {
    client
        .connect_timeout(CONNECT_TIMEOUT)
        .pool_idle_timeout(IDLE_TIMEOUT)
        .redirect(redirect::Policy::none())
        .build()
        .map_err(|e| ErrorCode::new(Code::INTERNAL, format!("HTTP client: {e}")))
}

/// Parses the reply of an agent or an MDS.
///
/// # Errors
/// The peer's error; `SYS.1015` with the beginning of the body if it is malformed.
pub fn parse_reply<R: DeserializeOwned + Serialize>(url: &str, status: StatusCode, body: &[u8]) -> Result<R> {
    parse_reply_redacted(&Secrets::default(), url, status, body)
}

/// [`parse_reply`] without the secrets of the request.
fn parse_reply_redacted<R: DeserializeOwned + Serialize>(
    secrets: &Secrets,
    url: &str,
    status: StatusCode,
    body: &[u8],
) -> Result<R> {
    let malformed = |what: String| {
        let sample = secrets.hide_parts(&String::from_utf8_lossy(body));
        let sample: String = sample.chars().filter(|c| !c.is_control()).take(SAMPLE_CHARS).collect();
        let details = format!("{url} answered {status} with {}: {sample:?}", secrets.hide_parts(&what));
        ErrorCode::new(Code::HTTP, words::bounded(&details))
    };
    // From here on no text of the peer has a secret, is long, or controls a terminal.
    let redacted = strict_json::value(body).map(|reply| secrets.hide_in(reply));
    let answer: serde_json::Result<AgentAnswer<serde_json::Value>> = redacted.and_then(strict_json::read);
    let answer = answer.map_err(|e| malformed(format!("no reply of an agent ({e})")))?;
    match (answer.success, answer.error) {
        (true, None) if status.is_success() => {
            let reply = answer.reply.unwrap_or_default();
            strict_json::read(reply).map_err(|e| malformed(format!("a reply of another shape ({e})")))
        }
        (false, Some(error)) => Err(error.bounded()),
        (false, None) => Err(malformed("a failure without an error".to_owned())),
        (true, _) => Err(malformed("success and failure at once".to_owned())),
    }
}

/// The client of all agents.
pub struct AgentClient {
    known: RwLock<Arc<Known>>,
    token: Option<SecretString>,
    tls: Option<TlsFiles>,
}

/// The known agents; replaced as a whole.
struct Known {
    urls: HashMap<HostId, String>,
    peers: HashMap<HostId, Peer>,
    rpc: AgentRpc,
    ends: tls::Ends,
}

impl Known {
    /// `tls` is used for agents with an `https://` URL. Of each only its own host's certificate is accepted.
    fn of(urls: HashMap<HostId, String>, tls: Option<&TlsFiles>) -> Result<Known> {
        let Some(files) = tls else {
            if let Some(secure) = urls.values().find(|url| url.starts_with(SECURE)) {
                let details = format!("agent {secure} requires a certificate: add [agent_tls] cert, key, ca");
                return Err(ErrorCode::new(Code::INVALID_ARGUMENT, details));
            }
            let peers = urls.iter().map(|(id, url)| (*id, Peer::of(*id, url.clone(), url))).collect();
            return Ok(Known { urls, peers, rpc: AgentRpc::new()?, ends: tls::Ends::default() });
        };
        let mut addresses = HashMap::new();
        let mut peer = |(id, url): (&HostId, &String)| {
            let place = url.strip_prefix(SECURE).and_then(|authority| authority.rsplit_once(':'));
            let Some((address, port)) = place else { return (*id, Peer::of(*id, url.clone(), url)) };
            addresses.insert(tls::alias(*id), address.to_owned());
            let request_url = format!("{SECURE}{}:{}", tls::alias(*id), port.trim_end_matches('/'));
            (*id, Peer::of(*id, request_url, url))
        };
        let peers = urls.iter().map(&mut peer).collect();
        let ends = tls::Ends::default();
        Ok(Known { urls, peers, rpc: AgentRpc::secure(files.clone(), addresses, ends.clone())?, ends })
    }
}

impl AgentClient {
    /// A client of these agents, by their base URLs. `token` is sent to each of them.
    ///
    /// # Errors
    /// `SYS.1000` if the HTTP client cannot be created.
    pub fn new(hosts: HashMap<HostId, String>, token: Option<SecretString>) -> Result<AgentClient> {
        AgentClient::with_tls(hosts, token, None)
    }

    /// A client with TLS for agents with an `https://` URL. Of each only its own host's certificate is accepted.
    ///
    /// # Errors
    /// `SYS.1007` with file and remedy if a file of `tls` is unusable, or if an `https://` agent lacks `tls`.
    pub fn with_tls(
        hosts: HashMap<HostId, String>,
        token: Option<SecretString>,
        tls: Option<TlsFiles>,
    ) -> Result<AgentClient> {
        let known = RwLock::new(Arc::new(Known::of(hosts, tls.as_ref())?));
        Ok(AgentClient { known, token, tls })
    }

    /// Adds or replaces URLs of agents. Calls in progress are not affected.
    ///
    /// # Errors
    /// As [`with_tls`](AgentClient::with_tls); then nothing changes.
    pub fn update(&self, hosts: impl IntoIterator<Item = (HostId, String)>) -> Result<()> {
        let before = self.known.read().clone();
        let mut urls = before.urls.clone();
        urls.extend(hosts);
        if urls != before.urls {
            *self.known.write() = Arc::new(Known::of(urls, self.tls.as_ref())?);
        }
        Ok(())
    }

    /// The earliest end of the last certificates of these hosts, in seconds of the Unix epoch; `None` if none was seen.
    pub fn certificates_end(&self, hosts: impl IntoIterator<Item = HostId>) -> Option<i64> {
        let known = self.known.read().clone();
        let ends = known.ends.lock();
        hosts.into_iter().filter_map(|host| ends.get(&host).copied()).min()
    }

    /// Makes a host check itself and the path to its sibling hosts. Not in the port: no actor needs it.
    ///
    /// # Errors
    /// As for [`HostAgentPort`]; `SYS.1003` from an agent without this command.
    pub async fn diagnose(&self, host: HostId, cmd: DiagnoseHostCmd, call: Call) -> Result<DiagnoseHostReply> {
        self.call(host, cmd, call).await
    }

    async fn call<C: AgentCommand>(&self, host: HostId, command: C, call: Call) -> Result<C::Reply> {
        let known = self.known.read().clone();
        let Some(peer) = known.peers.get(&host) else {
            return Err(ErrorCode::new(Code::NOT_FOUND, format!("host {host} has no known agent")));
        };
        let span = span!(
            "agent.call",
            otel.name = C::PATH,
            otel.kind = "client",
            host.id = %host,
            http.request.method = "POST",
            url.full = format!("{}{}", peer.display_url, C::PATH),
            ringfence.task = %call.task.simple(),
        );
        spans::within(span, known.rpc.post::<C>(peer, self.token.as_ref(), &command, call)).await
    }
}

#[async_trait]
impl HostAgentPort for AgentClient {
    async fn ping(&self, host: HostId, head: Option<JournalHead>, call: Call) -> Result<HostPingReply> {
        self.call(host, HostPingCmd { host_uuid: host, head }, call).await
    }

    async fn facts(&self, host: HostId, cmd: HostFactsCmd, call: Call) -> Result<HostFactsReply> {
        self.call(host, cmd, call).await
    }

    async fn prepare_vhost_target_env(
        &self,
        host: HostId,
        cmd: PrepareVhostTargetEnvCmd,
        call: Call,
    ) -> Result<PrepareVhostTargetEnvReply> {
        self.call(host, cmd, call).await
    }

    async fn deploy_vhost(&self, host: HostId, cmd: DeployVhostCmd, call: Call) -> Result<DeployVhostReply> {
        self.call(host, cmd, call).await
    }

    async fn vhost_health(
        &self,
        host: HostId,
        cmd: VhostTargetHealthCmd,
        call: Call,
    ) -> Result<VhostTargetHealthReply> {
        self.call(host, cmd, call).await
    }

    async fn create_vhost_bdev(
        &self,
        host: HostId,
        cmd: CreateVhostBdevCmd,
        call: Call,
    ) -> Result<CreateVhostBdevReply> {
        self.call(host, cmd, call).await
    }

    async fn delete_vhost_bdev(&self, host: HostId, cmd: DeleteVhostBdevCmd, call: Call) -> Result<Done> {
        self.call(host, cmd, call).await
    }

    async fn start_vm(
        &self,
        host: HostId,
        permit: &StartPermit,
        cmd: StartVmCmd,
        call: Call,
    ) -> Result<StartVmCmdReply> {
        if !permit.covers(host, &cmd) {
            return Err(ErrorCode::new(
                Code::INTERNAL,
                format!("start permit does not cover this start of {}", cmd.name),
            ));
        }
        self.call(host, cmd, call).await
    }

    async fn stop_vm(&self, host: HostId, cmd: StopVmCmd, call: Call) -> Result<Done> {
        self.call(host, cmd, call).await
    }

    async fn list_vms(&self, host: HostId, cmd: ListVmsCmd, call: Call) -> Result<ListVmsReply> {
        self.call(host, cmd, call).await
    }

    async fn sibling_fence(
        &self,
        host: HostId,
        cmd: SiblingFenceVmCmd,
        call: Call,
    ) -> Result<SiblingFenceVmOnHostReply> {
        self.call(host, cmd, call).await
    }

    async fn scan_host(&self, host: HostId, cmd: ScanHostCmd, call: Call) -> Result<ScanHostCmdReply> {
        self.call(host, cmd, call).await
    }
}
