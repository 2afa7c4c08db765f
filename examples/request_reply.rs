//! Request and reply: a till that sells tickets, with a deadline and an error.
//!
//! `cargo run --example request_reply`
#![allow(clippy::print_stdout)]

use std::time::Duration;

use ringfence::{Accepts, Actor, AsyncReply, Bus, Code, Ctx, ErrorCode, Handler, Kind, Result, message};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Buys tickets.
#[derive(Debug, Serialize, Deserialize)]
struct Buy {
    tickets: u32,
}
message!(Buy, 1 => Receipt);

/// The reply to [`Buy`].
#[derive(Debug, Serialize, Deserialize)]
struct Receipt {
    left: u32,
}

/// Calls the manager, who comes after the deadline.
#[derive(Debug, Serialize, Deserialize)]
struct CallManager;
message!(CallManager, 1 => ());

struct Till {
    left: u32,
}

impl Actor for Till {
    const KIND: Kind = Kind::new("till");

    fn accepts(accepts: &mut Accepts<Self>) {
        accepts.message::<Buy>().message::<CallManager>();
    }
}

impl Handler<Buy> for Till {
    type Answer = Result<Receipt>;

    fn handle(&mut self, buy: Buy, _: &mut Ctx<'_, Self>) -> Self::Answer {
        match self.left.checked_sub(buy.tickets) {
            Some(left) => {
                self.left = left;
                Ok(Receipt { left })
            }
            None => Err(ErrorCode::new(Code::OPERATION, format!("only {} tickets are left", self.left))),
        }
    }
}

impl Handler<CallManager> for Till {
    type Answer = AsyncReply<()>;

    fn handle(&mut self, _: CallManager, _: &mut Ctx<'_, Self>) -> Self::Answer {
        AsyncReply::new(async {
            tokio::time::sleep(Duration::from_secs(3600)).await;
            Ok(())
        })
    }
}

fn main() -> Result<()> {
    actix::System::new().block_on(async {
        let till = Bus::new().spawn(Uuid::new_v4(), || Till { left: 10 })?;
        println!("bought 7: {:?}", till.ask(Buy { tickets: 7 }).await?);
        println!("bought 7 more: {}", till.ask(Buy { tickets: 7 }).await.unwrap_err());
        let manager = till.ask_within(CallManager, Duration::from_millis(50));
        // The till continues to sell while the call waits.
        println!("bought 1: {:?}", till.ask(Buy { tickets: 1 }).await?);
        println!("the manager: {}", manager.await.unwrap_err());
        Ok(())
    })
}
