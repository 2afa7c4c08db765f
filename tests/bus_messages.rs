//! Asking, telling, lanes, addresses, events and interceptors.

mod common;

use std::time::Duration;

use common::*;
use ringfence::{
    Address, Code, ErrorCode, InterceptedMessage, Interceptor, Kind, Lane, LaneLimits, Result, Verdict, testkit,
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
