//! Asking, telling, lanes, addresses, events and interceptors.

mod common;

use std::time::Duration;

use common::*;
use ringfence::{
    Accepts, Actor, Address, Bus, BusStats, Code, Ctx, ErrorCode, EventHandler, Handler, InterceptedMessage,
    Interceptor, Kind, Lane, LaneLimits, Result, Verdict, testkit,
};
use uuid::Uuid;

#[test]
fn reference_and_address_reach_the_same_actor() {
    testkit::run(|world| async move {
        let counter = world.bus().spawn(world.id(), Counter::default).unwrap();
        assert_eq!(counter.ask(Add(2)).await, Ok(2));
        assert_eq!(world.bus().ask(counter.address(), Add(3)).await, Ok(5));
        world.bus().tell(counter.address(), Add(4)).unwrap();
        assert_eq!(counter.ask(Add(0)).await, Ok(9));
    });
}

#[test]
fn undeliverable_message_becomes_a_dead_letter() {
    testkit::run(|world| async move {
        let probe = world.probe::<Slow>(None, |_| Ok(()));
        let nobody = Address::new(Kind::new("counter"), Uuid::from_u128(77));
        let no_route = world.bus().ask(nobody, Add(1)).await.unwrap_err();
        let unknown = world.bus().ask(probe.address(), Add(1)).await.unwrap_err();
        assert_eq!((no_route.code, unknown.code), (Code::NO_ROUTE, Code::UNKNOWN_MESSAGE));
        assert!(world.bus().tell(nobody, Add(1)).is_err());
        let dead: Vec<_> = world.bus().dead_letters().into_iter().map(|d| (d.to, d.name, d.why.code)).collect();
        let expected = [
            (nobody, "Add", Code::NO_ROUTE),
            (probe.address(), "Add", Code::UNKNOWN_MESSAGE),
            (nobody, "Add", Code::NO_ROUTE),
        ];
        assert_eq!(dead, expected);
    });
}

#[test]
fn one_address_one_actor() {
    testkit::run(|world| async move {
        let id = world.id();
        world.bus().spawn(id, Counter::default).unwrap();
        let second = world.bus().spawn(id, Counter::default).map(|_| ()).unwrap_err();
        assert_eq!(second.code, Code::CHANGE_STATE);
    });
}

#[test]
fn control_goes_before_normal_before_bulk() {
    testkit::run(|world| async move {
        let log = Log::default();
        let l = log.clone();
        let counter = world.bus().spawn(world.id(), move || Counter::logging(&l)).unwrap();
        for n in 0..3 {
            counter.tell(Patient(20 + n)).unwrap();
            counter.tell(Add(10 + n)).unwrap();
            counter.tell(Urgent(n)).unwrap();
        }
        world.until("all are handled", || log.lock().len() == 10).await;
        assert_eq!(*log.lock(), ["started", "0", "1", "2", "10", "11", "12", "20", "21", "22"]);
    });
}

#[test]
fn full_lane_rejects_and_other_lanes_continue() {
    testkit::run(|world| async move {
        let lanes = LaneLimits { normal: 3, ..LaneLimits::default() };
        let counter = world.bus().actor(world.id(), Counter::default).lanes(lanes).spawn().unwrap();
        // Nothing yields in between, so nothing is handled in between.
        let told: Vec<Result<()>> = (0..5).map(|n| counter.tell(Add(n))).collect();
        assert_eq!(told.iter().filter(|t| t.is_ok()).count(), 3);
        let refused = told[4].clone().unwrap_err();
        assert_eq!(refused.code, Code::NOT_READY);
        assert!(refused.details.contains("full: limit 3 messages"), "{refused}");
        let before = world.elapsed();
        assert_eq!(counter.ask(Add(9)).await.unwrap_err().code, Code::NOT_READY);
        assert_eq!(world.elapsed(), before, "the refusal waited for something");
        assert_eq!(counter.ask(Urgent(1)).await, Ok(1));
        assert_eq!(counter.ask(Add(0)).await, Ok(1 + 1 + 2));
        assert_eq!(world.bus().dead_letters().len(), 3);
    });
}

#[test]
fn a_lane_can_be_chosen_by_the_sender() {
    testkit::run(|world| async move {
        let log = Log::default();
        let l = log.clone();
        let counter = world.bus().spawn(world.id(), move || Counter::logging(&l)).unwrap();
        counter.tell(Add(1)).unwrap();
        counter.tell_in(Lane::Control, Add(2)).unwrap();
        counter.ask(Patient(3)).await.unwrap();
        assert_eq!(*log.lock(), ["started", "2", "1", "3"]);
    });
}

#[test]
fn exclusive_reply_holds_the_mailbox() {
    testkit::run(|world| async move {
        let log = Log::default();
        let l = log.clone();
        let counter = world.bus().spawn(world.id(), move || Counter::logging(&l)).unwrap();
        let asks = (counter.ask(Slow(50)), counter.ask(Add(1)), counter.ask(Exclusive(100)), counter.ask(Urgent(2)));
        let (slow, add, exclusive, urgent) = (asks.0.await, asks.1.await, asks.2.await, asks.3.await);
        assert!(slow.is_ok() && add.is_ok() && exclusive.is_ok() && urgent.is_ok());
        // Urgent overtakes in the mailbox; Add came before the exclusive one, which holds nothing back by then.
        assert_eq!(*log.lock(), ["started", "2", "1", "slow 50", "exclusive 100"]);
        let (exclusive, add) = (counter.ask(Exclusive(100)), counter.ask(Add(3)));
        exclusive.await.unwrap();
        add.await.unwrap();
        assert_eq!(log.lock()[5..], ["exclusive 100", "3"]);
    });
}

#[test]
fn events_reach_actors_and_matching_streams() {
    testkit::run(|world| async move {
        let log = Log::default();
        let l = log.clone();
        let counter = world.bus().spawn(world.id(), move || Counter::logging(&l)).unwrap();
        counter.ask(Add(1)).await.unwrap();
        let mut doors = world.bus().subscribe("door.*").unwrap();
        let mut windows = world.bus().subscribe("window.*").unwrap();
        for name in ["front", "back"] {
            assert_eq!(world.bus().publish(DoorOpened(name.into())), Ok(2));
        }
        for name in ["front", "back"] {
            let event = doors.recv().await.unwrap();
            assert_eq!((event.topic, event.subject().as_str()), ("door.opened", name));
            assert_eq!(event.json(), serde_json::json!(name));
            assert_eq!(event.downcast_ref::<DoorOpened>(), Some(&DoorOpened(name.into())));
        }
        counter.ask(Patient(1)).await.unwrap();
        assert_eq!(log.lock()[2..4], ["door.opened front", "door.opened back"]);
        let none = tokio::time::timeout(Duration::from_secs(1), windows.recv()).await;
        assert!(none.is_err(), "{none:?}");
        counter.stop();
        world.until("it is gone", || !world.bus().is_alive(counter.address())).await;
        assert_eq!(world.bus().publish(DoorOpened("side".into())), Ok(1), "only the stream is left");
    });
}

#[test]
fn unread_stream_counts_missed_events() {
    testkit::run(|world| async move {
        let mut doors = world.bus().subscribe("*").unwrap();
        for n in 0..ringfence::MAX_STREAM_BACKLOG + 5 {
            world.bus().publish(DoorOpened(n.to_string())).unwrap();
        }
        assert_eq!(doors.missed(), 5);
        assert_eq!(doors.recv().await.unwrap().subject(), "0");
    });
}

/// Adds 100 on the way in, refuses 13, answers 14 itself.
struct Meddler;

impl Interceptor for Meddler {
    fn before_send(&self, message: &mut InterceptedMessage<'_>) -> Verdict {
        match message.get_mut::<Add>() {
            Some(Add(13)) => Verdict::Veto(ErrorCode::new(Code::OPERATION, "unlucky")),
            Some(add) => {
                add.0 += 100;
                Verdict::Pass
            }
            None => Verdict::Pass,
        }
    }

    fn before_delivery(&self, message: &mut InterceptedMessage<'_>) -> Verdict {
        match message.get::<Add>() {
            Some(Add(114)) => Verdict::answer::<Add>(7),
            Some(Add(115)) => Verdict::answer::<Slow>(()),
            _ => Verdict::Pass,
        }
    }

    fn before_publish(&self, _: &'static str, event: &mut dyn std::any::Any) -> Result<()> {
        let door = event.downcast_mut::<DoorOpened>().expect("the only event");
        door.0.push('!');
        if door.0.starts_with("secret") { Err(ErrorCode::new(Code::OPERATION, "hidden")) } else { Ok(()) }
    }
}

#[test]
fn interceptors_change_veto_and_answer() {
    testkit::run(|world| async move {
        let counter = world.bus().spawn(world.id(), Counter::default).unwrap();
        world.bus().intercept(Meddler);
        let tap = world.tap::<Add>();
        assert_eq!(counter.ask(Add(1)).await, Ok(101));
        assert_eq!(counter.ask(Add(13)).await.unwrap_err().details, "unlucky");
        assert_eq!(world.bus().ask(counter.address(), Add(14)).await, Ok(7));
        let wrong = counter.ask(Add(15)).await.unwrap_err();
        assert_eq!(wrong.code, Code::INTERNAL, "an answer of another message's type: {wrong}");
        assert_eq!(tap.take(), [(counter.address(), Add(101))], "only what got past the meddler");
        let mut doors = world.bus().subscribe("*").unwrap();
        assert_eq!(world.bus().publish(DoorOpened("secret".into())).unwrap_err().details, "hidden");
        world.bus().publish(DoorOpened("front".into())).unwrap();
        assert_eq!(doors.recv().await.unwrap().subject(), "front!");
    });
}

#[test]
fn a_snapshot_shows_lanes_counts_and_state() {
    testkit::run(|world| async move {
        let counter = world.bus().spawn(world.id(), Counter::default).unwrap();
        counter.ask(Add(5)).await.unwrap();
        let snapshot = serde_json::to_value(world.bus().inspect().await).unwrap();
        let actor = &snapshot["actors"][0];
        assert_eq!((&actor["kind"], &actor["handled"], &actor["state"]), (&"counter".into(), &1.into(), &5.into()));
        assert_eq!(actor["lanes"][1], serde_json::json!({ "depth": 0, "limit": 4096 }));
        let add = snapshot["stats"]["messages"].as_array().unwrap().iter().find(|m| m["name"] == "Add").unwrap();
        assert_eq!(add["handled"], 1);
    });
}

#[test]
fn counts_are_of_one_bus() {
    testkit::run(|world| async move {
        let other = Bus::new();
        let here = world.bus().spawn(world.id(), Counter::default).unwrap();
        let there = other.spawn(world.id(), Counter::default).unwrap();
        for n in 0..10 {
            there.ask(Add(n)).await.unwrap();
        }
        there.ask_within(Slow(100), Duration::from_millis(10)).await.unwrap_err();
        world.until("the late reply is dropped", || world.elapsed() > Duration::from_secs(1)).await;
        here.ask(Add(1)).await.unwrap();
        let handled = |stats: &BusStats| stats.messages.iter().find(|m| m.name == "Add").map_or(0, |m| m.handled);
        let (here, there) = (world.bus().inspect().await.stats, other.inspect().await.stats);
        assert_eq!((handled(&here), here.timeouts, here.late_replies), (1, 0, 0));
        assert_eq!((handled(&there), there.timeouts, there.late_replies), (10, 1, 1));
        other.stop_all();
        world.until("the other bus is empty", || other.is_empty()).await;
    });
}

mod other {
    use serde::{Deserialize, Serialize};

    /// A second type with a name that is taken.
    #[derive(Debug, Serialize, Deserialize)]
    pub(crate) struct Add(pub(crate) u64);
    ringfence::message!(Add, 1 => u64);
}

#[test]
fn two_types_with_one_name_are_counted_apart() {
    testkit::run(|world| async move {
        let counter = world.bus().spawn(world.id(), Counter::default).unwrap();
        let probe = world.probe::<other::Add>(None, |add| Ok(add.0));
        counter.ask(Add(1)).await.unwrap();
        for n in 0..2 {
            world.bus().ask(probe.address(), other::Add(n)).await.unwrap();
        }
        let stats = world.bus().inspect().await.stats.messages;
        let counts: Vec<_> = stats.iter().map(|m| (m.name.as_str(), m.handled)).collect();
        assert_eq!(counts, [("Add", 1), ("Add (bus_messages::other::Add)", 2)]);
    });
}

/// Hears doors, if it subscribes.
struct Porter {
    subscribes: bool,
    heard: Log,
}

impl Actor for Porter {
    const KIND: Kind = Kind::new("porter");
    fn accepts(accepts: &mut Accepts<Self>) {
        accepts.event::<DoorOpened>().message::<Add>();
    }
    fn started(&mut self, ctx: &mut Ctx<'_, Self>) {
        if self.subscribes {
            ctx.subscribe::<DoorOpened>();
        }
    }
}

impl EventHandler<DoorOpened> for Porter {
    fn on_event(&mut self, event: &DoorOpened, _: &mut Ctx<'_, Self>) {
        self.heard.lock().push(event.0.clone());
    }
}

impl Handler<Add> for Porter {
    type Answer = Result<u64>;
    fn handle(&mut self, add: Add, ctx: &mut Ctx<'_, Self>) -> Self::Answer {
        ctx.subscribe::<DoorOpened>();
        Ok(add.0)
    }
}

#[test]
fn event_right_after_spawn_is_heard() {
    testkit::run(|world| async move {
        let (on, off) = (Log::default(), Log::default());
        let (l, m) = (on.clone(), off.clone());
        let listens = world.bus().spawn(world.id(), move || Porter { subscribes: true, heard: l.clone() }).unwrap();
        let does_not = world.bus().spawn(world.id(), move || Porter { subscribes: false, heard: m.clone() }).unwrap();
        world.bus().publish(DoorOpened("first".into())).unwrap();
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert_eq!(world.bus().publish(DoorOpened("second".into())), Ok(1), "only one has subscribed");
        does_not.ask(Add(1)).await.unwrap();
        assert_eq!(world.bus().publish(DoorOpened("third".into())), Ok(2));
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert_eq!(*on.lock(), ["first", "second", "third"]);
        assert_eq!(*off.lock(), ["third"], "an actor hears what it subscribed to, from then on");
        listens.stop();
        world.until("it ended", || world.bus().len() == 1).await;
        assert_eq!(world.bus().publish(DoorOpened("fourth".into())), Ok(1));
    });
}

#[test]
fn event_right_after_spawn_on_another_thread_is_heard() {
    actix::System::new().block_on(async {
        let (bus, arbiter, heard) = (Bus::new(), actix::Arbiter::new(), Log::default());
        let l = heard.clone();
        let porter = bus.actor(Uuid::nil(), move || Porter { subscribes: true, heard: l.clone() });
        let porter = porter.spawn_on(&arbiter.handle()).unwrap();
        for n in 0..100 {
            assert_eq!(bus.publish(DoorOpened(n.to_string())), Ok(1));
        }
        porter.ask(Add(1)).await.unwrap();
        assert_eq!(*heard.lock(), (0..100).map(|n| n.to_string()).collect::<Vec<_>>());
        porter.stop();
        while !bus.is_empty() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        arbiter.stop();
        arbiter.join().unwrap();
    });
}

#[test]
fn stream_that_was_dropped_is_no_receiver() {
    testkit::run(|world| async move {
        let (kept, dropped) = (world.bus().subscribe("door.*").unwrap(), world.bus().subscribe("door.*").unwrap());
        assert_eq!(world.bus().publish(DoorOpened("front".into())), Ok(2));
        drop(dropped);
        assert_eq!(world.bus().publish(DoorOpened("back".into())), Ok(1));
        let late = world.bus().subscribe("door.*").unwrap();
        assert_eq!(world.bus().publish(DoorOpened("side".into())), Ok(2), "a topic that is known gains a stream");
        assert_eq!((kept.missed(), late.missed()), (0, 0));
    });
}
