//! The registry of actors by address. Sharded, so that senders on many threads do not contend.

use std::sync::Arc;

use parking_lot::RwLock;
use ringfence_messages::{Address, Code, ErrorCode, Result};
use rustc_hash::FxHashMap;

use crate::any_mailbox::AnyMailbox;

/// Too low: threads contend for the locks. Too high: memory, and a slow list of all actors.
const SHARDS: usize = 64;

/// Entries of a table that are kept free. Too low: tables that fill and empty are allocated again and again. Too high:
/// memory that is never used again.
const SPARE: usize = 1024;

/// Releases the memory of a table that was once much larger.
pub(crate) fn release<K: Eq + std::hash::Hash, V>(table: &mut FxHashMap<K, V>) {
    if table.capacity() > SPARE && table.len() < table.capacity() / 4 {
        table.shrink_to(table.len() * 2);
    }
}

type Shard = RwLock<FxHashMap<Address, Arc<dyn AnyMailbox>>>;

pub(crate) struct Registry {
    shards: Box<[Shard]>,
}

impl Registry {
    pub(crate) fn new() -> Registry {
        Registry { shards: (0..SHARDS).map(|_| Shard::default()).collect() }
    }

    fn shard(&self, address: &Address) -> &Shard {
        &self.shards[address.id.as_u128() as usize % SHARDS]
    }

    pub(crate) fn insert(&self, address: Address, mailbox: Arc<dyn AnyMailbox>) -> Result<()> {
        match self.shard(&address).write().entry(address) {
            std::collections::hash_map::Entry::Occupied(_) => {
                Err(ErrorCode::new(Code::CHANGE_STATE, format!("an actor has the address {address} already")))
            }
            std::collections::hash_map::Entry::Vacant(vacant) => {
                vacant.insert(mailbox);
                Ok(())
            }
        }
    }

    pub(crate) fn get(&self, address: &Address) -> Option<Arc<dyn AnyMailbox>> {
        self.shard(address).read().get(address).cloned()
    }

    pub(crate) fn remove(&self, address: &Address) {
        // Dropped after the lock: the mailbox drops the actor's messages.
        let mut shard = self.shard(address).write();
        let removed = shard.remove(address);
        release(&mut shard);
        drop(shard);
        drop(removed);
    }

    /// All actors, sorted by address.
    pub(crate) fn all(&self) -> Vec<(Address, Arc<dyn AnyMailbox>)> {
        let shards = self.shards.iter();
        let mut all: Vec<_> =
            shards.flat_map(|s| s.read().iter().map(|(a, m)| (*a, m.clone())).collect::<Vec<_>>()).collect();
        all.sort_by_key(|(address, _)| *address);
        all
    }

    pub(crate) fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.read().len()).sum()
    }
}
