//! The service around the core: listeners, sources, signals and front ends. It converts, transports and paces; which
//! endpoints a client gets is decided in `lookaside_core` alone.
//!
//! ```text
//!   source, signal --> Event --> driver (the table) --> Snapshot --> front ends, admin, metrics
//! ```
//!
//! Rooms do not know each other but through these types; [`run()`] alone knows them all.

mod accept;
mod admin;
pub mod config;
mod convert;
mod driver;
mod frontend;
mod limits;
mod run;
mod signal;
mod source;
mod store;
mod telemetry;
#[cfg(test)]
mod testing;
mod tls;

pub use config::Config;
pub use run::{Error, Running, check_files, run};
pub use store::InUse;
