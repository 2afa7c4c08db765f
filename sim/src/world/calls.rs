//! One exchange with an agent: latency, loss, duplicates, frozen hosts, and addresses where another host answers.
//!
//! A request waits in the socket of a frozen host or agent, and is served when that continues, whether or not the
//! caller still waits. An agent rejects a request for another host.

use std::{future::Future, sync::Arc, time::Duration};

use ringfence_actors::{ports::Call, texts};
use ringfence_messages::{Code, ErrorCode, HostId, Result, VmId, words};
use serde::{Serialize, de::DeserializeOwned};
use tokio::{sync::oneshot, time::Instant};
use uuid::Uuid;

use super::{End, State, World, links::Node};
use ringfence_actors::sabotage::{self, Sabotage};

/// What a host with [`LongWords`](crate::fault::Fault::LongWords) adds to whatever it says: 100 kB that would forge
/// lines of a log and colours of a terminal.
pub(super) fn long_words() -> String {
    "\u{1b}[2K\rhost-0: all is well\n\u{7}\u{0}".repeat(4096)
}

/// A request at an agent.
#[derive(Clone)]
pub(super) struct At {
    pub(super) world: Arc<World>,
    pub(super) host: usize,
    pub(super) boot: u32,
    pub(super) life: u32,
    /// The agent acts on it until then, counted from when it read it.
    pub(super) by: Instant,
}

pub(super) fn reset() -> ErrorCode {
    ErrorCode::new(Code::HOST_DISCONNECTED, "cannot reach the agent: connection reset")
}

fn no_answer(within: Duration) -> ErrorCode {
    ErrorCode::new(Code::TIMEOUT, format!("no answer within {within:?}"))
}

impl At {
    /// Something takes so long on the host, longer if that stands still; an error if the agent is gone then.
    pub(super) async fn work(&self, time: Duration) -> Result<()> {
        tokio::time::sleep(time).await;
        self.goes_on(true).await
    }

    /// The same for what goes on without the agent: an error only if the host is gone.
    pub(super) async fn work_on_host(&self, time: Duration) -> Result<()> {
        tokio::time::sleep(time).await;
        self.goes_on(false).await
    }

    pub(super) async fn goes_on(&self, agent: bool) -> Result<()> {
        let of = self;
        let gone = move |state: &State| {
            let machine = &state.machines[of.host];
            !machine.on || machine.boot != of.boot || (agent && (!machine.agent_up || machine.agent_life != of.life))
        };
        let stands = move |state: &State| {
            let machine = &state.machines[of.host];
            machine.freezes > 0 || (agent && machine.agent_freezes > 0)
        };
        if stands(&self.world.state()) {
            self.world.until(|state| gone(state) || !stands(state)).await;
        }
        if gone(&self.world.state()) { Err(reset()) } else { Ok(()) }
    }

    pub(super) fn state(&self) -> parking_lot::MutexGuard<'_, State> {
        self.world.state()
    }

    pub(super) fn vm(&self, id: VmId) -> Result<usize> {
        self.world.vm(id)
    }
}

/// What comes back: an answer, or nothing ever.
type Back<T> = Option<Result<T>>;

impl End {
    /// One exchange with an agent, which refuses what is meant for another host.
    pub(super) async fn call<T, F, S>(&self, host: HostId, call: Call, serve: F) -> Result<T>
    where
        T: Serialize + DeserializeOwned + Send + 'static,
        S: Future<Output = Result<T>> + Send + 'static,
        F: Fn(At) -> S + Clone + Send + Sync + 'static,
    {
        let meant = self.world.host(host)?;
        let serve = move |at: At| {
            let serve = serve.clone();
            async move {
                if at.host != meant && !sabotage::on(Sabotage::OtherMachineCounts) {
                    let name = at.state().machines[at.host].name.clone();
                    let details = format!("this is {name}: the request is for another host");
                    return Err(ErrorCode::new(Code::HOST_DISCONNECTED, details));
                }
                serve(at).await
            }
        };
        self.call_at_address(host, call, serve).await
    }

    /// One exchange with whatever agent answers at a host's address.
    pub(super) async fn call_at_address<T, F, S>(&self, host: HostId, call: Call, serve: F) -> Result<T>
    where
        T: Serialize + DeserializeOwned + Send + 'static,
        S: Future<Output = Result<T>> + Send + 'static,
        F: Fn(At) -> S + Clone + Send + Sync + 'static,
    {
        let dies = self.dies();
        let host = self.world.host(host)?;
        let (to, fate, boot) = {
            let mut state = self.world.state();
            let to = state.answers_at(host);
            (to, state.send(Node::Controller, Node::Host(to)), state.machines[to].boot)
        };
        let answer = match fate.after {
            None => None,
            Some(after) => {
                let (tell, answer) = oneshot::channel();
                let exchange = exchange(self.world.clone(), (to, boot), after, call, serve.clone());
                tokio::spawn(async move {
                    let _ = tell.send(exchange.await);
                });
                if fate.twice {
                    let late = after + self.world.state().some(1..3000);
                    tokio::spawn(exchange_again(self.world.clone(), (to, boot), late, call, serve));
                }
                Some(answer)
            }
        };
        if dies {
            // The request is on its way.
            tokio::time::sleep(Duration::from_millis(20)).await;
            return self.die().await;
        }
        let until = Instant::now() + call.timeout;
        if let Some(answer) = answer
            && let Ok(Ok(Some(answer))) = tokio::time::timeout_at(until, answer).await
        {
            return self.heard(answer);
        }
        tokio::time::sleep_until(until).await;
        Err(no_answer(call.timeout))
    }

    /// An answer as the client of real agents hears it: with bounded words.
    fn heard<T: Serialize + DeserializeOwned>(&self, answer: Result<T>) -> Result<T> {
        if self.world.state().machines.iter().all(|machine| machine.wordy == 0) {
            return answer;
        }
        match answer {
            Ok(answer) => bounded(&answer),
            Err(error) => Err(bounded(&error)?),
        }
    }
}

fn bounded<T: Serialize + DeserializeOwned>(answer: &T) -> Result<T> {
    let said = serde_json::to_value(answer).map(|said| texts::each(said, &words::bounded));
    said.and_then(serde_json::from_value).map_err(|e| ErrorCode::new(Code::HTTP, e.to_string()))
}

async fn exchange_again<T, F, S>(world: Arc<World>, to: (usize, u32), after: Duration, call: Call, serve: F)
where
    S: Future<Output = Result<T>> + Send + 'static,
    F: Fn(At) -> S,
{
    let _ = exchange(world, to, after, call, serve).await;
}

async fn exchange<T, F, S>(
    world: Arc<World>,
    (to, boot): (usize, u32),
    after: Duration,
    call: Call,
    serve: F,
) -> Back<T>
where
    S: Future<Output = Result<T>>,
    F: Fn(At) -> S,
{
    tokio::time::sleep(after).await;
    let at = {
        let mut state = world.state();
        // A connection does not outlive the boot that it was made to.
        let there = state.machines[to].on && state.machines[to].boot == boot;
        if !there || !state.links.open(Node::Controller, Node::Host(to)) {
            return None;
        }
        let machine = &mut state.machines[to];
        if machine.freezes == 0 && !machine.agent_up {
            return Some(Err(ErrorCode::new(Code::HOST_DISCONNECTED, "cannot reach the agent: connection refused")));
        }
        At { world: world.clone(), host: to, boot: machine.boot, life: machine.agent_life, by: Instant::now() }
    };
    let result = served(at, call.task, call.timeout, serve).await;
    let back = world.state().send(Node::Host(to), Node::Controller).after?;
    tokio::time::sleep(back).await;
    let open = world.state().links.open(Node::Host(to), Node::Controller);
    open.then_some(result)
}

async fn served<T, F, S>(mut at: At, task: Uuid, timeout: Duration, serve: F) -> Result<T>
where
    S: Future<Output = Result<T>>,
    F: Fn(At) -> S,
{
    at.goes_on(true).await?;
    let slow = {
        let mut state = at.state();
        let now = state.now;
        let machine = &mut state.machines[at.host];
        if machine.done.len() == machine.done.capacity() {
            machine.done.retain(|_, at| now.saturating_sub(*at) < Duration::from_secs(600));
        }
        if machine.done.insert(task, now).is_some() {
            return Err(ErrorCode::new(Code::CHANGE_STATE, "this task is being done already"));
        }
        let slow = machine.slow.iter().map(|(_, millis)| *millis).max().unwrap_or(0);
        if slow > 0 { state.some(0..slow) } else { Duration::ZERO }
    };
    // `deadline-ms` counts from when the agent read it.
    at.by = Instant::now() + timeout;
    if !slow.is_zero() {
        at.work(slow).await?;
    }
    let says = at.clone();
    let mut result = serve(at).await;
    if let Err(error) = &mut result
        && says.state().machines[says.host].wordy > 0
    {
        error.details.push_str(&long_words());
    }
    result
}
