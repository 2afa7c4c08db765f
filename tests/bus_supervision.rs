//! Panics, rebuilds, escalation, deathwatch.

mod common;

use std::time::Duration;

use common::*;
use ringfence::{Accepts, Actor, Code, Ctx, Handler, Kind, RestartPolicy, Result, message, testkit};
use serde::{Deserialize, Serialize};

#[test]
fn a_panic_fails_one_message_and_loses_no_other() {
    testkit::run(|world| async move {
        let log = Log::default();
        let l = log.clone();
        let counter = world.bus().spawn(world.id(), move || Counter::logging(&l)).unwrap();
        let asks = (counter.ask(Add(1)), counter.ask(Panic("boom".into())), counter.ask(Add(2)), counter.ask(Add(3)));
        assert_eq!(asks.0.await, Ok(1));
        let error = asks.1.await.unwrap_err();
        assert_eq!((&error.code, error.details.contains("boom")), (&Code::INTERNAL, true), "{error}");
        // A new value of the factory: the sum starts anew, the queue does not.
        assert_eq!((asks.2.await, asks.3.await), (Ok(2), Ok(5)));
        assert_eq!(*log.lock(), ["started", "1", "started", "2", "3"]);
        let actor = &world.bus().inspect().await.actors[0];
        assert_eq!((actor.restarts, actor.failed), (1, 1));
    });
}

#[test]
fn actor_that_keeps_panicking_is_stopped_and_reported() {
    testkit::run(|world| async move {
        let log = Log::default();
        let policy = RestartPolicy { max: 3, ..RestartPolicy::default() };
        let broken = world.bus().actor(world.id(), Counter::default).restarts(policy).spawn().unwrap();
        let (l, watch) = (log.clone(), Some(broken.address()));
        let watcher = world.bus().spawn(world.id(), move || Counter { watch, ..Counter::logging(&l) }).unwrap();
        watcher.ask(Add(0)).await.unwrap();
        for n in 0..3 {
            assert_eq!(broken.ask(Panic(n.to_string())).await.unwrap_err().code, Code::INTERNAL);
        }
        let (last, queued) = (broken.ask(Panic("last".into())), broken.ask(Add(1)));
        assert_eq!(last.await.unwrap_err().code, Code::INTERNAL);
        assert_eq!(queued.await.unwrap_err().code, Code::NODE_UNAVAILABLE);
        world.until("the watcher is notified", || log.lock().len() == 3).await;
        assert_eq!(log.lock()[2], "counter ended: panicked too often, last panic: last");
        assert_eq!(broken.ask(Add(1)).await.unwrap_err().code, Code::NODE_UNAVAILABLE);
        assert_eq!(world.bus().ask(broken.address(), Add(1)).await.unwrap_err().code, Code::NO_ROUTE);
        // 0, 10 and 20 ms between the rebuilds.
        assert!(world.elapsed() >= Duration::from_millis(30), "{:?}", world.elapsed());
        // The address is free again.
        world.bus().spawn(broken.address().id, Counter::default).unwrap();
    });
}

#[test]
fn watch_of_missing_actor_and_stop_are_reported() {
    testkit::run(|world| async move {
        let log = Log::default();
        let target = world.bus().spawn(world.id(), Counter::default).unwrap();
        for watch in [Some(target.address()), Some(ringfence::Address::singleton(Kind::new("nobody")))] {
            let l = log.clone();
            world.bus().spawn(world.id(), move || Counter { watch, ..Counter::logging(&l) }).unwrap();
        }
        world
            .until("the missing actor is reported", || log.lock().contains(&"nobody ended: does not exist".into()))
            .await;
        target.stop();
        world.until("the stop is reported", || log.lock().contains(&"counter ended: stopped".into())).await;
    });
}

#[test]
fn stop_answers_queued_messages() {
    testkit::run(|world| async move {
        let log = Log::default();
        let l = log.clone();
        let counter = world.bus().spawn(world.id(), move || Counter::logging(&l)).unwrap();
        let slow = counter.ask(Slow(1000));
        counter.ask(Add(1)).await.unwrap();
        let blocked = counter.ask(Exclusive(1000));
        tokio::time::sleep(Duration::from_millis(1)).await;
        let queued = counter.ask(Add(2));
        counter.stop();
        assert_eq!(queued.await.unwrap_err().code, Code::NODE_UNAVAILABLE);
        assert_eq!(blocked.await.unwrap_err().code, Code::CANCELLED);
        assert_eq!(slow.await.unwrap_err().code, Code::CANCELLED);
        assert_eq!(*log.lock(), ["started", "1", "stopped"]);
    });
}

/// A second restart that waits a minute.
fn slow_restarts() -> RestartPolicy {
    let minute = Duration::from_secs(60);
    RestartPolicy { window: 10 * minute, backoff: minute, backoff_ceiling: minute, ..RestartPolicy::default() }
}

#[test]
fn rebuilt_watcher_is_notified_once() {
    testkit::run(|world| async move {
        let log = Log::default();
        let (l, target) = (log.clone(), world.bus().spawn(world.id(), Counter::default).unwrap());
        let watch = Some(target.address());
        let factory = move || Counter { watch, ..Counter::logging(&l) };
        let watcher = world.bus().actor(world.id(), factory).restarts(slow_restarts()).spawn().unwrap();
        watcher.ask(Panic("first".into())).await.unwrap_err();
        watcher.ask(Add(1)).await.unwrap();
        watcher.ask(Panic("second".into())).await.unwrap_err();
        // The target ends while the watcher waits for its rebuild, which watches it again.
        target.stop();
        tokio::time::sleep(Duration::from_secs(120)).await;
        assert_eq!(*log.lock(), ["started", "started", "1", "started", "counter ended: stopped"]);
    });
}

#[test]
fn unwatched_actor_is_not_reported() {
    testkit::run(|world| async move {
        let log = Log::default();
        let (l, target) = (log.clone(), world.bus().spawn(world.id(), Counter::default).unwrap());
        let watch = Some(target.address());
        let watcher = world.bus().spawn(world.id(), move || Counter { watch, ..Counter::logging(&l) }).unwrap();
        watcher.ask(Unwatch).await.unwrap();
        target.stop();
        world.until("the target ended", || world.bus().len() == 1).await;
        watcher.ask(Add(1)).await.unwrap();
        assert_eq!(*log.lock(), ["started", "1"]);
    });
}

#[test]
fn stop_ends_a_backoff_at_once() {
    testkit::run(|world| async move {
        let log = Log::default();
        let l = log.clone();
        let factory = move || Counter::logging(&l);
        let counter = world.bus().actor(world.id(), factory).restarts(slow_restarts()).spawn().unwrap();
        for _ in 0..2 {
            counter.ask(Panic("boom".into())).await.unwrap_err();
        }
        let (queued, before) = (counter.ask(Add(1)), world.elapsed());
        tokio::time::sleep(Duration::from_millis(1)).await;
        counter.stop();
        assert_eq!(queued.await.unwrap_err().code, Code::NODE_UNAVAILABLE);
        world.until("it ended", || world.bus().is_empty()).await;
        assert!(world.elapsed() - before < Duration::from_secs(1), "{:?}", world.elapsed() - before);
        assert_eq!(*log.lock(), ["started", "started"], "it was built again only to end");
    });
}

#[test]
fn stop_before_the_first_turn_builds_nothing() {
    testkit::run(|world| async move {
        let log = Log::default();
        let l = log.clone();
        let counter = world.bus().spawn(world.id(), move || Counter::logging(&l)).unwrap();
        let queued = counter.ask(Add(1));
        counter.stop();
        assert_eq!(queued.await.unwrap_err().code, Code::NODE_UNAVAILABLE);
        world.until("it ended", || world.bus().is_empty()).await;
        assert!(log.lock().is_empty(), "{:?}", log.lock());
    });
}

#[test]
fn stop_is_kept_over_a_panic_of_the_same_handler() {
    testkit::run(|world| async move {
        let worker = world.bus().spawn(world.id(), || Worker(Log::default())).unwrap();
        assert_eq!(worker.ask(Go(7)).await.unwrap_err().code, Code::INTERNAL);
        world.until("it ended", || world.bus().is_empty()).await;
    });
}

#[derive(Debug, Serialize, Deserialize)]
struct Go(u64);
message!(Go, 1 => ());

/// Does what it is told by number, with tasks and timers.
struct Worker(Log);

impl Actor for Worker {
    const KIND: Kind = Kind::new("worker");
    fn accepts(accepts: &mut Accepts<Self>) {
        accepts.message::<Go>();
    }
}

impl Handler<Go> for Worker {
    type Answer = Result<()>;
    fn handle(&mut self, Go(what): Go, ctx: &mut Ctx<'_, Self>) -> Self::Answer {
        match what {
            0 => drop(ctx.after(Duration::from_secs(1), |w, _| w.0.lock().push("after".into()))),
            1 => drop(ctx.every(Duration::from_secs(1), |w, _| w.0.lock().push("tick".into()))),
            2 => drop(ctx.spawn(async { panic!("in a task") }, |w, (): (), _| w.0.lock().push("never".into()))),
            3 => drop(ctx.after(Duration::from_secs(1), |_, _| panic!("in a timer"))),
            4 => panic!("in a handler"),
            5 => ctx.after(Duration::from_secs(1), |w, _| w.0.lock().push("never".into())).cancel(),
            7 => {
                ctx.stop();
                panic!("after a stop")
            }
            _ => ctx.stop(),
        }
        Ok(())
    }
}

#[test]
fn tasks_and_timers_die_with_their_incarnation() {
    for panics in [2, 3, 4] {
        testkit::run(|world| async move {
            let log = Log::default();
            let l = log.clone();
            let worker = world.bus().spawn(world.id(), move || Worker(l.clone())).unwrap();
            worker.ask(Go(1)).await.unwrap();
            worker.ask(Go(5)).await.unwrap();
            tokio::time::sleep(Duration::from_millis(500)).await;
            worker.ask(Go(0)).await.unwrap();
            worker.ask(Go(panics)).await.ok();
            tokio::time::sleep(Duration::from_secs(10)).await;
            // A timer's panic comes after a second, when one tick was there. The rest died with it.
            let expected: &[&str] = if panics == 3 { &["tick", "after"] } else { &[] };
            assert_eq!(*log.lock(), expected, "case {panics}");
            assert_eq!(world.bus().inspect().await.actors[0].restarts, 1, "case {panics}");
            worker.ask(Go(0)).await.unwrap();
            tokio::time::sleep(Duration::from_secs(2)).await;
            assert_eq!(log.lock().last().unwrap(), "after", "the new incarnation has timers of its own");
            assert!(worker.ask(Go(6)).await.is_ok(), "a stop from inside answers its own message");
        });
    }
}

#[test]
fn actor_with_panicking_factory_is_stopped() {
    testkit::run(|world| async move {
        let policy = RestartPolicy { max: 2, ..RestartPolicy::default() };
        let factory = || -> Counter { panic!("cannot be made") };
        let counter = world.bus().actor(world.id(), factory).restarts(policy).spawn().unwrap();
        assert_eq!(counter.ask(Add(1)).await.unwrap_err().code, Code::NODE_UNAVAILABLE);
        assert!(!world.bus().is_alive(counter.address()));
    });
}
