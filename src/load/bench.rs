//! What `lookaside bench` runs in processes of their own: a server that answers at once, clients that call it through the SDK
//! and through bare channels, subscribers of pick streams, and a bare server of streams to compare with; for how well calls are
//! balanced, backends with virtual capacity and many clients that each choose for themselves. Each measures itself; what came of
//! it all is for the command to put together.

pub mod avoidance;
pub mod calls;
pub mod clients;
pub mod echo;
pub mod figures;
pub mod fleet;
pub mod floor;
pub mod subscribers;
mod usage;
pub mod window;

pub use usage::{Usage, unix_us};

/// Why a part cannot do its work.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A listener cannot be bound, or a connection cannot be made.
    #[error("{what}: {error}")]
    Io {
        /// What was tried.
        what: String,
        /// What came of it.
        error: std::io::Error,
    },
    /// A bare channel cannot be made.
    #[error("cannot connect: {0}")]
    Transport(#[from] tonic::transport::Error),
    /// The SDK's channel cannot be made.
    #[error(transparent)]
    Channel(#[from] lookaside_sdk::Error),
    /// A backend cannot be made.
    #[error(transparent)]
    Backend(#[from] crate::backend::Error),
    /// A connection broke, or a stream was refused.
    #[error("{what}: {error}")]
    Http2 {
        /// What was under way.
        what: &'static str,
        /// What came of it.
        error: h2::Error,
    },
    /// Not all came about in time.
    #[error("only {ready} of {wanted} {what} within {} s", .within.as_secs())]
    Incomplete {
        /// Of what.
        what: &'static str,
        /// So many came about.
        ready: usize,
        /// Of so many.
        wanted: usize,
        /// In this time.
        within: std::time::Duration,
    },
}
