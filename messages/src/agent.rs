//! How a controller and a host agent (or a ZBS MDS agent) speak: POST of JSON under kvmagent-like paths.
//!
//! Every command is a struct that knows its path and its reply. The body of an answer is the reply's fields
//! beside `success` and `error`; header `taskuuid` makes a repeat idempotent, `deadline-ms` bounds the work.

use std::fmt::Debug;

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::ErrorCode;

/// Header that names the task: an agent that sees it again while the first is in flight or remembered
/// gives the first's answer and does nothing anew.
pub const TASK_HEADER: &str = "taskuuid";

/// Header with the milliseconds that the caller still waits; the agent stops working when they are over.
pub const DEADLINE_HEADER: &str = "deadline-ms";

/// Header that names the host that a command is for, and in an answer the host that gives it: an address says only who
/// answers there now.
pub const HOST_HEADER: &str = "host-uuid";

/// The largest request or answer body, 1 MiB. Too low: a host with thousands of VMs cannot list them. Too
/// high: a broken peer fills the memory of whoever reads it.
pub const MAX_BODY_BYTES: usize = 1 << 20;

/// A command that is posted to an agent.
pub trait AgentCommand: Serialize + DeserializeOwned + Debug + Send + Sync + 'static {
    /// The path it is posted to.
    const PATH: &'static str;
    /// The fields of the answer beside `success` and `error`.
    type Reply: Serialize + DeserializeOwned + Debug + Send + 'static;
}

/// The body of every answer of an agent.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AgentAnswer<R> {
    /// Whether the command did what it says.
    pub success: bool,
    /// Why not.
    #[serde(default)]
    pub error: Option<ErrorCode>,
    /// The reply's own fields, absent on failure.
    #[serde(flatten)]
    pub reply: Option<R>,
}

/// The reply of a command that has nothing to tell but that it was done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Done {}

/// Declares the path and reply of an agent command: `agent_command!(HostPingCmd, "/host/ping" => HostPingReply);`.
/// It is a bus message too: the actor of the host takes it and posts it to the agent.
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
