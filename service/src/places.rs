//! Places for connections, separate for authenticated and unauthenticated clients.
//!
//! Purpose: clients without token or certificate cannot keep out clients with one. Invariants: every new connection
//! gets a place, and the oldest unauthenticated connection is closed for it: of the same address if that has
//! `MAX_STRANGERS_OF_ONE`, of all addresses if there are `MAX_STRANGERS`; an authenticated connection is never
//! closed for another one. Alternative considered: not accepting while all places are taken (it kept out the
//! controller, which then failed a healthy host).

use std::{
    collections::{BTreeMap, HashMap},
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use metrics::counter;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use crate::rate_limit::network;

/// Largest number of authenticated connections (or of any, if authentication is disabled). Too low: pollers open a
/// new connection for each request. Too high: each costs memory and a file descriptor.
const MAX_KNOWN: usize = 1024;

/// Largest number of unauthenticated connections. Too low: in a flood an honest client is closed before its first
/// request arrives. Too high: each costs memory and a file descriptor.
const MAX_STRANGERS: usize = 512;

/// Largest number of unauthenticated connections of one address. Too low: many clients behind one address close each
/// other. Too high: one address takes all places.
const MAX_STRANGERS_OF_ONE: usize = 128;

/// The places of one server.
#[derive(Clone, Default)]
pub(crate) struct Places(Arc<Mutex<Taken>>);

#[derive(Default)]
struct Taken {
    next: u64,
    known: usize,
    /// By sequence of arrival.
    strangers: BTreeMap<u64, Stranger>,
    of_one: HashMap<IpAddr, usize>,
}

struct Stranger {
    whom: IpAddr,
    sent_away: CancellationToken,
}

/// The place of one connection, until it is dropped.
pub(crate) struct Place {
    showing: Showing,
    sent_away: CancellationToken,
}

/// Marks a connection as authenticated; an extension of each of its requests.
#[derive(Clone)]
pub struct Showing {
    places: Places,
    number: u64,
}

impl Places {
    /// Gives a new connection a place.
    pub(crate) fn enter(&self, address: SocketAddr) -> Place {
        let (whom, sent_away) = (network(address), CancellationToken::new());
        let mut taken = self.0.lock();
        if taken.of_one.get(&whom).is_some_and(|count| *count >= MAX_STRANGERS_OF_ONE) {
            let oldest = taken.strangers.iter().find(|(_, of)| of.whom == whom).map(|(number, _)| *number);
            taken.send_away(oldest);
        }
        if taken.strangers.len() >= MAX_STRANGERS {
            taken.send_away_oldest();
        }
        let number = taken.next;
        taken.next += 1;
        taken.strangers.insert(number, Stranger { whom, sent_away: sent_away.clone() });
        *taken.of_one.entry(whom).or_default() += 1;
        drop(taken);
        Place { showing: Showing { places: self.clone(), number }, sent_away }
    }

    /// Closes the oldest unauthenticated connection, because file descriptors have run out.
    pub(crate) fn make_room(&self) {
        self.0.lock().send_away_oldest();
    }
}

impl Taken {
    fn send_away_oldest(&mut self) {
        let oldest = self.strangers.first_key_value().map(|(number, _)| *number);
        self.send_away(oldest);
    }

    fn send_away(&mut self, number: Option<u64>) {
        let Some(gone) = number.and_then(|number| self.forget(number)) else { return };
        counter!("ringfence_connections_sent_away_total").increment(1);
        gone.sent_away.cancel();
    }

    /// Removes an unauthenticated connection from the list.
    fn forget(&mut self, number: u64) -> Option<Stranger> {
        let gone = self.strangers.remove(&number)?;
        if let Some(count) = self.of_one.get_mut(&gone.whom) {
            *count -= 1;
            if *count == 0 {
                self.of_one.remove(&gone.whom);
            }
        }
        Some(gone)
    }
}

impl Place {
    /// The extension for its requests.
    pub(crate) fn showing(&self) -> Showing {
        self.showing.clone()
    }

    /// Resolves when its connection must be closed for another one.
    pub(crate) async fn sent_away(&self) {
        self.sent_away.cancelled().await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.showing.places.0.lock();
        // An authenticated connection, unless it is unauthenticated or was closed as such.
        if taken.forget(self.showing.number).is_none() && !self.sent_away.is_cancelled() {
            taken.known -= 1;
        }
    }
}

impl Showing {
    /// The client has presented a token or a certificate, or authentication is disabled. Without a free place it stays
    /// unauthenticated.
    pub fn has_shown(&self) {
        let mut taken = self.places.0.lock();
        if taken.known < MAX_KNOWN && taken.forget(self.number).is_some() {
            taken.known += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from(address: &str, port: u16) -> SocketAddr {
        SocketAddr::new(address.parse().unwrap(), port)
    }

    fn is_away(place: &Place) -> bool {
        place.sent_away.is_cancelled()
    }

    #[test]
    fn oldest_connection_of_the_same_address_is_closed() {
        let places = Places::default();
        let other = places.enter(from("10.0.0.2", 1));
        let mut all: Vec<Place> =
            (0..MAX_STRANGERS_OF_ONE as u16).map(|port| places.enter(from("10.0.0.1", port))).collect();
        assert!(!all.iter().any(is_away));
        all.push(places.enter(from("10.0.0.1", 9999)));
        let away: Vec<usize> = (0..all.len()).filter(|n| is_away(&all[*n])).collect();
        assert_eq!((away, is_away(&other)), (vec![0], false));
    }

    #[test]
    fn authenticated_connection_survives_a_flood() {
        let places = Places::default();
        let (known, silent) = (places.enter(from("10.0.0.1", 1)), places.enter(from("10.0.0.1", 2)));
        known.showing().has_shown();
        known.showing().has_shown();
        let crowd: Vec<Place> =
            (0..2000_u32).map(|n| places.enter(from(&format!("10.1.{}.{}", n >> 8, n & 255), 1))).collect();
        assert!(!is_away(&known) && is_away(&silent));
        assert_eq!(crowd.iter().filter(|place| !is_away(place)).count(), MAX_STRANGERS);
        drop((known, silent, crowd));
        let taken = places.0.lock();
        assert_eq!((taken.known, taken.strangers.len(), taken.of_one.len()), (0, 0, 0), "all places are free again");
    }

    #[test]
    fn authenticated_places_are_bounded() {
        let places = Places::default();
        let all: Vec<Place> = (0..=MAX_KNOWN as u32)
            .map(|n| {
                let place = places.enter(from(&format!("10.1.{}.{}", n >> 8, n & 255), 1));
                place.showing().has_shown();
                place
            })
            .collect();
        let counts = |places: &Places| {
            let inner = places.0.lock();
            (inner.known, inner.strangers.len())
        };
        assert_eq!(counts(&places), (MAX_KNOWN, 1));
        drop(all);
        assert_eq!(counts(&places), (0, 0));
    }
}
