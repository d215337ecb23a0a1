//! Load and something to load: an open-loop generator of calls through the SDK, and backends whose capacity is virtual,
//! made of timers instead of CPU, so that a fleet of unequal machines fits into one process.
//!
//! Nothing here knows the balancer but by what it says on the wire.

pub mod backend;
pub mod bench;
pub mod generator;
