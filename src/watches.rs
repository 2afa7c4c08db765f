//! Watches: which actor is notified of which end.
//!
//! Invariants: an actor watches another one once, however often it requests it; the end of either side removes the
//! watch.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use ringfence_messages::Address;
use rustc_hash::FxHashMap;

use crate::{any_mailbox::AnyMailbox, registry::release};

/// Watchers by address. Sorted, so that every run notifies in the same sequence.
pub(crate) type Watchers = BTreeMap<Address, Arc<dyn AnyMailbox>>;

#[derive(Default)]
pub(crate) struct Watches {
    /// The watchers of each watched actor.
    of: FxHashMap<Address, Watchers>,
    /// The actors that each watcher watches.
    by: FxHashMap<Address, BTreeSet<Address>>,
}

impl Watches {
    pub(crate) fn add(&mut self, watched: Address, by: Address, watcher: Arc<dyn AnyMailbox>) {
        self.of.entry(watched).or_default().insert(by, watcher);
        self.by.entry(by).or_default().insert(watched);
    }

    pub(crate) fn remove(&mut self, watched: &Address, by: &Address) {
        if let Some(watchers) = self.of.get_mut(watched) {
            watchers.remove(by);
            if watchers.is_empty() {
                self.of.remove(watched);
                release(&mut self.of);
            }
        }
        if let Some(all) = self.by.get_mut(by) {
            all.remove(watched);
            if all.is_empty() {
                self.by.remove(by);
                release(&mut self.by);
            }
        }
    }

    /// Removes an actor that ended, and returns its watchers.
    pub(crate) fn ended(&mut self, address: &Address) -> Watchers {
        for watched in self.by.get(address).cloned().unwrap_or_default() {
            self.remove(&watched, address);
        }
        let watchers = self.of.get(address).cloned().unwrap_or_default();
        for watcher in watchers.keys() {
            self.remove(address, watcher);
        }
        watchers
    }
}
