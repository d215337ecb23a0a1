//! A simulated day in a second: the core's table and policies and the SDK's picker, the very code that the service runs, under
//! a virtual clock, beside other ways to balance. It holds no rule of balancing of its own but those it compares with.
//!
//! A [`scenario::Scenario`] says who serves, who calls and what goes wrong; [`run::run`] plays it with one [`dispatch::Policy`]
//! and one seed, and gives what came of it ([`measure::Run`]). Time is in whole microseconds and nothing reads a clock; the
//! same seed gives the same bytes. Every policy of a seed meets the same calls at the same times, so that differences are the
//! policies'.

mod arrivals;
mod balancer;
pub mod batch;
mod chance;
mod client;
pub mod digest;
pub mod dispatch;
mod endpoint;
mod engine;
pub mod estimate;
pub mod gates;
pub mod measure;
pub mod plot;
mod pooled;
mod queue;
pub mod rows;
pub mod run;
pub mod scenario;
mod slots;
pub mod suite;
pub mod world;
