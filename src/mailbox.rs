//! The mailbox: three bounded lanes, and a queue of results of the actor's tasks.
//!
//! Invariants: a lane never exceeds its limit; an accepted message is either handled or failed with an error; the
//! mailbox loop is woken if it waits; an unused lane allocates nothing; a stop goes before everything else; results go
//! before messages, but at most [`MAX_RESULTS`] in a row, so that neither starves the other.
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
    actor::{Accepts, Actor},
    any_mailbox::AnyMailbox,
    envelope::{Envelope, TaskResult},
    exit::Exit,
    inspect::ActorSnapshot,
    panicked::discard,
    shared::Shared,
};

/// Task results in a row while a message waits: 32. Too low: the results of one round of tasks wait behind unrelated
/// messages. Too high: a control message waits for that many callbacks.
pub const MAX_RESULTS: u32 = 32;

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
    /// Results in a row, while a message waited.
    results_in_a_row: u32,
    stopping: bool,
    exit: Option<Exit>,
}

/// The next item for the mailbox loop.
pub(crate) enum Item<A: Actor> {
    /// A request to stop.
    Stop,
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
                results_in_a_row: 0,
                stopping: false,
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
        Err(refusal)
    }

    /// The events with a handler.
    pub(crate) fn events(&self) -> &[TypeId] {
        self.accepts.events()
    }

    /// Queues the result of a task. Not bounded here: each task has at most one result.
    pub(crate) fn push_result(&self, item: TaskResult<A>) {
        let mut queues = self.queues.lock();
        if queues.exit.is_none() {
            queues.results.push_back(item);
            queues.wake();
        } else {
            drop(queues);
            discard(item);
        }
    }

    /// Takes the next item; with `only_results` no message. True if the mailbox is now empty: the mailbox loop may
    /// sleep, and the next item wakes it.
    pub(crate) fn pop(&self, waker: &Waker, only_results: bool) -> (Item<A>, bool) {
        let mut queues = self.queues.lock();
        if queues.stopping {
            return (Item::Stop, false);
        }
        let item = match only_results {
            true => queues.result(),
            false if queues.results_in_a_row >= MAX_RESULTS => queues.message().or_else(|| queues.result()),
            false => queues.result().or_else(|| queues.message()),
        };
        let item = item.unwrap_or(Item::Idle);
        let no_message = queues.lanes.iter().all(VecDeque::is_empty);
        match item {
            Item::TaskResult(_) if !no_message => queues.results_in_a_row += 1,
            _ => queues.results_in_a_row = 0,
        }
        let empty = no_message && queues.results.is_empty();
        if empty || matches!(item, Item::Idle) {
            queues.wait(waker);
            queues.idle = true;
        }
        (item, empty)
    }

    /// Whether a stop was requested. A later request wakes the mailbox loop.
    pub(crate) fn is_stopping(&self, waker: &Waker) -> bool {
        let mut queues = self.queues.lock();
        queues.wait(waker);
        queues.stopping
    }

    /// Drops the task results of a dead incarnation, outside the lock because their drop runs the actor's code.
    pub(crate) fn clear_results(&self) {
        let results = std::mem::take(&mut self.queues.lock().results);
        // The end of a watched actor and a snapshot are for the next incarnation.
        for item in results {
            match item {
                TaskResult::Terminated(..) | TaskResult::Observe(_) => self.push_result(item),
                _ => discard(item),
            }
        }
    }

    /// Closes the mailbox and fails its queued messages.
    pub(crate) fn close(&self, exit: &Exit) {
        let mut queues = self.queues.lock();
        queues.exit = Some(exit.clone());
        let left = std::mem::take(&mut queues.lanes);
        let results = std::mem::take(&mut queues.results);
        drop(queues);
        results.into_iter().for_each(discard);
        for envelope in left.into_iter().flatten() {
            let why = ErrorCode::new(Code::NODE_UNAVAILABLE, format!("{} has ended: {exit}", self.address));
            self.shared.dead_letters.push(self.address, envelope.name(), &why);
            envelope.fail(why, self.shared.bus);
        }
    }
}

impl<A: Actor> Queues<A> {
    fn result(&mut self) -> Option<Item<A>> {
        self.results.pop_front().map(Item::TaskResult)
    }

    fn message(&mut self) -> Option<Item<A>> {
        self.lanes.iter_mut().find_map(VecDeque::pop_front).map(Item::Message)
    }

    fn wait(&mut self, waker: &Waker) {
        if !self.waker.as_ref().is_some_and(|known| known.will_wake(waker)) {
            self.waker = Some(waker.clone());
        }
    }

    fn wake(&mut self) {
        if self.idle {
            self.idle = false;
            if let Some(waker) = &self.waker {
                waker.wake_by_ref();
            }
        }
    }
}

impl<A: Actor> AnyMailbox for Mailbox<A> {
    fn take_in(&self, of: TypeId, item: &mut dyn Any) -> Option<Result<()>> {
        self.accepts.intake(of).map(|intake| intake(self, item))
    }

    fn stop(&self) {
        let mut queues = self.queues.lock();
        queues.stopping = true;
        // Also out of a backoff, in which no other item wakes the mailbox loop.
        if let Some(waker) = &queues.waker {
            waker.wake_by_ref();
        }
    }

    fn terminated(&self, who: Address, why: &Exit) {
        let mut queues = self.queues.lock();
        // A rebuilt actor watches again before it handles what its last incarnation was to be notified of.
        let known = |item: &TaskResult<A>| matches!(item, TaskResult::Terminated(known, _) if *known == who);
        if queues.exit.is_none() && !(*why == Exit::Missing && queues.results.iter().any(known)) {
            queues.results.push_back(TaskResult::Terminated(who, why.clone()));
            queues.wake();
        }
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
        let mut queues = self.queues.lock();
        if queues.exit.is_some() {
            return;
        }
        // One item for all snapshots, without those that no longer wait: an actor that does not answer keeps no more.
        let waiting = queues.results.iter_mut().find_map(|item| match item {
            TaskResult::Observe(waiting) => Some(waiting),
            _ => None,
        });
        match waiting {
            Some(waiting) => {
                waiting.retain(|sender| !sender.is_closed());
                waiting.push(to);
            }
            None => queues.results.push_back(TaskResult::Observe(vec![to])),
        }
        queues.wake();
    }
}
