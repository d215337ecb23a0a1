//! The Lookaside SDK.

pub mod picker;

#[cfg(feature = "transport")]
mod channel;
#[cfg(feature = "transport")]
mod error;
#[cfg(feature = "transport")]
pub mod outcome;
#[cfg(feature = "transport")]
mod snapshot;
#[cfg(feature = "transport")]
mod target;
#[cfg(feature = "transport")]
mod why;

#[cfg(feature = "transport")]
pub use channel::{Builder, Channel};
#[cfg(feature = "transport")]
pub use error::Error;
#[cfg(feature = "transport")]
pub use snapshot::{EndpointSnapshot, EndpointState, ListSource, Mode, Snapshot, Version};
#[cfg(feature = "transport")]
pub use why::{Picked, What, Why, picked, why};

#[cfg(feature = "reporter")]
pub mod reporter;
#[cfg(feature = "reporter")]
pub use reporter::Reporter;

#[cfg(feature = "testing")]
pub mod testing;
