//! The protocol between a controller and a host agent or a ZBS MDS agent: POST of JSON, under paths of ZStack's
//! kvmagent.
//!
//! A command is a struct with a path and a reply type. The body of a reply has the reply's fields beside `success` and
//! `error`. Header `taskuuid` makes a retry idempotent; header `deadline-ms` limits the time of the work.

use std::fmt::Debug;

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::ErrorCode;

/// Header with the uuid of the task. If an agent receives a task again while the first one is in progress or
/// remembered, it returns the first one's reply and does not repeat the work.
pub const TASK_HEADER: &str = "taskuuid";

/// Header with the time that the caller still waits, in milliseconds. The agent aborts the work after that time.
pub const DEADLINE_HEADER: &str = "deadline-ms";

/// Header with the uuid of a host: in a request the host that is addressed, in a reply the host that replies. An IP
/// address alone does not identify a host.
pub const HOST_HEADER: &str = "host-uuid";

/// The largest body of a request or reply, 1 MiB. Too low: a host with thousands of VMs cannot list them. Too high: a
/// broken peer fills the reader's memory.
pub const MAX_BODY_BYTES: usize = 1 << 20;

/// A command that is posted to an agent.
pub trait AgentCommand: Serialize + DeserializeOwned + Debug + Send + Sync + 'static {
    /// Absolute path of the POST request, such as `/host/ping`.
    const PATH: &'static str;
    /// The fields of the reply beside `success` and `error`.
    type Reply: Serialize + DeserializeOwned + Debug + Send + 'static;
}

/// The body of every reply of an agent.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AgentAnswer<R> {
    /// Whether the command succeeded.
    pub success: bool,
    /// The error; present exactly if `success` is false.
    #[serde(default)]
    pub error: Option<ErrorCode>,
    /// The fields of the reply; absent on failure.
    #[serde(flatten)]
    pub reply: Option<R>,
}

/// The reply of a command without a result: the command succeeded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Done {}

/// Declares the path and reply of an agent command: `agent_command!(HostPingCmd, "/host/ping" => HostPingReply);`.
/// The command is also a bus message: the actor of the host receives it and posts it to the agent.
#[macro_export]
macro_rules! agent_command {
    ($name:ident, $path:literal => $reply:ty) => {
        $crate::message!($name, 1 => $reply);
        impl $crate::agent::AgentCommand for $name {
            const PATH: &'static str = $path;
            type Reply = $reply;
        }
    };
}
