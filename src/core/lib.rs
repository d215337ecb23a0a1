//! The decisions of Lookaside: which endpoints a client gets, in which order, and why.
//!
//! Facts come in as [`event::Event`]s and change the [`table::Table`], the only mutable state. The table is published as
//! an immutable [`snapshot::Snapshot`]; a [`policy`] turns the snapshot of one service into the
//! [`policy::Assignment`] of one cohort of clients; [`explain`] says why it came out so.
//!
//! Nothing here reads a clock, opens a socket, draws a random number or depends on the order of a hash: the same events
//! at the same times give the same lists, in the service and under a virtual clock.

mod ceiling;
pub mod config;
pub mod decision;
pub mod event;
pub mod explain;
mod hash;
pub mod kept;
pub mod limits;
pub mod model;
pub mod policy;
pub mod snapshot;
pub mod table;
