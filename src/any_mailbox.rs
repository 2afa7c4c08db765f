//! A mailbox of any actor type, as registry, topics and watches hold it.

use std::any::{Any, TypeId};

use ringfence_messages::{Address, Result};
use tokio::sync::oneshot;

use crate::{exit::Exit, inspect::ActorSnapshot};

pub(crate) trait AnyMailbox: Send + Sync {
    /// Accepts `Option<Request<M>>` (emptied on success) or `EventEnvelope<E>` of the message or event type `of`.
    /// `None` if the actor has no handler.
    fn take_in(&self, of: TypeId, item: &mut dyn Any) -> Option<Result<()>>;
    fn stop(&self);
    fn terminated(&self, who: Address, why: &Exit);
    /// The snapshot without the actor's state.
    fn snapshot(&self) -> ActorSnapshot;
    /// Requests [`Actor::observe`](crate::Actor::observe) from the actor.
    fn observe(&self, to: oneshot::Sender<serde_json::Value>);
}
