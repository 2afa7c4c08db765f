//! Supervision: a handler that panics fails one message; the actor is rebuilt and the messages behind it are handled.
//! An actor that panics too often is stopped, and its watcher is notified.
//!
//! `cargo run --example supervised_panic 2>/dev/null`
#![allow(clippy::print_stdout)]

use std::time::Duration;

use ringfence::{Accepts, Actor, Address, Bus, Ctx, Exit, Handler, Kind, RestartPolicy, Result, message};
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;
use uuid::Uuid;

/// Divides 100 by a number.
#[derive(Debug, Serialize, Deserialize)]
struct Divide(i32);
message!(Divide, 1 => i32);

struct Calculator;

impl Actor for Calculator {
    const KIND: Kind = Kind::new("calculator");

    fn accepts(accepts: &mut Accepts<Self>) {
        accepts.message::<Divide>();
    }
}

impl Handler<Divide> for Calculator {
    type Answer = Result<i32>;

    fn handle(&mut self, divide: Divide, _: &mut Ctx<'_, Self>) -> Self::Answer {
        Ok(100 / divide.0)
    }
}

/// Reports the end of the calculator.
struct Warden {
    watched: Address,
    exit: Option<oneshot::Sender<Exit>>,
}

impl Actor for Warden {
    const KIND: Kind = Kind::new("warden");

    fn accepts(_: &mut Accepts<Self>) {}

    fn started(&mut self, ctx: &mut Ctx<'_, Self>) {
        ctx.watch(self.watched);
    }

    fn terminated(&mut self, _: Address, why: &Exit, _: &mut Ctx<'_, Self>) {
        if let Some(exit) = self.exit.take() {
            let _ = exit.send(why.clone());
        }
    }
}

fn main() -> Result<()> {
    actix::System::new().block_on(async {
        let bus = Bus::new();
        let policy = RestartPolicy { max: 2, window: Duration::from_secs(60), ..RestartPolicy::default() };
        let calculator = bus.actor(Uuid::new_v4(), || Calculator).restarts(policy).spawn()?;
        let (sender, exit) = oneshot::channel();
        let (watched, mut sender) = (calculator.address(), Some(sender));
        bus.spawn(Uuid::new_v4(), move || Warden { watched, exit: sender.take() })?;

        // All three are in the mailbox before the first one is handled.
        let answers = [4, 0, 5].map(|n| (n, calculator.ask(Divide(n))));
        for (n, answer) in answers {
            match answer.await {
                Ok(result) => println!("100 / {n} = {result}"),
                Err(error) => println!("100 / {n}: {error}"),
            }
        }
        let _ = calculator.ask(Divide(0)).await;
        let _ = calculator.ask(Divide(0)).await;
        println!("the warden reports: {}", exit.await.expect("the warden runs"));
        println!("afterwards: {}", calculator.ask(Divide(1)).await.unwrap_err());
        Ok(())
    })
}
