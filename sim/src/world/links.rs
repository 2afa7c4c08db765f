//! The networks: which node reaches which, with loss and delay.
//!
//! Invariant: a message is checked twice, when it is sent and when it arrives: a cut in between loses it.

use std::time::Duration;

use rand::Rng;

use super::State;

/// Where messages come from and go to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Node {
    Controller,
    Host(usize),
    Ceph,
    Mds,
}

/// Places of a cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    Node(Node),
    /// The controller, the MDS and every host; not Ceph.
    Management,
    Everything,
}

impl Place {
    fn has(self, node: Node) -> bool {
        match self {
            Place::Node(one) => one == node,
            Place::Management => node != Node::Ceph,
            Place::Everything => true,
        }
    }
}

#[derive(Debug)]
struct Cut {
    id: u64,
    from: Place,
    to: Place,
    one_way: bool,
}

/// What is wrong with the networks.
#[derive(Debug, Default)]
pub(crate) struct Links {
    cuts: Vec<Cut>,
    /// Percent, by the fault that does it.
    pub(crate) loss: Vec<(u64, u32)>,
    pub(crate) delay: Vec<(u64, u64)>,
    pub(crate) duplication: Vec<(u64, u32)>,
}

/// What becomes of one message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Delivery {
    /// It arrives after so long, unless the way is cut by then.
    pub(crate) after: Option<Duration>,
    pub(crate) twice: bool,
}

impl Links {
    pub(crate) fn cut(&mut self, id: u64, from: Place, to: Place, one_way: bool) {
        self.cuts.push(Cut { id, from, to, one_way });
    }

    pub(crate) fn heal(&mut self, id: u64) {
        self.cuts.retain(|cut| cut.id != id);
        self.loss.retain(|(of, _)| *of != id);
        self.delay.retain(|(of, _)| *of != id);
        self.duplication.retain(|(of, _)| *of != id);
    }

    /// Whether messages get from one to the other and back.
    pub(crate) fn both_ways(&self, a: Node, b: Node) -> bool {
        self.open(a, b) && self.open(b, a)
    }

    /// Whether a message gets from here to there. Nobody is cut off from itself.
    pub(crate) fn open(&self, from: Node, to: Node) -> bool {
        from == to
            || !self.cuts.iter().any(|cut| {
                (cut.from.has(from) && cut.to.has(to)) || (!cut.one_way && cut.from.has(to) && cut.to.has(from))
            })
    }
}

impl State {
    /// What becomes of a message of management that is sent now.
    pub(crate) fn send(&mut self, from: Node, to: Node) -> Delivery {
        let worst = |of: &[(u64, u32)]| of.iter().map(|(_, percent)| *percent).max().unwrap_or(0);
        let (loss, twice) = (worst(&self.links.loss), worst(&self.links.duplication));
        let slow = self.links.delay.iter().map(|(_, millis)| *millis).max().unwrap_or(0);
        let lost = !self.links.open(from, to) || (loss > 0 && self.rng.random_range(0..100) < loss);
        let mut after = self.some(0..2);
        if slow > 0 {
            after += self.some(0..slow);
        }
        Delivery { after: (!lost).then_some(after), twice: twice > 0 && self.rng.random_range(0..100) < twice }
    }
}
