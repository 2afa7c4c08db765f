//! The mailbox: three bounded lanes, and beside them what the actor's own tasks bring back.
//!
//! Invariants: a lane never holds more than its limit; a message that was taken in is either handled or failed
//! with an error; the pump is woken exactly when it waits. Lanes allocate nothing until they are used.
//! Rejected: actix's own mailbox (its `do_send` ignores the capacity and it has no lanes), and one channel per
//! lane (three wakers, three allocations, no common order of service).

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
    envelope::{Envelope, Return},
    inspect::ActorSnapshot,
};

/// How many messages each lane of a mailbox may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LaneLimits {
    /// Of the control lane. Too low: urgent messages are refused. Too high: they are not urgent.
    pub control: u32,
    /// Of the normal lane. Too low: bursts are refused. Too high: overload shows late, as latency.
    pub normal: u32,
    /// Of the bulk lane. As the normal lane's.
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
    returns: VecDeque<Return<A>>,
    lanes: [VecDeque<Box<dyn Envelope<A>>>; 3],
    /// The pump's, from its first poll on.
    waker: Option<Waker>,
    /// The pump waits for a wake, or will when it is done with what it took out last.
    idle: bool,
    exit: Option<Exit>,
}

/// What the pump takes out next.
pub(crate) enum Item<A: Actor> {
    Return(Return<A>),
    Message(Box<dyn Envelope<A>>),
    /// Nothing; the pump will be woken.
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
                returns: VecDeque::new(),
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

    /// Takes a message in.
    pub(crate) fn push(&self, lane: Lane, envelope: Box<dyn Envelope<A>>) -> Result<()> {
        let mut queues = self.queues.lock();
        let refusal = if let Some(exit) = &queues.exit {
            ErrorCode::new(Code::NODE_UNAVAILABLE, format!("{} is no more: {exit}", self.address))
        } else if queues.lanes[lane as usize].len() >= self.limits.of(lane) as usize {
            let limit = self.limits.of(lane);
            let details = format!("the {lane:?} lane of {} holds {limit} messages already", self.address);
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

    /// Takes in what a task of the actor brings back. Not bounded here: there is one per task.
    pub(crate) fn bring_back(&self, item: Return<A>) {
        let mut queues = self.queues.lock();
        if queues.exit.is_none() {
            queues.returns.push_back(item);
            queues.wake();
        }
    }

    /// Takes the next thing out; with `only_returns` messages stay where they are. True if nothing at all is left:
    /// the pump may go to sleep without another look, whatever comes from now on wakes it.
    pub(crate) fn pop(&self, waker: &Waker, only_returns: bool) -> (Item<A>, bool) {
        let mut queues = self.queues.lock();
        let item = match queues.returns.pop_front() {
            Some(item) => Item::Return(item),
            None if only_returns => Item::Idle,
            None => queues.lanes.iter_mut().find_map(VecDeque::pop_front).map_or(Item::Idle, Item::Message),
        };
        let empty = queues.returns.is_empty() && queues.lanes.iter().all(VecDeque::is_empty);
        if empty || matches!(item, Item::Idle) {
            if !queues.waker.as_ref().is_some_and(|known| known.will_wake(waker)) {
                queues.waker = Some(waker.clone());
            }
            queues.idle = true;
        }
        (item, empty)
    }

    /// Forgets what the tasks of a dead incarnation brought back. Dropped outside the lock: it is foreign code.
    pub(crate) fn clear_returns(&self) {
        let returns = std::mem::take(&mut self.queues.lock().returns);
        // A request to stop, or news of a watched actor, is for whoever comes next.
        for item in returns {
            if matches!(item, Return::Stop | Return::Terminated(..)) {
                self.bring_back(item);
            }
        }
    }

    /// Takes nothing in from now on; gives out what was left. Returns false if it was closed before.
    pub(crate) fn close(&self, exit: Exit) -> bool {
        let mut queues = self.queues.lock();
        if queues.exit.is_some() {
            return false;
        }
        let why = ErrorCode::new(Code::NODE_UNAVAILABLE, format!("{} is no more: {exit}", self.address));
        queues.exit = Some(exit);
        let left = std::mem::take(&mut queues.lanes);
        let returns = std::mem::take(&mut queues.returns);
        drop(queues);
        drop(returns);
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

/// A mailbox whose actor's type is not known: what the registry holds.
pub(crate) trait AnyMailbox: Send + Sync {
    /// Takes in `Option<Parcel<M>>` (emptied on success) or `EventEnvelope<E>`, whose message or event type is
    /// `of`. `None` if the actor has no handler for it.
    fn take_in(&self, of: TypeId, item: &mut dyn Any) -> Option<Result<()>>;
    fn stop(&self);
    fn terminated(&self, who: Address, why: &Exit);
    /// Everything but what only the actor itself can tell.
    fn snapshot(&self) -> ActorSnapshot;
    /// Asks the actor to tell the rest.
    fn observe(&self, to: tokio::sync::oneshot::Sender<serde_json::Value>);
}

impl<A: Actor> AnyMailbox for Mailbox<A> {
    fn take_in(&self, of: TypeId, item: &mut dyn Any) -> Option<Result<()>> {
        self.accepts.intake(of).map(|intake| intake(self, item))
    }

    fn stop(&self) {
        self.bring_back(Return::Stop);
    }

    fn terminated(&self, who: Address, why: &Exit) {
        self.bring_back(Return::Terminated(who, why.clone()));
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
        self.bring_back(Return::Then(Box::new(move |actor, _| {
            let _ = to.send(actor.observe());
        })));
    }
}
