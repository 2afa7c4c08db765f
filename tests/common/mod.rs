//! A small actor that the bus tests speak to.
#![allow(dead_code, missing_docs, unreachable_pub)]

use std::{sync::Arc, time::Duration};

use parking_lot::Mutex;
use ringfence::{
    Accepts, Actor, AsyncReply, Ctx, Event, EventHandler, Exit, Handler, Kind, Lane, Promise, Promised, Result, event,
    message,
};
use serde::{Deserialize, Serialize};

/// Adds and answers the sum so far.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Add(pub u64);
message!(Add, 1 => u64);

/// As `Add`, but urgent.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Urgent(pub u64);
message!(Urgent, 1, Lane::Control => u64);

/// As `Add`, but patient.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Patient(pub u64);
message!(Patient, 1, Lane::Bulk => u64);

/// Panics with this text.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Panic(pub String);
message!(Panic, 1 => ());

/// Answers after this many milliseconds, beside other messages.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Slow(pub u64);
message!(Slow, 1 => ());

/// Answers after this many milliseconds, and nothing else is handled meanwhile.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Exclusive(pub u64);
message!(Exclusive, 1 => ());

/// Keeps a promise for ever, or drops it at once.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Promise_(pub bool);
message!(Promise_, 1 => ());

/// Busy for this many milliseconds of real time.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Busy(pub u64);
message!(Busy, 1 => ());

/// Ends the watch of the counter.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Unwatch;
message!(Unwatch, 1 => ());

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DoorOpened(pub String);
event!(DoorOpened, "door.opened", 1, |e| e.0.clone());

/// What the actor saw, in order, kept outside of it so that it survives rebuilds.
pub type Log = Arc<Mutex<Vec<String>>>;

#[derive(Default)]
pub struct Counter {
    pub sum: u64,
    pub log: Log,
    pub kept: Vec<Promise<()>>,
    pub watch: Option<ringfence::Address>,
}

impl Counter {
    pub fn logging(log: &Log) -> Counter {
        Counter { log: log.clone(), ..Counter::default() }
    }

    fn note(&self, what: impl Into<String>) {
        self.log.lock().push(what.into());
    }

    fn add(&mut self, n: u64) -> Result<u64> {
        self.sum += n;
        self.note(n.to_string());
        Ok(self.sum)
    }
}

impl Actor for Counter {
    const KIND: Kind = Kind::new("counter");

    fn accepts(accepts: &mut Accepts<Self>) {
        accepts
            .message::<Add>()
            .message::<Urgent>()
            .message::<Patient>()
            .message::<Panic>()
            .message::<Slow>()
            .message::<Exclusive>()
            .message::<Promise_>()
            .message::<Busy>()
            .message::<Unwatch>()
            .event::<DoorOpened>();
    }

    fn started(&mut self, ctx: &mut Ctx<'_, Self>) {
        ctx.subscribe::<DoorOpened>();
        if let Some(address) = self.watch {
            ctx.watch(address);
        }
        self.note("started");
    }

    fn stopped(&mut self) {
        self.note("stopped");
    }

    fn terminated(&mut self, who: ringfence::Address, why: &Exit, _: &mut Ctx<'_, Self>) {
        self.note(format!("{} ended: {why}", who.kind));
    }

    fn observe(&self) -> serde_json::Value {
        self.sum.into()
    }
}

macro_rules! adds {
    ($($message:ident)*) => {$(
        impl Handler<$message> for Counter {
            type Answer = Result<u64>;
            fn handle(&mut self, message: $message, _: &mut Ctx<'_, Self>) -> Self::Answer {
                self.add(message.0)
            }
        }
    )*};
}
adds!(Add Urgent Patient);

impl Handler<Panic> for Counter {
    type Answer = Result<()>;
    fn handle(&mut self, message: Panic, _: &mut Ctx<'_, Self>) -> Self::Answer {
        panic!("{}", message.0);
    }
}

impl Handler<Slow> for Counter {
    type Answer = AsyncReply<()>;
    fn handle(&mut self, message: Slow, _: &mut Ctx<'_, Self>) -> Self::Answer {
        let log = self.log.clone();
        AsyncReply::new(async move {
            tokio::time::sleep(Duration::from_millis(message.0)).await;
            log.lock().push(format!("slow {}", message.0));
            Ok(())
        })
    }
}

impl Handler<Exclusive> for Counter {
    type Answer = AsyncReply<()>;
    fn handle(&mut self, message: Exclusive, _: &mut Ctx<'_, Self>) -> Self::Answer {
        let log = self.log.clone();
        AsyncReply::exclusive(async move {
            tokio::time::sleep(Duration::from_millis(message.0)).await;
            log.lock().push(format!("exclusive {}", message.0));
            Ok(())
        })
    }
}

impl Handler<Promise_> for Counter {
    type Answer = Promised<Promise_>;
    fn handle(&mut self, message: Promise_, ctx: &mut Ctx<'_, Self>) -> Self::Answer {
        let (promise, answer) = ctx.promise::<Promise_>();
        if message.0 {
            self.kept.push(promise);
        }
        answer
    }
}

impl Handler<Busy> for Counter {
    type Answer = Result<()>;
    fn handle(&mut self, message: Busy, _: &mut Ctx<'_, Self>) -> Self::Answer {
        let until = std::time::Instant::now() + Duration::from_millis(message.0);
        while std::time::Instant::now() < until {
            std::hint::spin_loop();
        }
        self.note("busy");
        Ok(())
    }
}

impl Handler<Unwatch> for Counter {
    type Answer = Result<()>;
    fn handle(&mut self, _: Unwatch, ctx: &mut Ctx<'_, Self>) -> Self::Answer {
        if let Some(address) = self.watch {
            ctx.unwatch(address);
        }
        Ok(())
    }
}

impl EventHandler<DoorOpened> for Counter {
    fn on_event(&mut self, event: &DoorOpened, _: &mut Ctx<'_, Self>) {
        self.note(format!("{} {}", DoorOpened::TOPIC, event.0));
    }
}
