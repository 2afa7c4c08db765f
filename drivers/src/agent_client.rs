//! Speaks to host agents: POST of JSON, bounded in time and size.
//!
//! Invariants: an answer larger than [`MAX_BODY_BYTES`] is not read to its end; what is not the protocol's answer
//! is `SYS.1015` with the beginning of what came instead; no body and no token is ever logged.

use std::{collections::HashMap, time::Duration};

use async_trait::async_trait;
use parking_lot::RwLock;
use reqwest::{Client, StatusCode, redirect};
use ringfence_actors::{
    fence::StartPermit,
    ports::{Call, HostAgentPort},
};
use ringfence_messages::{
    Code, ErrorCode, HostId, Result,
    agent::{AgentAnswer, AgentCommand, DEADLINE_HEADER, Done, MAX_BODY_BYTES, TASK_HEADER},
    doctor::{DiagnoseHostCmd, DiagnoseHostReply},
    fence::{SiblingFenceVmCmd, SiblingFenceVmOnHostReply},
    ha::{ScanHostCmd, ScanHostCmdReply},
    host::{HostFactsCmd, HostFactsReply, HostPingCmd, HostPingReply},
    vhost::{
        CreateVhostBdevCmd, CreateVhostBdevReply, DeleteVhostBdevCmd, DeployVhostCmd, DeployVhostReply,
        PrepareVhostTargetEnvCmd, PrepareVhostTargetEnvReply, VhostTargetHealthCmd, VhostTargetHealthReply,
    },
    vm::{ListVmsCmd, ListVmsReply, StartVmCmd, StartVmCmdReply, StopVmCmd},
};
use secrecy::{ExposeSecret, SecretString};
use serde::{Serialize, de::DeserializeOwned};

use crate::exact;

/// How long a TCP connection may take. Too low: a busy network looks dead. Too high: a dead host holds a ping's
/// place for so long.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// How long a connection is kept for the next call. Must be shorter than the time after which agents close idle
/// connections (10 s): a call on a connection that is being closed fails.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(5);

/// Characters of an odd answer that an error repeats.
const SAMPLE_CHARS: usize = 200;

/// Posts commands to one kind of peer and reads its answers. Used for host agents and MDS agents alike.
pub(crate) struct Poster {
    client: Client,
}

impl Poster {
    pub(crate) fn new() -> Result<Poster> {
        let client = Client::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .pool_idle_timeout(IDLE_TIMEOUT)
            .redirect(redirect::Policy::none())
            .no_proxy()
            .build()
            .map_err(|e| ErrorCode::new(Code::INTERNAL, format!("HTTP client: {e}")))?;
        Ok(Poster { client })
    }

    pub(crate) async fn post<C: AgentCommand>(
        &self,
        base: &str,
        token: Option<&SecretString>,
        body: &impl Serialize,
        call: Call,
    ) -> Result<C::Reply> {
        let url = format!("{}{}", base.trim_end_matches('/'), C::PATH);
        let mut request = self
            .client
            .post(&url)
            .header(TASK_HEADER, call.task.simple().to_string())
            .header(DEADLINE_HEADER, call.timeout.as_millis().to_string())
            .json(body);
        if let Some(token) = token {
            request = request.bearer_auth(token.expose_secret());
        }
        let exchange = async {
            let response = request.send().await.map_err(|e| unreachable(&url, &e))?;
            let status = response.status();
            Ok((status, read_bounded(&url, response).await?))
        };
        let Ok(answer) = tokio::time::timeout(call.timeout, exchange).await else {
            let details = format!("{url} did not answer within {:?}", call.timeout);
            return Err(ErrorCode::new(Code::TIMEOUT, details));
        };
        let (status, body) = answer?;
        understand::<C::Reply>(&url, status, &body)
    }
}

async fn read_bounded(url: &str, mut response: reqwest::Response) -> Result<Vec<u8>> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|e| unreachable(url, &e))? {
        if body.len() + chunk.len() > MAX_BODY_BYTES {
            return Err(ErrorCode::new(Code::HTTP, format!("{url} answered with more than {MAX_BODY_BYTES} bytes")));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// Reads the answer of an agent, or of an MDS: its reply, or the error that it tells.
///
/// # Errors
/// What the peer says went wrong; `SYS.1015` with the beginning of the answer if it is none.
pub fn understand<R: DeserializeOwned + Serialize>(url: &str, status: StatusCode, body: &[u8]) -> Result<R> {
    let odd = |what: String| {
        let sample: String =
            String::from_utf8_lossy(body).chars().filter(|c| !c.is_control()).take(SAMPLE_CHARS).collect();
        ErrorCode::new(Code::HTTP, format!("{url} answered {status} with {what}: {sample:?}"))
    };
    let answer: serde_json::Result<AgentAnswer<serde_json::Value>> = exact::value(body).and_then(exact::read);
    let answer = answer.map_err(|e| odd(format!("what is no answer of an agent ({e})")))?;
    match (answer.success, answer.error) {
        (true, None) if status.is_success() => {
            let reply = answer.reply.unwrap_or_default();
            exact::read(reply).map_err(|e| odd(format!("a reply of another shape ({e})")))
        }
        (false, Some(error)) => Err(error),
        (false, None) => Err(odd("a failure without an error".to_owned())),
        (true, _) => Err(odd("success and failure at once".to_owned())),
    }
}

fn unreachable(url: &str, error: &reqwest::Error) -> ErrorCode {
    let mut why = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(deeper) = source {
        why = deeper.to_string();
        source = deeper.source();
    }
    ErrorCode::new(Code::HOST_DISCONNECTED, format!("cannot reach {url}: {why}"))
}

/// Where the agents are.
pub struct AgentClient {
    poster: Poster,
    hosts: RwLock<HashMap<HostId, String>>,
    token: Option<SecretString>,
}

impl AgentClient {
    /// A client of these agents, by their base URLs. `token` is shown to each of them.
    ///
    /// # Errors
    /// `SYS.1000` if the HTTP client cannot be made.
    pub fn new(hosts: HashMap<HostId, String>, token: Option<SecretString>) -> Result<AgentClient> {
        Ok(AgentClient { poster: Poster::new()?, hosts: RwLock::new(hosts), token })
    }

    /// Reaches these agents too, or elsewhere than before.
    pub fn reach(&self, hosts: impl IntoIterator<Item = (HostId, String)>) {
        self.hosts.write().extend(hosts);
    }

    /// Has a host look at itself and at the way to its siblings. Not of the port: no actor asks for it.
    ///
    /// # Errors
    /// As [`HostAgentPort`]'s; `SYS.1003` from an agent that is older than the question.
    pub async fn diagnose(&self, host: HostId, cmd: DiagnoseHostCmd, call: Call) -> Result<DiagnoseHostReply> {
        self.call(host, cmd, call).await
    }

    async fn call<C: AgentCommand>(&self, host: HostId, command: C, call: Call) -> Result<C::Reply> {
        let Some(base) = self.hosts.read().get(&host).cloned() else {
            return Err(ErrorCode::new(Code::NOT_FOUND, format!("no agent is known for host {host}")));
        };
        self.poster.post::<C>(&base, self.token.as_ref(), &command, call).await
    }
}

#[async_trait]
impl HostAgentPort for AgentClient {
    async fn ping(&self, host: HostId, call: Call) -> Result<HostPingReply> {
        self.call(host, HostPingCmd { host_uuid: host }, call).await
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
