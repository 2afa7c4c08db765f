//! A state of the model, and the actions that may follow.
//!
//! Invariant: two states with the same hash input are the same: the input names everything that may differ.

use std::{
    fmt,
    hash::{Hash, Hasher},
    time::{Duration, Instant},
};

use ringfence_actors::{
    fence::{FencingGuard, PERMIT_VALIDITY},
    vm::core::{Command, Core, ReplayedState},
};
use ringfence_messages::vm::StartVmCmd;

use super::BEGAN;

/// Everything at one moment.
#[derive(Clone)]
pub struct State {
    pub(super) controllers: [Option<Controller>; 2],
    pub(super) leader: usize,
    pub(super) epoch: u64,
    /// What the journal says of the VM last.
    pub(super) journal: Option<ReplayedState>,
    pub(super) hosts: [Host; 2],
    /// Orders on their way: to which host, and whether once more.
    pub(super) orders: Vec<(usize, StartVmCmd)>,
    pub(super) late: bool,
    pub(super) asked: u8,
    pub(super) changes: u8,
    pub(super) silences: u8,
    pub(super) claims: u8,
    pub(super) looks: u8,
    pub(super) losses: u8,
    /// A human attested that this host is off.
    pub(super) word: Option<usize>,
}

#[derive(Clone)]
pub(super) struct Controller {
    pub(super) core: Core,
    pub(super) epoch: u64,
    pub(super) todo: Vec<Command>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Host {
    pub(super) orders: FencingGuard,
    pub(super) qemu: Option<u64>,
    /// Its storage refuses it.
    pub(super) refused: bool,
    /// Its agent answers nobody.
    pub(super) silent: bool,
    /// It has no power.
    pub(super) off: bool,
    /// It shows a QEMU of the VM that nobody ordered, and that does not write.
    pub(super) claim: bool,
}

/// Something that happens.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// An operator wants the VM on, of this controller.
    Ask(usize),
    /// What a controller has to do next comes to this end.
    End(usize, usize, How),
    /// An order arrives; another copy of it may still be on its way.
    Arrive(usize, bool),
    /// A host's agent falls silent, or speaks again.
    Silent(usize, bool),
    /// A controller dies.
    Die(usize),
    /// A controller becomes the leader; the other one, if it lives, does not notice.
    TakeOver(usize),
    /// Time goes by until every permit has expired.
    Later,
    /// A controller looks at a host, because something was seen there or nothing.
    Look(usize, usize),
    /// A host shows a QEMU of the VM that nobody ordered, or it ends.
    Claim(usize, bool),
    /// A host loses its power, or it is back.
    Power(usize, bool),
    /// A human attests that a host is off, which is true.
    Attest(usize),
}

/// How something ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// As it should.
    Well,
    /// It fails, or nobody knows.
    Badly,
    /// What was asked for is done or on its way, and nobody hears.
    Unheard,
}

impl PartialEq for State {
    fn eq(&self, other: &State) -> bool {
        self.key() == other.key()
    }
}

impl Hash for State {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.key().hash(state);
    }
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.key())
    }
}

impl State {
    fn key(&self) -> String {
        let of = |controller: &Controller| {
            format!("{:?} {} {:?}", controller.core.changing(), controller.epoch, controller.todo)
        };
        let controllers: Vec<Option<String>> = self.controllers.iter().map(|c| c.as_ref().map(of)).collect();
        format!(
            "{controllers:?} {} {} {:?} {:?} {:?} {} {} {} {} {} {} {} {:?}",
            self.leader,
            self.epoch,
            self.journal,
            self.hosts,
            self.orders,
            self.late,
            self.asked,
            self.changes,
            self.silences,
            self.claims,
            self.looks,
            self.losses,
            self.word
        )
    }

    pub(super) fn writers(&self) -> usize {
        self.hosts.iter().filter(|host| host.qemu.is_some() && !host.refused).count()
    }

    pub(super) fn now(&self) -> Instant {
        *BEGAN + if self.late { PERMIT_VALIDITY + Duration::from_secs(1) } else { Duration::ZERO }
    }

    /// The clock of both hosts, in ms.
    pub(super) fn clock(&self) -> u64 {
        1 + u64::try_from(self.now().duration_since(*BEGAN).as_millis()).unwrap_or(u64::MAX)
    }
}
