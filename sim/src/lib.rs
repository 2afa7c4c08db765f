//! Ringfence's simulated world: the far ends of the ports, with faults, in virtual time, judged by independent checkers.
//!
//! A [`Plan`](plan::Plan) says what there is and what happens; [`run`](run::run) plays it with the very actors that
//! `ringfence serve` runs; an [`Outcome`](run::Outcome) says which rules were broken.

pub mod campaign;
pub mod check;
pub mod fault;
pub mod model;
pub mod plan;
pub mod rates;
pub mod run;
pub mod scenario;
pub mod shrink;
mod world;

pub use world::World;
