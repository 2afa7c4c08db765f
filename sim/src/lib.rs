//! Ringfence's simulated world: simulated implementations of the ports, with faults, in virtual time, judged by
//! independent checkers.
//!
//! A [`Plan`](plan::Plan) has the inventory and the steps; [`run`](run::run) plays it with the same actors as
//! `ringfence serve`; an [`Outcome`](run::Outcome) lists the broken rules.

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
