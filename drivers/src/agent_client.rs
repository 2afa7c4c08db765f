//! Speaks to host agents: POST of JSON, bounded in time and size.
//!
//! Invariants: an answer larger than [`MAX_BODY_BYTES`] is not read to its end; what is not the protocol's answer
//! or comes from another host is `SYS.1015` with the beginning of what came instead; its words are
//! bounded and clean (`words.rs` of the messages), and without the secrets that it was given (see `secrets.rs`); no body and no token is ever logged; to an `https://` agent
//! nothing is said, the token neither, before its certificate is that of its host (see [`tls`]).

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

/// How long a TCP connection may take. Too low: a busy network looks dead. Too high: a dead host holds a ping's
/// place for so long.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// How long a connection is kept for the next call. Must be shorter than the time after which agents close idle
/// connections (10 s): a call on a connection that is being closed fails.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(5);

/// How the URL of an agent begins that shows and asks for certificates.
const SECURE: &str = "https://";

/// Characters of an odd answer that an error repeats.
const SAMPLE_CHARS: usize = 200;

/// Posts commands to one kind of peer and reads its answers. Used for host agents and MDS agents alike.
pub(crate) struct AgentRpc {
    client: Watched<Client>,
    tls: Option<TlsFiles>,
}

/// A peer: where requests go, and what errors call it.
pub(crate) struct Peer {
    request_url: String,
    display_url: String,
    /// What the commands to it tell it that nobody else is to know.
    secret: Option<SecretString>,
    /// The host that is to answer; `None` for what is no host's agent.
    host: Option<HostId>,
}

impl Peer {
    /// One that is called by its URL.
    pub(crate) fn at(url: &str) -> Peer {
        Peer { request_url: url.to_owned(), display_url: url.to_owned(), secret: None, host: None }
    }

    /// The same one, whose commands have this secret in them.
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

    /// One that shows and asks for certificates. `addresses` are those of the hosts' aliases.
    fn secure(files: TlsFiles, addresses: HashMap<String, String>, ends: tls::Ends) -> Result<AgentRpc> {
        let of = files.clone();
        let make = move || built(tls::agents_client(&of, addresses.clone(), ends.clone())?);
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
        // A new client when files changed: connections under the old certificates end with the old one.
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
                return Err(ErrorCode::new(
                    Code::HTTP,
                    format!("{url} answered with more than {MAX_BODY_BYTES} bytes"),
                ));
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

/// An answer that says that it is another host's is none. An agent of the version before does not say whose it is.
fn is_of(host: Option<HostId>, url: &str, headers: &reqwest::header::HeaderMap) -> Result<()> {
    let (Some(host), Some(said)) = (host, headers.get(HOST_HEADER)) else { return Ok(()) };
    let said = said.to_str().unwrap_or("?");
    if said.parse() == Ok(host) {
        return Ok(());
    }
    let details = format!(
        "{url} is answered by host {said:.60}, not by host {host}: mend the agent's address in the controller's file"
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

/// Reads the answer of an agent, or of an MDS: its reply, or the error that it tells.
///
/// # Errors
/// What the peer says went wrong; `SYS.1015` with the beginning of the answer if it is none.
pub fn parse_reply<R: DeserializeOwned + Serialize>(url: &str, status: StatusCode, body: &[u8]) -> Result<R> {
    parse_reply_redacted(&Secrets::default(), url, status, body)
}

/// As [`understand`], without the secrets that the peer was given.
fn parse_reply_redacted<R: DeserializeOwned + Serialize>(
    secrets: &Secrets,
    url: &str,
    status: StatusCode,
    body: &[u8],
) -> Result<R> {
    let odd = |what: String| {
        let sample = secrets.hide_parts(&String::from_utf8_lossy(body));
        let sample: String = sample.chars().filter(|c| !c.is_control()).take(SAMPLE_CHARS).collect();
        let details = format!("{url} answered {status} with {}: {sample:?}", secrets.hide_parts(&what));
        ErrorCode::new(Code::HTTP, words::bounded(&details))
    };
    // From here on nothing that it says is secret or long, or does anything to a terminal.
    let said = strict_json::value(body).map(|said| secrets.hide_in(said));
    let answer: serde_json::Result<AgentAnswer<serde_json::Value>> = said.and_then(strict_json::read);
    let answer = answer.map_err(|e| odd(format!("what is no answer of an agent ({e})")))?;
    match (answer.success, answer.error) {
        (true, None) if status.is_success() => {
            let reply = answer.reply.unwrap_or_default();
            strict_json::read(reply).map_err(|e| odd(format!("a reply of another shape ({e})")))
        }
        (false, Some(error)) => Err(error.bounded()),
        (false, None) => Err(odd("a failure without an error".to_owned())),
        (true, _) => Err(odd("success and failure at once".to_owned())),
    }
}

/// Where the agents are.
pub struct AgentClient {
    known: RwLock<Arc<Known>>,
    token: Option<SecretString>,
    tls: Option<TlsFiles>,
}

/// The agents that are known at a time; replaced as a whole.
struct Known {
    urls: HashMap<HostId, String>,
    peers: HashMap<HostId, Peer>,
    rpc: AgentRpc,
    ends: tls::Ends,
}

impl Known {
    /// `tls` is shown to agents with an `https://` URL, each of which is believed its own certificate alone.
    fn of(urls: HashMap<HostId, String>, tls: Option<&TlsFiles>) -> Result<Known> {
        let Some(files) = tls else {
            if let Some(secure) = urls.values().find(|url| url.starts_with(SECURE)) {
                let details = format!("{secure} wants to see a certificate: add [agent_tls] cert, key, ca");
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
    /// A client of these agents, by their base URLs. `token` is shown to each of them.
    ///
    /// # Errors
    /// `SYS.1000` if the HTTP client cannot be made.
    pub fn new(hosts: HashMap<HostId, String>, token: Option<SecretString>) -> Result<AgentClient> {
        AgentClient::with_tls(hosts, token, None)
    }

    /// Such a client that shows a certificate to agents with an `https://` URL, and believes each its own alone.
    ///
    /// # Errors
    /// `SYS.1007` if a file of `tls` cannot be used, naming it and the fix; or if there is none for an `https://` agent.
    pub fn with_tls(
        hosts: HashMap<HostId, String>,
        token: Option<SecretString>,
        tls: Option<TlsFiles>,
    ) -> Result<AgentClient> {
        let known = RwLock::new(Arc::new(Known::of(hosts, tls.as_ref())?));
        Ok(AgentClient { known, token, tls })
    }

    /// Reaches these agents too, or elsewhere than before. Calls under way end as they began.
    ///
    /// # Errors
    /// As [`with_tls`](AgentClient::with_tls)'s; then nothing is another.
    pub fn update(&self, hosts: impl IntoIterator<Item = (HostId, String)>) -> Result<()> {
        let before = self.known.read().clone();
        let mut urls = before.urls.clone();
        urls.extend(hosts);
        if urls != before.urls {
            *self.known.write() = Arc::new(Known::of(urls, self.tls.as_ref())?);
        }
        Ok(())
    }

    /// When the first of the certificates ends that these hosts showed last, in seconds of the Unix epoch; `None` if none
    /// was seen.
    pub fn certificates_end(&self, hosts: impl IntoIterator<Item = HostId>) -> Option<i64> {
        let known = self.known.read().clone();
        let ends = known.ends.lock();
        hosts.into_iter().filter_map(|host| ends.get(&host).copied()).min()
    }

    /// Has a host look at itself and at the way to its siblings. Not of the port: no actor asks for it.
    ///
    /// # Errors
    /// As [`HostAgentPort`]'s; `SYS.1003` from an agent that is older than the question.
    pub async fn diagnose(&self, host: HostId, cmd: DiagnoseHostCmd, call: Call) -> Result<DiagnoseHostReply> {
        self.call(host, cmd, call).await
    }

    async fn call<C: AgentCommand>(&self, host: HostId, command: C, call: Call) -> Result<C::Reply> {
        let known = self.known.read().clone();
        let Some(peer) = known.peers.get(&host) else {
            return Err(ErrorCode::new(Code::NOT_FOUND, format!("no agent is known for host {host}")));
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
            return Err(ErrorCode::new(Code::INTERNAL, format!("the permit is not for this start of {}", cmd.name)));
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
