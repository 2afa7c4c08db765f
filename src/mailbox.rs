//! The mailbox: three bounded lanes, and a queue of results of the actor's tasks.
//!
//! Invariants: a lane never exceeds its limit; an accepted message is either handled or failed with an error; the
//! mailbox loop is woken exactly if it waits; an unused lane allocates nothing.
//! Alternatives considered: actix's mailbox (its `do_send` ignores the capacity, and it has no lanes); one channel per
//! lane (three wakers, three allocations, no common sequence of service).

use std::{
    any::{Any, TypeId},
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    task::Waker,
};

use parking_lot::Mutex;
use ringfence_messages::{Address, Code, ErrorCode, Lane, Result};

use crate::{
    actor::{Accepts, Actor, Exit},
    bus::Shared,
    envelope::{Envelope, TaskResult},
    inspect::ActorSnapshot,
};

/// The greatest number of queued messages in each lane of a mailbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LaneLimits {
    /// Control lane. Too low: urgent messages are rejected. Too high: urgent messages wait behind others.
    pub control: u32,
    /// Normal lane. Too low: bursts are rejected. Too high: overload shows late, as latency.
    pub normal: u32,
    /// Bulk lane. Too low and too high: as for the normal lane.
    pub bulk: u32,
}

impl Default for LaneLimits {
    fn default() -> Self {
        LaneLimits { control: 1024, normal: 4096, bulk: 4096 }
    }
}

impl LaneLimits {
    fn of(&self, lane: Lane) -> u32 {
        match lane {
            Lane::Control => self.control,
            Lane::Normal => self.normal,
            Lane::Bulk => self.bulk,
        }
    }
}

pub(crate) struct Mailbox<A: Actor> {
    pub(crate) address: Address,
    pub(crate) shared: Arc<Shared>,
    accepts: Arc<Accepts<A>>,
    limits: LaneLimits,
    queues: Mutex<Queues<A>>,
    pub(crate) handled: AtomicU64,
    pub(crate) failed: AtomicU64,
    pub(crate) restarts: AtomicU32,
}

struct Queues<A: Actor> {
    results: VecDeque<TaskResult<A>>,
    lanes: [VecDeque<Box<dyn Envelope<A>>>; 3],
    /// Waker of the mailbox loop, from its first poll on.
    waker: Option<Waker>,
    /// The mailbox loop waits for a wake, or will wait after the item in progress.
    idle: bool,
    exit: Option<Exit>,
}

/// The next item for the mailbox loop.
pub(crate) enum Item<A: Actor> {
    TaskResult(TaskResult<A>),
    Message(Box<dyn Envelope<A>>),
    /// No item; the next one wakes the mailbox loop.
    Idle,
}

impl<A: Actor> Mailbox<A> {
    pub(crate) fn new(
        address: Address,
        shared: Arc<Shared>,
        accepts: Arc<Accepts<A>>,
        limits: LaneLimits,
    ) -> Mailbox<A> {
        Mailbox {
            address,
            shared,
            accepts,
            limits,
            queues: Mutex::new(Queues {
                results: VecDeque::new(),
                lanes: [const { VecDeque::new() }; 3],
                waker: None,
                idle: false,
                exit: None,
            }),
            handled: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            restarts: AtomicU32::new(0),
        }
    }

    /// Puts a message into a lane.
    pub(crate) fn push(&self, lane: Lane, envelope: Box<dyn Envelope<A>>) -> Result<()> {
        let mut queues = self.queues.lock();
        let refusal = if let Some(exit) = &queues.exit {
            ErrorCode::new(Code::NODE_UNAVAILABLE, format!("{} has ended: {exit}", self.address))
        } else if queues.lanes[lane as usize].len() >= self.limits.of(lane) as usize {
            let limit = self.limits.of(lane);
            let details = format!("the {lane:?} lane of {} is full: limit {limit} messages", self.address);
            ErrorCode::new(Code::NOT_READY, details)
        } else {
            queues.lanes[lane as usize].push_back(envelope);
            queues.wake();
            return Ok(());
        };
        drop(queues);
        self.shared.dead_letters.push(self.address, envelope.name(), &refusal);
        envelope.fail(refusal.clone());
        Err(refusal)
    }

    /// Queues the result of a task. Not bounded here: each task has at most one result.
    pub(crate) fn push_result(&self, item: TaskResult<A>) {
        let mut queues = self.queues.lock();
        if queues.exit.is_none() {
            queues.results.push_back(item);
            queues.wake();
        }
    }

    /// Takes the next item; with `only_results` no message. True if the mailbox is now empty: the mailbox loop may
    /// sleep, and the next item wakes it.
    pub(crate) fn pop(&self, waker: &Waker, only_results: bool) -> (Item<A>, bool) {
        let mut queues = self.queues.lock();
        let item = match queues.results.pop_front() {
            Some(item) => Item::TaskResult(item),
            None if only_results => Item::Idle,
            None => queues.lanes.iter_mut().find_map(VecDeque::pop_front).map_or(Item::Idle, Item::Message),
        };
        let empty = queues.results.is_empty() && queues.lanes.iter().all(VecDeque::is_empty);
        if empty || matches!(item, Item::Idle) {
            if !queues.waker.as_ref().is_some_and(|known| known.will_wake(waker)) {
                queues.waker = Some(waker.clone());
            }
            queues.idle = true;
        }
        (item, empty)
    }

    /// Drops the task results of a dead incarnation, outside the lock because their drop runs the actor's code.
    pub(crate) fn clear_results(&self) {
        let results = std::mem::take(&mut self.queues.lock().results);
        // A stop request and the end of a watched actor are for the next incarnation.
        for item in results {
            if matches!(item, TaskResult::Stop | TaskResult::Terminated(..)) {
                self.push_result(item);
            }
        }
    }

    /// Closes the mailbox and fails its queued messages. Returns false if it was closed before.
    pub(crate) fn close(&self, exit: Exit) -> bool {
        let mut queues = self.queues.lock();
        if queues.exit.is_some() {
            return false;
        }
        let why = ErrorCode::new(Code::NODE_UNAVAILABLE, format!("{} has ended: {exit}", self.address));
        queues.exit = Some(exit);
        let left = std::mem::take(&mut queues.lanes);
        let results = std::mem::take(&mut queues.results);
        drop(queues);
        drop(results);
        for envelope in left.into_iter().flatten() {
            self.shared.dead_letters.push(self.address, envelope.name(), &why);
            envelope.fail(why.clone());
        }
        true
    }
}

impl<A: Actor> Queues<A> {
    fn wake(&mut self) {
        if self.idle {
            self.idle = false;
            if let Some(waker) = &self.waker {
                waker.wake_by_ref();
            }
        }
    }
}

/// A mailbox of any actor type, as in the registry.
pub(crate) trait AnyMailbox: Send + Sync {
    /// Accepts `Option<Request<M>>` (emptied on success) or `EventEnvelope<E>` of the message or event type `of`.
    /// `None` if the actor has no handler.
    fn take_in(&self, of: TypeId, item: &mut dyn Any) -> Option<Result<()>>;
    fn stop(&self);
    fn terminated(&self, who: Address, why: &Exit);
    /// The snapshot without the actor's state.
    fn snapshot(&self) -> ActorSnapshot;
    /// Requests [`Actor::observe`] from the actor.
    fn observe(&self, to: tokio::sync::oneshot::Sender<serde_json::Value>);
}

impl<A: Actor> AnyMailbox for Mailbox<A> {
    fn take_in(&self, of: TypeId, item: &mut dyn Any) -> Option<Result<()>> {
        self.accepts.intake(of).map(|intake| intake(self, item))
    }

    fn stop(&self) {
        self.push_result(TaskResult::Stop);
    }

    fn terminated(&self, who: Address, why: &Exit) {
        self.push_result(TaskResult::Terminated(who, why.clone()));
    }

    fn snapshot(&self) -> ActorSnapshot {
        let queues = self.queues.lock();
        let depth = |lane: Lane| queues.lanes[lane as usize].len() as u32;
        ActorSnapshot {
            kind: self.address.kind.as_str().to_owned(),
            id: self.address.id,
            lanes: Lane::ALL
                .map(|lane| crate::inspect::LaneSnapshot { depth: depth(lane), limit: self.limits.of(lane) }),
            handled: self.handled.load(Relaxed),
            failed: self.failed.load(Relaxed),
            restarts: self.restarts.load(Relaxed),
            state: serde_json::Value::Null,
        }
    }

    fn observe(&self, to: tokio::sync::oneshot::Sender<serde_json::Value>) {
        self.push_result(TaskResult::Then(Box::new(move |actor, _| {
            let _ = to.send(actor.observe());
        })));
    }
}
