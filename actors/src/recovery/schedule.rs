//! Which host is pinged when: every interval, spread out, never more than so many at once.
//!
//! Invariants (I8): at most `parallelism` pings in flight; a host is waiting, queued or in flight, never two of
//! them; a ping that comes late is not caught up. Hosts are dense indexes.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, VecDeque},
    time::Duration,
};

/// Where a host stands in the schedule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// Not pinged at all.
    Off,
    /// Pinged at this time.
    Waiting(Duration),
    /// Due; waits for others to end.
    Queued,
    /// Being pinged.
    InFlight,
}

#[derive(Clone, Debug)]
pub(crate) struct Schedule {
    interval: Duration,
    parallelism: usize,
    /// Per host, where it stands and since when its rhythm counts.
    hosts: Vec<(Place, Duration)>,
    /// Times of waiting hosts; entries that the host's place does not confirm are stale.
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

    /// Other hosts from now on: the n-th is the one that was the `from[n]`-th, or a new one, not pinged yet.
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

    /// No more pings of this host. One in flight is forgotten: its answer no longer counts.
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
                // The next beat that is not over: missed ones are skipped.
                let beats = now.saturating_sub(*rhythm).as_nanos() / self.interval.as_nanos().max(1) + 1;
                *rhythm += self.interval * u32::try_from(beats).unwrap_or(u32::MAX);
                *rhythm
            }
        };
        self.in_flight -= 1;
        self.wait(host, next);
    }

    /// Pings this host as soon as there is room, unless it is queued or in flight.
    pub(crate) fn hurry(&mut self, host: u32) {
        let place = &mut self.hosts[host as usize].0;
        if matches!(place, Place::Waiting(_)) {
            *place = Place::Queued;
            self.queued.push_front(host);
        }
    }

    /// The hosts to ping now; they are in flight from here on.
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

    /// When [`due`](Schedule::due) must be asked next; pings that end ask by themselves.
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

    fn of(hosts: u32, parallelism: usize) -> Schedule {
        let mut schedule = Schedule::new(10 * S, parallelism);
        schedule.rearrange(&vec![None; hosts as usize]);
        for host in 0..hosts {
            schedule.start(host, S * host);
        }
        schedule
    }

    #[test]
    fn due_hosts_wait_in_order_for_room() {
        let mut schedule = of(4, 2);
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
    fn missed_beats_are_skipped_and_the_rhythm_stays() {
        let mut schedule = of(1, 1);
        assert_eq!(due(&mut schedule, Duration::ZERO), [0]);
        schedule.ended(0, 35 * S, None);
        assert_eq!(schedule.next(), Some(40 * S));
        assert!(due(&mut schedule, 39 * S).is_empty());
        assert_eq!(due(&mut schedule, 40 * S), [0]);
    }

    #[test]
    fn a_retry_does_not_move_the_rhythm() {
        let mut schedule = of(1, 1);
        due(&mut schedule, Duration::ZERO);
        schedule.ended(0, 2 * S, Some(S));
        assert_eq!(due(&mut schedule, 3 * S), [0]);
        schedule.ended(0, 4 * S, None);
        assert_eq!(schedule.next(), Some(10 * S));
    }

    #[test]
    fn who_stays_keeps_his_rhythm_and_who_goes_leaves_room() {
        let mut schedule = of(4, 2);
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
    fn a_stopped_host_leaves_room_and_no_trace() {
        let mut schedule = of(3, 1);
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
