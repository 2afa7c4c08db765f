//! The spawn of an actor, on this thread or on the thread of an arbiter.
//!
//! Invariant: an address is taken only while its actor lives. Whatever happens on the way to its thread frees it.

use std::{any::TypeId, sync::Arc};

use actix::ArbiterHandle;
use ringfence_messages::{Address, Code, ErrorCode, Result};
use uuid::Uuid;

use crate::{
    actor::{Accepts, Actor},
    actor_ref::ActorRef,
    bus::Bus,
    exit::Exit,
    mailbox::{LaneLimits, Mailbox},
    mailbox_loop::{Farewell, MailboxLoop},
    supervise::RestartPolicy,
};

impl Bus {
    /// Spawns an actor on this thread with the default limits and restart policy.
    ///
    /// # Errors
    /// `SYS.1005` if an actor has the address already.
    ///
    /// # Panics
    /// Outside an actix system or another local task set of tokio.
    pub fn spawn<A: Actor>(&self, id: impl Into<Uuid>, factory: impl FnMut() -> A + 'static) -> Result<ActorRef<A>> {
        self.actor(id, factory).spawn()
    }

    /// Begins to spawn an actor of kind [`Actor::KIND`] with this id. `factory` creates it, and rebuilds it after a
    /// panic.
    pub fn actor<A: Actor, F: FnMut() -> A + 'static>(&self, id: impl Into<Uuid>, factory: F) -> Spawn<'_, A, F> {
        Spawn {
            bus: self,
            address: Address::new(A::KIND, id),
            factory,
            lanes: LaneLimits::default(),
            restarts: RestartPolicy::default(),
            _actor: std::marker::PhantomData,
        }
    }
}

/// The settings of an actor before it is spawned.
#[must_use = "`spawn` or `spawn_on` starts the actor"]
pub struct Spawn<'a, A: Actor, F> {
    bus: &'a Bus,
    address: Address,
    factory: F,
    lanes: LaneLimits,
    restarts: RestartPolicy,
    _actor: std::marker::PhantomData<fn() -> A>,
}

impl<A: Actor, F: FnMut() -> A + 'static> Spawn<'_, A, F> {
    /// Sets another address than that of kind and id, so that a test can replace an actor.
    pub fn at(mut self, address: Address) -> Self {
        self.address = address;
        self
    }

    /// Sets the lengths of the lanes.
    pub fn lanes(mut self, lanes: LaneLimits) -> Self {
        self.lanes = lanes;
        self
    }

    /// Sets the restart policy after panics.
    pub fn restarts(mut self, restarts: RestartPolicy) -> Self {
        self.restarts = restarts;
        self
    }

    fn mailbox(&self) -> Result<Arc<Mailbox<A>>> {
        let table = self.bus.table(TypeId::of::<A>(), Accepts::<A>::of);
        let mailbox = Arc::new(Mailbox::new(self.address, self.bus.shared().clone(), table, self.lanes));
        self.bus.spawned(self.address, mailbox.clone(), mailbox.events())?;
        Ok(mailbox)
    }

    /// Spawns the actor on this thread.
    ///
    /// # Errors
    /// `SYS.1005` if an actor has the address already.
    ///
    /// # Panics
    /// Outside an actix system or another local task set of tokio.
    pub fn spawn(self) -> Result<ActorRef<A>> {
        let mailbox = self.mailbox()?;
        MailboxLoop::start(Box::new(self.factory), mailbox.clone(), self.bus.clone(), self.restarts);
        Ok(ActorRef::new(mailbox))
    }

    /// Spawns the actor on another thread, where the factory runs too.
    ///
    /// # Errors
    /// `SYS.1005` if an actor has the address already, `SYS.1012` if that thread has ended.
    pub fn spawn_on(self, arbiter: &ArbiterHandle) -> Result<ActorRef<A>>
    where
        F: Send,
    {
        let (mailbox, factory, restarts) = (self.mailbox()?, self.factory, self.restarts);
        // Dropped with the closure if the thread ends before it runs the closure.
        let spawned = Spawned(Some((mailbox.clone(), self.bus.clone())));
        let accepted = arbiter.spawn_fn(move || {
            let mut spawned = spawned;
            let (mailbox, bus) = spawned.0.take().expect("called once");
            MailboxLoop::start(Box::new(factory), mailbox, bus, restarts);
        });
        if !accepted {
            return Err(ErrorCode::new(
                Code::NODE_UNAVAILABLE,
                format!("cannot spawn {}: its thread has ended", self.address),
            ));
        }
        Ok(ActorRef::new(mailbox))
    }
}

/// An actor on the way to its thread. Ends the actor if it does not get there.
struct Spawned<A: Actor>(Option<(Arc<Mailbox<A>>, Bus)>);

impl<A: Actor> Drop for Spawned<A> {
    fn drop(&mut self) {
        if let Some((mailbox, bus)) = &self.0 {
            drop(Farewell { bus, mailbox, exit: &Exit::Stopped });
        }
    }
}
