//! The ping schedule: every host once per interval, spread out, with a limit of pings in flight.
//!
//! Invariants (I8): at most `parallelism` pings in flight. A host is waiting, queued or in flight, never two of them.
//! A missed ping is not repeated. Hosts are dense indexes.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, VecDeque},
    time::Duration,
};

/// State of a host in the schedule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// Not pinged.
    Off,
    /// The next ping is at this time.
    Waiting(Duration),
    /// Due, but `parallelism` is reached.
    Queued,
    /// Being pinged.
    InFlight,
}

#[derive(Clone, Debug)]
pub(crate) struct Schedule {
    interval: Duration,
    parallelism: usize,
    /// Per host: its state, and the start of its rhythm.
    hosts: Vec<(Place, Duration)>,
    /// Times of waiting hosts; entries that do not match the host's state are stale.
    waiting: BinaryHeap<Reverse<(Duration, u32)>>,
    queued: VecDeque<u32>,
    in_flight: usize,
}

impl Schedule {
    pub(crate) fn new(interval: Duration, parallelism: usize) -> Schedule {
        Schedule {
            interval,
            parallelism: parallelism.max(1),
            hosts: Vec::new(),
            waiting: BinaryHeap::new(),
            queued: VecDeque::new(),
            in_flight: 0,
        }
    }

    /// Takes a new list of hosts: the n-th is the former `from[n]`-th, or a new one without pings.
    pub(crate) fn rearrange(&mut self, from: &[Option<u32>]) {
        let old = |n: &Option<u32>| n.map_or((Place::Off, Duration::ZERO), |n| self.hosts[n as usize]);
        let hosts: Vec<_> = from.iter().map(old).collect();
        let mut to = vec![None; self.hosts.len()];
        for (new, old) in from.iter().enumerate() {
            old.map(|old| to[old as usize].replace(new as u32));
        }
        self.queued = self.queued.iter().filter_map(|old| to[*old as usize]).collect();
        self.in_flight = hosts.iter().filter(|(place, _)| *place == Place::InFlight).count();
        self.hosts = hosts;
        self.waiting.clear();
        for (n, (place, _)) in self.hosts.iter().enumerate() {
            if let Place::Waiting(at) = place {
                self.waiting.push(Reverse((*at, n as u32)));
            }
        }
    }

    /// Starts the rhythm of a host with a ping at `first`.
    pub(crate) fn start(&mut self, host: u32, first: Duration) {
        self.stop(host);
        self.hosts[host as usize].1 = first;
        self.wait(host, first);
    }

    /// Stops the pings of this host. One in flight is forgotten: its answer no longer counts.
    pub(crate) fn stop(&mut self, host: u32) {
        match std::mem::replace(&mut self.hosts[host as usize].0, Place::Off) {
            Place::InFlight => self.in_flight -= 1,
            Place::Queued => self.queued.retain(|queued| *queued != host),
            Place::Off | Place::Waiting(_) => {}
        }
    }

    /// A ping of this host ended. The next comes after `retry` if there is one, else in the host's rhythm.
    pub(crate) fn ended(&mut self, host: u32, now: Duration, retry: Option<Duration>) {
        let (place, rhythm) = &mut self.hosts[host as usize];
        debug_assert_eq!(*place, Place::InFlight, "a ping ended that was not in flight");
        let next = match retry {
            Some(wait) => now + wait,
            None => {
                // The next beat in the future: missed ones are skipped.
                let beats = now.saturating_sub(*rhythm).as_nanos() / self.interval.as_nanos().max(1) + 1;
                *rhythm += self.interval * u32::try_from(beats).unwrap_or(u32::MAX);
                *rhythm
            }
        };
        self.in_flight -= 1;
        self.wait(host, next);
    }

    /// Pings this host next, unless it is queued or in flight.
    pub(crate) fn hurry(&mut self, host: u32) {
        let place = &mut self.hosts[host as usize].0;
        if matches!(place, Place::Waiting(_)) {
            *place = Place::Queued;
            self.queued.push_front(host);
        }
    }

    /// Emits the pings that are due; these hosts are then in flight.
    pub(crate) fn due(&mut self, now: Duration, mut ping: impl FnMut(u32)) {
        while let Some(Reverse((at, host))) = self.waiting.peek().copied() {
            if at > now {
                break;
            }
            self.waiting.pop();
            if self.hosts[host as usize].0 == Place::Waiting(at) {
                self.hosts[host as usize].0 = Place::Queued;
                self.queued.push_back(host);
            }
        }
        while self.in_flight < self.parallelism {
            let Some(host) = self.queued.pop_front() else { break };
            self.hosts[host as usize].0 = Place::InFlight;
            self.in_flight += 1;
            ping(host);
        }
    }

    /// When [`due`](Schedule::due) must be called next, apart from the end of a ping.
    pub(crate) fn next(&mut self) -> Option<Duration> {
        while let Some(Reverse((at, host))) = self.waiting.peek().copied() {
            if self.hosts[host as usize].0 == Place::Waiting(at) {
                return Some(at);
            }
            self.waiting.pop();
        }
        None
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight
    }

    fn wait(&mut self, host: u32, at: Duration) {
        self.hosts[host as usize].0 = Place::Waiting(at);
        self.waiting.push(Reverse((at, host)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    fn due(schedule: &mut Schedule, now: Duration) -> Vec<u32> {
        let mut hosts = Vec::new();
        schedule.due(now, |host| hosts.push(host));
        hosts
    }

    fn schedule_of(hosts: u32, parallelism: usize) -> Schedule {
        let mut schedule = Schedule::new(10 * S, parallelism);
        schedule.rearrange(&vec![None; hosts as usize]);
        for host in 0..hosts {
            schedule.start(host, S * host);
        }
        schedule
    }

    #[test]
    fn due_hosts_wait_in_order() {
        let mut schedule = schedule_of(4, 2);
        assert_eq!(due(&mut schedule, 5 * S), [0, 1]);
        assert!(due(&mut schedule, 5 * S).is_empty());
        schedule.ended(1, 6 * S, None);
        assert_eq!(due(&mut schedule, 6 * S), [2]);
        schedule.ended(0, 6 * S, None);
        schedule.ended(2, 6 * S, None);
        assert_eq!(due(&mut schedule, 6 * S), [3]);
        assert_eq!(schedule.next(), Some(10 * S), "host 0 in its rhythm");
    }

    #[test]
    fn missed_pings_are_skipped_in_rhythm() {
        let mut schedule = schedule_of(1, 1);
        assert_eq!(due(&mut schedule, Duration::ZERO), [0]);
        schedule.ended(0, 35 * S, None);
        assert_eq!(schedule.next(), Some(40 * S));
        assert!(due(&mut schedule, 39 * S).is_empty());
        assert_eq!(due(&mut schedule, 40 * S), [0]);
    }

    #[test]
    fn retry_keeps_the_rhythm() {
        let mut schedule = schedule_of(1, 1);
        due(&mut schedule, Duration::ZERO);
        schedule.ended(0, 2 * S, Some(S));
        assert_eq!(due(&mut schedule, 3 * S), [0]);
        schedule.ended(0, 4 * S, None);
        assert_eq!(schedule.next(), Some(10 * S));
    }

    #[test]
    fn inventory_change_keeps_rhythm_and_frees_room() {
        let mut schedule = schedule_of(4, 2);
        assert_eq!(due(&mut schedule, 2 * S), [0, 1], "host 2 waits for room");
        schedule.rearrange(&[None, Some(2), Some(3), Some(1)]);
        assert_eq!(
            (due(&mut schedule, 2 * S), schedule.in_flight()),
            (vec![1], 2),
            "the old host 2 has the old host 0's room"
        );
        schedule.start(0, 4 * S);
        schedule.ended(3, 3 * S, None);
        assert_eq!(due(&mut schedule, 3 * S), [2], "the old host 3 is due at 3 s as before");
        schedule.ended(1, 4 * S, None);
        assert_eq!(due(&mut schedule, 4 * S), [0]);
        assert_eq!(schedule.next(), Some(11 * S), "the old host 1 in its rhythm");
    }

    #[test]
    fn stopped_host_frees_its_slot() {
        let mut schedule = schedule_of(3, 1);
        assert_eq!(due(&mut schedule, 2 * S), [0]);
        schedule.stop(0);
        schedule.stop(1);
        assert_eq!((due(&mut schedule, 2 * S), schedule.in_flight()), (vec![2], 1));
        schedule.start(0, 3 * S);
        schedule.hurry(0);
        schedule.ended(2, 2 * S, None);
        assert_eq!(due(&mut schedule, 2 * S), [0], "in a hurry");
        assert_eq!(schedule.next(), Some(12 * S));
    }
}
