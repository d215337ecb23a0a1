//! The Lookaside SDK: a balanced drop-in for a tonic `Channel`, and what a backend needs to make itself known.
//!
//! A [`Channel`] asks a lookaside balancer *which endpoint should this call go to* and then sends the call there itself; the
//! balancer is never on the path of a request, and may be away for any length of time. Any tonic 0.14 generated client works
//! with it, in all four shapes of a call:
//!
#![cfg_attr(feature = "transport", doc = "```no_run")]
#![cfg_attr(not(feature = "transport"), doc = "```ignore")]
//! use lookaside_proto::demo::{EchoRequest, echo_client::EchoClient};
//! use lookaside_sdk::{Channel, picked};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let channel = Channel::connect("lookaside://127.0.0.1:7400/echo").await?;
//! let mut client = EchoClient::new(channel);
//! let reply = client.unary(EchoRequest { payload: b"hello".to_vec(), ..Default::default() }).await?;
//! println!("served by {}", picked(&reply).map_or("nobody", |p| &*p.address));
//! # Ok(())
//! # }
//! ```
//!
//! What it does with each call, and around it:
//!
//! - **chooses** among the connected endpoints of the best priority by the policy in the list ([`picker`]): by what responses
//!   tell of load ([`orca`]), each word good for one call, and where nothing fresh is known and calls take long enough by
//!   asking two endpoints first;
//! - **moves** the call to another endpoint by itself when the first one provably did not process it, and only then;
//! - **repeats** it where its method is declared idempotent, and not oftener than budgets allow: retries, hedges
//!   ([`MethodPolicy`], [`Builder::method`]);
//! - **limits** it: a deadline set by the caller holds for the whole call and travels with it; calls without one get a default
//!   of 15 s that does not cut streams; what a server calls while it serves a call can end with that call ([`deadline`]);
//! - **counts** how it ended, by whom the end blames ([`outcome`]), and tells the balancer once a second, first failures and
//!   suspicions at once;
//! - **outlives** its balancers: it asks several, each address of each name, one at a time; the last list serves while none
//!   answers, and with [`Builder::cache_dir`] it is there for the next start as well;
//! - **explains** a failure: [`why`] gives it typed, the status message in words, with the command that tells more.
//!
//! A laptop needs no balancer: [`Channel::from_env`] with `LOOKASIDE_TARGET=static://127.0.0.1:50051`.
//!
//! Features: `transport` (default) is the channel; `reporter` is for backends; `testing` is a scripted balancer for an
//! application's own tests. Without any, [`picker`] alone is left, on the standard library.

pub mod picker;

#[cfg(feature = "transport")]
mod advice;
#[cfg(feature = "transport")]
mod attempt;
#[cfg(feature = "transport")]
mod backoff;
#[cfg(feature = "transport")]
mod cache;
#[cfg(feature = "transport")]
mod call;
#[cfg(feature = "transport")]
mod channel;
#[cfg(feature = "transport")]
mod clock;
#[cfg(feature = "transport")]
mod connection;
#[cfg(feature = "transport")]
pub mod deadline;
#[cfg(feature = "transport")]
mod deadlines;
#[cfg(feature = "transport")]
mod dial;
#[cfg(feature = "transport")]
mod endpoint;
#[cfg(feature = "transport")]
mod error;
#[cfg(feature = "transport")]
mod fallback;
#[cfg(feature = "transport")]
mod framing;
#[cfg(feature = "transport")]
mod list;
#[cfg(feature = "transport")]
pub mod orca;
#[cfg(feature = "transport")]
pub mod outcome;
#[cfg(feature = "transport")]
mod pick_stream;
#[cfg(feature = "transport")]
mod policy;
#[cfg(feature = "transport")]
mod pool;
#[cfg(feature = "transport")]
mod probe;
#[cfg(feature = "transport")]
mod replay;
#[cfg(feature = "transport")]
mod resolve;
#[cfg(feature = "transport")]
mod response;
#[cfg(feature = "transport")]
mod room;
#[cfg(feature = "transport")]
mod snapshot;
#[cfg(feature = "transport")]
mod tally;
#[cfg(feature = "transport")]
mod target;
#[cfg(feature = "transport")]
pub mod tls;
#[cfg(feature = "transport")]
mod why;

#[cfg(feature = "transport")]
pub use channel::{Builder, CACHE_DIR_VARIABLE, Channel, TARGET_VARIABLE};
#[cfg(feature = "transport")]
pub use error::Error;
#[cfg(feature = "transport")]
pub use policy::MethodPolicy;
#[cfg(feature = "transport")]
pub use pool::HashKey;
#[cfg(feature = "transport")]
pub use snapshot::{EndpointSnapshot, EndpointState, ListSource, Mode, Snapshot, Version};
#[cfg(feature = "transport")]
pub use tls::Tls;
#[cfg(feature = "transport")]
pub use why::{NotRetried, Picked, What, Why, picked, why};

#[cfg(feature = "reporter")]
pub mod reporter;
#[cfg(feature = "reporter")]
pub use reporter::{Reporter, asked_to_leave};

#[cfg(feature = "testing")]
pub mod testing;
