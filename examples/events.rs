//! Events: a thermometer publishes, a heater subscribes, and a stream logs all events that match a glob.
//!
//! `cargo run --example events`
#![allow(clippy::print_stdout)]

use std::time::Duration;

use ringfence::{Accepts, Actor, Bus, Ctx, EventHandler, Kind, Result, event};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// A temperature was measured.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Measured {
    room: String,
    celsius: i32,
}
event!(Measured, "room.measured", 1, |e| e.room.clone());

/// The heater was switched.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct HeatingSwitched {
    on: bool,
}
event!(HeatingSwitched, "heating.switched", 1, |_e| "heating".to_owned());

/// Publishes falling temperatures, one every 10 ms.
struct Thermometer {
    celsius: i32,
}

impl Actor for Thermometer {
    const KIND: Kind = Kind::new("thermometer");

    fn accepts(_: &mut Accepts<Self>) {}

    fn started(&mut self, ctx: &mut Ctx<'_, Self>) {
        ctx.every(Duration::from_millis(10), |thermometer, ctx| {
            thermometer.celsius -= 1;
            let _ = ctx.bus().publish(Measured { room: "kitchen".to_owned(), celsius: thermometer.celsius });
        });
    }
}

#[derive(Default)]
struct Heater {
    on: bool,
}

impl Actor for Heater {
    const KIND: Kind = Kind::new("heater");

    fn accepts(accepts: &mut Accepts<Self>) {
        accepts.event::<Measured>();
    }

    fn started(&mut self, ctx: &mut Ctx<'_, Self>) {
        ctx.subscribe::<Measured>();
    }
}

impl EventHandler<Measured> for Heater {
    fn on_event(&mut self, measured: &Measured, ctx: &mut Ctx<'_, Self>) {
        let on = measured.celsius < 18;
        if on != self.on {
            self.on = on;
            let _ = ctx.bus().publish(HeatingSwitched { on });
        }
    }
}

fn main() -> Result<()> {
    actix::System::new().block_on(async {
        let bus = Bus::new();
        let mut log = bus.subscribe("*")?;
        bus.spawn(Uuid::new_v4(), Heater::default)?;
        bus.spawn(Uuid::new_v4(), || Thermometer { celsius: 20 })?;
        while let Some(event) = log.recv().await {
            println!("{event:?}");
            if event.downcast_ref::<HeatingSwitched>().is_some_and(|switched| switched.on) {
                break;
            }
        }
        Ok(())
    })
}
